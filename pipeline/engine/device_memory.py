"""What happens where a device has not enough memory?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from pipeline.errors import BlockError

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_about_memory(error: RuntimeError) -> bool:
    """Tell whether a device has not enough memory; what was traced keeps only the text of an error."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


@contextlib.contextmanager
def no_memory_is_no_error() -> Iterator[None]:
    """Go on behind what is done inside where the device has not enough memory for it: there, its tensors are free again."""
    try:
        yield
    except RuntimeError as error:
        if not is_about_memory(error):
            raise


@contextlib.contextmanager
def enough_memory(device: torch.device, what: str) -> Iterator[None]:
    """Raise BlockError where the device has not enough memory for what is done inside."""
    with no_memory_is_no_error():
        yield
        return
    raise BlockError(
        f"the device {device} has not enough memory for {what}; use a smaller --block, or a device that nobody else uses"
    )
