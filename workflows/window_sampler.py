"""Which windows does a step train on? Drawn by the step's number alone, so that a resumed run and all processes draw the same.

::

    (seed, step, item) -> class or anywhere -> scene -> place -> zoom -> read -> resize -> turn -> colour -> pixels, labels

A share of the windows, ``class_balance``, lies over a pixel of a class, and the classes take equal turns: a class is drawn among those that
the part has, then one of the scenes that show it, then one of its pixels there, and the window lies anywhere around that pixel. The other
windows lie anywhere in a scene, where there is a label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from pipeline.errors import SpecError
from pipeline.network.keys import check_choice
from pipeline.window import Window
from workflows.label_spec import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from workflows.split import ScenePart
    from workflows.training_scenes import TrainingWindow

ByScene = Literal["equal", "area"]

_N_TRIES = 8
"""Windows without a label that are thrown away, before one is placed over a label."""
_BLUR_SIGMA_PX = (0.3, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How much a training window may differ from the scene."""

    scale_range: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest zoom, drawn log-uniformly."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and (a quarter of it) of each band's gain, 0 to 1."""
    flips: bool = True
    """Whether windows are shown in any of the eight symmetries of the square."""
    rotate_deg: float = 0.0
    """Largest turn to either side, degrees, 0 to 180; 0: none but the quarter turns of ``flips``."""
    blur: float = 0.0
    """Share of the windows that are blurred, by a Gaussian of 0.3 to 1.5 px, 0 to 1."""

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise SpecError(f"augmentation.scale_range is {self.scale_range}; give two zooms above 0, the smaller one first")
        if not 0 <= self.jitter < 1:
            raise SpecError(f"augmentation.jitter is {self.jitter}; give 0 (none) or more, below 1")
        if not 0 <= self.rotate_deg <= 180:
            raise SpecError(f"augmentation.rotate_deg is {self.rotate_deg}; give 0 (none) to 180 degrees")
        if not 0 <= self.blur <= 1:
            raise SpecError(f"augmentation.blur is {self.blur}; give the share of windows that is blurred, 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """Where windows are placed."""

    class_balance: float = 0.5
    """Share of the windows that lie over a pixel of a class, all classes alike, 0 to 1; the others lie anywhere."""
    by_scene: ByScene = "equal"
    """``equal``: every scene is as likely as the others; ``area``: by its labelled pixels."""

    def __post_init__(self) -> None:
        if not 0 <= self.class_balance <= 1:
            raise SpecError(f"sampling.class_balance is {self.class_balance}; give the share of balanced windows, 0 to 1")
        check_choice("sampling.by_scene", self.by_scene, get_args(ByScene))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ClassCells:
    """Where a scene shows a class."""

    cells: NDArray[np.int32]
    """(n,) numbers of the cells that show it, row by row."""
    ends: NDArray[np.int64]
    """(n,) how many of its pixels lie in these cells, summed from the first one on."""


class WindowSampler:
    """Random windows of the ground that is trained on. It has no state: what is drawn depends on the arguments of `draw` alone."""

    def __init__(
        self,
        parts: Sequence[ScenePart],
        *,
        window_px: int,
        seed: int,
        augmentation: Augmentation | None = None,
        sampling: SamplingSpec | None = None,
        fill: Sequence[float] | None = None,
    ) -> None:
        """Draw windows of ``window_px`` from ``parts``; pixels without data become ``fill``, one value a band in units of the input (0)."""
        self._parts, self._size, self._seed = tuple(parts), window_px, seed
        self._augmentation, self._sampling = augmentation or Augmentation(), sampling or SamplingSpec()
        self._fill = torch.tensor(fill or (0.0,) * parts[0].n_bands, dtype=torch.float32)
        self._totals = np.stack([part.totals for part in parts])
        self._cells = [[_cells_of(part, index) for index in range(self._totals.shape[1])] for part in parts]

    def draw(self, step: int, item: int) -> tuple[Tensor, Tensor]:
        """Return pixels (bands, S, S) float32, in units of the model's input, and labels (S, S) int64, 255 = ignored.

        Raises
        ------
        SourceError
            A file is damaged.
        """
        generator = np.random.default_rng([self._seed, step, item])
        zoom = math.exp(generator.uniform(*np.log(self._augmentation.scale_range)))
        angle = math.radians(generator.uniform(-1, 1) * self._augmentation.rotate_deg)
        core = max(1, round(self._size / zoom))
        return self._vary(self._read(core, max(core, round(core * _growth(angle))), generator), angle, generator)

    def draw_batch(self, step: int, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return `draw` of several items: pixels (N, bands, S, S) and labels (N, S, S)."""
        drawn = [self.draw(step, item) for item in items]
        return torch.stack([pixels for pixels, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def _read(self, core: int, side: int, generator: Generator) -> TrainingWindow:
        """Return a square of ``side`` that has a label; what is shown after a turn is about the ``core`` px in its middle."""
        if generator.random() >= self._sampling.class_balance:
            for _ in range(_N_TRIES):
                part = self._parts[self._pick_scene(self._totals.sum(axis=1), generator)]
                window = _anywhere(part.shape, side, generator)
                if part.index.may_have_labels(window):
                    found = part.read(window)
                    if (found.labels != IGNORED).any():
                        return found
        return self._read_balanced(core, side, generator)

    def _read_balanced(self, core: int, side: int, generator: Generator) -> TrainingWindow:
        """Return a square around a pixel of a class, all classes and, among those that show it, all scenes alike."""
        label = int(generator.choice(np.flatnonzero(self._totals.sum(axis=0))))
        scene = self._pick_scene(self._totals[:, label], generator)
        part = self._parts[scene]
        row, col = _place_of(part, self._cells[scene][label], label, generator)
        offsets = (at - (side - core) // 2 - int(generator.integers(core)) for at in (row, col))
        starts = [min(max(0, offset), max(0, length - side)) for offset, length in zip(offsets, part.shape, strict=True)]
        return part.read(Window(row_off=starts[0], col_off=starts[1], height=side, width=side))

    def _pick_scene(self, pixels: NDArray[np.int64], generator: Generator) -> int:
        """Return the number of one of the scenes that have such pixels."""
        weights = (pixels > 0).astype(np.float64) if self._sampling.by_scene == "equal" else pixels.astype(np.float64)
        return int(generator.choice(len(weights), p=weights / weights.sum()))

    def _vary(self, window: TrainingWindow, angle: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return the window in the size that the network sees, turned and coloured."""
        pixels, labels = torch.from_numpy(window.pixels), torch.from_numpy(window.labels)
        masks = [labels]
        if not window.valid.all():
            masks.append(torch.from_numpy(np.ascontiguousarray(window.valid)))
            pixels[:, ~masks[1]] = self._fill[:, None]
        images = _rotated(pixels, masks, angle, self._size) if angle else _resized(pixels, masks, self._size)
        if self._augmentation.flips:
            images = _turn(images, generator)
        pixels, labels, *masks = images
        pixels = self._color(pixels, generator)
        for mask in masks:
            pixels = torch.where(mask, pixels, self._fill[:, None, None])
        return pixels.contiguous(), labels.long().contiguous()

    def _color(self, pixels: Tensor, generator: Generator) -> Tensor:
        if self._augmentation.jitter:
            pixels = _jitter(pixels, self._augmentation.jitter, generator)
        if self._augmentation.blur and generator.random() < self._augmentation.blur:
            pixels = _blur(pixels, generator.uniform(*_BLUR_SIGMA_PX))
        return pixels


def _growth(angle: float) -> float:
    """Return how many times the side of a square, turned by ``angle``, is that of the upright square around it."""
    return abs(math.cos(angle)) + abs(math.sin(angle))


def _cells_of(part: ScenePart, label: int) -> _ClassCells:
    counts = part.index.counts[:, :, label].ravel()
    cells = np.flatnonzero(counts)
    return _ClassCells(cells=cells.astype(np.int32), ends=np.cumsum(counts[cells], dtype=np.int64))


def _place_of(part: ScenePart, places: _ClassCells, label: int, generator: Generator) -> tuple[int, int]:
    """Return row and column of a pixel of a class, all of them alike."""
    number = int(generator.integers(places.ends[-1]))
    at = int(np.searchsorted(places.ends, number, side="right"))
    cell = part.index.cell(*divmod(int(places.cells[at]), part.index.counts.shape[1]))
    rows, cols = np.nonzero(part.read_labels(cell) == label)
    rank = number - int(places.ends[at - 1]) if at else number
    return cell.row_off + int(rows[rank]), cell.col_off + int(cols[rank])


def _anywhere(shape: tuple[int, int], side: int, generator: Generator) -> Window:
    """Return a square inside the scene; where the scene is smaller, it begins at its first row or column."""
    row, col = (int(generator.integers(max(1, length - side + 1))) for length in shape)
    return Window(row_off=row, col_off=col, height=side, width=side)


def _resized(pixels: Tensor, masks: list[Tensor], size: int) -> list[Tensor]:
    """Return pixels and masks of a square in another size, masks by the nearest pixel."""
    if pixels.shape[-1] == size:
        return [pixels, *masks]
    resized = functional.interpolate(pixels[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0]
    scale = masks[0].shape[-1] / size
    at = ((torch.arange(size) + 0.5) * scale).long().clamp(max=masks[0].shape[-1] - 1)
    return [resized, *(mask[at][:, at] for mask in masks)]


def _rotated(pixels: Tensor, masks: list[Tensor], angle: float, size: int) -> list[Tensor]:
    """Return pixels and masks of a square turned by ``angle``, radians, in the middle of an upright one, in the size ``size``."""
    upright = max(size, round(size * _growth(angle)))
    if pixels.shape[-1] > upright:  # the turn itself looks at the four nearest pixels only
        pixels, *masks = _resized(pixels, masks, upright)
    side = pixels.shape[-1]
    at = (torch.arange(size) - (size - 1) / 2) * (side / upright)
    rows = math.cos(angle) * at[:, None] - math.sin(angle) * at[None, :] + (side - 1) / 2
    cols = math.sin(angle) * at[:, None] + math.cos(angle) * at[None, :] + (side - 1) / 2
    grid = torch.stack([cols, rows], dim=-1) * (2 / side) + (1 / side - 1)
    turned = functional.grid_sample(pixels[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    place = tuple(values.round().long().clamp(0, side - 1) for values in (rows, cols))
    return [turned, *(mask[place] for mask in masks)]


def _turn(images: list[Tensor], generator: Generator) -> list[Tensor]:
    """Apply one of the eight symmetries of the square to all."""
    quarter_turns, mirrored = int(generator.integers(4)), bool(generator.integers(2))
    images = [image.flip(-1) for image in images] if mirrored else images
    return [torch.rot90(image, quarter_turns, (-2, -1)) for image in images]


def _jitter(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    """Change contrast and brightness by up to ``amount``, and each band's gain by up to a quarter of it."""
    contrast, brightness = 1 + generator.uniform(-amount, amount, 2)
    gains = brightness * (1 + generator.uniform(-amount, amount, pixels.shape[0]) / 4)
    gain = torch.from_numpy((gains * contrast).astype(np.float32))[:, None, None]
    offset = torch.from_numpy((gains * (1 - contrast)).astype(np.float32))[:, None, None] * pixels.mean()
    return pixels * gain + offset


def _blur(pixels: Tensor, sigma_px: float) -> Tensor:
    """Return the bands under a Gaussian, the edge repeated."""
    reach = math.ceil(3 * sigma_px)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px) ** 2)
    kernel = (weights / weights.sum())[None, None, :, None]
    padded = functional.pad(pixels[:, None], (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.transpose(-1, -2))[:, 0]
