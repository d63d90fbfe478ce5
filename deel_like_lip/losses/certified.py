"""Losses that count what a perturbation within a radius may do to the outputs, by constants of their differences.

The constants are taken on trust, as by `metrics.CertifiedAccuracy`: a loss is no certificate, which is what `certify`
makes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from deel_like_lip._labels import one_hot
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_positive
from deel_like_lip.losses.base import Parameter, ParametricLoss, other_outputs, true_output
from deel_like_lip.losses.cross_entropy import cross_entropy_terms


def gloro_logits(outputs: Tensor, epsilon: Tensor, pair_constant: Tensor) -> Tensor:
    """Returns the outputs and GloRo's extra one, the largest that another output can come to within `epsilon`.

    It is `max_{i != j} (f_i + epsilon * K_ij)`, where j is the predicted class: above `f_j` unless that class is
    certified, if the constants K are right.

    Args:
        outputs: Values of f, shape `(batch, classes)`.
        epsilon: l2 radius in the units of the net's input.
        pair_constant: A number, or an array of shape `(classes, classes)`: Lipschitz constants of `f_i - f_j`.

    Returns:
        Tensor of shape `(batch, classes + 1)`.

    Example:
        >>> np.round(gloro_logits(np.array([[2.0, 1.0, 0.0]]), 0.5, np.array(1.0)), 4)
        array([[2. , 1. , 0. , 1.5]])
    """
    predicted = ops.argmax(outputs, axis=-1)
    labels = ops.equal(ops.expand_dims(predicted, -1), ops.arange(outputs.shape[-1], dtype=predicted.dtype))
    reach = outputs + epsilon * _constants_to(predicted, pair_constant)
    extra = ops.max(other_outputs(ops.cast(labels, outputs.dtype), reach), axis=-1, keepdims=True)
    return ops.concatenate([outputs, extra], axis=-1)


def gloro_terms(
    labels: Tensor, outputs: Tensor, epsilon: Tensor, trades_weight: Tensor, tau: Tensor, pair_constant: Tensor
) -> Tensor:
    """Returns the cross entropy of f, plus `trades_weight` times the KL divergence of `gloro_logits` from f.

    Args:
        labels: One-hot labels or probabilities, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        epsilon: l2 radius in the units of the net's input.
        trades_weight: Weight of the divergence. With 1 the sum is the cross entropy of `gloro_logits`.
        tau: Factor of all logits, positive; the result is divided by it.
        pair_constant: A number, or an array of shape `(classes, classes)`: Lipschitz constants of `f_i - f_j`.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> labels, outputs = np.array([[1.0, 0.0, 0.0]], "float32"), np.array([[2.0, 1.0, 0.0]], "float32")
        >>> np.round(gloro_terms(labels, outputs, 0.5, 1.0, 1.0, np.float32(1.0)), 4)
        array([0.7466])
    """
    extra = gloro_logits(outputs, epsilon, pair_constant)[:, -1]
    # With S the sum of exp(f_i) and b the extra logit, all probabilities p_i shrink by S / (S + exp(b)) and the extra
    # class has none before: KL = log(1 + exp(b) / S), and -log of the shrunken p_y is -log(p_y) + KL.
    divergence = ops.softplus(tau * extra - ops.logsumexp(tau * outputs, axis=-1)) / tau
    return cross_entropy_terms(labels, outputs, tau) + trades_weight * divergence


def emma_terms(labels: Tensor, outputs: Tensor, epsilon: Tensor, tau: Tensor, pair_constant: Tensor) -> Tensor:
    """Returns the cross entropy of `tau * (f_i + epsilon_i K_yi)`, divided by tau.

    `epsilon_i` is the distance within which class i cannot pass the true one, `(f_y - f_i) / K_yi` between 0 and
    `epsilon`.

    Args:
        labels: One-hot labels, shape `(batch, classes)`.
        outputs: Values of f, shape `(batch, classes)`.
        epsilon: l2 radius in the units of the net's input.
        tau: Factor of all logits, positive; the result is divided by it.
        pair_constant: A number, or an array of shape `(classes, classes)`: Lipschitz constants of `f_i - f_j`.

    Returns:
        Tensor of shape `(batch,)`.

    Example:
        >>> labels, outputs = map(keras.ops.convert_to_tensor, ([[1.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]]))
        >>> np.round(emma_terms(labels, outputs, 0.5, 1.0, np.float32(1.0)), 4)
        array([0.6041])
    """
    lead = ops.relu(ops.expand_dims(true_output(labels, outputs), -1) - outputs)
    shift = ops.minimum(lead, epsilon * _constants_to(ops.argmax(labels, axis=-1), pair_constant))
    # A constant: with its gradient, the terms of all classes within `epsilon` would have none, since f_i + shift = f_y.
    return cross_entropy_terms(labels, outputs + ops.stop_gradient(shift), tau)


def _constants_to(classes: Tensor, pair_constant: Tensor) -> Tensor:
    """Returns the constants of the differences to the given classes, a number or of shape `(batch, classes)`."""
    return pair_constant if len(pair_constant.shape) == 0 else ops.take(pair_constant, classes, axis=0)


class _PairLoss(ParametricLoss):
    """A cross entropy of outputs that are shifted by a radius times the constants of their differences."""

    epsilon = Parameter(positive=False)
    tau = Parameter(positive=True)

    def __init__(
        self, epsilon: float, tau: float, pair_constant: Any, reduction: str | None, name: str, dtype: Any
    ) -> None:
        super().__init__(reduction, name, dtype)
        self.epsilon = epsilon
        self.tau = tau
        self.pair_constant = _checked_pair_constant(pair_constant, type(self).__name__)

    def _pair_tensor(self, outputs: Tensor) -> Tensor:
        classes = outputs.shape[-1]
        if isinstance(self.pair_constant, list) and len(self.pair_constant) != classes:
            raise ValueError(
                f"{type(self).__name__} expects as many outputs as `pair_constant` has rows, "
                f"{len(self.pair_constant)}. Received: y_pred.shape={tuple(outputs.shape)}"
            )
        return ops.convert_to_tensor(self.pair_constant, dtype=outputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pair_constant": self.pair_constant}


def _checked_pair_constant(value: Any, owner: str) -> float | list[list[float]]:
    """Returns a number or a symmetric matrix, as lists, of which the diagonal does not count."""
    if not isinstance(value, np.ndarray | Sequence) or isinstance(value, str):
        return checked_positive(value, "pair_constant", owner)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] >= 2
    pairs = matrix[~np.eye(len(matrix), dtype=bool)] if square else np.zeros(1)
    if not np.all(np.isfinite(pairs) & (pairs > 0)) or not np.allclose(matrix, matrix.T, atol=0):
        raise ValueError(
            f"Invalid value for argument `pair_constant` of {owner}. Expected a positive finite number or a symmetric "
            f"matrix of them, a row and a column for each of two classes or more. Received: pair_constant={value}"
        )
    constants: list[list[float]] = matrix.tolist()
    return constants


@register
class GloRo(_PairLoss):
    """GloRo's loss: what is not certified within `epsilon` counts as an extra class that is never the right one.

    The extra logit is `max_{i != j} (f_i + epsilon * K_ij)`, where j is the predicted class. The loss is the cross
    entropy of f plus `trades_weight` times the KL divergence of the softmax with the extra logit from the one without.
    With a weight of 1 that is the same as the cross entropy of all logits, the paper's first loss; other weights are
    its TRADES form. All logits are multiplied by `tau`, and the loss divided by it.

    It assumes that `f_i - f_j` has the Lipschitz constant `pair_constant` for the net as it is at each step, and takes
    that on trust. So nothing that it says is a certificate: `certify` computes one from the weights.

    Args:
        epsilon: l2 radius in the units of the net's input, non-negative. Can be set during training.
        trades_weight: Weight of the divergence, non-negative. Can be set during training.
        tau: Factor of the logits, positive, as in `TauCategoricalCrossentropy`. Can be set during training.
        pair_constant: A positive number, or a symmetric array of shape `(classes, classes)` whose diagonal does not
            count, such as `pair_constants` of a certificate. The default is right for a 1-Lipschitz map f, which a
            `SpectralDense` over a 1-Lipschitz body is; where each output has the constant 1 by itself, as with
            `UnitNormDense`, it is 2.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: Labels as probabilities or one-hot, shape `(batch, classes)`, or integers of shape `(batch,)` or
            `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(GloRo(epsilon=0.5, pair_constant=2.0)([0], [[1.0, 0.0]])), 4)  # the extra logit is 1
        0.862

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Leino et al., 2021, [Globally-robust neural networks](https://arxiv.org/abs/2102.08452)
    """

    trades_weight = Parameter(positive=False)

    def __init__(
        self,
        epsilon: float,
        trades_weight: float = 1.0,
        tau: float = 1.0,
        pair_constant: Any = 2**0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "gloro",
        dtype: Any = None,
    ) -> None:
        super().__init__(epsilon, tau, pair_constant, reduction, name, dtype)
        self.trades_weight = trades_weight

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        epsilon, weight, tau = (self._tensor(name, outputs) for name in ("epsilon", "trades_weight", "tau"))
        return gloro_terms(labels, outputs, epsilon, weight, tau, self._pair_tensor(outputs))


@register
class EMMA(_PairLoss):
    """Efficient margin maximization: the cross entropy of `tau * (f_i + epsilon_i K_yi)`, divided by tau.

    `epsilon_i` is what is certified against class i already, `(f_y - f_i) / K_yi` between 0 and `epsilon`. So it counts
    the worst that each class can do within a radius that is within reach, where GloRo counts one class at the whole of
    it. `epsilon_i` is a constant to the gradient, as in the paper.

    It assumes that `f_i - f_j` has the Lipschitz constant `pair_constant` for the net as it is at each step, and takes
    that on trust. So nothing that it says is a certificate: `certify` computes one from the weights. (The code of the
    paper keeps `epsilon_i` above a hundredth of `epsilon`, for constants that are learned.)

    Args:
        epsilon: l2 radius in the units of the net's input, non-negative. Can be set during training.
        tau: Factor of the logits, positive, as in `TauCategoricalCrossentropy`. Can be set during training.
        pair_constant: As in `GloRo`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: Dtype of the computation.

    Call arguments:
        y_true: One-hot labels of shape `(batch, classes)`, or integers of shape `(batch,)` or `(batch, 1)`.
        y_pred: Outputs, shape `(batch, classes)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> round(float(EMMA(epsilon=0.5, pair_constant=2.0)([0], [[2.0, 0.0]])), 4)  # the other logit becomes 1
        0.3133

    Raises:
        ValueError: If the shapes do not fit or a parameter is out of range.

    Reference:
        Hu et al., 2023, [Unlocking deterministic robustness certification on
        ImageNet](https://arxiv.org/abs/2301.12549)
    """

    def __init__(
        self,
        epsilon: float,
        tau: float = 1.0,
        pair_constant: Any = 2**0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "emma",
        dtype: Any = None,
    ) -> None:
        super().__init__(epsilon, tau, pair_constant, reduction, name, dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels, outputs = one_hot(y_true, y_pred, type(self).__name__)
        epsilon, tau = self._tensor("epsilon", outputs), self._tensor("tau", outputs)
        return emma_terms(labels, outputs, epsilon, tau, self._pair_tensor(outputs))
