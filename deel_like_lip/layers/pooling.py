"""Pooling layers that are scaled to the constant 1, which average pooling is far below."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import LipschitzLayer, fold_scale, scaled


class _WindowPooling2D(LipschitzLayer, keras.layers.AveragePooling2D):
    """Pooling over windows that do not overlap, so that no input is counted twice."""

    def __init__(
        self,
        pool_size: Any = (2, 2),
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        k_coef_lip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(pool_size, strides, padding, data_format, k_coef_lip=k_coef_lip, **kwargs)
        if self.padding not in ("valid", "same"):
            raise ValueError(
                f"Invalid value for argument `padding` of {type(self).__name__}. Expected 'valid' or 'same'. "
                f"Received: padding={padding}"
            )
        if any(stride < size for stride, size in zip(self.strides, self.pool_size, strict=True)):
            raise ValueError(
                f"Invalid value for argument `strides` of {type(self).__name__}. Expected strides of at least the pool "
                "size: where windows overlap an input is counted several times, and the constant does not hold. "
                f"Received: strides={self.strides}, pool_size={self.pool_size}"
            )

    @property
    def _area(self) -> int:
        return math.prod(self.pool_size)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if self.padding == "same":
            self._pads(input_shape)
        return super().compute_output_shape(input_shape)

    def _window_mean(self, inputs: Tensor) -> Tensor:
        """Returns the mean over each window, where zeros that were padded count as values."""
        return ops.average_pool(
            self._padded(inputs), self.pool_size, self.strides, padding="valid", data_format=self.data_format
        )

    def _window_sum_of_squares(self, inputs: Tensor, training: bool | None) -> Tensor:
        """Returns the sum of squares over each window."""
        inputs = self._padded(inputs)
        first = 1 if self.data_format == "channels_last" else 2
        height, width = inputs.shape[first : first + 2]
        tiled = self.strides == self.pool_size and height is not None and width is not None
        if not training or not tiled:
            mean = ops.average_pool(
                ops.square(inputs), self.pool_size, self.strides, padding="valid", data_format=self.data_format
            )
            return scaled(mean, self._area)
        # Windows that tile the image are summed in two views of it; the gradient of average pooling is slower.
        rows, columns = height // self.pool_size[0], width // self.pool_size[1]
        if (rows * self.pool_size[0], columns * self.pool_size[1]) != (height, width):
            whole = [slice(None)] * first
            inputs = inputs[(*whole, slice(rows * self.pool_size[0]), slice(columns * self.pool_size[1]))]
        before, after = ((-1,), (inputs.shape[3],)) if first == 1 else ((-1, inputs.shape[1]), ())
        channels = math.prod(after)
        sums = ops.sum(ops.square(ops.reshape(inputs, (-1, columns, self.pool_size[1], channels))), axis=2)
        sums = ops.sum(ops.reshape(sums, (-1, rows, self.pool_size[0], columns * channels)), axis=2)
        return ops.reshape(sums, (*before, rows, columns, *after))

    def _padded(self, inputs: Tensor) -> Tensor:
        if self.padding == "valid":
            return inputs
        pads = self._pads(inputs.shape)
        spatial = [(0, 0), *pads, (0, 0)] if self.data_format == "channels_last" else [(0, 0), (0, 0), *pads]
        return ops.pad(inputs, spatial)

    def _folded_mean(self) -> Callable[[Tensor], Tensor]:
        """Returns the mean over each window as a built-in layer."""
        mean: Callable[[Tensor], Tensor] = keras.layers.AveragePooling2D(
            self.pool_size, self.strides, padding="valid", data_format=self.data_format, name=self.name
        )
        return mean

    def _folded_padding(self, inputs: Tensor) -> Tensor:
        """Returns `_padded` by a built-in layer."""
        if self.padding == "valid":
            return inputs
        return keras.layers.ZeroPadding2D(self._pads(inputs.shape), data_format=self.data_format)(inputs)

    def _pads(self, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns the zeros before and after each spatial axis that `same` padding adds."""
        pads = []
        for axis, size, stride in zip(
            (1, 2) if self.data_format == "channels_last" else (2, 3), self.pool_size, self.strides, strict=True
        ):
            length = shape[axis]
            if length is None:
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' with padding='same' must know the height and "
                    "width of its input: give the model an `Input` of fixed size, or use padding='valid'. Received: "
                    f"input_shape={tuple(shape)}"
                )
            total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
            pads.append((total // 2, total - total // 2))
        return pads[0], pads[1]


@register
class ScaledAveragePooling2D(_WindowPooling2D):
    """Average pooling times the square root of the window's area: 1-Lipschitz times `k_coef_lip`, and that is tight.

    Args:
        pool_size: One or two integers, height and width of the window.
        strides: One or two integers, at least the pool size, which is the default.
        padding: `"valid"`, or `"same"`, where the zeros outside the image count as values.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_height, new_width, channels)`, or `(batch, channels, new_height, new_width)`.

    Example:
        >>> ScaledAveragePooling2D(2)(np.ones((1, 2, 2, 1)))
        [[[[2.0]]]]

    Raises:
        ValueError: If windows overlap.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    def call(self, inputs: Tensor) -> Tensor:
        return scaled(self._window_mean(inputs), self._scale)

    def fold(self) -> Callable[[Tensor], Tensor]:
        mean, scale = self._folded_mean(), fold_scale(self._scale)
        return lambda inputs: scale(mean(self._folded_padding(inputs)))

    @property
    def _scale(self) -> float:
        return self.k_coef_lip * math.sqrt(self._area)


@register
class ScaledL2NormPooling2D(_WindowPooling2D):
    """The l2 norm of the values in each window: 1-Lipschitz times `k_coef_lip`. Keeps the norm of the image.

    The gradient at a window of zeros, where the norm has none, is zero.

    Args:
        pool_size: One or two integers, height and width of the window.
        strides: One or two integers, at least the pool size, which is the default.
        padding: `"valid"`, or `"same"`, where the image is continued with zeros.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_height, new_width, channels)`, or `(batch, channels, new_height, new_width)`.

    Example:
        >>> ScaledL2NormPooling2D(2)(np.ones((1, 2, 2, 1)))
        [[[[2.0]]]]

    Raises:
        ValueError: If windows overlap.

    Reference:
        Boureau, Ponce and LeCun, 2010, A theoretical analysis of feature pooling in visual recognition.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return scaled(_safe_sqrt(self._window_sum_of_squares(inputs, training)), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        mean, area, scale = self._folded_mean(), fold_scale(self._area), fold_scale(self.k_coef_lip)
        return lambda inputs: scale(ops.sqrt(area(mean(ops.square(self._folded_padding(inputs))))))


class _GlobalPooling2D(LipschitzLayer, keras.layers.GlobalAveragePooling2D):
    def __init__(
        self, data_format: str | None = None, keepdims: bool = False, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, keepdims=keepdims, k_coef_lip=k_coef_lip, **kwargs)

    @property
    def _spatial_axes(self) -> tuple[int, int]:
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    def _folded_mean(self) -> Callable[[Tensor], Tensor]:
        mean: Callable[[Tensor], Tensor] = keras.layers.GlobalAveragePooling2D(
            self.data_format, self.keepdims, name=self.name
        )
        return mean

    def _area(self, inputs: Tensor) -> int:
        sizes = [inputs.shape[axis] for axis in self._spatial_axes]
        if None in sizes:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' folds only where the height and width of its input are "
                "known: its factor depends on them. Give the model an `Input` of fixed size. "
                f"Received: input_shape={tuple(inputs.shape)}"
            )
        return math.prod(sizes)


@register
class ScaledGlobalAveragePooling2D(_GlobalPooling2D):
    """The mean over the image times the square root of its area: 1-Lipschitz times `k_coef_lip`, and that is tight.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        keepdims: Whether height and width stay as axes of size 1.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`. To be folded, a
        layer needs an input of known height and width.

    Output shape:
        `(batch, channels)`, or with `keepdims` as the input with height and width 1.

    Example:
        >>> ScaledGlobalAveragePooling2D()(np.ones((1, 4, 4, 1)))
        [[4.0]]

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    def call(self, inputs: Tensor) -> Tensor:
        shape = ops.shape(inputs)
        area = ops.cast(shape[self._spatial_axes[0]] * shape[self._spatial_axes[1]], inputs.dtype)
        return super().call(inputs) * (ops.sqrt(area) * self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        mean = self._folded_mean()
        return lambda inputs: fold_scale(self.k_coef_lip * math.sqrt(self._area(inputs)))(mean(inputs))


@register
class ScaledGlobalL2NormPooling2D(_GlobalPooling2D):
    """The l2 norm of each channel over the image: 1-Lipschitz times `k_coef_lip`.

    The gradient at a channel of zeros, where the norm has none, is zero.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        keepdims: Whether height and width stay as axes of size 1.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`. To be
        folded, a layer needs an input of known height and width.

    Output shape:
        `(batch, channels)`, or with `keepdims` as the input with height and width 1.

    Example:
        >>> ScaledGlobalL2NormPooling2D()(np.ones((1, 4, 4, 1)))
        [[4.0]]

    Reference:
        Boureau, Ponce and LeCun, 2010, A theoretical analysis of feature pooling in visual recognition.
    """

    def call(self, inputs: Tensor) -> Tensor:
        squares = ops.sum(ops.square(inputs), axis=self._spatial_axes, keepdims=self.keepdims)
        return scaled(_safe_sqrt(squares), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        mean, scale = self._folded_mean(), fold_scale(self.k_coef_lip)
        return lambda inputs: scale(ops.sqrt(fold_scale(self._area(inputs))(mean(ops.square(inputs)))))


def _safe_sqrt(squares: Tensor) -> Tensor:
    """Returns the square root, whose gradient at zero is zero instead of infinite.

    The smallest number of the dtype stands for zero (its smallest normal one where the squares of what is below, about
    1e-19, matter to nobody), which keeps the norm 1-Lipschitz.
    """
    smallest = 2.0**-24 if keras.backend.standardize_dtype(squares.dtype) == "float16" else 2.0**-126
    return ops.sqrt(ops.maximum(squares, smallest))
