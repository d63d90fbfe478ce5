"""The paper's toy figures: where the Kantorovich-Rubinstein (KR) classifier fails, and what the hinge changes.

    python -m examples.paper.toy    # in a clone, with the extra `examples`: about a minute, on any backend

Two moons, 1-Lipschitz nets of orthogonal layers and FullSort. Draws kr_and_hkr.png, the paper's figures 1 and 2 side by
side, and parameters.png, the effect of alpha (the paper's lambda) and of the margin, both with level sets. Estimates W1
between distributions for which it is known, and writes the table to w1.md and all figures to toy.json.
"""

import argparse
import itertools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings

import keras
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

import deel_like_lip as lip
from examples.paper.figures import save
from examples.paper.store import write_text

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Sampler = Callable[[np.random.Generator, int], tuple[Array, Array]]


class Size(NamedTuple):
    """How much is done.

    Attributes:
        steps: Training steps of each net.
        samples: Points to train on, and as many to test on.
        alphas: Weights of the hinge. With the last of them and the second margin hinge-KR is drawn beside KR.
        margins: Margins.
    """

    steps: int
    samples: int
    alphas: tuple[float, ...]
    margins: tuple[float, ...]


SIZES = {
    "tiny": Size(10, 200, (10.0,), (0.1, 0.3)),
    "default": Size(250, 4000, (1.0, 10.0, 100.0), (0.1, 0.3, 0.6)),
}


class Problem(NamedTuple):
    """Two distributions and their W1.

    Attributes:
        name: In words.
        truth: W1, in l2.
        shape: Of one sample.
        sample: Returns as many samples of each.
    """

    name: str
    truth: float
    shape: tuple[int, ...]
    sample: Sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="default", help="how much is done (default: %(default)s)")
    parser.add_argument("--output", default="toy-output", help="folder for the results (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of kernels and samples (default: %(default)s)")
    options = parser.parse_args()
    size, output = SIZES[options.size], pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(options.seed)
    train, test = moons(rng, size.samples), moons(rng, size.samples)
    kr = classifier("KR", lip.losses.KR(), train, test, size, options.seed)
    grid = [
        [
            classifier(f"alpha {a:g}, margin {m:g}", lip.losses.HingeKR(a, m), train, test, size, options.seed)
            for m in size.margins
        ]
        for a in size.alphas
    ]
    hinge_kr = grid[-1][1]
    draw_levels(output / "kr_and_hkr.png", [[kr, {**hinge_kr, "title": f"hinge-KR, {hinge_kr['title']}"}]], test)
    draw_levels(output / "parameters.png", grid, test)
    distances = [estimate_w1(problem, size, options.seed) for problem in PROBLEMS]
    lines = ["| distributions | W1 | estimate | error |", "|---|---|---|---|"]
    lines += [f"| {d['name']} | {d['truth']:.4g} | {d['estimate']:.4g} | {d['error']:+.2%} |" for d in distances]
    write_text(output / "w1.md", "\n".join(lines) + "\n")
    figures = [{k: v for k, v in one.items() if k != "model"} for one in (kr, *itertools.chain(*grid))]
    write_text(output / "toy.json", json.dumps({"classifiers": figures, "w1": distances}, indent=2))
    print("\n".join(lines))
    print(f"\nIn {output}: kr_and_hkr.png, parameters.png, w1.md, toy.json")


def moons(rng: np.random.Generator, samples: int) -> tuple[Array, Labels]:
    """Returns points of two interleaved half circles of radius 1, with some noise, and which of the two they are of."""
    labels = rng.integers(0, 2, samples)
    angles = rng.uniform(0, np.pi, samples)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points[labels == 1] = np.array([1.0, 0.5]) - points[labels == 1]
    points += rng.normal(scale=0.05, size=points.shape)
    return points.astype(np.float32), labels.astype(np.int64)


def net(shape: tuple[int, ...], units: tuple[int, ...] = (64, 64, 64)) -> keras.Sequential:
    """Returns a 1-Lipschitz net of one output."""
    hidden = [lip.layers.SpectralDense(width, activation=lip.layers.FullSort()) for width in units]
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *hidden, lip.layers.FrobeniusDense(1)])


