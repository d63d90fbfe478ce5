"""Kernels are constrained from `build` on, after every step of training, after loading, and under averaging.

One model trains with all configurations side by side, so that each backend compiles once.
"""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.renormalization import constrained_layers
from tests.helpers import COMPILES, convolution_matrix, operator_norm, singular_values, to_numpy

layers = lip.layers

# (size of the image, channels, filters, kernel size, stride, padding, further arguments)
CONVOLUTIONS = [
    *[(28, 1, 16, 3, 1, padding, {}) for padding in ("same", "circular", "valid")],
    *[(4, 1, 16, 3, 1, padding, {}) for padding in ("same", "circular", "valid")],
    *[(7, 1, 32, 5, 1, padding, {}) for padding in ("same", "circular")],
    *[(12, 3, 8, 3, stride, padding, {}) for stride in (2, 3) for padding in ("same", "circular", "valid")],
    *[(6, 2, 8, 5, 2, padding, {}) for padding in ("same", "circular")],
    (8, 2, 8, 2, 2, "circular", {}),
    (9, 16, 4, 3, 1, "same", {"k_coef_lip": 2.5}),
    (9, 4, 8, 3, 1, "same", {"dilation_rate": 2}),
    (9, 4, 8, 3, 1, "circular", {"dilation_rate": 2, "groups": 2}),
]
DENSE = [(64, 64), (100, 10), (10, 100), (256, 1)]


def side_by_side() -> keras.Model:
    inputs, outputs = [], []
    for size, channels, filters, kernel_size, stride, padding, options in CONVOLUTIONS:
        inputs.append(keras.Input((size, size, channels)))
        layer = layers.LipConv2D(filters, kernel_size, strides=stride, padding=padding, **options)
        outputs.append(keras.layers.GlobalAveragePooling2D()(layer(inputs[-1])))
    for features, units in DENSE:
        inputs.append(keras.Input((features,)))
        outputs.append(layers.SpectralDense(units, k_coef_lip=0.5)(inputs[-1]))
        outputs.append(layers.FrobeniusDense(units)(inputs[-1]))
        outputs.append(layers.FrobeniusDense(units, disjoint_neurons=False)(inputs[-1]))
    inputs.append(keras.Input((7, 7, 3)))
    outputs.append(keras.layers.Flatten()(layers.FrobeniusConv2D(8, 3, padding="same")(inputs[-1])))
    return keras.Model(inputs, keras.layers.Concatenate()(outputs))


def check_constants(model: keras.Model, smallest: float = 1 - 1e-3) -> None:
    convolutions = iter(CONVOLUTIONS)
    for layer in constrained_layers(model):
        if isinstance(layer, layers.LipConv2D):
            size, _, _, _, stride, padding, options = next(convolutions)
            dilation, groups = options.get("dilation_rate", 1), options.get("groups", 1)
            matrix = convolution_matrix(layer.kernel, size, stride, padding, dilation, groups)
            assert operator_norm(matrix) <= layer.k_coef_lip * (1 + 1e-5), (size, stride, padding, options)
            parts = np.split(to_numpy(layer.kernel), groups, axis=-1)
            values = np.concatenate([singular_values(part) for part in parts]) / layer.parametrization.norm
        elif isinstance(layer, layers.SpectralDense):
            values = singular_values(layer.kernel) / layer.k_coef_lip
        elif isinstance(layer, layers.FrobeniusConv2D):
            assert operator_norm(convolution_matrix(layer.kernel, 7, padding="same")) <= 1 + 1e-5
            values = np.array([np.linalg.norm(to_numpy(layer.kernel)) * 3])
        else:
            kernel = to_numpy(layer.kernel).astype("float64")
            values = np.linalg.norm(kernel, axis=0 if layer.disjoint_neurons else None).reshape(-1)
        assert values.max() <= 1 + 1e-5, layer.name
        assert values.min() >= smallest, layer.name
    assert next(convolutions, None) is None


