"""1-Lipschitz layers compared: what each costs, how much of its constant it uses, and what it certifies.

    TFDS_DATA_DIR=... python benchmarks/layers.py

Two tables, of convolutions and of dense layers, in the form of "1-Lipschitz Layers Compared"
(https://arxiv.org/abs/2311.16833). In each one small net is built of every contender in turn: a parametrization, or a
block in the place of the layer and its activation. The reference, `plain`, has Keras's layers there and is trained by
cross entropy, as nothing bounds it. The columns:

- step: time of a training step, as a ratio to `plain`: the median of turns in one process.
- memory: peak memory of a few steps, above what the imports need, as a ratio to `plain`: a process for each.
- largest, smallest: singular values of the trained layers, the extremes over the net. Of a block, of its Jacobian at
  two test images. On images of 5 x 5, explicitly, in float64 but for the weights.
- tight: the largest singular value by the constant that `certify` gives the layer, the smallest over the net.
- gain: the largest norm of the net's Jacobian at 400 test images, by the certified constant of the net.
- clean, and radii: accuracy and certified accuracy on the test set in %, after as much processor time for each: steps
  are timed first, and the learning rate then decays over the number that fits in. Compiling is not counted. Of several
  rates to begin with that counts which certifies most at the first radius: no single one is fair to all.

    python benchmarks/layers.py --tables dense --contenders polar bro --seconds 10 --skip memory

The tables go to the screen, and all figures to a JSON file with the description of the machine.
"""

