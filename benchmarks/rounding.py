"""What `rounding="sound"` costs: certified accuracy on MNIST with radii of exact and of float32 arithmetic.

    TFDS_DATA_DIR=... python benchmarks/rounding.py

Trains two nets for ten epochs each, about two minutes in all.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks` and `examples`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import deel_like_lip as lip
from benchmarks._common import compile_hkr
from examples.quickstart import build as quickstart_net
from examples.quickstart import load

RADII = (0.0, 0.3, 0.5, 1.0, 1.58)


def dense_net(shape: tuple[int, ...], classes: int) -> keras.Model:
    layers = lip.layers
    hidden = [layers.SpectralDense(256, activation=layers.MaxMin()) for _ in range(3)]
    stack = [keras.Input(shape), keras.layers.Flatten(), *hidden, layers.SpectralDense(classes)]
    return keras.Sequential(stack, name="dense_256_256_256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training set (default: %(default)s)")
    options = parser.parse_args()
    (images, labels), (test_images, test_labels) = load("mnist")
    print(f"certified accuracy on MNIST, {keras.backend.backend()}, {options.epochs} epochs")
    for build in (quickstart_net, dense_net):
        keras.utils.set_random_seed(0)
        model = build(images.shape[1:], 10)
        steps = options.epochs * -(-len(images) // 256)
        compile_hkr(model, steps)
        start = time.monotonic()
        model.fit(images, labels, batch_size=256, epochs=options.epochs, verbose=0)
        print(f"\n{model.name}, trained in {time.monotonic() - start:.0f} s")
        print("  radius   " + "".join(f"{radius:8.2f}" for radius in RADII))
        logits = model.predict(test_images, verbose=0)
        shares = {}
        for rounding in ("exact", "sound"):
            certificate = lip.certify(model, rounding=rounding, input_range=(0, 1))
            shares[rounding] = certificate.certified_accuracy(logits, test_labels, RADII, inputs=test_images)
            print(f"  {rounding:8} " + "".join(f"{100 * share:8.2f}" for share in shares[rounding]))
        print("  points   " + "".join(f"{100 * loss:8.2f}" for loss in shares["exact"] - shares["sound"]))
        error = certificate.heads[0].rounding_error
        assert error is not None
        print(f"  float32 outputs are within {error.absolute:.1e} + {error.relative:.1e} |x| of the exact ones")


if __name__ == "__main__":
    main()
