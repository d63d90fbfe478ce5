"""What the gate in front of the bounds refuses, and the values of what it lets through: each hole that there was.

The models here were certified once with constants that two inputs contradict.
"""

import dataclasses
import functools
import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import deel_like_lip as lip
from deel_like_lip.bounds import CannotBoundError, bound_graph, register_bound_rule, unregister_bound_rule
from deel_like_lip.bounds.rules import _RULES
from tests.helpers import to_numpy


def model_of(build, *shapes, dtype="float32"):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes or ((4,),)]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], build(*inputs))


def constant(build, *shapes):
    return lip.certify(model_of(build, *shapes), check=False).lipschitz_constant


def refused(build, words, *shapes, dtype="float32"):
    with pytest.raises(CannotBoundError, match=words):
        lip.certify(model_of(build, *shapes, dtype=dtype), check=False)


def slope(model, first, second):
    change = to_numpy(model(second)).astype("float64") - to_numpy(model(first))
    return np.linalg.norm(change) / np.linalg.norm(np.asarray(second, "float64") - first)


ARRAY = np.array([[1.0, -2.0, 0.5, 3.0]], "float32")

# --- constants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda x: ops.concatenate([ARRAY[:, :3], x], axis=1),
        lambda x: ops.concatenate([x, ops.convert_to_tensor(ARRAY)], axis=1),
        lambda x: layers.Concatenate()([x, ARRAY]),
        lambda x: ops.stack([ARRAY, x], axis=1),
    ],
    ids=["op", "tensor", "layer", "stack"],
)
def test_a_constant_in_a_concatenation(build):
    """It is no input that can be left out of the count: a slice behind it would be of the wrong values."""
    refused(build, "joins an array of shape .* Add a constant with `\\+`")


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x: layers.Add()([x, ARRAY]), 1.0),
        (lambda x: layers.Subtract()([x, ARRAY]), 1.0),
        (lambda x: layers.Average()([x, ARRAY, x]), 2 / 3),
        (lambda x: layers.Average()([x, ARRAY]), 0.5),
        (lambda x: layers.Maximum()([x, ARRAY]), 1.0),
        (lambda x: x + ARRAY, 1.0),
        (lambda x: ops.minimum(ARRAY, x), 1.0),
    ],
    ids=["add", "subtract", "average of three", "average", "maximum", "op", "minimum"],
)
def test_a_constant_that_is_combined_has_no_slope_and_a_size(build, expected):
    assert constant(build) == pytest.approx(expected, rel=1e-9)
    small = lip.certify(model_of(build), task="regression", rounding="sound")
    large = lip.certify(model_of(lambda x: build(x) + 1e6 * ARRAY), task="regression", rounding="sound")
    # A sum of numbers of that size is off by as much as one of their roundings.
    assert large.heads[0].rounding_error.absolute > 2.0**-25 * 1e6 * np.linalg.norm(ARRAY)
    assert small.heads[0].rounding_error.absolute < 1e-4


def test_the_size_of_a_constant_counts_where_rounding_does():
    dense = layers.Dense(2, use_bias=False)
    model = model_of(lambda x: dense(layers.Add()([x, np.full((1, 4), 1e6, "float32")])))
    dense.set_weights([np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])])
    error = lip.certify(model, rounding="sound").heads[0].rounding_error
    assert error.absolute > 0.1  # units in the last place of a million are 1/16


@pytest.mark.parametrize(
    "build",
    [
        lambda x: ops.clip(x, 0.1, 0.7),
        lambda x: ops.maximum(x, 0.1),
        lambda x: layers.Rescaling(0.1)(x),
        lambda x: layers.Maximum()([x, 0.1 * ARRAY.astype("float64")]),
    ],
)
def test_a_constant_that_float32_rounds_is_an_error(build):
    error = lip.certify(model_of(build), task="regression", rounding="sound").heads[0].rounding_error
    assert error.absolute + error.relative > 1e-9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_constants_that_are_not_finite(value):
    refused(lambda x: layers.Add()([x, np.full((1, 4), value, "float32")]), "not finite")
    refused(lambda x: layers.Rescaling(value)(x), "`scale` is not finite")


# --- names -----------------------------------------------------------------------------------------------------------


