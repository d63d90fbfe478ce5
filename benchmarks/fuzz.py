"""Random layers and mutated certificates: each is refused with a reason, or what it says is true.

    KERAS_BACKEND=torch python benchmarks/fuzz.py                                             # 10,000 of each
    KERAS_BACKEND=torch python benchmarks/fuzz.py --configurations 500 --mutations 0 --seed 20   # others, or to go on

A configuration is a public layer, its arguments, and the shape of its input, good and bad. Either it is refused by a
`ValueError`, or its fold computes the same, no two inputs are further apart in the output than its certified constant
and `k_coef_lip` allow, and its certificate is verified. A mutation changes the JSON of a certificate, as an accident
does, or with a checksum that fits, as somebody does who knows how. The first is refused when it is read. The second is
refused then, or by `verify` with the options that the certificate was made with, or has no radius above the true one.
Counts are printed. Exit status 1 if a failure was found.
"""

import argparse
import collections
import functools
import hashlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import deel_like_lip as lip
from deel_like_lip.certificates import CertificateError

CHUNK = 250  # examples of one seed
Check = Callable[[Any], str]

# --- configurations --------------------------------------------------------------------------------------------------


class Spec(NamedTuple):
    """A layer that is not made yet."""

    name: str
    arguments: dict[str, Any]

    def make(self) -> Any:
        return getattr(lip.layers, self.name)(**{name: _made(value) for name, value in self.arguments.items()})


class Configuration(NamedTuple):
    """A layer, the shape of one sample of its input, and the weights that it has: "initial" or "random"."""

    spec: Spec
    shape: tuple[int | None, ...]
    weights: str


