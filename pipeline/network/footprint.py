"""What does a network cost? Parameters, memory and operations, counted on meta tensors before anything is loaded.

The first operation on a meta tensor makes torch import its symbolic algebra, which takes a second: so the memory of a network is kept for
the next process, under a name that changes with the network, the code that builds it, and torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.durable_file import replace_durably
from pipeline.errors import StoreError
from pipeline.network.deeplab import build_network
from pipeline.network.multiscale import MultiScale, unit_px
from pipeline.network.spec import MultiScaleSpec
from pipeline.user_cache import cache_folder

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec


_SAMPLE_PX = 512
"""Beyond windows of this side, memory is taken as proportional to their pixels: it is to within 0.1 per mille."""


def peak_activation_bytes(spec: NetworkSpec, *, window_px: int, multiscale: MultiScaleSpec | None = None) -> int:
    """Return the largest sum of tensors alive at once in one forward pass over one window in float32, bytes.

    Parameters
    ----------
    spec
        The network.
    window_px
        Side of the square window, px.
    multiscale
        The scales that it is run at; None: as it is.
    """
    scales = multiscale or MultiScaleSpec()
    unit = unit_px(scales, spec.output_stride)
    beyond = int(spec.alignment == "corner")  # such networks have sides of one pixel more
    sample_px = min(window_px, max(_SAMPLE_PX // unit, 1) * unit + beyond)
    return round(_kept_peak(spec, sample_px, scales) * (window_px / sample_px) ** 2)


@cache
def _kept_peak(spec: NetworkSpec, window_px: int, multiscale: MultiScaleSpec) -> int:
    """Return the peak of one window, as counted by an earlier process or now."""
    folder = cache_folder("footprints")
    text = json.dumps([spec.to_dict(), window_px, multiscale.to_dict(), torch.__version__, _code_digest()], sort_keys=True)
    path = folder / hashlib.sha256(text.encode()).hexdigest()[:32] if folder is not None else None
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    peak_bytes = _count_peak(spec, window_px, multiscale)
    if path is not None:
        with contextlib.suppress(OSError, StoreError):
            replace_durably(path, str(peak_bytes).encode())
    return peak_bytes


@cache
def _code_digest() -> str:
    """Return the digest of the modules that build networks."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()


def _count_peak(spec: NetworkSpec, window_px: int, multiscale: MultiScaleSpec) -> int:
    network, window = _without_values(spec, window_px, multiscale)
    with torch.no_grad(), _PeakBytes() as peak:
        network(window)
    peak_bytes: int = peak.peak_bytes
    return peak_bytes + int(window.nbytes)


@cache
def n_parameters(spec: NetworkSpec) -> int:
    """Return the number of trainable values."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(spec).parameters())


def parameter_bytes(spec: NetworkSpec) -> int:
    """Return the size of all parameters in float32, bytes."""
    return 4 * n_parameters(spec)


@cache
def largest_kernel_bytes(spec: NetworkSpec) -> int:
    """Return the size of the largest parameter in float32, bytes: the convolution library makes a reordered copy of one at a time."""
    with torch.device("meta"):
        return 4 * max(parameter.numel() for parameter in build_network(spec).parameters())


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


class _PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
