"""Pooling layers that are scaled to the constant 1, which average pooling is far below."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import LipschitzLayer, fold_scale, scaled
from deel_like_lip.parametrizations import upstream_gradient


class _Pooling2D(LipschitzLayer):
    data_format: str

    @property
    def _spatial_axes(self) -> tuple[int, int]:
        return (1, 2) if self.data_format == "channels_last" else (2, 3)


class _WindowPooling2D(_Pooling2D, keras.layers.AveragePooling2D):
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

    def _padded(self, inputs: Tensor) -> Tensor:
        if self.padding == "valid":
            return inputs
        pads = self._pads(inputs.shape)
        spatial = [(0, 0), *pads, (0, 0)] if self.data_format == "channels_last" else [(0, 0), (0, 0), *pads]
        return ops.pad(inputs, spatial)

    def _cropped(self, inputs: Tensor) -> Tensor:
        """Cuts off what no window of a tiling reads."""
        sizes = [inputs.shape[axis] for axis in self._spatial_axes]
        whole = [size // window * window for size, window in zip(sizes, self.pool_size, strict=True)]
        if whole == sizes:
            return inputs
        everything = (slice(None),) * self._spatial_axes[0]
        return inputs[(*everything, slice(whole[0]), slice(whole[1]))]

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
        for axis, size, stride in zip(self._spatial_axes, self.pool_size, self.strides, strict=True):
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
        height, width = (inputs.shape[axis] for axis in self._spatial_axes)
        if training and self.strides == self.pool_size and height is not None and width is not None:
            norms = _l2_norms_of_tiles(self._cropped(self._padded(inputs)), self.pool_size, self.data_format)
        else:
            norms = _safe_sqrt(scaled(self._window_mean(ops.square(inputs)), self._area))
        return scaled(norms, self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        mean, area, scale = self._folded_mean(), fold_scale(self._area), fold_scale(self.k_coef_lip)
        return lambda inputs: scale(ops.sqrt(area(mean(ops.square(self._folded_padding(inputs))))))


class _GlobalPooling2D(_Pooling2D, keras.layers.GlobalAveragePooling2D):
    def __init__(
        self, data_format: str | None = None, keepdims: bool = False, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, keepdims=keepdims, k_coef_lip=k_coef_lip, **kwargs)

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


def _l2_norms_of_tiles(inputs: Tensor, window: tuple[int, int], data_format: str) -> Tensor:
    """Returns the l2 norms of windows that tile an image, with the gradient `x / |x|` written out.

    It is the gradient of `_safe_sqrt` of the sum of squares, without a gradient of pooling, which is slow.
    """
    channels_last = data_format == "channels_last"
    first = 1 if channels_last else 2
    rows, columns = (inputs.shape[first + i] // window[i] for i in (0, 1))
    lead, tail = ((), (inputs.shape[3],)) if channels_last else ((inputs.shape[1],), ())

    def squares_by_tile(x: Tensor) -> Tensor:
        if keras.backend.backend() != "torch":
            mean = ops.average_pool(ops.square(x), window, window, padding="valid", data_format=data_format)
            return mean * math.prod(window)
        everything = (slice(None),) * first
        taps = itertools.product(range(window[0]), range(window[1]))
        parts = (x[(*everything, slice(i, None, window[0]), slice(j, None, window[1]))] for i, j in taps)
        return functools.reduce(ops.add, map(ops.square, parts))

    @ops.custom_gradient
    def norms(x: Tensor) -> tuple[Tensor, Any]:
        outputs = _safe_sqrt(squares_by_tile(x))
        lengths = ops.stop_gradient(outputs)  # torch never frees an output that its own backward function refers to

        def backward(*args: Tensor, upstream: Tensor = None) -> Tensor:
            ratio = upstream_gradient(args, upstream) / lengths
            by_tile = ops.reshape(x, (-1, *lead, rows, window[0], columns, window[1], *tail))
            by_tile = by_tile * ops.reshape(ratio, (-1, *lead, rows, 1, columns, 1, *tail))
            return ops.reshape(by_tile, (-1, *x.shape[1:]))

        return outputs, backward

    return norms(inputs)


def _safe_sqrt(squares: Tensor) -> Tensor:
    """Returns the square root, whose gradient at zero is zero instead of infinite.

    The smallest number of the dtype stands for zero (its smallest normal one where the squares of what is below, about
    1e-19, matter to nobody), which keeps the norm 1-Lipschitz.
    """
    smallest = 2.0**-24 if keras.backend.standardize_dtype(squares.dtype) == "float16" else 2.0**-126
    return ops.sqrt(ops.maximum(squares, smallest))
