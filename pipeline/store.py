"""Where do results go, and how do they come back? The only door to zarr.

``create_store`` makes the whole group at once, ``write_block`` writes the chunks of one block durably and
hands out receipts, ``read_array`` reads a window. Many processes may write one store at a time, since no two
blocks share a chunk.

::

    OUT.zarr/   0/   labels (y,x)   confidence (y,x)   [probabilities (class,y,x)]   x   y   spatial_ref
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline import conventions
from pipeline.durable_file import PARTIAL_SUFFIX, held_directory, make_directory_durably, name_partial, sync_directory
from pipeline.durable_store import DurableStore, StrictStore
from pipeline.errors import StoreError, WindowError
from pipeline.georef import Georef
from pipeline.labels import NODATA_LABEL
from pipeline.network.spec import ClassSpec
from pipeline.receipt import ChunkReceipt, check_receipt
from pipeline.store_layout import StoreLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.window import Window

__all__ = [
    "ChunkReceipt",
    "StoreLayout",
    "check_receipt",
    "create_store",
    "is_store",
    "open_layout",
    "open_reader",
    "read_array",
    "read_coordinate",
    "read_labels",
    "remove_partials",
    "remove_store",
    "write_block",
]

_OURS = "atrous"
"""Root attribute by which a store of ours is known; it holds the layout."""
_LAYOUT_VERSION = 1
_FILL_VALUES = {"labels": NODATA_LABEL, "confidence": 0, "probabilities": 0}
_N_REMOVALS = 20
"""Tries to remove a directory in which files appear meanwhile."""
_HINTS = {
    errno.ENOSPC: "free some space and run again; what is written so far is kept",
    errno.EDQUOT: "the quota is used up; free some space and run again",
    errno.EACCES: "choose a directory that you may write to",
    errno.EPERM: "choose a directory that you may write to",
    errno.EROFS: "the file system is read-only; choose another directory",
}


def create_store(path: Path, layout: StoreLayout) -> None:
    """Create the group and its arrays, without any block, at ``path``; all of it or nothing.

    Raises
    ------
    StoreError
        Something is at ``path`` already, or nothing can be written there.
    """
    if path.exists() or path.is_symlink():
        what = "an output" if is_store(path) else "something that is no output of atrous"
        raise StoreError(f"{path} is {what} already; a new output needs a path of its own, choose another or remove it")
    partial = name_partial(path)
    try:
        make_directory_durably(path.parent)
        try:
            _write_metadata(partial, layout)
            _publish_store(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _cannot("create", path, error) from error


def _publish_store(partial: Path, path: Path) -> None:
    """Give a new store its name, durably or not at all."""
    partial.rename(path)
    try:
        sync_directory(path.parent)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise


def is_store(path: Path) -> bool:
    """Tell whether ``path`` is an output of ours, whole or damaged."""
    try:
        return _OURS in _read_root(path)
    except StoreError:
        return False


def open_layout(path: Path) -> StoreLayout:
    """Return what ``create_store`` was given for the store at ``path``.

    Raises
    ------
    StoreError
        There is no store, it is not ours, of a newer version, or damaged.
    """
    attributes = _read_root(path)
    if _OURS not in attributes:
        raise StoreError(f"{path} is a Zarr group that atrous did not write; give an output of `atrous segment`")
    ours = attributes[_OURS]
    try:
        _check_version(path, ours["version"])
        layout = _layout_from_dict(ours, attributes["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"the layout in {path}/zarr.json is damaged ({error!r}); run the job again into a new path") from error
    for name in layout.array_names:
        if not (path / "0" / name / "zarr.json").is_file():
            raise StoreError(f"{path} has lost its array 0/{name}; run the job again into a new path")
    return layout


def write_block(
    path: Path,
    window: Window,
    arrays: Mapping[str, NDArray[np.uint8]],
    *,
    level: int = 0,
    check_ours: Callable[[], None] = lambda: None,
) -> tuple[ChunkReceipt, ...]:
    """Write all arrays of one block durably and return a receipt for each file, sorted by key.

    A store that takes the place of this one after ``check_ours`` is not written to: this one's directory is held before.

    Parameters
    ----------
    path
        Root of the store.
    window
        What the block owns, in pixels of the level: from a chunk's (shard's) corner to another's or to the
        scene's edge.
    arrays
        ``labels`` and ``confidence``: (height, width) u1; ``probabilities``, where the store keeps them:
        (classes, height, width) u1.
    level
        Which resolution, 0 is the full one.
    check_ours
        Raises where the store at ``path`` is not the one that the block belongs to.

    Raises
    ------
    WindowError
        The window cuts a chunk that another block would write too, or lies outside the scene.
    StoreError
        The store is not there or does not hold those arrays, or a file cannot be written; the block is then
        to be written again.
    """
    try:
        with held_directory(path) as held:
            check_ours()
            store = DurableStore(held)
            targets = _open_targets(store, path, window, arrays, level=level)
            for name, target in targets.items():
                target[(..., *window.to_slices())] = arrays[name]
            store.raise_failure()
    except StoreError:
        raise
    except OSError as error:
        raise _cannot("write", path, error) from error
    return tuple(sorted(store.receipts, key=lambda receipt: receipt.key))


def read_labels(path: Path, window: Window, *, level: int = 0) -> NDArray[np.uint8]:
    """Return the labels of a window: (height, width) u1, 255 at nodata and where no block was written yet."""
    return read_array(path, "labels", window, level=level)


def read_array(path: Path, name: str, window: Window, *, level: int = 0) -> NDArray[np.uint8]:
    """Return a window of one array, (height, width) or (classes, height, width) u1.

    Where no block was written yet it holds the array's fill value.

    Raises
    ------
    WindowError
        The window lies partly outside the scene.
    StoreError
        There is no such array, or a chunk of it is damaged.
    """
    return open_reader(path, name, level=level)(window)


def open_reader(path: Path, name: str, *, level: int = 0) -> Callable[[Window], NDArray[np.uint8]]:
    """Return what reads windows of one array as ``read_array`` does; for many windows, since opening takes as long as a small one."""
    try:
        array = zarr.open_array(StrictStore(path, read_only=True), path=f"{level}/{name}", mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} has no readable array {level}/{name}; give the path of an output of atrous") from error

    def read(window: Window) -> NDArray[np.uint8]:
        _check_inside(window, array.shape[-2:])
        try:
            return np.asarray(array[(..., *window.to_slices())])
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"{level}/{name} in {path} is damaged within {window} ({error}); "
                "`atrous verify --repair` finds and removes what is damaged, and `atrous resume` writes it again"
            ) from error

    return read


def read_coordinate(path: Path, name: str, *, level: int = 0) -> NDArray[Any]:
    """Return all of ``x``, ``y`` or ``spatial_ref``; StoreError where it is not there or damaged."""
    try:
        return np.asarray(zarr.open_array(StrictStore(path, read_only=True), path=f"{level}/{name}", mode="r")[...])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"{path} has no readable array {level}/{name} ({error}); run the job again into a new path") from error


def remove_store(path: Path) -> None:
    """Remove an output of ours; anything else is refused. A crash leaves all of it under its name or none."""
    if not is_store(path):
        raise StoreError(f"{path} is no output of atrous and will not be removed; remove it yourself if that is meant")
    doomed = name_partial(path)
    try:
        path.rename(doomed)
        sync_directory(path.parent)
        _remove_tree(doomed)
    except OSError as error:
        raise _cannot("remove", path, error) from error


def _remove_tree(doomed: Path) -> None:
    """Remove a directory into which an orphan of a dead client may be writing its last block."""
    for _ in range(_N_REMOVALS):
        try:
            shutil.rmtree(doomed)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                raise
        if not doomed.exists():
            return
    shutil.rmtree(doomed)


def remove_partials(path: Path) -> int:
    """Remove what killed writers left unfinished in and beside ``path``, while nobody writes; return the count of files.

    Beside it lie, under names of their own, stores that were being made or removed.
    """
    strays = [Path(folder, name) for folder, _, names in os.walk(path) for name in names if name.endswith(PARTIAL_SUFFIX)]
    try:
        for file in strays:
            file.unlink(missing_ok=True)
        for name in _partials_of(path):
            _remove_tree(path.with_name(name))
    except OSError as error:
        raise _cannot("remove what killed writers left in", path, error) from error
    return len(strays)


def _partials_of(path: Path) -> list[str]:
    """List the directories beside ``path`` that are unfinished stores of its name."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{32}" + re.escape(PARTIAL_SUFFIX))
    with os.scandir(path.parent) as entries:
        return [entry.name for entry in entries if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]


