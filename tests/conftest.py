"""Fixtures for all tests. The backend is that of the environment variable `KERAS_BACKEND`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On CPUs without AVX2 TensorFlow leaves oneDNN out by itself, without which it convolves no images with channels first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest

from deel_like_lip import certificates
from tests.helpers import COMPILES


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(7)


@pytest.fixture(autouse=True)
def _self_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the self-check of certificates to its own tests where each one compiles for seconds. On torch all run."""
    if COMPILES and request.node.get_closest_marker("self_check") is None:
        monkeypatch.setattr(certificates, "self_check", lambda *arguments: None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