def times_ten(name):
    def function(x):
        return 10.0 * ops.relu(x)

    function.__name__ = name
    return function


ACTIVATIONS = sorted(
    name for name, value in vars(keras.activations).items() if inspect.isfunction(value) and name[0] != "_"
)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in ("get", "serialize", "deserialize")])
def test_a_function_named_like_an_activation(name):
    words = f"activation '{name}' (is not one that its config names|has no known Lipschitz constant)"
    refused(lambda x: layers.Dense(3, activation=times_ten(name))(x), words)


def test_activations_that_no_config_names():
    for function in (lambda x: 10 * x, functools.partial(ops.leaky_relu, negative_slope=20.0)):
        refused(lambda x, function=function: layers.Dense(3, activation=function, name="mine")(x), "'mine'.*activation")
        refused(lambda x, function=function: layers.Activation(function, name="mine")(x), "'mine'.*activation")
    layer = lip.layers.SpectralDense(3, activation="relu", name="own")
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.activation = times_ten("relu")
    with pytest.raises(CannotBoundError, match="'own'.*activation 'relu'"):
        lip.certify(model)


def test_classes_named_like_others():
    class Minimum(layers.Layer):
        def call(self, inputs):
            return 100 * inputs[0]

    class Dense(layers.Dense):
        def call(self, inputs, training=None):
            return 100 * super().call(inputs)

    class Relu(keras.Operation):
        def call(self, x):
            return 10 * ops.relu(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    Relu.__module__, Dense.__module__ = "keras.src.ops.nn", "keras.src.layers.core.dense"
    halves = lambda x: ops.split(x, 2, axis=-1)  # noqa: E731
    for build in (
        lambda x: layers.Concatenate()([Minimum()(halves(x)), ops.maximum(*halves(x))]),
        lambda x: Dense(3)(x),
        lambda x: Relu()(x),
    ):
        refused(build, "there is no bound rule for it")


def test_a_rule_over_a_built_in_is_refused():
    for kind in (layers.Dense, layers.Flatten):
        with pytest.raises(ValueError, match=f"class {kind.__name__} of Keras has a bound rule, which cannot be repl"):
            register_bound_rule(kind)
    with pytest.raises(ValueError, match="Expected `layer_class` to be a class of layers. Received"):
        register_bound_rule(3)
    with pytest.raises(ValueError, match="Expected a class that a rule was registered for"):
        unregister_bound_rule(layers.Dense)


def test_a_rule_can_be_taken_back():
    class Halve(layers.Layer):
        def call(self, inputs):
            return inputs / 2

    for value in (0.5, 0.75):
        register_bound_rule(Halve)(lambda layer, input_shape, value=value: value)
        assert constant(Halve()) == value
    unregister_bound_rule(Halve)
    refused(lambda x: Halve()(x), "there is no bound rule")
    for value, words in ((np.nan, "its bound is nan"), (-1.0, "its bound is -1"), ("one", "raised ValueError")):
        register_bound_rule(Halve)(lambda layer, input_shape, value=value: value)
        refused(lambda x: Halve()(x), words)
    unregister_bound_rule(Halve)


def test_a_class_whose_method_was_replaced(monkeypatch):
    call = layers.Dense.call
    monkeypatch.setattr(layers.Dense, "call", lambda self, inputs, training=None: 10 * call(self, inputs))
    refused(lambda x: layers.Dense(3)(x), "the method `call` of Dense is another one")


# --- instances -------------------------------------------------------------------------------------------------------


def edit(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)


EDITS = {
    "call": (lambda: layers.Dense(4), (4,), lambda layer: edit(layer, call=lambda inputs: 10 * inputs)),
    "own call": (
        lambda: lip.layers.SpectralDense(4),
        (4,),
        lambda layer: edit(layer, call=lambda inputs, training=None: 10 * inputs),
    ),
    "activation": (lambda: layers.Dense(4), (4,), lambda layer: edit(layer, activation=times_ten("linear"))),
    "negative_slope": (
        lambda: layers.Dense(4, activation=layers.LeakyReLU(0.1)),
        (4,),
        lambda layer: edit(layer.activation, call=lambda x: 10 * x),
    ),
    "autocast": (lambda: layers.Dense(4), (4,), lambda layer: edit(layer, autocast=False)),
    "_keep_axis": (
        lambda: layers.Normalization(mean=[0.0] * 4, variance=[1.0] * 4),
        (4,),
        lambda layer: edit(layer, _keep_axis=(0,)),
    ),
    "_convert_input_args": (lambda: layers.ReLU(), (4,), lambda layer: edit(layer, _convert_input_args=False)),
}


@pytest.mark.parametrize(("make", "shape", "change"), EDITS.values(), ids=EDITS)
def test_edited_layers_are_refused(make, shape, change):
    layer = make()
    model = keras.Sequential([keras.Input(shape), layer])
    lip.certify(model)
    change(layer)
    with pytest.raises(CannotBoundError, match=f"'({layer.name}|leaky_re_lu.*)'"):
        lip.certify(model, check=False)


def test_edited_ops_and_models_are_refused():
    model = model_of(lambda x: ops.mean(x, axis=1, keepdims=True))
    (node,) = model.outputs[0]._keras_history.operation._inbound_nodes
    node.operation.axis = 0
    with pytest.raises(CannotBoundError, match="arguments have changed|over samples"):
        bound_graph(model)
    model = model_of(lambda x: ops.clip(x, 0.0, 1.0))
    model.outputs[0]._keras_history.operation.call = lambda x: 10 * x
    with pytest.raises(CannotBoundError, match="method `call` was replaced"):
        lip.certify(model)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.call = lambda inputs, training=None, mask=None: 10 * inputs
    with pytest.raises(CannotBoundError, match="method `call` was replaced"):
        lip.certify(model)


def test_edits_that_the_config_knows_are_bounded_as_they_are():
    layer = layers.LeakyReLU(0.1)
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.negative_slope = 3.0
    assert lip.certify(model).lipschitz_constant == 3.0


# --- numbers of other types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "make",
    [layers.Flatten, lambda **options: layers.Reshape((4,), **options), layers.Identity, layers.ReLU],
    ids=["Flatten", "Reshape", "Identity", "ReLU"],
)
def test_numbers_that_are_not_float32_in_the_middle(dtype, make):
    if make is layers.ReLU and dtype == "bool":
        pytest.skip("Keras does not build it")
    refused(lambda x: layers.Rescaling(1.0)(make(dtype=dtype)(x)), r"(computes in b?float16|with integers|rounds)")


