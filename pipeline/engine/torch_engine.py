"""The network in torch, on the CPU or on a CUDA device: BatchNorm folded, channels last, fixed batch shape."""

from __future__ import annotations

import contextlib
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import BlockError, SpecError
from pipeline.network.fold import fold_batch_norm
from pipeline.ordered import map_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.engine.protocol import EngineSpec, Precision
    from pipeline.network.multiscale import MultiScale

    Windows = Iterable[Callable[[], NDArray[np.float32]]]

_log = logging.getLogger(__name__)
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CUDA_BATCH = 4
"""Windows of one CUDA call; fewer are padded, so that the shape, the algorithm and the rounding are always the same."""


class TorchEngine:
    """One network on one device.

    On the CPU every window runs in a thread of its own, with one thread per operation: oneDNN splits sums differently for another
    number of threads, and the labels would depend on the machine's cores in the last bit. On CUDA the next batch is normalised and
    copied while the device is busy with one.
    """

    def __init__(self, network: MultiScale, spec: EngineSpec) -> None:
        self._device = choose_device(spec)
        self._precision: Precision = spec.used_precision
        self._batch_size = self._at_once = windows_at_once(spec)
        self.cells = network.cells
        self._network = fold_batch_norm(network.eval()).to(self._device)
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self._device.type == "cpu":
            self._threads = ThreadPoolExecutor(self._batch_size, initializer=torch.set_num_threads, initargs=(1,))
        else:  # the same algorithm on every call, or the same window would get other bytes
            self._threads = ThreadPoolExecutor(1)
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False

    @property
    def name(self) -> str:
        """``torch`` and the precision."""
        return f"torch {self._precision}"

    @property
    def device(self) -> str:
        """``cpu``, ``cuda``, ``cuda:1`` ..."""
        return str(self._device)

    def scores(self, windows: Windows) -> Iterator[NDArray[np.float32]]:
        """Yield (classes, rows, columns) float32 scores of normalised (bands, height, width) float32 windows, in their order."""
        if self._device.type == "cpu":
            yield from map_ahead(
                self._threads, lambda load: self._score(load()[np.newaxis])[0], windows, ahead=2 * self._batch_size
            )
            return
        for batch, n in map_ahead(self._threads, self._to_device, _batches(windows, self._batch_size), ahead=2):
            yield from self._forward_as_memory_allows(batch)[:n]

    def _to_device(self, windows: tuple[Callable[[], NDArray[np.float32]], ...]) -> tuple[torch.Tensor, int]:
        """Return a batch of always the same shape on the device, and how many of its windows are real."""
        loaded = [window() for window in windows]
        batch = torch.zeros(self._batch_size, *loaded[0].shape)
        batch[: len(loaded)] = torch.from_numpy(np.stack(loaded))
        return batch.pin_memory().to(self._device, memory_format=torch.channels_last, non_blocking=True), len(loaded)

    def _score(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._forward(torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last))

    def _forward_as_memory_allows(self, batch: torch.Tensor) -> NDArray[np.float32]:
        """Run a batch, in halves from now on where the device has not enough memory for it; BlockError where it has not for one window."""
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                return np.concatenate([self._forward(part) for part in torch.split(batch, self._at_once)])
            # Out here: the error keeps the tensors of the call that failed.
            if self._at_once == 1:
                raise BlockError(
                    f"the device {self._device} has not enough memory for one window of {batch.shape[-1]} px; use a smaller --window, "
                    "--precision bf16, or a device that nobody else uses"
                )
            self._at_once //= 2
            torch.cuda.empty_cache()
            _log.warning("the device %s is out of memory: %d windows at once from now on", self._device, self._at_once)

    def _forward(self, batch: torch.Tensor) -> NDArray[np.float32]:
        with torch.inference_mode(), self._autocast():
            result: NDArray[np.float32] = self._network.score(batch).float().cpu().contiguous().numpy()
        return result

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, _DTYPES[self._precision])


def choose_device(spec: EngineSpec) -> torch.device:
    """Return the device that ``spec`` means here; SpecError where it asks for CUDA and there is none."""
    available = torch.cuda.is_available()
    if spec.device == "cuda" and not available:
        raise SpecError(
            "--device cuda was asked for; torch sees no CUDA device here: check the driver and that torch is a CUDA build "
            f"(this one is {torch.__version__}), or use --device cpu"
        )
    return torch.device("cuda" if available and spec.device != "cpu" else "cpu")


def is_healthy(device: str) -> bool:
    """Tell whether a device still computes: after an illegal access or a failed assertion, no call on CUDA succeeds in that process."""
    if not device.startswith("cuda"):
        return True
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except (RuntimeError, AssertionError):  # the latter from a torch without CUDA
        return False


def windows_at_once(spec: EngineSpec) -> int:
    """Return how many windows an engine of ``spec`` would see at once here, without loading anything."""
    return spec.threads if choose_device(spec).type == "cpu" else _CUDA_BATCH


def _batches(windows: Windows, size: int) -> Iterator[tuple[Callable[[], NDArray[np.float32]], ...]]:
    rest = iter(windows)
    while batch := tuple(itertools.islice(rest, size)):
        yield batch
