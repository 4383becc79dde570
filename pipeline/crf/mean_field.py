"""What happens to the pixels and vertices of a tile in one step of mean field? The compiled loops.

A pixel's state is s = q / sqrt(n_s), its marginals times what normalises the smoothness kernel; states live on a grid with a rim of zeros
as wide as that kernel. In a step every pixel reads the smoothed states around it and the blurred values of its corners, forms its new
marginals, and adds the change of its state to its corners: slice, softmax and splat in one pass, so that rows and weights are loaded
once. Weights are scaled beforehand, so that both kernels are normalised by the same factor.

One row has all classes but the last of a pixel or vertex, in groups of lanes; lanes without a class stay 0. The last needs no lane:
marginals add up to 1, so what the kernels bring of it is what they bring of all classes together, which never changes, less the others.
Five classes take half a row for it. What goes through memory in every step is kept in float16, for which numba has no type: as int16.

``groups`` has a tuple for each group of lanes, of as many members as the group has lanes: compiled code knows the lengths of tuples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import float32

from pipeline.compiled import compiled
from pipeline.crf.lattice import PART_PX, ROWS_AHEAD
from pipeline.lane_count import N_LANES
from pipeline.lanes import (
    add,
    broadcast,
    exponential,
    largest,
    load,
    load_half,
    magnitude,
    maximum,
    multiply,
    multiply_add,
    prefetch,
    store,
    store_half,
    subtract,
    total,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

    from pipeline.lane_count import Groups


_PIXELS_AHEAD = 64
"""The corners of so many pixels further on are under way to the cache when a pixel is scored."""
NO_CLASS = np.float16(-60000)
"""Score of a lane without a class."""
_FAR = float32(20.0)
"""A class whose score is by so much lower than another's has no share that float32 could hold."""


class PartPixels(NamedTuple):
    """The pixels of one part, in the order in which they are visited (cell by cell, row by row, valid ones only)."""

    row_start: int
    row_stop: int
    vertex: NDArray[np.int32]
    """(pixels x corners,): rows of the corners."""
    weight: NDArray[np.float32]
    """(pixels x corners,): weights, normalised."""
    unary: NDArray[np.int16]
    """(pixels x lanes,): log P in float16; far below 0 in lanes without a class."""
    last: NDArray[np.float32]
    """(pixels,): log P of the last class."""
    whole: NDArray[np.float32]
    """(pixels,): what both kernels bring of all classes together."""
    rests: NDArray[np.uint8]
    """(pixels,): for how many more steps the pixel is left as it is."""
    calm: NDArray[np.uint8]
    """(pixels,): how many times in a row it hardly changed when it moved."""


class Kernels(NamedTuple):
    """Both kernels of a tile, and how classes go together."""

    valid: NDArray[np.bool_]
    """(height, width)."""
    norm: NDArray[np.float32]
    """(height, width): 1 / sqrt(sum of the smoothness kernel)."""
    taps: NDArray[np.float32]
    """(odd,): the smoothness kernel along one axis."""
    w_appearance: np.float32
    w_smoothness: np.float32
    costs: NDArray[np.float32]
    """(classes x lanes,): cost of a class beside each; empty for Potts."""
    costs_of_last: NDArray[np.float32]
    """(classes,): cost of a class beside the last; empty for Potts."""
    rest_below: np.float32
    """A pixel whose state changed by less rests."""
    longest_rest: np.uint8
    """It rests for one step the first time, for two the second, up to so many."""


class Values(NamedTuple):
    """What changes from step to step."""

    sliced: NDArray[np.int16]
    """(rows x lanes,): blurred values at vertices and copies, in float16."""
    splatted: NDArray[np.float32]
    """(rows x lanes,): sums of weight times state, always up to date."""
    before: NDArray[np.int16]
    """((height + rim) x (width + rim) x lanes,): states before the step, in float16."""
    after: NDArray[np.int16]
    """The same, after it."""


