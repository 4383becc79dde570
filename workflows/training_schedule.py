"""How long, how fast and by which rule are weights updated? Phases of steps, a rate for each step, an optimizer.

::

    rate | o                    poly: rate * (1 - step / n_steps) ** power   (DeepLab v2, section 4.1.1)
         |   o                  step: rate * factor at the given shares      (v1, section 4.1: x 0.1 every 2000 of 6000 steps)
         |      o   |  o
         |          o     o     a second phase begins anew: at a finer stride, normalisations frozen (v3, section 4.1)
         +----------+---------> step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from pipeline.errors import SpecError
from pipeline.network.keys import check_choice, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pipeline.network.deeplab import DeepLab

Policy = Literal["poly", "step", "constant"]
"""How the rate falls within a phase."""

Normalisation = Literal["trained", "frozen"]
"""Whether batch normalisations follow the batches, or keep the statistics and factors that they have."""

OptimizerName = Literal["adamw", "sgd"]
"""AdamW, or stochastic gradient descent with momentum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSpec:
    """A part of the schedule with settings of its own."""

    share: float = 1.0
    """Share of the steps, above 0; those of all phases are scaled to a sum of 1."""
    learning_rate: float | None = None
    """At the first step of the phase; None: that of the schedule."""
    output_stride: int | None = None
    """Of the network from here on; None: as the network's description says."""
    normalisation: Normalisation = "trained"
    """What batch normalisations do."""

    def __post_init__(self) -> None:
        check_choice("normalisation", self.normalisation, get_args(Normalisation))
        if not self.share > 0:
            raise SpecError(f"a phase has the share {self.share} of the steps; give a number above 0")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise SpecError(f"a phase has the learning_rate {self.learning_rate}; give a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """How many windows are seen, and how fast is learned."""

    n_steps: int = 1000
    """Updates of the weights, in all phases."""
    batch: int = 8
    """Windows that are seen at once, at least 2 (batch normalisation)."""
    accumulate: int = 1
    """Batches per update: their gradients are averaged, so that large batches fit small devices."""
    window_px: int = 384
    """Side of a training window, px; a multiple of the output stride."""
    learning_rate: float = 1e-3
    """Of ASPP, decoder and classifier at the first step."""
    policy: Policy = "poly"
    """How the rate falls."""
    power: float = 0.9
    """Exponent of ``poly``."""
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    """Shares of a phase after which ``step`` multiplies the rate."""
    drop_factor: float = 0.1
    """What it multiplies it by."""
    warmup_steps: int = 0
    """Steps at the start during which the rate rises linearly from near 0."""
    average: float = 0.0
    """Decay of the moving average of the weights, 0 to below 1; the average is what is kept. 0: the weights themselves."""
    checkpoint_every: int = 100
    """Steps between states from which ``--resume`` goes on."""
    validate_every: int | None = None
    """Steps between measurements on the validation part; None: ten times in all."""
    patience: int | None = None
    """Measurements without a better mean IoU after which the training ends early; None: it never does."""
    phases: tuple[PhaseSpec, ...] = (PhaseSpec(),)
    """Parts of the schedule, in their order."""

    def __post_init__(self) -> None:
        check_choice("schedule.policy", self.policy, get_args(Policy))
        limits = {"n_steps": 1, "batch": 2, "accumulate": 1, "window_px": 32, "checkpoint_every": 1, "warmup_steps": 0}
        for name, lowest in {**limits, "validate_every": 1, "patience": 1}.items():
            given = getattr(self, name)
            if given is not None and given < lowest:
                raise SpecError(f"schedule.{name} is {given}; give at least {lowest}")
        if not self.learning_rate > 0:
            raise SpecError(f"schedule.learning_rate is {self.learning_rate}; give a number above 0")
        if not 0 <= self.average < 1:
            raise SpecError(f"schedule.average is {self.average}; give a decay of 0 (none) or more, below 1, for example 0.99")
        if not self.phases:
            raise SpecError("schedule.phases is empty; give one phase or more, or leave it out")
        if not all(0 < share < 1 for share in self.drops):
            raise SpecError(f"schedule.drops is {self.drops}; give shares of a phase, between 0 and 1")

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """The number of steps after which each phase is over."""
        total, done, ends = sum(phase.share for phase in self.phases), 0.0, []
        for phase in self.phases:
            done += phase.share
            ends.append(round(self.n_steps * done / total))
        return tuple(ends)

    def phase_at(self, step: int) -> int:
        """Return the index of the phase of ``step``, 0 to ``n_steps`` - 1."""
        return next(index for index, end in enumerate(self.phase_ends) if step < end)

    def rate_at(self, step: int) -> float:
        """Return the head's learning rate of ``step``, 0 to ``n_steps`` - 1."""
        index = self.phase_at(step)
        start = self.phase_ends[index - 1] if index else 0
        share = (step - start) / (self.phase_ends[index] - start)
        rate = self.phases[index].learning_rate or self.learning_rate
        return rate * self._decay(share) * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def validates_after(self, step: int) -> bool:
        """Tell whether the validation part is measured after ``step`` updates."""
        every = self.validate_every or max(1, self.n_steps // 10)
        return step % every == 0 or step == self.n_steps

    def _decay(self, share: float) -> float:
        if self.policy == "poly":
            return float((1 - share) ** self.power)
        if self.policy == "step":
            return float(self.drop_factor ** sum(share >= drop for drop in self.drops))
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """By which rule weights are updated, and which of them faster than others."""

    name: OptimizerName = "adamw"
    """The rule."""
    momentum: float = 0.9
    """Of ``sgd``."""
    weight_decay: float = 1e-2
    """Of kernels, per rate: decoupled in ``adamw``, as in the papers in ``sgd``. Biases and normalisations do not decay."""
    backbone_factor: float = 0.2
    """The backbone learns at ``backbone_factor * learning_rate``, since it starts trained; 0: it is kept as it is."""
    bias_factor: float = 1.0
    """Biases learn at so many times the rate of their kernels (v1 and v2: 2)."""
    frozen: tuple[str, ...] = ()
    """Layers that stay as they are, their normalisations too, for example ``backbone.stem``, ``backbone.blocks.0``; the first layers of a
    trained backbone suit most images, and a third of the time goes into their gradients."""

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, get_args(OptimizerName))
        for name in ("momentum", "weight_decay", "backbone_factor", "bias_factor"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"optimizer.{name} is {getattr(self, name)}; give 0 or more")
        if self.momentum >= 1:
            raise SpecError(f"optimizer.momentum is {self.momentum}; give a number below 1, for example 0.9")


def build_optimizer(network: DeepLab, spec: OptimizerSpec, *, normalisation: Normalisation) -> torch.optim.Optimizer:
    """Freeze what is not to be trained, and return an optimizer of the rest; each group has its ``factor`` on the rate.

    A frozen backbone, or frozen normalisations, get no gradients, which also saves the time to compute them.
    """
    _freeze(network, spec, normalisation)
    groups = [
        {"params": parameters, "lr": 0.0, "factor": factor, "weight_decay": decay}
        for factor, decay, parameters in _groups(network, spec)
        if parameters
    ]
    if not groups:
        raise SpecError("nothing is left to train: backbone and normalisations are frozen and there is no other layer")
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=spec.momentum)
    return torch.optim.AdamW(groups, lr=0.0)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let every group learn at its factor times ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def set_training_mode(network: DeepLab, spec: OptimizerSpec, *, normalisation: Normalisation) -> None:
    """Put ``network`` into training mode, but for frozen layers and normalisations, which go on using their statistics."""
    network.train()
    for module in (*_frozen(network, spec), *(_norms(network) if normalisation == "frozen" else ())):
        module.eval()


