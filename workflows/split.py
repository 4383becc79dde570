"""What is trained on, and what are the best weights chosen by? Whole scenes, or blocks of ground; never windows at random.

::

    by = "entries"   [[train]]        | [[validation]]      as the configuration lists them
    by = "scene"     scene a, b, c, d | scene e             a share of the scenes of [[train]]
    by = "block"     . . # . . # . .  | # #                 a share of the labelled blocks of all scenes; a held-out block has no label in
                                                            training, and only its labels count in validation

Neighbouring pixels look alike, so a split by random windows would measure what was learned by heart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from pipeline.errors import SourceError, SpecError
from pipeline.network.keys import check_choice
from pipeline.window import tiling
from workflows.label_index import CELL_PX, LabelIndex, index_labels
from workflows.label_spec import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.window import Window
    from workflows.training_scenes import TrainingScene, TrainingWindow

SplitBy = Literal["entries", "scene", "block"]

_N_TRIES = 64
"""Draws of which the first that leaves all classes in both parts is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSpec:
    """What is held out of the training scenes."""

    by: SplitBy = "entries"
    """``entries``: [[validation]] scenes only; ``scene``: whole scenes of [[train]]; ``block``: blocks of ground of all of them."""
    block_px: int = 1024
    """Side of a block, px, a multiple of 64; blocks are counted from the first pixel of the scene."""
    validation: float = 0.2
    """Share of the scenes, or of the blocks with labels, that is held out, above 0 and below 1; at least one is."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        check_choice("split.by", self.by, get_args(SplitBy))
        if self.block_px < CELL_PX or self.block_px % CELL_PX:
            raise SpecError(f"split.block_px is {self.block_px}; give a multiple of {CELL_PX}, for example 1024")
        if not 0 < self.validation < 1:
            raise SpecError(f"split.validation is {self.validation}; give a share above 0 and below 1, for example 0.2")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScenePart:
    """A scene, of which only some ground has labels."""

    scene: TrainingScene
    """The whole scene."""
    index: LabelIndex
    """Where the labels of this part are."""
    blocks: NDArray[np.bool_] | None = None
    """(rows of blocks, columns of blocks), which blocks are in this part; None: all ground."""
    block_px: int = 1024
    """Side of a block, px."""

    @property
    def name(self) -> str:
        """What reports call the scene."""
        return self.scene.name

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the whole scene."""
        return self.scene.shape

    @property
    def n_bands(self) -> int:
        """Bands of a window."""
        return self.scene.n_bands

    @property
    def totals(self) -> NDArray[np.int64]:
        """(classes,) labelled pixels of this part."""
        return self.index.totals

    def read(self, window: Window) -> TrainingWindow:
        """Read a window, which may reach beyond the scene; the labels of the other part are 255."""
        found = self.scene.read(window)
        return replace(found, labels=np.where(self.ground(window), found.labels, np.uint8(IGNORED)))

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Return (height, width) class ids of a window inside the scene, 255 where there is no label, no data, or the other part."""
        return np.where(self.ground(window), self.scene.read_labels(window), np.uint8(IGNORED))

    def ground(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of a window belong to this part, something that broadcasts to (height, width)."""
        if self.blocks is None:
            return np.ones((1, 1), np.bool_)
        rows = np.clip(np.arange(window.row_off, window.row_end) // self.block_px, 0, self.blocks.shape[0] - 1)
        cols = np.clip(np.arange(window.col_off, window.col_end) // self.block_px, 0, self.blocks.shape[1] - 1)
        return self.blocks[rows[:, np.newaxis], cols]

    def labelled_windows(self, side_px: int) -> list[Window]:
        """List the squares of a tiling of the scene that hold a label of this part, clipped to the scene, row by row."""
        tiles = tiling(self.shape, height=side_px, width=side_px)
        return [tile for tile in tiles if self.index.may_have_labels(tile)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """What is trained on, and what weights are chosen by."""

    train: tuple[ScenePart, ...]
    """Where windows are drawn."""
    validation: tuple[ScenePart, ...]
    """Where they are measured; empty where nothing is held out."""
    classes: tuple[str, ...]
    """Names of class 0, 1, ...."""

    def to_dict(self) -> dict[str, Any]:
        """Return which scenes and how many pixels of each class are in each part, as JSON holds it."""
        return {part: self._describe(scenes) for part, scenes in (("train", self.train), ("validation", self.validation))}

    def _describe(self, parts: tuple[ScenePart, ...]) -> dict[str, Any]:
        pixels = sum_totals(parts, len(self.classes)).tolist()
        blocks = {part.name: np.argwhere(part.blocks).tolist() for part in parts if part.blocks is not None}
        return {"scenes": [part.name for part in parts], "pixels": dict(zip(self.classes, pixels, strict=True))} | (
            {"blocks": {name: len(places) for name, places in blocks.items()}} if blocks else {}
        )


def whole(scene: TrainingScene, *, n_classes: int) -> ScenePart:
    """Return all ground of a scene; SourceError where no pixel has a label."""
    index = index_labels(scene, n_classes)
    if not index.totals.any():
        raise SourceError(
            f"{scene.name} has no pixel with a label and with data; correct the pairing of image and labels, or leave the scene out"
        )
    return ScenePart(scene=scene, index=index)


def split_scenes(
    spec: SplitSpec, train: Sequence[TrainingScene], validation: Sequence[TrainingScene] = (), *, classes: tuple[str, ...]
) -> Split:
    """Read the labels of all scenes once and return what is trained on and what is held out.

    Parameters
    ----------
    spec
        How the scenes of ``train`` are divided.
    train
        Scenes of [[train]].
    validation
        Scenes of [[validation]]; with them, nothing else is held out.
    classes
        Names of class 0, 1, ....

    Raises
    ------
    SourceError
        A scene has no labelled pixel, nothing can be held out, or a part lacks a class.
    """
    parts = [whole(scene, n_classes=len(classes)) for scene in train]
    if spec.by == "entries" or validation:
        held_out = [whole(scene, n_classes=len(classes)) for scene in validation]
        split = Split(train=tuple(parts), validation=tuple(held_out), classes=classes)
    else:
        split = _first_with_all_classes(spec, parts, classes)
    _check_classes(spec, split)
    return split


def sum_totals(parts: Sequence[ScenePart], n_classes: int) -> NDArray[np.int64]:
    """Return (classes,) labelled pixels of all parts."""
    totals: NDArray[np.int64] = np.sum([np.zeros(n_classes, np.int64), *(part.totals for part in parts)], axis=0)
    return totals


def _first_with_all_classes(spec: SplitSpec, parts: list[ScenePart], classes: tuple[str, ...]) -> Split:
    """Return the first draw that leaves every class that occurs in both parts, or else the first draw."""
    divide = _divide_scenes if spec.by == "scene" else _divide_blocks
    present = sum_totals(parts, len(classes)) > 0
    first = None
    for draw in range(_N_TRIES):
        train, validation = divide(spec, parts, draw)
        split = Split(train=train, validation=validation, classes=classes)
        if all((sum_totals(part, len(classes))[present] > 0).all() for part in (train, validation)):
            return split
        first = first or split
    assert first is not None
    return first


def _divide_scenes(spec: SplitSpec, parts: list[ScenePart], draw: int) -> tuple[tuple[ScenePart, ...], tuple[ScenePart, ...]]:
    if len(parts) < 2:
        raise SourceError(
            'split.by = "scene" needs two scenes in [[train]], of which one is held out, and there is one; set split.by = "block", or add '
            "a scene"
        )
    chosen = _chosen(spec, [(part.name, index, 0) for index, part in enumerate(parts)], draw)
    train = tuple(part for index, part in enumerate(parts) if index not in chosen)
    return train, tuple(parts[index] for index in sorted(chosen))


def _divide_blocks(spec: SplitSpec, parts: list[ScenePart], draw: int) -> tuple[tuple[ScenePart, ...], tuple[ScenePart, ...]]:
    places = [(index, row, col) for index, part in enumerate(parts) for row, col in _labelled_blocks(part, spec.block_px)]
    if len(places) < 2:
        raise SourceError(
            f'split.by = "block" needs two blocks of {spec.block_px} px with labels, of which one is held out, and there is {len(places)}; '
            "make split.block_px smaller, or add labels"
        )
    chosen = _chosen(spec, [(parts[index].name, row, col) for index, row, col in places], draw)
    held_out = {places[number] for number in chosen}
    train, validation = [], []
    for index, part in enumerate(parts):
        mask = np.zeros([-(-length // spec.block_px) for length in part.shape], np.bool_)
        for row, col in ((row, col) for owner, row, col in held_out if owner == index):
            mask[row, col] = True
        train.append(_limited(part, ~mask, spec.block_px))
        validation.append(_limited(part, mask, spec.block_px))
    return tuple(part for part in train if part.totals.any()), tuple(part for part in validation if part.totals.any())


def _labelled_blocks(part: ScenePart, block_px: int) -> list[tuple[int, int]]:
    """List (row, column) of the blocks with a label."""
    rows, cols = np.nonzero(part.index.counts.any(axis=2))
    per_block = block_px // CELL_PX
    return sorted({(int(row), int(col)) for row, col in zip(rows // per_block, cols // per_block, strict=True)})


def _limited(part: ScenePart, blocks: NDArray[np.bool_], block_px: int) -> ScenePart:
    n_rows, n_cols = part.index.counts.shape[:2]
    cells = blocks.repeat(block_px // CELL_PX, axis=0).repeat(block_px // CELL_PX, axis=1)[:n_rows, :n_cols]
    return replace(part, index=part.index.within(cells), blocks=blocks, block_px=block_px)


def _chosen(spec: SplitSpec, places: list[tuple[str, int, int]], draw: int) -> frozenset[int]:
    """Return the numbers of the held-out places: as many as the share says, those whose name and position hash lowest."""
    count = min(max(1, round(spec.validation * len(places))), len(places) - 1)
    keys = [(hashlib.sha256(repr((spec.seed, draw, *place)).encode()).digest(), number) for number, place in enumerate(places)]
    return frozenset(number for _, number in sorted(keys)[:count])


def _check_classes(spec: SplitSpec, split: Split) -> None:
    parts = [("train", split.train), *([("validation", split.validation)] if split.validation else [])]
    for name, scenes in parts:
        missing = [one for one, total in zip(split.classes, sum_totals(scenes, len(split.classes)), strict=True) if not total]
        if missing:
            advice = "add a scene that shows it, or leave the class out"
            if spec.by != "entries":
                advice += f"; or change [split]: by = {spec.by!r}, seed {spec.seed}, share {spec.validation}, blocks of {spec.block_px} px"
            raise SourceError(
                f"no pixel of {', '.join(missing)} is in the {name} part ({', '.join(part.name for part in scenes)}); every class needs "
                f"some in each part: {advice}"
            )
