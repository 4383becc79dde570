"""How much memory do a network's activations take? Counted on meta tensors, before anything is loaded."""

from __future__ import annotations

import weakref
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.network.deeplab import build_network

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec


@cache
def peak_activation_bytes(spec: NetworkSpec, *, window_px: int) -> int:
    """Return the largest sum of tensors alive at once in one forward pass over one window in float32, bytes.

    Parameters
    ----------
    spec
        The network.
    window_px
        Side of the square window, px.
    """
    with torch.device("meta"):
        network = build_network(spec).eval()
        window = torch.empty(1, spec.n_bands, window_px, window_px)
    with torch.no_grad(), _PeakBytes() as peak:
        network(window)
    peak_bytes: int = peak.peak_bytes
    return peak_bytes + int(window.nbytes)


def parameter_bytes(spec: NetworkSpec) -> int:
    """Return the size of all parameters in float32, bytes."""
    with torch.device("meta"):
        return sum(int(parameter.nbytes) for parameter in build_network(spec).parameters())


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
