"""Lipschitz constants of the activation functions that Keras names."""

import math
from typing import Any

import keras

# l2 constants of the map on the whole tensor. For a function of one variable that is the supremum of |f'|. Those whose
# derivative exceeds 1 are given by decimals rounded up. Softmax: its Jacobian diag(p) - p p^T has norm at most 1/2
# (Gao and Pavel, arXiv 1704.00805). An activation that is not listed has no finite constant or none that we vouch for:
# sparsemax is a projection, but Keras 3.15 computes something else, with slopes above 20.
_CONSTANTS = {
    "linear": 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "tanh": 1.0,
    "hard_tanh": 1.0,
    "tanh_shrink": 1.0,
    "soft_shrink": 1.0,
    "softsign": 1.0,
    "softplus": 1.0,
    "squareplus": 1.0,
    "sparse_plus": 1.0,
    "elu": 1.0,
    "celu": 1.0,
    "leaky_relu": 1.0,
    "log_sigmoid": 1.0,
    "sigmoid": 0.25,
    "hard_sigmoid": 1 / 6 * (1 + 1e-12),
    "sparse_sigmoid": 0.5,
    "softmax": 0.5,
    "gelu": 1.13,
    "silu": 1.1,
    "mish": 1.09,
    "hard_silu": 1.5,
    "selu": 1.7581,
}


def activation_constant(activation: Any) -> float | None:
    """Returns an upper bound of the l2 Lipschitz constant of a Keras activation, or None where none is known.

    Args:
        activation: A function of `keras.activations`, a Keras activation layer, or None.
    """
    if activation is None:
        return 1.0
    if isinstance(activation, keras.layers.Layer):
        return _layer_constant(activation)
    name = getattr(activation, "__name__", "")
    if getattr(keras.activations, name, None) is activation:
        return _CONSTANTS.get(name)
    return None


def _layer_constant(layer: Any) -> float | None:
    kind = type(layer)
    if kind is keras.layers.Activation:
        return activation_constant(layer.activation)
    if kind is keras.layers.ReLU:
        # Above a threshold t the function jumps from slope * (x - t) to x, so only t = 0 is continuous.
        return max(1.0, abs(float(layer.negative_slope))) if float(layer.threshold) == 0 else None
    if kind is keras.layers.LeakyReLU:
        return max(1.0, abs(float(layer.negative_slope)))
    if kind is keras.layers.ELU:
        return max(1.0, math.fabs(float(layer.alpha)))
    if kind is keras.layers.Softmax:
        return _CONSTANTS["softmax"] if isinstance(layer.axis, int) else None
    return None
