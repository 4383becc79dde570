"""What decides the bytes of a run, as named fields?"""

from __future__ import annotations

import hashlib
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.engine.choose import choose_device, choose_engine, choose_precision
from pipeline.scene import scene_files
from pipeline.spec import ALGORITHM_VERSION, SegmentSpec

if TYPE_CHECKING:
    from pipeline.engine.protocol import EngineSpec
    from pipeline.scene import SceneInfo

LIBRARIES = ("atrous", "torch", "numpy", "zarr", "rasterio")
"""What decides a rounding or a file format, whatever runs the network."""
_N_SAMPLES = 16
_SAMPLE_BYTES = 65536


def hard_fields(spec: SegmentSpec, scene: SceneInfo) -> dict[str, Any]:
    """Return the fields that decide the bytes: input, model, settings, algorithm; dotted names, JSON-able values."""
    settings = spec.to_dict()
    # The means follow from scene, model and settings, the rest has names of its own below.
    for name in ("scene", "model_path", "model_sha256", "scene_means", "probabilities_from", "probabilities_sha256"):
        settings.pop(name)
    return _flatten(
        {
            "input": {
                **_file_identity(scene_files(spec.scene)),
                "header": scene.to_dict(),
                "bands": spec.scene.bands,
                "nodata": spec.scene.nodata,
                **({} if spec.scene.on_read_error == "fail" else {"on_read_error": spec.scene.on_read_error}),
            },
            "model": {"sha256": spec.model_sha256},
            **({} if spec.probabilities_from is None else {"probabilities": {"sha256": spec.probabilities_sha256}}),
            **settings,
            "algorithm_version": ALGORITHM_VERSION,
        }
    )


def soft_fields(spec: SegmentSpec, engine: EngineSpec) -> dict[str, Any]:
    """Return the fields that may change a rounding but not the meaning: paths, device, precision, versions."""
    runs_network = choose_engine(engine)
    libraries = (*LIBRARIES, *(("openvino",) if runs_network == "openvino" else ()))
    versions = {name: metadata.version(name) for name in libraries}
    return _flatten(
        {
            "input": {"uri": str(Path(spec.scene.uri).resolve())},
            "model": {"path": str(Path(spec.model_path).resolve())},
            **(
                {}
                if spec.probabilities_from is None
                else {"probabilities": {"path": str(Path(spec.probabilities_from).resolve())}}
            ),
            "device": engine.device if engine.device != "auto" else choose_device(engine),
            "engine": runs_network,
            "precision": choose_precision(engine),
            "machine": platform.machine(),
            "version": versions,
        }
    )


def _file_identity(files: list[Path]) -> dict[str, Any]:
    """Return size, modification time and the hash of evenly spread samples of a scene's files."""
    picked = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 64).astype(int))]
    digest = hashlib.sha256()
    for file in picked:
        digest.update(_sample(file, n_samples=_N_SAMPLES if len(files) == 1 else 2))
    stats = [file.stat() for file in files]
    return {
        "size_bytes": sum(stat.st_size for stat in stats),
        "mtime_ns": max(stat.st_mtime_ns for stat in stats),
        "sample_sha256": digest.hexdigest(),
    }


def _sample(path: Path, *, n_samples: int) -> bytes:
    size = path.stat().st_size
    offsets = np.unique(np.linspace(0, max(0, size - _SAMPLE_BYTES), n_samples).astype(np.int64))
    with path.open("rb") as file:
        parts = []
        for offset in offsets:
            file.seek(int(offset))
            parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)


def _plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: the provenance in the output has NaN as nodata by name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _plain(value)
    return flat
