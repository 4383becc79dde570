"""Draw ``blocks.png``: which windows one block needs, as the code works them out.

Run from the repository: ``python docs/img/blocks.py``.
"""  # noqa: INP001 - a script beside its picture

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from pipeline.crf.energy import CrfSpec
from pipeline.grid import Blocks
from pipeline.locate import crf_lattice, locate, network_lattice
from pipeline.scene import SceneSpec
from pipeline.spec import GridSpec, SegmentSpec
from pipeline.stretch import Stretch

if TYPE_CHECKING:
    from pipeline.window import Window

SHAPE = (4300, 5200)
BLOCK = (0, 1)
SCALE = 0.1
PANEL = (600, 640)
ORIGIN = (30, 70)
INK, GREY, BLUE, ORANGE, GREEN = (40, 40, 40), (170, 170, 170), (60, 110, 190), (230, 150, 60), (60, 140, 90)


def main() -> None:
    """Draw both panels and write the file."""
    image = Image.new("RGB", (2 * PANEL[0], PANEL[1]), "white")
    for column, crf in enumerate((None, CrfSpec())):
        image.paste(_panel(crf), (column * PANEL[0], 0))
    image.quantize(64).save(Path(__file__).with_name("blocks.png"), optimize=True)


def _panel(crf: CrfSpec | None) -> Image.Image:
    spec = SegmentSpec(
        scene=SceneSpec(uri="scene.tif", bands=(1, 2, 3)),
        model_path="",
        model_sha256="",
        stretch=Stretch.identity(3),
        grid=GridSpec(block_px=2048),
        crf=crf,
    )
    windows = locate(BLOCK, shape=SHAPE, spec=spec)
    image = Image.new("RGB", PANEL, "white")
    draw = ImageDraw.Draw(image, "RGBA")
    draw.rectangle(_box(windows.write), fill=(*ORANGE, 130))
    lattice = network_lattice(SHAPE, spec)
    for index in windows.network:
        draw.rectangle(_box(lattice.window(index), inset=sum(index) % 2 * 3), fill=(*BLUE, 26), outline=BLUE)
    blocks = Blocks(shape=SHAPE, block_px=spec.grid.block_px)
    for index in blocks:
        draw.rectangle(_box(blocks.window(index)), outline=GREY, width=1)
    if crf is not None:
        for index in windows.crf:
            draw.rectangle(_box(crf_lattice(SHAPE, crf).window(index)), outline=GREEN, width=1)
        draw.rectangle(_box(windows.predict), outline=GREEN, width=3)
    draw.rectangle(_box(windows.write), outline=ORANGE, width=4)
    draw.rectangle((*ORIGIN, ORIGIN[0] + SHAPE[1] * SCALE, ORIGIN[1] + SHAPE[0] * SCALE), outline=INK, width=2)
    _write(draw, "with --crf" if crf else "without CRF", len(windows.network), with_crf=crf is not None)
    return image


def _write(draw: ImageDraw.ImageDraw, title: str, n_windows: int, *, with_crf: bool) -> None:
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    draw.text((ORIGIN[0], 8), title, fill=INK, font=font)
    lines = [
        (ORANGE, "write window: the block of 2048 px, written by nobody else"),
        (BLUE, f"the {n_windows} network windows of 1024 px that it needs (overlap 256 px)"),
    ]
    if with_crf:
        lines.append((GREEN, "its CRF tiles, here of 1024 px, and the hull of their halos of 148 px"))
    lines.append((GREY, "the other blocks; black: the edge of the scene"))
    for row, (colour, text) in enumerate(lines):
        top = 535 + 24 * row
        draw.rectangle((ORIGIN[0], top + 3, ORIGIN[0] + 14, top + 15), fill=colour)
        draw.text((ORIGIN[0] + 24, top), text, fill=INK, font=small)


def _box(window: Window, inset: int = 0) -> tuple[float, float, float, float]:
    """Return the window in the picture's pixels; ``inset`` keeps neighbouring outlines apart."""
    left, top = ORIGIN[0] + window.col_off * SCALE, ORIGIN[1] + window.row_off * SCALE
    right, bottom = left + window.width * SCALE, top + window.height * SCALE
    return left + inset, top + inset, right - inset, bottom - inset


if __name__ == "__main__":
    main()
