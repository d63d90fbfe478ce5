"""Blocks and residual connections: their constants hold for all weights, and they compute what the papers say."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.parametrizations import gram_row_sums, operator_norm_bound
from deel_like_lip.parametrizations.operator_norm import BoundedOperatorNorm
from tests.helpers import convolution_matrix, operator_norm, singular_values, to_numpy, vector_jacobian_product

layers = lip.layers


def kernels(shape, rng):
    """Kernels with the last axis as columns: usual ones, and those on which a bound could break."""
    random = rng.normal(size=shape)
    some_zero = random.copy()
    some_zero[..., ::2] = 0
    one = np.zeros(shape)
    one[tuple(size // 2 for size in shape)] = 1
    wide = random * 10.0 ** rng.uniform(-4, 4, shape)
    cases = [random, 1e4 * random, 1e-5 * random, np.ones(shape), some_zero, one, wide, np.zeros(shape)]
    return [kernel.astype("float32") for kernel in cases]


# (how to make a block with an activation; shape of a sample)
BLOCKS = {
    "SLLDense": (lambda activation: layers.SLLDense(9, activation), (6,)),
    "SLLConv2D same": (lambda activation: layers.SLLConv2D(5, activation=activation), (5, 6, 3)),
    "SLLConv2D circular": (
        lambda activation: layers.SLLConv2D(5, (5, 3), "circular", activation=activation),
        (4, 6, 2),
    ),
    "CPLDense": (lambda activation: layers.CPLDense(9, activation), (6,)),
    "CPLConv2D same": (lambda activation: layers.CPLConv2D(5, activation=activation), (5, 6, 3)),
    "CPLConv2D circular": (
        lambda activation: layers.CPLConv2D(5, (5, 3), "circular", activation=activation),
        (4, 6, 2),
    ),
    "CPLConv2D of one pixel": (lambda activation: layers.CPLConv2D(5, 1, activation=activation), (3, 2, 4)),
    "SandwichDense": (lambda activation: layers.SandwichDense(9, activation, k_coef_lip=2.0), (6,)),
    "LinearResidualConv2D same": (lambda _: layers.LinearResidualConv2D(k_coef_lip=0.5), (5, 6, 3)),
    "LinearResidualConv2D circular": (lambda _: layers.LinearResidualConv2D((5, 3), "circular"), (4, 6, 2)),
}


@pytest.mark.parametrize(("make", "shape"), BLOCKS.values(), ids=BLOCKS)
def test_the_constant_holds_whatever_the_weights_are(make, shape, rng):
    """The Jacobian where all slopes are 1, which relu reaches with a large bias, and certificates."""
    layer, rectified = make("linear"), make("relu")
    model, nonlinear = (keras.Sequential([keras.Input(shape), one]) for one in (layer, rectified))
    basis = np.eye(np.prod(shape), dtype="float32").reshape(-1, *shape)
    reached = []
    for kernel in kernels(layer.kernel.shape, rng):
        layer.kernel.assign(kernel)
        if hasattr(layer, "q"):
            layer.q.assign(rng.normal(size=layer.q.shape) * 5)
        lip.renormalize(model)
        for training in (False, True):
            matrix = to_numpy(model(basis, training=training)).reshape(len(basis), -1)
            norm = operator_norm(matrix.astype("float64"))
            assert norm <= layer.k_coef_lip * (1 + 1e-5)
        reached.append(norm / layer.k_coef_lip)
        rectified.set_weights(layer.get_weights())
        assert norm * (1 - 1e-6) <= lip.certify(nonlinear).lipschitz_constant <= layer.k_coef_lip * (1 + 1e-5)
    assert max(reached) > 0.9


def test_sll_is_that_of_the_paper(rng):
    dense, conv = layers.SLLDense(7), layers.SLLConv2D(4)
    inputs = rng.normal(size=(10, 5)).astype("float32"), rng.normal(size=(2, 6, 5, 3)).astype("float32")
    for layer, x in zip((dense, conv), inputs, strict=True):
        layer(x)
        for weight in (layer.q, layer.bias):
            weight.assign(rng.normal(size=weight.shape))
        w, q, b = (to_numpy(weight).astype("float64") for weight in (layer.kernel, layer.q, layer.bias))
        q = np.exp(q)
        if layer is dense:
            expected, gram = (x.astype("float64"),), np.abs(w.T @ w)
            back = w.T
        else:
            # On an image in whose middle every offset of the kernel fits.
            matrix = convolution_matrix(w, 9, padding="same").reshape(9, 9, 4, -1)
            gram = np.abs(np.einsum("cn,hwdn->cdhw", matrix[4, 4], matrix)).sum((2, 3))
            forward = convolution_matrix(w, (6, 5), padding="same")
            expected = (x.astype("float64").reshape(2, -1),)
        t = gram @ q / q
        if layer is dense:
            y = expected[0] - 2 * (np.maximum(expected[0] @ w + b, 0) / t) @ back
        else:
            hidden = np.maximum((expected[0] @ forward.T).reshape(2, -1, 4) + b, 0) / t
            y = expected[0] - 2 * hidden.reshape(2, -1) @ forward
        np.testing.assert_allclose(to_numpy(layer(x)).reshape(len(x), -1), y, atol=2e-3)
        # (T is rounded up by 0.03 %.)
        sums = to_numpy(gram_row_sums(layer.kernel, layer.q))
        assert np.all(sums >= t)
        assert np.all(sums <= t * (1 + 5e-4))


def test_cpl_and_sandwich_are_those_of_the_papers(rng):
    x = rng.normal(size=(10, 5)).astype("float32")
    cpl, sandwich = layers.CPLDense(7), layers.SandwichDense(3)
    for layer in (cpl, sandwich):
        layer(x)
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    w, b = to_numpy(cpl.kernel), to_numpy(cpl.bias)
    assert 0.97 <= singular_values(w).max() <= 1
    np.testing.assert_allclose(to_numpy(cpl(x)), x - 2 * np.maximum(x @ w + b, 0) @ w.T, atol=1e-5)
    kernel, b = to_numpy(sandwich.kernel) / np.sqrt(2), to_numpy(sandwich.bias)
    a, c = kernel[:3].T, kernel[3:].T
    np.testing.assert_allclose(a @ a.T + c @ c.T, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(
        to_numpy(sandwich(x)), np.sqrt(2) * np.maximum(np.sqrt(2) * x @ c.T + b, 0) @ a, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(40, 30), (3, 3, 6, 10), (5, 1, 12, 4), (1, 1, 8, 8)])
def test_operator_norm_bound_is_one_and_near(shape, rng):
    for kernel in kernels(shape, rng)[:-1]:
        exact = singular_values(kernel).max() if len(shape) == 2 else lip.bounds.convolution_bound(kernel) / 1.006**2
        for in_training, factor in ((False, 1.05), (True, 1.1)):
            bound = float(operator_norm_bound(keras.ops.convert_to_tensor(kernel[None]), in_training))
            assert exact <= bound <= factor * exact
        norm = 0.3
        projected = to_numpy(BoundedOperatorNorm(norm).project(kernel))
        again = to_numpy(BoundedOperatorNorm(norm).project(projected))
        np.testing.assert_allclose(again, projected, rtol=1e-4)
    zero = np.zeros(shape, "float32")
    np.testing.assert_array_equal(to_numpy(BoundedOperatorNorm(1.0).project(zero)), zero)


def test_linear_residual_begins_near_the_identity(rng):
    x = rng.normal(size=(2, 8, 8, 6)).astype("float32")
    outputs = to_numpy(layers.LinearResidualConv2D()(x))
    assert np.corrcoef(outputs.ravel(), x.ravel())[0, 1] > 0.9
    assert not np.allclose(outputs, x, atol=1e-2)


def test_channels_first_is_the_same_with_other_axes(rng):
    x = rng.normal(size=(2, 4, 5, 6)).astype("float32")
    for make in (
        lambda **k: layers.CPLConv2D(6, padding="circular", **k),
        lambda **k: layers.ConcatResidual(layers.SLLConv2D(3, **k), **k),
    ):
        last, first = make(data_format="channels_last"), make(data_format="channels_first")
        expected = last(x.transpose(0, 2, 3, 1))
        first.build(x.shape)
        first.set_weights(last.get_weights())
        for weight in (*last.weights, *first.weights):
            if weight.name == "bias":
                weight.assign(np.linspace(-1, 1, weight.shape[0]))
        expected = to_numpy(last(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(to_numpy(first(x)), expected, atol=1e-5)


def test_gradients_at_ties_and_of_zero_kernels():
    x = np.zeros((6, 6), "float32")
    for layer in (layers.SLLDense(), layers.CPLDense(), layers.SandwichDense(), layers.LipResidual(layers.MaxMin())):
        model = keras.Sequential([keras.Input((6,)), layer])
        jacobian = vector_jacobian_product(model, x, np.eye(6))
        assert np.linalg.norm(jacobian, 2) <= 1 + 1e-5
    zero = {"kernel_initializer": "zeros", "use_bias": False}
    blocks = [layers.SLLConv2D(**zero), layers.CPLConv2D(**zero), layers.SLLDense(**zero), layers.CPLDense(**zero)]
    model = keras.Sequential([keras.Input((4, 4, 2)), *blocks])
    model.compile("sgd", "mse")
    inputs = np.ones((3, 4, 4, 2), "float32")
    np.testing.assert_array_equal(to_numpy(model(inputs)), inputs)
    model.train_on_batch(inputs, 0 * inputs)
    assert all(np.all(np.isfinite(weight)) for weight in model.get_weights())


def test_lip_residual_is_a_mix(rng):
    layer = layers.LipResidual(layers.SpectralDense(6), 0.2, k_coef_lip=2.0)
    x = rng.normal(size=(9, 6)).astype("float32")
    np.testing.assert_allclose(to_numpy(layer(x)), 2 * (0.2 * x + 0.8 * to_numpy(layer.branch[0](x))), atol=1e-5)
    layer.logit.assign(0.0)
    np.testing.assert_allclose(to_numpy(layer(x)), x + to_numpy(layer.branch[0](x)), atol=1e-5)


def test_concat_residual_keeps_the_norm_of_gradients(rng):
    model = keras.Sequential(
        [keras.Input((8,)), layers.ConcatResidual([layers.SpectralDense(4), layers.GroupSort2()], k_coef_lip=3.0)]
    )
    x = np.repeat(rng.normal(size=(1, 8)), 8, axis=0).astype("float32")
    jacobian = vector_jacobian_product(model, x, np.eye(8))
    np.testing.assert_allclose(np.linalg.svd(jacobian, compute_uv=False), 3, rtol=1e-3)
    assert lip.certify(model).lipschitz_constant == pytest.approx(3, rel=1e-5)


def test_a_net_of_blocks_trains_folds_and_certifies(rng):
    residual = layers.LipResidual([layers.SandwichDense(16), layers.CPLDense(20)])
    blocks = [
        layers.SLLConv2D(8),
        layers.CPLConv2D(8, padding="circular"),
        layers.LinearResidualConv2D(),
        keras.layers.Flatten(),
        layers.SandwichDense(16),
        layers.ConcatResidual(layers.SLLDense(20)),
        residual,
        layers.SpectralDense(2),
    ]
    x = rng.normal(size=(64, 6, 6, 4)).astype("float32")
    y = (np.sum(x.reshape(64, -1)[:, :16], axis=1) > 0).astype("int64")
    model = keras.Sequential([keras.Input(x.shape[1:]), *blocks])
    before = model.get_weights()
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR(alpha=20.0))
    history = model.fit(x, y, epochs=10, batch_size=32, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert all(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))  # every weight did
    plain = lip.vanilla_model(model)
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(model(x)), atol=1e-4)
    certificate = lip.certify(model)
    assert certificate.lipschitz_constant <= 1 + 1e-5
    cotangents = rng.normal(size=(64, 2))
    cotangents /= np.linalg.norm(cotangents, axis=1, keepdims=True)
    gradients = vector_jacobian_product(model, x, cotangents).reshape(64, -1)
    largest = np.linalg.norm(gradients, axis=1).max()
    assert 0.2 <= largest <= certificate.lipschitz_constant * (1 + 1e-5)
    assert lip.certify(model, rounding="sound").heads[0].rounding_error.relative < 1e-3


BAD = {
    "units": (lambda: layers.SLLDense(0), "`units` of SLLDense. Expected a positive integer.*units=0"),
    "filters": (lambda: layers.CPLConv2D(2.5), "`filters` of CPLConv2D. Expected a positive integer"),
    "activation": (lambda: layers.SLLDense(activation="gelu"), r"slopes are known to lie in \[0, 1\].*=gelu"),
    "sorting": (lambda: layers.CPLDense(activation=layers.MaxMin()), r"slopes are known to lie in \[0, 1\]"),
    "even": (lambda: layers.SLLConv2D(4, 2), "Expected odd numbers.*kernel_size=2"),
    "kernel_size": (
        lambda: layers.LinearResidualConv2D(0),
        "`kernel_size` of LinearResidualConv2D. Expected a positive integer, or 2.*=0",
    ),
    "padding": (lambda: layers.SLLConv2D(padding="valid"), "Expected 'same' or 'circular'.*padding=valid"),
    "data_format": (lambda: layers.SLLConv2D(data_format="last"), "'channels_first'.*data_format=last"),
    "k_coef_lip": (lambda: layers.SandwichDense(k_coef_lip=0), "k_coef_lip=0"),
    "constraint": (lambda: layers.CPLDense(kernel_constraint="non_neg"), "`kernel_constraint` is not accepted"),
    "unknown branch": (lambda: layers.LipResidual(keras.layers.Dense(4)), "known and have a product of at most 1"),
    "large branch": (lambda: layers.ConcatResidual(layers.MaxMin(k_coef_lip=1.1)), r"with the constants \[1.1\]"),
    "disjoint": (lambda: layers.LipResidual(layers.FrobeniusDense(4)), r"with the constants \[2.0\]"),
    "no branch": (lambda: layers.LipResidual([]), "Expected one or more layers"),
    "alpha": (lambda: layers.LipResidual(layers.MaxMin(), 1.0), "between 0 and 1.*initial_alpha=1.0"),
    "concat format": (lambda: layers.ConcatResidual(layers.MaxMin(), "first"), "data_format=first"),
    "rank": (lambda: layers.SLLConv2D().build((None, 4)), "expects a 4D input.*Received: input_shape"),
    "features": (lambda: layers.SLLDense().build((None, None)), "whose last axis is known"),
    "small image": (lambda: layers.SLLConv2D(4, 5, "circular").build((None, 1, 9, 2)), "half the kernel size"),
    "odd channels": (lambda: layers.ConcatResidual(layers.MaxMin()).build((None, 5)), "an even number of channels"),
    "shape of the branch": (lambda: layers.LipResidual(layers.SpectralDense(3)).build((None, 4)), "shape of the input"),
    "image of the branch": (
        lambda: layers.ConcatResidual(layers.LipConv2D(2, 3)).build((None, 6, 6, 4)),
        "nothing but the number of channels",
    ),
    "fold": (lambda: layers.SLLDense().fold(), "is not built"),
    "fold of a residual": (lambda: layers.LipResidual(layers.MaxMin()).fold(), "is not built"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
