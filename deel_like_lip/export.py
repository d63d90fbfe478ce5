"""Export of the folded model, with its certificate inside, for programs that know neither Keras nor this library."""

import ctypes
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import keras

from deel_like_lip import _writers
from deel_like_lip._radius_graph import output_name, radius_model
from deel_like_lip.certificates import Certificate, CertificateError, certify_fold, output_names
from deel_like_lip.folding import vanilla_model

# Where the certificate is: a file in a SavedModel, a property of an ONNX file, and in LiteRT a file in a zip archive
# behind the model, as LiteRT's metadata keep files. One file or folder is moved into place, so no two disagree.
CERTIFICATE_FILE = "assets.extra/certificate.json"
CERTIFICATE_NAME = "certificate.json"
ONNX_PROPERTY = "certificate"

_LITERT_IDENTIFIER = b"TFL3"


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    certificate: Certificate | None = None,
    **certify_options: Any,
) -> Certificate:
    """Folds a model, certifies it, and writes it as a TensorFlow SavedModel with the certificate inside.

    The SavedModel has two endpoints. `serve` maps a batch of inputs to logits. `certify` maps it to a dict of `class`,
    int32, and `radius`, float32; for a model of several outputs to a dict of `<output>_class` and `<output>_radius`,
    and the `radius` of all together. A model whose outputs are all certified for regression has no `certify`. The
    certificate as JSON is in `assets.extra/certificate.json`; `load_certificate` reads it.

    Radii are those of `Certificate.radius`, rounding errors included where `rounding="sound"`, computed in float32 and
    rounded down. They stay below those of the logits that Keras computes, too: logits may differ between runtimes by
    1e-5, or 1e-5 of the largest logit of the sample if that is more, and margins are reduced by as much. Inputs or
    logits that are not finite, inputs outside of `input_range`, and ties have radius 0. Instead of an infinite radius
    there is a finite one, 1e29 or more.

    The artefact is written beside `path` and then moved into place, so that a process which dies leaves what was there
    before. On the JAX and torch backends TensorFlow writes it in a process of its own.

    Args:
        model: A built model that `certify` accepts.
        path: Folder of the SavedModel. A SavedModel that is there already is replaced, anything else is not.
        certificate: A certificate of the model, if there is one already. By default the model is certified.
        **certify_options: Arguments of `certify`, such as `task`, `rounding`, `input_scale` and `input_range`.

    Returns:
        The certificate.

    Raises:
        ModuleNotFoundError: If TensorFlow is not installed.
        FileExistsError: If `path` exists and is not a SavedModel.
        CertificateError: If `certificate` is not that of the model.
        CannotBoundError: If the model cannot be certified. It is a `ValueError`.
        ValueError: If there are both a certificate and options, or an option is wrong.
        RuntimeError: If the model cannot be written in this format.

    Example:
        >>> certificate = export_saved_model(model, "served", rounding="sound")
    """
    _require_tensorflow("export_saved_model")
    target = pathlib.Path(path)
    if target.exists() and not (target / "saved_model.pb").is_file() and not _is_empty_folder(target):
        raise FileExistsError(f"`export_saved_model` does not replace what is no SavedModel. Received: path={target}")

    def finish(folder: pathlib.Path, result: Certificate, names: _Names) -> None:
        (folder / CERTIFICATE_FILE).parent.mkdir(exist_ok=True)
        (folder / CERTIFICATE_FILE).write_text(result.to_json(), encoding="utf-8")

    return _export("saved_model", model, target, ["tensorflow"], finish, certificate, certify_options)


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    certificate: Certificate | None = None,
    **certify_options: Any,
) -> Certificate:
    """Folds a model, certifies it, and writes it as an ONNX file with the certificate inside.

    The graph maps the input `inputs` to `logits`, `class`, int32, and `radius`, float32; in a model of several outputs
    to `<output>_logits`, `<output>_class` and `<output>_radius` of each, and the `radius` of all together. Outputs that
    are certified for regression have logits only. Several inputs are called as in Keras, or `input_0` and so on if they
    have no names there. The certificate as JSON is the metadata property `certificate`; `load_certificate` reads it.
    About radii and how the file is replaced, see `export_saved_model`.

    Torch and onnxscript write it, or TensorFlow and tf2onnx, which know fewer layers: those of the Keras backend in
    this process, or else the others, if they are installed, in a process of their own.

    Args:
        model: A built model that `certify` accepts.
        path: Path of the file, which ends in `.onnx`. An ONNX file that is there already is replaced, anything else is
            not.
        certificate: A certificate of the model, if there is one already. By default the model is certified.
        **certify_options: Arguments of `certify`, such as `task`, `rounding`, `input_scale` and `input_range`.

    Returns:
        The certificate.

    Raises:
        ModuleNotFoundError: If none of the pairs of packages is installed, or onnx is not.
        FileExistsError: If `path` exists and is not an ONNX file.
        CertificateError: If `certificate` is not that of the model.
        CannotBoundError: If the model cannot be certified. It is a `ValueError`.
        ValueError: If there are both a certificate and options, or an argument is wrong.
        RuntimeError: If the model cannot be written in this format.

    Example:
        >>> certificate = export_onnx(model, "served.onnx", input_range=(0, 1))
    """
    backends = _onnx_backends()
    import onnx

    target = _file_target("export_onnx", path, ".onnx", "ONNX file", _is_onnx)

    def finish(file: pathlib.Path, result: Certificate, names: _Names) -> None:
        content = onnx.load(str(file))
        try:
            onnx.checker.check_model(content)
        except onnx.checker.ValidationError as error:
            raise RuntimeError(f"What was written is not valid ONNX:\n{error}") from error
        _order(content.graph, names.inputs, [*names.outputs, *names.radii])
        onnx.helper.set_model_props(content, {ONNX_PROPERTY: result.to_json()})
        onnx.save(content, str(file))

    return _export("onnx", model, target, backends, finish, certificate, certify_options)


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    certificate: Certificate | None = None,
    **certify_options: Any,
) -> Certificate:
    """Folds a model, certifies it, and writes it as a LiteRT file (TensorFlow Lite) with the certificate inside.

    Its only signature has the inputs and outputs of `export_onnx`, under the same names. It uses operations of the
    LiteRT interpreter only, which takes batches of any size but 0. The certificate is the file `certificate.json` in a
    zip archive that follows the model, as files in LiteRT's metadata do; `load_certificate` reads it, and so does every
    zip program. About radii and how the file is replaced, see `export_saved_model`.

    On the JAX and torch backends TensorFlow writes it in a process of its own.

    Args:
        model: A built model that `certify` accepts.
        path: Path of the file, which ends in `.tflite`. A LiteRT file that is there already is replaced, anything else
            is not.
        certificate: A certificate of the model, if there is one already. By default the model is certified.
        **certify_options: Arguments of `certify`, such as `task`, `rounding`, `input_scale` and `input_range`.

    Returns:
        The certificate.

    Raises:
        ModuleNotFoundError: If TensorFlow is not installed.
        FileExistsError: If `path` exists and is not a LiteRT file.
        CertificateError: If `certificate` is not that of the model.
        CannotBoundError: If the model cannot be certified. It is a `ValueError`.
        ValueError: If there are both a certificate and options, or an argument is wrong.
        RuntimeError: If the model cannot be written in this format.

    Example:
        >>> certificate = export_litert(model, "served.tflite", task="multilabel")
    """
    _require_tensorflow("export_litert")
    target = _file_target("export_litert", path, ".tflite", "LiteRT file", _is_litert)

    def finish(file: pathlib.Path, result: Certificate, names: _Names) -> None:
        with zipfile.ZipFile(file, mode="a") as archive:
            archive.writestr(CERTIFICATE_NAME, result.to_json())

    return _export("litert", model, target, ["tensorflow"], finish, certificate, certify_options)