def fit(model: keras.Model, loss: keras.losses.Loss, x: Array, y: Labels, steps: int, batch_size: int = 256) -> None:
    """Trains for about so many steps."""
    per_epoch = -(-len(x) // batch_size)
    epochs = -(-steps // per_epoch)
    rate = keras.optimizers.schedules.CosineDecay(5e-3, epochs * per_epoch)
    model.compile(keras.optimizers.Adam(rate), loss)
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(x, y, batch_size=batch_size, epochs=epochs, callbacks=callbacks, verbose=0)


def classifier(
    title: str, loss: keras.losses.Loss, train: tuple[Array, Labels], test: tuple[Array, Labels], size: Size, seed: int
) -> dict[str, Any]:
    """Trains a classifier and returns it with its accuracy, its KR estimate and the median certified radius.

    KR does not change if a constant is added to f, so the threshold of that classifier is half way between the means of
    the two classes in the training set, as in the paper.
    """
    keras.utils.set_random_seed(seed)
    model = net(train[0].shape[1:])
    fit(model, loss, *train, size.steps)
    outputs = model.predict(train[0], batch_size=1000, verbose=0)[:, 0]
    centred = isinstance(loss, lip.losses.KR)
    threshold = (outputs[train[1] == 1].mean() + outputs[train[1] == 0].mean()) / 2 if centred else 0.0
    outputs = model.predict(test[0], batch_size=1000, verbose=0)[:, 0] - threshold
    right = (outputs > 0) == test[1]
    radii = np.where(right, np.abs(outputs) / lip.certify(model).lipschitz_constant, 0)
    result = {
        "title": title,
        "accuracy": float(right.mean()),
        "kr": float(outputs[test[1] == 1].mean() - outputs[test[1] == 0].mean()),
        "median_radius": float(np.median(radii)),
        "threshold": float(threshold),
        "model": model,
    }
    print(
        f"{title}: accuracy {right.mean():.2%}, KR {result['kr']:.3f}, median radius {np.median(radii):.3f}", flush=True
    )
    return result


def draw_levels(path: pathlib.Path, grid: list[list[dict[str, Any]]], test: tuple[Array, Labels]) -> None:
    """Draws the points and the level sets of f of each classifier; the thick line is the boundary."""
    points, labels = test[0][:600], test[1][:600]
    rows, columns = len(grid), len(grid[0])
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 0.6, 2.4 * rows + 0.2), squeeze=False, layout="constrained"
    )
    x, y = np.meshgrid(np.linspace(-1.6, 2.6, 120), np.linspace(-1.1, 1.6, 90))
    plane = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    levels = np.arange(-2.0, 2.01, 0.2)
    for axis, one in zip(axes.flat, itertools.chain(*grid), strict=True):
        values = one["model"].predict(plane, batch_size=2000, verbose=0).reshape(x.shape) - one["threshold"]
        shades = axis.contourf(x, y, values, levels, cmap="RdBu_r", extend="both", alpha=0.7)
        axis.contour(x, y, values, levels, colors="k", linewidths=0.3)
        axis.contour(x, y, values, [0.0], colors="k", linewidths=1.8)
        for label, color in ((0, "navy"), (1, "darkred")):
            axis.plot(*points[labels == label].T, ".", color=color, markersize=2)
        axis.set_title(f"{one['title']}: {100 * one['accuracy']:.1f} %", fontsize=9)
        axis.set(xticks=[], yticks=[], aspect="equal")
    figure.colorbar(shades, ax=axes, label="f", shrink=0.8)
    save(figure, path, dpi=90)


def estimate_w1(problem: Problem, size: Size, seed: int) -> dict[str, Any]:
    """Trains a net on KR and returns its estimate on fresh samples, divided by the certified constant.

    Any 1-Lipschitz function is a lower bound of W1, up to the sampling error.
    """
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model = net(problem.shape)
    first, second = problem.sample(rng, size.samples)
    x, y = np.concatenate([first, second]), np.repeat([1, 0], size.samples)
    fit(model, lip.losses.KR(), x, y, size.steps)
    fresh = [model.predict(part, batch_size=1000, verbose=0) for part in problem.sample(rng, 4 * size.samples)]
    estimate = float(fresh[0].mean(dtype=np.float64) - fresh[1].mean(dtype=np.float64))
    estimate /= lip.certify(model).lipschitz_constant
    return {"name": problem.name, "truth": problem.truth, "estimate": estimate, "error": estimate / problem.truth - 1}


def shifted_gaussians(rng: np.random.Generator, samples: int) -> tuple[Array, Array]:
    """Two normal distributions of 10 dimensions, one shifted by a vector of norm 3: W1 is 3."""
    points = rng.normal(size=(2, samples, 10)).astype(np.float32)
    points[1] += np.float32(3 / np.sqrt(10))
    return points[0], points[1]


def stretched_uniforms(rng: np.random.Generator, samples: int) -> tuple[Array, Array]:
    """Uniform on [0, 1] and on [0, 2]: t goes to 2 t, so W1 is the mean of t, 1/2."""
    points = rng.uniform(size=(2, samples, 1)).astype(np.float32)
    return points[0], 2 * points[1]


def spheres(rng: np.random.Generator, samples: int) -> tuple[Array, Array]:
    """Uniform on spheres of radius 1 and 2.5 of 5 dimensions: the norm shows that W1 is the difference, 1.5."""
    points = rng.normal(size=(2, samples, 5))
    points /= np.linalg.norm(points, axis=2, keepdims=True)
    return points[0].astype(np.float32), (2.5 * points[1]).astype(np.float32)


def squares(rng: np.random.Generator, samples: int) -> tuple[Array, Array]:
    """Blank images of 32x32 pixels, and ones with a frame of 64 pixels that is white or black: W1 is the norm, 8."""
    blank = np.zeros((samples, 32, 32, 1), np.float32)
    frame = np.zeros((32, 32, 1), np.float32)
    frame[7:24, 7:24] = 1
    frame[8:23, 8:23] = 0
    signs = rng.choice([-1.0, 1.0], size=(samples, 1, 1, 1)).astype(np.float32)
    return blank, signs * frame


PROBLEMS = [
    Problem("uniform on [0, 1] and [0, 2]", 0.5, (1,), stretched_uniforms),
    Problem("normal in 10 dimensions, shifted by 3", 3.0, (10,), shifted_gaussians),
    Problem("spheres of radius 1 and 2.5 in 5 dimensions", 1.5, (5,), spheres),
    Problem("blank images, and frames of 64 pixels", 8.0, (32, 32, 1), squares),
]


if __name__ == "__main__":
    main()
