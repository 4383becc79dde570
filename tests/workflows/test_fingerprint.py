"""Whatever decides the bytes is a named field: input, model, settings."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial

import numpy as np
import pytest
import zarr

from pipeline.crf.energy import CrfSpec
from pipeline.scene import SceneSpec, open_scene, scene_files
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch
from workflows import fingerprint
from workflows.fingerprint import hard_fields, soft_fields
from workflows.run_state import changed


def spec_of(path, **changes) -> SegmentSpec:
    given = {
        "scene": SceneSpec(uri=str(path), bands=(1, 2, 3)),
        "model_path": "model.safetensors",
        "model_sha256": "aa",
        "stretch": Stretch.identity(3),
        "grid": GridSpec(window_px=64, overlap_px=16, block_px=64),
        "output": OutputSpec(chunk_px=32),
        "crf": CrfSpec(),
    }
    return SegmentSpec(**{**given, **changes})


def fields_of(path, **changes) -> dict:
    spec = spec_of(path, **changes)
    with open_scene(dataclasses.replace(spec.scene, bands=None)) as opened:
        return hard_fields(spec, opened.info)


OTHERS = {
    "shard_px": 128,
    "compatibility": ((0.0, 2.0), (2.0, 0.0)),
    "guide_bands": (2, 1),
    "backend": "torch",
    "skip_above": 0.75,
}
"""Other values for fields whose next best value is not allowed."""


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2
    return value + 0.5 if isinstance(value, float) else "exact"


def settings():
    for name, spec in {"grid": spec_of("x").grid, "output": OutputSpec(chunk_px=32, shard_px=64), "crf": CrfSpec()}.items():
        for field in dataclasses.fields(spec):
            yield pytest.param(name, spec, field.name, id=f"{name}.{field.name}")


@pytest.fixture
def scene(raster):
    return raster(height=40, width=50)


@pytest.mark.parametrize(("part", "value", "field"), list(settings()))
def test_every_setting_changes_the_field_of_its_name(scene, part, value, field):
    base = {part: value}
    if part == "output":
        base["grid"] = GridSpec(window_px=64, overlap_px=16, block_px=128)
    changed_value = OTHERS.get(field) or other_value(getattr(value, field))
    other = {**base, part: dataclasses.replace(value, **{field: changed_value})}
    difference = changed(fields_of(scene, **base), fields_of(scene, **other))
    assert list(difference) == [f"{part}.{field}"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model_sha256": "bb"}, ["model.sha256"]),
        ({"model_path": "elsewhere.safetensors"}, []),
        ({"stretch": Stretch(low=(0.0, 0.0, 1.0), high=(255.0,) * 3)}, ["stretch.low"]),
        ({"stretch": Stretch(low=(0.0,) * 3, high=(255.0, 255.0, 250.0))}, ["stretch.high"]),
    ],
    ids=["model", "path of the model", "low", "high"],
)
def test_model_and_stretch(scene, changes, names):
    assert list(changed(fields_of(scene), fields_of(scene, **changes))) == names


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"bands": (3, 2, 1)}, ["input.bands"]),
        ({"nodata": 7.0}, ["input.header.nodata", "input.header.mask_kind", "input.nodata"]),
        ({"on_read_error": "nodata"}, ["input.on_read_error"]),
        ({"allow_vrt": True}, []),
        ({"max_pixels": 10**6}, []),
    ],
    ids=["bands", "nodata", "on_read_error", "allow_vrt", "max_pixels"],
)
def test_what_is_read_of_the_scene(scene, change, names):
    other = dataclasses.replace(spec_of(scene).scene, **change)
    assert sorted(changed(fields_of(scene), fields_of(scene, scene=other))) == sorted(names)


def test_without_crf_is_another_run(scene):
    names = list(changed(fields_of(scene), fields_of(scene, crf=None)))
    assert "crf" in names
    assert all(name.startswith("crf") for name in names)


def test_a_matrix_and_bands_are_named_with_their_values(scene):
    crf = CrfSpec(compatibility=((0, 1), (1, 0)), guide_bands=(3,))
    fields = json.loads(json.dumps(fields_of(scene, crf=crf), allow_nan=False))
    assert fields["crf.compatibility"] == [[0.0, 1.0], [1.0, 0.0]]
    assert fields["crf.guide_bands"] == [3]
    assert not changed(fields, fields_of(scene, crf=crf)), "also after it was read back"


def test_the_algorithm_has_a_version(scene, monkeypatch):
    before = fields_of(scene)
    monkeypatch.setattr(fingerprint, "ALGORITHM_VERSION", fingerprint.ALGORITHM_VERSION + 1)
    assert list(changed(before, fields_of(scene))) == ["algorithm_version"]


def test_fields_survive_strict_json_also_with_nan_as_nodata(raster):
    scene = raster(height=20, width=20, dtype="float32", nodata=float("nan"))
    asked = SceneSpec(uri=str(scene), bands=(1, 2, 3), nodata=float("nan"))
    fields = fields_of(scene, scene=asked)
    assert changed(json.loads(json.dumps(fields, allow_nan=False)), fields) == {}


def touch_back(path, before) -> None:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("offset", [0, 1000, 200_000, 3_333_333, -1], ids=str)
def test_one_byte_in_a_sampled_place_is_seen(tmp_path, offset):
    path = tmp_path / "raw"
    size = 4_000_000
    path.write_bytes(bytes(size))
    before, identity = path.stat(), fingerprint._file_identity([path])
    places = np.unique(np.linspace(0, size - 65536, 16).astype(int))
    sampled = any(place <= offset % size < place + 65536 for place in places)
    with path.open("r+b") as file:
        file.seek(offset % size)
        file.write(b"\x01")
    touch_back(path, before)
    assert list(changed(identity, fingerprint._file_identity([path]))) == (["sample_sha256"] if sampled else [])


def test_every_byte_of_a_small_file_is_sampled(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(300))
    before, identity = path.stat(), fingerprint._file_identity([path])
    for offset in (0, 150, 299):
        data = bytearray(300)
        data[offset] = 1
        path.write_bytes(data)
        touch_back(path, before)
        assert list(changed(identity, fingerprint._file_identity([path]))) == ["sample_sha256"]


def test_size_and_time_are_seen(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(300))
    before, identity = path.stat(), fingerprint._file_identity([path])
    path.write_bytes(bytes(301))
    touch_back(path, before)
    assert set(changed(identity, fingerprint._file_identity([path]))) == {"size_bytes", "sample_sha256"}
    path.write_bytes(bytes(300))
    os.utime(path, ns=(1, 1))
    assert list(changed(identity, fingerprint._file_identity([path]))) == ["mtime_ns"]


def test_a_zarr_scene_is_known_by_its_files(tmp_path):
    path = tmp_path / "scene.zarr"
    array = zarr.create_array(path, shape=(3, 40, 50), chunks=(3, 16, 16), dtype="uint8")
    array[:] = np.arange(6000, dtype=np.uint8).reshape(3, 40, 50)
    files = partial(scene_files, SceneSpec(uri=str(path)))
    identity = fingerprint._file_identity(files())
    assert identity["size_bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert fingerprint._file_identity(files()) == identity
    chunk = next(file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "zarr.json")
    before, data = chunk.stat(), bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    touch_back(chunk, before)
    assert list(changed(identity, fingerprint._file_identity(files()))) == ["sample_sha256"]
    chunk.unlink()
    assert {"size_bytes", "sample_sha256"} <= set(changed(identity, fingerprint._file_identity(files())))


def test_soft_fields_name_device_precision_and_versions(scene, execution):
    engine = execution().engine
    base = soft_fields(spec_of(scene), engine)
    assert base["device"] == "cpu"
    assert {"version.torch", "version.zarr", "machine", "input.uri"} <= set(base)
    precise = dataclasses.replace(engine, precision="bf16")
    assert changed(base, soft_fields(spec_of(scene), precise)) == {"precision": ("fp32", "bf16")}
    assert soft_fields(spec_of(scene), dataclasses.replace(engine, threads=7)) == base
