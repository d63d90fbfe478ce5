"""Lipschitz constants of the activation functions that Keras names."""

from typing import Any, NamedTuple

import keras


class Activation(NamedTuple):
    """What is known of an activation function.

    Attributes:
        constant: Upper bound of its l2 Lipschitz constant on the whole tensor.
        roundings: How many roundings relative to its result float32 arithmetic makes; None where IEEE arithmetic does
            not say, as for exponentials.
        monotone: Whether it acts on each value by itself and never decreases: its slopes lie in [0, constant].
    """

    constant: float
    roundings: int | None = None
    monotone: bool = False


# For a function of one variable the constant is the supremum of |f'|; decimals are rounded up. Softmax: its Jacobian
# diag(p) - p p^T has norm at most 1/2 (Gao and Pavel, arXiv 1704.00805). What is not listed has no finite constant or
# none that we vouch for: sparsemax is a projection, but Keras 3.15 computes something else, with slopes above 20.
_KNOWN = {
    "linear": Activation(1.0, 0, monotone=True),
    "relu": Activation(1.0, 0, monotone=True),
    "relu6": Activation(1.0, 0, monotone=True),
    "hard_tanh": Activation(1.0, 0, monotone=True),
    "leaky_relu": Activation(1.0, 2, monotone=True),
    "soft_shrink": Activation(1.0, 2, monotone=True),
    "tanh": Activation(1.0, monotone=True),
    "tanh_shrink": Activation(1.0, monotone=True),
    "softsign": Activation(1.0, monotone=True),
    "softplus": Activation(1.0, monotone=True),
    "squareplus": Activation(1.0, monotone=True),
    "sparse_plus": Activation(1.0, monotone=True),
    "elu": Activation(1.0, monotone=True),
    "celu": Activation(1.0, monotone=True),
    "log_sigmoid": Activation(1.0, monotone=True),
    "sigmoid": Activation(0.25, monotone=True),
    "hard_sigmoid": Activation(1 / 6 * (1 + 1e-12), monotone=True),
    "sparse_sigmoid": Activation(0.5, monotone=True),
    "softmax": Activation(0.5),
    "gelu": Activation(1.129),  # 1.128905 exactly, 1.128994 in the approximate form
    "silu": Activation(1.0999),
    "mish": Activation(1.0885),
    "hard_silu": Activation(1.5),
    "selu": Activation(1.7581, monotone=True),
}


def activation_constant(activation: Any) -> float | None:
    """Returns an upper bound of the l2 Lipschitz constant of a Keras activation, or None where none is known.

    Args:
        activation: A function of `keras.activations`, a Keras activation layer, or None.

    Returns:
        The constant, or None.

    Example:
        >>> activation_constant(keras.activations.relu), activation_constant(keras.ops.exp)
        (1.0, None)
    """
    found = known_activation(activation)
    return None if found is None else found.constant


def known_activation(activation: Any) -> Activation | None:
    """Returns what is known of a Keras activation, or None. Takes what `activation_constant` does, and names."""
    if activation is None:
        return _KNOWN["linear"]
    if isinstance(activation, str):
        return _KNOWN.get(activation)
    if isinstance(activation, keras.layers.Layer):
        return _of_layer(activation)
    name = getattr(activation, "__name__", "")
    return _KNOWN.get(name) if getattr(keras.activations, name, None) is activation else None


def rectifier(slope: float) -> Activation:
    """Returns the activation that is x above 0 and `slope x` below."""
    return Activation(max(1.0, abs(slope)), 0 if slope in (0, 1) else 2, monotone=slope >= 0)


def exponential_unit(alpha: float) -> Activation:
    """Returns the activation that is x above 0 and `alpha (exp(x) - 1)` below."""
    return Activation(max(1.0, abs(alpha)), monotone=alpha >= 0)


def _of_layer(layer: Any) -> Activation | None:
    kind = type(layer)
    if kind is keras.layers.Activation:
        return known_activation(layer.activation)
    if kind is keras.layers.ReLU:
        # Above a threshold t the function jumps from slope * (x - t) to x, so only t = 0 is continuous. A maximal value
        # cuts off.
        return rectifier(float(layer.negative_slope)) if float(layer.threshold) == 0 else None
    if kind is keras.layers.LeakyReLU:
        return rectifier(float(layer.negative_slope))
    if kind is keras.layers.ELU:
        return exponential_unit(float(layer.alpha))
    if kind is keras.layers.Softmax:
        return _KNOWN["softmax"] if isinstance(layer.axis, int) else None
    return None
