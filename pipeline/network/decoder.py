"""Where exactly do objects end? The decoder of DeepLab v3+ (arXiv 1802.02611), section 3.1 and table 2.

The stride-4 features are reduced to few channels so that they do not outweigh the context, joined with it,
and refined by two 3 x 3 convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation, context_convolution, convolution
from pipeline.network.resize import resize_bilinear


class Decoder(nn.Module):
    """Joins low-level features with the context."""

    def __init__(self, *, n_low_level: int, n_reduced: int, n_context: int, n_out: int, separable: bool) -> None:
        super().__init__()
        self.reduce = ConvNormActivation(convolution(n_low_level, n_reduced))
        self.refine = nn.Sequential(
            context_convolution(n_context + n_reduced, n_out, separable=separable),
            context_convolution(n_out, n_out, separable=separable),
        )

    def forward(self, low_level: Tensor, context: Tensor) -> Tensor:
        """Map (N, low, H/4, W/4) and (N, context, H/os, W/os) to (N, out, H/4, W/4)."""
        spread = resize_bilinear(context, (low_level.shape[-2], low_level.shape[-1]))
        refined: Tensor = self.refine(torch.cat([spread, self.reduce(low_level)], dim=1))
        return refined
