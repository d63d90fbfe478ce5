"""Constraints on plain Keras layers, after steps of training, by their explicit operators."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import convolution_matrix, operator_norm, singular_values, to_numpy

constraints = lip.constraints


def trained(rng) -> keras.Model:
    """Returns plain layers side by side, each with a constraint, after large steps: each backend compiles once."""
    image, row = keras.Input((8, 8, 2)), keras.Input((12,))
    convolutions = {
        "spectral": (constraints.SpectralConstraint(strides=2), {"strides": 2, "padding": "same"}),
        "reshaped": (constraints.SpectralConstraint(0.5), {}),
        "norm_only": (
            constraints.SpectralConstraint(2.0, orthogonal=False, strides=(1, 1), dilation_rate=2),
            {"dilation_rate": 2},
        ),
        "grouped": (constraints.SpectralConstraint(strides=1), {"groups": 2, "padding": "same"}),
        "frobenius": (constraints.FrobeniusConstraint(strides=1), {"padding": "same"}),
        "clipped": (constraints.AutoWeightClipConstraint(strides=1), {"padding": "same"}),
    }
    dense = {
        "dense": constraints.SpectralConstraint(),
        "dense_norm_only": constraints.SpectralConstraint(3.0, orthogonal=False),
        "dense_frobenius": constraints.FrobeniusConstraint(2.0),
        "dense_rows": constraints.FrobeniusConstraint(disjoint_neurons=True),
        "dense_clipped": constraints.AutoWeightClipConstraint(scale=0.5),
        "dense_clipped_to_c": constraints.WeightClipConstraint(0.01),
    }
    outputs = [
        keras.layers.Flatten()(keras.layers.Conv2D(6, 3, kernel_constraint=constraint, name=name, **options)(image))
        for name, (constraint, options) in convolutions.items()
    ]
    transposed = keras.layers.Conv2DTranspose(
        4, 3, strides=2, padding="same", name="transposed", kernel_constraint=constraints.SpectralConstraint(strides=2)
    )
    outputs.append(keras.layers.Flatten()(transposed(image)))
    outputs += [keras.layers.Dense(7, kernel_constraint=own, name=name)(row) for name, own in dense.items()]
    model = keras.Model([image, row], keras.layers.Concatenate()(outputs))
    model.compile(keras.optimizers.Adam(0.05), "mse")
    data = [rng.normal(size=(16, *shape)).astype("float32") for shape in ((8, 8, 2), (12,))]
    model.fit(data, 5 * rng.normal(size=(16, *model.output_shape[1:])), batch_size=8, epochs=2, verbose=0)
    return model


def test_norms_after_training(rng):
    model = trained(rng)
    kernels = {layer.name: to_numpy(layer.kernel) for layer in model.layers if layer.weights}

    def operator(name, **options):
        return operator_norm(convolution_matrix(kernels[name], 8, **options))

    above = 1 + 1e-5
    assert operator("spectral", stride=2, padding="same") <= above
    np.testing.assert_allclose(singular_values(kernels["spectral"]), 1 / 2, rtol=1e-3)
    np.testing.assert_allclose(singular_values(kernels["reshaped"]), 0.5, rtol=1e-3)
    assert operator("norm_only", dilation=2) <= 2 * above
    assert 0.99 <= 3 * singular_values(kernels["norm_only"])[0] / 2 <= above
    assert operator("grouped", padding="same", groups=2) <= above
    assert operator("frobenius", padding="same") <= above
    assert np.linalg.norm(kernels["frobenius"]) == pytest.approx(1 / 3, rel=1e-5)
    assert operator("clipped", padding="same") <= above
    # (taps, taps, filters, channels): the convolution that is transposed.
    assert operator_norm(convolution_matrix(kernels["transposed"], 16, 2, "same")) <= above
    np.testing.assert_allclose(singular_values(kernels["dense"]), 1, rtol=1e-3)
    assert singular_values(kernels["dense"])[0] <= above
    assert 2.97 <= singular_values(kernels["dense_norm_only"])[0] <= 3 * above
    assert np.linalg.norm(kernels["dense_frobenius"]) == pytest.approx(2, rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(kernels["dense_rows"], axis=0), 1, rtol=1e-5)
    assert np.max(np.abs(kernels["dense_clipped"])) == pytest.approx(2 / 84**0.5, rel=1e-6)
    assert singular_values(kernels["dense_clipped"])[0] <= 2 * above
    assert np.max(np.abs(kernels["dense_clipped_to_c"])) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.SpectralConstraint(2.0, orthogonal=False, strides=(2, 1), dilation_rate=1),
        constraints.FrobeniusConstraint(0.5, disjoint_neurons=True, strides=1),
        constraints.WeightClipConstraint(0.25),
        constraints.AutoWeightClipConstraint(3.0, strides=2),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_round_trip(constraint, rng, tmp_path):
    kernel = rng.normal(size=(3, 3, 2, 4)).astype("float32")
    layer = keras.layers.Conv2D(4, 3, kernel_constraint=constraint)
    model = keras.Sequential([keras.Input((5, 5, 2)), layer])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[0].kernel_constraint
    assert type(again) is type(constraint)
    assert again.get_config() == constraint.get_config()
    np.testing.assert_array_equal(to_numpy(again(kernel)), to_numpy(constraint(kernel)))
    half = keras.ops.convert_to_tensor(kernel, dtype="float16")
    assert keras.backend.standardize_dtype(constraint(half).dtype) == "float16"


def test_kernels_of_zeros_and_singular_ones_stay_finite():
    zeros, ones = np.zeros((4, 3), "float32"), np.full((4, 3), 1e6, "float32")
    for constraint in (constraints.SpectralConstraint(orthogonal=False), constraints.FrobeniusConstraint()):
        np.testing.assert_array_equal(to_numpy(constraint(zeros)), zeros)
        assert 0.99 <= singular_values(constraint(ones))[0] <= 1 + 1e-5
    both = to_numpy(constraints.SpectralConstraint()(np.pad(ones, [(0, 0), (0, 2)])))
    np.testing.assert_array_equal(both[:, 3:], 0)
    assert 0.99 <= singular_values(both)[0] <= 1 + 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constraints.SpectralConstraint(0.0), "`k_coef_lip`. Expected a positive.*Received: k_coef_lip=0"),
        (lambda: constraints.FrobeniusConstraint(float("nan")), "`k_coef_lip`. Expected a positive"),
        (lambda: constraints.WeightClipConstraint(-1), "`c`. Expected a positive finite number. Received: c=-1"),
        (lambda: constraints.AutoWeightClipConstraint("1"), "`scale`. Expected a positive.*Received: scale=1"),
        (lambda: constraints.SpectralConstraint(strides=0), "`strides`. Expected a positive.*Received: strides=0"),
        (lambda: constraints.SpectralConstraint(strides=1)(np.ones((3, 2))), "of convolutions.*shape \\(3, 2\\)"),
        (lambda: constraints.SpectralConstraint(strides=(1, 1))(np.ones((3, 2, 2))), "`strides`.*1 of them"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
