"""How is the fully connected CRF minimised on an accelerator? Mean field over the permutohedral lattice, in torch, several tiles at once.

1. The valid pixels of all tiles are laid end to end, one row of classes each.
2. The appearance kernel is a lattice filter (``torch_filter``), the smoothness kernel a short stencil on the grid (``smoothness``).
3. Every step filters the marginals with both, adds the unary and takes the softmax.

The same code runs on the CPU and on CUDA. All is float32 and added in a fixed order: a tile gives the same bytes whatever else is in the
batch. How many threads a CPU uses is torch's own setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from pipeline.crf.energy import MIN_PROBABILITY
from pipeline.crf.phase import phase
from pipeline.crf.smoothness import taps
from pipeline.crf.torch_filter import build_filter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.crf.energy import CrfSpec
    from pipeline.crf.torch_filter import Filter
    from pipeline.window import Window

_BYTES_PER_PIXEL = 100
"""Features, guide, tile numbers and masks."""
_COPIES = 7
"""Scores, marginals, messages and grids, in units of one float32 array of all classes."""
_BYTES_PER_CORNER = 60
"""Entries, keys and numbers of vertices while the lattice is built, for each of the d + 1 corners of a pixel."""
_BYTES_PER_DIRECTION = 12
"""A vertex and its two neighbours, for each vertex and each of d + 1 directions."""
_BYTES_OF_CHUNK = 2**26
"""Working copies of the pixels that are lifted at once."""


def require() -> None:
    """Do nothing: torch is always installed."""


def tile_bytes(n_pixels: int, *, n_classes: int, n_bands: int) -> int:
    """Return an upper bound of what refining a tile of so many pixels holds beside its arguments, bytes.

    It holds when every corner of every pixel is a vertex of its own; imagery needs less. Measured as the growth of the peak resident size
    at 1200 x 1400 px, 0 to 6 bands and 2 to 21 classes: on noise 82 to 93 % of the bound from 3 bands on, on a flat image a third of it.
    """
    n_corners = n_bands + 3
    values = 2 * 4 * max(n_classes, 4)
    corner = _BYTES_PER_CORNER + _BYTES_PER_DIRECTION * n_corners + values
    return n_pixels * (n_corners * corner + _COPIES * 4 * n_classes + _BYTES_PER_PIXEL) + _BYTES_OF_CHUNK


def refine(  # noqa: PLR0913
    probabilities: NDArray[np.float32],
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    spec: CrfSpec,
    *,
    offset_px: tuple[int, int] = (0, 0),
    core: Window | None = None,  # noqa: ARG001
    threads: int = 1,  # noqa: ARG001  # torch has one setting for the whole process, which is not ours to change
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Refine the probabilities of one tile: `pipeline.crf.backends.Backend.refine`, on ``device``.

    How many threads a CPU uses is torch's own setting.
    """
    refined = refine_batch(probabilities[None], guide[None], valid[None], spec, offsets_px=[offset_px], device=device)
    return refined.reshape(probabilities.shape)


