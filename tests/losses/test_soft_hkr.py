"""The hinge-KR losses against a soft maximum equal their formulas, and tend to what they should."""

import numpy as np
import pytest

from deel_like_lip import losses
from tests.helpers import to_numpy
from tests.losses import value

OUTPUTS = [[0.5, 0.2, -0.4, 0.1]]  # class 0 is true


@pytest.mark.parametrize("temperature", [0.0, 1.0, 7.0])
def test_soft_hkr_by_hand(temperature):
    others = np.array(OUTPUTS[0][1:])
    weights = np.exp(temperature * others) / np.exp(temperature * others).sum()
    kr, hinge = weights @ others - 0.5, 0.5 + weights @ np.maximum(1.0 + others, 0)
    loss = losses.SoftHKRMulticlass(alpha=3.0, min_margin=1.0, temperature=temperature)
    assert value(loss, [0], OUTPUTS) == pytest.approx(kr + 3 * hinge, rel=1e-5)


def test_lse_hkr_by_hand():
    sharpness = np.log(3) / (0.5 * 0.8)
    rival = np.log(np.sum(np.exp(sharpness * np.array(OUTPUTS[0][1:])))) / sharpness
    loss = losses.LseHKRMulticlass(alpha=3.0, min_margin=0.8, penalty=0.5)
    expected = rival - 0.5 + 3 * (0.3 + 0.8 + rival)
    assert value(loss, [0], OUTPUTS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.SoftHKRMulticlass(3.0, 1.0, temperature=500.0), losses.LseHKRMulticlass(3.0, 1.0, penalty=1e-3)]
)
def test_the_hard_limit_is_the_largest_other_output(loss):
    assert value(loss, [0], OUTPUTS) == pytest.approx((0.2 - 0.5) + 3 * (0.5 + 1.2), rel=1e-4)


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_the_smooth_maximum_is_at_most_the_penalty_too_high(penalty, rng):
    outputs, labels = rng.normal(size=(64, 10)).astype("float32"), rng.integers(0, 10, 64)
    largest = np.where(np.eye(10)[labels] > 0, -np.inf, outputs).max(1)
    loss = losses.LseHKRMulticlass(alpha=0.0, min_margin=0.3, penalty=penalty, reduction=None)
    excess = to_numpy(loss(labels, outputs)) + outputs[np.arange(64), labels] - largest
    assert np.all((excess >= -1e-6) & (excess <= 0.3 * penalty + 1e-6))
    # Where all others are equal it is just that.
    loss = losses.LseHKRMulticlass(alpha=0.0, min_margin=0.3, penalty=penalty)
    assert value(loss, [0], [[0.0] + [1.0] * 9]) == pytest.approx(1 + 0.3 * penalty, rel=1e-5)


@pytest.mark.parametrize("loss", [losses.SoftHKRMulticlass(7.0, 0.3), losses.LseHKRMulticlass(7.0, 0.3)])
def test_with_two_classes_both_are_a_binary_hinge_kr_without_class_means(loss):
    kr, hinge = -0.4 - 0.25, (0.3 - 0.25) + 0.0
    assert value(loss, [1], [[-0.4, 0.25]]) == pytest.approx(kr + 7 * hinge, rel=1e-5)


def test_the_names_of_torchlip():
    assert losses.SoftHKRMulticlassLoss is losses.SoftHKRMulticlass
    assert losses.LseHKRMulticlassLoss is losses.LseHKRMulticlass
