"""A long training: does memory stay flat, and are kernels still orthogonal at the end?

    KERAS_BACKEND=jax python benchmarks/soak.py

Trains a small net for 20,000 steps, some minutes, on noisy class centres that are drawn once. Printed are the resident
memory of the process before training, after each tenth of it, and how far singular values are from 1 at the end.
"""

import argparse
import gc
import os
import pathlib
import sys
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import deel_like_lip as lip
from benchmarks._common import CLASSES, samples, singular_values

SHAPE, BATCH, PARTS = (8, 8, 1), 32, 10


class Soaked(NamedTuple):
    """Resident memory in MiB, before training and after each part of it, losses of the parts, and the largest
    difference of a singular value from that of an orthogonal kernel, relative to it.
    """

    memory: list[float]
    losses: list[float]
    deviation: float


def build() -> keras.Model:
    layers = lip.layers
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.LipConv2D(8, 3, padding="same"),
            layers.GroupSort2(),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(32),
            layers.MaxMin(),
            layers.SpectralDense(CLASSES),
        ]
    )


def soak(steps: int) -> Soaked:
    """Trains the net for so many steps."""
    model = build()
    inputs, labels = samples(SHAPE, BATCH * (steps // PARTS))
    inputs = np.asarray(inputs)
    model.compile(keras.optimizers.Adam(1e-3), lip.losses.MulticlassHKR(alpha=50.0))
    memory, losses = [resident()], []
    for _ in range(PARTS):
        history = model.fit(
            inputs, labels, batch_size=BATCH, verbose=0, callbacks=[lip.callbacks.RenormalizeCallback()]
        ).history
        losses.append(history["loss"][0])
        memory.append(resident())
    return Soaked(memory, losses, float(np.max(np.abs(singular_values(model) - 1))))


def resident() -> float:
    """Returns the memory of this process in MiB."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="steps of training (default: %(default)s)")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    start = time.monotonic()
    found = soak(options.steps)
    seconds = time.monotonic() - start
    print(f"{keras.backend.backend()}: {options.steps} steps of batch {BATCH} in {seconds:.0f} s")
    print("resident MiB  " + " ".join(f"{value:.1f}" for value in found.memory))
    print(f"after warm-up (a tenth) {found.memory[1]:.1f}, at the end {found.memory[-1]:.1f}")
    print("mean loss     " + " ".join(f"{loss:.3f}" for loss in found.losses))
    print(f"singular values are within {found.deviation:.1e} of those of orthogonal kernels")


if __name__ == "__main__":
    main()
