"""Can an output be kept in this folder? All that a run does to its files is tried there, and what was made is removed.

::

    write -> rename over another -> sync file and folder -> hard link -> lock against another process -> room, kind of file system
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.durable_file import replace_durably
from workflows.findings import Finding, ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

_N_SYNCS = 5
_SLOW_SYNC_S = 0.1
_LITTLE_ROOM_BYTES = 2**30
_MOUNTS = Path("/proc/self/mounts")
_OTHER = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
"""What a second process tries: it fails where the lock of the first one holds."""

_SHARED = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "glusterfs",
        "gpfs",
        "lustre",
        "pvfs2",
        "virtiofs",
        "wekafs",
    )
)
_IN_MEMORY = frozenset(("tmpfs", "ramfs"))


def check_folder(folder: Path) -> list[Finding]:
    """Try in ``folder`` what a run does to files."""
    if not folder.is_dir():
        return [problem("folder", f"{folder} is no folder", "give one that exists: outputs are made in it")]
    trial = folder / f".atrous-doctor-{uuid.uuid4().hex}"
    try:
        trial.mkdir()
    except OSError as error:
        return [problem("folder", f"{folder} cannot be written: {error.strerror}", "choose another, or change its permissions")]
    try:
        return [*_try_files(trial), _room(folder), *_kind(folder)]
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def is_unwritable(findings: list[Finding]) -> bool:
    """Tell whether a folder is one in which no output can be made at all."""
    return any(found.topic == "folder" and found.state == "problem" for found in findings)


def _try_files(trial: Path) -> Iterator[Finding]:
    try:
        yield _try_durable_files(trial)
    except OSError as error:
        yield problem("folder", f"files in {trial.parent} cannot be written and synced: {error}", "choose another file system")
        return
    yield _try_hard_link(trial)
    yield _try_lock(trial / "lock")


def _try_durable_files(trial: Path) -> Finding:
    """Write a file over another one, synced, a few times."""
    started = time.perf_counter()
    for number in range(_N_SYNCS):
        replace_durably(trial / "file", bytes([number]))
    seconds = (time.perf_counter() - started) / _N_SYNCS
    if (found := (trial / "file").read_bytes()) != bytes([_N_SYNCS - 1]):
        return problem(
            "folder", f"a file that was replaced still holds {found!r}", "choose another file system: this one loses writes"
        )
    text = f"{trial.parent}: files are written, synced and renamed in {1000 * seconds:.1f} ms each"
    if seconds > _SLOW_SYNC_S:
        return warning("folder", text, "every chunk is synced twice: use large chunks or --shard, or a faster disk")
    return ok("folder", text)


def _try_hard_link(trial: Path) -> Finding:
    """Link to a name that is free and to one that is not: this is how only one of two runs begins."""
    advice = "choose another file system: the state of a run cannot be begun on this one"
    try:
        os.link(trial / "file", trial / "link")
    except OSError as error:
        return problem("links", f"no hard links: {error.strerror}", advice)
    with contextlib.suppress(FileExistsError):
        os.link(trial / "file", trial / "link")
        return problem("links", "a hard link replaced another file", advice)
    return ok("links", "a hard link takes a free name only")


def _try_lock(path: Path) -> Finding:
    """Hold a lock while another process asks for it, and let it have it afterwards."""
    path.touch()
    advice = "choose another file system, or make sure yourself that one `atrous` at a time works on an output"
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return problem("lock", f"files cannot be locked: {error.strerror}", advice)
        if _another_gets(path):
            return problem("lock", "a lock of one process does not stop another", advice)
    if not _another_gets(path):
        return problem("lock", "a lock that was given up stays", advice)
    return ok("lock", "a lock of one process stops another on this machine")


def _another_gets(path: Path) -> bool:
    return subprocess.run([sys.executable, "-I", "-c", _OTHER, str(path)], capture_output=True, check=False).returncode == 0  # noqa: S603


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free"
    if free < _LITTLE_ROOM_BYTES:
        return warning("room", text, "`atrous plan` tells what an output needs")
    return ok("room", text)


def _kind(folder: Path) -> Iterator[Finding]:
    """Tell on what kind of file system a folder is, where the system says so."""
    kind = file_system(folder.resolve(), _MOUNTS.read_text() if _MOUNTS.exists() else "")
    if kind is None:
        return
    if kind in _SHARED or kind.startswith("fuse"):
        yield warning(
            "disk",
            f"{kind}: shared between machines, or run by a program. Locks were tried from this machine only",
            "let one machine at a time run `atrous` on an output, unless you know that flock holds between machines there",
        )
    elif kind in _IN_MEMORY:
        yield warning("disk", f"{kind}: in memory", "what is here is gone after a restart, and takes memory from workers")
    else:
        yield ok("disk", kind)


def file_system(path: Path, mounts: str) -> str | None:
    """Return the kind of file system that the absolute ``path`` is on, from the text of ``/proc/mounts``; None where that does not tell."""
    found, deepest = None, -1
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].encode().decode("unicode_escape"))  # a blank is written \040
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            found, deepest = fields[2], len(point.parts)  # of two on one place, the later one covers the other
    return found
