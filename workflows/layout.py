"""What does an output look like that a run makes? Its size, pieces, classes and provenance, from the run's settings alone."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, StoreError, WeightsError
from pipeline.network.model_file import file_sha256, read_model_spec
from pipeline.network.models import find_model
from pipeline.scene import SceneInfo
from pipeline.spec import SegmentSpec
from pipeline.store import open_layout
from pipeline.store_layout import StoreLayout

if TYPE_CHECKING:
    from pipeline.network.spec import ClassSpec
    from workflows.run_state import RunRecord


def plan_layout(
    spec: SegmentSpec, scene: SceneInfo, hard: dict[str, Any], *, model: str, classes: tuple[ClassSpec, ...], software: str
) -> StoreLayout:
    """Describe the output; its provenance names no path and no time, so that equal runs give equal bytes.

    Parameters
    ----------
    spec
        What is run.
    scene
        The scene's header.
    hard
        The hard fields of the fingerprint.
    model, classes
        The model's name, and its classes by id.
    software
        Name and version of the program that makes the output.
    """
    return StoreLayout(
        height=scene.height,
        width=scene.width,
        chunk=spec.output.chunk_px,
        shard=spec.output.shard_px,
        classes=classes,
        probabilities=spec.output.probabilities,
        georef=scene.georef,
        provenance={
            "software": software,
            "scene": Path(spec.scene.uri).name,
            "model": model,
            **({} if spec.probabilities_from is None else {"refined": Path(spec.probabilities_from).name}),
            **{name: hard[name] for name in sorted(hard) if not name.startswith("input.header") and name != "input.mtime_ns"},
        },
    )


def this_software() -> str:
    """Return name and version of this program, as provenance has them."""
    return f"atrous {metadata.version('atrous')}"


def recorded_layout(out: Path, record: RunRecord) -> StoreLayout:
    """Return the layout that the run of ``record`` gave ``out``; the model is asked for its classes only where ``out`` has lost them.

    Raises
    ------
    StoreError
        The metadata of ``out`` is damaged, and the model is gone too.
    """
    spec = SegmentSpec.from_dict(record.spec)
    model, classes = _model_and_classes(out, spec)
    software = f"atrous {record.soft.get('version.atrous')}"
    return plan_layout(spec, SceneInfo.from_dict(record.scene), record.hard, model=model, classes=classes, software=software)


def is_of_these_versions(record: RunRecord) -> bool:
    """Tell whether the versions of atrous and zarr that are installed began the run."""
    return all(record.soft.get(f"version.{name}") == metadata.version(name) for name in ("atrous", "zarr"))


def _model_and_classes(out: Path, spec: SegmentSpec) -> tuple[str, tuple[ClassSpec, ...]]:
    try:
        found = open_layout(out)
        return str(found.provenance["model"]), found.classes
    except (StoreError, KeyError) as damage:
        try:
            path = find_model(spec.model_path)
            if file_sha256(path) != spec.model_sha256:
                raise WeightsError(f"{path} is another model now; its SHA-256 is not that of the run")
            model = read_model_spec(path)
        except PipelineError as cause:
            raise StoreError(
                f"{damage}. The classes could be read from the model {spec.model_path}, but: {cause}. Put that file back, and run again"
            ) from cause
        return model.name, model.classes