def test_low_precision_inside_of_a_layer():
    for rounding in ("exact", "sound"):
        inner = layers.LeakyReLU(0.5, dtype="bfloat16", name="inner")
        model = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation=inner, name="outer")])
        with pytest.raises(CannotBoundError, match="'outer'.*'inner' inside of it computes in bfloat16"):
            lip.certify(model, rounding=rounding)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "uint8"])
def test_a_nested_model_that_rounds_its_input(dtype):
    hidden = keras.Input((4,), dtype=dtype)
    inner = keras.Model(hidden, layers.Rescaling(1.0)(hidden))
    refused(lambda x: inner(x), "(to which Keras rounds|The input)")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_input_that_rounds(dtype):
    refused(lambda x: layers.Dense(3)(x), f"is of type {dtype}, to which Keras rounds", dtype=dtype)


def test_integers_that_are_only_moved_are_certified():
    model = model_of(lambda x: layers.Rescaling(0.5)(layers.Reshape((4,))(x)), (2, 2), dtype="uint8")
    assert lip.certify(model).lipschitz_constant == pytest.approx(0.5, rel=1e-12)
    refused(lambda x: layers.Rescaling(0.5, dtype="int32")(x), "integers", dtype="int32")


# --- arguments of calls ----------------------------------------------------------------------------------------------

MASK = np.array([[1, 0, 0, 0, 0]], "float32")


def fixed(function):
    """A nested model of a layer."""
    inputs = keras.Input((5, 3))
    return keras.Model(inputs, function(inputs))


