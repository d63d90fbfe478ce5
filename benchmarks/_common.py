"""What several benchmarks use: processes of their own for backends and contenders, times in turns, peak memory.

Keras is imported in functions only, so that a benchmark can choose the backend of each process that it starts.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = pathlib.Path(__file__).parent / "results"
# Names of the backends here, and what Keras calls them. Keras compiles with XLA on TensorFlow unless told otherwise.
BACKENDS = {"tensorflow": "tensorflow", "tensorflow-xla": "tensorflow", "jax": "jax", "torch": "torch"}
CLASSES = 10
MEMORY_STEPS = 4
# A contender's turn takes about so long, but for one step at least and so many at most.
TURN_SECONDS = 0.2
MOST_STEPS = 25

Measured = dict[str, float]


def worker_results(script: str, backend: str, arguments: Sequence[str]) -> Iterator[Measured]:
    """Runs a script in a process of its own, and yields what it prints, as it does: lines of JSON among others."""
    environment = {**os.environ, "KERAS_BACKEND": BACKENDS[backend]}
    command = [sys.executable, script, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def worker_result(script: str, backend: str, arguments: Sequence[str]) -> Measured:
    """Returns the last of `worker_results`."""
    *_, result = worker_results(script, backend, arguments)
    return result


def jit_compile(backend: str) -> Any:
    """Returns Keras's argument of that name."""
    return {"tensorflow": False, "tensorflow-xla": True}.get(backend, "auto")


def machine() -> str:
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return ", ".join([f"{name}, {os.cpu_count()} cores", *accelerators()])


def accelerators() -> list[str]:
    """Returns the names of NVIDIA's cards, which are the only ones asked for."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[:-1]


def versions() -> dict[str, str]:
    packages = ("keras", "tensorflow", "jax", "torch", "deel-torchlip", "numpy")
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def ratios(measures: dict[str, Callable[[], float]], turns: int) -> Measured:
    """Lets the contenders take turns. Returns the median ratios to the first, and the median time of the first."""
    reference = next(iter(measures))
    times: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(turns):
        for name, measure in measures.items():
            times[name].append(measure())
    result = {
        name: statistics.median(value / base for value, base in zip(values, times[reference], strict=True))
        for name, values in times.items()
    }
    result[reference] = statistics.median(times[reference])
    return result


def in_turns(train: Callable[[int], float]) -> Callable[[], float]:
    """Returns a function that trains for a turn and returns the seconds of a step."""
    steps = min(max(round(TURN_SECONDS / train(1)), 1), MOST_STEPS)
    return lambda: train(steps) / steps


@functools.lru_cache(maxsize=8)
def samples(shape: tuple[int, ...], count: int) -> tuple[Any, Any]:
    """Returns noisy class centres and their labels, so that there is something to learn; not to be written to."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = np.random.default_rng(1).standard_normal(size=(CLASSES, *shape), dtype="float32")
    labels = rng.integers(0, CLASSES, count)
    return 0.1 * centres[labels] + 0.3 * rng.standard_normal(size=(count, *shape), dtype="float32"), labels


def keras_trainer(model: Any, batch: int, clock: Callable[[], float] = time.perf_counter) -> Callable[[int], float]:
    """Returns a function that trains for a number of steps and returns the seconds that these took.

    The clock runs from the end of one step more to the end of the last: what `fit` does before and after an epoch, such
    as the projection of averaged weights, is not part of a step.
    """
    import keras

    import deel_like_lip as lip

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch in (0, self.params["steps"] - 1):
                float(logs["loss"])  # waits for what is computed asynchronously
                now = clock()
                self.start, self.seconds = now, now - getattr(self, "start", now)
                self.model.first_step = getattr(self.model, "first_step", now)

    constrained = any(isinstance(layer, lip.layers.LipschitzLayer) for layer in model.layers)

    def train(steps: int) -> float:
        inputs, labels = samples(model.input_shape[1:], batch * (steps + 1))
        timer = Clock()
        callbacks = [*([lip.callbacks.RenormalizeCallback()] if constrained else []), timer]
        model.fit(inputs, labels, batch_size=batch, verbose=0, shuffle=False, callbacks=callbacks)
        return timer.seconds

    return train


def peak_memory(train_steps: Callable[[], Any]) -> int:
    """Returns the most bytes that the process holds in it, above what it holds before."""

    def status(name: str) -> int:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    train_steps()
    return status("VmHWM") - before


def singular_values(model: Any) -> Any:
    """Returns the singular values of all constrained kernels as matrices, over those of orthogonal ones."""
    import keras
    import numpy as np

    from deel_like_lip.renormalization import constrained_layers

    values = []
    for layer in constrained_layers(model):
        kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float64")
        matrix = kernel.reshape(-1, kernel.shape[-1])
        values.append(np.linalg.svd(matrix, compute_uv=False) / layer.parametrization.norm)
    return np.concatenate(values)


def compile_hkr(model: Any, steps: int, min_margin: float = 1.0, rate: float = 3e-3, **options: Any) -> None:
    """Compiles a classifier for a training of so many steps."""
    import keras

    import deel_like_lip as lip

    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        # The hinge of the true class has the weight of the nine others together.
        loss=lip.losses.MulticlassHKR(alpha=50.0, min_margin=min_margin, true_class_weight=9.0),
        **options,
    )
