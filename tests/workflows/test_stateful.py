"""Any order of runs, crashes, damage, wrong wishes and repairs keeps the promises: a machine that tries them against a model.

The model knows which blocks were damaged behind the program's back. Whatever else counts as done has the right bytes; a complete run has
those of a run that nothing happened to; what is refused changes nothing; and nothing is written anywhere else. A crash is a copy of the
disk, taken before any one step of a run. ``ATROUS_TORTURE=500`` tries so many lives instead of a few.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

from damage import FILES
from disk import Watch
from jobs import (
    COMPLETE,
    HERE,
    MISMATCH,
    QUARANTINED,
    TRY_AGAIN,
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
from storage import stopped_after

from workflows.run_state import RunPaths, locked

N_BLOCKS = 6
N_STEPS = 320
"""More than a run has that overwrites another one."""
SAME_LENGTH = ("zeros", "one bit flipped", "noise of the same length")
LENGTHS = ("zero length", "truncated", "longer", "deleted")
_n_lives = int(os.environ.get("ATROUS_TORTURE", "0"))


@cache
def world() -> tuple[Path, dict[str, Job], dict[str, dict[str, bytes]]]:
    """Return a folder, jobs that differ in one hard setting, and what each of them should write."""
    folder = Path(tempfile.mkdtemp(prefix="atrous-stateful-"))
    job = make_job(folder / "job", height=100, width=170, options=("--chunk", "64"))
    others = {
        overlap: Job(scene=job.scene, model=job.model, options=(*job.options, "--overlap", overlap)) for overlap in ("16", "32")
    }
    return folder, others, {name: reference(one) for name, one in others.items()}


def teardown_module() -> None:
    if world.cache_info().currsize:
        shutil.rmtree(world()[0])
        world.cache_clear()


class Life(RuleBasedStateMachine):
    """What may happen to an output."""

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.jobs, self.expected = world()
        self.disk = self.folder / "disk"
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir()
        self.out = self.disk / "out.zarr"
        self.inputs = files_of(self.folder / "job")
        self.damaged: set[tuple[int, int]] = set()

    @property
    def setting(self) -> str | None:
        """The setting of the run that owns the output; None before there is one."""
        record = run_folder(self.out) / "run.json"
        return str(json.loads(record.read_text())["spec"]["grid"]["overlap_px"]) if record.exists() else None

    @property
    def journal(self) -> Path:
        return run_folder(self.out) / "journal.jsonl"

    def everything(self) -> dict[str, bytes]:
        """Return all files but the lock, which says who held it last."""
        return {name: data for name, data in files_of(self.disk).items() if not name.endswith("/lock")}

    def segment(self, setting: str, *more: str) -> int:
        return run_here(*self.jobs[setting].segment(self.out, *HERE, "-q", *more)).code

    def begun(self) -> str:
        assert self.setting is not None
        return self.setting

    # What a person does

    @initialize(setting=st.sampled_from(["16", "32"]), n_blocks=st.integers(0, N_BLOCKS))
    def begin(self, setting: str, n_blocks: int) -> None:
        self.stop_after(setting, n_blocks)

    def stop_after(self, setting: str, n_blocks: int, *more: str) -> None:
        with stopped_after(n_blocks):
            code = self.segment(setting, *more)
        assert code in {COMPLETE, TRY_AGAIN}

    @precondition(lambda self: self.setting)
    @rule(n_blocks=st.integers(0, N_BLOCKS))
    def go_on_for_some_blocks(self, n_blocks: int) -> None:
        before = journal_blocks(self.out)
        self.stop_after(self.begun(), n_blocks)
        assert len(journal_blocks(self.out)) - len(before) <= n_blocks

    @precondition(lambda self: self.setting)
    @rule()
    def resume(self) -> None:
        assert run_here("resume", self.out, *HERE, "-q").code == COMPLETE
        assert len(done_blocks(self.out)) == N_BLOCKS
        if not lost_blocks(self.out, self.expected[self.begun()]):
            assert files_of(self.out) == self.expected[self.begun()]

    @precondition(lambda self: self.setting)
    @rule(setting=st.sampled_from(["16", "32"]), n_blocks=st.integers(0, N_BLOCKS))
    def overwrite(self, setting: str, n_blocks: int) -> None:
        self.damaged = set()
        self.stop_after(setting, n_blocks, "--overwrite")

    @precondition(lambda self: self.setting)
    @rule()
    def wish_for_another_setting(self) -> None:
        before = self.everything()
        assert self.segment("32" if self.setting == "16" else "16") == MISMATCH
        assert self.everything() == before

    @precondition(lambda self: self.setting)
    @rule(words=st.sampled_from([("resume",), ("verify", "--repair")]))
    def come_while_another_works(self, words: tuple[str, ...]) -> None:
        before = self.everything()
        with locked(RunPaths(out=self.out)):
            assert run_here(*words, self.out).code == TRY_AGAIN
        assert self.everything() == before

    @precondition(lambda self: self.setting)
    @rule()
    def verify(self) -> None:
        before, lost = files_of(self.disk), lost_blocks(self.out, self.expected[self.begun()])
        code = run_here("verify", self.out).code
        if lost:
            assert code == QUARANTINED
        elif not self.damaged and self.out.exists():
            assert code == (COMPLETE if len(done_blocks(self.out)) == N_BLOCKS else TRY_AGAIN)
        assert files_of(self.disk) == before

    @precondition(lambda self: self.setting and self.out.exists())
    @rule()
    def repair_and_resume(self) -> None:
        assert run_here("verify", self.out, "--repair", "-q").code in {COMPLETE, TRY_AGAIN}
        assert run_here("resume", self.out, *HERE, "-q").code == COMPLETE
        assert run_here("verify", self.out, "-q").code == COMPLETE
        assert files_of(self.out) == self.expected[self.begun()]
        self.damaged = set()

    @precondition(lambda self: self.setting)
    @rule()
    def ask_for_the_status(self) -> None:
        before = files_of(self.disk)
        assert json.loads(run_here("status", self.out, "--json").stdout)["n_done"] == len(done_blocks(self.out))
        assert files_of(self.disk) == before

    # What happens to it

    @precondition(lambda self: self.setting)
    @rule(step=st.integers(0, N_STEPS), setting=st.sampled_from(["16", "32"]), overwrite=st.booleans())
    def crash(self, step: int, setting: str, overwrite: bool) -> None:
        setting = setting if overwrite else self.begun()
        copy = self.folder / "copy"

        def take(number: int, _step: object) -> None:
            if number == step:
                shutil.copytree(self.disk, copy)

        with Watch(self.disk, before=take):
            assert self.segment(setting, *(["--overwrite"] if overwrite else [])) == COMPLETE
        if copy.exists():
            shutil.rmtree(self.disk)
            copy.rename(self.disk)
        if self.setting is None:  # between the old and the new run: who overwrites goes on to do so
            assert self.segment(setting, "--overwrite") == COMPLETE

    @precondition(lambda self: self.setting)
    @rule(kind=st.sampled_from(sorted(FILES)), data=st.data())
    def damage_a_chunk(self, kind: str, data: st.DataObject) -> None:
        done = {key: block for block, keys in done_blocks(self.out).items() for key in keys if (self.out / key).exists()}
        if not done:
            return
        key = data.draw(st.sampled_from(sorted(done)))
        content = (self.out / key).read_bytes()
        changed = FILES[kind](content, data.draw(st.randoms(use_true_random=False))) if len(content) > 1 else None
        if changed is None:
            (self.out / key).unlink()
        else:
            (self.out / key).write_bytes(changed)
        self.damaged.add(done[key])

    @precondition(lambda self: self.journal.exists())
    @rule(n_bytes=st.integers(1, 700))
    def tear_the_journal(self, n_bytes: int) -> None:
        content = self.journal.read_bytes()
        self.journal.write_bytes(content[: max(0, len(content) - n_bytes)])

    @precondition(lambda self: journal_blocks(self.out))
    @rule(kind=st.sampled_from(["twice", "foreign", "noise"]), data=st.data())
    def add_a_line(self, kind: str, data: st.DataObject) -> None:
        lines = [line for line in self.journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        line = data.draw(st.sampled_from(lines))
        if kind == "foreign":
            line = line.replace(json.loads(line)["run"].encode(), b"0123456789ab") if line.startswith(b"{") else line
        elif kind == "noise":
            line = data.draw(st.binary(max_size=60)).replace(b"\n", b"") + b"\n"
        self.journal.write_bytes(b"".join([*lines, line]))

    # What must hold

    @invariant()
    def what_counts_as_done_is_there_unless_it_was_damaged_since(self) -> None:
        if self.setting:
            lost = set(lost_blocks(self.out, self.expected[self.setting]))
            assert lost <= self.damaged
            done = done_blocks(self.out)
            self.damaged &= lost | (self.damaged - done.keys())

    @invariant()
    def nothing_else_is_written(self) -> None:
        assert files_of(self.folder / "job") == self.inputs
        ours = {self.out.name, run_folder(self.out).name}
        left = {path.name for path in self.disk.iterdir()} - ours
        assert all(name.startswith("out.zarr.") and name.endswith(".partial") for name in left), "only what a crash left"

    def teardown(self) -> None:
        if self.setting and self.out.exists():
            self.repair_and_resume()
            assert {path.name for path in self.disk.iterdir()} == {self.out.name, run_folder(self.out).name}
        remove_run(self.out)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=_n_lives or 8,
    stateful_step_count=30 if _n_lives else 12,
    derandomize=not _n_lives,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