def train(model: keras.Model, steps: int, optimizer: keras.optimizers.Optimizer, callbacks=(), batch: int = 4) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(batch * steps, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    targets = rng.normal(size=(batch * steps, model.outputs[0].shape[1])).astype("float32")
    model.compile(optimizer, "mse")
    model.fit(inputs, targets, batch_size=batch, epochs=1, verbose=0, callbacks=list(callbacks))
    assert int(to_numpy(optimizer.iterations)) == steps


def test_right_after_build():
    check_constants(side_by_side())


def test_after_200_steps_of_adam_and_after_loading(tmp_path):
    model = side_by_side()
    before = [to_numpy(layer.kernel) for layer in constrained_layers(model)]
    train(model, 200, keras.optimizers.Adam(1e-2))
    check_constants(model, smallest=0.88)  # the layers alone
    train(model, 1, keras.optimizers.Adam(1e-2), [lip.callbacks.RenormalizeCallback()])
    check_constants(model)
    moved = [
        np.linalg.norm(to_numpy(layer.kernel) - kernel) / np.linalg.norm(kernel)
        for layer, kernel in zip(constrained_layers(model), before, strict=True)
    ]
    assert min(moved) > 0.05  # every layer did train
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    check_constants(loaded)
    kernels = zip(constrained_layers(model), constrained_layers(loaded), strict=True)
    assert all(np.array_equal(to_numpy(one.kernel), to_numpy(other.kernel)) for one, other in kernels)


@pytest.mark.parametrize("overwrite", [7] if COMPILES else [None, 7])
def test_under_exponential_averages(overwrite):
    model = side_by_side()
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=overwrite)
    train(model, 30, optimizer, [lip.callbacks.RenormalizeCallback()])
    check_constants(model)


class EachStep(keras.callbacks.Callback):
    """Holds the layers to their constants after each update."""

    def on_train_batch_end(self, batch, logs=None):
        for layer in constrained_layers(self.model):
            values = singular_values(layer.kernel) / layer.parametrization.norm
            assert values.max() <= 1 + 1e-5
            assert values.min() >= 0.88


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.SGD(100.0),
        lambda: keras.optimizers.Adam(0.5),
        lambda: keras.optimizers.Lion(0.1),
        lambda: keras.optimizers.AdamW(1e-2, weight_decay=1.0),
        lambda: keras.optimizers.Muon(0.1),
    ],
    ids=["sgd", "adam", "lion", "adamw", "muon"],
)
def test_under_any_optimizer_and_rate(make_optimizer):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.LipConv2D(8, 3, use_bias=False, activation=layers.GroupSort2()),
            keras.layers.Flatten(),
            layers.SpectralDense(16, use_bias=False),
            layers.SpectralDense(4, use_bias=False),
        ]
    )  # without biases, which nothing constrains: at such rates they alone diverge
    train(model, 25, make_optimizer(), [EachStep(), lip.callbacks.RenormalizeCallback()], batch=16)
    for layer in constrained_layers(model):
        values = singular_values(layer.kernel) / layer.parametrization.norm
        assert values.max() <= 1 + 1e-5
        assert values.min() >= 1 - 1e-3


def test_a_kernel_that_is_scaled_in_training_comes_back():
    model = keras.Sequential([keras.Input((16,)), layers.SpectralDense(16), layers.SpectralDense(4)])
    train(model, 5, keras.optimizers.Adam(1e-3))
    kernel = model.layers[0].kernel
    kernel.assign(1000 * kernel)
    train(model, 1, keras.optimizers.Adam(1e-3), [EachStep()])
    kernel.assign(1000 * kernel)
    train(model, 10, keras.optimizers.Adam(1e-3), [lip.callbacks.RenormalizeCallback()])
    np.testing.assert_allclose(singular_values(model.layers[0].kernel), 1, atol=1e-3)


def test_a_bound_without_orthogonality():
    """The largest singular value is held, within a fifth in each step and for good after the callback."""
    model = keras.Sequential(
        [keras.Input((32,)), *[layers.SpectralDense(32, parametrization="spectral") for _ in range(2)]]
    )
    norms = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norms.extend(singular_values(layer.kernel).max() for layer in self.model.layers)

    before = to_numpy(model.layers[0].kernel)
    train(model, 40, keras.optimizers.Adam(1e-2), [Watch(), lip.callbacks.RenormalizeCallback()], batch=16)
    assert len(norms) == 80
    assert min(norms) >= 0.99
    assert max(norms) <= 1.2
    assert np.linalg.norm(to_numpy(model.layers[0].kernel) - before) > 0.5
    for layer in model.layers:
        values = singular_values(layer.kernel)
        assert 0.99 <= values.max() <= 1 + 1e-5
        assert values.min() < 0.9  # it is free to lose what orthogonal kernels keep
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5


def test_same_shape_layers_start_different():
    first, second = layers.SpectralDense(8), layers.SpectralDense(8)
    first.build((None, 8))
    second.build((None, 8))
    assert not np.allclose(to_numpy(first.kernel), to_numpy(second.kernel))


@pytest.mark.parametrize("initializer", ["glorot_uniform", "he_normal", keras.initializers.RandomNormal(stddev=30.0)])
def test_any_initializer_is_projected(initializer):
    layer = layers.LipConv2D(8, 3, kernel_initializer=initializer)
    layer.build((None, 9, 9, 2))
    np.testing.assert_allclose(singular_values(layer.kernel) * 3, 1, atol=1e-3)
