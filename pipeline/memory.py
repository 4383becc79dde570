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
from pipeline.grid import BLOCKS_AT_ONCE, Blocks
from pipeline.locate import locate, network_lattice
from pipeline.network.cells import cells_of
from pipeline.network.footprint import largest_kernel_bytes, parameter_bytes, peak_activation_bytes

if TYPE_CHECKING:
    from pipeline.engine.protocol import RunsNetwork
    from pipeline.network.spec import ModelSpec
    from pipeline.scene import SceneInfo
    from pipeline.spec import SegmentSpec

_PROCESS_BYTES = 430 * 2**20
"""Python with zarr, rasterio, distributed and torch loaded: 330 to 400 MiB measured on Linux, 180 to 250 without torch (ADR 26)."""
_OPENVINO_BYTES = 110 * 2**20
"""OpenVINO itself, and what it needs to convert a network; measured."""
_WEIGHTS_CONVERTED = 5
"""Copies of the weights while a network is converted: as read, folded, traced, reordered, and as written. Measured 2.7 to 3.2 on a Zen 5,
up to 4.6 on a Zen 4."""
_TRACED_SCALES = 1.7
"""At several scales the conversion runs the network once in torch, at full size; measured 1.3 to 1.5 of the activations counted."""
UNKNOWN_BYTES = 2**60
"""Memory of workers that are not there yet."""
_MOST_SEEN_BYTES = 4 * 2**30
_SAMPLED_BLOCKS = 64
"""Rows of blocks that are looked at for what one leaves to the next; the pattern repeats."""
_SCRATCH = 1.3
"""torch: reordered copies that the convolution library makes beside the activations themselves; measured."""
_SCRATCH_SCALES = 2.3
"""The same at several scales: what one size leaves is in pieces that the next one cannot use. Measured 2.0 to 2.3 with MobileNetV2,
ResNet-50 and ResNet-101 at two and three scales, windows of 512 px."""
_JOINED = 0.8
"""OpenVINO: convolution, normalisation and activation are one operation. Measured 0.4 (ResNet) to 0.55 (MobileNetV2, Xception), also at
several scales."""
_NOTHING_TO_JOIN = 1.1
"""The same for VGG-16, which has no normalisation; measured 1.0."""


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


def bound(
    spec: SegmentSpec,
    scene: SceneInfo,
    model: ModelSpec,
    *,
    n_at_once: int,
    engine: RunsNetwork = "torch",
    blocks_at_once: int = BLOCKS_AT_ONCE,
) -> MemoryBound:
    """Work out the peak memory of one worker on the largest block of a scene.

    Parameters
    ----------
    spec, scene, model
        What is run on what.
    n_at_once
        Network windows at once (`windows_at_once`).
    engine
        What runs the network (`choose_engine`).
    blocks_at_once
        Blocks that the worker has at once.
    """
    n_bands, n_classes = len(model.bands), len(model.classes)
    write, predict, read, n_windows = _largest_windows(spec, scene)
    item_bytes = np.dtype(scene.dtype).itemsize
    smaller_block = f"use a smaller --block (now {spec.grid.block_px})"
    runs_network = spec.probabilities_from is None
    terms = [
        MemoryTerm(name="process", n_bytes=_PROCESS_BYTES + (_weights(model, engine) if runs_network else 0), knob=""),
        MemoryTerm(name="pixels read", n_bytes=(blocks_at_once + 1) * read * (n_bands * item_bytes + 1), knob=smaller_block),
        _block_term(spec, model, n_pixels=predict, n_windows=n_windows),
        MemoryTerm(
            name="labels and chunks",
            n_bytes=write * (8 + blocks_at_once * (4 + (n_classes * 3 if spec.output.probabilities else 0))),
            knob=smaller_block,
        ),
    ]
    if runs_network:
        terms += _network_terms(spec, model, n_at_once=n_at_once, engine=engine)
    else:
        terms.append(MemoryTerm(name="stored probabilities", n_bytes=2 * predict * n_classes, knob=smaller_block))
    if spec.crf is not None:
        side_px = spec.crf.tile_px + 2 * spec.crf.halo_px
        tile_px = min(side_px, scene.height) * min(side_px, scene.width)
        terms += [
            MemoryTerm(
                name="CRF tile",
                n_bytes=tile_px * 4 * (n_bands + n_classes) + tile_bytes(spec.crf, tile_px, n_classes=n_classes, n_bands=n_bands),
                knob="use a smaller theta_alpha or CRF tile",
            ),
        ]
    needed = [term for term in terms if term.n_bytes > 0]
    return MemoryBound(terms=tuple(sorted(needed, key=lambda term: -term.n_bytes)))


