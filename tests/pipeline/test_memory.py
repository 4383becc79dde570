"""The bound of a worker's memory: every term holds for every block, names its knob, and does not grow with the scene."""

import dataclasses

import pytest
from factories import tiny_model_spec

from pipeline.crf.energy import CrfSpec
from pipeline.errors import MemoryBudgetError
from pipeline.georef import Georef
from pipeline.grid import Blocks
from pipeline.locate import locate
from pipeline.memory import MemoryBound, MemoryTerm, bound, seen_windows_bytes
from pipeline.network.footprint import largest_kernel_bytes, parameter_bytes
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneInfo, SceneSpec
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch

MODEL = tiny_model_spec(n_classes=5)


def scene_of(height, width, *, dtype="uint16"):
    return SceneInfo(
        driver="GTiff",
        height=height,
        width=width,
        n_bands=3,
        dtype=dtype,
        nodata=None,
        mask_kind="none",
        georef=Georef(crs_wkt=None, transform=None),
        block_shape=(256, 256),
        random_access=True,
        band_names=("1", "2", "3"),
    )


def spec_of(*, block=1024, window=256, overlap=64, crf=None, probabilities=False):
    return SegmentSpec(
        scene=SceneSpec(uri="a.tif", bands=(1, 2, 3)),
        model_path="m",
        model_sha256="0" * 64,
        stretch=Stretch.identity(3),
        grid=GridSpec(window_px=window, overlap_px=overlap, block_px=block),
        crf=crf,
        output=OutputSpec(chunk_px=64, probabilities=probabilities),
    )


def terms_of(spec, scene, *, n_at_once=1):
    return {term.name: term.n_bytes for term in bound(spec, scene, MODEL, n_at_once=n_at_once).terms}


CRF = CrfSpec(theta_alpha=20.0, tile_px=200)


