"""The main job on rasters that others made; they lie beside the repository, and the tests are skipped where they are missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  (gives xarray its ``rio``)
import xarray
import zarr
from rasterio.windows import Window as RasterioWindow

from pipeline.spec import GridSpec
from pipeline.store import read_labels
from pipeline.window import Window
from workflows import export
from workflows.events import Staging
from workflows.local_workers import ClusterSpec
from workflows.prepare import Request
from workflows.segment_scene import Execution, Summary, segment

pytestmark = [pytest.mark.shared, pytest.mark.slow]

SERIAL = Execution(cluster=ClusterSpec(cluster="serial"))


def run(scene: Path, out: Path, **more: object) -> Summary:
    """Segment with the shipped model, or with another one."""
    summary = segment(Request(scene=str(scene), **more), out, SERIAL)  # type: ignore[arg-type]
    assert summary.succeeded
    return summary


def labels_of(out: Path, shape: tuple[int, int]) -> np.ndarray:
    return read_labels(out, Window.of_shape(shape))


@pytest.mark.parametrize("name", ["RGB.byte.tif", "RGBA.byte.tif"])
def test_crs_transform_and_nodata_are_those_that_rasterio_sees(shared: Path, tmp_path: Path, name: str) -> None:
    scene, out = shared / "rasters" / name, tmp_path / "out.zarr"
    summary = run(scene, out)
    with rasterio.open(scene) as source:
        valid = source.dataset_mask() > 0
        crs, transform = source.crs, source.transform
    labels = labels_of(out, valid.shape)
    assert np.array_equal(labels != 255, valid)
    assert sum(summary.class_counts) == valid.sum()

    with xarray.open_zarr(out, group="0", consolidated=False) as opened:
        assert opened["labels"].dtype == np.uint8
        assert opened["labels"].rio.crs == crs
        assert opened["labels"].rio.transform().almost_equals(transform)
        assert opened["labels"].rio.nodata == 255
    export.run(out, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as exported:
        assert (exported.crs, exported.transform, exported.nodata) == (crs, transform, 255)
        assert np.array_equal(exported.read(1), labels)


def test_three_bands_of_16_bits_are_stretched_once(shared: Path, tmp_path: Path) -> None:
    scene, out = shared / "rasters" / "landsat8_uint16.tif", tmp_path / "out.zarr"
    with rasterio.open(scene) as source:
        shape, crs = source.shape, source.crs
        assert source.dtypes[0] == "uint16"
    summary = run(scene, out, grid=GridSpec(block_px=1024))
    assert sum(summary.class_counts) == shape[0] * shape[1]
    assert sum(count > 0 for count in summary.class_counts) > 1
    with xarray.open_zarr(out, group="0", consolidated=False) as opened:
        assert opened["labels"].rio.crs == crs


def test_a_jpeg_of_33_megapixels_is_staged_and_keeps_its_world_file(
    shared: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    scene, out = shared / "rasters" / "bluemarble_8192x4096.jpg", tmp_path / "out.zarr"
    events: list[object] = []
    request = Request(scene=str(scene), model=str(tiny_model()), grid=GridSpec(overlap_px=0))
    summary = segment(request, out, SERIAL, events.append)
    assert summary.succeeded
    assert sum(summary.class_counts) == 8192 * 4096
    staging = [event for event in events if isinstance(event, Staging)]
    assert staging[-1].done == staging[-1].total == 4096
    assert not (tmp_path / "out.zarr.run" / "staged.tif").exists()
    with rasterio.open(scene) as source, xarray.open_zarr(out, group="0", consolidated=False) as opened:
        assert np.allclose(opened["x"][:2], [source.xy(0, 0)[0], source.xy(0, 1)[0]])


def test_a_zarr_array_and_a_strip_of_16_columns_give_what_the_same_pixels_in_a_geotiff_give(shared: Path, tmp_path: Path) -> None:
    with rasterio.open(shared / "rasters" / "RGB.byte.tif") as source:
        pixels = source.read(window=RasterioWindow(300, 100, 16, 400))
    zarr.save_array(str(tmp_path / "scene.zarr"), pixels)
    profile = {"driver": "GTiff", "count": 3, "height": 400, "width": 16, "dtype": "uint8"}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile) as target:
        target.write(pixels)
    for name in ("scene.zarr", "scene.tif"):
        run(tmp_path / name, tmp_path / f"{name}.out.zarr")
    from_zarr, from_tiff = (labels_of(tmp_path / f"{name}.out.zarr", (400, 16)) for name in ("scene.zarr", "scene.tif"))
    assert (from_zarr != 255).all()
    assert np.array_equal(from_zarr, from_tiff)
