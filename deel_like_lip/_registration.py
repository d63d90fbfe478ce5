"""One decorator makes a public class known to Keras, so that models which use it can be loaded."""

from collections.abc import Callable
from typing import TypeVar

import keras

PACKAGE = "deel_like_lip"

_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Registers `cls` for Keras serialization under this library's package name."""
    decorate: Callable[[_Class], _Class] = keras.saving.register_keras_serializable(PACKAGE)
    return decorate(cls)
