"""What every public layer keeps: serialization, weights, folding, inference without side effects, ways to execute."""

import copy

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import to_numpy

layers = lip.layers

# Name, how to make the layer, and the shape of one sample.
CASES = {
    "SpectralDense": (lambda: layers.SpectralDense(6), (4,)),
    "SpectralDense not orthogonal": (lambda: layers.SpectralDense(6, orthogonal=False), (4,)),
    "SpectralDense N-d": (lambda: layers.SpectralDense(6, use_bias=False, k_coef_lip=2.0), (3, 4)),
    "SpectralDense GroupSort2": (lambda: layers.SpectralDense(6, activation=layers.GroupSort2()), (4,)),
    "SpectralDense relu": (lambda: layers.SpectralDense(6, activation="relu"), (4,)),
    "FrobeniusDense": (lambda: layers.FrobeniusDense(6), (4,)),
    "FrobeniusDense joint": (lambda: layers.FrobeniusDense(6, disjoint_neurons=False, activation="tanh"), (4,)),
    "LipConv2D": (lambda: layers.LipConv2D(6, 3, activation=layers.MaxMin()), (8, 6, 2)),
    "LipConv2D same": (lambda: layers.LipConv2D(6, (3, 2), strides=2, padding="same", use_bias=False), (8, 6, 2)),
    "LipConv2D circular": (lambda: layers.LipConv2D(6, 3, padding="circular"), (8, 6, 2)),
    "LipConv2D circular strided": (lambda: layers.LipConv2D(6, (5, 3), strides=2, padding="circular"), (8, 6, 2)),
    "LipConv2D circular small": (lambda: layers.LipConv2D(6, 2, strides=4, padding="circular"), (8, 4, 2)),
    "LipConv2D grouped dilated": (lambda: layers.LipConv2D(6, 3, dilation_rate=2, groups=2), (8, 6, 2)),
    "FrobeniusConv2D": (lambda: layers.FrobeniusConv2D(6, 3, padding="circular"), (8, 6, 2)),
    "GroupSort": (lambda: layers.GroupSort(3), (6,)),
    "GroupSort all": (lambda: layers.GroupSort(k_coef_lip=0.5), (4, 4, 6)),
    "GroupSort2": (lambda: layers.GroupSort2(), (4, 4, 6)),
    "GroupSort2 scaled": (lambda: layers.GroupSort2(k_coef_lip=3.0), (6,)),
    "MaxMin": (lambda: layers.MaxMin(), (4, 4, 6)),
    "MaxMin flat": (lambda: layers.MaxMin(), (6,)),
    "FullSort": (lambda: layers.FullSort(), (4, 4, 6)),
    "ScaledAveragePooling2D": (lambda: layers.ScaledAveragePooling2D((2, 3)), (8, 6, 2)),
    "ScaledAveragePooling2D same": (
        lambda: layers.ScaledAveragePooling2D(3, padding="same", k_coef_lip=2.0),
        (8, 5, 2),
    ),
    "ScaledAveragePooling2D strides": (lambda: layers.ScaledAveragePooling2D(2, strides=3), (8, 6, 2)),
    "ScaledL2NormPooling2D": (lambda: layers.ScaledL2NormPooling2D(), (8, 6, 2)),
    "ScaledL2NormPooling2D same": (lambda: layers.ScaledL2NormPooling2D(3, padding="same", k_coef_lip=0.5), (8, 5, 2)),
    "ScaledGlobalAveragePooling2D": (lambda: layers.ScaledGlobalAveragePooling2D(k_coef_lip=2.0), (8, 6, 2)),
    "ScaledGlobalL2NormPooling2D": (lambda: layers.ScaledGlobalL2NormPooling2D(keepdims=True), (8, 6, 2)),
    "SLLDense": (lambda: layers.SLLDense(4, activation="tanh", use_bias=False, k_coef_lip=2.0), (3, 6)),
    "SLLConv2D": (lambda: layers.SLLConv2D(6, (3, 5), padding="circular", k_coef_lip=0.5), (8, 6, 4)),
    "CPLDense": (lambda: layers.CPLDense(9), (6,)),
    "CPLConv2D": (lambda: layers.CPLConv2D(k_coef_lip=2.0, activation="leaky_relu"), (8, 6, 4)),
    "SandwichDense": (lambda: layers.SandwichDense(9, k_coef_lip=0.5), (6,)),
    "LinearResidualConv2D": (
        lambda: layers.LinearResidualConv2D((1, 5), padding="circular", k_coef_lip=2.0),
        (8, 6, 4),
    ),
    "LipResidual": (
        lambda: layers.LipResidual([layers.LipConv2D(4, 3, padding="same"), layers.MaxMin()], k_coef_lip=2.0),
        (8, 6, 4),
    ),
    "ConcatResidual": (lambda: layers.ConcatResidual([layers.SpectralDense(6), layers.GroupSort2()]), (6,)),
    "ConcatResidual of an image": (lambda: layers.ConcatResidual(layers.SLLConv2D(3), k_coef_lip=2.0), (8, 6, 4)),
}
# Layers that specialise no layer of Keras.
OF_THEIR_OWN = (
    layers.CPLConv2D,
    layers.CPLDense,
    layers.ConcatResidual,
    layers.LinearResidualConv2D,
    layers.LipResidual,
    layers.SLLConv2D,
    layers.SLLDense,
    layers.SandwichDense,
)
every_case = pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES.keys())