def refine_batch(
    probabilities: NDArray[np.float32],
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    spec: CrfSpec,
    *,
    offsets_px: Sequence[tuple[int, int]],
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Refine the probabilities of several tiles of one shape: every argument as in ``refine``, with the tile as first axis."""
    if not valid.any():
        return probabilities.copy()
    refined = torch.tensor(probabilities, dtype=torch.float32, device=device)
    mask = torch.tensor(valid, device=device)
    by_pixel = refined.permute(0, 2, 3, 1)
    with torch.inference_mode():
        unary = by_pixel[mask].clamp_(MIN_PROBABILITY, 1.0).log_()
        tile = mask.nonzero()[:, 0]
        kernels: list[Filter | Stencil] = []
        if spec.w_appearance > 0:
            features = _features(torch.tensor(guide, dtype=torch.float32, device=device), mask, offsets_px, spec)
            kernels.append(build_filter(features, tile, n_tiles=len(mask), weight=spec.w_appearance))
        if spec.w_smoothness > 0:
            kernels.append(_build_stencil(mask, spec))
        by_pixel[mask] = _mean_field(unary, kernels, tile, spec, n_tiles=len(mask))
    result: NDArray[np.float32] = refined.cpu().numpy()
    return result


def _features(guide: Tensor, mask: Tensor, offsets_px: Sequence[tuple[int, int]], spec: CrfSpec) -> Tensor:
    """Return rows, columns and guide values of the valid pixels in units of their thetas, in pydensecrf's order: (2 + bands, pixels)."""
    n_features = 2 + guide.shape[1]
    shifts = torch.tensor([phase(offset, theta_px=spec.theta_alpha, n_features=n_features) for offset in offsets_px])
    pixels = mask.nonzero()
    places = pixels[:, 1:].to(torch.float32) + shifts.to(mask.device, torch.float32)[pixels[:, 0]]
    return torch.cat([places.T / spec.theta_alpha, guide.transpose(0, 1)[:, mask] / spec.theta_beta])


class Stencil(NamedTuple):
    """The smoothness kernel of some tiles, normalised and weighted."""

    mask: Tensor
    """(tiles, height, width) bool: valid pixels."""
    taps: tuple[float, ...]
    """The kernel along one axis, from its centre outwards."""
    before: Tensor
    """(pixels, 1) float32: factor of what a pixel says."""
    after: Tensor
    """(pixels, 1) float32: factor of what a pixel hears."""

    def apply(self, values: Tensor) -> Tensor:
        """Return what each pixel hears from those around it, for (pixels, classes) float32 values."""
        grid = values.new_zeros((*self.mask.shape, values.shape[1]))
        grid[self.mask] = values * self.before
        for axis in (1, 2):
            grid = _smooth(grid, axis, self.taps)
        return grid[self.mask] * self.after


def _build_stencil(mask: Tensor, spec: CrfSpec) -> Stencil:
    kernel = taps(spec.theta_gamma)
    ones = torch.ones((int(mask.sum()), 1), device=mask.device)
    stencil = Stencil(mask=mask, taps=tuple(kernel[len(kernel) // 2 :].tolist()), before=ones, after=ones)
    norm = (stencil.apply(ones) + 1e-20).rsqrt_()
    return stencil._replace(before=norm, after=norm * spec.w_smoothness)


def _smooth(grid: Tensor, axis: int, kernel: tuple[float, ...]) -> Tensor:
    """Sum each pixel and its neighbours along one axis, 0 outside the tile.

    Additions rather than a convolution: as quick on a CPU, and cuDNN would round to TF32 unless a global setting forbids it.
    """
    length = grid.shape[axis]
    smoothed = grid * kernel[0]
    for distance, tap in enumerate(kernel[1:length], start=1):
        there = length - distance
        smoothed.narrow(axis, distance, there).add_(grid.narrow(axis, 0, there), alpha=tap)
        smoothed.narrow(axis, 0, there).add_(grid.narrow(axis, distance, there), alpha=tap)
    return smoothed


def _mean_field(unary: Tensor, kernels: Sequence[Filter | Stencil], tile: Tensor, spec: CrfSpec, *, n_tiles: int) -> Tensor:
    """Return the marginals, for log P as ``unary``: both (pixels, classes). A tile that has come to rest stays as it is."""
    marginals = _softmax_(unary.clone())
    moves = torch.ones(n_tiles, dtype=torch.bool, device=unary.device)
    for _ in range(spec.n_steps if kernels else 0):
        moved = _softmax_(_scores(unary, marginals, kernels, spec))
        if spec.stop_below == 0:
            marginals = moved
            continue
        change = (moved - marginals).abs_().amax(dim=1)
        marginals = torch.where(moves[tile, None], moved, marginals)
        moves &= change.new_zeros(n_tiles).scatter_reduce_(0, tile, change, "amax") > spec.stop_below
        if not moves.any():
            break
    return marginals


def _scores(unary: Tensor, marginals: Tensor, kernels: Sequence[Filter | Stencil], spec: CrfSpec) -> Tensor:
    """Return the scores before the softmax: unary and messages, through the compatibility of classes."""
    if spec.compatibility is None:
        scores = unary.clone()
        for kernel in kernels:
            scores += kernel.apply(marginals)
        return scores
    message = kernels[0].apply(marginals)
    for kernel in kernels[1:]:
        message += kernel.apply(marginals)
    return torch.addmm(unary, message, unary.new_tensor(spec.compatibility).T, alpha=-1.0)


def _softmax_(scores: Tensor) -> Tensor:
    """Apply softmax over classes in place; on a CPU several times quicker than ``torch.softmax`` for so few."""
    scores -= scores.amax(dim=1, keepdim=True)
    scores.exp_()
    scores /= scores.sum(dim=1, keepdim=True)
    return scores
