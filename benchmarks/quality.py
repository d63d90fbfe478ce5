"""What the fast scheme costs in certified accuracy: MNIST, beside exact re-orthogonalisation in every step.

    TFDS_DATA_DIR=... python benchmarks/quality.py

Trains the same nets for the same epochs from the same seeds twice: as the layers do it, and with each kernel replaced
by its polar factor, to the last digit, after every step. Ends with an error if the fast scheme is worse than the spread
of seeds.

Between projections the fast scheme keeps kernels some per cent below their norm, which acts like a larger margin: less
accuracy at small radii, more at large ones. `--fast-margin 0.94` compares at the same place of that trade-off.
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
import numpy as np

import deel_like_lip as lip
from benchmarks._common import compile_hkr
from benchmarks.rounding import dense_net
from deel_like_lip.parametrizations import Orthogonal
from examples.quickstart import build as quickstart_net
from examples.quickstart import load

RADII = (0.0, 0.3, 1.0, 1.58)
NETS = {"dense": dense_net, "conv": quickstart_net}
# Of a figure over seeds: differences of two means of three that chance alone exceeds about once in twenty.
SPREADS = 2.0


class Exact(Orthogonal):
    """Projects to the last digit where `Orthogonal` does what is enough."""

    def retract(self, weight: object) -> object:
        return self.project(self.project(weight))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["dense"], help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training set (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--fast-margin", type=float, default=1.0, help="margin of the fast scheme (default: 1)")
    options = parser.parse_args()
    margins = {"fast": options.fast_margin, "exact": 1.0}
    data = load("mnist")
    print(f"MNIST, {keras.backend.backend()}, {options.epochs} epochs; certified accuracy in %, radii in [0, 1] pixels")
    worse = False
    for net in options.nets:
        print(f"\n{net:8}  seed " + "".join(f"  r={radius:<6}" for radius in RADII) + "  mean radius   time")
        fast, exact = (
            np.array([figures(net, scheme, seed, options.epochs, data, margin) for seed in range(options.seeds)])
            for scheme, margin in margins.items()
        )
        difference = fast.mean(axis=0) - exact.mean(axis=0)
        spread = np.sqrt((fast.var(axis=0, ddof=1) + exact.var(axis=0, ddof=1)) / options.seeds)
        for name, row in (("fast - exact", difference), ("spread", spread)):
            print(f"{name:15}" + "".join(f"{value:9.2f} " for value in row[:-1]) + f"{row[-1]:11.4f}")
        worse |= bool(np.any(difference < -SPREADS * spread))
    return int(worse)


def figures(net: str, scheme: str, seed: int, epochs: int, data: Any, min_margin: float) -> list[float]:
    """Trains a net and returns its certified accuracies and its mean certified radius."""
    (images, labels), (test_images, test_labels) = data
    keras.utils.set_random_seed(seed)
    model = NETS[net](images.shape[1:], 10)
    if scheme == "exact":
        model = keras.models.clone_model(model, clone_function=exactly)
    steps = epochs * -(-len(images) // 256)
    compile_hkr(model, steps, min_margin)
    start = time.monotonic()
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(images, labels, batch_size=256, epochs=epochs, verbose=0, callbacks=callbacks)
    seconds = time.monotonic() - start
    certificate = lip.certify(model)
    logits = model.predict(test_images, batch_size=1000, verbose=0)
    shares = [100 * share for share in certificate.certified_accuracy(logits, test_labels, RADII)]
    radius = float(np.mean(certificate.radius(logits, targets=test_labels)))
    print(
        f"{scheme:8} {seed:5}" + "".join(f"{share:9.2f} " for share in shares) + f"{radius:11.4f} {seconds:8.0f} s",
        flush=True,
    )
    return [*shares, radius]


def exactly(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a copy of a layer, whose kernel is projected exactly."""
    config = layer.get_config()
    if "parametrization" in config:
        config["parametrization"] = Exact()
    return type(layer).from_config(config)


if __name__ == "__main__":
    sys.exit(main())
