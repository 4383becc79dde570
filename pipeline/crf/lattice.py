"""Which vertices of the permutohedral lattice stand for a pixel, and with what weight?

Adams, Baek and Davis (2010): the features of a pixel (position / theta_alpha, guide / theta_beta) lie in a simplex of the lattice A*_d, d
its number of features; the pixel belongs to the d + 1 corners of it with its barycentric weights. Filtering is splat, blur along d + 1
directions, slice.

What is particular here: a tile is cut into parts (strips of rows) that are embedded at the same time, each with vertex numbers of its
own, so that the rows that a part touches lie close together and no two parts write one row. A vertex is found by one 64-bit number, its
key. Vertices that follow each other in a blur direction are listed as chains, so that a blur runs in place and vertices without
neighbours cost nothing. Nothing depends on the number of threads.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.compiled import compiled
from pipeline.crf.phase import elevation, phase
from pipeline.crf.vertices import N_CHUNKS, chains, merge
from pipeline.errors import SpecError
from pipeline.lane_count import N_LANES
from pipeline.lanes import (
    add,
    broadcast,
    less,
    load,
    multiply,
    multiply_add,
    prefetch,
    ramp,
    round_down,
    store,
    subtract,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Keys = NDArray[np.int64]

PART_PX = 128
"""At most so many rows has a part, and columns a cell, px: visited cell by cell, the vertices of neighbours stay in the cache."""
_TOGETHER = 4
"""There are so many parts or a multiple of it, so that few threads end together."""
_AHEAD = 32
"""How many questions to a table are under way at once."""
ROWS_AHEAD = 128
"""How many rows are under way to the cache in a blur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The pixels of one strip, in the order in which they are visited, and their corners."""

    rows: tuple[int, int]
    """First row, and the row after the last."""
    vertex: NDArray[np.int32]
    """(pixels x (d + 1),): rows of the corners."""
    weight: NDArray[np.float32]
    """(pixels x (d + 1),): their barycentric weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """The embedding of one tile. Values at vertices are rows of an array: first the vertices, then the copies."""

    n_corners: int
    """d + 1."""
    parts: tuple[Part, ...]
    n_vertices: int
    copied: NDArray[np.int32]
    """(copies,): the vertex that each copy belongs to; ascending."""
    copy_chunks: NDArray[np.int64]
    """Where the chunks of copies begin; copies of one vertex are in one chunk."""
    chains: tuple[tuple[NDArray[np.int32], NDArray[np.int64]], ...]
    """Per direction: runs of vertices that follow each other, the last one of a run as ~vertex; and where its chunks begin."""

    @property
    def scale(self) -> float:
        """What a filtered value is multiplied by, as the blur adds up to more than 1."""
        return 1.0 / (1.0 + 2.0 ** (1 - self.n_corners))

    @property
    def n_rows(self) -> int:
        """Vertices and copies."""
        return self.n_vertices + len(self.copied)


