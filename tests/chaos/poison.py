"""What does a block do to its neighbours that raises, dies, hangs or eats all memory, each time that it is tried?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faults import ALWAYS, Faults
from jobs import APART, QUARANTINED, ROOT, Job, command, done_blocks, lost_blocks, make_job, reference, run_folder
from tables import parser, publish

if TYPE_CHECKING:
    import argparse

KINDS = ("raises", "kills itself", "segfaults", "ends the interpreter", "hangs", "hangs and holds the GIL", "leaks memory")
SOME = ("raises", "kills itself", "hangs and holds the GIL")
POISON = {(0, 1), (1, 2), (3, 0)}
N_BLOCKS = 20
MEMORY_BYTES = 4 * 2**30
TIMEOUT_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How a run with three poison blocks of one kind ended."""

    kind: str
    """What they did."""
    code: int
    """Exit code."""
    n_innocent_lost: int
    """Other blocks that were not done, or not with the right bytes."""
    n_named: int
    """Poison blocks in ``failed.geojson``."""
    n_calls_of_innocent: int
    """How often other blocks were begun."""
    seconds: float
    """Wall time."""

    @property
    def is_kept(self) -> bool:
        """Whether all promises were kept."""
        return (self.code, self.n_innocent_lost, self.n_named) == (QUARANTINED, 0, len(POISON))


def attack(job: Job, kind: str, folder: Path, expected: dict[str, bytes]) -> Case:
    """Run a job with three poison blocks."""
    faults = Faults.make(folder / "faults", dict.fromkeys(POISON, (kind, ALWAYS)))
    out = folder / "out.zarr"
    started = time.monotonic()
    ended = subprocess.run(
        command(*job.segment(out, *APART, "-q", "--block-timeout", TIMEOUT_S)),
        env=faults.environment(memory_bytes=MEMORY_BYTES),
        capture_output=True,
        timeout=600,
        check=False,
        cwd=ROOT,
    )
    seconds = time.monotonic() - started
    listed = run_folder(out) / "failed.geojson"
    features = json.loads(listed.read_text())["features"] if listed.exists() else []
    named = {(item["properties"]["row"], item["properties"]["col"]) for item in features}
    n_right = len(done_blocks(out)) - len(lost_blocks(out, expected))
    return Case(
        kind=kind,
        code=ended.returncode,
        n_innocent_lost=N_BLOCKS - len(POISON) - n_right,
        n_named=len(named & POISON) if named == POISON else 0,
        n_calls_of_innocent=sum(n for block, n in faults.calls().items() if block not in POISON),
        seconds=seconds,
    )


def run(kinds: tuple[str, ...]) -> list[Case]:
    """Attack with every kind in turn."""
    cases = []
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), height=4 * 64 - 5, width=5 * 64 - 9)
        expected = reference(job)
        for number, kind in enumerate(kinds):
            cases.append(attack(job, kind, Path(name) / str(number), expected))
            print(cases[-1], file=sys.stderr, flush=True)  # noqa: T201
    return cases


def main(options: argparse.Namespace) -> int:
    """Print the table; 1 where a promise was broken."""
    cases = run(SOME if options.quick else KINDS)
    n_innocent = N_BLOCKS - len(POISON)
    publish(
        options,
        name="poison",
        columns=("three blocks of 20 that always", "other blocks lost", "named", "exit code", "calls of the other 17", "seconds"),
        rows=[
            (
                case.kind.replace("hangs", "hang").replace("kills itself", "kill their process"),
                f"{case.n_innocent_lost} of {n_innocent}",
                f"{case.n_named} of {len(POISON)}",
                case.code,
                case.n_calls_of_innocent,
                f"{case.seconds:.0f}",
            )
            for case in cases
        ],
    )
    return 0 if all(case.is_kept for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main(parser(__doc__ or "", command="poison.py").parse_args()))
