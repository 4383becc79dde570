"""Backbones of inverted residual blocks (MobileNetV2, Sandler et al. 2018, arXiv 1801.04381, figure 4) as atrous feature extractors.

From the stage on that would pass the output stride, a stride of 2 becomes a stride of 1 and every later
depthwise convolution samples at twice the rate, so that the weights see the same context on a finer grid
(DeepLab v3, section 3.1). Multi-grid (v3, section 3.2.1) multiplies the rates of the last three blocks, and MSc (v1, section 4.3)
branches off before each stride; the papers have both on other backbones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation, convolution
from pipeline.network.features import BackboneModule, Features

if TYPE_CHECKING:
    from pipeline.network.choices import EntryRate, Padding
    from pipeline.network.spec import NetworkSpec

_STEM_CHANNELS = 32
_LAST_CHANNELS = 1280
_EPS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A row of the papers' tables of layers: blocks of one shape in sequence."""

    expansion: int
    """A block's depthwise convolution has this many times the channels that it gets."""
    channels: int
    """Channels that each block gives, at width 1."""
    n_blocks: int
    """How many of them."""
    stride: int
    """Of the first block; the others have 1."""
    kernel: int = 3
    """Side of the depthwise kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """Shape of one inverted residual block."""

    n_in: int
    """Channels it gets."""
    n_out: int
    """Channels it gives."""
    expansion: int
    """Its depthwise convolution has ``expansion * n_in`` channels."""
    kernel: int
    """Side of its depthwise kernel."""
    stride: int
    """1 or 2."""
    rate: int
    """Atrous rate of the depthwise convolution."""


def plan_blocks(
    stages: tuple[Stage, ...],
    output_stride: int,
    *,
    width: float = 1.0,
    entry_rate: EntryRate = "previous",
    multi_grid: tuple[int, ...] = (1, 1, 1),
) -> tuple[BlockPlan, ...]:
    """Return the blocks such that the last features have ``output_stride``; ``multi_grid`` are factors on the last three rates."""
    plans: list[BlockPlan] = []
    n_in, reached, rate = scaled(_STEM_CHANNELS, width), 2, 1
    for stage in stages:
        n_out = scaled(stage.channels, width)
        for index in range(stage.n_blocks):
            wanted = stage.stride if index == 0 else 1
            stride = wanted if reached * wanted <= output_stride else 1
            later = rate * wanted // stride
            plans.append(
                BlockPlan(
                    n_in=n_in,
                    n_out=n_out,
                    expansion=stage.expansion,
                    kernel=stage.kernel,
                    stride=stride,
                    rate=later if entry_rate == "own" else rate,
                )
            )
            reached, rate, n_in = reached * stride, later, n_out
    last = (replace(plan, rate=plan.rate * factor) for plan, factor in zip(plans[-3:], multi_grid, strict=True))
    return (*plans[:-3], *last)


def scaled(channels: int, width: float) -> int:
    """Return ``channels`` at another width, at least 8 (the rule of the DeepLab release, which does not round to multiples of 8)."""
    return max(int(channels * width), 8)


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise k x k, linear 1 x 1 projection; with a shortcut where the shapes agree."""

    def __init__(self, plan: BlockPlan, *, padding: Padding, eps: float) -> None:
        super().__init__()
        hidden = plan.n_in * plan.expansion
        self.has_shortcut = plan.stride == 1 and plan.n_in == plan.n_out
        self.expand: nn.Module = nn.Identity()
        if plan.expansion > 1:
            self.expand = ConvNormActivation(convolution(plan.n_in, hidden), activation="relu6", eps=eps)
        depthwise = convolution(
            hidden, hidden, kernel=plan.kernel, stride=plan.stride, rate=plan.rate, groups=hidden, padding=padding
        )
        self.depthwise = ConvNormActivation(depthwise, activation="relu6", eps=eps)
        self.project = ConvNormActivation(convolution(hidden, plan.n_out), activation="none", eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.has_shortcut else out


class InvertedResidualBackbone(BackboneModule):
    """A stem of stride 2 and a sequence of inverted residual blocks; a subclass says which."""

    stages: ClassVar[tuple[Stage, ...]]
    """The table of its paper."""
    last_low_level_block: ClassVar[int]
    """Index of the last block at stride 4: its output goes to the decoder."""
    side_blocks: ClassVar[tuple[int, ...]]
    """The last blocks at strides 2, 4, 8 and 16; at a finer output stride the last ones keep it."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        eps = _EPS if spec.backbone_eps is None else spec.backbone_eps
        plans = plan_blocks(
            self.stages, spec.output_stride, width=spec.backbone_width, entry_rate=spec.entry_rate, multi_grid=spec.multi_grid
        )
        stem = convolution(spec.n_bands, plans[0].n_in, kernel=3, stride=2, padding=spec.padding)
        self.stem = ConvNormActivation(stem, activation="relu6", eps=eps)
        self.blocks = nn.ModuleList(InvertedResidual(plan, padding=spec.padding, eps=eps) for plan in plans)
        self.last: nn.Module = nn.Identity()
        self._side_blocks = self.side_blocks if spec.side_channels else ()
        strides = (min(2 << index, spec.output_stride) for index in range(len(self.side_blocks)))
        self.side_channels = (
            (spec.n_bands, 1),
            *((plans[block].n_out, stride) for block, stride in zip(self.side_blocks, strides, strict=True)),
        )
        self.low_level_channels = plans[self.last_low_level_block].n_out
        self.high_level_channels = plans[-1].n_out
        if spec.final_expansion:
            self.high_level_channels = max(_LAST_CHANNELS, scaled(_LAST_CHANNELS, spec.backbone_width))
            self.last = ConvNormActivation(convolution(plans[-1].n_out, self.high_level_channels), activation="relu6", eps=eps)

    def forward(self, x: Tensor) -> Features:
        """Map (N, bands, H, W) to the features at stride 4, (N, 24, ...), and at the last, (N, 320 or 1280, ...).

        For MSc the image and the features before each stride come with them.
        """
        side = [x] if self._side_blocks else []
        x = low_level = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.last_low_level_block:
                low_level = x
            if index in self._side_blocks:
                side.append(x)
        return Features(low_level=low_level, high_level=self.last(x), side=tuple(side))
