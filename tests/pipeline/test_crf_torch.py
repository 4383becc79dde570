"""The CRF in torch: against pydensecrf, against all pairs of pixels, and against itself."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.crf import exact, pydensecrf, torch_lattice
from pipeline.crf.energy import CrfSpec
from pipeline.crf.smoothness import taps
from pipeline.errors import SpecError
from tests.factories import texture

needs_pydensecrf = pytest.mark.skipif(pydensecrf.dcrf is None, reason="pydensecrf is not installed")

SPEC = CrfSpec(backend="torch")
SHAPE = (61, 97)
SMALL = (19, 32)


def noise(shape=SHAPE, *, n_bands=3, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (n_bands, *shape)).astype(np.float32)


def image(shape=SHAPE, *, n_bands=3, seed=0):
    return texture((max(n_bands, 1), *shape), dtype="float32", seed=seed)[:n_bands].astype(np.float32)


def softmax(scores):
    raised = np.exp(scores - scores.max(axis=0))
    return (raised / raised.sum(axis=0)).astype(np.float32)


def white(n_classes, shape=SHAPE, *, strength=4.0, seed=1):
    """Return probabilities of which no pixel knows its neighbours'."""
    return softmax(strength * np.random.default_rng(seed).normal(size=(n_classes, *shape)))


def smooth(n_classes, shape=SHAPE, *, seed=1):
    """Return probabilities in blobs, with noise, as certain as a network's: the best class has 0.6 to 0.8 on average."""
    blobs = texture((n_classes, *shape), dtype="float32", seed=seed).astype(float) / 10
    return softmax(blobs + np.random.default_rng(seed).normal(size=blobs.shape))


def everywhere(shape=SHAPE):
    return np.ones(shape, bool)


