"""Constraints for the kernels of plain Keras layers, applied inside the compiled step after each update.

A constraint does not see its layer. It takes a kernel as the matrix with its last axis as columns, which is the kernel
of a `Dense` layer, and for a convolution, also a depthwise or transposed one, what acts on one window. The convolution
itself may be larger by a factor of up to `sqrt(ceil(k_h / s_h) * ceil(k_w / s_w))`, k being the kernel size and s the
strides, since an input value lies under that many windows. With `strides` a constraint divides by it.
"""

import math
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_positive, checked_sizes
from deel_like_lip.parametrizations import Frobenius, Orthogonal, Spectral, operator_factor


class _NormConstraint(keras.constraints.Constraint):
    """A constraint that bounds the operator where it knows the strides, and the matrix otherwise."""

    def __init__(self, strides: Any = None, dilation_rate: Any = 1) -> None:
        self.strides = None if strides is None else checked_sizes(strides, "strides")
        self.dilation_rate = checked_sizes(dilation_rate, "dilation_rate")

    def _factor(self, kernel: Tensor) -> float:
        return operator_factor(kernel.shape, self.strides, self.dilation_rate)

    def get_config(self) -> dict[str, Any]:
        return {"strides": self.strides, "dilation_rate": self.dilation_rate}


@register
class SpectralConstraint(_NormConstraint):
    """Makes all singular values of a kernel `k_coef_lip`, or only the largest.

    The layer is then `k_coef_lip`-Lipschitz, if it is dense, or a convolution of which `strides` are given. A kernel
    that an update has left singular keeps its zeros.

    Args:
        k_coef_lip: The spectral norm, positive.
        orthogonal: Whether all singular values are made equal. Otherwise the kernel is divided by an upper bound of its
            norm, which is then less than 1 % below `k_coef_lip`.
        strides: For a convolution: its strides, one integer or one for each spatial axis. `k_coef_lip` is then what the
            norm of the convolution may be, for each image size, with zero or circular padding, in place of the norm of
            the reshaped kernel.
        dilation_rate: For a convolution of which `strides` are given: its dilation rate.

    Example:
        >>> keras.layers.Dense(10, kernel_constraint=SpectralConstraint())
        >>> keras.layers.Conv2D(16, 3, kernel_constraint=SpectralConstraint(strides=1))

    Raises:
        ValueError: If `k_coef_lip` is not positive and finite, or strides do not fit the kernel.

    Reference:
        - Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
        - Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034), for strides
    """

    def __init__(
        self, k_coef_lip: float = 1.0, orthogonal: bool = True, strides: Any = None, dilation_rate: Any = 1
    ) -> None:
        super().__init__(strides, dilation_rate)
        self.k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
        self.orthogonal = bool(orthogonal)

    def __call__(self, kernel: Tensor) -> Tensor:
        norm = self.k_coef_lip / self._factor(kernel)
        return (Orthogonal(norm) if self.orthogonal else Spectral(norm)).project(kernel)

    def get_config(self) -> dict[str, Any]:
        return {"k_coef_lip": self.k_coef_lip, "orthogonal": self.orthogonal, **super().get_config()}


@register
class FrobeniusConstraint(_NormConstraint):
    """Makes the Frobenius norm of a kernel `k_coef_lip`, which bounds its spectral norm.

    The layer is then `k_coef_lip`-Lipschitz, if it is dense, or a convolution of which `strides` are given. A kernel of
    zeros stays as it is.

    Args:
        k_coef_lip: The norm, positive.
        disjoint_neurons: Whether the kernel of each output by itself has that norm. The constant then holds for each
            output of a dense layer by itself.
        strides: As in `SpectralConstraint`.
        dilation_rate: As in `SpectralConstraint`.

    Example:
        >>> keras.layers.Dense(1, kernel_constraint=FrobeniusConstraint())

    Raises:
        ValueError: If `k_coef_lip` is not positive and finite, or strides do not fit the kernel.
    """

    def __init__(
        self, k_coef_lip: float = 1.0, disjoint_neurons: bool = False, strides: Any = None, dilation_rate: Any = 1
    ) -> None:
        super().__init__(strides, dilation_rate)
        self.k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
        self.disjoint_neurons = bool(disjoint_neurons)

    def __call__(self, kernel: Tensor) -> Tensor:
        return Frobenius(self.k_coef_lip / self._factor(kernel), self.disjoint_neurons).project(kernel)

    def get_config(self) -> dict[str, Any]:
        return {"k_coef_lip": self.k_coef_lip, "disjoint_neurons": self.disjoint_neurons, **super().get_config()}


@register
class WeightClipConstraint(keras.constraints.Constraint):
    """Clips each entry of a kernel to [-c, c].

    The constant of a dense layer of m inputs and n outputs is then at most `c * sqrt(m * n)`.

    Args:
        c: The largest absolute value, positive.

    Example:
        >>> keras.layers.Dense(10, kernel_constraint=WeightClipConstraint(0.01))

    Raises:
        ValueError: If `c` is not positive and finite.

    Reference:
        Arjovsky, Chintala and Bottou, 2017, [Wasserstein GAN](https://arxiv.org/abs/1701.07875)
    """

    def __init__(self, c: float = 2.0) -> None:
        self.c = checked_positive(c, "c")

    def __call__(self, kernel: Tensor) -> Tensor:
        return ops.clip(kernel, -self.c, self.c)

    def get_config(self) -> dict[str, Any]:
        return {"c": self.c}


@register
class AutoWeightClipConstraint(_NormConstraint):
    """Clips each entry of a kernel to [-c, c], where `c = 1 / (scale * sqrt(size))` and size is its number of entries.

    The Frobenius norm, and so the spectral norm, is at most `1 / scale`, which is then the constant of the layer, if it
    is dense, or a convolution of which `strides` are given.

    Args:
        scale: Positive; a larger one clips more.
        strides: As in `SpectralConstraint`.
        dilation_rate: As in `SpectralConstraint`.

    Example:
        >>> keras.layers.Dense(10, kernel_constraint=AutoWeightClipConstraint())

    Raises:
        ValueError: If `scale` is not positive and finite, or strides do not fit the kernel.
    """

    def __init__(self, scale: float = 1.0, strides: Any = None, dilation_rate: Any = 1) -> None:
        super().__init__(strides, dilation_rate)
        self.scale = checked_positive(scale, "scale")

    def __call__(self, kernel: Tensor) -> Tensor:
        largest = 1 / (self.scale * self._factor(kernel) * math.sqrt(math.prod(kernel.shape)))
        return ops.clip(kernel, -largest, largest)

    def get_config(self) -> dict[str, Any]:
        return {"scale": self.scale, **super().get_config()}
