"""Which vertices of a tile's parts are the same one, and which follow each other? By keys in order, without a table that no cache holds.

The last digit of a key is the vertex's remainder modulo d + 1. In every blur direction a vertex of remainder r is followed by one of
remainder r - 1 (of d, where r is 0), and the rest of their keys differs by a number that only the direction and that step decide::

    keys of remainder r      3   7   8  12        + step  ->   5   9  10  14
    keys of remainder r - 1  4   5  10  11  14                 5      10  14   are followed

So keys are sorted, each remainder for itself, and all neighbours in a direction are found in one walk along two lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.compiled import compiled
from pipeline.lanes import prefetch

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    Keys = NDArray[np.int64]
    Numbers = NDArray[np.int32]

N_CHUNKS = 16
"""Into how many pieces the work on vertices is cut; more than there are threads, so that they end together."""
_DIGIT_BITS = 11
"""Bits that one pass of the sort looks at: the counts of their values stay in the cache."""
_AHEAD = 32
"""How many places of an array are under way to the cache at once."""


class Remainder(NamedTuple):
    """The vertices of one remainder, as compiled code takes them."""

    keys: Keys
    """(vertices,) ascending, without the digit of the remainder."""
    numbers: Numbers
    """(vertices,): which vertex has the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertices:
    """The vertices of all parts of a tile together."""

    numbers: Numbers
    """(keys of all parts,): the vertex of each. Vertices are numbered in the order in which they first occur."""
    n_vertices: int
    remainders: tuple[Remainder, ...]
    """By remainder, 0 to d."""


def merge(keys: Keys, radix: Keys, pool: Executor) -> Vertices:
    """Find the keys that occur in several parts.

    Parameters
    ----------
    keys
        (keys,) of all parts, one after the other.
    radix
        (d + 1,): what the digits of a key are multiplied by, the remainder's last.
    """
    firsts = np.empty(len(keys), np.int32)
    found = list(pool.map(lambda remainder: _of_remainder(keys, remainder, radix[-1], firsts), range(len(radix))))
    numbers, n_vertices = _count(firsts)
    return Vertices(
        numbers=numbers,
        n_vertices=n_vertices,
        remainders=tuple(Remainder(keys=own, numbers=numbers[places]) for own, places in found),
    )


def chains(vertices: Vertices, radix: Keys, pool: Executor) -> tuple[tuple[Numbers, Keys], ...]:
    """Return, per direction, the vertices that have a neighbour in it: (runs, starts of its chunks), as `Lattice.chains` has them."""
    return tuple(pool.map(lambda direction: _chains(vertices, radix, direction), range(len(radix))))


def _chains(vertices: Vertices, radix: Keys, direction: int) -> tuple[Numbers, Keys]:
    n = len(radix) - 1
    own = int(radix[direction]) if direction < n else 0
    every = int(radix[:n].sum())
    following = np.full(vertices.n_vertices, -1, np.int32)
    begins = np.ones(vertices.n_vertices, np.bool_)
    for remainder, these in enumerate(vertices.remainders):
        those = vertices.remainders[remainder - 1]
        _follow(these, those, own if remainder else own - every, following, begins)
    return _runs(following, begins)


def _of_remainder(keys: Keys, remainder: int, n_keys: int, firsts: Numbers) -> tuple[Keys, Numbers]:
    """Return the keys of a remainder, which has ``n_keys`` possible ones, without its digit and in order, and the first place of each."""
    base = remainder * n_keys
    places = np.flatnonzero((base <= keys) & (keys < base + n_keys)).astype(np.int32)
    return _distinct(*_sorted(keys[places] - base, places, n_keys), firsts)


