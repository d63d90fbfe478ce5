"""Graphs that are made to break certificates are refused or sound: `benchmarks/falsify.py` in small."""

import keras
import pytest

from benchmarks import falsify

pytestmark = pytest.mark.self_check

# Holes that only some backends open: the others do not repeat values to fit, or keep no state of their own.
ELSEWHERE = {
    "7 values that are repeated": ("jax", "torch"),
    "8 shared layers": ("jax", "torch"),
}


def test_graphs():
    report = falsify.falsify(60 if keras.backend.backend() == "jax" else 150, seed=1)
    print(report.as_dict())
    assert not report.failures, report.failures[0]
    assert report.total("sound") > 10
    assert report.total("refused") > 20


@pytest.mark.parametrize("name", falsify.MUTATIONS)
def test_each_hole_is_found_again_where_its_fix_is_taken_out(name):
    if keras.backend.backend() not in ELSEWHERE.get(name, (keras.backend.backend(),)):
        pytest.skip("this backend does not repeat values there")
    mutation = falsify.MUTATIONS[name]
    with mutation.without():
        report = falsify.falsify(
            falsify.GRAPHS_OF_A_MUTATION, families=[mutation.family], seed=0, stop_when_unsound=True
        )
    assert report.total("unsound") == 1, report.as_dict()


def test_each_hole_has_a_mutation():
    assert {name.split()[0] for name in falsify.MUTATIONS} == {str(number) for number in range(1, 13)}
    assert {mutation.family for mutation in falsify.MUTATIONS.values()} <= set(falsify.TRICKS)
