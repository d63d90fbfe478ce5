"""Hinges of the difference between the true output and the others."""

from typing import Any

from keras import ops

from deel_like_lip._labels import one_hot
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.losses.base import Parameter, ParametricLoss, other_outputs, true_output


def categorical_hinge_terms(labels: Tensor, outputs: Tensor, min_margin: Tensor) -> Tensor:
    """Returns `(min_margin - f_y + max_{j != y} f_j)_+`.

    Args:
        labels: One-hot labels, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        min_margin: The lead of the true output from which on nothing is paid.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(categorical_hinge_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 1.5), 4)
        array([0.5])
    """
    rival = ops.max(other_outputs(labels, outputs), axis=-1)
    return ops.relu(min_margin - true_output(labels, outputs) + rival)


def multi_margin_terms(labels: Tensor, outputs: Tensor, min_margin: Tensor) -> Tensor:
    """Returns `sum_{j != y} (min_margin - f_y + f_j)_+`, divided by the number of classes.

    Args:
        labels: One-hot labels, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        min_margin: The lead over another output from which on nothing is paid for it.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(multi_margin_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 1.5), 4)
        array([0.1667])
    """
    true = ops.expand_dims(true_output(labels, outputs), -1)
    return ops.mean(ops.relu(min_margin - true + other_outputs(labels, outputs)), axis=-1)


class _MarginLoss(ParametricLoss):
    """A hinge loss with one parameter, the margin."""

    min_margin = Parameter(positive=False)

    def __init__(self, min_margin: float, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(reduction, name, dtype)
        self.min_margin = min_margin


@register
class CategoricalHinge(_MarginLoss):
    """The hinge of the lead over the largest other output, `(min_margin - f_y + max_{j != y} f_j)_+`.

    That of Keras, with a margin to choose. The lead divided by sqrt(2) is the certified radius of a 1-Lipschitz net, so
    a margin of `sqrt(2) * r` asks for a radius of r.

    Args:
        min_margin: Lead that the hinge asks for, non-negative. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(CategoricalHinge(min_margin=1.0)([0], [[0.5, 0.25, -1.0]]))
        0.75

    Raises:
        ValueError: If the shapes do not fit or the margin is negative.

    Reference:
        Crammer and Singer, 2001, On the algorithmic implementation of multiclass kernel-based vector machines, JMLR 2
    """

    def __init__(
        self,
        min_margin: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_hinge",
        dtype: Any = None,
    ) -> None:
        super().__init__(min_margin, reduction, name, dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        return categorical_hinge_terms(labels, outputs, self._tensor("min_margin", outputs))


@register
class MultiMargin(_MarginLoss):
    """The hinges of the leads over all other outputs, `sum_{j != y} (min_margin - f_y + f_j)_+ / C` for C classes.

    That of deel-lip and PyTorch: the mean over all classes, of which the true one pays nothing.

    Args:
        min_margin: Lead that the hinges ask for, non-negative. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> float(MultiMargin(min_margin=1.0)([0], [[0.5, 0.25, 0.0, -1.0]]))
        0.3125

    Raises:
        ValueError: If the shapes do not fit or the margin is negative.

    Reference:
        Weston and Watkins, 1999, Support vector machines for multi-class pattern recognition, ESANN
    """

    def __init__(
        self,
        min_margin: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "multi_margin",
        dtype: Any = None,
    ) -> None:
        super().__init__(min_margin, reduction, name, dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        return multi_margin_terms(labels, outputs, self._tensor("min_margin", outputs))
