"""MobileNetV2 as an atrous feature extractor (Sandler et al. 2018, arXiv 1801.04381, table 2).

From the stage on that would pass the output stride, a stride of 2 becomes a stride of 1 and every later
depthwise convolution samples at twice the rate, so that the weights see the same context on a finer grid
(DeepLab v3, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation, convolution

if TYPE_CHECKING:
    from pipeline.network.variants import Padding

_STEM_CHANNELS = 32
_STAGES = (
    # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_EPS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """Shape of one inverted residual block."""

    n_in: int
    """Channels it gets."""
    n_out: int
    """Channels it gives."""
    expansion: int
    """Its depthwise convolution has ``expansion * n_in`` channels."""
    stride: int
    """1 or 2."""
    rate: int
    """Atrous rate of the depthwise convolution."""


def plan_blocks(output_stride: int) -> tuple[BlockPlan, ...]:
    """Return the 17 blocks such that the last features have ``output_stride``."""
    plans: list[BlockPlan] = []
    n_in, reached, rate = _STEM_CHANNELS, 2, 1
    for expansion, n_out, n_blocks, stage_stride in _STAGES:
        for index in range(n_blocks):
            wanted = stage_stride if index == 0 else 1
            stride = wanted if reached * wanted <= output_stride else 1
            plans.append(BlockPlan(n_in=n_in, n_out=n_out, expansion=expansion, stride=stride, rate=rate))
            reached, rate, n_in = reached * stride, rate * wanted // stride, n_out
    return tuple(plans)


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise 3 x 3, linear 1 x 1 projection; with a shortcut where the shapes agree."""

    def __init__(self, plan: BlockPlan, *, padding: Padding) -> None:
        super().__init__()
        hidden = plan.n_in * plan.expansion
        self.has_shortcut = plan.stride == 1 and plan.n_in == plan.n_out
        self.expand: nn.Module = nn.Identity()
        if plan.expansion > 1:
            self.expand = ConvNormActivation(convolution(plan.n_in, hidden), activation="relu6", eps=_EPS)
        depthwise = convolution(hidden, hidden, kernel=3, stride=plan.stride, rate=plan.rate, groups=hidden, padding=padding)
        self.depthwise = ConvNormActivation(depthwise, activation="relu6", eps=_EPS)
        self.project = ConvNormActivation(convolution(hidden, plan.n_out), activation="none", eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """The convolutional part of MobileNetV2 at width 1.0."""

    low_level_channels = 24
    high_level_channels = 320
    last_low_level_block = 2

    def __init__(self, *, n_bands: int, output_stride: int, padding: Padding) -> None:
        super().__init__()
        stem = convolution(n_bands, _STEM_CHANNELS, kernel=3, stride=2, padding=padding)
        self.stem = ConvNormActivation(stem, activation="relu6", eps=_EPS)
        self.blocks = nn.ModuleList(InvertedResidual(plan, padding=padding) for plan in plan_blocks(output_stride))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, bands, H, W) to the features at stride 4, (N, 24, ...), and at the last, (N, 320, ...)."""
        x = low_level = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.last_low_level_block:
                low_level = x
        return low_level, x
