"""Dense and convolution layers: what they compute, and arguments that are refused."""

import inspect

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import convolution_matrix, on_torch, to_numpy

layers = lip.layers


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["valid", "same", "circular"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (4, 1), (3, 2), (2, 2), (1, 2), (5, 3), (6, 1)])
def test_a_convolution_is_its_explicit_matrix(data_format, padding, kernel_size, stride, rng):
    layer = layers.LipConv2D(4, kernel_size, strides=stride, padding=padding, data_format=data_format)
    images = rng.normal(size=(3, 6, 6, 2)).astype("float32")
    inputs = images if data_format == "channels_last" else np.moveaxis(images, -1, 1)
    outputs = to_numpy(layer(inputs))
    expected_shape = layer.compute_output_shape(inputs.shape)
    assert outputs.shape == tuple(expected_shape)
    if data_format == "channels_first":
        outputs = np.moveaxis(outputs, 1, -1)
    matrix = convolution_matrix(layer.kernel, 6, stride, padding)
    np.testing.assert_allclose(outputs.reshape(3, -1), images.reshape(3, -1) @ matrix.T, atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_training_and_folding_in_both_data_formats(data_format, rng):
    shape = (8, 8, 3) if data_format == "channels_last" else (3, 8, 8)
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.LipConv2D(4, 3, padding="circular", data_format=data_format),
            layers.GroupSort2(data_format=data_format),
            layers.ScaledL2NormPooling2D(data_format=data_format),
            layers.LipConv2D(4, 3, padding="same", data_format=data_format, activation=layers.MaxMin(data_format)),
            layers.ScaledAveragePooling2D(3, padding="same", data_format=data_format),
            layers.ScaledGlobalL2NormPooling2D(data_format=data_format),
            layers.SpectralDense(2),
        ]
    )
    model.compile("adam", lip.losses.MulticlassHKR())
    inputs = rng.normal(size=(16, *shape)).astype("float32")
    history = model.fit(inputs, np.arange(16) % 2, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(lip.vanilla_model(model).predict(inputs, verbose=0), expected, atol=1e-5)
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5


def test_other_image_sizes(rng):
    model = keras.Sequential([keras.Input((None, None, 2)), layers.LipConv2D(4, 3, padding="circular")])
    for size in (5, 8):
        images = rng.normal(size=(2, size, size, 2)).astype("float32")
        matrix = convolution_matrix(model.layers[0].kernel, size, 1, "circular")
        expected = (images.reshape(2, -1) @ matrix.T).reshape(2, size, size, 4)
        np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-5)


def test_spectral_conv_is_lip_conv():
    assert layers.SpectralConv2D is layers.LipConv2D


def test_a_user_can_read_and_set_the_kernel(rng):
    layer = layers.SpectralDense(3)
    with pytest.raises(AttributeError, match="kernel"):
        _ = layer.kernel
    layer.build((None, 4))
    value = rng.normal(size=(4, 3)).astype("float32")
    layer.kernel.assign(value)
    np.testing.assert_array_equal(to_numpy(layer.kernel), value)
    layer.renormalize()
    np.testing.assert_allclose(np.linalg.svd(to_numpy(layer.kernel), compute_uv=False), 1, atol=1e-3)


@pytest.mark.parametrize("units", [0, -3, 2.5, "8", None])
@pytest.mark.parametrize("layer_class", [layers.SpectralDense, layers.FrobeniusDense])
def test_bad_units(layer_class, units):
    with pytest.raises(ValueError, match=f"`units`, expected a positive integer. Received: units={units}"):
        layer_class(units)


@pytest.mark.parametrize("filters", [0, -3, 2.5, "8", None, True])
@pytest.mark.parametrize("layer_class", [layers.LipConv2D, layers.FrobeniusConv2D])
def test_bad_filters(layer_class, filters):
    with pytest.raises(
        ValueError,
        match=f"`filters` of {layer_class.__name__}. Expected a positive integer. Received: filters={filters}",
    ):
        layer_class(filters, 3)


@pytest.mark.parametrize("padding", ["reflect", "causal", "", None, 1])
def test_unknown_padding(padding):
    with pytest.raises(
        ValueError,
        match=rf"`padding` of LipConv2D. Expected one of \('valid', 'same', 'circular'\).*Received: padding={padding}",
    ):
        layers.LipConv2D(4, 3, padding=padding)


