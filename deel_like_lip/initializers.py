"""Initializers for kernels that start orthogonal."""

import math
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_positive, checked_sizes
from deel_like_lip.parametrizations import Orthogonal, Spectral, operator_factor


@register
class SpectralInitializer(keras.initializers.Initializer):
    """Makes what another initializer returns orthogonal, or divides it by its spectral norm.

    A kernel of any rank stands for the matrix with its last axis as columns. Constrained layers do this by themselves;
    this is for plain ones, along with `SpectralConstraint`.

    Args:
        base_initializer: An initializer, by name or as an object. Its seed is the seed.
        k_coef_lip: The value of the singular values, positive.
        orthogonal: Whether all singular values are `k_coef_lip`. Otherwise the largest is, up to 1 %.
        strides: For a convolution: its strides, one integer or one for each spatial axis. `k_coef_lip` is then what the
            norm of the convolution may be, in place of the norm of the reshaped kernel, as in `SpectralConstraint`.
        dilation_rate: For a convolution of which `strides` are given: its dilation rate.

    Example:
        >>> keras.layers.Dense(10, kernel_initializer=SpectralInitializer("glorot_uniform"))

    Raises:
        ValueError: If `k_coef_lip` is not positive and finite, or strides do not fit the kernel.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    def __init__(
        self,
        base_initializer: Any = "orthogonal",
        k_coef_lip: float = 1.0,
        orthogonal: bool = True,
        strides: Any = None,
        dilation_rate: Any = 1,
    ) -> None:
        self.base_initializer = keras.initializers.get(base_initializer)
        self.k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
        self.orthogonal = bool(orthogonal)
        self.strides = None if strides is None else checked_sizes(strides, "strides")
        self.dilation_rate = checked_sizes(dilation_rate, "dilation_rate")

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        norm = self.k_coef_lip / operator_factor(shape, self.strides, self.dilation_rate)
        parametrization = Orthogonal(norm) if self.orthogonal else Spectral(norm)
        dtype, precision = _dtypes(dtype)
        return ops.cast(parametrization.start(self.base_initializer, tuple(shape), precision), dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "base_initializer": keras.initializers.serialize(self.base_initializer),
            "k_coef_lip": self.k_coef_lip,
            "orthogonal": self.orthogonal,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
        }


@register
class DeltaOrthogonal(keras.initializers.Orthogonal):
    """Kernels of convolutions that are orthogonal as operators: all their singular values are `gain`.

    An orthogonal matrix at one tap and zeros at the others, so that each position is mapped by itself. With strides the
    matrix covers one tap for each position of a stride, since those of the image would be lost otherwise. Windows then
    meet disjoint patches, so the convolution has the singular values of the matrix: on images whose size is a
    multiple of the strides with padding "same" or "circular", and never larger ones on others.

    For the kernels of `Conv1D`, `Conv2D`, `Conv3D` and their transposes, whose operator is the transpose. A convolution
    with as many or fewer outputs than inputs has orthogonal rows, one with more of them orthogonal columns. In the
    second case the reshaped kernel has zeros among its singular values, so it is no start for layers that keep that
    orthogonal, such as `LipConv2D`.

    Args:
        gain: The value of the singular values, positive.
        strides: Strides of the convolution, one integer or one for each spatial axis, at most the kernel size.
        groups: Number of groups that the channels are split into.
        seed: An integer, or None for a new one.

    Example:
        >>> keras.layers.Conv2D(16, 3, padding="same", kernel_initializer=DeltaOrthogonal())
        >>> keras.layers.Conv2D(16, 3, strides=2, padding="same", kernel_initializer=DeltaOrthogonal(strides=2))

    Raises:
        ValueError: If the kernel is not that of a convolution, is smaller than its strides, or its outputs cannot be
            split into the groups.

    Reference:
        Xiao et al., 2018, [Dynamical isometry and a mean field theory of CNNs](https://arxiv.org/abs/1806.05393)
    """

    def __init__(self, gain: float = 1.0, strides: Any = 1, groups: int = 1, seed: Any = None) -> None:
        super().__init__(gain=checked_positive(gain, "gain"), seed=seed)
        self.strides = checked_sizes(strides, "strides")
        (self.groups,) = checked_sizes(groups, "groups", 1)

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        *kernel_size, inputs, outputs = shape
        rank = len(kernel_size)
        if rank < 1 or outputs % self.groups:
            raise ValueError(
                "DeltaOrthogonal expects a kernel of shape (*kernel_size, c_in / groups, c_out) with at least one "
                "spatial axis, and a c_out that the groups divide. "
                f"Received: shape={tuple(shape)}, groups={self.groups}"
            )
        strides = checked_sizes(self.strides, "strides", rank)
        if any(stride > taps for stride, taps in zip(strides, kernel_size, strict=True)):
            raise ValueError(
                "DeltaOrthogonal expects strides of at most the kernel size: others skip a part of the image, and no "
                f"such convolution is orthogonal. Received: shape={tuple(shape)}, strides={self.strides}"
            )
        dtype, precision = _dtypes(dtype)
        rows, columns = math.prod(strides) * inputs, outputs // self.groups
        tall = (self.groups, max(rows, columns), min(rows, columns))
        q, r = ops.qr(keras.random.normal(tall, seed=self.seed, dtype=precision))
        # With this sign the distribution is uniform (Mezzadri, 2007).
        q = q * ops.expand_dims(ops.sign(ops.diagonal(r, axis1=-2, axis2=-1)), 1) * self.gain
        matrices = ops.transpose(q, (1, 0, 2) if rows >= columns else (2, 0, 1))  # (rows, groups, columns)
        block = ops.reshape(matrices, (*strides, inputs, outputs))
        # Where windows of padding "same" have the position, or the positions of the stride, that is theirs.
        pads = [((taps - stride) // 2, taps - stride) for taps, stride in zip(kernel_size, strides, strict=True)]
        pads = [(before, total - before) for before, total in pads]
        return ops.cast(ops.pad(block, [*pads, (0, 0), (0, 0)]), dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strides": self.strides, "groups": self.groups}


def _dtypes(dtype: Any) -> tuple[str, str]:
    """Returns a dtype, by default that of the Keras configuration, and the one to compute in."""
    dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    return dtype, "float64" if dtype == "float64" else "float32"
