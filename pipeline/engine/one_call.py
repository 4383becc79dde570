"""How are many operations one call? Traced: then Python's lock is given up once, and not with each of them.

Who gives it up has to get it back from whoever took it. With one other thread busy in Python, the 200 operations of a network on windows
of 32 px took 690 ms in place of 4 (two cores); 53 and 22 where threads take turns every 0.5 and 0.1 ms, not Python's 5; traced, 4 to 5.
Several threads read and write while a device waits for one.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import torch

from pipeline.engine.device_memory import is_about_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Work = Callable[..., Tensor]

_log = logging.getLogger(__name__)


def one_call(name: str, work: Work, *example: Tensor) -> Work:
    """Return what does the same as ``work`` with tensors like the example's, traced; itself where that fails or gives other bytes.

    Parameters
    ----------
    name
        What it is, for the log.
    work
        Makes a tensor of tensors, by operations that follow from the example's shapes alone.
    example
        Without NaN.
    """
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and says which sizes become constants
        expected = work(*example)
        try:
            traced = torch.jit.trace(work, example, check_trace=False)  # type: ignore[no-untyped-call]
            if torch.equal(_run(traced, *example), expected):
                return lambda *given: _run(traced, *given)
        except RuntimeError as error:
            if is_about_memory(error):
                raise
            _log.warning("%s could not be traced, and is called operation by operation: %s", name, error)
            return work
    _log.warning("%s gives something else when traced, and is called operation by operation", name)
    return work


def _run(traced: Work, *given: Tensor) -> Tensor:
    """Run it as it was written: what TorchScript makes of it after two calls may round otherwise."""
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return traced(*given)
