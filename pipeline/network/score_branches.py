"""Which class does the surrounding of a cell speak for? The scoring branches of DeepLab v1 and v2, summed.

v1 (arXiv 1412.7062), section 3.1: the fully connected layers of VGG-16 become convolutions, fc6 an atrous one. v2 (arXiv 1606.00915),
figure 7 and section 4.1.2: one such branch per rate, their scores summed (ASPP); on ResNet-101 a branch is one atrous
convolution to the classes. MSc (v1, section 4.3) adds branches from the image and from pooling layers, joined before the last layer.

::

    features -> fc6 (atrous) -> fc7 -> [+ side branches] -> fc8 -+
    features -> fc6 (atrous) -> fc7 -----------------------> fc8 -+-> sum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.network.convolution import convolution

if TYPE_CHECKING:
    from pipeline.network.features import BackboneModule, Features
    from pipeline.network.spec import NetworkSpec

_INITIAL_STD = 0.01
"""Of new scoring layers (v2, section 4.1)."""


class SideBranch(nn.Module):
    """3 x 3 and 1 x 1 convolution from an early layer to the grid of the features (v1, section 4.3)."""

    def __init__(self, n_in: int, n_out: int, *, stride: int) -> None:
        super().__init__()
        self.gather = convolution(n_in, n_out, kernel=3, stride=stride, bias=True)
        self.mix = convolution(n_out, n_out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        mixed: Tensor = torch.relu(self.mix(torch.relu(self.gather(x))))
        return mixed


class ScoreBranch(nn.Module):
    """fc6, fc7 and fc8 as convolutions; the last one also sees ``extra``."""

    def __init__(self, n_in: int, spec: NetworkSpec, *, rate: int, n_extra: int) -> None:
        super().__init__()
        self.fc6 = convolution(n_in, spec.head_channels, kernel=spec.head_kernel, rate=rate, bias=True)
        self.fc7 = convolution(spec.head_channels, spec.head_channels, bias=True)
        self.fc8 = _score_layer(spec.head_channels + n_extra, spec.n_classes)

    def forward(self, x: Tensor, extra: list[Tensor]) -> Tensor:
        """Map (N, in, H, W) to scores (N, classes, H, W)."""
        hidden = torch.relu(self.fc7(torch.relu(self.fc6(x))))
        scores: Tensor = self.fc8(torch.cat([hidden, *extra], dim=1))
        return scores


class DirectBranch(nn.Module):
    """One atrous convolution from the features to the classes."""

    def __init__(self, n_in: int, spec: NetworkSpec, *, rate: int) -> None:
        super().__init__()
        self.fc8 = _score_layer(n_in, spec.n_classes, kernel=spec.head_kernel, rate=rate)

    def forward(self, x: Tensor, _extra: list[Tensor]) -> Tensor:
        """Map (N, in, H, W) to scores (N, classes, H, W)."""
        scores: Tensor = self.fc8(x)
        return scores


class ScoreBranches(nn.Module):
    """The sum over all branches."""

    def __init__(self, backbone: BackboneModule, spec: NetworkSpec) -> None:
        super().__init__()
        n_in, n_side = backbone.high_level_channels, spec.side_channels
        sources = backbone.side_channels if n_side else ()
        self.side = nn.ModuleList(SideBranch(n, n_side, stride=spec.output_stride // step) for n, step in sources)
        self.branches = nn.ModuleList(
            ScoreBranch(n_in, spec, rate=rate, n_extra=n_side * len(sources))
            if spec.head_channels
            else DirectBranch(n_in, spec, rate=rate)
            for rate in spec.atrous_rates
        )

    def forward(self, features: Features) -> Tensor:
        """Map the backbone's features to scores (N, classes, H / output stride, W / output stride)."""
        extra = [branch(source) for branch, source in zip(self.side, features.side, strict=True)] if self.side else []
        scores: Tensor = sum(branch(features.high_level, extra) for branch in self.branches)
        return scores


def _score_layer(n_in: int, n_classes: int, *, kernel: int = 1, rate: int = 1) -> nn.Conv2d:
    layer = convolution(n_in, n_classes, kernel=kernel, rate=rate, bias=True)
    nn.init.normal_(layer.weight, std=_INITIAL_STD)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
