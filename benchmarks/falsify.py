"""Graphs composed by somebody who wants to break a certificate: each must be refused with a reason, or be sound.

    KERAS_BACKEND=torch python benchmarks/falsify.py                                  # 20,000 graphs
    KERAS_BACKEND=torch python benchmarks/falsify.py --graphs 500 --family arguments      # one kind of trick
    KERAS_BACKEND=torch python benchmarks/falsify.py --family arguments --only 17         # that graph again, and its calls
    KERAS_BACKEND=torch python benchmarks/falsify.py --mutations                      # each fix taken out is found out

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
import functools
import gc
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
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

import deel_like_lip as lip
from deel_like_lip._radius_graph import radius_model

logging.getLogger("tensorflow").setLevel(logging.ERROR)
Tensor = Any
Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]
EPSILON = 2.0**-24

# Few shapes, so that JAX compiles each operation once. A batch holds so many pairs of inputs.
COLUMN, VECTOR, NARROW, SEQUENCE, IMAGE = (1,), (4,), (5, 1), (5, 3), (4, 4, 2)
PAIRS = 96
PAIRS_OF_SINGLES = 10
HAS_CHECK = "check" in inspect.signature(lip.certify).parameters
KINDS = ("refused", "sound", "unsound", "plain error", "needless refusal", "cannot run")
FAILURES = KINDS[2:5]


class Outcome(Exception):  # noqa: N818 (not all of them are errors)
    """What became of a graph: one of `KINDS`, and why."""

    def __init__(self, kind: str, why: str = "", foreign: bool = False) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why
        self.foreign = foreign  # refused by a `ValueError` of somebody else's code


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
        self.rounding = "exact"
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

    def later(self, edit: Callable[[], Any]) -> None:
        """Edits something when the whole model is there."""
        self.edits.append(lambda model: edit())

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

    def certify(self, model: Any, **options: Any) -> Any:
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
        if not any(name in quoted for name in names_in(model)):
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


def _wrapped(x: Tensor, m: Maker) -> Tensor:
    inner = keras.Input(tuple(x.shape[1:]))
    return keras.Model(inner, layers.Rescaling(-1.5, 0.1)(layers.ReLU()(inner)))(x)


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
    _wrapped,
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
    y = m.way(
        {
            "ops.concatenate by position": lambda: ops.concatenate(parts, rank - 1),
            "ops.concatenate by keyword": lambda: ops.concatenate(xs=parts, axis=-1),
            "Concatenate": lambda: layers.Concatenate()(parts),
            "Concatenate by keyword": lambda: layers.Concatenate(axis=rank - 1)(inputs=parts),
            "ops.hstack": lambda: ops.hstack(parts),
        }
    )
    start = int(m.rng.integers(y.shape[-1]))
    return m.pick(y, y[..., start : start + 1], y[..., start : start + 1], ops.flip(y, axis=-1)[..., :2])


@trick("constants")
def part_of_a_combination(m: Maker) -> Tensor:
    x = m.uneven(m.take(VECTOR))
    c = m.constant(*m.pick((1, 4), (1, 4), (1, 4), (4,), (1, 1), (3, 4)))
    parts = m.pick([c, x], [x, c], [x, c, c], [c, x, x])
    a, b = parts[:2]
    y = m.way(
        {
            "Add": lambda: layers.Add()(parts),
            "Average": lambda: layers.Average()(parts),
            "Maximum": lambda: layers.Maximum()(parts),
            "Minimum": lambda: layers.Minimum()(parts),
            "Multiply": lambda: layers.Multiply()(parts),
            "Subtract": lambda: layers.Subtract()([a, b]),
            "Dot": lambda: layers.Dot(axes=-1)([a, b]),
            "ops.stack": lambda: ops.stack([a, b], axis=1),
            "ops.add": lambda: ops.add(a, b),
            "ops.subtract by keyword": lambda: ops.subtract(x2=a, x1=b),
            "ops.maximum": lambda: ops.maximum(a, b),
            "ops.minimum by keyword": lambda: ops.minimum(x2=b, x1=a),
            "ops.multiply": lambda: ops.multiply(a, b),
            "ops.average": lambda: ops.average(ops.stack([x, x], axis=1), axis=1, weights=np.array([9.0, -8.0])),
            "operators": lambda: m.pick(lambda: c + x, lambda: x - c, lambda: x / 0.01, lambda: x @ m.array(4, 4))(),
        }
    )
    return y if len(y.shape) == 2 else m.pick(y, y[:, 0])


@trick("large")
def large_constants(m: Maker) -> Tensor:
    """Numbers that cancel but for the rounding that they cause, which decides between two classes."""
    m.rounding = "sound"
    large = float(10 ** m.rng.uniform(4, 7))
    x = m.take(COLUMN)
    plus, minus = np.array([[large]], "float32"), np.array([[-large]], "float32")
    both = np.concatenate([plus, minus], axis=1)
    inner = keras.Input(COLUMN)
    up, down = layers.Dense(1, kernel_initializer="ones"), layers.Dense(1, kernel_initializer="ones")
    m.later(lambda: up.bias.assign([large]) if up.built else None)
    m.later(lambda: down.bias.assign([-large]) if down.built else None)
    extremum = np.array([[-large - 1e3]], "float32")
    y = m.way(
        {
            "ops.concatenate": lambda: ops.concatenate([x, both], axis=1),
            "Concatenate": lambda: layers.Concatenate()([plus, x, minus]),
            "ops.stack": lambda: layers.Flatten()(ops.stack([plus, x, minus], axis=1)),
            "Add": lambda: layers.Add()([layers.Add()([x, plus]), minus]),
            "Average": lambda: layers.Rescaling(3.0)(layers.Average()([x, plus, minus])),
            "Subtract": lambda: layers.Subtract()([layers.Subtract()([x, plus]), minus]),
            "ops.add": lambda: ops.add(ops.add(plus, x), minus),
            "operators": lambda: (x + large) - large,
            "Rescaling": lambda: layers.Rescaling(1.0, -large)(layers.Rescaling(1.0, large)(x)),
            "biases": lambda: down(up(x)),
            "nested": lambda: keras.Model(inner, ops.concatenate([inner, both], axis=1))(x),
            "ops.maximum": lambda: ops.maximum(ops.add(x, plus), np.float32(-1.0)) - plus,
            "Maximum": lambda: layers.Maximum()([x + minus, extremum]) + plus,
            "ops.clip": lambda: ops.clip(x + large, 0.0, 1e8) - large,
            "ops.pad": lambda: ops.pad(x, ((0, 0), (1, 0)), constant_values=large) - both * [[1, 0]],
            "multiples": lambda: ops.multiply(x + large, np.float32(3.0)) - np.float32(3 * large),
        }
    )
    head = layers.Dense(2)
    z = head(y)
    kernel = np.stack([np.ones(y.shape[-1]), np.zeros(y.shape[-1])], axis=1)
    m.later(lambda: head.set_weights([kernel, np.array([0, m.rng.normal() * 10.0 ** m.rng.uniform(-3, 0)])]))
    return [z]


ACTIVATIONS = [name for name in dir(keras.activations) if name[0] != "_" and "serialize" not in name and name != "get"]


def impostor(m: Maker) -> Any:
    """Returns a function that is named like one of Keras, and is another."""
    name = m.pick("relu", "linear", "tanh", *ACTIVATIONS)
    body = m.pick(lambda x: 30 * ops.relu(x), lambda x: 30 * x, lambda x: ops.sin(30 * x), lambda x: ops.square(x))

    def function(x: Tensor) -> Tensor:
        return body(x)

    function.__name__ = function.__qualname__ = name
    kind = type(name, (), {"__name__": name, "__call__": lambda self, x: body(x)})
    partial: Any = functools.partial(lambda factor, x: body(x) * factor, 2.0)
    steep: Any = functools.partial(keras.activations.leaky_relu, negative_slope=40.0)
    partial.__name__, steep.__name__ = name, "leaky_relu"
    layer = type(
        m.pick("ReLU", "LeakyReLU", "Activation"), (layers.Layer,), {"call": lambda self, inputs: body(inputs)}
    )
    renamed: Any = lambda x: body(x)  # noqa: E731
    renamed.__name__ = name
    module: Any = lambda x: body(x)  # noqa: E731
    module.__name__ = module.__qualname__ = name
    module.__module__ = keras.activations.relu.__module__
    return m.way(
        {
            f"a function named {name}": lambda: function,
            f"an object named {name}": kind,
            f"a partial named {name}": lambda: partial,
            "a partial of leaky_relu": lambda: steep,
            f"a lambda named {name}": lambda: renamed,
            f"a function named {name} of Keras's module": lambda: module,
            "a layer": layer,
            "a lambda": lambda: lambda x: body(x),
            "a plain partial": lambda: functools.partial(keras.activations.leaky_relu, negative_slope=40.0),
        }
    )


@trick("activations")
def named_like_a_built_in(m: Maker) -> Tensor:
    f = impostor(m)
    x = m.take(*{0: [VECTOR], 1: [SEQUENCE], 2: [IMAGE]}[m.pick(0, 0, 1, 2)])
    rank = len(x.shape)
    made: dict[str, Callable[[], Any]] = {
        "Dense": lambda: layers.Dense(x.shape[-1], activation=f),
        "Activation": lambda: layers.Activation(f),
    }
    other: dict[str, Callable[[], Any]] = {
        "Dense": lambda: layers.Dense(x.shape[-1], activation="relu"),
        "Activation": lambda: layers.Activation("tanh"),
    }
    if rank == 2:
        made["EinsumDense"] = lambda: layers.EinsumDense("ab,bc->ac", x.shape[-1], activation=f)
        made["SpectralDense"] = lambda: lip.layers.SpectralDense(x.shape[-1], activation=f)
        other["SpectralDense"] = lambda: lip.layers.SpectralDense(x.shape[-1], activation="relu")
        other["SandwichDense"] = lambda: lip.layers.SandwichDense(x.shape[-1], activation="relu")
    if rank == 3:
        made["Conv1D"] = lambda: layers.Conv1D(x.shape[-1], 3, padding="same", activation=f)
    if rank == 4:
        made["Conv2D"] = lambda: layers.Conv2D(x.shape[-1], 3, padding="same", activation=f)
        made["SeparableConv2D"] = lambda: layers.SeparableConv2D(x.shape[-1], 3, padding="same", activation=f)
        made["DepthwiseConv2D"] = lambda: layers.DepthwiseConv2D(3, padding="same", activation=f)
        other["LipConv2D"] = lambda: lip.layers.LipConv2D(x.shape[-1], 3, padding="same", activation="relu")
    inner = keras.Input(tuple(x.shape[1:]))
    where = m.pick("made with", "nested", "in a Sequential", "assigned", "assigned later")
    m.notes.append(where)
    if where.startswith("assigned"):
        layer = m.way(other)
        if where == "assigned":
            layer.activation = f
        else:
            m.later(lambda: setattr(layer, "activation", f))
        return layer(x)
    layer = m.way(made)
    if where == "nested":
        return keras.Model(inner, layer(inner))(x)
    return keras.Sequential([inner, layer])(x) if where == "in a Sequential" else layer(x)


def _times(factor: float, first: bool = False) -> Callable[..., Tensor]:
    return lambda self, *inputs: factor * (inputs[0][0] if first else inputs[0])


@trick("classes")
def layer_class_named_like_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    a, b = ops.split(x, 2, axis=-1)
    module = m.pick("user", "keras.src.layers.merging.minimum", "keras.src.layers.core.dense")
    m.notes.append(module)

    def layer(name: str, first: bool) -> Any:
        return type(name, (layers.Layer,), {"call": _times(100.0, first), "__module__": module})()

    single = m.pick("Dense", "Rescaling", "ReLU", "Flatten", "Identity", "Dropout", "InputLayer", "Sequential")
    several = m.pick("Add", "Average", "Subtract", "Minimum", "Maximum", "Concatenate")
    join = m.pick(layers.Concatenate(), lambda parts: ops.concatenate(parts, axis=-1))
    return m.way(
        {
            "a pair with Minimum": lambda: join([layer("Minimum", True)([a, b]), ops.maximum(a, b)]),
            "a pair with Maximum": lambda: join([layers.Minimum()([a, b]), layer("Maximum", True)([b, a])]),
            f"a layer named {single}": lambda: layer(single, False)(x),
            f"a layer named {several}": lambda: layer(several, True)([a, b]),
        }
    )


@trick("classes")
def op_class_named_like_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    a, b = ops.split(x, 2, axis=-1)
    single = m.pick(
        "Relu", "Tanh", "Absolute", "Sort", "Negative", "LeakyRelu", "Flip", "Copy", "Sin", "Sigmoid", "Cast"
    )
    several = m.pick("Maximum", "Minimum", "Add", "Subtract", "Concatenate")
    module = m.pick("keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.core", "user")
    state = {"axis": -1, "negative_slope": 0.1, "alpha": 1.0, "dtype": "float32", "shift": 1, "__module__": module}

    def op(name: str, factor: float = 100.0) -> Any:
        body = {"call": _times(factor), "compute_output_spec": lambda self, *xs: keras.KerasTensor(xs[0].shape)}
        return type(name, (keras.Operation,), {**state, **body})()

    m.notes.append(module)
    return m.way(
        {
            f"an op named {single}": lambda: op(single)(x),
            f"an op named {several}": lambda: op(several)(a, b),
            "a pair with an op": lambda: ops.concatenate([op("Minimum")(a, b), ops.maximum(a, b)], axis=-1),
            "a subclass of an op": lambda: type(
                "Flip", (type(ops.flip(x)._keras_history.operation),), {**state, "call": _times(100.0)}
            )(axis=-1)(x),
        }
    )


@trick("classes")
def subclass_of_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    base, arguments = m.pick(
        (layers.Dense, (4,)),
        (layers.Rescaling, (1.0,)),
        (layers.ReLU, ()),
        (layers.Activation, ("tanh",)),
        (layers.Flatten, ()),
        (lip.layers.SpectralDense, (4,)),
        (lip.layers.GroupSort2, ()),
        (lip.layers.LayerCentering, ()),
    )
    method = m.pick("call", "__call__", "quantized_call", "compute_output_shape", "_layer_checks")
    own = getattr(base, method, lambda self, x: x)
    body = {
        method: own
        if method == "compute_output_shape"
        else lambda self, *inputs, **options: 100 * own(self, *inputs, **options)
    }
    if m.chance(0.7):
        body["__module__"] = base.__module__
    if m.chance(0.2):
        body = {"kernel": property(lambda self: 100 * self._kernel)}
    m.notes.append(f"{base.__name__} with its own {', '.join(body)}")
    return type(base.__name__, (base,), body)(*arguments)(x)


@trick("classes")
def subclass_of_a_model(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    inner = keras.Input(VECTOR)
    method = m.pick("call", "__call__")
    module = m.pick("user", "keras.src.models.model")

    def wrong(base: Any) -> Any:
        own = getattr(base, method)
        body = {method: lambda self, *inputs, **options: 100 * own(self, *inputs, **options), "__module__": module}
        return type(base.__name__, (base,), body)

    m.notes.append(f"its own {method} of {module}")
    return m.way(
        {
            "Sequential": lambda: wrong(keras.Sequential)([inner, layers.Dense(4)])(x),
            "Model": lambda: wrong(keras.Model)(inner, layers.Dense(4)(inner))(x),
            "lip.Sequential": lambda: wrong(lip.Sequential)([inner, lip.layers.SpectralDense(4)])(x),
            "lip.Model": lambda: wrong(lip.Model)(inner, lip.layers.SpectralDense(4)(inner))(x),
        }
    )


@trick("classes")
def rule_over_a_built_in(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    layer = m.pick(
        layers.Dense(4), layers.Rescaling(3.0), layers.ReLU(), layers.Flatten(), layers.LeakyReLU(), layers.Identity()
    )
    m.notes.append(f"a rule for {type(layer).__name__}")
    y = layer(x)
    m.register(
        m.pick(type(layer), type(layer), lip.layers.SpectralDense, type(ops.abs(x)._keras_history.operation)), 1e-6
    )
    return y


@trick("dtypes")
def dtype_in_the_middle(m: Maker) -> Tensor:
    if m.chance(0.4):
        m.rounding = "sound"
    d = m.pick("int32", "uint8", "int8", "bool", "int64", "float16", "bfloat16", "float64", "mixed_float16")
    plain = d.replace("mixed_", "")
    m.notes.append(d)
    x = m.take(*m.pick([COLUMN], [VECTOR], [SEQUENCE]))
    shape = tuple(x.shape[1:])
    other = m.pick(d, "int32", "float16")
    if m.chance(0.2):
        x = m.pick(layers.Flatten, layers.Identity)(dtype=other)(x)
    inner = keras.Input(shape, dtype=plain)
    slow: dict[str, Any] = {"dtype": d, **({"autocast": False} if m.chance(0.2) else {})}
    edited = layers.Rescaling(1.5)
    policy = m.pick(edited, layers.Dense(4), layers.ReLU())
    activation = m.pick(
        lambda: layers.LeakyReLU(0.5, dtype=d), lambda: layers.ReLU(dtype=d), lambda: layers.Activation("relu", dtype=d)
    )
    ways: dict[str, Callable[[], Any]] = {
        "Flatten": lambda: layers.Flatten(**slow)(x),
        "Reshape": lambda: layers.Reshape((-1,), **slow)(x),
        "Identity": lambda: layers.Identity(**slow)(x),
        "Dropout": lambda: layers.Dropout(0.5, **slow)(x),
        "Rescaling": lambda: layers.Rescaling(m.pick(1.0, 1, 0.5), **slow)(x),
        "ReLU": lambda: layers.ReLU(**slow)(x),
        "Activation": lambda: layers.Activation(m.pick("linear", "relu"), **slow)(x),
        "Dense": lambda: layers.Dense(3, **slow)(x),
        "Add": lambda: layers.Add(**slow)([x, x]),
        "Maximum": lambda: layers.Maximum(**slow)([x, x * 0.5]),
        "Concatenate": lambda: layers.Concatenate(**slow)([x, x]),
        "BatchNormalization": lambda: layers.BatchNormalization(**slow)(x),
        "ops.cast": lambda: ops.cast(ops.cast(x, plain), "float32"),
        "nested input": lambda: keras.Model(
            inner, m.pick(layers.Flatten(), layers.Dense(2), layers.Rescaling(1.0))(inner)
        )(x),
        "nested Sequential": lambda: keras.Sequential([inner, layers.Dense(2)])(x),
        "activation": lambda: layers.Dense(shape[-1], activation=activation())(x),
        "activation of SpectralDense": lambda: lip.layers.SpectralDense(shape[-1], activation=activation())(x),
        "activation of Activation": lambda: layers.Activation(activation())(x),
        "policy set later": lambda: (policy(x), m.later(lambda: setattr(policy, "dtype_policy", d)))[0],
        "SpectralDense": lambda: lip.layers.SpectralDense(4, **slow)(x),
        "LayerCentering": lambda: lip.layers.LayerCentering(**slow)(x),
    }
    if len(shape) == 2:
        ways["Permute"] = lambda: layers.Permute((2, 1), **slow)(x)
        ways["Cropping1D"] = lambda: layers.Cropping1D((1, 1), **slow)(x)
        ways["ZeroPadding1D"] = lambda: layers.ZeroPadding1D(1, **slow)(x)
        ways["UpSampling1D"] = lambda: layers.UpSampling1D(2, **slow)(x)
        ways["MaxPooling1D"] = lambda: layers.MaxPooling1D(2, **slow)(x)
        ways["TimeDistributed"] = lambda: layers.TimeDistributed(layers.Dense(3, **slow))(x)
        ways["GlobalMaxPooling1D"] = lambda: layers.GlobalMaxPooling1D(**slow)(x)
    y = m.way(ways)
    if y.dtype != "float32" or m.chance(0.5):
        y = layers.Rescaling(1.0)(y)
    return y


@trick("dtypes")
def dtype_of_the_input(m: Maker) -> Tensor:
    d = m.pick("int32", "uint8", "bool", "float16", "bfloat16", "float64")
    m.notes.append(f"an input of {d}")
    x = keras.Input(VECTOR, dtype=d)
    m.inputs.append(x)
    return m.pick(layers.Dense(4), layers.Flatten(), layers.Rescaling(0.5), layers.ReLU(), lip.layers.SpectralDense(4))(
        x
    )


@trick("arguments")
def masks(m: Maker) -> Tensor:
    values = m.pick([1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0])
    array = np.array([values], m.pick("float32", "bool"))
    extra = keras.Input((5,), dtype="bool")
    mask = m.pick(array, array, ops.convert_to_tensor(array), extra)
    x = m.take(SEQUENCE)
    if mask is extra:
        m.inputs.append(extra)
    whole = np.repeat(array[:, :, None], 3, axis=2)
    inner, masked = keras.Input(SEQUENCE), keras.Input(SEQUENCE)
    pool = layers.GlobalAveragePooling1D
    model = keras.Model(inner, m.pick(pool(), layers.Dense(3), layers.BatchNormalization())(inner))
    return m.way(
        {
            "GlobalAveragePooling1D by position": lambda: pool()(x, mask),
            "GlobalAveragePooling1D by keyword": lambda: pool()(x, mask=mask),
            "GlobalAveragePooling1D, all by keyword": lambda: pool()(inputs=x, mask=mask),
            "Masking": lambda: m.pick(pool(), layers.Dense(3))(layers.Masking()(x)),
            "Softmax by position": lambda: layers.Softmax()(x, whole),
            "Softmax by keyword": lambda: layers.Softmax(axis=1)(x, mask=whole),
            "nested by position": lambda: model(x, None, mask),
            "nested by keyword": lambda: model(x, mask=mask),
            "mask inside of a nested model": lambda: keras.Model(masked, pool()(masked, array))(x),
            "Sequential by keyword": lambda: keras.Sequential([keras.Input(SEQUENCE), pool()])(x, mask=mask),
            "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(3))(x, False, mask),
            "TimeDistributed by keyword": lambda: layers.TimeDistributed(layers.Dense(3))(x, mask=mask),
            "BatchNormalization": lambda: layers.BatchNormalization()(x, False, mask),
            "BatchNormalization in training": lambda: layers.BatchNormalization()(x, training=True, mask=mask),
        }
    )


@trick("arguments")
def training(m: Maker) -> Tensor:
    value = m.pick(True, True, 1, np.bool_(True), np.array(True), ops.convert_to_tensor(True), "yes")
    x = m.take(VECTOR, SEQUENCE)
    shape = tuple(x.shape[1:])
    inner = keras.Input(shape)
    own = m.pick(
        layers.Dropout(0.5),
        layers.GaussianNoise(5.0),
        layers.GaussianDropout(0.5),
        layers.AlphaDropout(0.5),
        layers.BatchNormalization(),
        lip.layers.BatchCentering(),
        lip.layers.LipBatchNormalization(),
        keras.Sequential([layers.Dropout(0.5)]),
    )
    m.notes.append(f"{type(own).__name__}, training={value!r}")
    wrapped = layers.TimeDistributed(layers.Dropout(0.5))
    return m.way(
        {
            "by position": lambda: own(x, value),
            "by keyword": lambda: own(x, training=value),
            "all by keyword": lambda: own(inputs=x, training=value),
            "nested by position": lambda: keras.Model(inner, own(inner))(x, value),
            "nested by keyword": lambda: keras.Model(inner, own(inner))(x, training=value),
            "inside of a nested model": lambda: keras.Model(inner, own(inner, training=value))(x),
            "a Sequential by keyword": lambda: keras.Sequential([inner, own])(x, training=value),
            "a Sequential by position": lambda: keras.Sequential([inner, own])(x, value),
            "TimeDistributed": lambda: wrapped(x, value),
        }
    )


@trick("broadcasting")
def more_values_than_the_shape_shows(m: Maker) -> Tensor:
    n = m.pick(4, 4, 9)
    x = m.take(COLUMN, COLUMN, COLUMN, NARROW)
    if m.chance(0.2):
        x = layers.Concatenate()([x, x])
    c = m.array(*m.pick((n,), (n,), (1, n), (n, 1), (1, 1, n), (5, n)))
    c = np.abs(c) if m.chance(0.6) else c
    if m.chance(0.3):
        c = ops.convert_to_tensor(c)
    y = m.way(
        {
            "ops.clip": lambda: ops.clip(x, c * 0 - 9.0, c * 0 + 9.0),
            "ops.clip of one array": lambda: ops.clip(x, -9.0, c * 0 + 9.0),
            "ops.clip by keyword": lambda: ops.clip(x, x_max=c + 9, x_min=-9.0),
            "ops.maximum": lambda: ops.maximum(x, c),
            "ops.minimum by keyword": lambda: ops.minimum(x1=c, x2=x),
            "ops.add": lambda: ops.add(x, c),
            "ops.subtract": lambda: ops.subtract(c, x),
            "ops.multiply": lambda: ops.multiply(x, c),
            "ops.divide": lambda: ops.divide(x, c + 1.5),
            "ops.leaky_relu": lambda: ops.leaky_relu(x, c),
            "ops.elu": lambda: ops.elu(x, c),
            "ops.celu": lambda: ops.celu(x, c + 0.1),
            "ops.squareplus": lambda: ops.squareplus(x, c),
            "ops.soft_shrink": lambda: ops.soft_shrink(x, c),
            "LeakyReLU": lambda: _edited(m, layers.LeakyReLU(), "negative_slope", c)(x),
            "ELU": lambda: _edited(m, layers.ELU(), "alpha", c)(x),
            "ReLU": lambda: _edited(m, layers.ReLU(), "max_value", c)(x),
            "Rescaling": lambda: layers.Rescaling(1.0, c)(x),
            "Rescaling, by a factor": lambda: layers.Rescaling(np.asarray(c).tolist())(x),
            "Normalization": lambda: layers.Normalization(mean=np.ones(n), variance=np.ones(n))(x),
            "Add": lambda: layers.Add()([x, layers.Dense(n)(x)]),
            "Maximum": lambda: layers.Maximum()([x, ops.repeat(x, n, axis=-1)]),
        }
    )
    return m.pick(y, ops.sum(y, axis=-1, keepdims=True), layers.Activation("tanh")(y))


def _edited(m: Maker, layer: Any, attribute: str, value: Any) -> Any:
    m.later(lambda: setattr(layer, attribute, value))
    return layer


@trick("shared")
def shared_on_another_shape(m: Maker) -> Any:
    steep = keras.initializers.RandomUniform(1.0, 3.0)
    wide, narrow, layer = m.way(
        {
            "EinsumDense": lambda: (
                SEQUENCE,
                NARROW,
                layers.EinsumDense("abc,cd->abd", (None, 2), kernel_initializer=steep),
            ),
            "EinsumDense with dots": lambda: (SEQUENCE, NARROW, layers.EinsumDense("...c,cd->...d", (None, 2))),
            "EinsumDense ab": lambda: (VECTOR, COLUMN, layers.EinsumDense("ab,bc->ac", (3,), kernel_initializer=steep)),
            "Dense": lambda: (VECTOR, COLUMN, layers.Dense(4, kernel_initializer=steep)),
            "Dense of another rank": lambda: (VECTOR, (5, 4), layers.Dense(3)),
            "PReLU": lambda: (VECTOR, COLUMN, layers.PReLU(alpha_initializer=steep)),
            "PReLU of sequences": lambda: (SEQUENCE, NARROW, layers.PReLU(alpha_initializer=steep, shared_axes=[1])),
            "Rescaling": lambda: (VECTOR, COLUMN, layers.Rescaling(np.array([1.0, 2.0, 3.0, 4.0], "float32"))),
            "Rescaling by an offset": lambda: (
                SEQUENCE,
                NARROW,
                layers.Rescaling(1.0, np.array([1.0, 2.0, 3.0], "float32")),
            ),
            "Normalization": lambda: (VECTOR, COLUMN, layers.Normalization(mean=np.ones(4), variance=np.ones(4))),
            "LayerNormalization": lambda: (SEQUENCE, NARROW, layers.LayerNormalization(epsilon=0.1)),
            "BatchNormalization": lambda: (VECTOR, COLUMN, layers.BatchNormalization()),
            "Conv1D": lambda: (SEQUENCE, (7, 3), layers.Conv1D(2, 3)),
            "LayerCentering": lambda: (SEQUENCE, NARROW, lip.layers.LayerCentering()),
            "SpectralDense": lambda: (VECTOR, COLUMN, lip.layers.SpectralDense(4)),
            "GroupNormalization": lambda: (VECTOR, COLUMN, layers.GroupNormalization(1, epsilon=0.1)),
        }
    )
    a, c = keras.Input(wide), keras.Input(narrow)
    m.inputs += [a, c] if m.chance(0.5) else [c, a]
    first, other = layer(a), layer(c)
    if m.chance(0.3):
        other = layers.Activation("tanh")(other)
    deep = m.pick(0, 1, 2)  # which of both comes first in the graph, where the order is that of depth
    for _ in range(3):
        first, other = (
            (layers.Rescaling(1.0)(first) if deep == 1 else first),
            (layers.Rescaling(1.0)(other) if deep == 2 else other),
        )
    factor = m.pick(0.0, 0.0, 1.0)
    return [layers.Rescaling(factor)(first), other]


def _adapted(m: Maker, **options: Any) -> Any:
    layer = layers.Normalization(**options)
    layer.adapt(m.array(64, 4, size=m.pick(0.01, 60.0)) + 1)
    return layer


@trick("state")
def statistics_that_are_not_used(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    layer = m.way(
        {
            "adapted": lambda: _adapted(m),
            "inverted": lambda: _adapted(m, invert=True),
            "not adapted": layers.Normalization,
            "given": lambda: layers.Normalization(mean=np.ones(4), variance=np.ones(4)),
        }
    )
    y = layer(x)
    other = _adapted(m)
    m.way(
        {
            "set_weights": lambda: m.later(lambda: layer.set_weights(other.get_weights())),
            "set_weights of the model": lambda: m.edits.append(
                lambda model: model.set_weights([w * 0 + 9 for w in model.get_weights()])
            ),
            "variance": lambda: m.later(
                lambda: setattr(layer, "variance", ops.convert_to_tensor(np.full((1, 4), 1e-4, "float32")))
            ),
            "adapt_variance": lambda: m.later(lambda: layer.adapt_variance.assign([1e4] * 4)),
            "adapted later": lambda: m.later(lambda: layer.adapt(m.array(64, 4, size=m.pick(0.01, 60.0)))),
            "invert": lambda: m.later(lambda: setattr(layer, "invert", not layer.invert)),
        }
    )
    return y


@trick("state")
def edited_attributes(m: Maker) -> Tensor:
    """An attribute that a layer has computed with changes when the model is there."""
    x = m.take(SEQUENCE)
    big = np.float32(50.0)
    layer, attribute, value = m.pick(
        (layers.Rescaling(1.0), "scale", 50.0),
        (layers.Rescaling(1.0), "offset", 1e6),
        (layers.Rescaling(1.0), "call", lambda inputs: inputs * big),
        (layers.Dense(3), "call", lambda inputs, training=None: ops.sin(inputs * big)),
        (layers.Dense(3), "activation", lambda inputs: inputs * big),
        (layers.Dense(3), "activation", keras.activations.gelu),
        (layers.Dense(3), "_kernel", ops.convert_to_tensor(np.full((3, 3), 50.0, "float32"))),
        (layers.Dense(3), "units", 7),
        (layers.Dense(3), "bias", None),
        (layers.ReLU(), "negative_slope", 50.0),
        (layers.ReLU(), "threshold", 3.0),
        (layers.ReLU(), "max_value", 0.1),
        (layers.ReLU(), "__call__", lambda inputs: inputs * big),
        (layers.LeakyReLU(), "negative_slope", 50.0),
        (layers.ELU(), "alpha", 50.0),
        (layers.Activation("tanh"), "activation", keras.activations.silu),
        (layers.Softmax(), "axis", 0),
        (layers.Permute((1, 2)), "dims", (2, 1)),
        (layers.Dropout(0.1), "rate", 0.9),
        (layers.Flatten(), "data_format", "channels_first"),
        (layers.Reshape((15,)), "_resolved_target_shape", (5, 3)),
        (layers.Identity(), "call", lambda inputs: inputs * big),
        (layers.Dropout(0.1), "call", lambda inputs, training=False: inputs * big),
        (layers.BatchNormalization(), "epsilon", 1e-9),
        (layers.BatchNormalization(epsilon=1.0), "gamma", ops.convert_to_tensor(np.full(3, 50.0, "float32"))),
        (layers.BatchNormalization(), "scale", False),
        (layers.LayerNormalization(epsilon=1.0), "epsilon", 1e-6),
        (layers.LayerNormalization(epsilon=1.0), "axis", [0, 1, 2]),
        (layers.Conv1D(3, 3, padding="same"), "strides", (2,)),
        (layers.Conv1D(3, 3, padding="same"), "dilation_rate", (2,)),
        (layers.Conv1D(3, 3, padding="same"), "padding", "valid"),
        (layers.AveragePooling1D(2, padding="same"), "pool_size", (1,)),
        (layers.MaxPooling1D(2, padding="same"), "strides", (1,)),
        (layers.UpSampling1D(2), "size", 3),
        (layers.Cropping1D(1), "cropping", (0, 0)),
        (layers.RepeatVector(2), "n", 9),
        (layers.GlobalAveragePooling1D(), "keepdims", True),
        (layers.GlobalAveragePooling1D(), "call", lambda inputs, mask=None: ops.sum(inputs, axis=1)),
        (lip.layers.SpectralDense(3), "activation", lambda inputs: inputs * big),
        (lip.layers.SpectralDense(3), "call", lambda inputs: inputs * big),
        (lip.layers.SpectralDense(3), "k_coef_lip", 50.0),
        (lip.layers.SpectralDense(3), "bias", None),
        (lip.layers.FullSort(), "call", lambda inputs: inputs * big),
        (lip.layers.FullSort(), "k_coef_lip", 50.0),
        (lip.layers.LayerCentering(), "axis", (0,)),
        (lip.layers.FullSort(), "fold", lambda: lambda inputs: inputs * 0.01),
    )
    m.notes.append(f"{type(layer).__name__}.{attribute}")
    if isinstance(layer, layers.RepeatVector):
        x = layers.Flatten()(x)
    y = layer(x)
    return (
        m.later(
            lambda: object.__setattr__(layer, attribute, value) if m.chance(0.3) else setattr(layer, attribute, value)
        )
        or y
    )


@trick("state")
def edited_otherwise(m: Maker) -> Tensor:
    x = m.take(VECTOR)
    inner = keras.Input(VECTOR)
    nested = m.pick(keras.Model(inner, layers.Dense(4)(inner)), keras.Sequential([inner, layers.Dense(4)]))
    wrong = type("ReLU", (layers.ReLU,), {"call": _times(50.0)})
    layer = m.pick(layers.Dense(4), layers.BatchNormalization(), layers.PReLU(), lip.layers.SpectralDense(4))

    def op(y: Tensor, attribute: str, value: Any) -> Tensor:
        m.later(lambda: setattr(y._keras_history.operation, attribute, value))
        return y

    def change_class(changed: Any, kind: type) -> Tensor:
        y = changed(x)
        m.later(lambda: setattr(changed, "__class__", kind))
        return y

    def spoil(model: Any) -> None:
        weight = m.pick(*layer.weights)
        weight.assign(np.full(weight.shape, m.pick(np.nan, np.inf)))

    return m.way(
        {
            "__class__ to a subclass": lambda: change_class(layers.ReLU(), wrong),
            "__class__ to another": lambda: change_class(layers.ReLU(), layers.Identity),
            "NaN or infinite weights": lambda: (layer(x), m.edits.append(spoil))[0],
            "call of a nested model": lambda: (
                nested(x),
                m.later(lambda: setattr(nested, "call", lambda *a, **k: a[0] * 50.0)),
            )[0],
            "call of the model": lambda: (
                layer(x),
                m.edits.append(
                    lambda model: setattr(model, "call", lambda inputs, **k: keras.tree.flatten(inputs)[0] * 50.0)
                ),
            )[0],
            "a layer of a nested model": lambda: (
                nested(x),
                m.later(lambda: setattr(nested.layers[-1], "activation", lambda y: y * 50.0)),
            )[0],
            "negative_slope of an op": lambda: op(ops.leaky_relu(x), "negative_slope", 50.0),
            "axis of an op": lambda: op(ops.softmax(x), "axis", 0),
            "axis of a sort": lambda: op(ops.sort(x), "axis", 0),
            "axis of a flip": lambda: op(ops.flip(x, axis=-1), "axis", 0),
            "x_max of an op": lambda: op(ops.clip(x, -1.0, 1.0), "x_max", np.full(4, 5.0, "float32")),
            "call of an op": lambda: op(ops.abs(x), "call", lambda y: y * 50.0),
            "ord of a norm": lambda: op(ops.norm(x, axis=-1, keepdims=True), "ord", 1),
            "shift of a roll": lambda: op(ops.roll(x, 1, axis=1), "axis", 0),
        }
    )


def _dense_net(*between: Any, head: Any = None) -> Any:
    return keras.Sequential([keras.Input(VECTOR), *between, head or layers.Dense(3)])


def _two_inputs(*, swapped: bool = False, names: tuple[str, str] | None = None, flip: bool = False) -> Any:
    a, b = keras.Input(VECTOR, name="a"), keras.Input(VECTOR, name="b")
    y, z = layers.Dense(3)(layers.Rescaling(0.01)(a)), layers.Dense(3)(layers.Rescaling(10.0)(b))
    outputs: Any = [z, y] if flip else [y, z]
    return keras.Model([b, a] if swapped else [a, b], dict(zip(names, outputs, strict=True)) if names else outputs)


def _convolutional(**options: Any) -> Any:
    return keras.Sequential([keras.Input(IMAGE), layers.Conv2D(3, 3, **options), layers.GlobalAveragePooling2D()])


@trick("stale")
def certificate_of_another_model(m: Maker) -> None:
    def with_op(function: Callable[[Tensor], Tensor]) -> Any:
        x = keras.Input(VECTOR)
        return keras.Model(x, layers.Dense(3)(function(x)))

    def nested(scale: float) -> Any:
        x, inner = keras.Input(VECTOR), keras.Input(VECTOR)
        return keras.Model(x, layers.Dense(3)(keras.Model(inner, layers.Rescaling(scale)(inner))(x)))

    one, two = m.way(
        {
            "one more Rescaling": lambda: (_dense_net(), _dense_net(layers.Rescaling(100.0))),
            "another Rescaling": lambda: (_dense_net(layers.Rescaling(1.0)), _dense_net(layers.Rescaling(100.0))),
            "another activation": lambda: (_dense_net(layers.Dense(4, "sigmoid")), _dense_net(layers.Dense(4, "selu"))),
            "another layer": lambda: (_dense_net(layers.ReLU()), _dense_net(layers.LeakyReLU(30.0))),
            "one more ReLU": lambda: (_dense_net(), _dense_net(layers.ReLU())),
            "an op's argument": lambda: (with_op(lambda x: x * 2.0), with_op(lambda x: x * 20.0)),
            "an op's array": lambda: (with_op(lambda x: x * np.ones(4)), with_op(lambda x: x * np.full(4, 9.0))),
            "another op": lambda: (with_op(lambda x: ops.sort(x)), with_op(lambda x: ops.flip(x, axis=-1))),
            "inside of a nested model": lambda: (nested(1.0), nested(50.0)),
            "inputs swapped": lambda: (_two_inputs(), _two_inputs(swapped=True)),
            "outputs swapped": lambda: (_two_inputs(), _two_inputs(flip=True)),
            "names of heads swapped": lambda: (_two_inputs(names=("p", "q")), _two_inputs(names=("q", "p"))),
            "names and heads swapped": lambda: (
                _two_inputs(names=("p", "q")),
                _two_inputs(names=("p", "q"), flip=True),
            ),
            "another stride": lambda: (_convolutional(strides=2), _convolutional(strides=1)),
            "another padding": lambda: (_convolutional(), _convolutional(padding="same")),
            "another epsilon": lambda: (
                _dense_net(layers.BatchNormalization(epsilon=1.0)),
                _dense_net(layers.BatchNormalization(epsilon=1e-3)),
            ),
            "our layers": lambda: (_dense_net(lip.layers.FullSort()), _dense_net(lip.layers.FullSort(k_coef_lip=50.0))),
        }
    )
    if one.output_names != two.output_names or m.notes[-1] != "outputs swapped":
        two.set_weights(one.get_weights())
    certificate = m.certify(one)
    inputs = [m.array(8, *tensor.shape[1:]) for tensor in two.inputs]
    labels: Any = [np.zeros(8, int) for _ in two.outputs]
    if isinstance(two._outputs_struct, dict):
        labels = dict(zip(two.output_names, labels, strict=True))
    data = (inputs if len(inputs) > 1 else inputs[0], labels if len(two.outputs) > 1 else labels[0])
    m.model = two
    m.ask(
        lambda: m.way(
            {
                "certified_accuracy": lambda: lip.certified_accuracy(two, data, [0.1], certificate=certificate),
                "verify": lambda: certificate.verify(two),
            }
        )
    )
    raise Outcome("unsound", "the certificate of another model was accepted")


@trick("served")
def radii_of_extreme_inputs(m: Maker) -> None:
    """The radii that go along with an exported model, on a runtime that makes of infinities and NaN what it likes."""
    m.rounding = m.pick("exact", "sound")
    head = m.pick(1, 3)
    limits = m.pick(None, None, (-1e30, 1e30), (-3e38, 3e38), (0.0, 1.0))
    model = keras.Sequential(
        [keras.Input(VECTOR), layers.Dense(8, activation=m.pick("hard_tanh", "relu", "relu6")), layers.Dense(head)]
    )
    options: dict[str, Any] = {"input_range": limits} if limits else {}
    if m.chance(0.3):
        options["input_scale"] = float(10.0 ** m.rng.uniform(-30, 30))
    certificate = m.certify(model, **options)
    plain = m.ask(lambda: lip.vanilla_model(model))
    served = m.ask(lambda: radius_model(plain, certificate))
    inputs = m.array(64, 4) * 10.0 ** m.rng.uniform(-45, 38, (64, 1))
    inputs = np.clip(inputs, -3.4e38, 3.4e38).astype("float32")
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
    greatest, least, root = backend.maximum, backend.minimum, backend.sqrt

    def replaced(own: Any, second: bool) -> Any:
        def extremum(a: Any, b: Any) -> Any:
            a, b = keras.src.backend.convert_to_tensor(a), keras.src.backend.convert_to_tensor(b)
            undefined = backend.logical_or(backend.isnan(a), backend.isnan(b))
            return backend.where(undefined, b if second else a, own(a, b))

        return extremum

    def square_root(x: Any) -> Any:
        return backend.where(backend.isfinite(x), root(x), np.float32(np.nan))

    with (
        mock.patch.object(backend, "maximum", replaced(greatest, m.chance(0.5))),
        mock.patch.object(backend, "minimum", replaced(least, m.chance(0.5))),
        mock.patch.object(backend, "sqrt", square_root),
    ):
        yield


@trick("signs")
def outputs_of_one_sign(m: Maker) -> None:
    x = m.take(VECTOR)
    units = m.pick(1, 1, 3)
    logit = layers.Dense(units)(x)
    name = m.pick(
        "sigmoid", "softplus", "relu", "relu6", "hard_sigmoid", "exponential", "sparse_sigmoid", "sparse_plus"
    )
    y = m.way(
        {
            f"Dense of {name}": lambda: layers.Dense(units, activation=name)(x),
            f"Activation of {name}": lambda: layers.Activation(name)(logit),
            "ReLU": lambda: layers.ReLU()(logit),
            "ops.abs": lambda: ops.abs(logit),
            "ops.relu": lambda: ops.relu(logit),
            "ops.softplus": lambda: ops.softplus(logit),
            "ops.sigmoid": lambda: ops.sigmoid(logit),
            "ops.norm": lambda: ops.norm(layers.Dense(4)(x), axis=-1, keepdims=True),
            "ops.maximum": lambda: ops.maximum(logit, m.pick(0.0, 2.0)),
            "Maximum": lambda: layers.Maximum()([logit, layers.Activation("sigmoid")(logit)]),
            "ops.maximum of both signs": lambda: ops.maximum(logit, -logit),
            "ops.clip": lambda: ops.clip(logit, 0.0, 5.0),
            "a negative LeakyReLU": lambda: layers.LeakyReLU(-1.0)(logit),
            "Abs": lambda: lip.layers.Abs()(logit),
            "Softmax": lambda: layers.Dense(units, activation="softmax")(x),
            "log_sigmoid": lambda: layers.Dense(units, activation="log_sigmoid")(x),
            "ReLU with a largest value": lambda: layers.ReLU(max_value=3.0)(logit),
        }
    )
    units, first = y.shape[-1], y
    inner = keras.Input((units,))
    for _ in range(m.pick(0, 1, 1, 2)):
        before = y
        y = m.way(
            {
                "Reshape": lambda before=before: layers.Reshape((units,))(before),
                "Flatten": lambda before=before: layers.Flatten()(before),
                "Identity": lambda before=before: layers.Identity()(before),
                "Dropout": lambda before=before: layers.Dropout(0.2)(before),
                "Rescaling": lambda before=before: layers.Rescaling(m.pick(3.0, -2.0, 0.01))(before),
                "ops.multiply": lambda before=before: before * 2.5,
                "ops.negative": lambda before=before: -before,
                "Concatenate and a slice": lambda before=before: layers.Concatenate()([before, before])[:, :units],
                "pooling": lambda before=before: layers.GlobalMaxPooling1D()(layers.Reshape((1, units))(before)),
                "ops.mean": lambda before=before: ops.mean(ops.stack([before, before], axis=1), axis=1),
                "nested": lambda before=before: keras.Model(inner, layers.Identity()(inner))(before),
                "nested ReLU": lambda before=before: keras.Sequential([inner, layers.Rescaling(0.5)])(before),
                "BatchNormalization": lambda before=before: layers.BatchNormalization()(before),
                "Add": lambda before=before: layers.Add()([before, before]),
                "ops.reshape": lambda before=before: ops.reshape(before, (-1, units)),
                "ops.squeeze": lambda before=before: ops.squeeze(ops.expand_dims(before, 1), 1),
            }
        )
    task: dict[str, Any] = {"task": "multilabel"} if units > 1 or m.chance(0.2) else {}
    if m.chance(0.3):
        m.honest = True
        between = layers.Rescaling(1.0, -0.25)(first) if name != "exponential" else logit
        y = m.way(
            {
                "and a Dense": lambda: layers.Dense(units)(first if name != "exponential" else logit),
                "and an offset": lambda: layers.Dense(units, use_bias=False)(between),
                "and not": lambda: layers.Activation("tanh")(logit),
                "and a difference": lambda: layers.Subtract()([layers.ReLU()(logit), layers.ReLU()(-logit)]),
            }
        )
        m.certify(m.build(y), **task)
        raise Outcome("sound")
    m.certify(m.build(y), **task)
    raise Outcome("unsound", "an output of one sign has radii")


@trick("samples")
def between_samples(m: Maker) -> Tensor:
    x = m.take(VECTOR, SEQUENCE)
    rank = len(x.shape)
    axis = m.pick(0, -rank)
    flat = (-1, 2) if rank == 2 else (-1, 5)
    nested = keras.Input(tuple(x.shape[1:]))
    y = m.way(
        {
            "ops.flip": lambda: ops.flip(x, axis=axis),
            "ops.flip of all": lambda: ops.flip(x),
            "ops.roll": lambda: ops.roll(x, 1, axis=axis),
            "ops.roll of all": lambda: ops.roll(x, 1),
            "ops.sort": lambda: ops.sort(x, axis=axis),
            "ops.softmax": lambda: ops.softmax(x, axis=axis),
            "ops.softmax of two axes": lambda: ops.softmax(x, axis=(0, 1)),
            "ops.mean": lambda: x - ops.mean(x, axis=axis, keepdims=True),
            "ops.max": lambda: x + ops.max(x, axis=axis, keepdims=True),
            "ops.sum of all": lambda: x + ops.sum(x),
            "ops.norm": lambda: x + ops.norm(x, axis=axis, keepdims=True),
            "ops.logsumexp": lambda: x + ops.logsumexp(x, axis=axis, keepdims=True),
            "ops.cumsum": lambda: ops.cumsum(x, axis=axis),
            "ops.take": lambda: ops.take(x, [0, 0, 0], axis=axis),
            "ops.take of all": lambda: ops.take(x, [[0, 1]], axis=None),
            "a slice": lambda: x + x[:1],
            "an index": lambda: x + x[2],
            "backwards": lambda: x[::-1],
            "a long index": lambda: x[..., None][::-1][..., 0],
            "ops.reshape": lambda: ops.reshape(ops.transpose(ops.reshape(x, flat), (1, 0)), (-1, *x.shape[1:])),
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
            "Softmax": lambda: layers.Softmax(axis=axis)(x),
            "Softmax of two axes": lambda: layers.Softmax(axis=(axis, 1))(x),
            "Dense of softmax": lambda: layers.Dense(3, activation=layers.Softmax(axis=axis))(x),
            "LayerNormalization": lambda: layers.LayerNormalization(axis=[axis, 1], epsilon=0.1)(x),
            "BatchNormalization": lambda: layers.BatchNormalization(axis=axis)(x),
            "GroupNormalization": lambda: layers.GroupNormalization(1, axis=axis)(x),
            "RMSNormalization": lambda: layers.RMSNormalization(axis=axis, epsilon=0.1)(x),
            "UnitNormalization": lambda: layers.UnitNormalization(axis=axis)(x),
            "LayerCentering": lambda: lip.layers.LayerCentering(axis=axis)(x),
            "nested": lambda: keras.Model(nested, ops.flip(nested, axis=axis))(x),
            "TimeDistributed": lambda: layers.TimeDistributed(layers.Softmax(axis=0))(x),
            "ops.matmul": lambda: ops.matmul(np.ones((1, 3), "float32"), x),
            "ops.einsum": lambda: ops.einsum("a...->...", x),
            "EinsumDense": lambda: layers.EinsumDense("ab,bc->ca" if rank == 2 else "abc,cd->bad", (None, 3))(x),
            "Permute": lambda: layers.Permute((0, 1))(x),
            "PReLU": lambda: layers.PReLU(shared_axes=[0])(x),
        }
    )
    return layers.Rescaling(1.0)(y) if m.chance(0.3) else y


@trick("nested")
def nested_models(m: Maker) -> Any:
    p, q = (keras.Input(VECTOR, name=name) for name in m.pick(("a", "b"), ("b", "a"), ("x", "y")))
    h = layers.Add()([layers.Rescaling(30.0)(p), layers.Rescaling(0.03)(q)])
    if m.chance(0.5):
        h = layers.Dense(4)(h)
    outputs = m.pick(h, h, {"v": h, "u": layers.Rescaling(0.1)(q)}, [h, layers.Rescaling(0.1)(p)])
    kind, inputs = m.pick(
        ("list", [p, q]),
        ("list", [q, p]),
        ("tuple", (p, q)),
        ("dict", {"a": p, "b": q}),
        ("dict", {"b": p, "a": q}),
        ("dict", {"z": p, "c": q}),
        ("dict", {p.name: p, q.name: q}),
        ("nested dict", {"z": [p], "c": {"d": q}}),
    )
    model = keras.Model(inputs, outputs)
    x = m.take(VECTOR)
    left, right = layers.Rescaling(1.0)(x), layers.Rescaling(0.001)(m.pick(x, layers.Dense(4)(x)))
    keys = m.pick(("a", "b"), ("b", "a"), ("z", "c"), ("c", "z"), (p.name, q.name), (q.name, p.name))
    if m.chance(0.4) and isinstance(inputs, dict):
        keys = m.pick(tuple(inputs), tuple(inputs)[::-1])
    extra = m.pick(right, None)
    m.notes.append(f"{kind} {list(inputs) if isinstance(inputs, dict) else [p.name, q.name]}, by {keys}")
    y = m.way(
        {
            "by a list": lambda: model([left, right]),
            "by a tuple": lambda: model((left, right)),
            "by position": lambda: model(left, right),
            "by a dict": lambda: model(dict(zip(keys, (left, right), strict=True))),
            "by the same dict": lambda: model(dict(zip(keys[::-1], (right, left), strict=True))),
            "by a keyword": lambda: model(inputs=[left, right]),
            "by a dict as keyword": lambda: model(inputs=dict(zip(keys, (left, right), strict=True))),
            "with a key too many": lambda: model({keys[0]: left, keys[1]: right, "more": extra}),
            "with one too many": lambda: model([left, right, extra]),
            "by a nested list": lambda: model([[left], right]),
            "by a nested dict": lambda: model({"z": [left], "c": {"d": right}}),
            "by the same tensor twice": lambda: model([left, left]),
            "by a constant": lambda: model([left, np.ones((1, 4), "float32")]),
            "twice": lambda: model([m.pick(model([left, right]), left), right]),
        }
    )
    if isinstance(y, (list, tuple, dict)) and m.chance(0.6):
        return keras.tree.flatten(y)[m.pick(0, 1)]
    return keras.tree.flatten(y)


class Noisy(layers.Layer):
    """Adds other numbers at each call."""

    def call(self, inputs: Tensor) -> Tensor:
        return inputs + keras.random.normal(ops.shape(inputs))


@trick("numbers")
def random_numbers(m: Maker) -> Tensor:
    """Only computing can show it, so the check by numbers is left on."""
    m.options.clear()
    m.register(Noisy, 1.0)
    return Noisy()(m.take(VECTOR))


@trick("numbers")
def too_large_or_too_small(m: Maker) -> Tensor:
    if m.chance(0.3):
        m.rounding = "sound"
    x = m.take(VECTOR)
    size = m.pick(1e30, 1e-30, 1e-38, 1e-42, 3e38, 1e20)
    tiny = m.pick(1e-50, 1e-40, 1e-30, 0.0)
    constant = keras.initializers.Constant(size)
    m.notes.append(f"{size}, {tiny}")
    zero = keras.initializers.Zeros()

    def chain(y: Tensor, *makers: Callable[[], Any]) -> Tensor:
        for make in makers:
            y = make()(y)
        return y

    dense = functools.partial(layers.Dense, 4, kernel_initializer=constant)
    return m.way(
        {
            "Dense": lambda: chain(x, dense),
            "two Dense": lambda: chain(x, dense, dense),
            "many Dense": lambda: chain(x, *([dense] * 12)),
            "Dense and its inverse": lambda: chain(x, dense, lambda: layers.Rescaling(1 / size)),
            "Rescaling": lambda: layers.Rescaling(size)(layers.Rescaling(1 / size)(x)),
            "many Rescaling": lambda: chain(x, *([lambda: layers.Rescaling(size)] * 12)),
            "Rescaling beyond float32": lambda: layers.Rescaling(m.pick(1e300, 1e60, 1e-60, np.inf, np.nan))(x),
            "ops.multiply": lambda: (x * size) * (1 / size),
            "ops.divide": lambda: ops.divide(x, m.pick(size, tiny)),
            "SpectralDense": lambda: lip.layers.SpectralDense(4, k_coef_lip=size)(x),
            "LayerNormalization": lambda: layers.LayerNormalization(epsilon=tiny)(x),
            "RMSNormalization": lambda: layers.RMSNormalization(epsilon=tiny)(x),
            "GroupNormalization": lambda: layers.GroupNormalization(2, epsilon=tiny)(x),
            "BatchNormalization": lambda: layers.BatchNormalization(
                epsilon=tiny, moving_variance_initializer=m.pick(zero, constant)
            )(x),
            "LipBatchNormalization": lambda: lip.layers.LipBatchNormalization(epsilon=tiny)(x),
            "Normalization": lambda: layers.Normalization(mean=[0.0] * 4, variance=[m.pick(tiny, size)] * 4)(x),
            "ELU": lambda: layers.ELU(size)(x),
            "LeakyReLU": lambda: layers.LeakyReLU(m.pick(size, np.nan, np.inf))(x),
            "PReLU": lambda: layers.PReLU(alpha_initializer=keras.initializers.Constant(m.pick(size, np.nan)))(x),
            "exponential": lambda: layers.Dense(4, activation=m.pick("softplus", "mish", "squareplus", "selu"))(
                x * size
            ),
            "smooth absolute value": lambda: ops.sqrt(ops.square(x) + tiny),
            "SoftHuber": lambda: lip.layers.SoftHuber(delta=m.pick(1e-30, 1e-20, 1e30))(x),
            "no values": lambda: layers.Dense(2)(x[:, 4:]),
            "no values in a concatenation": lambda: layers.Concatenate()([x, x[:, :0]]),
            "a split without values": lambda: layers.Dense(2)(ops.split(x, [4], axis=-1)[1]),
            "an input without values": lambda: layers.Dense(2)(_empty_input(m)),
            "no outputs": lambda: x[:, 2:2],
            "no units": lambda: layers.Dense(0)(x),
        }
    )


def _empty_input(m: Maker) -> Tensor:
    m.inputs[:] = [keras.Input((0,))]
    return m.inputs[0]


# --- looking for what a certificate rules out ------------------------------------------------------------------------


class CannotRun(Exception):
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
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shapes = [tuple(size or 3 for size in tensor.shape[1:]) for tensor in model.inputs]
        self._dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in model.inputs]
        self._ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        self.size = int(self._ends[-1])
        self.singles = False

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

    def allowed(self, a: Array, b: Array, fa: Array, fb: Array) -> Array:
        """Returns how far outputs may move by the rounding of float32."""
        largest = np.linalg.norm(fa, axis=1) + np.linalg.norm(fb, axis=1)
        reached = self.constant * (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1))
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
        result: Array = np.where(undefined, np.inf if self.constant < 1e30 else 0.0, found) * small
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
                f"certified {self.constant:.6g}, found the slope {slope:.6g} ({scores[worst]:.4g} times what some bound "
                f"allows) between {where}",
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
            differ = np.any(self._answers(fa) != self._answers(fb), axis=1)
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
    raise Outcome("sound")


# --- runs ------------------------------------------------------------------------------------------------------------


def run_graph(seed: int, number: int, families: Sequence[str], *, show: bool = False) -> tuple[Maker, str, Outcome]:
    """Draws one graph and returns what became of it."""
    rng = np.random.default_rng([seed, number])
    family = families[int(rng.integers(len(families)))]
    while True:
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
    for number in range(first, first + graphs):
        if time.monotonic() - begin > seconds:
            break
        m, family, outcome = run_graph(seed, number, list(counts))
        counts[family][outcome.kind] += 1
        foreign += outcome.foreign
        if outcome.kind in FAILURES:
            chosen = "".join(f" --family {name}" for name in families or [])
            command = f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/falsify.py --seed {seed}{chosen} --only {number}"
            failures.append(Failure(number, family, outcome.kind, "; ".join(m.notes), outcome.why, command))
            if stop_when_unsound and outcome.kind == "unsound":
                break
        if (number + 1 - first) % 250 == 0:
            del m
            keras.utils.clear_session(free_memory=False)
            gc.collect()
            if progress:
                done, rate = number + 1 - first, (number + 1 - first) / (time.monotonic() - begin)
                print(f"{done} graphs, {len(failures)} failures, {rate:.1f} a second", file=sys.stderr, flush=True)
    return Report({name: dict(own) for name, own in counts.items()}, failures, foreign, time.monotonic() - begin)


class Mutation(NamedTuple):
    """A fix that is taken out, and the family of tricks that must then break a certificate."""

    family: str
    without: Callable[[], contextlib.AbstractContextManager[Any]]


# By what each fix does. Names that the library does not have make a mutation fail.
MUTATIONS: dict[str, Mutation] = {
    "outputs of one sign are refused": Mutation(
        "signs", lambda: mock.patch("deel_like_lip.certificates._check_signs", lambda *args, **kwargs: None)
    ),
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
