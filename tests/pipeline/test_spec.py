"""Specs survive their round trip, have one digest, and say what is wrong with a setting."""

import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SpecError
from pipeline.json_digest import json_digest
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneSpec
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch

SPEC = SegmentSpec(
    scene=SceneSpec(uri="scene.tif", bands=(3, 1), nodata=7.0),
    model_path="m.safetensors",
    model_sha256="ab" * 32,
    stretch=Stretch(low=(0.0, 1.5), high=(255.0, 99.0)),
    grid=GridSpec(window_px=512, overlap_px=64, block_px=2048),
    crf=CrfSpec(),
    output=OutputSpec(chunk_px=512, shard_px=1024),
)


@st.composite
def segment_specs(draw):
    finite = st.floats(1e-3, 1e3)
    n_bands = draw(st.integers(1, 4))
    window = draw(st.integers(32, 4096))
    chunk = draw(st.integers(16, 2048))
    shard = draw(st.none() | st.integers(1, 5).map(lambda n: n * chunk))
    lows = draw(st.lists(finite, min_size=n_bands, max_size=n_bands))
    share = st.floats(0, 0.5)
    crf = st.builds(
        CrfSpec,
        theta_alpha=finite,
        theta_beta=finite,
        w_smoothness=finite,
        n_steps=st.integers(1, 20),
        compatibility=st.none() | finite.map(lambda cost: ((0.0, cost), (cost, 0.5))),
        guide_bands=st.none() | st.lists(st.integers(1, 9), unique=True).map(tuple),
        backend=st.sampled_from(["cpu", "torch"]),
        stop_below=share,
        absent_below=share,
    )
    return SegmentSpec(
        scene=SceneSpec(
            uri=draw(st.text(min_size=1)),
            bands=tuple(draw(st.lists(st.integers(1, 9), min_size=n_bands, max_size=n_bands))),
            nodata=draw(st.none() | finite | st.just(math.inf)),
        ),
        model_path="m.safetensors",
        model_sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        stretch=Stretch(low=tuple(lows), high=tuple(low + 1 for low in lows)),
        grid=GridSpec(
            window_px=window,
            overlap_px=draw(st.integers(0, window - 1)),
            blend=draw(st.sampled_from(["taper", "exact"])),
            block_px=draw(st.integers(1, 4)) * (shard or chunk),
        ),
        crf=draw(st.none() | crf),
        output=OutputSpec(chunk_px=chunk, shard_px=shard, probabilities=draw(st.booleans())),
    )


@given(segment_specs())
def test_a_spec_survives_its_round_trip_through_json(spec):
    assert SegmentSpec.from_dict(spec.to_dict()) == spec
    back = SegmentSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec
    assert back.digest() == spec.digest()
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_nan_as_nodata_keeps_its_digest():
    spec = dataclasses.replace(SPEC, scene=SceneSpec(uri="a.tif", nodata=math.nan))
    assert SegmentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).digest() == spec.digest()


CHANGES = [
    ("scene", {"uri": "other.tif"}),
    ("scene", {"bands": (1, 3)}),
    ("scene", {"nodata": None}),
    ("scene", {"max_pixels": 5}),
    ("scene", {"on_read_error": "nodata"}),
    ("scene", {"allow_vrt": True}),
    (None, {"model_path": "other.safetensors"}),
    (None, {"model_sha256": "cd" * 32}),
    ("stretch", {"low": (0.0, 1.25)}),
    ("stretch", {"high": (254.0, 99.0)}),
    ("grid", {"window_px": 640}),
    ("grid", {"overlap_px": 32}),
    ("grid", {"blend": "exact"}),
    ("grid", {"block_px": 1024}),
    ("multiscale", {"scales": (0.5, 1.0)}),
    ("multiscale", {"flip": True}),
    ("multiscale", {"fusion": "max"}),
    (None, {"image_pooling": "global"}),
    (None, {"scene_means": ((0.5, 1.0),)}),
    (None, {"crf": None}),
    ("crf", {"theta_alpha": 66.0}),
    ("crf", {"theta_beta": 3.5}),
    ("crf", {"theta_gamma": 1.5}),
    ("crf", {"w_appearance": 5.0}),
    ("crf", {"w_smoothness": 2.0}),
    ("crf", {"n_steps": 9}),
    ("crf", {"tile_px": 512}),
    ("crf", {"compatibility": ((0.0, 1.0), (1.0, 0.0))}),
    ("crf", {"guide_bands": (1,)}),
    ("crf", {"backend": "torch"}),
    ("crf", {"stop_below": 0.01}),
    ("crf", {"absent_below": 0.01}),
    ("crf", {"skip_above": 0.99}),
    (None, {"probabilities_from": "earlier.zarr"}),
    (None, {"probabilities_sha256": "ef" * 32}),
    ("output", {"chunk_px": 256}),
    ("output", {"shard_px": None}),
    ("output", {"probabilities": True}),
]


