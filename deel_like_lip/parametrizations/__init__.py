"""What a constrained kernel is: how it is stored, projections, tangent gradients and the constants that go with them.

Pure `keras.ops` functions and small immutable objects. Nothing here knows of layers or of bounds.
"""

from deel_like_lip.parametrizations.aoc import AOC
from deel_like_lip.parametrizations.aol import AOL, gram_row_sums
from deel_like_lip.parametrizations.base import (
    ComputedKernel,
    Parametrization,
    ReshapedKernel,
    upstream_gradient,
    with_tangent_gradient,
)
from deel_like_lip.parametrizations.cayley import Cayley
from deel_like_lip.parametrizations.cholesky import BlockReflector, CholeskyQR
from deel_like_lip.parametrizations.convolution import ConvolutionGeometry, operator_factor, reshaped_kernel_factor
from deel_like_lip.parametrizations.exponential import Exponential
from deel_like_lip.parametrizations.frobenius import Frobenius
from deel_like_lip.parametrizations.operator_norm import OperatorNorm, operator_norm_bound
from deel_like_lip.parametrizations.orthogonal import Orthogonal, orthogonalize
from deel_like_lip.parametrizations.registry import get, serialize
from deel_like_lip.parametrizations.soc import SOC
from deel_like_lip.parametrizations.spectral import Spectral

__all__ = [
    "AOC",
    "AOL",
    "SOC",
    "BlockReflector",
    "Cayley",
    "CholeskyQR",
    "ComputedKernel",
    "ConvolutionGeometry",
    "Exponential",
    "Frobenius",
    "OperatorNorm",
    "Orthogonal",
    "Parametrization",
    "ReshapedKernel",
    "Spectral",
    "get",
    "gram_row_sums",
    "operator_factor",
    "operator_norm_bound",
    "orthogonalize",
    "reshaped_kernel_factor",
    "serialize",
    "upstream_gradient",
    "with_tangent_gradient",
]
