"""Train a classifier with a certificate, fold it, export it, and serve it from TensorFlow alone.

    python examples/quickstart.py                    # scikit-learn's handwritten digits: no download, under a minute
    python examples/quickstart.py --dataset mnist    # or fashion_mnist, cifar10: through tensorflow-datasets

Choose the backend with the environment variable KERAS_BACKEND: tensorflow (the default), jax or torch.
"""

import argparse
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings

import keras
import numpy as np
import numpy.typing as npt

import deel_like_lip as lip

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Setting(NamedTuple):
    """What differs between datasets: images of small norm allow small margins only."""

    epochs: int
    batch_size: int
    min_margin: float
    radii: tuple[float, ...]


SETTINGS = {
    "digits": Setting(20, 32, 0.4, (0.0, 0.1, 0.2, 0.3, 0.5)),
    "mnist": Setting(10, 256, 0.8, (0.0, 0.3, 0.5, 1.0, 1.58)),
    "fashion_mnist": Setting(10, 256, 0.5, (0.0, 0.1, 0.3, 0.5, 1.0)),
    "cifar10": Setting(10, 256, 0.2, (0.0, 36 / 255, 72 / 255, 108 / 255, 1.0)),
}

# What a serving team does: TensorFlow, the SavedModel, and neither Keras nor this library.
SERVE = """
import sys
for name in ("keras", "deel_like_lip"):
    sys.modules[name] = None  # importing it would fail
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
images = tf.constant(np.load(sys.argv[2]))
answers = served.certify(images)
np.savez(sys.argv[3], logits=served.serve(images), answers=answers["class"], radii=answers["radius"])
"""


def main() -> None:
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    (train_images, train_labels), (test_images, test_labels) = load(options.dataset)
    print(f"{options.dataset}: {len(train_images)} images to train on, {len(test_images)} to test, pixels in [0, 1]")
    print(f"Keras {keras.__version__} on the {keras.backend.backend()} backend\n")

    model = build(train_images.shape[1:], classes=int(train_labels.max()) + 1)
    setting = SETTINGS[options.dataset]
    steps = options.epochs * -(-len(train_images) // setting.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        # The hinge of the true class has the weight of the nine others together.
        loss=lip.losses.MulticlassHKR(alpha=50.0, min_margin=setting.min_margin, true_class_weight=9.0),
        metrics=["accuracy", lip.metrics.CertifiedAccuracy(setting.radii[2])],
    )
    model.fit(
        train_images,
        train_labels,
        batch_size=setting.batch_size,
        epochs=options.epochs,
        validation_data=(test_images, test_labels),
        callbacks=[lip.callbacks.RenormalizeCallback()],
    )

    certificate = lip.certify(model)
    print(f"\n{certificate.summary()}\n")

    logits = model.predict(test_images, verbose=0)
    print_accuracy(certificate, logits, test_labels, setting.radii)
    plot(certificate, logits, test_labels, options.dataset, output / "certified_accuracy.png")

    lip.vanilla_model(model).save(output / "plain.keras")
    lip.export_saved_model(model, output / "served", input_range=(0, 1))
    prove_serving(output, certificate, test_images, logits)
    print(f"\nIn {output}: plain.keras (built-in Keras layers only), served (SavedModel with its certificate inside)")
    print("and certified_accuracy.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETTINGS, default="digits", help="what to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="passes over the training set (default: 20 for digits, else 10)")
    parser.add_argument("--output", default="quickstart-output", help="folder for the results (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial kernels and the order of samples")
    options = parser.parse_args()
    if options.epochs is None:
        options.epochs = SETTINGS[options.dataset].epochs
    if options.epochs < 1:
        parser.error(f"--epochs must be positive, not {options.epochs}")
    return options


def load(dataset: str) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Returns the training and the test set, images of shape (samples, height, width, channels) in [0, 1]."""
    if dataset == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = (digits.images / 16).astype("float32")[..., None]
        train, test, train_labels, test_labels = train_test_split(
            images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
        )
        return (train, train_labels), (test, test_labels)
    import tensorflow_datasets as tfds

    def split(name: str) -> tuple[Images, Labels]:
        images, labels = tfds.as_numpy(tfds.load(dataset, split=name, batch_size=-1, as_supervised=True))
        return images.astype("float32") / 255, labels

    return split("train"), split("test")


def build(shape: tuple[int, ...], classes: int) -> keras.Model:
    layers = lip.layers
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.LipConv2D(16, 4, strides=2, padding="same", activation=layers.GroupSort2()),
            keras.layers.Flatten(),
            layers.SpectralDense(128, activation=layers.GroupSort2()),
            layers.SpectralDense(128, activation=layers.GroupSort2()),
            layers.SpectralDense(classes),
        ],
        name="quickstart",
    )


def print_accuracy(certificate: lip.Certificate, logits: Images, labels: Labels, radii: Sequence[float]) -> None:
    shares = certificate.certified_accuracy(logits, labels, radii)
    print("accuracy on the test set, under any perturbation of the image up to an l2 distance")
    print("  l2 radius   accuracy")
    for radius, share in zip(radii, shares, strict=True):
        print(f"  {radius:9.2f}   {share:8.2%}   {'certified' if radius else 'clean'}")


def plot(certificate: lip.Certificate, logits: Images, labels: Labels, dataset: str, path: pathlib.Path) -> None:
    radii = np.linspace(0, 1.6 * SETTINGS[dataset].radii[-1], 400).tolist()
    shares = certificate.certified_accuracy(logits, labels, radii)
    title = f"{dataset}: no perturbation within the radius changes the answer"
    lip.plot_certified_accuracy(radii, shares, path=path, unit="pixels in [0, 1]", title=title)


def prove_serving(output: pathlib.Path, certificate: lip.Certificate, images: Images, logits: Images) -> None:
    """Loads the SavedModel in a fresh process that has TensorFlow only, and compares answers and radii."""
    inputs, outputs = output / "test_images.npy", output / "served.npz"
    np.save(inputs, images)
    command = [sys.executable, "-c", SERVE, str(output / "served"), str(inputs), str(outputs)]
    served = subprocess.run(command, capture_output=True, text=True, check=False)
    if served.returncode:
        raise SystemExit(f"TensorFlow alone could not serve the SavedModel:\n{served.stderr}")
    with np.load(outputs) as results:
        difference = float(np.max(np.abs(results["logits"] - logits)))
        same = np.array_equal(results["answers"], np.argmax(logits, axis=1))
        excess = float(np.max(results["radii"] - certificate.radius(logits)))
        radius = float(np.median(results["radii"]))
    inputs.unlink()
    outputs.unlink()
    print(f"\nThe SavedModel, loaded by TensorFlow alone, differs by at most {difference:.1e} from the trained model.")
    print(f"It gives the same answers and certified radii, none above the library's; their median is {radius:.3f}")
    if difference > 1e-4 or not same or excess > 0:
        raise SystemExit("The SavedModel does not answer what the model answers.")


if __name__ == "__main__":
    main()
