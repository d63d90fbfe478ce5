"""Test whether two samples come from one distribution, with a Wasserstein critic.

    python examples/two_sample_test.py    # samples of known distributions: no download, under a minute

A 1-Lipschitz network f learns by the KR loss, on one half of both samples, to differ most between them. On the other
half the statistic is the mean of f over the one sample less that over the other. Its expectation is at most L * W1,
with the constant L that `lip.certify` finds and the Wasserstein-1 distance W1 of the distributions. Under the null
hypothesis the held-out scores are exchangeable, so the share of random relabellings with a statistic as large is a
valid p-value, whatever f has learned.

The distributions are ones whose W1 is known: normal distributions that differ by a shift v have W1 = |v|, and spheres
around one centre with radii r and s have W1 = |r - s|, although their means are the same. Choose the backend with the
environment variable KERAS_BACKEND: tensorflow (the default), jax or torch.
"""

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import numpy as np
import numpy.typing as npt

import deel_like_lip as lip

Array = npt.NDArray[Any]
Sampler = Callable[[int, np.random.Generator], Array]

DIMENSION = 5


class Case(NamedTuple):
    """Two distributions and their Wasserstein-1 distance."""

    first: Sampler
    second: Sampler
    distance: float


def shifted(shift: float) -> Sampler:
    """Returns a sampler of a normal distribution around a point at that distance from 0."""
    centre = np.full(DIMENSION, shift / np.sqrt(DIMENSION))
    return lambda count, rng: centre + rng.normal(size=(count, DIMENSION))


def sphere(radius: float) -> Sampler:
    """Returns a sampler of the uniform distribution on a sphere around 0."""

    def sample(count: int, rng: np.random.Generator) -> Array:
        points = rng.normal(size=(count, DIMENSION))
        points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
        return points

    return sample


CASES = {
    "shift": Case(shifted(0.0), shifted(1.0), 1.0),
    "small shift": Case(shifted(0.0), shifted(0.25), 0.25),
    "radius": Case(sphere(1.0), sphere(1.5), 0.5),
    "same normal": Case(shifted(0.0), shifted(0.0), 0.0),
    "same sphere": Case(sphere(1.0), sphere(1.0), 0.0),
}


class Result(NamedTuple):
    """The outcome of a test.

    Attributes:
        statistic: Difference of the means of f on the held-out halves, by the constant of f: the estimate of a lower
            bound of W1.
        p_value: Share of relabellings, the true labels among them, whose statistic is at least as large.
        permuted: The statistics of the random relabellings.
        certificate: Of f.
    """

    statistic: float
    p_value: float
    permuted: Array
    certificate: lip.Certificate


def main() -> None:
    options = parse_arguments()
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    print(f"Keras {keras.__version__} on the {keras.backend.backend()} backend")
    print(f"two samples of {options.samples} points in {DIMENSION} dimensions, half of them to train on\n")
    print("  distributions     true W1   statistic   p-value")
    results = {}
    for name, case in CASES.items():
        rng = np.random.default_rng(options.seed)
        first, second = case.first(options.samples, rng), case.second(options.samples, rng)
        results[name] = result = compare(first, second, options.epochs, options.permutations, options.seed)
        print(f"  {name:<14}{case.distance:11.3f}{result.statistic:12.3f}{result.p_value:10.4f}", flush=True)
    plot(results, output / "two_sample_test.png")
    print(f"\nIn {output}: two_sample_test.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="points of each sample (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training half (default: %(default)s)")
    parser.add_argument("--permutations", type=int, default=2000, help="random relabellings (default: %(default)s)")
    parser.add_argument("--output", default="two-sample-output", help="folder for the picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples, the kernels and the relabellings")
    options = parser.parse_args()
    if options.samples < 4 or options.epochs < 1 or options.permutations < 1:
        parser.error("--samples must be at least 4, and --epochs and --permutations positive")
    return options


def compare(first: Array, second: Array, epochs: int, permutations: int, seed: int) -> Result:
    """Tests whether two samples, arrays of shape (samples, features), come from one distribution."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(sample), 2) for sample in (first, second)]
    critic = train(halves[0][0], halves[1][0], epochs)
    certificate = lip.certify(critic)

    held_out = np.concatenate([halves[0][1], halves[1][1]])
    scores = critic.predict(held_out, batch_size=1000, verbose=0)[:, 0].astype(np.float64)
    scores /= certificate.lipschitz_constant
    split = len(halves[0][1])

    def statistic(values: Array) -> float:
        return float(np.mean(values[:split]) - np.mean(values[split:]))

    actual = statistic(scores)
    permuted = np.array([statistic(rng.permutation(scores)) for _ in range(permutations)])
    # The true labels are one of the relabellings; without it a p-value could be 0, which none is.
    p_value = (1 + np.count_nonzero(permuted >= actual)) / (1 + permutations)
    return Result(actual, p_value, permuted, certificate)


def train(first: Array, second: Array, epochs: int) -> keras.Model:
    """Returns a critic that is large on the first sample and small on the second."""
    layers = lip.layers
    critic = keras.Sequential(
        [
            keras.Input(first.shape[1:]),
            layers.SpectralDense(64, activation=layers.FullSort()),
            layers.SpectralDense(64, activation=layers.FullSort()),
            layers.SpectralDense(1),
        ],
        name="critic",
    )
    points = np.concatenate([first, second])
    labels = np.repeat([1.0, 0.0], [len(first), len(second)])
    batch_size = 128
    steps = epochs * -(-len(points) // batch_size)
    critic.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)), lip.losses.KR())
    critic.fit(points, labels, batch_size=batch_size, epochs=epochs, verbose=0)
    return critic


def plot(results: dict[str, Result], path: pathlib.Path) -> None:
    """Draws for each case where the statistic lies among those of random relabellings."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(2.6 * len(results), 2.8), layout="constrained")
    for panel, (name, result) in zip(panels, results.items(), strict=True):
        panel.hist(result.permuted, bins=40, color="C0", alpha=0.5)
        panel.axvline(result.statistic, color="C3", linewidth=2)
        panel.axvline(CASES[name].distance, color="black", linestyle=":")
        panel.set(title=f"{name}: p = {result.p_value:.4f}", yticks=[])
    figure.supxlabel("statistic (red) among those of random relabellings (blue), and W1 (dotted)", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
