"""What becomes of one hostile file? Read as a worker reads it, in a process that may die of it; one JSON line per file.

::

    parent -> {"n", "kind", "path", "whole_run"}     child -> {"outcome", "notes"}

Between files the child looks for a name that does not exist, which whoever traces its calls finds again: what it opens between two of
these belongs to one file.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import safetensors.torch
import zarr
from jobs import HERE, SMALL, make_job, run_here

from pipeline.errors import PipelineError
from pipeline.network.checkpoint import load_network
from pipeline.scene import SceneSpec, open_scene, unreadable_in
from pipeline.stretch import sample_windows
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.scene import Scene

MARK = "/mutant-"
"""Begins the names that separate files in a trace; ``/mutant-12-peer``: read by a plain reader."""
SILENT, RIGHT, REFUSED, FAILED, UNEXPECTED = (
    "silently wrong",
    "read right",
    "refused at open",
    "error at read",
    "unexpected error",
)
_GIB = 2**30
_PX = 64
_MOST = 64
_RUN = (*HERE, "--engine", "torch", "--no-progress")


def main(folder: Path) -> None:
    """Answer until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (16 * _GIB, 16 * _GIB))
    warnings.simplefilter("ignore")
    originals = {kind: _original(kind, path) for kind, path in json.loads((folder / "originals.json").read_text()).items()}
    run_here(*make_job(folder / "warm-up").segment(folder / "warm-up.zarr", *_RUN))  # opens what every run opens
    _say({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        _mark(f"{task['n']}-ours")
        answer = _answer(task, originals[task["kind"]])
        _mark(f"{task['n']}-peer")
        answer["peer"] = _peer(task, originals[task["kind"]])
        _mark("end")
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(answer) + "\n")
    sys.__stdout__.flush()


def _mark(name: str) -> None:
    with suppress(OSError), Path(MARK + name).open():
        pass


def _original(kind: str, path: str) -> Any:
    return _tensors(Path(path)) if kind == "checkpoint" else _pixels(Path(path))


def _answer(task: dict[str, Any], original: Any) -> dict[str, Any]:
    path = Path(task["path"])
    notes: list[str] = []
    try:
        outcome = _read_model(path, original) if task["kind"] == "checkpoint" else _read_scene(path, original)
        if task["kind"] != "checkpoint":
            notes += _read_tolerantly(path)
        if task["whole_run"]:
            notes += _run(task)
    except PipelineError as error:
        outcome = UNEXPECTED
        notes.append(f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001  (whatever it is, it should not have come)
        outcome = UNEXPECTED
        notes.append(f"{type(error).__name__}: {error}")
    return {"outcome": outcome, "notes": [note[:300] for note in notes]}


def _spec(path: Path, on_read_error: str = "fail") -> SceneSpec:
    return SceneSpec(uri=str(path), allow_vrt=True, on_read_error=on_read_error)


def _read_scene(path: Path, original: Any) -> str:
    """Open a file and read it window by window, at most so many windows of a large one."""
    try:
        scene = open_scene(_spec(path))
    except PipelineError:
        return REFUSED
    with scene:
        same = scene.info.shape == original[0].shape[1:] and len(scene.bands) == len(original[0])
        for window in _windows(scene.info.shape, _PX):
            try:
                tile = scene.read(window)
            except PipelineError:
                _read_again(scene, window)
                return FAILED
            same = same and _same(tile.pixels, tile.valid, original, window)
    return RIGHT if same else SILENT


def _read_again(scene: Scene, window: Window) -> None:
    """Try a window that failed as often as a worker does; AssertionError where it reads after all: nobody mended the file."""
    for _ in range(2):
        try:
            scene.read(window)
        except PipelineError:
            continue
        raise AssertionError(f"{window} failed, and then read")


def _read_tolerantly(path: Path) -> list[str]:
    """Read twice with damage as nodata, in windows of two sizes; tell where the results differ, or a window fails."""
    results = []
    for side in (_PX, 100):
        try:
            scene = open_scene(_spec(path, "nodata"))
        except PipelineError:
            return []
        with scene:
            if scene.info.height * scene.info.width > 10**6:
                return []
            valid = np.zeros(scene.info.shape, np.bool_)
            pixels = np.zeros((len(scene.bands), *scene.info.shape), scene.info.dtype)
            for window in _grid(scene.info.shape, side):
                try:
                    tile = scene.read(window)
                except PipelineError as error:
                    return [f"fails although damage is nodata: {error}"]
                pixels[:, *window.to_slices()], valid[window.to_slices()] = tile.pixels, tile.valid
            results.append((pixels, valid, unreadable_in(scene, scene.info.window)))
    (pixels, valid, lost), (others, others_valid, others_lost) = results
    same = np.array_equal(pixels, others, equal_nan=pixels.dtype.kind == "f") and np.array_equal(valid, others_valid)
    return [] if same and lost == others_lost else [f"differs with the window: {lost}, {others_lost}"]


def _read_model(path: Path, original: Any) -> str:
    try:
        spec, network = load_network(path)
    except PipelineError:
        return REFUSED
    given = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    same = spec == original[0] and all(np.array_equal(given[name], tensor) for name, tensor in original[1].items())
    return RIGHT if same else SILENT


def _run(task: dict[str, Any]) -> list[str]:
    """Run `atrous segment` on the file; tell where it ends with a code that says nothing about the input."""
    scene, model = task["with"] if task["kind"] == "checkpoint" else (task["path"], task["with"][1])
    model = task["path"] if task["kind"] == "checkpoint" else model
    out = Path(task["path"]).parent / "labels.zarr"
    options = ["--on-read-error", "nodata" if task["n"] % 2 else "fail", "--allow-vrt", "--max-pixels", 10**6]
    ended = run_here("segment", scene, out, "--model", model, *SMALL, *_RUN, *options)
    last = ended.stderr.strip().splitlines()[-1:] or [""]
    return [f"exit {ended.code}"] if ended.code in {0, 3, 4, 65} else [f"exit {ended.code} is not for the input: {last[0]}"]


def _peer(task: dict[str, Any], original: Any) -> str:
    """Read the same file as one would without thinking."""
    path, kind = Path(task["path"]), task["kind"]
    if kind in {"VRT", "attack"} or task["attack"]:
        return ""
    try:
        if kind == "checkpoint":
            tensors = safetensors.torch.load_file(path)
            same = all(
                np.array_equal(tensors[name].float().numpy(), tensor) for name, tensor in original[1].items() if name in tensors
            )
            return RIGHT if same else SILENT
        if kind.startswith("Zarr"):
            array = zarr.open(str(path), mode="r")
            pixels = np.asarray(array[...]) if array.size < 10**6 else None
        else:
            with rasterio.open(path) as file:
                pixels = file.read() if file.width * file.height * file.count < 10**6 else None
    except Exception:  # noqa: BLE001
        return FAILED
    return RIGHT if pixels is not None and np.array_equal(pixels, original[0]) else SILENT


def _pixels(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with open_scene(_spec(path)) as scene:
        tile = scene.read(scene.info.window)
    return tile.pixels, tile.valid


def _tensors(path: Path) -> tuple[Any, dict[str, Any]]:
    spec, network = load_network(path)
    return spec, {name: tensor.numpy() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


def _same(pixels: NDArray[Any], valid: NDArray[np.bool_], original: Any, window: Window) -> bool:
    at = window.to_slices()
    return np.array_equal(pixels, original[0][:, *at]) and np.array_equal(valid, original[1][at])


def _windows(shape: tuple[int, int], side: int) -> list[Window]:
    return _grid(shape, side) if shape[0] * shape[1] < 10**6 else sample_windows(shape, n_windows=_MOST, side_px=side)


def _grid(shape: tuple[int, int], side: int) -> list[Window]:
    windows = (
        Window(row_off=row, col_off=col, height=side, width=side).clip(shape)
        for row in range(0, shape[0], side)
        for col in range(0, shape[1], side)
    )
    return [window for window in windows if window is not None]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
