"""Regularizers against explicit operators, their gradients, and training with them."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import convolution_matrix, singular_values, to_numpy, vector_jacobian_product

regularizers = lip.regularizers


def distance(matrix):
    """Returns `|A A^T - I|^2` in Frobenius norm, of the smaller side."""
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return np.sum((gram - np.eye(len(gram))) ** 2)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (3, 2, 4)])
def test_dense_distance(shape, rng):
    kernel = rng.normal(size=shape).astype("float32")
    regularizer = regularizers.OrthDenseRegularizer(0.5)
    expected = 0.5 * distance(kernel.reshape(-1, shape[-1]).astype("float64"))
    assert float(to_numpy(regularizer(kernel))) == pytest.approx(expected, rel=1e-5)
    orthogonal = keras.initializers.Orthogonal(seed=0)(shape)
    assert float(to_numpy(regularizer(orthogonal))) < 1e-10


# kernel size, inputs, outputs, stride, size of the torus, groups
CONVOLUTIONS = [
    (1, 3, 2, 1, 4, 1),
    (2, 3, 2, 1, 6, 1),
    (3, 4, 4, 1, 6, 1),
    (3, 2, 6, 1, 5, 1),
    (3, 2, 4, 2, 8, 1),
    (3, 2, 9, 2, 8, 1),
    (4, 1, 4, 2, 8, 1),
    (3, 2, 4, 3, 9, 1),
    (3, 2, 6, 1, 6, 2),
]


@pytest.mark.parametrize(("taps", "inputs", "outputs", "stride", "size", "groups"), CONVOLUTIONS)
def test_lorth_is_the_distance_of_the_operator(taps, inputs, outputs, stride, size, groups, rng):
    regularizer = regularizers.LorthRegularizer(stride, groups=groups)
    kernel = (0.5 * rng.normal(size=(taps, taps, inputs, outputs))).astype("float32")
    expected = distance(convolution_matrix(kernel, size, stride, "circular", groups=groups)) / (size // stride) ** 2
    assert float(to_numpy(regularizer(kernel))) == pytest.approx(expected, rel=1e-4)
    orthogonal = lip.initializers.DeltaOrthogonal(strides=stride, groups=groups)(kernel.shape)
    assert abs(float(to_numpy(regularizer(orthogonal)))) < 1e-5


def test_lorth_by_hand():
    # One channel, taps (a, b): the correlations of the filter with itself are ab, a^2 + b^2 and ab.
    kernel = np.array([0.5, 2.0], "float32").reshape(2, 1, 1)
    value = regularizers.LorthRegularizer(lambda_lorth=2.0)(kernel)
    assert float(to_numpy(value)) == pytest.approx(2 * (1 + 3.25**2 + 1))
    # With stride 2 windows do not meet.
    assert float(to_numpy(regularizers.LorthRegularizer(stride=2)(kernel))) == pytest.approx(3.25**2)
    # In three dimensions.
    cube = np.full((1, 1, 1, 2, 1), 0.5, "float32")
    assert float(to_numpy(regularizers.LorthRegularizer()(cube))) == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2, 4)])
def test_gradients(shape, rng):
    regularizer = regularizers.OrthDenseRegularizer() if len(shape) == 2 else regularizers.LorthRegularizer()
    kernel, direction = rng.normal(size=(2, *shape))
    gradient = vector_jacobian_product(regularizer, kernel, np.ones(()))
    step = 1e-2  # the regularizer is a polynomial of degree 4: the difference is exact up to the cube of the step

    def value(t):
        return float(to_numpy(regularizer((kernel + t * direction).astype("float32"))))

    difference = (8 * (value(step) - value(-step)) - value(2 * step) + value(-2 * step)) / (12 * step)
    assert np.sum(gradient * direction) == pytest.approx(difference, rel=2e-3)
    zero = vector_jacobian_product(regularizer, np.zeros(shape), np.ones(()))
    np.testing.assert_array_equal(zero, 0)


def test_training_with_them_makes_plain_kernels_orthogonal(rng, tmp_path):
    image = keras.Input((6, 6, 2))
    convolution = keras.layers.Conv2D(
        4, 3, strides=2, padding="same", kernel_regularizer=regularizers.LorthRegularizer(stride=2)
    )
    own = lip.layers.LipConv2D(4, 3, kernel_regularizer=regularizers.LorthRegularizer(lambda_lorth=0.1))
    dense = keras.layers.Dense(3, kernel_regularizer=regularizers.OrthDenseRegularizer())
    outputs = keras.layers.Concatenate()(
        [dense(keras.layers.Flatten()(convolution(image))), keras.layers.Flatten()(own(image))]
    )
    model = keras.Model(image, outputs)
    model.compile(keras.optimizers.Adam(0.02), "mse")
    steps = 150
    model.fit(np.zeros((steps, 6, 6, 2)), np.zeros((steps, *outputs.shape[1:])), batch_size=1, verbose=0)
    values = np.linalg.svd(convolution_matrix(convolution.kernel, 6, 2, "circular"), compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=2e-2)
    np.testing.assert_allclose(singular_values(dense.kernel), 1, atol=2e-2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for layer in again.layers:
        regularizer = getattr(layer, "kernel_regularizer", None)
        if regularizer is not None:
            original = model.get_layer(layer.name).kernel_regularizer
            assert type(regularizer) is type(original)
            assert regularizer.get_config() == original.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regularizers.OrthDenseRegularizer(-1), "`lambda_orth`. Expected a finite number of at least 0"),
        (lambda: regularizers.LorthRegularizer(stride=1.5), "`stride`. Expected a positive integer"),
        (lambda: regularizers.LorthRegularizer()(np.ones((3, 4))), "at least one spatial axis.*shape=\\(3, 4\\)"),
        (lambda: regularizers.LorthRegularizer(groups=3)(np.ones((3, 2, 4))), "groups divide.*groups=3"),
        (lambda: regularizers.LorthRegularizer(4)(np.ones((2, 1, 3))), "no orthogonal convolution.*stride=\\(4,\\)"),
        (lambda: regularizers.LorthRegularizer(2)(np.ones((1, 1, 3))), "no orthogonal convolution.*stride=\\(2,\\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
