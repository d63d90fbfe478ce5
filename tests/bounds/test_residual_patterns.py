"""Bounds of blocks: against the largest norm over all patterns of slopes, where they hold, nearly hold, and do not."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

import deel_like_lip as lip
from deel_like_lip.bounds import bound_graph
from deel_like_lip.bounds.activations import known_activation
from deel_like_lip.bounds.blocks import _potential_constant, _transposed_kernel
from deel_like_lip.bounds.convolution import Axis
from deel_like_lip.bounds.operators import Convolution, Dense
from tests.helpers import convolution_matrix, to_numpy

LIP = lip.layers


def largest_over_slopes(first, second, skip):
    """The largest norm of `skip I + second diag(d) first` for d in [0, 1]: it is convex in d, so at a corner."""
    identity = skip * np.eye(first.shape[1]) if skip else 0.0
    corners = itertools.product((0.0, 1.0), repeat=len(first))
    return max(np.linalg.norm(identity + (second * np.array(d)) @ first, 2) for d in corners)


def dense_block(a, b, *, residual=True, activation="relu", bias=0.3):
    """`x + b relu(a x + bias)` of plain layers; a and b as matrices that are multiplied from the left."""
    inputs = keras.Input((a.shape[1],))
    hidden = layers.Dense(len(a), activation, bias_initializer=keras.initializers.Constant(bias))
    back = layers.Dense(len(b), use_bias=False)
    outputs = back(hidden(inputs))
    model = keras.Model(inputs, layers.Add()([outputs, inputs]) if residual else outputs)
    hidden.kernel.assign(a.T)
    back.kernel.assign(b.T)
    return model


def as_float32(array):
    return array.astype("float32").astype("float64")


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-6, 1e-4, 1e-2, 0.3, 3.0])
def test_a_residual_block_whose_kernels_fit_more_or_less(noise, rng):
    for seed in range(4):
        local = np.random.default_rng(seed)
        a = as_float32(local.normal(size=(8, 5)) * 10.0 ** local.uniform(-2, 2, (8, 1)))
        t = local.uniform(0.0, 2.5, 8) / np.linalg.norm(a, 2) ** 2 if seed % 2 else 2 / np.abs(a @ a.T).sum(axis=1)
        b = -a.T * t
        b = as_float32(b * (1 + noise * local.normal(size=b.shape)))
        exact = largest_over_slopes(a, b, 1.0)
        bound = bound_graph(dense_block(a, b)).constant
        # (Corners are computed in float64.)
        assert bound >= exact * (1 - 1e-14)
        assert bound <= (1 + np.linalg.norm(a, 2) * np.linalg.norm(b, 2)) * (1 + 1e-12)
        if noise <= 1e-6:
            assert bound <= exact + 10 * noise + 1e-6


def test_large_steps_count(rng):
    """`x - t A^T relu(A x)` with t |A|^2 = 3 has the constant 2."""
    a = as_float32(np.linalg.qr(rng.normal(size=(5, 5)))[0])
    bound = bound_graph(dense_block(a, as_float32(-3 * a.T))).constant
    assert bound == pytest.approx(2, abs=1e-6)
    # And with the other sign it is no step down at all: 1 + 3.
    assert bound_graph(dense_block(a, as_float32(3 * a.T))).constant == pytest.approx(4, abs=1e-6)


def convolution_block(kernel, back, padding, *, transpose=False, size=(3, 2), strides=1):
    inputs = keras.Input((*size, kernel.shape[2]))
    images = inputs
    hidden = layers.Conv2D(kernel.shape[3], kernel.shape[:2], strides, "valid" if padding == "circular" else padding)
    if transpose:
        output = layers.Conv2DTranspose(kernel.shape[2], kernel.shape[:2], strides, padding, use_bias=False)
    else:
        output = layers.Conv2D(kernel.shape[2], kernel.shape[:2], 1, hidden.padding)

    def wrapped(x):
        for axis, taps in zip((1, 2), kernel.shape[:2], strict=True):
            if padding == "circular" and taps > 1:
                n = x.shape[axis]
                x = ops.take(x, [index % n for index in range(-(taps // 2), n + taps // 2)], axis=axis)
        return x

    outputs = output(wrapped(layers.ReLU()(hidden(wrapped(images)))))
    model = keras.Model(inputs, inputs + outputs)
    hidden.kernel.assign(kernel)
    output.kernel.assign(back)
    return model


def flipped(kernel):
    return np.swapaxes(kernel[::-1, ::-1], 2, 3)


@pytest.mark.parametrize("padding", ["same", "circular"])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_residual_block_of_convolutions(padding, noise, rng):
    for taps, filters in (((3, 3), 2), ((1, 3), 1), ((1, 1), 2)):
        kernel = as_float32(rng.normal(size=(*taps, 2, filters)))
        a = convolution_matrix(kernel, (3, 2), padding=padding)
        t = 2 / np.linalg.norm(a, 2) ** 2
        back = as_float32(-t * flipped(kernel) * (1 + noise * rng.normal(size=flipped(kernel).shape)))
        b = convolution_matrix(back, (3, 2), padding=padding)
        exact = largest_over_slopes(a, b, 1.0) if len(a) <= 8 else np.linalg.norm(np.eye(len(b)) + b @ a, 2)
        bound = bound_graph(convolution_block(kernel, back, padding))
        assert bound.constant >= exact * (1 - 1e-14)
        assert bound.constant <= 1 + 20 * noise + 1e-6
        assert bound.layers[-1].kind == "residual block"


def test_transposed_convolutions_with_strides(rng):
    kernel = as_float32(rng.normal(size=(3, 3, 2, 2)))
    a = convolution_matrix(kernel, 4, 2, "same")
    back = as_float32(-2 / np.linalg.norm(a, 2) ** 2 * kernel)
    model = convolution_block(kernel, back, "same", transpose=True, size=(4, 4), strides=2)
    basis = np.eye(32, dtype="float32").reshape(32, 4, 4, 2)
    # With all slopes 1, where the bias is large, the block is its own Jacobian.
    model.layers[1].bias.assign([1e3, 1e3])
    b = (to_numpy(model(basis)) - to_numpy(model(0 * basis))).reshape(32, 32)
    np.testing.assert_allclose(b.T, np.eye(32) - 2 / np.linalg.norm(a, 2) ** 2 * a.T @ a, atol=1e-3)
    assert bound_graph(model).constant <= 1 + 1e-6


def test_convolutions_that_are_not_transposes_are_bounded_part_by_part(rng):
    kernel = as_float32(rng.normal(size=(3, 3, 2, 2)))
    a = convolution_matrix(kernel, (3, 2), padding="same")
    back = as_float32(-1 / np.linalg.norm(a, 2) ** 2 * kernel)
    unflipped = convolution_block(kernel, np.swapaxes(back, 2, 3), "same")
    exact = np.linalg.norm(np.eye(12) + convolution_matrix(np.swapaxes(back, 2, 3), (3, 2), padding="same") @ a, 2)
    assert exact <= bound_graph(unflipped).constant
    assert bound_graph(unflipped).constant > 1.2
    # Even windows lie to one side: the flipped kernel is that of the transpose, and the padding is not.
    kernel = as_float32(rng.normal(size=(2, 2, 2, 1)))
    a = convolution_matrix(kernel, (3, 2), padding="same")
    back = as_float32(-2 / np.linalg.norm(a, 2) ** 2 * flipped(kernel))
    exact = largest_over_slopes(a, convolution_matrix(back, (3, 2), padding="same"), 1.0)
    bound = bound_graph(convolution_block(kernel, back, "same"))
    assert exact <= bound.constant
    assert exact > 1.01
    assert bound.layers[-1].kind != "residual block"


def test_images_of_unknown_size(rng):
    kernel = as_float32(rng.normal(size=(3, 3, 2, 3)))
    norm = lip.bounds.convolution_bound(kernel)
    back = as_float32(-2 / norm**2 * flipped(kernel))
    assert bound_graph(convolution_block(kernel, back, "same", size=(None, None))).constant <= 1 + 1e-6


@pytest.mark.parametrize("residual", [True, False])
def test_no_climb_beats_the_bound(residual):
    """From random kernels uphill, by the largest norm over all slopes divided by the bound."""
    for seed in range(4):
        local = np.random.default_rng(seed)
        features, units = local.integers(1, 4), local.integers(1, 5)
        a = local.normal(size=(units, features)) * 10.0 ** local.uniform(-3, 3, (units, 1))
        weights = a, -a.T * local.uniform(0, 3, units) / np.linalg.norm(a, 2) ** 2
        model, largest = dense_block(*weights, residual=residual), 0.0
        for _ in range(40):
            moved = [w * (1 + 0.3 * local.normal(size=w.shape)) for w in weights] if largest else weights
            for layer, kernel in zip(model.layers[1:3], moved, strict=True):
                layer.kernel.assign(kernel.T)
            exact = largest_over_slopes(*map(as_float32, moved), float(residual))
            ratio = exact / bound_graph(model).constant
            assert ratio <= 1 + 1e-14
            if ratio >= largest:
                weights, largest = moved, ratio
        assert largest > 0.6


@pytest.mark.parametrize(("first", "second"), [(1e-170, 1e170), (1e-160, 1e200), (1e150, -1e-150), (1e-150, -1e200)])
def test_weights_whose_squares_overflow_or_vanish(first, second):
    """Those of a float64 model, which not every backend has."""
    operators = [Dense((2,), (2,), factor * np.eye(2)) for factor in (first, second)]
    constant = _potential_constant(*operators, 1.0)
    assert constant is None or constant >= max(1.0, abs(1 + first * second))


def test_what_is_taken_for_a_transpose_is_one(rng):
    """Of pairs of convolutions whose windows lie as those of a transpose, or nearly so."""
    taken = 0
    for _ in range(400):
        taps, dilation, stride, size = rng.integers(1, 5), rng.integers(1, 3), rng.integers(1, 3), rng.integers(3, 7)
        circular, transposed = rng.random(2) < 0.5
        before = int(rng.integers(0, (taps - 1) * dilation + 2))
        outputs = size // stride if circular else max((size + 2 * before - (taps - 1) * dilation - 1) // stride + 1, 1)
        numbers = {"taps": taps, "stride": stride, "dilation": dilation, "before": before, "size": size}
        axis = Axis(**numbers, outputs=outputs, circular=circular)
        other = axis
        if not transposed:
            before = (taps - 1) * dilation - before
            other = dataclasses.replace(axis, before=before, size=outputs, outputs=size)
        if rng.random() < 0.5:
            name = rng.choice(["before", "size", "outputs", "dilation", "circular"])
            other = dataclasses.replace(
                other, **{name: getattr(other, name) + 1 if name != "circular" else not circular}
            )
        groups, inputs, filters = rng.integers(1, 3, 3)
        kernels = rng.normal(size=(groups, taps, inputs, filters))
        channels_first = bool(rng.random() < 0.5)
        shapes = [(size, groups * inputs), (outputs, groups * filters)]
        shapes = [shape[::-1] if channels_first else shape for shape in shapes]
        first = Convolution(*shapes, kernels, (axis,), channels_first)
        back = rng.normal(size=kernels.shape)
        back = back if transposed else np.swapaxes(back, -1, -2)
        second = Convolution(*shapes[::-1], back, (other,), channels_first, transposed)
        found = _transposed_kernel(first, second)
        if found is not None:
            taken += 1
            matrix = dataclasses.replace(first, kernels=found).matrix
            np.testing.assert_array_equal(second.matrix, matrix.T)
    assert taken > 100


def slopes(shape, dtype=None):
    return ops.convert_to_tensor([0.0, 1.0, 0.5, 1.5], dtype=dtype)


# Of a(x) = x and b(x) = -2 x: how to combine them, and the constant of the parts.
NOT_BLOCKS = {
    "an activation that is not monotone": (lambda x, a, b: x + b(ops.gelu(a(x))), 3.258),
    "an absolute value": (lambda x, a, b: x + b(ops.abs(a(x))), 3.0),
    "softmax": (lambda x, a, b: x + b(ops.softmax(a(x))), 2.0),
    "sorted values": (lambda x, a, b: x + b(ops.sort(a(x))), 3.0),
    "a negative slope": (lambda x, a, b: x + b(ops.leaky_relu(a(x), -0.5)), 3.0),
    "a steep slope": (lambda x, a, b: x + b(layers.ReLU(negative_slope=2.0)(a(x))), 5.0),
    "one steep slope": (lambda x, a, b: x + b(layers.PReLU(slopes)(a(x))), 4.0),
    "another source": (lambda x, a, b: x + b(layers.ReLU()(a(layers.ReLU()(x)))), 3.0),
    "another skip": (lambda x, a, b: layers.ReLU()(x) + b(layers.ReLU()(a(x))), 3.0),
    "a scaled skip": (lambda x, a, b: 0.5 * x + b(layers.ReLU()(a(x))), 2.5),
    "a scaled branch": (lambda x, a, b: x + layers.Rescaling(2.0)(b(layers.ReLU()(a(x)))), 5.0),
    "a scaled middle": (lambda x, a, b: x + b(2.0 * layers.ReLU()(a(x))), 5.0),
    "another order": (lambda x, a, b: x + b(layers.ReLU()(a(x))[:, ::-1]), 3.0),
    "the same kernel twice": (lambda x, a, b: x + b(layers.ReLU()(b(x))), 5.0),
    # The first sum is a block, of constant 1.
    "twice": (lambda x, a, b: x + b(layers.ReLU()(a(x))) + b(layers.ReLU()(a(x))), 3.0),
}


@pytest.mark.parametrize(("build", "constant"), NOT_BLOCKS.values(), ids=NOT_BLOCKS)
def test_what_is_no_block_has_the_bound_of_its_parts(build, constant):
    inputs = keras.Input((4,))
    a = layers.Dense(4, kernel_initializer="identity")
    b = layers.Dense(4, kernel_initializer=keras.initializers.Identity(-2.0))
    bound = bound_graph(keras.Model(inputs, build(inputs, a, b)))
    assert bound.constant == pytest.approx(constant, abs=1e-6)


def test_a_difference_and_layers_in_between(rng):
    inputs = keras.Input((4,))
    a, b = layers.Dense(4, kernel_initializer="identity"), layers.Dense(4, kernel_initializer="identity")
    moved = b(layers.Dropout(0.5)(layers.Activation("softplus")(layers.Activation("linear")(a(inputs)))))
    for outputs in (inputs - moved, layers.Subtract()([moved, inputs])):
        assert bound_graph(keras.Model(inputs, outputs)).constant == pytest.approx(1, abs=1e-12)


def test_two_dense_layers(rng):
    for seed in range(6):
        local = np.random.default_rng(seed)
        a, b = local.normal(size=(8, 5)), local.normal(size=(4, 8))
        if seed == 0:  # of the sandwich layer
            both = np.linalg.qr(local.normal(size=(9, 8)))[0].T
            a, b = np.sqrt(2) * both[:, 4:], np.sqrt(2) * both[:, :4].T
        elif seed == 1:
            b = b * 10.0 ** local.uniform(-3, 3)
        a, b = as_float32(a), as_float32(b)
        exact = largest_over_slopes(a, b, 0.0)
        bound = bound_graph(dense_block(a, b, residual=False)).constant
        assert bound >= exact * (1 - 1e-14)
        assert bound <= np.linalg.norm(a, 2) * np.linalg.norm(b, 2) * (1 + 1e-12)
        if seed == 0:
            assert bound <= 1 + 1e-6
        # A slope below 0 or above 1 is outside of the theorem.
        steep = bound_graph(dense_block(a, b, residual=False, activation="gelu")).constant
        assert steep == pytest.approx(1.129 * np.linalg.norm(a, 2) * np.linalg.norm(b, 2))


def test_parts_side_by_side():
    def dense(norm):
        return layers.Dense(2, kernel_initializer=keras.initializers.Identity(norm))

    def constant(build):
        inputs = keras.Input((4,))
        return bound_graph(keras.Model(inputs, build(inputs, *ops.split(inputs, 2, axis=-1)))).constant

    def joined(*parts):
        return layers.Concatenate()(list(parts))

    assert constant(lambda x, a, b: joined(a, layers.ReLU()(dense(0.5)(b)))) == pytest.approx(1)
    assert constant(lambda x, a, b: joined(layers.ReLU()(b), layers.ReLU()(dense(3.0)(a)))) == pytest.approx(3)
    assert constant(lambda x, a, b: joined(a, dense(1.0)(b) + layers.ReLU()(dense(0.5)(b)))) == pytest.approx(1.5)
    # Parts that share values, or depend on something else.
    for shared in (
        lambda x, a, b: joined(a, layers.ReLU()(a)),
        lambda x, a, b: joined(a, layers.ReLU()(a + b)),
        lambda x, a, b: joined(a, layers.ReLU()(x)),
        lambda x, a, b: joined(a, b, layers.ReLU()(b)),
    ):
        assert constant(shared) >= 2**0.5 * (1 - 1e-12)


def test_rounding_errors_of_blocks_do_not_grow_as_their_parts(rng):
    """Eight blocks in a row, each of which would multiply the error of the one before by 3."""
    blocks = [LIP.SLLDense(24, bias_initializer="random_normal") for _ in range(6)]
    blocks.append(LIP.ConcatResidual(LIP.SLLDense(24)))
    blocks.append(LIP.SandwichDense(12, bias_initializer="random_normal"))
    model = lip.vanilla_model(keras.Sequential([keras.Input((12,)), *blocks]))
    (bound,) = bound_graph(model, rounding=True).outputs
    assert bound.constant <= 1 + 1e-5
    assert bound.error.relative < 3e-4

    weights = iter(model.get_weights())

    def forward(x):
        x = x.astype("float64")

        def dense(x):
            return x @ next(weights).astype("float64")

        def block(x):
            hidden = np.maximum(dense(x) + next(weights), 0)
            return x + dense(hidden)

        for _ in range(6):
            x = block(x)
        x = np.concatenate([x[:, :6], block(x[:, 6:])], axis=1)
        return dense(np.maximum(dense(x) + next(weights), 0))

    inputs = (rng.normal(size=(5000, 12)) * 10.0 ** rng.uniform(-3, 4, size=(5000, 1))).astype("float32")
    errors = np.linalg.norm(model.predict(inputs, batch_size=1000, verbose=0) - forward(inputs), axis=1)
    norms = np.linalg.norm(inputs.astype("float64"), axis=1)
    assert np.all(errors <= bound.error.absolute + bound.error.relative * norms)
    assert errors.max() > 0


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "tanh", "elu", "softplus", "gelu", "silu", "selu"])
def test_monotone_activations_never_decrease(name):
    known = known_activation(name)
    grid = np.linspace(-12, 12, 2401, dtype="float32")
    steps = np.diff(to_numpy(getattr(keras.activations, name)(keras.ops.convert_to_tensor(grid))).astype("float64"))
    assert known.monotone == bool(np.all(steps >= -1e-6))


def test_parameters_that_leave_no_constant_are_refused():
    for build, word in (
        (lambda x: ops.celu(x, -1.0), "alpha"),
        (lambda x: ops.soft_shrink(x, -1.0), "threshold"),
        (lambda x: ops.squareplus(x, -1), "b"),
    ):
        inputs = keras.Input((4,))
        with pytest.raises(lip.bounds.CannotBoundError, match=f"with a negative `{word}`"):
            bound_graph(keras.Model(inputs, build(inputs)))
