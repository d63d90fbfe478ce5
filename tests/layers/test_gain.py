"""Trained convolutions use up what they promise."""

import keras

import deel_like_lip as lip
from tests.helpers import mnist, needs_mnist, on_torch

layers = lip.layers


@on_torch
@needs_mnist
def test_three_convolutions_lose_no_gain():
    """Kernels of the default parametrization begin far below their constant: their taps must align in training."""

    def convolution(filters):
        return layers.LipConv2D(filters, 3, padding="same", activation=layers.GroupSort2())

    down = layers.InvertibleDownSampling
    dense = [layers.SpectralDense(64, activation=layers.GroupSort2()), layers.SpectralDense(10)]
    body = [down(), convolution(16), down(), convolution(32), convolution(32), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((28, 28, 1)), *body, *dense])
    steps, batch = 240, 128
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps))
    model.compile(optimizer, lip.losses.MulticlassHKR(alpha=10.0, true_class_weight=9.0))
    images, digits = (array[: steps * batch] for array in mnist("train"))
    callbacks = [lip.callbacks.RenormalizeCallback()]
    model.fit(images, digits, batch_size=batch, shuffle=False, callbacks=callbacks, verbose=0)

    certified = lip.certify(model).lipschitz_constant
    # Norms of the Jacobian at the images, and nothing else.
    found = lip.empirical_lipschitz(model, mnist("test")[0][:100], search_steps=0)
    assert 0.9 * certified <= found <= certified * (1 + 1e-5)
    assert certified <= 1 + 1e-5
