"""Aligned Xception-65 (DeepLab v3+, arXiv 1802.02611, figure 4; layer by layer after the released ``core/xception.py``).

Where paper and released code differ, this follows the code, so that the released weights compute what they were trained to: in
the entry flow, the middle flow and the first exit block a ReLU stands before each separable convolution and none between its
depthwise and pointwise part; in the last exit block one stands after each of the two. Every depthwise and pointwise convolution
is normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from pipeline.network.convolution import ConvNormActivation, convolution
from pipeline.network.features import Backbone, BackboneModule, Features

if TYPE_CHECKING:
    from pipeline.network.choices import Activation, Padding
    from pipeline.network.spec import NetworkSpec

Skip = Literal["conv", "sum", "none"]

_EPS = 1e-3
_N_MIDDLE = 16
_LOW_LEVEL_MODULE = 1
"""The second entry module; its second separable convolution gives the low-level features, before the stride of the third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulePlan:
    """One module of three separable convolutions."""

    widths: tuple[int, int, int]
    """Channels behind each convolution."""
    stride: int = 1
    """Of the last convolution, and of the skip."""
    skip: Skip = "sum"
    """How the input is added: through a 1 x 1 convolution, as it is, or not at all."""
    rate: int = 1
    """Atrous rate of the depthwise convolutions."""


_MODULES = (
    ModulePlan(widths=(128, 128, 128), stride=2, skip="conv"),
    ModulePlan(widths=(256, 256, 256), stride=2, skip="conv"),
    ModulePlan(widths=(728, 728, 728), stride=2, skip="conv"),
    *(ModulePlan(widths=(728, 728, 728)) for _ in range(_N_MIDDLE)),
    ModulePlan(widths=(728, 1024, 1024), stride=2, skip="conv"),
    ModulePlan(widths=(1536, 1536, 2048), skip="none"),
)


class SeparableConvolution(nn.Module):
    """Depthwise 3 x 3 and pointwise, each normalised; one ReLU before both, or one after each."""

    def __init__(  # noqa: PLR0913 - the choices of one convolution
        self, n_in: int, n_out: int, *, stride: int, rate: int, activates_inside: bool, padding: Padding, eps: float
    ) -> None:
        super().__init__()
        after: Activation = "relu" if activates_inside else "none"
        depthwise = convolution(n_in, n_in, kernel=3, stride=stride, rate=rate, groups=n_in, padding=padding)
        self.before = nn.Identity() if activates_inside else nn.ReLU()
        self.depthwise = ConvNormActivation(depthwise, activation=after, eps=eps)
        self.pointwise = ConvNormActivation(convolution(n_in, n_out), activation=after, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        mixed: Tensor = self.pointwise(self.depthwise(self.before(x)))
        return mixed


class XceptionModule(nn.Module):
    """Three separable convolutions and a skip."""

    def __init__(self, n_in: int, plan: ModulePlan, *, padding: Padding, eps: float) -> None:
        super().__init__()
        self._adds_input = plan.skip == "sum"
        self.separable = nn.ModuleList()
        width = n_in
        for index, n_out in enumerate(plan.widths):
            stride = plan.stride if index == 2 else 1
            inside = plan.skip == "none"
            self.separable.append(
                SeparableConvolution(
                    width, n_out, stride=stride, rate=plan.rate, activates_inside=inside, padding=padding, eps=eps
                )
            )
            width = n_out
        self.shortcut: nn.Module | None = None
        if plan.skip == "conv":
            skip = convolution(n_in, width, stride=plan.stride, padding=padding)
            self.shortcut = ConvNormActivation(skip, activation="none", eps=eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride), and to what the second convolution gives."""
        second = self.separable[1](self.separable[0](x))
        out: Tensor = self.separable[2](second)
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return out + x if self._adds_input else out, second


class Xception65(BackboneModule):
    """Two convolutions and 21 modules."""

    low_level_channels = 256
    high_level_channels = 2048

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        eps = _EPS if spec.backbone_eps is None else spec.backbone_eps
        self.stem = nn.Sequential(
            ConvNormActivation(convolution(spec.n_bands, 32, kernel=3, stride=2, padding=spec.padding), eps=eps),
            ConvNormActivation(convolution(32, 64, kernel=3), eps=eps),
        )
        plans = plan_modules(spec.output_stride)
        widths = (64, *(plan.widths[-1] for plan in plans))
        pairs = zip(widths, plans, strict=False)
        self.blocks = nn.ModuleList(XceptionModule(n_in, plan, padding=spec.padding, eps=eps) for n_in, plan in pairs)

    def forward(self, x: Tensor) -> Features:
        """Map (N, bands, H, W) to the features at stride 4, (N, 256, ...), and the last, (N, 2048, ...)."""
        x = low_level = self.stem(x)
        for index, module in enumerate(self.blocks):
            x, second = module(x)
            if index == _LOW_LEVEL_MODULE:
                low_level = second
        return Features(low_level=low_level, high_level=x)


def plan_modules(output_stride: int) -> tuple[ModulePlan, ...]:
    """Return the 21 modules such that the last features have ``output_stride``."""
    plans: list[ModulePlan] = []
    reached, rate = 2, 1
    for module in _MODULES:
        stride = module.stride if reached * module.stride <= output_stride else 1
        plans.append(ModulePlan(widths=module.widths, stride=stride, skip=module.skip, rate=rate))
        reached, rate = reached * stride, rate * module.stride // stride
    return tuple(plans)


BACKBONES = {"xception65": Backbone(build=Xception65, knobs=frozenset({"backbone_eps", "padding"}))}