def load_certificate(path: str | os.PathLike[str]) -> Certificate:
    """Reads the certificate out of an artefact. Nothing is executed; `Certificate.verify` compares it with a model.

    Args:
        path: A SavedModel, an ONNX file (`.onnx`), a LiteRT file (`.tflite`), or a JSON file with what
            `Certificate.to_json` returned.

    Returns:
        The certificate.

    Raises:
        CertificateError: If there is none, or it is damaged.
        ModuleNotFoundError: If it is in an ONNX file, and onnx is not installed.

    Example:
        >>> certificate = export_onnx(model, "served.onnx")
        >>> radii = load_certificate("served.onnx").radius(logits)
    """
    source = pathlib.Path(path)
    try:
        if source.is_dir():
            text = (source / CERTIFICATE_FILE).read_text(encoding="utf-8")
        elif source.suffix == ".onnx":
            text = _read_onnx_property(source)
        elif source.suffix == ".tflite":
            text = _read_archive(source)
        else:
            text = source.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise CertificateError(f"There is no certificate in what was given. Received: path={source}") from error
    return Certificate.from_json(text)


class _Names:
    """The names of an artefact's tensors."""

    def __init__(self, plain: keras.Model, certificate: Certificate) -> None:
        if len(plain.inputs) == 1:
            self.inputs = ["inputs"]
        elif isinstance(plain._inputs_struct, dict):
            paths = keras.tree.flatten_with_path(plain._inputs_struct)
            self.inputs = ["_".join(map(str, path)) for path, _ in paths]
        else:  # Keras counts the tensors of a process, where they were not given a name.
            self.inputs = [
                f"input_{index}" if tensor.name.startswith("keras_tensor") else tensor.name
                for index, tensor in enumerate(plain.inputs)
            ]
        self.outputs = [output_name(certificate, head, "logits") for head in certificate.heads]
        self.radii: list[str] = []


