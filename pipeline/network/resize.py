"""How are features brought to a finer grid? Bilinearly, by a whole factor, without looking at the size of the window.

``align_corners=True`` on any size makes the sampling positions depend on the size of the window, so that two windows that share pixels
would disagree. It is used here only on k + 1 cells that become ``k * factor + 1``, where it means: cell i lies at position ``factor * i``.

::

    centre   |----0----|----1----|----2----|      cell i lies over the positions factor * i ... factor * i + factor - 1
    corner   0---------1---------2                cell i lies at the position factor * i
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network.choices import Alignment


def upsample(x: Tensor, factor: int, alignment: Alignment) -> Tensor:
    """Return (N, C, H, W) ``x`` on a grid ``factor`` times as fine.

    ``centre`` gives (H * factor, W * factor), ``corner`` gives ((H - 1) * factor + 1, (W - 1) * factor + 1).
    """
    height, width = x.shape[-2:]
    if alignment == "centre":
        return resize_bilinear(x, (height * factor, width * factor))
    size = ((height - 1) * factor + 1, (width - 1) * factor + 1)
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, C, H, W) ``x`` at ``size`` (height, width), with half-pixel centres."""
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
