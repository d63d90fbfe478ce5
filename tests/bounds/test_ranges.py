"""Outputs of one sign are found behind whatever keeps signs, and others are not taken for them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import deel_like_lip as lip
from deel_like_lip.bounds.ranges import value_range
from tests.helpers import to_numpy


def model_of(build, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def sigmoid(x):
    return layers.Dense(1, "sigmoid")(x)


def nested(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


ONE_SIGN = {
    "reshape": lambda x: layers.Reshape((1,))(sigmoid(x)),
    "flatten": lambda x: layers.Flatten()(sigmoid(x)),
    "identity": lambda x: layers.Identity()(layers.Dropout(0.5)(sigmoid(x))),
    "softplus": lambda x: layers.Dense(1, "softplus")(x),
    "relu layer": lambda x: layers.ReLU()(layers.Dense(1)(x)),
    "relu op": lambda x: ops.relu(layers.Dense(1)(x)),
    "activation layer inside": lambda x: layers.Dense(1, activation=layers.ReLU())(x),
    "absolute value": lambda x: ops.abs(layers.Dense(1)(x)),
    "our absolute value": lambda x: lip.layers.Abs()(layers.Dense(1)(x)),
    "norm": lambda x: ops.norm(x, axis=(-1,), keepdims=True),
    "scaled": lambda x: layers.Rescaling(3.0, offset=0.5)(sigmoid(x)),
    "negative": lambda x: -sigmoid(x),
    "shifted down": lambda x: sigmoid(x) - 1.0,
    "log": lambda x: ops.log_sigmoid(layers.Dense(1)(x)),
    "maximum": lambda x: ops.maximum(layers.Dense(1)(x), 0.0),
    "minimum of a negative": lambda x: ops.minimum(layers.Dense(1)(x), -1.0),
    "clip": lambda x: ops.clip(layers.Dense(1)(x), 0.5, 2.0),
    "sum": lambda x: layers.Add()([sigmoid(x), ops.relu(layers.Dense(1)(x))]),
    "mean": lambda x: ops.mean(layers.Dense(4, "sigmoid")(x), axis=-1, keepdims=True),
    "pooled": lambda x: layers.GlobalAveragePooling1D()(layers.Dense(1, "relu")(layers.Reshape((4, 1))(x))),
    "taken": lambda x: ops.softmax(x)[:, :1],
    "tanh of a positive": lambda x: ops.tanh(ops.relu(layers.Dense(1)(x))),
    "each step": lambda x: layers.Flatten()(
        layers.TimeDistributed(layers.Dense(1, "sigmoid"))(layers.Reshape((1, 4))(x))
    ),
    "elu and one": lambda x: layers.Dense(1, "elu")(x) + 1.0,
    "gelu and one": lambda x: ops.gelu(layers.Dense(1)(x)) + 1.0,
    "sine and two": lambda x: ops.sin(layers.Dense(1)(x)) + 2.0,
    "a slope of the other sign": lambda x: layers.ELU(-1.0)(layers.Dense(1)(x)),
    "normalized": lambda x: layers.BatchNormalization()(sigmoid(x)),
    "larger of both signs": lambda x: (lambda z: ops.maximum(z, -z))(layers.Dense(1)(x)),
    "nested": lambda x: nested(layers.Reshape((1,)), (1,))(sigmoid(x)),
    "nested sigmoid": lambda x: layers.Reshape((1,))(nested(layers.Dense(1, "sigmoid"), (4,))(x)),
    "relu and less": lambda x: (lambda z: ops.relu(z) - z)(layers.Dense(1)(x)),
    "softplus layer and less": lambda x: (lambda z: layers.Subtract()([layers.Activation("softplus")(z), z]))(
        layers.Dense(1)(x)
    ),
    "logarithm of both signs": lambda x: (
        lambda z: ops.logsumexp(ops.concatenate([z, -z], axis=-1), axis=-1, keepdims=True)
    )(layers.Dense(1)(x)),
    "largest of a positive": lambda x: ops.logsumexp(ops.relu(x), axis=-1, keepdims=True),
    "arcsinh": lambda x: ops.arcsinh(sigmoid(x)),
    **{
        name: lambda x, kind=kind, options=options: layers.Flatten()(
            kind(1, 4, padding="valid", **options)(ops.relu(layers.Reshape((4, 1))(x)))
        )
        for name, kind, options in (
            ("convolution", layers.Conv1D, {"kernel_initializer": "ones"}),
            (
                "separable convolution",
                layers.SeparableConv1D,
                {"depthwise_initializer": "ones", "pointwise_initializer": "ones"},
            ),
        )
    },
    "depthwise convolution": lambda x: layers.Flatten()(
        layers.DepthwiseConv1D(4, depthwise_initializer="ones")(ops.relu(layers.Reshape((4, 1))(x)))
    ),
    "transposed convolution": lambda x: layers.GlobalAveragePooling1D()(
        layers.Conv1DTranspose(1, 3, 2, kernel_initializer="ones", activation="tanh")(
            ops.relu(layers.Reshape((4, 1))(x))
        )
    ),
    "a convolution that is shifted": lambda x: layers.Flatten()(
        layers.Conv1D(
            1,
            4,
            kernel_initializer=keras.initializers.Constant(-0.2),
            bias_initializer=keras.initializers.Constant(0.9),
        )(ops.sigmoid(layers.Reshape((4, 1))(x)))
    ),
    "a weight of one sign": lambda x: layers.Dense(1, kernel_initializer="ones")(layers.Dense(3, "sigmoid")(x)),
}


@pytest.mark.parametrize("build", ONE_SIGN.values(), ids=ONE_SIGN)
def test_outputs_of_one_sign_have_no_radius(build):
    model = model_of(build)
    with pytest.raises(ValueError, match="whose sign is the answer.*is never (negative|positive)"):
        lip.certify(model, check=False)
    values = to_numpy(model(np.random.default_rng(0).normal(size=(200, 4)).astype("float32")))
    assert np.all(values >= 0) or np.all(values <= 0)


BOTH_SIGNS = {
    "dense": lambda x: layers.Dense(1)(x),
    "tanh": lambda x: ops.tanh(layers.Dense(1)(x)),
    "shifted": lambda x: sigmoid(x) - 0.5,
    "leaky": lambda x: layers.LeakyReLU(0.1)(layers.Dense(1)(x)),
    "difference": lambda x: sigmoid(x) - layers.Dense(1, "sigmoid")(-x),
    "weighted": lambda x: (
        layers.Dense(1, kernel_initializer=keras.initializers.Constant(-1.0), use_bias=True)(
            layers.Dense(3, "sigmoid")(x)
        )
        + 1.0
    ),
    "relu and more": lambda x: (lambda z: ops.relu(z) + z)(layers.Dense(1)(x)),
    "elu and less": lambda x: (lambda z: ops.elu(z, 3.0) - z)(layers.Dense(1)(x)),
    "largest of each": lambda x: (lambda z: ops.max(ops.stack([z, -z], axis=1), axis=2)[:, :1])(x),
    "convolution": lambda x: layers.Flatten()(
        layers.Conv1D(1, 4, kernel_initializer=keras.initializers.Constant(-1.0), bias_initializer="ones")(
            layers.Reshape((4, 1))(ops.relu(x))
        )
    ),
    "a convolution that is shifted": lambda x: layers.Flatten()(
        layers.Conv1D(
            1,
            4,
            kernel_initializer=keras.initializers.Constant(-0.5),
            bias_initializer=keras.initializers.Constant(0.9),
        )(ops.sigmoid(layers.Reshape((4, 1))(x)))
    ),
    "gelu": lambda x: ops.gelu(layers.Dense(1)(x)),
    "clip": lambda x: ops.clip(layers.Dense(1)(x), -1.0, 1.0),
    "maximum": lambda x: ops.maximum(layers.Dense(1)(x), -0.5),
}


@pytest.mark.parametrize("build", BOTH_SIGNS.values(), ids=BOTH_SIGNS)
def test_outputs_of_both_signs_are_certified(build):
    assert lip.certify(model_of(build), check=False).heads[0].task == "binary"


@pytest.mark.parametrize("build", [*ONE_SIGN.values(), *BOTH_SIGNS.values()], ids=[*ONE_SIGN, *BOTH_SIGNS])
def test_values_lie_in_the_range(build, rng):
    model = lip.vanilla_model(model_of(build))
    low, high = value_range(model.outputs[0])
    inputs = rng.normal(size=(500, 4)) * np.geomspace(1e-2, 1e2, 500)[:, None]
    values = to_numpy(model(inputs.astype("float32")))
    assert low - 1e-6 <= values.min()
    assert values.max() <= high + 1e-6


def test_each_label_has_a_sign_of_its_own():
    model = model_of(lambda x: layers.Concatenate()([layers.Dense(2)(x), layers.Dense(1, "sigmoid")(x)]))
    with pytest.raises(ValueError, match="never negative"):
        lip.certify(model, task="multilabel", check=False)
