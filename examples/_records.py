"""Shared by the scripts of records: trains recipes over seeds, certifies what is shipped, and prints it in a table."""

import argparse
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

import deel_like_lip as lip
from examples.quickstart import Images, Labels

HELD_OUT = 1 / 12  # of the training images, by --validate
Data = tuple[tuple[Images, Labels], tuple[Images, Labels]]


class Recipe(NamedTuple):
    """A net and how it is trained.

    Attributes:
        build: Returns a new net for an image shape and a number of classes.
        loss: Returns a new loss.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        rate: Learning rate at the beginning, from which a cosine goes to 0.
        optimizer: Returns an optimizer with a learning rate.
        augment: Changes a batch of images at random.
    """

    build: Callable[[tuple[int, ...], int], keras.Model]
    loss: Callable[[], keras.losses.Loss]
    epochs: int
    batch_size: int
    rate: float
    optimizer: Callable[[Any], keras.optimizers.Optimizer]
    augment: Callable[[Images, np.random.Generator], Images] | None = None


class Problem(NamedTuple):
    """A dataset with its recipes and what others reached.

    Attributes:
        datasets: Functions that load the dataset, and others of the same kind to try the script on, the first by
            default.
        radii: l2 distances in the units of the images, 0 for clean accuracy.
        recipes: By name.
        published: Certified accuracy in %, by source and radius.
    """

    datasets: Mapping[str, Callable[[], Data]]
    radii: Sequence[float]
    recipes: Mapping[str, Recipe]
    published: Mapping[str, Mapping[float, float]]


def run(problem: Problem, description: str, output: str) -> None:
    options = parse_arguments(problem, description, output)
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    (images, labels), (test_images, test_labels) = problem.datasets[options.dataset]()
    if options.validate:
        kept = len(images) - round(HELD_OUT * len(images))
        images, test_images = images[:kept], images[kept:]
        labels, test_labels = labels[:kept], labels[kept:]
    print(f"{len(images)} images to train on, {len(test_images)} to report on; Keras on {keras.backend.backend()}")
    print("certified accuracy in %, by l2 radius\n")
    print(f"{'recipe':44s} seed" + "".join(f"{radius:8.3g}" for radius in problem.radii) + "   training")
    results: dict[str, list[list[float]]] = {}
    for name in options.recipes:
        recipe = problem.recipes[name]
        if options.epochs:
            recipe = recipe._replace(epochs=options.epochs)
        for seed in range(options.seeds):
            start = time.monotonic()
            model = trained(recipe, images, labels, seed)
            seconds = time.monotonic() - start
            shares = certified(model, test_images, test_labels, problem.radii, folder / f"{name}-{seed}.keras")
            results.setdefault(name, []).append([*shares, seconds])
            print(f"{name:44s} {seed:4d}" + row(shares) + f" {seconds:8.0f} s", flush=True)
    print()
    for name, runs in results.items():
        *means, seconds = (statistics.mean(column) for column in zip(*runs, strict=True))
        print(f"{f'{name}, mean of {len(runs)}':49s}" + row(means) + f" {seconds:8.0f} s")
    for name, published in problem.published.items():
        print(f"{name:49s}" + row([published.get(radius, math.nan) for radius in problem.radii]))
    report = {"radii": problem.radii, "backend": keras.backend.backend(), "shares and seconds": results}
    (folder / "records.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nIn {folder}: the plain Keras models, and records.json")


def parse_arguments(problem: Problem, description: str, output: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(problem.recipes)
    parser.add_argument("--recipes", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="nets of each recipe (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own")
    parser.add_argument(
        "--validate", action="store_true", help="hold out the last twelfth of the training images, and report on it"
    )
    datasets = list(problem.datasets)
    parser.add_argument("--dataset", choices=datasets, default=datasets[0], help="default: %(default)s")
    parser.add_argument("--output", default=output, help="folder for the results (default: %(default)s)")
    options = parser.parse_args()
    for name in ("seeds", "epochs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be positive, not {value}")
    return options


def trained(recipe: Recipe, images: Images, labels: Labels, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = recipe.build(images.shape[1:], int(labels.max()) + 1)
    batches = Batches(images, labels, recipe, seed)
    schedule = keras.optimizers.schedules.CosineDecay(recipe.rate, recipe.epochs * len(batches))
    model.compile(recipe.optimizer(schedule), loss=recipe.loss())
    model.fit(batches, epochs=recipe.epochs, verbose=0, callbacks=[lip.callbacks.RenormalizeCallback()])
    return model


class Batches(keras.utils.PyDataset):
    """Batches of shuffled images, changed as the recipe says. What does not fill a batch waits for another epoch."""

    def __init__(self, images: Images, labels: Labels, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.images, self.labels, self.recipe = images, labels, recipe
        self.rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return max(len(self.images) // self.recipe.batch_size, 1)

    def __getitem__(self, index: int) -> tuple[Images, Labels]:
        chosen = self.order[index * self.recipe.batch_size : (index + 1) * self.recipe.batch_size]
        images = self.images[chosen]
        if self.recipe.augment is not None:
            images = self.recipe.augment(images, self.rng)
        return images, self.labels[chosen]

    def on_epoch_end(self) -> None:
        self.order = self.rng.permutation(len(self.images))


def certified(
    model: keras.Model, images: Images, labels: Labels, radii: Sequence[float], path: pathlib.Path
) -> list[float]:
    """Saves the model as a plain one, loads it again, and returns its certified accuracy in %."""
    lip.vanilla_model(model).save(path)
    plain = keras.models.load_model(path)
    logits = plain.predict(images, batch_size=1000, verbose=0)
    return [100 * share for share in lip.certify(plain).certified_accuracy(logits, labels, radii)]


def row(shares: Sequence[float]) -> str:
    return "".join(f"{'-' if np.isnan(share) else f'{share:.2f}':>8s}" for share in shares)
