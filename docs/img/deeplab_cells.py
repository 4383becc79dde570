"""Draw ``cells.png``: from which place a pixel gets its features, with this project's two alignments and with ``align_corners=True``.

The features that go in hold their own position in pixels, so what comes out is the place that was read.
Run from the repository: ``python docs/img/deeplab_cells.py``.
"""  # noqa: INP001 - a script beside its picture

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, RED, Sheet
from torch.nn import functional

from pipeline.network.resize import upsample

if TYPE_CHECKING:
    from drawing import Colour
    from numpy.typing import NDArray
    from torch import Tensor

STRIDE = 16
SHOWN_PX = 256
LEFT, TOP, WIDTH, HEIGHT = 76, 20, 460, 210


def main() -> None:
    """Draw the chart."""
    sheet = Sheet(800, 290)
    for shift in (0, -4, -8, -12, -16):
        sheet.line([_place(0, shift), _place(SHOWN_PX, shift)], colour=GREY if shift == 0 else PALE)
        sheet.text((LEFT - 8, _place(0, shift)[1]), f"{shift}", size=12, anchor="rm")
    for pixel in range(0, SHOWN_PX + 1, 32):
        sheet.text((_place(pixel, 0)[0], TOP + HEIGHT + 8), f"{pixel}", size=12, anchor="ma")
    sheet.text((LEFT + WIDTH / 2, TOP + HEIGHT + 28), "pixel of the window", size=12, anchor="ma")
    for n_px, colour in ((64, ORANGE), (128, RED), (256, PURPLE)):
        read = functional.interpolate(_positions(n_px), size=(1, n_px), mode="bilinear", align_corners=True)
        _draw(sheet, read, colour)
    _draw(sheet, upsample(_positions(SHOWN_PX), STRIDE, "centre"), BLUE)
    _draw(sheet, upsample(_positions(SHOWN_PX + STRIDE), STRIDE, "corner"), GREEN)
    _write(sheet)
    sheet.save("cells.png")


def _positions(n_px: int) -> Tensor:
    """Return features (1, 1, 1, cells) whose values are the pixels at which their kernels are centred."""
    return torch.arange(0, n_px, STRIDE, dtype=torch.float32).reshape(1, 1, 1, -1)


def _draw(sheet: Sheet, read: Tensor, colour: Colour) -> None:
    """Draw how far from each pixel the place lies that was read for it."""
    values: NDArray = read[0, 0, 0, :SHOWN_PX].numpy()
    sheet.line([_place(pixel, float(value) - pixel) for pixel, value in enumerate(values)], colour=colour, line=2)


def _place(pixel: float, shift: float) -> tuple[float, float]:
    return LEFT + WIDTH * pixel / SHOWN_PX, TOP - HEIGHT * shift / 16


def _write(sheet: Sheet) -> None:
    lines = {
        "centre, inside any window": BLUE,
        "corner, any window": GREEN,
        "align_corners=True, 64 px": ORANGE,
        "align_corners=True, 128 px": RED,
        "align_corners=True, 256 px": PURPLE,
    }
    for row, (text, colour) in enumerate(lines.items()):
        sheet.rectangle((564, 30 + 26 * row, 580, 36 + 26 * row), fill=colour)
        sheet.text((588, 33 + 26 * row), text, size=12, anchor="lm")
    sheet.text(
        (564, 170),
        "How far from a pixel the place\nlies whose features it gets, px\n(minus: left of it), at output\nstride 16",
        size=12,
    )


if __name__ == "__main__":
    main()
