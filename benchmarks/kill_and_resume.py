"""Kills a training and exports at random moments, by SIGKILL, and looks at what is left.

    KERAS_BACKEND=torch python benchmarks/kill_and_resume.py                  # 20 kills of a training, 20 of exports
    KERAS_BACKEND=torch python benchmarks/kill_and_resume.py --backup keras   # what `BackupAndRestore` makes of it

The training is resumed by `callbacks.AtomicBackup` until it has ended; its weights must be those of a training that was
not killed. Exports of two models take turns at the same paths; whatever is there after a kill must be a complete
artefact of one of the two: its certificate that of the model whose logits it computes. Exit status 1 if not.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import deel_like_lip as lip

layers = lip.layers
EPOCHS = 120  # short ones, so that a good part of the time goes to backups
PATHS = {"saved_model": "served", "onnx": "served.onnx", "litert": "served.tflite", "certificate": "certificate.json"}


def make_model(seed: int, outputs: int = 3) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.SpectralDense(64, activation=layers.GroupSort2()),
            layers.BatchCentering(),
            keras.layers.GaussianNoise(0.1),
            layers.SpectralDense(64, activation=layers.MaxMin()),
            layers.SpectralDense(outputs),
        ]
    )


def samples() -> Any:
    return np.random.default_rng(0).normal(size=(64, 8)).astype("float32")


# --- workers, which are killed ---------------------------------------------------------------------------------------


class Tell(keras.callbacks.Callback):
    """Tells the parent process when an epoch begins."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        print("epoch", epoch, flush=True)
        self.times.append(time.perf_counter())


