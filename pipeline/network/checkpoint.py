"""How does a model travel? As one ``.safetensors`` file whose header carries its ``ModelSpec``.

Matrices and kernels are stored as float16 or float32, vectors (biases, batch statistics) as float32; loading gives
float32 again. The number of batches a normalisation has seen is not stored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.durable_file import replace_durably
from pipeline.errors import SpecError, StoreError, WeightsError
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

StoredKernels = Literal["float16", "float32"]
"""How matrices and kernels are stored."""

_HEADER_KEY = "atrous_model"
_FORMAT = 1
_LENGTH_BYTES = 8
"""A ``.safetensors`` file starts with the length of its JSON header in so many bytes."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


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
    _write_atomically(Path(path), save(tensors, metadata={_HEADER_KEY: _describe(spec)}))


def read_model_spec(path: Path) -> ModelSpec:
    """Return what the header of ``path`` says; no weights are read.

    Raises
    ------
    WeightsError
        If ``path`` is no such file, is damaged, or carries no description.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(_explain_unreadable(Path(path), error)) from error
    return _parse_header(Path(path), metadata)


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


def copy_with_spec(source: Path, target: Path, spec: ModelSpec) -> None:
    """Write the weights of ``source``, byte for byte, to ``target`` under the description ``spec``; both may be the same file.

    Raises
    ------
    WeightsError
        If ``source`` is no checkpoint, or its weights are those of another network than the description's.
    StoreError
        If ``target`` cannot be written.
    """
    if read_model_spec(source).network != spec.network:
        raise WeightsError(
            f"the weights in {source} are of another network than {spec.name!r} describes; give the network's own file"
        )
    content = Path(source).read_bytes()
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(content[_LENGTH_BYTES:start])
    header["__metadata__"] = {**header["__metadata__"], _HEADER_KEY: _describe(spec)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # as safetensors pads it: tensors start at a multiple of eight
    _write_atomically(Path(target), len(text).to_bytes(_LENGTH_BYTES, "little") + text + content[start:])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a ``.safetensors`` file as float32 by name."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(_explain_unreadable(Path(path), error)) from error


def stored_tensors(network: DeepLab) -> dict[str, Tensor]:
    """Return the tensors of ``network`` that a checkpoint holds, by name."""
    return {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hexadecimal."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}); give the path of a file of weights") from error


def _describe(spec: ModelSpec) -> str:
    return json.dumps({"format": _FORMAT, "model": spec.to_dict()}, sort_keys=True, allow_nan=False)


def _to_stored(tensor: Tensor, kernels: StoredKernels) -> Tensor:
    dtype = torch.float16 if tensor.ndim > 1 and kernels == "float16" else torch.float32
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous()


def _write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, make durable, rename; a reader sees the old file or the new one."""
    try:
        replace_durably(path, content)
    except OSError as error:
        raise StoreError(f"the checkpoint {path} cannot be written ({error}); check folder, rights and space") from error


def _explain_unreadable(path: Path, error: Exception) -> str:
    if not path.is_file():
        return f"{path} was given as a checkpoint and is not a file; give the path of a .safetensors file"
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_STARTS):
        return (
            f"{path} is a pickle (.pt, .pth), which is refused because loading one can run code; a .safetensors file that "
            "'atrous train' or pipeline.network.checkpoint.save_checkpoint wrote is expected"
        )
    return (
        f"{path} ({path.stat().st_size} bytes) is not a complete .safetensors file ({error}); it is damaged, truncated or of "
        "another format: copy or download it again"
    )


def _parse_header(path: Path, metadata: dict[str, str]) -> ModelSpec:
    if _HEADER_KEY not in metadata:
        raise WeightsError(
            f"{path} holds tensors and no description of a model ({_HEADER_KEY!r} is missing from its header), so classes and "
            "normalisation are unknown; write it with pipeline.network.checkpoint.save_checkpoint"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_HEADER_KEY])
        if header["format"] != _FORMAT:
            raise WeightsError(f"{path} is of format {header['format']} and this version reads format {_FORMAT}; update atrous")
        return ModelSpec.from_dict(header["model"])
    except (SpecError, KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{path} carries a description that this version does not understand ({error}); update atrous or "
            "export the model again"
        ) from error


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
