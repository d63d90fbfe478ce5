"""Learn what is normal from normal images alone, and certify how well anomalies are told from them.

    python examples/one_class.py                    # scikit-learn's handwritten digits: no download, under a minute
    python examples/one_class.py --dataset mnist    # or fashion_mnist: through tensorflow-datasets

Each class in turn is the normal one. A 1-Lipschitz network f learns by the hinge-KR loss to be above the margin on its
images and below minus the margin on images that are made from them, so that f(x) approaches the signed distance to the
boundary of what is normal. No image of another class is seen. The made images walk towards the boundary along the
gradient of f before each round of training, as in OCSDF (Béthune et al., 2023, https://arxiv.org/abs/2303.01978).

A perturbation of l2 norm eps moves a score by at most L * eps, with the constant L that `lip.certify` finds. So the
AUROC after all normal images have lost L * eps and all anomalies gained as much holds under every such perturbation of
every image. Choose the backend with the environment variable KERAS_BACKEND: tensorflow (the default), jax or torch.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `examples`

import keras
import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import deel_like_lip as lip
from examples.quickstart import Images, load

Array = npt.NDArray[Any]
Normal = npt.NDArray[np.bool_]
Gradients = Callable[[Images], tuple[Images, Images]]


class Setting(NamedTuple):
    """What differs between datasets: images of small norm allow small margins only."""

    rounds: int
    images: int
    batch_size: int
    units: int
    min_margin: float
    radii: tuple[float, ...]


SETTINGS = {
    "digits": Setting(8, 512, 128, 64, 0.5, (0.0, 0.1, 0.2, 0.3, 0.5)),
    "mnist": Setting(6, 6000, 256, 256, 1.5, (0.0, 0.1, 0.3, 0.5, 1.0)),
    "fashion_mnist": Setting(6, 6000, 256, 256, 1.5, (0.0, 0.1, 0.3, 0.5, 1.0)),
}


def main() -> None:
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    setting = SETTINGS[options.dataset]._replace(rounds=options.rounds)
    (train_images, train_labels), (test_images, test_labels) = load(options.dataset)
    print(f"Keras {keras.__version__} on the {keras.backend.backend()} backend")
    print(f"{options.dataset}: AUROC in % on {len(test_images)} test images, one class against all others; clean, and")
    print("certified under any perturbation of every image up to an l2 distance, pixels in [0, 1]; beside it the clean")
    print("AUROC of the distance to the nearest normal image\n")
    print("  normal" + "".join(f"{radius:8.2f}" for radius in setting.radii) + "   nearest   seconds")

    detector = Detector(train_images.shape[1:], setting, options.walk, options.sources)
    radii = np.linspace(0, 1.5 * setting.radii[-1], 46)
    rows, curves, made = [], [], []
    for label in options.classes or np.unique(train_labels):
        start = time.perf_counter()
        images, normal = train_images[train_labels == label], test_labels == label
        made.append((images, detector.fit(images, np.random.default_rng(options.seed))))
        scores = detector.scores(test_images)
        seconds = time.perf_counter() - start
        certificate = lip.certify(detector.model)
        curves.append(certified_auroc(certificate, scores, normal, radii))
        aurocs = certified_auroc(certificate, scores, normal, setting.radii)
        rows.append([*aurocs, roc_auc_score(normal, -distances(images, test_images)), seconds])
        print_row(str(label), rows[-1])
    print_row("mean", np.mean(rows, axis=0))
    plot(radii, np.array(curves), made, options.dataset, output / "one_class.png")
    print(f"\nIn {output}: one_class.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETTINGS, default="digits", help="what to train on (default: %(default)s)")
    parser.add_argument("--classes", type=int, nargs="+", help="the normal classes (default: each in turn)")
    parser.add_argument("--rounds", type=int, help="of making images and training (default: 8 for digits, else 6)")
    parser.add_argument("--walk", type=int, default=2, help="steps of made images per round (default: %(default)s)")
    parser.add_argument(
        "--sources",
        choices=SOURCES,
        nargs="+",
        default=["collages", "warps"],
        help="what walks begin from (default: %(default)s)",
    )
    parser.add_argument("--output", default="one-class-output", help="folder for the picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial kernels and the made images")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = SETTINGS[options.dataset].rounds
    if options.rounds < 1 or options.walk < 0:
        parser.error(f"--rounds must be positive, and --walk not negative, not {options.rounds} and {options.walk}")
    return options


# --- images that are not normal, made from normal ones ---------------------------------------------------------------


def collages(images: Images, rng: np.random.Generator) -> Images:
    """Returns images in which a rectangle shows what another one shows somewhere else."""
    count, *sides, _ = images.shape
    donors = rng.permutation(count)
    pixels, inside = [], []
    for axis, side in enumerate(sides):
        shape = (count, side, 1) if axis == 0 else (count, 1, side)
        extent = rng.integers(side // 4, side * 5 // 7, count)
        start = rng.integers(0, side - extent + 1)[:, None]
        places = np.arange(side)
        inside.append(np.reshape((places >= start) & (places < start + extent[:, None]), shape))
        shift = rng.integers(-(side // 3), side // 3 + 1, count)
        pixels.append(np.reshape((places + shift[:, None]) % side, shape))
    pasted = images[donors[:, None, None], pixels[0], pixels[1]]
    return np.where((inside[0] & inside[1])[..., None], pasted, images)


def warps(images: Images, rng: np.random.Generator) -> Images:
    """Returns images whose pixels have moved along a smooth field, by up to a fifth of the side."""
    count, height, width, _ = images.shape
    # The field is a sum of 5 x 5 bumps with random heights.
    bumps = [np.exp(-np.square(np.linspace(-1, 5, side)[:, None] - np.arange(5))) for side in (height, width)]
    field = np.einsum("ai,nkij,bj->nkab", bumps[0], rng.normal(size=(count, 2, 5, 5)), bumps[1], optimize=True)
    largest = np.max(np.abs(field), axis=(2, 3), keepdims=True)
    field *= rng.uniform(0.1, 0.2, (count, 2, 1, 1)) * np.reshape([height, width], (2, 1, 1)) / largest
    rows = np.clip(np.arange(height)[:, None] + field[:, 0], 0, height - 1)
    columns = np.clip(np.arange(width) + field[:, 1], 0, width - 1)
    top, left = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    sample = np.arange(count)[:, None, None]
    result = (1 - down) * (1 - right) * images[sample, top, left] + (1 - down) * right * images[sample, top, left + 1]
    result += down * (1 - right) * images[sample, top + 1, left] + down * right * images[sample, top + 1, left + 1]
    return result.astype("float32")


def noise(images: Images, rng: np.random.Generator) -> Images:
    """Returns images of independent uniform pixels, which the paper's walks begin from."""
    return rng.random(images.shape, dtype="float32")


