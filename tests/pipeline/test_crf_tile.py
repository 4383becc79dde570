"""What is common to all backends: bands that guide, absent classes, certain tiles, nodata; and which backend is taken."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from pipeline.crf import backends, exact, tile
from pipeline.crf.backends import backend, resolve
from pipeline.crf.energy import CrfSpec
from pipeline.crf.tile import Processor, refine_tile, tile_bytes
from pipeline.errors import SpecError
from pipeline.window import Window

SPEC = CrfSpec(theta_alpha=4.0, theta_beta=10.0, theta_gamma=1.5, n_steps=3)
SHAPE = (9, 14)


class Recorder:
    """A backend that keeps what it was given, and answers with the exact mean field."""

    def __init__(self):
        self.calls = []

    def refine(self, probabilities, guide, valid, spec, *, offset_px=(0, 0), core=None, threads=1, device="cpu"):
        self.calls.append((probabilities.copy(), guide.copy(), spec, (offset_px, core), threads, device))
        return exact.refine(probabilities, guide, valid, spec)

    def tile_bytes(self, n_pixels, **_counts):
        return n_pixels * 100

    def require(self):
        pass


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setattr(tile, "backend", lambda _name: found)
    return found


def tile_of(shape=SHAPE, *, n_classes=4, n_bands=3, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.05, 1, (n_classes, *shape)).astype(np.float32)
    return raw / raw.sum(axis=0), rng.integers(0, 256, (n_bands, *shape)).astype(np.float32)


def holes(shape=SHAPE):
    valid = np.ones(shape, bool)
    valid[2:5, 3:9] = False
    return valid


def with_rare(threshold, *, rare=(1, 3)):
    """Return probabilities in which some classes nowhere exceed a threshold, but reach it."""
    probabilities, guide = tile_of()
    for one in rare:
        probabilities[one] *= threshold / probabilities[one].max()
    kept = [one for one in range(len(probabilities)) if one not in rare]
    rest = 1 - probabilities[list(rare)].sum(axis=0)
    probabilities[kept] *= rest / probabilities[kept].sum(axis=0)
    return probabilities, guide


def test_by_default_the_backend_gets_the_tile_as_it_is(recorder):
    probabilities, guide = tile_of()
    core = Window.of_shape((2, 3))
    processor = Processor(threads=3, device="cuda:1")
    refined = refine_tile(probabilities, guide, holes(), SPEC, offset_px=(7, 9), core=core, processor=processor)
    ((given, seen, spec, place, threads, device),) = recorder.calls
    np.testing.assert_array_equal(given, probabilities)
    np.testing.assert_array_equal(seen, guide)
    assert (spec, place, threads, device) == (SPEC, ((7, 9), core), 3, "cuda:1")
    np.testing.assert_array_equal(refined, exact.refine(probabilities, guide, holes(), SPEC))


@pytest.mark.parametrize(("bands", "expected"), [((2,), [1]), ((3, 1), [2, 0]), ((), []), (None, [0, 1, 2])], ids=str)
def test_only_the_bands_that_were_asked_for_guide(recorder, bands, expected):
    probabilities, guide = tile_of()
    refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, guide_bands=bands))
    np.testing.assert_array_equal(recorder.calls[0][1], guide[expected])


@pytest.mark.parametrize("changes", [{"guide_bands": (4,)}, {"compatibility": ((0, 1), (1, 0))}], ids=["band", "matrix"])
def test_what_does_not_fit_the_tile_is_refused(recorder, changes):
    with pytest.raises(SpecError, match="the model has"):
        refine_tile(*tile_of(), holes(), dataclasses.replace(SPEC, **changes))


# --- absent classes


def test_classes_that_are_nowhere_likely_are_left_out(recorder):
    probabilities, guide = with_rare(0.05)
    valid = holes()
    refined = refine_tile(probabilities, guide, valid, dataclasses.replace(SPEC, absent_below=0.0501))
    given = recorder.calls[0][0]
    assert given.shape == (2, *SHAPE)
    np.testing.assert_allclose(given.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(given[0] / given[1], probabilities[0] / probabilities[2], rtol=1e-4)
    assert (refined[[1, 3]][:, valid] == 0).all()
    np.testing.assert_allclose(refined.sum(axis=0)[valid], 1, atol=1e-5)
    np.testing.assert_array_equal(refined[:, ~valid], probabilities[:, ~valid])
    assert refined.dtype == np.float32


def test_a_class_above_the_threshold_at_one_pixel_is_kept(recorder):
    probabilities, guide = with_rare(0.05)
    probabilities[1, 0, 0] = 0.0502
    refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, absent_below=0.0501))
    assert len(recorder.calls[0][0]) == 3


def test_pixels_without_data_do_not_keep_a_class(recorder):
    probabilities, guide = with_rare(0.05)
    valid = holes()
    probabilities[1][~valid] = 0.9
    refine_tile(probabilities, guide, valid, dataclasses.replace(SPEC, absent_below=0.0501))
    assert len(recorder.calls[0][0]) == 2


def test_absent_classes_change_the_others_little(recorder):
    probabilities, guide = with_rare(0.01)
    full = refine_tile(probabilities, guide, holes(), SPEC)
    part = refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, absent_below=0.0101))
    assert 0 < np.abs(full - part).max() < 0.02
    assert np.abs(full - probabilities).max() > 0.1, "or this says nothing"


def test_the_matrix_is_that_of_the_classes_that_are_left(recorder):
    probabilities, guide = with_rare(0.05)
    costs = np.arange(16.0).reshape(4, 4)
    costs = tuple(map(tuple, costs + costs.T))
    refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, absent_below=0.0501, compatibility=costs))
    assert recorder.calls[0][2].compatibility == ((costs[0][0], costs[0][2]), (costs[2][0], costs[2][2]))


def test_where_every_class_would_be_left_out_all_are_kept(recorder):
    probabilities, guide = tile_of()
    refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, absent_below=0.999))
    assert recorder.calls[0][0].tobytes() == probabilities.tobytes()


def test_a_pixel_that_has_nothing_of_what_is_left_gets_numbers(recorder):
    probabilities, guide = with_rare(0.05)
    probabilities[:, 0, 0] = [0, 0.05, 0, 0.05]
    refined = refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, absent_below=0.0501))
    assert np.isfinite(refined).all()


# --- certain tiles and nodata


def sure(lowest):
    """Return a tile whose best classes are at least so probable, one pixel of it just so."""
    probabilities, guide = tile_of()
    best = np.full(SHAPE, 0.999, np.float32)
    best[6, 2] = lowest
    probabilities = np.concatenate([best[None], np.broadcast_to((1 - best) / 3, (3, *SHAPE))]).astype(np.float32)
    return probabilities, guide


@pytest.mark.parametrize(("lowest", "threshold", "n_calls"), [(0.96, 0.95, 0), (0.94, 0.95, 1), (0.96, 1.0, 1)], ids=str)
def test_a_tile_is_skipped_where_every_pixel_is_sure_enough(recorder, lowest, threshold, n_calls):
    probabilities, guide = sure(lowest)
    refined = refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, skip_above=threshold))
    assert len(recorder.calls) == n_calls
    assert (refined is probabilities) == (n_calls == 0)


def test_without_the_option_also_a_tile_of_ones_is_refined(recorder):
    probabilities, guide = tile_of()
    probabilities[:] = 0
    probabilities[0] = 1
    refine_tile(probabilities, guide, holes(), SPEC)
    assert len(recorder.calls) == 1


def test_pixels_without_data_need_not_be_sure(recorder):
    probabilities, guide = sure(0.96)
    valid = holes()
    probabilities[:, ~valid] = 0.25
    refine_tile(probabilities, guide, valid, dataclasses.replace(SPEC, skip_above=0.95))
    assert recorder.calls == []


def test_a_tile_without_data_comes_back_unchanged(recorder):
    probabilities, guide = tile_of()
    assert refine_tile(probabilities, guide, np.zeros(SHAPE, bool), SPEC) is probabilities
    assert recorder.calls == []


@pytest.mark.parametrize("changes", [{}, {"absent_below": 0.06}, {"guide_bands": (2,)}], ids=str)
def test_the_arguments_are_left_alone(recorder, changes):
    probabilities, guide = with_rare(0.05)
    before = probabilities.tobytes(), guide.tobytes()
    refine_tile(probabilities, guide, holes(), dataclasses.replace(SPEC, **changes))
    assert (probabilities.tobytes(), guide.tobytes()) == before


def test_what_is_left_out_costs_memory_of_its_own(recorder):
    base = tile_bytes(SPEC, 50, n_classes=4, n_bands=3)
    assert base == 5000
    assert tile_bytes(dataclasses.replace(SPEC, absent_below=0.1), 50, n_classes=4, n_bands=3) == base + 50 * 4 * 8
    assert tile_bytes(dataclasses.replace(SPEC, guide_bands=(1,)), 50, n_classes=4, n_bands=3) == base + 50 * 4 * 3


# --- which backend


@pytest.mark.parametrize(
    ("choice", "device", "name"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "torch"),
        ("auto", "cuda:1", "torch"),
        ("cpu", "cuda", "cpu"),
        ("torch", "cpu", "torch"),
        ("pydensecrf", "cuda", "pydensecrf"),
    ],
)
def test_auto_is_what_the_device_is_good_at_and_a_name_is_itself(choice, device, name):
    assert resolve(choice, device=device) == name


def test_other_names_are_refused():
    with pytest.raises(SpecError, match=r"'gpu' was asked for; choose one of auto, cpu, torch, pydensecrf"):
        resolve("gpu", device="cpu")
    with pytest.raises(SpecError, match="'exact' was asked for"):
        backend("exact")


@pytest.mark.parametrize("name", ["cpu", "torch", "pydensecrf"])
def test_every_backend_keeps_the_protocol(name):
    found = backend(name)
    wanted = {member for member in vars(backends.Backend) if not member.startswith("_")}
    assert wanted == {"refine", "tile_bytes", "require"}
    assert all(callable(getattr(found, member)) for member in wanted)
    assert 0 < found.tile_bytes(1000, n_classes=5, n_bands=3) <= found.tile_bytes(1000, n_classes=6, n_bands=4)


@pytest.mark.parametrize("name", ["cpu", "torch", "pydensecrf"])
@pytest.mark.parametrize("changes", [{}, {"absent_below": 0.0501}, {"guide_bands": (2,)}, {"guide_bands": ()}], ids=str)
def test_every_backend_is_near_the_exact_answer(name, changes):
    if name == "pydensecrf":
        pytest.importorskip("pydensecrf")
    probabilities, guide = with_rare(0.05)
    guide = np.repeat(np.repeat(guide[:, :3, :4], 3, axis=1), 4, axis=2)[:, :, :14]  # patches, as in an image
    spec = dataclasses.replace(SPEC, backend=name, **changes)
    seen = guide if spec.guide_bands is None else guide[[band - 1 for band in spec.guide_bands]]
    expected = exact.refine(probabilities, seen, holes(), SPEC)
    refined = refine_tile(probabilities, guide, holes(), spec)
    assert np.abs(expected - probabilities)[:, holes()].mean() > 0.1, "or this says nothing"
    assert np.abs(refined - expected).mean() < 0.02


def test_the_cpu_backend_does_not_load_torch():
    code = "from pipeline.crf.backends import backend; backend('cpu'); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
