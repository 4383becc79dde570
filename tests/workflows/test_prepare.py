"""What a person typed is checked against the headers of scene and model before anything is begun."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.crf import pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.crf.presets import PRESETS
from pipeline.errors import MissingDependencyError, SourceError, SpecError, UnknownModelError
from pipeline.network.model_file import copy_with_spec, file_sha256, read_model_spec
from pipeline.network.receptive_field import margin_px
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch
from workflows.choose_grid import GridRequest
from workflows.crf_request import CrfRequest
from workflows.prepare import prepare, reopen


def test_the_first_bands_are_taken(raster, request_for, model):
    prepared = prepare(request_for(raster(bands=5)))
    assert prepared.spec.scene.bands == (1, 2, 3)
    assert prepared.scene.n_bands == 5
    assert prepared.spec.model_sha256 == file_sha256(model)
    assert prepared.spec.stretch == Stretch.identity(3)


def test_bands_are_taken_in_the_order_asked_for(raster, request_for):
    assert prepare(request_for(raster(bands=5), bands=(5, 1, 1))).spec.scene.bands == (5, 1, 1)


@pytest.mark.parametrize("bands", [1, 2])
def test_too_few_bands_name_those_that_are_needed(raster, request_for, bands):
    with pytest.raises(SourceError) as caught:
        prepare(request_for(raster(bands=bands)))
    text = str(caught.value)
    assert f"has {bands} band{'s' * (bands > 1)} (" in text
    assert "the model tiny needs 3: red, green, blue" in text
    assert "--bands 1,1,1" in text


def test_one_band_may_be_repeated(raster, request_for):
    assert prepare(request_for(raster(bands=1), bands=(1, 1, 1))).spec.scene.bands == (1, 1, 1)


@pytest.mark.parametrize("bands", [(1,), (1, 2, 3, 4)], ids=str)
def test_as_many_bands_as_the_model_has(raster, request_for, bands):
    with pytest.raises(SpecError, match=f"names {len(bands)} bands; the model tiny needs 3"):
        prepare(request_for(raster(bands=5), bands=bands))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("stretch", [None, (0.0, 255.0)], ids=["own", "given"])
def test_bands_that_the_scene_lacks_are_found_before_the_first_block(raster, request_for, dtype, stretch):
    with pytest.raises(SourceError, match=r"band 9 .* was asked for; it has bands 1 to 3"):
        prepare(request_for(raster(dtype=dtype), bands=(1, 2, 9), stretch=stretch))


def test_sixteen_bits_are_stretched_by_percentiles(raster, request_for):
    ramp = np.linspace(1000, 3000, 100 * 120).reshape(100, 120).astype(np.uint16)
    prepared = prepare(request_for(raster(pixels=np.stack([ramp, ramp + 1000, ramp * 2]))))
    assert prepared.spec.stretch.low == pytest.approx((1040, 2040, 2080), abs=2)
    assert prepared.spec.stretch.high == pytest.approx((2960, 3960, 5920), abs=2)


def test_a_stretch_that_was_asked_for_holds_for_all_bands(raster, request_for):
    prepared = prepare(request_for(raster(dtype="uint16"), stretch=(10, 4000)))
    assert prepared.spec.stretch == Stretch(low=(10,) * 3, high=(4000,) * 3)


@pytest.mark.parametrize("stretch", [(5, 5), (6, 5)], ids=str)
def test_a_stretch_that_does_not_rise_is_refused(raster, request_for, stretch):
    with pytest.raises(SpecError, match="the first value must be below the second"):
        prepare(request_for(raster(), stretch=stretch))


def test_exact_fills_in_the_overlap_that_the_network_needs(raster, request_for, model):
    margin = margin_px(read_model_spec(model).network)
    window = 4 * margin
    assert window % 16 == 0
    grid = GridRequest(window_px=window, block_px=64, blend="exact")
    scene = raster()
    prepared = prepare(request_for(scene, grid=grid))
    assert prepared.spec.grid == GridSpec(window_px=window, overlap_px=2 * margin, block_px=64, blend="exact")
    with pytest.raises(SpecError, match=f"use --overlap {2 * margin}"):
        prepare(request_for(scene, grid=dataclasses.replace(grid, overlap_px=32)))


def test_exact_is_refused_where_the_window_is_too_small(raster, request_for):
    grid = GridRequest(window_px=64, block_px=64, blend="exact")
    with pytest.raises(SpecError, match=r"sees .* px to each side"):
        prepare(request_for(raster(), grid=grid))


def test_exact_is_refused_for_a_model_that_pools_over_its_window(raster, request_for, monkeypatch):
    monkeypatch.setattr("workflows.prepare.margin_px", lambda *_: None)
    grid = GridRequest(window_px=64, block_px=64, blend="exact")
    with pytest.raises(SpecError, match="image-level pooling"):
        prepare(request_for(raster(), grid=grid))


@pytest.mark.parametrize(("window", "overlap"), [(72, 16), (64, 15)])
def test_windows_fit_the_output_stride(raster, request_for, window, overlap):
    grid = GridSpec(window_px=window, overlap_px=overlap, block_px=64)
    with pytest.raises(SpecError, match="multiples of 16"):
        prepare(request_for(raster(), grid=grid))


def test_a_block_is_a_multiple_of_the_chunk(raster, request_for):
    with pytest.raises(SpecError, match="try --block 96"):
        prepare(request_for(raster(), block=100))
    with pytest.raises(SpecError, match="multiple of the shard of 96 px"):
        prepare(request_for(raster(), output=OutputSpec(chunk_px=32, shard_px=96)))


def test_unknown_models_and_missing_scenes(tmp_path, raster, request_for):
    with pytest.raises(UnknownModelError, match="did you mean"):
        prepare(request_for(raster(), model="dubai-mobilenetv3"))
    with pytest.raises(SourceError, match="does not exist"):
        prepare(request_for(tmp_path / "nothing.tif"))


def test_the_crf_is_missed_before_anything_else(tmp_path, request_for, monkeypatch):
    monkeypatch.setattr(pydensecrf, "dcrf", None)
    with pytest.raises(MissingDependencyError, match=r"atrous\[crf\]"):
        prepare(request_for(tmp_path / "nothing.tif", crf=CrfSpec(backend="pydensecrf")))


def test_a_resume_sees_the_same_as_the_first_call(raster, request_for):
    prepared = prepare(request_for(raster(dtype="uint16", nodata=0), crf=CrfSpec()))
    kept = SegmentSpec.from_dict(prepared.spec.to_dict())
    assert reopen(kept) == dataclasses.replace(prepared, crf_origin=None)


@pytest.mark.parametrize("crf", [CrfSpec(guide_bands=(4,)), CrfRequest(changes={"guide_bands": (4,)})], ids=["spec", "request"])
def test_a_crf_for_another_model_is_refused(raster, request_for, crf):
    with pytest.raises(SpecError, match=r"guide_bands = 4 .*the model has 3 band\(s\)"):
        prepare(request_for(raster(bands=5), crf=crf))


def test_a_crf_by_preset_becomes_values(raster, request_for):
    prepared = prepare(request_for(raster(), crf=CrfRequest(preset="v1", changes={"n_steps": 4}, backend="torch")))
    assert prepared.spec.crf == dataclasses.replace(PRESETS["v1"].crf, n_steps=4, backend="torch")
    assert prepared.crf_origin == "preset v1, with other n_steps"


@pytest.mark.parametrize(
    ("crf", "grid", "tile_px"),
    [
        pytest.param(CrfRequest(), GridRequest(), 2048, id="open"),
        pytest.param(CrfRequest(), GridRequest(block_px=2048), 2048, id="block of one tile"),
        pytest.param(CrfRequest(), GridRequest(block_px=3072), 1024, id="block that would share tiles"),
        pytest.param(CrfRequest(), GridRequest(block_px=512), 1024, id="small blocks"),
        pytest.param(CrfRequest(backend="torch"), GridRequest(), 1024, id="torch"),
        pytest.param(CrfRequest(changes={"tile_px": 1024}), GridRequest(), 1024, id="asked for"),
        pytest.param(CrfRequest(tile_px=1024), GridRequest(), 1024, id="begun"),
        pytest.param(CrfSpec(), GridRequest(), 1024, id="value by value"),
    ],
)
def test_crf_tiles_are_large_where_nothing_speaks_against_it(raster, request_for, crf, grid, tile_px):
    spec = prepare(request_for(raster(), crf=crf, grid=grid)).spec
    assert spec.crf.tile_px == tile_px
    assert grid.block_px or spec.grid.block_px == 4096


def test_a_tile_size_that_a_model_names_stays(other_model, raster, request_for):
    model = dataclasses.replace(read_model_spec(other_model), crf=CrfSpec(tile_px=512))
    named = other_model.with_name("named.safetensors")
    copy_with_spec(other_model, named, model)
    prepared = prepare(request_for(raster(), model=str(named), crf=CrfRequest()))
    assert prepared.spec.crf.tile_px == 512
    assert not any(sentence.startswith("CRF tile") for sentence in prepared.reasons)  # nobody chose


@pytest.mark.parametrize(("largest", "tile_px", "block_px"), [((2048, 2048), 2048, 2048), ((1024, 4096), 1024, 4096)])
def test_where_memory_is_short_blocks_become_smaller_then_crf_tiles_and_then_windows(
    raster, request_for, largest, tile_px, block_px
):
    def fits(spec, *_):
        return (spec.crf.tile_px, spec.grid.block_px) <= largest

    prepared = prepare(request_for(raster(), grid=GridRequest(), crf=CrfRequest()), fits=fits)
    assert (prepared.spec.crf.tile_px, prepared.spec.grid.block_px) == (tile_px, block_px)
    said = [sentence for sentence in prepared.reasons if "memory is short" in sentence]
    assert len(said) == 1
    assert said[0].startswith("block 2048" if tile_px == 2048 else "CRF tile 1024 px: with its halo 1.66 times")


def test_windows_become_smaller_only_after_crf_tiles(raster, request_for):
    tried = []

    def fits(spec, *_):
        tried.append((spec.crf.tile_px, spec.grid.window_px))
        return False

    prepare(request_for(raster(height=3000, width=3000), grid=GridRequest(), crf=CrfRequest()), fits=fits)
    windows = [window for _, window in tried]
    assert windows == sorted(windows, reverse=True)
    assert windows[-1] < windows[0]
    assert all(tile == 1024 for tile, window in tried if window < windows[0])


def test_a_resume_sees_a_changed_model(raster, request_for, other_model):
    prepared = prepare(request_for(raster()))
    assert reopen(dataclasses.replace(prepared.spec, model_path=str(other_model))).spec.model_sha256 != prepared.spec.model_sha256
