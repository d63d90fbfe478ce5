"""Upper bounds of Lipschitz constants, in NumPy float64, rounded outward. Knows plain Keras layers and ops only."""

from deel_like_lip.bounds.activations import activation_constant
from deel_like_lip.bounds.convolution import convolution_bound
from deel_like_lip.bounds.graph import GraphBound, LayerBound, OutputBound, bound_graph
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.rounding import Affine
from deel_like_lip.bounds.rules import CannotBoundError, register_bound_rule, unregister_bound_rule

__all__ = [
    "Affine",
    "CannotBoundError",
    "GraphBound",
    "LayerBound",
    "OutputBound",
    "activation_constant",
    "bound_graph",
    "convolution_bound",
    "register_bound_rule",
    "spectral_norm_bound",
    "unregister_bound_rule",
]
