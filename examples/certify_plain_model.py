"""Certify and export a plain Keras network, whose code knows nothing of this library.

    python examples/certify_plain_model.py    # scikit-learn's handwritten digits: no download, under a minute

`train` is any team's training script: convolutions, batch normalization, max pooling, cross entropy, and a .keras file
at the end. `certify` is what is done with that file. Nothing held the constants in training, so they are large and the
radii small: the layers and losses of this library are there to make them larger.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings

import keras
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

RADII = (0.0, 0.01, 0.02, 0.03, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training set (default: %(default)s)")
    parser.add_argument("--output", default="plain-output", help="folder for the results (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial kernels and the order of samples")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    print(f"Keras {keras.__version__} on the {keras.backend.backend()} backend")
    train(output / "trained.keras", options.epochs)
    certify(output / "trained.keras", output)


def load() -> tuple[Images, Images, Labels, Labels]:
    digits = load_digits()
    images = (digits.images / 16).astype("float32")[..., None]
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return train, test, train_labels, test_labels


def train(path: pathlib.Path, epochs: int) -> None:
    images, test_images, labels, test_labels = load()
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ],
        name="digits_cnn",
    )
    steps = epochs * -(-len(images) // 32)
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps), weight_decay=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(images, labels, batch_size=32, epochs=epochs, verbose=2, validation_data=(test_images, test_labels))
    model.save(path)


def certify(path: pathlib.Path, output: pathlib.Path) -> None:
    import deel_like_lip as lip

    model = keras.saving.load_model(path)
    certificate = lip.certify(model)
    plain = lip.vanilla_model(model)
    lip.export_saved_model(model, output / "served")

    _, images, _, labels = load()
    print(f"\n{certificate.summary()}\n")
    logits = plain.predict(images, verbose=0)
    shares = certificate.certified_accuracy(logits, labels, RADII, inputs=images)
    print("accuracy on the test set, under any perturbation of the image up to an l2 distance, pixels in [0, 1]")
    print("  l2 radius   accuracy")
    for radius, share in zip(RADII, shares, strict=True):
        print(f"  {radius:9.2f}   {share:8.2%}   {'certified' if radius else 'clean'}")
    print(f"\nIn {output}: trained.keras, and served (SavedModel with its certificate inside)")


if __name__ == "__main__":
    main()