ARGUMENTS = {
    "mask": lambda x: layers.GlobalAveragePooling1D()(x, mask=MASK),
    "mask by position": lambda x: layers.GlobalAveragePooling1D()(x, MASK),
    "mask of softmax": lambda x: layers.Softmax()(x, np.ones((1, 5, 3), "bool")),
    "mask of a nested model": lambda x: fixed(layers.GlobalAveragePooling1D())(x, mask=MASK),
    "mask of a nested model by position": lambda x: fixed(layers.GlobalAveragePooling1D())(x, None, MASK),
    "Masking": lambda x: layers.GlobalAveragePooling1D()(layers.Masking()(x)),
    "training": lambda x: layers.Dropout(0.5)(x, training=True),
    "training by position": lambda x: layers.BatchNormalization()(x, np.array(True)),
    "training as a number": lambda x: layers.Dropout(0.5)(x, training=1),
    "training of NumPy": lambda x: layers.Dropout(0.5)(x, training=np.bool_(True)),
    "training of a layer that does not know it": lambda x: layers.Flatten()(x, training=True),
    "training of a nested model": lambda x: fixed(layers.Dropout(0.5))(x, training=True),
    "training of a nested model by position": lambda x: fixed(layers.Dropout(0.5))(x, True),
    "training of ours": lambda x: lip.layers.BatchCentering()(x, training=True),
    "training of ours, nested": lambda x: fixed(lip.layers.BatchCentering())(x, training=True),
}


@pytest.mark.parametrize("build", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_no_rule_covers(build):
    try:
        model = model_of(build, (5, 3))
    except (ValueError, TypeError) as error:
        pytest.skip(f"Keras does not build it: {str(error)[:60]}")
    with pytest.raises(ValueError, match="(`?mask|training|no bound rule|Leave it out)"):
        lip.certify(model, check=False)


def test_arguments_that_change_nothing():
    assert constant(lambda x: layers.Dropout(0.5)(x, training=False)) == 1
    assert constant(lambda x: lip.layers.MaxMin()(x, training=False)) == pytest.approx(1)
    assert constant(lambda x: fixed(layers.ReLU())(x, training=None), (5, 3)) == 1


# --- shapes ----------------------------------------------------------------------------------------------------------

NINE = np.full(4, 9.0, "float32")
BROADCASTS = {
    "clip": lambda x: ops.clip(x, -NINE, NINE),
    "minimum": lambda x: ops.minimum(x, NINE),
    "add": lambda x: x + NINE,
    "multiply": lambda x: x * NINE,
    "leaky_relu": lambda x: ops.leaky_relu(x, NINE),
    "elu": lambda x: ops.elu(x, NINE),
    "squareplus": lambda x: ops.squareplus(x, NINE),
    "soft_shrink": lambda x: ops.soft_shrink(x, NINE),
    "rescaling": lambda x: layers.Rescaling(NINE.tolist())(x),
}


@pytest.mark.parametrize("build", BROADCASTS.values(), ids=BROADCASTS)
def test_values_that_are_repeated_to_fit_an_array(build):
    try:
        model = model_of(build, (1,))
    except (ValueError, TypeError, RuntimeError) as error:
        pytest.skip(f"Keras does not build it: {str(error)[:60]}")
    with pytest.raises(CannotBoundError, match="(repeats values|is an array|not known)"):
        lip.certify(model, check=False)


def shared(layer, wide, narrow, narrow_first=False):
    first, second = (keras.Input(shape) for shape in (wide, narrow))
    outputs = [layer(first), layer(second)]
    inputs = [first, second]
    return keras.Model(inputs[::-1], outputs[::-1]) if narrow_first else keras.Model(inputs, outputs)


@pytest.mark.parametrize("narrow_first", [False, True])
@pytest.mark.parametrize(
    ("make", "wide", "narrow"),
    [
        (lambda: layers.EinsumDense("abc,cd->abd", output_shape=(None, 2)), (5, 3), (5, 1)),
        (lambda: layers.EinsumDense("abc,bcd->abd", output_shape=(5, 2), bias_axes="bd"), (5, 3), (1, 3)),
        (layers.LayerNormalization, (5, 3), (5, 1)),
        (layers.RMSNormalization, (5, 3), (5, 1)),
        (lambda: layers.Rescaling([1.0, 2.0, 3.0]), (5, 3), (5, 1)),
    ],
    ids=["EinsumDense", "bias", "LayerNormalization", "RMSNormalization", "Rescaling"],
)
def test_a_shared_layer_on_another_shape(make, wide, narrow, narrow_first):
    try:
        model = shared(make(), wide, narrow, narrow_first)
    except Exception as error:  # of the backend: not all of them repeat values
        pytest.skip(f"it is not built: {str(error)[:60]}")
    with pytest.raises(CannotBoundError, match="(other sizes|repeats values|its weights have the shape|its inputs)"):
        lip.certify(model, check=False)


@pytest.mark.parametrize("narrow_first", [False, True])
def test_a_layer_that_is_rightly_shared_by_two_shapes(narrow_first):
    layer = layers.Dense(2)
    model = shared(layer, (5, 3), (3,), narrow_first)
    norm = np.linalg.norm(to_numpy(layer.kernel).astype("float64"), 2)
    assert lip.certify(model).lipschitz_constant == pytest.approx(norm, rel=1e-6)


def test_shapes_without_values():
    refused(lambda x: layers.Dense(3)(x), "without any value", (0,))


# --- state -----------------------------------------------------------------------------------------------------------


def test_statistics_that_a_layer_does_not_use(rng):
    """`set_weights` fills the weights of a `Normalization`; what it computes with it has taken from them before."""
    layer = layers.Normalization()
    layer.adapt((100 + 60 * rng.normal(size=(50, 4))).astype("float32"))
    restored = layers.Normalization(name="restored")
    model = keras.Sequential([keras.Input((4,)), restored])
    restored.set_weights(layer.get_weights())
    inputs = rng.normal(size=(2, 4)).astype("float32")
    if keras.backend.backend() != "torch":  # there, what it computes with are its weights
        with pytest.raises(CannotBoundError, match="'restored'.*`finalize_state\\(\\)`"):
            lip.certify(model)
        assert slope(model, *np.split(inputs, 2)) == pytest.approx(1, rel=1e-5)
    restored.finalize_state()
    assert slope(model, *np.split(inputs, 2)) <= lip.certify(model).lipschitz_constant * (1 + 1e-4) < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.PReLU(),
        lambda: layers.Dense(4),
        lambda: layers.BatchNormalization(),
        lambda: layers.LayerNormalization(),
    ],
    ids=["PReLU", "Dense", "BatchNormalization", "LayerNormalization"],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(make, value):
    layer = make()
    model = keras.Sequential([keras.Input((4,)), layer])
    weights = layer.get_weights()
    weights[0] = np.full_like(weights[0], value)
    layer.set_weights(weights)
    with pytest.raises(CannotBoundError, match=f"'{layer.name}'.*NaN or infinite"):
        lip.certify(model)


