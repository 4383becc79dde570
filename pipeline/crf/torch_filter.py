"""What does each pixel hear from all others of similar place and colour? The permutohedral lattice (Adams et al. 2010), in torch.

1. A pixel's features (place and guide values in units of their thetas) are lifted into the d-dimensional plane in which the lattice lies.
2. The d + 1 vertices around it get an integer key each, and the pixel its weights at them. Keys are exact: no two vertices share one.
3. Sorting the keys numbers the vertices, and lists for each the pixels around it.
4. To filter is to splat (sum the pixels around each vertex), to blur along d + 1 directions, and to slice (read back, same weights).

Each of the three is an ``embedding_bag``: it reads rows and adds them in a fixed order, so results are the same bytes every time, on CUDA
as well (``index_add_`` would add in any order), and nothing of the size of pixels x corners x classes is held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import embedding_bag

from pipeline.crf.phase import elevation
from pipeline.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_PX = 1 << 17
"""Pixels that are lifted at once: bounds the working copies, about 250 bytes a pixel at three bands."""

_KEY_BITS = 63

_SUM_LENGTH = 256
"""Longest sum of a splat: on a flat image many thousand pixels share a vertex, which one thread would have to add one after another."""


class Filter(NamedTuple):
    """The lattice of some pixels, with weights that hold all factors of the kernel."""

    pixel: Tensor
    """(entries,) integer: entries are pairs of pixel and vertex, sorted by vertex; this is their pixel."""
    splat_weight: Tensor
    """(entries,) float32."""
    part_start: Tensor
    """(parts,) integer: the first entry of each sum of at most ``_SUM_LENGTH``. The last vertex has none and is always 0."""
    vertex_start: Tensor | None
    """(vertices + 1,) integer: the first part of each vertex; None where each is one part."""
    around: Tensor
    """(d + 1, vertices + 1, 3) integer: for each direction a vertex and its two neighbours; an absent one is the last vertex."""
    blur_weight: Tensor
    """(vertices + 1, 3) float32: 1, 1/2, 1/2."""
    vertex: Tensor
    """(pixels, d + 1) integer: the vertices around a pixel."""
    slice_weight: Tensor
    """(pixels, d + 1) float32."""

    def apply(self, values: Tensor) -> Tensor:
        """Return what each pixel hears from all others, for (pixels, classes) float32 values."""
        rows = embedding_bag(self.pixel, values, self.part_start, per_sample_weights=self.splat_weight, mode="sum")
        if self.vertex_start is not None:
            parts = torch.arange(len(rows), dtype=self.vertex_start.dtype, device=rows.device)
            rows = embedding_bag(parts, rows, self.vertex_start, mode="sum")
        for around in self.around:
            rows = embedding_bag(around, rows, per_sample_weights=self.blur_weight, mode="sum")
        return embedding_bag(self.vertex, rows, per_sample_weights=self.slice_weight, mode="sum")


def build_filter(features: Tensor, tile: Tensor, *, n_tiles: int, weight: float) -> Filter:
    """Return ``weight`` times the symmetric-normalised appearance kernel.

    Parameters
    ----------
    features
        (d, pixels) float32: place and guide values in units of their thetas.
    tile
        (pixels,) int64, 0 to ``n_tiles`` - 1: pixels of different tiles do not hear each other.
    n_tiles
        How many tiles there are.
    weight
        What the kernel is multiplied by.

    Raises
    ------
    SpecError
        The features spread so widely that the keys need more than 63 bits.
    """
    keys, weights, strides = _corners(features, tile, n_tiles)
    entries = _sort(keys, weights)
    del keys  # 8 bytes for each of d + 1 corners of a pixel
    return _normalised(_connect(entries, weights, strides), weight)


def _corners(features: Tensor, tile: Tensor, n_tiles: int) -> tuple[Tensor, Tensor, _Strides]:
    """Return the keys and weights of the vertices around each pixel, both (pixels, d + 1), and how the keys are made."""
    simplices = [_surround(chunk) for chunk in torch.split(features, _CHUNK_PX, dim=1)]
    strides = _strides(simplices, n_tiles)
    keys = torch.cat([_keys(simplex, at, strides) for simplex, at in zip(simplices, torch.split(tile, _CHUNK_PX), strict=True)])
    return keys, torch.cat([simplex.weight for simplex in simplices]), strides


class _Simplex(NamedTuple):
    """The d + 1 vertices around each of some pixels: the one of remainder 0, and how the others follow from it.

    The coordinates of a vertex all leave the same remainder when divided by d + 1.
    """

    cell: Tensor
    """(d + 1, pixels) int32: coordinates of the vertex of remainder 0, in units of d + 1."""
    rank: Tensor
    """(d + 1, pixels) int8: the vertex of remainder r is one unit less in the r coordinates of highest rank, and r more in all."""
    weight: Tensor
    """(pixels, d + 1) float32: barycentric weights of the vertices of remainder 0 to d."""


def _surround(features: Tensor) -> _Simplex:
    """Find the simplex around each pixel, with the arithmetic of pydensecrf: a point on an edge falls to the same side."""
    d = len(features)
    lifted = _lift(features)
    cell = torch.round(lifted * (1.0 / (d + 1)))
    rest = lifted - cell * (d + 1)
    rank = torch.zeros_like(rest, dtype=torch.int8)
    for i in range(d):
        for j in range(i + 1, d + 1):
            is_less = rest[i] < rest[j]
            rank[i] += is_less
            rank[j] += ~is_less
    rank += cell.sum(dim=0).to(torch.int8)
    step = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    rank += step * (d + 1)
    cell += step
    rest = (lifted - cell * (d + 1)) * (1.0 / (d + 1))
    falling = torch.empty_like(rest).scatter_(0, d - rank.long(), rest)
    weight = falling - falling.roll(1, dims=0)
    weight[0] += 1.0
    return _Simplex(cell.to(torch.int32), rank, weight.T.contiguous())


def _lift(features: Tensor) -> Tensor:
    """Lift (d, pixels) features to the plane of d + 1 coordinates of sum 0, scaled so that the blur has standard deviation 1."""
    d = len(features)
    lifted = features.new_empty((d + 1, features.shape[1]))
    total = torch.zeros_like(features[0])
    for i in range(d, 0, -1):
        scaled = features[i - 1] * elevation(i - 1, d)
        lifted[i] = total - i * scaled
        total += scaled
    lifted[0] = total
    return lifted


class _Strides(NamedTuple):
    """How much a key grows with each of its parts: tile, then coordinates, then remainder."""

    tile: int
    coordinates: tuple[int, ...]
    """d + 1 of them; the last is 0, for coordinates sum to 0 and the last one follows from the others."""
    lowest: tuple[int, ...]
    """d + 1 values that map to 0."""


def _strides(simplices: list[_Simplex], n_tiles: int) -> _Strides:
    """Leave room for the unit by which vertices of a simplex differ, and for one on either side for neighbours."""
    lowest = torch.stack([simplex.cell.amin(dim=1) for simplex in simplices]).amin(dim=0).tolist()
    highest = torch.stack([simplex.cell.amax(dim=1) for simplex in simplices]).amax(dim=0).tolist()
    d = len(lowest) - 1
    coordinates = [0] * (d + 1)
    stride = d + 1
    for i in range(d - 1, -1, -1):
        coordinates[i] = stride
        stride *= highest[i] - lowest[i] + 4
    n_bits = (stride * n_tiles - 1).bit_length()
    if n_bits > _KEY_BITS:
        raise SpecError(
            f"{d - 2} guide bands of this range need lattice keys of {n_bits} bits for {n_tiles} tiles at once; "
            f"{_KEY_BITS} are there: use a larger theta_beta or fewer guide_bands"
        )
    return _Strides(stride, tuple(coordinates), tuple(low - 2 for low in lowest))


def _keys(simplex: _Simplex, tile: Tensor, strides: _Strides) -> Tensor:
    """Return the keys of the vertices of remainder 0 to d around each pixel: (pixels, d + 1) int64."""
    d = len(simplex.cell) - 1
    stride = torch.tensor(strides.coordinates, device=tile.device)
    first = tile * strides.tile
    for i in range(d):
        first += (simplex.cell[i].long() - strides.lowest[i]) * strides.coordinates[i]
    steps = stride[:, None].expand(simplex.rank.shape)
    falling = torch.empty_like(steps, memory_format=torch.contiguous_format).scatter_(0, d - simplex.rank.long(), steps)
    remainder = torch.arange(d + 1, device=tile.device)[:, None]
    return (first + remainder - (falling.cumsum(dim=0) - falling)).T.contiguous()


class _Entries(NamedTuple):
    """Pairs of pixel and vertex, sorted by vertex."""

    pixel: Tensor
    weight: Tensor
    vertex: Tensor
    """(pixels, d + 1): the number of the vertex, in the order of the pixels."""
    unique: Tensor
    """(vertices,) int64: their keys, ascending."""
    n_entries: Tensor
    """(vertices,) int64: how many each has."""


def _sort(keys: Tensor, weights: Tensor) -> _Entries:
    """Sort the corners by key, which numbers the vertices."""
    ordered, order = keys.view(-1).sort(stable=True)
    unique, number, count = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    del ordered
    index = torch.int32 if len(order) < 2**31 - 1 else torch.int64
    vertex = torch.empty_like(order, dtype=index)
    vertex[order] = number.to(index)
    pixel = (order // keys.shape[1]).to(index)
    return _Entries(pixel, weights.view(-1)[order], vertex.view(keys.shape), unique, count)


def _connect(entries: _Entries, weights: Tensor, strides: _Strides) -> Filter:
    """List what lies around each vertex: entries, and vertices in each direction."""
    index = entries.vertex.dtype
    part_start, vertex_start = _starts(entries.n_entries)
    return Filter(
        pixel=entries.pixel,
        splat_weight=entries.weight,
        part_start=part_start.to(index),
        vertex_start=None if vertex_start is None else vertex_start.to(index),
        around=_around(entries.unique, strides, index),
        blur_weight=weights.new_tensor([1.0, 0.5, 0.5]).repeat(len(entries.unique) + 1, 1),
        vertex=entries.vertex,
        slice_weight=weights,
    )


def _starts(count: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut the entries of each vertex into parts.

    Returns the first entry of each part, and the first part of each vertex; None where each has one.
    """
    count = torch.cat([count, count.new_zeros(1)])
    first = count.cumsum(dim=0) - count
    if int(count.max()) <= _SUM_LENGTH:
        return first, None
    n_parts = ((count + _SUM_LENGTH - 1) // _SUM_LENGTH).clamp_(min=1)
    vertex_start = n_parts.cumsum(dim=0) - n_parts
    owner = torch.arange(len(count), device=count.device).repeat_interleave(n_parts)
    within = torch.arange(len(owner), device=count.device) - vertex_start[owner]
    return first[owner] + within * _SUM_LENGTH, vertex_start


def _around(unique: Tensor, strides: _Strides, index: torch.dtype) -> Tensor:
    """Return each vertex with its two neighbours in each direction: (d + 1, vertices + 1, 3).

    The neighbour before is 1 less in all coordinates and d + 1 more in that of the direction: remainder r becomes r - 1 and the coordinate
    gains a unit; remainder 0 becomes d, and all coordinates lose one too. The neighbour after is the other way round.
    """
    absent = len(unique)
    d = len(strides.coordinates) - 1
    around = torch.full((d + 1, absent + 1, 3), absent, dtype=index, device=unique.device)
    around[:, :, 0] = torch.arange(absent + 1, device=unique.device)
    before_all = torch.where(unique % (d + 1) > 0, -1, d - sum(strides.coordinates)).add_(unique)
    for rows, stride in zip(around, strides.coordinates, strict=True):
        sought = before_all + stride
        place = torch.searchsorted(unique, sought, out_int32=index == torch.int32).clamp_(max=absent - 1)
        is_there = unique[place] == sought
        rows[:-1, 1] = place.masked_fill(~is_there, absent)
        rows[place[is_there], 2] = rows[:-1, 0][is_there]
    return around


def _normalised(lattice: Filter, weight: float) -> Filter:
    """Divide the kernel by the roots of what both pixels hear in all."""
    n_pixels, n_corners = lattice.vertex.shape
    gain = 1.0 / (1.0 + 2.0 ** (1 - n_corners))
    norm = (lattice.apply(lattice.slice_weight.new_ones((n_pixels, 1))) * gain + 1e-20).rsqrt_()
    return lattice._replace(
        splat_weight=lattice.splat_weight * norm[lattice.pixel, 0],
        slice_weight=lattice.slice_weight * (norm * (gain * weight)),
    )