def _write_metadata(root: Path, layout: StoreLayout) -> None:
    store = DurableStore(root)
    attributes = conventions.root_attributes(layout) | {_OURS: _layout_to_dict(layout)}
    group = zarr.create_group(store, zarr_format=3, attributes=attributes)
    level = group.create_group("0", attributes=conventions.level_attributes(layout))
    _create_labels(level, layout)
    _create_coordinates(level, layout)
    store.raise_failure()


def _create_labels(level: zarr.Group, layout: StoreLayout) -> None:
    attributes = {
        "labels": conventions.labels_attributes(layout),
        "confidence": conventions.confidence_attributes(layout),
        "probabilities": conventions.probabilities_attributes(layout),
    }
    for name in layout.array_names:
        # One class per chunk: whoever looks at one class reads no other. A shard holds all classes: it is
        # one block's.
        n_classes = (len(layout.classes),) if name == "probabilities" else ()
        level.create_array(
            name,
            shape=(*n_classes, layout.height, layout.width),
            chunks=(*(1 for _ in n_classes), layout.chunk, layout.chunk),
            shards=(*n_classes, layout.shard, layout.shard) if layout.shard else None,
            dtype="uint8",
            fill_value=_FILL_VALUES[name],
            compressors=_compressors(),
            dimension_names=(*("class" for _ in n_classes), "y", "x"),
            attributes=attributes[name],
        )