# --- samples ---------------------------------------------------------------------------------------------------------

ACROSS = {
    "roll by two": lambda x: ops.roll(x, 2, axis=0),
    "roll all": lambda x: ops.roll(x, 24, axis=None),
    "flip": lambda x: ops.flip(x, axis=0),
    "flip all": lambda x: ops.flip(x),
    "last samples": lambda x: x[-2:],
    "one sample": lambda x: x[2],
    "take": lambda x: ops.take(x, [0, 0, 1], axis=0),
    "take all": lambda x: ops.take(x, [0, 1]),
    "squeeze": lambda x: ops.squeeze(x, axis=0),
    "sort": lambda x: ops.sort(x, axis=0),
    "softmax": lambda x: ops.softmax(x, axis=(0, 1)),
    "pad": lambda x: ops.pad(x, [[1, 0], [0, 0]]),
    "tile": lambda x: ops.tile(x, (2, 1)),
    "transpose": lambda x: ops.transpose(x),
    "maximum": lambda x: ops.max(x, axis=0, keepdims=True),
    "negative axis": lambda x: ops.mean(x, axis=-2, keepdims=True),
}


@pytest.mark.parametrize("build", ACROSS.values(), ids=ACROSS)
def test_nothing_passes_from_one_sample_to_another(build):
    inputs = keras.Input(batch_shape=(1, 4)) if build is ACROSS["squeeze"] else keras.Input((4,))
    try:
        model = keras.Model(inputs, build(inputs))
    except Exception as error:  # of Keras, which cannot tell the shape
        pytest.skip(f"it is not built: {str(error)[:60]}")
    with pytest.raises(CannotBoundError, match="(sample|batch|has no known|normalises|splits)"):
        lip.certify(model, task="regression", check=False)


