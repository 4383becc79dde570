"""The mean field of one tile on the processor, on several threads and without the GIL.

::

    embed the pixels in the lattice -> normalise both kernels -> n_steps times: update the pixels, blur the vertices -> marginals

The appearance kernel is pydensecrf's: the same lattice, blur and normalisation. The smoothness kernel is a short stencil on the pixel grid.
Vertices are blurred and states kept in float16, vertices summed in float32. The answer does not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf import mean_field
from pipeline.crf.energy import MIN_PROBABILITY
from pipeline.crf.lattice import Lattice, embed, unembedded
from pipeline.crf.norms import normalise_weights, smoothness_norm
from pipeline.crf.smoothness import taps
from pipeline.crf.vertices import N_CHUNKS
from pipeline.lane_count import N_LANES
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec

LONGEST_REST = 4
"""For how many steps at most a pixel rests that hardly changes."""


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
        n_groups = -(-len(probabilities) // N_LANES)
        self._groups = (0,) * n_groups
        self._row = n_groups * N_LANES
        stencil = taps(spec.theta_gamma) if spec.w_smoothness > 0 else np.ones(1, np.float32)
        self._rim = len(stencil) // 2
        norm = smoothness_norm(valid, stencil)
        self._lattice = self._embed(guide, norm, offset_px)
        self._corners = (0,) * self._lattice.n_corners
        self._kernels = mean_field.Kernels(
            valid=valid,
            norm=norm,
            taps=stencil,
            w_appearance=np.float32(spec.w_appearance * self._lattice.scale),
            w_smoothness=np.float32(spec.w_smoothness),
            costs=self._costs(),
            rest_below=np.float32(spec.stop_below),
            longest_rest=np.uint8(LONGEST_REST),
        )
        self._parts = list(pool.map(self._part, range(len(self._lattice.parts))))

    def refine(self, core: Window) -> NDArray[np.float32]:
        """Run the steps and return the marginals: after the last one, nobody looks at pixels outside ``core``, and they stay behind."""
        height, width = self._valid.shape
        n_states = (height + 2 * self._rim) * (width + 2 * self._rim) * self._row
        before, after = np.zeros(n_states, np.int16), np.zeros(n_states, np.int16)
        splatted = np.zeros(self._lattice.n_rows * self._row, np.float32)
        sliced = np.empty(self._lattice.n_rows * self._row, np.int16)
        for step in self._steps(core):
            self._update(mean_field.Values(sliced, splatted, before, after), step)
            before, after = after, before
            if not step.last:
                self._blur(splatted, sliced)
        del after, splatted, sliced  # room for what is returned
        return self._marginals(before)

    def _steps(self, core: Window) -> list[mean_field.Step]:
        n_steps = self._spec.n_steps
        moving = [*(Window.of_shape(self._valid.shape) for _ in range(n_steps)), core]
        return [
            mean_field.Step(
                rows=(one.row_off, one.row_end), columns=(one.col_off, one.col_end), first=number == 0, last=number == n_steps
            )
            for number, one in enumerate(moving)
        ]

    def _embed(self, guide: NDArray[np.float32], norm: NDArray[np.float32], offset_px: tuple[int, int]) -> Lattice:
        spec = self._spec
        if spec.w_appearance == 0:
            return unembedded(self._valid)
        thetas = {"theta_px": spec.theta_alpha, "theta": spec.theta_beta}
        lattice = embed(guide, self._valid, **thetas, offset_px=offset_px, pool=self._pool)
        normalise_weights(lattice, self._valid, norm, self._pool)
        return lattice

    def _costs(self) -> NDArray[np.float32]:
        """Return the compatibility matrix as rows of lanes: (classes x lanes,); empty for Potts."""
        if self._spec.compatibility is None:
            return np.empty(0, np.float32)
        costs = np.zeros((len(self._probabilities), self._row), np.float32)
        costs[:, : len(self._probabilities)] = np.transpose(self._spec.compatibility)
        return costs.ravel()

    def _part(self, index: int) -> mean_field.PartPixels:
        part = self._lattice.parts[index]
        rows = slice(*part.rows)
        log = np.log(np.clip(self._probabilities[:, rows], MIN_PROBABILITY, 1.0))
        unary = mean_field.visit(
            log.astype(np.float16).view(np.int16), self._valid[rows], self._row, mean_field.NO_CLASS.view(np.int16)
        )
        rests = np.zeros(len(unary) // self._row, np.uint8)
        return mean_field.PartPixels(*part.rows, part.vertex, part.weight, unary, rests, rests.copy())

    def _update(self, values: mean_field.Values, step: mean_field.Step) -> None:
        def work(i: int) -> None:
            mean_field.update(self._parts[i], self._kernels, values, step, self._corners, self._groups)

        self._each(work, len(self._parts))

    def _blur(self, splatted: NDArray[np.float32], sliced: NDArray[np.int16]) -> None:
        """Blur the sums at vertices, and give every part what it slices."""
        lattice, groups = self._lattice, self._groups
        bounds = np.linspace(0, lattice.n_vertices, N_CHUNKS + 1).astype(np.int64)
        copies = (lattice.copied, lattice.n_vertices)
        chunks = lattice.copy_chunks
        self._each(lambda i: mean_field.narrow(splatted, sliced, bounds[i], bounds[i + 1], groups), N_CHUNKS)
        self._each(lambda i: mean_field.gather(splatted, sliced, *copies, chunks[i], chunks[i + 1], groups), N_CHUNKS)
        for runs, starts in lattice.chains:
            self._each(partial(_blur_chunk, sliced, runs, starts.tolist(), groups), N_CHUNKS)
        self._each(lambda i: mean_field.spread(sliced, *copies, chunks[i], chunks[i + 1], groups), N_CHUNKS)

    def _marginals(self, states: NDArray[np.int16]) -> NDArray[np.float32]:
        refined = self._probabilities.copy()
        self._each(
            lambda i: mean_field.marginals(states, self._kernels, self._lattice.parts[i].rows, self._groups, refined),
            len(self._lattice.parts),
        )
        return refined

    def _each(self, work: Callable[[int], object], n: int) -> None:
        """Do independent pieces of work at the same time, and wait for all."""
        list(self._pool.map(work, range(n)))


def _blur_chunk(sliced: NDArray[np.int16], runs: NDArray[np.int32], ends: list[int], groups: tuple[int, ...], chunk: int) -> None:
    mean_field.blur(sliced, runs, ends[chunk], ends[chunk + 1], groups)
