"""The contract of a layer with a Lipschitz constant, as checks that a layer of your own can be put through.

`import deel_like_lip` does not import this module; it needs nothing but Keras and NumPy. All checks at once:

    from deel_like_lip.testing import check_layer

    check_layer(lambda: MyDense(6, k_coef_lip=2.0), (4,))

Each check of each layer as a test of its own, with pytest:

    from deel_like_lip.testing import LayerCase, check_loads_without_library, layer_checks

    CASES = {"6": LayerCase(lambda: MyDense(6), (4,)), "scaled": LayerCase(lambda: MyDense(6, k_coef_lip=2.0), (4,))}
    CHECKS = dict(layer_checks())

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
    def test_contract(case, check):
        check(case)

    def test_folds_load_without_the_library():
        check_loads_without_library(CASES.values())
"""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._autodiff import pull_back
from deel_like_lip._registration import PACKAGE
from deel_like_lip._typing import Tensor
from deel_like_lip.certificates import certify_plain
from deel_like_lip.folding import vanilla_model
from deel_like_lip.layers.base import ConstrainedKernel, LipschitzLayer
from deel_like_lip.renormalization import renormalize

__all__ = ["ContractError", "LayerCase", "check_layer", "check_loads_without_library", "layer_checks"]

Array = npt.NDArray[Any]
Check = Callable[["LayerCase"], None]