class Step(NamedTuple):
    """Which pixels of a tile move in a step, and what there is and has to be beside their states."""

    rows: tuple[int, int]
    """First row, and the row after the last, of those that move."""
    columns: tuple[int, int]
    """The same of columns."""
    first: bool
    """There are no messages yet."""
    last: bool
    """Nobody needs the corners any more."""


class Run(NamedTuple):
    """The pixels of a run of a row that move in this step."""

    columns: NDArray[np.int64]
    """Where they are in the run."""
    pixels: NDArray[np.int64]
    """Which pixels of the part they are."""
    scores: NDArray[np.float32]
    """(pixels x lanes,): their scores, then the changes of their states."""
    last: NDArray[np.float32]
    """(pixels,): scores of the last class."""
    smoothed: NDArray[np.float32]
    """((run + rim) x lanes,): states of the run's columns, smoothed along the columns, then also along the row."""


@compiled
def update(part: PartPixels, kernels: Kernels, values: Values, step: Step, corners: tuple[int, ...], groups: Groups) -> None:
    """Move the pixels of a part that the step moves and that are not at rest.

    One run of a row at a time, in short loops rather than one long one, so that the processor works on several pixels at once.
    """
    row = len(groups) * len(groups[0])
    width = kernels.valid.shape[1]
    rim = len(kernels.taps) // 2
    pitch = (width + 2 * rim) * row
    run = Run(
        np.empty(PART_PX, np.int64),
        np.empty(PART_PX, np.int64),
        np.empty(PART_PX * row + N_LANES, np.float32),
        np.empty(PART_PX, np.float32),
        np.empty((PART_PX + 2 * rim) * row + N_LANES, np.float32),
    )
    pixel = 0
    for cell in range(0, width, PART_PX):
        stop = min(cell + PART_PX, width)
        for y in range(part.row_start, part.row_stop):
            moving = step.columns if step.rows[0] <= y < step.rows[1] else (stop, stop)
            n, pixel = _active(part.rests, kernels.valid, y, (cell, stop), moving, pixel, run)
            if n == 0:
                continue
            start = y * pitch + cell * row
            norms = kernels.norm[y, cell:stop]
            if step.first:
                _score_alone(part, run, n, groups)
            else:
                needed = (run.columns[0] * row, (run.columns[n - 1] + 1) * row)
                _smooth(values.before, start, pitch, row, needed, kernels.taps, run.smoothed)
                _score(part, kernels, values, run, n, norms, corners, groups)
            _settle(part, kernels, values, start + rim * (pitch + row), run, n, norms, groups)
            if not step.last:
                _splat(part.vertex, part.weight, values.splatted, run, n, corners, groups)


@compiled
def _active(
    rests: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    y: int,
    columns: tuple[int, int],
    moving: tuple[int, int],
    pixel: int,
    run: Run,
) -> tuple[int, int]:
    """List the valid pixels of a run that move and are not at rest; return (how many, the next pixel of the part)."""
    n = 0
    for x in range(columns[0], columns[1]):
        if valid[y, x]:
            if moving[0] <= x < moving[1]:
                rest = rests[pixel]
                if rest:
                    rests[pixel] = rest - 1
                else:
                    run.columns[n], run.pixels[n] = x - columns[0], pixel
                    n += 1
            pixel += 1
    return n, pixel


@compiled
def _smooth(
    states: NDArray[np.int16], start: int, pitch: int, row: int, needed: tuple[int, int], taps: Floats, smoothed: Floats
) -> None:
    """Sum the needed states of a run and those above and below them, and then each of these sums and those beside it."""
    rim = len(taps) // 2
    for lane in range(needed[0], needed[1] + 2 * rim * row, N_LANES):
        at = start + lane
        value = multiply(load_half(states, at), broadcast(taps[0]))
        for tap in range(1, len(taps)):
            value = multiply_add(load_half(states, at + tap * pitch), broadcast(taps[tap]), value)
        store(smoothed, lane, value)
    for lane in range(needed[0], needed[1], N_LANES):
        value = multiply(load(smoothed, lane), broadcast(taps[0]))
        for tap in range(1, len(taps)):
            value = multiply_add(load(smoothed, lane + tap * row), broadcast(taps[tap]), value)
        store(smoothed, lane, value)


