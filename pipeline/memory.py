"""How many bytes does one worker need for one block?

A sum of named terms, known before the run, each with the knob that lowers it. The bound is meant to hold and to be within a factor of
two of what is used; ``tests/workflows/test_memory.py`` holds it against the measured peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.tile import tile_bytes
from pipeline.errors import MemoryBudgetError
from pipeline.grid import Blocks
from pipeline.network.footprint import largest_kernel_bytes, parameter_bytes, peak_activation_bytes
from pipeline.segment import locate

if TYPE_CHECKING:
    from pipeline.network.spec import ModelSpec
    from pipeline.scene import SceneInfo
    from pipeline.spec import SegmentSpec

_PROCESS_BYTES = 450 * 2**20
"""Python with torch, zarr, rasterio and distributed loaded: 330 to 400 MiB measured on Linux."""
_SCRATCH = 1.3
"""Reordered copies that the convolution library makes beside the activations themselves; measured."""
_SCRATCH_SCALES = 2.3
"""The same at several scales: what one size leaves is in pieces that the next one cannot use. Measured 2.0 to 2.3 with MobileNetV2,
ResNet-50 and ResNet-101 at two and three scales, windows of 512 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerm:
    """One share of a worker's peak memory."""

    name: str
    """What is held."""
    n_bytes: int
    """How much, bytes."""
    knob: str
    """What the user can turn to make it smaller; empty where nothing can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBound:
    """The peak memory of a worker, as a sum of terms."""

    terms: tuple[MemoryTerm, ...]
    """Largest first."""

    @property
    def total_bytes(self) -> int:
        """The sum, bytes."""
        return sum(term.n_bytes for term in self.terms)

    def check(self, limit_bytes: int) -> None:
        """Raise MemoryBudgetError, naming the largest term that has a knob, where the bound is above ``limit_bytes``."""
        if self.total_bytes <= limit_bytes:
            return
        largest = next(term for term in self.terms if term.knob)
        raise MemoryBudgetError(
            f"one worker needs {self.total_bytes / 2**30:.1f} GiB for a block, and has {limit_bytes / 2**30:.1f} GiB; the largest "
            f"term is {largest.name} with {largest.n_bytes / 2**30:.2f} GiB: {largest.knob}"
        )


def bound(spec: SegmentSpec, scene: SceneInfo, model: ModelSpec, *, batch_size: int) -> MemoryBound:
    """Work out the peak memory of one worker on the largest block of a scene.

    Parameters
    ----------
    spec, scene, model
        What is run on what.
    batch_size
        Network windows at once (`Engine.batch_size`).
    """
    n_bands, n_classes = len(model.bands), len(model.classes)
    write, predict, read = _largest_windows(spec, scene)
    item_bytes = np.dtype(scene.dtype).itemsize
    smaller_block = f"use a smaller --block (now {spec.grid.block_px})"
    runs_network = spec.probabilities_from is None
    terms = [
        MemoryTerm(name="process", n_bytes=_PROCESS_BYTES + (_weights(model) if runs_network else 0), knob=""),
        MemoryTerm(name="pixels read", n_bytes=2 * read * (n_bands * item_bytes + 1), knob=smaller_block),
        MemoryTerm(name="block probabilities", n_bytes=predict * 4 * (n_classes + 2), knob=smaller_block),
        MemoryTerm(
            name="labels and chunks",
            n_bytes=write * (12 + (n_classes * 6 if spec.output.probabilities else 0)),
            knob=smaller_block,
        ),
    ]
    if runs_network:
        terms += _network_terms(spec, model, batch_size=batch_size)
    else:
        terms.append(MemoryTerm(name="stored probabilities", n_bytes=2 * predict * n_classes, knob=smaller_block))
    if spec.crf is not None:
        side_px = spec.crf.tile_px + 2 * spec.crf.halo_px
        tile_px = min(side_px, scene.height) * min(side_px, scene.width)
        terms += [
            MemoryTerm(name="refined probabilities", n_bytes=write * 4 * n_classes, knob=smaller_block),
            MemoryTerm(
                name="CRF tile",
                n_bytes=tile_px * 4 * n_bands + tile_bytes(spec.crf, tile_px, n_classes=n_classes, n_bands=n_bands),
                knob="use a smaller theta_alpha or CRF tile",
            ),
        ]
    return MemoryBound(terms=tuple(sorted(terms, key=lambda term: -term.n_bytes)))


def _network_terms(spec: SegmentSpec, model: ModelSpec, *, batch_size: int) -> list[MemoryTerm]:
    smaller_window = f"use a smaller --window (now {spec.grid.window_px})"
    item_bytes = 4 * (3 * len(model.classes) + 2 * len(model.bands))
    return [
        MemoryTerm(name="network activations", n_bytes=batch_size * _activations(model, spec), knob=smaller_window),
        MemoryTerm(name="window probabilities", n_bytes=batch_size * spec.grid.window_px**2 * item_bytes, knob=smaller_window),
    ]


def _weights(model: ModelSpec) -> int:
    """Return the bytes of a network while it is loaded: as read and as folded, and its largest kernel reordered."""
    return 2 * parameter_bytes(model.network) + largest_kernel_bytes(model.network)


def _activations(model: ModelSpec, spec: SegmentSpec) -> int:
    counted = peak_activation_bytes(model.network, window_px=spec.grid.window_px, multiscale=spec.multiscale)
    return int(counted * (_SCRATCH if spec.multiscale.is_single else _SCRATCH_SCALES))


def _largest_windows(spec: SegmentSpec, scene: SceneInfo) -> tuple[int, int, int]:
    """Return the pixels of the largest write, predict and read windows that a block needs.

    Blocks and lattices have other periods, so the largest may be any block; rows and columns are independent of each other.
    """
    blocks = Blocks(shape=scene.shape, block_px=spec.grid.block_px)
    rows = [locate((row, 0), shape=scene.shape, spec=spec) for row in range(blocks.n_rows)]
    cols = [locate((0, col), shape=scene.shape, spec=spec) for col in range(blocks.n_cols)]
    return (
        max(windows.write.height for windows in rows) * max(windows.write.width for windows in cols),
        max(windows.predict.height for windows in rows) * max(windows.predict.width for windows in cols),
        max(windows.read.height for windows in rows) * max(windows.read.width for windows in cols),
    )
