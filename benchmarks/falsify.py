"""Graphs composed by somebody who wants to break a certificate: each must be refused with a reason, or be sound.

    KERAS_BACKEND=torch python benchmarks/falsify.py                                # 20,000 graphs: 20 minutes
    KERAS_BACKEND=torch python benchmarks/falsify.py --graphs 500 --family dtypes   # one kind of trick
    KERAS_BACKEND=torch python benchmarks/falsify.py --family dtypes --only 17      # that graph again, and its calls
    KERAS_BACKEND=torch python benchmarks/falsify.py --mutations                    # each fix taken out is found out

A graph is of honest layers and of one to three tricks: wrong names, constants among tensors, masks, dtypes, layers that
are shared, edited, or called in other ways. `certify` may refuse it by a `ValueError`, which for a `CannotBoundError`
names a layer. If it does not, inputs are searched for that move an output further than the certificate allows, that
change the answer within a sound radius, or that change the outputs of other samples of the batch. Graphs that Keras
does not build are drawn again, and those that it does not run are counted by themselves. Exit status 1 if a certificate
was broken, an error was not a `ValueError`, or a graph was refused that has no trick in it.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import gc
import hashlib
import inspect
import json
import logging
import math
import os
import pathlib
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

import deel_like_lip as lip
from deel_like_lip._keras import nodes
from deel_like_lip._radius_graph import radius_model
from deel_like_lip.bounds import rules

keras.config.disable_traceback_filtering()  # it takes a tenth of the time
logging.getLogger("tensorflow").setLevel(logging.ERROR)
Tensor = Any
Ways = dict[str, Callable[[], Any]]
Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]
EPSILON = 2.0**-24

# Few shapes, so that JAX compiles each operation once. A batch holds so many pairs of inputs.
COLUMN, VECTOR, NARROW, SEQUENCE, IMAGE = (1,), (4,), (5, 1), (5, 3), (4, 4, 2)
PAIRS = 96
PAIRS_OF_SINGLES = 10
# Outputs that are not finite, of inputs below 1e4, contradict a constant below this. Others may overflow.
ORDINARY = 1e6
HAS_CHECK = "check" in inspect.signature(lip.certify).parameters
KINDS = ("refused", "sound", "unsound", "plain error", "needless refusal", "cannot run")
FAILURES = KINDS[2:5]


class Outcome(Exception):  # noqa: N818 (not all of them are errors)
    """What became of a graph: one of `KINDS`, and why."""

    def __init__(self, kind: str, why: str = "", *, foreign: bool = False, undefined: bool = False) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why
        self.foreign = foreign  # refused by a `ValueError` of somebody else's code
        self.undefined = undefined  # outputs are not finite, which only computing can show


class Failure(NamedTuple):
    """A graph that has shown a fault."""

    number: int
    family: str
    kind: str
    tricks: str
    why: str
    command: str


class Report(NamedTuple):
    """Counts of outcomes by family, the failures, and how many refusals were errors of others' code."""

    counts: dict[str, dict[str, int]]
    failures: list[Failure]
    foreign: int
    seconds: float

    def total(self, kind: str) -> int:
        return sum(counts.get(kind, 0) for counts in self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        graphs = sum(map(self.total, KINDS))
        return {
            "graphs": graphs,
            **{kind: self.total(kind) for kind in KINDS},
            "share refused": round(self.total("refused") / max(graphs, 1), 4),
            "refused by an error of Keras or NumPy": self.foreign,
            "families": self.counts,
            "backend": keras.backend.backend(),
            "seconds": round(self.seconds, 1),
        }


# --- making graphs ---------------------------------------------------------------------------------------------------


class Maker:
    """A graph in the making: what its tricks draw from, the tensors that there are, and what is done afterwards."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.undo = contextlib.ExitStack()
        self.inputs: list[Tensor] = []
        self.tensors: list[Tensor] = []
        self.edits: list[Callable[[Any], Any]] = []
        self.notes: list[str] = []
        self.rounding: Literal["exact", "sound"] = "exact"
        self.options: dict[str, Any] = {"check": False} if HAS_CHECK else {}
        self.size = 1.0  # of the largest constant, for the rounding that is allowed
        self.honest = False  # whether a refusal is a fault
        self.model: Any = None

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def way(self, ways: Mapping[str, Callable[[], Any]]) -> Any:
        """Goes one of several ways, and notes which."""
        name = self.pick(*ways)
        self.notes.append(name)
        return ways[name]()

    def chance(self, probability: float) -> bool:
        return bool(self.rng.uniform() < probability)

    def array(self, *shape: int, size: float = 1.0) -> npt.NDArray[np.float32]:
        return (size * self.rng.normal(size=shape)).astype("float32")

    def constant(self, *shape: int, size: float | None = None) -> Any:
        """Returns an array, or a tensor of the backend."""
        size = self.pick(0.0, 1.0, 100.0) if size is None else size
        self.size = max(self.size, 4 * size)
        array = self.array(*shape, size=size)
        return array if self.chance(0.6) else ops.convert_to_tensor(array)

    def one(self, *makers: Callable[[], Any]) -> Any:
        """Returns what one of several functions makes."""
        return self.pick(*makers)()

    def set_later(self, thing: Any, attribute: str, value: Any) -> None:
        """Assigns an attribute when the whole model is there."""
        assign = object.__setattr__ if self.chance(0.2) else setattr
        self.edits.append(lambda model: assign(thing, attribute, value))

    @staticmethod
    def op_of(tensor: Tensor) -> Any:
        return tensor._keras_history.operation

    @staticmethod
    def nested(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies a layer or function within a model of its own."""
        inner = keras.Input(tuple(x.shape[1:]))
        return keras.Model(inner, function(inner))(x)

    def take(self, *shapes: Shape) -> Tensor:
        """Returns a tensor of one of some shapes: a new input, or one that was computed."""
        shape = self.pick(*shapes)
        if not self.inputs or (len(self.inputs) < 3 and self.chance(0.15)):
            self.inputs.append(keras.Input(shape))
            x = self.inputs[-1]
        else:
            x = self.reshaped(self.pick(*(self.tensors or self.inputs)), shape)
        for _ in range(self.pick(0, 0, 0, 1, 2)):
            x = self.step(x)
        return x

    def reshaped(self, x: Tensor, shape: Shape) -> Tensor:
        """Makes a tensor of another shape by honest layers."""
        if x.dtype != "float32":
            x = layers.Rescaling(1.0)(x)
        if tuple(x.shape[1:]) == shape:
            return x
        if len(x.shape) > 2:
            x = layers.Flatten()(x)
        return layers.Reshape(shape)(layers.Dense(math.prod(shape))(x))

    def step(self, x: Tensor) -> Tensor:
        """Adds an honest layer that keeps the shape."""
        grow = self.pick(*ANYWHERE, *BY_RANK.get(len(x.shape), []))
        return grow(x, self)

    def uneven(self, x: Tensor, units: int = 4) -> Tensor:
        """Adds a dense layer of which the columns have very different norms."""
        layer = layers.Dense(units, use_bias=False)
        y = layer(x)
        layer.set_weights([self.array(*layer.kernel.shape) * 10.0 ** self.rng.uniform(-2, 2, units)])
        return y

    def ask(self, function: Callable[[], Any]) -> Any:
        """Calls the library, and tells what its errors mean."""
        try:
            return function()
        except Outcome:
            raise
        except ValueError as error:
            raise refusal(error, self.model) from error
        except Exception as error:
            raise Outcome("plain error", short_trace(error)) from error

    def certify(self, model: Any, **options: Any) -> lip.Certificate:
        self.model = model
        return self.ask(lambda: lip.certify(model, rounding=self.rounding, **self.options, **options))

    def register(self, kind: type, constant: float) -> None:
        """Registers a rule for a class until the graph is done with."""
        rules = getattr(lip.bounds.rules, "_RULES", {})
        before = dict(rules)

        def restore() -> None:
            if hasattr(lip.bounds, "unregister_bound_rule") and kind in rules and kind not in before:
                lip.bounds.unregister_bound_rule(kind)
            rules.clear()
            rules.update(before)

        self.undo.callback(restore)
        self.ask(lambda: lip.bounds.register_bound_rule(kind)(lambda layer, input_shape: constant))

    def build(self, outputs: Any) -> Any:
        """Returns the model, with all that is edited afterwards."""
        model = keras.Model(self.inputs if len(self.inputs) > 1 else self.inputs[0], outputs)
        for edit in self.edits:
            edit(model)
        return model


def refusal(error: ValueError, model: Any) -> Outcome:
    """Returns whether a refusal says what it should: something, and where."""
    message = str(error).strip()
    if not message:
        return Outcome("plain error", f"a {type(error).__name__} without a reason")
    if isinstance(error, lip.bounds.CannotBoundError) and model is not None:
        quoted = " ".join(re.findall(r"'([^']*)'", message))
        if not re.search(r"(layer|model|output|input) '[^']+'", message) and not any(
            map(quoted.count, names_in(model))
        ):
            return Outcome("plain error", f"names no layer: {message}")
    package = str(pathlib.Path(lip.__file__).parent)
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Outcome("refused", f"{type(error).__name__}: {message}", foreign=not last.startswith(package))


def names_in(model: Any) -> set[str]:
    """Returns the names of all that is in a model."""
    names = {layer.name for layer in model._flatten_layers()}
    names.update(str(name) for name in getattr(model, "output_names", None) or [])
    graphs = [part for part in model._flatten_layers() if hasattr(part, "_operations")]
    return names | {operation.name for graph in graphs for operation in graph._operations}


def short_trace(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({pathlib.Path(where.filename).name}:{where.lineno})"


def _sorted_pairs(x: Tensor, m: Maker) -> Tensor:
    a, b = ops.split(x, 2, axis=-1)
    return ops.concatenate([ops.minimum(a, b), ops.maximum(a, b)], axis=-1)


Grow = Callable[[Tensor, Maker], Tensor]
ANYWHERE: list[Grow] = [
    lambda x, m: layers.ReLU()(x),
    lambda x, m: layers.LeakyReLU(float(m.rng.uniform(0, 2)))(x),
    lambda x, m: layers.Rescaling(float(m.rng.uniform(-2, 2)), 0.5)(x),
    lambda x, m: layers.Activation(m.pick("tanh", "relu", "softplus", "elu", "sigmoid"))(x),
    lambda x, m: layers.Dropout(0.5)(x),
    lambda x, m: ops.abs(x),
    lambda x, m: x * float(m.rng.uniform(-2, 2)),
    lambda x, m: layers.Add()([x, layers.Rescaling(0.5)(x)]),
    lambda x, m: ops.maximum(x, -x),
    lambda x, m: ops.flip(x, axis=-1),
    lambda x, m: m.nested(x, lambda y: layers.Rescaling(-1.5, 0.1)(layers.ReLU()(y))),
]
BY_RANK: dict[int, list[Grow]] = {
    2: [
        lambda x, m: layers.Dense(x.shape[-1])(x),
        lambda x, m: layers.Dense(x.shape[-1], activation="relu")(x),
        lambda x, m: lip.layers.SpectralDense(x.shape[-1])(x),
        lambda x, m: lip.layers.GroupSort2()(x) if x.shape[-1] % 2 == 0 else layers.ReLU()(x),
        lambda x, m: lip.layers.LayerCentering()(x),
        lambda x, m: lip.layers.BatchCentering()(x),
        lambda x, m: _sorted_pairs(x, m) if x.shape[-1] % 2 == 0 else layers.ReLU()(x),
    ],
    3: [
        lambda x, m: layers.Dense(x.shape[-1])(x),
        lambda x, m: layers.Conv1D(x.shape[-1], 3, padding="same")(x),
        lambda x, m: layers.MaxPooling1D(2, strides=1, padding="same")(x),
    ],
    4: [
        lambda x, m: layers.Conv2D(x.shape[-1], 3, padding="same")(x),
        lambda x, m: lip.layers.LipConv2D(x.shape[-1], 3, padding="same")(x),
        lambda x, m: layers.AveragePooling2D(2)(layers.UpSampling2D(2)(x)),
        lambda x, m: layers.UpSampling2D(2)(lip.layers.ScaledL2NormPooling2D(2)(x)),
        lambda x, m: layers.MaxPooling2D(3, strides=1, padding="same")(x),
    ],
}

# --- tricks ----------------------------------------------------------------------------------------------------------

# A trick returns the tensor that it has made, or several outputs of the model, or raises what became of the graph.
Trick = Callable[[Maker], Any]
TRICKS: dict[str, list[Trick]] = collections.defaultdict(list)


def trick(family: str) -> Callable[[Trick], Trick]:
    def register(function: Trick) -> Trick:
        TRICKS[family].append(function)
        return function

    return register


def times(factor: float) -> Callable[..., Tensor]:
    """Returns a method that multiplies, for what claims to be something else."""
    return lambda self, inputs, *others: factor * (inputs[0] if isinstance(inputs, (list, tuple)) else inputs)


@trick("honest")
def nothing(m: Maker) -> Tensor:
    m.honest = True
    x = m.take(VECTOR, SEQUENCE, IMAGE)
    for _ in range(m.pick(1, 2, 3)):
        x = m.step(x)
    return x


@trick("constants")
def part_of_a_concatenation(m: Maker) -> Tensor:
    h = m.uneven(m.take(VECTOR, VECTOR, SEQUENCE))
    if m.chance(0.7):
        h = layers.Rescaling(1.5)(h)
    rank = len(h.shape)
    c = m.constant(1, *h.shape[1:-1], m.pick(1, 2, 3))
    parts = m.pick([c, h], [c, h], [h, c], [c, h, c], [c, h, h])
    ways: Ways = {
        "ops.concatenate by position": lambda: ops.concatenate(parts, rank - 1),
        "ops.concatenate by keyword": lambda: ops.concatenate(xs=parts, axis=-1),
        "Concatenate": lambda: layers.Concatenate()(parts),
        "Concatenate by keyword": lambda: layers.Concatenate(axis=rank - 1)(inputs=parts),
        "ops.hstack": lambda: ops.hstack(parts),
    }
    y = m.way(ways)
    start = int(m.rng.integers(y.shape[-1]))
    return m.one(lambda: y, lambda: y[..., start : start + 1], lambda: ops.flip(y, axis=-1)[..., :2])


@trick("constants")
def part_of_a_combination(m: Maker) -> Tensor:
    x = m.uneven(m.take(VECTOR))
    c = m.constant(*m.pick((1, 4), (1, 4), (1, 4), (4,), (1, 1), (3, 4)))
    parts = m.pick([c, x], [x, c], [x, c, c], [c, x, x])
    a, b = parts[:2]
    layer = m.pick(layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply)
    op = m.pick(ops.add, ops.subtract, ops.maximum, ops.minimum, ops.multiply)
    ways: Ways = {
        layer.__name__: lambda: layer()(parts),
        f"{layer.__name__} by keyword": lambda: layer()(inputs=parts),
        "Subtract": lambda: layers.Subtract()([a, b]),
        "Dot": lambda: layers.Dot(axes=-1)([a, b]),
        f"ops.{op.__name__}": lambda: op(a, b),
        f"ops.{op.__name__} by keyword": lambda: op(x2=a, x1=b),
        "ops.stack": lambda: ops.stack([a, b], axis=1)[:, m.pick(0, 1)],
        "ops.average": lambda: ops.average(ops.stack([x, x], axis=1), axis=1, weights=np.array([9.0, -8.0])),
        "operators": lambda: m.one(lambda: c + x, lambda: x - c, lambda: x / 0.01, lambda: x @ m.array(4, 4)),
    }
    return m.way(ways)


@trick("large")
def large_constants(m: Maker) -> Tensor:
    """Numbers that cancel but for the rounding that they cause, which decides between two classes."""
    m.rounding = "sound"
    large = m.size = float(10 ** m.rng.uniform(4, 7))
    x = m.take(COLUMN)
    plus, minus = np.array([[large]], "float32"), np.array([[-large]], "float32")
    both = np.concatenate([plus, minus], axis=1)
    first, second = (
        functools.partial(
            layers.Dense, 1, kernel_initializer="ones", bias_initializer=keras.initializers.Constant(bias)
        )
        for bias in (large, -large)
    )
    ways: Ways = {
        "ops.concatenate": lambda: ops.concatenate([x, both], axis=1),
        "Concatenate": lambda: layers.Concatenate()([plus, x, minus]),
        "ops.stack": lambda: layers.Flatten()(ops.stack([plus, x, minus], axis=1)),
        "Add": lambda: layers.Add()([layers.Add()([x, plus]), minus]),
        "Average": lambda: layers.Rescaling(3.0)(layers.Average()([x, plus, minus])),
        "Subtract": lambda: layers.Subtract()([layers.Subtract()([x, plus]), minus]),
        "ops.add": lambda: ops.add(ops.add(plus, x), minus),
        "operators": lambda: (x + large) - large,
        "Rescaling": lambda: layers.Rescaling(1.0, -large)(layers.Rescaling(1.0, large)(x)),
        "biases": lambda: second()(first()(x)),
        "nested": lambda: m.nested(x, lambda y: ops.concatenate([y, both], axis=1)),
        "ops.maximum": lambda: ops.maximum(ops.add(x, plus), np.float32(-1.0)) - plus,
        "Maximum": lambda: layers.Maximum()([x + minus, minus - 1e3]) + plus,
        "ops.clip": lambda: ops.clip(x + large, 0.0, 1e8) - large,
        "ops.multiply": lambda: ops.multiply(x + large, np.float32(3.0)) - np.float32(3 * large),
    }
    y, head = m.way(ways), layers.Dense(2)
    kernel = np.stack([np.ones(y.shape[-1]), np.zeros(y.shape[-1])], axis=1)
    threshold = m.rng.normal() * 10.0 ** m.rng.uniform(-3, 0)
    z = head(y)
    head.set_weights([kernel, np.array([0, threshold])])
    return [z]


ACTIVATIONS = [name for name in dir(keras.activations) if name[0] != "_" and "serialize" not in name and name != "get"]


def impostor(m: Maker) -> Any:
    """Returns a function that is named like one of Keras, and is another."""
    name = m.pick("relu", "linear", "tanh", *ACTIVATIONS)
    body = m.pick(lambda x: 30 * ops.relu(x), lambda x: 30 * x, lambda x: ops.sin(30 * x), lambda x: ops.square(x))

    def named(function: Any, name: str = name, module: str = __name__) -> Any:
        function.__name__, function.__qualname__, function.__module__ = name, name, module
        return function

    steep = functools.partial(keras.activations.leaky_relu, negative_slope=40.0)
    layer = m.pick("ReLU", "LeakyReLU", "Activation")
    ways: Ways = {
        f"a function named {name}": lambda: named(lambda x: body(x)),
        f"a function named {name} of Keras's module": lambda: named(
            lambda x: body(x), name, "keras.src.activations.activations"
        ),
        f"an object named {name}": type(name, (), {"__name__": name, "__call__": lambda self, x: body(x)}),
        f"a partial named {name}": lambda: named(functools.partial(lambda factor, x: body(x) * factor, 2.0)),
        "a partial of leaky_relu": lambda: m.pick(steep, named(steep, "leaky_relu")),
        f"a layer named {layer}": type(layer, (layers.Layer,), {"call": lambda self, inputs: body(inputs)}),
        "a lambda": lambda: lambda x: body(x),
    }
    return m.way(ways)


@trick("activations")
def named_like_a_built_in(m: Maker) -> Tensor:
    f = impostor(m)
    x = m.take(m.pick(VECTOR, VECTOR, SEQUENCE, IMAGE))
    units = x.shape[-1]
    of_rank = {
        2: [
            (layers.EinsumDense, ("ab,bc->ac", units)),
            (lip.layers.SpectralDense, (units,)),
            (lip.layers.SandwichDense, (units,)),
        ],
        3: [(layers.Conv1D, (units, 1)), (lip.layers.LipConv1D, (units, 3)), (layers.SeparableConv1D, (units, 1))],
        4: [(layers.Conv2D, (units, 1)), (lip.layers.LipConv2D, (units, 3)), (layers.DepthwiseConv2D, (1,))],
    }
    kind, arguments = m.pick((layers.Dense, (units,)), (layers.Activation, ()), *of_rank[len(x.shape)])
    where = m.pick("made with it", "nested", "in a Sequential", "assigned", "assigned later")
    m.notes.append(f"{kind.__name__}, {where}")
    layer = kind(*arguments, activation="relu" if "assigned" in where else f)
    if where == "assigned":
        layer.activation = f
    elif where == "assigned later":
        m.set_later(layer, "activation", f)
    elif where == "nested":
        return m.nested(x, layer)
    elif where == "in a Sequential":
        return keras.Sequential([keras.Input(tuple(x.shape[1:])), layer])(x)
    return layer(x)


@trick("classes")
def class_named_like_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    a, b = ops.split(x, 2, axis=-1)
    is_op = m.chance(0.5)
    module = m.pick("user", "keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.layers.core.dense")
    m.notes.append(f"{'an op' if is_op else 'a layer'} of {module}")
    state = {"axis": -1, "negative_slope": 0.1, "alpha": 1.0, "shift": 1, "__module__": module, "call": times(100.0)}

    def made(name: str, *parts: Tensor) -> Tensor:
        if not is_op:
            return type(name, (layers.Layer,), state)()(list(parts) if len(parts) > 1 else parts[0])
        body = {**state, "compute_output_spec": lambda self, *xs: keras.KerasTensor(xs[0].shape)}
        return type(name, (keras.Operation,), body)()(*parts)

    ops_of_one = ["Relu", "Tanh", "Absolute", "Sort", "Negative", "LeakyRelu", "Flip", "Copy", "Sin", "Sigmoid"]
    layers_of_one = ["Dense", "Rescaling", "ReLU", "Flatten", "Identity", "Dropout", "InputLayer", "Sequential"]
    single = m.pick(*(ops_of_one if is_op else layers_of_one))
    several = m.pick("Add", "Average", "Subtract", "Minimum", "Maximum", "Concatenate")
    join = m.pick(layers.Concatenate(), lambda parts: ops.concatenate(parts, axis=-1))
    ways: Ways = {
        "a pair with Minimum": lambda: join([made("Minimum", a, b), ops.maximum(a, b)]),
        "a pair with Maximum": lambda: join([layers.Minimum()([a, b]), made("Maximum", b, a)]),
        f"named {single}": lambda: made(single, x),
        f"named {several}": lambda: made(several, a, b),
        "a subclass of an op": lambda: type("Flip", (type(m.op_of(ops.flip(x))),), state)(axis=-1)(x),
    }
    return m.way(ways)


@trick("classes")
def subclass_of_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    one: list[Any] = [
        (layers.ReLU, ()),
        (layers.Flatten, ()),
        (lip.layers.GroupSort2, ()),
        (lip.layers.LayerCentering, ()),
    ]
    base, arguments = m.pick((layers.Dense, (4,)), (layers.Rescaling, (1.0,)), (lip.layers.SpectralDense, (4,)), *one)
    method = m.pick("call", "__call__", "quantized_call", "compute_output_shape", "kernel")
    own = getattr(base, method, lambda self, x: x)
    body: dict[str, Any] = {method: lambda self, *inputs, **options: 100 * own(self, *inputs, **options)}
    if method == "compute_output_shape":
        body = {method: lambda self, *inputs, **options: own(self, *inputs, **options)}
    elif method == "kernel":
        body = {method: property(lambda self: 100 * self._kernel)}
    if m.chance(0.7):
        body["__module__"] = base.__module__
    m.notes.append(f"{base.__name__} with its own {', '.join(body)}")
    return type(base.__name__, (base,), body)(*arguments)(x)


@trick("classes")
def subclass_of_a_model(m: Maker) -> Tensor:
    x, inner = m.take(VECTOR), keras.Input(VECTOR)
    method, module = m.pick("call", "__call__"), m.pick("user", "keras.src.models.model")
    base = m.pick(keras.Sequential, keras.Model, lip.Sequential, lip.Model)
    own = getattr(base, method)
    body = {method: lambda self, *inputs, **options: 100 * own(self, *inputs, **options), "__module__": module}
    m.notes.append(f"{base.__name__} with its own {method} of {module}")
    kind = type(base.__name__, (base,), body)
    layer = layers.Dense(4)
    return (kind([inner, layer]) if base.__name__ == "Sequential" else kind(inner, layer(inner)))(x)


@trick("classes")
def rule_over_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    kind, arguments = m.pick((layers.Dense, (4,)), (layers.Rescaling, (3.0,)), (layers.ReLU, ()), (layers.Identity, ()))
    m.notes.append(f"a rule for {kind.__name__}")
    y = kind(*arguments)(x)
    m.register(m.pick(kind, kind, lip.layers.SpectralDense, type(m.op_of(ops.abs(x)))), 1e-6)
    return y


SIMPLE = ["Flatten", "Identity", "ReLU", "LeakyReLU", "BatchNormalization", "LayerNormalization", "GaussianNoise"]
OF_SEQUENCES = ["GlobalMaxPooling1D", "GlobalAveragePooling1D", "MaxPooling1D", "Cropping1D", "ZeroPadding1D"]
ARGUMENTS: dict[str, Any] = {"Dense": 3, "Rescaling": 1, "Reshape": (-1,), "Dropout": 0.5, "Activation": "linear"}


@trick("dtypes")
def dtype_in_the_middle(m: Maker) -> Tensor:
    m.rounding = m.pick("exact", "exact", "sound")
    d = m.pick("int32", "uint8", "int8", "bool", "int64", "float16", "bfloat16", "float64", "mixed_float16")
    plain = d.replace("mixed_", "")
    m.notes.append(d)
    x = m.take(m.pick(COLUMN, VECTOR, SEQUENCE))
    shape = tuple(x.shape[1:])
    slow: dict[str, Any] = {"dtype": d, **({"autocast": False} if m.chance(0.2) else {})}
    if m.chance(0.2):
        x = m.pick(layers.Flatten, layers.Identity)(dtype=m.pick(d, "int32", "float16"))(x)
    name = m.pick(*SIMPLE, *ARGUMENTS, *(OF_SEQUENCES if len(shape) == 2 else []))
    arguments = [ARGUMENTS[name]] if name in ARGUMENTS else [0.5] if name == "GaussianNoise" else []
    merge = m.pick(layers.Add, layers.Maximum, layers.Concatenate, layers.Average)
    inner = keras.Input(shape, dtype=plain)

    def activation() -> Any:
        kind, own = m.pick((layers.LeakyReLU, (0.5,)), (layers.ReLU, ()), (layers.Activation, ("relu",)))
        return kind(*own, dtype=d)

    def later(layer: Any) -> Tensor:
        m.set_later(layer, "dtype_policy", d)
        return layer(x)

    ways: Ways = {
        name: lambda: getattr(layers, name)(*arguments, **slow)(x),
        f"{name} again": lambda: getattr(layers, name)(*arguments, dtype=d)(x),
        merge.__name__: lambda: merge(**slow)([x, x]),
        "ops.cast": lambda: ops.cast(ops.cast(x, plain), "float32"),
        "nested input": lambda: keras.Model(inner, m.one(layers.Flatten, lambda: layers.Dense(2))(inner))(x),
        "nested Sequential": lambda: keras.Sequential([inner, layers.Dense(2)])(x),
        "activation": lambda: layers.Dense(shape[-1], activation=activation())(x),
        "activation of SpectralDense": lambda: lip.layers.SpectralDense(shape[-1], activation=activation())(x),
        "activation of Activation": lambda: layers.Activation(activation())(x),
        "policy set later": lambda: later(m.one(lambda: layers.Rescaling(1.5), lambda: layers.Dense(4), layers.ReLU)),
        "SpectralDense": lambda: lip.layers.SpectralDense(4, **slow)(x),
        "LayerCentering": lambda: lip.layers.LayerCentering(**slow)(x),
        "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3, **slow))(x),
    }
    y = m.way(ways)
    return layers.Rescaling(1.0)(y) if y.dtype != "float32" or m.chance(0.5) else y


@trick("dtypes")
def dtype_of_the_input(m: Maker) -> Tensor:
    x = keras.Input(VECTOR, dtype=m.pick("int32", "uint8", "bool", "float16", "bfloat16", "float64"))
    m.notes.append(f"an input of {x.dtype}")
    m.inputs.append(x)
    return m.one(lambda: layers.Dense(4), layers.Flatten, lambda: layers.Rescaling(0.5), layers.ReLU)(x)


@trick("arguments")
def masks(m: Maker) -> Tensor:
    values = m.pick([1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0])
    array = np.array([values], m.pick("float32", "bool"))
    x, mask = m.take(SEQUENCE), m.pick(array, array, ops.convert_to_tensor(array), None)
    if mask is None:
        mask = keras.Input((5,), dtype="bool")
        m.inputs.append(mask)
    whole = np.repeat(array[:, :, None], 3, axis=2)
    pool, distributed = layers.GlobalAveragePooling1D, functools.partial(layers.TimeDistributed, layers.Dense(3))
    inner = m.pick(pool, layers.BatchNormalization)

    def model() -> Any:
        y = keras.Input(SEQUENCE)
        return keras.Model(y, inner()(y))

    ways: Ways = {
        "GlobalAveragePooling1D by position": lambda: pool()(x, mask),
        "GlobalAveragePooling1D by keyword": lambda: pool()(x, mask=mask),
        "GlobalAveragePooling1D, all by keyword": lambda: pool()(inputs=x, mask=mask),
        "Masking": lambda: inner()(layers.Masking()(x)),
        "Softmax by position": lambda: layers.Softmax()(x, whole),
        "Softmax by keyword": lambda: layers.Softmax(axis=1)(x, mask=whole),
        "nested by position": lambda: model()(x, None, mask),
        "nested by keyword": lambda: model()(x, mask=mask),
        "inside of a nested model": lambda: m.nested(x, lambda y: pool()(y, array)),
        "Sequential by keyword": lambda: keras.Sequential([keras.Input(SEQUENCE), inner()])(x, mask=mask),
        "TimeDistributed by position": lambda: distributed()(x, False, mask),
        "TimeDistributed by keyword": lambda: distributed()(x, mask=mask),
        "BatchNormalization by position": lambda: layers.BatchNormalization()(x, False, mask),
        "BatchNormalization in training": lambda: layers.BatchNormalization()(x, training=True, mask=mask),
    }
    return m.way(ways)


@trick("arguments")
def training(m: Maker) -> Tensor:
    value = m.pick(True, True, 1, np.bool_(True), np.array(True), ops.convert_to_tensor(True), "yes")
    x = m.take(VECTOR, SEQUENCE)
    inner = keras.Input(tuple(x.shape[1:]))
    noises = [(layers.Dropout, (0.5,)), (layers.GaussianNoise, (5.0,)), (layers.GaussianDropout, (0.5,))]
    normalizations = [
        (layers.BatchNormalization, ()),
        (lip.layers.BatchCentering, ()),
        (lip.layers.LipBatchNormalization, ()),
    ]
    kind, arguments = m.pick(*noises, *normalizations, (layers.AlphaDropout, (0.5,)))
    own = kind(*arguments)
    m.notes.append(f"{kind.__name__}, training={value!r}")
    ways: Ways = {
        "by position": lambda: own(x, value),
        "by keyword": lambda: own(x, training=value),
        "all by keyword": lambda: own(inputs=x, training=value),
        "nested by position": lambda: keras.Model(inner, own(inner))(x, value),
        "nested by keyword": lambda: keras.Model(inner, own(inner))(x, training=value),
        "inside of a nested model": lambda: keras.Model(inner, own(inner, training=value))(x),
        "a Sequential by keyword": lambda: keras.Sequential([inner, own])(x, training=value),
        "a Sequential by position": lambda: keras.Sequential([inner, own])(x, value),
        "TimeDistributed": lambda: layers.TimeDistributed(own)(x, value),
    }
    return m.way(ways)


@trick("broadcasting")
def more_values_than_the_shape_shows(m: Maker) -> Tensor:
    n = m.pick(4, 4, 9)
    x = m.take(m.pick(COLUMN, COLUMN, COLUMN, NARROW))
    c = m.array(*m.pick((n,), (n,), (1, n), (n, 1), (1, 1, n), (5, n)))
    c = np.abs(c) if m.chance(0.6) else c
    if m.chance(0.3):
        c = ops.convert_to_tensor(c)
    of_two = m.pick(ops.maximum, ops.minimum, ops.add, ops.subtract, ops.multiply, ops.divide)
    of_one = m.pick(ops.leaky_relu, ops.elu, ops.celu, ops.squareplus, ops.soft_shrink, ops.hard_shrink)
    kind, attribute = m.pick((layers.LeakyReLU, "negative_slope"), (layers.ELU, "alpha"), (layers.ReLU, "max_value"))

    def edited() -> Tensor:
        layer = kind()
        m.set_later(layer, attribute, c)
        return layer(x)

    ways: Ways = {
        "ops.clip": lambda: ops.clip(x, c * 0 - 9.0, c * 0 + 9.0),
        "ops.clip of one array": lambda: ops.clip(x, -9.0, c * 0 + 9.0),
        "ops.clip by keyword": lambda: ops.clip(x, x_max=c + 9, x_min=-9.0),
        f"ops.{of_two.__name__}": lambda: of_two(x, c),
        f"ops.{of_two.__name__} by keyword": lambda: of_two(x2=x, x1=c),
        f"ops.{of_one.__name__}": lambda: of_one(x, c),
        f"{kind.__name__}.{attribute}": edited,
        "Rescaling by an offset": lambda: layers.Rescaling(1.0, c)(x),
        "Rescaling by a factor": lambda: layers.Rescaling(np.asarray(c).tolist())(x),
        "Normalization": lambda: layers.Normalization(mean=np.ones(n), variance=np.ones(n))(x),
        "Add": lambda: layers.Add()([x, layers.Dense(n)(x)]),
        "Maximum": lambda: layers.Maximum()([x, ops.repeat(x, n, axis=-1)]),
    }
    y = m.way(ways)
    return m.one(lambda: y, lambda: ops.sum(y, axis=-1, keepdims=True), lambda: layers.Activation("tanh")(y))


@trick("shared")
def shared_on_another_shape(m: Maker) -> Any:
    steep = keras.initializers.RandomUniform(1.0, 3.0)
    vectors, sequences = (VECTOR, COLUMN), (SEQUENCE, NARROW)
    four, three = np.arange(1, 5, dtype="float32"), np.arange(1, 4, dtype="float32")
    einsum = functools.partial(layers.EinsumDense, kernel_initializer=steep)
    ways: Ways = {
        "EinsumDense": lambda: (sequences, einsum("abc,cd->abd", (None, 2))),
        "EinsumDense with dots": lambda: (sequences, einsum("...c,cd->...d", (None, 2))),
        "EinsumDense of vectors": lambda: (vectors, einsum("ab,bc->ac", (3,))),
        "Dense": lambda: (vectors, layers.Dense(4, kernel_initializer=steep)),
        "Dense of another rank": lambda: ((VECTOR, (5, 4)), layers.Dense(3)),
        "PReLU": lambda: (vectors, layers.PReLU(alpha_initializer=steep)),
        "PReLU of sequences": lambda: (sequences, layers.PReLU(alpha_initializer=steep, shared_axes=[1])),
        "Rescaling": lambda: (vectors, layers.Rescaling(four)),
        "Rescaling by an offset": lambda: (sequences, layers.Rescaling(1.0, three)),
        "Normalization": lambda: (vectors, layers.Normalization(mean=np.ones(4), variance=np.ones(4))),
        "LayerNormalization": lambda: (sequences, layers.LayerNormalization(epsilon=0.1)),
        "GroupNormalization": lambda: (vectors, layers.GroupNormalization(1, epsilon=0.1)),
        "BatchNormalization": lambda: (vectors, layers.BatchNormalization()),
        "Conv1D": lambda: ((SEQUENCE, (7, 3)), layers.Conv1D(2, 3)),
        "LayerCentering": lambda: (sequences, lip.layers.LayerCentering()),
        "SpectralDense": lambda: (vectors, lip.layers.SpectralDense(4)),
    }
    (wide, narrow), layer = m.way(ways)
    a, c = keras.Input(wide), keras.Input(narrow)
    m.inputs += [a, c] if m.chance(0.5) else [c, a]
    outputs = [layer(a), layer(c)]
    deep = m.pick(None, 0, 1)  # which of both comes first in the graph, where the order is that of depth
    for _ in range(3 if deep is not None else 0):
        outputs[deep] = layers.Rescaling(1.0)(outputs[deep])
    return [layers.Rescaling(m.pick(0.0, 0.0, 1.0))(outputs[0]), outputs[1]]


@trick("state")
def statistics_that_are_not_used(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    spread = m.pick(0.01, 60.0)

    def adapted(**options: Any) -> Any:
        layer = layers.Normalization(**options)
        layer.adapt(m.array(64, 4, size=m.pick(0.01, 60.0)) + 1)
        return layer

    made: Ways = {
        "adapted": adapted,
        "inverted": lambda: adapted(invert=True),
        "not adapted": layers.Normalization,
        "given": lambda: layers.Normalization(mean=np.ones(4), variance=np.ones(4)),
    }
    layer = m.way(made)
    y = layer(x)
    edits: dict[str, Callable[[Any], Any]] = {
        "set_weights": lambda model: layer.set_weights(adapted().get_weights()),
        "set_weights of the model": lambda model: model.set_weights([weight * 0 + 9 for weight in model.get_weights()]),
        "variance": lambda model: setattr(layer, "variance", ops.convert_to_tensor(np.full((1, 4), 1e-4, "float32"))),
        "adapt_variance": lambda model: layer.adapt_variance.assign([1e4] * 4),
        "adapted later": lambda model: layer.adapt(m.array(64, 4, size=spread)),
        "invert": lambda model: setattr(layer, "invert", not layer.invert),
    }
    name = m.pick(*edits)
    m.notes.append(name)
    m.edits.append(edits[name])
    return y


def steep(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return inputs * np.float32(50.0)


def jagged(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return ops.sin(inputs * np.float32(50.0))


def _fifty(*shape: int) -> Any:
    return ops.convert_to_tensor(np.full(shape, 50.0, "float32"))


# Layers with their arguments, and what is assigned to their attributes when the model is there.
EDITS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (layers.Rescaling, {"scale": 1.0}, {"scale": 50.0, "offset": 1e6, "call": steep}),
    (layers.Dense, {"units": 3}, {"call": jagged, "activation": steep, "units": 7, "bias": None}),
    (layers.Dense, {"units": 3}, {"activation": keras.activations.gelu, "_kernel": _fifty(3, 3)}),
    (layers.ReLU, {}, {"negative_slope": 50.0, "threshold": 3.0, "max_value": 0.1, "__call__": steep}),
    (layers.LeakyReLU, {}, {"negative_slope": 50.0, "compute_output_spec": steep}),
    (layers.ELU, {}, {"alpha": 50.0}),
    (layers.Activation, {"activation": "tanh"}, {"activation": keras.activations.silu}),
    (layers.Softmax, {}, {"axis": 0, "call": steep}),
    (layers.Permute, {"dims": (1, 2)}, {"dims": (2, 1)}),
    (layers.Dropout, {"rate": 0.1}, {"rate": 0.9, "call": jagged}),
    (layers.Flatten, {}, {"data_format": "channels_first"}),
    (layers.Reshape, {"target_shape": (15,)}, {"_resolved_target_shape": (5, 3), "target_shape": (3, 5)}),
    (layers.Identity, {}, {"call": steep}),
    (layers.BatchNormalization, {"epsilon": 1.0}, {"epsilon": 1e-9, "gamma": _fifty(3), "scale": False, "axis": 0}),
    (layers.LayerNormalization, {"epsilon": 1.0}, {"epsilon": 1e-6, "axis": [0, 1, 2]}),
    (layers.Conv1D, {"filters": 3, "kernel_size": 2}, {"strides": (2,), "dilation_rate": (2,), "padding": "same"}),
    (layers.AveragePooling1D, {"pool_size": 2, "padding": "same"}, {"pool_size": (1,), "strides": (1,)}),
    (layers.MaxPooling1D, {"pool_size": 3}, {"strides": (1,), "padding": "same"}),
    (layers.UpSampling1D, {"size": 2}, {"size": 3}),
    (layers.Cropping1D, {"cropping": 1}, {"cropping": (0, 0)}),
    (layers.GlobalAveragePooling1D, {}, {"keepdims": True, "call": steep}),
    (lip.layers.SpectralDense, {"units": 3}, {"activation": steep, "call": jagged, "k_coef_lip": 50.0, "bias": None}),
    (lip.layers.FullSort, {}, {"call": steep, "k_coef_lip": 50.0, "fold": lambda: lambda inputs: inputs * 0.01}),
    (lip.layers.LayerCentering, {}, {"axis": (0,), "call": steep}),
    (lip.layers.LipConv1D, {"filters": 3, "kernel_size": 3}, {"strides": (1,), "padding": "valid", "call": jagged}),
]


@trick("state")
def edited_attributes(m: Maker) -> Tensor:
    kind, options, edits = m.pick(*EDITS)
    attribute, x = m.pick(*edits), m.take(SEQUENCE)
    m.notes.append(f"{kind.__name__}.{attribute}")
    layer = kind(**options)
    m.set_later(layer, attribute, edits[attribute])
    return layer(x)


@trick("state")
def edited_otherwise(m: Maker) -> Tensor:
    x, inner = m.take(VECTOR), keras.Input(VECTOR)
    layer = m.one(lambda: layers.Dense(4), layers.BatchNormalization, layers.PReLU, lambda: lip.layers.SpectralDense(4))
    model = keras.Sequential([inner, layer]) if m.chance(0.5) else keras.Model(inner, layer(inner))
    other = type("ReLU", (layers.ReLU,), {"call": times(50.0)})

    def edited(y: Tensor, attribute: str, value: Any, of: Any = None) -> Tensor:
        m.set_later(of or m.op_of(y), attribute, value)
        return y

    def spoil(model: Any) -> None:
        weight = m.pick(*layer.weights)
        weight.assign(np.full(weight.shape, m.pick(np.nan, np.inf)))

    if m.chance(0.2):
        m.notes.append("NaN or infinite weights")
        m.edits.append(spoil)
        return m.one(lambda: layer(x), lambda: model(x))
    ways: Ways = {
        "__class__": lambda: edited(layers.ReLU()(x), "__class__", m.pick(other, layers.Identity)),
        "call of a nested model": lambda: edited(model(x), "call", steep, model),
        "a layer of a nested model": lambda: edited(model(x), "call", steep, layer),
        "negative_slope of an op": lambda: edited(ops.leaky_relu(x), "negative_slope", 50.0),
        "axis of a softmax": lambda: edited(ops.softmax(x), "axis", 0),
        "axis of a sort": lambda: edited(ops.sort(x), "axis", 0),
        "axis of a flip": lambda: edited(ops.flip(x, axis=-1), "axis", 0),
        "axis of a roll": lambda: edited(ops.roll(x, 1, axis=1), "axis", 0),
        "x_max of a clip": lambda: edited(ops.clip(x, -1.0, 1.0), "x_max", np.full(4, 5.0, "float32")),
        "call of an op": lambda: edited(ops.abs(x), "call", steep),
        "ord of a norm": lambda: edited(ops.norm(x, axis=-1, keepdims=True), "ord", 1),
    }
    if m.chance(0.1):
        m.notes.append("call of the whole model")
        m.edits.append(lambda model: setattr(model, "call", lambda x, **kwargs: keras.tree.flatten(x)[0] * 50.0))
        return layer(x)
    return m.way(ways)


def _net(*between: Any) -> Any:
    return keras.Sequential([keras.Input(VECTOR), *between, layers.Dense(3)])


def _two_inputs(*, swapped: bool = False, names: str = "", flip: bool = False) -> Any:
    a, b = keras.Input(VECTOR, name="a"), keras.Input(VECTOR, name="b")
    outputs = [layers.Dense(3)(layers.Rescaling(0.01)(a)), layers.Dense(3)(layers.Rescaling(10.0)(b))]
    outputs = outputs[::-1] if flip else outputs
    return keras.Model([b, a] if swapped else [a, b], dict(zip(names, outputs, strict=True)) if names else outputs)


def _convolutional(**options: Any) -> Any:
    return keras.Sequential([keras.Input(IMAGE), layers.Conv2D(3, 3, **options), layers.GlobalAveragePooling2D()])


@trick("stale")
def certificate_of_another_model(m: Maker) -> None:
    def functional(function: Callable[[Tensor], Tensor]) -> Any:
        x = keras.Input(VECTOR)
        return keras.Model(x, layers.Dense(3)(function(x)))

    def rescaled(factor: float) -> Any:
        return functional(lambda x: m.nested(x, layers.Rescaling(factor)))

    scale, dense, batch = layers.Rescaling, layers.Dense, layers.BatchNormalization
    pairs: Ways = {
        "one more Rescaling": lambda: (_net(), _net(scale(100.0))),
        "another Rescaling": lambda: (_net(scale(1.0)), _net(scale(100.0))),
        "another activation": lambda: (_net(dense(4, "sigmoid")), _net(dense(4, "selu"))),
        "another layer": lambda: (_net(layers.ReLU()), _net(layers.LeakyReLU(30.0))),
        "one more ReLU": lambda: (_net(), _net(layers.ReLU())),
        "an op's argument": lambda: (functional(lambda x: x * 2.0), functional(lambda x: x * 20.0)),
        "an op's array": lambda: (functional(lambda x: x * np.ones(4)), functional(lambda x: x * np.full(4, 9.0))),
        "another op": lambda: (functional(ops.sort), functional(lambda x: ops.flip(x, axis=-1))),
        "inside of a nested model": lambda: (rescaled(1.0), rescaled(50.0)),
        "inputs swapped": lambda: (_two_inputs(), _two_inputs(swapped=True)),
        "outputs swapped": lambda: (_two_inputs(), _two_inputs(flip=True)),
        "names of heads swapped": lambda: (_two_inputs(names="pq"), _two_inputs(names="qp")),
        "names and heads swapped": lambda: (_two_inputs(names="pq"), _two_inputs(names="pq", flip=True)),
        "another stride": lambda: (_convolutional(strides=2), _convolutional(strides=1)),
        "another padding": lambda: (_convolutional(), _convolutional(padding="same")),
        "another epsilon": lambda: (_net(batch(epsilon=1.0)), _net(batch(epsilon=1e-3))),
        "our layers": lambda: (_net(lip.layers.FullSort()), _net(lip.layers.FullSort(k_coef_lip=50.0))),
    }
    one, two = m.way(pairs)
    two.set_weights(one.get_weights())
    certificate = m.certify(one)
    inputs = [m.array(8, *tensor.shape[1:]) for tensor in two.inputs]
    labels = [np.zeros(8, int) for _ in two.outputs]
    data = (inputs if len(inputs) > 1 else inputs[0], labels if len(labels) > 1 else labels[0])
    m.model = two
    checks: Ways = {
        "certified_accuracy": lambda: lip.certified_accuracy(two, data, [0.1], certificate=certificate),
        "verify": lambda: certificate.verify(two),
    }
    m.ask(lambda: m.way(checks))
    raise Outcome("unsound", "the certificate of another model was accepted")


@trick("served")
def radii_of_extreme_inputs(m: Maker) -> None:
    """The radii that go along with an exported model, on a runtime that makes of infinities and NaN what it likes."""
    m.rounding = m.pick("exact", "sound")
    hidden = layers.Dense(8, activation=m.pick("hard_tanh", "relu", "relu6"))
    model = keras.Sequential([keras.Input(VECTOR), hidden, layers.Dense(m.pick(1, 3))])
    limits = m.pick(None, None, (-1e30, 1e30), (-3e38, 3e38), (0.0, 1.0))
    options: dict[str, Any] = {"input_range": limits} if limits else {}
    if m.chance(0.3):
        options["input_scale"] = float(10.0 ** m.rng.uniform(-30, 30))
    certificate = m.certify(model, **options)
    plain = m.ask(lambda: lip.vanilla_model(model))
    served = m.ask(lambda: radius_model(plain, certificate))
    scales = 10.0 ** m.rng.uniform(-45, 38, (64, 1))
    inputs = np.clip(m.array(64, 4) * scales, -3.4e38, 3.4e38).astype("float32")
    inputs[:3] = np.array([[0.0], [np.nan], [np.inf]])
    inputs[3:6, 0] = np.nan, np.inf, 3.4e38
    logits = ops.convert_to_numpy(plain(inputs))
    own = m.ask(lambda: certificate.radius(logits, inputs=inputs))
    with hostile_runtime(m):
        radii = ops.convert_to_numpy(served([inputs, logits])["radius"]).astype("float64")
    for radius, true, sample in zip(radii, own, inputs, strict=True):
        if not (radius >= 0 and math.isfinite(radius)) or radius > true * (1 + 1e-9):
            raise Outcome("unsound", f"served the radius {radius} for {sample.tolist()}, by the certificate {true}")
    raise Outcome("sound")


@contextlib.contextmanager
def hostile_runtime(m: Maker) -> Iterator[None]:
    """Computes as some runtimes do: roots of infinity are NaN, and extrema keep either operand where one is NaN."""
    backend = keras.src.backend.numpy
    root = backend.sqrt

    def replaced(own: Any, second: bool) -> Any:
        def extremum(a: Any, b: Any) -> Any:
            a, b = keras.src.backend.convert_to_tensor(a), keras.src.backend.convert_to_tensor(b)
            undefined = backend.logical_or(backend.isnan(a), backend.isnan(b))
            return backend.where(undefined, b if second else a, own(a, b))

        return extremum

    def square_root(x: Any) -> Any:
        return backend.where(backend.isfinite(x), root(x), np.float32(np.nan))

    with (
        mock.patch.object(backend, "maximum", replaced(backend.maximum, m.chance(0.5))),
        mock.patch.object(backend, "minimum", replaced(backend.minimum, m.chance(0.5))),
        mock.patch.object(backend, "sqrt", square_root),
    ):
        yield


@trick("signs")
def outputs_of_one_sign(m: Maker) -> None:
    x = keras.Input(VECTOR)
    m.inputs.append(x)
    units = m.pick(1, 1, 3)
    logit = layers.Dense(units)(x)
    task: dict[str, Any] = {"task": "multilabel"} if units > 1 or m.chance(0.2) else {}
    if m.chance(0.25):
        m.honest = True
        both_signs: Ways = {
            "an offset": lambda: layers.Rescaling(1.0, -0.25)(layers.Activation("sigmoid")(logit)),
            "tanh": lambda: layers.Activation("tanh")(logit),
            "a difference": lambda: layers.Subtract()([layers.ReLU()(logit), layers.ReLU()(-logit)]),
            "ops.maximum": lambda: ops.maximum(logit, -1.0),
            "LeakyReLU": lambda: layers.Flatten()(layers.LeakyReLU(0.1)(logit)),
        }
        m.certify(m.build(m.way(both_signs)), **task)
        raise Outcome("sound")
    names = ["sigmoid", "softplus", "relu", "relu6", "hard_sigmoid", "sparse_sigmoid", "softmax", "log_sigmoid"]
    name, op = m.pick(*names), m.pick(ops.abs, ops.relu, ops.softplus, ops.sigmoid, ops.log_sigmoid, ops.relu6)
    one_sign: Ways = {
        f"Dense of {name}": lambda: layers.Dense(units, activation=name)(x),
        f"Activation of {name}": lambda: layers.Activation(name)(logit),
        f"ops.{op.__name__}": lambda: op(logit),
        "ReLU": lambda: layers.ReLU(m.pick(None, 3.0))(logit),
        "ops.norm": lambda: ops.norm(layers.Reshape((units, 4))(layers.Dense(4 * units)(x)), axis=-1),
        "ops.maximum": lambda: ops.maximum(logit, m.pick(0.0, 2.0)),
        "Maximum": lambda: layers.Maximum()([logit, layers.Activation("sigmoid")(logit)]),
        "ops.maximum of both signs": lambda: ops.maximum(logit, -logit),
        "ops.clip": lambda: ops.clip(logit, 0.0, 5.0),
        "a negative LeakyReLU": lambda: layers.LeakyReLU(-1.0)(logit),
        "Abs": lambda: lip.layers.Abs()(logit),
    }
    y = m.way(one_sign)
    disguises: dict[str, Callable[[Tensor], Tensor]] = {
        "Reshape": lambda y: layers.Reshape((units,))(y),
        "Flatten": lambda y: layers.Flatten()(y),
        "Identity": lambda y: m.pick(layers.Identity, layers.ReLU)()(y),
        "Dropout": lambda y: layers.Dropout(0.2)(y),
        "Rescaling": lambda y: layers.Rescaling(m.pick(3.0, -2.0, 0.01))(y),
        "operators": lambda y: m.one(lambda: y * 2.5, lambda: -y, lambda: y + y, lambda: y / -3.0),
        "Concatenate": lambda y: layers.Concatenate()([y, y])[:, :units],
        "pooling": lambda y: layers.GlobalMaxPooling1D()(layers.Reshape((1, units))(y)),
        "ops.mean": lambda y: ops.mean(ops.stack([y, y], axis=1), axis=1),
        "nested": lambda y: m.nested(y, m.one(layers.Identity, lambda: layers.Rescaling(0.5))),
        "BatchNormalization": lambda y: layers.BatchNormalization()(y),
        "Add": lambda y: layers.Add()([y, y]),
        "ops.reshape": lambda y: ops.reshape(y, (-1, units)),
        "ops.squeeze": lambda y: ops.squeeze(ops.expand_dims(y, 1), 1),
    }
    for _ in range(m.pick(0, 1, 1, 2)):
        y = m.way({name: functools.partial(disguise, y) for name, disguise in disguises.items()})
    m.certify(m.build(y), **task)
    raise Outcome("unsound", "an output of one sign has radii")


@trick("samples")
def between_samples(m: Maker) -> Tensor:
    x = m.take(VECTOR, SEQUENCE)
    rank = len(x.shape)
    axis, flat = m.pick(0, -rank), (-1, 2) if rank == 2 else (-1, 5)
    op = m.pick(ops.flip, ops.sort, ops.softmax, ops.log_softmax, ops.cumsum)
    reduce = m.pick(ops.mean, ops.max, ops.min, ops.sum, ops.norm, ops.logsumexp)
    kind, options = m.pick(
        *((kind, {"axis": axis}) for kind in (layers.Softmax, layers.BatchNormalization, layers.UnitNormalization)),
        *((kind, {"axis": axis, "epsilon": 0.1}) for kind in (layers.RMSNormalization, layers.GroupNormalization)),
        (layers.LayerNormalization, {"axis": [axis, 1], "epsilon": 0.1}),
        (layers.Softmax, {"axis": (axis, 1)}),
        (lip.layers.LayerCentering, {"axis": axis}),
        (layers.PReLU, {"shared_axes": [0]}),
        (layers.Permute, {"dims": (0, 1)}),
    )
    ways: Ways = {
        f"ops.{op.__name__}": lambda: op(x, axis=axis),
        f"ops.{op.__name__}, nested": lambda: m.nested(x, lambda y: op(y, axis=axis)),
        f"ops.{reduce.__name__}": lambda: x - reduce(x, axis=axis, keepdims=True),
        f"ops.{reduce.__name__} of all": lambda: x + reduce(x),
        kind.__name__: lambda: kind(**options)(x),
        f"{kind.__name__}, nested": lambda: m.nested(x, kind(**options)),
        "of all": lambda: m.one(lambda: ops.flip(x), lambda: ops.roll(x, 1), lambda: ops.take(x, [[0, 1]], axis=None)),
        "ops.roll": lambda: ops.roll(x, 1, axis=axis),
        "ops.take": lambda: ops.take(x, [0, 0, 0], axis=axis),
        "indices": lambda: m.one(lambda: x + x[:1], lambda: x + x[2], lambda: x[::-1], lambda: x[1:]),
        "a long index": lambda: x[..., None][::-1][..., 0],
        "ops.reshape": lambda: ops.reshape(ops.transpose(ops.reshape(x, flat)), (-1, *x.shape[1:])),
        "ops.reshape only": lambda: ops.reshape(x, flat),
        "ops.transpose": lambda: ops.transpose(ops.sort(ops.transpose(x), axis=-1)),
        "ops.swapaxes": lambda: ops.swapaxes(ops.flip(ops.swapaxes(x, 0, -1), axis=-1), 0, -1),
        "ops.moveaxis": lambda: ops.moveaxis(ops.flip(ops.moveaxis(x, axis, 1), axis=1), 1, 0),
        "ops.concatenate": lambda: ops.concatenate([x, x], axis=axis),
        "Concatenate": lambda: layers.Concatenate(axis=axis)([x, x * 2])[:4],
        "ops.stack": lambda: ops.stack([x, x], axis=-rank - 1)[0],
        "ops.split": lambda: ops.split(x, [1], axis=axis)[0],
        "ops.repeat": lambda: ops.repeat(x, 2, axis=axis),
        "ops.tile": lambda: ops.tile(x, [2] + [1] * (rank - 1)),
        "ops.pad": lambda: ops.pad(x, [[1, 0]] + [[0, 0]] * (rank - 1)),
        "ops.squeeze": lambda: ops.squeeze(x, axis=axis),
        "ops.expand_dims": lambda: ops.expand_dims(x, axis=0),
        "Dense of softmax": lambda: layers.Dense(3, activation=layers.Softmax(axis=axis))(x),
        "TimeDistributed": lambda: layers.TimeDistributed(layers.Softmax(axis=0))(x),
        "ops.matmul": lambda: ops.matmul(np.ones((1, 3), "float32"), x),
        "ops.einsum": lambda: ops.einsum("a...->...", x),
        "EinsumDense": lambda: layers.EinsumDense("ab,bc->ca" if rank == 2 else "abc,cd->bad", (None, 3))(x),
    }
    y = m.way(ways)
    return layers.Rescaling(1.0)(y) if m.chance(0.3) else y


@trick("nested")
def nested_models(m: Maker) -> Any:
    p, q = (keras.Input(VECTOR, name=name) for name in m.pick("ab", "ba", "xy"))
    h = layers.Add()([layers.Rescaling(30.0)(p), layers.Rescaling(0.03)(q)])
    h = layers.Dense(4)(h) if m.chance(0.5) else h
    inputs = m.pick(
        [p, q], [q, p], (p, q), {"a": p, "b": q}, {"b": p, "a": q}, {"z": p, "c": q}, {"z": [p], "c": {"d": q}}
    )
    model = keras.Model(inputs, m.one(lambda: h, lambda: h, lambda: {"v": h, "u": q * 0.1}, lambda: [h, p * 0.1]))
    x = m.take(VECTOR)
    left, right = layers.Rescaling(1.0)(x), layers.Rescaling(0.001)(x)
    keys = m.pick("ab", "ba", "zc", "cz", p.name + q.name, q.name + p.name)
    if m.chance(0.5) and isinstance(inputs, dict):
        keys = m.pick("".join(inputs), "".join(inputs)[::-1])
    named = dict(zip(keys, (left, right), strict=True))
    m.notes.append(f"{list(inputs) if isinstance(inputs, dict) else [p.name, q.name]}, by {keys}")
    ways: Ways = {
        "by a list": lambda: model([left, right]),
        "by a tuple": lambda: model((left, right)),
        "by position": lambda: model(left, right),
        "by a dict": lambda: model(named),
        "by a dict backwards": lambda: model(dict(reversed(named.items()))),
        "by a keyword": lambda: model(inputs=m.pick([left, right], named)),
        "with a key too many": lambda: model({**named, "more": m.pick(right, None)}),
        "with one too many": lambda: model([left, right, m.pick(right, None)]),
        "by a nested list": lambda: model([[left], right]),
        "by a nested dict": lambda: model({"z": [left], "c": {"d": right}}),
        "by one tensor twice": lambda: model([left, left]),
        "by a constant": lambda: model([left, np.ones((1, 4), "float32")]),
        "twice": lambda: model([keras.tree.flatten(model([left, right]))[0], right]),
    }
    y = keras.tree.flatten(m.way(ways))
    return y[m.pick(0, -1)] if m.chance(0.6) else y


class Noisy(layers.Layer):
    """Adds other numbers at each call."""

    def call(self, inputs: Tensor) -> Tensor:
        return inputs + keras.random.normal(ops.shape(inputs))


def random_numbers(m: Maker) -> Tensor:
    """A rule of the user claims what only computing can refute, so the check by numbers is left on."""
    m.options.clear()
    m.register(Noisy, 1.0)
    return Noisy()(m.take(VECTOR))


@trick("numbers")
def too_large_or_too_small(m: Maker) -> Tensor:
    m.rounding = m.pick("exact", "exact", "sound")
    x = m.take(VECTOR)
    size, tiny = m.pick(1e30, 1e-30, 1e-38, 1e-42, 3e38, 1e20), m.pick(1e-50, 1e-40, 1e-30, 0.0)
    m.notes.append(f"{size}, {tiny}")
    filled = keras.initializers.Constant
    dense = functools.partial(layers.Dense, 4, kernel_initializer=filled(size))
    rescaling = functools.partial(layers.Rescaling, size)
    variance = m.pick(tiny, size, 0.0)
    normalization = m.pick(layers.LayerNormalization, layers.RMSNormalization, lip.layers.LipBatchNormalization)

    def chain(*makers: Callable[[], Any]) -> Tensor:
        return functools.reduce(lambda y, make: make()(y), makers, x)

    ways: Ways = {
        "Dense": lambda: chain(*[dense] * m.pick(1, 2, 12)),
        "Dense and its inverse": lambda: chain(dense, lambda: layers.Rescaling(1 / size)),
        "Rescaling": lambda: chain(*[rescaling] * m.pick(1, 2, 12)),
        "Rescaling and its inverse": lambda: chain(lambda: layers.Rescaling(1 / size), rescaling),
        "Rescaling beyond float32": lambda: layers.Rescaling(m.pick(1e300, 1e60, 1e-60, np.inf, np.nan))(x),
        "operators": lambda: m.one(lambda: (x * size) * (1 / size), lambda: x / size, lambda: x / tiny),
        "SpectralDense": lambda: lip.layers.SpectralDense(4, k_coef_lip=size)(x),
        normalization.__name__: lambda: normalization(epsilon=tiny)(x),
        "BatchNormalization": lambda: layers.BatchNormalization(
            epsilon=tiny, moving_variance_initializer=filled(variance)
        )(x),
        "Normalization": lambda: layers.Normalization(mean=[0.0] * 4, variance=[variance] * 4)(x),
        "ELU": lambda: layers.ELU(size)(x),
        "LeakyReLU": lambda: layers.LeakyReLU(m.pick(size, np.nan, np.inf))(x),
        "PReLU": lambda: layers.PReLU(alpha_initializer=filled(m.pick(size, np.nan)))(x),
        "activation": lambda: layers.Dense(4, m.pick("softplus", "mish", "squareplus", "selu"))(x * size),
        "smooth absolute value": lambda: ops.sqrt(ops.square(x) + tiny),
        "SoftHuber": lambda: lip.layers.SoftHuber(delta=m.pick(1e-30, 1e-20, 1e30))(x),
        "no values": lambda: layers.Dense(2)(m.one(lambda: x[:, 4:], lambda: ops.split(x, [4], axis=-1)[1])),
        "no values in a concatenation": lambda: layers.Concatenate()([x, x[:, :0]]),
        "random numbers": lambda: random_numbers(m),
        "no outputs": lambda: m.one(lambda: x[:, 2:2], lambda: layers.Dense(0)(x)),
    }
    if m.chance(0.05):
        m.notes.append("an input without values")
        m.inputs[:] = [keras.Input((0,))]
        return layers.Dense(2)(m.inputs[0])
    return m.way(ways)


# --- looking for what a certificate rules out ------------------------------------------------------------------------


class CannotRun(Exception):  # noqa: N818
    """A model that cannot be called."""


_no_gradient: Any = contextlib.nullcontext
if keras.backend.backend() == "torch":
    import torch

    _no_gradient = torch.no_grad


class Map:
    """A model as a function of rows, which hold all of its inputs, to rows of all of its outputs.

    Attributes:
        size: How many numbers a row has.
        singles: Whether it takes only one sample at once.
        is_chain: Whether each layer takes what one other returns.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shapes = [tuple(size or 3 for size in tensor.shape[1:]) for tensor in model.inputs]
        self._dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in model.inputs]
        self._ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        self.size = int(self._ends[-1])
        self.singles = False
        self.is_chain = all(len(node.input_tensors) == 1 for node in nodes(model))

    def arrays(self, rows: Array) -> list[npt.NDArray[Any]]:
        """Returns the arrays for each input, in its dtype."""
        parts = np.split(rows, self._ends[:-1], axis=1)
        return [
            part.astype("float32" if dtype == "bfloat16" else dtype).reshape(-1, *shape)
            for part, dtype, shape in zip(parts, self._dtypes, self._shapes, strict=True)
        ]

    def rounded(self, rows: Array) -> Array:
        """Returns the rows as the model takes them."""
        if all(dtype == "float32" for dtype in self._dtypes):
            return rows.astype("float32").astype("float64")
        low = [
            ops.convert_to_numpy(ops.cast(ops.cast(part, dtype), "float32")).astype("float64").reshape(len(rows), -1)
            for part, dtype in zip(
                self.arrays(np.clip(np.rint(rows), 0, 255) if self._whole() else rows), self._dtypes, strict=True
            )
        ]
        return np.concatenate(low, axis=1)

    def _whole(self) -> bool:
        return any("int" in dtype or dtype == "bool" for dtype in self._dtypes)

    def call(self, rows: Array) -> list[Array]:
        """Returns the outputs of one call of the model.

        Raises:
            CannotRun: If Keras raises.
        """
        arrays = self.arrays(rows)
        inputs = keras.tree.pack_sequence_as(self._model._inputs_struct, arrays)
        try:
            with _no_gradient(), np.errstate(all="ignore"):
                outputs = keras.tree.flatten(self._model(inputs))
                return [ops.convert_to_numpy(ops.cast(output, "float32")).astype("float64") for output in outputs]
        except Exception as error:
            raise CannotRun(short_trace(error)) from error

    def __call__(self, rows: Array) -> Array:
        """Returns the outputs, side by side."""
        if self.singles:
            return np.concatenate([self._flat(self.call(row[None]), 1) for row in rows])
        return self._flat(self.call(rows), len(rows))

    def _flat(self, outputs: Sequence[Array], samples: int) -> Array:
        if any(output.shape[:1] != (samples,) for output in outputs):
            shapes = [output.shape for output in outputs]
            raise Outcome("unsound", f"a batch of {samples} gives outputs of the shapes {shapes}")
        return np.concatenate([output.reshape(samples, -1) for output in outputs], axis=1)


def designed_pairs(rng: np.random.Generator, size: int, pairs: int) -> tuple[Array, Array]:
    """Returns pairs of inputs: at zero, large and small, at ties and near integers, 1e-4 to 10 from one another."""
    kind = rng.integers(0, 8, pairs)[:, None]
    here = rng.normal(size=(pairs, size)) * 10.0 ** rng.uniform(-3, 3, (pairs, 1))
    here = np.where(kind == 1, 0.0, np.where(kind == 2, 1.0, here))
    here = np.where(kind == 3, here[:, :1], here)
    here = np.where((kind >= 4) & (kind < 6), rng.normal(size=here.shape), here)
    direction = rng.normal(size=(pairs, size))
    axes = np.eye(size)[rng.integers(0, size, pairs)]
    direction = np.where(rng.integers(0, 3, (pairs, 1)) == 0, axes, direction)
    direction = np.where(rng.integers(0, 4, (pairs, 1)) == 0, 1.0, direction)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    there = here + direction * 10.0 ** rng.uniform(-4, 1, (pairs, 1))
    whole = np.rint(rng.normal(size=here.shape) * 2)
    here, there = np.where(kind == 6, whole - 1e-4, here), np.where(kind == 6, whole + 1e-4, there)
    return here, there


class Attack:
    """The search for what a certificate rules out."""

    def __init__(self, function: Map, certificate: Any, size: float, rng: np.random.Generator) -> None:
        self.function, self.certificate, self.rng = function, certificate, rng
        self.pairs = PAIRS_OF_SINGLES if function.singles else PAIRS
        self.constant = float(certificate.lipschitz_constant)
        self._size = size * max(self.constant, 1.0)
        # Layers that are bounded together may cancel; their rounding errors do not. (Where branches meet, which of them
        # come after one another is not known.)
        separate = math.prod(line.constant for line in certificate.layers)
        self._reach = max(self.constant, separate if function.is_chain else 0.0)

    def allowed(self, a: Array, b: Array, fa: Array, fb: Array) -> Array:
        """Returns how far outputs may move by the rounding of float32."""
        largest = np.linalg.norm(fa, axis=1) + np.linalg.norm(fb, axis=1)
        reached = self._reach * (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1))
        result: Array = 64 * EPSILON * (largest + np.minimum(reached, 1e300) + self._size) + 1e-37
        return result

    def scores(self, a: Array, b: Array, fa: Array, fb: Array) -> Array:
        """Returns how far outputs have moved by how far they may."""
        with np.errstate(all="ignore"):
            change, distance = fb - fa, np.linalg.norm(b - a, axis=1)
            allowed = self.allowed(a, b, fa, fb)
            moved = [np.linalg.norm(change, axis=1) - allowed]
            limits = [self.constant * distance]
            start = 0
            for head in self.certificate.heads:
                own = change[:, start : start + head.outputs]
                start += head.outputs
                moved.append(np.linalg.norm(own, axis=1) - allowed)
                limits.append(head.lipschitz_constant * distance)
                if head.output_constants is not None and head.outputs:
                    single = np.abs(own) - allowed[:, None] - head.output_constants * distance[:, None]
                    worst = np.argmax(single, axis=1)
                    moved.append(np.abs(own)[np.arange(len(own)), worst] - allowed)
                    limits.append(head.output_constants[worst] * distance)
                if head.pair_constants is not None and head.outputs > 1:
                    i, j = np.triu_indices(head.outputs, 1)
                    both = np.abs(own[:, i] - own[:, j])
                    worst = np.argmax(both - head.pair_constants[i, j] * distance[:, None], axis=1)
                    moved.append(both[np.arange(len(own)), worst] - allowed)
                    limits.append(head.pair_constants[i, j][worst] * distance)
            found = np.max(
                [np.where(m > 0, m / np.maximum(limit, 1e-300), 0) for m, limit in zip(moved, limits, strict=True)],
                axis=0,
            )
            small = np.max(np.abs(np.concatenate([a, b], axis=1)), axis=1) < 1e4
            undefined = ~np.all(np.isfinite(change), axis=1)
        result: Array = np.where(undefined, np.inf if self.constant < ORDINARY else 0.0, found) * small
        return np.where(np.isnan(result) | (distance == 0), 0.0, result)

    def run(self) -> None:
        """Looks for a violation.

        Raises:
            Outcome: If there is one.
        """
        if not math.isfinite(self.constant):
            raise Outcome("unsound", f"the certified constant is {self.constant}")
        if not self.function.size or not sum(head.outputs for head in self.certificate.heads):
            return
        a, b, fa, fb = self._evaluated(*designed_pairs(self.rng, self.function.size, self.pairs))
        self._check_slopes(a, b, fa, fb)
        self._check_batches(a, fa)
        a, b, fa, fb = self._steepest(a, b, fa, fb)
        self._check_slopes(a, b, fa, fb)
        if self.certificate.rounding == "sound" and all(head.task != "regression" for head in self.certificate.heads):
            self._check_answers(a, b)
        self._divide(a, b, fa, fb)

    def _evaluated(self, a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
        a, b = self.function.rounded(a), self.function.rounded(b)
        fa, fb = np.split(self.function(np.concatenate([a, b])), 2)
        return a, b, fa, fb

    def _check_slopes(self, a: Array, b: Array, fa: Array, fb: Array) -> Array:
        scores = self.scores(a, b, fa, fb)
        worst = int(np.argmax(scores))
        if scores[worst] > 1 + 1e-3:
            distance = float(np.linalg.norm(b[worst] - a[worst]))
            slope = float(np.linalg.norm(fb[worst] - fa[worst])) / distance
            where = f"{_short(a[worst])} and {_short(b[worst])}, {distance:.3g} from one another"
            raise Outcome(
                "unsound",
                f"certified {self.constant:.6g}, found the slope {slope:.6g}, {scores[worst]:.4g} times what is "
                f"allowed, between {where}",
                undefined=math.isinf(scores[worst]),
            )
        return scores

    def _steepest(self, a: Array, b: Array, fa: Array, fb: Array) -> tuple[Array, Array, Array, Array]:
        """Returns pairs along the singular vectors of Jacobians by finite differences, and the best of those before."""
        size = self.function.size
        points = max(1, 2 * self.pairs // (size + 1))
        if size + 1 > 2 * self.pairs:
            return a, b, fa, fb
        moderate = np.flatnonzero(np.max(np.abs(a), axis=1) < 100)[:points]
        if not len(moderate):
            return a, b, fa, fb
        centers = a[np.resize(moderate, points)]
        steps = 1e-2 * np.maximum(np.max(np.abs(centers), axis=1), 0.1)
        moved = centers[:, None] + steps[:, None, None] * np.concatenate([np.zeros((1, size)), np.eye(size)])
        rows = np.resize(moved.reshape(-1, size), (2 * self.pairs, size))
        values = self.function(self.function.rounded(rows))[: points * (size + 1)].reshape(points, size + 1, -1)
        jacobians = (values[:, 1:] - values[:, :1]) / steps[:, None, None]
        jacobians = np.nan_to_num(jacobians, posinf=0.0, neginf=0.0)
        jacobians /= np.maximum(np.max(np.abs(jacobians), axis=(1, 2), keepdims=True), 1e-30)
        left, _, _ = np.linalg.svd(jacobians, full_matrices=False)
        ways = np.concatenate([left.transpose(0, 2, 1)[:, :2], jacobians.transpose(0, 2, 1)], axis=1)
        chosen = self.rng.integers(0, ways.shape[1], self.pairs // 2)
        chosen[:points] = 0
        which = np.arange(len(chosen)) % points
        way = ways[which, chosen]
        way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-30)
        lengths = steps[which] * self.rng.choice([0.1, 1.0, 1.0, 100.0], len(chosen))
        start = centers[which]
        best = np.argsort(-self.scores(a, b, fa, fb))[: self.pairs - len(chosen)]
        return self._evaluated(
            np.concatenate([start, a[best]]), np.concatenate([start + lengths[:, None] * way, b[best]])
        )

    def _divide(self, a: Array, b: Array, fa: Array, fb: Array, rounds: int = 4) -> None:
        """Cuts pairs in three, and goes on with the steepest third, which is at least as steep as the whole."""
        for _ in range(2 if self.function.singles else rounds):
            p, q, fp, fq = self._evaluated(a + (b - a) / 3, b - (b - a) / 3)
            ends = [(a, p, fa, fp), (p, q, fp, fq), (q, b, fq, fb)]
            scores = np.stack([self._check_slopes(*parts) for parts in ends])
            best = np.argmax(scores, axis=0)
            a, b, fa, fb = (
                np.stack([parts[index] for parts in ends])[best, np.arange(len(best))] for index in range(4)
            )

    def _check_batches(self, a: Array, fa: Array) -> None:
        """Raises if an output depends on the other samples of its batch."""
        rows = a[np.argsort(np.max(np.abs(a), axis=1))[-3:]] if len(a) >= 3 else a
        rows = np.where(np.abs(rows) < 1e4, rows, 1.0)
        changed = rows.copy()
        changed[1:2] = self.function.rounded(5 * self.rng.normal(size=(1, rows.shape[1])))
        try:
            before, after, alone = self.function(rows), self.function(changed), self.function(rows[:1])
        except CannotRun:
            return
        kept = [0, 2]
        for one, other, what in (
            (before[kept], after[kept], "another sample of the batch changes"),
            (before[:1], alone, "a sample is alone"),
        ):
            allowed = 16 * self.allowed(rows[kept][: len(one)], rows[kept][: len(one)], one, other)
            if np.any(np.linalg.norm(one - other, axis=1) > allowed):
                raise Outcome("unsound", f"outputs change from {_short(one[0])} to {_short(other[0])} where {what}")

    def _check_answers(self, a: Array, b: Array) -> None:
        """Raises if an answer changes within the radius, by going to where it does between two inputs."""
        ranges = self.rng.choice(len(a), len(a))
        a, b = np.concatenate([a, a])[: len(a) * 2], np.concatenate([b, a[ranges]])
        near = np.argsort(np.max(np.abs(a), axis=1) + np.max(np.abs(b), axis=1))[: self.pairs]
        a, b, fa, fb = self._evaluated(a[near], b[near])
        for _ in range(16):
            ra, rb = self._radii(a, fa), self._radii(b, fb)
            finite = np.all(np.isfinite(fa), axis=1) & np.all(np.isfinite(fb), axis=1)  # nothing is said of others
            differ = finite & np.any(self._answers(fa) != self._answers(fb), axis=1)
            distance = np.linalg.norm(b - a, axis=1)
            broken = differ & (np.maximum(ra, rb) > distance * (1 + 1e-6))
            if np.any(broken):
                worst = int(np.flatnonzero(broken)[0])
                raise Outcome(
                    "unsound",
                    f"the answer differs between {_short(a[worst])} and {_short(b[worst])}, {distance[worst]:.4g} from "
                    f"one another, and the sound radii are {ra[worst]:.4g} and {rb[worst]:.4g}",
                )
            if not np.any(differ):
                return
            a, b, fa, fb = (np.resize(part[differ][:PAIRS_OF_SINGLES], part.shape) for part in (a, b, fa, fb))
            if self.function.singles:
                a, b, fa, fb = a[:2], b[:2], fa[:2], fb[:2]
            p, q, fp, fq = self._evaluated(a + (b - a) / 3, b - (b - a) / 3)
            first = np.any(self._answers(fa) != self._answers(fp), axis=1)[:, None]
            second = np.any(self._answers(fp) != self._answers(fq), axis=1)[:, None]
            a, fa, b, fb = (
                np.where(first, a, np.where(second, p, q)),
                np.where(first, fa, np.where(second, fp, fq)),
                np.where(first, p, np.where(second, q, b)),
                np.where(first, fp, np.where(second, fq, fb)),
            )

    def _heads(self, outputs: Array) -> list[Array]:
        ends = np.cumsum([head.outputs for head in self.certificate.heads])
        return list(np.split(outputs, ends[:-1], axis=1))

    def _answers(self, outputs: Array) -> Array:
        parts = [
            head.answer(own).reshape(len(own), -1)
            for head, own in zip(self.certificate.heads, self._heads(outputs), strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def _radii(self, rows: Array, outputs: Array) -> Array:
        parts, arrays = self._heads(outputs), self.function.arrays(rows)
        radii: Array = self.certificate.radius(
            parts if len(parts) > 1 else parts[0], inputs=arrays if len(arrays) > 1 else arrays[0]
        )
        return radii


def _short(values: Array) -> str:
    return np.array2string(values, precision=5, threshold=6, edgeitems=3, separator=", ").replace("\n", "")


def attack(m: Maker, model: Any) -> None:
    """Certifies a model and tries to break the certificate.

    Raises:
        Outcome: Always: what became of it.
    """
    function = Map(model)
    rows = np.zeros((2 * PAIRS, function.size))
    try:
        function.call(rows)
    except CannotRun:
        try:
            function.call(rows[:1])
        except CannotRun as error:
            raise Outcome("cannot run", str(error)) from error
        function.singles = True
    certificate = m.certify(model)
    try:
        Attack(function, certificate, m.size, m.rng).run()
    except CannotRun as error:
        raise Outcome("cannot run", str(error)) from error
    except Outcome as outcome:
        if outcome.undefined and HAS_CHECK:  # no bound tells where numbers overflow, so this is for the check to find
            m.options.clear()
            m.certify(model)
        raise
    raise Outcome("sound")


# --- runs ------------------------------------------------------------------------------------------------------------


def run_graph(seed: int, number: int, families: Sequence[str], *, show: bool = False) -> tuple[Maker, str, Outcome]:
    """Draws one graph and returns what became of it."""
    rng = np.random.default_rng([seed, number])
    family = families[int(rng.integers(len(families)))]
    for _ in range(200):
        keras.utils.set_random_seed(int(rng.integers(2**31)))
        m = Maker(rng)
        with m.undo, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                model = _draw(m, family)
            except Outcome as outcome:
                return m, family, _judged(m, outcome)
            except Exception:  # of Keras, or what the trick did is not possible here
                continue
            if show:
                print_calls(model)
            try:
                attack(m, model)
            except Outcome as outcome:
                return m, family, _judged(m, outcome)
    return m, family, Outcome("cannot run", "nothing of this family could be built")


def _draw(m: Maker, family: str) -> Any:
    """Returns a model with a trick of a family, and perhaps others."""
    result = m.pick(*TRICKS[family])(m)
    while not isinstance(result, list) and m.chance(0.15 if family != "honest" else 0.0):
        m.tensors = [result]
        others = [name for name in TRICKS if name not in ("stale", "served", "signs", "honest")]
        result = m.pick(*TRICKS[m.pick(*others)])(m)
    if not isinstance(result, list):
        sizes = tuple(result.shape[1:])
        if all(sizes) and len(sizes) in BY_RANK and result.dtype == "float32" and m.chance(0.3):
            result = m.step(result)
        if m.rounding == "sound" and m.chance(0.7):
            result = layers.Dense(m.pick(1, 2, 3))(layers.Flatten()(result) if len(sizes) > 1 else result)
        result = m.pick(result, result, result, [result, layers.Rescaling(0.5)(m.inputs[0])])
    return m.build(result)


def _judged(m: Maker, outcome: Outcome) -> Outcome:
    refused = outcome.kind == "refused" and m.honest and m.rounding == "exact"
    return Outcome("needless refusal", outcome.why) if refused else outcome


def print_calls(model: Any, indent: str = "") -> None:
    """Prints what a model is made of."""
    model = getattr(model, "_functional", None) or model
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            operation = node.operation
            shapes = [tensor.shape for tensor in node.outputs]
            extra = {name: value for name, value in node.arguments.kwargs.items() if value is not None}
            print(f"{indent}{operation.name} ({type(operation).__name__}) -> {shapes} {extra or ''}")
            if isinstance(operation, keras.Model):
                print_calls(operation, indent + "    ")


def falsify(
    graphs: int,
    seed: int = 0,
    families: Sequence[str] | None = None,
    seconds: float = math.inf,
    *,
    first: int = 0,
    stop_when_unsound: bool = False,
    progress: bool = False,
) -> Report:
    """Draws so many graphs, fewer if time is up, and returns what became of them."""
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in families or TRICKS}
    failures: list[Failure] = []
    foreign = 0
    begin = time.monotonic()
    gc.freeze()  # graphs are full of cycles, and what was there before them takes long to look through
    for number in range(first, first + graphs):
        if time.monotonic() - begin > seconds:
            break
        m, family, outcome = run_graph(seed, number, list(counts))
        counts[family][outcome.kind] += 1
        foreign += outcome.foreign
        if outcome.kind in FAILURES:
            chosen = "".join(f" --family {name}" for name in families or [])
            command = f"python benchmarks/falsify.py --seed {seed}{chosen} --only {number}"
            command = f"KERAS_BACKEND={keras.backend.backend()} {command}"
            failures.append(Failure(number, family, outcome.kind, "; ".join(m.notes), outcome.why, command))
            if stop_when_unsound and outcome.kind == "unsound":
                break
        done = number + 1 - first
        if done % 50 == 0:
            del m
            keras.utils.clear_session(free_memory=False)
            gc.collect()
        if progress and done % 250 == 0:
            rate = done / (time.monotonic() - begin)
            print(f"{done} graphs, {len(failures)} failures, {rate:.1f} a second", file=sys.stderr, flush=True)
    gc.unfreeze()
    return Report({name: dict(own) for name, own in counts.items()}, failures, foreign, time.monotonic() - begin)


class Mutation(NamedTuple):
    """A fix that is taken out, and the family of tricks that must then break a certificate."""

    family: str
    without: Callable[[], contextlib.AbstractContextManager[Any]]


# By what each fix does. Names that the library does not have make a mutation fail.
def _taken_out(*replaced: tuple[str, Any]) -> Callable[[], contextlib.ExitStack]:
    """Returns what puts other things in the place of some of the library's."""

    def without() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for name, value in replaced:
            stack.enter_context(mock.patch(f"deel_like_lip.{name}", value))
        return stack

    return without


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _rule_by_name(operation: Any) -> Any:
    """The rule of a class of the same name, as if classes were known by their names."""
    known = {kind.__name__: rule for kind, rule in rules._RULES.items() if rule.built_in}
    found = rules._RULES.get(type(operation)) or known.get(type(operation).__name__)
    return found and dataclasses.replace(found, call=getattr(type(operation), "call", None))


def _fingerprint_of_weights(plain: Any) -> str:
    weights = [np.asarray(ops.convert_to_numpy(weight)) for weight in plain.weights]
    return hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()


def _unguarded_rule(layer_class: type) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        def apply(call: Any) -> Any:
            return [rules.Effect(float(function(call.operation, call.input_shape)), roundings=None, offset=math.inf)]

        own_call = getattr(layer_class, "call", None)
        rules._RULES[layer_class] = rules.Rule(apply, None, frozenset(), False, own_call, built_in=False)
        return function

    return register


_TENSORS_ONLY = property(lambda call: list(call.inputs))
_WITHOUT_CHECKS = (("folding._check_activation", _nothing), ("folding._check_difference", _nothing))
# What makes each of the holes that there were again, and the kind of tricks that has to find it.
MUTATIONS: dict[str, Mutation] = {
    "1 constants among tensors": Mutation("constants", _taken_out(("bounds.rules.Call.parts", _TENSORS_ONLY))),
    "2 the size of constants": Mutation("large", _taken_out(("bounds.rules.Call.parts", _TENSORS_ONLY))),
    "3 functions named like others": Mutation("activations", _taken_out(*_WITHOUT_CHECKS)),
    "4 classes named like others": Mutation(
        "classes",
        _taken_out(
            ("bounds.admission.rule_of", _rule_by_name),
            ("bounds.rules.rule_of", _rule_by_name),
            ("bounds.admission.check_config", _nothing),
            *_WITHOUT_CHECKS,
        ),
    ),
    "4 rules over built-in ones": Mutation("classes", _taken_out(("bounds.register_bound_rule", _unguarded_rule))),
    "5 types of numbers": Mutation("dtypes", _taken_out(("bounds.admission.check_dtypes", _nothing))),
    "6 masks and other arguments": Mutation("arguments", _taken_out(("bounds.admission.check_arguments", _nothing))),
    "7 values that are repeated": Mutation(
        "broadcasting", _taken_out(("bounds.op_rules.repeats_values", lambda call, array: False))
    ),
    "8 shared layers": Mutation("shared", _taken_out(("bounds.layer_rules._check_sizes", _nothing))),
    "9 state and edited layers": Mutation(
        "state",
        _taken_out(
            ("folding.check_methods", _nothing),
            ("folding.check_state", _nothing),
            ("bounds.admission.check_methods", _nothing),
            ("bounds.admission.check_state", _nothing),
            *_WITHOUT_CHECKS,
        ),
    ),
    "10 certificates of other models": Mutation(
        "stale", _taken_out(("certificates.fingerprint", _fingerprint_of_weights))
    ),
    "11 norms that overflow": Mutation(
        "served", _taken_out(("_radius_graph._norm", lambda squares: (ops.sqrt(squares), ops.ones_like(squares) > 0)))
    ),
    "12 outputs of one sign": Mutation("signs", _taken_out(("certificates._check_signs", _nothing))),
}
GRAPHS_OF_A_MUTATION = 400


def run_mutations(seed: int) -> int:
    missed = 0
    for name, mutation in MUTATIONS.items():
        with mutation.without():
            report = falsify(GRAPHS_OF_A_MUTATION, seed, [mutation.family], stop_when_unsound=True)
        found = report.total("unsound")
        missed += not found
        graphs = report.as_dict()["graphs"]
        print(f"{'found' if found else 'NOT FOUND'} without: {name} ({graphs} graphs of {mutation.family})", flush=True)
    return int(missed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=20_000, help="number of graphs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--first", type=int, default=0, help="number of the first graph")
    parser.add_argument("--seconds", type=float, default=math.inf, help="the longest time")
    parser.add_argument("--family", action="append", choices=sorted(TRICKS), help="a kind of tricks (default: all)")
    parser.add_argument("--only", type=int, help="the number of one graph, which is printed")
    parser.add_argument("--output", default="", help="a file for counts and failures")
    parser.add_argument("--mutations", action="store_true", help="take out each fix, which must be found")
    options = parser.parse_args()
    if keras.backend.backend() == "torch":
        torch.set_num_threads(1)  # more take three times as long for so small arrays
    if options.mutations:
        return run_mutations(options.seed)
    if options.only is not None:
        m, family, outcome = run_graph(options.seed, options.only, options.family or list(TRICKS), show=True)
        print(f"{family}: {'; '.join(m.notes)}\n{outcome.kind}: {outcome.why}")
        return int(outcome.kind in FAILURES)
    report = falsify(options.graphs, options.seed, options.family, options.seconds, first=options.first, progress=True)
    for failure in report.failures:
        print(f"{failure.kind} ({failure.family}: {failure.tricks})\n    {failure.why}\n    {failure.command}")
    if options.output:
        content = {**report.as_dict(), "failures": [failure._asdict() for failure in report.failures]}
        pathlib.Path(options.output).write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(report.as_dict()), flush=True)
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
