"""What does a person look at? One picture: scene, labels over the scene, legend with shares, scale bar.

::

    title                                        the panels stand side by side, or one below the other where
    subtitle                                     the scene is wide; without a scene there is only the second
    +----------+ +----------+
    |  scene   | |  labels  |
    +----------+ +----------+
    # class 12 %   # class 8 %      |-- 200 m --|
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import SpecError
from pipeline.labels import NODATA_LABEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.network.spec import ClassSpec

MIN_SIDE_PX = 400
"""Below this no legend can be read."""

_PAPER, _INK, _MUTED, _LINE = (255, 255, 255), (31, 35, 40), (101, 109, 118), (208, 215, 222)
_HATCH = (246, 248, 250), (222, 226, 231)
_MARGIN = 0.025
"""Blank edge of the picture, as a share of its longest side."""
_FURNITURE = 0.24
"""What title, captions and legend may take of the height, as a share of the longest side."""
_MAX_ZOOM = 8
_MAX_ENTRIES = 24
"""Classes in the legend, at most; the most frequent ones where there are more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """Everything that is to be seen, decimated already."""

    labels: NDArray[np.uint8]
    """(height, width) u1, class ids, 255 at nodata."""
    background: NDArray[np.uint8] | None
    """(height, width, 4) u1, the scene in colours, alpha 0 where it has no data; None: there is none."""
    classes: tuple[ClassSpec, ...]
    """Meaning and colour of label 0, 1, ..."""
    counts: NDArray[np.int64]
    """(256,) int64: pixels of each label in the whole scene, at full resolution."""
    unit_px: float
    """Length of a pixel of ``labels`` in ``unit``."""
    unit: str
    """``m`` or ``px`` (pixels of the scene)."""
    title: str
    """First line."""
    subtitle: str
    """Second line, smaller."""
    opacity: float = 0.55
    """How much of the scene the labels hide, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise SpecError(f"an opacity of {self.opacity} was asked for; give a number from 0 to 1")


def choose_factor(shape: tuple[int, int], *, max_side_px: int, n_panels: int) -> int:
    """Return by which factor a scene of ``shape`` (height, width) is to be decimated for a picture.

    What comes out is less than twice as large as its panel; ``render`` does the rest.
    """
    height_px, width_px = _panel_budget(shape, max_side_px=max_side_px, n_panels=n_panels)
    return max(1, shape[0] // height_px, shape[1] // width_px)


def render(picture: Picture, *, max_side_px: int) -> Image.Image:
    """Return the picture, RGB, at most ``max_side_px`` on its longer side."""
    shape = picture.labels.shape[0], picture.labels.shape[1]
    n_panels = 1 if picture.background is None else 2
    budget = _panel_budget(shape, max_side_px=max_side_px, n_panels=n_panels)
    panels = [(name, _fit(image, budget)) for name, image in _panels(_enlarge(picture, budget))]
    size = panels[0][1].size
    canvas = _Canvas(max_side_px=max_side_px, panel_size=size, n_cols=_n_cols(shape, n_panels))
    canvas.draw_title(picture.title, picture.subtitle)
    for name, image in panels:
        canvas.draw_panel(name, image)
    unit_px = picture.unit_px * shape[1] / size[0]
    canvas.draw_footer(legend_entries(picture), scale_bar(unit_px, picture.unit, canvas.bar_px))
    return canvas.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the legend."""

    color: tuple[int, int, int] | None
    """Red, green, blue, 0 to 255; None: hatched."""
    text: str
    """Name and share."""


def legend_entries(picture: Picture) -> list[Entry]:
    """Return the lines of the legend: all classes in their order, or the most frequent of very many."""
    n_valid = int(picture.counts[:NODATA_LABEL].sum())
    ids = list(range(len(picture.classes)))
    if len(ids) > _MAX_ENTRIES:
        present = [i for i in ids if picture.counts[i]]
        ids = sorted(present, key=lambda i: -int(picture.counts[i]))[:_MAX_ENTRIES]
    entries = [
        Entry(
            color=picture.classes[i].rgb,
            text=f"{picture.classes[i].name}  {share(int(picture.counts[i]), n_valid)}",
        )
        for i in ids
    ]
    n_nodata = int(picture.counts[NODATA_LABEL])
    if n_nodata:
        entries.append(Entry(color=None, text=f"no data  {share(n_nodata, n_valid + n_nodata)} of the scene"))
    return entries


