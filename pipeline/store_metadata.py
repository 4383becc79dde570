"""Is what surrounds the pixels as it was made? Groups, arrays and coordinates are made anew beside the output and compared.

No block writes them, so no receipt names them; but they follow from the layout alone. Attributes and files that somebody added do no
harm.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.durable_file import make_directory_durably, replace_durably
from pipeline.errors import StoreError
from pipeline.store import create_store, read_coordinate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store_layout import StoreLayout

_STABLE = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "fill_value")
"""What every version of zarr writes alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A file of metadata or coordinates that is not as it was made."""

    key: str
    """Path of the file relative to the store's root."""
    reason: str
    """What is wrong, beginning with a word for it and a colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataCheck:
    """What was found of everything but the blocks."""

    keys: frozenset[str]
    """The files that ``create_store`` makes."""
    mismatches: tuple[Mismatch, ...]
    """Those that are not as they were made, sorted."""


def check_metadata(path: Path, layout: StoreLayout, *, exact: bool = True) -> MetadataCheck:
    """Compare everything but the blocks in the store at ``path`` with what ``layout`` asks for.

    Parameters
    ----------
    path
        Root of the store.
    layout
        What ``create_store`` was given.
    exact
        Whether these versions of atrous and zarr made it; others may word the metadata in another way, and only size, type, chunks and
        fill value are compared then.
    """
    with _made(layout) as twin:
        reasons = {key: _difference(path, twin, key, exact=exact) for key in _files(twin)}
    wrong = [Mismatch(key=key, reason=reason) for key, reason in reasons.items() if reason is not None]
    return MetadataCheck(keys=frozenset(reasons), mismatches=tuple(wrong))


def restore_metadata(path: Path, layout: StoreLayout, keys: list[str]) -> None:
    """Write the files ``keys`` of the store at ``path`` anew, as ``create_store`` would."""
    if not keys:
        return
    with _made(layout) as twin:
        for key in keys:
            try:
                make_directory_durably((path / key).parent)
                replace_durably(path / key, (twin / key).read_bytes())
            except OSError as error:
                raise StoreError(f"cannot write {path / key}: {error.strerror or error}; check its permissions") from error


@contextmanager
def _made(layout: StoreLayout) -> Iterator[Path]:
    """Give a store of that layout without any block."""
    with tempfile.TemporaryDirectory(prefix="atrous-") as folder:
        twin = Path(folder) / "twin.zarr"
        create_store(twin, layout)
        yield twin


def _files(twin: Path) -> list[str]:
    return sorted(str(file.relative_to(twin)) for file in twin.rglob("*") if file.is_file())


def _difference(path: Path, twin: Path, key: str, *, exact: bool) -> str | None:
    expected = (twin / key).read_bytes()
    try:
        found = (path / key).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return f"missing: {key} is not there"
    except OSError as error:
        return f"unreadable: {key}: {error.strerror}"
    if found == expected:
        return None
    if key.endswith("zarr.json"):
        return _difference_of_metadata(key, found, json.loads(expected), exact=exact)
    return _difference_of_values(path, twin, key)


def _difference_of_metadata(key: str, found: bytes, expected: dict[str, Any], *, exact: bool) -> str | None:
    try:
        ours = json.loads(found)
        attributes = ours["attributes"]
        names = [name for name in expected if name != "attributes"] if exact else [name for name in _STABLE if name in expected]
        wrong = {name: (ours.get(name), expected[name]) for name in names if ours.get(name) != expected[name]}
        if exact:
            wrong |= {
                name: (attributes.get(name), value)
                for name, value in expected["attributes"].items()
                if attributes.get(name) != value
            }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"metadata: {key} is damaged ({error!r})"
    if not wrong:
        return None
    return f"metadata: {key}: " + "; ".join(f"{name} is {is_!r}, {was!r} was written" for name, (is_, was) in wrong.items())


def _difference_of_values(path: Path, twin: Path, key: str) -> str | None:
    """Another version of the codec may give other bytes for the same coordinates."""
    name = key.split("/")[1]
    try:
        same = np.array_equal(read_coordinate(path, name), read_coordinate(twin, name))
    except StoreError as error:
        return f"decode: {key}: {error.__cause__}"
    return None if same else f"coordinates: {key} has other values than were written"
