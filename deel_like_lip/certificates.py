"""Certificates: how far an input must move, in l2, before the answer can change."""

import dataclasses
import decimal
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._version import __version__
from deel_like_lip.bounds import LayerBound, bound_graph
from deel_like_lip.bounds.rounding import EPSILON, product_up, root_up
from deel_like_lip.folding import vanilla_model

_ASSUMES = (
    "Bounds are upper bounds in float64, rounded outward, of the map that the kernels define in exact arithmetic. "
    "Radii are not reduced by the rounding of the model's own forward pass."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """Upper bounds of a model's Lipschitz constants for the l2 norm, and the radii that follow.

    Attributes:
        lipschitz_constant: Upper bound of the constant of the whole map, input units to output units.
        pair_constants: Upper bounds of the constants of the differences of two outputs, shape `(outputs, outputs)`;
            None for a model with a single output.
        outputs: Number of outputs.
        layers: One line for each layer of the folded model.
        model_name: Name of the model.
        assumes: What the bounds take for granted.
        versions: Versions of this library and of Keras.
    """

    lipschitz_constant: float
    pair_constants: npt.NDArray[np.float64] | None
    outputs: int
    layers: tuple[LayerBound, ...]
    model_name: str
    assumes: str = _ASSUMES
    versions: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"deel-like-lip": __version__, "keras": importlib.metadata.version("keras")}
    )

    def radius(self, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Returns for each sample the l2 distance that its input must move before the answer can change.

        For one output the answer is its sign, and the radius `|f| / L`. For several it is the largest, and the radius
        is the smallest over the others of `(f_top - f_j) / L_top,j`. Ties and outputs that are not finite have radius
        0.

        Args:
            logits: The model's outputs, such as `model.predict(x)`, shape `(samples, outputs)`, or `(samples,)` for a
                single output.

        Returns:
            Array of shape `(samples,)`, in the units of the model's input.

        Raises:
            ValueError: If the shape of the logits is not that of the model's outputs.
        """
        values = np.asarray(logits, dtype=np.float64)
        if values.ndim == 1 and self.outputs == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.outputs:
            raise ValueError(
                f"`radius` expects the logits of the model '{self.model_name}', of shape (samples, {self.outputs}). "
                f"Received: logits.shape={np.shape(logits)}"
            )
        finite = np.all(np.isfinite(values), axis=1)
        values = np.where(finite[:, None], values, 0)
        if self.pair_constants is None:
            margins, constants = np.abs(values), np.full_like(values, self.lipschitz_constant)
        else:
            top = np.argmax(values, axis=1)
            rows = np.arange(len(values))
            margins, constants = values[rows, top][:, None] - values, self.pair_constants[top].copy()
            margins[rows, top] = np.inf
            constants[rows, top] = 1
        # A constant of 0 is a difference that cannot change: it is never overtaken, unless it is a tie already.
        with np.errstate(divide="ignore", invalid="ignore"):
            radii = np.where(margins > 0, margins / constants * (1 - 4 * EPSILON), 0)
        return np.where(finite, np.min(radii, axis=1), 0.0)

    def certified_accuracy(
        self, logits: npt.ArrayLike, labels: npt.ArrayLike, radii: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """Returns the share of samples that are right and certified to stay so, at each radius.

        Args:
            logits: The model's outputs, as for `radius`.
            labels: For one output, 0 and 1 or -1 and 1; for several, integers or one-hot. Shape `(samples,)`,
                `(samples, 1)` or `(samples, outputs)`.
            radii: l2 distances. A sample counts at those that are below its own radius.

        Returns:
            Array of the shape of `radii`.

        Raises:
            ValueError: If the shapes do not fit.
        """
        values = np.asarray(logits, dtype=np.float64)
        own = self.radius(values)
        truth = np.asarray(labels)
        if truth.ndim == 2 and truth.shape[1] == self.outputs and self.outputs > 1:
            truth = np.argmax(truth, axis=1)
        if truth.size != len(own) or truth.ndim > 2:
            raise ValueError(
                f"`certified_accuracy` expects one label a sample. Received: labels.shape={np.shape(labels)}, "
                f"logits.shape={values.shape}"
            )
        truth = truth.reshape(-1)
        if self.outputs == 1:
            right = (values.reshape(-1) > 0) == (truth > 0)
        else:
            right = np.argmax(values, axis=1) == truth
        certified = np.where(right, own, -1.0)
        return np.array([np.mean(certified > radius) if len(own) else 0.0 for radius in radii])

    def summary(self) -> str:
        """Returns a table of the layers with their constants to six digits, and what follows for the model."""
        rows = [(line.name, line.kind, f"{line.constant:.6g}", f"{line.up_to_here:.6g}") for line in self.layers]
        header = ("layer", "class", "constant", "up to here")
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(4)]

        def line(row: Sequence[str]) -> str:
            name, kind, constant, total = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            return f"{name}  {kind}  {constant.strip():>{widths[2]}}  {total.strip():>{widths[3]}}"

        rule = "-" * (sum(widths) + 6)
        if self.pair_constants is None:
            radius = "radius = |f| / L"
        else:
            off_diagonal = self.pair_constants[~np.eye(self.outputs, dtype=bool)]
            radius = (
                "radius = min over j of (f_top - f_j) / L_top,j, "
                f"with L_i,j from {np.min(off_diagonal):.6g} to {np.max(off_diagonal):.6g}"
            )
        return "\n".join(
            [
                f"Certificate of the model '{self.model_name}' for the l2 norm",
                rule,
                line(header),
                rule,
                *(line(row) for row in rows),
                rule,
                f"Lipschitz constant: L <= {_nine_digits_up(self.lipschitz_constant)}",
                f"Radius: {radius}",
            ]
        )

    def to_json(self) -> str:
        """Returns the certificate as JSON."""
        fields: dict[str, Any] = {
            "norm": "l2",
            "model_name": self.model_name,
            "lipschitz_constant": self.lipschitz_constant,
            "pair_constants": None if self.pair_constants is None else self.pair_constants.tolist(),
            "outputs": self.outputs,
            "layers": [dataclasses.asdict(line) for line in self.layers],
            "assumes": self.assumes,
            "versions": self.versions,
        }
        return json.dumps(fields, indent=2)


def _nine_digits_up(value: float) -> str:
    """Writes a bound such that what is written is a bound too."""
    context = decimal.Context(prec=9, rounding=decimal.ROUND_CEILING)
    return format(context.create_decimal_from_float(value).normalize(context), "g")


def certify(model: keras.Model) -> Certificate:
    """Certifies a model: folds it, and bounds the plain model layer by layer.

    The bounds are computed from the kernels as they are now, in float64 and rounded outward. Layers of this library are
    not trusted, and plain Keras models are certified as well.

    Args:
        model: A built model that `vanilla_model` can fold, with one output tensor of shape `(batch, outputs)`.

    Returns:
        The certificate.

    Raises:
        CannotBoundError: If a layer has no known constant; the message names it. It is a `ValueError`.
        ValueError: If the model is not built, or does not have one output tensor of that shape.

    Example:
        >>> certificate = certify(model)
        >>> radii = certificate.radius(model.predict(x))
    """
    return certify_plain(vanilla_model(model))


def certify_plain(plain: keras.Model) -> Certificate:
    """Certifies a model that is folded already. Raises as `certify` does."""
    if len(plain.outputs) != 1:
        raise ValueError(
            f"`certify` expects a model with one output tensor, but '{plain.name}' has {len(plain.outputs)}. Certify "
            "each output by itself, with `keras.Model(model.inputs, model.outputs[i])`."
        )
    shape = tuple(plain.outputs[0].shape)
    if len(shape) != 2 or shape[1] is None:
        raise ValueError(
            f"`certify` expects a model whose output has shape (batch, outputs). Received: '{plain.name}' with an "
            f"output of shape {shape}"
        )
    bound = bound_graph(plain)
    pairs = bound.pairs
    if pairs is None and shape[1] > 1:
        pairs = np.full((shape[1], shape[1]), product_up(root_up(2.0), bound.constant))
        np.fill_diagonal(pairs, 0)
    return Certificate(
        lipschitz_constant=bound.constant,
        pair_constants=pairs if shape[1] > 1 else None,
        outputs=shape[1],
        layers=bound.layers,
        model_name=plain.name,
    )