_Finish = Callable[[pathlib.Path, Certificate, _Names], None]


def _export(
    kind: str,
    model: keras.Model,
    target: pathlib.Path,
    backends: Sequence[str],
    finish: _Finish,
    certificate: Certificate | None,
    certify_options: dict[str, Any],
) -> Certificate:
    """Writes the artefact beside the target, has the certificate put inside, and moves it into place."""
    plain = vanilla_model(model)
    if certificate is None:
        certificate = certify_fold(model, plain, **certify_options)
    elif certify_options:
        raise ValueError(
            "Expected a `certificate` or options to certify with, not both. "
            f"Received: certificate and {', '.join(certify_options)}"
        )
    else:
        certificate.check_model(plain, output_names(model))
    radius = radius_model(plain, certificate)
    names = _Names(plain, certificate)
    if radius is not None:
        names.radii = list(radius._outputs_struct)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        errors = []
        for backend in backends:
            fresh = pathlib.Path(scratch, f"{backend}{target.suffix}")
            try:
                _write(kind, backend, plain, radius, fresh, [*names.inputs, *names.outputs])
                finish(fresh, certificate, names)
                break
            except RuntimeError as error:
                errors.append(f"By {backend}: {error}")
        else:
            raise RuntimeError(f"The folded model '{plain.name}' cannot be written as {kind}. " + "\n".join(errors))
        if kind == "saved_model":
            _replace_folder(fresh, target, pathlib.Path(scratch, "old"))
        else:
            fresh.replace(target)
    return certificate


