"""How much does a network hold and compute? Counted on meta tensors, which have a shape and no values, before anything is loaded.

The first operation on a meta tensor makes torch import its symbolic algebra, which takes a second: `pipeline.network.footprint` keeps
what is counted here for the next process.
"""

from __future__ import annotations

import weakref
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.network.deeplab import build_network
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec


def peak_bytes(spec: NetworkSpec, window_px: int, multiscale: MultiScaleSpec) -> int:
    """Return the largest sum of tensors alive at once in one forward pass over one window of ``window_px``, bytes."""
    network, window = _without_values(spec, window_px, multiscale)
    with torch.no_grad(), PeakBytes() as peak:
        network(window)
    n_bytes: int = peak.peak_bytes
    return n_bytes + int(window.nbytes)


def parameter_sizes(spec: NetworkSpec) -> list[int]:
    """Return how many values each parameter has."""
    with torch.device("meta"):
        return [parameter.numel() for parameter in build_network(spec).parameters()]


@cache
def flop_per_pixel(spec: NetworkSpec, multiscale: MultiScaleSpec | None = None) -> float:
    """Return the floating-point operations (two per multiplication with addition) per pixel of a window; 1 GFLOP per Mpx is 1000."""
    side = 1024
    network, window = _without_values(spec, side, multiscale)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(window)
    return float(counter.get_total_flops()) / side**2


def _without_values(spec: NetworkSpec, window_px: int, multiscale: MultiScaleSpec | None) -> tuple[MultiScale, torch.Tensor]:
    """Return the network and one window as tensors that have a shape and no values."""
    with torch.device("meta"):
        network = build_network(spec).eval()
        return MultiScale(network, multiscale or MultiScaleSpec()), torch.empty(1, spec.n_bands, window_px, window_px)


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor that an operation returns until it is freed; views of one storage count once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes: int = 0
        self._alive_bytes = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()  # noqa: SLF001  (the only identity a meta storage has)
        if not self._tensors[key]:
            self._alive_bytes += n_bytes
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._forget, key, n_bytes)

    def _forget(self, key: int, n_bytes: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            self._alive_bytes -= n_bytes
