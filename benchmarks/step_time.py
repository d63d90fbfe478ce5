"""What a 1-Lipschitz network costs beside plain Keras: training step, first step, prediction and memory.

    pip install -e ".[benchmark]"
    python benchmarks/step_time.py

One process for each backend times the contenders in turn, so that what else the machine does falls on all of them
alike. A figure is the ratio to plain Keras with the same widths (relu, max pooling, cross entropy, Adam): the median
over turns, then the median of three runs with new models each. The first step, with building the model, and predicting
are measured in the first run. deel-torchlip runs beside on torch where it is installed. Peak memory is taken in
processes of their own, above what the imports need.

    python benchmarks/step_time.py --backends jax torch --nets mlp_wide --skip memory
    python benchmarks/step_time.py --nets 512x2 512x8 --batch 64 --runs 1    # two and eight dense layers of 512 units

The table goes to the screen, and all figures to a JSON file with the description of the machine.
"""

import argparse
import concurrent.futures
import datetime
import functools
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks`

from benchmarks._common import (
    BACKENDS,
    CLASSES,
    MEMORY_STEPS,
    RESULTS,
    TURN_SECONDS,
    Measured,
    in_turns,
    jit_compile,
    keras_trainer,
    machine,
    peak_memory,
    ratios,
    samples,
    versions,
    worker_result,
    worker_results,
)


class Net(NamedTuple):
    """Shape of the input, batch size, hidden layers, and steps before the clock runs.

    In its first steps Adam moves every entry by the learning rate: kernels then need more projection than in all of the
    training that follows.
    """

    shape: tuple[int, ...]
    batch: int
    hidden: Sequence[int | str]
    warm_up: int


NETS = {
    "mlp_small": Net((784,), 256, [256] * 2, 50),
    "mlp_wide": Net((784,), 256, [1024] * 4, 30),
    "mnist_cnn": Net((28, 28, 1), 256, ["conv 16", "pool", "conv 32", "pool", "flatten", 64], 6),
    "vgg": Net(
        (32, 32, 3),
        128,
        ["conv 64", "conv 64", "pool", "conv 128", "conv 128", "pool", "conv 256", "pool", "flatten", 256],
        1,
    ),
}
RUNS = 3
TURNS = 5
FEWER_TURNS = 2  # where a step takes longer than `TURN_SECONDS`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument(
        "--nets", nargs="+", type=known_net, default=list(NETS), help=f"{', '.join(NETS)} or UNITSxLAYERS"
    )
    parser.add_argument("--skip", nargs="+", choices=["first", "predict", "memory", "torchlip"], default=[])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs with new models (default: {RUNS})")
    parser.add_argument("--batch", type=int, help="batch size instead of the net's own")
    parser.add_argument("--dtype-policy", default="float32", help="such as mixed_bfloat16 (default: float32)")
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "step_time.json", help="default: %(default)s")
    parser.add_argument("--worker", choices=["times", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    start = time.perf_counter()
    figures: dict[str, dict[str, Measured]] = {backend: {} for backend in options.backends}
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "runs": options.runs,
        "batch": options.batch,
        "dtype_policy": options.dtype_policy,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for backend, net, measured in measurements(options):
        figures[backend].setdefault(net, {}).update(measured)
        print(f"{backend:15s} {net:10s} " + ", ".join(f"{k} {v:.3g}" for k, v in measured.items()), flush=True)
        report |= {"seconds": round(time.perf_counter() - start), "figures": figures}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + table(figures))
    print(f"\n{report['machine']}; {report['versions']}; {report['seconds']} s")


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, str, Measured]]:
    """Yields backends, nets and what was measured of them, as it is."""
    for backend in options.backends:
        timed = worker_results(__file__, backend, worker_arguments("times", backend, options.nets, options))
        for net, measured in zip(options.nets, timed, strict=True):
            yield backend, net, measured
        if "memory" in options.skip:
            continue
        for net in options.nets:
            workers = [
                [*worker_arguments("memory", backend, [net], options), "--contender", name]
                for name in ("plain", "layers")
            ]
            with concurrent.futures.ThreadPoolExecutor() as pool:  # no clock runs
                plain, ours = pool.map(functools.partial(worker_result, __file__, backend), workers)
            yield backend, net, {"memory": ours["bytes"] / plain["bytes"]}


def worker_arguments(kind: str, backend: str, nets: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Returns the arguments of a process of its own."""
    arguments = ["--worker", kind, "--backends", backend, "--nets", *nets]
    arguments += ["--runs", str(options.runs), "--dtype-policy", options.dtype_policy]
    arguments += ["--batch", str(options.batch)] if options.batch else []
    arguments += ["--skip", *options.skip] if options.skip else []
    return arguments


def known_net(name: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", name) and name not in NETS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NETS)}, or UNITSxLAYERS, not {name}")
    return name


def net_of(name: str) -> Net:
    if name in NETS:
        return NETS[name]
    units, layers = map(int, name.split("x"))
    return NETS["mlp_wide"]._replace(hidden=[units] * layers)


def table(figures: dict[str, dict[str, Measured]]) -> str:
    """Returns a table of ratios to plain Keras, a line for each figure of each net and a column for each backend."""
    nets = list(dict.fromkeys(net for measured in figures.values() for net in measured))
    lines = [f"{'':33s}" + "".join(f"{backend:>16s}" for backend in figures)]
    for net in nets:
        names = list(dict.fromkeys(name for measured in figures.values() for name in measured.get(net, {})))
        for name in names:
            values = [measured.get(net, {}).get(name) for measured in figures.values()]
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            lines.append(f"{net:11s}{name:22s}" + "".join(f"{cell:>16s}" for cell in cells))
    return "\n".join(lines)


# What follows runs in the processes of the contenders. Keras is imported there only, with the backend that they use.


def worker(options: argparse.Namespace) -> None:
    import keras

    keras.config.set_dtype_policy(options.dtype_policy)
    (backend,) = options.backends
    jit = jit_compile(backend)
    if options.worker == "memory":
        import deel_like_lip  # noqa: F401

        (net,) = options.nets

        def train() -> None:
            batch = options.batch or net_of(net).batch
            keras_trainer(keras_model(net, options.contender, jit), batch)(MEMORY_STEPS)

        print(json.dumps({"bytes": float(peak_memory(train))}))
        return
    for net in options.nets:
        batch = options.batch or net_of(net).batch
        runs = [one_run(net, batch, jit, options.skip)]
        runs += [one_run(net, batch, jit, [*options.skip, "first", "predict"]) for _ in range(1, options.runs)]
        names = runs[0]
        print(
            json.dumps({name: statistics.median(run[name] for run in runs if name in run) for name in names}),
            flush=True,
        )


def one_run(net: str, batch: int, jit: Any, skip: list[str]) -> Measured:
    """Returns the ratios of one run with new models."""
    import keras

    if "first" not in skip:
        start_afresh()
    trainers: dict[str, Callable[[int], float]] = {}
    models: dict[str, Any] = {}
    first: Measured = {}
    for name in contenders(net):
        keras.utils.set_random_seed(0)
        start = time.perf_counter()
        models[name] = keras_model(net, name, jit)
        trainers[name] = keras_trainer(models[name], batch)
        trainers[name](0)
        first[name] = models[name].first_step - start
    for train in trainers.values():
        train(net_of(net).warm_up)
    if keras.backend.backend() == "torch" and "torchlip" not in skip and torchlip_installed():
        trainers["torchlip"] = torchlip_trainer(net, batch)  # each of its steps does the same work
    measures = {name: in_turns(train) for name, train in trainers.items()}
    turns = TURNS if measures["plain"]() < TURN_SECONDS else FEWER_TURNS
    result = ratios(measures, turns)
    plain_time = result.pop("plain")
    if "first" not in skip:
        result["first step"] = first["layers"] / first["plain"]
    if "predict" not in skip:
        result |= predict_ratios(net, models["layers"], batch, 2 * turns)
    return {**result, "plain step in ms": 1e3 * plain_time}


def start_afresh() -> None:
    """Forgets what earlier models had compiled, and does once what the first model of a process has to wait for."""
    import keras
    import numpy as np

    from deel_like_lip import _fusion, renormalization

    keras.backend.clear_session()
    _fusion._compiled.cache_clear()
    renormalization._compiled_projection.cache_clear()
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(np.zeros((8, 4), "float32"), np.zeros((8, 1), "float32"), verbose=0)


def contenders(net: str) -> list[str]:
    dense = all(isinstance(layer, int) for layer in net_of(net).hidden)
    # A loss takes no longer on the net whose steps are the longest.
    return ["plain", "layers", *(["spectral"] if dense else []), *(["losses only"] if net != "vgg" else [])]


def predict_ratios(net: str, trained: Any, batch: int, turns: int) -> Measured:
    """Compares predicting by the trained model, by the folded one, and by plain layers with the same operations."""
    import deel_like_lip as lip

    models = {
        "plain": lip.vanilla_model(keras_model(net, "same activation", "auto")),
        "folded": lip.vanilla_model(trained),
        "unfolded": trained,
    }
    inputs, _ = samples(net_of(net).shape, 2 * batch)

    def measure(model: Any) -> float:
        start = time.perf_counter()
        model.predict(inputs, batch_size=batch, verbose=0)
        return time.perf_counter() - start

    for model in models.values():
        model.compile(jit_compile=trained.jit_compile)
        measure(model)
    against_plain = ratios({name: lambda m=model: measure(m) for name, model in models.items()}, turns)  # type: ignore[misc]
    return {
        "predict folded/plain": against_plain["folded"],
        "predict unfolded/folded": against_plain["unfolded"] / against_plain["folded"],
    }


def keras_model(net: str, contender: str, jit: Any) -> Any:
    """Returns a compiled model.

    The contenders are `plain`; `layers`, this library's layers and loss; `spectral`, the same with that parametrization
    of dense layers; `losses only`, the plain net with this library's loss and metric; and `same activation`, plain
    layers with this library's activation and pooling, which built-in operations take the place of when it is folded.
    """
    import keras

    import deel_like_lip as lip

    constrained = contender in ("layers", "spectral")
    dense, conv, pool = keras.layers.Dense, keras.layers.Conv2D, keras.layers.MaxPooling2D
    activation: Callable[[], Any] = keras.layers.ReLU
    if constrained:
        conv = lip.layers.LipConv2D

        def dense(units: int) -> Any:
            return lip.layers.SpectralDense(units, parametrization="polar" if contender == "layers" else contender)

    if constrained or contender == "same activation":
        activation, pool = lip.layers.GroupSort2, lip.layers.ScaledL2NormPooling2D
    model = keras.Sequential([keras.Input(net_of(net).shape)])
    for layer in net_of(net).hidden:
        if layer in ("pool", "flatten"):
            model.add(pool() if layer == "pool" else keras.layers.Flatten())
            continue
        model.add(dense(layer) if isinstance(layer, int) else conv(int(layer.split()[1]), 3, padding="same"))
        model.add(activation())
    model.add(dense(CLASSES))
    own = constrained or contender == "losses only"
    loss = (
        lip.losses.MulticlassHKR(alpha=100.0) if own else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    metrics = [lip.metrics.CertifiedAccuracy(0.3)] if contender == "losses only" else ["accuracy"]
    model.compile("adam", loss, metrics=metrics, jit_compile=jit)
    return model


def torchlip_installed() -> bool:
    return "deel-torchlip" in versions()


def torchlip_trainer(name: str, batch: int) -> Callable[[int], float]:
    """Returns a function that trains the same net of deel-torchlip and returns the seconds that took."""
    import torch
    from deel import torchlip

    net = net_of(name)
    channels = net.shape[-1]
    size = net.shape[0] if len(net.shape) > 1 else 1
    layers: list[Any] = []
    for layer in net.hidden:
        if layer == "pool":
            layers.append(torchlip.ScaledL2NormPool2d(2))
            size //= 2
        elif layer == "flatten":
            layers.append(torch.nn.Flatten())
            channels *= size**2
        elif isinstance(layer, int):
            layers += [torchlip.SpectralLinear(channels, layer), torchlip.GroupSort2()]
            channels = layer
        else:
            filters = int(layer.split()[1])
            layers += [torchlip.SpectralConv2d(channels, filters, 3, padding=1), torchlip.GroupSort2()]
            channels = filters
    layers.append(torchlip.SpectralLinear(channels, CLASSES))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Sequential(*layers).to(device)
    loss = torchlip.HKRMulticlassLoss(alpha=0.9, min_margin=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train(steps: int) -> float:
        inputs, labels = samples(net.shape, batch * (steps + 1))
        inputs = torch.from_numpy(inputs if inputs.ndim == 2 else inputs.transpose(0, 3, 1, 2).copy())
        targets = torch.nn.functional.one_hot(torch.from_numpy(labels), CLASSES).float()

        def step(at: int) -> Any:
            optimizer.zero_grad()
            part = slice(batch * at, batch * (at + 1))
            value = loss(model(inputs[part].to(device)), targets[part].to(device))
            value.backward()
            optimizer.step()
            return value

        step(0).item()  # waits for what is computed asynchronously
        start = time.perf_counter()
        for at in range(1, steps + 1):
            value = step(at)
        value.item()
        return time.perf_counter() - start

    return train


if __name__ == "__main__":
    main()
