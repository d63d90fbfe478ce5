"""Functions of tensors that are compiled by themselves, on the backend where that pays."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import keras

_Function = TypeVar("_Function", bound=Callable[..., Any])


def fused(function: _Function) -> _Function:
    """Compiles a function by XLA where TensorFlow would run it operation by operation, each through memory.

    A training step that TensorFlow compiles as a whole includes it. Torch, and TensorFlow where XLA does not work, run
    the function as it is; JAX compiles all the same. As a decorator.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if keras.backend.backend() != "tensorflow" or not _xla_works():
            return function(*args)
        return _compiled_by_xla(function)(*args)

    return run  # type: ignore[return-value]


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
def _compiled_by_xla(function: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow

    compiled: Callable[..., Any] = tensorflow.function(function, jit_compile=True, autograph=False)
    return compiled


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


@functools.cache
def _xla_works() -> bool:
    """Whether TensorFlow can compile for the device that it uses, which it cannot for each."""
    import tensorflow

    with tensorflow.init_scope():
        try:
            tensorflow.function(lambda x: x + 1, jit_compile=True)(tensorflow.zeros(1))
        except (tensorflow.errors.OpError, ValueError):
            return False
    return True
