"""The network in torch, on the CPU or on a CUDA device: BatchNorm folded, channels last, fixed batch shape."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import SpecError
from pipeline.network.fold import fold_batch_norm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.engine.protocol import EngineSpec, Precision
    from pipeline.network.deeplab import DeepLab

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 1, "cuda": 4}
"""On the CPU a window of 1024 px fills the caches by itself; a larger batch only costs memory."""


class TorchEngine:
    """One network on one device."""

    def __init__(self, network: DeepLab, spec: EngineSpec) -> None:
        self._device = choose_device(spec)
        self._dtype = _DTYPES["fp32" if spec.precision == "auto" else spec.precision]
        if self._device.type == "cpu":
            torch.set_num_threads(spec.threads)
        else:  # the same algorithm on every call, or the same window would get other bytes
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False
        self._network = fold_batch_norm(network.eval()).to(self._device)
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def batch_size(self) -> int:
        """Windows per call: 1 on the CPU, 4 on CUDA."""
        return BATCH_SIZES[self._device.type]

    @property
    def device(self) -> str:
        """``cpu``, ``cuda``, ``cuda:1`` ..."""
        return str(self._device)

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, classes, height, width) float32 probabilities of (n, bands, height, width) float32 windows."""
        n = batch.shape[0]
        if n < self.batch_size:
            padding = np.zeros((self.batch_size - n, *batch.shape[1:]), np.float32)
            batch = np.concatenate([batch, padding])
        with torch.inference_mode(), self._autocast():
            windows = torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last)
            probabilities = torch.softmax(self._network(windows).float(), dim=1)
            result: NDArray[np.float32] = probabilities[:n].cpu().contiguous().numpy()
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
    return BATCH_SIZES[choose_device(spec).type]
