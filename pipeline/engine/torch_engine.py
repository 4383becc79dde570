"""The network in torch, on the CPU or on a CUDA device: BatchNorm folded, channels last, fixed batch shape."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import SpecError
from pipeline.network.fold import fold_batch_norm

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from pipeline.engine.protocol import EngineSpec, Precision

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CUDA_BATCH = 4
"""Windows of one CUDA call; fewer are padded, so that the shape, the algorithm and the rounding are always the same."""


class TorchEngine:
    """One network on one device.

    On the CPU every window runs in a thread of its own, with one thread per operation: oneDNN splits sums differently for another
    number of threads, and the labels would depend on the machine's cores in the last bit.
    """

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        self._device = choose_device(spec)
        self._dtype = _DTYPES["fp32" if spec.precision == "auto" else spec.precision]
        self._batch_size = batch_size(spec)
        self._network = fold_batch_norm(network.eval()).to(self._device)
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self._device.type == "cpu":
            self._threads = ThreadPoolExecutor(self._batch_size, initializer=torch.set_num_threads, initargs=(1,))
        else:  # the same algorithm on every call, or the same window would get other bytes
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False

    @property
    def batch_size(self) -> int:
        """Windows per call: one per thread on the CPU, 4 on CUDA."""
        return self._batch_size

    @property
    def device(self) -> str:
        """``cpu``, ``cuda``, ``cuda:1`` ..."""
        return str(self._device)

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, classes, height, width) float32 probabilities of (n, bands, height, width) float32 windows."""
        if self._device.type == "cpu":
            return np.concatenate(list(self._threads.map(self._forward, batch[:, np.newaxis])))
        n = batch.shape[0]
        padding = np.zeros((self._batch_size - n, *batch.shape[1:]), np.float32)
        return self._forward(np.concatenate([batch, padding]))[:n]

    def _forward(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), self._autocast():
            windows = torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last)
            probabilities = torch.softmax(self._network(windows).float(), dim=1)
            result: NDArray[np.float32] = probabilities.cpu().contiguous().numpy()
        return result

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)


def choose_device(spec: EngineSpec) -> torch.device:
    """Return the device that ``spec`` means here; SpecError where it asks for CUDA and there is none."""
    available = torch.cuda.is_available()
    if spec.device == "cuda" and not available:
        raise SpecError(
            "--device cuda was asked for; torch sees no CUDA device here: check the driver and that torch is a CUDA build "
            f"(this one is {torch.__version__}), or use --device cpu"
        )
    return torch.device("cuda" if available and spec.device != "cpu" else "cpu")


def batch_size(spec: EngineSpec) -> int:
    """Return the windows per call that an engine of ``spec`` would have here, without loading anything."""
    return spec.threads if choose_device(spec).type == "cpu" else _CUDA_BATCH
