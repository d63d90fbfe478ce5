"""Certificates: how far an input must move, in l2, before the answer can change."""

import dataclasses
import decimal
import hashlib
import importlib.metadata
import json
import math
import numbers
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._fingerprint import fingerprint
from deel_like_lip._version import __version__
from deel_like_lip.bounds import Affine, CannotBoundError, LayerBound, OutputBound, bound_graph
from deel_like_lip.bounds.ranges import parts_of, value_range
from deel_like_lip.bounds.rounding import EPSILON, product_up, root_up
from deel_like_lip.folding import vanilla_model
from deel_like_lip.self_check import SelfCheck, self_check

Task = Literal["binary", "multiclass", "multilabel", "regression"]
Rounding = Literal["exact", "sound"]
Array = npt.NDArray[np.float64]

_FORMAT = 2
_ASSUMES = {
    "exact": (
        "Bounds are upper bounds in float64, rounded outward, of the map that the kernels define in exact arithmetic. "
        "Radii are not reduced by the rounding of the model's own forward pass."
    ),
    "sound": (
        "Bounds are upper bounds in float64, rounded outward. Radii hold for the computed outputs at the input and at "
        "every float32 input around it, if the model runs in IEEE float32, rounding to nearest, where results below "
        "the normal range may be flushed to zero and none overflows; sums may be taken in any order, with or without "
        "fused multiply-add. Not covered: TF32, bfloat16 or float16 in products, and convolutions by Winograd's or a "
        "Fourier transform."
    ),
}


# A constant of at most this share of the whole one's is that of a difference which hardly moves, and such a difference
# counts where it is more than this share of the largest output, or of 1 if that is more.
_HARDLY, _NOISE = 1e-5, 1e-5
_LOW = ("float16", "bfloat16")


