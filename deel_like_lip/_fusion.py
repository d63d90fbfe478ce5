"""How the backend computes a part of a computation: compiled by itself where that pays, in full precision."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import keras

_Function = TypeVar("_Function", bound=Callable[..., Any])


def one_pass() -> contextlib.AbstractContextManager[None]:
    """Has TensorFlow compile the operations of the block together, where it would take each through memory by itself.

    For graphs of TensorFlow. What is compiled as a whole, by TensorFlow or JAX, needs no such block; a function that is
    compiled inside of it would keep TensorFlow's XLA from its fast convolutions. Gradients are not covered.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        if not tensorflow.executing_eagerly():
            scope: contextlib.AbstractContextManager[None] = tensorflow.xla.experimental.jit_scope()
            return scope
    return contextlib.nullcontext()


def full_precision() -> contextlib.AbstractContextManager[None]:
    """Has JAX keep all digits in float32 products of the block, which it shortens to ten bits (TF32) on many GPUs.

    Torch keeps them unless told otherwise. TensorFlow has one switch for a whole process, which is the user's.
    """
    if keras.backend.backend() == "jax":
        import jax

        precision: contextlib.AbstractContextManager[None] = jax.default_matmul_precision("highest")
        return precision
    return contextlib.nullcontext()


def compiled(function: _Function) -> _Function:
    """Compiles a function on JAX, and makes a graph of it on TensorFlow, once for each shape.

    Control flow would otherwise be compiled anew at each call outside of a step, and traced anew for each layer inside
    of one. As a decorator. The first argument is a tensor, the others are hashable.
    """

    @functools.wraps(function)
    def run(tensor: Any, *static: Any) -> Any:
        if keras.backend.backend() == "torch":
            return function(tensor, *static)
        return _compiled(function, len(static))(tensor, *static)

    return run  # type: ignore[return-value]


@functools.cache
def _compiled(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    result: Callable[..., Any]
    if keras.backend.backend() == "jax":
        import jax

        result = jax.jit(function, static_argnums=tuple(range(1, count + 1)))
    else:
        import tensorflow

        result = tensorflow.function(function, autograph=False)
    return result
