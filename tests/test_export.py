"""Artefacts give the same answers, and radii that are no larger, where neither Keras nor this library is."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip import export
from deel_like_lip._radius_graph import radius_model
from deel_like_lip.certificates import CertificateError
from tests.helpers import fewer_where_compiled, run_python, to_numpy

layers = lip.layers

EXPORTERS = {
    "served": export.export_saved_model,
    "served.onnx": export.export_onnx,
    "served.tflite": export.export_litert,
}

# Serves each batch of `batches.npz`, whose keys are "batch:input", and writes `answers.npz`, "artefact:batch:output".
SERVE = """
import pathlib, sys
for name in ("deel_like_lip", "keras", "jax", "torch"):
    sys.modules[name] = None  # importing it fails
import numpy as np, onnxruntime, tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
folder = pathlib.Path(sys.argv[1])
batches = {}
for key, value in np.load(folder / "batches.npz").items():
    batch, name = key.split(":")
    batches.setdefault(batch, {})[name] = value
session = onnxruntime.InferenceSession(folder / "served.onnx")
saved = tf.saved_model.load(str(folder / "served"))
lite = Interpreter(str(folder / "served.tflite")).get_signature_runner()

def onnx(inputs):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs)))

def saved_model(inputs):
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    if len(inputs) == 1:
        (inputs,) = inputs.values()
    outputs = saved.serve(inputs)
    if isinstance(outputs, dict):
        outputs = {f"{name}_logits": value for name, value in outputs.items()}
    else:
        outputs = {"logits": outputs}
    return {name: value.numpy() for name, value in {**outputs, **saved.certify(inputs)}.items()}

def litert(inputs):
    return lite(**inputs)

answers = {}
for artefact, serve in (("served", saved_model), ("served.onnx", onnx), ("served.tflite", litert)):
    for batch, inputs in batches.items():
        if artefact == "served.tflite" and batch == "empty":
            continue  # LiteRT's interpreter has no empty tensors
        for name, value in serve(inputs).items():
            answers[f"{artefact}:{batch}:{name}"] = value
