"""Time of a training step against plain Keras of the same widths, alternating in one process.

    KERAS_BACKEND=jax python benchmarks/step_time.py

Prints for each net the median over rounds of the ratio of the two. Machines are noisy: only ratios that are taken in
turn count.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import deel_like_lip as lip

BATCH = 256
NETS = {"mlp_small": (784, 256, 256, 10), "mlp_wide": (784, 1024, 1024, 1024, 1024, 10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="times that the contenders take turns (default: 7)")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a turn (default: 20)")
    options = parser.parse_args()
    print(f"Keras {keras.__version__}, {keras.backend.backend()}, batch {BATCH}: step time against plain Keras")
    for name, widths in NETS.items():
        plain = plain_net(widths)
        contenders = {
            "layers": (lipschitz_net(widths), []),
            "and callback": (lipschitz_net(widths), [lip.callbacks.RenormalizeCallback()]),
        }
        for model, callbacks in [(plain, []), *contenders.values()]:
            seconds_per_step(model, callbacks, options.steps)  # compiles
        ratios: dict[str, list[float]] = {label: [] for label in contenders}
        for _ in range(options.rounds):
            reference = seconds_per_step(plain, [], options.steps)
            for label, (model, callbacks) in contenders.items():
                ratios[label].append(seconds_per_step(model, callbacks, options.steps) / reference)
        shown = ", ".join(f"{label} {statistics.median(values):.2f}" for label, values in ratios.items())
        print(f"{name:10s} plain {1e3 * reference:.1f} ms, ratios: {shown}", flush=True)


def plain_net(widths: tuple[int, ...]) -> keras.Model:
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths[1:-1]]
    model = keras.Sequential([keras.Input(widths[:1]), *hidden, keras.layers.Dense(widths[-1])])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def lipschitz_net(widths: tuple[int, ...]) -> keras.Model:
    hidden = [lip.layers.SpectralDense(width, activation=lip.layers.MaxMin()) for width in widths[1:-1]]
    model = keras.Sequential([keras.Input(widths[:1]), *hidden, lip.layers.SpectralDense(widths[-1])])
    model.compile("adam", lip.losses.MulticlassHKR())
    return model


def seconds_per_step(model: keras.Model, callbacks: list[keras.callbacks.Callback], steps: int) -> float:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(BATCH * steps, model.input_shape[1])).astype("float32")
    labels = rng.integers(0, 10, BATCH * steps)
    start = time.perf_counter()
    model.fit(inputs, labels, batch_size=BATCH, verbose=0, callbacks=callbacks)
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
