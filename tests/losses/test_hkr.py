"""The losses equal the paper's formulas, on cases that are computed by hand."""

import keras
import numpy as np
import pytest

from deel_like_lip import losses
from tests.helpers import to_numpy
from tests.losses import value

# Two positives at 2 and -1, one negative at -0.5: E_{-1}[f] - E_1[f] = -0.5 - 0.5 = -1, hinges 0, 2 and 0.5.
F = [[2.0], [-1.0], [-0.5]]
HAND_COMPUTED = -1.0 + 10.0 * (0.0 + 2.0 + 0.5) / 3


@pytest.mark.parametrize(
    "labels", [[1, 1, 0], [1, 1, -1], [[1], [1], [0]], [[1.0], [1.0], [-1.0]], [True, True, False]]
)
def test_hinge_kr_is_the_papers_formula(labels):
    assert value(losses.HingeKR(), labels, F) == pytest.approx(HAND_COMPUTED, rel=1e-6)


def test_hinge_kr_takes_outputs_of_rank_one():
    assert value(losses.HingeKR(), [1, 1, 0], [2.0, -1.0, -0.5]) == pytest.approx(HAND_COMPUTED, rel=1e-6)


@pytest.mark.parametrize(("f", "hinge"), [(1.0, 0.0), (-1.0, 2.0), (0.0, 1.0), (3.0, 0.0)])
def test_hinge_of_one_positive_sample(f, hinge):
    assert value(losses.HingeMargin(min_margin=1.0), [1], [[f]]) == pytest.approx(hinge)
    # A batch of one class has no KR term, so the whole loss is alpha times the hinge.
    assert value(losses.HingeKR(alpha=10.0, min_margin=1.0), [1], [[f]]) == pytest.approx(10 * hinge)


def test_kr_is_minus_the_difference_of_class_means():
    assert value(losses.KR(), [1, 1, 0], F) == pytest.approx(-1.0)


def test_kr_weights_each_class_mean_by_its_own_weights():
    weights = np.array([3.0, 1.0, 5.0], "float32")
    # Positives: (3 * 2 - 1 * 1) / 4 = 1.25; the one negative is its own mean.
    assert value(losses.KR(), [1, 1, 0], F, weights) == pytest.approx(-0.5 - 1.25)
    assert value(losses.KR(), [1, 1, 0], F, 10 * weights) == pytest.approx(-0.5 - 1.25)


def test_hinge_kr_takes_all_expectations_under_the_weighted_distribution():
    weights = np.array([3.0, 1.0, 5.0], "float32")
    expected = -1.75 + 10 * (1 * 2.0 + 5 * 0.5) / 9
    assert value(losses.HingeKR(), [1, 1, 0], F, weights) == pytest.approx(expected, rel=1e-6)


def test_integer_weights_are_repetitions():
    repeated = value(losses.HingeKR(), [1, 1, 1, 0, 0], [[2.0], [2.0], [-1.0], [-0.5], [-0.5]])
    weighted = value(losses.HingeKR(), [1, 1, 0], F, np.array([2.0, 1.0, 2.0], "float32"))
    assert weighted == pytest.approx(repeated, rel=1e-6)


@pytest.mark.parametrize("loss", [losses.KR(), losses.MulticlassKR()])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shift", [1.0, -20.0])
def test_adding_a_constant_changes_no_kr_value(loss, weighted, shift, rng):
    classes = 1 if isinstance(loss, losses.KR) else 4
    labels = rng.integers(0, max(classes, 2), 64)
    outputs = rng.normal(size=(64, classes)).astype("float32")
    weights = rng.uniform(0.1, 3, 64).astype("float32") if weighted else None
    before, after = value(loss, labels, outputs, weights), value(loss, labels, outputs + np.float32(shift), weights)
    assert after == pytest.approx(before, abs=2e-6 * abs(shift))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
def test_a_batch_of_one_class_gives_no_kr_term(label, weights):
    weights = None if weights is None else np.array(weights, "float32")
    assert value(losses.KR(), [label] * 3, F, weights) == 0


def test_a_class_whose_weights_are_zero_is_missing():
    assert value(losses.KR(), [1, 1, 0], F, np.array([1.0, 1.0, 0.0], "float32")) == 0


@pytest.mark.parametrize("as_labels", ["integers", "column", "one-hot", "plus-minus"])
def test_multiclass_hkr_is_one_vs_all(as_labels, rng):
    classes, labels = 5, rng.integers(0, 4, 32)  # class 4 is missing
    outputs = rng.normal(size=(32, classes)).astype("float32")
    binary = [value(losses.HingeKR(7.0, 0.3), labels == index, outputs[:, index]) for index in range(classes)]
    one_hot = np.eye(classes)[labels]
    forms = {"integers": labels, "column": labels[:, None], "one-hot": one_hot, "plus-minus": 2 * one_hot - 1}
    assert value(losses.MulticlassHKR(7.0, 0.3), forms[as_labels], outputs) == pytest.approx(np.mean(binary), rel=1e-5)


def test_multiclass_hkr_is_the_sum_of_its_parts(rng):
    labels, outputs = rng.integers(0, 3, 32), rng.normal(size=(32, 3)).astype("float32")
    kr = value(losses.MulticlassKR(), labels, outputs)
    hinge = value(losses.MulticlassHinge(0.3, true_class_weight=2.0), labels, outputs)
    both = value(losses.MulticlassHKR(7.0, 0.3, true_class_weight=2.0), labels, outputs)
    assert both == pytest.approx(kr + 7 * hinge, rel=1e-5)


