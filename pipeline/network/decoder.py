"""Where exactly do objects end? The decoder of DeepLab v3+ (arXiv 1802.02611), section 3.1 and table 2.

The stride-4 features are reduced to few channels so that they do not outweigh the context, joined with it,
and refined by 3 x 3 convolutions, two in the paper.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation, context_convolution, convolution
from pipeline.network.resize import upsample
from pipeline.network.spec import LOW_LEVEL_STRIDE

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec


class Decoder(nn.Module):
    """Joins low-level features with the context."""

    def __init__(self, *, n_low_level: int, n_context: int, spec: NetworkSpec) -> None:
        super().__init__()
        self._factor = spec.output_stride // LOW_LEVEL_STRIDE
        self._alignment = spec.alignment
        self.reduce = ConvNormActivation(convolution(n_low_level, spec.low_level_channels))
        widths = [n_context + spec.low_level_channels] + [spec.decoder_channels] * spec.decoder_convolutions
        self.refine = nn.Sequential(
            *(
                context_convolution(n_in, n_out, separable=spec.separable, separable_norm=spec.separable_norm)
                for n_in, n_out in itertools.pairwise(widths)
            )
        )

    def forward(self, low_level: Tensor, context: Tensor) -> Tensor:
        """Map (N, low, H/4, W/4) and (N, context, H/os, W/os) to (N, out, H/4, W/4)."""
        spread = upsample(context, self._factor, self._alignment)[..., : low_level.shape[-2], : low_level.shape[-1]]
        refined: Tensor = self.refine(torch.cat([spread, self.reduce(low_level)], dim=1))
        return refined
