"""Modulated deformable convolution: a torch operator that exports as ONNX's DeformConv."""

from streampose.plugins.deform_conv.op import deform_conv2d

__all__ = ["deform_conv2d"]
