"""Mixed precision and float64 in training, and certificates of what computes in another way than it was trained."""

import contextlib

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.bounds import CannotBoundError
from deel_like_lip.renormalization import constrained_layers
from tests.helpers import fewer_where_compiled, singular_values, to_numpy

layers, losses = lip.layers, lip.losses
BACKEND = keras.backend.backend()


@contextlib.contextmanager
def under(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def net():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.LipConv2D(4, 3, padding="same", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(16),
            layers.MaxMin(),
            layers.SpectralDense(4),
        ]
    )


def blobs(count, seed=0):
    """Noisy class centres, far apart: what a training that works certifies does not hang on its last steps."""
    centres = 2 * np.random.default_rng(9).normal(size=(4, 6, 6, 2))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    return (centres[labels] + rng.normal(size=(count, 6, 6, 2))).astype("float32"), labels


POLICIES = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16", "float64": "float64"}


def trained(policy):
    """Returns a net that was trained under a policy, and what `CertifyCallback` said of it in the end."""
    inputs, labels = blobs(1024)
    keras.utils.set_random_seed(0)
    with under(policy):
        model = net()
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 256))
    model.compile(optimizer, losses.MulticlassHKR(alpha=20.0, min_margin=1.0))
    certify = lip.callbacks.CertifyCallback(blobs(2000, seed=1), [0.0, 0.25], every=8)
    chain = [lip.callbacks.RenormalizeCallback(), certify]
    history = model.fit(inputs, labels, batch_size=32, epochs=8, verbose=0, callbacks=chain).history
    assert history["loss"][-1] < history["loss"][0]
    return model, [history[f"val_certified_accuracy_{radius:g}"][-1] for radius in (0.0, 0.25)]


@pytest.fixture(scope="module")
def in_float32():
    model, shares = trained("float32")
    check_kernels(model, "float32")
    return shares


def check_kernels(model, dtype):
    for layer in constrained_layers(model):
        assert keras.backend.standardize_dtype(layer.kernel.dtype) == dtype
        np.testing.assert_allclose(singular_values(layer.kernel), layer.parametrization.norm, rtol=1e-6)


@pytest.mark.parametrize("policy", fewer_where_compiled(POLICIES, "mixed_bfloat16"))
def test_training_is_as_in_float32(policy, in_float32):
    if policy == "float64" and BACKEND == "jax":
        pytest.skip("JAX computes in float32 unless its x64 mode is on for the whole process")
    model, shares = trained(policy)
    check_kernels(model, "float64" if policy == "float64" else "float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert model.layers[0].compute_dtype == POLICIES[policy]
    assert min(in_float32) > 0.98
    np.testing.assert_allclose(shares, in_float32, atol=0.005)


LOSSES = {
    "KR": (losses.KR(), 1),
    "HingeMargin": (losses.HingeMargin(), 1),
    "HingeKR": (losses.HingeKR(alpha=10.0), 1),
    "TauBinaryCrossentropy": (losses.TauBinaryCrossentropy(tau=3.0), 1),
    "MulticlassKR": (losses.MulticlassKR(), 4),
    "MulticlassHinge": (losses.MulticlassHinge(), 4),
    "MulticlassHKR": (losses.MulticlassHKR(alpha=10.0), 4),
    "SoftHKRMulticlass": (losses.SoftHKRMulticlass(), 4),
    "LseHKRMulticlass": (losses.LseHKRMulticlass(), 4),
    "TauCategoricalCrossentropy": (losses.TauCategoricalCrossentropy(tau=3.0), 4),
}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("loss", "outputs"), LOSSES.values(), ids=LOSSES)
def test_losses_compute_in_float32(loss, outputs, policy, rng):
    # Sums of this many logits of that size are not in float16, and means of them are off in bfloat16.
    values = 300 + 50 * rng.normal(size=(2048, outputs))
    labels = np.eye(4)[np.arange(2048) % 4] if outputs > 1 else (np.arange(2048)[:, None] % 2)
    logits = keras.ops.convert_to_tensor(values.astype("float32"), dtype=POLICIES[policy])
    with under(policy):
        low = type(loss).from_config(loss.get_config())(labels, logits)
    high = loss(labels, keras.ops.cast(logits, "float32"))
    assert keras.backend.standardize_dtype(low.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(low), to_numpy(high), rtol=1e-6)


