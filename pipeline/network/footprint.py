"""What does a network cost, and how far does it see? Worked out by `counting` and `receptive_field` once, and kept for the next process."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pipeline.network.kept import kept
from pipeline.network.scales import unit_px
from pipeline.network.spec import MultiScaleSpec

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec

_SAMPLE_PX = 512
"""Beyond windows of this side, memory is taken as proportional to their pixels: it is to within 0.1 per mille."""


def peak_activation_bytes(spec: NetworkSpec, *, window_px: int, multiscale: MultiScaleSpec | None = None) -> int:
    """Return the largest sum of tensors alive at once in one forward pass over one window in float32, bytes.

    Parameters
    ----------
    spec
        The network.
    window_px
        Side of the square window, px.
    multiscale
        The scales that it is run at; None: as it is.
    """
    scales = multiscale or MultiScaleSpec()
    unit = unit_px(scales, spec.output_stride)
    beyond = int(spec.alignment == "corner")  # such networks have sides of one pixel more
    sample_px = min(window_px, max(_SAMPLE_PX // unit, 1) * unit + beyond)
    return round(_peak(spec, sample_px, scales) * (window_px / sample_px) ** 2)


def n_parameters(spec: NetworkSpec) -> int:
    """Return the number of trainable values."""
    return _parameters(spec)[0]


def parameter_bytes(spec: NetworkSpec) -> int:
    """Return the size of all parameters in float32, bytes."""
    return 4 * n_parameters(spec)


def largest_kernel_bytes(spec: NetworkSpec) -> int:
    """Return the size of the largest parameter in float32, bytes: the convolution library makes a reordered copy of one at a time."""
    return 4 * _parameters(spec)[1]


@cache
def margin_px(spec: NetworkSpec, multiscale: MultiScaleSpec) -> int | None:
    """Return how far around an output pixel inputs matter, px: `pipeline.network.receptive_field.margin_px`."""

    def follow() -> int | None:
        from pipeline.network import receptive_field  # noqa: PLC0415  (imports torch)

        return receptive_field.margin_px(spec, multiscale)

    found: int | None = kept("margin in px", [spec.to_dict(), multiscale.to_dict()], follow)
    return found


@cache
def _peak(spec: NetworkSpec, window_px: int, multiscale: MultiScaleSpec) -> int:
    """Return the peak of one window, bytes."""

    def count() -> int:
        from pipeline.network.counting import peak_bytes  # noqa: PLC0415  (imports torch)

        return peak_bytes(spec, window_px, multiscale)

    return int(kept("peak bytes of one window", [spec.to_dict(), window_px, multiscale.to_dict()], count))


@cache
def _parameters(spec: NetworkSpec) -> tuple[int, int]:
    """Return how many trainable values there are, and how many the largest parameter has."""

    def count() -> list[int]:
        from pipeline.network.counting import parameter_sizes  # noqa: PLC0415  (imports torch)

        sizes = parameter_sizes(spec)
        return [sum(sizes), max(sizes)]

    total, largest = kept("parameters, and those of the largest", spec.to_dict(), count)
    return int(total), int(largest)
