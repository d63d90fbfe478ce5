"""Certified accuracy on CIFAR-10, l2, pixels in [0, 1], beside what is published: for an accelerator.

    python examples/cifar10_records.py                                 # all recipes, one net each; the images come
    python examples/cifar10_records.py --recipes lip_conv_net_xs       # through tensorflow-datasets
    python examples/cifar10_records.py --dataset stand-in --epochs 1   # coloured noise of the same shape, to try it

What is reported is certified by the plain Keras model that a training ends in, saved and loaded again. No figures of
these recipes are known yet: they follow the papers, and were run on the stand-in only.
"""

import functools
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `examples`

import keras
import numpy as np

import deel_like_lip as lip
from examples._records import Data, Problem, Recipe, run
from examples.quickstart import Images, Labels, load

PADDING = 4


def cropped(images: Images, rng: np.random.Generator) -> Images:
    """Returns images that are shifted by up to four pixels, and every other one mirrored."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left = rng.integers(0, 2 * PADDING + 1, (2, count, 1, 1))
    columns = np.where(rng.random((count, 1, 1)) < 0.5, np.arange(width), np.arange(width)[::-1])
    result: Images = padded[np.arange(count)[:, None, None], top + np.arange(height)[:, None], left + columns]
    return result


def stand_in() -> Data:
    """Returns a few images of noise around one colour for each class, of the shape and the classes of CIFAR-10."""
    rng = np.random.default_rng(0)
    colours = rng.random((10, 1, 1, 3))

    def images(count: int) -> tuple[Images, Labels]:
        labels = np.arange(count) % 10
        noise = 0.2 * rng.standard_normal((count, 32, 32, 3))
        return np.clip(colours[labels] + noise, 0, 1).astype("float32"), labels

    return images(640), images(200)


def lip_conv_net(shape: tuple[int, ...], classes: int, size: str, parametrization: str) -> keras.Model:
    return lip.models.lip_conv_net(size, shape, classes, parametrization=parametrization, head="unit_norm")


def li_resnet(shape: tuple[int, ...], classes: int, depth: int, width: int, units: int) -> keras.Model:
    return lip.models.li_resnet(shape, classes, depth=depth, width=width, units=units)


# The network and the kind of loss of "1-Lipschitz layers compared" (Prach et al., 2023,
# https://arxiv.org/abs/2311.16833). A lead of sqrt(2) eps is a radius of eps where rows of the head are orthogonal.
COMPARED = Recipe(
    build=functools.partial(lip_conv_net, size="XS", parametrization="aoc"),
    loss=functools.partial(lip.losses.OffsetCategoricalCrossentropy, offset=2 * 2**0.5 * 36 / 255, tau=4.0),
    epochs=100,
    batch_size=256,
    rate=1e-2,
    optimizer=keras.optimizers.Adam,
    augment=cropped,
)
# LiResNet and the kind of its loss (Hu et al., 2023, https://arxiv.org/abs/2301.12549).
MARGINS = functools.partial(lip.losses.EMMA, epsilon=108 / 255, tau=4.0)

PROBLEM = Problem(
    datasets={"cifar10": functools.partial(load, "cifar10"), "stand-in": stand_in},
    radii=(0.0, 36 / 255, 72 / 255, 108 / 255, 1.0),
    recipes={
        "lip_conv_net_xs": COMPARED,
        "lip_conv_net_s": COMPARED._replace(
            build=functools.partial(lip_conv_net, size="S", parametrization="aoc"), epochs=200
        ),
        "lip_conv_net_xs_aol": COMPARED._replace(
            build=functools.partial(lip_conv_net, size="XS", parametrization="aol"), rate=3e-2
        ),
        "li_resnet": COMPARED._replace(
            build=functools.partial(li_resnet, depth=12, width=512, units=2048), loss=MARGINS, epochs=200, rate=1e-3
        ),
        "li_resnet_small": COMPARED._replace(
            build=functools.partial(li_resnet, depth=4, width=64, units=256), loss=MARGINS, rate=3e-3
        ),
    },
    # Without additional data; the best of each paper.
    published={
        "1-Lipschitz layers compared (2311.16833)": {36 / 255: 66.3},
        "BRONet (2505.15174)": {36 / 255: 70.6},
    },
)

if __name__ == "__main__":
    run(PROBLEM, str(__doc__), "cifar10-records-output")
