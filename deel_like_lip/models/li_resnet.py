"""LiResNet, of linear residual convolutions."""

from collections.abc import Sequence
from typing import Any

import keras

from deel_like_lip._validation import checked_count, checked_positive
from deel_like_lip.layers.activations import MaxMin
from deel_like_lip.layers.convolution_blocks import LinearResidualConv2D
from deel_like_lip.layers.convolutional import LipConv2D
from deel_like_lip.layers.dense import SpectralDense
from deel_like_lip.models.base import (
    HEADS,
    activated,
    check_choice,
    checked_image_shape,
    with_head,
)

_STEM_STRIDE, _NECK_STRIDE = 2, 4


def li_resnet(
    input_shape: Sequence[int] = (32, 32, 3),
    classes: int = 10,
    depth: int = 12,
    width: int = 512,
    units: int = 2048,
    parametrization: Any = "aoc",
    activation: Any = MaxMin,
    head: str = "unit_norm",
    k_coef_lip: float = 1.0,
    name: str = "li_resnet",
) -> keras.Model:
    """LiResNet, by default the L12W512 of the paper for CIFAR-10.

    A 5x5 convolution with stride 2, then `depth` linear residual convolutions `x + conv(x)`, then the neck: a 4x4
    convolution with stride 4, and a dense layer. Each of these but the 4x4 convolution is followed by an activation.
    The head has weight vectors of one length. The default has 49 350 666 parameters.

    In the paper kernels are free, the product of their norms is part of the loss, and may be large. Here each layer is
    1-Lipschitz, by a kernel that is divided by a bound of its norm, in the residual convolutions, or orthogonal.
    The paper subtracts 0.5 from pixels in [0, 1].

    Args:
        input_shape: Shape of one image, in the data format of the Keras configuration.
        classes: Number of outputs.
        depth: Number of linear residual convolutions.
        width: Number of channels.
        units: Number of outputs of the dense layer of the neck.
        parametrization: How the kernel of the first convolution is constrained, as in `LipConv2D`.
        activation: A function without arguments that returns a layer, such as its class, or the name of an activation
            of Keras. Its constant is at most 1.
        head: The last layer, "unit_norm" for a `UnitNormDense`, or "orthogonal".
        k_coef_lip: The Lipschitz constant of each output, positive. It is that of the last layer; the others have 1.
        name: Name of the model.

    Returns:
        A functional `keras.Model`, not compiled, with outputs that are logits.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, classes)`.

    Certificate:
        The l2 norm. Each output by itself has at most the constant `k_coef_lip`, less by what residual convolutions are
        below their bound, and a pair of classes at most `2 k_coef_lip`, or `sqrt(2) k_coef_lip` with an orthogonal
        head.

    Published:
        For the paper's training on CIFAR-10, of L12W512 with free kernels, certified accuracy within 36/255, 72/255 and
        108/255, l2 in pixels of [0, 1]: 66.1 %, 54.1 % and 45.2 %, and at best 70.1 % within the first (the authors'
        [answers to reviewers](https://openreview.net/forum?id=SHyVaWGTO4)). For 1-Lipschitz layers as here none.

    Example:
        >>> li_resnet(depth=2, width=16, units=32).output_shape
        (None, 10)

    Raises:
        ValueError: If an argument is not as described, or the image is smaller than 8x8.

    Reference:
        Hu et al., 2023, [Unlocking deterministic robustness certification on
        ImageNet](https://arxiv.org/abs/2301.12549)
    """
    owner = "li_resnet"
    shape, sizes = checked_image_shape(input_shape, owner)
    for argument, value in (("depth", depth), ("width", width), ("units", units)):
        checked_count(value, argument, owner)
    checked_count(classes, "classes", owner)
    check_choice(head, HEADS, "head", owner)
    k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
    smallest = _STEM_STRIDE * _NECK_STRIDE
    if min(sizes) < smallest:
        raise ValueError(
            f"Invalid value for argument `input_shape` of {owner}. Expected a height and width of at least {smallest}, "
            f"the strides of its convolutions together. Received: input_shape={input_shape}"
        )
    inputs = keras.Input(shape)
    stem = LipConv2D(width, 5, _STEM_STRIDE, "same", parametrization=parametrization, name="stem_conv")
    x = activated(stem(inputs), activation, "stem_conv", owner)
    for index in range(1, depth + 1):
        # Deviations from the identity add up: of 1 / depth the variance, as in the paper.
        start = keras.initializers.VarianceScaling(1 / depth, "fan_avg")
        x = LinearResidualConv2D(3, kernel_initializer=start, name=f"block{index}")(x)
        x = activated(x, activation, f"block{index}", owner)
    # Windows do not overlap, so that an orthogonal matrix is an orthogonal operator.
    x = LipConv2D(width, _NECK_STRIDE, _NECK_STRIDE, "same", use_bias=False, name="neck_conv")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = activated(SpectralDense(units, name="neck_dense")(x), activation, "neck_dense", owner)
    return keras.Model(inputs, with_head(x, classes, head, "polar", k_coef_lip), name=name)
