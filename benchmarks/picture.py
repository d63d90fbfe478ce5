"""The picture of the README: certified accuracy of the quickstart's network on MNIST, beside published figures.

    TFDS_DATA_DIR=... python benchmarks/picture.py

Trains the network as `examples/quickstart.py --dataset mnist` does, and writes docs/images/certified_accuracy.png.
"""

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


def main() -> None:
    (images, labels), test = load("mnist")
    setting = SETTINGS["mnist"]
    keras.utils.set_random_seed(0)
    model = build(images.shape[1:], classes=10)
    compile_hkr(model, setting.epochs * -(-len(images) // setting.batch_size), setting.min_margin)
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(images, labels, batch_size=setting.batch_size, epochs=setting.epochs, verbose=2, callbacks=callbacks)
    radii = np.linspace(0, 2.5, 251).tolist()
    shares = lip.certified_accuracy(model, test, radii, batch_size=1000)
    for radius in setting.radii:
        print(f"{radius:4.2f}  {100 * np.interp(radius, radii, shares):.1f} %")
    axes = lip.plot_certified_accuracy(radii, {"deel-like-lip, quickstart": shares}, unit="pixels in [0, 1]")
    for (name, points), marker in zip(OTHERS.items(), MARKERS, strict=True):
        axes.plot(
            list(points),
            list(points.values()),
            marker,
            color=f"C{1 + MARKERS.index(marker)}",
            label=name,
            clip_on=False,
        )
    axes.legend(loc="upper right")
    axes.set_title("MNIST: no perturbation within the radius changes the answer")
    axes.figure.savefig(PICTURE, dpi=110)
    plt.close(axes.figure)


if __name__ == "__main__":
    main()
