"""What is attacked? A job of a dozen tiny blocks in a folder, run in this process or in one of its own, and its bytes compared.

::

    job = make_job(folder)                           a scene of 3 x 4 blocks and a model with few channels
    run_here(*job.segment(out))                      -> Ended(code, stdout, stderr), by `cli.main` in this process
    started(command(*job.segment(out, *APART)))      a process group that can be killed
    files_of(out) == reference(job)                  the bytes of a run that nothing happened to
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

# The root makes `pipeline` the package, and not the folder tests/pipeline.
sys.path.extend(str(Path(__file__).resolve().parents[level]) for level in (1, 2))

import rasterio
import torch
from factories import HERE, SMALL, lively_network, texture, tiny_model_spec
from rasterio.transform import Affine

import cli
from pipeline.grid import Blocks
from pipeline.network.checkpoint import save_checkpoint
from workflows.events import BlockReceipt
from workflows.journal import read_values
from workflows.journal_survey import read_outcomes, survey_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault(
    "XDG_CACHE_HOME", str(Path(tempfile.gettempdir()) / f"atrous-tests-{os.getuid()}")
)  # not the user's own cache

APART = ("--device", "cpu", "--workers", "2", "--threads", "1")
"""Options of a run with two worker processes."""
COMPLETE, MISMATCH, QUARANTINED, BAD_INPUT, CANNOT_WRITE, TRY_AGAIN = 0, 3, 4, 65, 73, 75
"""Exit codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A scene, a model, and how the scene is cut into blocks."""

    scene: Path
    """A GeoTIFF with texture."""
    model: Path
    """A checkpoint with few channels."""
    options: tuple[str, ...] = SMALL
    """Options of `atrous segment` that decide the bytes."""

    def segment(self, out: Path, *more: object) -> list[str]:
        """Return the words after `atrous` that begin the job, or go on with it."""
        return ["segment", str(self.scene), str(out), "--model", str(self.model), *self.options, *map(str, more)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; negative: the signal that killed it."""
    stdout: str
    """What it printed."""
    stderr: str
    """What it said."""


def make_job(folder: Path, *, height: int = 150, width: int = 203, options: tuple[str, ...] = (), seed: int = 0) -> Job:
    """Write a scene and a model to ``folder``; with the default size, 12 blocks of 64 px, ragged at both edges."""
    folder.mkdir(parents=True, exist_ok=True)
    model, scene, spec = folder / "tiny.safetensors", folder / f"scene{seed}.tif", tiny_model_spec()
    if not model.exists():
        save_checkpoint(model, lively_network(spec.network), spec)
    write_scene(scene, height=height, width=width, seed=seed)
    return Job(scene=scene, model=model, options=(*SMALL, *options))


def write_scene(path: Path, *, height: int, width: int, seed: int = 0) -> None:
    """Write a tiled GeoTIFF with three bands of texture."""
    pixels = texture((3, height, width), seed=seed)
    place = Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 2_800_000.0)
    layout = {"count": 3, "height": height, "width": width, "dtype": "uint8", "tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32640", transform=place, **layout) as target:
        target.write(pixels)


def run_here(*words: object) -> Ended:
    """Run `atrous` in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    torch.set_num_threads(1)
    with (
        patch.object(sys, "argv", ["atrous", *map(str, words)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except Exception:  # noqa: BLE001  (as Python itself does with it)
            traceback.print_exc()
            code = 1
    return Ended(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def command(*words: object) -> list[str]:
    """Return the command line of `atrous` as a process of its own, on this Python."""
    return [sys.executable, "-m", "cli", *map(str, words)]


def run_apart(*words: object, timeout_s: float = 300) -> Ended:
    """Run `atrous` as a process of its own, to its end."""
    ended = subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT)
    return Ended(code=ended.returncode, stdout=ended.stdout, stderr=ended.stderr)


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a process group of its own, and leave nothing of it behind."""
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that `started` began, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run_folder(out: Path) -> Path:
    """Return where the state of the run that makes ``out`` is kept."""
    return out.with_name(out.name + ".run")


def journal_blocks(out: Path) -> list[tuple[int, int]]:
    """Return the blocks of all whole lines of the journal, in order."""
    values = [value for _, value in read_values(run_folder(out) / "journal.jsonl")]
    return [tuple(value["block"]) for value in values if isinstance(value, dict)]


def done_blocks(out: Path) -> dict[tuple[int, int], list[str]]:
    """Return the files of every block that the journal counts as done for the run that owns the output."""
    record, journal = run_folder(out) / "run.json", run_folder(out) / "journal.jsonl"
    if not (record.exists() and journal.exists()):
        return {}
    run = json.loads(record.read_text())
    run_id, scene = run["run_id"], run["scene"]
    blocks = Blocks(shape=(scene["height"], scene["width"]), block_px=run["spec"]["grid"]["block_px"])
    survey = survey_journal(journal, run_id=run_id, blocks=blocks)
    outcomes = read_outcomes(journal, survey, run_id=run_id)
    return {item.block: [chunk.key for chunk in item.chunks] for item in outcomes if isinstance(item, BlockReceipt)}


def lost_blocks(out: Path, expected: dict[str, bytes]) -> list[tuple[int, int]]:
    """Return the blocks that count as done, and of which a file is not there, or not as in ``expected``."""
    found = files_of(out)
    return [block for block, keys in done_blocks(out).items() if any(found.get(key) != expected[key] for key in keys)]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder, by its path there; nothing where there is no folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def reference(job: Job, *more: object) -> dict[str, bytes]:
    """Return the files of the output of a job that nothing happened to."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "reference.zarr"
        ended = run_here(*job.segment(out, *HERE, "-q", *more))
        assert ended.code == COMPLETE, ended.stderr
        return files_of(out)


def copy_run(source: Path, target: Path) -> Path:
    """Copy an output and the state of its run to another name, in the place of what is there, and return it."""
    remove_run(target)
    for one, other in ((source, target), (run_folder(source), run_folder(target))):
        if one.exists():
            shutil.copytree(one, other)
    return target


def remove_run(out: Path) -> None:
    """Remove an output and the state of its run."""
    for folder in (out, run_folder(out)):
        shutil.rmtree(folder, ignore_errors=True)
