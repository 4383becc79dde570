"""Our own lattice against pydensecrf, against a mean field over all pairs, and against what must hold for any mean field."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.crf import cpu, exact, torch_lattice
from pipeline.crf.energy import CrfSpec
from pipeline.crf.lattice import PART_PX, embed
from pipeline.crf.tile import refine_tile
from pipeline.engine.engines import predict_windows
from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine
from pipeline.errors import SpecError
from pipeline.network.checkpoint import load_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.stretch import Stretch
from pipeline.window import Window

WIDE = CrfSpec(theta_alpha=30.0, theta_beta=13.0, theta_gamma=3.0, n_steps=10)
SHARP = CrfSpec(theta_alpha=67.0, theta_beta=3.0, theta_gamma=1.0, n_steps=10)


def imagery(shape, *, n_bands=3, seed=0):
    """Return a guide with areas, edges and sensor noise: (bands, height, width) float32, 0 to 255."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    areas = (np.sin(rows / 17.0) + np.cos(cols / 23.0) > 0.3).astype(np.float32) + (np.hypot(rows - 40, cols - 50) < 25)
    tones = rng.uniform(40, 110, n_bands)[:, None, None]
    return (60 + tones * areas + rng.normal(0, 4, (n_bands, *shape))).round().clip(0, 255).astype(np.float32)