@pytest.mark.parametrize("k_coef_lip", [0, -1.0, float("inf"), float("nan"), "1", None, True])
@pytest.mark.parametrize(
    "make", [lambda k: layers.SpectralDense(2, k_coef_lip=k), lambda k: layers.LipConv2D(2, 3, k_coef_lip=k)]
)
def test_bad_constant(make, k_coef_lip):
    with pytest.raises(
        ValueError, match=f"`k_coef_lip`. Expected a positive finite number. Received: k_coef_lip={k_coef_lip}"
    ):
        make(k_coef_lip)


@pytest.mark.parametrize("shape", [(None, 8), (None, 8, 3), (None, 8, 8, 8, 3)])
def test_wrong_rank_of_images(shape):
    with pytest.raises(ValueError, match=r"expects a 4D input.*Received: input_shape=\(None, 8"):
        layers.LipConv2D(4, 3).build(shape)


def test_wrong_rank_and_width_at_a_call(rng):
    layer = layers.SpectralDense(4)
    layer(rng.normal(size=(2, 3)).astype("float32"))
    with pytest.raises(ValueError, match="incompatible with the layer.*axis -1"):
        layer(rng.normal(size=(2, 5)).astype("float32"))
    with pytest.raises(ValueError, match="min_ndim=2"):
        layers.SpectralDense(4)(rng.normal(size=3).astype("float32"))


@pytest.mark.parametrize(("size", "stride", "kernel_size"), [(7, 2, 3), (8, 3, 3), (2, 1, 7)])
def test_circular_padding_that_does_not_wrap_around(size, stride, kernel_size):
    words = rf"padding='circular' expects a height and width in multiples.*Received: input_shape=\(None, {size}"
    with pytest.raises(ValueError, match=words):
        layers.LipConv2D(4, kernel_size, strides=stride, padding="circular").build((None, size, size, 1))


def test_circular_padding_with_strides_must_know_the_size():
    with pytest.raises(ValueError, match="padding='circular' and strides=.*must know the height and width"):
        keras.Sequential([keras.Input((None, None, 1)), layers.LipConv2D(4, 3, strides=2, padding="circular")])
    model = keras.Sequential([keras.Input((None, None, 1)), layers.LipConv2D(4, 3, padding="circular")])
    with pytest.raises(ValueError, match="padding='circular', which folds only where the height and width"):
        lip.vanilla_model(model)


@pytest.mark.parametrize("argument", ["kernel_constraint", "lora_rank", "quantization_config"])
def test_refused_arguments(argument):
    value = {"kernel_constraint": "max_norm", "lora_rank": 2, "quantization_config": "int8"}[argument]
    with pytest.raises(
        ValueError, match=f"Argument `{argument}` is not accepted by SpectralDense.*Received: {argument}={value}"
    ):
        layers.SpectralDense(4, **{argument: value})


def test_lora_and_quantization_are_refused():
    layer = layers.SpectralDense(4)
    layer.build((None, 4))
    with pytest.raises(ValueError, match=r"LoRA is not available on the SpectralDense layer 'spectral_dense.*'"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match=r"SpectralDense layer 'spectral_dense.*' cannot be quantized"):
        layer.quantize("int8")


@on_torch
@pytest.mark.parametrize("kind", {kind: None for kind in vars(layers).values() if inspect.isclass(kind)})
def test_no_method_of_torch_is_replaced(kind):
    """On torch each layer is one of torch's modules, which move to a device by their method `_apply`."""
    import torch

    ours = [base for base in kind.__mro__ if base.__module__.startswith("deel_like_lip")]
    of_keras = [name for base in keras.layers.Layer.__mro__ if base is not torch.nn.Module for name in vars(base)]
    replaced = {name for base in ours for name in vars(base)} & vars(torch.nn.Module).keys() - {*of_keras}
    assert not {name for name in replaced if not name.startswith("__")}


@on_torch
def test_a_model_is_moved_and_cast_by_torch(rng):
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.LipConv2D(4, 3), keras.layers.Flatten(), layers.SpectralDense(3)]
    )
    images = rng.normal(size=(2, 6, 6, 2)).astype("float32")
    before = model.predict(images, verbose=0)
    np.testing.assert_array_equal(model.to("cpu").double().float().predict(images, verbose=0), before)
