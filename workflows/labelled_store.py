"""What is a search measured on? Stored probabilities, their scene, and labels that people drew, CRF tile by CRF tile.

::

    probabilities  |.....|=========|.....|     read with the halo of the widest CRF that is tried
    scene          |.....|=========|.....|
    labels               |=========|           counted on the tile itself, so no pixel counts twice
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.classify import classify
from pipeline.errors import SpecError
from pipeline.locate import BlockWindows, crf_lattice
from pipeline.scene import open_scene
from pipeline.segment import recall
from pipeline.store import read_labels as read_store_labels
from pipeline.window import Window
from workflows.label_reading import Classes
from workflows.label_source import IGNORED, open_labels
from workflows.refinement import refinement_of
from workflows.trimap import distance_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec
    from pipeline.grid import Lattice
    from pipeline.scene import Tile
    from workflows.label_reading import LabelReading
    from workflows.prepare import Prepared
    from workflows.stored_run import StoredRun


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAndLabels:
    """A finished output and the labels of its scene."""

    store: Path
    """A finished output of `atrous segment --probabilities`."""
    labels: Path
    """A raster of class ids (255: no label) or colours, or polygons."""
    scene: str | None = None
    """Where the scene is now; None: where it was."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledStore:
    """A labelled scene whose probabilities are stored."""

    prepared: Prepared
    """The refinement that would be run, and the headers that it was checked against."""
    has_network_labels: bool
    """Whether the labels in the store are the network's; otherwise a CRF refined them."""
    labels: NDArray[np.uint8]
    """(height, width), class ids, 255: no label."""

    @property
    def lattice(self) -> Lattice:
        """The CRF tiles of the scene."""
        assert self.prepared.spec.crf is not None
        return crf_lattice(self.prepared.scene.shape, self.prepared.spec.crf)

    def labelled_tiles(self) -> list[tuple[int, int]]:
        """List the CRF tiles that have a label, row by row."""
        lattice = self.lattice
        tiles = lattice.touching(Window.of_shape(lattice.shape))
        return [index for index in tiles if (self.labels[lattice.window(index).to_slices()] != IGNORED).any()]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledTile:
    """The pixels of one CRF tile with all that a search needs of them."""

    windows: BlockWindows
    """The tile as a block that writes just it."""
    tile: Tile
    """The scene, with a halo."""
    probabilities: NDArray[np.float32]
    """(classes, height, width), with a halo, before the CRF."""
    network: NDArray[np.uint8]
    """(height, width), what the network alone says; 255 where there is no data."""
    labels: NDArray[np.uint8]
    """(height, width), 255 where there is no label or no data."""
    distance: NDArray[np.uint8]
    """(height, width), from the nearest boundary between classes, px."""


def pair_up(paths: Sequence[Path], *, scenes: Sequence[str] = ()) -> tuple[StoreAndLabels, ...]:
    """Return the sources that STORE, LABELS, STORE, LABELS, ... name, with one scene for each store or none."""
    if len(paths) % 2:
        raise SpecError(
            f"{len(paths)} paths were given ({', '.join(map(str, paths))}); every store needs its labels: STORE.zarr LABELS ..."
        )
    if scenes and len(scenes) != len(paths) // 2:
        raise SpecError(
            f"{len(scenes)} scenes were given for {len(paths) // 2} stores; give --scene once for each, or not at all"
        )
    places = scenes or (None,) * (len(paths) // 2)
    return tuple(
        StoreAndLabels(store=store, labels=labels, scene=scene)
        for store, labels, scene in zip(paths[::2], paths[1::2], places, strict=True)
    )


def open_labelled(stored: StoredRun, labels_path: Path, reading: LabelReading, *, crf: CrfSpec) -> LabelledStore:
    """Read the labels of an earlier output.

    Raises
    ------
    SourceError
        The labels cannot be read, hold something unknown, or are of another size than the store.
    """
    prepared = refinement_of(stored, crf)
    spec = reading.spec(labels_path, Classes.of(prepared.model.classes))
    with open_labels(spec, shape=prepared.scene.shape, georef=prepared.scene.georef) as source:
        labels = source.read(Window.of_shape(source.shape))
    return LabelledStore(prepared=prepared, has_network_labels=stored.spec.crf is None, labels=labels)


def read_labelled_tile(store: LabelledStore, index: tuple[int, int], *, halo_px: int) -> LabelledTile:
    """Read a CRF tile with the halo ``halo_px``, or as much of it as the scene has."""
    lattice = store.lattice
    core = lattice.window(index).clip(lattice.shape)
    assert core is not None
    read = core.grow(halo_px).clip(lattice.shape)
    assert read is not None
    windows = BlockWindows(shape=lattice.shape, write=core, predict=read, network=(), shared={}, crf=(index,), read=read)
    with open_scene(store.prepared.spec.scene) as scene:
        tile = scene.read(read)
    inside = core.relative_to(read).to_slices()
    probabilities = recall(tile, windows, spec=store.prepared.spec)
    labels = store.labels[core.to_slices()].copy()
    labels[~tile.valid[inside]] = IGNORED
    return LabelledTile(
        windows=windows,
        tile=tile,
        probabilities=probabilities,
        network=_network_labels(store, core, probabilities[:, *inside], tile.valid[inside]),
        labels=labels,
        distance=distance_in(store.labels, core),
    )


def _network_labels(
    store: LabelledStore, window: Window, probabilities: NDArray[np.float32], valid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return the labels in the store where they are the network's: rounded probabilities have ties, of which it had none."""
    source = store.prepared.spec.probabilities_from
    if store.has_network_labels and source is not None:
        return read_store_labels(Path(source), window)
    return classify(probabilities, valid)[0]
