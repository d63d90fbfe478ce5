"""What eight devices cost beside one, of one processor: training steps, and the projection by itself.

    python benchmarks/distributed.py

The step of a net of dense layers on one device and on eight, each with an eighth of the batch, constrained and plain
(relu, cross entropy): there is no more processor than before, so that what eight devices repeat costs time. Figures are
ratios to one device, medians over turns in one process for each backend. On JAX also with each kernel split among the
devices instead of repeated on all (`ModelParallel`), and the projection of all kernels alone: its time, and the
operations that XLA counts for each device.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks` and `examples`

from benchmarks._common import CLASSES, Measured, in_turns, keras_trainer, machine, ratios, versions, worker_result

DEVICES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=["jax", "tensorflow"], default=["jax", "tensorflow"])
    parser.add_argument("--units", type=int, default=256, help="of each of the hidden layers (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=3, help="number of hidden layers (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="samples of all devices (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options)))
        return
    # As in examples/distributed.py: enough threads for devices that wait for each other.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["NPROC"] = str(8 * DEVICES)
    for backend in options.backends:
        numbers = [f"--{name}={getattr(options, name)}" for name in ("units", "layers", "batch", "turns")]
        measured = worker_result(__file__, backend, ["--worker", *numbers])
        for name, value in measured.items():
            print(f"{backend:12s}{name:52s}{value:8.3g}", flush=True)
    print(f"{machine()}; {versions()}")


# What follows runs in a process of its own for each backend.


def worker(options: argparse.Namespace) -> Measured:
    import keras

    backend = keras.backend.backend()
    spread: dict[str, Callable[[], Any]] = placements() if backend == "jax" else strategies()
    figures: Measured = {}
    for kind in ("constrained", "plain"):
        measures = {}
        for name, scope in spread.items():
            with scope():
                train = keras_trainer(net(kind, options), options.batch)
                train(5)

            def scoped(steps: int, train: Callable[[int], float] = train, scope: Any = scope) -> float:
                with scope():
                    return train(steps)

            measures[name] = in_turns(scoped)
        result = ratios(measures, options.turns)
        figures[f"{kind}, step on one device in ms"] = 1e3 * result.pop("one")
        figures |= {f"{kind}, {name}, ratio to one device": value for name, value in result.items()}
    return figures | projection(options, spread) if backend == "jax" else figures


def net(kind: str, options: argparse.Namespace) -> Any:
    import keras

    import deel_like_lip as lip

    dense, activation = keras.layers.Dense, keras.layers.ReLU
    if kind == "constrained":
        dense, activation = lip.layers.SpectralDense, lip.layers.GroupSort2
    model = keras.Sequential([keras.Input((options.units,))])
    for _ in range(options.layers):
        model.add(dense(options.units))
        model.add(activation())
    model.add(dense(CLASSES))
    own = kind == "constrained"
    loss = lip.losses.MulticlassHKR(alpha=100.0, class_proportions=[1 / CLASSES] * CLASSES) if own else None
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile="auto" if keras.backend.backend() == "jax" else False)
    return model


def placements() -> dict[str, Callable[[], Any]]:
    """Returns scopes in which Keras on JAX uses one device or several."""
    import keras

    devices = keras.distribution.list_devices()
    layouts = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((DEVICES,), ["batch"], devices))
    layouts[".*dense(_[0-9]+)?/kernel"] = ("batch", None)
    distributions = {
        "one": None,
        "eight": keras.distribution.DataParallel(devices=devices),
        "eight, kernels split": keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"),
    }

    def scope_of(distribution: Any) -> Callable[[], Any]:
        @contextlib.contextmanager
        def scope() -> Iterator[None]:
            keras.distribution.set_distribution(distribution)
            try:
                yield
            finally:
                keras.distribution.set_distribution(None)

        return scope

    return {name: scope_of(distribution) for name, distribution in distributions.items()}


def strategies() -> dict[str, Callable[[], Any]]:
    """Returns scopes in which Keras on TensorFlow uses one device or several."""
    from examples.distributed import make_devices, mirrored_strategy

    make_devices("tensorflow")
    return {"one": contextlib.nullcontext, "eight": mirrored_strategy().scope}


def projection(options: argparse.Namespace, spread: dict[str, Callable[[], Any]]) -> Measured:
    """Measures the projection of all kernels that training has moved."""
    import jax
    import numpy as np

    compiled, kernels = {}, {}
    for name, scope in spread.items():
        with scope():
            layers = [layer for layer in net("constrained", options).layers if hasattr(layer, "kernel")]
        rng = np.random.default_rng(0)
        for layer in layers:
            layer.kernel.assign(layer.kernel + 0.01 * rng.standard_normal(layer.kernel.shape, dtype="float32"))
        kernels[name] = [layer.kernel.value for layer in layers]
        maps = [layer.parametrization for layer in layers]
        places = [kernel.sharding for kernel in kernels[name]]
        project = jax.jit(
            lambda values, maps=maps: [one(value) for one, value in zip(maps, values, strict=True)],
            out_shardings=places,
        )
        compiled[name] = project.lower(kernels[name]).compile()

    def measure(name: str) -> float:
        start = time.perf_counter()
        for _ in range(5):
            jax.block_until_ready(compiled[name](kernels[name]))
        return (time.perf_counter() - start) / 5

    result = ratios({name: lambda name=name: measure(name) for name in compiled}, options.turns)  # type: ignore[misc]
    figures = {"projection alone on one device in ms": 1e3 * result.pop("one")}
    figures |= {f"projection alone, {name}, ratio to one device": value for name, value in result.items()}
    operations = {name: (program.cost_analysis() or {})["flops"] for name, program in compiled.items()}
    of_one = operations.pop("one")
    return figures | {f"projection alone, {name}, operations a device": n / of_one for name, n in operations.items()}


if __name__ == "__main__":
    main()
