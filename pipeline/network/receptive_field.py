"""How many pixels around an output pixel can influence it? Followed through the operations that the network really runs.

The network is run once on tensors without values. Every tensor carries its reach along the width: cell ``i`` depends on the input pixels
``step * i + low ... step * i + high``. Every operation widens that range; two branches that meet give the union. It is the arithmetic
of Araujo et al. 2019, "Computing receptive fields of convolutional neural networks" (Distill), with resizing and mirroring added.

::

    input pixels   . . . [ . . . . o . . . . . ] . . .
                         |<-before-|--after--->|

Since operations are followed, not classes of layers, a new backbone needs nothing here. An operation that is not known is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.multiscale import MultiScale
from pipeline.network.scales import unit_px
from pipeline.network.spec import MultiScaleSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Which input pixels one cell depends on, along one axis: ``step * i + low`` to ``step * i + high`` for cell ``i``."""

    step: Fraction = Fraction(1)
    """Input pixels from one cell to the next; negative where the window is mirrored."""
    low: Fraction = Fraction(0)
    """The first pixel of cell 0."""
    high: Fraction = Fraction(0)
    """The last pixel of cell 0."""
    is_global: bool = False
    """Whether every pixel of the window matters."""

    @property
    def before_px(self) -> int:
        """Pixels before an output pixel that it depends on."""
        return math.ceil(-self.low)

    @property
    def after_px(self) -> int:
        """Pixels after it."""
        return math.ceil(self.high)

    def shifted(self, cells: int) -> Reach:
        """Return the reach of a grid whose cell ``i`` is cell ``i + cells`` of this one."""
        return replace(self, low=self.low + self.step * cells, high=self.high + self.step * cells)

    def filtered(self, *, taps: int, stride: int, rate: int, zeros: int) -> Reach:
        """Return the reach behind a convolution or pooling with ``taps`` taps ``rate`` apart and ``zeros`` put before the first cell."""
        ends = self.step * -zeros, self.step * ((taps - 1) * rate - zeros)
        return replace(self, step=self.step * stride, low=self.low + min(ends), high=self.high + max(ends))

    def resized(self, *, n_in: int, n_out: int, align_corners: bool) -> Reach:
        """Return the reach behind bilinear resizing; all phases that a cell can have are looked at, and the furthest counts."""
        if align_corners:
            factor = Fraction(n_in - 1, n_out - 1) if n_out > 1 and n_in > 1 else Fraction(1)
            offset = Fraction(0)
        else:
            factor = Fraction(n_in, n_out)
            offset = (factor - 1) / 2
        step = self.step * factor
        ends: list[Fraction] = []
        for cell in range(factor.denominator):
            source = cell * factor + offset
            ends += [self.step * neighbour - step * cell for neighbour in (math.floor(source), math.ceil(source))]
        return replace(self, step=step, low=self.low + min(ends), high=self.high + max(ends))

    def mirrored(self, n: int) -> Reach:
        """Return the reach of ``n`` cells in reverse order."""
        return replace(self.shifted(n - 1), step=-self.step)

    def joined(self, other: Reach) -> Reach:
        """Return the union with the reach of another branch on the same grid."""
        assert self.is_global or other.is_global or self.step == other.step, (self, other)
        if self.is_global:
            return self
        if other.is_global:
            return other
        return replace(self, low=min(self.low, other.low), high=max(self.high, other.high))


def margin_px(network: NetworkSpec | nn.Module, multiscale: MultiScaleSpec | None = None) -> int | None:
    """Return how far around an output pixel inputs matter, px, rounded up to the output stride.

    Pixels of a window that are further than this from its edges get the logits that the whole scene would give them, if the
    window starts at a multiple of the output stride (at every scale). None where the image-level branch averages over the
    window: then every pixel of it matters.
    """
    spec = network if isinstance(network, NetworkSpec) else _deeplab(network).spec
    reach = receptive_field(network, multiscale)
    if reach is None:
        return None
    return -(-max(reach.before_px, reach.after_px) // spec.output_stride) * spec.output_stride


def receptive_field(network: NetworkSpec | nn.Module, multiscale: MultiScaleSpec | None = None) -> Reach | None:
    """Return the reach of an output pixel, the furthest over all pixels; None where it is the whole window.

    Parameters
    ----------
    network
        The spec of a network, or a `DeepLab` as built.
    multiscale
        The scales that it is run at; None: as it is.
    """
    if isinstance(network, NetworkSpec):
        return _reach_of_spec(network, multiscale or MultiScaleSpec())
    return _trace(network, multiscale or MultiScaleSpec())


@cache
def _reach_of_spec(spec: NetworkSpec, multiscale: MultiScaleSpec) -> Reach | None:
    with torch.device("meta"):
        return _trace(build_network(spec), multiscale)


def _trace(network: nn.Module, multiscale: MultiScaleSpec) -> Reach | None:
    """Run ``network`` on a window without values whose side is a multiple of the output stride at every scale."""
    deeplab = _deeplab(network)
    spec = deeplab.spec
    side = 4 * unit_px(multiscale, spec.output_stride)
    means = None
    if spec.image_pooling == "global":
        means = torch.empty(len(multiscale.views), deeplab.backbone.high_level_channels, device="meta")
    wrapped = MultiScale(deeplab, multiscale, means)
    tensors = (*wrapped.named_parameters(), *wrapped.named_buffers())
    without_values = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors}
    window = torch.empty(1, spec.n_bands, side, side, device="meta")
    was_training = network.training
    with torch.no_grad(), _Follow(window) as follow:
        logits = functional_call(wrapped.eval(), without_values, (window,))
    network.train(was_training)
    reach = follow.reach_of(logits)
    assert reach is not None
    assert reach.is_global or reach.step == 1
    return None if reach.is_global else reach


