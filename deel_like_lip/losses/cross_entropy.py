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

    Example:
        >>> np.round(cross_entropy_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 1.0), 4)
        array([0.4076])
    """
    return ops.categorical_crossentropy(labels, outputs * tau, from_logits=True) / tau


def offset_cross_entropy_terms(labels: Tensor, outputs: Tensor, offset: Tensor, tau: Tensor) -> Tensor:
    """Returns the cross entropy of `tau * (f - offset * y)`, divided by `tau`.

    Args:
        labels: One-hot labels or probabilities y, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        offset: What is taken from the true output, a margin.
        tau: The temperature's inverse, positive.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(offset_cross_entropy_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 1.0, 1.0), 4)
        array([0.862])
    """
    return cross_entropy_terms(labels, outputs - offset * labels, tau)


def logit_annealing_terms(labels: Tensor, outputs: Tensor, offset: Tensor, tau: Tensor, beta: Tensor) -> Tensor:
    """Returns `-(1 - p)^beta log(p) / tau`, where p is the softmax of `tau * (f - offset * y)` at the true class.

    Args:
        labels: One-hot labels y, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        offset: What is taken from the true output, a margin.
        tau: The temperature's inverse, positive.
        beta: How fast the loss of a sample fades as p grows. With 0 it is the cross entropy.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> np.round(logit_annealing_terms(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0, 1.0, 0.0]]), 1.0, 1.0, 0.0), 4)
        array([0.862])
    """
    entropies = offset_cross_entropy_terms(labels, outputs, offset, tau)
    # 1 - p without cancellation. The floor keeps the slope of the power finite where p rounds to 1 and beta is below 1.
    return ops.power(-ops.expm1(-ops.maximum(tau * entropies, _SMALLEST)), beta) * entropies


_SMALLEST = 1e-7  # of a cross entropy: below it p rounds to 1 in float32


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


@register
class OffsetCategoricalCrossentropy(_TauLoss):
    """Categorical cross entropy of `tau * (f - offset * y)`, divided by `tau`, for one-hot labels y.

    The margin that the true output loses makes the loss ask for one: a sample pays `log(2) / tau` and more until its
    output leads by `offset`. With an offset of 0 it is `TauCategoricalCrossentropy`.

    Args:
        offset: What is taken from the true output, non-negative. Can be set during training. `sqrt(2) * r` asks a
            1-Lipschitz net for a certified radius of r.
        tau: Inverse of the paper's temperature, positive. Can be set during training. The defaults are the paper's.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels as probabilities or one-hot, shape `(batch, classes)`, or integers of shape `(batch,)` or
            `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(OffsetCategoricalCrossentropy(offset=1.0, tau=10.0)([0], [[1.0, 0.0]])), 4)
        0.0693

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Prach and Lampert, 2022, [Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks](https://arxiv.org/abs/2208.03160)
    """

    offset = Parameter(positive=False)

    def __init__(
        self,
        offset: float = 2**0.5,
        tau: float = 4.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "offset_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(tau, reduction, name, dtype)
        self.offset = offset

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        offset, tau = self._tensor("offset", outputs), self._tensor("tau", outputs)
        return offset_cross_entropy_terms(labels, outputs, offset, tau)


@register
class LogitAnnealing(_TauLoss):
    """The logit annealing (LA) loss `-(1 - p)^beta log(p) / tau`, with p the softmax of `tau * (f - offset * y)`.

    p is that of the true class. `OffsetCategoricalCrossentropy` times a factor that fades as p grows, so that a sample
    whose margin is large already leaves the capacity of the net to others. (The code of the paper adds the shift of
    `EMMA` to the outputs where the net's constant is learned.)

    Args:
        offset: What is taken from the true output, the paper's xi, non-negative. Can be set during training.
        tau: Inverse of the paper's temperature, positive. Can be set during training.
        beta: Exponent of the factor, non-negative. Can be set during training. The defaults are those of the authors'
            settings for CIFAR-10.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(LogitAnnealing(offset=1.0, tau=10.0, beta=2.0)([0], [[1.0, 0.0]])), 4)
        0.0173

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Lai et al., 2025, [Enhancing certified robustness via block reflector orthogonal layers and logit annealing
        loss](https://arxiv.org/abs/2505.15174)
    """

    offset = Parameter(positive=False)
    beta = Parameter(positive=False)

    def __init__(
        self,
        offset: float = 2.0,
        tau: float = 4 / 3,
        beta: float = 5.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "logit_annealing",
        dtype: Any = None,
    ) -> None:
        super().__init__(tau, reduction, name, dtype)
        self.offset = offset
        self.beta = beta

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        offset, tau, beta = (self._tensor(name, outputs) for name in ("offset", "tau", "beta"))
        return logit_annealing_terms(labels, outputs, offset, tau, beta)
