"""What must something offer that runs a network?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.network.cells import Cells

    Load = Callable[[], Any]
    """Gives a normalised window: a (bands, height, width) float32 array, or such a tensor on the engine's own device."""

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
UsedPrecision = Literal["fp32", "tf32", "bf16", "fp16"]
EngineName = Literal["auto", "torch", "openvino"]
RunsNetwork = Literal["torch", "openvino"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How the network is run; nothing here is part of what a run is refused for."""

    device: Device = "auto"
    """``auto`` takes CUDA where there is one."""
    engine: EngineName = "auto"
    """``auto`` takes OpenVINO on the CPU where it is installed, else torch."""
    precision: Precision = "auto"
    """``auto`` is fp32 on the CPU, and tf32 on a CUDA device that has it, as torch itself chooses for convolutions: factors have 10 bits
    behind the point, sums are float32."""
    threads: int = 1
    """Windows at once on the CPU, each in a thread of its own."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("device", self.device, Device),
            ("engine", self.engine, EngineName),
            ("precision", self.precision, Precision),
        ):
            if value not in get_args(choices):
                raise SpecError(f"{name} {value!r} was asked for; choose one of {', '.join(get_args(choices))}")
        if self.threads < 1:
            raise SpecError(f"{self.threads} threads were asked for; choose 1 or more")


class Engine(Protocol):
    """A loaded network, ready to see windows of one fixed size."""

    @property
    def name(self) -> str:
        """What runs it, for the record: ``torch fp32``, ``openvino bf16`` ..."""

    @property
    def device(self) -> str:
        """Where it runs, for the record: ``cpu`` or ``cuda:0``."""

    @property
    def cells(self) -> Cells:
        """How scores lie over pixels."""

    def scores(self, windows: Iterable[Load]) -> Iterator[NDArray[np.float32]]:
        """Yield the scores of windows, in their order; several are at work at once, a few ahead of the one that is yielded.

        Parameters
        ----------
        windows
            Each returns one window, (bands, height, width) float32, normalised; called in the engine's own threads.

        Yields
        ------
        (classes, rows, columns) float32, whose softmax over the classes, brought to pixels as `cells` says, are probabilities. What is
        yielded for a window does not depend on the windows beside it.
        """
