"""Results that are kept as they are done, so that a command that was stopped goes on where it was."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def kept_model(path: pathlib.Path, make: Callable[[], keras.Model]) -> tuple[keras.Model, dict[str, float]]:
    """Returns the model in a .keras file, made if there is none, and the seconds that it took."""
    costs = path.with_suffix(".json")
    if not path.exists():
        start = _clock()
        model = make()
        write_text(costs, json.dumps(_since(start)))
        _write(path, model.save)
    seconds: dict[str, float] = json.loads(costs.read_text(encoding="utf-8"))
    return keras.saving.load_model(path), seconds


def kept_arrays(path: pathlib.Path, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays in a .npz file, made if there is none. With them go the seconds that they took."""
    if not path.exists():
        start = _clock()
        arrays = make()
        seconds = {name: np.array(value) for name, value in _since(start).items()}
        _write(path, lambda part: np.savez_compressed(part, **arrays, **seconds))  # type: ignore[arg-type]
    with np.load(path) as file:
        return dict(file)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file beside, and moves it into place."""
    _write(path, lambda part: part.write_text(text, encoding="utf-8"))


def check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
    """Keeps the settings of a folder with its results, and refuses to go on with others.

    Raises:
        SystemExit: If the folder holds results of other settings.
    """
    # As they will be read.
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        write_text(path, json.dumps(wanted, indent=2))
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != wanted:
        differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        raise SystemExit(
            f"{path.parent} holds results of another {' and '.join(differing)}: choose another --output, or remove it."
        )


def _write(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    write(part)
    part.replace(path)


def _clock() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _since(start: tuple[float, float]) -> dict[str, float]:
    wall, processor = _clock()
    return {"seconds": wall - start[0], "cpu_seconds": processor - start[1]}
