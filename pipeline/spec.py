"""What does a person ask for? Frozen values that check themselves once and have one digest.

Settings that change the bytes of the output live in `SegmentSpec`; settings that only change how fast they come (device, workers)
live in `pipeline.engine.protocol.EngineSpec` and in the executors.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SpecError
from pipeline.json_digest import json_digest
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneSpec
from pipeline.stretch import Stretch

if TYPE_CHECKING:
    from pipeline.network.choices import ImagePooling

Blend = Literal["taper", "exact"]

ALGORITHM_VERSION = 5
"""Raised by hand whenever the same settings would give other bytes; a resume across two versions is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """How a scene is cut into network windows and blocks."""

    window_px: int = 1024
    """Side of the squares that the network sees, px."""
    overlap_px: int = 256
    """What two neighbouring network windows share, px; twice the margin with ``exact``."""
    blend: Blend = "taper"
    """``taper``: weights fall linearly over the overlap; ``exact``: hard cuts in the middle of an overlap that is at least twice the
    network's margin."""
    block_px: int = 4096
    """Side of the unit of work, px; a multiple of the chunk (of the shard, where there is one)."""

    def __post_init__(self) -> None:
        if self.blend not in get_args(Blend):
            raise SpecError(f"blend {self.blend!r} was asked for; choose one of {', '.join(get_args(Blend))}")
        if self.window_px < 32:
            raise SpecError(f"a network window of {self.window_px} px was asked for; choose at least 32 px")
        if not 0 <= self.overlap_px < self.window_px:
            raise SpecError(
                f"an overlap of {self.overlap_px} px was asked for; with a window of {self.window_px} px it must lie "
                f"between 0 and {self.window_px - 1} px"
            )
        if self.block_px < 1:
            raise SpecError(f"a block of {self.block_px} px was asked for; choose at least one chunk, 1024 px by default")

    @property
    def step_px(self) -> int:
        """Distance of neighbouring network windows, px."""
        return self.window_px - self.overlap_px


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """What is kept of a run, and in which pieces."""

    chunk_px: int = 1024
    """Side of a Zarr chunk, px."""
    shard_px: int | None = None
    """Side of a Zarr shard, px; a multiple of the chunk. None: no shards."""
    probabilities: bool = False
    """Keep the blended probabilities of all classes (u1, before the CRF)."""

    def __post_init__(self) -> None:
        if self.chunk_px < 16:
            raise SpecError(f"a chunk of {self.chunk_px} px was asked for; choose at least 16 px")
        if self.shard_px is not None and (self.shard_px < 1 or self.shard_px % self.chunk_px):
            raise SpecError(
                f"a shard of {self.shard_px} px was asked for; it must be a multiple of the chunk of {self.chunk_px} px"
            )

    @property
    def write_unit_px(self) -> int:
        """Side of the smallest piece that may be written at once, px."""
        return self.shard_px or self.chunk_px


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpec:
    """All that decides the bytes of one output."""

    scene: SceneSpec
    """What is read; ``bands`` is set."""
    model_path: str
    """The checkpoint file."""
    model_sha256: str
    """Digest of that file; what counts for a resume."""
    stretch: Stretch
    """How pixel values become the model's input units, once for the whole scene."""
    grid: GridSpec = field(default_factory=GridSpec)
    """Network windows and blocks."""
    multiscale: MultiScaleSpec = field(default_factory=MultiScaleSpec)
    """The scales and mirror images at which the network sees every window."""
    image_pooling: ImagePooling | None = None
    """What the image-level branch averages over; None: as the network says."""
    scene_means: tuple[tuple[float, ...], ...] = ()
    """(views, channels) mean features of the scene, where the branch averages over it; measured when a run begins, from then on fixed."""
    crf: CrfSpec | None = None
    """The fully connected CRF; None: labels straight from the network."""
    output: OutputSpec = field(default_factory=OutputSpec)
    """Chunks and optional arrays."""
    probabilities_from: str | None = None
    """An earlier output whose probabilities are refined; the network is then not run. None: it is."""
    probabilities_sha256: str | None = None
    """Digest of those probabilities; what counts for a resume."""

    def __post_init__(self) -> None:
        unit = self.output.write_unit_px
        if self.grid.block_px % unit:
            lower = max(1, self.grid.block_px // unit) * unit
            raise SpecError(
                f"a block of {self.grid.block_px} px was asked for; it must be a multiple of the "
                f"{'shard' if self.output.shard_px else 'chunk'} of {unit} px, so that no two blocks write one file: "
                f"try --block {lower}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SegmentSpec:
        """Build the spec that `to_dict` was called on."""
        scene = {**data["scene"], "bands": None if data["scene"]["bands"] is None else tuple(data["scene"]["bands"])}
        return cls(
            scene=SceneSpec(**scene),
            model_path=data["model_path"],
            model_sha256=data["model_sha256"],
            stretch=Stretch.from_dict(data["stretch"]),
            grid=GridSpec(**data["grid"]),
            multiscale=MultiScaleSpec.from_dict(data.get("multiscale", {})),
            image_pooling=data.get("image_pooling"),
            scene_means=tuple(tuple(row) for row in data.get("scene_means", ())),
            crf=None if data["crf"] is None else CrfSpec.from_dict(data["crf"]),
            output=OutputSpec(**data["output"]),
            probabilities_from=data.get("probabilities_from"),
            probabilities_sha256=data.get("probabilities_sha256"),
        )

    def digest(self) -> str:
        """Hash the canonical JSON of the spec: 64 hexadecimal digits."""
        return json_digest(self.to_dict())
