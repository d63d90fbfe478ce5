"""The convolutional network that layers are compared on."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from deel_like_lip import parametrizations
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_count, checked_positive
from deel_like_lip.initializers import DeltaOrthogonal
from deel_like_lip.layers.activations import MaxMin
from deel_like_lip.layers.blocks import CPLDense, SLLDense
from deel_like_lip.layers.convolution_blocks import CPLConv2D, SLLConv2D
from deel_like_lip.layers.convolutional import LipConv2D
from deel_like_lip.layers.dense import SpectralDense
from deel_like_lip.layers.resampling import FirstChannels, InvertibleDownSampling, ZeroChannelPadding
from deel_like_lip.models.base import (
    HEADS,
    activated,
    check_choice,
    checked_image_shape,
    dense_counterpart,
    with_head,
)
from deel_like_lip.parametrizations import AOL, OperatorNorm

WIDTHS = {"XS": 16, "S": 32, "M": 64, "L": 128}
_BLOCKS: dict[str, tuple[Any, Any]] = {"sll": (SLLConv2D, SLLDense), "cpl": (CPLConv2D, CPLDense)}


def lip_conv_net(
    size: str = "XS",
    input_shape: Sequence[int] = (32, 32, 3),
    classes: int = 10,
    parametrization: Any = "aoc",
    activation: Any = MaxMin,
    head: str = "first_channels",
    padding: str = "circular",
    kernel_size: int = 3,
    width: int | None = None,
    blocks: int = 5,
    convolutions: int = 5,
    k_coef_lip: float = 1.0,
    name: str | None = None,
) -> keras.Model:
    """The network of "1-Lipschitz layers compared", in the sizes XS, S, M and L.

    Zero channels are appended up to the width w, and a 1x1 convolution follows. Each of five blocks is five
    convolutions with activations, keeps the first half of the channels, and makes channels of 2x2 pixels: half the
    height and width and twice the channels. In the last block kernels are 1x1. On what is left, one pixel of 32 w
    channels, there is a dense layer of as many outputs, of which the first ones are the logits. All convolutions have
    as many outputs as inputs.

    Images whose size is no multiple of `2 ** blocks` are continued with zeros at the bottom and at the right. Where
    more than one pixel is left at the end, the largest value of each channel is taken, as in the authors' code.

    | size | w   | parameters | with "aoc" | with "sll"  |
    |------|-----|------------|------------|-------------|
    | XS   | 16  | 1.572 M    | 0.919 M    | 1.575 M     |
    | S    | 32  | 6.283 M    | 3.672 M    | 6.289 M     |
    | M    | 64  | 25.12 M    | 14.68 M    | 25.13 M     |
    | L    | 128 | 100.46 M   | 58.68 M    | 100.48 M    |

    Args:
        size: "XS", "S", "M" or "L".
        input_shape: Shape of one image, in the data format of the Keras configuration.
        classes: Number of outputs.
        parametrization: How kernels are constrained, by name or as an object, as in `LipConv2D`, with the counterpart
            for the dense layer; or "sll" or "cpl" for these layers in place of convolutions. "polar" bounds the norm of
            a 3x3 convolution by that of its reshaped kernel, and in a network as deep the gradient is lost: a new XS
            has the constant 1e-4.
        activation: A function without arguments that returns a layer, such as its class, or the name of an activation
            of Keras. Its constant is at most 1.
        head: "first_channels", as described, or in its place a layer of `classes` outputs: "orthogonal", or "unit_norm"
            for a `UnitNormDense`.
        padding: "circular", with which orthogonal convolutions keep the norm, or "same".
        kernel_size: Odd integer, the size of kernels in all blocks but the last.
        width: The w to take in place of that of the size.
        blocks: Number of blocks. For images of 64x64 pixels the paper has 6, and half the width.
        convolutions: Number of convolutions in a block.
        k_coef_lip: The Lipschitz constant of the network, positive. It is that of the last layer; the others have 1.
        name: Name of the model, by default that of the size.

    Returns:
        A functional `keras.Model`, not compiled, with outputs that are logits. The paper subtracts the mean of each
        channel from the images.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, classes)`.

    Certificate:
        The l2 norm. The constant is at most `k_coef_lip` (with "soc" 1.00004 times as much for each convolution, of
        which no more is proven, and with "aoc" certified to be within 0.1 % of it), and that of a pair of classes
        `sqrt(2)` times as much; with "unit_norm" at most `2 k_coef_lip`.

    Published:
        On CIFAR-10 within 36/255, l2 in pixels of [0, 1], certified accuracy in % after 24 hours on an A100:

        | method | XS | S | M | L |
        |--------|------|------|------|------|
        | AOL    | 59.1 | 60.8 | 61.0 | 61.5 |
        | BCOP   | 58.5 | 59.3 | 60.5 | 61.5 |
        | CPL    | 62.5 | 64.2 | 65.1 | 65.2 |
        | SLL    | 61.0 | 62.0 | 62.8 | 62.3 |
        | SOC    | 61.3 | 62.9 | 66.3 | 65.4 |

        For "aoc", which makes BCOP's convolutions at stride 1, and the others none.

    Example:
        >>> lip_conv_net("XS", parametrization="aol").output_shape
        (None, 10)

    Raises:
        ValueError: If an argument is not as described, or the image is too small for as many blocks.

    Reference:
        - Prach, Brau, Buttazzo and Lampert, 2024, [1-Lipschitz layers compared: memory, speed, and certifiable
          robustness](https://arxiv.org/abs/2311.16833), tables 2 and 5 to 7
        - Singla and Feizi, 2021, [Skew orthogonal convolutions](https://arxiv.org/abs/2105.11417), for LipConvNet
    """
    owner = "lip_conv_net"
    check_choice(size, tuple(WIDTHS), "size", owner)
    check_choice(head, ("first_channels", *HEADS), "head", owner)
    check_choice(padding, ("circular", "same"), "padding", owner)
    shape, sizes = checked_image_shape(input_shape, owner)
    width = WIDTHS[size] if width is None else width
    for argument, value in (("width", width), ("blocks", blocks), ("convolutions", convolutions)):
        checked_count(value, argument, owner)
    checked_count(classes, "classes", owner)
    k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
    multiple, features = 2**blocks, width * 2**blocks
    if min(sizes) <= multiple // 2:
        raise ValueError(
            f"Invalid value for argument `input_shape` of {owner}. Expected a height and width above {multiple // 2}, "
            f"since each of the {blocks} blocks halves them; give fewer `blocks`. Received: input_shape={input_shape}"
        )
    if width % 2:
        raise ValueError(
            f"Invalid value for argument `width` of {owner}. Expected an even number: half of the channels go on. "
            f"Received: width={width}"
        )
    if head == "first_channels" and classes > features:
        raise ValueError(
            f"Invalid value for argument `classes` of {owner}. Expected at most {features}, the channels at the end of "
            f"a network of width={width} and blocks={blocks}. Received: classes={classes}"
        )
    convolution, dense, dense_parametrization = _layers_of(parametrization, padding)

    inputs = keras.Input(shape)
    x: Tensor = inputs
    missing = [-length % multiple for length in sizes]
    if any(missing):
        x = keras.layers.ZeroPadding2D([(0, count) for count in missing], name="padding")(x)
    x = ZeroChannelPadding(width, name="stem_channels")(x)
    x = activated(convolution(width, 1, "stem_conv")(x), activation, "stem_conv", owner)
    for block in range(1, blocks + 1):
        channels = width * 2 ** (block - 1)
        for index in range(1, convolutions + 1):
            layer = f"block{block}_conv{index}"
            x = convolution(channels, kernel_size if block < blocks else 1, layer)(x)
            x = activated(x, activation, layer, owner)
        x = FirstChannels(channels // 2, name=f"block{block}_channels")(x)
        x = InvertibleDownSampling(2, name=f"block{block}_down")(x)
    one_pixel = all(length <= multiple for length in sizes)
    x = keras.layers.Flatten(name="flatten")(x) if one_pixel else keras.layers.GlobalMaxPooling2D(name="pool")(x)
    if head == "first_channels":
        outputs = FirstChannels(classes, name="logits")(dense(features, k_coef_lip)(x))
    else:
        outputs = with_head(x, classes, head, dense_parametrization, k_coef_lip)
    return keras.Model(inputs, outputs, name=name or f"lip_conv_net_{size.lower()}")


def _layers_of(parametrization: Any, padding: str) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Returns what makes a convolution that keeps the number of channels, what makes a dense layer, and its kind."""
    if isinstance(parametrization, str) and parametrization in _BLOCKS:
        block, dense_block = _BLOCKS[parametrization]
        return (
            lambda channels, size, name: block(channels, size, padding, name=name),
            lambda features, constant: dense_block(k_coef_lip=constant, name="linear"),
            "polar",
        )
    found = parametrizations.get(parametrization)
    counterpart = dense_counterpart(found)

    def convolution(channels: int, size: int, name: str) -> LipConv2D:
        # These keep what an orthogonal convolution is, where a random kernel would lose half of the gradient.
        start = DeltaOrthogonal() if isinstance(found, AOL | OperatorNorm) else "orthogonal"
        return LipConv2D(channels, size, padding=padding, parametrization=found, kernel_initializer=start, name=name)

    def dense(features: int, constant: float) -> SpectralDense:
        return SpectralDense(features, parametrization=counterpart, k_coef_lip=constant, name="linear")

    return convolution, dense, counterpart
