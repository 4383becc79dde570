"""How is one convolution padded, normalised and activated?

A 3 x 3 convolution of stride 2 keeps every second position. Which one depends on the padding::

    symmetric, any size    pad 1 left, 1 right    centres on pixels 0, 2, 4, ...
    tf_same, odd size      pad 1 left, 1 right    centres on pixels 0, 2, 4, ...
    tf_same, even size     pad 0 left, 1 right    centres on pixels 1, 3, 5, ...

So the two differ by a translation and at the edges; weights made for one work with the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from pipeline.network.choices import Activation, Padding


class TFSameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME": the output has ceil(size / stride) positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        return super().forward(self.pad(x))

    def pad(self, x: Tensor) -> Tensor:
        """Return (N, in, H, W) with the zeros around it that the convolution takes in."""
        top, bottom = self._amount(x.shape[-2], axis=0)
        left, right = self._amount(x.shape[-1], axis=1)
        return functional.pad(x, (left, right, top, bottom))

    def _amount(self, size: int, *, axis: int) -> tuple[int, int]:
        """Return the zeros before and after; TensorFlow puts the odd one after."""
        stride, reach = self.stride[axis], (self.kernel_size[axis] - 1) * self.dilation[axis]
        total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        return total // 2, total - total // 2


def convolution(  # noqa: PLR0913 - the seven choices of a convolution
    n_in: int,
    n_out: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    rate: int = 1,
    groups: int = 1,
    padding: Padding = "symmetric",
    bias: bool = False,
) -> nn.Conv2d:
    """Return a convolution of odd ``rate * (kernel - 1) + 1`` that keeps the size at stride 1."""
    if stride > 1 and padding == "tf_same":
        return TFSameConv2d(n_in, n_out, kernel, stride=stride, dilation=rate, groups=groups, bias=bias)
    pad = rate * (kernel - 1) // 2
    return nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=pad, dilation=rate, groups=groups, bias=bias)


class ConvNormActivation(nn.Module):
    """Convolution, batch normalisation, activation."""

    def __init__(self, conv: nn.Conv2d, *, activation: Activation = "relu", eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = conv
        self.norm: nn.Module = nn.BatchNorm2d(conv.out_channels, eps=eps)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        activated: Tensor = self.activation(self.norm(self.conv(x)))
        return activated


_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "none": nn.Identity}


def context_convolution(n_in: int, n_out: int, *, rate: int = 1, separable: bool, separable_norm: bool = True) -> nn.Module:
    """Return the 3 x 3 of ASPP and decoder: plain, or depthwise + pointwise with a ReLU after each.

    The second is the atrous separable convolution of DeepLab v3+ (arXiv 1802.02611), section 3.1. Without ``separable_norm``
    nothing stands between depthwise and pointwise, as in segmentation_models_pytorch.
    """
    if not separable:
        return ConvNormActivation(convolution(n_in, n_out, kernel=3, rate=rate))
    depthwise = convolution(n_in, n_in, kernel=3, rate=rate, groups=n_in)
    return nn.Sequential(
        ConvNormActivation(depthwise) if separable_norm else depthwise,
        ConvNormActivation(convolution(n_in, n_out)),
    )
