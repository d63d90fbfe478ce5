"""The attacks that certificates are held against are worth their name.

They are exact where the distance is known, and as good as those of the adversarial-robustness-toolbox (ART).
"""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.attacks import Target, carlini_wagner, deepfool, nearest, pgd
from tests.helpers import on_torch, to_numpy

layers = lip.layers
ATTACKS = {"deepfool": deepfool, "pgd": pgd, "carlini_wagner": carlini_wagner}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


def linear(rng, outputs):
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.Flatten(), keras.layers.Dense(outputs)])
    model.layers[-1].set_weights([rng.normal(size=(20, outputs)), rng.normal(size=outputs)])
    samples = rng.normal(size=(100, 5, 4)).astype("float32")
    kernel, bias = (to_numpy(weight).astype("float64") for weight in model.weights)
    logits = samples.reshape(-1, 20) @ kernel + bias
    if outputs == 1:
        return model, samples, np.abs(logits[:, 0]) / np.linalg.norm(kernel)
    top = np.argmax(logits, axis=1)
    margins = np.take_along_axis(logits, top[:, None], axis=1) - logits
    norms = np.linalg.norm(kernel.T[top][:, None] - kernel.T[None], axis=2)
    norms[np.arange(100), top] = 1
    margins[np.arange(100), top] = np.inf
    return model, samples, np.min(margins / norms, axis=1)


@each_attack
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_distances_of_linear_models_are_exact(attack, outputs, rng):
    model, samples, expected = linear(rng, outputs)
    found = attack(Target(model, samples)).distances
    assert np.all(found >= expected * (1 - 1e-4))  # rounding of logits: less is impossible
    if attack is carlini_wagner:  # goes for the class that is ahead, which need not be the nearest
        assert np.median(found / expected) < 1.01
        assert np.quantile(found / expected, 0.9) < 1.05
    else:
        np.testing.assert_array_less(found, expected * 1.01)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16).astype("float32")[..., None]
    return (images[:1400], data.target[:1400]), images[1400:1440]


@pytest.fixture(scope="module", params=["plain", "lipschitz"])
def target(request, digits):
    keras.utils.set_random_seed(7)
    if request.param == "plain":
        net = [
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        net = [
            keras.layers.Flatten(),
            layers.SpectralDense(32, activation=layers.GroupSort2()),
            layers.SpectralDense(10),
        ]
        loss = lip.losses.MulticlassHKR(alpha=50.0, min_margin=0.4, true_class_weight=9.0)
    model = keras.Sequential([keras.Input((8, 8, 1)), *net])
    (images, labels), attacked = digits
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(images, labels, batch_size=64, epochs=8, verbose=0)
    return Target(model, attacked)


@each_attack
def test_what_is_found_is_what_is_fed(attack, target):
    attacked = attack(target)
    assert np.all(np.isfinite(attacked.distances))
    assert attacked.inputs.dtype == np.float32
    assert attacked.inputs.shape == target.samples.shape
    moved = attacked.inputs.astype("float64") - target.samples
    np.testing.assert_allclose(attacked.distances, np.sqrt((moved**2).sum((1, 2, 3))), rtol=1e-12)
    assert not np.any(target.predict(attacked.inputs) == target.answers)
    best = nearest(attacked, deepfool(target))
    assert np.all(best.distances <= attacked.distances)
    assert not np.any(target.predict(best.inputs) == target.answers)


def test_pgd_stays_within_radii(target):
    near = pgd(target).distances
    radii = near * np.where(np.arange(len(near)) % 2, 0.5, 1.3)
    within = pgd(target, radii)
    assert np.all(within.distances[np.isfinite(within.distances)] <= radii[np.isfinite(within.distances)] * (1 + 1e-6))
    assert np.mean(np.isfinite(within.distances[0::2])) > 0.9
    assert not np.any(np.isfinite(within.distances[1::2]))  # nearer than the nearest there was


def test_a_model_that_never_changes_its_answer_is_not_broken(digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.layers[-1].set_weights([np.zeros((64, 3)), np.array([1.0, 0.0, 2.0])])
    target = Target(model, digits[1][:5])
    for attack in ATTACKS.values():
        attacked = attack(target)
        assert np.all(np.isinf(attacked.distances))
        np.testing.assert_array_equal(attacked.inputs, target.samples)


def art_classifier(model, box=None):
    """Wraps a model for ART, with values of inputs in a box."""
    pytest.importorskip("art", reason="needs the adversarial-robustness-toolbox")
    import torch
    from art.estimators.classification import PyTorchClassifier

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            return self.model(inputs)

    loss = torch.nn.CrossEntropyLoss()
    return PyTorchClassifier(Module(), loss, (8, 8, 1), 10, clip_values=box, device_type="cpu")


def distances(target, inputs):
    moved = inputs.astype("float64") - target.samples
    return np.where(target.predict(inputs) != target.answers, np.sqrt((moved**2).sum((1, 2, 3))), np.inf)


# ART's own figures vary by about as much from backend to backend.
WORSE = 1.03


@on_torch
def test_deepfool_is_as_good_as_that_of_art(target):
    classifier = art_classifier(target.model)
    from art.attacks.evasion import DeepFool

    theirs = distances(target, DeepFool(classifier, max_iter=50, batch_size=64, verbose=False).generate(target.samples))
    ours = deepfool(target).distances
    print(f"\nmedian distance by DeepFool: {np.median(ours):.4f}, ART {np.median(theirs):.4f}")
    assert np.median(ours) <= WORSE * np.median(theirs)


@on_torch
def test_pgd_is_as_good_as_that_of_art(target):
    classifier = art_classifier(target.model)
    from art.attacks.evasion import ProjectedGradientDescent

    ours = pgd(target).distances
    theirs = np.full(len(ours), np.inf)
    for radius in np.median(ours) * np.array([0.5, 0.7, 0.9, 1.0, 1.1, 1.3]):
        attack = ProjectedGradientDescent(
            classifier, norm=2, eps=radius, eps_step=radius / 8, max_iter=30, num_random_init=2, verbose=False
        )
        found = distances(target, attack.generate(target.samples))
        theirs = np.minimum(theirs, found)
        within = np.isfinite(pgd(target, np.full(len(ours), radius)).distances)
        assert np.mean(within) >= np.mean(np.isfinite(found)) - 0.03
    print(f"\nmedian distance by PGD: {np.median(ours):.4f}, ART {np.median(theirs):.4f}")
    assert np.median(ours) <= WORSE * np.median(theirs)


@on_torch
def test_carlini_wagner_is_as_good_as_that_of_art(target):
    classifier = art_classifier(target.model, (-1.0, 2.0))  # which it needs
    from art.attacks.evasion import CarliniL2Method

    theirs = np.full(len(target.samples), np.inf)
    for rate in (0.02, 0.1):
        attack = CarliniL2Method(
            classifier,
            max_iter=20,
            binary_search_steps=5,
            initial_const=3.0,
            learning_rate=rate,
            batch_size=64,
            verbose=False,
        )
        theirs = np.minimum(theirs, distances(target, attack.generate(target.samples)))
    ours = carlini_wagner(target).distances
    print(f"\nmedian distance by Carlini and Wagner: {np.median(ours):.4f}, ART {np.median(theirs):.4f}")
    assert np.median(ours) <= WORSE * np.median(theirs)
