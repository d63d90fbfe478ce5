"""Circular convolutions as matrices at the frequencies of the torus that their image is.

A convolution with circular padding acts on each frequency by itself, by a complex matrix, its symbol there. Real images
have cosine and sine coefficients instead, and the complex number `a + ib` is the real matrix `[[a, -b], [b, a]]`.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from keras import ops

from deel_like_lip._geometry import circular_pads
from deel_like_lip._typing import Tensor

Array = npt.NDArray[np.float64]


def real_symbols(kernels: Tensor, sizes: Sequence[int], strides: Sequence[int], dilation_rate: Sequence[int]) -> Tensor:
    """Returns the symbols of circular convolutions as real matrices, one for each two opposite frequencies.

    With strides they are those of stride 1 on the smaller torus, where the phases of the input count as channels.

    Args:
        kernels: Tensor of shape `(groups, *taps, c_in, c_out)`.
        sizes: Size of the image along each spatial axis, a multiple of the stride.
        strides: Stride along each spatial axis.
        dilation_rate: Dilation along each spatial axis.

    Returns:
        Tensor of shape `(frequencies * groups, prod(strides) * c_in * 2, c_out * 2)`, whose rows and columns belong to
        cosines and sines in turn.
    """
    groups, *taps, inputs, outputs = kernels.shape
    pads = circular_pads(taps, strides, dilation_rate)
    # Tap t of output o meets the input s o + d t - before, which is s (o + q) + r.
    met = [
        np.divmod(dilation * np.arange(size) - before, stride)
        for size, stride, dilation, (before, _) in zip(taps, strides, dilation_rate, pads, strict=True)
    ]
    shifts, phases = (np.array(list(itertools.product(*axes))) for axes in zip(*met, strict=True))
    frequencies = _frequencies(tuple(size // stride for size, stride in zip(sizes, strides, strict=True)))
    angles = frequencies @ shifts.T
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1)
    count = math.prod(strides)
    is_phase = np.arange(count)[:, None] == np.ravel_multi_index(tuple(phases.T), tuple(strides))
    # `(frequencies, phases, cos and sin of inputs * those of outputs, taps)`
    table = turns[:, None] * is_phase[:, None]
    flat = ops.reshape(ops.moveaxis(kernels, 0, -3), (len(shifts), -1))
    symbols = ops.matmul(ops.convert_to_tensor(table.reshape(-1, len(shifts)), dtype=kernels.dtype), flat)
    symbols = ops.reshape(symbols, (len(frequencies), count, 2, 2, groups, inputs, outputs))
    symbols = ops.transpose(symbols, (0, 4, 1, 5, 2, 6, 3))
    return ops.reshape(symbols, (len(frequencies) * groups, count * inputs * 2, outputs * 2))


@functools.lru_cache(maxsize=8)
def waves(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns what takes images to coefficients, an isometry, and what takes coefficients back to images, a transpose.

    Coefficients are those of orthonormal cosines and sines, where there are sines.

    Args:
        sizes: Size of the image along each spatial axis, a multiple of the stride.
        strides: Stride along each spatial axis.

    Returns:
        - Cosines and sines on the grid of each phase of the image, shape `(*sizes, frequencies, prod(strides), 2)`.
        - Those on the smaller torus, shape `(frequencies, 2, *sizes)` with its sizes.
    """
    small = tuple(size // stride for size, stride in zip(sizes, strides, strict=True))
    frequencies, places = _frequencies(small), _grid(small)
    angles = frequencies @ places.T
    # Frequencies that are their own opposites have no sines, and cosines of 1 and -1.
    scale = np.sqrt(np.where(np.all(np.abs(np.sin(frequencies)) < 1e-9, axis=1), 1.0, 2.0) / len(places))
    table = scale[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    coarse, phases = np.divmod(_grid(sizes), strides)
    where = np.ravel_multi_index(tuple(coarse.T), small)
    phase = np.ravel_multi_index(tuple(phases.T), strides)
    analysis = np.zeros((len(where), len(frequencies), math.prod(strides), 2))
    analysis[np.arange(len(where)), :, phase] = np.moveaxis(table[..., where], -1, 0)
    return analysis.reshape(*sizes, *analysis.shape[1:]), table.reshape(*table.shape[:2], *small)


@functools.lru_cache(maxsize=8)
def _frequencies(sizes: tuple[int, ...]) -> Array:
    """Returns one of each two opposite frequencies, shape `(frequencies, axes)`."""
    grid = _grid(sizes)
    opposite = -grid % sizes
    kept = np.ravel_multi_index(tuple(grid.T), sizes) <= np.ravel_multi_index(tuple(opposite.T), sizes)
    found: Array = 2 * math.pi * grid[kept] / sizes
    return found


def _grid(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(list(itertools.product(*map(range, sizes))))
