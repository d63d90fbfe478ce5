"""One projection of all constrained kernels of a model, compiled once for each set of kernels."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from deel_like_lip._fusion import full_precision
from deel_like_lip._typing import Tensor
from deel_like_lip.layers.base import ConstrainedKernel
from deel_like_lip.parametrizations import Parametrization


def renormalize(model: keras.Model) -> None:
    """Projects every constrained kernel of a model onto the allowed kernels, once.

    Within `fit` the layers do this by themselves. It is meant for loops that are written by hand with an optimizer that
    is not of Keras, and for weights that were set, averaged or edited.

    Args:
        model: A built model, in which constrained layers may be nested.

    Raises:
        ValueError: If a constrained layer of the model is not built.

    Example:
        >>> renormalize(model)
    """
    layers = list(constrained_layers(model))
    for layer in layers:
        if not layer.built:
            raise ValueError(
                f"The {type(layer).__name__} layer '{layer.name}' is not built, so it has no kernel to project. Call "
                "the model on data or give it an `Input` first."
            )
    layers = [layer for layer in layers if layer.parametrization.constraint is not None]
    if layers:
        kernels = [layer.stored_kernel for layer in layers]
        tensors = [keras.ops.convert_to_tensor(kernel) for kernel in kernels]
        projected = _compiled_projection()(tuple(layer.parametrization for layer in layers), tensors)
        for kernel, value in zip(kernels, projected, strict=True):
            kernel.assign(value)


def constrained_layers(model: keras.Model) -> Iterator[ConstrainedKernel]:
    """Yields the layers of a model, at any depth, that have a constrained kernel, each once."""
    seen = set()
    for layer in model._flatten_layers():
        if isinstance(layer, ConstrainedKernel) and id(layer) not in seen:
            seen.add(id(layer))
            yield layer


def _project_all(parametrizations: tuple[Parametrization, ...], kernels: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(parametrizations, kernels, strict=True)
    with full_precision():
        return [parametrization.project(kernel) for parametrization, kernel in pairs]


@functools.cache
def _compiled_projection() -> Callable[..., list[Tensor]]:
    """Returns `_project_all`, compiled; it is traced again only for new parametrizations or shapes."""
    compiled: Any = _project_all
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        compiled = tensorflow.function(_project_all, autograph=False, reduce_retracing=False)
    elif backend == "jax":
        import jax

        compiled = jax.jit(_project_all, static_argnums=0)
    elif backend == "torch":
        import torch

        compiled = torch.no_grad()(_project_all)
    return compiled