@compiled
def _score_alone(part: PartPixels, run: Run, n: int, groups: Groups) -> None:
    """Score every class by its log P."""
    row = len(groups) * len(groups[0])
    for at in range(n):
        pixel = run.pixels[at]
        run.last[at] = part.last[pixel]
        for lane in range(0, row, len(groups[0])):
            store(run.scores, at * row + lane, load_half(part.unary, pixel * row + lane, groups[0]))


@compiled
def _score(
    part: PartPixels,
    kernels: Kernels,
    values: Values,
    run: Run,
    n: int,
    norms: Floats,
    corners: tuple[int, ...],
    groups: Groups,
) -> None:
    """Score every class by its log P and by what both kernels bring from other pixels.

    Rows of corners are far apart, so they are asked for early: those to slice of a later pixel, and those to splat of this one.
    """
    few, row = groups[0], len(groups) * len(groups[0])
    vertex, sliced, splatted = part.vertex, values.sliced, values.splatted
    ahead, last_corner = np.uintp(_PIXELS_AHEAD * len(corners)), np.uintp(len(vertex) - 1)
    for at in range(n):
        pixel, column = run.pixels[at], run.columns[at]
        norm = norms[column]
        to_appearance, to_smoothness = broadcast(kernels.w_appearance * norm, few), broadcast(kernels.w_smoothness * norm, few)
        first_corner = np.uintp(pixel * len(corners))
        together = broadcast(float32(0.0), few)
        for group in range(len(groups)):
            lane = group * len(few)
            appearance = broadcast(float32(0.0), few)
            for k in range(len(corners)):
                corner = first_corner + np.uintp(k)
                there = vertex[corner] * row + lane
                prefetch(sliced, vertex[min(corner + ahead, last_corner)] * row + lane)
                prefetch(splatted, there)
                value = load_half(sliced, there, few)
                appearance = multiply_add(value, broadcast(part.weight[corner], few), appearance)
            smoothness = load(run.smoothed, column * row + lane, few)
            message = multiply_add(smoothness, to_smoothness, multiply(appearance, to_appearance))
            together = add(together, message)
            if len(kernels.costs) == 0:
                message = add(message, load_half(part.unary, pixel * row + lane, few))
            store(run.scores, at * row + lane, message)
        run.last[at] = part.whole[pixel] - total(together)
        if len(kernels.costs) == 0:
            run.last[at] += part.last[pixel]
    if len(kernels.costs):
        _apply_costs(kernels, part, run, n, groups)


@compiled
def _apply_costs(kernels: Kernels, part: PartPixels, run: Run, n: int, groups: Groups) -> None:
    """Turn messages into scores: log P less what the classes around cost."""
    few, row = groups[0], len(groups) * len(groups[0])
    costs, costs_of_last = kernels.costs, kernels.costs_of_last
    n_others = len(costs_of_last) - 1
    messages = np.empty(row + 1, np.float32)
    for at in range(n):
        pixel = run.pixels[at]
        messages[:row] = run.scores[at * row : (at + 1) * row]
        messages[n_others] = run.last[at]
        score_of_last = part.last[pixel]
        for other in range(n_others + 1):
            score_of_last -= costs_of_last[other] * messages[other]
        run.last[at] = score_of_last
        for lane in range(0, row, len(few)):
            score = load_half(part.unary, pixel * row + lane, few)
            for other in range(n_others + 1):
                score = subtract(score, multiply(load(costs, other * row + lane, few), broadcast(messages[other], few)))
            store(run.scores, at * row + lane, score)