def embed(
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    *,
    theta_px: float,
    theta: float,
    offset_px: tuple[int, int],
    pool: Executor,
) -> Lattice:
    """Embed the valid pixels of one tile in the lattice of its scene.

    Parameters
    ----------
    guide
        (bands, height, width) float32.
    valid
        (height, width) bool.
    theta_px, theta
        Standard deviations of the kernel in px and in units of the guide.
    offset_px
        (row, column) of the tile in its scene.
    """
    corners = tuple(range(guide.shape[0] + 3))
    scale = _scale(len(corners) - 1, theta_px, theta)
    shift = np.array(phase(offset_px, theta_px=theta_px, n_features=len(scale)), np.float32)
    origin, radix = _key_layout(guide, valid.shape, scale, shift)
    flat = np.append(guide, np.zeros(N_LANES, np.float32))  # eight pixels at once may reach past the last
    rows_of_parts = strips(valid.shape[0])
    embedded = list(
        pool.map(lambda strip: _embed_part(flat, valid, strip[0], strip[1], shift, scale, origin, radix, corners), rows_of_parts)
    )
    flat = np.empty(0, np.float32)  # given back, as all else that is done with: memory peaks while vertices are put in order
    parts = tuple(
        Part(rows=rows, vertex=ids, weight=weight) for rows, (ids, weight, _) in zip(rows_of_parts, embedded, strict=True)
    )
    firsts = np.cumsum([0] + [len(own) for _, _, own in embedded])
    keys = np.concatenate([own for _, _, own in embedded])
    del embedded
    vertices = merge(keys, radix, pool)
    del keys
    given_rows = pool.submit(_rows, vertices.numbers, vertices.n_vertices)  # meanwhile the other threads look for neighbours
    found = chains(vertices, radix, pool)
    rows, copied, copy_chunks = given_rows.result()
    # parts name their corners by rows from now on, not by numbers of their own
    list(pool.map(lambda part, first: _renumber(part.vertex, rows[first:]), parts, firsts[:-1]))
    return Lattice(
        n_corners=len(corners),
        parts=parts,
        n_vertices=vertices.n_vertices,
        copied=copied,
        copy_chunks=copy_chunks,
        chains=found,
    )


def unembedded(valid: NDArray[np.bool_]) -> Lattice:
    """Return a lattice without vertices, for an energy without this kernel."""
    nothing = np.empty(0, np.int32)
    return Lattice(
        n_corners=0,
        parts=tuple(Part(rows=strip, vertex=nothing, weight=np.empty(0, np.float32)) for strip in strips(valid.shape[0])),
        n_vertices=0,
        copied=nothing,
        copy_chunks=np.zeros(N_CHUNKS + 1, np.int64),
        chains=(),
    )


