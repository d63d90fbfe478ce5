"""Ten nets are trained, certified and attacked: no image may be misclassified within its radius.

    TFDS_DATA_DIR=... python benchmarks/break_certificates.py    # about a quarter of an hour on two cores
    python benchmarks/break_certificates.py --images 50          # quicker

Six of the nets are for MNIST, which tensorflow-datasets must have prepared in TFDS_DATA_DIR, or they are left out; four
are for scikit-learn's digits. Each is attacked by PGD with ten restarts, DeepFool, and Carlini and Wagner's attack, all
in l2, which look for the nearest input of another answer, and by PGD within the certified radius. Radii are those of
`certify`. Where a bound is tight, as it is for several of these nets, the nearest other answer is at the radius itself,
and the float32 arithmetic of the model decides. So what counts as a violation is an input within the radius by
`certify(..., rounding="sound")`, which leaves room for that and for nothing else. Exit status 1 if there is one.
"""

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `tests.attacks`

import keras
import numpy as np
import numpy.typing as npt

import deel_like_lip as lip
from deel_like_lip.empirical import empirical_lipschitz
from examples.quickstart import load
from tests.attacks import Target, carlini_wagner, deepfool, nearest, pgd

logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of each new batch size
Array = npt.NDArray[Any]
layers = lip.layers


class Data(NamedTuple):
    """Images in [0, 1] of shape (samples, height, width, 1), and integer labels."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]


class Recipe(NamedTuple):
    """How a net is built and trained."""

    name: str
    dataset: str
    build: Callable[[tuple[int, ...], int], keras.Model]
    loss: str = "hkr"
    epochs: int = 5
    binary: bool = False  # whether an image shows an odd digit


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a net. Distances and radii are l2, in units of pixels in [0, 1].

    Attributes:
        accuracy: Share of the whole test set that is classified right.
        constant: The certified Lipschitz constant.
        found_constant: The largest that `empirical_lipschitz` found.
        images: Number of images that were attacked.
        median_radius: Median certified radius.
        median_distance: Median distance of the nearest other answer that any attack found.
        violations: Images with another answer within the certified radius, rounding included.
        by_rounding: Images with another answer within the radius of exact arithmetic.
        median_ratio: Median of distance by radius.
        smallest_ratio: The smallest.
        wins: For each attack the share of images at which it is the nearest, within a thousandth.
        seconds: Time spent on training, certification and attacks.
    """

    name: str
    accuracy: float
    constant: float
    found_constant: float
    images: int
    median_radius: float
    median_distance: float
    violations: int
    by_rounding: int
    median_ratio: float
    smallest_ratio: float
    wins: dict[str, float]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the certificate."""
        return self.violations == 0 and self.found_constant <= self.constant * (1 + 1e-5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="test images to attack (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=10, help="restarts of PGD (default: %(default)s)")
    parser.add_argument("--output", default="break-certificates.json", help="results (default: %(default)s)")
    parser.add_argument("--only", default="", help="only the nets whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="of kernels, batches and attacks (default: %(default)s)")
    options = parser.parse_args()
    if options.images < 1 or options.restarts < 1:
        parser.error("--images and --restarts must be positive")
    sets = {"digits": dataset("digits")}
    if os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")):
        sets["mnist"] = dataset("mnist")
    else:
        print("No MNIST: set TFDS_DATA_DIR to where tensorflow-datasets has prepared it. Its nets are left out.")
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {options.images} images a net\n", flush=True)

    results = []
    for recipe in RECIPES:
        if recipe.dataset not in sets or options.only not in recipe.name:
            continue
        keras.utils.set_random_seed(options.seed)
        start = time.monotonic()
        model = train(recipe, sets[recipe.dataset])
        print(f"{recipe.name}: trained in {time.monotonic() - start:.0f} s", flush=True)
        images, labels = of_recipe(recipe, sets[recipe.dataset].test)
        results.append(
            attack(recipe.name, model, images, labels, options.images, options.restarts, options.seed, start)
        )
    print(f"\n{table(results)}")
    report = {"backend": keras.backend.backend(), "nets": [dataclasses.asdict(result) for result in results]}
    pathlib.Path(options.output).write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"\nIn {options.output}: the same as JSON")
    broken = [result.name for result in results if not result.holds]
    print(f"Broken: {', '.join(broken)}" if broken else "No certificate was broken.")
    return 1 if broken or not results else 0


def dataset(name: str) -> Data:
    return Data(*load(name))


def dense(shape: tuple[int, ...], outputs: int) -> keras.Model:
    hidden = [layers.SpectralDense(128, activation=layers.GroupSort2()) for _ in range(2)]
    head = layers.SpectralDense(outputs) if outputs > 1 else layers.FrobeniusDense(1)
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *hidden, head])


def convolutional(shape: tuple[int, ...], outputs: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.LipConv2D(16, 4, strides=2, padding="same", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(2),
            keras.layers.Flatten(),
            layers.SpectralDense(128, activation=layers.GroupSort2()),
            layers.SpectralDense(outputs),
        ]
    )


def residual(shape: tuple[int, ...], outputs: int) -> keras.Model:
    inputs = keras.Input(shape)
    x = layers.SpectralDense(64)(keras.layers.Flatten()(inputs))
    for _ in range(3):
        x = keras.layers.Average()([x, layers.SpectralDense(64)(layers.GroupSort2()(x))])
    return keras.Model(inputs, layers.SpectralDense(outputs)(layers.GroupSort2()(x)))


def plain(shape: tuple[int, ...], outputs: int) -> keras.Model:
    """Returns a net without any layer of this library: nothing holds its constant down."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(outputs),
        ]
    )


