"""What if the power goes? After every step of a run, on every kind of disk that the rules of POSIX allow then.

The steps of a run are recorded. A model of the disk keeps, of every file, what was written and what was synced, and of every directory the
names that were made and those that were synced. For each prefix of the steps, disks are built that the power cut may leave: what was not
synced is there, not there, empty, torn, or zeros. On each of them, what counted as done must be done, byte by byte, and the same command
must end with the bytes of a run that nothing happened to. (ALICE and CrashMonkey test file systems and databases in this way.)
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from disk import Step, Watch
from jobs import (
    COMPLETE,
    HERE,
    Job,
    done_blocks,
    files_of,
    journal_blocks,
    lost_blocks,
    make_job,
    reference,
    remove_run,
    run_folder,
    run_here,
)
from storage import STATE, stopped_after
from tables import parser, publish

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

COLUMNS = (
    "what the power cut hit",
    "steps",
    "disks",
    "blocks done before",
    "of these lost",
    "ended with the same bytes afterwards",
)
KINDS = ("nothing unsynced", "names without content", "names with torn content", "names with zeros", "everything")
"""What is left of what was not synced; after these, by chance."""


@dataclass(slots=True, eq=False)
class Node:
    """A file or a directory of the model."""

    content: bytes = b""
    synced: bytes = b""
    floor: int = 0
    """Length below which nothing was changed since then."""
    names: dict[str, Node] | None = None
    """Of a directory, now."""
    kept: dict[str, Node] = field(default_factory=dict)
    """Of a directory, when it was synced."""
    pending: list[tuple[tuple[str, Node | None], ...]] = field(default_factory=list)
    """Changes of names since then; those of one rename belong together."""


class Model:
    """A disk: what a process sees, and what of it a power cut leaves."""

    def __init__(self, folder: Path) -> None:
        """Begin with what lies in a folder; all of it is durable."""
        self._folder = folder
        self._root = _load(folder)

    def apply(self, step: Step) -> None:
        """Do what a recorded step did."""
        if step.kind == "read" or (step.kind not in {"create", "mkdir"} and self._find(step.path) is None):
            return
        getattr(self, f"_{step.kind}")(step)

    def after_cut(self, kind: str, chance: random.Random) -> dict[str, bytes | None]:
        """Return the files, by path, that a power cut may leave; None for a directory."""
        return dict(_left(self._root, "", kind, chance))

    def _find(self, path: Path) -> Node | None:
        node: Node | None = self._root
        for name in path.relative_to(self._folder).parts:
            node = None if node is None or node.names is None else node.names.get(name)
        return node

    def _rename_in(self, parent: Path, *changes: tuple[str, Node | None]) -> None:
        directory = self._find(parent)
        assert directory is not None
        assert directory.names is not None
        for name, node in changes:
            if node is None:
                del directory.names[name]
            else:
                directory.names[name] = node
        directory.pending.append(changes)

    def _create(self, step: Step) -> None:
        old = self._find(step.path)
        if old is None:
            self._rename_in(step.path.parent, (step.path.name, Node()))
        else:
            old.content, old.floor = b"", 0

    def _mkdir(self, step: Step) -> None:
        self._rename_in(step.path.parent, (step.path.name, Node(names={})))

    def _write(self, step: Step) -> None:
        node = self._find(step.path)
        node.content = (
            node.content[: step.offset].ljust(step.offset, b"\0") + step.data + node.content[step.offset + len(step.data) :]
        )

    def _truncate(self, step: Step) -> None:
        node = self._find(step.path)
        node.content = node.content[: step.offset].ljust(step.offset, b"\0")
        node.floor = min(node.floor, step.offset)

    def _fsync(self, step: Step) -> None:
        node = self._find(step.path)
        if node.names is None:
            node.synced, node.floor = node.content, len(node.content)
        else:
            node.kept, node.pending = dict(node.names), []

    def _rename(self, step: Step) -> None:
        assert step.other.parent == step.path.parent, "the model knows renames within a directory"
        self._rename_in(step.path.parent, (step.path.name, None), (step.other.name, self._find(step.path)))

    def _link(self, step: Step) -> None:
        self._rename_in(step.other.parent, (step.other.name, self._find(step.path)))

    def _unlink(self, step: Step) -> None:
        self._rename_in(step.path.parent, (step.path.name, None))

    _rmdir = _unlink


def _load(path: Path) -> Node:
    if path.is_file():
        content = path.read_bytes()
        return Node(content=content, synced=content, floor=len(content))
    names = {entry.name: _load(entry) for entry in path.iterdir()}
    return Node(names=names, kept=dict(names))


def _left(node: Node, path: str, kind: str, chance: random.Random) -> Iterator[tuple[str, bytes | None]]:
    if node.names is None:
        yield path, _content_left(node, kind, chance)
        return
    yield path, None
    names = dict(node.kept)
    for changes in node.pending:
        if kind not in {"nothing unsynced", "by chance"} or (kind == "by chance" and chance.random() < 0.5):
            names |= {name: other for name, other in changes if other is not None}
            for name in (name for name, other in changes if other is None):
                names.pop(name, None)
    for name, other in sorted(names.items()):
        yield from _left(other, f"{path}/{name}" if path else name, kind, chance)


def _content_left(node: Node, kind: str, chance: random.Random) -> bytes:
    """Return what is left of a file; what was synced and not changed since is there."""
    now, synced = node.content, node.synced
    if now == synced:
        return now
    start, tail = now[: node.floor], now[node.floor :]
    choices = {
        "nothing unsynced": synced,
        "names without content": start,
        "names with torn content": start + tail[: len(tail) // 2],
        "names with zeros": start + bytes(len(tail)),
        "everything": now,
        "noise": start + chance.randbytes(len(tail)),
        "torn sector": start + bytes(len(tail) // 2) + tail[len(tail) // 2 :],
    }
    return choices[kind] if kind != "by chance" else chance.choice(list(choices.values()))


@dataclass(slots=True, kw_only=True)
class Scenario:
    """A command whose steps are recorded."""

    name: str
    job: Job
    commands: list[list[str]]
    """What is run, and run again after the cut; the last one must succeed."""
    disk: Path
    """Its folder; what lies there at the start is durable."""
    out: Path
    """In that folder."""
    expected: dict[str, bytes]
    overwritten: str = ""
    """The run that is to be overwritten; its blocks are given up."""
    damaged: frozenset[tuple[int, int]] = frozenset()
    """Blocks that are damaged at the start, until they are done a second time."""
    n_steps: int = 0
    n_disks: int = 0
    n_done: int = 0
    n_lost: int = 0
    n_same: int = 0
    broken: list[str] = field(default_factory=list)

    def row(self) -> tuple[object, ...]:
        """Return the cells of the table."""
        return (self.name, self.n_steps, self.n_disks, self.n_done, self.n_lost, f"{self.n_same} of {self.n_disks}")

    def attack(self, *, every: int, n_chances: int, seed: int = 0) -> None:
        """Record the steps, and cut the power after each of them."""
        model, chance = Model(self.disk), random.Random(seed)
        with Watch(self.disk) as watch:
            self._run()
        seen: set[str] = set()
        for number, step in enumerate(watch.steps, start=1):
            model.apply(step)
            if number % every and number < len(watch.steps):
                continue
            self.n_steps += 1
            promised = self._promised(model)
            for kind in (*KINDS, *["by chance"] * n_chances):
                left = model.after_cut(kind, chance)
                digest = hashlib.sha256(repr(sorted(left.items(), key=lambda item: item[0])).encode()).hexdigest()
                if digest not in seen:
                    seen.add(digest)
                    self._judge(left, promised, f"{kind}, after step {number} ({step.kind} {step.path.name})")

    def _run(self) -> list[int]:
        return [run_here(*words).code for words in self.commands]

    def _promised(self, model: Model) -> list[tuple[int, int]]:
        """Return the blocks that the run may have announced: those in what was synced of its journal."""
        node = model._find(run_folder(self.out) / "journal.jsonl")
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            run_folder(copy).mkdir()
            (run_folder(copy) / "journal.jsonl").write_bytes(b"" if node is None else node.synced)
            return journal_blocks(copy)

    def _judge(self, left: dict[str, bytes | None], promised: list[tuple[int, int]], place: str) -> None:
        """Build the disk, and look at what counts as done; then run the command again, and compare."""
        self.n_disks += 1
        self._build(left)
        lines, given_up = journal_blocks(self.out), self._record_id() == self.overwritten
        done = {} if given_up else done_blocks(self.out)
        forgotten = [] if self.overwritten else [block for block in promised if block not in done]
        known = {block for block in self.damaged if lines.count(block) < 2}
        lost = [] if given_up else [block for block in lost_blocks(self.out, self.expected) if block not in known]
        self.n_done += len(done)
        self.n_lost += len(lost) + len(forgotten)
        codes = self._run()
        same = files_of(self.out) == self.expected and set(files_of(run_folder(self.out))) <= STATE
        self.n_same += same and codes[-1] == COMPLETE
        strays = [path.name for path in self.out.parent.iterdir() if path not in {self.out, run_folder(self.out)}]
        if lost or forgotten or strays or not same or codes[-1] != COMPLETE:
            self.broken.append(f"{place}: lost {lost}, forgotten {forgotten}, exit codes {codes}, same {same}, left {strays}")

    def _record_id(self) -> str:
        record = run_folder(self.out) / "run.json"
        return json.loads(record.read_text())["run_id"] if record.exists() else ""

    def _build(self, left: dict[str, bytes | None]) -> None:
        for path in self.disk.iterdir():
            remove_run(path) if path.is_dir() else path.unlink()
        for name, content in left.items():
            if content is None:
                (self.disk / name).mkdir(exist_ok=True)
            else:
                (self.disk / name).write_bytes(content)


def scenarios(folder: Path) -> Iterator[Scenario]:
    """Yield a first run, one that goes on, one that overwrites another, a repair, and one with a staged scene."""
    job = make_job(folder / "job", height=100, width=90, options=("--chunk", "64"))
    other = Job(scene=job.scene, model=job.model, options=(*job.options, "--overlap", "32"))
    expected = reference(job)

    def scenario(name: str, *commands: tuple[str, ...], job: Job = job, place: str = "out.zarr") -> Scenario:
        disk = folder / name.replace(" ", "-")
        disk.mkdir()
        out = disk / place
        words = [[*command, str(out)] if command else job.segment(out) for command in commands]
        return Scenario(
            name=name,
            job=job,
            commands=[[*one, *(() if one[0] == "verify" else HERE), "-q"] for one in words],
            disk=disk,
            out=out,
            expected=expected,
        )

    yield scenario("first run", (), place="new/folder/out.zarr")
    begun = scenario("resume", ())
    with stopped_after(2):
        begun._run()
    with (run_folder(begun.out) / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"v":1,"run":"torn')
    (begun.out / "0" / "labels" / "c" / "0" / f"1.{32 * '0'}.partial").write_bytes(b"torn")
    yield begun
    overwritten = scenario("overwrite", ())
    run_here(*other.segment(overwritten.out), *HERE, "-q")
    overwritten.commands[0].append("--overwrite")
    overwritten.overwritten = overwritten._record_id()
    yield overwritten
    repaired = scenario("repair and resume", ("verify", "--repair"), ("resume",))
    run_here(*job.segment(repaired.out), *HERE, "-q")
    for name in ("0/labels/c/0/0", "0/labels/zarr.json", "0/x/c/0"):
        path = repaired.out / name
        path.write_bytes(bytes(path.stat().st_size))
    repaired.damaged = frozenset({(0, 0)})
    yield repaired
    png = Job(scene=_as_png(job.scene), model=job.model, options=job.options)
    staged = scenario("scene that is staged", (), job=png)
    staged.expected = reference(png)
    yield staged


def _as_png(scene: Path) -> Path:
    import rasterio

    png = scene.with_suffix(".png")
    with (
        rasterio.open(scene) as source,
        rasterio.open(png, "w", driver="PNG", count=3, height=100, width=90, dtype="uint8") as target,
    ):
        target.write(source.read())
    return png


def main(options: argparse.Namespace) -> int:
    """Attack, and print the table."""
    broken: list[str] = []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for scenario in scenarios(Path(folder)):
            scenario.attack(every=17 if options.quick else 1, n_chances=1 if options.quick else 3)
            rows.append(scenario.row())
            broken += [f"{scenario.name}: {text}" for text in scenario.broken]
    publish(options, name="power_cut", columns=COLUMNS, rows=rows)
    print("\n".join(broken[:40]), file=sys.stderr)  # noqa: T201
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(parser(__doc__ or "", command="power_cut.py").parse_args()))
