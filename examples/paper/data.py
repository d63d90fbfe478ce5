"""The images that methods are compared on, pixels in [0, 1]."""

import os
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# Side of the images of faces, to which they are resized.
FACE_SIZE = 64


class Data(NamedTuple):
    """Images of shape (samples, height, width, channels), and integer labels.

    Attributes:
        train: Images and labels to train on.
        test: Images and labels to attack.
        outputs: Number of outputs of a net: 1 for two classes, otherwise that of the classes.
    """

    train: tuple[Images, Labels]
    test: tuple[Images, Labels]
    outputs: int


# Name: (what it is loaded as, the two digits of a binary problem)
DATASETS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "mnist-0-8": ("mnist", (0, 8)),
    "mnist": ("mnist", None),
    "fashion_mnist": ("fashion_mnist", None),
    "cifar10": ("cifar10", None),
    "celeb_a": ("celeb_a", None),
    "digits-0-8": ("digits", (0, 8)),
    "digits": ("digits", None),
}


def load(name: str, train_images: int | None, download: bool = False) -> Data:
    """Loads a dataset.

    Args:
        name: One of `DATASETS`.
        train_images: The largest number of images to train on; None for all.
        download: Whether tensorflow-datasets may download and prepare what it does not have.

    Raises:
        SystemExit: If tensorflow-datasets does not have it; the message says what to do.
    """
    source, digits = DATASETS[name]
    limit = train_images if digits is None else None
    if source == "digits":
        parts = _scikit_learn_digits()
    elif source == "celeb_a":
        parts = _prepared(_faces, source, limit, download)
    else:
        parts = _prepared(_images, source, limit, download)
    if digits is not None:
        parts = tuple(_two_classes(*part, *digits) for part in parts)  # type: ignore[assignment]
    (images, labels), test = parts
    classes = int(labels.max()) + 1
    return Data((images[:train_images], labels[:train_images]), test, 1 if classes == 2 else classes)


Parts = tuple[tuple[Images, Labels], tuple[Images, Labels]]


def _scikit_learn_digits() -> Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype("float32")[..., None]
    labels = digits.target.astype(np.int64)
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def _two_classes(images: Images, labels: Labels, first: int, second: int) -> tuple[Images, Labels]:
    kept = (labels == first) | (labels == second)
    return images[kept], (labels[kept] == second).astype(np.int64)


def _prepared(read: Any, name: str, limit: int | None, download: bool) -> Parts:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise SystemExit(f"{name} comes from tensorflow-datasets: pip install 'deel-like-lip[examples]'") from error
    folder = os.environ.get("TFDS_DATA_DIR", str(pathlib.Path("~/tensorflow_datasets").expanduser()))
    try:
        builder = tfds.builder(name, data_dir=folder)
        if download:
            builder.download_and_prepare()
        parts: Parts = (read(builder, "train", limit), read(builder, "test", None))
    except Exception as error:  # of many kinds: no network, no space, a checksum, a quota of the host
        raise SystemExit(
            f"tensorflow-datasets has no {name} that could be read from {folder}. Let it download the images with "
            f"--download, or set TFDS_DATA_DIR to where they are prepared. It said: {error}"
        ) from error
    return parts


def _images(builder: Any, split: str, limit: int | None) -> tuple[Images, Labels]:
    import tensorflow_datasets as tfds

    batch = builder.as_dataset(split=_first(split, limit), batch_size=-1, as_supervised=True)
    images, labels = tfds.as_numpy(batch)
    return images.astype("float32") / 255, labels.astype(np.int64)


def _faces(builder: Any, split: str, limit: int | None) -> tuple[Images, Labels]:
    """Returns faces, cut to the square in the middle and resized, and whether they wear eyeglasses."""
    import tensorflow_datasets as tfds

    images, labels = [], []
    for face in tfds.as_numpy(builder.as_dataset(split=_first(split, limit))):
        height, width = face["image"].shape[:2]
        top = (height - width) // 2
        square = face["image"][top : top + width].astype("float32")
        resized = keras.ops.image.resize(square, (FACE_SIZE, FACE_SIZE), antialias=True, data_format="channels_last")
        images.append(keras.ops.convert_to_numpy(resized) / 255)
        labels.append(int(face["attributes"]["Eyeglasses"]))
    return np.clip(np.stack(images), 0, 1).astype("float32"), np.array(labels, dtype=np.int64)


def _first(split: str, limit: int | None) -> str:
    return split if limit is None else f"{split}[:{limit}]"
