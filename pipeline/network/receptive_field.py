"""How many pixels around an output pixel can influence it? Computed from the layers of the network as built.

A cell ``i`` of a feature map depends on the input pixels ``step * i - before .. step * i + after`` along each
axis. Every layer widens that range; two branches that meet give the union. It is the arithmetic of
Araujo et al. 2019, "Computing receptive fields of convolutional neural networks" (Distill); bilinear
upsampling is added here.

::

    input pixels   . . . [ . . . . o . . . . . ] . . .
                         |<-before-|--after--->|
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.network.convolution import TFSameConv2d
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.spec import NetworkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Which input pixels one cell depends on, along one axis."""

    step_px: int = 1
    """Input pixels from one cell to the next."""
    before_px: int = 0
    """Pixels before ``step_px * i`` that cell ``i`` depends on."""
    after_px: int = 0
    """Pixels after it."""

    def convolved(self, conv: nn.Conv2d) -> Reach:
        """Return the reach of a cell behind ``conv`` (square kernels, rates and strides)."""
        width = (conv.kernel_size[0] - 1) * conv.dilation[0]
        left = _zeros_before(conv)
        return Reach(
            step_px=self.step_px * conv.stride[0],
            before_px=self.before_px + self.step_px * left,
            after_px=self.after_px + self.step_px * (width - left),
        )

    def upsampled(self, factor: int) -> Reach:
        """Return the reach of a cell behind bilinear upsampling by an even ``factor``, half-pixel centres.

        Cell ``factor * q + m`` lies between the cells q - 1 and q where m < factor / 2, and q and q + 1
        otherwise. The furthest pixel before it is that of q - 1 seen from m = factor / 2 - 1; after it, that
        of q + 1 seen from m = factor / 2.
        """
        finer = self.step_px // factor
        return Reach(
            step_px=finer,
            before_px=self.before_px + self.step_px + (factor // 2 - 1) * finer,
            after_px=self.after_px + self.step_px - factor // 2 * finer,
        )

    def joined(self, other: Reach) -> Reach:
        """Return the union with the reach of another branch on the same grid."""
        return Reach(
            step_px=self.step_px,
            before_px=max(self.before_px, other.before_px),
            after_px=max(self.after_px, other.after_px),
        )


def margin_px(network: NetworkSpec | DeepLab) -> int | None:
    """Return how far around an output pixel inputs matter, px, rounded up to the output stride.

    Pixels of a window that are further than this from its edges get the logits that the whole scene would
    give them, if the window starts at a multiple of the output stride. None with image pooling: then every
    pixel of the window matters.
    """
    if isinstance(network, NetworkSpec):
        with torch.device("meta"):
            network = build_network(network)
    reach = receptive_field(network)
    if reach is None:
        return None
    stride = network.spec.output_stride
    return -(-max(reach.before_px, reach.after_px) // stride) * stride


def receptive_field(network: DeepLab) -> Reach | None:
    """Return the reach of an output pixel, the furthest over all pixels; None with image pooling."""
    if network.spec.image_pooling != "off":
        return None
    low_level, high_level = _backbone(network)
    context = _joined([_sequence(branch, high_level) for branch in network.aspp.branches])
    context = _sequence(network.aspp.project, context).upsampled(high_level.step_px // low_level.step_px)
    reduced = _sequence(network.decoder.reduce, low_level)
    refined = _sequence(network.decoder.refine, context.joined(reduced))
    return _sequence(network.classifier, refined).upsampled(refined.step_px)


def _backbone(network: DeepLab) -> tuple[Reach, Reach]:
    """Return the reach of the low-level and of the high-level features."""
    reach = low_level = _sequence(network.backbone.stem, Reach())
    for index, block in enumerate(network.backbone.blocks):
        reach = _sequence(block, reach)  # a shortcut sees no more than the convolutions beside it
        if index == network.backbone.last_low_level_block:
            low_level = reach
    return low_level, reach


def _sequence(module: nn.Module, reach: Reach) -> Reach:
    """Return the reach behind the convolutions of ``module``, which run in the order of registration."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            reach = reach.convolved(layer)
    return reach


def _joined(reaches: list[Reach]) -> Reach:
    union = reaches[0]
    for reach in reaches[1:]:
        union = union.joined(reach)
    return union


def _zeros_before(conv: nn.Conv2d) -> int:
    """Return the zeros on the left; sizes are multiples of the output stride wherever a stride is not 1."""
    if isinstance(conv, TFSameConv2d):
        width = (conv.kernel_size[0] - 1) * conv.dilation[0]
        return max(width + 1 - conv.stride[0], 0) // 2
    return int(conv.padding[0])
