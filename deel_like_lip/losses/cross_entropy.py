"""Cross entropies of outputs times a temperature, with and without a margin."""

from typing import Any

from keras import ops

from deel_like_lip._labels import binary_signs, one_hot
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.losses.base import Parameter, ParametricLoss


def cross_entropy_terms(labels: Tensor, outputs: Tensor, tau: Tensor) -> Tensor:
    """Returns the cross entropy of `tau * f`, divided by `tau`.

    Args:
        labels: One-hot labels or probabilities, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        tau: The temperature's inverse, positive.

    Returns:
        Tensor of shape `(batch,)`.
    """
    return ops.categorical_crossentropy(labels, outputs * tau, from_logits=True) / tau


class _TauLoss(ParametricLoss):
    """A cross entropy of outputs times `tau`, divided by `tau`: a Lipschitz net's are too small for it."""

    tau = Parameter(positive=True)

    def __init__(self, tau: float, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(reduction, name, dtype)
        self.tau = tau

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        return cross_entropy_terms(labels, outputs, self._tensor("tau", outputs))


@register
class TauCategoricalCrossentropy(_TauLoss):
    """Categorical cross entropy of `tau * f`, divided by `tau`.

    A large `tau` trains for accuracy, a small one for margins.

    Args:
        tau: Temperature, positive. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels as probabilities or one-hot, shape `(batch, classes)`, or integers of shape `(batch,)` or
            `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(TauCategoricalCrossentropy(tau=10.0)([[1, 0]], [[0.0, 0.0]])), 4)
        0.0693

    Raises:
        ValueError: If the shapes do not fit or `tau` is not positive.

    Reference:
        Béthune et al., 2022, [Pay attention to your loss](https://arxiv.org/abs/2104.05097)
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "tau_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(tau, reduction, name, dtype)


@register
class TauSparseCategoricalCrossentropy(_TauLoss):
    """`TauCategoricalCrossentropy`, under the name that Keras has for it with integer labels.

    Args:
        tau: Temperature, positive. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Integers of shape `(batch,)` or `(batch, 1)`, or one-hot labels of shape `(batch, classes)`.
        y_pred: Outputs, shape `(batch, classes)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(TauSparseCategoricalCrossentropy(tau=10.0)([0], [[0.0, 0.0]])), 4)
        0.0693

    Raises:
        ValueError: If the shapes do not fit or `tau` is not positive.

    Reference:
        Béthune et al., 2022, [Pay attention to your loss](https://arxiv.org/abs/2104.05097)
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "tau_sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(tau, reduction, name, dtype)


@register
class TauBinaryCrossentropy(_TauLoss):
    """Binary cross entropy of `tau * f`, divided by `tau`.

    Args:
        tau: Temperature, positive. Can be set during training.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels 0 and 1, or -1 and 1, shape `(batch,)` or that of `y_pred`.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(TauBinaryCrossentropy(tau=10.0)([1], [[0.0]])), 4)
        0.0693

    Raises:
        ValueError: If the shapes do not fit or `tau` is not positive.

    Reference:
        Béthune et al., 2022, [Pay attention to your loss](https://arxiv.org/abs/2104.05097)
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "tau_binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(tau, reduction, name, dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        signs, outputs = binary_signs(y_true, y_pred, type(self).__name__)
        tau = self._tensor("tau", outputs)
        entropies = ops.binary_crossentropy((signs + 1) / 2, outputs * tau, from_logits=True)
        return ops.mean(entropies, axis=-1) / tau
