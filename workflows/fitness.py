"""Can a worker do this job? The same software, the same model, scene and output in their places, the same engine.

A worker of a running cluster may be another machine with another installation. It is looked at before it gets a block: those that are there
when a job connects, and each that joins later. One that is not fit gets no block of the job.
"""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.engine.choose import choose_device, choose_engine, choose_precision
from pipeline.errors import PipelineError, StoreError
from pipeline.network.model_file import file_sha256
from pipeline.network.models import find_model
from workflows.fingerprint import LIBRARIES
from workflows.run_state import RunPaths, read_record

if TYPE_CHECKING:
    from pipeline.engine.protocol import EngineSpec
    from workflows.block_job import BlockJob

Aspect = Literal["versions", "engine", "model", "scene", "output"]

PROBE_SUFFIX = ".seen"
"""What the files end in by which workers show that they can write where the client reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a worker must find."""

    versions: dict[str, str]
    """Of Python (without its last number) and the libraries that decide bytes."""
    scene_bytes: int | None
    """Size of the file that is read; None for a folder, of which only the presence is checked."""
    engine: str | None = None
    """What runs the network on the other workers; None: this is the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found of one worker."""

    problems: dict[Aspect, str]
    """Why it cannot do the job; empty where it can."""
    engine: str
    """What would run the network there."""
    probe: str = ""
    """Name of the file in the folder of the run's state that it wrote; empty where it could not."""

    @property
    def reason(self) -> str:
        """All problems in one sentence."""
        return "; ".join(self.problems.values())


def conditions_of(job: BlockJob) -> Conditions:
    """Return what a worker must find to do the same as this process."""
    return Conditions(versions=installed_versions(), scene_bytes=_n_bytes(Path(job.source.uri)))


def installed_versions() -> dict[str, str]:
    """Return the versions of what decides the bytes."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **{name: metadata.version(name) for name in LIBRARIES}}


def examine(job: BlockJob, conditions: Conditions, *, probe: str = "") -> Examination:
    """Look at this process as a worker; ``probe`` is the name of a file to write beside the run's record."""
    engine, problem = _describe_engine(job.engine)
    found: dict[Aspect, str | None] = {
        "versions": _other_versions(conditions.versions),
        "engine": problem or _other_engine(engine, conditions.engine),
        "model": missing_model(job),
        "scene": _missing_scene(job, conditions.scene_bytes),
        "output": _missing_output(job) or (_cannot_write(job, probe) if probe else None),
    }
    problems = {aspect: text for aspect, text in found.items() if text is not None}
    return Examination(problems=problems, engine=engine, probe="" if "output" in problems else probe)


def missing_model(job: BlockJob) -> str | None:
    """Return why this process cannot read the job's model; None where it can."""
    try:
        path = find_model(job.spec.model_path)
        found = file_sha256(path)
    except (PipelineError, OSError) as error:
        return f"the model {job.spec.model_path} cannot be read there ({error})"
    if found != job.spec.model_sha256:
        return f"the model {path} is another one there: SHA-256 {found[:12]}…, not {job.spec.model_sha256[:12]}…"
    return None


def with_model(job: BlockJob, weights: bytes, folder: Path) -> BlockJob:
    """Return the job with its model in ``folder``, written there from what was sent."""
    path = folder / f"{job.spec.model_sha256[:12]}.safetensors"
    path.write_bytes(weights)
    return dataclasses.replace(job, spec=dataclasses.replace(job.spec, model_path=str(path)))


def _other_versions(wanted: dict[str, str]) -> str | None:
    here = installed_versions()
    differing = [f"{name} {here.get(name)} instead of {version}" for name, version in wanted.items() if here.get(name) != version]
    return f"it has {', '.join(differing)}: install the same versions" if differing else None


def _describe_engine(engine: EngineSpec) -> tuple[str, str | None]:
    """Return what would run the network here, and why it could not."""
    try:
        return f"{choose_engine(engine)} {choose_precision(engine)} on {choose_device(engine)}", None
    except PipelineError as error:
        return "", str(error)


def _other_engine(here: str, elsewhere: str | None) -> str | None:
    if elsewhere in (None, here):
        return None
    return f"it would run the network with {here}, others with {elsewhere}: give --device and --engine, so that all do the same"


def _missing_scene(job: BlockJob, n_bytes: int | None) -> str | None:
    for path in (Path(job.source.uri), *([Path(job.spec.probabilities_from)] if job.spec.probabilities_from else [])):
        if not path.exists():
            return f"{path} is not there: put it on a file system that all workers see at the same path"
    if (here := _n_bytes(Path(job.source.uri))) != n_bytes:
        return f"the scene {job.source.uri} is another file there: {here} bytes, not {n_bytes}"
    return None


def _missing_output(job: BlockJob) -> str | None:
    paths = RunPaths(out=Path(job.out))
    try:
        run_id = read_record(paths).run_id
    except StoreError:
        run_id = ""
    if run_id == job.run_id:
        return None
    return f"{paths.record} of this run is not seen there: put OUT on a file system that all workers see at the same path"


def _cannot_write(job: BlockJob, name: str) -> str | None:
    path = RunPaths(out=Path(job.out)).folder / name
    try:
        path.write_text(job.run_id)
    except OSError as error:
        return f"{path.parent} cannot be written there: {error.strerror}"
    return None


def _n_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
