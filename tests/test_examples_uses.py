"""The examples of one-class detection and of the two-sample test, at reduced size and in this process."""

import importlib.util
import itertools
import re
import sys

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import deel_like_lip as lip
from tests.helpers import ROOT, on_torch


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


one_class = load_example("one_class")
two_sample_test = load_example("two_sample_test")


def run(module, monkeypatch, capsys, *arguments):
    """Runs a script's `main`, and returns the rows of numbers that it prints by their names."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()
    rows = re.findall(r"^ +(\w[\w ]*?)((?: +-?\d+\.\d+)+)$", capsys.readouterr().out, re.MULTILINE)
    return {name: [float(number) for number in numbers.split()] for name, numbers in rows}


@on_torch
def test_one_class_prints_certified_aurocs_and_draws_them(tmp_path, monkeypatch, capsys):
    rows = run(one_class, monkeypatch, capsys, "--classes", 0, 8, "--rounds", 3, "--output", tmp_path)
    assert list(rows) == ["0", "8", "mean"]
    for *aurocs, nearest, _ in rows.values():
        assert aurocs[0] >= 90
        assert nearest >= 98
        assert all(small < large for large, small in itertools.pairwise(aurocs))
    assert rows["mean"][0] == pytest.approx((rows["0"][0] + rows["8"][0]) / 2, abs=0.011)
    assert (tmp_path / "one_class.png").is_file()


@pytest.fixture(scope="module")
def detected():
    """Returns a trained detector, what it was trained against, and test images with whether they are normal."""
    keras.utils.set_random_seed(0)
    (images, labels), (test_images, test_labels) = one_class.load("digits")
    setting = one_class.SETTINGS["digits"]._replace(rounds=3)
    detector = one_class.Detector(images.shape[1:], setting, 2, list(one_class.SOURCES))
    made = detector.fit(images[labels == 3], np.random.default_rng(0))
    return detector, made, test_images, test_labels == 3


@on_torch
def test_no_attack_goes_below_the_certified_auroc(detected):
    detector, _, images, normal = detected
    radius = 0.2
    clean, certified = one_class.certified_auroc(
        lip.certify(detector.model), detector.scores(images), normal, [0.0, radius]
    )
    moved = images
    for _ in range(4):
        _, slopes = detector._gradients(moved)
        lengths = np.linalg.norm(slopes.reshape(len(slopes), -1), axis=1)[:, None, None, None]
        moved = moved + np.where(normal, -1, 1)[:, None, None, None] * slopes / lengths * radius / 4
    attacked = roc_auc_score(normal, detector.scores(moved.astype("float32")))
    assert certified <= attacked < clean
    assert attacked - certified < clean - attacked  # the attack comes near: f has slopes of almost 1


def test_the_certified_auroc_is_that_of_the_worst_scores():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[2.0], [0.0]])])
    scores, normal = np.array([3.0, 1.0, 0.0, 2.0]), np.array([True, True, False, False])
    # With L = 2 the two scores of a pair approach by four times the radius. Normal scores are above those of anomalies
    # by 3, 1, 1 and -1: first all three positive differences remain, then the one of 3, then none.
    aurocs = one_class.certified_auroc(lip.certify(model), scores, normal, [0.0, 0.26, 0.74, 0.76])
    np.testing.assert_array_equal(aurocs, [0.75, 0.25, 0.25, 0.0])


@on_torch
def test_a_detector_starts_anew_for_each_class(detected):
    detector, _, test_images, _ = detected
    (images, labels), _ = one_class.load("digits")
    scores = []
    for label in (3, 5, 3):
        keras.utils.set_random_seed(0)  # of the order of samples
        detector.fit(images[labels == label], np.random.default_rng(0))
        scores.append(detector.scores(test_images))
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-3)
    assert np.mean(np.abs(scores[1] - scores[0])) > 0.1


@on_torch
def test_walks_lead_towards_the_boundary_and_stay_in_the_box(detected):
    detector, *_ = detected
    start = one_class.noise(np.zeros((200, 8, 8, 1), "float32"), np.random.default_rng(0))
    end = detector.walk(start, np.random.default_rng(0))
    before, after = detector.scores(start), detector.scores(end)
    below = before < -detector.setting.min_margin
    assert np.mean(below) > 0.5
    assert np.mean(after[below]) > np.mean(before[below])
    np.testing.assert_array_equal(end[~below], start[~below])
    assert end.min() >= 0
    assert end.max() <= 1


@pytest.mark.parametrize("source", ["collages", "warps"])
def test_made_images_differ_from_normal_ones_and_stay_in_the_box(source):
    (images, _), _ = one_class.load("digits")
    made = one_class.SOURCES[source](images, np.random.default_rng(0))
    assert made.dtype == images.dtype
    assert made.shape == images.shape
    assert 0 <= made.min() <= made.max() <= 1 + 1e-6
    assert np.mean(np.any(made != images, axis=(1, 2, 3))) > 0.9


@on_torch
def test_two_samples_differ_where_their_distributions_do(tmp_path, monkeypatch, capsys):
    cases = {name: two_sample_test.CASES[name] for name in ("radius", "same sphere")}
    monkeypatch.setattr(two_sample_test, "CASES", cases)
    rows = run(two_sample_test, monkeypatch, capsys, "--samples", 1000, "--epochs", 8, "--output", tmp_path)
    truth, statistic, p_value = rows["radius"]
    assert truth == 0.5
    assert 0.35 < statistic < 0.55
    assert p_value < 0.001
    truth, statistic, p_value = rows["same sphere"]
    assert truth == 0
    assert abs(statistic) < 0.05
    assert p_value > 0.05
    assert (tmp_path / "two_sample_test.png").is_file()


@on_torch
def test_the_smallest_p_value_is_that_of_the_true_labels_alone():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 2)), 10 + rng.normal(size=(40, 2))
    assert two_sample_test.compare(first, second, epochs=1, permutations=9, seed=0).p_value == 0.1