# --- nested models ---------------------------------------------------------------------------------------------------


def two_inputs(structure):
    """A model of two inputs, the second of which counts a hundred times."""
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    given = {"list": [first, second], "dict": {"first": first, "second": second}}[structure]
    return keras.Model(given, layers.Add()([first, layers.Rescaling(100.0)(second)]))


@pytest.mark.parametrize(
    ("structure", "call"),
    [
        ("list", lambda model, small, large: model([small, large])),
        ("list", lambda model, small, large: model((small, large))),
        ("list", lambda model, small, large: model({"second": large, "first": small})),
        ("dict", lambda model, small, large: model({"second": large, "first": small})),
    ],
    ids=["list", "tuple", "by name", "dict"],
)
def test_a_nested_model_gets_what_each_input_is_given(structure, call):
    model = model_of(lambda x, y: call(two_inputs(structure), x, layers.Rescaling(0.01)(y)), (4,), (4,))
    assert lip.certify(model).lipschitz_constant == pytest.approx(2**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("structure", "call"),
    [
        ("list", lambda model, x, y: model({"first": x, "second": y, "third": y})),
        ("list", lambda model, x, y: model({"a": x, "b": y})),
        ("dict", lambda model, x, y: model({"a": y, "b": x})),
        ("dict", lambda model, x, y: model([x, y])),
    ],
    ids=["one more", "other names", "other keys", "a list for a dict"],
)
def test_a_nested_model_called_with_another_structure(structure, call):
    try:
        model = model_of(lambda x, y: call(two_inputs(structure), x, y), (4,), (4,))
    except Exception as error:
        pytest.skip(f"Keras does not build it: {str(error)[:60]}")
    with pytest.raises(ValueError, match="(another structure|cannot be folded|structure of `inputs`|too many)"):
        lip.certify(model, check=False)


# --- what the gate relies on -----------------------------------------------------------------------------------------


def test_every_rule_says_what_it_covers():
    """A rule without a list of what it takes into account would let through what it does not know."""
    for kind, rule in _RULES.items():
        if not rule.built_in:
            continue
        assert rule.config is not None, kind
        assert rule.call is kind.call, kind
        if issubclass(kind, layers.Layer):
            known = {name for base in kind.__mro__ if "__init__" in vars(base) for name in _arguments(base)}
        else:
            known = _arguments(kind)
        # The lists are shared by several classes, but name no argument that is none of any of them.
        assert rule.config <= {*known, *_SHARED}, (kind, rule.config - known)


_SHARED = {
    *("alpha", "b", "threshold", "approximate", "x_min", "x_max", "axis", "keepdims", "initial", "activation"),
    *("max_value", "negative_slope", "data_format", "interpolation", "indices_or_sections", "num", "groups", "scale"),
    *("center", "rms_scaling", "epsilon", "lora_rank", "lora_alpha", "quantization_config", "noise_shape", "padding"),
}


def _arguments(kind):
    return set(inspect.signature(kind.__init__).parameters)


def test_an_argument_that_a_rule_does_not_know_is_refused(monkeypatch):
    rule = _RULES[layers.ReLU]
    monkeypatch.setitem(_RULES, layers.ReLU, dataclasses.replace(rule, config=rule.config - {"max_value"}))
    refused(lambda x: layers.ReLU(max_value=6.0)(x), "`max_value` is not known to its bound rule")
    clip = type(ops.clip(keras.KerasTensor((None, 4)), 0, 1)._keras_history.operation)
    monkeypatch.setitem(_RULES, clip, dataclasses.replace(_RULES[clip], config=frozenset({"x_min"})))
    refused(lambda x: ops.clip(x, 0.0, 1.0), "`x_max` is not known to its bound rule")


def test_errors_of_a_rule_are_refusals():
    refused(lambda x: layers.Lambda(lambda t: 2 * t, name="mine")(x), "'mine'.*keras.ops")
    refused(lambda x: layers.AdaptiveAveragePooling2D(2)(layers.Reshape((2, 2, 1))(x)) * np.ones((2, 2, 2)), "repeats")