_SAMPLES = 12  # in every batch, so that what is compiled is compiled for one size
_STEPS = 3  # of training
_ROUNDING = 1e-5  # of a layer's outputs in float32, relative to the largest, or to 1
_SLOPE = 1e-4  # by which a slope, as found in float32, may exceed the constant
_CERTIFIED = 1e-5  # by which a certificate may
_BAD_CONSTANTS = (0, -1, math.nan, math.inf, "a", True)
_EPSILONS = {"mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7, "float64": 2.0**-52}
_LOADS = "loads_without_library"


class ContractError(AssertionError):
    """A layer does not keep the contract. The message says which layer, which check, what is expected, and what is.

    Example:
        >>> class Twice(LipschitzLayer):
        ...     def call(self, inputs):
        ...         return 2 * inputs
        >>> try:
        ...     dict(layer_checks())["bound"](LayerCase(lambda: Twice(name="twice"), (4,)))
        ... except ContractError as error:
        ...     print(error)
        The check 'bound' failed for the Twice layer 'twice' ... Received: norm 2.0
    """


class LayerCase:
    """A layer under test. What several checks need, such as the built model and its fold, is made once.

    Args:
        make_layer: Function without arguments that returns a new, unbuilt layer, a `LipschitzLayer`.
        input_shape: Shape of one sample, such as `(8, 6, 2)`. Keep it small: the layer's Jacobian is written out.
        per_output: Whether `k_coef_lip` is promised for each output by itself, as by `FrobeniusDense`, rather than for
            the layer.
        certified: Whether `certify` is to show that the constant is at most `k_coef_lip`. It has to hold in any case.
        same_in_training: Whether the layer computes the same in training as at inference, unlike batch statistics.
        slack_in_training: By what share of itself the constant may be exceeded after a step of training, until
            `renormalize` is called.
        skip: Names of checks that are left out, each with the reason.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> LayerCase(lambda: FrobeniusDense(3), (4,), per_output=True)
    """

    def __init__(
        self,
        make_layer: Callable[[], Any],
        input_shape: Sequence[int],
        *,
        per_output: bool = False,
        certified: bool = True,
        same_in_training: bool = True,
        slack_in_training: float = 0.0,
        skip: Mapping[str, str] | None = None,
    ) -> None:
        if not callable(make_layer) or isinstance(make_layer, keras.layers.Layer):
            raise ValueError(
                "Invalid value for argument `make_layer`. Expected a function without arguments that returns a new "
                f"layer. Received: make_layer={make_layer!r}"
            )
        shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
        if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(
                "Invalid value for argument `input_shape`. Expected positive integers, the shape of one sample. "
                f"Received: input_shape={input_shape!r}"
            )
        unknown = set(skip or ()) - set(_CHECKS) - {_LOADS}
        if unknown:
            raise ValueError(
                f"Invalid value for argument `skip`. Expected names of checks, of {sorted([*_CHECKS, _LOADS])}. "
                f"Received: skip={skip!r}"
            )
        self.make_layer = make_layer
        self.input_shape = shape
        self.per_output = per_output
        self.certified = certified
        self.same_in_training = same_in_training
        self.slack_in_training = slack_in_training
        self.skip = dict(skip or {})

    def describe(self) -> str:
        """Returns what messages call the layer."""
        try:
            layer = self.layer
        except Exception:
            return f"a layer, which cannot be built, on inputs of shape {self.input_shape}"
        return f"the {type(layer).__name__} layer '{layer.name}' on inputs of shape {self.input_shape}"

    def build(self) -> keras.Model:
        """Returns a new model that is the layer and nothing else."""
        layer = self.make_layer()
        _require(isinstance(layer, LipschitzLayer), "a `LipschitzLayer`", repr(layer))
        return keras.Sequential([keras.Input(self.input_shape), layer])

    @property
    def layer(self) -> Any:
        """The layer, built, as initialized except for its biases, which are random instead of zero."""
        return self._built[0]

    @property
    def initial(self) -> list[Array]:
        """The layer's variables as they were initialized."""
        return self._built[1]

    @functools.cached_property
    def _built(self) -> tuple[Any, list[Array]]:
        layer = self.build().layers[0]
        initial = _values(layer.variables)
        rng = np.random.default_rng(0)
        for weight in layer.weights:
            if _is_bias(weight):
                weight.assign(rng.normal(size=weight.shape))
        return layer, initial

    @functools.cached_property
    def model(self) -> keras.Model:
        """The layer as a model."""
        return self.model_of(self.layer)

    def model_of(self, layer: Any) -> keras.Model:
        """Returns a model that is `layer` and nothing else."""
        return keras.Sequential([keras.Input(self.input_shape), layer])

    @functools.cached_property
    def plain(self) -> keras.Model:
        """The folded model."""
        return vanilla_model(self.model)

    @functools.cached_property
    def inputs(self) -> Array:
        """Samples: half of them random, the other half near and far from those; one is zero and one constant."""
        rng = np.random.default_rng(1)
        half = rng.normal(size=(_SAMPLES // 2, *self.input_shape))
        half[0], half[1] = 0.0, 1.5
        distances = np.geomspace(1e-2, 10, len(half)).reshape(-1, *[1] * len(self.input_shape))
        return np.concatenate([half, half + distances * rng.normal(size=half.shape)]).astype("float32")

    @functools.cached_property
    def outputs(self) -> Array:
        """What the layer returns for the samples."""
        return _to_numpy(self.model(self.inputs))

    @functools.cached_property
    def trained(self) -> "_Trained":
        """The layer after a few steps of training, compiled where the backend compiles in reasonable time."""
        model = self.build()
        targets = np.random.default_rng(2).normal(size=(_SAMPLES, *model.output_shape[1:])).astype("float32")
        variables = model.layers[0].variables
        before = _values(variables)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=keras.backend.backend() != "torch")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The model does not have any trainable weights")
            losses = [float(model.train_on_batch(self.inputs, targets)) for _ in range(_STEPS)]
        after = _values(variables)
        if self.slack_in_training:
            renormalize(model)
        return _Trained(model.layers[0], losses, before, after, _values(variables))

    def vjp(self, values: Sequence[Array], inputs: Array, cotangents: Array, training: bool = False) -> Array:
        """Returns the gradient by the inputs of the outputs' product with `cotangents`, for given variables."""
        tensors = [keras.ops.convert_to_tensor(value) for value in values]
        arrays = (keras.ops.convert_to_tensor(array.astype("float32")) for array in (inputs, cotangents))
        return _to_numpy(self._vjp[training](tensors, *arrays))

    def jacobian(self, values: Sequence[Array], point: Array) -> Array:
        """Returns the Jacobian at a point, of shape `(outputs, inputs)`.

        Found in the layer's float32 as products with unit vectors: those of a linear layer are sums of its weights with
        zeros, so exact. What is computed of the Jacobian is computed in float64.
        """
        shape = self.model.output_shape[1:]
        size = math.prod(shape)
        rows = self.vjp(values, np.repeat(point[None], size, axis=0), np.eye(size).reshape(size, *shape))
        return rows.reshape(size, -1).astype(np.float64)

    @functools.cached_property
    def _vjp(self) -> dict[bool, Callable[..., Tensor]]:
        def product(training: bool, values: Sequence[Tensor], inputs: Tensor, cotangents: Tensor) -> Tensor:
            with keras.StatelessScope(state_mapping=list(zip(self.layer.variables, values, strict=True))):
                return pull_back(lambda tensor: self.layer(tensor, training=training), inputs, cotangents)

        return {training: _compiled(functools.partial(product, training)) for training in (False, True)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Trained:
    layer: Any
    losses: list[float]
    before: list[Array]
    after: list[Array]
    renormalized: list[Array]


def check_layer(
    make_layer: Callable[[], Any],
    input_shape: Sequence[int],
    *,
    per_output: bool = False,
    certified: bool = True,
    same_in_training: bool = True,
    slack_in_training: float = 0.0,
    skip: Mapping[str, str] | None = None,
) -> None:
    """Checks that a layer keeps the contract of this library, on the active backend.

    Runs all of `layer_checks`, and `check_loads_without_library`, which starts a process.

    Args:
        make_layer: Function without arguments that returns a new, unbuilt layer, a `LipschitzLayer`.
        input_shape: Shape of one sample, such as `(8, 6, 2)`. Keep it small: the layer's Jacobian is written out.
        per_output: As in `LayerCase`, and so are the others.
        certified: See `LayerCase`.
        same_in_training: See `LayerCase`.
        slack_in_training: See `LayerCase`.
        skip: See `LayerCase`.

    Raises:
        ContractError: If the layer does not keep the contract. It is an `AssertionError`.
        ValueError: If an argument is wrong.

    Example:
        >>> check_layer(lambda: SpectralDense(6, activation=GroupSort2()), (4,))  # doctest: +SKIP
    """
    case = LayerCase(
        make_layer,
        input_shape,
        per_output=per_output,
        certified=certified,
        same_in_training=same_in_training,
        slack_in_training=slack_in_training,
        skip=skip,
    )
    for _, check in layer_checks():
        with contextlib.suppress(unittest.SkipTest):
            check(case)
    check_loads_without_library([case])


def layer_checks() -> Iterator[tuple[str, Check]]:
    """Yields the name of each check and the check, a function that takes a `LayerCase`.

    A check raises `ContractError` if the layer does not pass it, and `unittest.SkipTest` if it is to be skipped or
    cannot be run on the active backend.

    Returns:
        An iterator.

    Example:
        >>> case = LayerCase(Abs, (4,))
        >>> for name, check in layer_checks():
        ...     if name in ("call", "fold", "bound"):
        ...         check(case)
    """
    yield from _CHECKS.items()


def check_loads_without_library(cases: Iterable[LayerCase]) -> None:
    """Checks that the folds of layers load and predict the same where this library cannot be imported.

    One process, on the active backend, does that for all of them.

    Args:
        cases: Layers under test.

    Raises:
        ContractError: If a fold does not.

    Example:
        >>> check_loads_without_library([LayerCase(lambda: SpectralDense(6), (4,))])  # doctest: +SKIP
    """
    cases = [case for case in cases if _LOADS not in case.skip]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        blocked = {PACKAGE}
        for index, case in enumerate(cases):
            with _reported(_LOADS, case):
                case.plain.save(folder / f"{index}.keras")
                np.save(folder / f"{index}.inputs.npy", case.inputs)
                blocked.add(type(case.layer).__module__.split(".")[0])
        command = [sys.executable, "-c", _LOADER, name, str(len(cases)), *(blocked - {"__main__"})]
        result = subprocess.run(command, cwd=name, env=dict(os.environ), capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"The process that loads folded models failed.\n{result.stderr}")
        for index, case in enumerate(cases):
            with _reported(_LOADS, case):
                message = folder / f"{index}.error"
                if message.exists():
                    _require(False, "the folded model to load with Keras alone", message.read_text())
                loaded = np.load(folder / f"{index}.outputs.npy")
                _require_close(loaded, case.outputs, "the folded model to predict the same once loaded")


_LOADER = """
import pathlib, sys
folder, count, blocked = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
sys.modules.update(dict.fromkeys(blocked))  # importing them fails
import keras
import numpy as np
for index in range(count):
    try:
        model = keras.models.load_model(folder / f"{index}.keras")
        np.save(folder / f"{index}.outputs.npy", model.predict_on_batch(np.load(folder / f"{index}.inputs.npy")))
    except Exception as error:
        (folder / f"{index}.error").write_text(f"{type(error).__name__}: {error}")
"""

_CHECKS: dict[str, Check] = {}


def _check(function: Check) -> Check:
    """Adds a function to the checks, under its name. Whatever goes wrong in it is reported as a `ContractError`."""
    name = function.__name__.removeprefix("_check_")

    @functools.wraps(function)
    def check(case: LayerCase) -> None:
        if name in case.skip:
            raise unittest.SkipTest(case.skip[name])
        with _reported(name, case, (function.__doc__ or "").strip()):
            function(case)

    _CHECKS[name] = check
    return check


class _BrokenError(Exception):
    """What was expected, and what was received."""


@contextlib.contextmanager
def _reported(name: str, case: LayerCase, purpose: str = "") -> Iterator[None]:
    """Raises what goes wrong as a `ContractError` that names the check and the layer."""

    def failed() -> str:
        return f"The check '{name}' failed for {case.describe()}."

    try:
        yield
    except unittest.SkipTest:
        raise
    except _BrokenError as error:
        expected, received = error.args
        raise ContractError(f"{failed()} Expected {expected}. Received: {received}") from None
    except Exception as error:
        raise ContractError(f"{failed()} {purpose} Received: {type(error).__name__}: {error}") from error


def _require(condition: Any, expected: str, received: Any) -> None:
    if not condition:
        raise _BrokenError(expected, received)


def _require_same(received: Sequence[Array], expected: Sequence[Array], what: str) -> None:
    """Requires arrays to be equal, bit by bit."""
    same = len(received) == len(expected) and all(map(np.array_equal, received, expected))
    _require(same, what, f"{list(received)} instead of {list(expected)}")


def _require_close(received: Array, expected: Array, what: str, tolerance: float = _ROUNDING) -> None:
    """Requires arrays to be equal up to `tolerance`, relative to the largest value or to 1."""
    _require(
        received.shape == expected.shape, f"{what}, of shape {expected.shape}", f"an output of shape {received.shape}"
    )
    received, expected = received.astype(np.float64), expected.astype(np.float64)
    limit = tolerance * max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    distance = float(np.max(np.abs(received - expected), initial=0.0))
    _require(distance <= limit, f"{what}, within {limit:.1e}", f"a difference of {distance}")


def _to_numpy(tensor: Tensor) -> Array:
    """Returns a tensor as an array, and bfloat16, which NumPy does not have, as float32."""
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    array: Array = keras.ops.convert_to_numpy(tensor)
    return array


def _is_bias(weight: Any) -> bool:
    return "bias" in weight.path.rsplit("/", 1)[-1]


def _values(variables: Iterable[Any]) -> list[Array]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of tensors compiled for JAX, which would otherwise compile it op by op, and takes longer."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    def stateless(*arguments: Any) -> Any:
        with keras.StatelessScope():
            return function(*arguments)

    compiled: Callable[..., Any] = jax.jit(stateless)
    return compiled


def _evaluate(function: Callable[..., Sequence[Tensor]], *arrays: Array) -> list[Tensor]:
    """Returns what a function of tensors returns for arrays."""
    return list(_compiled(function)(*(keras.ops.convert_to_tensor(array) for array in arrays)))


def _norm(matrix: Array) -> float:
    """Returns the spectral norm of a matrix in float64."""
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return float(np.sqrt(np.linalg.eigvalsh(gram)[-1]))


def _slope(case: LayerCase, values: Sequence[Array], points: Iterable[Array]) -> float:
    """Returns the largest norm of the Jacobian at some points, or where promised so the largest of a row."""
    norms = []
    for point in points:
        jacobian = case.jacobian(values, point)
        _require(np.all(np.isfinite(jacobian)), "a finite gradient by the input", f"{jacobian} at {point}")
        norms.append(float(np.max(np.linalg.norm(jacobian, axis=1))) if case.per_output else _norm(jacobian))
    return max(norms)


def _require_bound(case: LayerCase, slope: float, slack: float = 0.0) -> None:
    constant = case.layer.k_coef_lip
    of_what = "of each output" if case.per_output else "of the layer"
    limit = constant * (1 + slack + _SLOPE)
    _require(slope <= limit, f"a Jacobian {of_what} of norm at most k_coef_lip={constant}", f"norm {slope}")


def _require_certificate(case: LayerCase, plain: keras.Model, slope: float) -> None:
    """Requires the certificate to be at least what was found, and at most what is promised."""
    certificate = certify_plain(plain)
    bound, promised = certificate.lipschitz_constant, case.layer.k_coef_lip
    if case.per_output:
        bounds = certificate.heads[0].output_constants
        if bounds is None:  # outputs of several axes are certified as a whole
            return
        bound = float(np.max(bounds))
    _require(bound >= slope * (1 - 1e-6), f"a certified constant of at least {slope}, the slope found", bound)
    if case.certified:
        limit = promised * (1 + _CERTIFIED)
        _require(bound <= limit, f"a certified constant of at most k_coef_lip={promised}", bound)


@_check
def _check_config(case: LayerCase) -> None:
    """A layer is made again by `from_config(get_config())`."""
    layer = case.layer
    config = layer.get_config()
    _require(config.get("k_coef_lip") == layer.k_coef_lip, f"k_coef_lip={layer.k_coef_lip} in the config", config)
    json.dumps(keras.saving.serialize_keras_object(layer))
    again = type(layer).from_config(copy.deepcopy(config))
    _require(type(again) is type(layer), f"`from_config` to return a {type(layer).__name__}", repr(again))
    _require(again.get_config() == config, f"the config {config} from a layer made of it", again.get_config())
    model = case.model_of(again)
    again.set_weights(layer.get_weights())
    _require_same(
        [_to_numpy(model(case.inputs))], [case.outputs], "the same outputs from a layer of the same config and weights"
    )


@_check
def _check_keras_file(case: LayerCase) -> None:
    """A model is read again from a `.keras` file, if its class is registered, and weights from a `.weights.h5` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        case.model.save(path)
        loaded = keras.models.load_model(path)
        outputs = _to_numpy(loaded(case.inputs))
        _require_same([outputs], [case.outputs], "the same outputs after `save` and `load_model`")
        path = os.path.join(folder, "model.weights.h5")
        case.model.save_weights(path)
        other = case.build()
        other.load_weights(path)
        own, read = _values(case.layer.variables), _values(other.layers[0].variables)
        _require_same(read, own, "the same variables after `save_weights` and `load_weights`")


@_check
def _check_weights(case: LayerCase) -> None:
    """A layer with a constrained kernel has the weights of the Keras layer that it specialises, and no others."""
    layer = case.layer
    if isinstance(layer, ConstrainedKernel):
        names = [variable.name for variable in layer.variables]
        _require(names == ["kernel", "bias"][: 1 + bool(layer.use_bias)], "the weights of the Keras layer only", names)


@_check
def _check_symbolic_input(case: LayerCase) -> None:
    """A layer is built from a symbolic input of unknown batch size, and knows its output's shape."""
    layer = case.make_layer()
    _require(case.make_layer() is not layer, "`make_layer` to return a new layer", f"{layer!r} twice")
    computed = tuple(layer.compute_output_shape((None, *case.input_shape)))
    output = layer(keras.Input(case.input_shape))
    _require(computed == tuple(output.shape), f"`compute_output_shape` to return {tuple(output.shape)}", computed)
    found = (None, *case.outputs.shape[1:])
    _require(computed == found, f"`compute_output_shape` to return {found}, as the layer does", computed)


@_check
def _check_batch_sizes(case: LayerCase) -> None:
    """A batch of one sample or of none is as good as any other; of none if the fold, made by Keras alone, takes it."""
    models = (case.plain, case.model)
    one, none = case.inputs[2:3], case.inputs[:0]
    try:
        results = _evaluate(lambda *batches: [model(batch) for batch in batches for model in models], one, none)
    except Exception:
        if _takes_none(case):
            raise
        results = _evaluate(lambda batch: [model(batch) for model in models], one)
    else:
        if tuple(results[2].shape) != (0, *case.outputs.shape[1:]):
            del results[2:]
    for result, count in zip(results, (1, 1, 0, 0), strict=False):
        expected = case.outputs[2 : 2 + count]
        _require_close(_to_numpy(result), expected, f"the same output in a batch of {count} samples")


def _takes_none(case: LayerCase) -> bool:
    """Returns whether the fold takes a batch of no sample, which convolutions of TensorFlow on CPUs do not."""
    try:
        _evaluate(lambda batch: [case.plain(batch)], case.inputs[:0])
    except Exception:
        return False
    return True


@_check
def _check_fold(case: LayerCase) -> None:
    """A fold predicts the same by built-in layers and ops only."""
    plain = case.plain
    for operation in plain.operations:
        module = type(operation).__module__
        _require(module.split(".")[0] == "keras", "a fold made of built-in layers and ops only", repr(operation))
    _require(PACKAGE not in plain.to_json(), f"a fold that does not mention {PACKAGE}", plain.to_json())
    _require_close(_to_numpy(plain(case.inputs)), case.outputs, "the same outputs from the fold")


@_check
def _check_fold_shares_nothing(case: LayerCase) -> None:
    """A fold keeps its weights when those of the layer change."""
    plain, layer = vanilla_model(case.model), case.layer
    shared = {id(variable) for variable in layer.variables} & {id(variable) for variable in plain.variables}
    _require(not shared, "a fold with variables of its own", f"{len(shared)} variables that are the layer's")
    before = _values(plain.variables)
    with _changed(layer, lambda weight: weight + 1.0):
        _require_same(_values(plain.variables), before, "a fold whose weights stay when the layer's change")


@_check
def _check_inference(case: LayerCase) -> None:
    """A call that is not of training assigns nothing, and `predict` returns what it returns."""
    layer = case.layer
    model = case.model_of(layer)
    with _changed(layer, lambda weight: weight * 3.0):  # off the allowed kernels: that is no reason to move them
        before = _values(layer.variables)
        first = model.predict(case.inputs, batch_size=_SAMPLES, verbose=0)
        for training in (None, False):
            outputs = _to_numpy(model(case.inputs, training=training))
            _require_close(outputs, first, f"the outputs of `predict` from a call with training={training}")
        _require_same(_values(layer.variables), before, "variables that stay as they are at inference")
        _require_close(
            model.predict(case.inputs, batch_size=_SAMPLES, verbose=0), first, "the same from `predict` again"
        )


@_check
def _check_training_mode(case: LayerCase) -> None:
    """A call in training computes the same as one at inference."""
    before = _values(case.layer.variables)
    (outputs,) = _evaluate(lambda inputs: [case.model(inputs, training=True)], case.inputs)
    for variable, value in zip(case.layer.variables, before, strict=True):
        variable.assign(value)
    if case.same_in_training:
        _require_close(_to_numpy(outputs), case.outputs, "the same outputs with training=True as without")


@_check
def _check_training_steps(case: LayerCase) -> None:
    """A layer trains: also on samples of zeros and ties, weights move and stay finite."""
    trained = case.trained
    _require(np.all(np.isfinite(trained.losses)), "finite losses", trained.losses)
    finite = all(np.all(np.isfinite(value)) for value in trained.after)
    _require(finite, "finite weights after steps of training on samples that include zeros and ties", trained.after)
    if trained.layer.trainable_weights:
        moved = any(not np.array_equal(old, new) for old, new in zip(trained.before, trained.after, strict=True))
        _require(moved, "weights that move in training", "the same weights as before")


@_check
def _check_jit(case: LayerCase) -> None:
    """A layer predicts and trains the same with `jit_compile=True`."""
    if keras.backend.backend() == "torch":
        raise unittest.SkipTest("torch compiles for minutes")
    model = case.model_of(case.layer)
    model.compile(jit_compile=True)
    _require_close(model.predict_on_batch(case.inputs), case.outputs, "the same outputs with jit_compile=True")
    _ = case.trained


@_check
def _check_bound(case: LayerCase) -> None:
    """A new layer keeps its constant, and so does its certificate."""
    values = _values(case.layer.variables)
    slope = _slope(case, values, case.inputs[2:4])
    _require_bound(case, slope)
    _require_certificate(case, case.plain, slope)
    inputs, outputs = (array.reshape(_SAMPLES, -1).astype(np.float64) for array in (case.inputs, case.outputs))
    first, second = np.triu_indices(_SAMPLES, 1)
    moved = np.linalg.norm(outputs[first] - outputs[second], axis=1, ord=np.inf if case.per_output else 2)
    ratio = float(np.max(moved / np.linalg.norm(inputs[first] - inputs[second], axis=1)))
    constant = case.layer.k_coef_lip
    _require(
        ratio <= constant * (1 + _SLOPE), f"pairs of outputs no farther apart than k_coef_lip={constant} allows", ratio
    )


@_check
def _check_bound_after_training(case: LayerCase) -> None:
    """A layer keeps its constant in training, and so does its certificate."""
    trained, points = case.trained, case.inputs[2:4]
    slope = _slope(case, trained.after, points)
    _require_bound(case, slope, case.slack_in_training)
    if case.slack_in_training:
        slope = _slope(case, trained.renormalized, points)
        _require_bound(case, slope)
    _require_certificate(case, vanilla_model(case.model_of(trained.layer)), slope)


@_check
def _check_gradient(case: LayerCase) -> None:
    """A gradient at zeros and ties is finite, and no longer than the constant allows."""
    initial = case.initial
    rng = np.random.default_rng(3)
    tied = [np.zeros(case.input_shape), np.full(case.input_shape, 1.5), np.round(rng.normal(size=case.input_shape))]
    _require_bound(case, _slope(case, initial, tied))
    count = 4
    inputs = np.concatenate([np.repeat(point[None], count, axis=0) for point in tied])
    cotangents = rng.normal(size=(len(inputs), *case.outputs.shape[1:]))
    gradients = case.vjp(initial, inputs, cotangents, training=True).reshape(len(inputs), -1).astype(np.float64)
    _require(np.all(np.isfinite(gradients)), "a finite gradient with training=True at zeros and ties", gradients)
    if case.same_in_training:
        # A cotangent c of outputs that are k-Lipschitz each by itself gives a gradient of at most k times its l1 norm.
        lengths = np.linalg.norm(cotangents.reshape(len(inputs), -1), axis=1, ord=1 if case.per_output else 2)
        slope = float(np.max(np.linalg.norm(gradients, axis=1) / lengths))
        constant = case.layer.k_coef_lip
        limit = constant * (1 + _SLOPE)
        _require(slope <= limit, f"a gradient of length at most k_coef_lip={constant} with training=True", slope)


@_check
def _check_data_formats(case: LayerCase) -> None:
    """A layer with a `data_format` computes the same, transposed, in the other one."""
    layer = case.layer
    if not hasattr(layer, "data_format") or len(case.input_shape) < 2:
        return
    formats = ("channels_last", "channels_first")
    other = formats[layer.data_format == formats[0]]
    width, channels = case.outputs.shape[-2], case.outputs.shape[-1]
    biased = any(map(_is_bias, layer.weights))
    if biased and width == channels and keras.backend.backend() == "tensorflow":
        raise unittest.SkipTest("Keras 3.15 on TensorFlow adds a bias to the width if there are as many channels")
    # From which axis to which the channels move; the batch counts.
    source, target = (-1, 1) if other == formats[1] else (1, -1)
    moved = type(layer).from_config(_with_data_format(layer.get_config(), other))
    inputs = np.moveaxis(case.inputs, source, target)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), moved])
    moved.set_weights(layer.get_weights())
    plain = vanilla_model(model)
    has_channels = case.outputs.ndim == inputs.ndim
    expected = np.moveaxis(case.outputs, source, target) if has_channels else case.outputs
    shape = (None, *expected.shape[1:])
    _require(model.output_shape == shape, f"an output of shape {shape} with {other}", model.output_shape)
    results = _evaluate(lambda tensor: [model(tensor), plain(tensor)], inputs)
    for result, what in zip(results, ("layer", "fold"), strict=True):
        _require_close(_to_numpy(result), expected, f"the same outputs, transposed, from the {what} with {other}")


