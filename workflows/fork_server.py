"""Where do the workers of this machine come from? From a process that imports their libraries while the command line still starts.

A worker imports rasterio, zarr and much else, and so does what plans for it; Dask comes on top for both. The command line begins Python's
fork server before, so that the two go on at once. The worker is forked from it, and so is one that takes the place of a dead one::

    command line   click | dask ......... | plan ... | blocks
    fork server          | numpy, dask ............. |
    worker                                           | fork, blocks

torch, which takes a second more, is imported there only where it will run the network.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from typing import Literal

from pipeline.engine.choose import has_openvino, may_have_cuda

ENVIRONMENT = {
    "GDAL_CACHEMAX": "64",
    "GDAL_NUM_THREADS": "ALL_CPUS",  # decodes the tiles of one read side by side
    # What a tile has used is kept for the next one: mapped anew each time, clearing its pages takes a fifth of the CRF's time. As long as
    # nothing is mapped, that holds for arrays of any size.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    # As Dask has it: blocks and tiles share the cores, not the operations within one.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Of a worker, where the user's own says nothing; C libraries read it when a process starts."""

_IMPORTED = ("workflows.worker", "workflows.cluster", "distributed.nanny", "pipeline.fused", "pipeline.classify")
"""The last two are numba's: it is imported while the coordinator still plans."""
_IMPORTED_TO_RUN_TORCH = ("pipeline.engine.torch_engine", "pipeline.network.checkpoint")

_begun = threading.Event()
_log = logging.getLogger(__name__)


def begin() -> None:
    """Begin the fork server, once in a process; where there is none, workers start and import for themselves.

    It is for a command that has just started: workers get the environment of this moment. With a driver for CUDA, which may not be forked
    once it is in use, workers always start for themselves.
    """
    if sys.platform != "linux" or may_have_cuda() or _begun.is_set():
        return
    added = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        resource_tracker.ensure_running()  # here, for it ends with Ctrl-C let through
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the coordinator, which drains
        forkserver.set_forkserver_preload([*_IMPORTED, *(() if has_openvino() else _IMPORTED_TO_RUN_TORCH)])
        forkserver.ensure_running()
        _begun.set()
    except OSError as error:
        _log.info("workers are started one by one: %s", error)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for name in added:
            del os.environ[name]


def start_method() -> Literal["forkserver", "spawn"]:
    """Return how multiprocessing starts workers here."""
    return "forkserver" if _begun.is_set() else "spawn"