np.savez(folder / "answers.npz", **answers)
"""


def images():
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(4).normal([0.5, -0.2], [0.7, 1.5], size=(8, 8, 8, 2)).astype("float32"))
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Rescaling(0.5, offset=0.1),
            normalization,
            layers.LipConv2D(8, 3, padding="circular", strides=2, activation=layers.GroupSort2()),
            layers.LipConv2D(8, 3, padding="same", activation=layers.MaxMin()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(12, activation=layers.GroupSort(4)),
            layers.SpectralDense(8, activation=layers.FullSort()),
            layers.SpectralDense(3),
        ],
        name="images",
    )


def plain_cnn():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ],
        name="plain_cnn",
    )
    norm = model.layers[1]
    rng = np.random.default_rng(3)
    norm.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in norm.weights])
    return model


def heads():
    left, right = keras.Input((4, 4, 1), name="left"), keras.Input((6,), name="right")
    body = keras.layers.Concatenate()([keras.layers.Flatten()(left), right])
    body = layers.SpectralDense(8, activation="relu", use_bias=False)(body)
    outputs = {"tags": layers.SpectralDense(4, use_bias=False)(body), "age": layers.SpectralDense(2)(body)}
    return keras.Model({"left": left, "right": right}, outputs, name="heads")


MODELS = {
    "images": (images, {}),
    "plain_cnn": (plain_cnn, {"input_range": (-3, 3)}),
    "heads": (heads, {"task": {"age": "regression", "tags": "multilabel"}, "rounding": "sound", "input_scale": 0.25}),
}


def inputs_of(model, rng, samples=16):
    return [
        rng.uniform(-2, 2, size=(samples, *tensor.shape[1:])).astype("float32")
        for tensor in lip.vanilla_model(model).inputs
    ]


@pytest.mark.parametrize("name", fewer_where_compiled(MODELS, "images", "heads"))
def test_artefacts(name, tmp_path, rng):
    make, options = MODELS[name]
    model = make()
    good = inputs_of(model, rng)
    broken = [array[:5].copy() for array in good]
    for sample, value in enumerate((np.nan, np.inf, -np.inf, 1e30)):
        broken[-1].reshape(5, -1)[sample, -1] = value
    for array in broken:
        array[4] = 0
    batches = {
        "good": good,
        "one": [array[:1] for array in good],
        "empty": [array[:0] for array in good],
        "broken": broken,
    }
    names = ["inputs"] if len(good) == 1 else ["left", "right"]
    np.savez(
        tmp_path / "batches.npz",
        **{
            f"{batch}:{name}": array
            for batch, arrays in batches.items()
            for name, array in zip(names, arrays, strict=True)
        },
    )

    certificates = [exporter(model, tmp_path / path, **options) for path, exporter in EXPORTERS.items()]
    run_python(SERVE, str(tmp_path))

    expected = lip.certify(model, **options)
    for path, certificate in zip(EXPORTERS, certificates, strict=True):
        assert export.load_certificate(tmp_path / path).to_json() == certificate.to_json()
        assert (certificate.fingerprint, certificate.rounding) == (expected.fingerprint, expected.rounding)
        assert certificate.lipschitz_constant == expected.lipschitz_constant
    answers = np.load(tmp_path / "answers.npz")
    logits = model.predict(dict(zip(names, good, strict=True)) if len(good) > 1 else good[0], verbose=0)
    logits = {f"{key}_logits": value for key, value in logits.items()} if len(good) > 1 else {"logits": logits}
    head = next(head for head in expected.heads if head.task != "regression")
    prefix = "" if len(good) == 1 else f"{head.name}_"
    own = logits[f"{prefix}logits"]
    for path in EXPORTERS:
        served = {key.removeprefix(f"{path}:"): value for key, value in answers.items() if key.startswith(f"{path}:")}
        for key, value in logits.items():
            np.testing.assert_allclose(served[f"good:{key}"], value, atol=1e-5)
            np.testing.assert_allclose(served[f"one:{key}"], value[:1], atol=1e-5)
        classes, radii = served[f"good:{prefix}class"], served["good:radius"]
        np.testing.assert_array_equal(classes, head.answer(own))
        np.testing.assert_array_equal(served[f"one:{prefix}class"], classes[:1])
        assert radii.dtype == np.float32
        assert classes.dtype == np.int32
        # Below the radii of the library, for its own logits and for those that were served, by very little.
        for values in (own, served[f"good:{prefix}logits"]):
            exact = head_radius(expected, head, values, good)
            assert np.all(radii <= exact)
        assert np.all(radii >= exact * 0.999 - 5e-5 / head.lipschitz_constant / expected.input_scale)
        np.testing.assert_array_equal(radii, served[f"good:{prefix}radius"])
        assert np.all(served["one:radius"] <= exact[:1])
        # NaN, infinite, infinite, out of range or so large that nothing is certain.
        assert np.all(served["broken:radius"][: 4 if expected.input_range else 3] == 0)
        if name == "heads":  # all logits are 0: a tie
            assert served["broken:radius"][4] == 0
        if path != "served.tflite":
            assert served["empty:radius"].shape == (0,)
            assert served[f"empty:{prefix}class"].shape[0] == 0


def head_radius(certificate, head, logits, inputs):
    alone = dataclasses.replace(certificate, heads=(head,))
    return alone.radius(logits, inputs=inputs if len(inputs) > 1 else inputs[0])


def graph_radii(model, certificate, logits, inputs):
    outputs = radius_model(lip.vanilla_model(model), certificate)([inputs, np.asarray(logits, "float32")])
    return {name: to_numpy(value) for name, value in outputs.items()}


def dense(outputs, size=6):
    return keras.Sequential([keras.Input((size,)), layers.SpectralDense(outputs)])


@pytest.mark.parametrize("rounding", ["exact", "sound"])
@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 5), ("multilabel", 5), ("multiclass", 1)])
def test_radii_in_float32_are_never_above(task, outputs, rounding, rng):
    model = dense(outputs)
    certificate = lip.certify(model, task=task, rounding=rounding, input_scale=1 / 255)
    logits = rng.normal(size=(4000, outputs)) * 10 ** rng.uniform(-30, 30, size=(4000, 1))
    logits[::4] = logits[::4, :1] * (1 + 1e-7 * rng.normal(size=(1000, outputs)))
    logits[1::8] = np.sign(logits[1::8]) * rng.uniform(0, 3e38, size=(500, outputs))
    logits = logits.astype("float32")
    inputs = (rng.normal(size=(4000, 6)) * 10 ** rng.uniform(-25, 5, size=(4000, 1))).astype("float32")
    found = graph_radii(model, certificate, logits, inputs)
    np.testing.assert_array_equal(found["class"], certificate.heads[0].answer(logits))
    assert np.all(np.isfinite(found["radius"]))
    assert np.all(found["radius"] <= certificate.radius(logits, inputs=inputs))
    # Nor are they above for the logits of another runtime, which are off by what may be.
    scale = np.maximum(1, np.abs(logits).max(axis=1, keepdims=True))
    if rounding == "exact":
        other = logits + 0.99e-5 * scale * rng.uniform(-1, 1, size=logits.shape)
        assert np.all(found["radius"] <= certificate.radius(other, inputs=inputs))
    assert np.any(found["radius"] > 0)


def test_radii_of_what_is_not_finite_or_tied():
    model = dense(3)
    certificate = lip.certify(model, input_range=(0, 1))
    logits = np.array([[1, 0, 0], [np.nan, 2, 0], [np.inf, 0, 0], [0, -np.inf, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    inputs = np.full((7, 6), 0.5, "float32")
    inputs[5, 2], inputs[6, 2] = 1, np.nextafter(np.float32(1), np.float32(2))
    found = graph_radii(model, certificate, logits, inputs)
    np.testing.assert_array_equal(found["radius"] > 0, [True, False, False, False, False, True, False])
    np.testing.assert_array_equal(found["class"], certificate.heads[0].answer(logits))
    for value in (np.nan, np.inf, -np.inf, -1e-30, 1.1):
        inputs = np.full((7, 6), 0.5, "float32")
        inputs[:, 0] = value
        assert not np.any(graph_radii(model, certificate, logits, inputs)["radius"])


def test_a_difference_that_cannot_change_is_never_overtaken():
    model = dense(2)
    certificate = lip.certify(model)
    head = dataclasses.replace(certificate.heads[0], pair_constants=np.zeros((2, 2)))
    certificate = dataclasses.replace(certificate, heads=(head,))
    found = graph_radii(model, certificate, [[1, 0], [1, 1]], np.zeros((2, 6), "float32"))
    np.testing.assert_array_equal(certificate.radius([[1, 0], [1, 1]]), [np.inf, 0])
    assert np.isfinite(found["radius"][0])
    assert found["radius"][0] > 1e29
    assert found["radius"][1] == 0


def test_radii_are_refused_where_float32_does_not_do():
    integers = keras.Input((3,), dtype="int32")
    model = keras.Model(integers, layers.SpectralDense(2)(keras.layers.Rescaling(0.1)(integers)), name="counts")
    certificate = lip.certify(dense(2))
    with pytest.raises(
        ValueError, match="inputs of the types float32, .* Received: the input .* of 'counts', of type int32"
    ):
        radius_model(lip.vanilla_model(model), certificate)
    half = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, dtype="mixed_bfloat16", name="half")])
    with pytest.raises(ValueError, match="compute in float32. Received: the layer 'half' of .* computes in bfloat16"):
        radius_model(lip.vanilla_model(half), certificate)
    sound = dataclasses.replace(lip.certify(dense(2), rounding="sound"), input_shapes=((None,),))
    with pytest.raises(ValueError, match=r"inputs of a known shape .* Received: .* the input shapes \[\(None,\)\]"):
        radius_model(lip.vanilla_model(dense(2)), sound)


def test_only_regression_has_no_radii():
    model = dense(2)
    assert radius_model(lip.vanilla_model(model), lip.certify(model, task="regression")) is None


# --- Files. What writes them is replaced by something quick, which writes just enough to be recognised. ---------------


def write_quickly(kind, backend, plain, radius, fresh, names):
    if kind == "saved_model":
        fresh.mkdir()
        (fresh / "saved_model.pb").write_bytes(b"")
    elif kind == "litert":
        fresh.write_bytes(b"\0\0\0\0TFL3")
    else:
        onnx = pytest.importorskip("onnx")
        outputs = [*names[len(plain.inputs) :], *(radius.output if radius else {})]
        nodes = [onnx.helper.make_node("Identity", names[:1], [name]) for name in outputs]
        tensors = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in [*names[:1], *outputs]
        ]
        graph = onnx.helper.make_graph(nodes, "graph", tensors[:1], tensors[1:][::-1])
        onnx.save(onnx.helper.make_model(graph), str(fresh))


@pytest.fixture
def quick_writers(monkeypatch):
    monkeypatch.setattr(export, "_write", write_quickly)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", [*EXPORTERS, "two steps"])
@pytest.mark.usefixtures("quick_writers")
def test_an_artefact_is_replaced_as_a_whole(path, tmp_path, monkeypatch):
    if path == "two steps":  # where folders cannot be exchanged in one
        path = "served"
        monkeypatch.setattr(export, "_exchange", lambda first, second: False)
    target = tmp_path / "models" / path
    first, second = dense(2), dense(2)
    EXPORTERS[path](first, target)
    assert names_in(tmp_path / "models") == [path]
    certificate = EXPORTERS[path](second, str(target))
    assert names_in(tmp_path / "models") == [path]
    assert export.load_certificate(target).fingerprint == certificate.fingerprint == lip.certify(second).fingerprint

    # An export that dies leaves the one before.
    def die(*arguments):
        write_quickly(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_write", die)
    with pytest.raises(KeyboardInterrupt):
        EXPORTERS[path](first, target)
    assert export.load_certificate(target).fingerprint == certificate.fingerprint
    assert names_in(tmp_path / "models") == [path]


@pytest.mark.usefixtures("quick_writers")
def test_what_is_no_artefact_is_not_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    for name in ("notes/thesis.txt", "notes.onnx", "notes.tflite"):
        (tmp_path / name).write_text("years of work")
    model = dense(2)
    with pytest.raises(FileExistsError, match="does not replace what is no SavedModel. Received: path=.*notes"):
        export.export_saved_model(model, tmp_path / "notes")
    with pytest.raises(FileExistsError, match="does not replace what is no ONNX file. Received: path=.*notes.onnx"):
        export.export_onnx(model, tmp_path / "notes.onnx")
    with pytest.raises(FileExistsError, match="does not replace what is no LiteRT file. Received: path=.*notes.tflite"):
        export.export_litert(model, tmp_path / "notes.tflite")
    for name in ("notes/thesis.txt", "notes.onnx", "notes.tflite"):
        assert (tmp_path / name).read_text() == "years of work"
    with pytest.raises(
        ValueError, match=r"`export_onnx` expects a path that ends in '\.onnx'\. Received: path=.*notes"
    ):
        export.export_onnx(model, tmp_path / "notes")


@pytest.mark.usefixtures("quick_writers")
def test_a_certificate_that_is_there_already(tmp_path):
    model = dense(2)
    certificate = lip.certify(model, rounding="sound")
    assert export.export_litert(model, tmp_path / "served.tflite", certificate=certificate) is certificate
    with zipfile.ZipFile(tmp_path / "served.tflite") as archive:
        assert json.loads(archive.read("certificate.json"))["rounding"] == "sound"
    with pytest.raises(CertificateError, match="was computed from other weights"):
        export.export_litert(dense(2), tmp_path / "other.tflite", certificate=certificate)
    with pytest.raises(ValueError, match="not both. Received: certificate and rounding"):
        export.export_litert(model, tmp_path / "other.tflite", certificate=certificate, rounding="exact")
    assert names_in(tmp_path) == ["served.tflite"]


@pytest.mark.usefixtures("quick_writers")
def test_certificates_that_are_missing_or_damaged(tmp_path):
    certificate = export.export_litert(dense(2), tmp_path / "served.tflite")
    (tmp_path / "certificate.json").write_text(certificate.to_json())
    assert export.load_certificate(tmp_path / "certificate.json").to_json() == certificate.to_json()
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.tflite").write_bytes(b"\0\0\0\0TFL3")
    (tmp_path / "none.onnx").write_bytes(b"no protocol buffer")
    for name in ("absent", "absent.onnx", "absent.tflite", "empty", "none.tflite", "none.onnx"):
        with pytest.raises(CertificateError, match=rf"There is no certificate .* Received: path=.*{name}"):
            export.load_certificate(tmp_path / name)
    content = (tmp_path / "served.tflite").read_bytes()
    (tmp_path / "damaged.tflite").write_bytes(content.replace(b'"l2"', b'"l1"'))
    with pytest.raises(CertificateError):
        export.load_certificate(tmp_path / "damaged.tflite")


def test_what_cannot_be_certified_is_not_exported(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Activation("exponential", name="steep")])
    for path, exporter in EXPORTERS.items():
        with pytest.raises(ValueError, match="cannot bound the layer 'steep'"):
            exporter(model, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export._writers, "__file__", str(tmp_path / "absent.py"))
    monkeypatch.setattr(export._writers, "write", None)
    with pytest.raises(RuntimeError, match="'sequential.*' cannot be written as litert. By tensorflow: .*"):
        export.export_litert(dense(2), tmp_path / "served.tflite")
    assert list(tmp_path.iterdir()) == []


def test_where_one_cannot_write_the_other_does(tmp_path, monkeypatch):
    tried = []

    def fail_once(kind, backend, *arguments):
        tried.append(backend)
        if len(tried) == 1:
            raise RuntimeError("no such operation")
        write_quickly(kind, backend, *arguments)

    monkeypatch.setattr(export, "_write", fail_once)
    export.export_onnx(dense(2), tmp_path / "served.onnx")
    assert sorted(tried) == ["tensorflow", "torch"]
    assert names_in(tmp_path) == ["served.onnx"]


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for path, exporter in EXPORTERS.items():
        with pytest.raises(ModuleNotFoundError, match=r"`export_\w+` needs .* pip install 'deel-like-lip\[\w+\]'"):
            exporter(None, tmp_path / path)  # before anything is done


@pytest.mark.parametrize(
    ("installed", "active", "expected"),
    [
        ({"tensorflow", "tf2onnx", "torch", "onnxscript"}, "tensorflow", ["tensorflow", "torch"]),
        ({"tensorflow", "tf2onnx", "torch", "onnxscript"}, "torch", ["torch", "tensorflow"]),
        ({"tensorflow", "tf2onnx", "torch", "onnxscript"}, "jax", ["torch", "tensorflow"]),
        ({"tensorflow", "torch", "onnxscript"}, "tensorflow", ["torch"]),
        ({"tensorflow", "tf2onnx", "torch"}, "torch", ["tensorflow"]),
    ],
)
def test_who_writes_onnx(installed, active, expected, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed | {"onnx"} else None)
    monkeypatch.setattr(keras.backend, "backend", lambda: active)
    assert export._onnx_backends() == expected
