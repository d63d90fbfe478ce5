"""Last layers: certificates of pairs of classes."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import to_numpy

layers = lip.layers


def test_class_pairs_have_the_constants_of_differences_of_unit_rows(rng):
    k = 3.0
    body = [layers.SpectralDense(6, activation=layers.MaxMin()), layers.SpectralDense(6, k_coef_lip=0.5)]
    model = keras.Sequential([keras.Input((6,)), *body, layers.UnitNormDense(4, k_coef_lip=k)])
    model.layers[-1].kernel.assign(rng.normal(size=(6, 4)))
    model.compile(keras.optimizers.Adam(0.01), lip.losses.MulticlassHKR())
    inputs = rng.normal(size=(64, 6)).astype("float32")
    for _ in range(3):
        model.train_on_batch(inputs, np.arange(64) % 4)
    lip.renormalize(model)
    kernel = to_numpy(model.layers[-1].kernel).astype("float64")
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), k, rtol=1e-5)
    # The body is an isometry times 0.5 on every piece, up to what `renormalize` leaves.
    differences = np.linalg.norm(kernel[:, :, None] - kernel[:, None], axis=0)
    pairs = 0.5 * differences
    np.testing.assert_allclose(lip.certify(model).heads[0].pair_constants, pairs, rtol=3e-3)
    # Orthogonal rows would have sqrt(2) k for every pair.
    assert differences.max() > 1.1 * 2**0.5 * k
    assert differences[differences > 0].min() < 0.9 * 2**0.5 * k
    logits = model.predict(inputs, verbose=0).astype("float64")
    top = logits.argmax(1)
    gaps = logits[np.arange(64), top][:, None] - logits
    with np.errstate(invalid="ignore"):
        radii = np.where(np.arange(4) == top[:, None], np.inf, gaps / pairs[top]).min(1)
    np.testing.assert_allclose(lip.certify(model).radius(logits), radii, rtol=5e-3)


def test_radii_of_pairs_are_reached(rng):
    """Without an activation the nearest point of another class is at the radius exactly."""
    model = keras.Sequential([keras.Input((6,)), layers.SpectralDense(6), layers.UnitNormDense(4)])
    lip.renormalize(model)
    inputs = rng.normal(size=(20, 6))
    matrix = to_numpy(model.layers[0].kernel).astype("float64") @ to_numpy(model.layers[1].kernel)
    logits = inputs @ matrix
    radii = lip.certify(model).radius(logits)
    for scores, radius in zip(logits, radii, strict=True):
        top = scores.argmax()
        others = [other for other in range(4) if other != top]
        steps = [matrix[:, other] - matrix[:, top] for other in others]
        nearest = min((scores[top] - scores[o]) / np.linalg.norm(s) for o, s in zip(others, steps, strict=True))
        assert radius == pytest.approx(nearest, rel=1e-6)
        assert radius <= nearest


def test_it_is_frobenius_dense_under_another_name(rng):
    head, same = layers.UnitNormDense(4, k_coef_lip=2.0), layers.FrobeniusDense(4, k_coef_lip=2.0)
    for layer in (head, same):
        layer.build((None, 6))
    head.kernel.assign(same.kernel)
    inputs = rng.normal(size=(3, 6)).astype("float32")
    np.testing.assert_array_equal(to_numpy(head(inputs)), to_numpy(same(inputs)))
    assert "disjoint_neurons" not in head.get_config()
    with pytest.raises(TypeError, match="disjoint_neurons"):
        layers.UnitNormDense(4, disjoint_neurons=False)
