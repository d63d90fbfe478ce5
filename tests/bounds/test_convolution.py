"""Bounds of convolutions against explicit operators: in NumPy, and those of Keras layers by their own forward pass."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from deel_like_lip.bounds import bound_graph, convolution, convolution_bound
from tests.helpers import convolution_matrix, operator_norm, to_numpy

# Rounding of the reference, which comes from eigenvalues of a Gram matrix.
REFERENCE = 1 + 1e-12


@st.composite
def convolutions(draw):
    """Draws the arguments of `convolution_bound`: 2D kernels of 1 to 7 taps, images of 1 to 16 by 1 to 16."""
    padding = draw(st.sampled_from(["valid", "same"]))
    taps, strides = draw(pairs(1, 7)), draw(pairs(1, 4))
    dilation = draw(pairs(1, 3))
    extents = [rate * (tap - 1) + 1 for tap, rate in zip(taps, dilation, strict=True)]
    if padding == "valid":
        size = tuple(draw(st.integers(min(extent, 16), 16)) for extent in extents)
        taps = tuple(min(tap, (own - 1) // rate + 1) for tap, own, rate in zip(taps, size, dilation, strict=True))
    else:
        size = draw(pairs(1, 16))
    groups = draw(st.integers(1, 4))
    inputs, outputs = draw(pairs(1, 8 // groups))
    kind = draw(st.sampled_from(["normal", "positive", "smooth", "sparse"]))
    kernel = kernel_of(kind, (*taps, inputs, groups * outputs), draw(st.integers(0, 2**32 - 1)))
    return kernel, strides, dilation, groups, padding, size


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def kernel_of(kind, shape, seed):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape)
    if kind == "positive":
        kernel = np.abs(kernel)
    elif kind == "smooth":
        kernel = np.ones(shape) + 0.1 * kernel
    elif kind == "sparse":
        kernel = kernel * (rng.uniform(size=shape) < 0.2)
    return kernel * 10.0 ** rng.integers(-3, 4)


def ratio_of(case, **options):
    """Returns the bound over the norm of the explicit matrix, 1 for an operator that is zero and bounded by zero."""
    kernel, strides, dilation, groups, padding, size = case
    exact = operator_norm(convolution_matrix(kernel, size, strides, padding, dilation, groups))
    bound = convolution_bound(kernel, strides, dilation, groups, **options)
    if exact == 0:
        return 1.0
    assert exact <= bound * REFERENCE, (kernel.shape, strides, dilation, groups, padding, size)
    return bound / exact


@settings(max_examples=150, deadline=None, derandomize=True, print_blob=False)
@given(convolutions())
def test_with_the_image_size_the_bound_is_the_norm(case):
    assert ratio_of(case, padding=case[-2], size=case[-1]) <= 1 + 1e-9


def test_frequencies_cover_zero_padding(monkeypatch):
    """The bound for operators that are too large to be written out, on operators that are not."""
    monkeypatch.setattr(convolution, "_LARGEST_EXPLICIT", 0)
    ratios = []

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(convolutions())
    def check(case):
        ratios.append(ratio_of(case, padding=case[-2], size=case[-1]))

    check()
    # On images of few pixels there is a lot of border.
    assert np.median(ratios) <= 1.15


@settings(max_examples=100, deadline=None, derandomize=True)
@given(convolutions())
def test_without_the_image_size_the_bound_covers_all(case):
    ratio_of(case)


@pytest.mark.parametrize(
    ("taps", "stride", "padding"), [(3, 1, "same"), (5, 1, "valid"), (3, 2, "same"), (4, 2, "same")]
)
@pytest.mark.parametrize("kind", ["normal", "smooth"])
def test_frequencies_are_near_the_norm_of_larger_images(taps, stride, padding, kind, monkeypatch):
    monkeypatch.setattr(convolution, "_LARGEST_EXPLICIT", 0)
    kernel = kernel_of(kind, (taps, taps, 2, 3), 5)
    case = kernel, (stride, stride), (1, 1), 1, padding, (24, 24)
    assert ratio_of(case, padding=padding, size=(24, 24)) <= 1.03


KINDS = ("conv", "transposed", "depthwise", "separable")


def layer_of(kind, rank, seed):
    """Builds a random convolution layer of a kind with an input shape that fits; None where Keras has no such layer."""
    rng = np.random.default_rng(seed)
    largest = {1: 16, 2: 7, 3: 4}[rank]
    size = rng.integers(1, largest + 1, rank)
    padding = str(rng.choice(["valid", "same", "causal"][: 3 if (kind, rank) == ("conv", 1) else 2]))
    taps = rng.integers(1, {1: 8, 2: 6, 3: 4}[rank], rank)
    stride, rate = [int(value) for value in rng.permutation([rng.integers(1, 5), rng.integers(1, 4)])]
    if stride > 1:
        rate = 1  # Keras refuses both at once
    if padding == "valid" and kind != "transposed":
        taps = np.minimum(taps, (size - 1) // rate + 1)
    channels, filters = (int(value) for value in rng.integers(1, 4, 2))
    groups = int(rng.integers(1, 3)) if kind == "conv" and keras.backend.backend() != "tensorflow" else 1
    options = {"strides": stride, "padding": padding, "dilation_rate": rate, "use_bias": bool(rng.integers(2))}
    options["bias_initializer"] = "ones"
    kernel_size = tuple(int(tap) for tap in taps)
    if kind == "conv":
        build = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
        layer = build(groups * filters, kernel_size, groups=groups, **options)
        channels *= groups
    elif kind == "transposed":
        build = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)[rank - 1]
        layer = build(filters, kernel_size, **options)
    elif rank == 3:
        return None
    elif kind == "depthwise":
        build = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)[rank - 1]
        layer = build(kernel_size, depth_multiplier=filters, **options)
    else:
        build = (layers.SeparableConv1D, layers.SeparableConv2D)[rank - 1]
        layer = build(filters, kernel_size, depth_multiplier=int(rng.integers(1, 3)), **options)
    return layer, (*(int(value) for value in size), channels)


def explicit(model, shape):
    """Returns the linear part of a model as a matrix, from its images of the basis vectors."""
    entries = int(np.prod(shape))
    basis = np.concatenate([np.zeros((1, entries)), np.eye(entries)]).reshape(-1, *shape).astype("float32")
    images = to_numpy(model(basis)).astype("float64").reshape(entries + 1, -1)
    return (images[1:] - images[0]).T


@pytest.mark.parametrize(("kind", "rank"), list(itertools.product(KINDS, (1, 2, 3))))
def test_bounds_of_layers_are_the_norms_of_what_they_compute(kind, rank):
    count = 0
    for seed in range(8):
        built = layer_of(kind, rank, seed)
        if built is None:
            return
        layer, shape = built
        inputs = keras.Input(shape)
        try:
            model = keras.Model(inputs, layer(inputs))
            matrix = explicit(model, shape)
        except Exception:  # configurations that this backend does not run
            continue
        exact = np.linalg.norm(matrix, 2)
        bound = bound_graph(model).constant
        assert exact * (1 - 1e-6) <= bound <= exact * (1 + 1e-5) + 1e-12, (layer.get_config(), shape, exact, bound)
        count += 1
    assert count >= 5


def test_channels_first_is_the_same_operator(rng):
    """Not run, since convolutions with channels first do not run on every CPU: the bound alone."""
    kernel = rng.normal(size=(3, 3, 2, 3))
    constants = []
    for data_format, shape in (("channels_last", (6, 5, 2)), ("channels_first", (2, 6, 5))):
        layer = layers.Conv2D(3, 3, padding="same", data_format=data_format, strides=(2, 1))
        inputs = keras.Input(shape)
        model = keras.Model(inputs, layer(inputs))
        layer.kernel.assign(kernel)
        constants.append(bound_graph(model).constant)
    assert constants[0] == pytest.approx(constants[1], rel=1e-12)
    assert constants[0] == pytest.approx(
        operator_norm(convolution_matrix(kernel.astype("float32"), (6, 5), (2, 1), "same")), rel=1e-9
    )
