"""VGG-16 as an atrous feature extractor (Simonyan and Zisserman 2014), as DeepLab v1 changed it (arXiv 1412.7062, section 3.1).

All pooling is 3 x 3. pool4 and pool5 have stride 1 at output stride 8, and the convolutions behind pool4 sample at twice the
rate. An average over 3 x 3 follows pool5 (``pool5a`` in the released ``vgg128_noup`` configurations). There is no normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.network.convolution import convolution
from pipeline.network.features import Backbone, BackboneModule, Features

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions before each pooling."""


class VGG16(BackboneModule):
    """The 13 convolutions of VGG-16 and their pooling."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self._keeps_side = spec.side_channels > 0
        self.stages = nn.ModuleList()
        self.pools = nn.ModuleList()
        n_in, reached, rate = spec.n_bands, 1, 1
        side = [(n_in, 1)]
        for index, (n_out, n_convolutions) in enumerate(_STAGES):
            self.stages.append(_stage(n_in, n_out, n_convolutions, rate=rate))
            stride = 2 if reached * 2 <= spec.output_stride and index < len(_STAGES) - 1 else 1
            self.pools.append(nn.MaxPool2d(3, stride=stride, padding=1))
            rate = rate if stride == 2 or index == len(_STAGES) - 1 else 2 * rate
            reached, n_in = reached * stride, n_out
            side.append((n_out, reached))
        self.average = nn.AvgPool2d(3, stride=1, padding=1)
        self.side_channels = tuple(side[:-1])
        self.low_level_channels, self.high_level_channels = side[2][0], n_in

    def forward(self, x: Tensor) -> Features:
        """Map (N, bands, H, W) to pool2, (N, 128, ...), and the last features, (N, 512, ...).

        For MSc the image and pool1 to pool4 come with them.
        """
        side = [x]
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(stage(x))
            side.append(x)
        kept = tuple(side[:-1]) if self._keeps_side else ()
        return Features(low_level=side[2], high_level=self.average(x), side=kept)


def _stage(n_in: int, n_out: int, n_convolutions: int, *, rate: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(n_convolutions):
        layers += [convolution(n_out if index else n_in, n_out, kernel=3, rate=rate, bias=True), nn.ReLU()]
    return nn.Sequential(*layers)


BACKBONES = {"vgg16": Backbone(build=VGG16, knobs=frozenset({"side_channels"}))}