def share(part: int, whole: int) -> str:
    """Return a share as text.

    Examples
    --------
    >>> share(1, 3), share(1, 9999), share(0, 0)
    ('33.3 %', '< 0.1 %', '0 %')
    """
    percent = 100 * part / max(whole, 1)
    if part and percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if part else "0 %"


def scale_bar(unit_px: float, unit: str, longest_px: int) -> tuple[int, str]:
    """Return length (px) and text of a bar of 1, 2 or 5 times a power of ten, at most ``longest_px`` long.

    Examples
    --------
    >>> scale_bar(0.5, "m", 150), scale_bar(12.0, "m", 100), scale_bar(3.0, "px", 100)
    ((100, '50 m'), (83, '1 km'), (67, '200 px'))
    """
    longest = unit_px * longest_px
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))
    in_km = unit == "m" and length >= 1000
    text = f"{length / 1000:g} km" if in_km else f"{length:g} {unit}"
    return round(length / unit_px), text


def overlay(picture: Picture) -> NDArray[np.uint8]:
    """Return the labels over the scene, (height, width, 3) u1; solid where there is no scene."""
    colors = np.zeros((256, 3), np.float32)
    colors[: len(picture.classes)] = [one.rgb for one in picture.classes]
    painted = colors[picture.labels]
    if picture.background is not None:
        # Edges are painted stronger: areas stay transparent and their outlines are still seen.
        weight = np.where(_edges(picture.labels), min(1.0, picture.opacity + 0.3), picture.opacity)
        weight = weight[..., np.newaxis].astype(np.float32)
        painted = painted * weight + _backdrop(picture.background) * (1 - weight)
    painted[picture.labels == NODATA_LABEL] = hatch(picture.labels.shape)[picture.labels == NODATA_LABEL]
    return (painted + np.float32(0.5)).astype(np.uint8)