def _made(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.make()
    return [_made(entry) for entry in value] if isinstance(value, list) else value


def _of(*good: Any, bad: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Returns good values, and bad ones once in a while."""
    return st.sampled_from([*(list(good) * max(1, 12 * len(bad) // len(good))), *bad])


def _sizes(*good: int) -> st.SearchStrategy[Any]:
    """Returns sizes for convolutions and pooling: one number, or one for each of two axes."""
    return st.one_of(_of(*good, bad=(0, -1, 2.5)), st.tuples(_of(*good), _of(*good)))


_ACTIVATIONS = st.one_of(
    _of(None, "relu", "tanh", "linear", "leaky_relu", bad=("gelu", "no such activation", 3)),
    st.builds(Spec, st.sampled_from(["GroupSort2", "MaxMin", "FullSort", "Abs", "Householder"]), st.just({})),
)
_COUNT = _of(1, 2, 3, 4, 6, 8, bad=(0, -1, 2.5, "4", None))
_PADDING = _of("valid", "same", bad=("full", None))
_CONVOLUTION_PADDING = _of("valid", "same", "circular", bad=("full", "SAME"))
_NAMES = ("polar", "spectral", "aol", "cayley", "aoc", "soc", "operator_norm", "bro", "cholesky", "exponential")

ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "k_coef_lip": _of(1.0, 0.5, 2, 1e-3, 30.0, bad=(0, -1.0, math.nan, math.inf, "1", None, True)),
    "units": _COUNT,
    "filters": _COUNT,
    "channels": _COUNT,
    "kernel_size": _sizes(1, 2, 3, 5),
    "strides": _sizes(1, 2, 3),
    "dilation_rate": _sizes(1, 1, 2),
    "pool_size": _sizes(1, 2, 3),
    "output_padding": _of(None, None, 0, 1),
    "depth_multiplier": _of(1, 2, bad=(0,)),
    "groups": _of(1, 1, 2, 3, bad=(0, -2)),
    "n": _of(None, 2, 3, bad=(0, 1, -2, 2.0)),
    "padding": _CONVOLUTION_PADDING,
    "data_format": _of(None, "channels_last", "channels_first", bad=("channels_middle",)),
    "use_bias": st.booleans(),
    "keepdims": st.booleans(),
    "disjoint_neurons": st.booleans(),
    "momentum": _of(0.99, 0.5, bad=(-1.0, 2.0)),
    "epsilon": _of(1e-3, 1e-6, bad=(-1.0, 0.0)),
    "delta": _of(0.05, 1.0, bad=(0.0, -1.0, math.nan)),
    "axis": _of(None, -1, 1, (1, -1), bad=(0, 7, "all")),
    "activation": _ACTIVATIONS,
    "parametrization": _of(*_NAMES, bad=("no such", 3)),
    "branch": st.lists(
        st.one_of(
            st.builds(Spec, st.just("SpectralDense"), st.fixed_dictionaries({"units": _COUNT})),
            st.builds(
                Spec,
                st.just("LipConv2D"),
                st.fixed_dictionaries({"filters": _COUNT, "kernel_size": _of(1, 3), "padding": _CONVOLUTION_PADDING}),
            ),
            st.builds(Spec, st.sampled_from(["MaxMin", "FullSort", "SLLDense", "SLLConv2D", "CPLDense"]), st.just({})),
        ),
        min_size=1,
        max_size=2,
    ),
    "initial_alpha": _of(0.5, 0.1, bad=(0.0, 1.0, -1.0)),
}
_CONVOLUTION = "filters kernel_size strides padding data_format dilation_rate groups activation use_bias k_coef_lip "
_BLOCK_CONVOLUTION = "kernel_size padding data_format activation use_bias k_coef_lip"
# Which arguments each layer has, and how many axes its input, where that matters. The first are always given.
LAYERS: dict[str, tuple[str, int | None]] = {
    "Abs": ("k_coef_lip", None),
    "BatchCentering": ("use_bias momentum data_format k_coef_lip", None),
    "CPLConv2D": (f"filters {_BLOCK_CONVOLUTION}", 3),
    "CPLDense": ("units activation use_bias k_coef_lip", None),
    "ChannelShuffle": ("groups! data_format k_coef_lip", None),
    "ConcatResidual": ("branch! k_coef_lip", None),
    "FirstChannels": ("channels! data_format k_coef_lip", None),
    "FrobeniusConv2D": (f"filters! kernel_size! {_CONVOLUTION}", 3),
    "FrobeniusDense": ("units! activation disjoint_neurons use_bias k_coef_lip", None),
    "FullSort": ("data_format k_coef_lip", None),
    "GroupSort": ("n data_format k_coef_lip", None),
    "GroupSort2": ("data_format k_coef_lip", None),
    "Householder": ("data_format k_coef_lip", None),
    "InvertibleDownSampling": ("pool_size data_format k_coef_lip", 3),
    "InvertibleUpSampling": ("pool_size data_format k_coef_lip", 3),
    "LayerCentering": ("axis use_bias data_format k_coef_lip", None),
    "LinearResidualConv2D": ("kernel_size padding data_format use_bias k_coef_lip", 3),
    "LipBatchNormalization": ("use_bias momentum epsilon data_format k_coef_lip", None),
    "LipConv1D": (f"filters! kernel_size! {_CONVOLUTION} parametrization", 2),
    "LipConv2D": (f"filters! kernel_size! {_CONVOLUTION} parametrization", 3),
    "LipConv2DTranspose": (
        "filters! kernel_size! strides padding output_padding data_format dilation_rate activation use_bias k_coef_lip "
        "parametrization",
        3,
    ),
    "LipConv3D": (f"filters! kernel_size! {_CONVOLUTION} parametrization", 4),
    "LipDepthwiseConv2D": (
        "kernel_size! strides padding depth_multiplier data_format dilation_rate activation use_bias k_coef_lip "
        "parametrization",
        3,
    ),
    "LipPReLU": ("data_format k_coef_lip", None),
    "LipResidual": ("branch! initial_alpha k_coef_lip", None),
    "MaxMin": ("data_format k_coef_lip", None),
    "NActivation": ("data_format k_coef_lip", None),
    "PadConv2D": (f"filters! kernel_size! {_CONVOLUTION} parametrization", 3),
    "SLLConv2D": (f"filters {_BLOCK_CONVOLUTION}", 3),
    "SLLDense": ("units activation use_bias k_coef_lip", None),
    "SandwichDense": ("units activation use_bias k_coef_lip", None),
    "ScaledAveragePooling2D": ("pool_size strides padding data_format k_coef_lip", 3),
    "ScaledGlobalAveragePooling2D": ("keepdims data_format k_coef_lip", 3),
    "ScaledGlobalL2NormPooling2D": ("keepdims data_format k_coef_lip", 3),
    "ScaledL2NormPooling2D": ("pool_size strides padding data_format k_coef_lip", 3),
    "SoftHuber": ("delta k_coef_lip", None),
    "SpectralDense": ("units! activation use_bias k_coef_lip parametrization", None),
    "UnitNormDense": ("units! activation use_bias k_coef_lip", None),
    "ZeroChannelPadding": ("channels! data_format k_coef_lip", None),
}
_OWN = {
    ("PadConv2D", "padding"): _of(
        "same", "valid", "circular", "reflect", "symmetric", "edge", "replicate", bad=("full", None)
    ),
    ("ScaledAveragePooling2D", "padding"): _PADDING,
    ("ScaledL2NormPooling2D", "padding"): _PADDING,
}


@st.composite
def configurations(draw: Any) -> Configuration:
    name = draw(st.sampled_from(sorted(LAYERS)))
    listed, rank = LAYERS[name]
    arguments = {}
    for argument in dict.fromkeys(listed.split()):
        own = argument.rstrip("!")
        # Most arguments are left at their default in most configurations, so that not too many are refused.
        if own not in arguments and (argument != own or draw(st.integers(0, 2)) == 0):
            value = draw(_OWN.get((name, own), ARGUMENTS[own]))
            arguments[own] = value[0] if isinstance(value, tuple) and rank in (2, 4) else value
    axes = draw(_of(1, 2, 3) if rank is None else _of(rank, bad=(rank - 1, rank + 1)))
    shape = draw(st.tuples(*[_of(1, 2, 3, 4, 5, 6, 8, bad=(None,))] * axes))
    return Configuration(Spec(name, arguments), shape, draw(st.sampled_from(["initial", "random"])))


def check_configuration(configuration: Configuration) -> str:
    """Returns what became of a configuration.

    Raises:
        AssertionError: If it is neither refused nor right.
    """
    rng = np.random.default_rng(0)
    try:
        inputs = keras.Input(configuration.shape)
        layer = configuration.spec.make()
        model = keras.Model(inputs, layer(inputs))
    except ValueError as error:
        return _refused(error, "when made")
    for weight in layer.weights:
        if configuration.weights == "random" or "bias" in weight.name:
            values = rng.normal(size=weight.shape)
            weight.assign(np.abs(values) if "variance" in weight.name else values)
    try:
        certificate = lip.certify(model, task="regression")
    except ValueError as error:
        return _refused(error, "by certify")
    plain = lip.vanilla_model(model)
    batch = 3
    here = rng.normal(size=(batch, *(size or 5 for size in configuration.shape))).astype("float32")
    there = here + (rng.normal(size=here.shape) * rng.choice([1e-2, 1, 10])).astype("float32")
    try:
        outputs = [_to_numpy(model(values)).astype("float64") for values in (here, there)]
    except ValueError as error:
        if None not in configuration.shape:  # only a size that was open may turn out not to fit
            raise
        return _refused(error, "when called")
    assert all(np.all(np.isfinite(values)) for values in outputs), "outputs are not finite"
    largest = max(1.0, *(float(np.max(np.abs(values), initial=0)) for values in outputs))
    folded = _to_numpy(plain(here))
    assert folded.shape == outputs[0].shape, f"the fold has the shape {folded.shape}, not {outputs[0].shape}"
    np.testing.assert_allclose(folded, outputs[0], rtol=0, atol=1e-4 * largest, err_msg="fold")
    moved = np.linalg.norm((there.astype("float64") - here).reshape(batch, -1), axis=1)
    change = np.linalg.norm((outputs[1] - outputs[0]).reshape(batch, -1), axis=1)
    slack = 1e-5 * largest * math.sqrt(outputs[0][0].size)  # of float32
    constant = certificate.lipschitz_constant
    assert np.all(change <= constant * moved * (1 + 1e-4) + slack), f"{change} over {moved}, certified {constant}"
    if configuration.weights == "initial" and _promises(layer):
        assert np.all(change <= layer.k_coef_lip * moved * (1 + 1e-4) + slack), f"{change} over {moved}, promised"
    certificate.verify(model)
    return "right"


def _refused(error: ValueError, when: str) -> str:
    if not str(error).strip():
        raise AssertionError("An error without a reason.") from error
    return f"refused {when}"


def _promises(layer: Any) -> bool:
    """Whether a layer promises its constant as a whole, not for each output."""
    return type(layer).__name__ != "UnitNormDense" and not getattr(layer, "disjoint_neurons", False)


def _to_numpy(tensor: Any) -> Any:
    return keras.ops.convert_to_numpy(tensor)


# --- mutations of certificates ---------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A model, what `verify` is to be told, the certificate, and outputs of the model with their inputs."""

    model: Any
    options: dict[str, Any]
    certificate: Any
    logits: Any
    inputs: Any


@functools.cache
def subjects() -> list[Subject]:
    keras.utils.set_random_seed(0)
    layers = lip.layers
    image, vector = keras.Input((4, 4, 1), name="image"), keras.Input((4,), name="vector")
    body = layers.SpectralDense(6, activation=layers.GroupSort2())
    two = {"alarm": layers.SpectralDense(3)(body(vector)), "kind": keras.layers.Dense(3)(body(vector))}
    flat = keras.layers.Flatten()(layers.LipConv2D(2, 3, activation=layers.MaxMin())(image))
    made: list[tuple[Any, dict[str, Any]]] = [
        (keras.Model(image, keras.layers.Dense(3)(flat)), {"input_scale": 1 / 255}),
        (keras.Model(vector, layers.FrobeniusDense(1)(body(vector))), {"rounding": "sound", "input_range": (0.0, 1.0)}),
        (keras.Model(vector, keras.layers.Dense(3)(body(vector))), {"task": "multilabel"}),
        (keras.Model(vector, two), {"rounding": "sound", "input_range": (-1.0, 2.0), "input_scale": 0.5}),
    ]
    found = []
    for model, options in made:
        inputs = np.random.default_rng(0).uniform(0, 1, size=(16, *model.input_shape[1:])).astype("float32")
        certificate = lip.certify(model, **options)
        # All that no model can tell, which is what a user who verifies has to know.
        known = {"rounding": "exact", "input_scale": 1.0, "task": {each.name: each.task for each in certificate.heads}}
        logits = model.predict(inputs, verbose=0)
        found.append(Subject(model, {**known, **options}, certificate, logits, inputs))
    return found


_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, "", "l2", "exact", "multilabel", [], {}, 0, -1, 10**400, math.nan, math.inf]),
    st.floats(),
    st.integers(),
    st.text(max_size=3),
    st.lists(st.floats(0, 2), max_size=3),
)
_FACTORS = st.sampled_from([0.0, 0.1, 0.5, 1 - 1e-6, 1 + 1e-6, 2.0, -1.0, 1e300])