def strips(height: int) -> list[tuple[int, int]]:
    """Cut rows into parts of nearly one height: first row, and the row after the last, of each."""
    wanted = -(-height // PART_PX)
    n_parts = min(-(-wanted // _TOGETHER) * _TOGETHER, height)
    bounds = [height * part // n_parts for part in range(n_parts + 1)]
    return list(itertools.pairwise(bounds))


def _scale(n_features: int, theta_px: float, theta: float) -> NDArray[np.float32]:
    """Return what each feature, in px or units of the guide, is multiplied by."""
    thetas = [theta_px, theta_px] + [theta] * (n_features - 2)
    return np.array([elevation(axis, n_features) / each for axis, each in enumerate(thetas)], np.float32)


def _key_layout(
    guide: NDArray[np.float32], shape: tuple[int, int], scale: NDArray[np.float32], shift: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (origin, radix): how the coordinates of any vertex of this tile become the digits of one number.

    A vertex has d + 1 coordinates that are equal modulo d + 1 and sum to 0. So their remainder and the quotients of the first d are enough.
    """
    n = len(scale)
    low = np.array([shift[0], shift[1], *guide.min(axis=(1, 2))]) * scale
    high = np.array([shift[0] + shape[0], shift[1] + shape[1], *guide.max(axis=(1, 2))]) * scale
    spread = 2  # a corner or a neighbour may lie one further, and rounding one more
    origin, sizes = np.empty(n, np.int64), []
    for i in range(n):
        least = low[i:].sum() - i * (high[i - 1] if i else 0.0)
        most = high[i:].sum() - i * (low[i - 1] if i else 0.0)
        origin[i] = math.floor(least / (n + 1)) - spread
        sizes.append(math.ceil(most / (n + 1)) + spread - int(origin[i]) + 1)
    values = math.prod(sizes) * (n + 1)
    if values >= 2**63:
        raise SpecError(
            f"the guide has {n - 2} bands, of a range up to {float((high - low)[2:].max() / scale[2]):.0f} theta_beta; its lattice has "
            "more vertices than 64 bits can number: use fewer guide_bands or a larger theta_beta"
        )
    radix = np.array([math.prod(sizes[:i]) for i in range(n + 1)], np.int64)
    return origin, radix


@compiled
def _embed_part(
    guide: Floats,
    valid: NDArray[np.bool_],
    row_start: int,
    row_stop: int,
    shift: Floats,
    scale: Floats,
    origin: Keys,
    radix: Keys,
    corners: tuple[int, ...],
) -> tuple[NDArray[np.int32], Floats, Keys]:
    """Return (vertex numbers, weights, keys by vertex number) of the rows of one part."""
    n = len(corners) - 1
    n_pixels = 0
    for row in range(row_start, row_stop):
        for col in range(valid.shape[1]):
            n_pixels += valid[row, col]
    ids = np.empty(n_pixels * (n + 1), np.int32)
    weights = np.empty(n_pixels * (n + 1), np.float32)
    keys, table = np.empty(1 << 12, np.int64), _empty_table(1 << 14)
    n_keys = 0
    quotient = np.empty((n + 1) * N_LANES, np.float32)
    rest = np.empty((n + 1) * N_LANES, np.float32)
    rank = np.empty((n + 1) * N_LANES, np.float32)
    by_rank = np.empty(n + 1, np.int64)
    asked = np.empty(PART_PX * (n + 1), np.int64)
    at = 0
    for cell in range(0, valid.shape[1], PART_PX):
        cell_stop = min(cell + PART_PX, valid.shape[1])
        for row in range(row_start, row_stop):
            first = at
            for eight in range(cell, cell_stop, N_LANES):
                _place(guide, valid.shape, row, eight, shift, scale, corners, quotient, rest, rank)
                for lane in range(min(N_LANES, cell_stop - eight)):
                    if not valid[row, eight + lane]:
                        continue
                    key = np.int64(0)
                    for i in range(len(corners)):
                        by_rank[np.int64(rank[i * N_LANES + lane])] = i
                        if i < n:
                            key += (np.int64(quotient[i * N_LANES + lane]) - origin[i]) * radix[i]
                    above = rest[by_rank[0] * N_LANES + lane] - np.float32(1.0)
                    for k in range(len(corners)):
                        asked[at - first] = key
                        # the next corner differs in one coordinate, the one of rank n - k
                        i = by_rank[n - k]
                        weights[at] = rest[i * N_LANES + lane] - above
                        above = rest[i * N_LANES + lane]
                        at += 1
                        key += radix[n]
                        if i < n:
                            key -= radix[i]
            if n_keys + at - first > len(keys):
                keys = np.concatenate((keys, np.empty_like(keys)))
                table = _empty_table(4 * len(keys))
                _number(keys[:n_keys], keys, 0, table, np.empty(n_keys, np.int32))
            n_keys = _number(asked[: at - first], keys, n_keys, table, ids[first:at])
    return ids, weights, keys[:n_keys].copy()


@compiled
def _place(
    guide: Floats,
    shape: tuple[int, int],
    row: int,
    col: int,
    shift: Floats,
    scale: Floats,
    corners: tuple[int, ...],
    quotient: Floats,
    rest: Floats,
    rank: Floats,
) -> None:
    """Find the simplex of eight pixels: nearest point of remainder 0 (divided by d + 1), what is left to it, and the ranks of that."""
    n = len(corners) - 1
    # elevate: onto the hyperplane in which the lattice lies
    inverse = np.float32(1.0 / (n + 1))
    above = broadcast(np.float32(0.0))
    for j in range(n, 0, -1):
        if j == 1:
            feature = broadcast(np.float32(row) + shift[0])
        elif j == 2:
            feature = ramp(np.float32(col) + shift[1])
        else:
            feature = load(guide, ((j - 3) * shape[0] + row) * shape[1] + col)
        feature = multiply(feature, broadcast(scale[j - 1] * inverse))
        store(rest, j * N_LANES, multiply_add(feature, broadcast(np.float32(-j)), above))
        above = add(above, feature)
    store(rest, 0, above)
    excess = broadcast(np.float32(0.0))
    for i in range(len(corners)):
        value = load(rest, i * N_LANES)
        rounded = round_down(add(value, broadcast(np.float32(0.5))))
        excess = add(excess, rounded)
        store(quotient, i * N_LANES, rounded)
        store(rest, i * N_LANES, subtract(value, rounded))
    for i in range(len(corners)):
        store(rank, i * N_LANES, excess)
    for i in range(len(corners)):
        mine, ahead = load(rest, i * N_LANES), broadcast(np.float32(0.0))
        for j in range(i + 1, len(corners)):
            smaller = less(mine, load(rest, j * N_LANES))
            ahead = add(ahead, smaller)
            store(rank, j * N_LANES, add(load(rank, j * N_LANES), subtract(broadcast(np.float32(1.0)), smaller)))
        store(rank, i * N_LANES, add(load(rank, i * N_LANES), ahead))
    # ranks outside 0..d: the sum of the nearest point was not 0
    for i in range(len(corners)):
        ranked = load(rank, i * N_LANES)
        under = less(ranked, broadcast(np.float32(0.0)))
        over = less(broadcast(np.float32(n)), ranked)
        turn = subtract(under, over)
        store(rank, i * N_LANES, multiply_add(turn, broadcast(np.float32(n + 1)), ranked))
        store(quotient, i * N_LANES, add(load(quotient, i * N_LANES), turn))
        store(rest, i * N_LANES, subtract(load(rest, i * N_LANES), turn))


@compiled
def _empty_table(n_slots: int) -> Keys:
    """Return an open-addressing table of (key, number) pairs; ``n_slots`` is a power of 2."""
    return np.full(2 * n_slots, -1, np.int64)


@compiled
def _slot(key: int, table: Keys) -> np.uint64:
    mixed = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return (mixed & np.uint64((len(table) >> 1) - 1)) << np.uint64(1)


@compiled
def _number(asked: Keys, keys: Keys, n_keys: int, table: Keys, numbers: NDArray[np.int32]) -> int:
    """Look up keys; those that are not in the table yet get the next numbers. Return how many keys there are now."""
    last = np.uint64(len(table) - 1)
    for at in range(len(asked)):
        if at + _AHEAD < len(asked):
            prefetch(table, np.int64(_slot(asked[at + _AHEAD], table)))
        key = asked[at]
        slot = _slot(key, table)
        while table[slot] != key:
            if table[slot] == -1:
                table[slot] = key
                table[slot + np.uint64(1)] = n_keys
                keys[n_keys] = key
                n_keys += 1
                break
            slot = (slot + np.uint64(2)) & last
        numbers[at] = table[slot + np.uint64(1)]
    return n_keys


@compiled
def _rows(numbers: NDArray[np.int32], n_vertices: int) -> tuple[NDArray[np.int32], NDArray[np.int32], Keys]:
    """Give every vertex of every part a row: (rows, vertices of the copies, where the chunks of copies begin).

    The part that saw a vertex first uses the vertex's own row; the others have copies, behind all vertices and sorted by vertex.
    """
    starts = np.zeros(n_vertices + 1, np.int32)
    fresh = 0
    for number in numbers:
        if number == fresh:
            fresh += 1
        else:
            starts[number + 1] += 1
    for vertex in range(n_vertices):
        starts[vertex + 1] += starts[vertex]
    n_copies = starts[n_vertices]
    rows = np.empty(len(numbers), np.int32)
    copied = np.empty(n_copies, np.int32)
    fresh = 0
    for at in range(len(numbers)):
        number = numbers[at]
        rows[at] = number
        if number == fresh:
            fresh += 1
        else:
            copied[starts[number]] = number
            rows[at] = n_vertices + starts[number]
            starts[number] += 1
    chunks = np.empty(N_CHUNKS + 1, np.int64)
    for chunk in range(N_CHUNKS + 1):
        start = chunk * n_copies // N_CHUNKS
        while 0 < start < n_copies and copied[start] == copied[start - 1]:
            start += 1  # one vertex, one chunk
        chunks[chunk] = start
    return rows, copied, chunks


@compiled
def _renumber(ids: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
    for at in range(len(ids)):
        ids[at] = rows[ids[at]]
