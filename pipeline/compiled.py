"""How are loops over pixels compiled? By numba, without the GIL, and kept on disk for the next process."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, TypeVar

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound="Callable[..., object]")


def compiled(function: Function) -> Function:
    """Compile a function on its first call.

    The result is kept beside the source, or in the user's cache directory, or where NUMBA_CACHE_DIR says; where none of them can be written
    (a read-only container) every process compiles anew, which takes about ten seconds.
    """
    try:
        made: Function = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba's "no locator available"
        _say_once("no directory for compiled code can be written; set NUMBA_CACHE_DIR to one, or every process compiles anew")
        made = njit(nogil=True)(function)
    return made


@functools.cache
def _say_once(text: str) -> None:
    logger.warning(text)
