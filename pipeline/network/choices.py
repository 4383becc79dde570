"""Which choices do specs and builders share? The literals."""

from __future__ import annotations

from typing import Literal

Architecture = Literal["deeplabv1", "deeplabv2", "deeplabv3", "deeplabv3plus"]
"""Members of the DeepLab family."""

ImagePooling = Literal["global", "window", "off"]
"""The ASPP's image-level branch: the mean over the whole scene, over the window it is given, or no branch."""

Padding = Literal["symmetric", "tf_same"]
"""Zero-padding of strided convolutions."""

Alignment = Literal["centre", "corner"]
"""Where cell ``i`` of a feature map lies: over the pixels ``stride * i ...  stride * i + stride - 1``, or at pixel ``stride * i``."""

Stem = Literal["plain", "deep"]
"""The first layers of a ResNet: one 7 x 7 convolution, or three 3 x 3 ones."""

BottleneckStride = Literal["3x3", "1x1"]
"""Which convolution of a ResNet bottleneck has the stride: as in torchvision, or as in the original Caffe models."""

EntryRate = Literal["previous", "own"]
"""Atrous rate of the block in which a stride became a rate: that of the stage before it, or that of its own stage."""

Fusion = Literal["max", "mean"]
"""How several scales become one answer: the maximum of the scores (v2), or the mean of the probabilities (v3)."""

Activation = Literal["relu", "relu6", "none"]
"""What follows a normalised convolution."""

BACKBONE_KNOBS = (
    "backbone_width",
    "backbone_eps",
    "final_expansion",
    "stem",
    "bottleneck_stride",
    "entry_rate",
    "multi_grid",
    "cascade_blocks",
    "side_channels",
    "padding",
)
"""Fields of NetworkSpec that only some backbones heed; set on another one they are an error, not a silent nothing."""
