"""How does a network of torch become one of OpenVINO? Traced, and handed to the frontend under OpenVINO's own converter, in memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.network.rounding import fold_for, keep_biases

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network.multiscale import MultiScale


def convert(network: MultiScale, example_shape: tuple[int, int, int, int], *, precision: str) -> Any:
    """Return an OpenVINO model of a network, traced with a window of ``example_shape``, whose kernels are those of ``precision``."""
    from openvino.frontend import FrontEndManager  # noqa: PLC0415
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

    rounded_to = torch.bfloat16 if precision == "bf16" else None
    folded = fold_for(network.eval(), rounded_to)
    if rounded_to is not None:
        keep_biases(folded, rounded_to)
    module = _Scores(folded)
    example = torch.zeros(example_shape)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and says which sizes become constants
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # must outlive the conversion
        return frontend.convert(frontend.load(decoder))


class _Scores(nn.Module):
    """A network whose ``forward`` gives the scores at its own stride."""

    def __init__(self, network: MultiScale) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (1, bands, H, W) to (1, classes, rows, columns)."""
        return self.network.score(x)