def mutations() -> st.SearchStrategy[tuple[int, str, bytes]]:
    """Returns a strategy for a subject's number, "accident" or "intent", and the bytes of its edited certificate."""
    subjects()  # so that no random numbers are drawn later but by hypothesis
    return _mutations()


@st.composite
def _mutations(draw: Any) -> tuple[int, str, bytes]:
    index = draw(st.integers(0, len(subjects()) - 1))
    text = subjects()[index].certificate.to_json()
    if draw(st.integers(0, 3)) == 0:
        return index, "accident", draw(_damaged(text.encode()))
    fields = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        _edit(draw, fields)
    if draw(st.booleans()):
        return index, "accident", json.dumps(fields).encode()
    return index, "intent", signed(fields).encode()


def signed(fields: dict[str, Any]) -> str:
    """Returns fields as JSON with the checksum that fits, as somebody may write it who knows how."""
    fields.pop("checksum", None)
    content = json.dumps(fields, sort_keys=True).encode()
    return json.dumps({**fields, "checksum": hashlib.sha256(content).hexdigest()})


@st.composite
def _damaged(draw: Any, content: bytes) -> bytes:
    """Returns content that is cut, or has other bytes somewhere, or something twice."""
    start = draw(st.integers(0, len(content) - 1))
    end = draw(st.integers(start, min(len(content), start + 200)))
    kind = draw(st.sampled_from(["cut", "without", "other", "twice"]))
    if kind == "cut":
        return content[:start]
    middle = {"without": b"", "other": draw(st.binary(min_size=1, max_size=3)), "twice": 2 * content[start:end]}[kind]
    return content[:start] + middle + content[end if kind != "other" else start + 1 :]


