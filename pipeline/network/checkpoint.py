"""How does a model travel? As one ``.safetensors`` file whose header carries its ``ModelSpec``.

Matrices and kernels are stored as float16 or float32, vectors (biases, batch statistics) as float32; loading gives
float32 again. The number of batches a normalisation has seen is not stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.errors import WeightsError
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.model_file import HEADER_KEY, describe, explain_unreadable, read_model_spec, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network.spec import ModelSpec

StoredKernels = Literal["float16", "float32"]
"""How matrices and kernels are stored."""


def save_checkpoint(path: Path, network: DeepLab, spec: ModelSpec, *, kernels: StoredKernels = "float16") -> None:
    """Write ``network`` and ``spec`` to ``path``; the file appears complete or not at all.

    Parameters
    ----------
    path, network, spec
        The file, and what goes into it.
    kernels
        How matrices and kernels are stored; ``float32`` keeps every bit and takes twice the space.

    Raises
    ------
    WeightsError
        If a weight is not finite, also after rounding to float16.
    StoreError
        If the file cannot be written.
    """
    tensors = {name: _to_stored(tensor, kernels) for name, tensor in stored_tensors(network).items()}
    _check_finite(path, tensors)
    write_atomically(Path(path), save(tensors, metadata={HEADER_KEY: describe(spec)}))


def load_network(path: Path) -> tuple[ModelSpec, DeepLab]:
    """Return the spec and the network of ``path``: float32, on the CPU, in evaluation mode.

    Raises
    ------
    WeightsError
        If the file is damaged or its tensors are not exactly those of the network that its header describes.
    """
    spec = read_model_spec(path)
    with torch.device("meta"):
        network = build_network(spec.network)  # shapes only; the values come from the file
    tensors = read_tensors(path)
    _check_tensors(Path(path), tensors, stored_tensors(network))
    counters = {name: torch.tensor(0) for name in network.state_dict().keys() - tensors.keys()}
    network.load_state_dict({**tensors, **counters}, strict=True, assign=True)
    return spec, network.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a ``.safetensors`` file as float32 by name."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(explain_unreadable(Path(path), error)) from error


def stored_tensors(network: DeepLab) -> dict[str, Tensor]:
    """Return the tensors of ``network`` that a checkpoint holds, by name."""
    return {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}


def _to_stored(tensor: Tensor, kernels: StoredKernels) -> Tensor:
    dtype = torch.float16 if tensor.ndim > 1 and kernels == "float16" else torch.float32
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous()


def _check_tensors(path: Path, given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    absent, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if absent or extra:
        raise WeightsError(
            f"{path} does not fit the network that its header describes: {len(absent)} tensors are missing "
            f"[{', '.join(absent)}] and {len(extra)} are unknown [{', '.join(extra)}]; export the model again"
        )
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{path}: tensor {name} is {tuple(tensor.shape)}, the network that the header describes "
                "needs "
                f"{tuple(expected[name].shape)}; export the model again"
            )
    _check_finite(path, given)


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise WeightsError(
            f"{path}: {len(broken)} tensors hold NaN or infinity [{', '.join(broken)}]; every weight must be "
            "a finite float16 "
            "number: use an earlier checkpoint or train again at a lower learning rate"
        )
