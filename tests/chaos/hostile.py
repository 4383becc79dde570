"""What do hostile files do? A thousand of them, read as a worker reads them; and which files were opened meanwhile.

Every mutant is read in a process apart, with a time limit, under ``strace`` where there is one: whatever it opens that is neither the
mutant's own folder nor part of the installation is a foreign file. "Silently wrong" means read without an error, and other pixels (or
weights) than the original's: damage that no reader can see, where a format has no checksums.
"""

from __future__ import annotations

import json
import os
import random
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
import zarr
from jobs import ROOT, make_job, texture
from mutants import attack_tiff, attack_zarr, mutate_bytes, mutate_description, mutate_json, write_vrt_attack
from rasterio.transform import Affine
from reader import FAILED, MARK, REFUSED, RIGHT, SILENT, UNEXPECTED
from tables import parser, publish

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import numpy as np

OUTCOMES = (REFUSED, FAILED, RIGHT, SILENT, UNEXPECTED, "crash", "hang")
COLUMNS = ("format", "files", *OUTCOMES, "foreign files opened", "silently wrong, plain reader")
_LIMIT_S = 60.0
_HEIGHT, _WIDTH = 101, 203
_OPENED = re.compile(r'(?:open|openat)\((?:AT_FDCWD, )?"([^"]*)"(.*)$')
_STRACE = ("strace", "-f", "-qq", "--seccomp-bpf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One hostile file."""

    n: int
    """Its number, and the seed of what was done to it."""
    kind: str
    """Format."""
    path: Path
    """The file or folder."""
    attack: bool
    """Whether it is a known attack, and no random damage."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the files of one format."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How often each happened."""
    peer: Counter[str] = field(default_factory=Counter)
    """The same of the plain reader."""
    foreign: list[str] = field(default_factory=list)
    """Files that should not have been opened."""
    notes: list[str] = field(default_factory=list)
    """What is to be looked at."""


# The files


def make_originals(folder: Path) -> dict[str, list[Path]]:
    """Write good files of every format, several layouts of some; the first of each is what mutants are compared with."""
    folder.mkdir()
    pixels = texture((3, _HEIGHT, _WIDTH))
    tiles: dict[str, Any] = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    layouts: list[dict[str, Any]] = [
        {**tiles, "compress": "deflate"},
        {**tiles, "compress": "lzw", "interleave": "band"},
        {"blockysize": 1, "compress": "zstd"},
        {"blockysize": 16, "BIGTIFF": "YES"},
        tiles,
    ]
    tiffs = [_write(folder / f"tiff{n}" / "scene.tif", pixels, "GTiff", options) for n, options in enumerate(layouts)]
    jp2 = {"QUALITY": 100, "REVERSIBLE": "YES"}
    return {
        "GeoTIFF": tiffs,
        "PNG": [_write(folder / "png" / "scene.png", pixels, "PNG", {})],
        "JPEG": [_write(folder / "jpeg" / "scene.jpg", pixels, "JPEG", {})],
        "JPEG 2000": [
            _write(folder / "jp2" / "scene.jp2", pixels, "JP2OpenJPEG", {**jp2, "BLOCKXSIZE": 64, "BLOCKYSIZE": 64}),
            _write(folder / "jp2whole" / "scene.jp2", pixels, "JP2OpenJPEG", jp2),
        ],
        "BMP": [_write(folder / "bmp" / "scene.bmp", pixels, "BMP", {})],
        "VRT": [_write_vrt(folder / "vrt", pixels[:1, :40, :50])],
        "Zarr 2": [_write_zarr(folder / "zarr2" / "scene.zarr", pixels, zarr_format=2)],
        "Zarr 3": [
            _write_zarr(folder / "zarr3" / "scene.zarr", pixels, zarr_format=3),
            _write_zarr(folder / "sharded" / "scene.zarr", pixels, zarr_format=3, shards=(3, 64, 64)),
        ],
        "checkpoint": [make_job(folder / "job").model],
    }


def _write(path: Path, pixels: np.ndarray[Any, Any], driver: str, options: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    profile = {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    place = {"crs": "EPSG:32640", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 28e5)} if driver == "GTiff" else {}
    with rasterio.open(path, "w", driver=driver, **profile, **place, **options) as target:
        target.write(pixels)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
    return path


def _write_vrt(folder: Path, pixels: np.ndarray[Any, Any]) -> Path:
    _write(folder / "left.tif", pixels, "GTiff", {"compress": "deflate"})
    _write(folder / "right.tif", pixels[:, ::-1], "GTiff", {"compress": "deflate"})
    part = (
        '<SimpleSource><SourceFilename relativeToVRT="1">{}.tif</SourceFilename><SourceBand>1</SourceBand>'
        '<SrcRect xOff="0" yOff="0" xSize="50" ySize="40"/><DstRect xOff="{}" yOff="0" xSize="50" ySize="40"/></SimpleSource>'
    )
    path = folder / "scene.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="100" rasterYSize="40"><SRS>EPSG:32640</SRS>'
        "<GeoTransform>500000.0, 0.5, 0.0, 2800000.0, 0.0, -0.5</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"><ColorInterp>Gray</ColorInterp>{part.format("left", 0)}{part.format("right", 50)}'
        "</VRTRasterBand></VRTDataset>"
    )
    return path


def _write_zarr(path: Path, pixels: np.ndarray[Any, Any], **layout: Any) -> Path:
    path.parent.mkdir()
    attributes = {"proj:code": "EPSG:32640", "spatial:transform": [0.5, 0, 5e5, 0, -0.5, 28e5], "nodata": 255}
    chunks = (3, 32, 32)
    array = zarr.create_array(str(path), shape=pixels.shape, dtype=pixels.dtype, chunks=chunks, attributes=attributes, **layout)
    array[...] = pixels
    return path


def make_mutant(folder: Path, originals: dict[str, list[Path]], n: int) -> Mutant:
    """Make the ``n``-th hostile file."""
    rng = random.Random(n)
    kinds = list(originals)
    kind = kinds[n % len(kinds)]
    original = originals[kind][n // len(kinds) % len(originals[kind])]
    index = n // len(kinds)
    home = folder / f"{n:05d}"
    shutil.copytree(original.parent, home)
    path = home / original.name
    attack = False
    if kind == "VRT":
        attack = index % 4 != 0
        if attack:
            path.unlink()
            path = write_vrt_attack(home, index - index // 4 - 1)
        else:
            mutate_bytes(rng.choice(sorted(home.iterdir())), rng, b"")
    elif kind.startswith("Zarr"):
        attack = _mutate_zarr(path, rng, index)
    elif kind == "GeoTIFF" and index % 8 == 7:
        attack = True
        attack_tiff(home, path, index // 8)
    elif kind == "checkpoint" and index % 2:
        mutate_description(path, rng)
    else:
        mutate_bytes(path, rng, originals[kind][-1].read_bytes())
    return Mutant(n=n, kind=kind, path=path, attack=attack)


def _mutate_zarr(path: Path, rng: random.Random, index: int) -> bool:
    """Damage metadata or a chunk, or attack; tell whether it was an attack."""
    files = sorted(item for item in path.rglob("*") if item.is_file())
    documents = [item for item in files if item.suffix == ".json" or item.name.startswith(".z")]
    if index % 4 == 0:
        attack_zarr(path, index // 4)
        return True
    if index % 4 == 1:
        mutate_json(rng.choice([item for item in documents if item.name != ".zattrs" or rng.random() < 0.5] or documents), rng)
    elif index % 8 == 2:
        rng.choice(sorted(set(files) - set(documents))).unlink()
    else:
        mutate_bytes(rng.choice(sorted(set(files) - set(documents)) if index % 4 == 3 else documents), rng, b"{}")
    return False


# The process that reads them


class Reader:
    """A process that reads one file after another, and is started again where it died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._starts = 0
        self.traces: list[Path] = []

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return what became of a file."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        except OSError:
            pass
        answer = self._answer()
        if answer is None:
            hung = process.poll() is None
            self.close()
            return {"outcome": "hang" if hung else "crash", "notes": [f"ended with {process.returncode}"], "peer": ""}
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        trace = self._folder / f"trace{self._starts}"
        self._starts += 1
        words = [sys.executable, str(Path(__file__).with_name("reader.py")), str(self._folder)]
        if can_trace():
            words = [*_STRACE, "-s", "4096", "-e", "trace=open,openat,connect", "-o", str(trace), *words]
            self.traces.append(trace)
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "GDAL_NUM_THREADS": "ALL_CPUS"},  # as workers have it
            start_new_session=True,
        )
        assert self._answer(600) is not None, "the reader did not start"
        return self._process

    def _answer(self, limit_s: float = _LIMIT_S) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def can_trace() -> bool:
    """Tell whether the calls of a process can be watched here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run([*_STRACE, "-e", "trace=none", "true"], capture_output=True, check=False).returncode == 0


def opened(trace: Path) -> Iterator[tuple[str, str]]:
    """Yield (mark, what was opened or called) from a trace; only what succeeded, and every address."""
    mark = "start"
    for line in trace.read_text(errors="replace").splitlines():
        if "connect(" in line and "AF_INET" in line:
            yield mark, "network: " + line.split("connect(", 1)[1]
        found = _OPENED.search(line)
        if found is None:
            continue
        if found[1].startswith(MARK):
            mark = found[1].removeprefix(MARK)
        elif "= -1" not in found[2] and "O_TMPFILE" not in found[2]:  # a new file without a name is nobody's
            yield mark, found[1]


def foreign_files(traces: list[Path], mutants: dict[int, Mutant]) -> dict[int, set[str]]:
    """Return, for each mutant, what was opened for it and is neither its own nor of the installation."""
    found: dict[int, set[str]] = defaultdict(set)
    for trace in traces:
        for mark, name in opened(trace):
            number, _, who = mark.partition("-")
            if who == "ours" and not _belongs(name, mutants[int(number)]):
                found[int(number)].add(name)
    return found


def _belongs(name: str, mutant: Mutant) -> bool:
    """Tell whether a name is of the mutant's folder, by name and by where it leads, or of the system."""
    path = Path(name)
    if not path.is_absolute():
        return name.startswith(("memfd:", "pipe:")) or (ROOT / path).exists()
    home = mutant.path.parent
    if path.is_relative_to(home.parent):  # zarr's threads may still be busy with the mutant before
        real = path.resolve()
        return real.is_relative_to(home.parent.resolve()) and not real.is_relative_to(home.parent / "outside")
    model = home.parent.parent / "originals" / "job"
    system = (
        "/usr",
        "/lib",
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
        "/dev/shm",
        "/etc/ld.so",
        "/etc/localtime",
        "/root/.cache",
    )
    kept = (model, ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(tempfile.gettempdir()) / "atrous-tests")
    return name.startswith(system) or any(name.startswith(str(place)) for place in kept)


# The table


def attack_all(n_files: int, *, every: int, first: int = 0) -> dict[str, Tally]:
    """Make and read so many hostile files, from number ``first`` on; every ``every``-th of them is also segmented."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        originals = make_originals(folder / "originals")
        _write_outside(folder / "mutants" / "outside", originals["GeoTIFF"][0])
        (folder / "originals.json").write_text(json.dumps({kind: str(paths[0]) for kind, paths in originals.items()}))
        job = folder / "originals" / "job"
        tallies: dict[str, Tally] = {kind: Tally() for kind in originals}
        mutants: dict[int, Mutant] = {}
        reader = Reader(folder)
        try:
            for n in range(first, first + n_files):
                mutant = mutants[n] = make_mutant(folder / "mutants", originals, n)
                task = {
                    "n": n,
                    "kind": mutant.kind,
                    "path": str(mutant.path),
                    "attack": mutant.attack,
                    "whole_run": n // len(originals) % every == 0,
                    "with": [str(job / "scene0.tif"), str(job / "tiny.safetensors")],
                }
                _note(tallies[mutant.kind], mutant, reader.ask(task))
        finally:
            reader.close()
        for number, names in foreign_files(reader.traces, mutants).items():
            tallies[mutants[number].kind].foreign += sorted(names)
            tallies[mutants[number].kind].notes.append(f"{number}: opened {sorted(names)}")
    return tallies


def _write_outside(folder: Path, tiff: Path) -> None:
    """Write what no mutant may show."""
    folder.mkdir(parents=True)
    (folder / "secret").write_bytes(bytes(range(256)) * 400)
    shutil.copy(tiff, folder / "secret.tif")
    (folder / "secret.wkt").write_text("EPSG:4326")


def _note(tally: Tally, mutant: Mutant, answer: dict[str, Any]) -> None:
    tally.outcomes[answer["outcome"]] += 1
    tally.peer[answer["peer"]] += 1
    bad = answer["outcome"] in {UNEXPECTED, "crash", "hang"}
    notes = [note for note in answer["notes"] if bad or not note.startswith("exit ") or "not for the input" in note]
    tally.notes += [f"{mutant.n} ({mutant.kind}): {note}" for note in notes]


def row(kind: str, tally: Tally) -> tuple[object, ...]:
    """Return a row of the table."""
    total = tally.outcomes.total()
    peers = tally.peer.total() - tally.peer[""]
    plain = f"{tally.peer[SILENT]} of {peers}" if peers else "-"
    foreign = len(tally.foreign) if can_trace() else "not watched"
    return (kind, total, *(tally.outcomes[outcome] for outcome in OUTCOMES), foreign, plain)


def run(options: argparse.Namespace) -> int:
    """Print the table; return 1 where something happened that must not."""
    tallies = attack_all(100 if options.quick else 1000, every=20 if options.quick else 10, first=options.first)
    publish(options, name="hostile", columns=COLUMNS, rows=[row(kind, tally) for kind, tally in tallies.items()])
    notes = [note for tally in tallies.values() for note in tally.notes]
    print("\n".join(notes), flush=True)  # noqa: T201
    return int(bool(notes))


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0], command="hostile.py")
    arguments.add_argument("--first", type=int, default=0, help="number of the first file; others are other files")
    sys.exit(run(arguments.parse_args()))
