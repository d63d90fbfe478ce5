"""Metrics that are accumulated over an epoch, so they do not depend on the batch size."""

import math
from typing import Any

import keras
from keras import ops

from deel_like_lip._labels import binary_signs, one_hot, one_vs_all_signs
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_positive


@register
class KR(keras.metrics.Metric):
    """The Kantorovich-Rubinstein estimate `E_{Y=1}[f] - E_{Y=-1}[f]` over all samples seen since the last reset.

    For a 1-Lipschitz f it is a lower bound of the Wasserstein-1 distance of the two classes, in the input's units. With
    several outputs, it is that of each class against the others, averaged. A class of which nothing was seen gives 0.

    Args:
        name: Name of the metric.
        dtype: Dtype of the result.

    Call arguments:
        y_true: For one output, labels 0 and 1 or -1 and 1, shape `(batch,)` or `(batch, 1)`. For several, one-hot
            labels or integers.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`.
        sample_weight: Optional weights, shape `(batch,)` or `(batch, 1)`.

    Example:
        >>> metric = KR()
        >>> metric.update_state([1, 1, 0], [[2.0], [4.0], [1.0]])
        >>> float(metric.result())
        2.0

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    def __init__(self, name: str = "kr", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self._sums: Any = None

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        outputs = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        single = len(outputs.shape) == 1 or outputs.shape[1] == 1
        signs, outputs = (binary_signs if single else one_vs_all_signs)(y_true, outputs, type(self).__name__)
        if self._sums is None:
            # Rows: sum of f and of the weights over label 1, then over label -1.
            self._sums = self.add_variable(shape=(4, outputs.shape[1]), initializer="zeros", name="sums")
        weights = _weights(sample_weight, outputs)
        positive = ops.where(signs > 0, weights, ops.zeros_like(outputs))
        negative = weights - positive
        rows = [positive * outputs, positive, negative * outputs, negative]
        self._sums.assign_add(ops.stack([ops.sum(row, axis=0) for row in rows]))

    def result(self) -> Tensor:
        if self._sums is None:
            return ops.zeros((), dtype=self.dtype)
        sums = ops.convert_to_tensor(self._sums)
        both = ops.logical_and(sums[1] > 0, sums[3] > 0)
        one = ops.ones_like(sums[1])
        difference = sums[0] / ops.where(both, sums[1], one) - sums[2] / ops.where(both, sums[3], one)
        return ops.mean(ops.where(both, difference, ops.zeros_like(difference)))


class _MarginMetric(keras.metrics.Mean):
    """A mean over samples of something that depends on the certified radius of the true class."""

    def __init__(self, lipschitz_constant: float, disjoint_neurons: bool, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.lipschitz_constant = checked_positive(lipschitz_constant, "lipschitz_constant", type(self).__name__)
        self.disjoint_neurons = bool(disjoint_neurons)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        values = self._values(self._radii(y_true, ops.convert_to_tensor(y_pred, dtype=self.dtype)))
        weights = (
            None
            if sample_weight is None
            else ops.reshape(ops.convert_to_tensor(sample_weight, dtype=self.dtype), (-1,))
        )
        super().update_state(values, sample_weight=weights)

    def _values(self, radii: Tensor) -> Tensor:
        raise NotImplementedError

    def _radii(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the l2 radius within which the true label is certified, 0 for predictions wrong or not finite."""
        owner = type(self).__name__
        if len(y_pred.shape) == 1 or y_pred.shape[1] == 1:
            signs, outputs = binary_signs(y_true, y_pred, owner)
            margins, constant = (signs * outputs)[:, 0], self.lipschitz_constant
        else:
            labels, outputs = one_hot(y_true, y_pred, owner)
            true = labels >= ops.max(labels, axis=-1, keepdims=True)
            infinity = ops.full_like(outputs, math.inf)
            rival = ops.max(ops.where(true, -infinity, outputs), axis=-1)
            margins = ops.min(ops.where(true, outputs, infinity), axis=-1) - rival
            # The difference of two outputs: (1, -1) has norm sqrt(2), if the constant is that of all outputs together.
            constant = self.lipschitz_constant * (2.0 if self.disjoint_neurons else math.sqrt(2.0))
        # An integer label out of range has no output of its own, and so an infinite margin.
        finite = ops.logical_and(ops.all(ops.isfinite(outputs), axis=-1), ops.isfinite(margins))
        certain = ops.logical_and(finite, margins > 0)
        return ops.where(certain, margins / constant, ops.zeros_like(margins))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "lipschitz_constant": self.lipschitz_constant,
            "disjoint_neurons": self.disjoint_neurons,
        }


