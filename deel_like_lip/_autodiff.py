"""Products with a model's Jacobian, on the active backend, with NumPy arrays going in and coming out.

A model is taken at inference and as a map of rows: all that it takes for a sample is one row, and so is all that it
returns, flattened and joined. Samples must not interact, which at inference they do not in Keras's layers. The product
of a batch with one vector a sample is then the product with the Jacobian of each sample.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from deel_like_lip._typing import Tensor

Array = npt.NDArray[Any]
# From tensors to tensors, and the same from arrays to arrays, for any number of rows.
_Tensors = Callable[..., tuple[Tensor, ...]]
_Arrays = Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class RowMap:
    """A model as a map of rows. Its products are compiled once, at their first use, unless that is declined.

    Attributes:
        model: A built model.
        shapes: The shape of each of its inputs for one sample.
        structure: How the model takes its inputs: anything that stands for one array, or a list, tuple or dict of such.
        batch_size: Rows that are computed at once; what is left over is filled up, so that one size is compiled.
        dtype: That is computed in. Results are float64 all the same, so that what follows does not round them again.
        compiled: Whether products are compiled, which pays where there are many.
    """

    model: Any
    shapes: Sequence[tuple[int, ...]]
    structure: Any = 0
    batch_size: int = 256
    dtype: str = "float32"
    compiled: bool = True

    def forward(self, rows: Array) -> Array:
        """Returns the model's outputs."""
        return self._forward(rows)[0]

    def vjp(self, rows: Array, cotangents: Array) -> Array:
        """Returns for each row the product of the transposed Jacobian with a vector of the outputs' size."""
        return self._vjp(rows, cotangents)[0]

    def jvp(self, rows: Array, tangents: Array) -> Array:
        """Returns for each row the product of the Jacobian with a vector of the inputs' size.

        It is the derivative of `vjp` by its cotangents. Unlike forward mode that is there for every layer, on every
        backend.
        """
        return self._jvp(rows, tangents, np.zeros((len(rows), self._outputs), self.dtype))[0]

    @functools.cached_property
    def _forward(self) -> _Arrays:
        return self._batched(lambda rows: (self._call(rows),))

    @functools.cached_property
    def _vjp(self) -> _Arrays:
        return self._batched(lambda rows, cotangents: (pull_back(self._call, rows, cotangents),))

    @functools.cached_property
    def _jvp(self) -> _Arrays:
        def product(rows: Tensor, tangents: Tensor, zeros: Tensor) -> tuple[Tensor]:
            return (pull_back(lambda cotangents: pull_back(self._call, rows, cotangents), zeros, tangents),)

        return self._batched(product)

    @functools.cached_property
    def _outputs(self) -> int:
        return self.forward(np.zeros((1, sum(map(math.prod, self.shapes))), self.dtype)).shape[1]

    def _call(self, rows: Tensor) -> Tensor:
        inputs, start = [], 0
        for shape in self.shapes:
            stop = start + math.prod(shape)
            inputs.append(ops.reshape(rows[:, start:stop], (-1, *shape)))
            start = stop
        outputs = keras.tree.flatten(self.model(keras.tree.pack_sequence_as(self.structure, inputs), training=False))
        for output in outputs:
            dtype = keras.backend.standardize_dtype(output.dtype)
            if tuple(output.shape[:1]) != (self.batch_size,) or not keras.backend.is_float_dtype(dtype):
                raise ValueError(
                    f"Expected the model '{self.model.name}' to return floats for each sample by itself. Received: an "
                    f"output of shape {tuple(output.shape)} and dtype {dtype} for {self.batch_size} samples"
                )
        return ops.concatenate(
            [ops.cast(ops.reshape(output, (self.batch_size, -1)), self.dtype) for output in outputs], axis=1
        )

    def _batched(self, function: _Tensors) -> _Arrays:
        compiled = _compiled(function, self.model) if self.compiled else function

        def run(*arrays: Array) -> tuple[Array, ...]:
            count, batches = len(arrays[0]), []
            for start in range(0, count, self.batch_size):
                rows = np.arange(start, start + self.batch_size) % count
                results = compiled(*(ops.convert_to_tensor(array[rows], dtype=self.dtype) for array in arrays))
                batches.append([ops.convert_to_numpy(result).astype(np.float64) for result in results])
            return tuple(np.concatenate(parts)[:count] for parts in zip(*batches, strict=True))

        return run


def _compiled(function: _Tensors, model: Any) -> _Tensors:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        graph: _Tensors = tensorflow.function(function, autograph=False)
        return graph
    if backend == "jax":
        import jax

        def stateless(values: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
            with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
                return function(*tensors)

        jitted = jax.jit(stateless)
        # The weights are arguments: as constants they would be folded when compiling, and later changes not be seen.
        return lambda *tensors: jitted([variable.value for variable in model.variables], *tensors)
    return function


def pull_back(function: Callable[[Tensor], Tensor], inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Returns the gradient of `sum(function(inputs) * cotangents)`, such that it can be differentiated once more."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        with tensorflow.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        zero = tensorflow.UnconnectedGradients.ZERO
        return tape.gradient(outputs, inputs, output_gradients=cotangents, unconnected_gradients=zero)
    if backend == "jax":
        import jax

        return jax.vjp(function, inputs)[1](cotangents)[0]
    import torch

    inputs = inputs.detach().requires_grad_()
    outputs = function(inputs)
    if not outputs.requires_grad:
        return torch.zeros_like(inputs)
    nested = cotangents.requires_grad
    (gradient,) = torch.autograd.grad(outputs, inputs, cotangents, create_graph=nested, materialize_grads=True)
    return gradient
