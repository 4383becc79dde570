"""Which engine, device and precision does a request mean here? Told without torch, unless a device for it may be here.

Importing torch takes a second, which who only hands out blocks does not spend.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import MissingDependencyError, SpecError

if TYPE_CHECKING:
    from pipeline.engine.protocol import EngineSpec, RunsNetwork, UsedPrecision

_DRIVER_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")
"""Linux, a container on it, Windows' Linux, Tegra, and AMD's, which torch calls CUDA, too."""
_FIRST_WITH_TF32 = (8, 0)
"""Compute capability."""


def may_have_cuda() -> bool:
    """Tell whether a driver for CUDA is here."""
    return any(Path(sign).exists() for sign in _DRIVER_SIGNS)


def _has_cuda() -> bool:
    """Tell whether torch sees a CUDA device: it is asked where it is loaded already, or a driver is here."""
    if "torch" not in sys.modules and not may_have_cuda():
        return False
    import torch  # noqa: PLC0415  (a second)

    return torch.cuda.is_available()


def choose_device(spec: EngineSpec) -> Literal["cpu", "cuda"]:
    """Return the device that ``spec`` means here; SpecError where it asks for CUDA and there is none."""
    available = _has_cuda()
    if spec.device == "cuda" and not available:
        import torch  # noqa: PLC0415  (a second)

        raise SpecError(
            "--device cuda was asked for; torch sees no CUDA device here: check the driver and that torch is a CUDA build "
            f"(this one is {torch.__version__}), or use --device cpu"
        )
    return "cuda" if available and spec.device != "cpu" else "cpu"


def is_healthy(device: str) -> bool:
    """Tell whether a device still computes: after an illegal access or a failed assertion, no call on CUDA succeeds in that process."""
    if not device.startswith("cuda"):
        return True
    import torch  # noqa: PLC0415  (a second)

    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except (RuntimeError, AssertionError):  # the latter from a torch without CUDA
        return False


def choose_precision(spec: EngineSpec, device: str | None = None) -> UsedPrecision:
    """Return the precision that ``spec`` means on a device; None: on the one that it means here."""
    if spec.precision != "auto":
        return spec.precision
    device = device or choose_device(spec)
    if not device.startswith("cuda"):
        return "fp32"
    import torch  # noqa: PLC0415  (a second)

    return "tf32" if torch.cuda.get_device_capability(device) >= _FIRST_WITH_TF32 else "fp32"


def choose_engine(spec: EngineSpec) -> RunsNetwork:
    """Return the engine that ``spec`` means here.

    ``auto``: OpenVINO on the CPU where it is installed (three to five times as fast as torch there), else torch; fp16 is torch's alone.

    Raises
    ------
    SpecError
        If OpenVINO is asked for on a CUDA device.
    MissingDependencyError
        If it is asked for and not installed.
    """
    on_cpu = choose_device(spec) == "cpu"
    if spec.engine == "openvino":
        require_openvino()
        if not on_cpu:
            raise SpecError(
                "--engine openvino was asked for on a CUDA device; it runs on the CPU: add --device cpu, or use --engine torch"
            )
        return "openvino"
    if spec.engine == "torch" or not on_cpu or spec.precision in ("fp16", "tf32") or not has_openvino():
        return "torch"
    return "openvino"


def windows_at_once(spec: EngineSpec, *, window_px: int) -> int:
    """Return how many windows of a size an engine of ``spec`` would see at once here, without loading anything."""
    if choose_device(spec) == "cpu":
        return spec.threads
    from pipeline.engine.device_engine import windows_at_once_there  # noqa: PLC0415  (imports torch)

    return windows_at_once_there(window_px)


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def require_openvino() -> None:
    """Raise MissingDependencyError where OpenVINO is not installed."""
    if not has_openvino():
        raise MissingDependencyError(
            "--engine openvino was asked for; OpenVINO is not installed here: pip install openvino, or use --engine torch"
        )
