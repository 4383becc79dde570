"""State dicts in other people's naming, and their layers computed straight from the names, without any module of ours.

For checkpoints whose code cannot be installed: names, shapes and order of the layers follow the public descriptions of that code.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]

RESNET50 = (3, 4, 6, 3)
RESNET101 = (3, 4, 23, 3)


class Keys:
    """A state dict that grows layer by layer; every value is random, so that a swapped pair of tensors is seen."""

    def __init__(self, *, seed: int = 0) -> None:
        self.state: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def conv(
        self, name: str, n_in: int, n_out: int, kernel: int = 1, *, groups: int = 1, bias: bool = False, gain: float = 1
    ) -> None:
        """Add a convolution; ``gain`` is the factor from the deviation of its input to that of its output."""
        shape = (n_out, n_in // groups, kernel, kernel)
        fan_in = shape[1] * kernel**2
        self.state[f"{name}.weight"] = gain * torch.randn(shape, generator=self._generator) / fan_in**0.5
        if bias:
            self.state[f"{name}.bias"] = 0.1 * torch.randn(n_out, generator=self._generator)

    def norm(self, name: str, n: int) -> None:
        """Add a batch normalisation."""
        self.state[f"{name}.weight"] = 0.8 + 0.4 * torch.rand(n, generator=self._generator)
        self.state[f"{name}.bias"] = 0.1 * torch.randn(n, generator=self._generator)
        self.state[f"{name}.running_mean"] = 0.1 * torch.randn(n, generator=self._generator)
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(n, generator=self._generator)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def resnet(self, prefix: str, depths: Sequence[int], *, n_bands: int = 3) -> None:
        """Add a ResNet with bottlenecks, named as in torchvision; its stem is added where there is none under ``stem.0``."""
        if f"{prefix}stem.0.weight" not in self.state:
            self.conv(f"{prefix}conv1", n_bands, 64, 7)
            self.norm(f"{prefix}bn1", 64)
        n_in = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            for block in range(depth):
                self._bottleneck(f"{prefix}layer{stage + 1}.{block}", n_in, width, has_shortcut=block == 0)
                n_in = 4 * width

    def _bottleneck(self, name: str, n_in: int, width: int, *, has_shortcut: bool) -> None:
        shapes = ((n_in, width, 1), (width, width, 3), (width, 4 * width, 1))
        for index, (a, b, kernel) in enumerate(shapes, start=1):
            self.conv(f"{name}.conv{index}", a, b, kernel)
            self.norm(f"{name}.bn{index}", b)
        if has_shortcut:
            self.conv(f"{name}.downsample.0", n_in, 4 * width)
            self.norm(f"{name}.downsample.1", 4 * width)


def layer(
    state: State, x: Tensor, conv: str, norm: str | None = None, *, stride: int = 1, rate: int = 1, relu: bool = True
) -> Tensor:
    kernel = state[f"{conv}.weight"]
    pad = rate * (kernel.shape[-1] - 1) // 2
    groups = x.shape[1] // kernel.shape[1]
    x = functional.conv2d(x, kernel, state.get(f"{conv}.bias"), stride, pad, rate, groups)
    if norm is not None:
        mean, var, gain, bias = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = functional.batch_norm(x, mean, var, gain, bias, eps=1e-5)
    return functional.relu(x) if relu else x


def resnet_stages(state: State, prefix: str, x: Tensor, stages: Sequence[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Return the features at stride 4 and the last ones; ``stages`` are (stride, rate of each block), from behind the stem on."""
    low_level = x
    for stage, (stride, rates) in enumerate(stages, start=1):
        for block, rate in enumerate(rates):
            x = _bottleneck(state, x, f"{prefix}layer{stage}.{block}", stride=stride if block == 0 else 1, rate=rate)
        low_level = x if stage == 1 else low_level
    return low_level, x


def _bottleneck(state: State, x: Tensor, name: str, *, stride: int, rate: int) -> Tensor:
    y = layer(state, x, f"{name}.conv1", f"{name}.bn1")
    y = layer(state, y, f"{name}.conv2", f"{name}.bn2", stride=stride, rate=rate)
    y = layer(state, y, f"{name}.conv3", f"{name}.bn3", relu=False)
    if f"{name}.downsample.0.weight" in state:
        x = layer(state, x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride, relu=False)
    return functional.relu(x + y)


def resized(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
