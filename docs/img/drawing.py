"""What do the figures share? Colours, a sheet to draw on, boxes, arrows, and pictures of arrays.

Lengths are in units of half a pixel of the file: a sheet of 800 is a file of 1600 px, so that it is sharp on any screen.
"""  # noqa: INP001 - a script beside its picture

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (40, 40, 40)
GREY: Colour = (170, 170, 170)
PALE: Colour = (228, 228, 228)
BLUE: Colour = (60, 110, 190)
ORANGE: Colour = (230, 150, 60)
GREEN: Colour = (60, 140, 90)
RED: Colour = (190, 70, 70)
PURPLE: Colour = (130, 90, 170)

_DRAWN = 4
"""Pixels per unit while drawing; twice those of the file, which smooths slanted lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle with lines of text, drawn around its centre."""

    x: float
    y: float
    width: float
    height: float
    text: str
    colour: Colour = BLUE

    @property
    def left(self) -> Point:
        """Where an arrow from the left ends."""
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        """Where an arrow to the right starts."""
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        """Where an arrow from above ends."""
        return self.x, self.y - self.height / 2

    @property
    def bottom(self) -> Point:
        """Where an arrow downwards starts."""
        return self.x, self.y + self.height / 2


class Sheet:
    """A white sheet."""

    def __init__(self, width: float, height: float) -> None:
        self._image = Image.new("RGB", (round(width * _DRAWN), round(height * _DRAWN)), "white")
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def text(self, at: Point, text: str, *, size: float = 13, colour: Colour = INK, anchor: str = "la") -> None:
        """Write ``text``; lines are 1.3 of the size apart, and the anchor's second letter m centres them all."""
        lines = text.split("\n")
        first = at[1] - (0.65 * size * (len(lines) - 1) if anchor[1] == "m" else 0)
        for row, line in enumerate(lines):
            place = (at[0] * _DRAWN, (first + 1.3 * size * row) * _DRAWN)
            self._draw.text(place, line, fill=colour, font=ImageFont.load_default(size * _DRAWN), anchor=anchor)

    def rectangle(
        self,
        corners: tuple[float, float, float, float],
        *,
        fill: tuple[int, ...] | None = None,
        outline: Colour | None = None,
        line: float = 1,
    ) -> None:
        """Draw (left, top, right, bottom)."""
        scaled = [value * _DRAWN for value in corners]
        self._draw.rectangle(scaled, fill=fill, outline=outline, width=round(line * _DRAWN))

    def box(self, box: Box, *, size: float = 12) -> Box:
        """Draw a box with its text, and return it."""
        corners = (box.left[0] * _DRAWN, box.top[1] * _DRAWN, box.right[0] * _DRAWN, box.bottom[1] * _DRAWN)
        self._draw.rounded_rectangle(corners, 4 * _DRAWN, fill=(*box.colour, 40), outline=box.colour, width=_DRAWN)
        self.text((box.x, box.y), box.text, size=size, anchor="mm")
        return box

    def line(self, points: Sequence[Point], *, colour: Colour = INK, line: float = 1) -> None:
        """Join the points."""
        self._draw.line([(x * _DRAWN, y * _DRAWN) for x, y in points], fill=colour, width=round(line * _DRAWN), joint="curve")

    def arrow(self, *points: Point, colour: Colour = INK, line: float = 1.2) -> None:
        """Join the points, with a head at the last."""
        (x0, y0), (x1, y1) = points[-2:]
        angle, head = math.atan2(y1 - y0, x1 - x0), 6.0
        back = (x1 - head * math.cos(angle), y1 - head * math.sin(angle))
        self.line([*points[:-1], back], colour=colour, line=line)
        sides = [(x1 - head * math.cos(angle + turn), y1 - head * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
        self._draw.polygon([(x * _DRAWN, y * _DRAWN) for x, y in [(x1, y1), *sides]], fill=colour)

    def dot(self, at: Point, radius: float, *, fill: Colour | None = INK, outline: Colour | None = None, line: float = 1) -> None:
        """Draw a disc or, without ``fill``, a ring."""
        corners = [(value + sign * radius) * _DRAWN for sign in (-1, 1) for value in at]
        self._draw.ellipse(corners, fill=fill, outline=outline, width=round(line * _DRAWN))

    def picture(self, pixels: NDArray[np.uint8], at: Point, size: Point, *, smooth: bool = False) -> None:
        """Place (height, width, 3) pixels at (left, top) with (width, height), each a rectangle unless ``smooth``."""
        size_px = (round(size[0] * _DRAWN), round(size[1] * _DRAWN))
        how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        self._image.paste(Image.fromarray(pixels).resize(size_px, how), (round(at[0] * _DRAWN), round(at[1] * _DRAWN)))

    def save(self, name: str, *, n_colours: int = 64, reduce: int = 2) -> None:
        """Write the file beside this script."""
        image = self._image.reduce(reduce)
        image = image.quantize(n_colours, dither=Image.Dither.NONE)
        image.save(Path(__file__).with_name(name), optimize=True)


def shaded(values: NDArray[np.floating], colour: Colour) -> NDArray[np.uint8]:
    """Return values of 0 to 1 as pixels from white to ``colour``."""
    share = np.clip(values, 0, 1)[..., None]
    return np.rint(255 * (1 - share) + np.asarray(colour) * share).astype(np.uint8)


def heat(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return values of 0 to 1 as pixels from white over orange and red to black."""
    stops = np.array([(255, 255, 255), (250, 200, 110), (215, 90, 50), (110, 30, 60), (20, 10, 20)], float)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.clip(values, 0, 1), places, stops[:, band]) for band in range(3)], axis=-1).astype(np.uint8)
