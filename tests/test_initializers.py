"""Initial kernels, by their singular values and those of the convolutions that they make."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import convolution_matrix, operator_norm, singular_values, to_numpy

initializers = lip.initializers


@pytest.mark.parametrize("base", ["glorot_uniform", "orthogonal"])
def test_spectral_initializer(base):
    values = singular_values(initializers.SpectralInitializer(base, strides=2)((3, 3, 2, 5)))
    assert values[0] <= 0.5 * (1 + 1e-5)
    np.testing.assert_allclose(values, 0.5, rtol=1e-3)
    norm_only = singular_values(initializers.SpectralInitializer(base, 2.0, orthogonal=False)((12, 5)))
    assert 1.98 <= norm_only[0] <= 2 * (1 + 1e-5)
    assert (norm_only[-1] < 1.9) == (base != "orthogonal")


# kernel size, inputs, outputs, stride
CONVOLUTIONS = [(1, 4, 4, 1), (3, 4, 4, 1), (3, 2, 6, 1), (3, 6, 2, 1), (4, 3, 3, 1)]
CONVOLUTIONS += [(3, 2, 8, 2), (3, 2, 11, 2), (5, 2, 3, 3), (4, 3, 2, 2), (2, 1, 4, 2)]


@pytest.mark.parametrize(("size", "inputs", "outputs", "stride"), CONVOLUTIONS)
def test_delta_orthogonal_convolutions_are_orthogonal(size, inputs, outputs, stride):
    kernel = initializers.DeltaOrthogonal(gain=2.0, strides=stride)((size, size, inputs, outputs))
    for padding in ("circular", "same"):
        matrix = convolution_matrix(kernel, 6, stride, padding)
        gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)
    assert operator_norm(convolution_matrix(kernel, 7, stride, "same")) <= 2 * (1 + 1e-5)


def test_delta_orthogonal_of_groups_and_of_other_ranks():
    kernel = initializers.DeltaOrthogonal(groups=2)((3, 3, 2, 6))
    matrix = convolution_matrix(kernel, 5, padding="same", groups=2)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-5)
    kernel = to_numpy(kernel)
    assert not np.allclose(kernel[1, 1, :, :3], kernel[1, 1, :, 3:])
    for layer, shape in (
        (keras.layers.Conv1D(4, 3, strides=2, padding="same"), (6, 2)),
        (keras.layers.Conv3D(8, 3, strides=2, padding="same"), (4, 4, 4, 1)),
        (keras.layers.Conv2DTranspose(2, 3, strides=2, padding="same"), (4, 4, 8)),
    ):
        layer.kernel_initializer = initializers.DeltaOrthogonal(strides=2)
        layer.build((None, *shape))
        entries = int(np.prod(shape))
        images = to_numpy(layer(np.eye(entries, dtype="float32").reshape(-1, *shape))).reshape(entries, -1)
        np.testing.assert_allclose(images @ images.T, np.eye(entries), atol=1e-5)


def test_seeds_and_configuration():
    for make in (
        lambda seed: initializers.SpectralInitializer(keras.initializers.GlorotUniform(seed), 2.0, False, (1, 2)),
        lambda seed: initializers.DeltaOrthogonal(0.5, (1, 2), 2, seed),
    ):
        shape = (3, 3, 4, 6)
        first = make(3)
        again = keras.initializers.deserialize(keras.initializers.serialize(first))
        assert again.get_config() == first.get_config()
        np.testing.assert_array_equal(to_numpy(again(shape)), to_numpy(first(shape)))
        # Without a seed a clone starts otherwise, as Keras has it.
        free = make(None)
        assert not np.allclose(to_numpy(free(shape)), to_numpy(free.clone()(shape)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless its x64 mode is on for the whole process")
    for initializer in (initializers.SpectralInitializer(), initializers.DeltaOrthogonal()):
        kernel = initializer((3, 4, 4), dtype)
        assert keras.backend.standardize_dtype(kernel.dtype) == dtype
        values = singular_values(keras.ops.cast(kernel, "float32"))
        np.testing.assert_allclose(values, 1, atol={"float16": 1e-2, "bfloat16": 5e-2}.get(dtype, 1e-3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: initializers.SpectralInitializer(k_coef_lip=-1), "`k_coef_lip`. Expected a positive"),
        (lambda: initializers.DeltaOrthogonal(gain=0), "`gain`. Expected a positive finite number. Received: gain=0"),
        (lambda: initializers.DeltaOrthogonal()((3, 4)), "kernel of shape .*Received: shape=\\(3, 4\\)"),
        (lambda: initializers.DeltaOrthogonal(groups=2)((3, 4, 5)), "that the groups divide.*groups=2"),
        (lambda: initializers.DeltaOrthogonal(strides=3)((2, 4, 4)), "at most the kernel size.*Received: shape"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
