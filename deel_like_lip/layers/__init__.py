"""Keras layers whose Lipschitz constant is known."""

from deel_like_lip.layers.activations import FullSort, GroupSort, GroupSort2, Householder, MaxMin
from deel_like_lip.layers.base import LipschitzLayer
from deel_like_lip.layers.blocks import CPLDense, SandwichDense, SLLDense
from deel_like_lip.layers.convolution_blocks import CPLConv2D, LinearResidualConv2D, SLLConv2D
from deel_like_lip.layers.convolution_transpose import LipConv2DTranspose, SpectralConv2DTranspose
from deel_like_lip.layers.convolutional import FrobeniusConv2D, LipConv1D, LipConv2D, LipConv3D, SpectralConv2D
from deel_like_lip.layers.dense import FrobeniusDense, SpectralDense
from deel_like_lip.layers.depthwise import LipDepthwiseConv2D
from deel_like_lip.layers.heads import UnitNormDense
from deel_like_lip.layers.normalization import BatchCentering, LayerCentering, LipBatchNormalization
from deel_like_lip.layers.padding import PadConv2D
from deel_like_lip.layers.pooling import (
    ScaledAveragePooling2D,
    ScaledGlobalAveragePooling2D,
    ScaledGlobalL2NormPooling2D,
    ScaledL2NormPooling2D,
)
from deel_like_lip.layers.resampling import (
    ChannelShuffle,
    FirstChannels,
    InvertibleDownSampling,
    InvertibleUpSampling,
    ZeroChannelPadding,
)
from deel_like_lip.layers.residual import ConcatResidual, LipResidual
from deel_like_lip.layers.scalar_activations import Abs, LipPReLU, NActivation, SoftHuber

__all__ = [
    "Abs",
    "BatchCentering",
    "CPLConv2D",
    "CPLDense",
    "ChannelShuffle",
    "ConcatResidual",
    "FirstChannels",
    "FrobeniusConv2D",
    "FrobeniusDense",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "Householder",
    "InvertibleDownSampling",
    "InvertibleUpSampling",
    "LayerCentering",
    "LinearResidualConv2D",
    "LipBatchNormalization",
    "LipConv1D",
    "LipConv2D",
    "LipConv2DTranspose",
    "LipConv3D",
    "LipDepthwiseConv2D",
    "LipPReLU",
    "LipResidual",
    "LipschitzLayer",
    "MaxMin",
    "NActivation",
    "PadConv2D",
    "SLLConv2D",
    "SLLDense",
    "SandwichDense",
    "ScaledAveragePooling2D",
    "ScaledGlobalAveragePooling2D",
    "ScaledGlobalL2NormPooling2D",
    "ScaledL2NormPooling2D",
    "SoftHuber",
    "SpectralConv2D",
    "SpectralConv2DTranspose",
    "SpectralDense",
    "UnitNormDense",
    "ZeroChannelPadding",
]
