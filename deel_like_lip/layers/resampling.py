"""Layers that move values without changing them: space to channels and back, and channels in or out."""

from collections.abc import Callable
from typing import Any

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_count, checked_sizes
from deel_like_lip.layers.base import fold_scale, scaled, with_zero_channels
from deel_like_lip.layers.channels import ChannelLayer


class _Moves(ChannelLayer):
    """Each output is an input or zero, and no input comes twice: the norm is 1."""

    def call(self, inputs: Tensor) -> Tensor:
        return scaled(self._moved(inputs), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        scale = fold_scale(self.k_coef_lip)
        return lambda inputs: scale(self._moved(inputs))

    def _moved(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class _Reshapes(_Moves):
    """Does so by views of the input with more axes."""

    def fold(self) -> Callable[[Tensor], Tensor]:
        folded = super().fold()

        def fold_known(inputs: Tensor) -> Tensor:
            if None in inputs.shape[1:]:
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' folds only where the size of its input is known. "
                    "Give the model an `Input` of fixed size. Received: "
                    f"input_shape={tuple(inputs.shape)}"
                )
            return folded(inputs)

        return fold_known


class _Blocks2D(_Reshapes):
    """Exchanges blocks of an image for channels."""

    def __init__(
        self, pool_size: Any = (2, 2), data_format: str | None = None, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        self.pool_size = checked_sizes(pool_size, "pool_size", 2, type(self).__name__)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool_size": self.pool_size}

    def _image(self, shape: Shape) -> tuple[Any, Any, int]:
        """Returns height, width and channels."""
        if len(shape) != 4:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects a 4D input, (batch, height, width, channels) "
                "or, with data_format='channels_first', (batch, channels, height, width). Received: "
                f"input_shape={tuple(shape)}"
            )
        _, channels = self._channels(shape)
        height, width = shape[1:3] if self.data_format == "channels_last" else shape[2:4]
        return height, width, channels

    def _joined(self, height: Any, width: Any, channels: Any) -> tuple[Any, ...]:
        if self.data_format == "channels_last":
            return -1, height, width, channels
        return -1, channels, height, width


@register
class InvertibleDownSampling(_Blocks2D):
    """Makes channels of blocks of pixels, of norm 1 times `k_coef_lip`. `InvertibleUpSampling` is its inverse.

    The channels of the first pixel of a block come first, then those of the pixel to its right, and so on by rows.

    Args:
        pool_size: One or two positive integers, height and width of the blocks.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`, a height and
        width that are multiples of the block's. To be folded, a layer needs them to be known.

    Output shape:
        `(batch, height / p, width / q, channels * p * q)`, or `(batch, channels * p * q, height / p, width / q)`.

    Example:
        >>> InvertibleDownSampling(2)(np.array([[[[1.0], [2.0]], [[3.0], [4.0]]]]))
        [[[[1.0, 2.0, 3.0, 4.0]]]]

    Raises:
        ValueError: If `pool_size` is not positive, or does not divide the size of the input.

    Reference:
        Li et al., 2019, [Preventing gradient attenuation in Lipschitz constrained convolutional
        networks](https://arxiv.org/abs/1911.00937)
    """

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        height, width, channels = self._image(input_shape)
        rows, columns = self.pool_size
        if (height or 0) % rows or (width or 0) % columns:
            raise ValueError(
                f"The InvertibleDownSampling layer '{self.name}' expects a height and width that are multiples of "
                f"pool_size={self.pool_size}. Received: input_shape={tuple(input_shape)}"
            )
        height, width = height and height // rows, width and width // columns
        return (input_shape[0], *self._joined(height, width, channels * rows * columns)[1:])

    def _moved(self, inputs: Tensor) -> Tensor:
        self.compute_output_shape(tuple(inputs.shape))
        height, width, channels = self._image(ops.shape(inputs))
        (rows, columns), (height, width) = self.pool_size, (height // self.pool_size[0], width // self.pool_size[1])
        if self.data_format == "channels_last":
            blocks = ops.reshape(inputs, (-1, height, rows, width, columns, channels))
            blocks = ops.transpose(blocks, (0, 1, 3, 2, 4, 5))
        else:
            blocks = ops.reshape(inputs, (-1, channels, height, rows, width, columns))
            blocks = ops.transpose(blocks, (0, 3, 5, 1, 2, 4))
        return ops.reshape(blocks, self._joined(height, width, rows * columns * channels))


@register
class InvertibleUpSampling(_Blocks2D):
    """Makes blocks of pixels of channels, of norm 1 times `k_coef_lip`: the inverse of `InvertibleDownSampling`.

    Args:
        pool_size: One or two positive integers, height and width of the blocks.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`, a number of
        channels that is a multiple of the area of the blocks. To be folded, a layer needs the size to be known.

    Output shape:
        `(batch, height * p, width * q, channels / (p * q))`, or `(batch, channels / (p * q), height * p, width * q)`.

    Example:
        >>> InvertibleUpSampling(2)(np.array([[[[1.0, 2.0, 3.0, 4.0]]]]))
        [[[[1.0], [2.0]], [[3.0], [4.0]]]]

    Raises:
        ValueError: If `pool_size` is not positive, or its area does not divide the number of channels.

    Reference:
        Li et al., 2019, [Preventing gradient attenuation in Lipschitz constrained convolutional
        networks](https://arxiv.org/abs/1911.00937)
    """

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        height, width, channels = self._image(input_shape)
        rows, columns = self.pool_size
        if channels % (rows * columns):
            raise ValueError(
                f"The InvertibleUpSampling layer '{self.name}' expects a number of channels that is a multiple of "
                f"{rows * columns}, the area of pool_size={self.pool_size}. Received: input_shape={tuple(input_shape)}"
            )
        height, width = height and height * rows, width and width * columns
        return (input_shape[0], *self._joined(height, width, channels // (rows * columns))[1:])

    def _moved(self, inputs: Tensor) -> Tensor:
        self.compute_output_shape(tuple(inputs.shape))
        height, width, channels = self._image(ops.shape(inputs))
        rows, columns = self.pool_size
        channels //= rows * columns
        if self.data_format == "channels_last":
            blocks = ops.reshape(inputs, (-1, height, width, rows, columns, channels))
            blocks = ops.transpose(blocks, (0, 1, 3, 2, 4, 5))
        else:
            blocks = ops.reshape(inputs, (-1, rows, columns, channels, height, width))
            blocks = ops.transpose(blocks, (0, 3, 4, 1, 5, 2))
        return ops.reshape(blocks, self._joined(height * rows, width * columns, channels))


class _NumberOfChannels(_Moves):
    """Changes the number of channels to a given one."""

    def __init__(self, channels: int, data_format: str | None = None, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        self.channels = checked_count(channels, "channels", type(self).__name__)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        axis, channels = self._channels(input_shape)
        if not self._allows(channels):
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' {self._does} {self.channels} channels. "
                f"Received: {channels} channels, input_shape={tuple(input_shape)}"
            )
        return (*input_shape[:axis], self.channels, *input_shape[axis + 1 :])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels}

    _does: str

    def _allows(self, channels: int) -> bool:
        raise NotImplementedError


@register
class ZeroChannelPadding(_NumberOfChannels):
    """Appends channels of zeros, of norm 1 times `k_coef_lip`.

    Args:
        channels: Number of channels of the output, at least that of the input.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's, with the new number of channels.

    Example:
        >>> ZeroChannelPadding(3)(np.array([[1.0, 2.0]]))
        [[1.0, 2.0, 0.0]]

    Raises:
        ValueError: If `channels` is not a positive integer, or less than the channels of the input.

    Reference:
        Prach and Lampert, 2022, [Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks](https://arxiv.org/abs/2208.03160)
    """

    _does = "pads up to"

    def _allows(self, channels: int) -> bool:
        return channels <= self.channels

    def _moved(self, inputs: Tensor) -> Tensor:
        axis, channels = self._channels(inputs.shape)
        return with_zero_channels(inputs, axis, self.channels - channels)


@register
class FirstChannels(_NumberOfChannels):
    """Keeps the first channels and drops the others, of norm 1 times `k_coef_lip`.

    Args:
        channels: Number of channels that are kept, at most that of the input.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's, with the new number of channels.

    Example:
        >>> FirstChannels(2)(np.array([[1.0, 2.0, 3.0]]))
        [[1.0, 2.0]]

    Raises:
        ValueError: If `channels` is not a positive integer, or more than the channels of the input.

    Reference:
        Prach and Lampert, 2022, [Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks](https://arxiv.org/abs/2208.03160)
    """

    _does = "keeps the first"

    def _allows(self, channels: int) -> bool:
        return channels >= self.channels

    def _moved(self, inputs: Tensor) -> Tensor:
        axis, _ = self._channels(inputs.shape)
        return inputs[(*(slice(None),) * axis, slice(self.channels))]


@register
class ChannelShuffle(_Reshapes):
    """Puts the first channels of all groups first, then the second ones, and so on. Of norm 1 times `k_coef_lip`.

    Mixes what grouped convolutions keep apart. The inverse is the shuffle of `channels / groups` groups.

    Args:
        groups: Number of groups of neighbouring channels.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`, a number of channels that is a
        multiple of `groups`.

    Output shape:
        The input's.

    Example:
        >>> ChannelShuffle(2)(np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
        [[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]]

    Raises:
        ValueError: If `groups` is not a positive integer, or does not divide the number of channels.

    Reference:
        Zhang et al., 2017, [ShuffleNet](https://arxiv.org/abs/1707.01083)
    """

    def __init__(self, groups: int, data_format: str | None = None, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        self.groups = checked_count(groups, "groups", type(self).__name__)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        _, channels = self._channels(input_shape)
        if channels % self.groups:
            raise ValueError(
                f"The ChannelShuffle layer '{self.name}' expects a number of channels that is a multiple of "
                f"groups={self.groups}. Received: {channels} channels, input_shape={tuple(input_shape)}"
            )
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}

    def _moved(self, inputs: Tensor) -> Tensor:
        axis, channels = self._channels(inputs.shape)
        view = (self.groups, channels // self.groups)
        return self._through_view(inputs, axis, view, lambda viewed, axis: ops.swapaxes(viewed, axis, axis + 1))