RECIPES = [
    Recipe("digits dense HKR", "digits", dense, epochs=20),
    Recipe("digits conv HKR", "digits", convolutional, epochs=20),
    Recipe("digits residual CE", "digits", residual, "cross entropy", epochs=20),
    Recipe("digits plain CNN CE", "digits", plain, "cross entropy", epochs=10),
    Recipe("mnist dense HKR", "mnist", dense),
    Recipe("mnist conv HKR", "mnist", convolutional),
    Recipe("mnist residual HKR", "mnist", residual),
    Recipe("mnist dense CE", "mnist", dense, "cross entropy"),
    Recipe("mnist plain CNN CE", "mnist", plain, "cross entropy", epochs=2),
    Recipe("mnist odd or even HKR", "mnist", dense, binary=True),
]


def of_recipe(recipe: Recipe, split: tuple[Array, Array]) -> tuple[Array, Array]:
    images, labels = split
    return images, labels % 2 if recipe.binary else labels


def train(recipe: Recipe, data: Data) -> keras.Model:
    images, labels = of_recipe(recipe, data.train)
    model = recipe.build(images.shape[1:], 1 if recipe.binary else 10)
    batch_size, margin = (32, 0.4) if recipe.dataset == "digits" else (256, 1.0)
    loss: keras.losses.Loss
    if recipe.loss == "cross entropy" and recipe.build is plain:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    elif recipe.loss == "cross entropy":
        # Logits of a 1-Lipschitz net lie close together, so the loss must be told that small differences count.
        loss = lip.losses.TauSparseCategoricalCrossentropy(tau=20.0)
    elif recipe.binary:
        loss = lip.losses.HingeKR(alpha=50.0, min_margin=margin)
    else:
        loss = lip.losses.MulticlassHKR(alpha=50.0, min_margin=margin, true_class_weight=9.0)
    steps = recipe.epochs * -(-len(images) // batch_size)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)), loss)
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(images, labels, batch_size=batch_size, epochs=recipe.epochs, callbacks=callbacks, verbose=0)
    return model


def attack(
    name: str,
    model: keras.Model,
    images: Array,
    labels: Array,
    count: int,
    restarts: int = 10,
    seed: int = 0,
    start: float | None = None,
) -> Result:
    """Certifies a model, attacks it on the first test images, and prints how that went."""
    start = time.monotonic() if start is None else start
    outputs = model.predict(images, batch_size=1000, verbose=0)
    answers = (outputs[:, 0] > 0).astype(int) if outputs.shape[1] == 1 else np.argmax(outputs, axis=1)
    attacked, logits = images[:count], outputs[:count]
    certificate = lip.certify(model)
    radii = certificate.radius(logits)
    sound = lip.certify(model, rounding="sound").radius(logits, inputs=attacked)
    found_constant = empirical_lipschitz(model, images[:200], seed=seed)

    target = Target(model, attacked)
    attacks = {}
    for label, run in {
        "PGD": lambda: pgd(target, restarts=restarts, steps=20, seed=seed),
        "DeepFool": lambda: deepfool(target),
        "Carlini-Wagner": lambda: carlini_wagner(target, searches=4, steps=40),
        "PGD within the radius": lambda: pgd(target, sound, restarts=3, steps=20, seed=seed),
    }.items():
        began = time.monotonic()
        attacks[label] = run()
        median = np.median(attacks[label].distances)
        shown = f"median distance {median:.4g}" if np.isfinite(median) else "found less than half"
        print(f"  {label}: {shown} in {time.monotonic() - began:.0f} s", flush=True)
    distances = nearest(*attacks.values()).distances
    certified = radii > 0
    ratios = distances[certified] / radii[certified]
    return Result(
        name=name,
        accuracy=float(np.mean(answers == labels)),
        constant=certificate.lipschitz_constant,
        found_constant=found_constant,
        images=len(attacked),
        median_radius=float(np.median(radii)),
        median_distance=float(np.median(distances)),
        violations=int(np.sum(distances[sound > 0] <= sound[sound > 0])),
        by_rounding=int(np.sum((ratios <= 1) & (distances[certified] > sound[certified]))),
        median_ratio=float(np.median(ratios)),
        smallest_ratio=float(np.min(ratios)),
        wins={label: float(np.mean(one.distances <= 1.001 * distances)) for label, one in attacks.items()},
        seconds=time.monotonic() - start,
    )


def table(results: list[Result]) -> str:
    """Returns the results as a table, a line for each net."""
    columns: dict[str, Callable[[Result], str]] = {
        "net": lambda result: result.name,
        "accuracy": lambda result: f"{result.accuracy:.2%}",
        "L certified": lambda result: f"{result.constant:.4g}",
        "L found": lambda result: f"{result.found_constant:.4g}",
        "images": lambda result: f"{result.images}",
        "median radius": lambda result: f"{result.median_radius:.4f}",
        "nearest": lambda result: f"{result.median_distance:.4f}",
        "violations": lambda result: f"{result.violations}",
        "rounding": lambda result: f"{result.by_rounding}",
        "median ratio": lambda result: f"{result.median_ratio:.4f}",
        "smallest": lambda result: f"{result.smallest_ratio:.5f}",
        "seconds": lambda result: f"{result.seconds:.0f}",
    }
    rows = [list(columns), *([show(result) for show in columns.values()] for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


if __name__ == "__main__":
    sys.exit(main())
