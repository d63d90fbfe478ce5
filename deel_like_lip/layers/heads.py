"""Last layers."""

from typing import Any

from deel_like_lip._registration import register
from deel_like_lip.layers.dense import FrobeniusDense


@register
class UnitNormDense(FrobeniusDense):
    """Dense layer whose outputs each have a weight vector of l2 norm `k_coef_lip`: last layer normalization.

    For the last layer of a classifier. An orthogonal one forces the weight vectors of the classes to be orthogonal,
    which costs accuracy where there are many; here they only have the same length. The layer is more than
    `k_coef_lip`-Lipschitz, but a certificate needs to know only how fast two logits approach one another: after a body
    of constant L, `f_i - f_j` has the constant `L |w_i - w_j|`, at most `2 L k_coef_lip`. `certify` computes that for
    each pair of classes. The same as `FrobeniusDense(disjoint_neurons=True)`, under the name that others know it by.

    Args:
        units: Positive integer, the number of outputs.
        activation: As in `SpectralDense`.
        k_coef_lip: The Lipschitz constant of each output, positive.
        **kwargs: The other arguments of `SpectralDense`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the kernel acts on the last one.

    Output shape:
        `(batch, ..., units)`.

    Example:
        >>> layer = UnitNormDense(100)
        >>> layer(np.zeros((32, 64))).shape
        (32, 100)

    Raises:
        ValueError: If `units` is not a positive integer, `k_coef_lip` is not positive and finite, or the activation's
            constant is above 1 or unknown.

    Reference:
        Singla, Singla and Feizi, 2021, [Improved deterministic l2 robustness on CIFAR-10 and
        CIFAR-100](https://arxiv.org/abs/2108.04062)
    """

    def __init__(self, units: int, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(units, activation, disjoint_neurons=True, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["disjoint_neurons"]
        return config
