"""Names for the types that Keras leaves open."""

from typing import Any, TypeAlias

# A tensor of the active backend, a `KerasTensor` or a `keras.Variable`: Keras has no common type.
Tensor: TypeAlias = Any
Shape: TypeAlias = tuple[int | None, ...]
