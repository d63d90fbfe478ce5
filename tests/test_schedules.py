"""Schedules have the values that their formulas say."""

import doctest
import pickle

import numpy as np
import pytest

from deel_like_lip import schedules
from deel_like_lip.schedules import Cosine, Linear, Log, Steps


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [(Linear(2.0, 8.0, 6, begin=3), 5.0), (Log(2.0, 8.0, 6, begin=3), 4.0), (Cosine(2.0, 8.0, 6, begin=3), 5.0)],
)
def test_ramps(schedule, middle):
    assert [schedule(time) for time in (0, 3, 9, 10, 1e9)] == [2.0, 2.0, 8.0, 8.0, 8.0]
    assert schedule(6) == pytest.approx(middle)
    assert np.all(np.diff([schedule(time) for time in range(3, 10)]) > 0)
    assert type(schedule)(8.0, 2.0, 6, begin=3)(6) == pytest.approx(middle)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_how_ramps_rise():
    times = np.arange(5)
    np.testing.assert_allclose(np.diff([Linear(0.0, 2.0, 4)(time) for time in times]), 0.5)
    np.testing.assert_allclose(np.diff(np.log([Log(1.0, 16.0, 4)(time) for time in times])), np.log(2))
    np.testing.assert_allclose([Cosine(0.0, 2.0, 4)(time) for time in times], 1 - np.cos(np.pi * times / 4), atol=1e-15)


def test_steps():
    schedule = Steps([1, 5, 2], [3, 10])
    assert [schedule(time) for time in (0, 2, 3, 9, 10, 99)] == [1, 1, 5, 5, 2, 2]
    assert Steps([4.0], [])(7) == 4.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Linear(0.0, 1.0, 0), "`length` of Linear. Expected a positive finite number. Received: length=0"),
        (lambda: Linear(float("nan"), 1.0, 2), "`start` of Linear. Expected a finite number. Received: start=nan"),
        (lambda: Cosine(0.0, 1.0, 2, begin=-1), "`begin` of Cosine. Expected a finite number of at least 0"),
        (lambda: Log(0.0, 1.0, 2), "`start` of Log. Expected a positive finite number. Received: start=0.0"),
        (lambda: Steps([1.0, "2"], [1]), "`values` of Steps. Expected a finite number. Received: values=2"),
        (lambda: Steps([1.0, 2.0], [1, 2]), r"one of `values` more than them. Received: values=\(1.0, 2.0\)"),
        (lambda: Steps([1.0, 2.0, 3.0], [2, 2]), "increasing `boundaries`"),
    ],
)
def test_bad_schedules(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_examples_of_docstrings():
    results = doctest.testmod(schedules)
    assert results.failed == 0
    assert results.attempted == 4
