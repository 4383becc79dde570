"""How is a network changed, step by step? Draw windows, compare its scores with their labels, follow the gradient.

::

    step -> phase (stride, frozen or not) -> rate -> accumulate x (windows -> loss -> gradient) -> optimizer -> average

What a step does follows from its number, the seed and the `TrainingState` before it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.network.deeplab import DeepLab, build_network
from workflows.training_loss import Scores, batch_loss
from workflows.training_schedule import build_optimizer, set_rate, set_training_mode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from workflows.processes import Processes
    from workflows.training_schedule import PhaseSpec
    from workflows.training_spec import TrainSpec
    from workflows.training_state import TrainingState

    Batch = tuple[Tensor, Tensor]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A network while it is trained."""

    def __init__(self, spec: TrainSpec, processes: Processes, network: DeepLab) -> None:
        """Take ``network``, with its initial weights, to where it is trained."""
        self._spec, self._processes = spec, processes
        self._scaler = torch.amp.GradScaler(enabled=spec.precision == "fp16")
        self.step = 0
        self._average: DeepLab | None = None
        self._enter(0, network)
        if spec.schedule.average:
            self._average = copy.deepcopy(self._network).requires_grad_(requires_grad=False)

    @property
    def kept(self) -> DeepLab:
        """The network that would be kept now: the average of the weights, or these themselves."""
        return self._average or self._network

    @property
    def learning_rate(self) -> float:
        """Of the head, in the step that comes next."""
        return self._spec.schedule.rate_at(self.step)

    def advance(self, batches: Sequence[Batch]) -> float:
        """Make one step on ``batches`` and return the mean loss, nats; where it is not finite, no weight has changed."""
        schedule = self._spec.schedule
        if schedule.phase_at(self.step) != self._phase:
            self._enter(schedule.phase_at(self.step), self._network)
        torch.manual_seed(_seed_of(self._spec.seed, self.step, self._processes.rank))
        set_training_mode(self._network, self._spec.optimizer, normalisation=self._settings.normalisation)
        set_rate(self._optimizer, self.learning_rate)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for index, (windows, labels) in enumerate(batches):
            loss = self._descend(windows, labels, n_batches=len(batches), is_last=index == len(batches) - 1)
            if not math.isfinite(loss):
                return loss
            total += loss / len(batches)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.step += 1
        self._follow()
        return total

    def state(self) -> dict[str, Any]:
        """Return what `TrainingState` keeps of this."""
        return {
            "step": self.step,
            "phase": self._phase,
            "network": self._network.state_dict(),
            "average": self._average.state_dict() if self._average is not None else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def go_on_from(self, state: TrainingState) -> None:
        """Become what was when ``state`` was kept."""
        self._enter(state.phase, self._network)
        self._network.load_state_dict(state.network)
        if self._average is not None and state.average is not None:
            self._average.load_state_dict(state.average)
        self._optimizer.load_state_dict(state.optimizer)
        self._scaler.load_state_dict(state.scaler)
        self.step = state.step

    @property
    def _settings(self) -> PhaseSpec:
        return self._spec.schedule.phases[self._phase]

    def _enter(self, phase: int, network: DeepLab) -> None:
        """Begin a phase: the same weights, perhaps at another output stride, and an optimizer that remembers nothing."""
        self._phase = phase
        self._network = self._at_stride(network)
        self._optimizer = build_optimizer(self._network, self._spec.optimizer, normalisation=self._settings.normalisation)
        if self._average is not None:
            self._average = self._at_stride(self._average).requires_grad_(requires_grad=False)
        scores = Scores(self._network, self._spec.loss.at)
        self._scores = self._processes.wrap(scores)

    def _at_stride(self, network: DeepLab) -> DeepLab:
        stride = self._settings.output_stride or self._spec.network.output_stride
        if network.spec.output_stride != stride:
            built = build_network(replace(network.spec, output_stride=stride))
            built.load_state_dict(network.state_dict())
            network = built
        found: DeepLab = self._processes.synchronised(network).to(  # type: ignore[call-overload]
            device=self._processes.device, memory_format=torch.channels_last
        )
        return found

    def _descend(self, windows: Tensor, labels: Tensor, *, n_batches: int, is_last: bool) -> float:
        """Add the gradient of one batch and return its loss."""
        device = self._processes.device
        windows = windows.to(device, memory_format=torch.channels_last, non_blocking=True)
        dtype = _DTYPES[self._spec.precision]
        waiting = contextlib.nullcontext() if is_last or self._processes.count == 1 else self._scores.no_sync()  # type: ignore[operator]
        with waiting:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = batch_loss(self._scores, windows, labels.to(device, non_blocking=True), self._spec.loss)
            value = self._processes.mean(loss)
            if math.isfinite(value):
                self._scaler.scale(loss / n_batches).backward()  # type: ignore[no-untyped-call]
        return value

    def _follow(self) -> None:
        """Move the average towards the weights; at first faster, since it starts from nothing worth keeping."""
        if self._average is None:
            return
        decay = min(self._spec.schedule.average, self.step / (self.step + 9))
        own = self._network.state_dict()
        with torch.no_grad():
            for name, value in self._average.state_dict().items():
                if value.dtype.is_floating_point:
                    value.lerp_(own[name], 1 - decay)
                else:
                    value.copy_(own[name])


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Return a seed of torch's generator for what is random within a step (dropout)."""
    return (seed * 1_000_003 + step) * 1_009 + rank
