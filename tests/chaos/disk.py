"""What does a run do to the disk, one step after another? Watched in this process; any step can be made to fail.

::

    with Watch(folder) as seen: run_here(...)                   seen.steps: create, write, fsync, rename, link, unlink, mkdir ...
    with Watch(folder, before=fail): run_here(...)              fail(number, step) may raise OSError in the place of the step
"""

from __future__ import annotations

import builtins
import io
import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Callable

_PATHS = {"mkdir": 1, "rmdir": 1, "unlink": 1, "remove": 1, "rename": 2, "replace": 2, "link": 2}
"""Functions of `os`, with the number of paths they take."""
_KINDS = {"remove": "unlink", "replace": "rename"}
_HANDLES = ("fsync", "ftruncate", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call that changes a disk, or reads from it."""

    kind: str
    """``create``, ``write``, ``truncate``, ``fsync``, ``rename``, ``link``, ``unlink``, ``mkdir``, ``rmdir`` or ``read``."""
    path: Path
    """Of the file or directory."""
    other: Path | None = None
    """The new name, for ``rename`` and ``link``."""
    data: bytes = b""
    """What was written."""
    offset: int = 0
    """Where it was written; the new length, for ``truncate``."""


class Watch:
    """Notes every step below a folder while it is entered; steps of several threads come one after another."""

    def __init__(self, folder: Path, *, before: Callable[[int, Step], None] = lambda _number, _step: None) -> None:
        self.steps: list[Step] = []
        """What happened, in order; a step that was made to fail is not among them."""
        self._folder = folder.resolve()
        self._before = before
        self._n_asked = 0
        self._written: set[Path] = set()
        self._lock = threading.RLock()
        self._patches = ExitStack()
        self._real = {name: getattr(os, name) for name in (*_PATHS, *_HANDLES)} | {"open": io.open}

    def __enter__(self) -> Self:
        for name in (*_PATHS, *_HANDLES):
            self._patches.enter_context(patch.object(os, name, self._by_path(name) if name in _PATHS else self._by_handle(name)))
        for module in (io, builtins):
            self._patches.enter_context(patch.object(module, "open", self._open))
        return self

    def __exit__(self, *_error: object) -> None:
        self._patches.close()

    def holds(self, path: Path | None) -> bool:
        """Tell whether a path lies in the folder."""
        return path is not None and path.is_relative_to(self._folder)

    def do(self, step: Step, action: Callable[[], Any]) -> Any:
        """Do what a step is, unless it is made to fail."""
        with self._lock:
            number, self._n_asked = self._n_asked, self._n_asked + 1
            self._before(number, step)
            result = action()
            self.steps.append(step)
            return result

    def _by_path(self, name: str) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            handles = [options.get(key) for key in ("dir_fd", "src_dir_fd", "dst_dir_fd")]
            paths = [_real_path(path, next((h for h in handles if h is not None), None)) for path in given[: _PATHS[name]]]
            if not self.holds(paths[0]):
                return self._real[name](*given, **options)
            step = Step(kind=_KINDS.get(name, name), path=paths[0], other=paths[1] if len(paths) > 1 else None)
            return self.do(step, lambda: self._real[name](*given, **options))

        return call

    def _by_handle(self, name: str) -> Callable[..., Any]:
        def call(handle: int, *given: Any) -> Any:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if not self.holds(path):
                return self._real[name](handle, *given)
            if name == "fsync":
                self._adopt(path)
            step = {
                "fsync": lambda: Step(kind="fsync", path=path),
                "ftruncate": lambda: Step(kind="truncate", path=path, offset=given[0]),
                "write": lambda: Step(kind="write", path=path, data=bytes(given[0]), offset=os.fstat(handle).st_size),
            }[name]()
            return self.do(step, lambda: self._real[name](handle, *given))

        return call

    def _adopt(self, path: Path) -> None:
        """Note what a library wrote that is not Python: when the file is synced, at the latest, it is there."""
        if path.is_file() and path not in self._written and path.name.endswith(".partial"):
            self._written.add(path)
            with self._real["open"](path, "rb") as file:
                content = file.read()
            self.steps += [Step(kind="create", path=path), Step(kind="write", path=path, data=content)]

    def _open(self, file: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
        path = None if isinstance(file, int) else _real_path(file, None)
        if not self.holds(path):
            return self._real["open"](file, mode, *given, **options)
        makes = "w" in mode or "x" in mode or ("a" in mode and not path.exists())
        kind = "create" if makes else "read"
        self._written.add(path)
        opened = self.do(Step(kind=kind, path=path), lambda: self._real["open"](file, mode, *given, **options))
        return opened if mode in {"r", "rb"} else _File(self, opened, path)


class _File:
    """A file that is open for writing."""

    def __init__(self, watch: Watch, file: Any, path: Path) -> None:
        self._watch, self._file, self._path = watch, file, path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        self._file.flush()
        end = os.fstat(self._file.fileno()).st_size
        content = data.encode() if isinstance(data, str) else bytes(data)

        def act() -> int:
            n_written = self._file.write(data)
            self._file.flush()
            return int(n_written)

        return int(self._watch.do(Step(kind="write", path=self._where(), data=content, offset=end), act))

    def truncate(self, size: int) -> int:
        step = Step(kind="truncate", path=self._where(), offset=size)
        return int(self._watch.do(step, lambda: self._file.truncate(size)))

    def _where(self) -> Path:
        """Return the file's name now; it may have been renamed."""
        return Path(f"/proc/self/fd/{self._file.fileno()}").readlink()


def _real_path(path: Any, handle: int | None) -> Path:
    """Return a path without links in its directories, of which one may be given as a handle."""
    given = Path(os.fsdecode(path))
    if handle is not None:
        given = Path(f"/proc/self/fd/{handle}").readlink() / given
    return given.parent.resolve() / given.name
