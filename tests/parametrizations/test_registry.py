"""Parametrizations by name, as objects and from configurations, those of a user among them."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import ops

import deel_like_lip as lip
from deel_like_lip import parametrizations
from deel_like_lip.parametrizations import (
    ComputedKernel,
    ConvolutionGeometry,
    Frobenius,
    Orthogonal,
    Parametrization,
    Spectral,
)
from tests.helpers import singular_values, to_numpy

NAMES = ["aol", "bro", "cayley", "cholesky", "exponential", "polar", "reshaped", "spectral"]
OF_CONVOLUTIONS = ["aoc", "bcop", "operator_norm", "soc"]
GEOMETRY = ConvolutionGeometry((3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_get_and_serialize(name):
    found = parametrizations.get(name)
    assert found == parametrizations.get(type(found)) == parametrizations.get(found)
    bound = found.bind(0.5)
    assert bound.norm == 0.5
    # What a layer was bound to is not part of it: `k_coef_lip` says it, in one place.
    assert parametrizations.get(parametrizations.serialize(bound)) == found
    assert hash(bound) != hash(found)


def test_names_that_are_listed_are_all():
    with pytest.raises(ValueError, match=re.escape(f"Expected one of {sorted(NAMES + OF_CONVOLUTIONS)}")):
        parametrizations.get("none")


@pytest.mark.parametrize("identifier", ["Polar", None, 3, keras.constraints.MaxNorm(2), dict, lambda kernel: kernel])
def test_what_is_not_a_parametrization(identifier):
    with pytest.raises(ValueError, match=r"`parametrization`. Expected one of \['aoc'.*Received: parametrization="):
        lip.layers.SpectralDense(4, parametrization=identifier)


@pytest.mark.parametrize("name", ["polar", "spectral"])
def test_reshaped_kernels_of_convolutions(name):
    assert parametrizations.get(name).bind(0.6, GEOMETRY).norm == pytest.approx(0.2)


@pytest.mark.parametrize("found", [Spectral, Frobenius, Orthogonal])
def test_bind_again_replaces(found):
    assert found().bind(2.0, GEOMETRY).bind(3.0) == found(3.0)


def test_a_bound_of_each_output_is_not_one_of_the_layer():
    with pytest.raises(ValueError, match=r"`parametrization`. Expected one that bounds the layer as a whole"):
        lip.layers.SpectralDense(4, parametrization=Frobenius(per_output=True))
    layer = lip.layers.SpectralDense(4, parametrization=Frobenius(), k_coef_lip=2.0)
    layer.build((None, 3))
    assert np.linalg.norm(to_numpy(layer.kernel)) == pytest.approx(2)


@keras.saving.register_keras_serializable("tests")
@dataclasses.dataclass(frozen=True)
class Flat(ComputedKernel):
    """Kernels of Frobenius norm `norm` from a flat weight with one entry more."""

    power: int = 1

    def weight_shape(self, kernel_shape):
        return (int(np.prod(kernel_shape)) + 1,)

    def kernel(self, weight, kernel_shape):
        kernel = ops.reshape(weight[1:], kernel_shape) ** self.power
        return self.norm * kernel / ops.sqrt(ops.sum(ops.square(kernel)))


@keras.saving.register_keras_serializable("tests")
class Halves(Parametrization):
    """A kernel is half the sum of two of Frobenius norm 1: constrained weights and a computed kernel."""

    def weight_shape(self, kernel_shape):
        return (2, *kernel_shape)

    def kernel(self, weight, kernel_shape):
        return 0.5 * self.norm * ops.sum(weight, axis=0)

    def project(self, weight):
        return ops.stack([Frobenius().project(part) for part in ops.unstack(ops.convert_to_tensor(weight))])

    def tangent_gradient(self, weight, gradient):
        parts = zip(ops.unstack(weight), ops.unstack(gradient), strict=True)
        return ops.stack([Frobenius().tangent_gradient(*part) for part in parts])


@pytest.mark.parametrize(
    ("parametrization", "shape", "constrained"), [(Flat(power=3), (13,), False), (Halves(), (2, 4, 3), True)]
)
def test_one_of_a_user(parametrization, shape, constrained, rng, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            lip.layers.SpectralDense(
                3, parametrization=parametrization, kernel_initializer="random_normal", k_coef_lip=2.0
            ),
        ]
    )
    layer = model.layers[0]
    inputs = rng.normal(size=(64, 4)).astype("float32")
    model.compile("adam", "mse")
    before = layer.get_weights()[0]
    model.fit(inputs, 3 * inputs[:, :3], epochs=2, verbose=0)
    stored = layer.get_weights()[0]
    assert stored.shape == shape
    assert not np.allclose(stored, before)
    if constrained:
        for part in stored:
            assert np.linalg.norm(part) == pytest.approx(1, abs=1e-6)
    assert tuple(layer.kernel.shape) == (4, 3)
    assert lip.certify(model).lipschitz_constant == pytest.approx(singular_values(layer.kernel).max(), rel=1e-4)
    assert singular_values(layer.kernel).max() <= 2 * (1 + 1e-5)
    outputs = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(outputs, inputs @ to_numpy(layer.kernel) + to_numpy(layer.bias), atol=1e-5)
    np.testing.assert_allclose(lip.vanilla_model(model).predict(inputs, verbose=0), outputs, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].parametrization == parametrization.bind(2.0)
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), outputs)
    lip.renormalize(model)
    layer.renormalize()
    np.testing.assert_allclose(layer.get_weights()[0], stored, atol=1e-6 * constrained)