import argparse
import datetime
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks` and `examples`

from benchmarks._common import (
    BACKENDS,
    CLASSES,
    MEMORY_STEPS,
    RESULTS,
    Measured,
    compile_hkr,
    in_turns,
    jit_compile,
    keras_trainer,
    machine,
    peak_memory,
    ratios,
    versions,
    worker_result,
)

# Shape of images, the radii that are usual, and the hinge's margin.
DATASETS = {"mnist": ((28, 28, 1), (0.3, 1.58), 1.0), "cifar10": ((32, 32, 3), (36 / 255, 108 / 255), 0.2)}
CONTENDERS = {
    "conv": ["plain", "polar", "operator_norm", "aol", "aoc", "soc", "SLL", "CPL", "LinearResidual"],
    "dense": [
        *["plain", "polar", "spectral", "aol", "bro", "cayley", "cholesky", "exponential"],
        *["SLL", "CPL", "Sandwich"],
    ],
}
BATCH = 128
WARM_UP = 10
TURNS = 7
STEPS_OF_CLOCK = 25
IMAGES = 400
SIDE = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, default="tensorflow", help="default: %(default)s")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="default: %(default)s")
    parser.add_argument("--tables", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--contenders", nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time to train (default: %(default)s)")
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-3, 3e-4], help="learning rates to begin with")
    parser.add_argument("--seed", type=int, default=0, help="of weights (default: %(default)s)")
    parser.add_argument("--skip", nargs="+", choices=["step", "memory", "training"], default=[])
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "layers.json", help="default: %(default)s")
    parser.add_argument("--worker", choices=["step", "contender"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = {name for table in options.tables for name in CONTENDERS[table]}
    if unknown := set(options.contenders or ()) - known:
        parser.error(f"--contenders must be of {sorted(known)}, not {sorted(unknown)}")
    if options.worker:
        print(json.dumps(step_times(options) if options.worker == "step" else one_contender(options)))
        return
    data = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "")) / options.dataset
    if "training" not in options.skip and not data.is_dir():
        print(f"No training: TFDS_DATA_DIR names no folder where tensorflow-datasets has prepared {options.dataset}")
        options.skip.append("training")
    start = time.perf_counter()
    figures = {table: measured(table, options) for table in options.tables}
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        **{name: getattr(options, name) for name in ("backend", "dataset", "rates", "seed", "skip")},
        "seconds_of_training": options.seconds,
        "seconds": round(time.perf_counter() - start),
        "figures": figures,
    }
    for rows in figures.values():
        print("\n" + table(rows))
    print(f"\n{report['backend']}; {report['machine']}; {report['versions']}; {report['seconds']} s")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")


def measured(table: str, options: argparse.Namespace) -> dict[str, Measured]:
    """Returns the figures of each contender of a table."""
    names = [name for name in CONTENDERS[table] if name == "plain" or name in (options.contenders or CONTENDERS[table])]
    steps = worker("step", table, names, options) if "step" not in options.skip else {}
    rows: dict[str, Measured] = {}
    for name in names:
        row = worker("contender", table, [name], options)
        if "memory" in row:
            row["bytes"] = row.pop("memory")
            row = {"memory": row["bytes"] / rows.get("plain", row)["bytes"], **row}
        rows[name] = {**({"step": steps[name]} if steps else {}), **row}
        print(f"{table:6} {name:15}" + ", ".join(f"{k} {v:.4g}" for k, v in rows[name].items()), flush=True)
    return rows


def worker(kind: str, table: str, names: list[str], options: argparse.Namespace) -> Measured:
    """Measures in a process of its own."""
    arguments = ["--worker", kind, "--tables", table, "--contenders", *names, "--backend", options.backend]
    arguments += ["--dataset", options.dataset, "--seconds", str(options.seconds), "--seed", str(options.seed)]
    arguments += ["--rates", *map(str, options.rates)]
    return worker_result(__file__, options.backend, arguments + (["--skip", *options.skip] if options.skip else []))


def table(rows: dict[str, Measured]) -> str:
    """Returns the figures as a table, a line for each contender."""
    digits = {"step": 2, "memory": 2, "bytes": None, "parameters": 0, "steps": 0, "rate": 4, "clean": 1}
    names = [name for name in next(iter(rows.values()), {}) if digits.get(name, 0) is not None]
    lines = [f"{'':15}" + "".join(f"{name:>11}" for name in names)]
    for contender, row in rows.items():
        cells = [f"{row[name]:.{digits.get(name, 1 if name.startswith('at ') else 3)}f}" for name in names]
        lines.append(f"{contender:15}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


# What follows runs in the processes of the contenders. Keras is imported there only, with the backend that they use.


def step_times(options: argparse.Namespace) -> Measured:
    """Returns the ratios of the contenders' training steps to those of `plain`."""
    (table,) = options.tables
    trainers: dict[str, Callable[[int], float]] = {}
    for name in options.contenders:
        trainers[name] = keras_trainer(compiled_net(table, name, 1000, options), BATCH)
        trainers[name](WARM_UP)
    return {**ratios({name: in_turns(train) for name, train in trainers.items()}, TURNS), "plain": 1.0}


def one_contender(options: argparse.Namespace) -> Measured:
    """Returns all other figures of one contender."""
    import keras

    import deel_like_lip as lip

    (table,), (name,) = options.tables, options.contenders
    keras.utils.set_random_seed(options.seed)
    trial = compiled_net(table, name, 1000, options)
    train = keras_trainer(trial, BATCH, clock=time.process_time)
    result: Measured = {"parameters": float(trial.count_params())}
    if "memory" not in options.skip:
        result = {"memory": float(peak_memory(lambda: train(MEMORY_STEPS))), **result}
    if "training" in options.skip:
        return result
    from examples.quickstart import load

    train(WARM_UP)
    steps = max(1, round(options.seconds * STEPS_OF_CLOCK / train(STEPS_OF_CLOCK)))
    data = load(options.dataset)
    attempts = {}
    for rate in options.rates:
        model = trained_net(table, name, steps, rate, data[0], options)
        attempts[rate] = (model, certified_accuracies(model, data[1], options))
    # The first radius decides; of the net that nothing bounds, the accuracy.
    rate, (model, shares) = max(attempts.items(), key=lambda item: list(item[1][1].values())[name != "plain"])
    images = data[1][0]
    found = lip.empirical_lipschitz(model, images[:IMAGES], search_steps=0)
    gain = found / lip.certify(model).lipschitz_constant
    own = {"steps": float(steps), "rate": rate, **singular_values(model, images[:2]), "gain": gain}
    return {**result, **own, **shares}


def trained_net(table: str, contender: str, steps: int, rate: float, data: Any, options: argparse.Namespace) -> Any:
    """Returns a net of a contender after so many training steps."""
    import keras

    import deel_like_lip as lip

    images, labels = data
    keras.utils.set_random_seed(options.seed)
    model = compiled_net(table, contender, steps, options, rate)
    callbacks = [] if contender == "plain" else [lip.callbacks.RenormalizeCallback()]
    rng = np.random.default_rng(options.seed)
    while steps:
        now = min(steps, len(images) // BATCH)
        chosen = rng.permutation(len(images))[: now * BATCH]
        model.fit(images[chosen], labels[chosen], batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        steps -= now
    return model


def certified_accuracies(model: Any, data: Any, options: argparse.Namespace) -> Measured:
    """Returns the shares in % of the test images that are right, and certified at each radius."""
    import deel_like_lip as lip

    images, labels = data
    _, radii, _ = DATASETS[options.dataset]
    logits = model.predict(images, batch_size=1000, verbose=0)
    shares = lip.certify(model).certified_accuracy(logits, labels, (0.0, *radii))
    names = ("clean", *(f"at {radius:.3g}" for radius in radii))
    return {name: 100 * float(share) for name, share in zip(names, shares, strict=True)}


def compiled_net(table: str, contender: str, steps: int, options: argparse.Namespace, rate: float = 3e-3) -> Any:
    """Returns the net of a contender, compiled for so many training steps."""
    import keras

    shape, _, margin = DATASETS[options.dataset]
    net = (convolution_net if table == "conv" else dense_net)(contender, shape)
    jit = jit_compile(options.backend)
    compile_hkr(net, steps, margin, rate, jit_compile=jit)
    if contender == "plain":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        net.compile(net.optimizer, loss, jit_compile=jit)
    return net


def convolution_net(contender: str, shape: tuple[int, ...]) -> Any:
    """Returns three convolutions between layers that only move values, with as many outputs as inputs each."""
    import keras

    import deel_like_lip as lip

    layers = lip.layers
    blocks = {"SLL": layers.SLLConv2D, "CPL": layers.CPLConv2D}

    def convolution(channels: int) -> list[Any]:
        if contender in blocks:
            return [blocks[contender](channels)]
        if contender == "LinearResidual":
            return [layers.LinearResidualConv2D(), layers.GroupSort2()]
        if contender == "plain":
            return [keras.layers.Conv2D(channels, 3, padding="same"), layers.GroupSort2()]
        return [layers.LipConv2D(channels, 3, padding="same", parametrization=contender), layers.GroupSort2()]

    # `(h, w, c)` -> `(h / 2, w / 2, 16)` -> `(h / 4, w / 4, 64)`
    first = [layers.InvertibleDownSampling(2), layers.ZeroChannelPadding(16)]
    body = [*convolution(16), *convolution(16), layers.InvertibleDownSampling(2), *convolution(64)]
    head = [keras.layers.Flatten(), layers.SpectralDense(64), layers.GroupSort2(), layers.SpectralDense(CLASSES)]
    return keras.Sequential([keras.Input(shape), *first, *body, *head])


def dense_net(contender: str, shape: tuple[int, ...]) -> Any:
    """Returns three hidden layers of 256 units, or blocks with that many hidden units."""
    import keras

    import deel_like_lip as lip

    layers = lip.layers
    blocks = {"SLL": layers.SLLDense, "CPL": layers.CPLDense, "Sandwich": layers.SandwichDense}

    def dense(units: int) -> Any:
        if contender == "plain":
            return keras.layers.Dense(units)
        return layers.SpectralDense(units, parametrization="polar" if contender in blocks else contender)

    hidden = [[blocks[contender](256)] if contender in blocks else [dense(256), layers.MaxMin()] for _ in range(3)]
    flat = [layer for pair in hidden for layer in pair]
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *flat, dense(CLASSES)])


def singular_values(model: Any, images: Any) -> Measured:
    """Returns the extremes of the singular values of the hidden layers with kernels, and the loosest constant.

    A layer is folded, and its Jacobian written out at the features that it gets for an image.
    """
    import keras

    import deel_like_lip as lip
    from deel_like_lip._autodiff import RowMap

    features, extremes = images, []
    for layer in model.layers:
        inputs, features = features, keras.ops.convert_to_numpy(layer(features))
        kernel = getattr(layer, "kernel", None)
        if kernel is None or layer is model.layers[-1]:
            continue
        if len(kernel.shape) == 4:
            inputs = inputs[:, :SIDE, :SIDE]
        block = getattr(layer, "activation", None) not in (None, keras.activations.linear)
        inputs = inputs if block else inputs[:1]  # a linear map is the same everywhere
        alone = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
        bound = lip.certify(alone).lipschitz_constant
        rows = RowMap(lip.vanilla_model(alone), [inputs.shape[1:]])
        outputs = int(np.prod(alone.output_shape[1:]))
        largest, smallest = 0.0, np.inf
        for point in inputs.reshape(len(inputs), -1):
            jacobian = rows.vjp(np.broadcast_to(point, (outputs, point.size)), np.eye(outputs))
            values = np.linalg.svd(jacobian, compute_uv=False)
            largest, smallest = max(largest, values[0]), min(smallest, values[-1])
        extremes.append((largest, smallest, largest / bound))
    return {
        "largest": max(largest for largest, _, _ in extremes),
        "smallest": min(smallest for _, smallest, _ in extremes),
        "tight": min(tight for _, _, tight in extremes),
    }


if __name__ == "__main__":
    main()
