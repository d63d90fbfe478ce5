"""The Kantorovich-Rubinstein (KR) term, the hinge and their sum.

The KR term is the difference of the means of f over two classes; over 1-Lipschitz functions its largest value is the
Wasserstein-1 distance of the classes. The hinge term asks for a margin.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from deel_like_lip._labels import binary_signs, one_vs_all_signs
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_positive
from deel_like_lip.losses.base import Parameter, ParametricLoss


def kr_terms(
    signs: Tensor, outputs: Tensor, weights: Tensor | None = None, class_proportions: Sequence[float] | None = None
) -> Tensor:
    """Returns terms whose mean over the batch is minus the KR estimate, `E_{Y=-1}[f] - E_{Y=1}[f]`.

    Each expectation is a weighted mean over the samples of one class in this batch, so a constant that is added to f
    cancels. Where the batch lacks one of the two classes there is no difference, and the terms are zero.

    Args:
        signs: Labels -1 and 1, shape `(batch, outputs)`.
        outputs: Values of f, shape `(batch, outputs)`.
        weights: Sample weights, shape `(batch, 1)`, by default 1.
        class_proportions: For each output the share of samples with label 1, in (0, 1). With it the term of a sample
            depends on that sample only: `-f / p` for a label of 1 and `f / (1 - p)` for -1.

    Returns:
        Tensor of shape `(batch,)`, averaged over the outputs.

    Example:
        >>> np.round(kr_terms(np.array([[1.0], [-1.0]]), np.array([[2.0], [0.5]])), 4)
        array([-4.,  1.])
    """
    positive = (signs + 1) * 0.5
    negative = 1 - positive
    if weights is not None:
        positive, negative = positive * weights, negative * weights
    if class_proportions is None:
        positive_share = ops.mean(positive, axis=0, keepdims=True)
        negative_share = ops.mean(negative, axis=0, keepdims=True)
        both = (positive_share > 0) & (negative_share > 0)
        factors = negative / ops.where(both, negative_share, 1.0) - positive / ops.where(both, positive_share, 1.0)
        factors = ops.where(both, factors, 0.0)
    else:
        share = ops.convert_to_tensor(list(class_proportions), dtype=outputs.dtype)
        factors = negative / (1 - share) - positive / share
    return ops.mean(factors * outputs, axis=-1)


def hinge_terms(signs: Tensor, outputs: Tensor, min_margin: Tensor, true_class_weight: float = 1.0) -> Tensor:
    """Returns `(min_margin - Y f)_+` averaged over the outputs.

    Args:
        signs: Labels -1 and 1, shape `(batch, outputs)`.
        outputs: Values of f, shape `(batch, outputs)`.
        min_margin: The value of `Y f` from which on nothing is paid.
        true_class_weight: Factor of the terms with label 1.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(hinge_terms(np.array([[1.0], [-1.0]]), np.array([[2.0], [0.5]]), 1.0), 4)
        array([0. , 1.5])
    """
    hinge = ops.relu(min_margin - signs * outputs)
    if true_class_weight != 1:
        hinge = ops.where(signs > 0, hinge * true_class_weight, hinge)
    return ops.mean(hinge, axis=-1)


class _DistributionLoss(ParametricLoss):
    """A loss of the weighted distribution of a batch, rather than a mean of losses of its samples.

    `sample_weight` makes every expectation one under the weighted distribution: scaling all weights changes nothing.
    With `class_proportions` the loss is a mean of terms per sample instead, times the weights, as in all of Keras.
    """

    def __init__(self, class_proportions: Any, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(reduction, name, dtype)
        self.class_proportions = _checked_proportions(class_proportions, type(self).__name__)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        mask = getattr(y_pred, "_keras_mask", None)
        if sample_weight is None and mask is None:
            return super().__call__(y_true, y_pred)
        dtype = self.dtype
        weights = ops.ones((), dtype=dtype)
        for factor in (sample_weight, mask):
            if factor is not None:
                factor = ops.cast(ops.convert_to_tensor(factor), dtype)
                if len(factor.shape) > 2 or (len(factor.shape) == 2 and factor.shape[1] != 1):
                    raise ValueError(
                        f"{type(self).__name__} expects one weight a sample, `sample_weight` of shape (batch,) or "
                        f"(batch, 1). Received: sample_weight.shape={tuple(factor.shape)}"
                    )
                weights = weights * ops.reshape(factor, (-1, 1))
        # The weights travel beside the labels: they belong inside the expectations, not outside the terms. A mask has
        # become a weight, so Keras must not see it again.
        return super().__call__((y_true, weights), y_pred if mask is None else y_pred * 1)

    def call(self, y_true: Any, y_pred: Tensor) -> Tensor:
        labels, weights = y_true if isinstance(y_true, tuple) else (y_true, None)
        return self.terms(labels, y_pred, weights)

    def terms(self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None) -> Tensor:
        """Returns terms of shape `(batch,)` whose mean is the loss; `weights` has shape `(batch, 1)`."""
        raise NotImplementedError

    def _hkr_terms(
        self, signs: Tensor, outputs: Tensor, weights: Tensor | None, true_class_weight: float = 1.0
    ) -> Tensor:
        kr = kr_terms(signs, outputs, weights, self.class_proportions)
        hinge = hinge_terms(signs, outputs, self._tensor("min_margin", outputs), true_class_weight)
        if weights is not None:
            share = weights[:, 0]
            if self.class_proportions is None:
                total = ops.sum(share)
                count = ops.cast(ops.shape(share)[0], share.dtype)
                share = share * count / ops.where(total > 0, total, ops.ones_like(total))
            hinge = hinge * share
        return kr + self._tensor("alpha", outputs) * hinge

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "class_proportions": self.class_proportions}


def _checked_proportions(value: Any, owner: str) -> list[float] | None:
    if value is None:
        return None
    proportions = [float(share) for share in (value if isinstance(value, Sequence) else [value])]
    if not proportions or any(not 0 < share < 1 for share in proportions):
        raise ValueError(
            f"Invalid value for argument `class_proportions` of {owner}. Expected for each output the share of samples "
            f"with label 1, strictly between 0 and 1. Received: class_proportions={value}"
        )
    return proportions


@register
class KR(_DistributionLoss):
    """Minus the Kantorovich-Rubinstein estimate of the Wasserstein-1 distance: `E_{Y=-1}[f] - E_{Y=1}[f]`.

    The expectations are (weighted) means over each class in the batch. A batch that lacks one of the classes gives 0.
    The metric `metrics.KR` reports the estimate itself.

    Args:
        class_proportions: The share of samples with label 1, or one share an output. With it the loss is a mean of
            terms per sample, as replicas need that each see a part of the batch.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels 0 and 1, or -1 and 1, shape `(batch,)` or that of `y_pred`.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`; several outputs are averaged.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(KR()([1, 1, 0], [[2.0], [4.0], [1.0]]))
        -2.0

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    def __init__(
        self,
        class_proportions: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "kr",
        dtype: Any = None,
    ) -> None:
        super().__init__(class_proportions, reduction, name, dtype)

    def terms(self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None) -> Tensor:
        signs, outputs = binary_signs(y_true, y_pred, type(self).__name__)
        return kr_terms(signs, outputs, weights, self.class_proportions)


@register
class HingeKR(_DistributionLoss):
    """The hinge-KR loss of the paper: `E_{Y=-1}[f] - E_{Y=1}[f] + alpha * E[(min_margin - Y f)_+]`.

    A sample with Y=1 and `min_margin=1` pays a hinge of 0 at f=1 and of 2 at f=-1. (deel-lip from 1.4 on halves the
    margin inside.) Also exported as `HingeKRLoss`.

    Args:
        alpha: Weight of the hinge term, non-negative. Can be set during training.
        min_margin: Margin that the hinge asks for, non-negative. Can be set during training.
        class_proportions: As in `KR`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels 0 and 1, or -1 and 1, shape `(batch,)` or that of `y_pred`.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`; several outputs are averaged.
        sample_weight: Optional weights, shape `(batch,)`. Each expectation is taken under the weighted distribution.

    Example:
        >>> float(HingeKR(alpha=10.0, min_margin=1.0)([1, 0], [[0.5], [-1.0]]))
        1.0

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    alpha = Parameter(positive=False)
    min_margin = Parameter(positive=False)

    def __init__(
        self,
        alpha: float = 10.0,
        min_margin: float = 1.0,
        class_proportions: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "hinge_kr",
        dtype: Any = None,
    ) -> None:
        super().__init__(class_proportions, reduction, name, dtype)
        self.alpha = alpha
        self.min_margin = min_margin

    def terms(self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None) -> Tensor:
        signs, outputs = binary_signs(y_true, y_pred, type(self).__name__)
        return self._hkr_terms(signs, outputs, weights)