def _with_data_format(config: Any, data_format: str) -> Any:
    """Returns a config with another data format, also in the configs inside, without the shapes they were built for."""
    if isinstance(config, dict):
        return {
            name: data_format if name == "data_format" and value is not None else _with_data_format(value, data_format)
            for name, value in config.items()
            if name != "build_config"
        }
    return [_with_data_format(value, data_format) for value in config] if isinstance(config, list) else config


@_check
def _check_mixed_float16(case: LayerCase) -> None:
    """A layer computes in float16, with weights in float32, under the policy `mixed_float16`."""
    _dtype_policy(case, "mixed_float16")


@_check
def _check_mixed_bfloat16(case: LayerCase) -> None:
    """A layer computes in bfloat16, with weights in float32, under the policy `mixed_bfloat16`."""
    _dtype_policy(case, "mixed_bfloat16")


@_check
def _check_float64(case: LayerCase) -> None:
    """A layer computes in float64 under the policy `float64`."""
    if keras.backend.standardize_dtype(keras.ops.convert_to_tensor(np.zeros(1), dtype="float64").dtype) != "float64":
        raise unittest.SkipTest("JAX computes in float32 unless its x64 mode is on for the whole process")
    _dtype_policy(case, "float64")


def _dtype_policy(case: LayerCase, policy: str) -> None:
    reference, weights = case.outputs, case.layer.get_weights()  # made before the policy changes
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = case.build()
        (layer,) = model.layers
        layer.set_weights(weights)
        plain = vanilla_model(model)
        own, folded = _evaluate(lambda inputs: [model(inputs, training=True), plain(inputs)], case.inputs)
    finally:
        keras.config.set_dtype_policy(before)
    dtype = keras.backend.standardize_dtype(own.dtype)
    # On torch Keras's own Dense may return float32 under float64.
    if (policy, keras.backend.backend()) != ("float64", "torch"):
        _require(dtype == layer.compute_dtype, f"outputs of dtype {layer.compute_dtype} under {policy}", dtype)
    dtypes = {weight.dtype for weight in layer.weights}
    _require(dtypes <= {layer.variable_dtype}, f"weights of dtype {layer.variable_dtype} under {policy}", dtypes)
    # The inputs, the kernel and the outputs are rounded, and so are a few values in between.
    tolerance = max(8 * _EPSILONS[policy], _ROUNDING)
    if case.same_in_training:
        _require_close(_to_numpy(own), reference, f"the outputs under {policy} near those in float32", tolerance)
        _require_close(_to_numpy(own), _to_numpy(folded), f"the same outputs from the fold under {policy}", tolerance)