@pytest.mark.parametrize("rounding", ["exact", "sound"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_what_computes_in_less_than_float32_has_no_certificate_but_its_fold_has(policy, rounding, rng):
    with under(policy):
        inner = keras.Sequential([keras.Input((8,)), layers.SpectralDense(8, name="low"), layers.MaxMin()])
    outer = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), inner, layers.SpectralDense(3)])
    with pytest.raises(CannotBoundError, match=r"'low.*' of class Dense: it computes in b?float16.*dtype=\"float32\""):
        lip.certify(outer, rounding=rounding)
    plain = lip.vanilla_model(outer, dtype="float32")
    assert {layer.compute_dtype for layer in plain._flatten_layers(include_self=False)} == {"float32"}
    assert {weight.dtype for weight in plain.weights} == {"float32"}
    inputs = rng.normal(size=(64, 8)).astype("float32")
    own, folded = outer.predict(inputs, verbose=0), plain.predict(inputs, verbose=0)
    np.testing.assert_allclose(own.astype("float32"), folded, atol=0.05)
    certificate = lip.certify(plain, rounding=rounding)
    assert lip.certified_accuracy(plain, (inputs, np.argmax(folded, axis=1)), [0.0], certificate=certificate) > 0.9
    with pytest.raises(ValueError, match="it computes in"):
        certificate.verify(outer)


def test_a_fold_to_another_dtype_keeps_what_is_shared_and_nested():
    shared, inputs = layers.SpectralDense(4, dtype="mixed_bfloat16", name="shared"), keras.Input((4,))
    wrapped = keras.layers.TimeDistributed(keras.layers.Dense(2, dtype="mixed_bfloat16"), dtype="mixed_bfloat16")
    model = keras.Model(inputs, wrapped(keras.layers.Reshape((2, 2))(shared(layers.MaxMin()(shared(inputs))))))
    plain = lip.vanilla_model(model, dtype="float32")
    assert len(plain.weights) == len(model.weights)
    assert all(np.array_equal(*map(to_numpy, pair)) for pair in zip(plain.weights, model.weights, strict=True))
    assert lip.certify(plain).lipschitz_constant > 0
    assert model.layers[-1].layer.compute_dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16", "int8", 32])
def test_bad_dtypes_of_a_fold(dtype):
    with pytest.raises(ValueError, match=f"Expected `dtype` to be .* Received: dtype={dtype!r}"):
        lip.vanilla_model(net(), dtype=dtype)


# --- quantized kernels -----------------------------------------------------------------------------------------------

quantizers = keras.quantizers
KERNELS_ALONE = {
    "int8": quantizers.Int8QuantizationConfig(activation_quantizer=None),
    "int4": quantizers.Int4QuantizationConfig(block_size=None),
    "int4 in groups": quantizers.Int4QuantizationConfig(block_size=5),
}


def dense_net():
    """A folded net with a bias, small weights in one layer and large ones in another."""
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.SpectralDense(16, k_coef_lip=0.01, bias_initializer="random_normal"),
            layers.MaxMin(),
            layers.SpectralDense(16, k_coef_lip=300.0),
            layers.MaxMin(),
            layers.SpectralDense(3, use_bias=False),
        ]
    )
    return lip.vanilla_model(model)


def quantized(config):
    model = dense_net()
    model.quantize(config=config)
    return model


def dequantized(layer):
    """Returns the kernel that a quantized layer stands for, in float64, from what Keras stores."""
    stored, scale = to_numpy(layer._kernel), to_numpy(layer.kernel_scale).astype("float64")
    if layer.quantization_mode == "int4":  # two numbers a byte, the first in the low half
        low, high = ((stored.astype("int16") >> shift) & 15 for shift in (0, 4))
        stored = np.stack([low, high], axis=-1).reshape(len(stored), -1)[:, : layer.units]
        stored = np.where(stored > 7, stored - 16, stored)
    if not hasattr(layer, "kernel_zero"):
        return stored / scale
    groups = to_numpy(layer.g_idx).astype(int)
    return (stored - to_numpy(layer.kernel_zero).astype("float64")[groups]) * scale[groups]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("config", KERNELS_ALONE.values(), ids=KERNELS_ALONE)