class CertificateError(ValueError):
    """A certificate is damaged, or is not that of the model at hand. It is a `ValueError`.

    Example:
        >>> try:
        ...     Certificate.from_json("{}")
        ... except CertificateError as error:
        ...     print(error)
        This is not a certificate that can be used: its format is None, and this version reads 2.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """What a certificate says of one output of a model.

    Attributes:
        name: Name of the output.
        task: How the output gives an answer: "binary", the sign of each sample's single output; "multiclass", the
            largest one; "multilabel", the sign of each; "regression", the output itself.
        shape: Shape of the output of one sample.
        lipschitz_constant: Upper bound of the constant from the model's inputs, all of them together, to this output.
        pair_constants: Upper bounds of the constants of the differences of two outputs, shape `(outputs, outputs)`;
            None if there is only one output, or the shape is not `(outputs,)`.
        output_constants: Upper bounds of the constants of the single outputs, shape `(outputs,)`; None if the shape is
            not `(outputs,)`.
        rounding_error: How far, in l2, this output as computed in float32 may be from the exact one; None where the
            certificate is of exact arithmetic.
    """

    name: str
    task: Task
    shape: tuple[int | None, ...]
    lipschitz_constant: float
    pair_constants: Array | None = None
    output_constants: Array | None = None
    rounding_error: Affine | None = None

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return math.prod(size or 0 for size in self.shape)

    def radius(self, logits: npt.ArrayLike, targets: npt.ArrayLike | None, norms: Array | None) -> Array:
        """Returns the radii of a batch, given the l2 norms of its inputs where rounding counts."""
        values, finite = self._values(logits)
        margins, constants, vectors = self._margins(values)
        if self.rounding_error is not None and norms is not None:
            # The answer at x was computed, and so will be the one at x + d: each may be off by the error there, and
            # |x + d| <= |x| + |d|. Two outputs together are off by at most root 2 times the l2 error.
            absolute, relative = (
                product_up(vectors, part) for part in (self.rounding_error.absolute, self.rounding_error.relative)
            )
            margins = margins - 2 * (absolute + relative * norms[:, None]) * (1 + 8 * EPSILON)
            constants = constants + relative * (1 + 2 * EPSILON)
        else:
            # Of outputs that differ by a constant in exact arithmetic, what is left of a tie is rounding alone.
            hardly = constants <= _HARDLY * self.lipschitz_constant
            noise = _NOISE * np.maximum(1, np.max(np.abs(values), axis=1, initial=0.0))[:, None]
            margins = np.where(hardly, margins - noise, margins)
        # A constant of 0 is a difference that cannot change: it is never overtaken, unless it is a tie already.
        with np.errstate(divide="ignore", invalid="ignore"):
            radii = np.where(margins > 0, margins / constants * (1 - 8 * EPSILON), 0.0)
        smallest = np.min(radii, axis=1, initial=np.inf)
        if targets is not None:
            finite = finite & self._right(values, targets)
        result: Array = np.where(finite, smallest, 0.0)
        return result

    def answer(self, logits: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Returns the answers: 0 or 1, the class, or 0 or 1 for each label."""
        values, _ = self._values(logits)
        if self.task == "multiclass":
            return np.argmax(values, axis=1)
        signs = (values > 0).astype(np.int64)
        return signs[:, 0] if self.task == "binary" else signs

    def _values(self, logits: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Returns the outputs as a matrix, zero where a sample is not finite, and which samples are finite."""
        if self.task == "regression":
            raise ValueError(
                f"The output '{self.name}' is certified for regression: it has no answer that could change. Use "
                "`output_change`, or certify it with another `task`."
            )
        values = np.asarray(logits, dtype=np.float64)
        if values.ndim == 1 and self.outputs == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.outputs:
            raise ValueError(
                f"Expected the logits of the output '{self.name}', of shape (samples, {self.outputs}). Received: "
                f"logits.shape={np.shape(logits)}"
            )
        finite = np.all(np.isfinite(values), axis=1)
        return np.where(finite[:, None], values, 0.0), finite

    def _margins(self, values: Array) -> tuple[Array, Array, float]:
        """Returns what must not be lost, how fast it can be, and by how much the l2 error of outputs enlarges in it."""
        if self.task != "multiclass":
            assert self.output_constants is not None
            return np.abs(values), np.broadcast_to(self.output_constants, values.shape), 1.0
        if self.pair_constants is None:  # a single class: nothing to confuse it with
            return np.full_like(values, np.inf), np.ones_like(values), 1.0
        top = np.argmax(values, axis=1)
        rows = np.arange(len(values))
        margins, constants = values[rows, top][:, None] - values, self.pair_constants[top].copy()
        margins[rows, top] = np.inf
        constants[rows, top] = 1
        return margins, constants, root_up(2.0)

    def _right(self, values: Array, targets: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Returns which answers are those of the labels."""
        truth = np.asarray(targets)
        if self.task == "multiclass":
            if truth.ndim == 2 and truth.shape[1] == self.outputs and self.outputs > 1:
                truth = np.argmax(truth, axis=1)
            expected: tuple[int, ...] = (len(values),)
        else:
            truth = truth > 0
            expected = values.shape if self.task == "multilabel" else (len(values),)
        if truth.size != math.prod(expected) or truth.ndim > 2 or len(truth) != len(values):
            raise ValueError(
                f"Expected one label a sample{' and output' if self.task == 'multilabel' else ''} for the output "
                f"'{self.name}'. Received: targets.shape={np.shape(targets)}, logits.shape={values.shape}"
            )
        right = self.answer(values) == truth.reshape(expected)
        return right if right.ndim == 1 else np.all(right, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """Upper bounds of a model's Lipschitz constants for the l2 norm, and the radii that follow.

    Attributes:
        heads: What is certified of each output of the model, in its order.
        lipschitz_constant: Upper bound of the constant of the whole map, all inputs together to all outputs together,
            in units of the model's input and output.
        layers: One line for each layer of the folded model.
        model_name: Name of the model.
        fingerprint: SHA-256 of the folded model: of its graph, the arguments of its layers, and its weights.
        rounding: "exact" or "sound": whether radii are reduced by the rounding errors of a float32 forward pass.
        input_shapes: Shapes of the model's inputs, for one sample.
        input_scale: The factor by which the user scales inputs before the model sees them. Radii are in the units
            from before.
        input_range: The smallest and the largest value that an input is allowed to have, as the model sees it.
        checked: How `certify` tried to break it in vain; None if it was asked not to.
        versions: Versions of this library and of Keras that computed it.

    Raises:
        ValueError: By its methods, if logits, labels or inputs do not fit the model.
        CertificateError: By `verify` and `from_json`.

    Example:
        >>> certificate = certify(model)
        >>> round(certificate.lipschitz_constant, 3)
        1.0
        >>> certificate.radius(logits).shape
        (64,)
        >>> Certificate.from_json(certificate.to_json()).verify(model)
    """

    heads: tuple[Head, ...]
    lipschitz_constant: float
    layers: tuple[LayerBound, ...]
    model_name: str
    fingerprint: str
    rounding: Rounding = "exact"
    input_shapes: tuple[tuple[int | None, ...], ...] = ()
    input_scale: float = 1.0
    input_range: tuple[float, float] | None = None
    checked: SelfCheck | None = None
    versions: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"deel-like-lip": __version__, "keras": importlib.metadata.version("keras")}
    )

    @property
    def norm(self) -> str:
        """The norm of all constants and radii."""
        return "l2"

    @property
    def assumes(self) -> str:
        """What the certificate takes for granted."""
        return _ASSUMES[self.rounding]

    @property
    def pair_constants(self) -> Array | None:
        """The `pair_constants` of the only head."""
        return self._only_head("pair_constants").pair_constants

    @property
    def outputs(self) -> int:
        """The number of outputs of the only head."""
        return self._only_head("outputs").outputs

    def __getitem__(self, name: str) -> Head:
        """Returns the head of an output by its name."""
        for head in self.heads:
            if head.name == name:
                return head
        raise KeyError(f"There is no output '{name}'. Outputs: {[head.name for head in self.heads]}")

    def radius(self, logits: Any, targets: Any = None, inputs: Any = None) -> Array:
        """Returns for each sample the l2 distance that its input must move before the answer can change.

        For one output the answer is its sign, and the radius `|f| / L`. For several classes it is the largest, and the
        radius is the smallest over the others of `(f_top - f_j) / L_top,j`. For several labels it is all signs
        together. Ties and outputs that are not finite have radius 0. With `rounding="sound"` each margin is reduced by
        the rounding errors of both forward passes, at the input and at whatever it moves to.

        Args:
            logits: The model's outputs, such as `model.predict(x)`, shape `(samples, outputs)`, or `(samples,)` for a
                single output. For a model with several heads a list or dict of them: no head's answer changes then.
            targets: Optional labels, for each head: answers that differ from them have radius 0. For one output 0 and
                1 or -1 and 1, for several classes integers or one-hot, for several labels one a label.
            inputs: The model's inputs that gave these outputs, as the model saw them. Their norm tells the rounding
                error; without them that of the largest in `input_range` is taken. Inputs that are not finite, or
                outside of `input_range`, have radius 0.

        Returns:
            Array of shape `(samples,)`, in the units of the model's input from before `input_scale`.

        Raises:
            ValueError: If shapes do not fit, a head is one of regression, or `rounding="sound"` and neither `inputs`
                nor `input_range` is known.
        """
        values = self._per_head(logits, "logits")
        labels = self._per_head(targets, "targets") if targets is not None else [None] * len(self.heads)
        norms, valid = self._input_norms(inputs, len(np.atleast_1d(values[0])))
        radii = [
            head.radius(value, label, norms) for head, value, label in zip(self.heads, values, labels, strict=True)
        ]
        if any(len(radius) != len(radii[0]) for radius in radii) or len(valid) != len(radii[0]):
            raise ValueError(
                "Expected as many samples in each of `logits` and `inputs`. Received: "
                f"{[len(radius) for radius in radii]} and {len(valid)}"
            )
        smallest = np.min(radii, axis=0)
        result: Array = np.where(valid, smallest, 0.0) / self.input_scale * (1 - 2 * EPSILON)
        return result

    def certified_accuracy(self, logits: Any, labels: Any, radii: Sequence[float], inputs: Any = None) -> Array:
        """Returns the share of samples that are right and certified to stay so, at each radius.

        Args:
            logits: The model's outputs, as for `radius`.
            labels: The labels, as `targets` for `radius`.
            radii: l2 distances. A sample counts at those that are below its own radius.
            inputs: The model's inputs, as for `radius`.

        Returns:
            Array of the shape of `radii`.

        Raises:
            ValueError: If the shapes do not fit, or a radius is negative or not finite.
        """
        limits = checked_radii(radii)
        own = self.radius(logits, targets=labels, inputs=inputs)
        return np.array([np.mean(own > radius) if len(own) else 0.0 for radius in limits])

    def output_change(self, input_change: npt.ArrayLike) -> Array:
        """Returns how far the outputs can move, in l2, when the input moves by given l2 distances.

        It is the bound for regression. All outputs of a model with several heads count together; `certificate[name]`
        has the constants of one. Rounding errors of the forward pass are not included.

        Args:
            input_change: Distances in the units of the input from before `input_scale`.

        Raises:
            ValueError: If a distance is negative or not a number.
        """
        distances = np.asarray(input_change, dtype=np.float64)
        if not np.all(distances >= 0):
            raise ValueError(f"Expected distances of at least 0. Received: input_change={input_change!r}")
        return distances * self.input_scale * self.lipschitz_constant * (1 + 4 * EPSILON)

    def verify(
        self,
        model: keras.Model,
        *,
        task: Task | Mapping[str, Task] | None = None,
        rounding: Rounding | None = None,
        input_scale: float | None = None,
        input_range: Sequence[float] | None = None,
    ) -> None:
        """Checks that this is a certificate of a model: of this graph, these layers and these weights.

        The model is folded and bounded anew, so that neither other weights nor edited constants, shapes or names go
        unnoticed. No model can tell what its outputs mean and how its inputs are scaled: to guard against edits of
        that, pass what it should be. What is not passed is taken from the certificate.

        Args:
            model: The model that was certified, or its folded form.
            task: What the certificate must have been made with, as for `certify`.
            rounding: As for `task`.
            input_scale: As for `task`.
            input_range: As for `task`.

        Raises:
            CertificateError: If the weights are others, the certificate claims more than can be shown, or it was made
                with other options.
            ValueError: If an option is wrong, or the model cannot be certified as the certificate says.
        """
        names, tasks = [head.name for head in self.heads], {head.name: head.task for head in self.heads}
        for option, own, expected in (
            ("task", tasks, {**tasks, **{name: kind for name, kind in _tasks(task, names).items() if kind}}),
            ("rounding", self.rounding, rounding or self.rounding),
            ("input_scale", self.input_scale, _input_scale(self.input_scale if input_scale is None else input_scale)),
            ("input_range", self.input_range, _input_range(input_range) or self.input_range),
        ):
            if own != expected:
                raise CertificateError(
                    f"The certificate of the model '{self.model_name}' was made with {option}={own!r}, where "
                    f"{expected!r} is expected."
                )
        plain = vanilla_model(model)
        self.check_model(plain, output_names(model))
        again = certify_plain(
            plain,
            task=tasks,
            rounding=self.rounding,
            input_scale=self.input_scale,
            input_range=self.input_range,
            names=names,
        )
        claims, facts = list(_numbers(self)), list(_numbers(again))
        # Another machine may add in another order; no claim may be below what is computed here by more than that.
        if len(claims) != len(facts) or any(
            claim < fact * (1 - 1e-9) for claim, fact in zip(claims, facts, strict=True)
        ):
            raise CertificateError(
                f"The certificate of the model '{self.model_name}' claims smaller constants than can be computed from "
                "the model. Certify the model again."
            )

    def check_model(self, plain: keras.Model, names: Sequence[str] | None = None) -> None:
        """Checks that a folded model is the one that was certified, which is quick, and no more than that.

        Args:
            plain: The folded model.
            names: The names of its outputs; by default those that it has itself.

        Raises:
            CertificateError: If it has another graph, other layers, weights, inputs or outputs.
        """
        inputs, outputs = ([tuple(tensor.shape[1:]) for tensor in tensors] for tensors in (plain.inputs, plain.outputs))
        if (
            list(self.input_shapes) != inputs
            or [head.shape for head in self.heads] != outputs
            or not _are_names_of([head.name for head in self.heads], names or output_names(plain))
        ):
            raise CertificateError(
                f"The certificate of the model '{self.model_name}' is for inputs or outputs of other names or shapes "
                f"than those of '{plain.name}'. Certify the model again."
            )
        actual = fingerprint(plain)
        if actual != self.fingerprint:
            raise CertificateError(
                f"The certificate of the model '{self.model_name}' was computed from other weights, or from another "
                f"graph or other arguments of layers, than those of '{plain.name}'. Certify the model again. Received: "
                f"fingerprint {actual}, expected {self.fingerprint}"
            )

    def summary(self) -> str:
        """Returns a table of the layers with their constants to six digits, and what follows for the model."""
        rows = [(line.name, line.kind, f"{line.constant:.6g}", f"{line.up_to_here:.6g}") for line in self.layers]
        header = ("layer", "class", "constant", "up to here")
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(4)]

        def line(row: Sequence[str]) -> str:
            name, kind, constant, total = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            return f"{name}  {kind}  {constant.strip():>{widths[2]}}  {total.strip():>{widths[3]}}"

        rule = "-" * (sum(widths) + 6)
        lines = [
            f"Certificate of the model '{self.model_name}' for the l2 norm",
            rule,
            line(header),
            rule,
            *(line(row) for row in rows),
            rule,
            f"Lipschitz constant: L <= {_nine_digits_up(self.lipschitz_constant)}",
        ]
        for head in self.heads:
            label = f"Output '{head.name}' ({head.task})" if len(self.heads) > 1 else f"Radius ({head.task})"
            lines.append(f"{label}: {_formula(head)}")
            if head.rounding_error is not None:
                error = head.rounding_error
                lines.append(
                    f"    float32 outputs are within {_nine_digits_up(error.absolute)} + "
                    f"{_nine_digits_up(error.relative)} |x| of the exact ones"
                )
        if self.input_scale != 1:
            lines.append(f"Radii are in units of the input before it is scaled by {self.input_scale:g}")
        if self.input_range is not None:
            lines.append(f"Inputs, as the model sees them, lie in [{self.input_range[0]:g}, {self.input_range[1]:g}]")
        lines.append(f"Arithmetic: {self.rounding}. {self.assumes}")
        lines.append(f"Self-check: {_check_in_words(self.checked)}")
        lines.append(f"Model: SHA-256 {self.fingerprint}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns the certificate as JSON, which `Certificate.from_json` reads."""
        fields: dict[str, Any] = {
            "format": _FORMAT,
            "norm": self.norm,
            "model_name": self.model_name,
            "lipschitz_constant": self.lipschitz_constant,
            "heads": [_head_to_dict(head) for head in self.heads],
            "layers": [dataclasses.asdict(line) for line in self.layers],
            "fingerprint": self.fingerprint,
            "rounding": self.rounding,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "input_scale": self.input_scale,
            "input_range": None if self.input_range is None else list(self.input_range),
            "checked": None if self.checked is None else dataclasses.asdict(self.checked),
            "assumes": self.assumes,
            "versions": dict(self.versions),
        }
        fields["checksum"] = _checksum(fields)
        return json.dumps(fields, indent=2, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the certificate as JSON, which `load_certificate` reads.

        The file is written beside `path` and then moved there, so that a process which dies leaves what was there.

        Raises:
            OSError: If it cannot be written.
        """
        target = pathlib.Path(path)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            fresh = pathlib.Path(scratch, target.name)
            fresh.write_text(self.to_json(), encoding="utf-8")
            fresh.replace(target)

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Reads what `to_json` wrote. Nothing is executed; `verify` tells whether it is that of a model.

        A checksum of all fields guards against damage and against edits by mistake. It is no signature: who wants to
        claim more than is true can compute it anew, and only `verify` with the model finds that out.

        Raises:
            CertificateError: If it is not a certificate, is damaged or edited, or comes from another version of this
                library that this one does not read.
        """
        try:
            fields = json.loads(text, object_pairs_hook=_without_repeats)
            if not isinstance(fields, dict):
                raise TypeError("it is not a JSON object")
            if fields.get("format") != _FORMAT:
                raise ValueError(f"its format is {fields.get('format')!r}, and this version reads {_FORMAT}")
            if fields["norm"] != "l2":
                raise ValueError(f"its norm is {fields['norm']!r}, not 'l2'")
            rounding = _one_of(fields["rounding"], get_args(Rounding))
            heads = tuple(_head_from_dict(head, rounding) for head in fields["heads"])
            if not heads or len({head.name for head in heads}) != len(heads):
                raise ValueError("it has no outputs, or several of one name")
            result = cls(
                heads=heads,
                lipschitz_constant=_constant(fields["lipschitz_constant"]),
                layers=tuple(_layer_from_dict(line) for line in fields["layers"]),
                model_name=_text(fields["model_name"]),
                fingerprint=_text(fields["fingerprint"]),
                rounding=rounding,
                input_shapes=tuple(_shape(shape) for shape in fields["input_shapes"]),
                input_scale=_input_scale(fields["input_scale"]),
                input_range=_input_range(fields["input_range"]),
                checked=_check_from_dict(fields["checked"]),
                versions={_text(name): _text(version) for name, version in fields["versions"].items()},
            )
            if fields.pop("checksum") != _checksum(fields):
                raise ValueError("its checksum is that of another one, so it was edited or damaged")
            return result
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"the field {error!s} is missing" if isinstance(error, KeyError) else str(error)
            raise CertificateError(f"This is not a certificate that can be used: {reason}.") from error

    def _only_head(self, what: str) -> Head:
        if len(self.heads) != 1:
            names = [head.name for head in self.heads]
            raise AttributeError(f"The model has several outputs, {names}: use `certificate[name].{what}`.")
        return self.heads[0]

    def _per_head(self, values: Any, argument: str) -> list[Any]:
        """Returns what was given for each head, in their order."""
        if len(self.heads) == 1 and not isinstance(values, dict):
            return [values]
        names = [head.name for head in self.heads]
        if isinstance(values, dict):
            if set(values) != set(names):
                raise ValueError(f"Expected `{argument}` for the outputs {names}. Received: {list(values)}")
            return [values[name] for name in names]
        if not isinstance(values, (list, tuple)) or len(values) != len(names):
            raise ValueError(
                f"Expected a list or dict of `{argument}` for the outputs {names}. Received: {type(values).__name__}"
            )
        return list(values)

    def _input_norms(self, inputs: Any, samples: int) -> tuple[Array | None, npt.NDArray[np.bool_]]:
        """Returns upper bounds of the norms of the inputs, where known, and which inputs are as promised."""
        if inputs is None:
            if self.rounding == "exact":
                return None, np.ones(samples, bool)
            sizes = [size for shape in self.input_shapes for size in shape]
            if self.input_range is None or None in sizes:
                raise ValueError(
                    'With rounding="sound" radii depend on the norm of the inputs: give the `inputs`, or certify '
                    "with an `input_range` a model whose input shape is known."
                )
            largest = max(map(abs, self.input_range))
            entries = sum(math.prod(size or 0 for size in shape) for shape in self.input_shapes)
            return np.full(samples, product_up(largest, root_up(float(entries)))), np.ones(samples, bool)
        arrays = list(inputs.values()) if isinstance(inputs, dict) else inputs
        arrays = list(arrays) if isinstance(arrays, (list, tuple)) and len(self.input_shapes) > 1 else [arrays]
        if len(arrays) != len(self.input_shapes):
            raise ValueError(f"Expected {len(self.input_shapes)} inputs of the model. Received: {len(arrays)}")
        squares: Any = 0.0
        valid: Any = True
        for array, shape in zip(arrays, self.input_shapes, strict=True):
            values = np.asarray(array, dtype=np.float64)
            fits = values.ndim == len(shape) + 1 and all(
                own in (None, size) for own, size in zip(shape, values.shape[1:], strict=True)
            )
            if not fits:
                raise ValueError(
                    f"Expected `inputs` of shape (samples, {', '.join(map(str, shape))}). Received: {values.shape}"
                )
            values = values.reshape(len(values), math.prod(values.shape[1:]))
            finite = np.isfinite(values)
            valid = valid & np.all(finite, axis=1)
            values = np.where(finite, values, 0.0)
            if self.input_range is not None:
                low, high = self.input_range
                valid = valid & np.all((values >= low) & (values <= high), axis=1)
            squares = squares + np.sum(values**2, axis=1) * (1 + EPSILON * (values.shape[1] + 4))
        return np.sqrt(squares) * (1 + 4 * EPSILON), valid


def certify(
    model: keras.Model,
    *,
    task: Task | Mapping[str, Task] | None = None,
    rounding: Rounding = "exact",
    input_scale: float = 1.0,
    input_range: Sequence[float] | None = None,
    check: bool = True,
    data: Any = None,
    verbose: int = 0,
) -> Certificate:
    """Certifies a model: folds it, and bounds the plain model layer by layer.

    The bounds are computed from the kernels as they are now, in float64 and rounded outward. Layers of this library are
    not trusted, and plain Keras models are certified as well.

    Args:
        model: A built model that `vanilla_model` can fold.
        task: What the outputs mean: "binary", "multiclass", "multilabel" or "regression"; for several outputs, a dict
            by their names. By default one number is binary, several are classes, and other shapes regression.
        rounding: "exact" certifies the map that the kernels define. "sound" subtracts from every margin the largest
            rounding error that a float32 forward pass can make there, for any order of summation.
        input_scale: The factor by which you scale inputs before the model sees them, such as `1 / 255`. Radii are then
            in the units of the unscaled input. Layers that scale inside the model are part of the bound without it.
        input_range: The smallest and the largest value that inputs of the model have. Samples outside have radius 0.
        check: Whether to try and break the certificate before it is returned: by inputs for which the model and its
            fold, also after it was saved, compute different things, for which samples of a batch depend on each other,
            or between which a slope is above its bound. It takes a fraction of a second, or a tenth of the time.
        data: Inputs of the model for this check to start from, besides those that it makes up.
        verbose: 1 for a progress bar over the layers.

    Returns:
        The certificate.

    Raises:
        CannotBoundError: If a layer has no known constant, or it is not certain that what is bounded is what runs; the
            message names the layer. It is a `ValueError`.
        BrokenBoundError: If the check breaks the certificate. It is a `ValueError`.
        ValueError: If the model is not built, or an argument is wrong.

    Example:
        >>> certificate = certify(model)
        >>> radii = certificate.radius(model.predict(x))
    """
    return certify_fold(
        model,
        vanilla_model(model),
        task=task,
        rounding=rounding,
        input_scale=input_scale,
        input_range=input_range,
        check=check,
        data=data,
        verbose=verbose,
    )


def certify_fold(
    model: keras.Model, plain: keras.Model, *, check: bool = True, data: Any = None, **options: Any
) -> Certificate:
    """Certifies a model by its fold, which is at hand, and tries to break that. Arguments as of `certify`."""
    if not isinstance(check, bool):
        raise ValueError(f"Expected `check` to be True or False. Received: check={check!r}")
    start = time.monotonic()
    _check_fold(model, plain)
    certificate = certify_plain(plain, names=output_names(model), **options)
    if not check:
        return certificate
    seconds = 0.1 * (time.monotonic() - start)
    return dataclasses.replace(certificate, checked=self_check(model, plain, certificate, data, seconds))


def _check_fold(model: Any, plain: keras.Model) -> None:
    """Raises if a model computes in less than its fold does, or states other shapes."""
    low = [layer for layer in model._flatten_layers() if layer.compute_dtype in _LOW]
    if low and not any(layer.compute_dtype in _LOW for layer in plain._flatten_layers()):
        raise CannotBoundError(
            f"`certify` cannot bound the layer '{low[0].name}' of class {type(low[0]).__name__}: it computes in "
            f"{low[0].compute_dtype}, whose rounding errors are as large as margins are, and its fold does not. "
            'Certify and use `vanilla_model(model, dtype="float32")`, of the same weights.'
        )
    shapes, folded = ([tuple(one.shape) for one in getattr(each, "outputs", None) or []] for each in (model, plain))
    if shapes and shapes != folded:
        raise CannotBoundError(
            f"The outputs of the model '{model.name}' have the shapes {shapes}, and those of its fold {folded}: "
            "one of its layers is called on another shape than it was built for."
        )


def certify_plain(
    plain: keras.Model,
    *,
    task: Task | Mapping[str, Task] | None = None,
    rounding: Rounding = "exact",
    input_scale: float = 1.0,
    input_range: Sequence[float] | None = None,
    verbose: int = 0,
    names: Sequence[str] | None = None,
) -> Certificate:
    """Certifies a model that is folded already, by the arguments of `certify`."""
    scale, limits = _input_scale(input_scale), _input_range(input_range)
    if rounding not in get_args(Rounding):
        raise ValueError(f'Expected rounding="exact" or "sound". Received: rounding={rounding!r}')
    names = list(names or output_names(plain))
    tasks = _tasks(task, names)
    shapes = [tuple(tensor.shape[1:]) for tensor in plain.outputs]
    for name, shape in zip(names, shapes, strict=True):
        _check_task(plain, name, tasks[name], shape)
    bound = bound_graph(plain, rounding=rounding == "sound", verbose=verbose)
    for name, shape, tensor in zip(names, shapes, plain.outputs, strict=True):
        if tasks[name] in ("binary", "multilabel") or (tasks[name] is None and shape == (1,)):
            _check_signs(plain, name, tensor)
    heads = tuple(
        _head(name, tasks[name], shape, output)
        for name, shape, output in zip(names, shapes, bound.outputs, strict=True)
    )
    return Certificate(
        heads=heads,
        lipschitz_constant=bound.constant,
        layers=bound.layers,
        model_name=plain.name,
        fingerprint=fingerprint(plain),
        rounding=rounding,
        input_shapes=tuple(tuple(tensor.shape[1:]) for tensor in plain.inputs),
        input_scale=scale,
        input_range=limits,
    )


def output_names(model: keras.Model) -> list[str]:
    """Returns the names of a model's outputs, as `fit` and `predict` call them where they are a dict."""
    outputs = getattr(model, "_outputs_struct", None)
    if isinstance(outputs, dict):
        paths = ["/".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(outputs)]
        return paths if len(set(paths)) == len(paths) else [f"output_{index}" for index in range(len(paths))]
    names = list(getattr(model, "output_names", None) or [])
    count = len(getattr(model, "outputs", None) or names) or 1
    return names if len(names) == count == len(set(names)) else [f"output_{index}" for index in range(count)]


def checked_radii(radii: Any) -> Array:
    """Returns distances as an array.

    Raises:
        ValueError: If one is negative or not finite, or there is none.
    """
    limits = np.asarray(radii, dtype=np.float64)
    if limits.ndim != 1 or not len(limits) or not np.all((limits >= 0) & (limits < np.inf)):
        raise ValueError(f"Expected `radii` to be a list of finite l2 distances of at least 0. Received: radii={radii}")
    return limits


def _tasks(task: Any, names: Sequence[str]) -> dict[str, Task | None]:
    tasks = dict(task) if isinstance(task, Mapping) else dict.fromkeys(names, task)
    unknown = [name for name in tasks if name not in names]
    wrong = [value for value in tasks.values() if value is not None and value not in get_args(Task)]
    if unknown or wrong:
        raise ValueError(
            f"Expected `task` to be one of {', '.join(get_args(Task))}, or a dict of these by the names of outputs, "
            f"{list(names)}. Received: task={task!r}"
        )
    return {name: tasks.get(name) for name in names}


def _check_task(plain: keras.Model, name: str, task: Task | None, shape: tuple[int | None, ...]) -> None:
    vector = len(shape) == 1 and shape[0] is not None
    if task in (None, "regression") or (vector and (task != "binary" or shape == (1,))):
        return
    expected = "(batch, 1)" if task == "binary" else "(batch, outputs)"
    raise ValueError(
        f"`certify` expects an output of shape {expected} for task=\"{task}\". Received: the output '{name}' of "
        f"'{plain.name}', of shape {(None, *shape)}"
    )


def _check_signs(plain: keras.Model, name: str, output: Any) -> None:
    """Refuses an output that has one sign only: radii for it would not tell where it crosses any other threshold."""
    ranges = [value_range(part) for part in parts_of(output)]
    never = "negative" if any(low >= 0 for low, _ in ranges) else "positive"
    if any(low >= 0 or high <= 0 for low, high in ranges):
        raise ValueError(
            f'`certify` expects an output whose sign is the answer, as for one output and task="multilabel". End the '
            "model with the logit, before the activation (`layer.activation = keras.activations.linear`; a probability "
            'above 0.5 is a logit above 0), or pass task="regression". Received: the output '
            f"'{name}' of '{plain.name}', which ends in {_last_operation(output)} and is never {never}"
        )


def _last_operation(output: Any) -> str:
    last = output._keras_history.operation
    activation = getattr(last, "activation", None)
    if activation in (None, keras.activations.linear):
        return type(last).__name__
    return getattr(activation, "__name__", type(activation).__name__)


def _head(name: str, task: Task | None, shape: tuple[int | None, ...], bound: OutputBound) -> Head:
    if len(shape) != 1 or shape[0] is None:
        return Head(name, "regression", shape, bound.constant, rounding_error=bound.error)
    outputs = shape[0]
    coordinates = np.full(outputs, bound.constant)
    if bound.coordinates is not None:
        coordinates = np.minimum(coordinates, bound.coordinates)
    pairs = None
    if outputs > 1:
        pairs = np.full((outputs, outputs), product_up(root_up(2.0), bound.constant))
        np.fill_diagonal(pairs, 0)
        if bound.pairs is not None:
            pairs = np.minimum(pairs, bound.pairs)
    return Head(
        name,
        task or ("binary" if outputs == 1 else "multiclass"),
        shape,
        bound.constant,
        pair_constants=pairs,
        output_constants=coordinates,
        rounding_error=bound.error,
    )


def _formula(head: Head) -> str:
    if head.task == "regression":
        return f"the output moves by at most {_nine_digits_up(head.lipschitz_constant)} times the input's move"
    if head.task == "multiclass" and head.pair_constants is not None:
        off_diagonal = head.pair_constants[~np.eye(head.outputs, dtype=bool)]
        return (
            "min over j of (f_top - f_j) / L_top,j, "
            f"with L_i,j from {np.min(off_diagonal):.6g} to {np.max(off_diagonal):.6g}"
        )
    return "|f| / L" if head.task == "binary" else "min over j of |f_j| / L_j"


def _check_in_words(checked: SelfCheck | None) -> str:
    if checked is None:
        return "none"
    return f"{checked.pairs} pairs of inputs, the steepest at {checked.largest:.1%} of its bound"


def _nine_digits_up(value: float) -> str:
    """Writes a bound such that what is written is a bound too."""
    context = decimal.Context(prec=9, rounding=decimal.ROUND_CEILING)
    return format(context.create_decimal_from_float(value).normalize(context), "g")


def _are_names_of(names: Sequence[str], outputs: Sequence[str]) -> bool:
    """Whether names are those of a model's outputs in their order, where a fold may have added to them."""
    return len(names) == 1 or all(
        name in (output, f"output_{index}") or output.startswith(f"{name}_")
        for index, (name, output) in enumerate(zip(names, outputs, strict=True))
    )


def _numbers(certificate: Certificate) -> list[float]:
    """Returns every bound that it claims."""
    result = [certificate.lipschitz_constant]
    for line in certificate.layers:
        result += (line.constant, line.up_to_here)
    for head in certificate.heads:
        result.append(head.lipschitz_constant)
        for array in (head.pair_constants, head.output_constants):
            result.extend(() if array is None else array.reshape(-1).tolist())
        if head.rounding_error is not None:
            result.extend((head.rounding_error.absolute, head.rounding_error.relative))
    return result


# --- JSON ------------------------------------------------------------------------------------------------------------


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")  # and other programs might read the other one
    return fields


def _head_to_dict(head: Head) -> dict[str, Any]:
    fields = dataclasses.asdict(head)
    fields["shape"] = list(head.shape)
    for key in ("pair_constants", "output_constants"):
        fields[key] = None if fields[key] is None else fields[key].tolist()
    return fields


def _head_from_dict(fields: dict[str, Any], rounding: Rounding) -> Head:
    shape = _shape(fields["shape"])
    vector = len(shape) == 1 and shape[0] is not None
    task: Task = _one_of(fields["task"], get_args(Task) if vector else ("regression",))
    outputs = shape[0] if vector else None
    error = fields["rounding_error"]
    if (error is None) != (rounding == "exact"):
        raise ValueError(f"an output has the rounding error {error!r} where the arithmetic is {rounding!r}")
    if task == "binary" and outputs != 1:
        raise ValueError(f"a binary output has the shape {shape}")
    return Head(
        name=_text(fields["name"]),
        task=task,
        shape=shape,
        lipschitz_constant=_constant(fields["lipschitz_constant"]),
        pair_constants=_matrix(fields["pair_constants"], (outputs, outputs) if outputs and outputs > 1 else None),
        output_constants=_matrix(fields["output_constants"], (outputs,) if outputs is not None else None),
        rounding_error=None if error is None else Affine(_constant(error["absolute"]), _constant(error["relative"])),
    )


def _check_from_dict(fields: Any) -> SelfCheck | None:
    if fields is None:
        return None
    pairs, reloaded = fields["pairs"], fields["reloaded"]
    if isinstance(pairs, bool) or not isinstance(pairs, int) or not isinstance(reloaded, bool):
        raise TypeError(f"its self-check is {fields!r}")
    return SelfCheck(pairs, _constant(fields["largest"]), reloaded)


def _layer_from_dict(fields: dict[str, Any]) -> LayerBound:
    return LayerBound(
        _text(fields["name"]), _text(fields["kind"]), _constant(fields["constant"]), _constant(fields["up_to_here"])
    )


def _constant(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"a constant is {value!r}")
    return float(value)


def _matrix(value: Any, shape: tuple[int | None, ...] | None) -> Array | None:
    """Reads constants of a shape; of pairs, symmetric and with zeros on the diagonal only."""
    if shape is None:
        if value is not None:
            raise ValueError("an output has constants that do not fit its shape")
        return None
    rows = value if len(shape) == 2 else [value]
    if not isinstance(rows, list) or any(not isinstance(row, list) for row in rows):
        raise TypeError("the constants of an output are not lists")
    array = np.array([[_constant(entry) for entry in row] for row in rows]).reshape([size or 0 for size in shape])
    if len(shape) == 2 and (np.any(array != array.T) or np.any(np.diag(array) != 0)):
        raise ValueError("the constants of pairs of outputs are not symmetric")
    return array


def _shape(value: Any) -> tuple[int | None, ...]:
    sizes = [size for size in value if size is not None] if isinstance(value, list) else [value]
    if any(isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**63 for size in sizes):
        raise ValueError(f"a shape is {value!r}")
    return tuple(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is {value!r}")
    return value


def _one_of(value: Any, options: Sequence[Any]) -> Any:
    if value not in options:
        raise ValueError(f"it says {value!r} where one of {', '.join(options)} is expected")
    return value


def _input_scale(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"Expected `input_scale` to be a positive number. Received: input_scale={value!r}")
    return float(value)


def _input_range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers_ = list(value) if isinstance(value, (list, tuple)) else []
    if (
        len(numbers_) != 2
        or not all(isinstance(entry, numbers.Real) and math.isfinite(float(entry)) for entry in numbers_)
        or numbers_[0] > numbers_[1]
    ):
        raise ValueError(f"Expected `input_range` to be (low, high), both finite. Received: input_range={value!r}")
    return float(numbers_[0]), float(numbers_[1])
