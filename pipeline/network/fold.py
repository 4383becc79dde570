"""How is a trained network made faster without changing what it computes?

In evaluation mode a batch normalisation multiplies and adds constants; ``gamma / sqrt(var + eps)`` goes into
the kernel and the rest into a bias.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.network.convolution import ConvNormActivation

Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norm(network: Network) -> Network:
    """Return a copy for inference without normalisations; logits differ by rounding only (below 1e-4)."""
    folded = deepcopy(network).eval()
    for layer in folded.modules():
        if isinstance(layer, ConvNormActivation) and isinstance(layer.norm, nn.BatchNorm2d):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.norm = nn.Identity()
    return folded.requires_grad_(requires_grad=False)
