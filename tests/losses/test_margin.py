"""Hinges of leads equal their formulas, on cases that are computed by hand."""

import numpy as np
import pytest

from deel_like_lip import losses
from tests.losses import value

OUTPUTS = [[0.5, 0.2, -0.4, 0.1], [0.0, 2.0, -1.0, 0.5]]


def test_categorical_hinge_by_hand():
    # Class 0 leads by 0.3, class 1 by 1.5, class 2 trails by 3.
    assert value(losses.CategoricalHinge(1.0), [0, 1], OUTPUTS) == pytest.approx((0.7 + 0.0) / 2)
    assert value(losses.CategoricalHinge(2.0), [0, 2], OUTPUTS) == pytest.approx((1.7 + 5.0) / 2)


def test_multi_margin_by_hand():
    # Leads of class 0 in the first row: 0.3, 0.9 and 0.4; of class 2 in the second: -1, -3 and -1.5.
    assert value(losses.MultiMargin(1.0), [0], OUTPUTS[:1]) == pytest.approx((0.7 + 0.1 + 0.6) / 4)
    assert value(losses.MultiMargin(1.0), [2], OUTPUTS[1:]) == pytest.approx((2.0 + 4.0 + 2.5) / 4)


@pytest.mark.parametrize("loss", [losses.CategoricalHinge(0.3), losses.MultiMargin(0.3)])
def test_a_lead_of_the_margin_pays_nothing_and_a_constant_changes_nothing(loss, rng):
    outputs, labels = rng.normal(size=(16, 4)).astype("float32"), rng.integers(0, 4, 16)
    assert value(loss, labels, outputs + np.float32(8)) == pytest.approx(value(loss, labels, outputs), rel=1e-5)
    assert value(loss, labels, 0.3 * np.eye(4)[labels]) == 0
    assert value(loss, labels, 0.2 * np.eye(4)[labels]) > 0.02