def test_multiclass_hinge_by_hand():
    # Class 0 is true and at 0.2: 0.8 short; class 1 at -0.5: 0.5 too high; class 2 at -2: nothing.
    outputs = [[0.2, -0.5, -2.0]]
    assert value(losses.MulticlassHinge(1.0), [0], outputs) == pytest.approx((0.8 + 0.5) / 3)
    assert value(losses.MulticlassHinge(1.0, true_class_weight=2.0), [0], outputs) == pytest.approx((1.6 + 0.5) / 3)


def test_class_proportions_give_terms_per_sample(rng):
    labels = (np.arange(40) < 12).astype(int)
    outputs = rng.normal(size=(40, 1)).astype("float32")
    loss = losses.HingeKR(class_proportions=12 / 40)
    assert value(loss, labels, outputs) == pytest.approx(value(losses.HingeKR(), labels, outputs), rel=1e-5)
    # The mean over two halves is the loss of the whole, whatever each half holds.
    halves = [value(loss, labels[half], outputs[half]) for half in (slice(0, 20), slice(20, 40))]
    assert np.mean(halves) == pytest.approx(value(loss, labels, outputs), rel=1e-5)


@pytest.mark.parametrize("loss", [losses.HingeKR(), losses.KR(), losses.HingeMargin()])
def test_reductions(loss, rng):
    labels, outputs = rng.integers(0, 2, 10), rng.normal(size=(10, 1)).astype("float32")
    config = loss.get_config()
    summed = type(loss).from_config({**config, "reduction": "sum"})
    none = type(loss).from_config({**config, "reduction": None})
    assert value(summed, labels, outputs) == pytest.approx(10 * value(loss, labels, outputs), rel=1e-5)
    terms = to_numpy(none(labels, outputs))
    assert terms.shape == (10,)
    assert terms.mean() == pytest.approx(value(loss, labels, outputs), rel=1e-5)


def test_a_mask_of_the_outputs_is_a_weight(rng):
    labels, outputs = np.array([1, 1, 0]), np.array(F, "float32")
    masked = keras.ops.convert_to_tensor(outputs)
    masked._keras_mask = keras.ops.convert_to_tensor([True, False, True])
    assert float(to_numpy(losses.HingeKR()(labels, masked))) == pytest.approx(
        value(losses.HingeKR(), labels[[0, 2]], outputs[[0, 2]])
    )


def test_paired_names_are_one_class():
    assert losses.HingeKRLoss is losses.HingeKR


@pytest.mark.parametrize("loss", [losses.KR(), losses.HingeKR(), losses.HingeMargin(), losses.TauBinaryCrossentropy()])
@pytest.mark.parametrize(
    ("labels", "outputs"), [((4, 2), (4, 1)), ((4,), (4, 3)), ((4, 1), (4, 3)), ((3,), (4, 1)), ((4,), (4, 2, 1))]
)
def test_binary_labels_of_the_wrong_shape(loss, labels, outputs):
    with pytest.raises(ValueError, match=r"(expects .*)Received: .*y_pred\.shape="):
        loss(np.ones(labels), np.ones(outputs, "float32"))


def test_binary_loss_on_classes_points_to_the_multiclass_form():
    with pytest.raises(ValueError, match="MulticlassHKR"):
        losses.HingeKR()(np.array([0, 1]), np.zeros((2, 3), "float32"))


@pytest.mark.parametrize(
    "loss",
    [losses.MulticlassKR(), losses.MulticlassHKR(), losses.MulticlassHinge(), losses.TauCategoricalCrossentropy()],
)
@pytest.mark.parametrize(
    ("labels", "outputs"), [((4,), (4, 1)), ((4,), (4,)), ((4, 2), (4, 3)), ((3,), (4, 3)), ((4, 3, 1), (4, 3))]
)
def test_multiclass_labels_of_the_wrong_shape(loss, labels, outputs):
    with pytest.raises(ValueError, match=r"expects .*Received: y_true\.shape="):
        loss(np.ones(labels), np.ones(outputs, "float32"))


def test_weights_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"one weight a sample.*Received: sample_weight\.shape=\(2, 3\)"):
        losses.HingeKR()(np.array([0, 1]), np.zeros((2, 1), "float32"), np.ones((2, 3), "float32"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: losses.HingeKR(alpha=-1.0),
            "`alpha` of HingeKR. Expected a non-negative finite number. Received: alpha=-1.0",
        ),
        (lambda: losses.HingeKR(alpha=float("nan")), "`alpha` of HingeKR"),
        (lambda: losses.HingeMargin(min_margin="1"), "`min_margin` of HingeMargin"),
        (
            lambda: losses.TauCategoricalCrossentropy(tau=0.0),
            "`tau` of TauCategoricalCrossentropy. Expected a positive",
        ),
        (lambda: losses.KR(class_proportions=1.0), "`class_proportions` of KR"),
        (lambda: losses.MulticlassHinge(true_class_weight=0.0), "`true_class_weight` of MulticlassHinge"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_parameters_can_be_set():
    loss = losses.HingeKR(alpha=1.0, min_margin=1.0)
    loss.alpha, loss.min_margin = 3.0, 0.5
    assert (loss.alpha, loss.min_margin) == (3.0, 0.5)
    assert value(loss, [1], [[0.0]]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="`alpha`"):
        loss.alpha = -1.0
    assert loss.alpha == 3.0
