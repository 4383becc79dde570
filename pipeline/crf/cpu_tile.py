"""The mean field of one tile on the processor, on several threads and without the GIL.

::

    embed the pixels in the lattice -> normalise both kernels -> n_steps times: update the pixels, blur the vertices -> marginals

The appearance kernel is pydensecrf's: the same lattice, blur and normalisation. The smoothness kernel is a short stencil on the pixel grid.
Vertices are blurred and states kept in float16, vertices summed in float32. The answer does not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.crf import mean_field
from pipeline.crf.energy import MIN_PROBABILITY
from pipeline.crf.lattice import Lattice, embed, unembedded
from pipeline.crf.norms import normalise_weights, smoothness_norm, visited, whole_messages
from pipeline.crf.smoothness import taps
from pipeline.crf.vertices import N_CHUNKS
from pipeline.lane_count import N_LANES, class_groups
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec
    from pipeline.crf.lattice import Part
    from pipeline.lane_count import Groups

Piece = TypeVar("Piece")

LONGEST_REST = 4
"""For how many steps at most a pixel rests that hardly changes."""
_UNSEEN = 2.0**-12
"""To so much float16 rounds a marginal, the type of states: a pixel that changes by less rests, whatever was asked for."""


class CpuTile:
    """The mean field of one tile: what stays the same from step to step, and the values that change."""

    def __init__(
        self,
        probabilities: NDArray[np.float32],
        guide: NDArray[np.float32],
        valid: NDArray[np.bool_],
        spec: CrfSpec,
        offset_px: tuple[int, int],
        pool: Executor,
    ) -> None:
        self._probabilities, self._valid, self._spec, self._pool = probabilities, valid, spec, pool
        self._groups = class_groups(len(probabilities))
        self._row = len(self._groups) * len(self._groups[0])
        stencil = taps(spec.theta_gamma) if spec.w_smoothness > 0 else np.ones(1, np.float32)
        self._rim = len(stencil) // 2
        norm = smoothness_norm(valid, stencil, pool)
        self._lattice = self._embed(guide, offset_px)
        norms = list(pool.map(lambda part: visited(norm[slice(*part.rows)], valid[slice(*part.rows)]), self._lattice.parts))
        if self._lattice.n_corners:
            normalise_weights(self._lattice, norms, pool)
        self._corners = (0,) * self._lattice.n_corners
        self._kernels = mean_field.Kernels(
            valid=valid,
            norm=norm,
            taps=stencil,
            w_appearance=np.float32(spec.w_appearance * self._lattice.scale),
            w_smoothness=np.float32(spec.w_smoothness),
            **self._costs(),
            rest_below=np.float32(max(spec.stop_below, _UNSEEN)),
            longest_rest=np.uint8(LONGEST_REST),
        )
        self._parts = list(pool.map(self._part, self._lattice.parts, whole_messages(self._lattice, self._kernels, norms, pool)))

    def refine(self, core: Window) -> NDArray[np.float32]:
        """Run the steps and return the marginals: after the last one, nobody looks at pixels outside ``core``, and they stay behind."""
        height, width = self._valid.shape
        n_pixels = (height + 2 * self._rim) * (width + 2 * self._rim)
        n_states = n_pixels * self._row + N_LANES  # whole vectors may reach past the last
        before, after = np.zeros(n_states, np.int16), np.zeros(n_states, np.int16)
        splatted = np.zeros(self._lattice.n_rows * self._row, np.float32)
        sliced = np.empty(self._lattice.n_rows * self._row, np.int16)
        for step in self._steps(core):
            self._update(mean_field.Values(sliced, splatted, before, after), step)
            before, after = after, before
            if not step.last:
                self._blur(splatted, sliced)
        del after, splatted, sliced  # room for what is returned
        return self._marginals(before, core)

    def _steps(self, core: Window) -> list[mean_field.Step]:
        n_steps = self._spec.n_steps
        moving = [*(Window.of_shape(self._valid.shape) for _ in range(n_steps)), core]
        return [
            mean_field.Step(
                rows=(one.row_off, one.row_end), columns=(one.col_off, one.col_end), first=number == 0, last=number == n_steps
            )
            for number, one in enumerate(moving)
        ]

    def _embed(self, guide: NDArray[np.float32], offset_px: tuple[int, int]) -> Lattice:
        spec = self._spec
        if spec.w_appearance == 0:
            return unembedded(self._valid)
        thetas = {"theta_px": spec.theta_alpha, "theta": spec.theta_beta}
        return embed(guide, self._valid, **thetas, offset_px=offset_px, pool=self._pool)

    def _costs(self) -> dict[str, NDArray[np.float32]]:
        """Return the compatibility matrix as `Kernels` has it: rows of lanes, and what the last class costs; empty for Potts."""
        if self._spec.compatibility is None:
            return {"costs": np.empty(0, np.float32), "costs_of_last": np.empty(0, np.float32)}
        matrix = np.transpose(np.asarray(self._spec.compatibility, np.float32))
        costs = np.zeros((len(matrix), self._row), np.float32)
        costs[:, : len(matrix) - 1] = matrix[:, :-1]
        return {"costs": costs.ravel(), "costs_of_last": matrix[:, -1].copy()}

    def _part(self, part: Part, whole: NDArray[np.float32]) -> mean_field.PartPixels:
        rows = slice(*part.rows)
        valid = self._valid[rows]
        log = np.log(np.clip(self._probabilities[:, rows], MIN_PROBABILITY, 1.0))
        others = log[:-1].astype(np.float16).view(np.int16)
        unary = mean_field.visit(others, valid, self._row, mean_field.NO_CLASS.view(np.int16))
        rests = np.zeros(len(whole), np.uint8)
        return mean_field.PartPixels(
            *part.rows, part.vertex, part.weight, unary, visited(log[-1], valid), whole, rests, rests.copy()
        )

    def _update(self, values: mean_field.Values, step: mean_field.Step) -> None:
        def work(part: mean_field.PartPixels) -> None:
            mean_field.update(part, self._kernels, values, step, self._corners, self._groups)

        self._each(work, self._parts)

    def _blur(self, splatted: NDArray[np.float32], sliced: NDArray[np.int16]) -> None:
        """Blur the sums at vertices, and give every part what it slices."""
        lattice, groups = self._lattice, self._groups
        bounds = np.linspace(0, lattice.n_vertices, N_CHUNKS + 1).astype(np.int64)
        copies = (lattice.copied, lattice.n_vertices)
        chunks = lattice.copy_chunks
        self._each(lambda i: mean_field.narrow(splatted, sliced, bounds[i], bounds[i + 1], groups), range(N_CHUNKS))
        self._each(lambda i: mean_field.gather(splatted, sliced, *copies, chunks[i], chunks[i + 1], groups), range(N_CHUNKS))
        for runs, starts in lattice.chains:
            self._each(partial(_blur_chunk, sliced, runs, starts.tolist(), groups), range(N_CHUNKS))
        self._each(lambda i: mean_field.spread(sliced, *copies, chunks[i], chunks[i + 1], groups), range(N_CHUNKS))

    def _marginals(self, states: NDArray[np.int16], core: Window) -> NDArray[np.float32]:
        refined = np.empty_like(self._probabilities)
        columns = (core.col_off, core.col_end)

        def work(part: Part) -> None:
            refined[:, slice(*part.rows)] = self._probabilities[:, slice(*part.rows)]
            rows = (max(part.rows[0], core.row_off), min(part.rows[1], core.row_end))
            mean_field.marginals(states, self._kernels, rows, columns, self._groups, refined)

        self._each(work, self._lattice.parts)
        return refined

    def _each(self, work: Callable[[Piece], object], pieces: Iterable[Piece]) -> None:
        """Do independent pieces of work at the same time, and wait for all."""
        list(self._pool.map(work, pieces))


def _blur_chunk(sliced: NDArray[np.int16], runs: NDArray[np.int32], ends: list[int], groups: Groups, chunk: int) -> None:
    mean_field.blur(sliced, runs, ends[chunk], ends[chunk + 1], groups)
