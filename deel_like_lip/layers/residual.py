"""Residual connections around other layers, 1-Lipschitz where these are."""

import math
from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_data_format
from deel_like_lip.bounds.activations import activation_constant
from deel_like_lip.layers.base import LipschitzLayer, built, channel_axis, fold_activation, fold_scale, scaled
from deel_like_lip.layers.dense import FrobeniusDense

# Built-in layers that only move values.
_MOVE_VALUES = (keras.layers.Flatten, keras.layers.Identity, keras.layers.Permute, keras.layers.Reshape)


class _Residual(LipschitzLayer):
    """A layer around a branch of other layers, whose constants together are at most 1."""

    def __init__(self, branch: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers = list(branch) if isinstance(branch, (list, tuple)) else [branch]
        constants = [_constant(layer) for layer in layers]
        if not layers or None in constants or math.prod(filter(None, constants)) > 1 + 1e-9:
            names = [getattr(layer, "name", layer) for layer in layers]
            raise ValueError(
                f"Invalid value for argument `branch` of {type(self).__name__}. Expected one or more layers whose "
                "Lipschitz constants are known and have a product of at most 1: layers of this library, activations, "
                "and layers that only move values. Build other branches as a functional model, which `certify` bounds. "
                f"Received: branch={names} with the constants {constants}"
            )
        self.branch = layers

    def build(self, input_shape: Shape) -> None:
        self.compute_output_shape(input_shape)
        shape = self._branch_input_shape(input_shape)
        for layer in self.branch:
            if not layer.built:
                layer.build(shape)
            shape = tuple(layer.compute_output_shape(shape))

    def get_config(self) -> dict[str, Any]:
        branch = [keras.saving.serialize_keras_object(layer) for layer in self.branch]
        return {**super().get_config(), "branch": branch}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        branch = [keras.saving.deserialize_keras_object(layer) for layer in config["branch"]]
        return cls(**{**config, "branch": branch})

    def _branch_input_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def _branch_output_shape(self, input_shape: Shape) -> Shape:
        shape = self._branch_input_shape(input_shape)
        for layer in self.branch:
            shape = tuple(layer.compute_output_shape(shape))
        return shape


def _constant(layer: Any) -> float | None:
    """Returns the Lipschitz constant that a layer promises, or None."""
    if isinstance(layer, LipschitzLayer):
        joint = not isinstance(layer, FrobeniusDense) or not layer.disjoint_neurons
        return layer.k_coef_lip if joint else layer.k_coef_lip * math.sqrt(layer.units)
    if type(layer) in _MOVE_VALUES:
        return 1.0
    return activation_constant(layer) if isinstance(layer, keras.layers.Layer) else None


def _run(layers: Any, inputs: Tensor) -> Tensor:
    for layer in layers:
        inputs = layer(inputs)
    return inputs


@register
class LipResidual(_Residual):
    """Residual connection `a x + (1 - a) f(x)` with a learned a between 0 and 1, 1-Lipschitz times `k_coef_lip`.

    Args:
        branch: The layer f, or a list of layers that are applied one after another. The product of their Lipschitz
            constants must be known and at most 1, and the output have the input's shape.
        initial_alpha: What a begins at, between 0 and 1.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        Any that the branch takes.

    Output shape:
        The input's.

    Example:
        >>> layer = LipResidual([SpectralDense(64), GroupSort2()])
        >>> layer(np.zeros((32, 64))).shape
        (32, 64)

    Raises:
        ValueError: If the constant of the branch is above 1 or not known, its output has not the input's shape, or
            `initial_alpha` is not between 0 and 1.

    Reference:
        Prach et al., 2024, [1-Lipschitz layers compared](https://arxiv.org/abs/2311.16833)
    """

    def __init__(self, branch: Any, initial_alpha: float = 0.5, **kwargs: Any) -> None:
        super().__init__(branch, **kwargs)
        if not 0 < initial_alpha < 1:
            raise ValueError(
                f"Invalid value for argument `initial_alpha` of {type(self).__name__}. Expected a number between 0 and "
                f"1, both excluded. Received: initial_alpha={initial_alpha}"
            )
        self.initial_alpha = float(initial_alpha)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        start = math.log(self.initial_alpha / (1 - self.initial_alpha))
        self.logit = self.add_weight(
            name="logit", shape=(), initializer=keras.initializers.Constant(start), autocast=False
        )

    def call(self, inputs: Tensor) -> Tensor:
        alpha = ops.cast(ops.sigmoid(self.logit), self.compute_dtype)
        return scaled(alpha * inputs + (1 - alpha) * _run(self.branch, inputs), self.k_coef_lip)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        shape = self._branch_output_shape(input_shape)
        if shape[1:] != tuple(input_shape)[1:]:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects a branch whose output has the shape of the "
                f"input. Received: input_shape={tuple(input_shape)}, and an output of the branch of shape {shape}"
            )
        return input_shape

    def fold(self) -> Callable[[Tensor], Tensor]:
        alpha = np.float32(ops.convert_to_numpy(ops.sigmoid(built(self).logit)))
        weights = [float(np.float32(self.k_coef_lip * float(part))) for part in (alpha, np.float32(1) - alpha)]
        skip, last = (keras.layers.Rescaling(weight, dtype=self.dtype_policy) for weight in weights)
        branch, add = [fold_activation(layer) for layer in self.branch], keras.layers.Add(name=self.name)
        return lambda inputs: add([skip(inputs), last(_run(branch, inputs))])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initial_alpha": self.initial_alpha}


