"""Parametrizations by name, as Keras does it for initializers."""

from typing import Any

import keras

from deel_like_lip.parametrizations.aoc import AOC
from deel_like_lip.parametrizations.aol import AOL
from deel_like_lip.parametrizations.base import Parametrization
from deel_like_lip.parametrizations.cayley import Cayley
from deel_like_lip.parametrizations.cholesky import BlockReflector, CholeskyQR
from deel_like_lip.parametrizations.exponential import Exponential
from deel_like_lip.parametrizations.operator_norm import OperatorNorm
from deel_like_lip.parametrizations.orthogonal import Orthogonal
from deel_like_lip.parametrizations.soc import SOC
from deel_like_lip.parametrizations.spectral import Spectral

_NAMES: dict[str, type[Parametrization]] = {
    "aoc": AOC,
    "aol": AOL,
    "bcop": AOC,
    "bro": BlockReflector,
    "cayley": Cayley,
    "cholesky": CholeskyQR,
    "exponential": Exponential,
    "operator_norm": OperatorNorm,
    "polar": Orthogonal,
    "reshaped": Orthogonal,
    "soc": SOC,
    "spectral": Spectral,
}


def get(identifier: Any) -> Parametrization:
    """Returns a parametrization.

    Args:
        identifier: A name such as `"polar"`, a `Parametrization`, a subclass of it, or what `serialize` returned.

    Returns:
        A `Parametrization`, not yet bound to a layer.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> get("polar")
        Orthogonal(norm=1.0)
    """
    found = identifier
    if isinstance(identifier, dict):
        found = keras.saving.deserialize_keras_object(identifier)
    elif isinstance(identifier, str) and identifier in _NAMES:
        found = _NAMES[identifier]()
    elif isinstance(identifier, type) and issubclass(identifier, Parametrization):
        found = identifier()
    if not isinstance(found, Parametrization):
        raise ValueError(
            f"Invalid value for argument `parametrization`. Expected one of {sorted(_NAMES)}, or an instance or "
            f"subclass of `Parametrization`. Received: parametrization={identifier}"
        )
    return found


def serialize(parametrization: Parametrization) -> dict[str, Any]:
    """Returns what `get` makes the same parametrization of, but for its `norm`, which each layer sets.

    Args:
        parametrization: A `Parametrization`.

    Returns:
        A dict that JSON can hold.

    Example:
        >>> get(serialize(Orthogonal(norm=2.0)))
        Orthogonal(norm=1.0)
    """
    serialized: dict[str, Any] = keras.saving.serialize_keras_object(parametrization)
    return serialized
