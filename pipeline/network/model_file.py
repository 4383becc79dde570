"""What does a file of weights say of its model? Its header alone is read, without torch.

A model travels as one ``.safetensors`` file whose header carries its ``ModelSpec``; `pipeline.network.checkpoint` reads and writes the
weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.durable_file import replace_durably
from pipeline.errors import SpecError, StoreError, WeightsError
from pipeline.network.spec import ModelSpec

HEADER_KEY = "atrous_model"
_FORMAT = 1
_LENGTH_BYTES = 8
"""A ``.safetensors`` file starts with the length of its JSON header in so many bytes."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


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
        raise WeightsError(explain_unreadable(Path(path), error)) from error
    return _parse_header(Path(path), metadata)


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
    header["__metadata__"] = {**header["__metadata__"], HEADER_KEY: describe(spec)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # as safetensors pads it: tensors start at a multiple of eight
    write_atomically(Path(target), len(text).to_bytes(_LENGTH_BYTES, "little") + text + content[start:])


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hexadecimal."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}); give the path of a file of weights") from error


def describe(spec: ModelSpec) -> str:
    """Return what the header of a file of such weights says."""
    return json.dumps({"format": _FORMAT, "model": spec.to_dict()}, sort_keys=True, allow_nan=False)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, make durable, rename; a reader sees the old file or the new one."""
    try:
        replace_durably(path, content)
    except OSError as error:
        raise StoreError(f"the checkpoint {path} cannot be written ({error}); check folder, rights and space") from error


def explain_unreadable(path: Path, error: Exception) -> str:
    """Return why a file that could not be read is no file of weights."""
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
    if HEADER_KEY not in metadata:
        raise WeightsError(
            f"{path} holds tensors and no description of a model ({HEADER_KEY!r} is missing from its header), so classes and "
            "normalisation are unknown; write it with pipeline.network.checkpoint.save_checkpoint"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[HEADER_KEY])
        if header["format"] != _FORMAT:
            raise WeightsError(f"{path} is of format {header['format']} and this version reads format {_FORMAT}; update atrous")
        return ModelSpec.from_dict(header["model"])
    except (SpecError, KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{path} carries a description that this version does not understand ({error}); update atrous or "
            "export the model again"
        ) from error