def _write(
    kind: str, backend: str, plain: keras.Model, radius: keras.Model | None, fresh: pathlib.Path, names: list[str]
) -> None:
    """Has a backend write the artefact, in this process if it is the active one."""
    if keras.backend.backend() == backend:
        try:
            _writers.write(kind, plain, radius, str(fresh), names)
        except Exception as error:
            raise RuntimeError(_writers.reason(error)) from error
        return
    files = [fresh.with_name("plain.keras"), fresh.with_name("radius.keras")]
    plain.save(files[0])
    if radius is not None:
        radius.save(files[1])
    # -P: this folder has modules by names that others use, such as `metrics`, which are not to be found first.
    command = [
        sys.executable,
        "-P",
        _writers.__file__,
        kind,
        str(files[0]),
        str(files[1] if radius else ""),
        str(fresh),
    ]
    # Writing needs no GPU, and this process may have taken the whole of its memory.
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(command + names, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout.strip() or result.stderr.strip())


def _replace_folder(fresh: pathlib.Path, target: pathlib.Path, old: pathlib.Path) -> None:
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchanges two folders in one step, if the system can. Python has no name for that."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _require_tensorflow(function: str) -> None:
    if not _installed("tensorflow"):
        raise ModuleNotFoundError(
            f"`{function}` needs TensorFlow, whatever the Keras backend: pip install 'deel-like-lip[tensorflow]'"
        )


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _onnx_backends() -> list[str]:
    """Returns the Keras backends that write ONNX, those first that are to be tried first: the active one."""
    able = [
        backend
        for backend, package in (("torch", "onnxscript"), ("tensorflow", "tf2onnx"))
        if _installed("onnx", backend, package)
    ]
    if not able:
        raise ModuleNotFoundError(
            "`export_onnx` needs onnx, and either torch and onnxscript, or TensorFlow and tf2onnx: pip install "
            "'deel-like-lip[export]', or pip install onnx onnxscript where torch is installed"
        )
    return sorted(able, key=lambda backend: backend != keras.backend.backend())


def _file_target(
    function: str, path: str | os.PathLike[str], suffix: str, what: str, is_one: Callable[[pathlib.Path], bool]
) -> pathlib.Path:
    target = pathlib.Path(path)
    if target.suffix != suffix:
        raise ValueError(f"`{function}` expects a path that ends in '{suffix}'. Received: path={target}")
    if target.exists() and not is_one(target):
        raise FileExistsError(f"`{function}` does not replace what is no {what}. Received: path={target}")
    return target


def _is_empty_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_litert(path: pathlib.Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == _LITERT_IDENTIFIER


def _is_onnx(path: pathlib.Path) -> bool:
    return path.is_file() and _load_onnx(path) is not None


def _load_onnx(path: pathlib.Path) -> Any:
    """Returns the content of an ONNX file, or None if it is not one."""
    import google.protobuf.message
    import onnx

    try:
        content = onnx.load(str(path), load_external_data=False)
    except google.protobuf.message.DecodeError:
        return None
    return content if content.ir_version and content.graph.node else None


def _read_onnx_property(path: pathlib.Path) -> str:
    if not _installed("onnx"):
        raise ModuleNotFoundError(
            "The certificate in an ONNX file is read by onnx, which is not installed: pip install onnx"
        )
    content = _load_onnx(path)
    properties = {} if content is None else {entry.key: entry.value for entry in content.metadata_props}
    return properties[ONNX_PROPERTY]


def _read_archive(source: pathlib.Path) -> str:
    """Reads the certificate behind a LiteRT model. It is written as it is: what was compressed may be of any size."""
    with zipfile.ZipFile(source) as archive:
        entry = archive.getinfo(CERTIFICATE_NAME)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > source.stat().st_size:
            raise ValueError("the certificate is compressed")
        return archive.read(entry).decode("utf-8")


def _order(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Puts the inputs and outputs of an ONNX graph into order, and calls their first axis `batch`."""
    for tensors, names in ((graph.input, inputs), (graph.output, outputs)):
        by_name = {tensor.name: tensor for tensor in tensors}
        if set(by_name) != set(names):
            raise RuntimeError(f"The ONNX file has tensors named {list(by_name)} where {names} are expected.")
        ordered = [by_name[name] for name in names]
        for tensor in ordered:
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
        del tensors[:]
        tensors.extend(ordered)
