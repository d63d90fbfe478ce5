"""Builders of networks: functions that return a functional Keras model, in the manner of `keras.applications`."""

from deel_like_lip.models.dense import dense_net
from deel_like_lip.models.hkr import hkr_cnn, hkr_vgg
from deel_like_lip.models.li_resnet import li_resnet
from deel_like_lip.models.lip_conv_net import lip_conv_net

__all__ = ["dense_net", "hkr_cnn", "hkr_vgg", "li_resnet", "lip_conv_net"]