def model_of(make, shape) -> keras.Model:
    return keras.Sequential([keras.Input(shape), make()])


def samples(shape, count=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def perturb(model: keras.Model) -> None:
    """Gives the biases values, which start at zero."""
    for weight in model.weights:
        if "bias" in weight.path:
            weight.assign(samples(weight.shape, count=1)[0])


def test_every_public_layer_is_listed():
    public = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)} - {"LipschitzLayer"}
    classes = {getattr(layers, name) for name in public}
    assert {type(make()) for make, _ in CASES.values()} == classes


@every_case
def test_config_and_clone(make, shape):
    model = model_of(make, shape)
    layer = model.layers[0]
    config = layer.get_config()
    again = type(layer).from_config(copy.deepcopy(config))
    assert again.get_config() == config
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    inputs = samples(shape)
    np.testing.assert_array_equal(to_numpy(clone(inputs)), to_numpy(model(inputs)))


@every_case
def test_keras_file_and_weights_file(make, shape, tmp_path):
    model = model_of(make, shape)
    perturb(model)
    inputs = samples(shape)
    expected = to_numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(keras.models.load_model(tmp_path / "model.keras")(inputs)), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    other = model_of(make, shape)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(to_numpy(other(inputs)), expected)


@every_case
def test_not_a_weight_more_than_the_keras_layer(make, shape):
    layer = model_of(make, shape).layers[0]
    if not layer.weights or isinstance(layer, OF_THEIR_OWN):
        return
    keras_class = keras.layers.Dense if isinstance(layer, keras.layers.Dense) else keras.layers.Conv2D
    assert isinstance(layer, keras_class)
    assert [weight.name for weight in layer.variables] == ["kernel", "bias"][: 1 + layer.use_bias]


@every_case
def test_fold_predicts_the_same_with_keras_alone(make, shape):
    model = model_of(make, shape)
    perturb(model)
    plain = lip.vanilla_model(model)
    inputs = samples(shape, count=20)
    np.testing.assert_allclose(to_numpy(plain(inputs)), to_numpy(model(inputs)), atol=1e-5)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain._flatten_layers())
    assert "deel_like_lip" not in plain.to_json()
    own = {id(variable) for variable in model.variables}
    assert not own & {id(variable) for variable in plain.variables}
    np.testing.assert_allclose(to_numpy(plain(inputs[:1])), to_numpy(plain(inputs))[:1], atol=1e-5)


@every_case
def test_fold_shares_no_memory(make, shape):
    model = model_of(make, shape)
    plain = lip.vanilla_model(model)
    before = [to_numpy(weight).copy() for weight in plain.weights]
    for weight in model.weights:
        weight.assign(weight + 1.0)
    for weight, value in zip(plain.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)


@every_case
def test_inference_assigns_nothing(make, shape):
    model = model_of(make, shape)
    for weight in model.weights:
        weight.assign(weight * 3.0)  # off the allowed kernels: inference must take weights as they are
    before = model.get_weights()
    first = model.predict(samples(shape), verbose=0)
    for value, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weight)
    np.testing.assert_allclose(model.predict(samples(shape), verbose=0), first)
    np.testing.assert_allclose(to_numpy(model(samples(shape), training=False)), first, atol=1e-5)
    np.testing.assert_allclose(to_numpy(model(samples(shape))), first, atol=1e-5)


