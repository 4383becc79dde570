"""What tensors does a file from another project hold? Read without running anything that the file says."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.network.checkpoint import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
_NUMPY_NAMES = ("dtype", "ndarray", "core.multiarray.scalar", "core.multiarray._reconstruct")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in ``path``, out of its wrappers and without prefixes such as ``module.`` that every key has.

    ``.safetensors`` files are read as such, anything else with ``torch.load(weights_only=True)``.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, holds other things than tensors, or a tensor that is not finite.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path} was given as a checkpoint and is not a file; give the path of a .pth, .pt, .bin or .safetensors file"
        )
    tensors = read_tensors(path) if path.suffix == ".safetensors" else _tensors_of(path, _unwrap(_load(path)))
    tensors = _without_prefixes(tensors)
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    if broken:
        raise WeightsError(
            f"{path}: {len(broken)} tensors hold NaN or infinity [{some(broken)}]; every weight must be finite: use another checkpoint of "
            "that training"
        )
    return tensors


def read_config(path: Path) -> dict[str, Any]:
    """Return the ``config.json`` beside ``path``, as hubs ship it; empty where there is none."""
    config = path.with_name("config.json")
    if not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{config} lies beside the checkpoint and is not JSON ({error}); correct it or move it away"
        ) from error
    return found if isinstance(found, dict) else {}


class _Dropped:
    """Stands for a number or an array of numpy beside the tensors, such as the best score so far; keeps nothing and calls nothing."""

    def __init__(self, *_arguments: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


def _stand_ins() -> list[Any]:
    """Return one class for each name that such a pickle mentions; older versions of numpy wrote ``core``, newer ones ``_core``."""
    names = [f"numpy.{prefix}{name}" for name in _NUMPY_NAMES for prefix in ("", "_") if not (prefix and "." not in name)]
    pairs = [name.rpartition(".") for name in names]
    return [type(name, (_Dropped,), {"__module__": module}) for module, _, name in pairs]


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = _reason(error)
        raise WeightsError(
            f"{path} cannot be read as a file of weights ({reason}); expected tensors only, as torch.save(model.state_dict()) writes "
            "them: a file that holds other objects is refused, because loading it could run code"
        ) from error


def _reason(error: Exception) -> str:
    """Return what torch found, without its advice to load the file unsafely."""
    text = str(error)
    found = re.search(r"WeightsUnpickler error: *(\S.*)", text)
    if found:
        return found[1].split(". ")[0].strip()
    return text.strip().splitlines()[0] if text.strip() and "weights_only" not in text else type(error).__name__


def _unwrap(loaded: Any) -> Any:
    for name in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            return _unwrap(loaded[name])
    return loaded


def _tensors_of(path: Path, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(
            f"{path} holds a {type(loaded).__name__} and no dictionary of tensors; "
            "save the weights with torch.save(model.state_dict(), ...)"
        )
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path} holds {len(others)} entries that are no tensors [{some(others)}]; give a state dict of tensors only"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _without_prefixes({name[len(prefix) :]: tensor for name, tensor in tensors.items()})
    return dict(tensors)


def some(names: list[str], n: int = 8) -> str:
    """Return the first ``n`` names and how many more there are."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