SOURCES = {"collages": collages, "warps": warps, "noise": noise}


# --- the detector ----------------------------------------------------------------------------------------------------


class Detector:
    """A network that is trained again from its first weights for each normal class, so that it is compiled once."""

    def __init__(self, shape: tuple[int, ...], setting: Setting, walk: int, sources: Sequence[str]) -> None:
        self.setting, self.walk_steps, self.sources = setting, walk, sources
        self.model = build(shape, setting.units)
        steps = setting.rounds * -(-2 * setting.images // setting.batch_size)
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps))
        self.model.compile(optimizer, lip.losses.HingeKR(alpha=10.0, min_margin=setting.min_margin))
        optimizer.build(self.model.trainable_variables)
        self._variables = [*self.model.variables, *optimizer.variables]
        self._start = [keras.ops.convert_to_numpy(variable) for variable in self._variables]
        self._gradients = gradients(self.model)

    def fit(self, images: Images, rng: np.random.Generator) -> Images:
        """Trains on the images of one class, and returns the made images of the last round."""
        for variable, value in zip(self._variables, self._start, strict=True):
            variable.assign(value)
        count = self.setting.images
        labels = np.repeat(np.array([1.0, 0.0], "float32"), count)
        for _ in range(self.setting.rounds):
            # As many for each class: shapes that change would be compiled again.
            normal = images[rng.permutation(np.resize(np.arange(len(images)), count))]
            parts = np.array_split(rng.permutation(normal), len(self.sources))
            starts = [SOURCES[source](part, rng) for source, part in zip(self.sources, parts, strict=True)]
            made = self.walk(np.concatenate(starts), rng)
            self.model.fit(np.concatenate([normal, made]), labels, batch_size=self.setting.batch_size, verbose=0)
        return made

    def walk(self, images: Images, rng: np.random.Generator) -> Images:
        """Moves images towards the boundary {f = -margin} by Newton's method, a random share of the way each.

        Images that are above the boundary stay: they look normal to f, and are what it has to learn.
        """
        share = rng.random((len(images), 1, 1, 1), dtype="float32") / max(self.walk_steps, 1)
        size = self.setting.batch_size
        result = []
        for start in range(0, len(images), size):
            rows = np.arange(start, start + size) % len(images)
            batch = images[rows]
            for _ in range(self.walk_steps):
                scores, slopes = self._gradients(batch)
                squares = np.sum(slopes**2, axis=(1, 2, 3), keepdims=True)
                missing = np.maximum(-self.setting.min_margin - scores[:, :, None, None], 0)
                batch = np.clip(batch + share[rows] * missing * slopes / np.maximum(squares, 1e-6), 0, 1)
            result.append(batch)
        return np.concatenate(result)[: len(images)]

    def scores(self, images: Images) -> Images:
        """Returns f, of shape (samples,): the larger, the more normal."""
        scores: Images = self.model.predict(images, batch_size=1000, verbose=0)[:, 0]
        return scores