def _create_coordinates(level: zarr.Group, layout: StoreLayout) -> None:
    georef = layout.georef
    if conventions.has_spatial_ref(georef):
        scalar = level.create_array(
            conventions.SPATIAL_REF,
            shape=(),
            dtype="int64",
            fill_value=0,
            dimension_names=(),
            attributes=conventions.spatial_ref_attributes(georef),
        )
        scalar[...] = 0
    # A rotated grid has no 1-D coordinates; the transform says it all.
    for axis, centres in (("x", georef.x_centres(layout.width)), ("y", georef.y_centres(layout.height))):
        if centres is not None:
            coordinate = level.create_array(
                axis,
                shape=centres.shape,
                chunks=centres.shape,
                dtype="float64",
                fill_value=float("nan"),
                compressors=_compressors(),
                dimension_names=(axis,),
                attributes=conventions.axis_attributes(georef, axis),
            )
            coordinate[:] = centres


def _compressors() -> list[ZstdCodec]:
    # The checksum catches flipped bits, which plain zstd lets through now and then.
    return [ZstdCodec(level=3, checksum=True)]


def _layout_to_dict(layout: StoreLayout) -> dict[str, Any]:
    plain = {name: getattr(layout, name) for name in ("height", "width", "chunk", "shard", "probabilities")}
    classes = [asdict(one) for one in layout.classes]
    return {"version": _LAYOUT_VERSION, **plain, "classes": classes, "georef": layout.georef.to_dict()}


