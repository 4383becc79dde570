"""Draw which cells a convolution sees: ``atrous-1d.png``, ``atrous-2d.png``, ``fc6.png``, ``aspp-rates.png``, ``valid-taps.png``.

Nothing is painted by hand: a cell is coloured where the gradient of the real layer is not zero.
Run from the repository: ``python docs/img/deeplab_atrous.py``.
"""  # noqa: INP001 - a script beside its pictures

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, Sheet, shaded
from torch import nn

from pipeline.network.aspp import ASPP, ImagePooling
from pipeline.network.convolution import convolution
from pipeline.network.features import BackboneModule
from pipeline.network.footprint import n_parameters
from pipeline.network.score_branches import ScoreBranches
from pipeline.network.spec import NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from drawing import Colour, Point
    from numpy.typing import NDArray

RATE_COLOURS = (GREEN, BLUE, ORANGE, RED)


def main() -> None:
    """Draw all."""
    torch.manual_seed(0)
    draw_1d()
    draw_2d()
    draw_fc6()
    draw_aspp()
    draw_valid_taps()


def seen(layer: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], cell: tuple[int, int]) -> NDArray[np.float32]:
    """Return how much one cell of what ``layer`` gives depends on each cell (height, width) of its input."""
    x = torch.ones(1, *shape, requires_grad=True)
    layer(x)[0, :, *cell].sum().backward()
    assert x.grad is not None
    return x.grad.abs().sum((0, 1)).numpy()


# One dimension

N_CELLS = 17
CELL = 8
"""The cell of the input above which both ways have an answer."""


def draw_1d() -> None:
    """Draw a stride of 2 and the rate of 2 that replaces it, with the same weights."""
    first, second = (convolution(1, 1, kernel=3) for _ in range(2))
    for layer in (first, second):
        nn.init.uniform_(layer.weight, 0.1, 1)
    ways = {
        "with a stride: an answer at every second cell": (_like(first, stride=2), _like(second)),
        "the stride became a rate: an answer at every cell": (_like(first), _like(second, rate=2)),
    }
    signal = torch.rand(1, 1, 1, N_CELLS)
    answers = [layers[1](layers[0](signal))[0, 0, 0].detach().numpy() for layers in ways.values()]
    assert np.allclose(answers[0], answers[1][::2], atol=1e-6)
    sheet = Sheet(800, 330)
    for (title, layers), answer, left in zip(ways.items(), answers, (20, 425), strict=True):
        _draw_way(sheet, title, layers, left)
        _draw_bars(sheet, answer, left)
        sheet.text((left, 264), f"{len(answer)} answers for {N_CELLS} input cells", size=12)
    sheet.text(
        (20, 300), "Bars: the answers, computed with the same random weights on both sides. The orange ones are equal.", size=12
    )
    sheet.save("atrous-1d.png")