@compiled
def _settle(
    part: PartPixels,
    kernels: Kernels,
    values: Values,
    start: int,
    run: Run,
    n: int,
    norms: Floats,
    groups: Groups,
) -> None:
    """Make the new states; leave their changes where the scores were, and let pixels rest whose change is small."""
    few, row = groups[0], len(groups) * len(groups[0])
    # within the loop, every look at a member could count references, atomically
    rests, calm, before, after = part.rests, part.calm, values.before, values.after
    all_scores, of_last, columns, pixels = run.scores, run.last, run.columns, run.pixels
    rest_below, longest_rest = kernels.rest_below, kernels.longest_rest
    for at in range(n):
        scores, last = at * row, of_last[at]
        best = load(all_scores, scores, few)
        for group in range(1, len(groups)):
            best = maximum(best, load(all_scores, scores + group * len(few), few))
        # scores are compared with that of the last class, which is then exp(0), unless it has no share
        highest = largest(best)
        outdone = highest > last + _FAR
        level = broadcast(highest if outdone else last, few)
        of_last[at] = float32(0.0) if outdone else float32(1.0)
        for group in range(len(groups)):
            lane = scores + group * len(few)
            store(all_scores, lane, subtract(load(all_scores, lane, few), level))
    for lane in range(0, n * row, N_LANES):
        store(all_scores, lane, exponential(load(all_scores, lane)))
    for at in range(n):
        scores, here = at * row, start + columns[at] * row
        sums = load(all_scores, scores, few)
        for group in range(1, len(groups)):
            sums = add(sums, load(all_scores, scores + group * len(few), few))
        factor = broadcast(norms[columns[at]] / (total(sums) + of_last[at]), few)
        most, together = broadcast(float32(0.0), few), broadcast(float32(0.0), few)
        for group in range(len(groups)):
            lane = group * len(few)
            store_half(after, here + lane, multiply(load(all_scores, scores + lane, few), factor))
            # the change is that of what is kept, rounded, so that the corners always hold the sum of all states
            change = subtract(load_half(after, here + lane, few), load_half(before, here + lane, few))
            most, together = maximum(most, magnitude(change)), add(together, change)
            store(all_scores, scores + lane, change)
        pixel = pixels[at]
        if max(largest(most), abs(total(together))) < rest_below:
            calm[pixel] = min(calm[pixel] + np.uint8(1), longest_rest)
            rests[pixel] = calm[pixel]
        else:
            calm[pixel] = 0


@compiled
def _splat(
    vertex: NDArray[np.int32],
    weight: Floats,
    splatted: Floats,
    run: Run,
    n: int,
    corners: tuple[int, ...],
    groups: Groups,
) -> None:
    """Add the changes of pixels to their corners."""
    few, row = groups[0], len(groups) * len(groups[0])
    for at in range(n):
        first_corner = np.uintp(run.pixels[at] * len(corners))
        for group in range(len(groups)):
            lane = group * len(few)
            change = load(run.scores, at * row + lane, few)
            for k in range(len(corners)):
                corner = first_corner + np.uintp(k)
                there = vertex[corner] * row + lane
                store(splatted, there, multiply_add(change, broadcast(weight[corner], few), load(splatted, there, few)))


@compiled
def narrow(splatted: Floats, sliced: NDArray[np.int16], start: int, stop: int, groups: Groups) -> None:
    """Take over the sums of some vertices, rounded to float16."""
    few, row = groups[0], len(groups) * len(groups[0])
    for at in range(start * row, stop * row, len(few)):
        store_half(sliced, at, load(splatted, at, few))


