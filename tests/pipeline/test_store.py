"""The store against plain arrays, against rasterio's view of CRS and transform, and against disks that
fail."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers the .rio accessor
import xarray
from rasterio.crs import CRS
from rasterio.transform import Affine

from pipeline import durable_store
from pipeline.errors import SpecError, StoreError, WindowError
from pipeline.georef import Georef
from pipeline.network.spec import ClassSpec
from pipeline.store import (
    StoreLayout,
    check_receipt,
    create_store,
    is_store,
    open_layout,
    read_array,
    read_labels,
    remove_partials,
    remove_store,
    write_block,
)
from pipeline.window import Window

# rioxarray multiplies transforms in a way that affine 3.1 wants to retire.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

HEIGHT, WIDTH, CHUNK = 101, 203, 32
UTM = CRS.from_epsg(32640).to_wkt()
TRANSFORM = (0.5, 0.0, 330_000.25, 0.0, -0.5, 2_786_000.75)
CLASSES = (
    ClassSpec(name="Land (unpaved area)", color="#8429f6"),
    ClassSpec(name="Water", color="#e2a929"),
    ClassSpec(name="Road", color="#6ec1e4"),
)


def make_layout(**changes) -> StoreLayout:
    settings = {
        "height": HEIGHT,
        "width": WIDTH,
        "chunk": CHUNK,
        "classes": CLASSES,
        "georef": Georef(crs_wkt=UTM, transform=TRANSFORM),
        "provenance": {"scene": "scene.tif", "model": {"sha256": "abc"}},
    }
    return StoreLayout(**(settings | changes))


def make_arrays(window: Window, seed: int = 0, *, probabilities: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {
        "labels": rng.choice(np.array([0, 1, 2, 255], np.uint8), window.shape),
        "confidence": rng.integers(0, 256, window.shape, np.uint8),
    }
    if probabilities:
        arrays["probabilities"] = rng.integers(0, 256, (len(CLASSES), *window.shape), np.uint8)
    return arrays


def blocks(unit: int, height: int = HEIGHT, width: int = WIDTH) -> list[Window]:
    return [
        Window.from_bounds(rows=(row, min(row + unit, height)), cols=(col, min(col + unit, width)))
        for row in range(0, height, unit)
        for col in range(0, width, unit)
    ]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout())
    return path


@pytest.mark.parametrize(
    ("shard", "unit", "probabilities"),
    [
        pytest.param(None, 32, False, id="one chunk per block"),
        pytest.param(None, 64, True, id="four chunks per block"),
        pytest.param(64, 64, True, id="one shard per block"),
        pytest.param(64, 128, False, id="four shards per block"),
        pytest.param(512, 512, True, id="shard larger than the scene"),
    ],
)
def test_blocks_come_back_as_one_plain_array(tmp_path, shard, unit, probabilities):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=shard, probabilities=probabilities))
    scene = make_layout().window
    expected = make_arrays(scene, probabilities=probabilities)
    for window in blocks(unit):
        rows, cols = window.to_slices()
        write_block(path, window, {name: array[..., rows, cols] for name, array in expected.items()})
    odd = Window(row_off=7, col_off=11, height=83, width=150)
    for name, array in expected.items():
        np.testing.assert_array_equal(read_array(path, name, scene), array)
        np.testing.assert_array_equal(read_array(path, name, odd), array[(..., *odd.to_slices())])


def test_what_was_not_written_reads_as_nodata(store):
    window = Window(row_off=32, col_off=64, height=32, width=32)
    write_block(store, window, make_arrays(window))
    assert (read_labels(store, Window(row_off=0, col_off=0, height=32, width=203)) == 255).all()
    assert (read_array(store, "confidence", Window(row_off=0, col_off=0, height=32, width=203)) == 0).all()


def test_receipts_match_the_bytes_of_every_chunk_file(store):
    window = Window(row_off=64, col_off=192, height=37, width=11)
    receipts = write_block(store, window, make_arrays(window))
    assert [r.key for r in receipts] == [
        "0/confidence/c/2/6",
        "0/confidence/c/3/6",
        "0/labels/c/2/6",
        "0/labels/c/3/6",
    ]
    for receipt in receipts:
        data = (store / receipt.key).read_bytes()
        assert (receipt.n_bytes, receipt.crc32c) == (len(data), google_crc32c.value(data))
        assert check_receipt(store, receipt, level="crc") is None
    written = {str(f.relative_to(store)) for f in store.glob("0/[lc]*/c/*/*")}
    assert written == {r.key for r in receipts}


def test_one_shard_has_one_receipt(tmp_path):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=64, probabilities=True))
    window = Window(row_off=64, col_off=192, height=37, width=11)
    receipts = write_block(path, window, make_arrays(window, probabilities=True))
    assert [r.key for r in receipts] == ["0/confidence/c/1/3", "0/labels/c/1/3", "0/probabilities/c/0/1/3"]


@pytest.mark.parametrize("level", ["length", "crc"])
@pytest.mark.parametrize(
    ("damage", "reason", "seen_by"),
    [
        pytest.param(lambda f: f.unlink(), "missing", {"length", "crc"}, id="missing"),
        pytest.param(lambda f: f.write_bytes(b""), "length", {"length", "crc"}, id="empty"),
        pytest.param(lambda f: f.write_bytes(f.read_bytes()[:-1]), "length", {"length", "crc"}, id="truncated"),
        pytest.param(
            lambda f: f.write_bytes(bytes([f.read_bytes()[0] ^ 1]) + f.read_bytes()[1:]),
            "checksum",
            {"crc"},
            id="one bit flipped",
        ),
    ],
)
def test_a_receipt_tells_what_happened_to_its_file(store, damage, reason, seen_by, level):
    window = Window(row_off=0, col_off=0, height=32, width=32)
    receipt = write_block(store, window, make_arrays(window))[0]
    damage(store / receipt.key)
    found = check_receipt(store, receipt, level=level)
    if level in seen_by:
        assert found is not None
        assert found.startswith(reason)
    else:
        assert found is None


@pytest.mark.parametrize("shard", [None, 64])
@pytest.mark.parametrize(("label", "confidence"), [(255, 0), (0, 0)])
def test_a_block_of_one_value_still_leaves_its_files(tmp_path, shard, label, confidence):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=shard))
    window = Window(row_off=64, col_off=64, height=37, width=64)
    arrays = {
        "labels": np.full(window.shape, label, np.uint8),
        "confidence": np.full(window.shape, confidence, np.uint8),
    }
    receipts = write_block(path, window, arrays)
    assert len(receipts) == (2 if shard else 8)
    assert all((path / r.key).stat().st_size == r.n_bytes > 0 for r in receipts)


@pytest.mark.parametrize("shard", [None, 64])
def test_writing_again_gives_the_same_bytes_and_nothing_is_deleted(tmp_path, shard):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=shard))
    window = Window(row_off=64, col_off=192, height=37, width=11)
    first = write_block(path, window, make_arrays(window))
    nodata = {name: np.full(window.shape, 255 * (name == "labels"), np.uint8) for name in ("labels", "confidence")}
    assert {r.key for r in write_block(path, window, nodata)} == {r.key for r in first}
    assert write_block(path, window, make_arrays(window)) == first


@pytest.mark.parametrize("shard", [None, 64])
def test_a_damaged_chunk_at_the_ragged_edge_is_refused_on_reading_and_can_be_written_again(tmp_path, shard):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=shard))
    window = Window(row_off=64, col_off=192, height=37, width=11)
    arrays = make_arrays(window)
    receipts = write_block(path, window, arrays)
    for damaged in (b"", b"\0" * receipts[-1].n_bytes):
        (path / receipts[-1].key).write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged"):
            read_labels(path, window)
    assert write_block(path, window, arrays) == receipts
    np.testing.assert_array_equal(read_labels(path, window), arrays["labels"])


@pytest.mark.parametrize("part", [(64, 128), (0, 128), (70, 90)], ids=str)
def test_a_shard_of_zero_bytes_is_not_taken_for_one_that_was_never_written(tmp_path, part):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=64))
    window = Window(row_off=0, col_off=0, height=64, width=128)
    (path / write_block(path, window, make_arrays(window))[-1].key).write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        read_labels(path, Window.from_bounds(rows=(0, 64), cols=part))


@pytest.mark.parametrize("shard", [None, 64])
def test_a_flipped_bit_is_noticed_on_reading(tmp_path, shard):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=shard))
    window = Window(row_off=0, col_off=0, height=64, width=64)
    file = path / write_block(path, window, make_arrays(window))[-1].key
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        read_labels(path, window)


@pytest.mark.parametrize(
    ("shard", "rows", "cols"),
    [
        pytest.param(None, (1, 32), (0, 32), id="starts inside a chunk"),
        pytest.param(None, (0, 31), (0, 32), id="ends inside a chunk"),
        pytest.param(None, (0, 32), (0, 202), id="ends before the scene's edge"),
        pytest.param(64, (32, 64), (0, 64), id="starts inside a shard"),
        pytest.param(64, (0, 64), (0, 32), id="ends inside a shard"),
        pytest.param(None, (96, 128), (0, 32), id="reaches outside the scene"),
        pytest.param(None, (-32, 32), (0, 32), id="starts outside the scene"),
    ],
)
def test_a_window_that_would_share_a_chunk_is_refused(tmp_path, shard, rows, cols):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(shard=shard))
    window = Window.from_bounds(rows=rows, cols=cols)
    with pytest.raises(WindowError, match="px"):
        write_block(path, window, make_arrays(window))
    assert not list(path.glob("0/labels/c/*"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"labels": np.zeros((32, 32), np.int64)}, id="wrong type"),
        pytest.param({"labels": np.zeros((1, 1), np.uint8)}, id="would be broadcast"),
        pytest.param({"probabilities": np.zeros((3, 32, 32), np.uint8)}, id="array the store does not hold"),
        pytest.param({"confidence": None}, id="array is missing"),
    ],
)
def test_a_block_of_the_wrong_form_is_refused_before_anything_is_written(store, change):
    window = Window(row_off=0, col_off=0, height=32, width=32)
    arrays = {name: array for name, array in (make_arrays(window) | change).items() if array is not None}
    with pytest.raises(StoreError, match="needs"):
        write_block(store, window, arrays)
    assert not list(store.glob("0/labels/c/*/*"))


def test_xarray_and_rioxarray_agree_with_rasterio(store):
    window = Window(row_off=32, col_off=64, height=32, width=32)
    arrays = make_arrays(window)
    write_block(store, window, arrays)
    with xarray.open_zarr(store, group="0", consolidated=False) as level:
        labels = level["labels"].load()
        assert labels.dtype == np.uint8
        assert labels.dims == ("y", "x")
        assert labels.rio.crs == CRS.from_epsg(32640)
        assert labels.rio.transform() == Affine(*TRANSFORM)
        assert labels.rio.nodata == 255
        assert level["x"].attrs["standard_name"] == "projection_x_coordinate"
        x, y = TRANSFORM[2] + 0.5 * 64.5, TRANSFORM[5] - 0.5 * 32.5
        assert labels.sel(x=x, y=y) == arrays["labels"][0, 0]


def test_xarray_finds_the_classes_and_the_probabilities(tmp_path):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(probabilities=True))
    with xarray.open_zarr(path, group="0", consolidated=False) as level:
        assert level["probabilities"].dims == ("class", "y", "x")
        assert level["labels"].attrs["flag_values"] == [0, 1, 2]
        assert level["labels"].attrs["flag_meanings"] == "Land_(unpaved_area) Water Road"
        assert level["labels"].attrs["flag_colors"] == "#8429f6 #e2a929 #6ec1e4"
        assert "_FillValue" not in level["labels"].attrs


def test_geographic_coordinates_are_called_longitude_and_latitude(tmp_path):
    path = tmp_path / "out.zarr"
    georef = Georef(crs_wkt=CRS.from_epsg(4326).to_wkt(), transform=(1e-5, 0.0, 55.1, 0.0, -1e-5, 25.2))
    create_store(path, make_layout(georef=georef))
    with xarray.open_zarr(path, group="0", consolidated=False) as level:
        assert level["labels"].rio.crs.to_epsg() == 4326
        assert level["x"].attrs["standard_name"] == "longitude"
        assert level["y"].attrs["units"] == "degrees_north"
        np.testing.assert_allclose(level["labels"].rio.transform(), Affine(*georef.transform), rtol=0, atol=1e-12)


def test_without_georeference_nothing_is_claimed(tmp_path):
    path = tmp_path / "out.zarr"
    create_store(path, make_layout(georef=Georef(crs_wkt=None, transform=None)))
    with xarray.open_zarr(path, group="0", consolidated=False) as level:
        assert set(level.variables) == {"labels", "confidence"}
        assert level["labels"].rio.crs is None
        assert level["labels"].rio.nodata == 255
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert not [key for key in attributes if key.startswith("proj:") or key == "spatial:transform"]


def test_a_rotated_grid_has_a_transform_and_no_coordinates(tmp_path):
    path = tmp_path / "out.zarr"
    transform = (0.4, 0.3, 330_000.0, 0.3, -0.4, 2_786_000.0)
    create_store(path, make_layout(georef=Georef(crs_wkt=UTM, transform=transform)))
    with xarray.open_zarr(path, group="0", consolidated=False) as level:
        assert "x" not in level.variables
        assert level["labels"].rio.crs == CRS.from_epsg(32640)
        assert level["labels"].rio.transform() == Affine(*transform)


def test_a_crs_without_a_code_is_given_as_wkt2(tmp_path):
    path = tmp_path / "out.zarr"
    local = CRS.from_string("+proj=laea +lat_0=25 +lon_0=55 +units=m").to_wkt(version="WKT1_GDAL")
    create_store(path, make_layout(georef=Georef(crs_wkt=local, transform=TRANSFORM)))
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert "proj:code" not in attributes
    assert attributes["proj:wkt2"].startswith("PROJCRS[")


def test_the_root_declares_the_geozarr_conventions(store):
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    declared = {(entry["name"], entry["uuid"][:8]) for entry in attributes["zarr_conventions"]}
    assert declared == {
        ("multiscales", "d35379db"),
        ("proj", "f17cb550"),
        ("proj:", "f17cb550"),
        ("spatial", "689b58e2"),
        ("spatial:", "689b58e2"),
    }
    assert attributes["proj:code"] == "EPSG:32640"
    assert attributes["spatial:dimensions"] == ["y", "x"]
    assert attributes["spatial:shape"] == [HEIGHT, WIDTH]
    assert attributes["spatial:transform"] == list(TRANSFORM)
    assert attributes["spatial:bbox"] == [330_000.25, 2_785_950.25, 330_101.75, 2_786_000.75]
    assert [entry["asset"] for entry in attributes["multiscales"]["layout"]] == ["0"]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(make_layout(), id="plain"),
        pytest.param(make_layout(shard=64, probabilities=True, provenance={}), id="sharded"),
        pytest.param(make_layout(georef=Georef(crs_wkt=None, transform=None)), id="without georeference"),
    ],
)
def test_the_layout_survives_its_round_trip(tmp_path, layout):
    create_store(tmp_path / "a" / "b" / "out.zarr", layout)
    assert open_layout(tmp_path / "a" / "b" / "out.zarr") == layout


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda p: (p / "zarr.json").unlink(), id="no root"),
        pytest.param(lambda p: (p / "zarr.json").write_text("{"), id="torn root"),
        pytest.param(lambda p: (p / "zarr.json").write_text("[]"), id="root is no object"),
        pytest.param(lambda p: shutil.rmtree(p / "0" / "labels"), id="labels lost"),
        pytest.param(
            lambda p: (p / "zarr.json").write_text(
                (p / "zarr.json").read_text().replace('"crs_wkt"', '"crs"').replace('"chunk"', '"chunks"')
            ),
            id="other layout",
        ),
        pytest.param(shutil.rmtree, id="gone"),
    ],
)
def test_a_damaged_store_is_a_store_error(store, damage):
    damage(store)
    with pytest.raises(StoreError, match=r"out\.zarr"):
        open_layout(store)
    window = Window(row_off=0, col_off=0, height=32, width=32)
    with pytest.raises(StoreError):
        write_block(store, window, make_arrays(window))


def test_a_foreign_group_is_neither_opened_nor_removed_nor_replaced(tmp_path):
    import zarr

    foreign = tmp_path / "foreign.zarr"
    zarr.create_group(foreign, attributes={"title": "not ours"})
    assert not is_store(foreign)
    with pytest.raises(StoreError, match="did not write"):
        open_layout(foreign)
    with pytest.raises(StoreError, match="no output of atrous"):
        create_store(foreign, make_layout())
    with pytest.raises(StoreError, match="will not be removed"):
        remove_store(foreign)
    assert (foreign / "zarr.json").is_file()


def test_a_store_is_not_created_over_another_and_can_be_removed(store):
    with pytest.raises(StoreError, match="already"):
        create_store(store, make_layout())
    remove_store(store)
    assert list(store.parent.iterdir()) == []


def test_a_parent_that_is_a_file_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create") as caught:
        create_store(tmp_path / "file" / "out.zarr", make_layout())
    assert isinstance(caught.value.__cause__, OSError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_array_that_is_not_there_is_a_store_error(store):
    with pytest.raises(StoreError, match="probabilities"):
        read_array(store, "probabilities", Window(row_off=0, col_off=0, height=1, width=1))
    with pytest.raises(WindowError, match="outside"):
        read_labels(store, Window(row_off=0, col_off=0, height=102, width=1))


@pytest.mark.parametrize("change", [{"height": 0}, {"chunk": 0}, {"shard": 48}, {"shard": 0}, {"classes": ()}], ids=str)
def test_a_layout_that_contradicts_itself_is_refused(change):
    with pytest.raises(SpecError):
        make_layout(**change)


@pytest.fixture
def calls(monkeypatch):
    """Record (operation, path) of every fsync and rename, in order."""
    record = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        record.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink()))
        real_fsync(handle)

    def replace(source, target):
        record.append(("replace", Path(target).resolve()))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return record


def test_each_file_is_synced_then_renamed_then_its_directories_are_synced(store, calls):
    window = Window(row_off=64, col_off=192, height=32, width=11)
    write_block(store, window, make_arrays(window))
    for name in ("labels", "confidence"):
        array = store / "0" / name
        mine = [(what, path) for what, path in calls if array in (path, *path.parents)]
        assert mine[0][0] == "fsync"
        assert mine[0][1].match("c/2/6.*.partial")
        assert mine[1:] == [
            ("replace", array / "c" / "2" / "6"),
            ("fsync", array / "c" / "2"),
            ("fsync", array / "c"),
            ("fsync", array),
        ]


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_no_partial_file_and_the_block_can_be_written_again(store, monkeypatch, failing_call, code):
    window = Window(row_off=64, col_off=192, height=37, width=11)
    arrays = make_arrays(window)
    n_calls, real = 0, os.fsync

    def fail_once(handle):
        nonlocal n_calls
        n_calls += 1
        if n_calls == failing_call:
            raise OSError(code, os.strerror(code))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_once)
        with pytest.raises(StoreError, match="cannot write") as caught:
            write_block(store, window, arrays)
    assert caught.value.__cause__.errno == code
    assert not list(store.rglob("*.partial"))
    assert len(write_block(store, window, arrays)) == 4
    np.testing.assert_array_equal(read_labels(store, window), arrays["labels"])


@pytest.mark.parametrize("failing_call", [1, 2, 7])
def test_a_failure_while_creating_leaves_nothing(tmp_path, monkeypatch, failing_call):
    n_calls = 0

    def fail_once(target, data):
        nonlocal n_calls
        n_calls += 1
        if n_calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        target.write_bytes(data)

    monkeypatch.setattr(durable_store, "replace_durably", fail_once)
    with pytest.raises(StoreError, match="free some space"):
        create_store(tmp_path / "out.zarr", make_layout())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_creation_is_never_found_under_the_final_name(tmp_path, monkeypatch):
    def die(_self, _target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        create_store(tmp_path / "out.zarr", make_layout())
    assert not (tmp_path / "out.zarr").exists()


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_a_store_error_and_earlier_chunks_stay(small_disk):
    path = small_disk / "out.zarr"
    create_store(path, make_layout(height=1024, width=1024, chunk=256))
    receipts = []

    def fill() -> None:
        for seed, window in enumerate(blocks(256, 1024, 1024)):
            receipts.extend(write_block(path, window, make_arrays(window, seed)))

    with pytest.raises(StoreError, match="free some space"):
        fill()
    assert len(receipts) >= 2
    assert not list(path.rglob("*.partial"))
    assert [check_receipt(path, receipt, level="crc") for receipt in receipts] == [None] * len(receipts)


@pytest.fixture
def read_only_disk(small_disk):
    path = small_disk / "out.zarr"
    create_store(path, make_layout())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return path


def test_a_read_only_disk_is_a_store_error_and_still_reads(read_only_disk):
    window = Window(row_off=0, col_off=0, height=32, width=32)
    with pytest.raises(StoreError, match="read-only"):
        write_block(read_only_disk, window, make_arrays(window))
    with pytest.raises(StoreError, match="read-only"):
        create_store(read_only_disk.with_name("other.zarr"), make_layout())
    assert (read_labels(read_only_disk, window) == 255).all()


def test_strays_of_killed_writers_are_removed(store):
    window = Window(row_off=0, col_off=0, height=32, width=32)
    receipts = write_block(store, window, make_arrays(window))
    (store / "0/labels/c/0/1.0123abcd.partial").write_bytes(b"torn")
    assert remove_partials(store) == 1
    assert [check_receipt(store, receipt) for receipt in receipts] == [None] * 2


def test_stores_that_killed_processes_were_making_or_removing_are_removed(store):
    for name in (f"out.zarr.{'0a' * 16}.partial", "out.zarr.mine.partial", f"other.zarr.{'0a' * 16}.partial"):
        (store.parent / name / "0").mkdir(parents=True)
    (store.parent / f"out.zarr.{'0b' * 16}.partial").write_text("a file is none")
    assert remove_partials(store) == 0
    left = {path.name for path in store.parent.iterdir()}
    assert left == {"out.zarr", "out.zarr.mine.partial", f"other.zarr.{'0a' * 16}.partial", f"out.zarr.{'0b' * 16}.partial"}


@pytest.mark.parametrize("name", ["out.zarr", "other.zarr"], ids=["of the same name", "of none"])
def test_a_block_goes_to_the_store_that_it_was_checked_for_and_to_no_later_one(store, name):
    window = Window(row_off=0, col_off=0, height=32, width=32)
    moved = store.with_name("moved.zarr")

    def take_the_place() -> None:
        store.rename(moved)
        create_store(store.with_name(name), make_layout())

    if name == "out.zarr":
        assert len(write_block(store, window, make_arrays(window), check_ours=take_the_place)) == 2
        assert (read_labels(store, window) == 255).all()
        assert (read_labels(moved, window) == make_arrays(window)["labels"]).all()
    else:
        with pytest.raises(StoreError, match="no Zarr group"):
            write_block(store, window, make_arrays(window), check_ours=take_the_place)


def test_a_store_that_is_removed_meanwhile_is_not_made_again(store):
    window = Window(row_off=0, col_off=0, height=32, width=32)

    def replace() -> None:
        remove_store(store)
        create_store(store, make_layout())

    with pytest.raises(StoreError, match="has no array"):
        write_block(store, window, make_arrays(window), check_ours=replace)
    assert not list(store.glob("0/labels/c/*"))


def test_a_directory_to_which_an_orphan_adds_a_file_is_removed_all_the_same(store, monkeypatch):
    window = Window(row_off=0, col_off=0, height=32, width=32)
    write_block(store, window, make_arrays(window))
    real, late = os.rmdir, ["0"]

    def rmdir(path, **given):
        if str(path) == "c" and late:
            handle = given["dir_fd"]
            os.close(os.open(f"/proc/self/fd/{handle}/c/{late.pop()}", os.O_CREAT | os.O_WRONLY))
        real(path, **given)

    monkeypatch.setattr(os, "rmdir", rmdir)
    remove_store(store)
    assert not late
    assert list(store.parent.iterdir()) == []


@pytest.mark.parametrize("failing_call", [1, 2, 30])
def test_a_new_store_whose_name_is_not_synced_is_none(tmp_path, monkeypatch, failing_call):
    n_calls, real = 0, os.fsync

    def fail_on(handle):
        nonlocal n_calls
        n_calls += 1
        if n_calls == failing_call or Path(f"/proc/self/fd/{handle}").readlink() == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", fail_on)
    with pytest.raises(StoreError, match="cannot create"):
        create_store(tmp_path / "out.zarr", make_layout())
    assert list(tmp_path.iterdir()) == []


def _write_one(path: Path, window: Window, seed: int):
    return write_block(path, window, make_arrays(window, seed))


def test_processes_write_neighbouring_chunks_of_one_array_at_once(store):
    windows = blocks(CHUNK)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        receipts = list(pool.map(_write_one, [store] * len(windows), windows, range(len(windows))))
    assert len({r.key for group in receipts for r in group}) == 2 * len(windows)
    for seed, window in enumerate(windows):
        np.testing.assert_array_equal(read_labels(store, window), make_arrays(window, seed)["labels"])
