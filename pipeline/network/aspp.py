"""Atrous spatial pyramid pooling: what surrounds a cell, at several distances at once?

DeepLab v3 (arXiv 1706.05587), section 3.3, figure 5: a 1 x 1 convolution, one 3 x 3 convolution per atrous
rate and, optionally, the mean over the image, concatenated and projected by a 1 x 1 convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.network.convolution import ConvNormActivation, context_convolution, convolution

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec


class ImagePooling(nn.Module):
    """Mean over all cells, 1 x 1 convolution, spread over all cells again."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.project = ConvNormActivation(convolution(n_in, n_out))

    def forward(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W), constant over H and W; ``mean`` (in,) stands for the mean over ``x`` where given."""
        pooled = functional.adaptive_avg_pool2d(x, 1) if mean is None else mean.to(x.dtype).view(1, -1, 1, 1)
        projected: Tensor = self.project(pooled)
        return projected.expand(x.shape[0], -1, *x.shape[-2:])


class ASPP(nn.Module):
    """Parallel atrous branches, concatenated, projected."""

    def __init__(self, n_in: int, spec: NetworkSpec) -> None:
        super().__init__()
        n_out = spec.aspp_channels
        separable = spec.separable if spec.aspp_separable is None else spec.aspp_separable
        self.branches = nn.ModuleList([ConvNormActivation(convolution(n_in, n_out))])
        for rate in spec.effective_atrous_rates:
            self.branches.append(
                context_convolution(n_in, n_out, rate=rate, separable=separable, separable_norm=spec.separable_norm)
            )
        self.has_image_pooling = spec.image_pooling != "off"
        if self.has_image_pooling:
            self.branches.append(ImagePooling(n_in, n_out))
        self.project = ConvNormActivation(convolution(n_out * len(self.branches), n_out, kernel=spec.projection_kernel))

    def forward(self, x: Tensor, scene_mean: Tensor | None = None) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W); ``scene_mean`` (in,) goes to the image-level branch in place of the window's own."""
        pooled = [self.branches[-1](x, scene_mean)] if self.has_image_pooling else []
        atrous = self.branches[: len(self.branches) - len(pooled)]
        projected: Tensor = self.project(torch.cat([*(branch(x) for branch in atrous), *pooled], dim=1))
        return projected