def hatch(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return grey diagonal stripes, (height, width, 3) u1: the sign of "no data"."""
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    stripes = (rows + cols) // 4 % 2
    striped: NDArray[np.uint8] = np.asarray(_HATCH, np.uint8)[stripes]
    return striped


def _panels(picture: Picture) -> list[tuple[str, Image.Image]]:
    if picture.background is None:
        return [("Labels", Image.fromarray(overlay(picture)))]
    visible = picture.background[..., 3:] > 0
    scene = np.where(visible, picture.background[..., :3], hatch(picture.labels.shape))
    return [
        ("Scene", Image.fromarray(scene)),
        ("Labels over the scene", Image.fromarray(overlay(picture))),
    ]


def _backdrop(background: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the scene in light greys, (height, width, 1): other ground would falsify the colours."""
    # Rec. 601 luma.
    grey = background[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    lifted: NDArray[np.float32] = np.float32(50) + grey * np.float32(205 / 255)
    return lifted[..., np.newaxis]


def _edges(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    return edges


def _n_cols(shape: tuple[int, int], n_panels: int) -> int:
    return 1 if shape[1] > 1.5 * shape[0] else n_panels


def _panel_budget(shape: tuple[int, int], *, max_side_px: int, n_panels: int) -> tuple[int, int]:
    """Return the (height, width) that one panel may take, px."""
    n_cols = _n_cols(shape, n_panels)
    n_rows = n_panels // n_cols
    blank = round(_MARGIN * max_side_px)
    height = (round(max_side_px * (1 - _FURNITURE)) - blank * (n_rows - 1)) // n_rows
    width = (max_side_px - 2 * blank - blank * (n_cols - 1)) // n_cols
    return height, width


def _enlarge(picture: Picture, budget: tuple[int, int]) -> Picture:
    """Repeat the pixels of a small scene; before they are painted, so that outlines stay fine."""
    height, width = picture.labels.shape
    zoom = max(1, min(_MAX_ZOOM, budget[0] // height, budget[1] // width))
    labels = picture.labels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    if picture.background is None:
        return replace(picture, labels=labels)
    background = picture.background.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return replace(picture, labels=labels, background=background)


def _fit(image: Image.Image, budget: tuple[int, int]) -> Image.Image:
    """Shrink an image that is larger than ``budget`` (height, width); only colours blend, not classes."""
    shrink = min(1.0, budget[0] / image.height, budget[1] / image.width)
    if shrink == 1:
        return image
    size = max(1, math.floor(image.width * shrink)), max(1, math.floor(image.height * shrink))
    return image.resize(size, Image.Resampling.LANCZOS)


class _Canvas:
    """The paper, and how far down it is used."""

    def __init__(self, *, max_side_px: int, panel_size: tuple[int, int], n_cols: int) -> None:
        self._blank = round(_MARGIN * max_side_px)
        self._n_cols = n_cols
        used = n_cols * panel_size[0] + (n_cols - 1) * self._blank
        # Small scenes would leave no room for the legend.
        self._inner = max(used, MIN_SIDE_PX - 2 * self._blank)
        self._max_side_px = max_side_px
        self._text_px = max(11, min(22, self._inner // 52))
        # Long enough for the longest legend; what is not used is cut off.
        height = 2 * max_side_px + 2 * _MAX_ENTRIES * self._text_px
        self._image = Image.new("RGB", (self._inner + 2 * self._blank, height), _PAPER)
        self._pen = ImageDraw.Draw(self._image)
        self._x, self._y = self._blank, self._blank
        self._bottom = self._y

    @property
    def bar_px(self) -> int:
        """Longest scale bar, px."""
        return self._inner // 5

    def draw_title(self, title: str, subtitle: str) -> None:
        """Write two lines at the top."""
        self._write(title, size=round(self._text_px * 1.6), color=_INK)
        self._y += round(self._text_px * 2.0)
        self._write(subtitle, size=self._text_px, color=_MUTED)
        self._y += round(self._text_px * 2.1)
        self._bottom = self._y

    def draw_panel(self, name: str, image: Image.Image) -> None:
        """Put a panel below or beside the one before."""
        self._write(name, size=self._text_px, color=_INK)
        top = self._y + round(self._text_px * 1.5)
        self._image.paste(image, (self._x, top))
        edge = (self._x - 1, top - 1, self._x + image.width, top + image.height)
        self._pen.rectangle(edge, outline=_LINE)
        self._bottom = top + image.height + self._blank
        if self._n_cols == 1:
            self._y = self._bottom
        else:
            self._x += image.width + self._blank

    def draw_footer(self, entries: list[Entry], bar: tuple[int, str]) -> None:
        """Write the legend in columns, and the scale bar at the right."""
        self._x, self._y = self._blank, self._bottom
        width = self._inner - self.bar_px - self._blank
        column = max(self._width_of(one.text) for one in entries) + round(self._text_px * 3.2)
        n_cols = max(1, width // column)
        line = round(self._text_px * 1.75)
        n_rows = -(-len(entries) // n_cols)
        for i, one in enumerate(entries):
            self._draw_entry(one, self._x + i // n_rows * column, self._y + i % n_rows * line)
        self._draw_bar(bar)
        self._bottom = self._y + max(n_rows * line, round(self._text_px * 2.6)) + self._blank // 2

    def finish(self) -> Image.Image:
        """Cut off the paper that was not used, and shrink what a long legend made too large."""
        image = self._image.crop((0, 0, self._image.width, self._bottom))
        return _fit(image, (self._max_side_px, self._max_side_px))

    def _draw_entry(self, one: Entry, left: int, top: int) -> None:
        side = round(self._text_px * 1.15)
        if one.color is None:
            self._image.paste(Image.fromarray(hatch((side, side))), (left, top))
        box = (left, top, left + side, top + side)
        self._pen.rectangle(box, fill=one.color, outline=_MUTED)
        position = (left + round(side * 1.5), top + side / 2)
        self._pen.text(position, one.text, fill=_INK, font=_font(self._text_px), anchor="lm")

    def _draw_bar(self, bar: tuple[int, str]) -> None:
        length, text = bar
        right, top, tick = self._blank + self._inner - 1, self._y + self._text_px, round(self._text_px * 0.4)
        left = right - length
        self._pen.line((left, top, right, top), fill=_INK, width=2)
        for x in (left, right):
            self._pen.line((x, top - tick, x, top + tick), fill=_INK, width=2)
        below = (left + length / 2, top + tick + 2)
        self._pen.text(below, text, fill=_INK, font=_font(self._text_px), anchor="ma")

    def _write(self, text: str, *, size: int, color: tuple[int, int, int]) -> None:
        self._pen.text((self._x, self._y), text, fill=color, font=_font(size))

    def _width_of(self, text: str) -> int:
        return math.ceil(self._pen.textlength(text, font=_font(self._text_px)))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
