"""Which sizes does a window have at several scales, and which can be seen at all of them?"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from pipeline.network.spec import MultiScaleSpec


def scaled_px(side_px: int, scale: float, output_stride: int) -> int:
    """Return the side of a window at another scale, px: the nearest multiple of the output stride, at least one.

    A side of one pixel more than a multiple, as networks with aligned corners have it, keeps that pixel.
    """
    beyond = 1 if side_px % output_stride == 1 else 0
    return max(round((side_px - beyond) * scale / output_stride), 1) * output_stride + beyond


def unit_px(spec: MultiScaleSpec, output_stride: int) -> int:
    """Return the smallest side whose multiples are multiples of the output stride at every scale, px."""
    return output_stride * math.lcm(*(exactly(scale).denominator for scale in spec.scales))


def check_scales(spec: MultiScaleSpec, *, window_px: int, step_px: int, output_stride: int, exact: bool) -> None:
    """Raise SpecError unless windows of ``window_px``, ``step_px`` apart, can be seen at all scales.

    Parameters
    ----------
    spec
        The scales.
    window_px, step_px
        Side and distance of the network windows, px.
    output_stride
        Of the network.
    exact
        Whether two windows must agree where they overlap; then their distance, too, must be a multiple of the output stride at
        every scale.
    """
    for scale in spec.scales:
        if window_px * scale < output_stride:
            raise SpecError(
                f"the scale {scale:g} makes a window of {window_px} px smaller than the network's output stride of {output_stride} px; use "
                f"a scale of at least {output_stride / window_px:.3g}, or a larger --window"
            )
        if exact and scale != 1 and (window_px * exactly(scale) % output_stride or step_px * exactly(scale) % output_stride):
            unit = output_stride * exactly(scale).denominator
            raise SpecError(
                f"blend 'exact' was asked for with the scale {scale:g}, a window of {window_px} px and windows {step_px} px apart; at that "
                f"scale both must be multiples of the output stride of {output_stride} px: make --window and --overlap multiples of {unit}"
            )


def exactly(scale: float) -> Fraction:
    """Return a scale as the fraction that was meant: 0.1 is 1/10."""
    return Fraction(scale).limit_denominator(1000)
