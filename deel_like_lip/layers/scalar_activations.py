"""Activations of one variable, with slopes between -1 and 1."""

import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.activations import sort_pairs
from deel_like_lip.layers.base import LipschitzLayer, built, fold_scale, scaled
from deel_like_lip.layers.channels import ChannelLayer, constant
from deel_like_lip.parametrizations.base import in_float32, upstream_gradient


class _OneVariable(LipschitzLayer):
    """The same function of every value of the input."""

    def __init__(self, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(k_coef_lip=k_coef_lip, **kwargs)
        self.supports_masking = True
        self.built = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@register
class Abs(_OneVariable):
    """The absolute value. 1-Lipschitz times `k_coef_lip`, and keeps the norm of gradients.

    Args:
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Any.

    Output shape:
        The input's.

    Example:
        >>> Abs()(np.array([[-3.0, 1.0]]))
        [[3.0, 1.0]]

    Reference:
        Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
    """

    def call(self, inputs: Tensor) -> Tensor:
        return scaled(ops.absolute(inputs), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        scale = fold_scale(self.k_coef_lip)
        return lambda inputs: scale(ops.absolute(inputs))


@register
class SoftHuber(_OneVariable):
    """`sqrt(x^2 + delta^2) - delta`, a smooth absolute value. 1-Lipschitz times `k_coef_lip`.

    Like `|x| - delta` far from zero and `x^2 / (2 delta)` near it: the pseudo-Huber loss, divided by delta.

    Args:
        delta: How far from zero the square goes, at least 1e-6.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Any.

    Output shape:
        The input's.

    Example:
        >>> SoftHuber(delta=3.0)(np.array([[-4.0, 0.0]]))
        [[2.0, 0.0]]

    Raises:
        ValueError: If `delta` is not a finite number of at least 1e-6.

    Reference:
        Charbonnier et al., 1997, Deterministic edge-preserving regularization in computed imaging; as an activation in
        the library orthogonium, of Boissin et al., 2025, [An adaptive orthogonal convolution scheme for efficient and
        flexible CNN architectures](https://arxiv.org/abs/2501.07930)
    """

    def __init__(self, delta: float = 0.05, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(k_coef_lip=k_coef_lip, **kwargs)
        valid = isinstance(delta, numbers.Real) and not isinstance(delta, bool)
        if not valid or not 1e-6 <= delta <= 1e18:  # whose square is a float32
            raise ValueError(
                "Invalid value for argument `delta` of SoftHuber. Expected a finite number from 1e-6 to 1e18. "
                f"Received: delta={delta}"
            )
        self.delta = float(delta)

    def call(self, inputs: Tensor) -> Tensor:
        # In float16 squares would overflow from 256 on.
        return ops.cast(scaled(self._smooth(in_float32(inputs)), self.k_coef_lip), inputs.dtype)

    def fold(self) -> Callable[[Tensor], Tensor]:
        scale = fold_scale(self.k_coef_lip)
        return lambda inputs: scale(self._smooth(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "delta": self.delta}

    def _smooth(self, inputs: Tensor) -> Tensor:
        return ops.sqrt(ops.square(inputs) + self.delta**2) - self.delta


@register
class LipPReLU(ChannelLayer):
    """x where it is positive, and elsewhere a learned slope in [-1, 1] times x. 1-Lipschitz times `k_coef_lip`.

    There is one slope for each channel. It is clipped where it is used, and after each update.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        alpha_initializer: Initializer of the slopes, shape `(channels,)`. By default all start at -1, the absolute
            value, which keeps the norm of gradients.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> LipPReLU(alpha_initializer="zeros")(np.array([[-3.0, 1.0]]))
        [[0.0, 1.0]]

    Reference:
        He et al., 2015, [Delving deep into rectifiers](https://arxiv.org/abs/1502.01852)
    """

    def __init__(
        self, data_format: str | None = None, alpha_initializer: Any = None, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        default = keras.initializers.Constant(-1.0)
        self.alpha_initializer = default if alpha_initializer is None else keras.initializers.get(alpha_initializer)

    def build(self, input_shape: Shape) -> None:
        axis, channels = self._channels_of_weights(input_shape)
        self._shared_axes = [other for other in range(1, len(input_shape)) if other != axis]
        self.alpha = self.add_weight(
            shape=(channels,), initializer=self.alpha_initializer, constraint=_clip, name="alpha", autocast=False
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        slopes = self._spread(_clip_in_call(self.alpha), inputs)
        return scaled(ops.relu(inputs) - slopes * ops.relu(-inputs), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        slopes, scale = np.clip(constant(built(self).alpha), -1, 1), fold_scale(self.k_coef_lip)
        plain = keras.layers.PReLU(shared_axes=self._shared_axes or None)

        def folded(inputs: Tensor) -> Tensor:
            if not plain.built:
                plain.build(inputs.shape)
                plain.set_weights([slopes.reshape(plain.alpha.shape)])
            return scale(plain(inputs))

        return folded

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha_initializer": keras.initializers.serialize(self.alpha_initializer)}


def _clip(slopes: Tensor) -> Tensor:
    return ops.clip(slopes, -1.0, 1.0)


def _clip_in_call(slopes: Tensor) -> Tensor:
    """Clips slopes, and passes their gradient on as it is.

    After an update they are clipped for good, so that this is a projected gradient. The gradient of `clip` is another
    one on each backend at -1 and 1, where slopes often are.
    """

    @ops.custom_gradient
    def clip(value: Tensor) -> tuple[Tensor, Any]:
        def backward(*args: Tensor, upstream: Tensor = None) -> Tensor:
            return upstream_gradient(args, upstream)

        return _clip(value), backward

    return clip(ops.copy(slopes))


@register
class NActivation(ChannelLayer):
    """Slope 1, then -1 between two learned thresholds, then 1 again. 1-Lipschitz times `k_coef_lip`.

    `x - 2 clip(x, a, b)`, where a and b are the smaller and the larger threshold of the channel. Networks of these
    represent piecewise linear 1-Lipschitz functions that those of sorts and absolute values cannot.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        thresholds_initializer: Initializer of the thresholds, shape `(2, channels)`. By default every other channel
            starts with -1 and 0, and those between as the identity, with 0 and 0.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> NActivation()(np.array([[-3.0, -3.0], [-0.5, -0.5], [2.0, 2.0]]))
        [[-1.0, -3.0], [0.5, -0.5], [2.0, 2.0]]

    Reference:
        Prach and Lampert, 2023, [1-Lipschitz neural networks are more expressive with
        N-activations](https://arxiv.org/abs/2311.06103)
    """

    def __init__(
        self, data_format: str | None = None, thresholds_initializer: Any = None, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        self.thresholds_initializer = keras.initializers.get(thresholds_initializer)

    def build(self, input_shape: Shape) -> None:
        _, channels = self._channels_of_weights(input_shape)
        self.thresholds = self.add_weight(
            shape=(2, channels),
            initializer=self.thresholds_initializer or _every_other,
            name="thresholds",
            autocast=False,
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        # (Where both are equal, minimum and maximum would give them the same gradient for good.)
        low, high = (self._spread(bound, inputs) for bound in ops.unstack(sort_pairs(self.thresholds, 0), axis=0))
        return scaled(_fold_between(inputs, low, high), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        thresholds = np.sort(constant(built(self).thresholds), axis=0)
        scale = fold_scale(self.k_coef_lip)

        def folded(inputs: Tensor) -> Tensor:
            low, high = (self._spread_constant(bound, inputs) for bound in thresholds)
            return scale(_fold_between(inputs, low, high))

        return folded

    def get_config(self) -> dict[str, Any]:
        serialized = keras.initializers.serialize(self.thresholds_initializer) if self.thresholds_initializer else None
        return {**super().get_config(), "thresholds_initializer": serialized}


def _fold_between(inputs: Tensor, low: Any, high: Any) -> Tensor:
    """Turns the slope over between two bounds, in a form that `certify` recognises."""
    return inputs - 2.0 * ops.minimum(ops.maximum(inputs, low), high)


def _every_other(shape: tuple[int, int], dtype: Any = None) -> Tensor:
    """Initializes thresholds to -1 and 0 in even channels, and to 0 in odd ones."""
    values = np.zeros(shape)
    values[0, ::2] = -1.0
    return ops.convert_to_tensor(values, dtype)
