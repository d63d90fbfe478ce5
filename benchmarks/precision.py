"""Certified accuracy on MNIST after training in float32 and in mixed precision.

    TFDS_DATA_DIR=... KERAS_BACKEND=jax python benchmarks/precision.py

Trains a small convolutional net under each dtype policy from the same seeds. What is certified is the fold to float32,
`vanilla_model(model, dtype="float32")`: the same weights, computed with in float32. Printed are means over seeds, in
per cent, with the difference to float32 in points and the standard error of that, and the largest and the smallest
singular value of the float32 kernels.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks` and `examples`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import deel_like_lip as lip
from benchmarks._common import compile_hkr, singular_values
from examples.quickstart import load

RADII = (0.0, 0.3, 0.5, 1.0)
BATCH = 256


def build(shape: tuple[int, ...], classes: int) -> keras.Model:
    layers = lip.layers
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.LipConv2D(8, 5, strides=2, padding="same"),
            layers.GroupSort2(),
            keras.layers.Flatten(),
            layers.SpectralDense(64),
            layers.MaxMin(),
            layers.SpectralDense(classes),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training set (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each policy (default: %(default)s)")
    parser.add_argument(
        "--policies",
        nargs="+",
        default=["float32", "mixed_float16", "mixed_bfloat16"],
        help="dtype policies, of which the others are compared to the first (default: %(default)s)",
    )
    options = parser.parse_args()
    (images, labels), (test_images, test_labels) = load("mnist")
    steps = options.epochs * -(-len(images) // BATCH)
    print(f"MNIST, {keras.backend.backend()}, {options.epochs} epochs, {options.seeds} seeds; radii {RADII}")
    shares: dict[str, np.ndarray] = {}
    for policy in options.policies:
        start = time.monotonic()
        each, values = [], []
        for seed in range(options.seeds):
            keras.utils.set_random_seed(seed)
            keras.config.set_dtype_policy(policy)
            model = build(images.shape[1:], 10)
            keras.config.set_dtype_policy("float32")
            compile_hkr(model, steps)
            model.fit(
                images,
                labels,
                batch_size=BATCH,
                epochs=options.epochs,
                verbose=0,
                callbacks=[lip.callbacks.RenormalizeCallback()],
            )
            values.append(singular_values(model))
            plain = lip.vanilla_model(model, dtype="float32")
            each.append(lip.certified_accuracy(plain, (test_images, test_labels), RADII))
        shares[policy] = 100 * np.array(each)
        print(f"\n{policy}, {type(model.optimizer).__name__}, {(time.monotonic() - start) / options.seeds:.0f} s each")
        print("  certified  " + "".join(f"{share:8.2f}" for share in shares[policy].mean(axis=0)))
        if policy != options.policies[0]:
            points = shares[policy] - shares[options.policies[0]]
            errors = points.std(axis=0, ddof=1) / len(points) ** 0.5 if len(points) > 1 else np.full(len(RADII), np.nan)
            print("  points     " + "".join(f"{mean:+8.2f}" for mean in points.mean(axis=0)))
            print("  their error" + "".join(f"{error:8.2f}" for error in errors))
        print(f"  singular values in [{np.min(values):.7f}, {np.max(values):.7f}]")


if __name__ == "__main__":
    main()