HingeKRLoss = HingeKR


@register
class HingeMargin(ParametricLoss):
    """The hinge `(min_margin - Y f)_+`, a mean over samples.

    Args:
        min_margin: Margin that the hinge asks for, non-negative. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels 0 and 1, or -1 and 1, shape `(batch,)` or that of `y_pred`.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`; several outputs are averaged.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(HingeMargin(min_margin=1.0)([1, 0], [[0.5], [-1.0]]))
        0.25

    Raises:
        ValueError: If the shapes do not fit or the margin is negative.
    """

    min_margin = Parameter(positive=False)

    def __init__(
        self,
        min_margin: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "hinge_margin",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.min_margin = min_margin

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        signs, outputs = binary_signs(y_true, y_pred, type(self).__name__)
        return hinge_terms(signs, outputs, self._tensor("min_margin", outputs))


@register
class MulticlassKR(_DistributionLoss):
    """`KR` of each class against all others, averaged over the classes.

    A class that the batch lacks contributes 0.

    Args:
        class_proportions: The share of each class, a sequence. With it the loss is a mean of terms per sample.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(MulticlassKR()([0, 1], [[3.0, 0.0], [0.0, 1.0]]))
        -2.0

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520), the multiclass case
    """

    def __init__(
        self,
        class_proportions: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "multiclass_kr",
        dtype: Any = None,
    ) -> None:
        super().__init__(class_proportions, reduction, name, dtype)

    def terms(self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None) -> Tensor:
        signs, outputs = one_vs_all_signs(y_true, y_pred, type(self).__name__)
        return kr_terms(signs, outputs, weights, self.class_proportions)


@register
class MulticlassHinge(ParametricLoss):
    """The hinge of each class against all others, `(min_margin - Y_c f_c)_+`, averaged over the classes.

    Args:
        min_margin: Margin that the hinge asks for, non-negative. Can be set during training.
        true_class_weight: Factor of the true class's hinge. With C classes, C - 1 balances it with the others (as
            deel-lip does); 1 is the paper's formula.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(MulticlassHinge(min_margin=1.0)([0], [[0.0, -1.0]]))
        0.5

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520), the multiclass case
    """

    min_margin = Parameter(positive=False)

    def __init__(
        self,
        min_margin: float = 1.0,
        true_class_weight: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "multiclass_hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.min_margin = min_margin
        self.true_class_weight = checked_positive(true_class_weight, "true_class_weight", type(self).__name__)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        signs, outputs = one_vs_all_signs(y_true, y_pred, type(self).__name__)
        return hinge_terms(signs, outputs, self._tensor("min_margin", outputs), self.true_class_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "true_class_weight": self.true_class_weight}


@register
class MulticlassHKR(_DistributionLoss):
    """`HingeKR` of each class against all others, averaged over the classes.

    Args:
        alpha: Weight of the hinge term, non-negative. Can be set during training.
        min_margin: Margin that the hinge asks for, non-negative. Can be set during training.
        true_class_weight: Factor of the true class's hinge. With C classes, C - 1 balances it with the others (as
            deel-lip does); 1 is the paper's formula.
        class_proportions: As in `MulticlassKR`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`. Each expectation is taken under the weighted distribution.

    Example:
        >>> float(MulticlassHKR(alpha=10.0, min_margin=1.0)([0, 1], [[3.0, 0.0], [0.0, 1.0]]))
        3.0

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520), the multiclass case
    """

    alpha = Parameter(positive=False)
    min_margin = Parameter(positive=False)

    def __init__(
        self,
        alpha: float = 10.0,
        min_margin: float = 1.0,
        true_class_weight: float = 1.0,
        class_proportions: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "multiclass_hkr",
        dtype: Any = None,
    ) -> None:
        super().__init__(class_proportions, reduction, name, dtype)
        self.alpha = alpha
        self.min_margin = min_margin
        self.true_class_weight = checked_positive(true_class_weight, "true_class_weight", type(self).__name__)

    def terms(self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None) -> Tensor:
        signs, outputs = one_vs_all_signs(y_true, y_pred, type(self).__name__)
        return self._hkr_terms(signs, outputs, weights, self.true_class_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "true_class_weight": self.true_class_weight}
