"""What is a run, and is this still the same one? The folder ``OUT.zarr.run``: ``run.json``, journal, lock, list of failures.

``run.json`` is written once and never changed. Its fingerprint has named fields, so that a refusal can say which of them changed. Hard
fields decide the bytes: another value is another result. Soft fields (device, precision, library versions) may change a rounding.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.durable_file import discard, make_directory_durably, sync_directory
from pipeline.errors import LockedError, StoreError, StoreMismatchError
from pipeline.json_digest import json_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

FORMAT = 1
_LOOK_S = 0.2
_MISSING = "(absent)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaths:
    """Where the state of the run that makes ``out`` is kept."""

    out: Path
    """The Zarr group."""

    @property
    def folder(self) -> Path:
        """The folder beside the output; not inside it, where readers would stumble over it."""
        return self.out.with_name(self.out.name + ".run")

    @property
    def record(self) -> Path:
        """The fingerprint and all that a resume needs."""
        return self.folder / "run.json"

    @property
    def journal(self) -> Path:
        """The finished blocks."""
        return self.folder / "journal.jsonl"

    @property
    def lock(self) -> Path:
        """Locked while a client works on the output."""
        return self.folder / "lock"

    @property
    def failures(self) -> Path:
        """The quarantined blocks, as polygons."""
        return self.folder / "failed.geojson"

    @property
    def scratch(self) -> Path:
        """The staged copy of a scene without random access."""
        return self.folder / "staged.tif"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What ``run.json`` holds."""

    run_id: str
    """Random; tells the blocks of this run from those of an overwritten one."""
    hard: dict[str, Any]
    """Named fields that decide the bytes."""
    soft: dict[str, Any]
    """Named fields that may change a rounding."""
    spec: dict[str, Any]
    """`SegmentSpec.to_dict`."""
    scene: dict[str, Any]
    """`SceneInfo.to_dict` of the original scene."""

    def to_json(self) -> str:
        """Return the file's text, with a digest of the rest."""
        fields = {name: getattr(self, name) for name in ("run_id", "hard", "soft", "spec", "scene")}
        return json.dumps({"format": FORMAT, "digest": json_digest(fields), **fields}, indent=1, sort_keys=True) + "\n"


def new_run_id() -> str:
    """Return twelve random hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def read_record(paths: RunPaths) -> RunRecord:
    """Read ``run.json``; StoreError where there is none or it is damaged."""
    try:
        data = json.loads(paths.record.read_text())
    except FileNotFoundError as cause:
        raise StoreError(
            f"{paths.out} has no state of a run ({paths.record} is missing); give the output of an 'atrous segment', or start one"
        ) from cause
    except (OSError, ValueError) as cause:
        raise StoreError(f"{paths.record} cannot be read: {cause}; start again with --overwrite") from cause
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise StoreError(f"{paths.record} has another format than {FORMAT}; use the version of atrous that wrote it")
    digest = data.pop("digest", None)  # the first versions wrote none
    if digest is not None and digest != json_digest(data):
        raise StoreError(f"{paths.record} is damaged: its digest is not that of what it holds; start again with --overwrite")
    try:
        return RunRecord(**data)
    except TypeError as cause:
        raise StoreError(f"{paths.record} is damaged: {cause}; start again with --overwrite") from cause


def write_record(paths: RunPaths, record: RunRecord) -> None:
    """Write ``run.json`` durably, and only if there is none yet."""
    temporary = paths.record.with_suffix(f".{record.run_id}.partial")
    try:
        with temporary.open("w") as file:
            file.write(record.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, paths.record)  # fails where the name exists, unlike a rename
        temporary.unlink()
        sync_directory(paths.folder)
    except OSError as cause:
        discard(temporary)
        raise StoreError(f"the state of the run cannot be written to {paths.folder}: {cause}") from cause


def remove_state(*files: Path) -> None:
    """Remove files of the state of a run, in that order, where they are there."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as cause:
            raise StoreError(f"{file} cannot be removed: {cause}; run the same command again") from cause


@contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """Hold the run's lock; LockedError where another process does. The kernel frees it when the holder dies."""
    with _locked_file(paths) as file:
        try:
            # A run that was killed may have made the output and this folder, and not have come to this.
            sync_directory(paths.folder.parent)
        except OSError as cause:
            raise StoreError(f"the folder {paths.folder.parent} cannot be written: {cause}") from cause
        _sign(file)
        yield


@contextmanager
def passing_while_locked(paths: RunPaths) -> Iterator[None]:
    """Raise LockedError for a StoreError while another process works on the output: it may be half made, or half removed."""
    try:
        yield
    except StoreError as cause:
        if is_locked(paths):
            raise LockedError(f"{paths.out} is being worked on by another process; wait until it ends, and run again") from cause
        raise


def _locked_file(paths: RunPaths) -> TextIO:
    """Open and lock the file that has the lock's name: a holder whose run could not begin has removed its own."""
    while True:
        file = _open_lock(paths)
        try:
            _take(file, paths)
            if paths.lock.exists() and os.path.samestat(os.fstat(file.fileno()), paths.lock.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _open_lock(paths: RunPaths) -> TextIO:
    try:
        make_directory_durably(paths.folder)
    except OSError as cause:
        raise StoreError(f"the folder {paths.folder} cannot be written: {cause}") from cause
    try:
        return paths.lock.open("a+")
    except FileNotFoundError as cause:
        raise LockedError(f"{paths.folder} was removed by another process; run again") from cause
    except OSError as cause:
        raise StoreError(f"the folder {paths.folder} cannot be written: {cause}") from cause


def _take(file: TextIO, paths: RunPaths) -> None:
    try:
        _lock(file)
    except BlockingIOError as cause:
        file.seek(0)
        raise LockedError(
            f"{paths.out} is being worked on by {file.read().strip() or 'another process'}; wait until it ends, and run again"
        ) from cause
    except OSError as cause:
        raise StoreError(f"{paths.lock} cannot be locked: {cause}; choose a file system that can lock files") from cause


def _lock(file: TextIO) -> None:
    """Take the lock; a ``status`` that looks at it holds it for a moment, so one refusal is not believed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_LOOK_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sign(file: TextIO) -> None:
    """Write who holds the lock; on a full disk the lock holds without it."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def is_locked(paths: RunPaths) -> bool:
    """Tell whether a process works on the output now; changes nothing."""
    try:
        with paths.lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_same(paths: RunPaths, old: RunRecord, new: RunRecord) -> list[str]:
    """Raise StoreMismatchError where a hard field changed; return one line per changed soft field.

    A moved or copied scene keeps its run: with another path the modification time is no evidence, and the samples of its bytes decide.
    """
    hard = changed(old.hard, new.hard)
    soft = changed(old.soft, new.soft)
    if "input.uri" in soft and "input.mtime_ns" in hard:
        soft["input.mtime_ns"] = hard.pop("input.mtime_ns")
    if hard:
        listing = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in hard.items())
        gone = "" if paths.out.exists() else f" and is not there any more, but its state is ({paths.folder})"
        raise StoreMismatchError(
            f"{paths.out} was made by another run{gone}: {listing}. Use the same input, model and settings to resume, another OUT to keep "
            "both, or --overwrite to start again"
        )
    return [f"{name} was {was}, is {now}" for name, (was, now) in soft.items()]


def changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {name: (old value, new value)} of all fields that differ as JSON (there NaN equals NaN, and a tuple a list)."""
    names = [*old, *(name for name in new if name not in old)]
    pairs = {name: (old.get(name, _MISSING), new.get(name, _MISSING)) for name in names}
    return {name: (was, now) for name, (was, now) in pairs.items() if json.dumps(was) != json.dumps(now)}
