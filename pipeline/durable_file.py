"""How does no crash leave half a file under its final name? Temporary name, sync, rename, sync.

::

    bytes -> NAME.<uuid>.partial -> fsync -> rename to NAME -> fsync of the directory
"""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTIAL_SUFFIX = ".partial"
"""What unfinished files and directories end in; zarr uses the same."""


def replace_durably(target: Path, data: bytes) -> None:
    """Write ``data`` to ``target``, whole and synced, or leave no trace; the directory must exist."""
    partial = name_partial(target)
    try:
        partial.write_bytes(data)
        publish(partial, target)
    except BaseException:
        discard(partial)
        raise


def publish(partial: Path, target: Path) -> None:
    """Give the finished file ``partial`` the name ``target`` on the same disk, in the place of any other."""
    _sync(partial)
    os.replace(partial, target)  # noqa: PTH105 - the tests watch the order of these calls
    sync_directory(target.parent)


def discard(partial: Path) -> None:
    """Remove a file that failed, where that can be done; what failed before is what is to be told."""
    with suppress(OSError):
        partial.unlink(missing_ok=True)


def make_directory_durably(directory: Path) -> None:
    """Make ``directory`` and what is missing above it, each synced into its parent."""
    if directory.is_dir():
        return
    make_directory_durably(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


@contextmanager
def held_directory(directory: Path) -> Iterator[Path]:
    """Give a name of ``directory`` that goes on to mean this one after another has taken its place; without /proc, its own name."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    held = Path(f"/proc/self/fd/{handle}")
    try:
        yield held if held.is_dir() else directory
    except Exception:
        os.close(handle)
        raise
    else:
        os.close(handle)
    # On Ctrl-C threads of zarr may still be writing: the handle stays open, or its number might come to mean another directory.


def name_partial(target: Path) -> Path:
    """Return a name beside ``target`` that nobody else uses, for the time until it is whole."""
    return target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` survive a power cut, where the file system can."""
    try:
        _sync(directory)
    except OSError as error:
        # Some network and FUSE file systems sync names by themselves and refuse to be asked.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
