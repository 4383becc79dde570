"""The network in torch on a CUDA device: BatchNorm folded, a fixed batch shape, the next batches begun while one computes."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.engine.choose import choose_precision
from pipeline.engine.cudnn_fused import fuse
from pipeline.engine.device_memory import is_about_memory, no_memory_is_no_error
from pipeline.engine.one_call import one_call
from pipeline.engine.torch_engine import DTYPES
from pipeline.errors import BlockError
from pipeline.network.rounding import fold_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.engine.protocol import EngineSpec, Load, UsedPrecision
    from pipeline.network.multiscale import MultiScale

_log = logging.getLogger(__name__)
_BATCH_PIXELS = 4 * 1024**2
"""Pixels of one call, about: more makes no window faster."""
_MOST_AT_ONCE = 64
_AHEAD = 2
"""Batches that are begun before the scores of the first are waited for."""


class DeviceEngine:
    """One network on one device.

    A batch has always the same shape: fewer windows are padded, so that the algorithm and the rounding are always the same.
    """

    def __init__(self, network: MultiScale, spec: EngineSpec, *, device: torch.device, window_px: int) -> None:
        """Copy the network to the device.

        Parameters
        ----------
        network
            With its scales.
        spec
            Gives the precision.
        device
            Where it runs.
        window_px
            Side of the windows; says how many are seen at once.
        """
        self._device = device
        self._precision: UsedPrecision = choose_precision(spec, str(device))
        self._batch_size = self._at_once = windows_at_once_there(window_px)
        self.cells = network.cells
        # The same algorithm on every call, or the same window would get other bytes.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self._precision == "tf32"
        self._dtype = DTYPES.get(self._precision, torch.float32)
        self._format = memory_format_for(network, self._precision)
        folded = fold_for(network.eval(), DTYPES.get(self._precision)).to(device, self._dtype)
        self._network: MultiScale = folded.to(memory_format=self._format)  # type: ignore[call-overload]
        shape = (self._batch_size, network.network.spec.n_bands, window_px, window_px)
        self._whole: Callable[[Tensor], Tensor] | None = None  # a batch in one call
        with torch.inference_mode(), no_memory_is_no_error():  # what does not fit is told when there is something to compute
            self._make_fast(torch.rand(shape, device=device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is made here is used on other streams,
            torch.cuda.empty_cache()  # which do not get the memory that is left over on this one

    def _make_fast(self, example: Tensor) -> None:
        """Join what cuDNN can do in one call, and trace the network, where both work for batches of this shape."""
        if self._device.type == "cuda" and (self._precision == "fp32" or self._format == torch.channels_last):
            plain, self._network = self._network, deepcopy(self._network)
            fuse(self._network)
            try:
                self._score(example)
            except RuntimeError as error:
                self._network = plain
                if is_about_memory(error):
                    raise
                _log.warning("cuDNN does not join convolution and activation on %s: %s", self._device, error)
        self._whole = one_call("the network", self._score, example)

    @property
    def name(self) -> str:
        """``torch`` and the precision."""
        return f"torch {self._precision}"

    @property
    def device(self) -> str:
        """``cuda``, ``cuda:1`` ..."""
        return str(self._device)

    def scores(self, windows: Iterable[Load]) -> Iterator[NDArray[np.float32]]:
        """Yield (classes, rows, columns) float32 scores of normalised (bands, height, width) float32 windows, in their order.

        What gives a window may give a tensor that is on the device. All is done on the caller's stream.
        """
        begun: deque[_Scores] = deque()
        for batch in _batches(windows, self._batch_size):
            begun.append(self._begin(batch))
            if len(begun) > _AHEAD:
                yield from begun.popleft().wait()
        while begun:
            yield from begun.popleft().wait()

    def _begin(self, batch: tuple[Load, ...]) -> _Scores:
        """Let the device compute a batch; its scores are on their way back."""
        with torch.inference_mode():
            loaded = torch.stack([torch.as_tensor(load(), device=self._device) for load in batch])
            missing = self._batch_size - len(batch)
            padded = torch.nn.functional.pad(loaded, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else loaded
            scores = self._forward_as_memory_allows(padded)
        return _Scores.of(scores[: len(batch)])

    def _forward_as_memory_allows(self, batch: Tensor) -> Tensor:
        """Run a batch, in parts from now on where the device has not enough memory for it; BlockError where it has not for one window."""
        while True:
            with no_memory_is_no_error():
                return self._forward(batch)
            if self._at_once == 1:
                raise BlockError(
                    f"the device {self._device} has not enough memory for one window of {batch.shape[-1]} px; use a smaller --window, "
                    "--precision bf16, or a device that nobody else uses"
                )
            self._at_once //= 2
            torch.cuda.empty_cache()
            _log.warning("the device %s is out of memory: %d windows at once from now on", self._device, self._at_once)

    def _forward(self, batch: Tensor) -> Tensor:
        if self._whole is not None and self._at_once == len(batch):
            return self._whole(batch)
        parts = [self._score(part) for part in torch.split(batch, self._at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _score(self, batch: Tensor) -> Tensor:
        """Map (windows, bands, height, width) float32 to float32 scores, in the network's own type and order between."""
        return self._network.score(batch.to(self._dtype, memory_format=self._format)).float()


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Scores that are on their way from the device to memory."""

    windows: list[Tensor]
    """(classes, rows, columns) each, in memory; whole when the event has come."""
    there: torch.cuda.Event | None
    """Comes when they are whole; None where they are."""

    @classmethod
    def of(cls, scores: Tensor) -> _Scores:
        """Begin to copy (windows, classes, rows, columns) float32, each window into memory of its own."""
        if not scores.is_cuda:
            return cls(list(scores.contiguous()), None)
        windows = [torch.empty(one.shape, pin_memory=True).copy_(one, non_blocking=True) for one in scores]
        there = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        there.record()
        return cls(windows, there)

    def wait(self) -> Iterator[NDArray[np.float32]]:
        """Yield each window, when all of them are whole."""
        if self.there is not None:
            self.there.synchronize()
        for window in self.windows:
            yield np.asarray(window)


def memory_format_for(network: MultiScale, precision: UsedPrecision) -> torch.memory_format:
    """Return the order of values in memory that suits a network: the matrix units want channels last, depthwise kernels channels first.

    Measured on an H100 with windows of 2304 px: ResNet-101 in tf32 138 Mpx/s with channels first and 155 with channels last, in fp32 39 and
    35; MobileNetV2 in tf32 419 and 337; Xception-65 123 and 109.
    """
    is_depthwise = any(isinstance(layer, torch.nn.Conv2d) and layer.groups > 1 for layer in network.modules())
    return torch.contiguous_format if is_depthwise or precision == "fp32" else torch.channels_last


def windows_at_once_there(window_px: int) -> int:
    """Return how many windows of a size a device sees at once: as many as fill it."""
    return min(max(1, _BATCH_PIXELS // window_px**2), _MOST_AT_ONCE)


def _batches(windows: Iterable[Load], size: int) -> Iterator[tuple[Load, ...]]:
    rest = iter(windows)
    while batch := tuple(itertools.islice(rest, size)):
        yield batch