@compiled
def _distinct(keys: Keys, places: Numbers, firsts: Numbers) -> tuple[Keys, Numbers]:
    """Return the different ones of sorted keys, and the first place of each, which ``firsts`` is told at all places of the key."""
    different, earliest = np.empty_like(keys), np.empty_like(places)
    last, n = np.int64(-1), -1
    for at in range(len(keys)):
        if at + _AHEAD < len(keys):
            prefetch(firsts, np.int64(places[at + _AHEAD]))
        if keys[at] != last:
            n += 1
            last = keys[at]
            different[n] = last
            earliest[n] = places[at]
        firsts[places[at]] = earliest[n]
    return different[: n + 1].copy(), earliest[: n + 1].copy()


@compiled
def _sorted(keys: Keys, places: Numbers, n_keys: int) -> tuple[Keys, Numbers]:
    """Sort keys below ``n_keys`` by their digits from the last to the first, and what comes with them; equal ones stay in their order."""
    others, other_places = np.empty_like(keys), np.empty_like(places)
    shift, mask = 0, (1 << _DIGIT_BITS) - 1
    while (n_keys - 1) >> shift:
        at = np.zeros(mask + 2, np.int64)
        for key in keys:
            at[((key >> shift) & mask) + 1] += 1
        for digit in range(mask):
            at[digit + 1] += at[digit]
        for index in range(len(keys)):
            digit = (keys[index] >> shift) & mask
            others[at[digit]] = keys[index]
            other_places[at[digit]] = places[index]
            at[digit] += 1
        keys, others = others, keys
        places, other_places = other_places, places
        shift += _DIGIT_BITS
    return keys, places


@compiled
def _count(firsts: Numbers) -> tuple[Numbers, int]:
    """Give the places that are the first of their key the next numbers, and the others those of their first."""
    numbers, n = np.empty_like(firsts), 0
    for place in range(len(firsts)):
        if firsts[place] == place:
            numbers[place] = n
            n += 1
        else:
            numbers[place] = numbers[firsts[place]]
    return numbers, n


@compiled
def _follow(these: Remainder, those: Remainder, step: int, following: Numbers, begins: NDArray[np.bool_]) -> None:
    """Tell each of these vertices which of those follows it, and each of those that it begins nothing.

    Without branches: which list is behind is random.
    """
    n, n_next = len(these.keys), len(those.keys)
    has_former = np.zeros(n_next, np.bool_)
    at = at_next = 0
    while at < n and at_next < n_next:
        prefetch(following, np.int64(these.numbers[min(at + _AHEAD, n - 1)]))
        wanted, here, number = these.keys[at] + step, those.keys[at_next], those.numbers[at_next]
        following[these.numbers[at]] = number if wanted == here else np.int32(-1)
        has_former[at_next] = wanted == here
        at += wanted <= here
        at_next += here <= wanted
    for at_next in range(n_next):
        prefetch(begins, np.int64(those.numbers[min(at_next + _AHEAD, n_next - 1)]))
        begins[those.numbers[at_next]] = not has_former[at_next]


@compiled
def _runs(following: Numbers, begins: NDArray[np.bool_]) -> tuple[Numbers, Keys]:
    """List the vertices that follow each other, run by run, the last one of a run as ~vertex; and where the chunks begin."""
    starts, n_runs = np.empty(len(following) + 1, np.int32), 0
    for vertex in range(len(following)):
        starts[n_runs] = vertex
        n_runs += begins[vertex] & (following[vertex] >= 0)
    runs = np.empty(len(following), np.int32)
    chunks = np.zeros(N_CHUNKS + 1, np.int64)
    n_listed, n_chunks = 0, 1
    for run in range(n_runs):
        if run + _AHEAD < n_runs:
            prefetch(following, np.int64(starts[run + _AHEAD]))
            prefetch(following, np.int64(following[starts[run + _AHEAD // 2]]))
        at = starts[run]
        while at >= 0:
            runs[n_listed] = at
            n_listed += 1
            at = following[at]
        runs[n_listed - 1] = ~runs[n_listed - 1]
        if n_chunks < N_CHUNKS and n_listed * N_CHUNKS >= n_chunks * len(following):
            chunks[n_chunks] = n_listed
            n_chunks += 1
    chunks[n_chunks:] = n_listed
    return runs[:n_listed].copy(), chunks