def test_certificates_of_quantized_kernels(config, rng, tmp_path):
    model = quantized(config)
    dense = [layer for layer in model.layers if hasattr(layer, "kernel")]
    certificate, sound = lip.certify(model), lip.certify(model, rounding="sound")
    product = np.prod([np.linalg.norm(dequantized(layer), 2) for layer in dense])
    assert 0.99 * product <= certificate.lipschitz_constant <= product * (1 + 1e-9)
    lines = [line.constant for line in certificate.layers if line.kind == "Dense"]
    np.testing.assert_allclose(lines, [np.linalg.norm(dequantized(layer), 2) for layer in dense], rtol=1e-9)

    # What is computed is the map of these kernels, up to the rounding that `sound` bounds.
    inputs = rng.normal(size=(4000, 12)) * 10.0 ** rng.uniform(-3, 3, size=(4000, 1))
    inputs[1::2] = inputs[::2] + rng.normal(size=(2000, 12)) * 10.0 ** rng.uniform(-6, 1, size=(2000, 1))
    inputs = inputs.astype("float32")
    exact = inputs.astype("float64")
    for layer in dense:
        exact = exact @ dequantized(layer) + (0 if layer.bias is None else to_numpy(layer.bias).astype("float64"))
        if layer is not dense[-1]:
            low, high = exact[:, :8], exact[:, 8:]
            exact = np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)
    outputs = model.predict(inputs, batch_size=1000, verbose=0).astype("float64")
    error, norms = sound.heads[0].rounding_error, np.linalg.norm(inputs.astype("float64"), axis=1)
    allowed = error.absolute + error.relative * norms
    assert error.relative < 1e-3 * certificate.lipschitz_constant
    assert np.all(np.linalg.norm(outputs - exact, axis=1) <= allowed)
    moved = np.linalg.norm(inputs[::2].astype("float64") - inputs[1::2], axis=1)
    changed = np.linalg.norm(outputs[::2] - outputs[1::2], axis=1)
    assert np.all(changed <= certificate.lipschitz_constant * moved + allowed[::2] + allowed[1::2])

    model.save(tmp_path / "quantized.keras")
    certificate.verify(keras.saving.load_model(tmp_path / "quantized.keras"))
    with pytest.raises(lip.CertificateError, match="other weights"):
        lip.certify(dense_net()).verify(model)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_inputs_that_are_rounded_are_refused_and_rightly_so(rng):
    model = quantized(quantizers.Int8QuantizationConfig())
    with pytest.raises(
        CannotBoundError, match=r"'spectral_dense.*' .* rounds its inputs too.*activation_quantizer=None"
    ):
        lip.certify(model)
    inputs = rng.normal(size=(2000, 12)).astype("float32")
    moved = inputs + np.float32(1e-4) * rng.normal(size=inputs.shape).astype("float32")
    outputs = [model.predict(points, batch_size=1000, verbose=0) for points in (inputs, moved)]
    slopes = np.linalg.norm(outputs[0] - outputs[1], axis=1) / np.linalg.norm(inputs - moved, axis=1)
    assert slopes.max() > 10 * lip.certify(dense_net()).lipschitz_constant


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_other_ways_to_quantize_are_refused():
    model = quantized(quantizers.Float8QuantizationConfig())
    with pytest.raises(ValueError, match=r"'spectral_dense.*' cannot be folded: it is quantized by the mode 'float8'"):
        lip.certify(model)
    model = keras.Sequential([keras.Input((4, 6)), keras.layers.EinsumDense("abc,cd->abd", (4, 3), name="einsum")])
    model.quantize(config=KERNELS_ALONE["int8"])
    with pytest.raises(CannotBoundError, match="'einsum' .* quantized by the mode 'int8'"):
        lip.certify(model)
    model = quantized(KERNELS_ALONE["int8"])
    model.layers[-1].enable_lora(1)
    with pytest.raises(CannotBoundError, match="has a LoRA update"):
        lip.certify(model)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_scales_that_were_edited():
    model = quantized(KERNELS_ALONE["int8"])
    model.layers[-1].kernel_scale.assign([1.0, 0.0, 1.0])
    with pytest.raises(CannotBoundError, match="NaN or infinite"):
        lip.certify(model)
    model.layers[-1].kernel_scale.assign(np.float32([1.0, 1e-39, 1.0]))
    with pytest.raises(CannotBoundError, match="its rounding error is not known"):
        lip.certify(model, rounding="sound")
    grouped = quantized(KERNELS_ALONE["int4 in groups"])
    grouped.layers[-1].g_idx.assign(np.full(16, 9.0))
    with pytest.raises(CannotBoundError, match="a group without a scale"):
        lip.certify(grouped)
