"""What a constrained kernel is: projections, tangent gradients and the constants that go with them.

Pure `keras.ops` functions and small immutable objects. Nothing here knows of layers or of bounds.
"""

from deel_like_lip.parametrizations.base import Parametrization, with_tangent_gradient
from deel_like_lip.parametrizations.convolution import operator_factor, reshaped_kernel_factor
from deel_like_lip.parametrizations.frobenius import Frobenius
from deel_like_lip.parametrizations.orthogonal import Orthogonal, orthogonalize, retract
from deel_like_lip.parametrizations.spectral import Spectral

__all__ = [
    "Frobenius",
    "Orthogonal",
    "Parametrization",
    "Spectral",
    "operator_factor",
    "orthogonalize",
    "reshaped_kernel_factor",
    "retract",
    "with_tangent_gradient",
]
