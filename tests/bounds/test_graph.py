"""Bounds of graphs: composition, patterns, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import deel_like_lip as lip
from deel_like_lip.bounds import CannotBoundError, activation_constant, bound_graph, register_bound_rule
from tests.helpers import to_numpy


def dense(norm, units=4):
    """A dense layer whose kernel is `norm` times the identity."""
    return layers.Dense(units, kernel_initializer=keras.initializers.Identity(norm))


def constant(build, shape=(4,)):
    inputs = keras.Input(shape)
    return bound_graph(keras.Model(inputs, build(inputs))).constant


CASES = {
    "chain": (lambda x: dense(3.0)(layers.ReLU()(dense(2.0)(x))), (4,), 6.0),
    "residual": (lambda x: x + dense(0.5)(x), (4,), 1.5),
    "difference": (lambda x: layers.Subtract()([dense(2.0)(x), dense(0.5)(x)]), (4,), 1.5),
    "sum of what is not linear": (lambda x: layers.ReLU()(dense(2.0)(x)) + layers.ReLU()(dense(0.5)(x)), (4,), 2.5),
    "average": (lambda x: layers.Average()([dense(2.0)(x), x]), (4,), 1.5),
    "concatenation": (lambda x: layers.Concatenate()([dense(3.0)(x), dense(4.0)(x)]), (4,), 5.0),
    "maximum": (lambda x: layers.Maximum()([dense(3.0)(x), dense(4.0)(x)]), (4,), 5.0),
    "constant added": (lambda x: dense(2.0)(x) + 3.0, (4,), 2.0),
    "activation": (lambda x: layers.Dense(4, "sigmoid", kernel_initializer="identity")(x), (4,), 0.25),
    "n-d dense": (lambda x: dense(2.0)(x), (5, 4), 2.0),
    "moves": (lambda x: layers.Permute((2, 1))(layers.Reshape((2, 2))(layers.Dropout(0.5)(x))), (4,), 1.0),
    "padding": (lambda x: layers.Flatten()(layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x))), (4, 4, 2), 1.0),
    "rescaling": (lambda x: layers.Rescaling([1.0, -3.0, 2.0, 0.0], offset=7.0)(x), (4,), 3.0),
    "max pooling": (lambda x: layers.MaxPooling2D(2)(x), (4, 4, 2), 1.0),
    "overlapping max pooling": (lambda x: layers.MaxPooling2D(3, strides=2)(x), (9, 9, 2), 2.0),
    "average pooling": (lambda x: layers.AveragePooling2D((2, 8))(x), (8, 8, 2), 0.25),
    "overlapping average pooling": (
        lambda x: layers.AveragePooling2D(4, strides=2)(x),
        (8, 8, 2),
        0.25 * (1 + 0.5**0.5),
    ),
    "global average": (lambda x: layers.GlobalAveragePooling2D()(x), (4, 4, 2), 0.25),
    "global maximum": (lambda x: layers.GlobalMaxPooling2D()(x), (4, 4, 2), 1.0),
    "sort": (lambda x: ops.sort(x, axis=-1), (4,), 1.0),
    "a nested model": (lambda x: keras.Sequential([keras.Input((4,)), dense(2.0), dense(3.0)])(x), (4,), 6.0),
}


@pytest.mark.parametrize(("build", "shape", "expected"), CASES.values(), ids=CASES.keys())
def test_composition(build, shape, expected):
    bound = constant(build, shape)
    assert expected * (1 - 1e-15) <= bound <= expected * (1 + 1e-12)


@pytest.mark.parametrize(("build", "shape", "expected"), CASES.values(), ids=CASES.keys())
def test_no_pair_of_inputs_exceeds_the_bound(build, shape, expected, rng):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    first = rng.normal(size=(300, *shape))
    second = first + rng.normal(size=first.shape) * np.geomspace(1e-1, 10, 300).reshape(-1, *[1] * len(shape))
    outputs = [to_numpy(model(x.astype("float32"))).astype("float64").reshape(300, -1) for x in (first, second)]
    distance = np.linalg.norm((first - second).reshape(300, -1), axis=1)
    ratio = np.linalg.norm(outputs[0] - outputs[1], axis=1) / distance
    assert ratio.max() <= expected * (1 + 1e-4)


def test_a_shared_layer_counts_each_time():
    shared = dense(2.0)
    assert constant(lambda x: shared(shared(x))) == pytest.approx(4)


def test_sorted_pairs_are_recognised_only_where_they_are_sound():
    def halves(x):
        return ops.split(x, 2, axis=-1)

    def pairs(left, right):
        return ops.concatenate([ops.minimum(left, right), ops.maximum(left, right)], axis=-1)

    assert constant(lambda x: pairs(*halves(x))) == 1
    # Not the two halves of one tensor: the root of 2 a side.
    assert constant(lambda x: pairs(x, dense(1.0)(x))) == pytest.approx(2)
    # The same half twice, or only maxima.
    assert constant(lambda x: pairs(halves(x)[0], halves(x)[0])) == pytest.approx(2)
    both = [ops.maximum, ops.maximum]
    assert constant(lambda x: ops.concatenate([f(*halves(x)) for f in both], axis=-1)) == pytest.approx(2)


def wrap(x, before, after, axis=1, size=8):
    return ops.take(x, [index % size for index in range(-before, size + after)], axis=axis)


def test_circular_convolution_is_recognised_where_it_is_one(rng):
    kernel = rng.normal(size=(3, 3, 1, 2)).astype("float32")
    # Elsewhere padding and convolution are bounded one after another.
    cases = [(1, 1, 1, True), (2, 0, 1, True), (1, 0, 2, True), (2, 2, 1, False), (3, 3, 2, False)]
    for before, after, strides, circular in cases:
        convolution = layers.Conv2D(2, 3, strides=strides, use_bias=False)
        inputs = keras.Input((8, 8, 1))
        model = keras.Model(inputs, convolution(wrap(wrap(inputs, before, after, 1), before, after, 2)))
        convolution.kernel.assign(kernel)
        matrix = to_numpy(model(np.eye(64, dtype="float32").reshape(64, 8, 8, 1))).reshape(64, -1).astype("float64")
        exact = np.linalg.norm(matrix, 2)
        bound = bound_graph(model)
        assert exact <= bound.constant * (1 + 1e-6)
        assert (bound.layers[-1].kind == "circular convolution") == circular
        # Either way the whole is linear and small enough to be written out.
        assert bound.constant <= exact * (1 + 1e-6)


def test_values_that_are_taken_several_times():
    inputs = keras.Input((8, 8, 1))
    repeated = ops.take(inputs, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7], axis=1)
    assert bound_graph(keras.Model(inputs, repeated)).constant == pytest.approx(np.sqrt(3))


def test_l2_pooling_is_recognised_only_where_it_is_sound():
    def pooling(x, **options):
        return ops.sqrt(layers.Rescaling(4.0)(layers.AveragePooling2D(2, **options)(ops.square(x))))

    def everywhere(x, **options):
        return ops.sqrt(layers.Rescaling(16.0)(layers.GlobalAveragePooling2D(**options)(ops.square(x))))

    assert constant(pooling, (4, 4, 1)) == pytest.approx(1)
    assert constant(everywhere, (4, 4, 3)) == pytest.approx(1)
    assert constant(lambda x: everywhere(x, keepdims=True), (4, 4, 3)) == pytest.approx(1)
    assert constant(lambda x: pooling(x, strides=1), (4, 4, 1)) == pytest.approx(2)
    for refused in (
        lambda x: pooling(x, padding="same"),
        lambda x: ops.sqrt(layers.Rescaling(4.0, offset=1.0)(layers.AveragePooling2D(2)(ops.square(x)))),
        lambda x: ops.sqrt(layers.AveragePooling2D(2)(x)),
        lambda x: ops.square(x),
        lambda x: pooling(x) + layers.AveragePooling2D(2)(ops.square(x)),
    ):
        with pytest.raises(CannotBoundError):
            constant(refused, (4, 4, 1))


REFUSED = {
    "Lambda": lambda x: layers.Lambda(lambda t: 2 * t, name="mystery")(x),
    "LayerNormalization": lambda x: layers.LayerNormalization(epsilon=0.0, name="mystery")(x),
    "UnitNormalization": lambda x: layers.UnitNormalization(name="mystery")(x),
    "Attention": lambda x: layers.Attention(name="mystery")([layers.Reshape((2, 2))(x)] * 2),
    "UpSampling2D": lambda x: layers.UpSampling2D(interpolation="bicubic", name="mystery")(
        layers.Reshape((2, 2, 1))(x)
    ),
    "Multiply": lambda x: layers.Multiply(name="mystery")([x, dense(1.0)(x)]),
    "Dense": lambda x: layers.Dense(4, "exponential", name="mystery")(x),
    "Activation": lambda x: layers.Activation("exponential", name="mystery")(x),
    "ReLU": lambda x: layers.ReLU(threshold=1.0, name="mystery")(x),
    "Dropout": lambda x: layers.Dropout(0.5, name="mystery")(x, training=True),
    "BatchNormalization": lambda x: layers.BatchNormalization(name="mystery")(x, training=True),
    "Sequential": lambda x: keras.Sequential([keras.Input((4,)), layers.Dropout(0.5)], name="mystery")(
        x, training=True
    ),
    "Concatenate": lambda x: layers.Concatenate(axis=0, name="mystery")([x, x]),
    "Add": lambda x: layers.Add(name="mystery")([x, dense(1.0, 1)(x)]),
    "Softmax": lambda x: layers.Softmax(axis=0, name="mystery")(x),
    "Rescaling": lambda x: layers.Rescaling([1.0, 1.0, 1.0], name="mystery")(dense(1.0, 1)(x)),
}


@pytest.mark.parametrize(("kind", "build"), REFUSED.items(), ids=REFUSED.keys())
def test_what_has_no_bound_is_refused_by_name(kind, build):
    words = f"cannot bound the layer 'mystery' of class {kind}: .*Received: an input of shape"
    with pytest.raises(CannotBoundError, match=words):
        constant(build)


def test_training_mode_is_noticed_at_the_second_call_too():
    shared = layers.Dropout(0.5, name="shared")
    with pytest.raises(CannotBoundError, match="'shared' .* `training=True`"):
        constant(lambda x: shared(shared(x), training=True))


def test_an_unknown_layer_in_certify():
    class Halve(layers.Layer):
        def call(self, inputs):
            return inputs / 2

    model = keras.Sequential([keras.Input((4,)), Halve(name="mine"), dense(1.0, 2)])
    with pytest.raises(ValueError, match="layer 'mine' of class Halve: there is no bound rule.*register_bound_rule"):
        lip.certify(model)

    @register_bound_rule(Halve)
    def halve(layer, input_shape):
        assert isinstance(layer, Halve)
        assert input_shape == (None, 4)
        return 0.5

    assert lip.certify(model).lipschitz_constant == pytest.approx(0.5)

    class Subclass(Halve):
        def call(self, inputs):
            return inputs * 100

    with pytest.raises(ValueError, match="class Subclass: there is no bound rule"):
        lip.certify(keras.Sequential([keras.Input((4,)), Subclass(), dense(1.0, 2)]))


def test_a_graph_that_a_subclass_may_not_follow_is_refused():
    class Doubled(keras.Model):
        def call(self, inputs):
            return 2.0 * super().call(inputs)

    inputs = keras.Input((4,))
    model = Doubled(inputs, dense(1.0, 2)(inputs), name="doubled")
    with pytest.raises(CannotBoundError, match="'doubled' of class Doubled may compute something else than its graph"):
        bound_graph(model)
    nested = keras.Model(inputs, model(inputs))
    with pytest.raises(CannotBoundError, match="'doubled' of class Doubled"):
        bound_graph(nested)


def test_a_refusal_counts_only_where_the_output_depends_on_it():
    inputs = keras.Input((4,))
    unused = ops.square(inputs)
    hidden = dense(2.0)(inputs)
    model = keras.Model(inputs, [hidden, unused])
    assert bound_graph(keras.Model(model.inputs, model.outputs[0])).constant == pytest.approx(2)


def test_kernels_that_are_not_finite_are_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="broken")])
    model.layers[0].kernel.assign(np.full((4, 2), np.nan, "float32"))
    with pytest.raises(CannotBoundError, match="'broken'.*NaN or infinite"):
        lip.certify(model)


def test_quantized_and_lora_kernels_are_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="updated")])
    model.layers[0].enable_lora(1)
    with pytest.raises(ValueError, match="'updated'"):
        lip.certify(model)


NOT_ELEMENTWISE = {"get", "serialize", "deserialize", "glu"}
ACTIVATIONS = sorted(name for name in dir(keras.activations) if name[0] != "_" and name not in NOT_ELEMENTWISE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_constants_of_activations_are_bounds_and_near(name):
    activation = getattr(keras.activations, name)
    bound = activation_constant(activation)
    if bound is None:
        assert name in {"exponential", "log_softmax", "threshold", "hard_shrink", "sparsemax"}, name
        return
    if name == "softmax":
        rng = np.random.default_rng(0)
        first = rng.normal(size=(4000, 3)).astype("float32")
        second = first + 0.05 * rng.normal(size=first.shape).astype("float32")
        ratio = np.linalg.norm(to_numpy(activation(first)) - to_numpy(activation(second)), axis=1)
        slopes = ratio / np.linalg.norm(first - second, axis=1)
    else:
        grid = np.linspace(-12, 12, 24001).reshape(1, -1)
        values = to_numpy(activation(keras.ops.convert_to_tensor(grid.astype("float32")))).astype("float64")
        slopes = np.abs(np.diff(values[0, ::20])) / np.diff(grid[0, ::20])
    assert slopes.max() <= bound * (1 + 1e-4)
    assert slopes.max() >= 0.95 * bound
