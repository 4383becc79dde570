"""Which damage is found, and which is mended? Every chunk and every kind of damage, beside what plain zarr says of the same.

One file, or one line of the journal, is damaged at a time. It is found where ``atrous verify`` exits with another code than 0, or names a
line that does not count; it is mended where ``atrous verify --repair`` and ``atrous resume`` lead back to the same bytes. Plain zarr holds
the same labels with its default codecs, is damaged in the same way, and is read as a whole.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from jobs import COMPLETE, HERE, TRY_AGAIN, Job, files_of, make_job, run_folder, run_here
from tables import parser, publish

from pipeline.store import read_array
from pipeline.window import Window

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    Damage = Callable[[bytes, random.Random], bytes | None]

COLUMNS = ("damage", "output", "cases", "found by verify", "found by resume alone", "mended to the same bytes", "plain zarr")
LAYOUTS = {"chunks": ("--chunk", "64"), "shards": ("--chunk", "32", "--shard", "64")}


def flip_bit(data: bytes, chance: random.Random) -> bytes:
    """Change one bit."""
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


FILES: dict[str, Damage] = {
    "zero length": lambda _data, _chance: b"",
    "truncated": lambda data, chance: data[: chance.randrange(1, len(data))],
    "zeros": lambda data, _chance: bytes(len(data)),
    "one bit flipped": flip_bit,
    "noise of the same length": lambda data, chance: chance.randbytes(len(data)),
    "longer": lambda data, chance: data + chance.randbytes(7),
    "deleted": lambda _data, _chance: None,
}


def _tear(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(data[:-1].rindex(b"\n") + 2, len(data))]


def _insert(make: Callable[[bytes, random.Random], bytes]) -> Damage:
    """Return what adds a line, made from one of the lines, at some place."""

    def damage(data: bytes, chance: random.Random) -> bytes:
        lines = data.splitlines(keepends=True)
        lines.insert(chance.randrange(len(lines) + 1), make(chance.choice(lines), chance))
        return b"".join(lines)

    return damage


def _of_another_run(line: bytes, chance: random.Random) -> bytes:
    return json.dumps({**json.loads(line), "run": f"{chance.randrange(16**12):012x}"}).encode() + b"\n"


def _lose(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


JOURNAL: dict[str, Damage] = {
    "journal: last line torn": _tear,
    "journal: line of another run": _insert(_of_another_run),
    "journal: line twice": _insert(lambda line, _chance: line),
    "journal: line of noise": _insert(lambda line, chance: chance.randbytes(len(line)).replace(b"\n", b"") + b"\n"),
    "journal: one bit flipped": flip_bit,
    "journal: line lost": _lose,
    "journal: lost": lambda _data, _chance: None,
}


@dataclass(slots=True, kw_only=True)
class Row:
    """What one kind of damage led to."""

    damage: str
    output: str
    n: int = 0
    n_found: int = 0
    n_found_by_resume: int = 0
    n_mended: int = 0
    zarr: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def cells(self) -> tuple[object, ...]:
        """Return the cells of the table."""
        by_resume = self.n_found_by_resume if self.output in LAYOUTS else "-"  # it looks at chunks
        zarr = ", ".join(f"{count} {word}" for word, count in self.zarr.most_common()) or "-"
        return (self.damage, self.output, self.n, self.n_found, by_resume, self.n_mended, zarr)


class Bench:
    """A finished output that is damaged and mended again and again."""

    def __init__(self, folder: Path, job: Job, layout: str, chance: random.Random) -> None:
        self.out, self.layout = folder / f"{layout}.zarr", layout
        self.job, self._chance = job, chance
        assert run_here(*job.segment(self.out, *HERE, "-q")).code == COMPLETE
        self.files, self.state = files_of(self.out), files_of(run_folder(self.out))
        self.plain = _Plain(folder / f"plain-{layout}.zarr", self.out, shard=64 if layout == "shards" else None)

    @property
    def chunks(self) -> list[str]:
        """The files with pixels."""
        return [name for name in self.files if name.startswith(("0/labels/c/", "0/confidence/c/"))]

    @property
    def others(self) -> list[str]:
        """Metadata and coordinates."""
        return [name for name in self.files if name not in self.chunks]

    def damage_file(self, row: Row, damage: Damage, key: str) -> None:
        """Damage a file of the output, look, mend, and compare."""
        state = self._chance.getstate()
        content = damage(self.files[key], self._chance)
        if content == self.files[key]:
            return
        _put(self.out / key, content)
        ended = run_here("verify", self.out, "-q")
        resumed = run_here("resume", self.out, *HERE, "--json") if key in self.chunks else None
        by_resume = resumed is not None and json.loads(resumed.stdout)["n_new"] > 0
        if by_resume:
            _put(self.out / key, content)
            run = run_folder(self.out) / "journal.jsonl"
            run.write_bytes(self.state["journal.jsonl"])
        self._finish(row, key, found=ended.code not in {COMPLETE, 1}, by_resume=by_resume)
        if key.startswith("0/labels/c/"):
            self._chance.setstate(state)
            row.zarr[self.plain.read_damaged(key.removeprefix("0/labels/"), damage, self._chance)] += 1

    def damage_journal(self, row: Row, damage: Damage) -> None:
        """Damage the journal, look, mend, and compare."""
        content = damage(self.state["journal.jsonl"], self._chance)
        _put(run_folder(self.out) / "journal.jsonl", content)
        ended = run_here("verify", self.out, "--json")
        lines = json.loads(ended.stdout)["journal"] if ended.stdout else {}
        odd = [name for name in ("n_replaced", "n_foreign", "n_unreadable", "torn") if lines.get(name)]
        if ended.code == 1:
            row.broken.append(f"verify ended with {ended.stderr[-300:]!r}")
        self._finish(row, "journal", found=ended.code in {4, TRY_AGAIN} or bool(odd), by_resume=False)

    def damage_record(self, row: Row, damage: Damage) -> None:
        """Damage what a run was begun with; it cannot be mended, but nobody may go on with it unawares."""
        content = damage(self.state["run.json"], self._chance)
        _put(run_folder(self.out) / "run.json", content)
        ended = run_here("resume", self.out, *HERE)
        for one in (ended, run_here("verify", self.out, "-q"), run_here("status", self.out)):
            if one.code == 1:
                row.broken.append(f"exit code 1: {one.stderr[-300:]!r}")
        row.n, row.n_found = (
            row.n + 1,
            row.n_found + (ended.code != COMPLETE or "although" in ended.stderr or "0 new" not in ended.stdout),
        )
        again = run_here(*self.job.segment(self.out, *HERE, "-q", "--overwrite"))
        row.n_mended += again.code == COMPLETE and files_of(self.out) == self.files
        self._restore()

    def _finish(self, row: Row, place: str, *, found: bool, by_resume: bool) -> None:
        codes = [run_here("verify", self.out, "--repair", "-q").code, run_here("resume", self.out, *HERE, "-q").code]
        after = run_here("verify", self.out, "-q").code
        mended = codes[1] == after == COMPLETE and files_of(self.out) == self.files
        row.n, row.n_found, row.n_mended = row.n + 1, row.n_found + found, row.n_mended + mended
        row.n_found_by_resume += by_resume
        if not mended:
            row.broken.append(f"{place}: not mended: exit codes {codes}, then {after}")
        self._restore()

    def _restore(self) -> None:
        """Begin the next case with what the first run wrote."""
        for name, content in self.state.items():
            (run_folder(self.out) / name).write_bytes(content)
        found = files_of(self.out)
        for name in found.keys() | self.files.keys():
            if found.get(name) != self.files.get(name):
                _put(self.out / name, self.files.get(name))


class _Plain:
    """The same labels as zarr keeps them by default."""

    def __init__(self, path: Path, out: Path, *, shard: int | None) -> None:
        shape = zarr.open_array(out / "0" / "labels", mode="r").shape
        self.labels = read_array(out, "labels", Window.of_shape(shape))
        chunks = {"chunks": (64, 64)} if shard is None else {"chunks": (32, 32), "shards": (shard, shard)}
        array = zarr.create_array(path, shape=shape, dtype="uint8", fill_value=255, **chunks)
        array[...] = self.labels
        self._path, self._files = path, files_of(path)

    def read_damaged(self, key: str, damage: Damage, chance: random.Random) -> str:
        """Damage the same chunk in the same way, and tell what a reader notices."""
        try:
            _put(self._path / key, damage(self._files[key], chance))
            try:
                read = zarr.open_array(self._path, mode="r")[...]
            except Exception:  # noqa: BLE001  (whatever a codec raises)
                return "error"
            return "silently right" if np.array_equal(read, self.labels) else "silently wrong"
        finally:
            _put(self._path / key, self._files[key])


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def attack(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Damage the files of two outputs and the journal of one, one by one."""
    chance = random.Random(0)
    benches = {
        layout: Bench(folder, make_job(folder / f"job of {layout}", height=100, width=170, options=options), layout, chance)
        for layout, options in LAYOUTS.items()
    }
    for layout, bench in benches.items():
        for name, damage in FILES.items():
            row = Row(damage=name, output=layout)
            keys = bench.chunks[:: 5 if quick else 1]
            for key in keys * (10 if name == "one bit flipped" and not quick else 1):
                bench.damage_file(row, damage, key)
            yield row
    bench = benches["chunks"]
    for name, damage in FILES.items():
        row = Row(damage=name, output="metadata and coordinates")
        for key in bench.others[:: 3 if quick else 1]:
            bench.damage_file(row, damage, key)
        yield row
    for name, damage in JOURNAL.items():
        row = Row(damage=name, output="-")
        n_cases = {"journal: lost": 1, "journal: one bit flipped": 12 if quick else 300}.get(name, 3 if quick else 20)
        for _ in range(n_cases):
            bench.damage_journal(row, damage)
        yield row
    row = Row(damage="run.json: one bit flipped", output="-")
    for _ in range(12 if quick else 300):
        bench.damage_record(row, flip_bit)
    yield row


def promises(row: Row) -> list[str]:
    """Tell what was not kept: damage that is not found, or not mended."""
    all_found = row.n_found == row.n or row.output.startswith("metadata")
    missed = [] if all_found else [f"{row.n - row.n_found} of {row.n} were not found"]
    return [f"{row.damage}, {row.output}: {text}" for text in (*missed, *row.broken)]


def main(options: argparse.Namespace) -> int:
    """Attack, and print the table."""
    folder = Path(tempfile.mkdtemp())
    try:
        rows = list(attack(folder, quick=options.quick))
    finally:
        shutil.rmtree(folder)
    broken = [text for row in rows for text in promises(row)]
    publish(options, name="damage", columns=COLUMNS, rows=[row.cells() for row in rows])
    print("\n".join(broken[:40]), file=sys.stderr)  # noqa: T201
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(parser(__doc__ or "", command="damage.py").parse_args()))
