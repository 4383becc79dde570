"""What is chosen for a scene: windows that cover it with little left over, within the memory, on the network's stride."""

import pytest
from factories import tiny_model_spec

from pipeline.blend import check_grid
from pipeline.errors import SpecError
from pipeline.grid import Lattice
from pipeline.network.model_file import read_model_spec
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.receptive_field import margin_px
from pipeline.network.scales import check_scales
from pipeline.network.spec import MultiScaleSpec
from pipeline.network.variants import variant, variant_names
from pipeline.spec import GridSpec, OutputSpec
from workflows.choose_grid import GridRequest, complete, coverage, smaller_ones
from workflows.prepare import prepare

SHIPPED = read_model_spec(resolve_model(DEFAULT_MODEL)).network
ONE = MultiScaleSpec()


def chosen(shape, *, network=SHIPPED, multiscale=ONE, unit=1024, **asked):
    return complete(GridRequest(**asked), shape=shape, network=network, multiscale=multiscale, block_unit_px=unit)


@pytest.mark.parametrize("shape", [(4092, 8184), (4092, 81840), (32768, 32768), (60000, 60000)], ids=str)
def test_a_large_scene_is_covered_at_most_1_35_times_by_the_shipped_model(shape):
    grid = chosen(shape)
    assert coverage(shape, window_px=grid.window_px, overlap_px=grid.overlap_px) <= 1.35
    assert 1024 <= grid.window_px <= 2304
    assert (grid.overlap_px, grid.block_px) == (256, 4096)


def test_a_window_is_no_larger_than_its_number_needs():
    assert chosen((4096, 8192)).window_px == 2240, "2 x 2240 - 256 rows, 4 x 2240 - 3 x 256 columns: just the scene"


def test_a_window_stays_larger_where_blocks_would_see_more_of_smaller_ones():
    shape, smaller = (30_000, 40_000), 2256
    grid = chosen(shape)
    counts = [
        (lattice.n_rows, lattice.n_cols)
        for px in (grid.window_px, smaller)
        for lattice in [Lattice(shape=shape, size_px=px, step_px=px - grid.overlap_px)]
    ]
    assert counts[0] == counts[1], "so many cover the scene as well"
    assert grid.window_px == 2304, "two steps are a block: fewer windows lie on the edges of blocks"


@pytest.mark.parametrize("name", variant_names())
@pytest.mark.parametrize("shape", [(100, 300), (4000, 7000)], ids=str)
def test_every_variant_can_run_on_what_is_chosen_for_it(name, shape):
    one = variant(name)
    grid = chosen(shape, network=one.network, multiscale=one.multiscale)
    check_grid(grid, output_stride=one.network.output_stride, margin_px=None, alignment=one.network.alignment)
    check_scales(
        one.multiscale, window_px=grid.window_px, step_px=grid.step_px, output_stride=one.network.output_stride, exact=False
    )


@pytest.mark.parametrize(("shape", "window"), [((900, 1000), 1008), ((70, 100), 112), ((1, 1), 32), ((280, 20), 288)], ids=str)
def test_a_scene_that_fits_into_a_window_gets_one_of_its_size(shape, window):
    grid = chosen(shape)
    assert grid.window_px == window, "the next multiple of the stride"
    assert grid.overlap_px < window


def test_networks_with_aligned_corners_get_windows_that_end_on_a_cell():
    network = tiny_model_spec(n_classes=4, alignment="corner").network
    grid = chosen((5000, 5000), network=network)
    assert grid.window_px % 16 == 1
    assert grid.step_px % 16 == 0


def test_exact_gets_twice_the_margin_and_a_larger_window():
    margin = margin_px(SHIPPED, ONE)
    grid = chosen((20_000, 20_000), blend="exact")
    assert grid.overlap_px >= 2 * margin
    check_grid(grid, output_stride=16, margin_px=margin)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"window_px": 512}, (512, 256, 4096)),
        ({"window_px": 128}, (128, 32, 4096)),
        ({"window_px": 512, "overlap_px": 64}, (512, 64, 4096)),
        ({"window_px": 512, "overlap_px": 0, "block_px": 100}, (512, 0, 100)),
    ],
    ids=str,
)
def test_what_was_asked_for_stays(asked, expected):
    grid = chosen((9000, 9000), **asked)
    assert (grid.window_px, grid.overlap_px, grid.block_px) == expected


def test_a_small_overlap_may_be_asked_for_alone():
    grid = chosen((9000, 9000), overlap_px=64)
    assert grid.overlap_px == 64
    assert grid.step_px % 16 == 0


@pytest.mark.parametrize(("unit", "block"), [(1024, 4096), (1000, 4000), (3000, 3000), (8192, 8192)])
def test_a_block_is_whole_pieces(unit, block):
    assert chosen((20_000, 20_000), unit=unit).block_px == block


def test_where_memory_is_short_blocks_shrink_before_windows():
    wishes = [(request.block_px, largest) for request, largest in smaller_ones(GridRequest(), block_unit_px=1024)]
    assert wishes == [(4096, None), (3072, None), (2048, None), (1024, None), *((1024, px) for px in (1536, 1024, 768, 512, 384))]
    assert [
        (request.window_px, largest)
        for request, largest in smaller_ones(GridRequest(window_px=64, block_px=32), block_unit_px=32)
    ] == [(64, None)]


def test_the_first_that_fits_is_taken_and_the_reason_given(raster, request_for):
    scene = raster(height=300, width=900)
    request = request_for(scene, grid=GridRequest(), output=OutputSpec(chunk_px=1024))
    roomy = prepare(request)
    assert roomy.spec.grid.block_px == 4096
    assert "covers the scene" in roomy.reasons[0]
    assert "memory" not in " ".join(roomy.reasons)
    tight = prepare(request, fits=lambda spec, *_: spec.grid.window_px <= 512)
    assert (tight.spec.grid.window_px, tight.spec.grid.block_px) == (512, 1024)
    assert sum("memory is short" in reason for reason in tight.reasons) == 2
    never = prepare(request, fits=lambda *_: False)
    assert never.spec.grid == roomy.spec.grid, "the plan then names the term and the knob"


def test_nothing_is_explained_where_nothing_was_chosen(raster, request_for):
    assert prepare(request_for(raster())).reasons == ()


def test_an_overlap_that_does_not_fit_is_refused_as_before(raster, request_for):
    with pytest.raises(SpecError, match="overlap of 64 px"):
        prepare(request_for(raster(), grid=GridRequest(window_px=64, overlap_px=64)))
    with pytest.raises(SpecError, match="multiples of 16"):
        prepare(request_for(raster(), grid=GridSpec(window_px=64, overlap_px=15, block_px=64)))
