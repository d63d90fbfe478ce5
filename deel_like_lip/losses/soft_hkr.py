"""The hinge-KR loss of the true class against a soft maximum of the others, a mean of terms per sample."""

import math
from typing import Any

from keras import ops

from deel_like_lip._labels import one_hot
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.losses.base import Parameter, ParametricLoss, other_outputs, true_output


def soft_hkr_terms(labels: Tensor, outputs: Tensor, alpha: Tensor, min_margin: Tensor, temperature: Tensor) -> Tensor:
    """Returns the hinge-KR terms of the true output and of the others, these weighted by their softmax.

    `-f_y + sum_j w_j f_j + alpha * ((min_margin - f_y)_+ + sum_j w_j (min_margin + f_j)_+)` over j != y, where w is the
    softmax of `temperature * f` over j != y. The gradient goes through the weights too.

    Args:
        labels: One-hot labels, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        alpha: Weight of the hinges.
        min_margin: The value of `f_y`, and of `-f_j`, from which on no hinge is paid.
        temperature: With 0 the others weigh the same; the larger, the more the largest of them weighs.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(soft_hkr_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 10.0, 1.0, 0.0), 4)
        array([13.5])
    """
    weights = ops.softmax(other_outputs(labels, temperature * outputs), axis=-1)
    true = true_output(labels, outputs)
    kr = ops.sum(weights * outputs, axis=-1) - true
    hinge = ops.relu(min_margin - true) + ops.sum(weights * ops.relu(min_margin + outputs), axis=-1)
    return kr + alpha * hinge


def lse_hkr_terms(labels: Tensor, outputs: Tensor, alpha: Tensor, min_margin: Tensor, penalty: Tensor) -> Tensor:
    """Returns the hinge-KR terms of the true output and of a smooth maximum g of the others.

    `g - f_y + alpha * ((min_margin - f_y)_+ + (min_margin + g)_+)`, where `g = log(sum_j exp(t f_j)) / t` over j != y
    and `t = log(C - 1) / (penalty * min_margin)` for C classes: g lies between the maximum and
    `penalty * min_margin` above it.

    Args:
        labels: One-hot labels, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        alpha: Weight of the hinges.
        min_margin: The value of `f_y`, and of `-g`, from which on no hinge is paid; positive.
        penalty: How far g may be above the maximum, in margins; positive.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(lse_hkr_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 10.0, 1.0, 1.0), 4)
        array([25.4346])
    """
    # The smooth maximum of a single output is that output, for any positive t.
    sharpness = math.log(max(outputs.shape[-1] - 1, 2)) / (penalty * min_margin)
    rival = ops.logsumexp(other_outputs(labels, sharpness * outputs), axis=-1) / sharpness
    true = true_output(labels, outputs)
    return rival - true + alpha * (ops.relu(min_margin - true) + ops.relu(min_margin + rival))


@register
class SoftHKRMulticlass(ParametricLoss):
    """Hinge-KR of the true output and of the others, these weighted by the softmax w of `temperature * f`.

    `-f_y + sum_j w_j f_j + alpha * ((min_margin - f_y)_+ + sum_j w_j (min_margin + f_j)_+)` over j != y. Where
    `MulticlassHKR` averages over the classes, so that with many of them hardly anything is left of the one that counts,
    the true class and its nearest rivals weigh the same here. It is a mean of terms per sample: classes weigh as they
    occur. Also exported as `SoftHKRMulticlassLoss`, torchlip's name.

    torchlip divides the temperature by a running mean of the absolute outputs, in units of the margin, once that is
    above 1. Here it is what you set, so that the loss has no state and a sample's term depends on that sample only;
    `LossParamScheduler` changes it. torchlip halves the margin inside, and its alpha is `alpha / (1 + alpha)` in terms
    of this one, with the whole loss divided by `1 + alpha`.

    Args:
        alpha: Weight of the hinges, non-negative. Can be set during training.
        min_margin: Margin that the hinges ask for, non-negative. Can be set during training.
        temperature: Factor of the outputs in the softmax, non-negative: the larger, the more the largest of the others
            weighs. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(SoftHKRMulticlass(alpha=10.0, min_margin=1.0)([0], [[1.0, -0.5, -0.5]]))
        3.5

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Serrurier et al., 2023, [On the explainable properties of 1-Lipschitz neural networks: an optimal transport
        perspective](https://arxiv.org/abs/2206.06854)
    """

    alpha = Parameter(positive=False)
    min_margin = Parameter(positive=False)
    temperature = Parameter(positive=False)

    def __init__(
        self,
        alpha: float = 10.0,
        min_margin: float = 1.0,
        temperature: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "soft_hkr_multiclass",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.alpha = alpha
        self.min_margin = min_margin
        self.temperature = temperature

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        parameters = (self._tensor(name, outputs) for name in ("alpha", "min_margin", "temperature"))
        return soft_hkr_terms(labels, outputs, *parameters)


SoftHKRMulticlassLoss = SoftHKRMulticlass


@register
class LseHKRMulticlass(ParametricLoss):
    """Hinge-KR of the true output and of a smooth maximum of the others, by log-sum-exp.

    `g - f_y + alpha * ((min_margin - f_y)_+ + (min_margin + g)_+)`, where `g = log(sum_j exp(t f_j)) / t` over j != y
    and `t = log(C - 1) / (penalty * min_margin)` for C classes: g lies between the maximum of the others and
    `penalty * min_margin` above it. It is a mean of terms per sample: classes weigh as they occur. Also exported as
    `LseHKRMulticlassLoss`, torchlip's name.

    torchlip halves the margin inside, and its alpha is `alpha / (1 + alpha)` in terms of this one, with the whole loss
    divided by `1 + alpha`. Its temperature T is no argument here: up to a factor T it is the same to divide the
    margin by T.

    Args:
        alpha: Weight of the hinges, non-negative. Can be set during training.
        min_margin: Margin that the hinges ask for, positive. Can be set during training.
        penalty: How far the smooth maximum may be above the maximum, in margins, positive. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(LseHKRMulticlass(alpha=10.0, min_margin=1.0)([0], [[1.0, -1.5, -1.5]])), 4)
        3.5

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520), for the loss of two classes; the smooth maximum is that of
        deel-torchlip
    """

    alpha = Parameter(positive=False)
    min_margin = Parameter(positive=True)
    penalty = Parameter(positive=True)

    def __init__(
        self,
        alpha: float = 10.0,
        min_margin: float = 1.0,
        penalty: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "lse_hkr_multiclass",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.alpha = alpha
        self.min_margin = min_margin
        self.penalty = penalty

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        parameters = (self._tensor(name, outputs) for name in ("alpha", "min_margin", "penalty"))
        return lse_hkr_terms(labels, outputs, *parameters)


LseHKRMulticlassLoss = LseHKRMulticlass