def test_products_that_overflow_are_refused():
    build = lambda x: functools.reduce(lambda y, _: layers.Rescaling(1e38)(y), range(9), x)  # noqa: E731
    refused(build, "overflows")


def test_parts_of_a_split_are_bounded_like_slices(rng):
    dense = layers.Dense(12, use_bias=False)

    def build(x):
        first, *_ = ops.split(dense(x), 3, axis=-1)
        return first

    model = model_of(build)
    exact = np.linalg.norm(to_numpy(dense.kernel).astype("float64")[:, :4], 2)
    assert lip.certify(model).lipschitz_constant == pytest.approx(exact, rel=1e-6)
    unstacked = model_of(lambda x: ops.unstack(ops.reshape(dense(x), (-1, 3, 4)), axis=1)[0])
    assert lip.certify(unstacked).lipschitz_constant == pytest.approx(exact, rel=1e-6)


# --- equal logits ----------------------------------------------------------------------------------------------------


def test_what_is_left_of_a_tie_by_rounding_has_no_radius(rng):
    """Two branches that compute the same in exact arithmetic, in another order."""
    inputs = keras.Input((64,))
    first, second, third = layers.Dense(1), layers.Dense(1), layers.Dense(1)
    a, b = first(inputs), second(inputs)
    model = keras.Model(inputs, layers.Concatenate()([(a + b) + third(inputs), a + (b + third(inputs))]))
    x = rng.normal(size=(500, 64)).astype("float32")
    certificate = lip.certify(model)
    logits = model.predict(x, verbose=0)
    assert np.all(certificate.pair_constants[0, 1] > 0)
    assert np.all(certificate.radius(logits) < 1e-3)


# --- what a stranger found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [lambda layer: layer, layers.Activation, lambda layer: layers.Activation(layers.Activation(layer))]
)
def test_a_softmax_over_the_batch_inside_of_other_layers(wrap):
    refused(lambda x: layers.Dense(3, activation=wrap(layers.Softmax(axis=0)))(x), "normalises across samples")


@pytest.mark.parametrize(
    ("options", "weights"),
    [({"epsilon": 1e-46}, [1.0, 0.0, 0.0, 0.0]), ({"epsilon": 1e-30}, [1e25, 0.0, 0.0, 1e-30])],
    ids=["epsilon", "factor"],
)
def test_statistics_that_float32_does_not_hold(options, weights):
    layer = layers.BatchNormalization(**options)
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.set_weights([np.full(1, value) for value in weights])
    with pytest.raises(CannotBoundError, match="float32"):
        lip.certify(model, check=False)


def test_numbers_that_float32_does_not_hold():
    refused(lambda x: layers.Rescaling(7.2e-46)(x), "float32 does not hold")
    refused(lambda x: x / 2e-45, "float32 does not hold|not finite|only division")
    refused(lambda x: layers.Rescaling(1e42)(x), "not finite, in float32")


def test_the_default_of_training_in_a_models_own_call():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, inputs, training=True):
            outputs = self.dense(inputs)
            return outputs if training else 100.0 * outputs

    model = Own()
    model(np.zeros((1, 2), "float32"))
    norm = np.linalg.norm(to_numpy(model.dense.kernel))
    assert lip.certify(model, check=False).lipschitz_constant == pytest.approx(100 * norm, rel=1e-5)


def test_models_that_predict_something_else():
    class Own(keras.Model):
        def predict_step(self, data):
            return 100.0 * super().predict_step(data)

    inputs = keras.Input((4,))
    with pytest.raises(CannotBoundError, match="overrides `predict_step`"):
        lip.certify(Own(inputs, layers.Dense(3)(inputs)))


@pytest.mark.parametrize("dtype", ["complex64", "string"])
def test_inputs_that_are_no_real_numbers(dtype):
    inputs = keras.Input((4,), dtype=dtype)
    with pytest.raises(CannotBoundError, match=f"is of type {dtype}"):
        bound_graph(keras.Model(inputs, layers.Identity(dtype=dtype)(inputs)))


def test_output_names_that_collide():
    x = keras.Input((4,))
    names = [head.name for head in lip.certify(keras.Model(x, {"a": {"b": x[:, :2]}, "a/b": x[:, 2:]})).heads]
    assert names == ["output_0", "output_1"]
