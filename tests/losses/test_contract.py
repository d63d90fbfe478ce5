"""What every loss keeps, on every backend."""

import keras
import numpy as np
import pytest

from deel_like_lip import losses
from tests.helpers import vector_jacobian_product
from tests.losses import value

PAIRS = [[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]
BINARY = {
    "KR": losses.KR(),
    "KR proportions": losses.KR(class_proportions=0.3),
    "HingeKR": losses.HingeKR(alpha=7.0, min_margin=0.3),
    "HingeMargin": losses.HingeMargin(min_margin=0.3),
    "TauBinaryCrossentropy": losses.TauBinaryCrossentropy(tau=3.0),
}
MULTICLASS = {
    "MulticlassKR": losses.MulticlassKR(),
    "MulticlassKR proportions": losses.MulticlassKR(class_proportions=[0.2, 0.3, 0.5]),
    "MulticlassHinge": losses.MulticlassHinge(min_margin=0.3, true_class_weight=2.0),
    "MulticlassHKR": losses.MulticlassHKR(alpha=7.0, min_margin=0.3, true_class_weight=2.0),
    "SoftHKRMulticlass": losses.SoftHKRMulticlass(alpha=7.0, min_margin=0.3, temperature=2.0),
    "LseHKRMulticlass": losses.LseHKRMulticlass(alpha=7.0, min_margin=0.3, penalty=0.5),
    "CategoricalHinge": losses.CategoricalHinge(min_margin=0.3),
    "MultiMargin": losses.MultiMargin(min_margin=0.3),
    "TauCategoricalCrossentropy": losses.TauCategoricalCrossentropy(tau=3.0),
    "TauSparseCategoricalCrossentropy": losses.TauSparseCategoricalCrossentropy(tau=3.0),
    "OffsetCategoricalCrossentropy": losses.OffsetCategoricalCrossentropy(offset=0.3, tau=3.0),
    "LogitAnnealing": losses.LogitAnnealing(offset=0.3, tau=3.0, beta=2.0),
    "LogitAnnealing root": losses.LogitAnnealing(offset=0.3, tau=3.0, beta=0.5),
    "GloRo": losses.GloRo(epsilon=0.1, tau=3.0),
    "GloRo trades": losses.GloRo(epsilon=0.1, trades_weight=2.0, tau=3.0, pair_constant=PAIRS),
    "EMMA": losses.EMMA(epsilon=0.1, tau=3.0, pair_constant=PAIRS),
}
LOSSES = {**BINARY, **MULTICLASS}
ALL = pytest.mark.parametrize("name", LOSSES)


def outputs_of(name, rng, batch=16):
    """Returns outputs and integer labels; with one output, or with one for each of three classes."""
    classes = 1 if name in BINARY else 3
    return rng.normal(size=(batch, classes)).astype("float32"), rng.integers(0, max(classes, 2), batch)


def with_reduction(loss, reduction):
    return type(loss).from_config({**loss.get_config(), "reduction": reduction})


def test_every_loss_is_here():
    public = {name for name in losses.__all__ if isinstance(getattr(losses, name), type)}
    assert {type(loss) for loss in LOSSES.values()} == {getattr(losses, name) for name in public}


@ALL
def test_config_round_trip(name):
    loss = LOSSES[name]
    config = loss.get_config()
    assert set(loss.parameter_variables) <= set(config)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.get_config() == type(loss).from_config(config).get_config() == config


@ALL
def test_a_loss_is_the_mean_of_its_terms(name, rng):
    outputs, labels = outputs_of(name, rng)
    terms = np.asarray(keras.ops.convert_to_numpy(with_reduction(LOSSES[name], None)(labels, outputs)))
    assert terms.shape == (16,)
    assert terms.mean() == pytest.approx(value(LOSSES[name], labels, outputs), rel=1e-5, abs=1e-6)


@ALL
def test_forms_of_labels(name, rng):
    outputs, labels = outputs_of(name, rng)
    forms = [labels[:, None], labels.astype("float32")]
    one_hot = np.eye(3)[labels]
    forms += [2 * labels - 1, labels == 1] if name in BINARY else [one_hot, 2 * one_hot - 1]
    expected = value(LOSSES[name], labels, outputs)
    for form in forms:
        assert value(LOSSES[name], form, outputs) == pytest.approx(expected, rel=1e-6)


@ALL
def test_whole_weights_are_repetitions(name, rng):
    outputs, labels = outputs_of(name, rng)
    weights = rng.integers(0, 4, 16)
    # The loss of a weighted distribution does not change with the scale of the weights; others add up.
    of_distribution = LOSSES[name].get_config().get("class_proportions", ()) is None
    loss = with_reduction(LOSSES[name], "sum_over_batch_size" if of_distribution else "sum")
    repeated = value(loss, np.repeat(labels, weights), np.repeat(outputs, weights, axis=0))
    assert value(loss, labels, outputs, weights.astype("float32")) == pytest.approx(repeated, rel=1e-5)


@ALL
def test_value_and_gradient_are_finite(name, rng):
    """At outputs of 0, of 1e4 and of both signs, for mixed batches and those of each class alone."""
    classes = 1 if name in BINARY else 3
    rows = [np.zeros((1, classes)), 1e4 * np.eye(3)[:, :classes], -1e4 * np.eye(3)[:, :classes], 1e-4 * np.eye(classes)]
    outputs = np.concatenate([*rows, 1e4 * rng.normal(size=(8, classes))])
    batches = [
        np.arange(len(outputs)) % max(classes, 2),
        *(np.full(len(outputs), label) for label in range(max(classes, 2))),
    ]
    loss = with_reduction(LOSSES[name], None)

    def terms(tensor):
        return keras.ops.concatenate([loss(labels, tensor) for labels in batches])

    assert np.all(np.isfinite(keras.ops.convert_to_numpy(terms(outputs.astype("float32")))))
    gradient = vector_jacobian_product(terms, outputs, np.ones(len(batches) * len(outputs)))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient)


@pytest.mark.parametrize("name", MULTICLASS)
def test_two_classes_are_enough_and_one_is_not(name, rng):
    config = LOSSES[name].get_config()
    config.update({key: new for key, new in (("pair_constant", 2.0), ("class_proportions", None)) if key in config})
    loss = type(LOSSES[name]).from_config(config)
    assert np.isfinite(value(loss, [0, 1, 1, 1], rng.normal(size=(4, 2))))
    with pytest.raises(ValueError, match=r"with at least two classes.*Received: .*y_pred.shape=\(4, 1\)"):
        loss(np.zeros(4), np.zeros((4, 1), "float32"))


def test_all_train_in_one_step(rng):
    """One head for each loss, in a step that is compiled, except on torch, and that lowers each of them."""
    inputs = keras.Input((4,))
    heads = {name.replace(" ", "_"): name for name in LOSSES}
    outputs = {head: keras.layers.Dense(1 if name in BINARY else 3, name=head)(inputs) for head, name in heads.items()}
    model = keras.Model(inputs, outputs)
    chosen = {head: LOSSES[name] for head, name in heads.items()}
    model.compile(keras.optimizers.SGD(0.02), chosen)
    x = rng.normal(size=(64, 4)).astype("float32")
    labels = {head: np.argmax(x[:, : 2 if name in BINARY else 3], axis=1) for head, name in heads.items()}
    history = model.fit(x, labels, batch_size=64, epochs=4, verbose=0).history
    for head in heads:
        values = history[f"{head}_loss"]
        assert np.all(np.isfinite(values))
        assert np.all(np.diff(values) < 0), (head, values)
