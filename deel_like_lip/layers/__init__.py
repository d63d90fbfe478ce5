"""Keras layers whose Lipschitz constant is known."""

from deel_like_lip.layers.activations import FullSort, GroupSort, GroupSort2, MaxMin
from deel_like_lip.layers.base import LipschitzLayer
from deel_like_lip.layers.blocks import (
    CPLConv2D,
    CPLDense,
    LinearResidualConv2D,
    SandwichDense,
    SLLConv2D,
    SLLDense,
)
from deel_like_lip.layers.convolutional import FrobeniusConv2D, LipConv2D, SpectralConv2D
from deel_like_lip.layers.dense import FrobeniusDense, SpectralDense
from deel_like_lip.layers.pooling import (
    ScaledAveragePooling2D,
    ScaledGlobalAveragePooling2D,
    ScaledGlobalL2NormPooling2D,
    ScaledL2NormPooling2D,
)
from deel_like_lip.layers.residual import ConcatResidual, LipResidual

__all__ = [
    "CPLConv2D",
    "CPLDense",
    "ConcatResidual",
    "FrobeniusConv2D",
    "FrobeniusDense",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "LinearResidualConv2D",
    "LipConv2D",
    "LipResidual",
    "LipschitzLayer",
    "MaxMin",
    "SLLConv2D",
    "SLLDense",
    "SandwichDense",
    "ScaledAveragePooling2D",
    "ScaledGlobalAveragePooling2D",
    "ScaledGlobalL2NormPooling2D",
    "ScaledL2NormPooling2D",
    "SpectralConv2D",
    "SpectralDense",
]
