"""What losses share: parameters that may change in training, and the true output apart from the others."""

import math
import numbers
from typing import Any

import keras
from keras import ops

from deel_like_lip._typing import Tensor


class Parameter:
    """A number of a loss that can be set while the loss is in use, and is seen by a step that is compiled already.

    Reads as a float. It is kept in a variable that no model tracks, so the compiled step of TensorFlow and torch sees a
    new value. On JAX it is a constant of that step, unless `LossParamScheduler` makes it a part of the state.
    """

    def __init__(self, positive: bool) -> None:
        self._positive = positive

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, loss: Any, owner: type | None = None) -> Any:
        return self if loss is None else float(keras.ops.convert_to_numpy(loss.parameter_variables[self._name]))

    def __set__(self, loss: Any, value: float) -> None:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0 or (self._positive and value == 0):
            expected = "a positive" if self._positive else "a non-negative"
            raise ValueError(
                f"Invalid value for argument `{self._name}` of {type(loss).__name__}. Expected {expected} finite "
                f"number. Received: {self._name}={value}"
            )
        variables = loss.parameter_variables
        if self._name in variables:
            variables[self._name].assign(float(value))
        else:
            variables[self._name] = keras.Variable(float(value), dtype="float32", trainable=False, name=self._name)


class ParametricLoss(keras.losses.Loss):
    """A Keras loss whose parameters may change during training."""

    def __init__(self, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.parameter_variables: dict[str, Any] = {}

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        return ops.cast(ops.convert_to_tensor(self.parameter_variables[name]), like.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in self.parameter_variables}}


def true_output(labels: Tensor, outputs: Tensor) -> Tensor:
    """Returns the output of the true class, shape `(batch,)`. Labels are one-hot."""
    return ops.sum(ops.where(_is_true(labels), outputs, ops.zeros_like(outputs)), axis=-1)


def other_outputs(labels: Tensor, outputs: Tensor) -> Tensor:
    """Returns the outputs with minus infinity for the true class, shape `(batch, classes)`. Labels are one-hot."""
    return ops.where(_is_true(labels), ops.full_like(outputs, -math.inf), outputs)


def _is_true(labels: Tensor) -> Tensor:
    return labels > 0.5