@every_case
def test_training_and_inference_agree(make, shape):
    model = model_of(make, shape)
    perturb(model)
    inputs = samples(shape)
    np.testing.assert_allclose(to_numpy(model(inputs, training=True)), to_numpy(model(inputs)), atol=1e-6)


@every_case
def test_a_step_of_training(make, shape):
    model = model_of(make, shape)
    model.compile("sgd", "mse")
    inputs = samples(shape)
    targets = np.zeros((len(inputs), *model.output_shape[1:]), "float32")
    before = model.get_weights()
    loss = model.train_on_batch(inputs, targets)
    assert np.isfinite(loss)
    assert len(before) == 0 or any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@every_case
def test_output_shape_and_batches_of_none_and_one(make, shape):
    model = model_of(make, shape)
    for count in (1, 3):
        assert to_numpy(model(samples(shape, count))).shape == (count, *model.output_shape[1:])
    assert tuple(make().compute_output_shape((None, *shape))) == model.output_shape


@every_case
def test_the_constant_holds_on_pairs_of_inputs(make, shape):
    model = model_of(make, shape)
    layer = model.layers[0]
    first, second = samples(shape, 200, seed=1), samples(shape, 200, seed=2)
    second = first + second * np.geomspace(1e-2, 10, 200).reshape(-1, *[1] * len(shape)).astype("float32")
    difference = (to_numpy(model(first)).astype("float64") - to_numpy(model(second))).reshape(200, -1)
    distance = np.linalg.norm((first.astype("float64") - second).reshape(200, -1), axis=1)
    constant = layer.k_coef_lip
    if isinstance(layer, layers.FrobeniusDense) and layer.disjoint_neurons:
        ratio = np.max(np.abs(difference), axis=1) / distance
    else:
        ratio = np.linalg.norm(difference, axis=1) / distance
    assert ratio.max() <= constant * (1 + 1e-4)


@every_case
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(make, shape, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        if policy == "float64" and keras.backend.backend() == "jax":
            pytest.skip("JAX computes in float32 unless its x64 mode is on for the whole process")
        model = model_of(make, shape)
        layer = model.layers[0]
        outputs = model(samples(shape), training=True)
        plain = lip.vanilla_model(model)
        if (policy, keras.backend.backend()) != (
            "float64",
            "torch",
        ):  # where Keras's own Dense may return float32
            assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
        assert all(weight.dtype == layer.variable_dtype for weight in layer.weights)
        tolerance = {"mixed_float16": 1e-2, "mixed_bfloat16": 1e-1, "float64": 1e-6}[policy]
        reference = to_numpy(keras.ops.cast(plain(samples(shape)), "float32"))
        np.testing.assert_allclose(to_numpy(keras.ops.cast(outputs, "float32")), reference, atol=tolerance)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_kernels_orthogonal(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [keras.Input((32,)), layers.SpectralDense(16), layers.MaxMin(), layers.SpectralDense(4)]
        )
    finally:
        keras.config.set_dtype_policy(before)
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR())
    model.fit(samples((32,), 320), np.arange(320) % 4, verbose=0)
    for layer in (model.layers[0], model.layers[2]):
        assert layer.kernel.dtype == "float32"
        values = np.linalg.svd(to_numpy(layer.kernel).astype("float64"), compute_uv=False)
        np.testing.assert_allclose(values, 1, atol=1e-3)


@every_case
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch compiles for minutes: one network stands for all")
def test_jit(make, shape):
    model = model_of(make, shape)
    perturb(model)
    expected = to_numpy(model(samples(shape)))
    model.compile("sgd", "mse", jit_compile=True)
    np.testing.assert_allclose(model.predict(samples(shape), verbose=0), expected, atol=1e-5)
    assert np.isfinite(model.train_on_batch(samples(shape), np.zeros_like(expected)))


def test_jit_of_a_network():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.LipConv2D(4, 3, padding="circular", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(4, activation=layers.FullSort()),
            layers.FrobeniusDense(2),
        ]
    )
    inputs = samples((8, 8, 2), 32)
    expected = model.predict(inputs, verbose=0)
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR(), jit_compile=True)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-5)
    history = model.fit(inputs, np.arange(32) % 2, epochs=10, batch_size=32, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    kernel = to_numpy(model.layers[-2].kernel).astype("float64")
    np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False), 1, atol=1e-3)
