"""Export of the folded model, with its certificate inside, for programs that know neither Keras nor this library."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import keras

from deel_like_lip.certificates import Certificate, certify_plain
from deel_like_lip.folding import vanilla_model

CERTIFICATE_FILE = "assets.extra/certificate.json"

# Runs in a process of its own, on the TensorFlow backend and without this library, which a folded model does not need.
_EXPORT_IN_TENSORFLOW = """
import sys
import keras
keras.models.load_model(sys.argv[1]).export(sys.argv[2], format="tf_saved_model", verbose=False)
"""


def export_saved_model(model: keras.Model, path: str | os.PathLike[str]) -> Certificate:
    """Folds a model, certifies it, and writes it as a TensorFlow SavedModel with the certificate inside.

    The SavedModel has an endpoint `serve`, from a batch of inputs to logits, and the certificate as JSON in
    `assets.extra/certificate.json`. It is written beside `path` and then moved into place, so that a process which dies
    leaves what was there before. On the JAX and torch backends TensorFlow writes it in a process of its own.

    Args:
        model: A built model that `certify` accepts.
        path: Folder of the SavedModel. A SavedModel that is there already is replaced, anything else is not.

    Returns:
        The certificate.

    Raises:
        ModuleNotFoundError: If TensorFlow is not installed.
        FileExistsError: If `path` exists and is not a SavedModel.
        CannotBoundError: If the model cannot be certified. It is a `ValueError`.

    Example:
        >>> export_saved_model(model, "served")
    """
    target = pathlib.Path(path)
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            "`export_saved_model` needs TensorFlow, whatever the Keras backend: pip install 'deel-like-lip[tensorflow]'"
        )
    if target.exists() and not (target / "saved_model.pb").is_file() and not _is_empty_folder(target):
        raise FileExistsError(f"`export_saved_model` does not replace what is no SavedModel. Received: path={target}")
    plain = vanilla_model(model)
    certificate = certify_plain(plain)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh, old = pathlib.Path(scratch, "new"), pathlib.Path(scratch, "old")
        _write_saved_model(plain, fresh, pathlib.Path(scratch, "plain.keras"))
        (fresh / CERTIFICATE_FILE).parent.mkdir(exist_ok=True)
        (fresh / CERTIFICATE_FILE).write_text(certificate.to_json(), encoding="utf-8")
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    return certificate


def _write_saved_model(plain: keras.Model, folder: pathlib.Path, keras_file: pathlib.Path) -> None:
    if keras.backend.backend() == "tensorflow":
        plain.export(str(folder), format="tf_saved_model", verbose=False)
        return
    plain.save(keras_file)
    command = [sys.executable, "-c", _EXPORT_IN_TENSORFLOW, str(keras_file), str(folder)]
    result = subprocess.run(
        command, env={**os.environ, "KERAS_BACKEND": "tensorflow"}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"TensorFlow could not export the folded model '{plain.name}':\n{result.stderr.strip()}")


def _is_empty_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