def _deeplab(network: nn.Module) -> DeepLab:
    found = network.network if isinstance(network, MultiScale) else network
    assert isinstance(found, DeepLab)
    return found


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries the reach of every tensor through the operations of one forward pass."""

    def __init__(self, window: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[Tensor, Reach]] = {}
        self._put(window, Reach())

    def reach_of(self, tensor: Any) -> Reach | None:
        """Return the reach of a tensor; None for weights, which depend on no pixel."""
        found = self._known.get(id(tensor))
        return None if found is None else found[1]

    def _put(self, tensor: Tensor, reach: Reach) -> None:
        self._known[id(tensor)] = (tensor, reach)  # held, so that no other tensor gets its id

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [(leaf, reach) for leaf in tree_leaves(args) if (reach := self.reach_of(leaf)) is not None]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if inputs and outputs:
            self._put(outputs[0], _behind(func, args, inputs, outputs[0]))
        return result


def _behind(func: Any, args: tuple[Any, ...], inputs: list[tuple[Tensor, Reach]], output: Tensor) -> Reach:
    """Return the reach behind one operation."""
    name = func.overloadpacket.__name__
    tensor, reach = inputs[0]
    if name in _POINTWISE:
        for _, other in inputs[1:]:
            reach = reach.joined(other)
        return reach
    if name in _GLOBAL:
        return replace(reach, is_global=True)
    if name not in _RULES:
        raise NotImplementedError(f"the receptive field cannot be followed through {func}; add its rule to {__name__}")
    return reach if reach.is_global else _RULES[name](reach, tensor, args, output)


_POINTWISE = frozenset(
    {
        *("relu", "relu_", "hardtanh", "hardtanh_", "clamp", "add", "add_", "mul", "div", "maximum", "log", "cat"),
        *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm"),
        *("_softmax", "clone", "_to_copy", "detach", "alias", "view", "expand"),
    }
)
"""Operations in which cell ``i`` depends on cell ``i`` of every input."""

_GLOBAL = frozenset({"mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d"})


def _last(value: Any) -> int:
    """Return the entry for the width of an argument that may be one number for both axes."""
    return int(value[-1] if isinstance(value, list | tuple) else value)


def _convolution(reach: Reach, _tensor: Tensor, args: tuple[Any, ...], _output: Tensor) -> Reach:
    _, weight, _, stride, padding, rate = args[:6]
    return reach.filtered(taps=int(weight.shape[-1]), stride=_last(stride), rate=_last(rate), zeros=_last(padding))


def _pooling(reach: Reach, _tensor: Tensor, args: tuple[Any, ...], _output: Tensor) -> Reach:
    _, kernel, stride, padding = args[:4]
    return reach.filtered(taps=_last(kernel), stride=_last(stride), rate=1, zeros=_last(padding))


def _resizing(reach: Reach, tensor: Tensor, args: tuple[Any, ...], output: Tensor) -> Reach:
    return reach.resized(n_in=tensor.shape[-1], n_out=output.shape[-1], align_corners=bool(args[2]))


def _padding(reach: Reach, _tensor: Tensor, args: tuple[Any, ...], _output: Tensor) -> Reach:
    return reach.shifted(-int(args[1][0]))


def _slicing(reach: Reach, tensor: Tensor, args: tuple[Any, ...], _output: Tensor) -> Reach:
    dim, start = args[1], int(args[2] or 0)
    return reach.shifted(start) if dim in (-1, tensor.ndim - 1) else reach


def _mirroring(reach: Reach, tensor: Tensor, _args: tuple[Any, ...], _output: Tensor) -> Reach:
    return reach.mirrored(tensor.shape[-1])


_RULES: dict[str, Callable[[Reach, Tensor, tuple[Any, ...], Tensor], Reach]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pooling,
    "avg_pool2d": _pooling,
    "upsample_bilinear2d": _resizing,
    "constant_pad_nd": _padding,
    "replication_pad2d": _padding,
    "slice": _slicing,
    "flip": _mirroring,
}
