"""Groups of operations that are bounded together: their bounds are tight, and only where sound; and near misses."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from deel_like_lip.bounds import CannotBoundError, bound_graph
from tests.helpers import jacobian, to_numpy


def model_of(build, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def constant(build, shape=(4,)):
    return bound_graph(model_of(build, shape)).constant


def array(*values):
    return np.array(values, "float32")


@pytest.mark.parametrize("axis", [1, -1, (1, 2), (1, 2, 3)])
def test_centring_is_a_projection(axis):
    def centred(x):
        return x - ops.mean(x, axis=axis, keepdims=True)

    exact = np.linalg.norm(jacobian(model_of(centred, (3, 4, 2)), np.zeros((3, 4, 2))), 2)
    assert exact * (1 - 1e-6) <= constant(centred, (3, 4, 2)) <= exact * (1 + 1e-6)
    assert constant(centred, (40, 40, 20)) == 1.0  # too large to be written out
    assert constant(centred, (None, None, 20)) == 1.0


def test_centring_is_followed_by_what_is_linear(rng):
    kernel = np.eye(4)[:, :2] + 5.0  # of which centring takes the large part away
    dense = layers.Dense(2, kernel_initializer=lambda shape, dtype=None: ops.convert_to_tensor(kernel, dtype))
    exact = np.linalg.norm((np.eye(4) - 0.25) @ kernel, 2)
    bound = constant(lambda x: dense(x - ops.mean(x, axis=-1, keepdims=True)))
    assert exact <= bound <= exact * (1 + 1e-6)


def test_only_its_own_mean_over_axes_of_a_sample_is_centring():
    flipped = lambda x: ops.mean(ops.flip(x, 1) * 3.0, axis=-1, keepdims=True)  # noqa: E731
    with pytest.raises(CannotBoundError, match="repeats values"):
        constant(lambda x: x - flipped(x))
    with pytest.raises(CannotBoundError, match="over samples"):
        constant(lambda x: x - ops.mean(x, axis=0, keepdims=True))
    with pytest.raises(CannotBoundError, match="over samples"):
        constant(lambda x: x - ops.mean(x))
    # Without the axis it would be another sum: of each row, from each column.
    with pytest.raises(CannotBoundError, match="repeats values"):
        constant(lambda x: x - ops.mean(x, axis=-1), (4,) * 2)


@pytest.mark.parametrize(
    ("factor", "expected"), [(2.0, 1.0), (0.5, 1.0), (3.0, 2.0), (-1.0, 2.0), (array(1.0, 2.0, -0.5, 4.0), 3.0)]
)
def test_a_folded_line_has_the_slopes_that_it_has(factor, expected):
    low, high = array(-1.0, 0.0, -3.0, 0.5), array(1.0, 0.0, 2.0, 0.75)

    def folded(x):
        return x - ops.minimum(ops.maximum(x, low), high) * factor

    bound = constant(folded)
    assert expected <= bound <= expected * (1 + 1e-12)
    slopes = [abs(np.diag(jacobian(model_of(folded), np.full(4, value)))).max() for value in (-0.5, 0.6, 9.0)]
    assert max(slopes) == pytest.approx(expected)


def test_what_looks_like_a_folded_line():
    low = array(-1.0, 0.0, -3.0, 0.5)
    # Of another tensor, or with the extremum of two tensors: slopes add up.
    assert constant(lambda x: x - 2.0 * ops.maximum(ops.flip(x, 1), low)) == pytest.approx(3)
    assert constant(lambda x: x - 2.0 * ops.maximum(x, ops.flip(x, 1))) >= 3
    assert constant(lambda x: x - 2.0 * ops.relu(-x)) == pytest.approx(3)
    # What is linear keeps its exact norm.
    assert constant(lambda x: x - 0.75 * x) == pytest.approx(0.25)


def test_a_smooth_absolute_value():
    assert constant(lambda x: ops.sqrt(ops.square(x) + 0.01)) == 1.0
    assert constant(lambda x: ops.sqrt(ops.square(x) + array(0.0, 1.0, 2.0, 3.0))) == 1.0
    assert constant(lambda x: ops.sqrt(ops.square(3.0 * x) + 1.0)) == pytest.approx(3)
    for refused in (
        lambda x: ops.sqrt(ops.square(x) - 0.01),
        lambda x: ops.sqrt(ops.square(x)),
        lambda x: ops.sqrt(x + 1.0),
        lambda x: ops.sqrt(ops.square(x) + ops.square(ops.flip(x, 1))),
    ):
        with pytest.raises(CannotBoundError):
            constant(refused)


def reflected(x, u, t, axis=-1, halves=None, join=-1):
    first, second = ops.split(x, 2, axis=axis) if halves is None else halves
    part = ops.relu(first * t[0] + second * t[1])
    return ops.concatenate([first - part * u[0], second - part * u[1]], axis=join)


def test_reflections_are_bounded_by_their_matrices(rng):
    for _ in range(20):
        u, t = rng.normal(size=(2, 2, 3)).astype("float32")
        outer = u.astype("float64")[:, None] * t.astype("float64")[None]
        exact = max(np.linalg.norm(np.eye(2) - outer[..., i], 2) for i in range(3))
        bound = constant(lambda x, u=u, t=t: reflected(x, u, t), (6,))
        assert max(exact, 1.0) <= bound <= max(exact, 1.0) * (1 + 1e-9)
        at = np.concatenate([t[0], t[1]])  # where all are reflected
        found = np.linalg.norm(jacobian(model_of(lambda x, u=u, t=t: reflected(x, u, t), (6,)), at), 2)
        assert found == pytest.approx(exact, rel=1e-5)


def test_reflections_along_other_axes(rng):
    u, t = array(1.0, 1.0), array(1.0, 1.0)
    assert constant(lambda x: reflected(x, u, t, axis=1, join=2), (4, 3, 2)) == pytest.approx(1, abs=1e-9)
    with pytest.raises(CannotBoundError, match="joins batches"):
        constant(lambda x: reflected(x, u, t, join=0))


def test_what_looks_like_a_reflection():
    u, t = array(1.0, 1.0), array(1.0, 1.0)
    # Each half twice, or one that is no half: the bound of the parts on their own.
    for halves in (
        lambda x: (ops.split(x, 2, axis=-1)[0],) * 2,
        lambda x: (x, ops.flip(x, 1)),
        lambda x: (ops.split(x, 2, axis=-1)[0], ops.split(ops.flip(x, 1), 2, axis=-1)[1]),
    ):
        build = lambda x, halves=halves: reflected(x, u, t, halves=halves(x))  # noqa: E731
        found = max(np.linalg.norm(jacobian(model_of(build), point), 2) for point in (np.ones(4), -np.ones(4)))
        assert constant(build) >= found * (1 - 1e-6)
        assert found > 1.2

    # The parts of two different reflections do not make one.
    def mixed(x):
        first, second = ops.split(x, 2, axis=-1)
        parts = ops.relu(first * 1.0 + second * 1.0), ops.relu(second * 1.0 - first * 1.0)
        return ops.concatenate([first - parts[0] * 1.0, second - parts[1] * 1.0], axis=-1)

    assert constant(mixed) > 1.5


def test_rounding_errors_of_patterns_hold(rng):
    """What float32 computes stays within the bound of the rounding error."""
    low, high = array(-0.1, 0.2, -3.3, 0.5), array(1.7, 0.3, 2.1, 0.75)
    u, t = rng.normal(size=(2, 2, 2)).astype("float32")
    builds = {
        "centring": (lambda x: x - ops.mean(x, axis=-1, keepdims=True), lambda x: x - x.mean(-1, keepdims=True)),
        "line": (
            lambda x: x - 2.0 * ops.minimum(ops.maximum(x, low), high),
            lambda x: x - 2 * np.minimum(np.maximum(x, low), high),
        ),
        "smooth": (lambda x: ops.sqrt(ops.square(x) + 0.01), lambda x: np.sqrt(x**2 + 0.01)),
    }

    def reflected64(x):
        part = np.maximum(x[:, :2] * t[0].astype(float) + x[:, 2:] * t[1].astype(float), 0)
        return np.concatenate([x[:, :2] - part * u[0].astype(float), x[:, 2:] - part * u[1].astype(float)], -1)

    builds["reflection"] = (lambda x: reflected(x, u, t), reflected64)
    inputs = rng.normal(size=(5000, 4)).astype("float32")
    sizes = np.linalg.norm(inputs.astype("float64"), axis=1)
    for name, (build, exact) in builds.items():
        model = model_of(build)
        error = bound_graph(model, rounding=True).outputs[0].error
        computed = ops.convert_to_numpy(model(inputs)).astype("float64")
        off = np.linalg.norm(computed - exact(inputs.astype("float64")), axis=1)
        assert np.all(off <= error.absolute + error.relative * sizes), name
        assert off.max() > 0, name
        # And it is no more than a few dozen roundings.
        assert error.relative <= 100 * 2.0**-24, name


def matrix_of(model, shape):
    size = int(np.prod(shape))
    images = to_numpy(model(np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape).astype("float32")))
    images = images.astype("float64").reshape(size + 1, -1)
    return (images[1:] - images[0]).T


def kinds(model):
    return {line.kind for line in bound_graph(model).layers}


@pytest.mark.parametrize(
    ("repeated", "crop", "matches"),
    [
        ((1, 1), 3, True),
        ((2, 2), 5, True),
        ((1, 1), 2, True),  # another alignment, still one period
        ((0, 1), 1, False),  # inputs are missing before
        ((1, 0), 3, False),  # and behind
        ((1, 1), 0, False),
    ],
)
def test_a_transposed_convolution_on_a_torus(repeated, crop, matches, rng):
    """4 inputs, 8 outputs, 4 taps, stride 2, along one axis; the other is not padded."""
    inputs = keras.Input((4, 1, 2))
    padded = ops.take(inputs, [index % 4 for index in range(-repeated[0], 4 + repeated[1])], axis=1)
    grown = layers.Conv2DTranspose(3, (4, 1), strides=(2, 1), bias_initializer="ones")(padded)
    end = grown.shape[1] - crop - 8
    assert end >= 0
    model = keras.Model(inputs, layers.Cropping2D(((crop, end), (0, 0)))(grown))
    model.layers[-2].kernel.assign(rng.normal(size=(4, 1, 3, 2)))
    exact = np.linalg.norm(matrix_of(model, (4, 1, 2)), 2)
    bound = bound_graph(model).constant
    assert bound >= exact * (1 - 1e-6)
    assert ("circular transposed convolution" in kinds(model)) == matches
    if matches:
        assert bound <= exact * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["Conv1D", "Conv3D", "DepthwiseConv2D"])
def test_a_circular_convolution_of_any_kind(kind, rng):
    layer = getattr(layers, kind)(*((2, 3) if kind != "DepthwiseConv2D" else (3,)))
    rank = layer.rank
    inputs = keras.Input((3,) * rank + (2,))
    padded = inputs
    for axis in range(1, rank + 1):
        padded = ops.take(padded, [2, 0, 1, 2, 0], axis=axis)
    model = keras.Model(inputs, layer(padded))
    layer.kernel.assign(rng.normal(size=layer.kernel.shape))
    exact = np.linalg.norm(matrix_of(model, inputs.shape[1:]), 2)
    assert exact * (1 - 1e-6) <= bound_graph(model).constant <= exact * (1 + 1e-5)
    assert kinds(model) == {"circular convolution"}


def skew_kernel(rng, taps=3, channels=4, scale=0.1):
    kernel = scale * rng.normal(size=(taps, taps, channels, channels)).astype("float32")
    return kernel - np.swapaxes(kernel[::-1, ::-1], -1, -2)


def series(image, apply, powers=(1, 2, 3)):
    term = total = image
    for power in powers:
        term = ops.divide(apply(term), power)
        total = ops.add(total, term)
    return total


def test_a_series_of_a_skew_convolution(rng):
    inputs = keras.Input((8, 8, 4))
    convolution = layers.Conv2D(4, 3, padding="same", use_bias=False)
    model = keras.Model(inputs, series(inputs, convolution))
    for scale in (0.0, 0.1, 0.5):
        convolution.kernel.assign(skew_kernel(rng, scale=scale))
        exact = np.linalg.norm(matrix_of(model, (8, 8, 4)), 2)
        bound = bound_graph(model).constant
        assert exact * (1 - 1e-6) <= bound <= exact * 1.05
    assert "series of a skew-symmetric convolution" in kinds(model)


@pytest.mark.parametrize("miss", ["kernel", "padding", "layers", "bias", "even", "order"])
def test_what_is_no_series_of_a_skew_convolution(miss, rng):
    """Each of them is bounded, by more than the pattern would say, and not by less than its norm."""
    inputs = keras.Input((6, 6, 4))
    taps = 2 if miss == "even" else 3
    options = {"use_bias": miss == "bias", "padding": "same"}
    convolutions = [layers.Conv2D(4, taps, **options) for _ in range(2)]
    first, second = convolutions if miss == "layers" else convolutions[:1] * 2
    if miss == "padding":
        outer = layers.Cropping2D(((0, 1), (1, 0)))
        outputs = ops.add(
            inputs, outer(layers.Conv2D(4, 3, use_bias=False)(layers.ZeroPadding2D(((2, 1), (1, 2)))(inputs)))
        )
    elif miss == "order":
        term = first(inputs)
        outputs = ops.add(ops.add(inputs, ops.divide(first(term), 2)), term)
    else:
        term = first(inputs)
        outputs = ops.add(ops.add(inputs, term), ops.divide(second(term), 2))
    model = keras.Model(inputs, outputs)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            kernel = skew_kernel(rng, taps)
            kernel[0, 0, 0, 0] += 1e-7 if miss == "kernel" else 0
            layer.kernel.assign(kernel)
    exact = np.linalg.norm(matrix_of(model, (6, 6, 4)), 2)
    assert bound_graph(model).constant >= exact * (1 - 1e-6)
    assert "series of a skew-symmetric convolution" not in {
        line.kind for line in bound_graph(model).layers if line.name == model.layers[-1].name
    }