@compiled
def gather(
    splatted: Floats,
    sliced: NDArray[np.int16],
    copied: NDArray[np.int32],
    n_vertices: int,
    start: int,
    stop: int,
    groups: Groups,
) -> None:
    """Add to the rows of vertices what their copies hold."""
    few, row = groups[0], len(groups) * len(groups[0])
    for copy in range(start, stop):
        for lane in range(0, row, len(few)):
            at = copied[copy] * row + lane
            store_half(sliced, at, add(load_half(sliced, at, few), load(splatted, (n_vertices + copy) * row + lane, few)))


@compiled
def spread(sliced: NDArray[np.int16], copied: NDArray[np.int32], n_vertices: int, start: int, stop: int, groups: Groups) -> None:
    """Give the copies what their vertices hold."""
    few, row = groups[0], len(groups) * len(groups[0])
    for copy in range(start, stop):
        for lane in range(0, row, len(few)):
            store_half(sliced, (n_vertices + copy) * row + lane, load_half(sliced, copied[copy] * row + lane, few))


@compiled
def visit(log: NDArray[np.int16], valid: NDArray[np.bool_], row: int, no_class: np.int16) -> NDArray[np.int16]:
    """Return log P of a part's valid pixels in the order in which they are visited: (pixels x lanes,); all in float16."""
    n_classes, height, width = log.shape
    unary = np.empty(valid.sum() * row, np.int16)
    pixel = 0
    for cell in range(0, width, PART_PX):
        for y in range(height):
            for x in range(cell, min(cell + PART_PX, width)):
                if valid[y, x]:
                    for k in range(n_classes):
                        unary[pixel + k] = log[k, y, x]
                    unary[pixel + n_classes : pixel + row] = no_class
                    pixel += row
    return unary


@compiled
def marginals(
    states: NDArray[np.int16], kernels: Kernels, rows: tuple[int, int], columns: tuple[int, int], groups: Groups, refined: Floats
) -> None:
    """Write the marginals of the valid pixels of some rows and columns into ``refined``, (classes, height, width)."""
    few, row = groups[0], len(groups) * len(groups[0])
    width, n_others = kernels.valid.shape[1], len(refined) - 1
    rim = len(kernels.taps) // 2
    state = np.empty(row, np.float32)
    for y in range(rows[0], rows[1]):
        start = ((y + rim) * (width + 2 * rim) + rim) * row
        for x in range(columns[0], columns[1]):
            if kernels.valid[y, x]:
                sums = broadcast(float32(0.0), few)
                for lane in range(0, row, len(few)):
                    values = load_half(states, start + x * row + lane, few)
                    store(state, lane, values)
                    sums = add(sums, values)
                others = total(sums)
                whole = max(others, kernels.norm[y, x])  # less than others where these were rounded up
                for k in range(n_others):
                    refined[k, y, x] = state[k] / whole
                refined[n_others, y, x] = (whole - others) / whole


@compiled
def blur(target: NDArray[np.int16], runs: NDArray[np.int32], start: int, stop: int, groups: Groups) -> None:
    """Add to every row half of its neighbours' along one direction, in place.

    A run is not a loop of its own: that it ends is only a factor of 0, since runs are short and a processor guesses their ends wrong.
    """
    few, row = groups[0], len(groups) * len(groups[0])
    last = len(runs) - 1
    for lane in range(0, row if start < stop else 0, len(few)):
        # what goes from one row to the next stays in registers: an array for it would be written and read again every time
        value, previous = load_half(target, runs[start] * row + lane, few), broadcast(float32(0.0), few)
        for at in range(start, stop):
            ahead = runs[min(at + ROWS_AHEAD, last)]
            prefetch(target, max(ahead, ~ahead) * row + lane)
            vertex, following = runs[at], runs[min(at + 1, last)]
            here, there = max(vertex, ~vertex) * row + lane, max(following, ~following) * row + lane
            goes_on = broadcast(float32(0.5) if vertex >= 0 else float32(0.0), few)
            beyond = load_half(target, there, few)
            store_half(target, here, multiply_add(beyond, goes_on, add(value, previous)))
            value, previous = beyond, multiply(value, goes_on)
