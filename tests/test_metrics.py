"""Metrics accumulate over batches and agree with the certificate."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip import metrics
from tests.helpers import to_numpy


def result(metric, batches):
    metric.reset_state()
    for batch in batches:
        metric.update_state(*batch)
    return float(to_numpy(metric.result()))


def test_kr_does_not_depend_on_the_batch_size(rng):
    labels, outputs = rng.integers(0, 2, 64), rng.normal(size=(64, 1)).astype("float32")
    expected = outputs[labels == 1].mean() - outputs[labels == 0].mean()
    for size in (1, 7, 64):
        batches = [(labels[i : i + size], outputs[i : i + size]) for i in range(0, 64, size)]
        assert result(metrics.KR(), batches) == pytest.approx(expected, abs=1e-5)


def test_kr_with_weights_and_a_shift(rng):
    labels, outputs = rng.integers(0, 2, 32), rng.normal(size=(32, 1)).astype("float32")
    weights = rng.uniform(0.1, 2, 32).astype("float32")
    positive, negative = labels == 1, labels == 0
    expected = np.average(outputs[positive, 0], weights=weights[positive]) - np.average(
        outputs[negative, 0], weights=weights[negative]
    )
    assert result(metrics.KR(), [(labels, outputs, weights)]) == pytest.approx(expected, abs=1e-5)
    assert result(metrics.KR(), [(labels, outputs + 5, weights)]) == pytest.approx(expected, abs=1e-5)


def test_kr_multiclass_is_minus_the_loss(rng):
    labels, outputs = rng.integers(0, 4, 64), rng.normal(size=(64, 4)).astype("float32")
    loss = float(to_numpy(lip.losses.MulticlassKR()(labels, outputs)))
    assert result(metrics.KR(), [(labels, outputs)]) == pytest.approx(-loss, abs=1e-5)
    assert result(metrics.KR(), [(np.eye(4)[labels], outputs)]) == pytest.approx(-loss, abs=1e-5)


def test_kr_of_one_class_is_zero():
    assert result(metrics.KR(), [([1, 1], [[1.0], [2.0]])]) == 0
    assert float(to_numpy(metrics.KR().result())) == 0


def test_certified_accuracy_binary():
    # Right with radius 0.3, right with 0.15, wrong, right with exactly 0.25: at 0.25 a radius must be above it.
    labels, outputs = [1, 0, 1, 0], [[0.6], [-0.3], [-2.0], [-0.5]]
    metric = metrics.CertifiedAccuracy(radius=0.25, lipschitz_constant=2.0)
    assert result(metric, [(labels, outputs)]) == pytest.approx(1 / 4)
    assert result(metric, [(np.array(labels) * 2 - 1, outputs)]) == pytest.approx(1 / 4)
    assert result(metrics.MeanCertifiedRadius(2.0), [(labels, outputs)]) == pytest.approx((0.3 + 0.15 + 0.25) / 4)


@pytest.mark.parametrize("disjoint_neurons", [False, True])
def test_certified_accuracy_multiclass(disjoint_neurons):
    outputs, labels = [[1.0, 0.0, -1.0], [0.2, 0.1, 0.0], [0.0, 1.0, 2.0]], [0, 0, 1]
    factor = 2.0 if disjoint_neurons else np.sqrt(2.0)
    options = {"lipschitz_constant": 1.0, "disjoint_neurons": disjoint_neurons}
    assert result(metrics.MeanCertifiedRadius(**options), [(labels, outputs)]) == pytest.approx(1.1 / factor / 3)
    assert result(metrics.CertifiedAccuracy(0.4, **options), [(labels, outputs)]) == pytest.approx(1 / 3)
    assert result(metrics.CertifiedAccuracy(0.0, **options), [(labels, outputs)]) == pytest.approx(2 / 3)
    assert result(metrics.CertifiedAccuracy(0.0, **options), [(np.eye(3)[labels], outputs)]) == pytest.approx(2 / 3)


def test_metrics_agree_with_the_certificate(rng):
    hidden = lip.layers.SpectralDense(8, activation=lip.layers.MaxMin())
    model = keras.Sequential([keras.Input((6,)), hidden, lip.layers.SpectralDense(3)])
    inputs, labels = rng.normal(size=(200, 6)).astype("float32"), rng.integers(0, 3, 200)
    outputs, certificate = model.predict(inputs, verbose=0), lip.certify(model)
    metric = metrics.CertifiedAccuracy(0.3, certificate.lipschitz_constant)
    (expected,) = certificate.certified_accuracy(outputs, labels, [0.3])
    assert result(metric, [(labels, outputs)]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_nothing_is_certified_where_an_output_is_not_finite(bad, position):
    outputs = np.array([[5.0, -5.0]], "float32")
    outputs[0, position] = bad
    assert result(metrics.CertifiedAccuracy(0.0), [([0], outputs)]) == 0
    assert result(metrics.MeanCertifiedRadius(), [([0], outputs)]) == 0
    assert result(metrics.CertifiedAccuracy(0.0), [([1], outputs[:, position])]) == 0


def test_ties_and_labels_out_of_range_are_not_certified():
    assert result(metrics.CertifiedAccuracy(0.0), [([0], [[1.0, 1.0]])]) == 0
    assert result(metrics.CertifiedAccuracy(0.0), [([1], [[0.0]])]) == 0
    assert result(metrics.MeanCertifiedRadius(), [([7], [[1.0, 0.0]])]) == 0


@pytest.mark.parametrize(
    "metric", [metrics.KR(), metrics.CertifiedAccuracy(0.5, 2.0, True), metrics.MeanCertifiedRadius(2.0)]
)
def test_config_round_trip(metric):
    config = metric.get_config()
    assert type(metric).from_config(config).get_config() == config


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`radius` of CertifiedAccuracy\. Expected a finite number of at least 0"):
        metrics.CertifiedAccuracy(-0.1)
    with pytest.raises(ValueError, match="`lipschitz_constant` of MeanCertifiedRadius"):
        metrics.MeanCertifiedRadius(lipschitz_constant=0.0)
    with pytest.raises(ValueError, match="CertifiedAccuracy expects"):
        metrics.CertifiedAccuracy(0.1).update_state(np.zeros((4, 2)), np.zeros((4, 3)))