def _edit(draw: Any, fields: Any) -> None:
    """Changes one entry of a certificate, at any depth."""
    place = fields
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return
        key = draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], (dict, list)) or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    value = place[key]
    kind = draw(st.sampled_from(["scale", "scale", "replace", "replace", "remove", "add", "swap"]))
    if kind == "scale":
        factor = draw(_FACTORS)
        for inner, container in _numbers_below(value, place, key):
            container[inner] *= factor
    elif kind == "replace":
        place[key] = draw(_VALUES)
    elif kind == "remove":
        del place[key]
    elif kind == "add" and isinstance(place, dict):
        place["more"] = draw(_VALUES)
    elif kind == "add":
        place.append(value)
    else:
        other = draw(st.sampled_from(list(keys)))
        place[key], place[other] = place[other], place[key]


def _numbers_below(value: Any, container: Any, key: Any) -> list[tuple[Any, Any]]:
    """Returns where the numbers of a value are: itself, or all inside."""
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        return [found for inner in keys for found in _numbers_below(value[inner], value, inner)]
    return [(key, container)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def check_mutation(mutation: tuple[int, str, bytes]) -> str:
    """Returns what became of a mutated certificate.

    Raises:
        AssertionError: If it is neither refused nor right.
    """
    index, kind, content = mutation
    subject = subjects()[index]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(content)
        file.flush()
        try:
            found = lip.load_certificate(file.name)
        except CertificateError:
            return f"{kind}: refused when read"
    if kind == "accident":
        assert found.to_json() == subject.certificate.to_json(), "an edited certificate was read"
        return "accident: says the same"
    options = subject.options
    if len(subject.certificate.heads) == 1:
        options = {**options, "task": subject.certificate.heads[0].task}
    try:
        found.verify(subject.model, **options)
    except ValueError as error:
        return f"intent: {_refused(error, 'by verify')}"
    for inputs in (subject.inputs, None):
        claimed, true = (each.radius(subject.logits, inputs=inputs) for each in (found, subject.certificate))
        assert np.all(claimed <= true * (1 + 1e-8)), f"{claimed} above {true}"
    return "intent: no larger radius"


# --- runs ------------------------------------------------------------------------------------------------------------


def fuzz(
    strategy: st.SearchStrategy[Any], check: Check, examples: int, first_seed: int = 0, seconds: float = math.inf
) -> tuple[dict[str, int], list[str]]:
    """Checks so many examples, fewer if time is up, and returns counts of outcomes and what has failed."""
    counts: collections.Counter[str] = collections.Counter()
    failures = []
    begin = time.monotonic()
    for number, done in enumerate(range(0, examples, CHUNK)):
        if time.monotonic() - begin > seconds:
            break

        def counted(example: Any) -> None:
            counts[check(example)] += 1

        options = settings(
            max_examples=min(CHUNK, examples - done),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        try:
            seed(first_seed + number)(options(given(strategy)(counted)))()
        except Exception as error:  # of any kind: that is what is looked for
            failures.append(f"seed {first_seed + number}: {''.join(traceback.format_exception(error))}")
        keras.utils.clear_session()
        print(f"seed {first_seed + number}: {sum(counts.values())} done, {len(failures)} failed", file=sys.stderr)
    return dict(sorted(counts.items())), failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=10_000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help=f"the first one; each is of {CHUNK} examples")
    parser.add_argument("--seconds", type=float, default=math.inf, help="the longest time for each of both")
    arguments = parser.parse_args()
    failed = False
    for name, strategy, check, examples in (
        ("configurations", configurations(), check_configuration, arguments.configurations),
        ("mutations", mutations(), check_mutation, arguments.mutations),
    ):
        counts, failures = fuzz(strategy, check, examples, arguments.seed, arguments.seconds)
        failed |= bool(failures)
        report = {name: sum(counts.values()), "outcomes": counts, "failed": len(failures)}
        print(json.dumps({**report, "backend": keras.backend.backend()}), flush=True)
        print("\n".join(failures), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