def holes(shape=SHAPE):
    valid = everywhere(shape)
    valid[shape[0] // 4 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = False
    valid[:, 0] = False
    return valid


def costs(n_classes):
    """Return a symmetric matrix with 0 on its diagonal and 0.5 to 1.5 elsewhere."""
    raw = np.random.default_rng(5).uniform(0.25, 0.75, (n_classes, n_classes))
    return tuple(map(tuple, ((raw + raw.T) * (1 - np.eye(n_classes))).tolist()))


def agreement(probabilities, guide, valid, spec):
    """Return the part of valid pixels that get pydensecrf's label."""
    ours = torch_lattice.refine(probabilities, guide, valid, spec)
    theirs = pydensecrf.refine(probabilities, guide, valid, spec)
    assert (theirs.argmax(axis=0) != probabilities.argmax(axis=0))[valid].mean() > 0.01, "or this test could not fail"
    return (ours.argmax(axis=0) == theirs.argmax(axis=0))[valid].mean()


# --- against pydensecrf


@needs_pydensecrf
@pytest.mark.parametrize("n_classes", [2, 5, 8, 21])
@pytest.mark.parametrize("theta_beta", [3.0, 13.0])
@pytest.mark.parametrize(
    ("guide", "probabilities"),
    [
        pytest.param(image, smooth, id="image"),
        pytest.param(image, white, id="noisy probabilities"),
        pytest.param(noise, white, id="noise"),
    ],
)
def test_labels_are_those_of_pydensecrf(guide, probabilities, theta_beta, n_classes):
    spec = dataclasses.replace(SPEC, theta_beta=theta_beta)
    assert agreement(probabilities(n_classes), guide(), everywhere(), spec) >= 0.995


@needs_pydensecrf
@pytest.mark.parametrize(
    ("n_bands", "changes"),
    [
        pytest.param(1, {}, id="one band"),
        pytest.param(4, {"theta_beta": 13.0}, id="four bands"),
        pytest.param(0, {}, id="no band"),
        pytest.param(
            3,
            {"theta_gamma": 3.0, "theta_alpha": 80.0, "theta_beta": 13.0, "w_appearance": 10.0, "n_steps": 5},
            id="wide kernels",
        ),
        pytest.param(3, {"compatibility": costs(5), "theta_beta": 13.0}, id="compatibility"),
    ],
)
def test_labels_are_those_of_pydensecrf_with_holes(n_bands, changes):
    spec = dataclasses.replace(SPEC, **changes)
    assert agreement(smooth(5), image(n_bands=n_bands), holes(), spec) >= 0.995


@needs_pydensecrf
@pytest.mark.parametrize("n_steps", [1, 10])
@pytest.mark.parametrize("guide", [image, noise, lambda: np.full((3, *SHAPE), 90, np.float32)], ids=["image", "noise", "flat"])
@pytest.mark.parametrize("theta_beta", [3.0, 13.0])
def test_the_appearance_kernel_is_that_of_pydensecrf(guide, theta_beta, n_steps):
    """The same lattice: what rounding leaves grows with the steps."""
    spec = dataclasses.replace(SPEC, theta_beta=theta_beta, w_smoothness=0.0, w_appearance=12.0, n_steps=n_steps)
    probabilities = smooth(5)
    ours = torch_lattice.refine(probabilities, guide(), holes(), spec)
    theirs = pydensecrf.refine(probabilities, guide(), holes(), spec)
    assert np.abs(theirs - probabilities).max() > 0.1, "or this test could not fail"
    assert np.abs(ours - theirs).mean() < 1e-5
    assert (ours.argmax(axis=0) == theirs.argmax(axis=0)).mean() > 0.9999


@needs_pydensecrf
def test_a_tile_far_out_in_a_scene_lies_in_the_lattice_as_with_pydensecrf():
    spec = dataclasses.replace(SPEC, theta_beta=13.0, w_smoothness=0.0)
    near, ours, theirs = (
        one.refine(smooth(5), image(), holes(), spec, offset_px=offset)
        for one, offset in ((torch_lattice, (0, 0)), (torch_lattice, (30_011, 70_123)), (pydensecrf, (30_011, 70_123)))
    )
    assert np.abs(ours - near).mean() > 1e-3, "or the offset is not used"
    assert np.abs(ours - theirs).mean() < 1e-5


# --- against all pairs of pixels


def errors(spec, *, n_classes, n_images):
    """Return the mean absolute errors in Q of ours and of pydensecrf, over images and noise of two shapes."""
    found = []
    for seed in range(n_images):
        shape = (SMALL, SMALL[::-1])[seed % 2]
        guide = (image, noise)[seed // 2 % 2](shape, seed=seed)
        probabilities = (smooth if seed % 4 else white)(n_classes, shape, seed=seed)
        truth = exact.refine(probabilities, guide, everywhere(shape), spec)
        assert np.abs(truth - probabilities).mean() > 0.001, "or the error would say nothing"
        found.append(
            [
                np.abs(one.refine(probabilities, guide, everywhere(shape), spec) - truth).mean()
                for one in (torch_lattice, pydensecrf)
            ]
        )
    return np.mean(found, axis=0)


@needs_pydensecrf
@pytest.mark.parametrize("n_classes", [2, 5, 21])
@pytest.mark.parametrize(
    ("n_images", "changes"),
    [
        pytest.param(32, {}, id="default"),
        pytest.param(32, {"theta_beta": 13.0}, id="wide in colour"),
        pytest.param(4, {"n_steps": 3}, id="three steps"),
        pytest.param(4, {"w_appearance": 0.0}, id="smoothness"),
        pytest.param(4, {"w_smoothness": 0.0, "theta_beta": 13.0}, id="appearance"),
    ],
)
def test_marginals_are_as_near_to_the_exact_ones_as_those_of_pydensecrf(n_images, changes, n_classes):
    """Ten steps at these weights tip pixels over, either way: there the errors of single images say nothing, only their mean does."""
    ours, theirs = errors(dataclasses.replace(SPEC, **changes), n_classes=n_classes, n_images=n_images)
    assert ours <= theirs + 1e-4


@needs_pydensecrf
def test_where_nothing_is_certain_as_many_labels_are_the_exact_ones_as_with_pydensecrf():
    """Weak white noise, the worst case: the two differ in 1 to 2 % of labels, but each differs from the exact mean field in 2 to 14 %."""
    right, same = [], []
    for seed, n_classes in enumerate((2, 5, 8, 21) * 2):
        arguments = (
            white(n_classes, (47, 61), strength=0.5, seed=seed),
            (image, noise)[seed // 4]((47, 61), seed=seed),
            everywhere((47, 61)),
        )
        ours, theirs, truth = (one.refine(*arguments, SPEC).argmax(axis=0) for one in (torch_lattice, pydensecrf, exact))
        right.append([(ours == truth).mean(), (theirs == truth).mean()])
        same.append((ours == theirs).mean())
    ours_right, theirs_right = np.mean(right, axis=0)
    assert ours_right >= theirs_right - 0.001
    assert min(same) >= 0.98


# --- properties


def test_permuting_the_classes_permutes_the_answer():
    probabilities, order = smooth(5), [3, 0, 4, 1, 2]
    refined = torch_lattice.refine(probabilities, image(), holes(), SPEC)
    again = torch_lattice.refine(probabilities[order], image(), holes(), SPEC)
    np.testing.assert_allclose(again, refined[order], atol=1e-5)


def test_permuting_the_classes_and_their_costs_permutes_the_answer():
    probabilities, order = smooth(5), [3, 0, 4, 1, 2]
    matrix = np.array(costs(5))
    spec = dataclasses.replace(SPEC, compatibility=costs(5))
    permuted = dataclasses.replace(SPEC, compatibility=tuple(map(tuple, matrix[np.ix_(order, order)].tolist())))
    refined = torch_lattice.refine(probabilities, image(), holes(), spec)
    np.testing.assert_allclose(torch_lattice.refine(probabilities[order], image(), holes(), permuted), refined[order], atol=1e-4)


def test_the_costs_of_potts_are_potts():
    potts = dataclasses.replace(SPEC, compatibility=tuple(map(tuple, (1.0 - np.eye(5)).tolist())))
    expected = torch_lattice.refine(smooth(5), image(), holes(), SPEC)
    np.testing.assert_allclose(torch_lattice.refine(smooth(5), image(), holes(), potts), expected, atol=1e-4)


def test_equal_probabilities_stay_equal():
    equal = np.full((4, *SHAPE), 0.25, np.float32)
    np.testing.assert_allclose(torch_lattice.refine(equal, image(), holes(), SPEC), equal, atol=1e-6)


def test_without_kernels_the_probabilities_come_back():
    spec = dataclasses.replace(SPEC, w_appearance=0.0, w_smoothness=0.0)
    np.testing.assert_allclose(torch_lattice.refine(smooth(5), image(), everywhere(), spec), smooth(5), atol=1e-4)


def test_marginals_sum_to_one():
    np.testing.assert_allclose(torch_lattice.refine(white(21), noise(), everywhere(), SPEC).sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("theta_gamma", [0.2, 1.0, 1.7, 3.0])
def test_the_taps_have_the_variance_of_the_gaussian(theta_gamma):
    kernel = taps(theta_gamma)
    distance = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.dtype == np.float32
    assert len(kernel) % 2 == 1
    np.testing.assert_array_equal(kernel, kernel[::-1])
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * distance**2).sum() == pytest.approx(theta_gamma**2, rel=0.02) or theta_gamma < 0.5


def test_kernels_wider_than_the_tile_are_cut():
    spec = dataclasses.replace(SPEC, theta_gamma=9.0)
    refined = torch_lattice.refine(white(3, (4, 7)), noise((4, 7)), everywhere((4, 7)), spec)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


# --- nodata


def test_pixels_without_data_take_no_part_and_come_back_unchanged():
    valid = holes()
    probabilities, guide = smooth(5), image()
    refined = torch_lattice.refine(probabilities, guide, valid, SPEC)
    np.testing.assert_array_equal(refined[:, ~valid], probabilities[:, ~valid])
    other, other_guide = probabilities.copy(), guide.copy()
    other[:, ~valid] = np.nan
    other_guide[:, ~valid] = np.nan
    again = torch_lattice.refine(other, other_guide, valid, SPEC)
    assert again[:, valid].tobytes() == refined[:, valid].tobytes()


def test_a_tile_without_data_comes_back_unchanged():
    np.testing.assert_array_equal(torch_lattice.refine(smooth(3), image(), ~everywhere(), SPEC), smooth(3))


def test_one_pixel_alone_keeps_its_order():
    refined = torch_lattice.refine(white(3, (1, 1)), noise((1, 1)), everywhere((1, 1)), SPEC)
    assert refined.argmax() == white(3, (1, 1)).argmax()


# --- batches and bytes


@pytest.mark.parametrize("stop_below", [0.0, 0.02])
def test_a_batch_is_its_tiles_one_by_one(stop_below):
    """To the byte, and one of them has no data."""
    spec = dataclasses.replace(SPEC, theta_beta=13.0, stop_below=stop_below)
    probabilities = np.stack([smooth(5, seed=seed) for seed in range(3)])
    guide = np.stack([image(seed=0), noise(seed=1), np.full((3, *SHAPE), 7, np.float32)])
    valid = np.stack([holes(), ~everywhere(), everywhere()])
    offsets = [(0, 0), (5, 9), (1000, 2024)]
    together = torch_lattice.refine_batch(probabilities, guide, valid, spec, offsets_px=offsets)
    for tile, offset, *arguments in zip(together, offsets, probabilities, guide, valid, strict=True):
        assert tile.tobytes() == torch_lattice.refine(*arguments, spec, offset_px=offset).tobytes()


def test_the_same_tile_gets_the_same_bytes_whatever_the_threads():
    arguments = smooth(5), image(), holes(), SPEC
    expected = torch_lattice.refine(*arguments).tobytes()
    assert torch_lattice.refine(*arguments, threads=2).tobytes() == expected
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch_lattice.refine(*arguments).tobytes() == expected
    finally:
        torch.set_num_threads(before)


def test_the_arguments_are_left_alone_and_may_be_read_only_views():
    probabilities, guide, valid = (np.ascontiguousarray(np.moveaxis(a, -1, 0)) for a in (smooth(3), image(), holes()))
    before = probabilities.copy(), guide.copy(), valid.copy()
    views = [np.moveaxis(array, 0, -1) for array in (probabilities, guide, valid)]
    for view in views:
        view.flags.writeable = False
    refined = torch_lattice.refine(*views, SPEC)
    assert refined.dtype == np.float32
    assert refined.tobytes() == torch_lattice.refine(smooth(3), image(), holes(), SPEC).tobytes()
    for array, copy in zip((probabilities, guide, valid), before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- stopping


def test_a_tile_stops_once_no_marginal_moves():
    first = torch_lattice.refine(smooth(5), image(), everywhere(), dataclasses.replace(SPEC, n_steps=1))
    stopped = torch_lattice.refine(smooth(5), image(), everywhere(), dataclasses.replace(SPEC, stop_below=0.999))
    full = torch_lattice.refine(smooth(5), image(), everywhere(), SPEC)
    assert stopped.tobytes() == first.tobytes()
    assert full.tobytes() != first.tobytes()


def test_what_is_stopped_has_come_to_rest():
    spec = dataclasses.replace(SPEC, n_steps=60, w_appearance=1.0, w_smoothness=1.0)
    full = torch_lattice.refine(smooth(5), image(), everywhere(), spec)
    stopped = torch_lattice.refine(smooth(5), image(), everywhere(), dataclasses.replace(spec, stop_below=1e-4))
    assert np.abs(stopped - full).max() < 1e-2
    assert stopped.tobytes() != full.tobytes(), "or it did not stop"


# --- limits


def test_features_too_wide_for_a_key_are_refused():
    spec = dataclasses.replace(SPEC, theta_beta=0.5)
    with pytest.raises(
        SpecError,
        match=r"9 guide bands .* lattice keys of \d+ bits .* 63 are there: use a larger theta_beta or fewer guide_bands",
    ):
        torch_lattice.refine(white(2, SMALL), noise(SMALL, n_bands=9), everywhere(SMALL), spec)
    fits = dataclasses.replace(SPEC, theta_beta=13.0)
    assert np.isfinite(torch_lattice.refine(white(2, SMALL), noise(SMALL, n_bands=9), everywhere(SMALL), fits)).all()


PEAK = """
import numpy as np
from pipeline.crf import torch_lattice
from pipeline.crf.energy import CrfSpec

def status(key):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

rng = np.random.default_rng(0)
n_classes, n_bands, height, width = CASE
probabilities = rng.uniform(0.01, 1, (n_classes, height, width)).astype(np.float32)
guide = rng.uniform(0, 255, (n_bands, height, width)).astype(np.float32)
valid = np.ones((height, width), bool)
spec = CrfSpec(backend="torch", n_steps=2)
torch_lattice.refine(probabilities[:, :9, :9], guide[:, :9, :9], valid[:9, :9], spec)  # what torch loads at first use
before = status("VmRSS")
torch_lattice.refine(probabilities, guide, valid, spec)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("n_classes", "n_bands"), [(2, 4), (21, 3)])
def test_the_bound_of_memory_holds_on_noise_and_is_not_far_above(n_classes, n_bands):
    height, width = 400, 501
    code = PEAK.replace("CASE", repr((n_classes, n_bands, height, width)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bound = torch_lattice.tile_bytes(height * width, n_classes=n_classes, n_bands=n_bands)
    assert 0.4 * bound < int(done.stdout) < bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_classes", [2, 21])
def test_cuda_gives_what_the_cpu_gives(n_classes):
    """Rounding differs, and rarely puts a pixel into another simplex."""
    arguments = smooth(n_classes), image(), holes(), SPEC
    expected = torch_lattice.refine(*arguments)
    found = torch_lattice.refine(*arguments, device="cuda")
    assert np.abs(found - expected).mean() < 1e-4
    assert (found.argmax(axis=0) == expected.argmax(axis=0)).mean() > 0.999
    assert torch_lattice.refine(*arguments, device="cuda").tobytes() == found.tobytes()
