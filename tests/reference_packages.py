"""Other people's implementations that ours is compared with; a test is skipped where one is not installed."""

from functools import cache
from types import ModuleType

import pytest
import torch

_STUBS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that torchvision tells torch more about while it is imported."""

_declared: list[torch.library.Library] = []
"""Kept, since the operators of a library go when it is freed."""


@cache
def import_torchvision() -> ModuleType:
    """Return torchvision, also where its compiled operators do not fit the torch that is installed.

    Without them the import fails, although no segmentation network needs one. They are declared then, without code: whoever
    calls one gets torch's error.
    """
    try:
        return _torchvision()
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for stub in _STUBS:
        library.define(stub)
    _declared.append(library)
    return _torchvision()


@cache
def import_smp() -> ModuleType:
    """Return segmentation_models_pytorch."""
    import_torchvision()
    smp: ModuleType = pytest.importorskip("segmentation_models_pytorch", exc_type=ImportError)
    return smp


def _torchvision() -> ModuleType:
    module: ModuleType = pytest.importorskip("torchvision", exc_type=ImportError)
    pytest.importorskip("torchvision.models.segmentation", exc_type=ImportError)
    return module
