"""What does rounding kernels to 16 bits do to a network, and how is most of it made up for?

bfloat16 keeps eight bits of a kernel's values. The errors within one kernel seldom sum to nothing, and its input is seldom zero on average,
so that its output is off by a constant. That constant is known beforehand and goes into the bias; what is left is like noise. It is the
bias correction of Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721, section
4.2): the mean of an input follows from the normalisation and the activation before it, and no image is needed::

    z normal with mean beta and deviation |gamma|  ->  mean of max(0, z), per channel
    sum over a kernel of (value - rounded value) * mean of its input  ->  onto the bias
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation
from pipeline.network.fold import fold_batch_norm
from pipeline.network.multiscale import MultiScale

if TYPE_CHECKING:
    from pipeline.network.deeplab import DeepLab

_CELLS = 4
"""Side of the window that is looked at, in cells of the output stride; what it holds is the same everywhere but at its edges."""
_LEAST = 1e-12
"""Smallest deviation that is divided by."""


def fold_for(network: MultiScale, dtype: torch.dtype | None) -> MultiScale:
    """Return a copy for inference without normalisations, whose kernels are rounded to ``dtype``; None: they are not."""
    folded = fold_batch_norm(network)
    if dtype is not None:
        for name, mean in input_means(network).items():
            make_up(folded.get_submodule(name), mean, dtype)
    return folded


def input_means(network: MultiScale | DeepLab) -> dict[str, Tensor]:
    """Return what goes into each convolution on average, (channels,) float32, by the name of its module; nothing where none is normalised.

    Parameters
    ----------
    network
        With its normalisations, in evaluation mode. Images are taken as zero on average, which is what normalising them is for.
    """
    convolutions = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    blocks = [layer for layer in network.modules() if isinstance(layer, ConvNormActivation)]
    normalised = [layer for layer in blocks if isinstance(layer.norm, nn.BatchNorm2d)]
    if not normalised:
        return {}
    means: dict[str, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(_Note(means, name)) for name, layer in convolutions.items()]
    hooks += [layer.register_forward_hook(_put_mean) for layer in normalised]
    deeplab = network.network if isinstance(network, MultiScale) else network
    side = _CELLS * deeplab.spec.output_stride + int(deeplab.spec.alignment == "corner")
    try:
        with torch.inference_mode():
            deeplab(torch.zeros(1, deeplab.spec.n_bands, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return means


def make_up(layer: nn.Module, mean: Tensor, dtype: torch.dtype) -> None:
    """Round the kernel of a convolution to ``dtype``, and put onto its bias what that takes from its output, on average.

    It is rounded here, for a processor without such numbers would compute with the kernel as it was.

    Parameters
    ----------
    layer
        With the normalisation behind it multiplied in.
    mean
        (inputs,) of what goes into it.
    dtype
        What the kernel is rounded to; it stays in float32.
    """
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach()
    rounded = weight.to(dtype).to(weight.dtype)
    lost = (weight - rounded).sum(dim=(2, 3))  # (outputs, inputs of a group)
    inputs = mean.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, dim=0)
    shift = (lost * inputs).sum(dim=1)
    layer.weight = nn.Parameter(rounded, requires_grad=False)
    layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias.detach() + shift, requires_grad=False)


def keep_biases(network: nn.Module, dtype: torch.dtype) -> None:
    """Give every folded block its bias as an addition of its own, behind a clamp to what ``dtype`` can hold, which changes nothing.

    OpenVINO rounds a bias to 16 bits together with the kernel that it belongs to, and computes in float32 what comes after another
    operation. Half of the labels that changed did so for rounded biases.
    """
    for layer in network.modules():
        if isinstance(layer, ConvNormActivation) and layer.conv.bias is not None:
            layer.norm = _LateBias(layer.conv.bias, torch.finfo(dtype).max)
            layer.conv.bias = None


class _LateBias(nn.Module):
    """Adds a bias to what a convolution gives."""

    def __init__(self, bias: Tensor, most: float) -> None:
        super().__init__()
        self._most = most
        self.bias = nn.Parameter(bias.detach()[:, None, None], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        return x.clamp(-self._most, self._most) + self.bias


class _Note:
    """Notes the mean of what goes into a layer."""

    def __init__(self, means: dict[str, Tensor], name: str) -> None:
        self._means, self._name = means, name

    def __call__(self, _layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._means[self._name] = given[0].mean(dim=(0, 2, 3)).clone()


def _put_mean(layer: nn.Module, _given: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """Return a layer's output as it is on average, the same everywhere."""
    assert isinstance(layer, ConvNormActivation)
    assert isinstance(layer.norm, nn.BatchNorm2d)
    beta, deviation = layer.norm.bias.detach(), layer.norm.weight.detach().abs().clamp_min(_LEAST)
    if isinstance(layer.activation, nn.Identity):
        mean = beta
    else:
        mean = _mean_above_zero(beta, deviation)
        if isinstance(layer.activation, nn.ReLU6):  # what is above 6 is cut off
            mean = mean - _mean_above_zero(beta - 6, deviation)
    return mean[None, :, None, None].expand_as(out)


def _mean_above_zero(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the mean of max(0, z) for normal z."""
    z = mean / deviation
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = (1 + torch.erf(z / math.sqrt(2))) / 2
    return mean * below + deviation * density
