"""How do a few named numbers become a picture? Horizontal bars in groups, one value each."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pipeline.chart import BLUE, GREY, INK

_SCALE = 2
"""Pixels per unit of the lengths below."""
_ROW, _NAME, _BAR, _VALUE = 24, 250, 300, 110
_TEXT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar."""

    name: str
    """At its left."""
    value: float
    """Its length; 0 or more."""
    text: str
    """At its right."""
    ours: bool
    """Whether it stands out."""


def draw_bars(groups: dict[str, list[Bar]]) -> Image.Image:
    """Draw groups of bars under their titles; all bars have one scale."""
    n_rows = sum(len(bars) + 1 for bars in groups.values())
    image = Image.new("RGB", ((_NAME + _BAR + _VALUE) * _SCALE, (n_rows * _ROW + 18) * _SCALE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=_TEXT * _SCALE)
    longest = max(bar.value for bars in groups.values() for bar in bars) or 1.0

    def write(x: float, y: float, text: str, anchor: str) -> None:
        pen.text((x * _SCALE, y * _SCALE), text, fill=INK, font=font, anchor=anchor)

    y = _ROW / 2 + 6
    for title, bars in groups.items():
        write(10, y, title, "lm")
        y += _ROW
        for bar in bars:
            end = _NAME + _BAR * bar.value / longest
            box = (_NAME * _SCALE, (y - 8) * _SCALE, end * _SCALE, (y + 8) * _SCALE)
            pen.rectangle(box, fill=BLUE if bar.ours else GREY)
            write(_NAME - 8, y, bar.name, "rm")
            write(end + 6, y, bar.text, "lm")
            y += _ROW
    return image
