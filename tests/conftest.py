"""Factories that the tests share: tiny checkpoints, rasters with texture, and the data beside the repository."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import settings
from numpy.typing import NDArray
from rasterio.transform import Affine

# pytest puts this folder on the path; with an editable installation, tests/pipeline would then be taken for the package.
sys.path.append(str(Path(__file__).parents[1]))

from factories import lively_network, texture, tiny_model_spec

import cli
from pipeline.network.checkpoint import save_checkpoint

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
settings.register_profile("atrous", deadline=None)  # the machines that run these tests are shared
settings.load_profile("atrous")
torch.set_num_threads(1)  # the tensors are tiny
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / f"atrous-tests-{os.getuid()}")  # not the user's own cache


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of data that is not in the repository; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """Return ``build(n_classes=3, n_bands=3, image_pooling="off", seed=0, name="tiny", **network) -> Path`` of a checkpoint.

    The network is the real one with few channels and small rates. Its batch statistics come from random windows and its
    logits are spread, so that labels vary over a textured scene and all classes occur.
    """

    def build(
        *, n_classes: int = 3, n_bands: int = 3, image_pooling: str = "off", seed: int = 0, name: str = "tiny", **network: object
    ) -> Path:
        spec = tiny_model_spec(n_classes=n_classes, n_bands=n_bands, image_pooling=image_pooling, name=name, **network)
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, lively_network(spec.network, seed=seed), spec)
        return path

    return build


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """Return a checkpoint with three classes and three bands, the same file for all tests: it is built and loaded once."""
    path = tmp_path_factory.getbasetemp() / "shared-model" / "tiny.safetensors"
    if not path.exists():
        path.parent.mkdir()
        shutil.copyfile(tiny_model(), path)
    return path


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., Path]:
    """Return ``write(...) -> Path`` of a tiled GeoTIFF in ``tmp_path``.

    Arguments, all optional: ``height``, ``width``, ``bands``, ``dtype``, ``nodata`` (written to the header), ``holes``
    ((row, col, height, width) rectangles set to nodata), ``crs``, ``transform``, ``seed``, ``name``, ``pixels`` (an array of
    (bands, height, width) in place of the texture). The texture lies in 1 .. 254, so that nodata 0 or 255 means the holes only.
    """

    def write(
        *,
        height: int = 150,
        width: int = 203,
        bands: int = 3,
        dtype: str = "uint8",
        nodata: float | None = None,
        holes: tuple[tuple[int, int, int, int], ...] = (),
        crs: str | None = "EPSG:32640",
        transform: Affine | None = None,
        seed: int = 0,
        name: str = "scene.tif",
        pixels: NDArray[np.generic] | None = None,
    ) -> Path:
        values = texture((bands, height, width), dtype=dtype, seed=seed) if pixels is None else pixels.copy()
        for row, col, n_rows, n_cols in holes:
            values[:, row : row + n_rows, col : col + n_cols] = 0 if nodata is None else nodata
        place = Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 2_800_000.0) if transform is None and crs is not None else transform
        path = tmp_path / name
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=values.shape[0],
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            nodata=nodata,
            crs=crs,
            transform=place,
            tiled=True,
            blockxsize=64,
            blockysize=64,
        ) as target:
            target.write(values)
        return path

    return write


# The command line


@pytest.fixture
def atrous(monkeypatch, capfd):
    """Return ``run(*arguments) -> (exit code, stdout, stderr)`` of the command in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["atrous", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Run in an empty folder, and return it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def scene(raster):
    """Return a small raster."""
    return raster(height=70, width=100)
