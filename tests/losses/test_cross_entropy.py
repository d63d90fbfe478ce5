"""Cross entropies equal their formulas, in float64 and on cases that are computed by hand."""

import numpy as np
import pytest

from deel_like_lip import losses
from tests.losses import value


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    return (
        logits
        - logits.max(-1, keepdims=True)
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


@pytest.mark.parametrize("tau", [0.5, 20.0])
def test_tau_losses_are_scaled_cross_entropies(tau, rng):
    outputs = rng.normal(size=(16, 4)).astype("float32")
    labels = rng.integers(0, 4, 16)
    logits = tau * outputs.astype("float64")
    log_sum = np.log(np.sum(np.exp(logits - logits.max(1, keepdims=True)), axis=1)) + logits.max(1)
    expected = np.mean(log_sum - logits[np.arange(16), labels]) / tau
    one_hot = np.eye(4)[labels]
    assert value(losses.TauCategoricalCrossentropy(tau), one_hot, outputs) == pytest.approx(expected, rel=1e-5)
    assert value(losses.TauSparseCategoricalCrossentropy(tau), labels, outputs) == pytest.approx(expected, rel=1e-5)
    binary = labels < 2
    expected = np.mean(np.log1p(np.exp(-np.where(binary, 1, -1) * tau * outputs[:, 0].astype("float64")))) / tau
    assert value(losses.TauBinaryCrossentropy(tau), binary, outputs[:, :1]) == pytest.approx(expected, rel=1e-5)
    assert value(losses.TauBinaryCrossentropy(tau), 2 * binary - 1, outputs[:, 0]) == pytest.approx(expected, rel=1e-5)


def test_an_offset_takes_from_the_true_output(rng):
    outputs, labels = rng.normal(size=(16, 4)).astype("float32"), rng.integers(0, 4, 16)
    logits = 3.0 * (outputs - 0.7 * np.eye(4)[labels])
    expected = -np.mean(log_softmax(logits)[np.arange(16), labels]) / 3.0
    loss = losses.OffsetCategoricalCrossentropy(offset=0.7, tau=3.0)
    assert value(loss, labels, outputs) == pytest.approx(expected, rel=1e-5)
    # A lead of just the offset leaves even odds, log(2) / tau.
    assert value(loss, [1], [[-0.2, 0.5]]) == pytest.approx(np.log(2) / 3, rel=1e-5)
    without = value(losses.OffsetCategoricalCrossentropy(offset=0.0, tau=3.0), labels, outputs)
    assert without == pytest.approx(value(losses.TauCategoricalCrossentropy(tau=3.0), labels, outputs), rel=1e-6)


def test_the_defaults_of_the_offset_are_the_papers():
    loss = losses.OffsetCategoricalCrossentropy()
    assert (loss.offset, 1 / loss.tau) == (pytest.approx(np.sqrt(2)), 0.25)


@pytest.mark.parametrize("beta", [0.0, 0.5, 5.0])
def test_logit_annealing_fades_with_the_probability(beta, rng):
    outputs, labels = rng.normal(size=(16, 4)).astype("float32"), rng.integers(0, 4, 16)
    log_p = log_softmax(3.0 * (outputs - 0.7 * np.eye(4)[labels]))[np.arange(16), labels]
    expected = np.mean(-((1 - np.exp(log_p)) ** beta) * log_p) / 3.0
    loss = losses.LogitAnnealing(offset=0.7, tau=3.0, beta=beta)
    assert value(loss, labels, outputs) == pytest.approx(expected, rel=1e-5)
    # Even odds: log(2) / tau, times one half to the beta.
    assert value(loss, [1], [[-0.2, 0.5]]) == pytest.approx(0.5**beta * np.log(2) / 3, rel=1e-5)


def test_logit_annealing_keeps_its_digits_where_the_probability_is_near_one():
    # 1 - p is 4.5e-5 here, of which a difference in float32 keeps three digits.
    exact = -np.log1p(-1 / (1 + np.exp(10.0)))
    loss = losses.LogitAnnealing(offset=0.0, tau=1.0, beta=2.0)
    assert value(loss, [0], [[10.0, 0.0]]) == pytest.approx((1 / (1 + np.exp(10.0))) ** 2 * exact, rel=1e-4)
