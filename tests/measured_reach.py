"""How far does a network really look? Measured from gradients, to compare with what is computed."""

import torch
from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation
from pipeline.network.deeplab import DeepLab
from pipeline.network.multiscale import MultiScale, resize_to


def linear(network: DeepLab) -> DeepLab:
    """Make every path count, so that nothing cancels, is cut off or loses against a larger neighbour.

    Kernels are positive and see the mean of the channels, maxima become means, nothing is normalised or activated. One channel per
    layer is left: channels do not change which pixels matter, and most of the cost.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _see_the_mean_of_all_channels(module)
        elif isinstance(module, ConvNormActivation):
            module.norm = module.activation = nn.Identity()
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
    return network.double().eval()


def _see_the_mean_of_all_channels(conv: nn.Conv2d) -> None:
    kernel = conv.kernel_size
    conv.weight = nn.Parameter(torch.full((1, 1, *kernel), 1.0 / (kernel[0] * kernel[1])))
    conv.bias, conv.groups, conv.in_channels, conv.out_channels = None, 1, 1, 1
    conv.register_forward_pre_hook(lambda _module, inputs: (inputs[0].mean(dim=1, keepdim=True),))


def measured_reach(
    network: DeepLab | MultiScale, *, half_px: int, axis: int = 3, period_px: int = 0, strip_px: int = 0
) -> tuple[int, int]:
    """Return how far before and after it the furthest influences of any output pixel lie, along one axis.

    Parameters
    ----------
    network
        As `linear` returns it, or the scales around such a one.
    half_px
        Pixels of the scene on both sides, more than the reach.
    axis
        2: rows, 3: columns.
    period_px
        After so many pixels all phases of the cells have been seen; 0: the output stride.
    strip_px
        Pixels of the scene along the other axis; 0: as ``period_px``. A kernel without a middle tap needs more.
    """
    stride = network.network.spec.output_stride if isinstance(network, MultiScale) else network.spec.output_stride
    period = period_px or stride
    centre = -(-half_px // period) * period
    shape = [1, 1, strip_px or period, strip_px or period]
    shape[axis] = 2 * centre + period
    # Positive everywhere, so that a ReLU that is a function, and could not be taken out, lets everything pass.
    scene = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    line = _all_views(network, scene)[0, 0].select(3 - axis, 0)
    before = after = 0
    for pixel in range(centre, centre + period):
        (gradient,) = torch.autograd.grad(line[pixel], scene, retain_graph=True)
        touched = torch.nonzero(gradient.sum(dim=[dim for dim in range(4) if dim != axis])).flatten()
        before, after = max(before, pixel - int(touched[0])), max(after, int(touched[-1]) - pixel)
    return before, after


def _all_views(network: DeepLab | MultiScale, scene: Tensor) -> Tensor:
    """Return the sum over the scales: a maximum would let one through only, and means of probabilities of one class are all 1."""
    if isinstance(network, DeepLab):
        return network(scene)
    size = (scene.shape[-2], scene.shape[-1])
    return sum(resize_to(network._logits(scene, index), size) for index in range(len(network.views)))
