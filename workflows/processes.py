"""Who else trains the same network? Processes that ``torchrun`` started, one for each device; without it, this one alone.

Each draws its share of a batch; torch's DistributedDataParallel averages the gradients. The first one measures, writes and reports.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Value = TypeVar("Value")

_PATIENCE = timedelta(hours=6)
"""How long the others wait while the first one measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """One process among all."""

    rank: int = 0
    """Number of this one, from 0."""
    count: int = 1
    """How many there are."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this one computes."""

    @property
    def is_first(self) -> bool:
        """Whether this one measures, writes and reports."""
        return self.rank == 0

    def own(self, n_items: int) -> range:
        """Return which of the items 0 to ``n_items`` - 1 are this process's."""
        return range(self.rank, n_items, self.count)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return ``module`` such that gradients are averaged over all processes."""
        if self.count == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)

    def synchronised(self, network: nn.Module) -> nn.Module:
        """Return ``network`` with normalisations over the batch of all processes; on the CPU, where torch has none, over each one's."""
        if self.count == 1 or self.device.type == "cpu":
            return network
        found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return found

    def mean(self, value: Tensor) -> float:
        """Return the mean of a number over all processes; not finite where one of them is not."""
        if self.count == 1:
            return float(value.detach())
        total = value.detach().clone()
        distributed.all_reduce(total)
        return float(total) / self.count

    def agree(self, value: Value) -> Value:
        """Return what the first process says."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, and leave them at the end; ``device`` says of which kind theirs is."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise SpecError(
                f"process {local} of this machine was started and it has {torch.cuda.device_count()} GPUs; give torchrun --nproc-per-node "
                f"{torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(rank=rank, count=count, device=device)
    finally:
        distributed.destroy_process_group()