def scores(shape, n_classes, *, noise, seed=0):
    """Return probabilities of areas of a few pixels, or of pure noise: (classes, height, width) float32."""
    rng = np.random.default_rng(seed + n_classes)
    if noise:
        logits = 2 * rng.normal(size=(n_classes, *shape))
    else:
        coarse = rng.normal(size=(n_classes, shape[0] // 8 + 1, shape[1] // 8 + 1))
        logits = 1.5 * coarse.repeat(8, 1).repeat(8, 2)[:, : shape[0], : shape[1]] + 0.5 * rng.normal(size=(n_classes, *shape))
    likelihood = np.exp(logits)
    return (likelihood / likelihood.sum(axis=0)).astype(np.float32)


def everywhere(shape):
    return np.ones(shape, bool)


def agreement(one, other, valid=None):
    same = one.argmax(axis=0) == other.argmax(axis=0)
    return same.mean() if valid is None else same[valid].mean()


@pytest.mark.parametrize("n_classes", [2, 5, 8, 21])
@pytest.mark.parametrize("spec", [pytest.param(WIDE, id="wide"), pytest.param(SHARP, id="sharp")])
@pytest.mark.parametrize("noise", [False, True])
def test_labels_agree_with_pydensecrf_on_tiles_that_are_no_squares(n_classes, spec, noise):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    pydensecrf.require()
    shape = (PART_PX + 61, 2 * PART_PX - 37)
    probabilities, guide = scores(shape, n_classes, noise=noise), imagery(shape)
    ours = cpu.refine(probabilities, guide, everywhere(shape), spec, threads=2)
    theirs = pydensecrf.refine(probabilities, guide, everywhere(shape), spec)
    assert agreement(theirs, probabilities) < 0.99, "or there is nothing to agree about"
    assert agreement(ours, theirs) >= 0.995
    np.testing.assert_allclose(ours.sum(axis=0), 1, atol=1e-5)


@pytest.fixture(scope="module")
def sample():
    """Return probabilities of the shipped model on a part of the sample scene, and its pixels."""
    model, network = load_network(resolve_model(DEFAULT_MODEL))
    window = Window(row_off=512, col_off=640, height=512, width=448)
    with open_scene(SceneSpec(uri=str(Path(__file__).parents[2] / "examples" / "dubai-tile2.tif"))) as scene:
        tile = read_reflected(scene, window)
    pixels = normalise(tile, window, stretch=Stretch.identity(3), model=model)
    engine = TorchEngine(MultiScale(network, MultiScaleSpec()), EngineSpec(device="cpu"))
    return predict_windows(engine, pixels[np.newaxis, :, :448])[0], tile.pixels[:, :448].astype(np.float32)


@pytest.mark.parametrize("theta_beta", [3.0, 10.0, 13.0])
@pytest.mark.parametrize("backend", [pytest.param(cpu, id="cpu"), pytest.param(torch_lattice, id="torch")])
def test_labels_of_the_shipped_model_agree_with_pydensecrf(sample, theta_beta, backend):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    probabilities, guide = sample
    spec = CrfSpec(theta_beta=theta_beta)
    ours, theirs = (one.refine(probabilities, guide, everywhere(guide.shape[1:]), spec) for one in (backend, pydensecrf))
    assert agreement(theirs, probabilities) < 0.95, "or there is nothing to agree about"
    assert agreement(ours, theirs) >= 0.998


def test_leaving_out_work_keeps_the_labels_of_the_shipped_model(sample):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    probabilities, guide = sample
    less = CrfSpec(theta_beta=13.0, stop_below=0.01, absent_below=0.02)
    ours = refine_tile(probabilities, guide, everywhere(guide.shape[1:]), less)
    theirs = pydensecrf.refine(probabilities, guide, everywhere(guide.shape[1:]), CrfSpec(theta_beta=13.0))
    assert agreement(ours, theirs) >= 0.995


@pytest.mark.parametrize("n_bands", [1, 4])
def test_a_guide_may_have_any_number_of_bands(n_bands):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    shape = (97, 150)
    probabilities, guide = scores(shape, 3, noise=False), imagery(shape, n_bands=n_bands)
    ours, theirs = (backend.refine(probabilities, guide, everywhere(shape), WIDE) for backend in (cpu, pydensecrf))
    assert agreement(ours, theirs) >= 0.995


def test_nodata_takes_no_part_and_comes_back_as_it_was():
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    shape = (90, 170)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    valid = (np.hypot(rows - 40, cols - 60) > 20) & (rows + cols > 50)
    probabilities, guide = scores(shape, 5, noise=False), imagery(shape)
    guide[:, ~valid] = 255.0
    ours, theirs = (backend.refine(probabilities, guide, valid, WIDE) for backend in (cpu, pydensecrf))
    np.testing.assert_array_equal(ours[:, ~valid], probabilities[:, ~valid])
    assert agreement(ours, theirs, valid) >= 0.995
    other = guide.copy()
    other[:, ~valid] = 17.0
    np.testing.assert_array_equal(cpu.refine(probabilities, other, valid, WIDE), ours)
    nothing = np.zeros(shape, bool)
    np.testing.assert_array_equal(cpu.refine(probabilities, guide, nothing, WIDE), probabilities)


@pytest.mark.parametrize("n_classes", [3, 9])
def test_a_compatibility_matrix_costs_what_it_costs_in_pydensecrf(n_classes):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    rng = np.random.default_rng(1)
    costs = rng.uniform(0, 1.5, (n_classes, n_classes))
    costs = (costs + costs.T) * (1 - np.eye(n_classes))
    spec = CrfSpec(theta_alpha=20.0, theta_beta=10.0, theta_gamma=2.0, compatibility=tuple(map(tuple, costs)), n_steps=5)
    shape = (80, 121)
    probabilities, guide = scores(shape, n_classes, noise=False), imagery(shape)
    ours, theirs = (backend.refine(probabilities, guide, everywhere(shape), spec) for backend in (cpu, pydensecrf))
    potts = cpu.refine(
        probabilities, guide, everywhere(shape), CrfSpec(theta_alpha=20.0, theta_beta=10.0, theta_gamma=2.0, n_steps=5)
    )
    assert agreement(ours, theirs) >= 0.995
    assert agreement(potts, theirs) < 0.99, "or the matrix does nothing"


def test_the_matrix_of_potts_is_potts():
    shape = (60, 70)
    probabilities, guide = scores(shape, 4, noise=False), imagery(shape)
    potts = CrfSpec(theta_alpha=20.0, theta_beta=10.0, n_steps=3)
    matrix = CrfSpec(theta_alpha=20.0, theta_beta=10.0, n_steps=3, compatibility=tuple(map(tuple, 1 - np.eye(4))))
    np.testing.assert_allclose(
        cpu.refine(probabilities, guide, everywhere(shape), matrix),
        cpu.refine(probabilities, guide, everywhere(shape), potts),
        atol=2e-3,
    )


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("theta_gamma", [1.0, 3.0])
def test_marginals_are_no_farther_from_the_exact_mean_field_than_those_of_pydensecrf(noise, theta_gamma):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    spec = CrfSpec(theta_alpha=20.0, theta_beta=12.0, theta_gamma=theta_gamma, n_steps=5)
    shape = (48, 61)
    probabilities, guide = scores(shape, 4, noise=noise), imagery(shape)
    truth = exact.refine(probabilities, guide, everywhere(shape), spec)
    ours, theirs = (
        np.abs(backend.refine(probabilities, guide, everywhere(shape), spec) - truth).mean() for backend in (cpu, pydensecrf)
    )
    assert ours <= theirs
    assert theirs > 0


def test_permuting_the_classes_permutes_the_answer():
    shape = (70, 90)
    probabilities, guide = scores(shape, 11, noise=False), imagery(shape)
    order = np.random.default_rng(0).permutation(11)
    straight = cpu.refine(probabilities, guide, everywhere(shape), WIDE)
    permuted = cpu.refine(np.ascontiguousarray(probabilities[order]), guide, everywhere(shape), WIDE)
    np.testing.assert_allclose(permuted, straight[order], atol=1e-3)


def test_without_weights_nothing_happens():
    shape = (33, 40)
    probabilities, guide = scores(shape, 5, noise=True), imagery(shape)
    refined = cpu.refine(probabilities, guide, everywhere(shape), CrfSpec(w_appearance=0.0, w_smoothness=0.0))
    np.testing.assert_allclose(refined, probabilities, atol=5e-4)  # log P is kept in float16


@pytest.mark.parametrize("weight", ["w_appearance", "w_smoothness"])
def test_each_kernel_alone_is_that_of_pydensecrf(weight):
    pydensecrf = pytest.importorskip("pipeline.crf.pydensecrf")
    spec = CrfSpec(theta_alpha=20.0, theta_beta=12.0, theta_gamma=2.0, n_steps=5, **{weight: 0.0})
    shape = (70, 90)
    probabilities, guide = scores(shape, 5, noise=False), imagery(shape)
    ours, theirs = (backend.refine(probabilities, guide, everywhere(shape), spec) for backend in (cpu, pydensecrf))
    assert agreement(ours, theirs) >= 0.995


def test_a_constant_image_of_constant_probabilities_stays_constant_inside():
    shape = (64, 64)
    probabilities = np.broadcast_to(np.float32([0.5, 0.3, 0.2])[:, None, None], (3, *shape)).copy()
    refined = cpu.refine(probabilities, np.full((3, *shape), 90.0, np.float32), everywhere(shape), SHARP)
    assert (refined.argmax(axis=0) == 0).all()
    assert refined[0].min() > 0.9


def test_what_is_symmetric_stays_nearly_symmetric():
    shape = (64, 65)
    probabilities, guide = scores(shape, 3, noise=False), imagery(shape)
    probabilities = (probabilities + probabilities[:, :, ::-1]) / 2
    guide = np.maximum(guide, guide[:, :, ::-1])
    refined = cpu.refine(probabilities, guide, everywhere(shape), WIDE)
    assert agreement(refined, refined[:, :, ::-1]) > 0.98


def test_the_number_of_threads_changes_no_byte():
    shape = (3 * PART_PX + 11, PART_PX + 5)
    probabilities, guide = scores(shape, 5, noise=False), imagery(shape)
    one, three = (cpu.refine(probabilities, guide, everywhere(shape), SHARP, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("stop_below", [0.0, 0.01])
def test_what_is_kept_of_a_tile_is_the_same_whether_the_rest_is_brought_up_to_date_or_not(stop_below):
    shape = (PART_PX + 60, PART_PX + 70)
    spec = CrfSpec(**{**WIDE.to_dict(), "stop_below": stop_below})
    tile = (scores(shape, 5, noise=False), imagery(shape), everywhere(shape), spec)
    core = Window(row_off=21, col_off=33, height=PART_PX, width=101)
    whole, kept = cpu.refine(*tile), cpu.refine(*tile, core=core)
    inside = core.to_slices()
    np.testing.assert_array_equal(kept[:, *inside], whole[:, *inside])
    assert (kept != whole).any(), "or the halo took part in the last step"
    np.testing.assert_allclose(kept.sum(axis=0), 1, atol=1e-5)


def test_a_tile_far_out_in_a_scene_has_the_labels_of_the_scene():
    shape = (200, 300)
    spec = CrfSpec(theta_alpha=8.0, theta_beta=12.0, theta_gamma=1.0, n_steps=5)
    probabilities, guide = scores(shape, 4, noise=False), imagery(shape)
    scene = cpu.refine(probabilities, guide, everywhere(shape), spec, offset_px=(1_000_000, 2_000_000))
    inside = np.s_[:, 50:150, 70:230]
    cut = (np.ascontiguousarray(probabilities[inside]), np.ascontiguousarray(guide[inside]), everywhere((100, 160)), spec)
    core = np.s_[:, 30:-30, 30:-30]
    there = cpu.refine(*cut, offset_px=(1_000_050, 2_000_070))[core]
    elsewhere = cpu.refine(*cut, offset_px=(0, 0))[core]
    expected = scene[inside][core]
    assert np.abs(there - expected).mean() < 0.1 * np.abs(elsewhere - expected).mean()
    assert agreement(there, expected) > 0.9995


def test_resting_pixels_change_few_labels():
    shape = (PART_PX + 60, 200)
    probabilities, guide = scores(shape, 5, noise=False), imagery(shape)
    every = cpu.refine(probabilities, guide, everywhere(shape), WIDE)
    some = cpu.refine(probabilities, guide, everywhere(shape), CrfSpec(**{**WIDE.to_dict(), "stop_below": 0.01}))
    assert np.abs(every - some).max() > 0, "or no pixel rested"
    assert agreement(every, some) >= 0.995


def test_a_guide_with_too_many_bands_is_refused_with_a_way_out():
    guide = np.random.default_rng(0).uniform(0, 255, (12, 20, 20)).astype(np.float32)
    with pytest.raises(SpecError, match=r"12 bands.*guide_bands or a larger theta_beta"):
        cpu.refine(scores((20, 20), 3, noise=True), guide, everywhere((20, 20)), SHARP)


def test_weights_of_a_pixel_sum_to_1_and_are_not_negative():
    from concurrent.futures import ThreadPoolExecutor

    shape = (PART_PX + 3, 77)
    with ThreadPoolExecutor(1) as pool:
        lattice = embed(imagery(shape), everywhere(shape), theta_px=67.0, theta=3.0, offset_px=(5, 7), pool=pool)
    weights = np.concatenate([part.weight for part in lattice.parts]).reshape(-1, lattice.n_corners)
    assert len(weights) == shape[0] * shape[1]
    assert weights.min() > -1e-5
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    rows = np.concatenate([part.vertex for part in lattice.parts])
    assert rows.min() >= 0
    assert rows.max() < lattice.n_rows


def test_other_threads_go_on_meanwhile():
    """A Dask worker's heartbeats come from another thread of the process; pydensecrf stops it for as long as it runs."""
    shape = (600, 600)
    arguments = (scores(shape, 5, noise=False), imagery(shape), everywhere(shape), CrfSpec(theta_beta=3.0, n_steps=50))
    cpu.refine(*arguments)  # compiled, or loaded
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.002):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    started = time.perf_counter()
    cpu.refine(*arguments, threads=2)
    took = time.perf_counter() - started
    done.set()
    ticker.join()
    inside = [started, *(at for at in ticks if started < at < started + took), started + took]
    assert max(np.diff(inside)) < took / 2


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_pixels_that_are_kept_are_the_same_where_the_last_step_leaves_out_the_others(n_steps):
    shape = (60, 70)
    probabilities, guide = scores(shape, 3, noise=False), imagery(shape)
    spec = CrfSpec(theta_alpha=7.0, theta_beta=13.0, theta_gamma=1.0, n_steps=n_steps)
    core = Window(row_off=10, col_off=20, height=30, width=25)
    whole = refine_tile(probabilities, guide, everywhere(shape), spec)
    found = refine_tile(probabilities, guide, everywhere(shape), spec, core=core)
    inside = core.to_slices()
    assert found[:, *inside].tobytes() == whole[:, *inside].tobytes()
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-3)


@pytest.mark.parametrize("n_classes", [2, 5, 6, 10])
def test_which_class_is_the_last_does_not_matter_even_where_it_is_out_of_the_question(n_classes):
    """The last class has no lane of its own: its score is what is left, and the others' are compared with it."""
    shape = (70, 90)
    spec = CrfSpec(theta_alpha=20.0, theta_beta=12.0, w_appearance=15.0, w_smoothness=10.0, n_steps=5)
    probabilities, guide = scores(shape, n_classes, noise=False), imagery(shape)
    probabilities[0, :30] = 1.0
    probabilities[1:, :30] = 0.0
    backwards = cpu.refine(np.ascontiguousarray(probabilities[::-1]), guide, everywhere(shape), spec)
    refined = cpu.refine(probabilities, guide, everywhere(shape), spec)
    assert agreement(refined, backwards[::-1]) > 0.999
    np.testing.assert_allclose(refined[:, :20], backwards[::-1, :20], atol=1e-3)
    np.testing.assert_allclose(refined[0, :20], 1, atol=1e-3)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    assert refined.min() >= 0


def test_a_single_class_is_certain():
    shape = (40, 50)
    refined = cpu.refine(np.full((1, *shape), 0.5, np.float32), imagery(shape), everywhere(shape), WIDE)
    np.testing.assert_array_equal(refined, 1)


def test_a_pixel_rests_only_where_a_step_of_float16_would_hardly_show(sample):
    """Work is left out whatever was asked for, where it changes nothing that is kept."""
    probabilities, guide = sample
    exactly, found = (
        torch_lattice.refine(probabilities, guide, everywhere(guide.shape[1:]), CrfSpec()),
        cpu.refine(probabilities, guide, everywhere(guide.shape[1:]), CrfSpec()),
    )
    assert agreement(exactly, found) >= 0.9995
