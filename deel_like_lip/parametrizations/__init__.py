"""What a constrained kernel is: projections, tangent gradients and the constants that go with them.

Pure `keras.ops` functions and small immutable objects. Nothing here knows of layers or of bounds.
"""

from deel_like_lip.parametrizations.base import Parametrization, with_tangent_gradient
from deel_like_lip.parametrizations.convolution import reshaped_kernel_factor
from deel_like_lip.parametrizations.frobenius import Frobenius
from deel_like_lip.parametrizations.operator import OperatorNorm, gram_row_sums, operator_norm_bound
from deel_like_lip.parametrizations.orthogonal import Orthogonal, orthogonalize, retract
from deel_like_lip.parametrizations.spectral import Spectral

__all__ = [
    "Frobenius",
    "OperatorNorm",
    "Orthogonal",
    "Parametrization",
    "Spectral",
    "gram_row_sums",
    "operator_norm_bound",
    "orthogonalize",
    "reshaped_kernel_factor",
    "retract",
    "with_tangent_gradient",
]
