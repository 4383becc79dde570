"""How large is the scene of a job? Asked first of all and without Dask, for a large one gets workers that start while it is planned."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.grid import LARGEST_BLOCK_PX
from pipeline.scene import SceneSpec, open_scene
from workflows.run_state import RunPaths, read_record

if TYPE_CHECKING:
    from pathlib import Path


def wants_workers(*, cluster: str, scheduler: str | None, n_pixels: int) -> bool:
    """Tell whether a job starts workers of its own here, whatever the model: its scene has more pixels than one block may have."""
    return cluster == "local" and scheduler is None and n_pixels > LARGEST_BLOCK_PX**2


def count_pixels(scene: str) -> int:
    """Return the pixels of the scene at a path; 0 where it does not open, which whoever reads it will say."""
    with suppress(PipelineError), open_scene(SceneSpec(uri=scene)) as opened:
        return opened.info.height * opened.info.width
    return 0


def count_pixels_of_run(out: Path) -> int:
    """Return the pixels of the scene of the run that makes ``out``; 0 where it has no record, which whoever resumes it will say."""
    with suppress(PipelineError, KeyError):
        scene = read_record(RunPaths(out=out.absolute())).scene
        return int(scene["height"]) * int(scene["width"])
    return 0
