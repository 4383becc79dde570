"""The network in torch, on the CPU: BatchNorm folded, channels last."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.engine.choose import choose_precision
from pipeline.errors import SpecError
from pipeline.network.rounding import fold_for
from pipeline.ordered import map_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.engine.protocol import EngineSpec, UsedPrecision
    from pipeline.network.multiscale import MultiScale

DTYPES: dict[UsedPrecision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What the precisions that convolutions are rounded to are in torch; the others compute in its own float32."""


class TorchEngine:
    """One network on the CPU.

    Every window runs in a thread of its own, with one thread per operation: oneDNN splits sums differently for another number of threads,
    and the labels would depend on the machine's cores in the last bit.
    """

    def __init__(self, network: MultiScale, spec: EngineSpec) -> None:
        self._precision: UsedPrecision = choose_precision(spec, "cpu")
        if self._precision == "tf32":
            raise SpecError("--precision tf32 was asked for; only CUDA devices have it: use fp32 or bf16 on the CPU")
        self._n_threads = spec.threads
        self.cells = network.cells
        self._network = fold_for(network.eval(), DTYPES.get(self._precision))
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._threads = ThreadPoolExecutor(spec.threads, initializer=torch.set_num_threads, initargs=(1,))

    @property
    def name(self) -> str:
        """``torch`` and the precision."""
        return f"torch {self._precision}"

    @property
    def device(self) -> str:
        """``cpu``."""
        return "cpu"

    def scores(self, windows: Iterable[Callable[[], NDArray[np.float32]]]) -> Iterator[NDArray[np.float32]]:
        """Yield (classes, rows, columns) float32 scores of normalised (bands, height, width) float32 windows, in their order."""
        return map_ahead(self._threads, self._score, windows, ahead=2 * self._n_threads)

    def _score(self, load: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        window = torch.from_numpy(load()[np.newaxis]).to(memory_format=torch.channels_last)
        with torch.inference_mode(), self._autocast():
            scores: NDArray[np.float32] = self._network.score(window)[0].float().contiguous().numpy()
        return scores

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._precision not in DTYPES:
            return contextlib.nullcontext()
        return torch.autocast("cpu", DTYPES[self._precision])
