"""Which change goes unnoticed? Every field of the fingerprint in turn: a hard one refuses, a soft one warns, by name.

The fields are those that ``run.json`` holds, of a run without and with CRF, with shards, and of one that refines stored probabilities. A
field is changed where a person would change it (an option, the file of the scene, the model), and in ``run.json`` where that cannot be done
here (versions, the machine). A field that nobody wrote a case for is a broken promise, too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
from jobs import COMPLETE, HERE, MISMATCH, Job, files_of, make_job, run_folder, run_here
from rasterio.transform import Affine
from tables import parser, publish

from workflows.run_state import RunPaths, read_record

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

COLUMNS = ("run", "fields", "changed in the input or an option", "changed in run.json", "as promised, by name", "changed nothing")
OTHER_VALUE = object()
"""The case of a field that is changed in the record."""


def _rewrite(**changes: Any) -> Callable[[Path], None]:
    """Return what writes a scene anew with another header."""

    def change(path: Path) -> None:
        with rasterio.open(path) as source:
            profile, pixels = {**source.profile, **changes}, source.read()
        path.unlink()
        shape = profile["count"], profile["height"], profile["width"]
        pixels = pixels[[band % 3 for band in range(shape[0])], : shape[1], : shape[2]].astype(profile["dtype"])
        with rasterio.open(path, "w", **profile) as target:
            target.write(pixels)

    return change


def _describe(path: Path) -> None:
    with rasterio.open(path, "r+") as scene:
        scene.descriptions = ("near infrared", "red", "green")


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _flip_last_pixel(path: Path) -> None:
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _crf(pair: str) -> tuple[str, ...]:
    return ("--crf-param", pair)


SCENE: dict[str, Any] = {
    "input.header.band_names": _describe,
    "input.header.block_shape": _rewrite(blockxsize=32, blockysize=32),
    "input.header.driver": OTHER_VALUE,
    "input.header.dtype": _rewrite(dtype="uint16"),
    "input.header.georef.crs_wkt": _rewrite(crs="EPSG:32633"),
    "input.header.georef.transform": _rewrite(transform=Affine(0.5, 0, 1, 0, -0.5, 2)),
    "input.header.height": _rewrite(height=65),
    "input.header.mask_kind": _rewrite(nodata=7),
    "input.header.n_bands": _rewrite(count=4, photometric="MINISBLACK"),
    "input.header.nodata": _rewrite(nodata=7),
    "input.header.random_access": OTHER_VALUE,
    "input.header.width": _rewrite(width=99),
    "input.mtime_ns": _touch,
    "input.sample_sha256": _flip_last_pixel,
    "input.size_bytes": _lengthen,
}
"""Fields of the scene; what changes the file."""
OPTIONS: dict[str, Any] = {
    "grid.blend": ("--blend", "exact", "--overlap", "640", "--window", "1280"),
    "grid.block_px": ("--block", "128"),
    "grid.overlap_px": ("--overlap", "32"),
    "grid.window_px": ("--window", "96"),
    "image_pooling": OTHER_VALUE,
    "input.bands": ("--bands", "3,2,1"),
    "input.nodata": ("--nodata", "7"),
    "model.sha256": ("--model", "OTHER"),
    "multiscale.flip": ("--flip",),
    "multiscale.fusion": ("--fusion", "max"),
    "multiscale.scales": ("--scales", "0.5,1"),
    "output.chunk_px": ("--chunk", "16"),
    "output.probabilities": ("--probabilities",),
    "output.shard_px": ("--shard", "64"),
    "stretch.high": ("--stretch", "0,250"),
    "stretch.low": ("--stretch", "1,255"),
    "algorithm_version": OTHER_VALUE,
    "crf": ("--crf",),
    "crf.absent_below": _crf("absent_below=0.01"),
    "crf.backend": ("--crf-backend", "torch"),
    "crf.compatibility": _crf("compatibility=MATRIX"),
    "crf.guide_bands": _crf("guide_bands=3"),
    "crf.n_steps": _crf("n_steps=3"),
    "crf.skip_above": _crf("skip_above=0.9"),
    "crf.stop_below": _crf("stop_below=0.01"),
    "crf.theta_alpha": _crf("theta_alpha=5"),
    "crf.theta_beta": _crf("theta_beta=5"),
    "crf.theta_gamma": _crf("theta_gamma=2"),
    "crf.tile_px": _crf("tile_px=32"),
    "crf.w_appearance": _crf("w_appearance=1"),
    "crf.w_smoothness": _crf("w_smoothness=1"),
    "probabilities.sha256": OTHER_VALUE,
}
"""Fields that options decide, but for those that no option of this run can change."""
SOFT: dict[str, Any] = {
    "engine": ("--engine", "torch"),
    "precision": OTHER_VALUE,
    "device": OTHER_VALUE,
    "machine": OTHER_VALUE,
    "input.uri": "a copy of the scene",
    "model.path": ("--model", "COPY"),
    "probabilities.path": OTHER_VALUE,
    **{f"version.{name}": OTHER_VALUE for name in ("atrous", "numpy", "openvino", "rasterio", "torch", "zarr")},
}


@dataclass(slots=True, kw_only=True)
class Finding:
    """What the fields of one kind of a run showed."""

    run: str
    n: int = 0
    n_real: int = 0
    n_kept: int = 0
    n_untouched: int = 0
    broken: list[str] = field(default_factory=list)

    def row(self) -> tuple[object, ...]:
        """Return the cells of the table."""
        kept, untouched = (f"{count} of {self.n}" for count in (self.n_kept, self.n_untouched))
        return (self.run, self.n, self.n_real, self.n - self.n_real, kept, untouched)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run, and the command that made it."""

    name: str
    words: tuple[str, ...]
    out: Path
    scene: Path
    model: Path

    def again(self, *more: str) -> tuple[int, str]:
        """Give the same command again, with other options; return exit code and messages."""
        given = [_file_of(word, self.model.parent) for word in more]
        ended = run_here(*_changed(list(self.words), given), *HERE)
        return ended.code, ended.stderr

    def record(self) -> dict[str, Any]:
        """Return what run.json holds."""
        data: dict[str, Any] = json.loads((run_folder(self.out) / "run.json").read_text())
        return data

    def files(self) -> dict[str, bytes]:
        """Return all files of the output and its run."""
        state = {name: data for name, data in files_of(run_folder(self.out)).items() if name != "lock"}
        return {**files_of(self.out), **state}


