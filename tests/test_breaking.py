"""Certificates hold against attacks: two nets of `benchmarks/break_certificates.py`, on few images."""

import dataclasses

import keras
import pytest

import deel_like_lip as lip
from benchmarks import break_certificates as breaking


@pytest.fixture(scope="module", params=["digits dense HKR", "digits plain CNN CE"])
def net(request):
    """A trained net, its test images, and what became of it."""
    keras.utils.set_random_seed(7)
    (recipe,) = [recipe for recipe in breaking.RECIPES if recipe.name == request.param]
    data = breaking.dataset("digits")
    model = breaking.train(recipe._replace(epochs=4), data)
    return model, data.test, breaking.attack(recipe.name, model, *data.test, count=50, restarts=3)


def test_no_attack_gets_into_a_radius(net):
    _, _, result = net
    print(f"\n{breaking.table([result])}")
    assert result.accuracy > 0.85
    assert result.violations == 0
    assert result.holds
    assert result.smallest_ratio > 1 - 1e-3  # below 1 by the model's rounding only
    assert result.found_constant > result.constant / 10
    assert result.median_ratio < (1.2 if "dense" in result.name else 12)


def test_a_certificate_that_claims_too_much_is_broken(net, monkeypatch):
    model, test, result = net
    certify, claim = lip.certify, 0.5 / result.median_ratio

    def optimistic(model, **options):
        certificate = certify(model, **options)
        (head,) = certificate.heads
        head = dataclasses.replace(head, pair_constants=claim * head.pair_constants)
        return dataclasses.replace(
            certificate, heads=(head,), lipschitz_constant=claim * certificate.lipschitz_constant
        )

    monkeypatch.setattr(lip, "certify", optimistic)
    result = breaking.attack(result.name, model, *test, count=20, restarts=2)
    assert result.violations > 10
    assert not result.holds


def test_one_violation_is_enough(net):
    _, _, result = net
    assert not dataclasses.replace(result, violations=1).holds
    assert not dataclasses.replace(result, found_constant=1.001 * result.constant).holds


def test_ten_nets_of_both_datasets():
    assert len({recipe.name for recipe in breaking.RECIPES}) == 10
    assert {recipe.dataset for recipe in breaking.RECIPES} == {"digits", "mnist"}
    assert {recipe.loss for recipe in breaking.RECIPES} == {"hkr", "cross entropy"}
