"""Atrous spatial pyramid pooling: what surrounds a cell, at several distances at once?

DeepLab v3 (arXiv 1706.05587), section 3.3, figure 5: a 1 x 1 convolution, one 3 x 3 convolution per atrous
rate and, optionally, the mean over the image, concatenated and projected by a 1 x 1 convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.network.convolution import ConvNormActivation, context_convolution, convolution


class ImagePooling(nn.Module):
    """Mean over all cells, 1 x 1 convolution, spread over all cells again."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.project = ConvNormActivation(convolution(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W), constant over H and W."""
        pooled: Tensor = self.project(functional.adaptive_avg_pool2d(x, 1))
        return pooled.expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """Parallel atrous branches, concatenated, projected."""

    def __init__(self, n_in: int, n_out: int, *, rates: tuple[int, ...], separable: bool, image_pooling: bool) -> None:
        super().__init__()
        branches: list[nn.Module] = [ConvNormActivation(convolution(n_in, n_out))]
        branches += [context_convolution(n_in, n_out, rate=rate, separable=separable) for rate in rates]
        if image_pooling:
            branches.append(ImagePooling(n_in, n_out))
        self.branches = nn.ModuleList(branches)
        self.project = ConvNormActivation(convolution(n_out * len(branches), n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W)."""
        projected: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
        return projected