def _changed(words: list[str], more: list[str]) -> list[str]:
    """Return a command with other options: a flag that is there is taken away, and a setting of the CRF replaced."""
    if more == ["--probabilities"] and more[0] in words:
        return [word for word in words if word != more[0]]
    if more[:1] == ["--crf-param"]:
        name = more[1].partition("=")[0]
        at = next((i for i, word in enumerate(words) if word.startswith(f"{name}=")), None)
        words = words if at is None else words[: at - 1] + words[at + 1 :]
    return [*words, *more]


def _file_of(word: str, folder: Path) -> str:
    return {
        "OTHER": str(folder / "other.safetensors"),
        "COPY": str(folder / "copy.safetensors"),
        "compatibility=MATRIX": f"compatibility={folder / 'matrix.csv'}",
    }.get(word, word)


def _with_changed_record(run: Run, part: str, name: str, command: Callable[[], tuple[int, str]]) -> tuple[int, str, bool]:
    """Give a command while the record has another value; return exit code, messages, and whether nothing was changed."""
    path = run_folder(run.out) / "run.json"
    kept = path.read_bytes()
    record = read_record(RunPaths(out=run.out))
    getattr(record, part)[name] = "another one"
    path.write_text(record.to_json())
    before = run.files()
    try:
        return (*command(), run.files() == before)
    finally:
        path.write_bytes(kept)


def _with_changed_scene(
    run: Run, change: Callable[[Path], None], command: Callable[[], tuple[int, str]]
) -> tuple[int, str, bool]:
    kept = run.scene.with_name("kept")
    shutil.copy2(run.scene, kept)
    before = run.files()
    try:
        change(run.scene)
        return (*command(), run.files() == before)
    finally:
        shutil.move(kept, run.scene)


