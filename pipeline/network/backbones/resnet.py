"""ResNets as atrous feature extractors (He et al. 2015, arXiv 1512.03385, table 1).

From the stage on that would pass the output stride, a stride of 2 becomes a stride of 1 and the 3 x 3 convolutions behind it
sample at twice the rate. DeepLab v3 (arXiv 1706.05587) adds factors on the rates of the last stage (multi-grid, section 3.2.1)
and, in its cascaded variant, copies of that stage behind it (section 3.2, figure 3).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation, convolution
from pipeline.network.features import Backbone, BackboneModule, Features

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec

_WIDTHS = (64, 128, 256, 512)
_EPS = 1e-5


class Residual(nn.Module):
    """A shortcut around two 3 x 3 convolutions, or around 1 x 1, 3 x 3, 1 x 1 (a bottleneck)."""

    def __init__(self, n_in: int, width: int, *, stride: int, rate: int, form: ResidualForm) -> None:
        super().__init__()
        n_out = width * form.expansion
        self.branch = nn.Sequential(*form.layers(n_in, width, stride=stride, rate=rate))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = ConvNormActivation(convolution(n_in, n_out, stride=stride), activation="none", eps=form.eps)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, width * expansion, H / stride, W / stride)."""
        summed: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return summed


class ResidualForm:
    """What the residual blocks of one ResNet have in common."""

    def __init__(self, spec: NetworkSpec, *, is_bottleneck: bool) -> None:
        self.expansion = 4 if is_bottleneck else 1
        self.eps = _EPS if spec.backbone_eps is None else spec.backbone_eps
        self._is_bottleneck = is_bottleneck
        self._strides_first = spec.bottleneck_stride == "1x1"

    def layers(self, n_in: int, width: int, *, stride: int, rate: int) -> list[nn.Module]:
        """Return the convolutions of one block."""
        last = partial(ConvNormActivation, activation="none", eps=self.eps)
        inner = partial(ConvNormActivation, eps=self.eps)
        if not self._is_bottleneck:
            return [
                inner(convolution(n_in, width, kernel=3, stride=stride, rate=rate)),
                last(convolution(width, width, kernel=3, rate=rate)),
            ]
        first, second = (stride, 1) if self._strides_first else (1, stride)
        return [
            inner(convolution(n_in, width, stride=first)),
            inner(convolution(width, width, kernel=3, stride=second, rate=rate)),
            last(convolution(width, width * self.expansion)),
        ]


class ResNet(BackboneModule):
    """Stem, four stages and, cascaded, copies of the fourth."""

    def __init__(self, spec: NetworkSpec, *, depths: tuple[int, int, int, int], is_bottleneck: bool) -> None:
        super().__init__()
        self._form = ResidualForm(spec, is_bottleneck=is_bottleneck)
        self._entry_rate = spec.entry_rate
        self.stem, n_in = _stem(spec, eps=self._form.eps)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        reached, rate = 4, 1
        plan = [(width, depth, 1 if index == 0 else 2) for index, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True))]
        plan += [(_WIDTHS[-1], depths[-1], 2)] * spec.cascade_blocks
        for index, (width, depth, wanted) in enumerate(plan):
            stride = wanted if reached * wanted <= spec.output_stride else 1
            later = rate * wanted // stride
            grid = spec.multi_grid[:depth] if index >= 3 else (1,) * depth
            self.stages.append(self._stage(n_in, width, stride=stride, rates=(rate, later), grid=grid))
            n_in, reached, rate = width * self._form.expansion, reached * stride, later
        self.low_level_channels = _WIDTHS[0] * self._form.expansion
        self.high_level_channels = n_in

    def _stage(self, n_in: int, width: int, *, stride: int, rates: tuple[int, int], grid: tuple[int, ...]) -> nn.Sequential:
        """Return blocks with the rates of the stage times ``grid``; ``rates`` are those of the stage before and of this one."""
        blocks = []
        for index, factor in enumerate(grid):
            rate = rates[0] if index == 0 and self._entry_rate == "previous" else rates[1]
            step = stride if index == 0 else 1
            blocks.append(Residual(n_in, width, stride=step, rate=rate * factor, form=self._form))
            n_in = width * self._form.expansion
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Features:
        """Map (N, bands, H, W) to the first stage, at stride 4, and the last, at the output stride."""
        x = low_level = self.stages[0](self.pool(self.stem(x)))
        for stage in self.stages[1:]:
            x = stage(x)
        return Features(low_level=low_level, high_level=x)


def _stem(spec: NetworkSpec, *, eps: float) -> tuple[nn.Module, int]:
    """Return the layers before the pooling, at stride 2, and their channels."""
    if spec.stem == "plain":
        return ConvNormActivation(convolution(spec.n_bands, 64, kernel=7, stride=2), eps=eps), 64
    widths = ((spec.n_bands, 32, 2), (32, 32, 1), (32, 64, 1))
    layers = (ConvNormActivation(convolution(a, b, kernel=3, stride=stride), eps=eps) for a, b, stride in widths)
    return nn.Sequential(*layers), 64


_KNOBS = frozenset({"backbone_eps", "stem", "entry_rate"})
_BOTTLENECK_KNOBS = _KNOBS | {"bottleneck_stride", "multi_grid", "cascade_blocks"}

BACKBONES = {
    "resnet18": Backbone(build=partial(ResNet, depths=(2, 2, 2, 2), is_bottleneck=False), knobs=_KNOBS),
    "resnet34": Backbone(
        build=partial(ResNet, depths=(3, 4, 6, 3), is_bottleneck=False), knobs=_KNOBS | {"multi_grid", "cascade_blocks"}
    ),
    "resnet50": Backbone(build=partial(ResNet, depths=(3, 4, 6, 3), is_bottleneck=True), knobs=_BOTTLENECK_KNOBS),
    "resnet101": Backbone(build=partial(ResNet, depths=(3, 4, 23, 3), is_bottleneck=True), knobs=_BOTTLENECK_KNOBS),
    "resnet152": Backbone(build=partial(ResNet, depths=(3, 8, 36, 3), is_bottleneck=True), knobs=_BOTTLENECK_KNOBS),
}
