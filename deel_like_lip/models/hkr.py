"""Convolutional networks of the paper on the hinge-KR loss."""

from collections.abc import Sequence
from typing import Any

import keras

from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_count, checked_positive
from deel_like_lip.layers.activations import MaxMin
from deel_like_lip.layers.convolutional import LipConv2D
from deel_like_lip.layers.dense import SpectralDense
from deel_like_lip.layers.pooling import ScaledL2NormPooling2D
from deel_like_lip.models.base import (
    HEADS,
    activated,
    check_choice,
    checked_image_shape,
    checked_widths,
    dense_counterpart,
    with_head,
)


def hkr_cnn(
    input_shape: Sequence[int] = (28, 28, 1),
    classes: int = 10,
    filters: Sequence[int] = (16, 32),
    convolutions: int = 1,
    units: Sequence[int] = (64,),
    parametrization: Any = "aoc",
    activation: Any = MaxMin,
    head: str = "unit_norm",
    k_coef_lip: float = 1.0,
    name: str = "hkr_cnn",
) -> keras.Model:
    """The convolutional network of the hinge-KR papers' library for MNIST: blocks of convolutions and l2-norm pooling.

    Each block is as many 3x3 convolutions with padding "same", each with an activation, and a 2x2 l2-norm pooling.
    Dense layers and a head follow. By default conv16, pool, conv32, pool, dense 64, dense 10, which is the network of
    the tutorials of deel-lip. The widths of the paper's own could not be found. What differs here: convolutions are
    orthogonal as operators (`parametrization="polar"` is the paper's, which loses more of the gradient), and the
    activation is `MaxMin`, a `GroupSort2` up to the order of channels. The default has 104 202 parameters.

    Args:
        input_shape: Shape of one image, in the data format of the Keras configuration.
        classes: Number of outputs, 1 for a binary classifier.
        filters: Number of channels of each block.
        convolutions: Number of convolutions in a block.
        units: Number of outputs of each dense layer before the head.
        parametrization: How kernels of convolutions are constrained, by name or as an object, as in `LipConv2D`. Dense
            layers have the counterpart: "polar" for "aoc", "exponential" for "soc", "spectral" for "operator_norm", and
            else the same.
        activation: A function without arguments that returns a layer, such as its class, or the name of an activation
            of Keras. Its constant is at most 1.
        head: The last layer, "orthogonal", or "unit_norm" for a `UnitNormDense`, one 1-Lipschitz function a class.
        k_coef_lip: The Lipschitz constant of each output, positive. It is that of the last layer; the others have 1.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled, with outputs that are logits.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, classes)`.

    Certificate:
        The l2 norm. Each output by itself has at most the constant `k_coef_lip`, a pair of classes at most `2
        k_coef_lip`, or `sqrt(2) k_coef_lip` with an orthogonal head, with which the constant of the whole is at most
        `k_coef_lip`.

    Published:
        No certified accuracy.

    Example:
        >>> hkr_cnn().output_shape
        (None, 10)

    Raises:
        ValueError: If an argument is not as described, or the image is too small for as many poolings.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """
    return _blocks_and_dense(
        "hkr_cnn",
        input_shape=input_shape,
        classes=classes,
        filters=filters,
        convolutions=convolutions,
        units=units,
        parametrization=parametrization,
        activation=activation,
        head=head,
        k_coef_lip=k_coef_lip,
        name=name,
    )


def hkr_vgg(
    input_shape: Sequence[int] = (128, 128, 3),
    classes: int = 1,
    filters: Sequence[int] = (16, 32, 64, 128),
    convolutions: int = 2,
    units: Sequence[int] = (128,),
    parametrization: Any = "aoc",
    activation: Any = MaxMin,
    head: str = "unit_norm",
    k_coef_lip: float = 1.0,
    name: str = "hkr_vgg",
) -> keras.Model:
    """A deeper `hkr_cnn` in the manner of VGG, for large images and one output, as an attribute of CelebA is.

    Its blocks begin with the width of the tutorials of deel-lip, and double; those of the paper's network for CelebA
    could not be found. The default has 1 168 913 parameters.

    Takes the arguments of `hkr_cnn`, with the same meaning and other defaults.

    Returns:
        A functional `keras.Model`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, classes)`.

    Certificate:
        As that of `hkr_cnn`. With one output f the radius is at least `|f| / k_coef_lip`, if the bound is exact. On
        images of more than 30 pixels that of a 3x3 convolution is up to 1 % above the norm, so here up to 6 % in all.

    Published:
        No certified accuracy.

    Example:
        >>> hkr_vgg((32, 32, 3), filters=(8, 16), units=(32,)).output_shape
        (None, 1)

    Raises:
        ValueError: As `hkr_cnn`.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """
    return _blocks_and_dense(
        "hkr_vgg",
        input_shape=input_shape,
        classes=classes,
        filters=filters,
        convolutions=convolutions,
        units=units,
        parametrization=parametrization,
        activation=activation,
        head=head,
        k_coef_lip=k_coef_lip,
        name=name,
    )


def _blocks_and_dense(
    owner: str,
    *,
    input_shape: Any,
    classes: Any,
    filters: Any,
    convolutions: Any,
    units: Any,
    parametrization: Any,
    activation: Any,
    head: str,
    k_coef_lip: float,
    name: str,
) -> keras.Model:
    shape, sizes = checked_image_shape(input_shape, owner)
    channels, widths = checked_widths(filters, "filters", owner), checked_widths(units, "units", owner)
    checked_count(classes, "classes", owner)
    checked_count(convolutions, "convolutions", owner)
    check_choice(head, HEADS, "head", owner)
    k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
    if min(sizes) < 2 ** len(channels):
        raise ValueError(
            f"Invalid value for argument `input_shape` of {owner}. Expected a height and width of at least "
            f"{2 ** len(channels)}, since each of the {len(channels)} blocks halves them; give fewer `filters`. "
            f"Received: input_shape={input_shape}, filters={filters}"
        )
    dense = dense_counterpart(parametrization)
    inputs = keras.Input(shape)
    x: Tensor = inputs
    for block, count in enumerate(channels, start=1):
        for index in range(1, convolutions + 1):
            layer = f"block{block}_conv{index}"
            x = LipConv2D(count, 3, padding="same", parametrization=parametrization, name=layer)(x)
            x = activated(x, activation, layer, owner)
        x = ScaledL2NormPooling2D(name=f"block{block}_pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for index, width in enumerate(widths, start=1):
        x = SpectralDense(width, parametrization=dense, name=f"dense{index}")(x)
        x = activated(x, activation, f"dense{index}", owner)
    return keras.Model(inputs, with_head(x, classes, head, dense, k_coef_lip), name=name)