@pytest.mark.parametrize("crf", [None, CRF])
@pytest.mark.parametrize(("block", "window", "overlap"), [(1024, 256, 64), (320, 256, 64), (64, 256, 16), (448, 128, 0)])
def test_no_block_needs_more_than_the_bound_says(block, window, overlap, crf):
    spec, scene = spec_of(block=block, window=window, overlap=overlap, crf=crf), scene_of(4001, 3003)
    terms = terms_of(spec, scene)
    for index in list(Blocks(shape=scene.shape, block_px=block))[:: max(1, block // 64 % 7)]:
        windows = locate(index, shape=scene.shape, spec=spec)
        assert windows.read.n_pixels * (3 * 2 + 1) <= terms["pixels read"]
        if crf is None:
            assert windows.predict.n_pixels * 4 * 5 <= terms["block probabilities"]
        else:
            assert len(windows.network) * (window // 4) ** 2 * 4 * 5 <= terms["block scores"]
        assert windows.write.n_pixels * 2 <= terms["labels and chunks"]


def test_the_read_window_is_that_of_the_worst_block_not_of_the_first_ones():
    """Blocks of 4096 px and windows every 768 px come into the same phase again after three blocks."""
    spec, scene = spec_of(block=4096, window=1024, overlap=256), scene_of(4096, 40_960)
    reads = [locate((0, col), shape=scene.shape, spec=spec).read for col in range(10)]
    assert max(read.width for read in reads) > max(read.width for read in reads[:2])
    assert terms_of(spec, scene)["pixels read"] >= 2 * max(read.n_pixels for read in reads) * 7


@pytest.mark.parametrize("crf", [None, CRF])
def test_the_bound_does_not_grow_with_the_scene(crf):
    """Once it is larger than 38,400 px, after which blocks, windows and CRF tiles meet in the same way again."""
    spec = spec_of(block=512, window=256, overlap=64, crf=crf)
    one, another = (bound(spec, scene_of(*shape), MODEL, n_at_once=1) for shape in [(40_000, 40_000), (200_000, 90_000)])
    assert one.terms == another.terms


def test_windows_kept_on_disk_grow_with_the_width_of_the_scene_and_have_a_limit():
    spec = spec_of(block=512, window=256, overlap=64)
    n_bytes = [seen_windows_bytes(spec, scene_of(40_000, width), MODEL) for width in (40_000, 80_000, 10**8)]
    assert n_bytes[1] == pytest.approx(2 * n_bytes[0], rel=0.01)
    assert n_bytes[2] == 4 * 2**30
    assert seen_windows_bytes(spec, scene_of(500, 500), MODEL) == 0, "one block"


def test_a_small_scene_needs_less():
    spec = spec_of(block=1024, crf=CRF)
    small, large = terms_of(spec, scene_of(90, 110)), terms_of(spec, scene_of(9000, 9000))
    assert small["block scores"] < large["block scores"] / 5, "by windows"
    assert small["CRF tile"] < large["CRF tile"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        pytest.param({"block": 512}, ["pixels read", "block scores", "labels and chunks"], id="block"),
        pytest.param({"window": 128}, ["network activations", "windows in flight"], id="window"),
        pytest.param({"crf": dataclasses.replace(CRF, tile_px=100)}, ["CRF tile"], id="CRF tile"),
        pytest.param({"crf": dataclasses.replace(CRF, theta_alpha=5.0)}, ["CRF tile"], id="theta_alpha"),
    ],
)
def test_each_knob_lowers_its_terms(changes, names):
    before = terms_of(spec_of(crf=CRF), scene_of(9000, 9000))
    after = terms_of(spec_of(**{"crf": CRF, **changes}), scene_of(9000, 9000))
    assert all(after[name] < before[name] for name in names)


def test_scores_are_kept_where_they_are_less_than_the_probabilities_and_a_crf_follows():
    scene, several = scene_of(9000, 9000), MultiScaleSpec(scales=(0.5, 1.5))
    alone, refined = terms_of(spec_of(), scene), terms_of(spec_of(crf=CRF), scene)
    at_pixels = terms_of(dataclasses.replace(spec_of(crf=CRF), multiscale=several), scene)
    assert "block scores" not in alone
    assert "block scores" not in at_pixels
    assert refined["block scores"] < at_pixels["block probabilities"] / 4


def test_windows_cost_as_many_times_as_run_at_once():
    one, four = (terms_of(spec_of(), scene_of(9000, 9000), n_at_once=n) for n in (1, 4))
    for name in ("network activations", "windows in flight"):
        assert four[name] == pytest.approx(4 * one[name], rel=1e-6)
    assert four["pixels read"] == one["pixels read"]


def test_scales_and_weights_cost_memory():
    several = dataclasses.replace(spec_of(), multiscale=MultiScaleSpec(scales=(0.5, 1.5)))
    one, more = terms_of(spec_of(), scene_of(9000, 9000)), terms_of(several, scene_of(9000, 9000))
    assert more["network activations"] > 1.5**2 * one["network activations"]
    assert largest_kernel_bytes(MODEL.network) == 4 * 960 * 320, "the last projection of MobileNetV2"
    assert one["process"] > 2 * parameter_bytes(MODEL.network) + largest_kernel_bytes(MODEL.network)


def test_wider_pixels_and_kept_probabilities_cost_more():
    assert terms_of(spec_of(), scene_of(9000, 9000, dtype="float64"))["pixels read"] == pytest.approx(
        terms_of(spec_of(), scene_of(9000, 9000, dtype="uint8"))["pixels read"] * 25 / 4
    )
    kept = terms_of(spec_of(probabilities=True), scene_of(9000, 9000))["labels and chunks"]
    assert kept >= terms_of(spec_of(), scene_of(9000, 9000))["labels and chunks"] + 1024 * 1024 * 5


def test_the_crf_has_terms_of_its_own():
    without, with_crf = terms_of(spec_of(), scene_of(9000, 9000)), terms_of(spec_of(crf=CRF), scene_of(9000, 9000))
    assert with_crf.keys() - without.keys() == {"CRF tile", "block scores"}


def test_the_total_is_the_sum_and_the_largest_comes_first():
    found = bound(spec_of(crf=CRF), scene_of(9000, 9000), MODEL, n_at_once=2)
    sizes = [term.n_bytes for term in found.terms]
    assert found.total_bytes == sum(sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0


# --- check

GIB = 2**30
BOUND = MemoryBound(
    terms=(
        MemoryTerm(name="process", n_bytes=4 * GIB, knob=""),
        MemoryTerm(name="pixels read", n_bytes=3 * GIB, knob="use a smaller --block (now 4096)"),
        MemoryTerm(name="CRF tile", n_bytes=GIB, knob="use a smaller theta_alpha"),
    )
)


def test_a_block_that_fits_is_let_through():
    BOUND.check(8 * GIB)


def test_a_block_that_does_not_fit_is_refused_with_the_largest_term_that_can_be_changed():
    with pytest.raises(
        MemoryBudgetError, match=r"needs 8\.0 GiB.*has 8\.0 GiB.*pixels read with 3\.00 GiB: use a smaller --block"
    ):
        BOUND.check(8 * GIB - 1)


def test_a_real_bound_names_a_knob_too():
    with pytest.raises(MemoryBudgetError, match=r"use a smaller --(block|window) \(now \d+\)"):
        bound(spec_of(), scene_of(9000, 9000), MODEL, n_at_once=1).check(100 * 2**20)