def train(folder: pathlib.Path, backup: str, epochs: int) -> float:
    """Trains, writes the weights, and returns the seconds of an epoch."""
    model = make_model(1)
    model.compile(keras.optimizers.Adam(3e-3), lip.losses.MulticlassHKR(alpha=10.0))
    kind = lip.callbacks.AtomicBackup if backup == "atomic" else keras.callbacks.BackupAndRestore
    schedule = lip.schedules.Log(10.0, 100.0, length=4 * epochs)
    tell = Tell()
    callbacks = [
        tell,
        lip.callbacks.LossParamScheduler("alpha", schedule=schedule, by="step"),
        lip.callbacks.RenormalizeCallback(),
        kind(folder / "backup", delete_checkpoint=False),
    ]
    options = {"epochs": epochs, "batch_size": 16, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    model.fit(samples(), np.arange(64) % 3, **options)
    np.savez(folder / "weights.npz", *model.get_weights())
    return float(np.median(np.diff(tell.times))) if len(tell.times) > 1 else 0.0


def export(folder: pathlib.Path, kinds: list[str]) -> None:
    models = [make_model(1), make_model(2)]
    certificates = [lip.certify(model) for model in models]
    exporters: dict[str, Callable[..., Any]] = {
        "saved_model": lip.export_saved_model,
        "onnx": lip.export_onnx,
        "litert": lip.export_litert,
        "certificate": lambda model, path, certificate: certificate.save(path),
    }
    turn = 0
    while True:
        for kind in kinds:
            print(kind, flush=True)
            exporters[kind](models[turn % 2], folder / PATHS[kind], certificate=certificates[turn % 2])
        turn += 1


# --- the process that kills ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def worker(*arguments: str) -> Iterator[Any]:
    """Starts a worker, and ends it and all that it has started."""
    command = [sys.executable, __file__, "--worker", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_trainings(kills: int, backup: str, epochs: int, rng: random.Random) -> dict[str, Any]:
    """Returns how often the training was killed and at which epochs, and how far its weights are from the others."""
    with tempfile.TemporaryDirectory() as name:
        folders = [pathlib.Path(name, part) for part in ("whole", "killed")]
        for folder in folders:
            folder.mkdir()
        with contextlib.redirect_stdout(None):
            epoch_seconds = train(folders[0], backup, epochs)
        killed_at: list[int] = []
        ended = False
        while not ended:
            with worker("train", str(folders[1]), backup, str(epochs)) as process:
                # So many epochs, and a part of the next one. The rest of them when there were enough kills.
                left = rng.randint(1, max(1, 2 * epochs // (3 * kills))) if len(killed_at) < kills else epochs + 1
                for line in process.stdout:
                    left -= line.startswith("epoch")
                    if left < 0:
                        time.sleep(rng.uniform(0, epoch_seconds))
                        killed_at.append(int(line.split()[1]))
                        break
                else:
                    ended = True
                    if process.wait():
                        return {"kills": len(killed_at), "killed_at": killed_at, "failed": True}
        whole, killed = (list(np.load(folder / "weights.npz").values()) for folder in folders)
    difference = max(float(np.max(np.abs(one - other))) for one, other in zip(whole, killed, strict=True))
    bitwise = all(np.array_equal(one, other) for one, other in zip(whole, killed, strict=True))
    return {"kills": len(killed_at), "killed_at": killed_at, "largest_difference": difference, "bitwise": bitwise}


def kill_exports(kills: int, kinds: list[str], rng: random.Random) -> dict[str, Any]:
    """Returns how many artefacts were found after kills, by kind, and what is wrong with any of them."""
    models = {lip.certify(model).fingerprint: model for model in (make_model(1), make_model(2))}
    found, wrong = dict.fromkeys(kinds, 0), []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for _ in range(kills):
            with worker("export", name, *kinds) as process:
                # At a random moment of a random export after the first turn, which is what a turn's length is taken of.
                starts = [time.perf_counter() for _, line in zip(range(len(kinds) + 1), process.stdout, strict=False)]
                time.sleep(rng.uniform(0, 2 * (starts[-1] - starts[0])))
                if process.poll() is not None:
                    raise RuntimeError("The exports have failed.")
            for kind in kinds:
                path = folder / PATHS[kind]
                error = "it is gone" if not path.exists() else fault(kind, path, models)
                found[kind] += 1
                if error:
                    wrong.append(f"{kind}: {error}")
        left = len([path for path in folder.iterdir() if path.name not in PATHS.values()])
    return {"kills": kills, "artefacts": found, "wrong": wrong, "hidden_folders_left": left}


def fault(kind: str, path: pathlib.Path, models: dict[str, Any]) -> str:
    """Returns what is wrong with an artefact, or an empty text."""
    try:
        certificate = lip.load_certificate(path)
        model = models[certificate.fingerprint]
        certificate.verify(model)
        logits = serve(kind, path) if kind != "certificate" else None
    except Exception as error:  # whatever a broken artefact leads to
        return repr(error)
    expected = model.predict(samples(), verbose=0)
    if logits is not None and not np.allclose(logits, expected, atol=1e-5):
        return "its logits are not those of the model that its certificate is of"
    return ""


def serve(kind: str, path: pathlib.Path) -> Any:
    """Returns the logits that an artefact computes."""
    if kind == "saved_model":
        import tensorflow as tf

        served = tf.saved_model.load(str(path))  # its variables go when it does
        return served.serve(tf.constant(samples())).numpy()
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"inputs": samples()})[0]
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path)).get_signature_runner()(inputs=samples())["logits"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--backup", choices=["atomic", "keras"], default="atomic")
    parser.add_argument("--exports", nargs="*", choices=list(PATHS), default=list(PATHS), help="none: training only")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.worker:
        what, folder, *rest = arguments.worker
        if what == "train":
            train(pathlib.Path(folder), rest[0], int(rest[1]))
        else:
            export(pathlib.Path(folder), rest)
        return 0
    rng = random.Random(arguments.seed)
    failed = False
    if not arguments.no_training:
        result = kill_trainings(arguments.kills, arguments.backup, arguments.epochs, rng)
        failed |= result["kills"] < arguments.kills or result.get("largest_difference", 1.0) > 1e-6
        print(json.dumps({"training": result, "backend": keras.backend.backend()}), flush=True)
    if arguments.exports:
        result = kill_exports(arguments.kills, arguments.exports, rng)
        failed |= bool(result["wrong"])
        print(json.dumps({"exports": result, "backend": keras.backend.backend()}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
