"""Draw what the shipped model does on the sample scene: ``stride.png``, ``finer-grid.png``, ``influence.png``, ``crf.png``.

Run from the repository, with the extra ``crf`` installed: ``python docs/img/deeplab_scene.py``. It prints the numbers that the page gives.
"""  # noqa: INP001 - a script beside its pictures

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from drawing import BLUE, GREY, INK, ORANGE, PALE, Sheet, heat

from pipeline.crf import pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.network.checkpoint import load_network
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.receptive_field import margin_px, receptive_field
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, open_scene
from pipeline.stretch import Stretch
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.network.spec import ModelSpec

SCENE = Path(__file__).parents[2] / "examples" / "dubai-tile2.tif"
AROUND = Window(row_off=256, col_off=448, height=1024, width=1024)
"""What the network and the CRF see."""
SHOWN = Window(row_off=592, col_off=848, height=384, width=384)
"""What is shown of it: houses, roads, a roundabout, the shore of a lake."""
DARK = (40, 40, 60)


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The shipped model and one window of the sample scene."""

    model: ModelSpec
    network: DeepLab
    rgb: NDArray[np.uint8]
    """(3, height, width), as in the scene."""
    pixels: torch.Tensor
    """The same, normalised, (1, 3, height, width)."""

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(classes, height, width) of the window."""
        with torch.inference_mode():
            return torch.softmax(self.network(self.pixels), dim=1)[0].numpy()

    def painted(self, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return (height, width) labels in the colours of the classes."""
        return np.array([one.rgb for one in self.model.classes], np.uint8)[labels]


def main() -> None:
    """Draw all."""
    shipped = open_at(AROUND)
    draw_stride(shipped)
    draw_finer_grid(shipped)
    draw_influence(shipped)
    draw_crf(shipped)


def open_at(window: Window) -> Shipped:
    """Return the model with a window of the scene."""
    model, network = load_network(resolve_model(DEFAULT_MODEL))
    tile = open_scene(SceneSpec(uri=str(SCENE), bands=(1, 2, 3))).read(window)
    pixels = normalise(tile, window, stretch=Stretch.identity(3), model=model)
    return Shipped(model=model, network=network, rgb=tile.pixels, pixels=torch.from_numpy(pixels)[None])


def shown(values: NDArray) -> NDArray:
    """Return the part of (..., height, width) that is shown."""
    return values[(..., *SHOWN.relative_to(AROUND).to_slices())]


# What a stride loses


def draw_stride(shipped: Shipped) -> None:
    """Draw a label map, and the best that one label per cell can keep of it."""
    labels = shown(shipped.probabilities.argmax(axis=0))
    panels = {"scene": np.moveaxis(shown(shipped.rgb), 0, -1), "labels": shipped.painted(labels)}
    for stride in (8, 32):
        kept = _most_frequent(labels, stride)
        panels[f"one label per {stride} x {stride} px"] = shipped.painted(kept)
        print(f"stride {stride}: {(kept == labels).mean():.1%} of the labels are kept")  # noqa: T201
    sheet = Sheet(800, 215)
    for index, (title, pixels) in enumerate(panels.items()):
        sheet.text((16 + 196 * index, 8), title, size=13)
        sheet.picture(pixels, (16 + 196 * index, 28), (180, 180), smooth=index == 0)
    sheet.save("stride.png", n_colours=160)


def _most_frequent(labels: NDArray[np.integer], side: int) -> NDArray[np.integer]:
    """Return the map in which each square of ``side`` px has its most frequent label."""
    cells = labels.reshape(labels.shape[0] // side, side, -1, side)
    counts = np.stack([(cells == label).sum(axis=(1, 3)) for label in range(labels.max() + 1)])
    return counts.argmax(axis=0).repeat(side, axis=0).repeat(side, axis=1)


# A stride becomes a rate


def draw_finer_grid(shipped: Shipped) -> None:
    """Draw one channel of the last features at three output strides, with the same weights."""
    features = {stride: _features(shipped, stride) for stride in (32, 16, 8)}
    for stride in (16, 8):
        shared = features[stride][:, :: 32 // stride, :: 32 // stride]
        difference = np.abs(shared - features[32]).max()
        print(f"output stride {stride}: shared cells differ by {difference:.0e} of {np.abs(shared).max():.1f}")  # noqa: T201
    channel = int(features[32].std(axis=(1, 2)).argmax())
    low, high = np.percentile(features[8][channel], (2, 98))
    sheet = Sheet(800, 300)
    for index, (stride, values) in enumerate(features.items()):
        left, side = 16 + 262 * index, 244
        cells = values[channel][tuple(slice(s.start // stride, s.stop // stride) for s in SHOWN.relative_to(AROUND).to_slices())]
        sheet.text((left, 8), f"output stride {stride}: {len(cells)} x {len(cells)} cells", size=13)
        sheet.picture(heat((cells - low) / (high - low)), (left, 28), (side, side))
        pitch = side * stride / SHOWN.width
        for row in range(0, len(cells), 32 // stride):
            for col in range(0, len(cells), 32 // stride):
                sheet.dot((left + pitch * (col + 0.5), 28 + pitch * (row + 0.5)), 1.7, fill=BLUE)
    sheet.text(
        (16, 278), "One channel of the backbone's last features. Cells with a dot hold the same number in all three.", size=12
    )
    sheet.save("finer-grid.png", n_colours=160)


def _features(shipped: Shipped, output_stride: int) -> NDArray[np.float32]:
    """Return the last features (channels, height, width) of the shipped weights at another output stride."""
    network = build_network(replace(shipped.network.spec, output_stride=output_stride))
    network.load_state_dict(shipped.network.state_dict())
    with torch.inference_mode():
        return network.eval().features(shipped.pixels).high_level[0].numpy()


# How far it sees

HALF = 480
TARGETS = tuple(Window(row_off=row, col_off=col, height=1024, width=1024) for row in (0, 608) for col in (0, 504))
"""The four corners of the scene, so that the four middles lie far apart."""


def draw_influence(shipped: Shipped) -> None:
    """Draw how much the pixels around a pixel matter to its logits, and how much of it lies within which distance."""
    influence = _influence()
    margin, reach = margin_px(shipped.network), receptive_field(shipped.network)
    assert margin is not None
    assert reach is not None
    assert not influence[np.maximum(*np.abs(np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1])) > margin].any()
    sheet = Sheet(800, 344)
    side = 290
    strongest = np.log10(np.maximum(influence / influence.max(), 1e-6))
    sheet.picture(heat(strongest / 6 + 1), (16, 16), (side, side), smooth=True)
    edge = side / 2 * (1 - margin / HALF)
    sheet.rectangle((16 + edge, 16 + edge, 16 + side - edge, 16 + side - edge), outline=BLUE, line=1.5)
    sheet.rectangle((16, 16, 16 + side, 16 + side), outline=GREY)
    sheet.text((16, 318), f"{2 * HALF} x {2 * HALF} px", size=11)
    sheet.text((150, 318), "1/1,000,000", size=11, anchor="ra")
    sheet.picture(heat(np.linspace(0, 1, 64)[None]), (156, 319), (60, 11))
    sheet.text((222, 318), "1 of the strongest", size=11)
    print(f"receptive field: {reach.before_px} px before, {reach.after_px} px after")  # noqa: T201
    _draw_within(sheet, influence, margin)
    sheet.save("influence.png", n_colours=160)


def _influence() -> NDArray[np.float64]:
    """Return the mean size of the gradient of the highest logit around a pixel, over the middles of `TARGETS`; sums to 1."""
    total = np.zeros((2 * HALF + 1, 2 * HALF + 1))
    for window in TARGETS:
        there = open_at(window)
        middle = window.height // 2
        pixels = there.pixels.clone().requires_grad_()
        there.network(pixels)[0, :, middle, middle].max().backward()
        assert pixels.grad is not None
        around = slice(middle - HALF, middle + HALF + 1)
        total += pixels.grad[0].abs().sum(0).numpy()[around, around]
    return total / total.sum()


def _draw_within(sheet: Sheet, influence: NDArray[np.float64], margin: int) -> None:
    left, top, width, height = 400, 24, 370, 240
    distance = np.maximum(*np.abs(np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]))
    within = np.cumsum(np.bincount(distance.ravel(), weights=influence.ravel()))
    for share in (0, 0.5, 0.9, 1):
        y = top + height * (1 - share)
        sheet.line([(left, y), (left + width, y)], colour=PALE)
        sheet.text((left - 8, y), f"{share:.0%}", size=12, anchor="rm")
        if 0 < share < 1:
            print(f"{share:.0%} of the influence lies within {int(np.searchsorted(within, share))} px")  # noqa: T201
    for px in range(0, HALF + 1, 96):
        sheet.text((left + width * px / HALF, top + height + 8), f"{px}", size=12, anchor="ma")
    sheet.text((left + width / 2, top + height + 28), "distance to the pixel, px", size=12, anchor="ma")
    sheet.line([(left + width * px / HALF, top + height * (1 - share)) for px, share in enumerate(within)], colour=ORANGE, line=2)
    x = left + width * margin / HALF
    sheet.line([(x, top), (x, top + height)], colour=BLUE, line=1.5)
    sheet.text((x - 6, top + height / 2), f"margin\n{margin} px", size=12, colour=BLUE, anchor="rm")


# CRF


def draw_crf(shipped: Shipped) -> None:
    """Draw labels and probabilities before and after the CRF."""
    before = shipped.probabilities
    valid = np.ones(AROUND.shape, bool)
    after = pydensecrf.refine(before, Stretch.identity(3).apply(shipped.rgb), valid, CrfSpec())
    labels = [shown(p.argmax(axis=0)) for p in (before, after)]
    print(f"the CRF changes {(labels[0] != labels[1]).mean():.1%} of the labels shown")  # noqa: T201
    for name, p in (("before", before), ("after", after)):
        print(f"{name}: mean highest probability {shown(p).max(axis=0).mean():.2f}")  # noqa: T201
    sheet = Sheet(800, 566)
    columns = (16, 278, 540)
    for left, title in zip(columns, ("scene", "without the CRF", "with the CRF"), strict=True):
        sheet.text((left, 8), title, size=14)
    sheet.picture(np.moveaxis(shown(shipped.rgb), 0, -1), (columns[0], 30), (244, 244), smooth=True)
    chosen = next(i for i, one in enumerate(shipped.model.classes) if one.name == "building")
    for left, p in zip(columns[1:], (before, after), strict=True):
        sheet.picture(shipped.painted(shown(p.argmax(axis=0))), (left, 30), (244, 244))
        sheet.text((left, 284), "probability of building", size=12)
        sheet.picture(heat(shown(p)[chosen]), (left, 302), (244, 244))
        sheet.rectangle((left, 302, left + 244, 546), outline=GREY)
    _draw_legend(sheet, shipped, (columns[0], 304))
    sheet.save("crf.png", n_colours=256)


def _draw_legend(sheet: Sheet, shipped: Shipped, at: tuple[float, float]) -> None:
    for row, one in enumerate(shipped.model.classes):
        y = at[1] + 22 * row
        sheet.rectangle((at[0], y, at[0] + 14, y + 14), fill=one.rgb, outline=INK, line=0.5)
        sheet.text((at[0] + 24, y + 7), one.name, size=12, anchor="lm")
    y = at[1] + 22 * len(shipped.model.classes) + 16
    sheet.picture(heat(np.linspace(0, 1, 140)[None]), (at[0], y), (140, 14))
    sheet.rectangle((at[0], y, at[0] + 140, y + 14), outline=GREY, line=0.5)
    sheet.text((at[0], y + 20), "0", size=12)
    sheet.text((at[0] + 140, y + 20), "1", size=12, anchor="ra")


if __name__ == "__main__":
    main()
