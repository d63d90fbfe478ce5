"""Centering and normalization with one scale for all channels, so that their constants are known."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_positive
from deel_like_lip.layers.base import built, fold_scale, scaled
from deel_like_lip.layers.channels import Array, ChannelLayer, constant
from deel_like_lip.parametrizations.base import in_float32


class _Centering(ChannelLayer):
    """Adds a learned bias, one value for each channel, to what is centred."""

    def __init__(
        self,
        use_bias: bool = True,
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
        k_coef_lip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        self.use_bias = bool(use_bias)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Shape) -> None:
        _, channels = self._channels_of_weights(input_shape)
        self.bias = (
            self.add_weight(shape=(channels,), initializer=self.bias_initializer, name="bias", autocast=False)
            if self.use_bias
            else None
        )
        self.built = True

    def get_config(self) -> dict[str, Any]:
        serialized = keras.initializers.serialize(self.bias_initializer)
        return {**super().get_config(), "use_bias": self.use_bias, "bias_initializer": serialized}

    def _finished(self, centred: Tensor, dtype: Any) -> Tensor:
        """Adds the bias to centred values and returns to the dtype of the inputs."""
        outputs = centred if self.bias is None else centred + self._spread(self.bias, centred)
        return ops.cast(outputs, dtype)

    def _folded_affine(self, factor: float, offset: Array | None) -> Callable[[Tensor], Tensor]:
        """Returns `factor * x + offset` as a built-in layer, or nothing where it does nothing."""
        if offset is None or not np.any(offset):
            return fold_scale(factor)
        return lambda inputs: keras.layers.Rescaling(factor, self._spread_constant(offset, inputs))(inputs)


@register
class LayerCentering(_Centering):
    """Subtracts the mean over some axes of each sample: an orthogonal projection, 1-Lipschitz times `k_coef_lip`.

    What layer normalization does without dividing, which has no useful constant.

    Args:
        axis: Integer or integers, the axes to average over, without the batch. By default those that are neither batch
            nor channels, as of an image height and width; of inputs of rank 2 the features.
        use_bias: Whether a learned bias is added, one value for each channel.
        bias_initializer: Initializer of the bias.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of what is centred, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> LayerCentering()(np.array([[3.0, 1.0, 2.0]]))
        [[1.0, -1.0, 0.0]]

    Raises:
        ValueError: If `axis` names the batch, or an axis twice or one that the input does not have.

    Reference:
        Ba, Kiros and Hinton, 2016, [Layer normalization](https://arxiv.org/abs/1607.06450)
    """

    def __init__(
        self,
        axis: int | Sequence[int] | None = None,
        use_bias: bool = True,
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
        k_coef_lip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(use_bias, bias_initializer, data_format, k_coef_lip, **kwargs)
        axes: list[Any] = list(axis) if isinstance(axis, (tuple, list)) else [axis]
        if axis is not None and (not axes or any(isinstance(one, bool) or not isinstance(one, int) for one in axes)):
            raise ValueError(
                "Invalid value for argument `axis` of LayerCentering. Expected an integer, several, or None. "
                f"Received: axis={axis}"
            )
        self.axis: list[int] | None = None if axis is None else axes

    def call(self, inputs: Tensor) -> Tensor:
        values = in_float32(inputs)
        return self._finished(scaled(self._centred(values), self.k_coef_lip), inputs.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._axes(input_shape)
        return super().compute_output_shape(input_shape)

    def build(self, input_shape: Shape) -> None:
        self._axes(input_shape)
        super().build(input_shape)

    def fold(self) -> Callable[[Tensor], Tensor]:
        affine = self._folded_affine(self.k_coef_lip, None if built(self).bias is None else constant(self.bias))
        return lambda inputs: affine(self._centred(inputs))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}

    def _centred(self, inputs: Tensor) -> Tensor:
        """Subtracts the mean, in a form that `certify` recognises."""
        return inputs - ops.mean(inputs, axis=self._axes(inputs.shape), keepdims=True)

    def _axes(self, shape: Shape) -> list[int]:
        rank = len(shape)
        channels, _ = self._channels(shape)
        if self.axis is None:
            return [axis for axis in range(1, rank) if axis != channels] or [channels]
        axes = sorted(axis % rank for axis in self.axis if -rank <= axis < rank)
        if len(set(axes)) != len(self.axis) or 0 in axes:
            raise ValueError(
                f"The LayerCentering layer '{self.name}' expects different axes of its input, without that of the "
                f"batch. Received: axis={self.axis}, input_shape={tuple(shape)}"
            )
        return axes


@register
class BatchCentering(_Centering):
    """Subtracts from each channel its mean: that of the batch in training, and a moving average of those at inference.

    The constant is that of inference, where the layer adds a constant: `k_coef_lip` exactly. In training each output
    depends on all samples of the batch, as in batch normalization; the map of a whole batch is then a projection times
    `k_coef_lip`. Moving averages change in training only, and not where `trainable` is False.

    Args:
        use_bias: Whether a learned bias is added, one value for each channel.
        momentum: Weight of the past in moving averages, from 0 to 1.
        bias_initializer: Initializer of the bias.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of what is centred, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> BatchCentering()(np.array([[3.0, 1.0], [1.0, 5.0]]), training=True)
        [[1.0, -2.0], [-1.0, 2.0]]

    Raises:
        ValueError: If `momentum` is not a number from 0 to 1.

    Reference:
        Ioffe and Szegedy, 2015, [Batch normalization](https://arxiv.org/abs/1502.03167); without the division in
        Boissin et al., 2025, [An adaptive orthogonal convolution scheme for efficient and flexible CNN
        architectures](https://arxiv.org/abs/2501.07930)
    """

    def __init__(
        self,
        use_bias: bool = True,
        momentum: float = 0.99,
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
        k_coef_lip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(use_bias, bias_initializer, data_format, k_coef_lip, **kwargs)
        valid = isinstance(momentum, numbers.Real) and not isinstance(momentum, bool)
        if not valid or not 0 <= momentum <= 1:
            raise ValueError(
                f"Invalid value for argument `momentum` of {type(self).__name__}. Expected a number from 0 to 1. "
                f"Received: momentum={momentum}"
            )
        self.momentum = float(momentum)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.moving_mean = self._statistic("moving_mean", "zeros", input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        values = in_float32(inputs)
        if training and self.trainable:
            axis, _ = self._channels(inputs.shape)
            others = [other for other in range(len(inputs.shape)) if other != axis]
            shape = ops.shape(inputs)
            # An empty batch has no mean, and moves no average.
            count = ops.cast(math.prod(shape[other] for other in others), values.dtype)
            rate = (1 - self.momentum) * ops.minimum(count, 1)
            count = ops.maximum(count, 1)
            mean = ops.sum(values, axis=others) / count
            self._move(self.moving_mean, mean, rate)
            values = values - self._spread(mean, values)
            factor = self._factor_of_batch(lambda: ops.sum(ops.square(values), axis=others) / count, rate)
        else:
            values = values - self._spread(self.moving_mean, values)
            factor = self._factor()
        return self._finished(values * factor, inputs.dtype)

    def fold(self) -> Callable[[Tensor], Tensor]:
        factor = float(ops.convert_to_numpy(built(self)._factor()))
        offset = -factor * constant(self.moving_mean)
        return self._folded_affine(factor, offset if self.bias is None else offset + constant(self.bias))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}

    def _factor(self) -> Any:
        """Returns the factor of what is centred at inference."""
        return self.k_coef_lip

    def _factor_of_batch(self, variance: Callable[[], Tensor], rate: Tensor) -> Any:
        """Returns the factor in training, by the variance of each channel in the batch."""
        return self.k_coef_lip

    def _statistic(self, name: str, initializer: str, input_shape: Shape) -> Any:
        _, channels = self._channels_of_weights(input_shape)
        return self.add_weight(shape=(channels,), initializer=initializer, trainable=False, name=name, autocast=False)

    def _move(self, variable: Any, value: Tensor, rate: Tensor) -> None:
        variable.assign(variable + rate * (ops.cast(value, variable.dtype) - variable))


@register
class LipBatchNormalization(BatchCentering):
    """Batch normalization with one scale for all channels: `min(1 / deviation, k_coef_lip)`.

    The deviation is the largest of all channels, `sqrt(max(variance) + epsilon)`, of the batch in training and of the
    moving average of variances at inference. Dividing each channel by its own, as batch normalization does, lets the
    channel of the smallest deviation decide the constant.

    `k_coef_lip` is the largest scale that is allowed, so the layer keeps its promise whatever the data. With 1, values
    are shrunk where they deviate by more than 1 and never amplified. In nets of 1-Lipschitz layers deviations are
    mostly below 1, and there a larger `k_coef_lip` allows to normalize them; the scale that the layer ends up with is
    then its constant, which `certify` computes from the folded model and counts. Radii do not change by that: what
    amplifies margins amplifies the constant.

    As with `BatchCentering` the constant is that of inference, and moving averages change in training only.

    Args:
        use_bias: Whether a learned bias is added, one value for each channel.
        momentum: Weight of the past in moving averages, from 0 to 1.
        epsilon: Positive number that is added to the variance.
        bias_initializer: Initializer of the bias.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: The largest scale, an upper bound of the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> LipBatchNormalization(epsilon=1e-9)(np.array([[3.0, 1.0], [1.0, 5.0]]), training=True)
        [[0.5, -1.0], [-0.5, 1.0]]

    Raises:
        ValueError: If `momentum` is not a number from 0 to 1, or `epsilon` is not positive.

    Reference:
        Boissin et al., 2025, [An adaptive orthogonal convolution scheme for efficient and flexible CNN
        architectures](https://arxiv.org/abs/2501.07930), whose library divides by the largest deviation and takes the
        product of all scales back at the end of the network.
    """

    def __init__(
        self,
        use_bias: bool = True,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
        k_coef_lip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(use_bias, momentum, bias_initializer, data_format, k_coef_lip, **kwargs)
        self.epsilon = checked_positive(epsilon, "epsilon", type(self).__name__)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.moving_variance = self._statistic("moving_variance", "ones", input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}

    def _factor(self) -> Tensor:
        return self._scale(self.moving_variance)

    def _factor_of_batch(self, variance: Callable[[], Tensor], rate: Tensor) -> Tensor:
        of_batch = variance()
        self._move(self.moving_variance, of_batch, rate)
        return self._scale(of_batch)

    def _scale(self, variance: Tensor) -> Tensor:
        return ops.minimum(ops.rsqrt(ops.max(variance) + self.epsilon), self.k_coef_lip)
