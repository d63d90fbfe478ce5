"""What every public layer keeps: serialization, weights, folding, inference without side effects, ways to execute."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.layers.base import ConstrainedKernel
from deel_like_lip.parametrizations import ConvolutionGeometry, registry
from deel_like_lip.testing import LayerCase, check_loads_without_library, layer_checks
from tests.helpers import to_numpy

layers = lip.layers

# Name, how to make the layer, and the shape of one sample.
CASES = {
    "SpectralDense": (lambda: layers.SpectralDense(6), (4,)),
    "SpectralDense spectral": (lambda: layers.SpectralDense(6, parametrization="spectral"), (4,)),
    "SpectralDense N-d": (lambda: layers.SpectralDense(6, use_bias=False, k_coef_lip=2.0), (3, 4)),
    "SpectralDense GroupSort2": (lambda: layers.SpectralDense(6, activation=layers.GroupSort2()), (4,)),
    "SpectralDense relu": (lambda: layers.SpectralDense(6, activation="relu"), (4,)),
    "FrobeniusDense": (lambda: layers.FrobeniusDense(6), (4,)),
    "FrobeniusDense joint": (lambda: layers.FrobeniusDense(6, disjoint_neurons=False, activation="tanh"), (4,)),
    "LipConv2D": (lambda: layers.LipConv2D(6, 3, activation=layers.MaxMin()), (8, 6, 2)),
    "LipConv2D same": (lambda: layers.LipConv2D(6, (3, 2), strides=2, padding="same", use_bias=False), (8, 6, 2)),
    "LipConv2D circular": (lambda: layers.LipConv2D(6, 3, padding="circular"), (8, 4, 2)),
    "LipConv2D circular strided": (lambda: layers.LipConv2D(6, (5, 3), strides=2, padding="circular"), (8, 6, 2)),
    "LipConv2D circular small": (lambda: layers.LipConv2D(6, 2, strides=4, padding="circular"), (8, 4, 2)),
    "LipConv2D grouped dilated": (lambda: layers.LipConv2D(6, 3, dilation_rate=2, groups=2), (8, 6, 2)),
    "FrobeniusConv2D": (lambda: layers.FrobeniusConv2D(6, 3, padding="circular"), (8, 4, 2)),
    "GroupSort": (lambda: layers.GroupSort(3), (6,)),
    "GroupSort all": (lambda: layers.GroupSort(k_coef_lip=0.5), (4, 4, 6)),
    "GroupSort2": (lambda: layers.GroupSort2(), (4, 4, 6)),
    "GroupSort2 scaled": (lambda: layers.GroupSort2(k_coef_lip=3.0), (6,)),
    "MaxMin": (lambda: layers.MaxMin(), (4, 4, 6)),
    "MaxMin flat": (lambda: layers.MaxMin(), (6,)),
    "FullSort": (lambda: layers.FullSort(), (4, 4, 6)),
    "ScaledAveragePooling2D": (lambda: layers.ScaledAveragePooling2D((2, 3)), (8, 6, 2)),
    "ScaledAveragePooling2D same": (
        lambda: layers.ScaledAveragePooling2D(3, padding="same", k_coef_lip=2.0),
        (8, 5, 2),
    ),
    "ScaledAveragePooling2D strides": (lambda: layers.ScaledAveragePooling2D(2, strides=3), (8, 6, 2)),
    "ScaledL2NormPooling2D": (lambda: layers.ScaledL2NormPooling2D(), (8, 6, 2)),
    "ScaledL2NormPooling2D same": (lambda: layers.ScaledL2NormPooling2D(3, padding="same", k_coef_lip=0.5), (8, 5, 2)),
    "ScaledGlobalAveragePooling2D": (lambda: layers.ScaledGlobalAveragePooling2D(k_coef_lip=2.0), (8, 6, 2)),
    "ScaledGlobalL2NormPooling2D": (lambda: layers.ScaledGlobalL2NormPooling2D(keepdims=True), (8, 6, 2)),
    "SpectralDense aol": (lambda: layers.SpectralDense(6, parametrization="aol"), (4,)),
    "SpectralDense bro": (lambda: layers.SpectralDense(6, parametrization="bro", k_coef_lip=0.5), (4,)),
    "SpectralDense cayley": (lambda: layers.SpectralDense(4, parametrization="cayley", activation="relu"), (3, 6)),
    "SpectralDense cholesky": (lambda: layers.SpectralDense(3, parametrization="cholesky", use_bias=False), (4,)),
    "SpectralDense exponential": (lambda: layers.SpectralDense(2, parametrization="exponential"), (6,)),
    "Householder": (lambda: layers.Householder(), (6,)),
    "Householder channels first": (
        lambda: layers.Householder("channels_first", angle_initializer="random_normal", k_coef_lip=0.5),
        (6, 4, 4),
    ),
    "Abs": (lambda: layers.Abs(k_coef_lip=0.5), (4, 4, 6)),
    "SoftHuber": (lambda: layers.SoftHuber(delta=0.5, k_coef_lip=3.0), (4, 4, 6)),
    "LipPReLU": (lambda: layers.LipPReLU(), (6,)),
    "LipPReLU channels first": (
        lambda: layers.LipPReLU("channels_first", alpha_initializer="random_normal", k_coef_lip=0.5),
        (6, 4, 4),
    ),
    "NActivation": (lambda: layers.NActivation(), (6,)),
    "NActivation channels first": (
        lambda: layers.NActivation("channels_first", thresholds_initializer="random_normal", k_coef_lip=3.0),
        (6, 4, 4),
    ),
    "BatchCentering": (lambda: layers.BatchCentering(), (6,)),
    "BatchCentering channels first": (
        lambda: layers.BatchCentering(use_bias=False, data_format="channels_first", k_coef_lip=0.5),
        (6, 4, 4),
    ),
    "LayerCentering": (lambda: layers.LayerCentering(), (4, 4, 6)),
    "LayerCentering flat": (lambda: layers.LayerCentering(use_bias=False), (6,)),
    "LayerCentering of all axes": (
        lambda: layers.LayerCentering((1, 2, -1), data_format="channels_first", k_coef_lip=3.0),
        (6, 4, 4),
    ),
    "LipBatchNormalization": (lambda: layers.LipBatchNormalization(), (6,)),
    "LipBatchNormalization channels first": (
        lambda: layers.LipBatchNormalization(momentum=0.5, data_format="channels_first", k_coef_lip=3.0),
        (6, 4, 4),
    ),
    "InvertibleDownSampling": (lambda: layers.InvertibleDownSampling((2, 3)), (4, 6, 2)),
    "InvertibleDownSampling channels first": (
        lambda: layers.InvertibleDownSampling(2, data_format="channels_first", k_coef_lip=0.5),
        (2, 4, 6),
    ),
    "InvertibleUpSampling": (lambda: layers.InvertibleUpSampling((2, 3)), (4, 2, 12)),
    "InvertibleUpSampling channels first": (
        lambda: layers.InvertibleUpSampling(2, data_format="channels_first", k_coef_lip=3.0),
        (8, 4, 2),
    ),
    "ZeroChannelPadding": (lambda: layers.ZeroChannelPadding(7), (4, 4, 6)),
    "ZeroChannelPadding channels first": (lambda: layers.ZeroChannelPadding(7, "channels_first"), (6, 4, 4)),
    "FirstChannels": (lambda: layers.FirstChannels(4), (4, 4, 6)),
    "FirstChannels channels first": (lambda: layers.FirstChannels(4, "channels_first"), (6, 4, 4)),
    "ChannelShuffle": (lambda: layers.ChannelShuffle(3), (4, 4, 6)),
    "ChannelShuffle channels first": (lambda: layers.ChannelShuffle(2, "channels_first"), (6, 4, 4)),
    "UnitNormDense": (lambda: layers.UnitNormDense(6, k_coef_lip=2.0), (4,)),
    "LipConv1D": (
        lambda: layers.LipConv1D(6, 5, strides=3, padding="circular", groups=2, activation=layers.MaxMin()),
        (9, 4),
    ),
    "LipConv3D": (lambda: layers.LipConv3D(4, (3, 2, 3), strides=2, padding="same"), (4, 6, 5, 2)),
    "LipConv2DTranspose": (
        lambda: layers.LipConv2DTranspose(4, (3, 4), strides=3, output_padding=1, activation=layers.MaxMin()),
        (4, 3, 2),
    ),
    "LipConv2DTranspose circular": (
        lambda: layers.LipConv2DTranspose(3, (5, 3), strides=2, padding="circular", parametrization="aoc"),
        (4, 3, 6),
    ),
    "LipDepthwiseConv2D": (
        lambda: layers.LipDepthwiseConv2D(3, strides=2, padding="circular", depth_multiplier=2, k_coef_lip=2.0),
        (8, 6, 3),
    ),
    "LipConv2D aol": (lambda: layers.LipConv2D(6, 3, parametrization="aol", activation=layers.MaxMin()), (8, 6, 2)),
    "LipConv2D aoc": (
        lambda: layers.LipConv2D(6, 4, strides=2, padding="same", groups=2, parametrization="aoc", k_coef_lip=0.5),
        (8, 6, 4),
    ),
    "LipConv2D soc": (lambda: layers.LipConv2D(6, 3, padding="circular", parametrization="soc"), (8, 6, 2)),
    "LipConv2D spectral": (lambda: layers.LipConv2D(6, 3, padding="same", parametrization="spectral"), (8, 6, 2)),
    "LipConv2D cayley": (lambda: layers.LipConv2D(6, 3, padding="circular", parametrization="cayley"), (4, 5, 2)),
    "LipConv2D cayley strided": (
        lambda: layers.LipConv2D(
            4,
            (5, 2),
            strides=2,
            padding="circular",
            groups=2,
            activation=layers.MaxMin(),
            k_coef_lip=0.5,
            parametrization="cayley",
        ),
        (8, 6, 2),
    ),
    "LipConv2D operator norm": (lambda: layers.LipConv2D(6, 3, parametrization="operator_norm"), (8, 6, 2)),
    "PadConv2D": (lambda: layers.PadConv2D(6, 3, activation=layers.MaxMin()), (8, 6, 2)),
    "PadConv2D reflect": (lambda: layers.PadConv2D(6, (3, 5), padding="reflect", k_coef_lip=2.0), (8, 6, 2)),
    "PadConv2D symmetric": (
        lambda: layers.PadConv2D(6, (5, 2), strides=2, padding="symmetric", use_bias=False),
        (8, 6, 2),
    ),
    "PadConv2D replicate": (lambda: layers.PadConv2D(6, 3, dilation_rate=2, groups=2, padding="edge"), (8, 6, 2)),
    "PadConv2D aoc": (
        lambda: layers.PadConv2D(6, 3, padding="reflect", parametrization="aoc", k_coef_lip=0.5),
        (8, 6, 2),
    ),
    "SLLDense": (lambda: layers.SLLDense(4, activation="tanh", use_bias=False, k_coef_lip=2.0), (3, 6)),
    "SLLConv2D": (lambda: layers.SLLConv2D(5, (3, 5), padding="circular", k_coef_lip=0.5), (8, 6, 4)),
    "CPLDense": (lambda: layers.CPLDense(9), (6,)),
    "CPLConv2D": (lambda: layers.CPLConv2D(k_coef_lip=2.0, activation="leaky_relu"), (8, 6, 4)),
    "SandwichDense": (lambda: layers.SandwichDense(9, k_coef_lip=0.5), (6,)),
    "LinearResidualConv2D": (
        lambda: layers.LinearResidualConv2D((1, 5), padding="circular", k_coef_lip=2.0),
        (8, 6, 4),
    ),
    "LipResidual": (
        lambda: layers.LipResidual([layers.LipConv2D(4, 3, padding="same"), layers.MaxMin()], k_coef_lip=2.0),
        (8, 6, 4),
    ),
    "ConcatResidual": (lambda: layers.ConcatResidual([layers.SpectralDense(6), layers.GroupSort2()]), (6,)),
    "ConcatResidual of an image": (lambda: layers.ConcatResidual(layers.SLLConv2D(3), k_coef_lip=2.0), (8, 6, 4)),
}

# Arguments of `LayerCase` for those that do not promise `k_coef_lip` for the layer as a whole, or not at any time.
OPTIONS = {
    "SpectralDense spectral": {"slack_in_training": 0.2},
    "LipConv2D spectral": {"slack_in_training": 0.2},
    "LipConv2D operator norm": {"slack_in_training": 0.1},
    "LipConv2D soc": {"slack_in_training": 1e-3},
    "FrobeniusDense": {"per_output": True},
    "UnitNormDense": {"per_output": True},
    "BatchCentering": {"same_in_training": False},
    "BatchCentering channels first": {"same_in_training": False},
    "LipBatchNormalization": {"same_in_training": False},
    "LipBatchNormalization channels first": {"same_in_training": False},
}
UNDER_TEST = {name: LayerCase(*case, **OPTIONS.get(name, {})) for name, case in CASES.items()}
CHECKS = dict(layer_checks())


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
@pytest.mark.parametrize("case", UNDER_TEST.values(), ids=UNDER_TEST.keys())
def test_contract(case, check):
    check(case)


def test_folds_load_without_the_library():
    check_loads_without_library(UNDER_TEST.values())


def test_every_public_layer_is_listed():
    public = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)} - {"LipschitzLayer"}
    classes = {getattr(layers, name) for name in public}
    assert {type(make()) for make, _ in CASES.values()} == classes
    assert set(OPTIONS) <= set(CASES)


def test_every_parametrization_is_listed():
    """Each of those with a name, on dense layers and on convolutions where it is one of such layers."""

    def fits(kind, geometry):
        try:
            kind().bind(1.0, geometry)
        except ValueError:
            return False
        return True

    made = [make() for make, _ in CASES.values()]
    bound = [layer.parametrization for layer in made if isinstance(layer, ConstrainedKernel)]
    kinds = set(registry._NAMES.values())
    expected = {
        (kind, geometry is None)
        for kind in kinds
        for geometry in (None, ConvolutionGeometry((3, 3), (1, 1), (1, 1), padding="same"))
        if fits(kind, geometry)
    }
    assert {kind for kind, _ in expected} == kinds
    assert expected <= {(type(found), found.geometry is None) for found in bound}


def samples(shape, count):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_kernels_orthogonal(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [keras.Input((32,)), layers.SpectralDense(16), layers.MaxMin(), layers.SpectralDense(4)]
        )
    finally:
        keras.config.set_dtype_policy(before)
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR())
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(samples((32,), 320), np.arange(320) % 4, verbose=0, callbacks=callbacks)
    for layer in (model.layers[0], model.layers[2]):
        assert layer.kernel.dtype == "float32"
        values = np.linalg.svd(to_numpy(layer.kernel).astype("float64"), compute_uv=False)
        np.testing.assert_allclose(values, 1, atol=1e-3)


def test_jit_of_a_network():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.LipConv2D(4, 3, padding="circular", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(4, activation=layers.FullSort()),
            layers.FrobeniusDense(2),
        ]
    )
    inputs = samples((8, 8, 2), 32)
    expected = model.predict(inputs, verbose=0)
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR(), jit_compile=True)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-5)
    callbacks = [lip.callbacks.RenormalizeCallback()]
    history = model.fit(inputs, np.arange(32) % 2, epochs=10, batch_size=32, verbose=0, callbacks=callbacks).history
    assert history["loss"][-1] < history["loss"][0]
    kernel = to_numpy(model.layers[-2].kernel).astype("float64")
    np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False), 1, atol=1e-3)