@register
class CertifiedAccuracy(_MarginMetric):
    """The share of samples that are classified correctly and certified to stay so within an l2 distance of `radius`.

    Binary for one output (the sign of f), multiclass for several. The constant is taken on trust: it makes sense in
    training, where the layers hold it; `certify` computes it.

    Args:
        radius: l2 distance in the input's units, non-negative. A sample counts if its radius is above it.
        lipschitz_constant: The Lipschitz constant of the model.
        disjoint_neurons: Whether that is the constant of each output by itself, as with `FrobeniusDense`, rather than
            of all together. The radius of a margin is then `margin / (2 L)` instead of `margin / (sqrt(2) L)`.
        name: Name of the metric, by default `certified_accuracy_` and the radius.
        dtype: Dtype of the result.

    Call arguments:
        y_true: For one output, labels 0 and 1 or -1 and 1. For several, one-hot labels or integers.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> metric = CertifiedAccuracy(radius=0.5)
        >>> metric.update_state([1, 0, 1], [[0.6], [-0.4], [-2.0]])
        >>> round(float(metric.result()), 4)
        0.3333

    Raises:
        ValueError: If the radius is negative, the constant not positive, or the shapes do not fit.
    """

    def __init__(
        self,
        radius: float,
        lipschitz_constant: float = 1.0,
        disjoint_neurons: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        radius = checked_positive(radius, "radius", type(self).__name__, or_zero=True)
        super().__init__(lipschitz_constant, disjoint_neurons, name or f"certified_accuracy_{radius:g}", dtype)
        self.radius = radius

    def _values(self, radii: Tensor) -> Tensor:
        return ops.cast(radii > self.radius, self.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "radius": self.radius}


@register
class MeanCertifiedRadius(_MarginMetric):
    """The mean of the certified l2 radius over all samples, where a wrong prediction counts as radius 0.

    The field's average certified radius. Binary for one output (the sign of f), multiclass for several. The constant is
    taken on trust, as in `CertifiedAccuracy`.

    Args:
        lipschitz_constant: The Lipschitz constant of the model.
        disjoint_neurons: Whether that is the constant of each output by itself, as with `FrobeniusDense`, rather than
            of all together. The radius of a margin is then `margin / (2 L)` instead of `margin / (sqrt(2) L)`.
        name: Name of the metric.
        dtype: Dtype of the result.

    Call arguments:
        y_true: For one output, labels 0 and 1 or -1 and 1. For several, one-hot labels or integers.
        y_pred: Outputs, shape `(batch,)` or `(batch, outputs)`; not probabilities.
        sample_weight: Optional weights, shape `(batch,)`.

    Example:
        >>> metric = MeanCertifiedRadius()
        >>> metric.update_state([1, 0, 1], [[0.6], [-0.3], [-2.0]])
        >>> round(float(metric.result()), 4)
        0.3

    Raises:
        ValueError: If the constant is not positive, or the shapes do not fit.

    Reference:
        Zhai et al., 2020, [MACER](https://arxiv.org/abs/2001.02378)
    """

    def __init__(
        self,
        lipschitz_constant: float = 1.0,
        disjoint_neurons: bool = False,
        name: str = "mean_certified_radius",
        dtype: Any = None,
    ) -> None:
        super().__init__(lipschitz_constant, disjoint_neurons, name, dtype)

    def _values(self, radii: Tensor) -> Tensor:
        return radii


def _weights(sample_weight: Tensor | None, outputs: Tensor) -> Tensor:
    if sample_weight is None:
        return ops.ones_like(outputs)
    return ops.reshape(ops.convert_to_tensor(sample_weight, dtype=outputs.dtype), (-1, 1)) * ops.ones_like(outputs)
