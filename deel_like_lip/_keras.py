"""What this library takes from Keras that Keras does not export."""

import contextlib
import functools
import importlib
import random
from collections.abc import Iterator
from typing import Any

_OP_MODULES = ("core", "numpy", "nn", "math", "linalg", "image")


@functools.cache
def op_class(name: str) -> type | None:
    """Returns the class behind a function of `keras.ops`, or None where this version of Keras has none of that name.

    A functional model holds instances of these classes.
    """
    for module in _OP_MODULES:
        found = getattr(importlib.import_module(f"keras.src.ops.{module}"), name, None)
        if isinstance(found, type):
            return found
    return None


def functional_graph(model: Any) -> Any:
    """Returns the functional model that a built model computes with: itself, or the one inside of a `Sequential`."""
    return getattr(model, "_functional", None) or model


def nodes(model: Any) -> list[Any]:
    """Returns the calls of a functional model, in an order of computation, without those of its inputs."""
    by_depth = functional_graph(model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def functional_class() -> type:
    """Returns the class that `keras.Model(inputs, outputs)` makes an instance of."""
    found: type = importlib.import_module("keras.src.models.functional").Functional
    return found


@contextlib.contextmanager
def kept_randomness() -> Iterator[None]:
    """Leaves Python's random numbers as they are, from which Keras draws a seed for each initializer that it makes."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
