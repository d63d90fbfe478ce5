"""Each rule against what Keras computes: linear operations by their matrix, others by a search over pairs of inputs."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from benchmarks.bound_tightness import largest_jacobian, random_graph
from deel_like_lip.bounds import CannotBoundError, bound_graph
from tests.helpers import to_numpy


def normalization(**options):
    uniform = keras.initializers.RandomUniform(0.3, 2.0)
    return layers.BatchNormalization(
        gamma_initializer=uniform, moving_variance_initializer=uniform, moving_mean_initializer=uniform, **options
    )


def by_channel(**options):
    return layers.Normalization(mean=[1.0, -2.0, 0.5], variance=[0.25, 4.0, 1e-9], **options)


VECTOR, ROWS, IMAGE, VOLUME = (6,), (5, 4), (6, 5, 3), (4, 3, 4, 2)
LINEAR = {
    "Dense": (lambda x: layers.Dense(4)(x), VECTOR),
    "Dense of rows": (lambda x: layers.Dense(3)(x), ROWS),
    "EinsumDense": (lambda x: layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d")(x), ROWS),
    "EinsumDense to two axes": (lambda x: layers.EinsumDense("abc,cde->abde", (None, 2, 3))(x), ROWS),
    "EinsumDense of two axes": (lambda x: layers.EinsumDense("abc,bcd->ad", 3)(x), ROWS),
    "EinsumDense with a shared axis": (lambda x: layers.EinsumDense("abc,bcd->abd", (5, 3))(x), ROWS),
    "EinsumDense with dots": (lambda x: layers.EinsumDense("...x,xy->...y", 3)(x), ROWS),
    "Conv1D": (lambda x: layers.Conv1D(3, 3, padding="causal", dilation_rate=2)(x), ROWS),
    "Conv2D": (lambda x: layers.Conv2D(4, (3, 2), strides=2, padding="same")(x), IMAGE),
    "Conv3D": (lambda x: layers.Conv3D(2, 2, padding="same")(x), VOLUME),
    "Conv2DTranspose": (lambda x: layers.Conv2DTranspose(2, 3, strides=2, padding="same")(x), IMAGE),
    "DepthwiseConv2D": (lambda x: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x), IMAGE),
    "SeparableConv2D": (lambda x: layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2)(x), IMAGE),
    "convolution, then normalization": (lambda x: normalization()(layers.Conv2D(4, 3, padding="same")(x)), IMAGE),
    "normalization, then convolution": (lambda x: layers.Conv2D(4, 3, padding="same")(normalization()(x)), IMAGE),
    "several linear layers, then separable ones": (
        lambda x: layers.SeparableConv2D(3, 2, padding="same")(normalization()(layers.Conv2D(2, 3)(x))),
        IMAGE,
    ),
    "convolution, then 1x1": (lambda x: layers.Dense(5)(layers.Conv2D(4, 3)(x)), IMAGE),
    "a residual convolution": (lambda x: layers.Add()([x, layers.Conv2D(3, 3, padding="same")(x)]), IMAGE),
    "a residual of several": (
        lambda x: x - normalization()(layers.Conv2D(3, 3, padding="same")(x)) + layers.Conv2D(3, 1)(x),
        IMAGE,
    ),
    "a dilated residual": (lambda x: x + layers.Conv2D(3, 3, padding="same", dilation_rate=2)(x), IMAGE),
    "a depthwise residual": (lambda x: x + layers.DepthwiseConv2D(3, padding="same")(x), IMAGE),
    "a dense residual": (lambda x: layers.Average()([x, layers.Dense(6)(layers.Dense(3)(x))]), VECTOR),
    "branches side by side": (lambda x: layers.Concatenate()([x[:, :3], 2.0 * x[:, 1:]]), VECTOR),
    "AveragePooling1D": (lambda x: layers.AveragePooling1D(3, strides=2)(x), ROWS),
    "AveragePooling2D": (lambda x: layers.AveragePooling2D(3, strides=2, padding="same")(x), (5, 7, 2)),
    "AveragePooling3D": (lambda x: layers.AveragePooling3D(2, strides=1)(x), VOLUME),
    "AdaptiveAveragePooling1D": (lambda x: layers.AdaptiveAveragePooling1D(3)(x), ROWS),
    "AdaptiveAveragePooling2D": (lambda x: layers.AdaptiveAveragePooling2D((4, 2))(x), IMAGE),
    "AdaptiveAveragePooling3D": (lambda x: layers.AdaptiveAveragePooling3D((3, 2, 4))(x), VOLUME),
    "average_pool": (lambda x: ops.average_pool(x, 2, strides=(1, 2)), IMAGE),
    "space to depth": (lambda x: ops.space_to_depth(ops.depth_to_space(x, 2), 2), (4, 4, 8)),
    "unstacked": (lambda x: ops.unstack(x, axis=1)[2], ROWS),
    "nothing": (lambda x: ops.stop_gradient(ops.copy(ops.cast(x, "float32"))), VECTOR),
    "GlobalAveragePooling1D": (lambda x: layers.GlobalAveragePooling1D()(x), ROWS),
    "GlobalAveragePooling2D": (lambda x: layers.GlobalAveragePooling2D(keepdims=True)(x), IMAGE),
    "GlobalAveragePooling3D": (lambda x: layers.GlobalAveragePooling3D()(x), VOLUME),
    "channels first": (lambda x: layers.GlobalAveragePooling2D(data_format="channels_first")(x), IMAGE),
    "UpSampling1D": (lambda x: layers.UpSampling1D(3)(x), ROWS),
    "UpSampling2D": (lambda x: layers.UpSampling2D((2, 3))(x), IMAGE),
    "UpSampling3D": (lambda x: layers.UpSampling3D((1, 2, 3))(x), VOLUME),
    "ZeroPadding1D": (lambda x: layers.ZeroPadding1D((1, 2))(x), ROWS),
    "ZeroPadding2D": (lambda x: layers.ZeroPadding2D(((1, 0), (2, 1)))(x), IMAGE),
    "ZeroPadding3D": (lambda x: layers.ZeroPadding3D(1)(x), VOLUME),
    "Cropping1D": (lambda x: layers.Cropping1D(1)(x), ROWS),
    "Cropping2D": (lambda x: layers.Cropping2D(((1, 0), (2, 1)))(x), IMAGE),
    "Cropping3D": (lambda x: layers.Cropping3D(1)(x), VOLUME),
    "Flatten": (lambda x: layers.Dense(2)(layers.Flatten()(x)), IMAGE),
    "Flatten, channels first": (lambda x: layers.Dense(2)(layers.Flatten(data_format="channels_first")(x)), IMAGE),
    "Reshape": (lambda x: layers.Dense(2)(layers.Reshape((5, -1))(x)), IMAGE),
    "Permute": (lambda x: layers.Dense(2)(layers.Permute((3, 1, 2))(x)), IMAGE),
    "RepeatVector": (lambda x: layers.RepeatVector(4)(x), VECTOR),
    "Dropout": (lambda x: layers.SpatialDropout2D(0.5)(layers.GaussianNoise(1.0)(x)), IMAGE),
    "BatchNormalization": (lambda x: normalization()(x), IMAGE),
    "BatchNormalization of another axis": (lambda x: normalization(axis=1)(x), IMAGE),
    "Normalization": (lambda x: by_channel()(x), IMAGE),
    "Normalization, inverted": (lambda x: by_channel(invert=True)(x), IMAGE),
    "Rescaling": (lambda x: layers.Rescaling(1 / 255, offset=-1.0)(x), IMAGE),
    "arithmetic": (lambda x: (1.0 - x * np.array([1.0, -3.0, 0.5], "float32")) / 4.0, IMAGE),
    "negative": (lambda x: -x, VECTOR),
    "means": (lambda x: ops.mean(x, axis=(1, -1)), IMAGE),
    "sums": (lambda x: ops.sum(x, axis=2, keepdims=True), IMAGE),
    "transposed": (lambda x: ops.transpose(x, (0, 3, 2, 1)), IMAGE),
    "moved": (lambda x: ops.swapaxes(ops.moveaxis(x, 1, -1), 1, 2), IMAGE),
    "squeezed": (lambda x: ops.squeeze(ops.expand_dims(x, 1), 1), IMAGE),
    "turned": (lambda x: ops.roll(ops.flip(x, axis=1), 2, axis=2), IMAGE),
    "repeated": (lambda x: ops.tile(ops.repeat(x, 2, axis=1), (1, 1, 3, 1)), IMAGE),
    "taken": (lambda x: ops.take(x, [0, 0, 2, 0], axis=-1), IMAGE),
    "sliced": (lambda x: x[:, 1:, ::2, None], IMAGE),
    "padded": (lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 2], [0, 0]]), IMAGE),
    "reflected": (lambda x: ops.pad(x, [[0, 0], [2, 2], [0, 2], [0, 0]], mode="reflect"), IMAGE),
    "padded, then convolution": (
        lambda x: layers.Conv2D(4, 3, strides=(2, 1))(layers.ZeroPadding2D(((2, 1), (0, 2)))(x)),
        IMAGE,
    ),
    "padded, then convolution of rows": (
        lambda x: layers.DepthwiseConv1D(3, depth_multiplier=2)(layers.ZeroPadding1D((1, 3))(x)),
        ROWS,
    ),
    "a residual with zeros": (lambda x: x + layers.Conv2D(3, 3)(layers.ZeroPadding2D(1)(x)), IMAGE),
    "taken, then convolution": (
        lambda x: layers.Conv2D(4, (3, 2), strides=(1, 2))(
            ops.take(ops.take(x, [1, 0, 0, 1, 2, 3, 4, 5, 5, 0], axis=1), [-1, 0, 4, 4, 1, 2], axis=2)
        ),
        IMAGE,
    ),
    "taken, then convolution and normalization": (
        lambda x: normalization()(layers.DepthwiseConv2D(2)(ops.take(x, [0, 0, 1, 2, 3, 3], axis=1))),
        IMAGE,
    ),
    "taken volumes, then convolution": (
        lambda x: layers.Conv3D(2, 2, data_format="channels_last")(ops.take(x, [0, 0, 1, 2], axis=2)),
        VOLUME,
    ),
    "stacked": (lambda x: ops.stack([x, x, -x], axis=2), VECTOR),
    "split and joined": (lambda x: ops.concatenate(ops.split(x, 3, axis=-1)[:2], axis=-1), VECTOR),
}
# Not the norm of the whole, but what the parts have together.
LOOSE = {"stacked": 1.0}


def model_of(build, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


@pytest.mark.parametrize(("name", "build", "shape"), [(name, *case) for name, case in LINEAR.items()], ids=LINEAR)
def test_linear_operations_have_the_norm_of_their_matrix(name, build, shape):
    model = model_of(build, shape)
    entries = int(np.prod(shape))
    basis = np.concatenate([np.zeros((1, entries)), np.eye(entries)]).reshape(-1, *shape).astype("float32")
    images = to_numpy(model(basis)).astype("float64").reshape(entries + 1, -1)
    exact = np.linalg.norm(images[1:] - images[0], 2)
    bound = bound_graph(model)
    assert exact * (1 - 1e-5) <= bound.constant <= LOOSE.get(name, 1.0) * exact * (1 + 1e-5)


def test_padding_that_torch_computes_otherwise_has_the_larger_norm():
    rows = [[0, 0], [3, 0], [0, 0]]
    # Copies of one value: two in a mirror, four where the edge is repeated.
    assert bound_graph(model_of(lambda x: ops.pad(x, rows, mode="symmetric"), ROWS)).constant == pytest.approx(2)
    one = [[0, 0], [1, 0], [0, 0]]
    assert bound_graph(model_of(lambda x: ops.pad(x, one, mode="symmetric"), ROWS)).constant == pytest.approx(2**0.5)


def test_a_padded_convolution_too_large_to_write_out():
    indices = np.pad(np.arange(40), 1, "symmetric").tolist()

    def build(x):
        return layers.Conv2D(8, 3, use_bias=False)(ops.take(ops.take(x, indices, axis=1), indices, axis=2))

    model = model_of(build, (40, 40, 3))
    kernel = np.zeros((3, 3, 3, 8), "float32")
    kernel[..., 0, 0] = 1 / 9  # a mean keeps images without contrast
    model.layers[-1].kernel.assign(kernel)
    assert 1 <= bound_graph(model).constant <= 1 + 1e-6


OTHERS = {
    "uneven padding": (lambda x: layers.AveragePooling2D(3, strides=2, padding="same")(x), IMAGE),
    "uneven padding of rows": (lambda x: layers.AveragePooling1D(3, strides=2, padding="same")(x), (6, 1)),
    "MaxPooling1D": (lambda x: layers.MaxPooling1D(3, strides=1, padding="same")(x), ROWS),
    "MaxPooling2D": (lambda x: layers.MaxPooling2D((3, 2), strides=(2, 1))(x), IMAGE),
    "MaxPooling3D": (lambda x: layers.MaxPooling3D(2)(x), VOLUME),
    "AdaptiveMaxPooling1D": (lambda x: layers.AdaptiveMaxPooling1D(3)(x), ROWS),
    "AdaptiveMaxPooling2D": (lambda x: layers.AdaptiveMaxPooling2D((4, 2))(x), IMAGE),
    "AdaptiveMaxPooling3D": (lambda x: layers.AdaptiveMaxPooling3D((3, 2, 4))(x), VOLUME),
    "max_pool": (lambda x: ops.max_pool(x, (2, 3), strides=1, padding="same"), IMAGE),
    "norm": (lambda x: ops.norm(x, axis=(-1,)), ROWS),
    "norm of two axes": (lambda x: ops.norm(x, axis=(1, 2), keepdims=True), ROWS),
    "logsumexp": (lambda x: ops.logsumexp(x, axis=-1), ROWS),
    "RMSNormalization": (lambda x: layers.RMSNormalization(epsilon=0.1)(x), IMAGE),
    "GlobalMaxPooling1D": (lambda x: layers.GlobalMaxPooling1D()(x), ROWS),
    "GlobalMaxPooling2D": (lambda x: layers.GlobalMaxPooling2D()(x), IMAGE),
    "GlobalMaxPooling3D": (lambda x: layers.GlobalMaxPooling3D()(x), VOLUME),
    "bilinear": (lambda x: layers.UpSampling2D((2, 3), interpolation="bilinear")(x), IMAGE),
    "PReLU": (lambda x: layers.PReLU(keras.initializers.RandomNormal(stddev=2.0))(x), IMAGE),
    "LayerNormalization": (lambda x: layers.LayerNormalization(epsilon=0.1)(x), IMAGE),
    "GroupNormalization": (lambda x: layers.GroupNormalization(3, epsilon=0.1)(x), IMAGE),
    "TimeDistributed": (lambda x: layers.TimeDistributed(layers.Dense(3, activation="relu"))(x), ROWS),
    "ReLU": (lambda x: layers.ReLU(max_value=1.0, negative_slope=0.1)(x), VECTOR),
    "ELU": (lambda x: layers.ELU(2.0)(x), VECTOR),
    "Softmax": (lambda x: layers.Softmax(axis=1)(x), ROWS),
    "elu": (lambda x: ops.elu(x, 2.0), VECTOR),
    "leaky relu": (lambda x: ops.leaky_relu(x, -1.5), VECTOR),
    "softmax": (lambda x: ops.softmax(x, axis=-1), VECTOR),
    "erf": (lambda x: ops.erf(x), VECTOR),
    "waves": (lambda x: ops.sin(ops.cos(x)), VECTOR),
    "angles": (lambda x: ops.arctan(ops.arcsinh(x)), VECTOR),
    "absolute": (lambda x: ops.abs(x), VECTOR),
    "clip": (lambda x: ops.clip(x, 0.5, 2.0), VECTOR),
    "sort": (lambda x: ops.sort(x, axis=1), ROWS),
    "extremes": (lambda x: ops.maximum(ops.minimum(x, 1.0), -0.5), VECTOR),
    "largest": (lambda x: ops.max(x, axis=-1) - ops.min(x, axis=-1), ROWS),
    "maximum": (lambda x: layers.Maximum()([layers.Dense(6)(x), ops.flip(x, 1)]), VECTOR),
}


@pytest.mark.parametrize(("build", "shape"), OTHERS.values(), ids=OTHERS)
def test_no_pair_of_inputs_exceeds_the_bound(build, shape, rng):
    model = model_of(build, shape)
    first = rng.normal(size=(400, *shape)) * np.geomspace(0.05, 3, 400).reshape(-1, *[1] * len(shape))
    step = rng.normal(size=first.shape) * np.geomspace(1e-2, 3, 400)[::-1].reshape(-1, *[1] * len(shape))
    first, second = first.astype("float32"), (first + step).astype("float32")
    change = to_numpy(model(second)).astype("float64") - to_numpy(model(first)).astype("float64")
    distance = np.linalg.norm((second.astype("float64") - first).reshape(400, -1), axis=1)
    ratios = np.linalg.norm(change.reshape(400, -1), axis=1) / distance
    assert ratios.max() <= bound_graph(model).constant * (1 + 1e-4)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_no_jacobian_of_a_random_graph_exceeds_the_bound(seed):
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed % 2**31)
    model = random_graph(rng)
    assert largest_jacobian(model, rng, points=8) <= bound_graph(model).constant * (1 + 1e-4)


def test_several_inputs_are_taken_together():
    first, second = keras.Input((4,)), keras.Input((4,))
    double = layers.Dense(4, kernel_initializer=keras.initializers.Identity(2.0))
    assert bound_graph(keras.Model([first, second], first + double(second))).constant == pytest.approx(5**0.5)
    joined = layers.Concatenate()([first, second])
    assert bound_graph(keras.Model([first, second], layers.ReLU()(joined))).constant == pytest.approx(1.0)
    many = bound_graph(keras.Model([first, second], [layers.ReLU()(joined), first + second]))
    assert [output.constant for output in many.outputs] == pytest.approx([1, 2**0.5])


def test_sizes_that_are_not_known():
    inputs = keras.Input((None, None, 3))
    convolution = layers.Conv2D(3, 3, padding="same")
    residual = bound_graph(keras.Model(inputs, inputs + convolution(inputs))).constant
    known = keras.Input((24, 24, 3))
    assert bound_graph(keras.Model(known, known + convolution(known))).constant <= residual
    assert residual <= 1 + bound_graph(keras.Model(inputs, convolution(inputs))).constant
    pooled = layers.AveragePooling2D(2)(layers.MaxPooling2D(2)(layers.ReLU()(inputs)))
    assert bound_graph(keras.Model(inputs, pooled)).constant == pytest.approx(0.5)
    # On an image of 3 x 3 this would add one value to nine.
    valid = layers.Conv2D(3, 3)(inputs)
    with pytest.raises(CannotBoundError, match="may repeat values: sizes of its inputs are not known"):
        bound_graph(keras.Model(inputs, layers.Add()([inputs, valid])))
    with pytest.raises(CannotBoundError, match="size of its input, which is not known"):
        bound_graph(keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs)))
    with pytest.raises(CannotBoundError, match="moves values of an input of which the size is not known"):
        bound_graph(keras.Model(inputs, ops.flip(inputs, axis=1)))


REFUSED = {
    "it reduces over samples": lambda x: ops.mean(x, axis=0, keepdims=True),
    "it reduces over samples.": lambda x: ops.reshape(ops.max(x), (1, 1)),
    "from one sample to another": lambda x: ops.roll(x, 1, axis=0),
    "the product of two tensors": lambda x: x * ops.relu(x),
    "only division by constants": lambda x: 1.0 / x,
    "only division by constants that": lambda x: x / 0.0,
    "keeps the values of each sample together": lambda x: ops.reshape(x, (-1, 3)),
    "repeats values to fit a constant": lambda x: ops.mean(x, axis=1, keepdims=True) + np.ones(6, "float32"),
    "no finite constant": lambda x: layers.LayerNormalization(epsilon=0.0)(x),
    "rms_scaling": lambda x: layers.LayerNormalization(rms_scaling=True)(x),
    "it rounds to the type": lambda x: ops.cast(x, "float16"),
    "norm of order 1": lambda x: ops.norm(x, ord=1, axis=-1),
    "pads with values that are not 0": lambda x: ops.pad(x, [[0, 0], [1, 1]], constant_values=1.0),
    "on its own it has no finite Lipschitz constant": lambda x: ops.square(x),
    "there is no bound rule": lambda x: ops.exp(x),
}


@pytest.mark.parametrize(("words", "build"), REFUSED.items(), ids=REFUSED)
def test_what_is_refused(words, build):
    with pytest.raises(CannotBoundError, match=f"cannot bound the layer .*{words}"):
        bound_graph(model_of(build, VECTOR))


def test_a_dense_map_by_element_is_a_scaling(rng):
    layer = layers.EinsumDense("ab,b->ab", 6)
    model = model_of(layer, VECTOR)
    layer.kernel.assign([1.0, -4.0, 2.0, 0.0, 3.0, 1.0])
    assert bound_graph(model).constant == pytest.approx(4.0)


def test_rescaling_channels_where_keras_has_them_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        first = layers.Dense(1, use_bias=False)
        model = model_of(lambda x: first(layers.Rescaling(np.array([1.0, 1.0, 10.0], "float32"))(x)), (3, 3, 3))
        first.kernel.assign([[1.0], [0.0], [0.0]])
        basis = np.eye(27, dtype="float32").reshape(27, 3, 3, 3)
        exact = np.linalg.norm(to_numpy(model(basis)).reshape(27, -1), 2)
        assert exact == pytest.approx(10)
        assert exact * (1 - 1e-6) <= bound_graph(model).constant <= exact * (1 + 1e-6)
    finally:
        keras.config.set_image_data_format(before)


@pytest.mark.parametrize(
    "op",
    [
        lambda x: keras.ops.celu(x, alpha=-1.0),
        lambda x: keras.ops.squareplus(x, b=-1.0),
        lambda x: keras.ops.soft_shrink(x, threshold=-0.5),
    ],
    ids=["celu", "squareplus", "soft_shrink"],
)
def test_negative_parameters_leave_no_constant(op):
    inputs = keras.Input((4,))
    with pytest.raises(CannotBoundError, match="no finite Lipschitz constant"):
        bound_graph(keras.Model(inputs, op(inputs)))


def test_symmetric_padding_is_bounded_on_every_backend():
    """Keras on torch repeats the edge: four copies of it for a padding of three."""
    inputs = keras.Input((6, 1))
    model = keras.Model(inputs, keras.ops.pad(inputs, ((0, 0), (3, 0), (0, 0)), mode="symmetric"))
    assert 2.0 <= bound_graph(model).constant <= 2.0 + 1e-9
