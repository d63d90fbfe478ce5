"""Certificates: radii by hand, soundness against a search, and bad input."""

import json
import re

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.bounds import LayerBound
from tests.helpers import to_numpy, vector_jacobian_product

layers = lip.layers


def multiclass(pairs, constant=1.0):
    pairs = np.asarray(pairs, float)
    return lip.Certificate(constant, pairs, len(pairs), (LayerBound("head", "Dense", 1.0, constant),), "model")


def binary(constant):
    return lip.Certificate(constant, None, 1, (), "model")


def test_binary_radius():
    certificate = binary(2.0)
    np.testing.assert_allclose(certificate.radius([[3.0], [-1.0], [0.0]]), [1.5, 0.5, 0.0], rtol=1e-12)
    np.testing.assert_allclose(certificate.radius(np.array([3.0, -1.0], "float32")), [1.5, 0.5], rtol=1e-12)
    assert np.all(certificate.radius([[3.0]]) <= 1.5)


def test_multiclass_radius_is_the_smallest_over_pairs():
    certificate = multiclass([[0, 1, 4], [1, 0, 2], [4, 2, 0]])
    # Class 0 leads class 1 by 3 at constant 1, and class 2 by 4 at constant 4.
    np.testing.assert_allclose(certificate.radius([[3.0, 0.0, -1.0]]), [1.0], rtol=1e-12)
    np.testing.assert_allclose(certificate.radius([[0.0, 1.0, 0.5]]), [0.25], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_radius_zero(bad):
    assert np.all(binary(1.0).radius([[bad]]) == 0)
    logits = np.array([[3.0, 1.0, 0.0]] * 3)
    np.fill_diagonal(logits, bad)
    assert np.all(multiclass(np.ones((3, 3))).radius(logits) == 0)


def test_ties_and_empty_batches():
    certificate = multiclass(np.ones((3, 3)) - np.eye(3))
    assert np.all(certificate.radius([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) == 0)
    assert certificate.radius(np.zeros((0, 3))).shape == (0,)
    # Outputs that differ by a constant only: a tie stays a tie, and a lead stays a lead.
    same = multiclass(np.zeros((2, 2)))
    np.testing.assert_array_equal(same.radius([[1.0, 1.0], [2.0, 1.0]]), [0, np.inf])


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 4), (2, 3, 3), ()])
def test_logits_of_the_wrong_shape(shape):
    words = r"logits of the model 'model', of shape \(samples, 3\)\. Received: logits\.shape="
    with pytest.raises(ValueError, match=words):
        multiclass(np.ones((3, 3))).radius(np.zeros(shape))


def test_certified_accuracy():
    certificate = multiclass(np.ones((2, 2)) - np.eye(2))
    logits, labels = [[1.0, 0.0], [0.0, 0.4], [1.0, 0.0]], [0, 1, 1]
    expected = [2 / 3, 1 / 3, 1 / 3, 0]
    np.testing.assert_allclose(certificate.certified_accuracy(logits, labels, [0.0, 0.4, 0.5, 1.0]), expected)
    np.testing.assert_allclose(certificate.certified_accuracy(logits, np.eye(2)[labels], [0.0]), [2 / 3])
    for truth in ([1, 0, 0], [1, -1, -1], [[1], [0], [0]]):
        shares = binary(1.0).certified_accuracy([[1.0], [-0.5], [2.0]], truth, [0.0, 0.6])
        np.testing.assert_allclose(shares, [2 / 3, 1 / 3])
    with pytest.raises(ValueError, match="one label a sample"):
        certificate.certified_accuracy(logits, [0, 1], [0.0])


def test_class_pairs_of_the_last_layer(rng):
    model = keras.Sequential([keras.Input((6,)), layers.SpectralDense(5, k_coef_lip=2.0), keras.layers.Dense(3)])
    model.layers[1].kernel.assign(rng.normal(size=(5, 3)))
    kernel = to_numpy(model.layers[1].kernel).astype("float64")
    certificate = lip.certify(model)
    for i in range(3):
        for j in range(3):
            expected = 2.0 * np.linalg.norm(kernel[:, i] - kernel[:, j])
            assert certificate.pair_constants[i, j] == pytest.approx(expected, rel=1e-5)
    worst = np.sqrt(2) * certificate.lipschitz_constant
    assert np.all(certificate.pair_constants <= worst * (1 + 1e-12))


def test_without_a_linear_head_pairs_have_root_two():
    model = keras.Sequential([keras.Input((6,)), layers.SpectralDense(4), layers.MaxMin()])
    certificate = lip.certify(model)
    off_diagonal = certificate.pair_constants[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, np.sqrt(2), rtol=1e-6)
    assert np.all(off_diagonal >= np.sqrt(2) * certificate.lipschitz_constant)