def build(shape: tuple[int, ...], units: int) -> keras.Model:
    layers = lip.layers
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            *[layers.SpectralDense(units, activation=layers.MaxMin()) for _ in range(3)],
            layers.SpectralDense(1),
        ],
        name="one_class",
    )


def gradients(model: keras.Model) -> Gradients:
    """Returns a function from images to scores and their gradients, which each backend has its own way to compute."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def in_graph(images: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(images)
                scores = model(images)
            return scores, tape.gradient(scores, images)

        return of_arrays(in_graph)
    if backend == "jax":
        import jax

        @jax.jit
        def stateless(trainable: Any, fixed: Any, images: Any) -> tuple[Any, Any]:
            def total(images: Any) -> tuple[Any, Any]:
                scores, _ = model.stateless_call(trainable, fixed, images)
                return scores.sum(), scores

            (_, scores), slopes = jax.value_and_grad(total, has_aux=True)(images)
            return scores, slopes

        def jitted(images: Any) -> tuple[Any, Any]:
            trainable = [variable.value for variable in model.trainable_variables]
            return stateless(trainable, [variable.value for variable in model.non_trainable_variables], images)

        return of_arrays(jitted)
    import torch

    def eager(images: Any) -> tuple[Any, Any]:
        images.requires_grad_()
        scores = model(images)
        return scores, torch.autograd.grad(scores.sum(), images)[0]

    return of_arrays(eager)


def of_arrays(compute: Callable[[Any], tuple[Any, Any]]) -> Gradients:
    def run(images: Images) -> tuple[Images, Images]:
        scores, slopes = compute(keras.ops.convert_to_tensor(images))
        return keras.ops.convert_to_numpy(scores), keras.ops.convert_to_numpy(slopes)

    return run


# --- results ---------------------------------------------------------------------------------------------------------


def certified_auroc(certificate: lip.Certificate, scores: Images, normal: Normal, radii: npt.ArrayLike) -> Array:
    """Returns the AUROC that no perturbation of the images within each l2 radius can go below.

    Scores of normal images can fall by no more than the certificate says, and those of anomalies not rise by more; the
    AUROC is the smallest where all of them do.
    """
    shifts = certificate.output_change(radii)
    worst = [np.where(normal, scores - shift, scores + shift) for shift in shifts]
    return np.array([roc_auc_score(normal, shifted) for shifted in worst])


def distances(normal: Images, images: Images) -> Array:
    """Returns for each image the l2 distance to the nearest normal one, which f would be minus in the ideal case."""
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(normal.reshape(len(normal), -1))
    nearest: Array = neighbours.kneighbors(images.reshape(len(images), -1))[0][:, 0]
    return nearest


def print_row(name: str, row: Sequence[float]) -> None:
    *aurocs, nearest, seconds = row
    cells = "".join(f"{100 * auroc:8.2f}" for auroc in aurocs)
    print(f"  {name:>6}{cells}{100 * nearest:10.2f}{seconds:10.1f}", flush=True)


def plot(radii: Array, curves: Array, made: list[tuple[Images, Images]], dataset: str, path: pathlib.Path) -> None:
    """Draws the certified AUROC of each class and their mean, and normal images above made ones."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=[1.2, 1])
    left.plot(radii, 100 * curves.T, color="C0", alpha=0.3, linewidth=1)
    left.plot(radii, 100 * np.mean(curves, axis=0), color="C0", linewidth=2.5, label="mean of the classes")
    left.set(xlim=(0, radii[-1]), ylim=(0, 100), xlabel="l2 radius (pixels in [0, 1])", ylabel="certified AUROC (%)")
    left.set_title(f"{dataset}: no perturbation within the radius leads below")
    left.grid(alpha=0.3)
    left.legend()
    picked = np.linspace(0, len(made) - 1, 6).astype(int)

    def framed(image: Images) -> Images:
        return np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=0.5)

    columns = [
        np.concatenate([framed(images[0]), *map(framed, pictures[:: len(pictures) // 4][:4])])
        for images, pictures in (made[index] for index in picked)
    ]
    right.imshow(np.concatenate(columns, axis=1), cmap="gray")
    right.set_title("normal images, and four made from each class")
    right.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
