"""What does a backbone give to the rest of the network, and how is one built?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.network.spec import NetworkSpec


class Features(NamedTuple):
    """What a backbone computes from (N, bands, H, W)."""

    low_level: Tensor
    """(N, low, H / 4, W / 4): for the decoder."""
    high_level: Tensor
    """(N, high, H / output stride, W / output stride): for the context."""
    side: tuple[Tensor, ...] = ()
    """The image and what pooling or strides made of it on the way, fine to coarse: for the multi-scale branches of v1 (MSc)."""


class BackboneModule(nn.Module):
    """What the rest of the network asks of a backbone: ``forward`` maps normalised (N, bands, H, W) to `Features`, sizes rounded up."""

    low_level_channels: int
    """Channels of `Features.low_level`."""
    high_level_channels: int
    """Channels of `Features.high_level`."""
    side_channels: tuple[tuple[int, int], ...] = ()
    """(channels, stride) of each of `Features.side`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One entry of the list of backbones."""

    build: Callable[[NetworkSpec], BackboneModule]
    """Returns the module; torch's random initial weights."""
    knobs: frozenset[str] = field(default_factory=frozenset)
    """Fields of NetworkSpec, among `BACKBONE_KNOBS`, that this backbone heeds."""
