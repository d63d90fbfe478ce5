"""What a margin, alpha and temperature do: clean and certified accuracy of one dense net on MNIST for each of several.

    TFDS_DATA_DIR=... python benchmarks/hyperparameters.py

docs/choosing-losses.md has the table. Settings are compared on the last tenth of the training set, which is not trained
on.
"""

import argparse
import os
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks` and `examples`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import deel_like_lip as lip
from benchmarks.rounding import dense_net
from examples.quickstart import load

RADII = (0.0, 0.1, 0.3, 0.5, 1.0, 1.58)


def hkr(alpha: float, margin: float, weight: float = 9.0) -> Any:
    return lip.losses.MulticlassHKR(alpha=alpha, min_margin=margin, true_class_weight=weight)


def cross_entropy(tau: float) -> Any:
    return lip.losses.TauSparseCategoricalCrossentropy(tau=tau)


SETTINGS = {
    **{f"MulticlassHKR, alpha 50, margin {margin}": hkr(50.0, margin) for margin in (0.1, 0.3, 0.5, 1.0, 2.0)},
    **{f"MulticlassHKR, alpha {alpha:g}, margin 1": hkr(alpha, 1.0) for alpha in (5, 500)},
    "MulticlassHKR, alpha 50, margin 1, true_class_weight 1": hkr(50.0, 1.0, 1.0),
    "MulticlassHinge, margin 1, true_class_weight 9": lip.losses.MulticlassHinge(1.0, true_class_weight=9.0),
    **{f"TauSparseCategoricalCrossentropy, tau {tau:g}": cross_entropy(tau) for tau in (1, 5, 20, 100)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training set (default: %(default)s)")
    parser.add_argument("--only", default="", help="settings whose names contain this")
    options = parser.parse_args()
    (images, labels), _ = load("mnist")
    held = len(images) // 10
    data = (images[:-held], labels[:-held]), (images[-held:], labels[-held:])
    print("| | " + " | ".join(f"{radius:g}" if radius else "clean" for radius in RADII) + " | seconds |")
    print("|---|" + "---|" * (len(RADII) + 1))
    for name, loss in SETTINGS.items():
        if options.only in name:
            print(f"| {name} | {' | '.join(figures(loss, options.epochs, data))} |", flush=True)


def figures(loss: Any, epochs: int, data: Any) -> list[str]:
    """Trains the net with a loss, and returns its certified accuracies and the seconds that it took."""
    (images, labels), held_out = data
    keras.utils.set_random_seed(0)
    model = dense_net(images.shape[1:], 10)
    steps = epochs * -(-len(images) // 256)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)), loss)
    start = time.monotonic()
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(images, labels, batch_size=256, epochs=epochs, verbose=0, callbacks=callbacks)
    seconds = time.monotonic() - start
    shares = lip.certified_accuracy(model, held_out, RADII, batch_size=1000)
    return [*(f"{100 * share:.1f}" for share in shares), f"{seconds:.0f}"]


if __name__ == "__main__":
    main()
