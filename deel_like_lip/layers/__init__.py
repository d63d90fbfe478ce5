"""Keras layers whose Lipschitz constant is known."""

from deel_like_lip.layers.activations import FullSort, GroupSort, GroupSort2, MaxMin
from deel_like_lip.layers.base import LipschitzLayer
from deel_like_lip.layers.convolution_transpose import LipConv2DTranspose, SpectralConv2DTranspose
from deel_like_lip.layers.convolutional import FrobeniusConv2D, LipConv1D, LipConv2D, LipConv3D, SpectralConv2D
from deel_like_lip.layers.dense import FrobeniusDense, SpectralDense
from deel_like_lip.layers.depthwise import LipDepthwiseConv2D
from deel_like_lip.layers.padding import PadConv2D
from deel_like_lip.layers.pooling import (
    ScaledAveragePooling2D,
    ScaledGlobalAveragePooling2D,
    ScaledGlobalL2NormPooling2D,
    ScaledL2NormPooling2D,
)

__all__ = [
    "FrobeniusConv2D",
    "FrobeniusDense",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "LipConv1D",
    "LipConv2D",
    "LipConv2DTranspose",
    "LipConv3D",
    "LipDepthwiseConv2D",
    "LipschitzLayer",
    "MaxMin",
    "PadConv2D",
    "ScaledAveragePooling2D",
    "ScaledGlobalAveragePooling2D",
    "ScaledGlobalL2NormPooling2D",
    "ScaledL2NormPooling2D",
    "SpectralConv2D",
    "SpectralConv2DTranspose",
    "SpectralDense",
]
