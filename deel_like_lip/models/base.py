"""What the builders share: checks of their arguments, activations, heads, and how the widths of images shrink."""

from collections.abc import Sequence
from typing import Any

import keras

from deel_like_lip import parametrizations
from deel_like_lip._typing import Tensor
from deel_like_lip.layers.base import channel_axis, checked_activation
from deel_like_lip.layers.dense import SpectralDense
from deel_like_lip.layers.heads import UnitNormDense
from deel_like_lip.parametrizations import AOC, SOC, OperatorNorm, Parametrization


def checked_shape(input_shape: Any, owner: str) -> tuple[int, ...]:
    """Returns the shape of one sample, and raises unless it is a sequence of positive integers."""
    if not _positive_integers(input_shape):
        raise ValueError(
            f"Invalid value for argument `input_shape` of {owner}. Expected the shape of one sample, a tuple of "
            f"positive integers without the batch. Received: input_shape={input_shape}"
        )
    return tuple(input_shape)


def checked_image_shape(input_shape: Any, owner: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Returns the shape of one image, and its height and width in the data format of the Keras configuration."""
    shape = checked_shape(input_shape, owner)
    if len(shape) != 3:
        raise ValueError(
            f"Invalid value for argument `input_shape` of {owner}. Expected (height, width, channels) or, where "
            "`keras.config.image_data_format()` is 'channels_first', (channels, height, width). Received: "
            f"input_shape={input_shape}"
        )
    channels = channel_axis(keras.config.image_data_format(), (None, *shape)) - 1
    height, width = (size for axis, size in enumerate(shape) if axis != channels)
    return shape, (height, width)


def checked_widths(widths: Any, argument: str, owner: str) -> tuple[int, ...]:
    """Returns the widths of layers, and raises unless they are a sequence of positive integers, which may be empty."""
    if isinstance(widths, Sequence) and not widths:
        return ()
    if not _positive_integers(widths):
        raise ValueError(
            f"Invalid value for argument `{argument}` of {owner}. Expected a sequence of positive integers, one for "
            f"each layer. Received: {argument}={widths}"
        )
    return tuple(widths)


def check_choice(value: Any, choices: Sequence[str], argument: str, owner: str) -> None:
    """Raises unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"Invalid value for argument `{argument}` of {owner}. Expected one of {tuple(choices)}. "
            f"Received: {argument}={value!r}"
        )


def activated(inputs: Tensor, activation: Any, name: str, owner: str) -> Tensor:
    """Applies a new activation layer.

    Args:
        inputs: Symbolic tensor.
        activation: A function without arguments that returns a layer, such as its class, or the name of one of Keras.
        name: Name of the layer that it follows.
        owner: Name of the builder.
    """
    if isinstance(activation, str):
        layer = keras.layers.Activation(activation)
    elif callable(activation) and not isinstance(activation, keras.layers.Layer):
        layer = activation()
    else:
        raise ValueError(
            f"Invalid value for argument `activation` of {owner}. Expected a function without arguments that returns a "
            "layer, such as the class MaxMin or `lambda: GroupSort(4)`, or the name of an activation of Keras: each "
            f"use needs a layer of its own. Received: activation={activation}"
        )
    layer = checked_activation(layer, owner)
    layer.name = f"{name}_activation"
    return layer(inputs)


HEADS = ("orthogonal", "unit_norm")


def with_head(features: Tensor, classes: int, head: str, parametrization: Any, k_coef_lip: float) -> Tensor:
    """Applies the last layer, which also brings the constant of the model.

    Args:
        features: Symbolic tensor of shape `(batch, features)`, of a 1-Lipschitz body.
        classes: Number of outputs.
        head: "orthogonal", or "unit_norm" for weight vectors of length `k_coef_lip` that need not be orthogonal.
        parametrization: That of an orthogonal head.
        k_coef_lip: The constant.
    """
    if head == "unit_norm":
        return UnitNormDense(classes, k_coef_lip=k_coef_lip, name="head")(features)
    return SpectralDense(classes, parametrization=parametrization, k_coef_lip=k_coef_lip, name="head")(features)


def dense_counterpart(parametrization: Any) -> Parametrization:
    """Returns the parametrization of dense layers that does what one of convolutions does."""
    found = parametrizations.get(parametrization)
    names: dict[type[Parametrization], str] = {AOC: "polar", SOC: "exponential", OperatorNorm: "spectral"}
    return parametrizations.get(names[type(found)]) if type(found) in names else found


def _positive_integers(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) > 0
        and all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)
    )
