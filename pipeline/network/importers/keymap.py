"""Where does every tensor of our network come from in a foreign state dict?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One of their tensors and what is done to it."""

    key: str
    """Its name in their state dict."""
    change: Callable[[Tensor], Tensor] | None = None
    """Applied to it; None: taken as it is."""

    def take(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return our tensor, float32."""
        tensor = tensors[self.key].to(torch.float32)
        return tensor if self.change is None else self.change(tensor)


class KeyMap:
    """Our names, each with its source; filled layer by layer."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def plain(self, ours: str, theirs: str, *, bias: bool = True, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Map a convolution without normalisation; ``change`` is applied to its kernel."""
        self.sources[f"{ours}.weight"] = Source(key=f"{theirs}.weight", change=change)
        if bias:
            self.sources[f"{ours}.bias"] = Source(key=f"{theirs}.bias")

    def normalised(self, ours: str, conv: str, norm: str, *, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Map a `ConvNormActivation` whose convolution is ``conv`` and whose batch normalisation is ``norm``."""
        self.sources[f"{ours}.conv.weight"] = Source(key=f"{conv}.weight", change=change)
        for part in _NORM:
            self.sources[f"{ours}.norm.{part}"] = Source(key=f"{norm}.{part}")

    def folded(self, ours: str, theirs: str, *, eps: float, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Map a `ConvNormActivation` from a convolution whose normalisation was folded into kernel and bias.

        Ours gets a normalisation that adds the bias and does nothing else: mean 0, variance 1, and a factor that undoes ``eps``.
        """
        self.sources[f"{ours}.conv.weight"] = Source(key=f"{theirs}.weight", change=change)
        bias = f"{theirs}.bias"
        self.sources[f"{ours}.norm.weight"] = Source(key=bias, change=lambda b: torch.full_like(b, math.sqrt(1 + eps)))
        self.sources[f"{ours}.norm.bias"] = Source(key=bias)
        self.sources[f"{ours}.norm.running_mean"] = Source(key=bias, change=torch.zeros_like)
        self.sources[f"{ours}.norm.running_var"] = Source(key=bias, change=torch.ones_like)

    @property
    def used(self) -> set[str]:
        """Their keys that are used."""
        return {source.key for source in self.sources.values()}


def pooling_last(n_branches: int) -> Callable[[Tensor], Tensor]:
    """Return the change of a projection kernel whose first of ``n_branches`` input groups is the image-level branch: ours has it last."""

    def move(kernel: Tensor) -> Tensor:
        return kernel.roll(-(kernel.shape[1] // n_branches), dims=1)

    return move
