"""The picture of the README: certified accuracy of the networks of the quickstart and the records, beside others.

    KERAS_BACKEND=jax python examples/mnist_records.py
    python benchmarks/picture.py --records mnist-records-output

Trains the network as `examples/quickstart.py --dataset mnist` does, certifies it and those of the records with seed 0,
and writes docs/images/certified_accuracy.png. MNIST comes through tensorflow-datasets.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `benchmarks` and `examples`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib.pyplot as plt
import numpy as np

import deel_like_lip as lip
from benchmarks._common import compile_hkr
from examples.quickstart import SETTINGS, build, load

PICTURE = pathlib.Path(__file__).parents[1] / "docs/images/certified_accuracy.png"
# In percent, by radius. The network of deel-lip's tutorial, 10 epochs, was trained and certified by deel-lip's Keras 3
# branch; the others are those of Li et al., 2019 (https://arxiv.org/abs/1911.00937), 200 epochs.
OTHERS = {
    "deel-lip, the network of its tutorial": {0.0: 97.6, 1.58: 0.1},
    "BCOP large (Li et al., 2019)": {0.0: 98.8, 0.3: 97.1, 1.58: 56.7},
    "BCOP small (Li et al., 2019)": {0.0: 97.5, 0.3: 95.1, 1.58: 45.8},
}
MARKERS = "os^"
RECORDS = ("accuracy", "radius")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=pathlib.Path, default="mnist-records-output", help="what examples/mnist_records.py wrote"
    )
    folder = parser.parse_args().records
    (images, labels), test = load("mnist")
    setting = SETTINGS["mnist"]
    keras.utils.set_random_seed(0)
    model = build(images.shape[1:], classes=10)
    compile_hkr(model, setting.epochs * -(-len(images) // setting.batch_size), setting.min_margin)
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(images, labels, batch_size=setting.batch_size, epochs=setting.epochs, verbose=2, callbacks=callbacks)
    radii = np.linspace(0, 2.5, 251).tolist()
    models = {"quickstart": model, **{name: keras.models.load_model(folder / f"{name}-0.keras") for name in RECORDS}}
    curves = {}
    for name, own in models.items():
        shares = curves[f"deel-like-lip, {name}"] = lip.certified_accuracy(own, test, radii, batch_size=1000)
        print(name, ", ".join(f"{100 * np.interp(r, radii, shares):.1f} % at {r:.3g}" for r in setting.radii))
    axes = lip.plot_certified_accuracy(radii, curves, unit="pixels in [0, 1]")
    for (name, points), marker in zip(OTHERS.items(), MARKERS, strict=True):
        axes.plot(
            list(points),
            list(points.values()),
            marker,
            color=f"C{len(curves) + MARKERS.index(marker)}",
            label=name,
            clip_on=False,
        )
    axes.legend(loc="lower left")
    axes.set_title("MNIST: no perturbation within the radius changes the answer")
    axes.figure.savefig(PICTURE, dpi=110)
    plt.close(axes.figure)


if __name__ == "__main__":
    main()
