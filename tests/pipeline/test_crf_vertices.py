"""Vertices of several parts are numbered and followed as a dictionary of their keys says."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.crf.vertices import N_CHUNKS, chains, merge


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def radix_of(*sizes):
    """Return what the digits of a key are multiplied by: those of the quotients, and the remainder's."""
    return np.array([int(np.prod(sizes[:i], dtype=object)) for i in range(len(sizes) + 1)], np.int64)


def keys_of(radix, sizes, n_keys, *, seed=0, remainders=None):
    """Return random keys that leave room for a step in every digit, as `_key_layout` does."""
    rng = np.random.default_rng(seed)
    digits = [rng.integers(1, size - 1, n_keys) for size in sizes]
    last = rng.choice(list(range(len(radix)) if remainders is None else remainders), n_keys)
    return sum(digit * one for digit, one in zip([*digits, last], radix, strict=True))


CASES = [
    pytest.param((5, 6, 7), 400, None, id="dense"),
    pytest.param((60, 60, 60), 400, None, id="sparse"),
    pytest.param((2**20, 2**19, 2**18), 300, None, id="57 bits"),
    pytest.param((6, 5), 60, (0, 2), id="a remainder that nothing has"),
    pytest.param((5, 5, 5, 5, 5), 3000, None, id="five features"),
    pytest.param((5, 5), 1, None, id="one"),
    pytest.param((5, 5), 0, None, id="none"),
]


@pytest.mark.parametrize(("sizes", "n_keys", "remainders"), CASES)
def test_vertices_are_numbered_in_the_order_in_which_they_first_occur(pool, sizes, n_keys, remainders):
    radix = radix_of(*sizes)
    keys = keys_of(radix, sizes, n_keys, remainders=remainders)
    known = {}
    expected = [known.setdefault(key, len(known)) for key in keys.tolist()]
    merged = merge(keys, radix, pool)
    assert merged.n_vertices == len(known)
    np.testing.assert_array_equal(merged.numbers, expected)
    for remainder, own in enumerate(merged.remainders):
        assert (np.diff(own.keys) > 0).all()
        assert [known[key] for key in (own.keys + remainder * radix[-1]).tolist()] == own.numbers.tolist()


@pytest.mark.parametrize(("sizes", "n_keys", "remainders"), CASES)
def test_runs_list_every_vertex_that_has_a_neighbour_once(pool, sizes, n_keys, remainders):
    radix, n = radix_of(*sizes), len(sizes)
    keys = keys_of(radix, sizes, n_keys, remainders=remainders)
    merged = merge(keys, radix, pool)
    number_of = dict(zip(keys.tolist(), merged.numbers.tolist(), strict=True))
    n_neighbours = 0
    for direction, (runs, chunks) in enumerate(chains(merged, radix, pool)):
        # all coordinates one less, that of the direction d more: the remainder sinks by one, or every quotient but the direction's does
        neighbour = {}
        for key, number in number_of.items():
            remainder = key // int(radix[n])
            wanted = key + (int(radix[direction]) if direction < n else 0)
            wanted += -int(radix[n]) if remainder else n * int(radix[n]) - int(radix[:n].sum())
            if wanted in number_of:
                neighbour[number] = number_of[wanted]
        listed = [[]]
        for entry in runs.tolist():
            listed[-1].append(entry if entry >= 0 else ~entry)
            if entry < 0:
                listed.append([])
        assert listed.pop() == []
        assert {one: other for run in listed for one, other in itertools.pairwise(run)} == neighbour
        assert all(len(run) > 1 for run in listed)
        assert len({vertex for run in listed for vertex in run}) == len(runs)
        starts = [run[0] for run in listed]
        assert starts == sorted(starts)
        assert len(chunks) == N_CHUNKS + 1
        assert (chunks[0], chunks[-1]) == (0, len(runs))
        assert set(chunks.tolist()) <= {0, *np.cumsum([len(run) for run in listed]).tolist()}
        n_neighbours += len(neighbour)
    if n_keys >= 300 and max(sizes) < 10:
        assert n_neighbours, "or nothing was followed"


def test_threads_change_nothing():
    radix = radix_of(9, 8, 7)
    keys = keys_of(radix, (9, 8, 7), 2000)
    found = []
    for n_threads in (1, 4):
        with ThreadPoolExecutor(n_threads) as threads:
            merged = merge(keys, radix, threads)
            found.append([merged.numbers, *(runs for runs, _ in chains(merged, radix, threads))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
