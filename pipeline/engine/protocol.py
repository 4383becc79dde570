"""What must something offer that runs a network?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from pipeline.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How the network is run; nothing here is part of a run's fingerprint."""

    device: Device = "auto"
    """``auto`` takes CUDA where there is one."""
    precision: Precision = "auto"
    """``auto`` is fp32, the only one whose labels are the reference."""
    threads: int = 1
    """Windows at once on the CPU, each in a thread of its own."""

    def __post_init__(self) -> None:
        for name, value, choices in (("device", self.device, Device), ("precision", self.precision, Precision)):
            if value not in get_args(choices):
                raise SpecError(f"{name} {value!r} was asked for; choose one of {', '.join(get_args(choices))}")
        if self.threads < 1:
            raise SpecError(f"{self.threads} threads were asked for; choose 1 or more")


class Engine(Protocol):
    """A loaded network, ready to see windows of one fixed size."""

    @property
    def batch_size(self) -> int:
        """The most windows that `predict` takes at once. Its answer for a window never depends on how many there are."""

    @property
    def device(self) -> str:
        """Where it runs, for the record: ``cpu`` or ``cuda:0``."""

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of 1 to ``batch_size`` windows.

        Parameters
        ----------
        batch
            (n, bands, height, width) float32, normalised.

        Returns
        -------
        (n, classes, height, width) float32, 0 to 1.
        """
