"""What did an earlier run leave that can be refined again? Its probabilities, where it kept them, is finished, and its scene is the same.

The journal of the run names every chunk file with length and checksum. Their digest says which probabilities these are, whatever the path,
without a pixel being read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SourceError, StoreError, StoreMismatchError
from pipeline.grid import Blocks
from pipeline.json_digest import json_digest
from pipeline.network.model_file import read_model_spec
from pipeline.network.models import find_model
from pipeline.scene import open_scene
from pipeline.spec import SegmentSpec
from pipeline.store import check_receipt, open_layout
from workflows.events import BlockReceipt
from workflows.fingerprint import hard_fields
from workflows.journal import latest, read_entries
from workflows.run_state import RunPaths, changed, read_record

if TYPE_CHECKING:
    from pipeline.network.spec import ModelSpec
    from pipeline.receipt import ChunkReceipt
    from pipeline.scene import SceneInfo
    from workflows.run_state import RunRecord

_ARRAY = "0/probabilities/"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A finished run whose probabilities can be read."""

    store: Path
    """The Zarr group."""
    spec: SegmentSpec
    """What was run, with the scene where it is now."""
    scene: SceneInfo
    """The scene's header, all bands."""
    model: ModelSpec
    """The model's metadata; its classes are those of the store."""
    sha256: str
    """Digest of the probabilities' chunk files."""


def open_stored(store: Path, *, scene: str | None = None) -> StoredRun:
    """Look at a finished output of `atrous segment --probabilities`; no pixel is read.

    Parameters
    ----------
    store
        The Zarr group.
    scene
        Where its scene is now; None: where it was.

    Raises
    ------
    StoreError
        There is no such output, it has no probabilities, it is not finished or damaged.
    SourceError
        The scene cannot be opened.
    StoreMismatchError
        The scene is not the one that was segmented.
    """
    layout = open_layout(store)
    if not layout.probabilities:
        raise StoreError(
            f"{store} holds no probabilities, only labels; they are needed to refine again: "
            "segment into a new path with --probabilities"
        )
    paths = RunPaths(out=store.absolute())
    record = read_record(paths)
    spec = SegmentSpec.from_dict(record.spec)
    chunks = _finished_chunks(
        paths, record, n_blocks=len(Blocks(shape=(layout.height, layout.width), block_px=spec.grid.block_px))
    )
    if scene is not None:
        spec = dataclasses.replace(spec, scene=dataclasses.replace(spec.scene, uri=scene))
    info = _same_scene(spec, record, moved=scene is not None)
    return StoredRun(
        store=paths.out,
        spec=spec,
        scene=info,
        model=dataclasses.replace(read_model_spec(find_model(spec.model_path)), classes=layout.classes),
        sha256=json_digest(sorted(dataclasses.astuple(chunk) for chunk in chunks)),
    )


def _finished_chunks(paths: RunPaths, record: RunRecord, *, n_blocks: int) -> list[ChunkReceipt]:
    """Return the receipts of all probability chunks; StoreError unless all blocks are finished and the files are there."""
    outcomes = latest(read_entries(paths.journal, run_id=record.run_id)).values()
    receipts = [outcome for outcome in outcomes if isinstance(outcome, BlockReceipt)]
    if len(receipts) != n_blocks:
        raise StoreError(
            f"{paths.out} has {len(receipts)} of {n_blocks} blocks finished; all are needed: run `atrous resume {paths.out}` first"
        )
    chunks = [chunk for receipt in receipts for chunk in receipt.chunks if chunk.key.startswith(_ARRAY)]
    reason = next((reason for chunk in chunks if (reason := check_receipt(paths.out, chunk))), None)
    if reason is not None:
        raise StoreError(
            f"{paths.out} is damaged: {reason}; run `atrous resume {paths.out}` first, which does damaged blocks again"
        )
    return chunks


def _same_scene(spec: SegmentSpec, record: RunRecord, *, moved: bool) -> SceneInfo:
    """Return the scene's header; StoreMismatchError where it is another scene than the recorded one."""
    if not Path(spec.scene.uri).exists():
        raise SourceError(f"the scene {spec.scene.uri} does not exist; the CRF is guided by it: give its place with --scene")
    with open_scene(dataclasses.replace(spec.scene, bands=None)) as scene:
        info = scene.info
    was, now = (
        {name: value for name, value in fields.items() if name.startswith("input.") and not (moved and name == "input.mtime_ns")}
        for fields in (record.hard, hard_fields(spec, info))
    )
    if differences := changed(was, now):
        listing = "; ".join(f"{name} was {before}, is {after}" for name, (before, after) in differences.items())
        raise StoreMismatchError(
            f"{spec.scene.uri} is not the scene that was segmented: {listing}. Give that scene with --scene, or segment this one again"
        )
    return info