def hard(run: Run, finding: Finding) -> None:
    """Change every hard field of a run."""
    for name in run.record()["hard"]:
        finding.n += 1
        case = {**SCENE, **OPTIONS}.get(name)
        # A refinement has most settings from the run that it refines; of its own it has the CRF.
        real = (
            case is not None and case is not OTHER_VALUE and (run.words[0] != "crf" or callable(case) or name.startswith("crf."))
        )
        if case is None:
            finding.broken.append(f"{name}: no case was written for this field")
            continue
        commands = [run.again]
        if not real:
            results = [_with_changed_record(run, "hard", name, command) for command in (run.again, lambda: _resume(run))]
        elif callable(case):
            results = [_with_changed_scene(run, case, command) for command in (*commands, lambda: _resume(run))]
        else:
            before = run.files()
            results = [(*run.again(*case), run.files() == before)]
        finding.n_real += real
        promised = all(code == MISMATCH and f"{name} was " in text for code, text, _ in results)
        finding.n_kept += promised
        finding.n_untouched += all(same for *_, same in results)
        if not promised or not all(same for *_, same in results):
            finding.broken.append(f"{name}: {[(code, text[-400:], same) for code, text, same in results]}")


def _resume(run: Run, *more: str) -> tuple[int, str]:
    ended = run_here("resume", run.out, *HERE, *more)
    return ended.code, ended.stderr


def soft(run: Run, finding: Finding) -> None:
    """Change every soft field of a run."""
    for name in run.record()["soft"]:
        finding.n += 1
        case = SOFT.get(name)
        if case is None:
            finding.broken.append(f"{name}: no case was written for this field")
            continue
        real = case is not OTHER_VALUE and run.words[0] != "crf"
        outcomes = []
        for strict in ((), ("--strict",)):
            if not real:
                outcomes.append(_with_changed_record(run, "soft", name, lambda strict=strict: run.again(*strict)))
            else:
                before = run.files()
                outcomes.append((*_softly(run, case, strict), run.files() == before))
        finding.n_real += real
        (code, text, _), (code_strict, text_strict, same) = outcomes
        promised = (
            code == COMPLETE and f"although {name} was " in text and code_strict == MISMATCH and f"{name} was " in text_strict
        )
        finding.n_kept += promised
        finding.n_untouched += same
        if not promised or not same:
            finding.broken.append(f"{name}: {code} {text[-300:]!r}; strict: {code_strict} {text_strict[-300:]!r}, same {same}")


def _softly(run: Run, case: Any, strict: tuple[str, ...]) -> tuple[int, str]:
    """Give the command with another engine or model file, or with the scene at another place."""
    if isinstance(case, tuple):
        return run.again(*case, *strict)
    copy = run.scene.with_name("elsewhere.tif")
    shutil.copyfile(run.scene, copy)
    words = [str(copy) if word == str(run.scene) else word for word in run.words]
    ended = run_here(*words, *HERE, *strict)
    return ended.code, ended.stderr


def runs(folder: Path) -> list[Run]:
    """Make a run of every kind."""
    job = make_job(folder, height=70, width=100)
    other = bytearray(job.model.read_bytes())
    other[-1] ^= 1
    (folder / "other.safetensors").write_bytes(other)
    shutil.copyfile(job.model, folder / "copy.safetensors")
    (folder / "matrix.csv").write_text("0,2,1\n2,0,1\n1,1,0\n")
    crf = ("--crf-param", "theta_alpha=4", "--crf-param", "n_steps=2", "--crf-param", "tile_px=64")
    kinds = {"without CRF": (), "with CRF": crf, "with shards": ("--shard", "32", "--probabilities")}
    made = [_make(job, folder, name, job.segment(folder / f"{name}.zarr", *more)) for name, more in kinds.items()]
    words = ["crf", "refine", str(made[-1].out), str(folder / "refined.zarr"), *crf]
    return [*made, _make(job, folder, "refined", words)]


def _make(job: Job, folder: Path, name: str, words: list[str]) -> Run:
    run = Run(name=name, words=tuple(words), out=folder / f"{name}.zarr", scene=job.scene, model=job.model)
    code, text = run.again("-q")
    assert code == COMPLETE, text
    return run


def attack(folder: Path) -> list[Finding]:
    """Change every field of every run."""
    findings = []
    for run in runs(folder):
        for kind, change in {"hard": hard, "soft": soft}.items():
            finding = Finding(run=f"{run.name}, {kind}: {'refused' if kind == 'hard' else 'warned, and refused with --strict'}")
            change(run, finding)
            findings.append(finding)
    return findings


def main(options: argparse.Namespace) -> int:
    """Attack, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        findings = attack(Path(folder))
    publish(options, name="fingerprints", columns=COLUMNS, rows=[finding.row() for finding in findings])
    broken = [f"{finding.run}: {text}" for finding in findings for text in finding.broken]
    print("\n".join(broken), file=sys.stderr)  # noqa: T201
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(parser(__doc__ or "", command="fingerprints.py").parse_args()))
