"""Inputs of all kinds: sizes that are not known, batches of one and none, NaN, infinities, integers, masks."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.bounds import CannotBoundError
from tests.helpers import to_numpy

layers, losses = lip.layers, lip.losses


def images(count, dtype="float32"):
    values = np.random.default_rng(0).normal(size=(count, 8, 8, 4))
    return (60 * np.abs(values)).clip(0, 255).astype("uint8") if dtype == "uint8" else values.astype(dtype)


def net(shape=(8, 8, 4)):
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.LipConv2D(4, 3, padding="same", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(3),
        ]
    )


# --- sizes that are not known ---------------------------------------------------------------------------

ANY_SIZE = {
    "LipConv2D": lambda: layers.LipConv2D(4, 3, strides=2, padding="same"),
    "LipConv2D valid": lambda: layers.LipConv2D(4, 3, padding="valid"),
    "LipConv2DTranspose": lambda: layers.LipConv2DTranspose(4, 2, strides=2),
    "LipDepthwiseConv2D": lambda: layers.LipDepthwiseConv2D(3),
    "SLLConv2D": lambda: layers.SLLConv2D(),
    "ScaledAveragePooling2D": lambda: layers.ScaledAveragePooling2D(),
    "ScaledL2NormPooling2D": lambda: layers.ScaledL2NormPooling2D(),
    "GroupSort2": lambda: layers.GroupSort2(),
    "GroupSort2 channels first": lambda: layers.GroupSort2("channels_first"),
    "MaxMin": lambda: layers.MaxMin(),
    "FullSort": lambda: layers.FullSort(k_coef_lip=0.5),
    "GroupSort 4 of 4": lambda: layers.GroupSort(4),
    "Householder": lambda: layers.Householder(),
    "LayerCentering": lambda: layers.LayerCentering(),
    "ZeroChannelPadding": lambda: layers.ZeroChannelPadding(8),
}


@pytest.mark.parametrize("make", ANY_SIZE.values(), ids=ANY_SIZE)
def test_images_of_any_size(make, rng):
    layer = make()
    shape = (4, None, None) if getattr(layer, "data_format", None) == "channels_first" else (None, None, 4)
    model = keras.Sequential([keras.Input(shape), layer])
    plain = lip.vanilla_model(model)
    assert lip.certify(model).lipschitz_constant <= layer.k_coef_lip * (1 + 1e-5)
    for size in ((8, 6), (4, 10)):
        inputs = rng.normal(size=(2, *size, 4)).astype("float32")
        inputs = np.moveaxis(inputs, -1, 1) if shape[0] == 4 else inputs
        expected = model.predict(inputs, verbose=0)
        np.testing.assert_allclose(plain.predict(inputs, verbose=0), expected, atol=1e-5)
        assert len(to_numpy(plain(inputs[:0]))) == 0


def test_sequences_of_any_length(rng):
    model = keras.Sequential([keras.Input((None, 6)), layers.SpectralDense(8), layers.GroupSort2()])
    inputs = rng.normal(size=(3, 5, 6)).astype("float32")
    plain = lip.vanilla_model(model)
    np.testing.assert_allclose(plain.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-5)
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5


FIXED_SIZE = {
    "circular": lambda: layers.LipConv2D(4, 3, padding="circular"),
    "GroupSort": lambda: layers.GroupSort(3),
    "ScaledGlobalAveragePooling2D": lambda: layers.ScaledGlobalAveragePooling2D(),
    "InvertibleDownSampling": lambda: layers.InvertibleDownSampling(2),
    "ChannelShuffle": lambda: layers.ChannelShuffle(2),
}


@pytest.mark.parametrize("make", FIXED_SIZE.values(), ids=FIXED_SIZE)
def test_where_the_size_must_be_known_folds_say_so(make):
    layer = make()
    model = keras.Sequential([keras.Input((None, None, 6)), layer])
    with pytest.raises(ValueError, match=f"'{layer.name}' .*folds only where .* Received: input_shape="):
        lip.certify(model)


# --- batches of one and none, and the last one of a dataset ---------------------------------------------


def test_batches_of_one_and_none():
    model = net()
    model.compile("sgd", losses.MulticlassHKR())
    inputs, labels = images(1), np.array([1])
    assert np.isfinite(model.train_on_batch(inputs, labels))
    assert model.predict_on_batch(inputs[:0]).shape == (0, 3)
    certificate = lip.certify(model)
    assert certificate.radius(model.predict_on_batch(inputs[:0]), inputs=inputs[:0]).shape == (0,)
    nothing = keras.losses.MeanSquaredError()(np.zeros((0, 1)), np.zeros((0, 1)))
    for loss, shape, outputs in (
        (losses.MulticlassHKR(), (0,), 3),
        (losses.TauSparseCategoricalCrossentropy(), (0,), 3),
        (losses.HingeKR(), (0, 1), 1),
    ):
        value = loss(np.zeros(shape, "int32"), np.zeros((0, outputs), "float32"))
        assert to_numpy(value).shape == to_numpy(nothing).shape


def test_the_last_batch_of_a_dataset_is_smaller():
    tensorflow = pytest.importorskip("tensorflow")
    inputs, labels = images(37), np.arange(37) % 3
    dataset = tensorflow.data.Dataset.from_tensor_slices((inputs, labels)).batch(16)
    model, loss = net(), losses.MulticlassHKR()
    model.compile(keras.optimizers.SGD(1e-2), loss)
    logits = model.predict(inputs, verbose=0)
    parts = [slice(0, 16), slice(16, 32), slice(32, 37)]
    expected = sum(float(loss(labels[part], logits[part])) * len(labels[part]) for part in parts) / 37
    np.testing.assert_allclose(model.evaluate(dataset, verbose=0), expected, rtol=1e-5)
    np.testing.assert_allclose(model.fit(dataset, verbose=0).history["loss"], expected, rtol=0.2)
    assert lip.certified_accuracy(model, dataset, [0.0]) == lip.certified_accuracy(model, (inputs, labels), [0.0])


# --- NaN and infinities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_certified(bad):
    inputs = images(6)
    inputs[2, 1, 1, 0] = bad
    clip = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.ReLU(6.0), net()])  # makes infinities finite again
    for model in (net(), clip):
        logits = model.predict(inputs, verbose=0)
        certificate = lip.certify(model)
        assert certificate.radius(logits, inputs=inputs)[2] == 0
        assert np.isfinite(logits[2]).all() or certificate.radius(logits)[2] == 0
        labels = np.argmax(np.nan_to_num(logits), axis=1)
        assert lip.certified_accuracy(model, (inputs, labels), [0.0]) == pytest.approx(5 / 6)


def test_kernels_that_a_training_on_nan_has_spoiled_are_refused():
    model, inputs = net(), images(6)
    inputs[2] = np.nan
    model.compile("sgd", losses.MulticlassHKR())
    model.fit(inputs, np.arange(6) % 3, verbose=0)
    with pytest.raises(CannotBoundError, match="NaN or infinite"):
        lip.certify(model)


# --- types of numbers -----------------------------------------------------------------------------------

CHANGING = {
    "LipConv2D": lambda: layers.LipConv2D(4, 3),
    "PadConv2D": lambda: layers.PadConv2D(4, 3, padding="reflect"),
    "ScaledAveragePooling2D": lambda: layers.ScaledAveragePooling2D(),
    "ScaledL2NormPooling2D": lambda: layers.ScaledL2NormPooling2D(),
    "ScaledGlobalL2NormPooling2D": lambda: layers.ScaledGlobalL2NormPooling2D(),
    "Householder": lambda: layers.Householder(),
    "SoftHuber": lambda: layers.SoftHuber(),
    "LayerCentering": lambda: layers.LayerCentering(),
    "LipBatchNormalization": lambda: layers.LipBatchNormalization(),
    "GroupSort2": lambda: layers.GroupSort2(),
    "MaxMin": lambda: layers.MaxMin(k_coef_lip=0.5),
}


@pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING)
def test_layers_compute_with_bytes_as_numbers(make):
    """A byte wraps around at 256, so that a layer which computes in bytes is not Lipschitz at all."""
    layer, inputs = make(), images(3, "uint8")
    expected = keras.Sequential([keras.Input((8, 8, 4)), layer]).predict(inputs, verbose=0)
    model = keras.Sequential([keras.Input((8, 8, 4), dtype="uint8"), layer])
    for each in (model, lip.vanilla_model(model)):
        outputs = each.predict(inputs, verbose=0)
        assert outputs.dtype == "float32"
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(to_numpy(layer(inputs)), expected, rtol=1e-5, atol=1e-4)
    assert lip.certify(model).lipschitz_constant <= layer.k_coef_lip * (1 + 1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_training_on_other_types(dtype):
    inputs, labels = images(32, dtype), np.arange(32) % 3
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Rescaling(1 / 255), net()])
    model.compile("adam", losses.MulticlassHKR(), metrics=[lip.metrics.CertifiedAccuracy(0.1)])
    logged = model.fit(inputs, labels, verbose=0).history
    assert np.isfinite(logged["loss"]).all()
    certificate = lip.certify(model)
    logits = model.predict(inputs, verbose=0)
    radii = [certificate.radius(logits, inputs=values) for values in (inputs, inputs.astype("float32"))]
    np.testing.assert_allclose(*radii, rtol=1e-6)
    assert lip.certified_accuracy(model, (inputs, labels), [0.0]) == np.mean(np.argmax(logits, axis=1) == labels)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_plain_layers_that_compute_with_integers_have_no_certificate(dtype):
    inputs = keras.Input((8, 8, 4), dtype=dtype)
    doubled = keras.layers.Add(name="doubled")([inputs, inputs])
    with pytest.raises(CannotBoundError, match=f"'doubled' .* computes with integers, {dtype}.*Rescaling"):
        lip.certify(keras.Model(inputs, doubled))
    moved = keras.layers.Rescaling(2.0)(keras.layers.Permute((3, 1, 2))(keras.layers.ZeroPadding2D()(inputs)))
    assert lip.certify(keras.Model(inputs, moved)).lipschitz_constant == pytest.approx(2)


# --- channels first, and masks --------------------------------------------------------------------------


def test_channels_first_as_the_default():
    inputs = np.moveaxis(images(16), -1, 1)
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        model = net((4, 8, 8))
        assert model.layers[0].data_format == "channels_first"
        model.compile("adam", losses.MulticlassHKR())
        assert np.isfinite(model.fit(inputs, np.arange(16) % 3, verbose=0).history["loss"]).all()
        plain = lip.vanilla_model(model)
        np.testing.assert_allclose(plain.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-5)
        assert lip.certify(model).lipschitz_constant <= 1 + 1e-5
    finally:
        keras.config.set_image_data_format(before)


PASS_MASKS = {
    "SpectralDense": lambda: layers.SpectralDense(6),
    "FrobeniusDense": lambda: layers.FrobeniusDense(6),
    "SLLDense": lambda: layers.SLLDense(),
    "SandwichDense": lambda: layers.SandwichDense(6),
    "GroupSort2": lambda: layers.GroupSort2(),
    "SoftHuber": lambda: layers.SoftHuber(),
}


@pytest.mark.parametrize("make", PASS_MASKS.values(), ids=PASS_MASKS)
def test_masks_pass_as_through_the_dense_layer_of_keras(make):
    tokens = np.array([[1, 2, 0, 0], [3, 1, 1, 0]])
    embedded = keras.layers.Embedding(4, 6, mask_zero=True)(tokens)
    for layer in (keras.layers.Dense(6), make()):
        mask = layer(embedded)._keras_mask
        np.testing.assert_array_equal(to_numpy(mask), tokens != 0)
