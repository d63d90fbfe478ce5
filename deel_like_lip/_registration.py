"""One decorator makes a public class known to Keras, so that models which use it can be loaded."""

from collections.abc import Callable
from typing import TypeVar

import keras

PACKAGE = "deel_like_lip"

_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Registers `cls` for Keras serialization under its public package, such as `deel_like_lip.losses`.

    The package is part of the name because a loss and a metric may share theirs.
    """
    package = ".".join(cls.__module__.split(".")[:2])
    decorate: Callable[[_Class], _Class] = keras.saving.register_keras_serializable(package)
    return decorate(cls)