def seen_windows_bytes(spec: SegmentSpec, scene: SceneInfo, model: ModelSpec) -> int:
    """Return how many bytes of network windows on the edges of blocks a worker keeps on disk: what one row of blocks leaves for the next.

    Bounded: where a very wide scene with very many classes would need more, some of its windows are computed again.
    """
    blocks = Blocks(shape=scene.shape, block_px=spec.grid.block_px)
    if spec.probabilities_from is not None or len(blocks) == 1:
        return 0
    rows = [locate((row, 0), shape=scene.shape, spec=spec) for row in range(min(blocks.n_rows, _SAMPLED_BLOCKS))]
    per_column = max(len({row for row, _ in windows.shared}) for windows in rows)
    n_windows = per_column * network_lattice(scene.shape, spec).n_cols
    return min(_MOST_SEEN_BYTES, n_windows * _scores_bytes(spec, model))


def _scores_bytes(spec: SegmentSpec, model: ModelSpec) -> int:
    """Return the bytes of the scores of one window."""
    side = cells_of(model.network, spec.multiscale).n_covering(spec.grid.window_px)
    return 4 * len(model.classes) * side**2


def _block_term(spec: SegmentSpec, model: ModelSpec, *, n_pixels: int, n_windows: int) -> MemoryTerm:
    """Return what is kept of a block when its network is through: scores for the CRF, tile by tile (`PartBlender`), or probabilities."""
    smaller_block = f"use a smaller --block (now {spec.grid.block_px})"
    if spec.crf is None or spec.probabilities_from is not None or cells_of(model.network, spec.multiscale).factor == 1:
        return MemoryTerm(name="block probabilities", n_bytes=n_pixels * 4 * len(model.classes), knob=smaller_block)
    return MemoryTerm(name="block scores", n_bytes=n_windows * _scores_bytes(spec, model), knob=smaller_block)


def _network_terms(spec: SegmentSpec, model: ModelSpec, *, n_at_once: int, engine: RunsNetwork) -> list[MemoryTerm]:
    smaller_window = f"use a smaller --window (now {spec.grid.window_px})"
    n_pixels = spec.grid.window_px**2
    in_flight = 12 * len(model.bands) * n_pixels + 3 * _scores_bytes(spec, model)
    return [
        MemoryTerm(
            name="network activations", n_bytes=_activations(model, spec, engine, n_at_once=n_at_once), knob=smaller_window
        ),
        MemoryTerm(name="windows in flight", n_bytes=n_at_once * in_flight, knob=smaller_window),
    ]


def _weights(model: ModelSpec, engine: RunsNetwork) -> int:
    """Return the bytes of a network while it is loaded: as read and as folded, and its largest kernel reordered; or converted."""
    if engine == "openvino":
        return _OPENVINO_BYTES + _WEIGHTS_CONVERTED * parameter_bytes(model.network)
    return 2 * parameter_bytes(model.network) + largest_kernel_bytes(model.network)


def _activations(model: ModelSpec, spec: SegmentSpec, engine: RunsNetwork, *, n_at_once: int) -> int:
    counted = peak_activation_bytes(model.network, window_px=spec.grid.window_px, multiscale=spec.multiscale)
    if engine == "torch":
        return int(n_at_once * counted * (_SCRATCH if spec.multiscale.is_single else _SCRATCH_SCALES))
    share = _NOTHING_TO_JOIN if model.network.backbone.startswith("vgg") else _JOINED
    return int(counted * (n_at_once * share if spec.multiscale.is_single else max(n_at_once * share, _TRACED_SCALES)))


def _largest_windows(spec: SegmentSpec, scene: SceneInfo) -> tuple[int, int, int, int]:
    """Return the pixels of the largest write, predict and read windows that a block needs, and the most network windows.

    Blocks and lattices have other periods, so the largest may be any block; rows and columns are independent of each other.
    """
    blocks = Blocks(shape=scene.shape, block_px=spec.grid.block_px)
    rows = [locate((row, 0), shape=scene.shape, spec=spec) for row in range(blocks.n_rows)]
    cols = [locate((0, col), shape=scene.shape, spec=spec) for col in range(blocks.n_cols)]
    return (
        max(windows.write.height for windows in rows) * max(windows.write.width for windows in cols),
        max(windows.predict.height for windows in rows) * max(windows.predict.width for windows in cols),
        max(windows.read.height for windows in rows) * max(windows.read.width for windows in cols),
        max(len({row for row, _ in windows.network}) for windows in rows)
        * max(len({col for _, col in windows.network}) for windows in cols),
    )
