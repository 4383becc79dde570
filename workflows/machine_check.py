"""What is installed here, on what will a network run, and which limits and variables are in force?"""

from __future__ import annotations

import difflib
import os
import platform
import re
import resource
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from psutil import virtual_memory

from pipeline.engine.choose import choose_device, choose_engine, choose_precision
from pipeline.engine.protocol import EngineSpec
from pipeline.gdal_build import gdal_version, missing_drivers
from workflows.findings import Finding, ok, problem, warning
from workflows.local_workers import ClusterSpec, count_cores, share_here

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NEEDED = ("atrous", "torch", "numpy", "numba", "zarr", "rasterio", "dask", "distributed")
_OPTIONAL = {
    "openvino": "without it the network runs in torch, several times slower on the CPU",
    "pydensecrf2": "only --crf-backend pydensecrf needs it",
    "dask-cuda": "only --cluster cuda needs it",
}
_CPU_FLAGS = {"avx512f": "AVX-512", "avx512_bf16": "bf16 in AVX-512", "amx_bf16": "bf16 in AMX"}
_FEW_FILES = 1024
_LITTLE_MEMORY_BYTES = 2 * 2**30

_SETTINGS = re.compile(r"ATROUS_|DASK_|GDAL_|OMP_|MKL_|OPENBLAS_NUM|NUMBA_|CUDA_VISIBLE|MALLOC_|XDG_CACHE_HOME|TMPDIR")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def check_versions() -> Iterator[Finding]:
    """Tell what is installed, and what of it is missing."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _NEEDED)
    yield ok("versions", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {versions}")
    for name, use in _OPTIONAL.items():
        try:
            yield ok("optional", f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield ok("optional", f"{name} is not installed: {use}")
    if missing := missing_drivers():
        yield problem(
            "gdal",
            f"GDAL {gdal_version()} was built without {', '.join(missing)}",
            "scenes of these formats cannot be read: install rasterio from PyPI or conda-forge",
        )
    else:
        yield ok("gdal", f"GDAL {gdal_version()} with all drivers that are used")


def check_devices() -> Iterator[Finding]:
    """Tell what this process may use of the machine, and what ``auto`` means on it."""
    workers, threads, usable = share_here(ClusterSpec())
    text = f"{usable / 2**30:.1f} GiB for workers, of {virtual_memory().total / 2**30:.1f} GiB"
    if usable < _LITTLE_MEMORY_BYTES:
        yield warning("memory", text, "small blocks and windows fit: `atrous plan SCENE` tells what a run needs")
    else:
        yield ok("memory", text)
    yield _cores(workers, threads)
    yield from _cuda()
    spec = EngineSpec()
    yield ok("engine", f"auto is {choose_engine(spec)} {choose_precision(spec)} on {choose_device(spec)}")


def check_limits() -> Iterator[Finding]:
    """Tell which limits of the system would stop a run."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        yield warning("limits", f"{files} open files", f"many workers need more: ulimit -n {_FEW_FILES} or above")
    else:
        yield ok("limits", f"{'any number of' if files == resource.RLIM_INFINITY else files} open files")
    for name, limit in (("address space", resource.RLIMIT_AS), ("size of a file", resource.RLIMIT_FSIZE)):
        size = resource.getrlimit(limit)[0]
        if size != resource.RLIM_INFINITY:
            letter = "v" if limit == resource.RLIMIT_AS else "f"
            yield warning(
                "limits",
                f"the {name} is limited to {size / 2**20:.0f} MiB",
                f"runs do not take it into account, and fail where it is reached: ulimit -{letter} unlimited",
            )


def check_environment(environment: Mapping[str, str], known: frozenset[str]) -> Iterator[Finding]:
    """Tell which variables may change what a run does.

    Parameters
    ----------
    environment
        Names and values. What may be a secret is not shown.
    known
        All variables that stand for an option of ``atrous``.
    """
    for name, value in sorted(environment.items()):
        if name.startswith("ATROUS_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"did you mean {close[0]}?" if close else "they are called ATROUS_SEGMENT_WINDOW, for segment --window"
            yield warning("environment", f"{name} stands for no option, and does nothing", hint)
        elif _SETTINGS.match(name):
            yield ok("environment", f"{name}={_shown(name, value)}")


def _shown(name: str, value: str) -> str:
    return "(not shown)" if _SECRET.search(name) else _LOGIN.sub("(not shown)", value)


def _cores(workers: int, threads: int) -> Finding:
    flags = _cpu_flags(Path("/proc/cpuinfo"))
    kinds = [text for flag, text in _CPU_FLAGS.items() if flag in flags]
    known = f", {', '.join(kinds)}" if kinds else ""
    text = f"{count_cores()} of {os.cpu_count()}{known}; a large job gets workers x threads = {workers} x {threads}"
    quota = cpu_quota(Path("/sys/fs/cgroup"))
    if quota is not None and quota < count_cores():
        return warning("cores", f"{text}, but this container may use {quota:g} only", f"give --threads {max(1, int(quota))}")
    return ok("cores", text)


def _cpu_flags(path: Path) -> frozenset[str]:
    """Return what the processor can do, as Linux calls it; empty elsewhere."""
    if not path.exists():
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", path.read_text(), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def cpu_quota(group: Path) -> float | None:
    """Return how many cores a container may use at a time, from the control group's folder; None without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in {"max", "-1"} else int(quota) / int(period)


def _cuda() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            yield ok("cuda", f"cuda:{number} {device.name}, capability {device.major}.{device.minor}, {memory}")
    elif Path("/dev/nvidiactl").exists():
        yield warning(
            "cuda",
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no device",
            "install a CUDA build of torch that suits the driver, or check CUDA_VISIBLE_DEVICES; until then the CPU is used",
        )
    else:
        yield ok("cuda", "no CUDA device")
