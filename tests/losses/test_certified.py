"""GloRo and EMMA equal their formulas, and count what the constants of differences allow."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip import losses
from tests.helpers import to_numpy, vector_jacobian_product
from tests.losses import value

PAIRS = np.array([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])


def softmax(logits):
    powers = np.exp(np.asarray(logits, "float64") - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def extended(outputs, epsilon, constant):
    tensors = (keras.ops.convert_to_tensor(np.asarray(each, "float32")) for each in (outputs, epsilon, constant))
    return to_numpy(losses.gloro_logits(*tensors))


@pytest.mark.parametrize(
    ("outputs", "constant", "extra"),
    [
        ([2.0, 1.0, 0.5], 1.5, 1.75),  # class 1 may rise by 0.5 * 1.5
        ([2.0, 1.0, 0.5], PAIRS, 2.0),  # class 2 may rise by 0.5 * 3, class 1 by 0.5 only
        ([0.0, 2.0, 1.0], PAIRS, 2.0),  # of the predicted class 1: class 2 by 0.5 * 2
        ([1.0, 1.0, 0.0], 1.5, 1.75),  # a tie is not certified
    ],
)
def test_the_extra_logit_by_hand(outputs, constant, extra):
    logits = extended([outputs], 0.5, constant)
    np.testing.assert_allclose(logits, [[*outputs, extra]], rtol=1e-6)


@pytest.mark.parametrize("constant", [1.5, PAIRS.tolist()])
def test_gloro_is_the_cross_entropy_of_all_logits_or_its_trades_form(constant, rng):
    outputs, labels = rng.normal(size=(16, 3)).astype("float32"), rng.integers(0, 3, 16)
    shrunken, plain = softmax(4.0 * extended(outputs, 0.2, constant)), softmax(4.0 * outputs)
    crossentropy = -np.log(shrunken[np.arange(16), labels]).mean() / 4
    assert value(losses.GloRo(0.2, tau=4.0, pair_constant=constant), labels, outputs) == pytest.approx(
        crossentropy, rel=1e-5
    )
    divergence = (plain * np.log(plain / shrunken[:, :3])).sum(-1).mean()
    trades = (-np.log(plain[np.arange(16), labels]).mean() + 3 * divergence) / 4
    loss = losses.GloRo(0.2, trades_weight=3.0, tau=4.0, pair_constant=constant)
    assert value(loss, labels, outputs) == pytest.approx(trades, rel=1e-5)


@pytest.mark.parametrize("constant", [1.5, PAIRS.tolist()])
def test_emma_by_its_formula(constant, rng):
    outputs, labels = rng.normal(size=(16, 3)).astype("float32"), rng.integers(0, 3, 16)
    constants = np.broadcast_to(constant, (3, 3))[labels] + np.eye(3)[labels]  # the diagonal does not count
    true = outputs[np.arange(16), labels][:, None]
    shifted = outputs + np.clip((true - outputs) / constants, 0, 0.2) * constants
    expected = -np.log(softmax(4.0 * shifted)[np.arange(16), labels]).mean() / 4
    loss = losses.EMMA(0.2, tau=4.0, pair_constant=constant)
    assert value(loss, labels, outputs) == pytest.approx(expected, rel=1e-5)


def test_emma_has_a_gradient_where_another_class_is_within_reach():
    """There the shifted logit is that of the true class: with the gradient of the shift nothing would be left."""
    outputs = np.array([[0.5, 0.2], [0.5, 0.7], [9.0, 0.0]])
    loss = losses.EMMA(epsilon=1.0, reduction=None)
    gradient = vector_jacobian_product(lambda x: loss(np.array([0, 0, 0]), x), outputs, np.ones(3))
    wrong, far = 1 / (1 + np.exp(-0.2)), 1 / (1 + np.exp(9 - np.sqrt(2)))
    np.testing.assert_allclose(gradient, [[-0.5, 0.5], [-wrong, wrong], [-far, far]], rtol=1e-4)


def test_a_radius_of_zero_leaves_the_cross_entropy(rng):
    outputs, labels = rng.normal(size=(16, 3)).astype("float32"), rng.integers(0, 3, 16)
    expected = value(losses.TauCategoricalCrossentropy(4.0), labels, outputs)
    assert value(losses.EMMA(0.0, tau=4.0), labels, outputs) == pytest.approx(expected, rel=1e-6)
    assert value(losses.GloRo(0.5, trades_weight=0.0, tau=4.0), labels, outputs) == pytest.approx(expected, rel=1e-6)


def test_the_constants_of_a_certificate_are_taken_as_they_are():
    model = lip.models.dense_net((8,), 4, units=(8,))
    pairs = lip.certify(model).pair_constants
    for kind in (losses.GloRo, losses.EMMA):
        loss = kind(0.1, pair_constant=pairs)
        assert loss.pair_constant == pairs.tolist()
        default = value(kind(0.1), [0, 1], np.eye(4)[:2])
        assert value(loss, [0, 1], np.eye(4)[:2]) == pytest.approx(default, rel=1e-4)  # a 1-Lipschitz net


@pytest.mark.parametrize("kind", [losses.GloRo, losses.EMMA])
@pytest.mark.parametrize(
    "constant",
    [0.0, -1.0, float("inf"), "2", None, [], [[0.0]], [1.0, 2.0], PAIRS[:2], -PAIRS, PAIRS + PAIRS.T * [[1], [1], [2]]],
)
def test_bad_constants(kind, constant):
    with pytest.raises(ValueError, match=rf"argument `pair_constant` of {kind.__name__}. Expected a positive finite"):
        kind(0.1, pair_constant=constant)


def test_constants_of_another_number_of_classes():
    with pytest.raises(ValueError, match=r"EMMA expects as many outputs as `pair_constant` has rows, 3\. Received: "):
        losses.EMMA(0.1, pair_constant=PAIRS)(np.array([0]), np.zeros((1, 4), "float32"))
