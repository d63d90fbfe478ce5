"""The fingerprint of a model: of its graph, what its layers were made with, and its weights."""

import hashlib
import json
import re
from typing import Any

import keras
import numpy as np

from deel_like_lip._keras import functional_graph
from deel_like_lip.bounds.admission import config_of, matters, op_arguments
from deel_like_lip.bounds.patterns import producer
from deel_like_lip.bounds.rules import Call, is_op, rule_of, to_float64

# Names that Keras gives to inputs that were given none. They count the tensors of a process.
_AUTOMATIC = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


def fingerprint(plain: keras.Model) -> str:
    """Returns a SHA-256 of all that a folded model computes with.

    It covers the order, names, shapes and types of inputs, the class and arguments of each layer and op, how they are
    connected and called, the constants in the graph, weights, and the order of outputs. Names of layers are not
    in it, which differ between two models that the same program made.

    Args:
        plain: The model.

    Raises:
        CannotBoundError: If it is not certain which argument of a call is which.
    """
    digest = hashlib.sha256()
    for line in _Lines().of_model(plain):
        digest.update(line if isinstance(line, bytes) else json.dumps(line, default=_as_json).encode())
        digest.update(b"\n")
    return digest.hexdigest()


class _Lines:
    """The lines that describe one model. Tensors and operations go by numbers, in the order of their use."""

    def __init__(self) -> None:
        self._tensors: dict[int, int] = {}
        self._operations: dict[int, int] = {}
        self._lines: list[Any] = []

    def of_model(self, model: Any) -> list[Any]:
        graph = functional_graph(model)
        for path, tensor in keras.tree.flatten_with_path(graph.input):
            self._tensors[id(tensor)] = len(self._tensors)
            name = None if _AUTOMATIC.fullmatch(tensor.name) else tensor.name
            self._lines.append(["input", path, name, tensor.shape, str(tensor.dtype)])
        for path, tensor in keras.tree.flatten_with_path(graph.output):
            self._add(tensor)
            self._lines.append(["output", path, self._tensors[id(tensor)]])
        return self._lines

    def _add(self, tensor: Any) -> None:
        """Adds the call that a tensor comes from, after those that it depends on."""
        stack: list[tuple[Any, Call | None]] = [(tensor, None)]
        while stack:
            one, call = stack.pop()
            if call is not None:
                self._add_call(call)
            elif id(one) not in self._tensors:
                call = producer(one)
                assert call is not None
                stack.append((one, call))
                stack.extend((source, None) for source in reversed(call.inputs))

    def _add_call(self, call: Call) -> None:
        if id(call.outputs[0]) in self._tensors:
            return
        operation = call.operation
        if id(operation) not in self._operations:
            self._operations[id(operation)] = len(self._operations)
            self._lines.extend(_operation(operation))
        arguments = {
            name: keras.tree.map_structure(self._argument, value)
            for name, value in sorted(call.arguments.items())
            if value is not None and name != "training"
        }
        self._lines.append(["call", self._operations[id(operation)], arguments])
        for output in call.outputs:
            self._tensors[id(output)] = len(self._tensors)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, keras.KerasTensor):
            return {"tensor": self._tensors[id(value)]}
        if keras.ops.is_tensor(value) or isinstance(value, np.ndarray):
            return to_float64(value).tolist()
        return value


def _operation(operation: Any) -> list[Any]:
    """Returns the lines of a layer, op or nested model."""
    if isinstance(operation, keras.Model):
        return ["model", *_Lines().of_model(operation), "end"]
    kind = type(operation)
    where = "" if kind.__module__.startswith("keras.") else f"{kind.__module__}."
    if is_op(operation):
        return [["op", where + kind.__name__, _without_nothing(op_arguments(operation))]]
    rule = rule_of(operation)
    config = {
        name: value
        for name, value in config_of(operation).items()
        if name == "dtype" or (matters(name) and (rule is None or rule.config is None or name in rule.config))
    }
    if isinstance(operation, keras.layers.Normalization):
        config["keras.config.epsilon"] = keras.config.epsilon()
    elif isinstance(operation, keras.layers.Rescaling) and np.ndim(operation.scale):
        config["keras.config.image_data_format"] = keras.config.image_data_format()
    lines: list[Any] = [["layer", where + kind.__name__, _without_nothing(config)]]
    for weight in operation.weights:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        lines += [["weight", array.dtype.str, array.shape], array.tobytes()]
    return lines


def _without_nothing(value: Any) -> Any:
    """Leaves out entries that are None, which another version of Keras may not have, and names of layers inside."""
    if isinstance(value, dict):
        return {
            str(name): _without_nothing(entry)
            for name, entry in sorted(value.items())
            if (entry is not None and matters(name)) or name == "dtype"
        }
    return [_without_nothing(entry) for entry in value] if isinstance(value, list | tuple) else value


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic) or keras.ops.is_tensor(value) or isinstance(value, np.ndarray):
        return to_float64(value).tolist()
    return repr(value)