def trained(head, rng):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.LipConv2D(4, 3, padding="same", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(8, activation=layers.MaxMin()),
            head,
        ]
    )
    outputs = model.output_shape[1]
    loss = lip.losses.HingeKR() if outputs == 1 else lip.losses.MulticlassHKR()
    model.compile(keras.optimizers.Adam(1e-2), loss)
    images = rng.normal(size=(256, 6, 6, 1)).astype("float32")
    labels = (images[:, :3].sum((1, 2, 3)) > 0).astype(int)
    model.fit(images, labels, epochs=3, verbose=0)
    return model, images


HEADS = {
    "binary": lambda: layers.FrobeniusDense(1),
    "orthogonal": lambda: layers.SpectralDense(3),
    "plain": lambda: keras.layers.Dense(3),
}


@pytest.mark.parametrize("make_head", HEADS.values(), ids=HEADS.keys())
def test_no_attack_beats_a_radius(make_head, rng):
    """Gradient steps on the smallest margin, projected on the sphere of the certified radius, flip no answer."""
    model, images = trained(make_head(), rng)
    images = images[:64]
    logits = model.predict(images, verbose=0)
    radii = lip.certify(model).radius(logits)
    assert np.median(radii) > 1e-3
    answers = logits > 0 if logits.shape[1] == 1 else np.argmax(logits, axis=1)[:, None]

    attacked = images.astype("float64")
    for _ in range(20):
        now = to_numpy(model(attacked.astype("float32")))
        cotangent = np.zeros_like(now)
        if now.shape[1] == 1:
            cotangent[:, 0] = np.where(answers[:, 0], -1, 1)
        else:
            rivals = now.copy()
            np.put_along_axis(rivals, answers, -np.inf, axis=1)
            np.put_along_axis(cotangent, np.argmax(rivals, axis=1)[:, None], 1, axis=1)
            np.put_along_axis(cotangent, answers, -1, axis=1)
        gradient = vector_jacobian_product(model, attacked, cotangent)
        norm = np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True)) + 1e-12
        moved = attacked + gradient / norm * radii.reshape(-1, 1, 1, 1) / 4 - images
        length = np.sqrt((moved**2).sum((1, 2, 3), keepdims=True)) + 1e-300
        # A hair inside the sphere: radii do not count the rounding of the float32 forward pass.
        attacked = images + moved / length * np.maximum(radii.reshape(-1, 1, 1, 1) - 1e-5, 0)
        final = to_numpy(model(attacked.astype("float32")))
        same = final > 0 if final.shape[1] == 1 else np.argmax(final, axis=1)[:, None]
        assert np.array_equal(same, answers)


def test_the_attack_is_a_real_one(rng):
    """Well beyond the radii the same direction does flip answers, so the test above can fail."""
    model, images = trained(layers.FrobeniusDense(1), rng)
    logits = model.predict(images, verbose=0)
    radii = lip.certify(model).radius(logits)
    gradient = vector_jacobian_product(model, images, np.where(logits > 0, -1.0, 1.0))
    norm = np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True)) + 1e-12
    beyond = images + 4 * radii.reshape(-1, 1, 1, 1) * gradient / norm
    flipped = (model.predict(beyond.astype("float32"), verbose=0) > 0) != (logits > 0)
    assert np.mean(flipped) > 0.5


def test_edited_weights_are_seen():
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(2)])
    model.layers[0].kernel.assign(10 * to_numpy(model.layers[0].kernel))
    assert lip.certify(model).lipschitz_constant == pytest.approx(10, rel=1e-5)


def test_summary_and_json():
    head = layers.SpectralDense(2, name="last")
    model = keras.Sequential([keras.Input((4,)), layers.SpectralDense(3, name="first"), head], name="net")
    certificate = lip.certify(model)
    summary = certificate.summary()
    assert "Certificate of the model 'net' for the l2 norm" in summary
    assert "first" in summary
    (written,) = re.findall(r"Lipschitz constant: L <= (\S+)", summary)
    assert certificate.lipschitz_constant <= float(written) <= certificate.lipschitz_constant * (1 + 1e-8)
    assert "with L_i,j from 1.41421 to 1.41421" in summary
    assert [line.name for line in certificate.layers] == ["first", "last"]
    fields = json.loads(certificate.to_json())
    assert fields["lipschitz_constant"] == certificate.lipschitz_constant
    assert fields["pair_constants"] == certificate.pair_constants.tolist()
    assert fields["norm"] == "l2"
    assert fields["versions"]["keras"] == keras.__version__
    assert "radius = |f| / L" in binary(1.0).summary()


def test_models_with_other_outputs():
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [layers.SpectralDense(2)(inputs), layers.SpectralDense(2)(inputs)], name="two")
    with pytest.raises(ValueError, match="one output tensor, but 'two' has 2"):
        lip.certify(two)
    images = keras.Sequential([keras.Input((4, 4, 1)), layers.LipConv2D(2, 3)], name="images")
    words = r"output has shape \(batch, outputs\)\. Received: 'images' with an output of shape"
    with pytest.raises(ValueError, match=words):
        lip.certify(images)
