"""How does a block go through a CUDA device and leave it again? Its pixels go there once, labels come back; all between stays.

::

    pixels (u1 ...) -> normalised window -> network -> scores -> enlarged, softmax, weighted, added -> labels, confidence (u1)
    ^ host                                                                                                               host ^

What happens to a number is what `normalise`, `fused` and `classify` do on the CPU, in the same order. Several blocks of a process have
room on a device: one of them computes, another is copied there or back, each on a stream of its own.
"""

from __future__ import annotations

import contextlib
import queue
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.blend import window_parts
from pipeline.blended import EVERYWHERE
from pipeline.engine.device_memory import enough_memory
from pipeline.engine.one_call import one_call
from pipeline.labels import NODATA_LABEL
from pipeline.network.resize import upsample
from pipeline.stretch import stretched_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.blended import Blended
    from pipeline.grid import Lattice
    from pipeline.network.cells import Cells
    from pipeline.network.spec import ModelSpec
    from pipeline.scene import Tile
    from pipeline.spec import Blend
    from pipeline.stretch import Stretch
    from pipeline.window import Window

_SIGNED = {"uint16": np.int32, "uint32": np.int64}
"""torch computes with no unsigned integers but bytes."""


class DeviceRooms:
    """Room on a device for so many blocks at a time, each with a stream of its own."""

    def __init__(self, device: torch.device, *, n_blocks: int) -> None:
        self._streams: queue.SimpleQueue[torch.cuda.Stream] = queue.SimpleQueue()
        for _ in range(n_blocks):
            self._streams.put(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def taken(self, order: contextlib.AbstractContextManager[object]) -> Iterator[None]:
        """Wait for room, and let this thread work on its stream. ``order`` is held while it waits: who comes first must not wait behind."""
        with order:
            stream = self._streams.get()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._streams.put(stream)


class DeviceTile:
    """The pixels of a block on a device."""

    def __init__(self, tile: Tile, *, stretch: Stretch, model: ModelSpec, device: torch.device) -> None:
        self._window = tile.window
        self._stretch, self._model, self._device = stretch, model, device
        dtype = _SIGNED.get(tile.pixels.dtype.name, tile.pixels.dtype.newbyteorder("="))
        with enough_memory(device, f"the pixels of a block ({tile.window.height} x {tile.window.width} px)"):
            self._pixels = torch.from_numpy(np.require(tile.pixels, dtype, ["C", "W"])).to(device)
            self._hidden = torch.from_numpy(~tile.valid).to(device)
        self._dtype = torch.float32 if stretched_dtype(tile.pixels.dtype) is np.float32 else torch.float64

    def load(self, window: Window) -> Callable[[], Tensor]:
        """Return what gives a window, normalised: (bands, height, width) float32; as `normalise.normalise` does."""
        inside = window.relative_to(self._window).to_slices()
        model = self._model
        scale = model.input_range, tuple(model.mean), tuple(model.std)

        def give() -> Tensor:
            pixels, hidden = self._pixels[:, *inside], self._hidden[inside]
            normalise = _normaliser(self._stretch, scale, self._dtype, pixels.dtype, tuple(pixels.shape), self._device)
            return normalise(pixels, hidden)

        return give


@lru_cache(maxsize=16)
def _normaliser(
    stretch: Stretch,
    scale: tuple[tuple[float, float], tuple[float, ...], tuple[float, ...]],
    dtype: torch.dtype,
    given: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what makes (bands, height, width) pixels and (height, width) hidden ones a normalised window, in one call."""
    (low, high), mean, std = scale
    lows, factors = _per_band(stretch.low, dtype, device), _per_band(stretch.factors, dtype, device)
    means, stds = _per_band(mean, torch.float32, device), _per_band(std, torch.float32, device)

    def normalise(pixels: Tensor, hidden: Tensor) -> Tensor:
        values = (pixels.to(dtype) - lows).mul_(factors)
        values = values.masked_fill_(values.isnan(), 0).clamp_(0, 255).float()
        if (low, high) != (0, 255):
            values = (values * ((high - low) / 255)).add_(low)
        return (values - means).div_(stds).masked_fill_(hidden, 0)

    example = torch.zeros(shape, dtype=given, device=device), torch.zeros(shape[1:], dtype=torch.bool, device=device)
    return one_call("normalising", normalise, *example)


class DeviceBlender:
    """The weighted mean over network windows on a device; see `pipeline.blend.Blender`, and `Blended` for what it is when all are added."""

    def __init__(
        self, target: Window, lattice: Lattice, *, n_classes: int, blend: Blend, cells: Cells, device: torch.device
    ) -> None:
        self._target = target
        self._lattice = lattice
        self._blend: Blend = blend
        self._cells = cells
        self._device = device
        with enough_memory(device, f"the probabilities of a block ({n_classes} x {target.height} x {target.width})"):
            self._sum = torch.zeros(n_classes, *target.shape, device=device)

    def add(self, index: tuple[int, int], scores: NDArray[np.float32]) -> None:
        """Add the window ``index`` of the lattice; see `Blender.add`."""
        parts = window_parts(self._lattice, index, self._target, blend=self._blend, cells=self._cells)
        if parts is None:
            return
        with enough_memory(self._device, "a window that is blended"):
            weigh = _weigher(self._cells, self._lattice.size_px, len(scores), self._device)
            weights = (
                _weights_there(one.tobytes(), self._device) for one in (parts.window_row_weights, parts.window_col_weights)
            )
            weighted = weigh(torch.from_numpy(scores).to(self._device, non_blocking=True), *weights)
            self._sum[:, *parts.onto] += weighted[:, *parts.within]

    def blended(self) -> Blended:
        """Return itself: what is added lies where the block goes on with it."""
        return self

    def probabilities(self, part: tuple[slice, slice] = EVERYWHERE) -> NDArray[np.float32]:
        """See `Blended`."""
        found: NDArray[np.float32] = self._sum[:, *part].cpu().numpy()
        return found

    def classify(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See `Blended`; the lowest id on a tie, which `Tensor.argmax` does not promise."""
        shares = self._sum[:, *part]
        best, ids = shares[0].clone(), torch.zeros(shares.shape[1:], dtype=torch.uint8, device=self._device)
        for k in range(1, len(shares)):
            ids.masked_fill_(shares[k] > best, k)
            torch.maximum(best, shares[k], out=best)
        hidden = self._there(~valid)
        confidence = best.mul_(255).add_(0.5).clamp_(0, 255).byte().masked_fill_(hidden, 0)
        return ids.masked_fill_(hidden, NODATA_LABEL).cpu().numpy(), confidence.cpu().numpy()

    def quantise(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """See `Blended`."""
        shown = self._there(valid)
        stored = [(shares * shown).mul_(255).add_(0.5).clamp_(0, 255).byte() for shares in self._sum[:, *part]]
        found: NDArray[np.uint8] = torch.stack(stored).cpu().numpy()
        return found

    def _there(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device, non_blocking=True)


@lru_cache(maxsize=16)
def _weigher(cells: Cells, size_px: int, n_classes: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return what makes the scores of a window and the weights of its rows and columns weighted probabilities, in one call."""

    def weigh(scores: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        pixels = scores if cells.factor == 1 else upsample(scores[None], cells.factor, cells.alignment)[0]
        return pixels[:, :size_px, :size_px].softmax(dim=0).mul_(rows[:, None] * cols)

    n_cells = cells.n_covering(size_px)
    weights = torch.ones(size_px, device=device)
    return one_call("blending", weigh, torch.zeros(n_classes, n_cells, n_cells, device=device), weights, weights)


@lru_cache(maxsize=64)
def _weights_there(weights: bytes, device: torch.device) -> Tensor:
    """Return float32 weights on a device; most windows have the same."""
    return torch.from_numpy(np.frombuffer(weights, np.float32).copy()).to(device)


def _per_band(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
