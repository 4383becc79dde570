"""How are features brought to a finer grid? Bilinearly, with half-pixel centres.

``align_corners=True`` makes the sampling positions depend on the size of the window, so that two windows that
share pixels would disagree; it is never used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, C, H, W) ``x`` at ``size`` (height, width)."""
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
