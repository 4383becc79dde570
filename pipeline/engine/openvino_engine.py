"""The network in OpenVINO, on the CPU: converted from the torch module in memory, compiled for windows of one size.

On this door: OpenVINO reports over the network that it was imported, and what its converter does. A run sends nothing anywhere, so the
module that would report is kept from being imported (OpenVINO goes on without it), and the frontend under the converter is called.
Every window runs on one thread, several windows at a time, as in torch: the bytes do not depend on the number of cores.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.durable_file import replace_durably
from pipeline.engine.choose import require_openvino
from pipeline.errors import SpecError, StoreError
from pipeline.ordered import map_ahead
from pipeline.user_cache import cache_folder

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # to Python: there is none

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.engine.protocol import EngineSpec
    from pipeline.network.late import LateNetwork

_PRECISIONS = {"auto": "f32", "fp32": "f32", "bf16": "bf16"}

_log = logging.getLogger(__name__)


class OpenVinoEngine:
    """One network on the CPU, for windows of one size."""

    def __init__(self, network: LateNetwork, spec: EngineSpec, *, window_px: int, cache_key: str | None = None) -> None:
        """Convert (or read from the cache) and compile.

        Parameters
        ----------
        network
            With its scales; loaded only where no conversion of it is kept.
        spec
            Precision and threads.
        window_px
            Side of the windows.
        cache_key
            What the network is, for the cache of conversions; None: not kept.
        """
        require_openvino()
        if spec.precision not in _PRECISIONS:
            raise SpecError(
                f"--precision {spec.precision} was asked for; OpenVINO on the CPU has fp32 and bf16: use one of them, or --engine torch"
            )
        self.cells = network.cells
        self._precision = _PRECISIONS[spec.precision]
        self._n_bands = network.spec.n_bands
        self._compiled = self._compile(network, spec.threads, window_px, cache_key)
        self._local = threading.local()
        self._n_threads = spec.threads
        self._threads = ThreadPoolExecutor(spec.threads)

    @property
    def name(self) -> str:
        """``openvino`` and the precision."""
        return f"openvino {'fp32' if self._precision == 'f32' else self._precision}"

    @property
    def device(self) -> str:
        """``cpu``: OpenVINO's other devices are not used."""
        return "cpu"

    def scores(self, windows: Iterable[Callable[[], NDArray[np.float32]]]) -> Iterator[NDArray[np.float32]]:
        """Yield (classes, rows, columns) float32 scores of normalised (bands, height, width) float32 windows, in their order."""
        return map_ahead(self._threads, self._score, windows, ahead=2 * self._n_threads)

    def _score(self, load: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        import openvino  # noqa: PLC0415

        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        window = np.ascontiguousarray(load()[np.newaxis])  # must outlive the call: the tensor only points to it
        request.set_input_tensor(openvino.Tensor(window, shared_memory=True))
        request.infer()
        scores: NDArray[np.float32] = np.array(request.get_output_tensor(0).data[0], np.float32)
        return scores

    def _compile(self, network: LateNetwork, n_threads: int, window_px: int, cache_key: str | None) -> Any:
        import openvino  # noqa: PLC0415

        core = openvino.Core()
        shape = (1, self._n_bands, window_px, window_px)
        model = _converted(core, network, shape, cache_key, precision=self._precision)
        model.reshape(list(shape))
        return core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self._precision,
                "NUM_STREAMS": str(n_threads),
                "INFERENCE_NUM_THREADS": n_threads,
                "ENABLE_CPU_PINNING": False,  # several worker processes would be pinned to the same cores
            },
        )


def _converted(
    core: Any, network: LateNetwork, shape: tuple[int, int, int, int], cache_key: str | None, *, precision: str
) -> Any:
    """Return the network as an OpenVINO model, from the cache where it is there and whole."""
    example = _example_shape(network, shape)
    folder = cache_folder("openvino")
    name = None if cache_key is None or folder is None else _cache_name(cache_key, example, precision)
    if folder is not None and name is not None and (cached := _read_cached(core, folder / name)) is not None:
        return cached
    from pipeline.engine.openvino_conversion import convert  # noqa: PLC0415  (torch)

    model = convert(network.load(), example, precision=precision)
    if folder is not None and name is not None:
        _write_cached(model, folder / name)
    return model


def _example_shape(network: LateNetwork, shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the window that is traced: a small one that leaves the same rest at the output stride; at several scales the window itself.

    Tracing keeps the sizes of a network's padding as they are, and those follow from the rest; at several scales all sizes are kept.
    """
    if not network.multiscale.is_single:
        return shape
    stride = network.spec.output_stride
    side = min(4 * stride + shape[-1] % stride, shape[-1])
    return (*shape[:2], side, side)


def _cache_name(key: str, example_shape: tuple[int, ...], precision: str) -> str:
    import openvino  # noqa: PLC0415

    text = json.dumps([key, example_shape, precision, openvino.__version__, metadata.version("torch")])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_cached(core: Any, path: Path) -> Any | None:
    """Return the model in ``path``.xml and .bin; None where they are not there, or not those whose digest was written last."""
    try:
        texts = [path.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")]
        if _digest(*texts) != path.with_suffix(".sha256").read_text():
            return None
    except OSError:
        return None
    return core.read_model(path.with_suffix(".xml"))


def _write_cached(model: Any, path: Path) -> None:
    """Keep a conversion; the digest is written last, so that a half-written one is not taken for whole."""
    import openvino  # noqa: PLC0415

    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        openvino.save_model(model, part.with_suffix(".xml"), compress_to_fp16=False)
        texts = {suffix: part.with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin")}
        for suffix, text in texts.items():
            part.with_suffix(suffix).unlink()
            replace_durably(path.with_suffix(suffix), text)
        replace_durably(path.with_suffix(".sha256"), _digest(*texts.values()).encode())
    except (OSError, RuntimeError, StoreError) as error:
        _log.warning("the converted network could not be kept in %s: %s", path.parent, error)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