def _layout_from_dict(values: dict[str, Any], provenance: dict[str, Any]) -> StoreLayout:
    given = {name: value for name, value in values.items() if name not in {"version", "classes", "georef"}}
    return StoreLayout(
        **given,
        classes=tuple(ClassSpec(**one) for one in values["classes"]),
        georef=Georef.from_dict(values["georef"]),
        provenance=provenance,
    )


def _check_version(path: Path, version: int) -> None:
    if version != _LAYOUT_VERSION:
        raise StoreError(f"{path} has layout version {version}; this atrous knows {_LAYOUT_VERSION}, use the one it is of")


def _read_root(path: Path) -> dict[str, Any]:
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        attributes = root["attributes"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} is no Zarr group; give the path of an output of `atrous segment`") from error
    except OSError as error:
        raise StoreError(f"{path}/zarr.json cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}/zarr.json is damaged ({error!r}); run the job again into a new path") from error
    if not isinstance(attributes, dict) or root.get("node_type") != "group":
        raise StoreError(f"{path} is no Zarr v3 group; give the path of an output of `atrous segment`")
    return attributes


def _open_targets(
    store: DurableStore, path: Path, window: Window, arrays: Mapping[str, NDArray[np.uint8]], *, level: int
) -> dict[str, zarr.Array[Any]]:
    """Open the arrays that a block is written to, where they and the block fit together."""
    _check_names(path, open_layout(path), arrays)
    targets = {name: _open_for_writing(store, path, f"{level}/{name}") for name in arrays}
    for name, target in targets.items():
        _check_alignment(window, target)
        _check_pixels(name, arrays[name], (*target.shape[:-2], *window.shape))
    return targets


def _open_for_writing(store: DurableStore, path: Path, name: str) -> zarr.Array[Any]:
    try:
        array = zarr.open_array(store, path=name, mode="r+")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} has no array {name}; run the job again into a new path") from error
    # A chunk that equals the fill value must leave a file too, or nobody can tell it from a lost one. zarr
    # 3.1 ignores this setting in open_array, and 3.1.3 has no with_config, which does the same as this line.
    config: Any = {"order": "C", "write_empty_chunks": True}
    return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path, config=config))


def _check_names(path: Path, layout: StoreLayout, arrays: Mapping[str, NDArray[np.uint8]]) -> None:
    if set(arrays) != set(layout.array_names):
        raise StoreError(
            f"a block with {', '.join(arrays) or 'nothing'} was given; {path} needs exactly {', '.join(layout.array_names)}"
        )


def _check_alignment(window: Window, array: zarr.Array[Any]) -> None:
    unit = (array.shards or array.chunks)[-1]
    height, width = array.shape[-2:]
    _check_inside(window, (height, width))
    starts_well = window.row_off % unit == 0 and window.col_off % unit == 0
    ends_well = window.row_end in {height, _floor(window.row_end, unit)} and window.col_end in {
        width,
        _floor(window.col_end, unit),
    }
    if not (starts_well and ends_well):
        raise WindowError(
            f"{window} cuts a piece of {unit} x {unit} px in two, and another block would write it too; "
            f"start at a multiple of {unit} px and end at one or at the edge of the {height} x {width} px"
        )


def _floor(value: int, unit: int) -> int:
    return value // unit * unit


def _check_inside(window: Window, shape: tuple[int, ...]) -> None:
    if window.clip((shape[0], shape[1])) != window:
        raise WindowError(f"{window} lies partly outside the {shape[0]} x {shape[1]} px of the output; clip it first")


def _check_pixels(name: str, pixels: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise StoreError(
            f"{name} of shape {pixels.shape} and type {pixels.dtype} was given; the block needs {shape} of type uint8"
        )


def _cannot(verb: str, path: Path, error: OSError) -> StoreError:
    hint = _HINTS.get(error.errno or 0, "check the path and the disk")
    return StoreError(f"cannot {verb} {path}: {error.strerror or error}; {hint}")
