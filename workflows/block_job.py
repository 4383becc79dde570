"""What does a worker have to know of a run? The job, the same for every block."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.json_digest import json_digest

if TYPE_CHECKING:
    from pipeline.engine.protocol import EngineSpec
    from pipeline.scene import SceneSpec
    from pipeline.spec import SegmentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """All that a worker has to know, the same for every block of a run."""

    spec: SegmentSpec
    """What is run."""
    engine: EngineSpec
    """How it is run."""
    source: SceneSpec
    """What is really read: the scene, or its staged copy."""
    out: str
    """The Zarr group."""
    run_id: str
    """The run whose blocks these are."""

    def digest(self) -> str:
        """Hash of the job; names it in tasks."""
        return json_digest(dataclasses.asdict(self))


def conversion_key(spec: SegmentSpec) -> str | None:
    """Return what names the network as a run of ``spec`` uses it, for a cache of conversions; None where it is of this scene only."""
    if spec.scene_means:
        return None
    return json_digest([spec.model_sha256, spec.multiscale.to_dict(), spec.image_pooling])