def _freeze(network: DeepLab, spec: OptimizerSpec, normalisation: Normalisation) -> None:
    network.requires_grad_(requires_grad=True)
    for module in (*_frozen(network, spec), *(_norms(network) if normalisation == "frozen" else ())):
        module.requires_grad_(requires_grad=False)
    if spec.backbone_factor == 0:
        network.backbone.requires_grad_(requires_grad=False)


def _frozen(network: DeepLab, spec: OptimizerSpec) -> list[nn.Module]:
    known = dict(network.named_modules())
    for name in spec.frozen:
        if name not in known:
            raise SpecError(f"optimizer.frozen names the layer {name!r}; {suggest(name, known)}")
    return [known[name] for name in spec.frozen]


def _groups(network: DeepLab, spec: OptimizerSpec) -> Iterator[tuple[float, float, list[nn.Parameter]]]:
    """Yield (factor, decay, parameters) of kernels, biases and normalisations of backbone and head."""
    norms = {id(parameter) for norm in _norms(network) for parameter in norm.parameters()}
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    for in_backbone in (True, False):
        factor = spec.backbone_factor if in_backbone else 1.0
        here = [parameter for name, parameter in trained if name.startswith("backbone.") == in_backbone]
        yield factor, spec.weight_decay, [parameter for parameter in here if parameter.ndim > 1]
        yield factor, 0.0, [parameter for parameter in here if parameter.ndim == 1 and id(parameter) in norms]
        yield factor * spec.bias_factor, 0.0, [p for p in here if p.ndim == 1 and id(p) not in norms]


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.SyncBatchNorm)]  # type: ignore[misc]