@_check
def _check_bad_arguments(case: LayerCase) -> None:
    """A layer refuses arguments that are wrong, by a `ValueError` that says which and what it received."""
    layer = case.layer
    wrong = [("k_coef_lip", value) for value in _BAD_CONSTANTS]
    if hasattr(layer, "data_format"):
        wrong.append(("data_format", "NHWC"))
    for name, value in wrong:
        config = {**copy.deepcopy(layer.get_config()), name: value}
        expected = f"a ValueError that says '{name}' and 'Received' where {name}={value!r}"
        try:
            accepted = type(layer).from_config(config)
        except Exception as error:
            # Keras raises a TypeError from the layer's own error.
            causes = list(_causes(error))
            said = any(
                isinstance(cause, ValueError) and name in str(cause) and "Received" in str(cause) for cause in causes
            )
            _require(said, expected, "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes))
        else:
            _require(False, expected, f"no error, and {accepted!r}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ if error.__suppress_context__ else error.__context__


@contextlib.contextmanager
def _changed(layer: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Changes the weights of a layer for a while."""
    values = _values(layer.variables)
    try:
        for weight in layer.weights:
            if keras.backend.is_float_dtype(weight.dtype):
                weight.assign(change(weight))
        yield
    finally:
        for variable, value in zip(layer.variables, values, strict=True):
            variable.assign(value)
