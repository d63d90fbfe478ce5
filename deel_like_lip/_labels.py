"""Labels in each of the forms that users have them in, made one."""

from typing import Any

from keras import ops

from deel_like_lip._typing import Tensor


def binary_signs(y_true: Tensor, y_pred: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    """Returns labels as -1 and 1, and the outputs, both of shape `(batch, outputs)` and the outputs' dtype.

    Args:
        y_true: Labels 0 and 1, or -1 and 1, of shape `(batch,)`, `(batch, 1)` or that of the outputs.
        y_pred: Outputs, of shape `(batch,)` or `(batch, outputs)`.
        owner: Who asks, for the error message.

    Raises:
        ValueError: If the shapes do not fit.
    """
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    labels, outputs = y_true, _as_matrix(y_pred, owner)
    if len(labels.shape) == 1:
        labels = ops.expand_dims(labels, -1)
    if len(labels.shape) != 2 or _differ(labels.shape[1], outputs.shape[1]):
        hint = (
            " For one label out of several classes use the multiclass losses, such as MulticlassHKR."
            if outputs.shape[1] != 1
            else ""
        )
        raise ValueError(
            f"{owner} expects a label, 0 or 1 or else -1 or 1, for each output: `y_true` and `y_pred` of the same "
            f"shape (batch, outputs), or (batch,) for a single output.{hint} Received: "
            f"y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
        )
    _check_batch(y_true, y_pred, owner)
    return _signs(labels, outputs), outputs


def one_hot(y_true: Tensor, y_pred: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    """Returns one-hot labels and the outputs, both of shape `(batch, classes)` and the outputs' dtype.

    Args:
        y_true: One-hot labels (0 and 1, or -1 and 1) of shape `(batch, classes)`, or integers of shape `(batch,)` or
            `(batch, 1)`.
        y_pred: Outputs, of shape `(batch, classes)` with at least two classes.
        owner: Who asks, for the error message.

    Raises:
        ValueError: If the shapes do not fit.
    """
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    labels, outputs = y_true, _as_matrix(y_pred, owner)
    classes = outputs.shape[1]
    integers = len(labels.shape) == 1 or (len(labels.shape) == 2 and labels.shape[1] == 1)
    one_per_class = len(labels.shape) == 2 and not _differ(labels.shape[1], classes)
    if classes is None or classes < 2 or not (integers or one_per_class):
        raise ValueError(
            f"{owner} expects `y_pred` of shape (batch, classes) with at least two classes, and `y_true` as integers "
            "of shape (batch,) or (batch, 1), or one-hot of shape (batch, classes). For a single output use the "
            f"binary form, such as HingeKR. Received: y_true.shape={tuple(y_true.shape)}, "
            f"y_pred.shape={tuple(y_pred.shape)}"
        )
    _check_batch(y_true, y_pred, owner)
    if integers:
        # By comparison, since the backends' `one_hot` differ on labels out of range. Here they belong to no class.
        indices = ops.cast(ops.reshape(labels, (-1, 1)), "int32")
        return ops.cast(ops.equal(indices, ops.arange(classes, dtype="int32")), outputs.dtype), outputs
    return ops.maximum(ops.cast(labels, outputs.dtype), 0), outputs


def one_vs_all_signs(y_true: Tensor, y_pred: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    """Returns labels as 1 for the true class and -1 for the others, and the outputs, as `one_hot` does."""
    labels, outputs = one_hot(y_true, y_pred, owner)
    return _signs(labels, outputs), outputs


def _signs(labels: Tensor, outputs: Tensor) -> Tensor:
    # Above one half: right for 0 and 1, for -1 and 1, and for smoothed labels.
    return ops.cast(ops.cast(labels, "float32") > 0.5, outputs.dtype) * 2 - 1


def _as_matrix(y_pred: Tensor, owner: str) -> Tensor:
    outputs = ops.expand_dims(y_pred, -1) if len(y_pred.shape) == 1 else y_pred
    if len(outputs.shape) != 2:
        raise ValueError(
            f"{owner} expects `y_pred` of shape (batch, outputs) or (batch,). Received: "
            f"y_pred.shape={tuple(y_pred.shape)}"
        )
    return outputs


def _check_batch(y_true: Tensor, y_pred: Tensor, owner: str) -> None:
    if _differ(y_true.shape[0], y_pred.shape[0]):
        raise ValueError(
            f"{owner} expects as many labels as outputs. "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
        )


def _differ(size: Any, other: Any) -> bool:
    return size is not None and other is not None and size != other