@pytest.mark.parametrize(("part", "change"), CHANGES, ids=str)
def test_every_setting_changes_the_digest(part, change):
    if part is not None:
        change = {part: dataclasses.replace(getattr(SPEC, part), **change)}
    assert dataclasses.replace(SPEC, **change).digest() != SPEC.digest()


def test_the_table_of_changes_misses_no_setting():
    parts = {
        "scene": SceneSpec,
        "stretch": Stretch,
        "grid": GridSpec,
        "multiscale": MultiScaleSpec,
        "crf": CrfSpec,
        "output": OutputSpec,
    }
    named = {(part, name) for part, change in CHANGES for name in change}
    expected = {(part, f.name) for part, kind in parts.items() for f in dataclasses.fields(kind)}
    expected |= {(None, f.name) for f in dataclasses.fields(SegmentSpec) if f.name not in parts} | {(None, "crf")}
    assert named == expected


def test_a_digest_is_64_digits_and_the_same_in_every_process():
    assert json_digest({"b": [1, 2.5], "a": None}) == json_digest({"a": None, "b": (1, 2.5)})
    assert json_digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"blend": "mean"}, r"blend 'mean'.*taper, exact", id="blend"),
        pytest.param({"window_px": 31}, r"31 px.*at least 32", id="window"),
        pytest.param({"window_px": 64, "overlap_px": 64}, r"overlap of 64 px.*window of 64 px.*0 and 63", id="overlap"),
        pytest.param({"overlap_px": -1}, r"overlap of -1 px", id="negative overlap"),
        pytest.param({"block_px": 0}, r"block of 0 px", id="block"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        GridSpec(**settings)


def test_the_step_is_what_two_windows_do_not_share():
    assert GridSpec(window_px=1024, overlap_px=256).step_px == 768


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"chunk_px": 15}, r"chunk of 15 px.*at least 16", id="chunk"),
        pytest.param({"chunk_px": 64, "shard_px": 96}, r"shard of 96 px.*multiple of the chunk of 64 px", id="shard"),
        pytest.param({"chunk_px": 64, "shard_px": 0}, r"shard of 0 px", id="no shard"),
        pytest.param({"chunk_px": 64, "shard_px": -64}, r"shard of -64 px", id="negative shard"),
    ],
)
def test_an_output_that_cannot_be_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        OutputSpec(**settings)


@pytest.mark.parametrize(("shard", "unit"), [(None, 64), (192, 192)])
def test_the_write_unit_is_the_shard_where_there_is_one(shard, unit):
    assert OutputSpec(chunk_px=64, shard_px=shard).write_unit_px == unit


@pytest.mark.parametrize(
    ("block", "output", "message"),
    [
        pytest.param(1000, OutputSpec(chunk_px=512), r"1000 px.*chunk of 512 px.*--block 512$", id="chunk"),
        pytest.param(1600, OutputSpec(chunk_px=256, shard_px=512), r"1600 px.*shard of 512 px.*--block 1536$", id="shard"),
        pytest.param(100, OutputSpec(chunk_px=512), r"--block 512$", id="smaller than a chunk"),
    ],
)
def test_two_blocks_never_share_a_file(block, output, message):
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(SPEC, grid=dataclasses.replace(SPEC.grid, block_px=block), output=output)