def _like(layer: nn.Conv2d, *, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    """Return a convolution with the same weights and another stride or rate."""
    other = convolution(1, 1, kernel=3, stride=stride, rate=rate)
    other.load_state_dict(layer.state_dict())
    return other


def _draw_way(sheet: Sheet, title: str, layers: tuple[nn.Conv2d, nn.Conv2d], left: float) -> None:
    """Draw the cells of three levels, and what one cell of the last one sees."""
    rows, steps = (215.0, 160.0, 105.0), (1, layers[0].stride[1], layers[0].stride[1])
    sheet.text((left, 12), title, size=14)
    used = [set(), set(), {CELL // steps[2]}]
    for level in (1, 0):
        n = -(-N_CELLS // steps[level])
        for cell in used[level + 1]:
            for tap in np.flatnonzero(seen(layers[level], (1, 1, n), (0, cell))[0]).tolist():
                ends = _x(left, steps[level] * tap), _x(left, steps[level + 1] * cell)
                sheet.line([(ends[0], rows[level]), (ends[1], rows[level + 1])], colour=BLUE, line=1.2)
                used[level].add(tap)
    for level, name in enumerate(("input", "layer 1", "layer 2")):
        for cell in range(-(-N_CELLS // steps[level])):
            fill, outline = (BLUE, BLUE) if cell in used[level] else (PALE, GREY)
            sheet.dot((_x(left, steps[level] * cell), rows[level]), 5, fill=fill, outline=outline)
        sheet.text((left, rows[level] + 9), name, size=10.5, colour=(110, 110, 110))
    words = [f"layer {i}: 3 taps, stride {layer.stride[1]}, rate {layer.dilation[1]}" for i, layer in enumerate(layers, 1)]
    sheet.text((left, 245), "     ".join(words), size=12)


def _draw_bars(sheet: Sheet, answer: NDArray[np.float32], left: float) -> None:
    step = -(-N_CELLS // len(answer))
    for cell, value in enumerate(answer):
        x, shared = _x(left, step * cell), step * cell % 2 == 0
        sheet.rectangle((x - 4, 92 - 12 * value, x + 4, 92), fill=ORANGE if shared else PALE, outline=ORANGE if shared else GREY)


def _x(left: float, cell: int) -> float:
    return left + 6 + 21 * cell


# Two dimensions


def draw_2d() -> None:
    """Draw the cells that a 3 x 3 kernel sees at three rates, and the three behind each other."""
    layers = {rate: convolution(1, 1, kernel=3, rate=rate) for rate in (1, 2, 4)}
    for layer in layers.values():
        nn.init.ones_(layer.weight)
    panels: dict[str, tuple[nn.Module, str]] = {f"rate {rate}": (layer, "9 weights") for rate, layer in layers.items()}
    panels["rates 1, 2, 4 in a row"] = nn.Sequential(*layers.values()), "27 weights"
    sheet = Sheet(800, 252)
    for index, (title, (layer, weights)) in enumerate(panels.items()):
        values = seen(layer, (1, 17, 17), (8, 8))
        side = int(np.ptp(np.flatnonzero(values.any(axis=0)))) + 1
        left = 20 + 196 * index
        sheet.text((left, 10), title, size=14)
        draw_cells(sheet, 0.35 * (values > 0) + 0.65 * values / values.max(), (left, 36), 170, colour=BLUE)
        sheet.text((left, 214), f"{weights}, {side} x {side} cells wide", size=12)
    sheet.save("atrous-2d.png")


def draw_cells(sheet: Sheet, values: NDArray[np.floating], at: Point, side: float, *, colour: Colour) -> None:
    """Draw a grid of cells, darker where the value is higher, with a ring at the centre."""
    n = len(values)
    pitch = side / n
    sheet.picture(shaded(values, colour), at, (side, side))
    for index in range(n + 1):
        sheet.line([(at[0], at[1] + pitch * index), (at[0] + side, at[1] + pitch * index)], colour=PALE, line=0.5)
        sheet.line([(at[0] + pitch * index, at[1]), (at[0] + pitch * index, at[1] + side)], colour=PALE, line=0.5)
    middle = (at[0] + side / 2, at[1] + side / 2)
    sheet.dot(middle, 0.62 * pitch, fill=None, outline=ORANGE, line=1.5)


# fc6 of v1


def draw_fc6() -> None:
    """Draw the taps of the four forms of fc6, with the parameters of the whole network."""
    forms = ((7, 4, 4096), (4, 4, 4096), (4, 8, 4096), (3, 12, 1024))
    sheet = Sheet(800, 280)
    for index, (kernel, rate, channels) in enumerate(forms):
        spec = NetworkSpec(
            architecture="deeplabv1", backbone="vgg16", output_stride=8, n_classes=21, image_pooling="off",
            head_kernel=kernel, atrous_rates=(rate,), head_channels=channels,
        )  # fmt: skip
        values = seen(convolution(1, 1, kernel=kernel, rate=rate, bias=True), (1, 27, 27), (13, 13))
        left = 20 + 196 * index
        sheet.text((left, 10), f"{kernel} x {kernel}, rate {rate}" + (" (LargeFOV)" if kernel == 3 else ""), size=14)
        draw_cells(sheet, 1.0 * (values > 0), (left, 36), 170, colour=BLUE)
        span = (kernel - 1) * rate * spec.output_stride
        sheet.text((left, 213), f"{channels} channels\n{n_parameters(spec) / 1e6:.1f} M parameters\ntaps span {span} px", size=12)
    sheet.save("fc6.png")


# ASPP


def draw_aspp() -> None:
    """Draw the cells that the branches of v2 and v3 see, one colour a branch, on one scale in pixels."""
    v2 = NetworkSpec(
        architecture="deeplabv2",
        backbone="resnet101",
        output_stride=8,
        n_classes=3,
        image_pooling="off",
        atrous_rates=(6, 12, 18, 24),
    )
    v3 = {"architecture": "deeplabv3", "backbone": "resnet50", "n_classes": 3, "separable": False, "image_pooling": "window"}
    panels = {
        "v2, ASPP-L, output stride 8": (v2, ScoreBranches(_Channels(), v2).branches),
        "v3, output stride 16": _v3_panel(NetworkSpec(output_stride=16, **v3)),
        "v3, output stride 8": _v3_panel(NetworkSpec(output_stride=8, **v3)),
    }
    sheet = Sheet(800, 350)
    for index, (title, (spec, branches)) in enumerate(panels.items()):
        left, side = 20 + 262 * index, 236
        sheet.text((left, 10), title, size=14)
        _draw_branches(sheet, spec, branches, (left, 36), side)
        sheet.text((left, 280), "rates", size=12)
        for column, (rate, colour) in enumerate(zip(spec.effective_atrous_rates, RATE_COLOURS, strict=False)):
            sheet.text((left + 38 + 24 * column, 280), f"{rate}", size=12, colour=colour)
        joined = "summed" if spec.has_score_branches else "with 1 x 1 and the image-level branch"
        sheet.text((left, 296), joined, size=12)
    sheet.text(
        (20, 322), "Each square shows 592 x 592 px around one cell (ring). Tinted everywhere: the image-level branch.", size=12
    )
    sheet.save("aspp-rates.png")


class _Channels(BackboneModule):
    """Stands for a backbone of few channels: where a branch looks does not depend on how many there are."""

    high_level_channels = 4


def _v3_panel(spec: NetworkSpec) -> tuple[NetworkSpec, nn.ModuleList]:
    return spec, ASPP(4, spec).eval().branches


def _draw_branches(sheet: Sheet, spec: NetworkSpec, branches: nn.ModuleList, at: Point, side: float) -> None:
    n = 592 // spec.output_stride // 2 * 2 + 1
    middle = (n // 2, n // 2)
    pixels = np.full((n, n, 3), 255, np.uint8)
    colours = RATE_COLOURS if spec.has_score_branches else (INK, *RATE_COLOURS[:3], PURPLE)
    for branch, colour in reversed(list(zip(branches, colours, strict=True))):
        values = seen(lambda x, branch=branch: _linear(branch, x), (4, n, n), middle) > 0
        strength = 0.12 if isinstance(branch, ImagePooling) else 1.0
        pixels[values] = shaded(np.array([strength]), colour)[0]
    sheet.picture(pixels, at, (side, side))
    sheet.rectangle((*at, at[0] + side, at[1] + side), outline=GREY)
    sheet.dot((at[0] + side / 2, at[1] + side / 2), 7, fill=None, outline=INK)


def _linear(branch: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run a branch of v2 on ``x``, or the convolution of a branch of v3 without its ReLU, which could hide a tap."""
    if isinstance(branch, ImagePooling):
        return branch.project.conv(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
    return branch.conv(x) if hasattr(branch, "conv") else branch(x, [])


def draw_valid_taps() -> None:
    """Draw how many of nine taps fall inside 65 x 65 features as the rate grows (the experiment of v3, figure 4)."""
    rates = np.arange(1, 71)
    shares = np.array([_shares(int(rate)) for rate in rates])
    sheet = Sheet(800, 260)
    left, top, width, height = 70, 20, 480, 190
    for share in (0, 0.5, 1):
        y = top + height * (1 - share)
        sheet.line([(left, y), (left + width, y)], colour=PALE)
        sheet.text((left - 8, y), f"{share:.0%}", size=12, anchor="rm")
    for rate in range(0, 71, 10):
        sheet.text((left + width * rate / 70, top + height + 8), f"{rate}", size=12, anchor="ma")
    sheet.text((left + width / 2, top + height + 26), "atrous rate, cells", size=12, anchor="ma")
    for column, (name, colour) in enumerate({"all 9 taps": BLUE, "4 or 6 taps": ORANGE, "the middle one alone": RED}.items()):
        points = [
            (left + width * rate / 70, top + height * (1 - value)) for rate, value in zip(rates, shares[:, column], strict=True)
        ]
        sheet.line(points, colour=colour, line=2)
        sheet.rectangle((580, 40 + 26 * column, 596, 46 + 26 * column), fill=colour)
        sheet.text((606, 43 + 26 * column), name, anchor="lm")
    sheet.text(
        (580, 130),
        "Share of the cells of 65 x 65\nfeatures (513 px at stride 8)\nin which so many taps of a\n3 x 3 kernel are inside",
        size=12,
    )
    sheet.save("valid-taps.png")


def _shares(rate: int) -> tuple[float, float, float]:
    layer = convolution(1, 1, kernel=3, rate=rate)
    nn.init.ones_(layer.weight)
    inside = layer(torch.ones(1, 1, 65, 65)).detach().numpy().round()
    return float((inside == 9).mean()), float(((inside > 1) & (inside < 9)).mean()), float((inside == 1).mean())


if __name__ == "__main__":
    main()
