"""How do measured numbers become a picture? Small panels side by side, each with axes, lines, points and a legend.

::

    title          title
    names          names
    |    o--o      |  o--o--o
    | o--          |o-
    +---------     +----------
     x label        x label
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import SpecError

Colour = tuple[int, int, int]

INK: Colour = (31, 35, 40)
BLUE: Colour = (60, 110, 190)
ORANGE: Colour = (214, 110, 20)
GREY: Colour = (150, 158, 166)

_PALE: Colour = (225, 229, 233)
_SCALE = 2
"""Pixels per unit of the lengths below, so that the picture is sharp on any screen."""
_PANEL, _LEFT, _TOP, _RIGHT, _BOTTOM = (270, 236), 52, 42, 14, 44
_TEXT, _SMALL = 12, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together."""

    points: tuple[tuple[float, float], ...]
    """(x, y), finite; drawn in this order."""
    colour: Colour = BLUE
    """Of line and points."""
    name: str = ""
    """In the legend; empty: not there."""
    line: bool = True
    """Whether the points are joined."""
    dots: bool = True
    """Whether the points are marked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    """Above."""
    x_label: str
    """Below."""
    series: tuple[Series, ...]
    """What is drawn, the last one on top; at least one point in all."""

    def __post_init__(self) -> None:
        if not any(one.points for one in self.series):
            raise SpecError(f"the panel {self.title!r} has no points; give at least one")


def draw_chart(panels: list[Panel]) -> Image.Image:
    """Draw ``panels`` from left to right."""
    width, height = _PANEL
    image = Image.new("RGB", (len(panels) * width * _SCALE, height * _SCALE), "white")
    pen = ImageDraw.Draw(image)
    for i, panel in enumerate(panels):
        _Axes(pen, panel, left=i * width).draw()
    return image


class _Axes:
    """A panel at its place: maps values to pixels."""

    def __init__(self, pen: ImageDraw.ImageDraw, panel: Panel, *, left: int) -> None:
        self._pen, self._panel = pen, panel
        points = [point for one in panel.series for point in one.points]
        self._x = _ticks([x for x, _ in points])
        self._y = _ticks([y for _, y in points])
        self._box = (left + _LEFT, _TOP, left + _PANEL[0] - _RIGHT, _PANEL[1] - _BOTTOM)

    def draw(self) -> None:
        """Draw frame, ticks, series and legend."""
        self._draw_frame()
        for one in self._panel.series:
            places = [self._place(*point) for point in one.points]
            if one.line:
                for start, end in pairwise(places):
                    self._pen.line((*start, *end), fill=one.colour, width=_SCALE * 3 // 2)
            for x, y in places if one.dots else ():
                radius = _SCALE * (2.5 if one.line else 1.5)
                self._pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=one.colour)
        self._draw_legend()

    def _draw_frame(self) -> None:
        left, top, right, bottom = self._box
        for y in self._y:
            row = self._place(self._x[0], y)[1]
            self._pen.line((left * _SCALE, row, right * _SCALE, row), fill=_PALE, width=1)
            self._write((left - 5, row / _SCALE), _number(y, self._y), anchor="rm", size=_SMALL)
        for x in self._x:
            column = self._place(x, self._y[0])[0]
            self._pen.line((column, bottom * _SCALE, column, (bottom + 4) * _SCALE), fill=INK, width=1)
            self._write((column / _SCALE, bottom + 6), _number(x, self._x), anchor="ma", size=_SMALL)
        self._pen.line((left * _SCALE, bottom * _SCALE, right * _SCALE, bottom * _SCALE), fill=INK, width=1)
        self._write((left, top - 24), self._panel.title, anchor="ls", size=_TEXT)
        self._write(((left + right) / 2, bottom + 22), self._panel.x_label, anchor="ma", size=_TEXT)

    def _draw_legend(self) -> None:
        x, y = float(self._box[0]), self._box[1] - 8
        for one in reversed([one for one in self._panel.series if one.name]):
            self._write((x, y), one.name, anchor="ls", size=_SMALL, colour=one.colour)
            x += self._pen.textlength(one.name, font=ImageFont.load_default(size=_SMALL * _SCALE)) / _SCALE + 12

    def _place(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self._box
        across = (x - self._x[0]) / (self._x[-1] - self._x[0])
        up = (y - self._y[0]) / (self._y[-1] - self._y[0])
        return (left + across * (right - left)) * _SCALE, (bottom - up * (bottom - top)) * _SCALE

    def _write(self, at: tuple[float, float], text: str, *, anchor: str, size: int, colour: Colour = INK) -> None:
        font = ImageFont.load_default(size=size * _SCALE)
        self._pen.text((at[0] * _SCALE, at[1] * _SCALE), text, fill=colour, font=font, anchor=anchor)


def _ticks(values: list[float]) -> list[float]:
    """Return round numbers, evenly spaced, that enclose ``values``: 1, 2 or 5 times a power of ten apart.

    Examples
    --------
    >>> _ticks([0.61, 0.66])
    [0.61, 0.62, 0.63, 0.64, 0.65, 0.66]
    """
    low, high = min(values), max(values)
    span = (high - low) or abs(low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    return [round(i * step, 10) for i in range(first, last + 1)]


def _number(value: float, ticks: list[float]) -> str:
    """Write a tick with as many decimals as its neighbours need."""
    step = ticks[1] - ticks[0]
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
