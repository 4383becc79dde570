"""Which variants of each part can be built? The literals that specs and builders share."""

from __future__ import annotations

from typing import Literal

Architecture = Literal["deeplabv3plus"]
"""Members of the DeepLab family."""

Backbone = Literal["mobilenet_v2"]
"""Feature extractors."""

ImagePooling = Literal["window", "off"]
"""The ASPP's image-level branch: the mean over the window it is given, or none."""

Padding = Literal["symmetric", "tf_same"]
"""Zero-padding of strided convolutions."""

Activation = Literal["relu", "relu6", "none"]
"""What follows a normalised convolution."""