@register
class ConcatResidual(_Residual):
    """Residual connection `[x_1, f(x_2)]` of the two halves of the channels, 1-Lipschitz times `k_coef_lip`.

    The halves share no value, so the constant is the larger of 1 and that of f, and where f keeps the norm of gradients
    so does the layer. A layer that mixes channels should follow.

    Args:
        branch: The layer f, or a list of layers that are applied one after another. The product of their Lipschitz
            constants must be known and at most 1; they may change the number of channels and nothing else.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`, an even number of channels.

    Output shape:
        The input's, with half of its channels plus those of the branch's output.

    Example:
        >>> layer = ConcatResidual([SpectralDense(32), GroupSort2()])
        >>> layer(np.zeros((16, 64))).shape
        (16, 64)

    Raises:
        ValueError: If the constant of the branch is above 1 or not known, the number of channels is odd, or the
            branch's output does not fit.
    """

    def __init__(self, branch: Any, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(branch, **kwargs)
        self.data_format = checked_data_format(data_format, type(self).__name__)

    def call(self, inputs: Tensor) -> Tensor:
        axis = channel_axis(self.data_format, inputs.shape)
        kept, changed = ops.split(inputs, 2, axis=axis)
        return scaled(ops.concatenate([kept, _run(self.branch, changed)], axis=axis), self.k_coef_lip)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        axis = channel_axis(self.data_format, input_shape)
        half, shape = self._branch_input_shape(input_shape), self._branch_output_shape(input_shape)
        others = [own[1:axis] + own[axis + 1 :] for own in (half, shape)]
        if len(half) != len(shape) or others[0] != others[1]:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects a branch that changes nothing but the number "
                f"of channels. Received: half of the input of shape {half}, and an output of the branch of shape "
                f"{shape}"
            )
        return (*half[:axis], half[axis] + shape[axis], *half[axis + 1 :])  # type: ignore[operator]

    def fold(self) -> Callable[[Tensor], Tensor]:
        branch, scale = [fold_activation(layer) for layer in built(self).branch], fold_scale(self.k_coef_lip)

        def folded(inputs: Tensor) -> Tensor:
            axis = channel_axis(self.data_format, inputs.shape)
            kept, changed = ops.split(inputs, 2, axis=axis)
            return scale(keras.layers.Concatenate(axis, name=self.name)([kept, _run(branch, changed)]))

        return folded

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": self.data_format}

    def _branch_input_shape(self, input_shape: Shape) -> Shape:
        axis = channel_axis(self.data_format, input_shape)
        channels = input_shape[axis] if len(input_shape) > 1 else None
        if channels is None or channels % 2:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects an input of rank at least 2 with an even "
                f"number of channels that is known. Received: input_shape={tuple(input_shape)}"
            )
        return (*input_shape[:axis], channels // 2, *input_shape[axis + 1 :])
