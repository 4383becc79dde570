"""The CRF of a tile against pydensecrf's own interface for images and against the mean field over all pairs."""

import dataclasses

import numpy as np
import pytest

from pipeline.crf import exact, pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.errors import MissingDependencyError, SpecError

dcrf = pytest.importorskip("pydensecrf.densecrf")
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_softmax  # noqa: E402

SPEC = CrfSpec(theta_alpha=4.0, theta_beta=10.0, theta_gamma=1.5, w_appearance=4.0, w_smoothness=3.0, n_steps=5)
SHAPE = (13, 22)


def tile_of(shape=SHAPE, *, n_classes=3, seed=0):
    """Return noisy probabilities and a guide of coloured patches, one of which each class prefers."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    patches = (rows // 4 + cols // 6) % n_classes
    guide = 40.0 + 60.0 * patches + rng.normal(0, 5, (3, *shape))
    raw = rng.uniform(0.05, 1, (n_classes, *shape)) + 0.4 * (patches == np.arange(n_classes)[:, None, None])
    return (raw / raw.sum(axis=0)).astype(np.float32), guide.round().clip(0, 255).astype(np.float32)


def everywhere(shape=SHAPE):
    return np.ones(shape, bool)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="both kernels"),
        pytest.param({"w_smoothness": 0.0}, id="appearance"),
        pytest.param({"w_appearance": 0.0}, id="smoothness"),
        pytest.param({"n_steps": 1, "theta_gamma": 3.0}, id="one step"),
        pytest.param({"compatibility": ((0, 2, 0.5), (2, 0, 1), (0.5, 1, 0))}, id="matrix"),
    ],
)
def test_a_tile_is_what_pydensecrf_makes_of_the_image(changes):
    spec = dataclasses.replace(SPEC, **changes)
    probabilities, guide = tile_of()
    image = guide.astype(np.uint8).transpose(1, 2, 0)
    costs = 1.0 if spec.compatibility is None else np.array(spec.compatibility, np.float32)
    crf = dcrf.DenseCRF(SHAPE[0] * SHAPE[1], 3)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(3, -1)))
    if spec.w_smoothness:
        features = create_pairwise_gaussian(sdims=(spec.theta_gamma,) * 2, shape=SHAPE)
        crf.addPairwiseEnergy(features, compat=spec.w_smoothness * costs)
    if spec.w_appearance:
        features = create_pairwise_bilateral(sdims=(spec.theta_alpha,) * 2, schan=(spec.theta_beta,) * 3, img=image, chdim=2)
        crf.addPairwiseEnergy(features, compat=spec.w_appearance * costs)
    expected = np.array(crf.inference(spec.n_steps)).reshape(3, *SHAPE)
    refined = pydensecrf.refine(probabilities, guide, everywhere(), spec)
    assert refined.dtype == np.float32
    assert np.abs(refined - probabilities).max() > 0.05, "or this test could not fail"
    np.testing.assert_allclose(refined, expected, rtol=0, atol=1e-5)


def test_probabilities_of_0_and_1_are_kept_finite_as_by_unary_from_softmax():
    certain = np.zeros((2, 3, 5), np.float32)
    certain[0] = 1
    guide = np.zeros((1, 3, 5), np.float32)
    crf = dcrf.DenseCRF2D(5, 3, 2)
    crf.setUnaryEnergy(unary_from_softmax(certain))
    crf.addPairwiseGaussian(sxy=2.0, compat=1.0)
    expected = np.array(crf.inference(2)).reshape(2, 3, 5)
    spec = CrfSpec(theta_gamma=2.0, w_smoothness=1.0, w_appearance=0.0, n_steps=2)
    refined = pydensecrf.refine(certain, guide, everywhere((3, 5)), spec)
    assert np.isfinite(refined).all()
    np.testing.assert_allclose(refined, expected, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(CrfSpec(theta_gamma=2.0, w_smoothness=2.0, w_appearance=0.0, n_steps=5), id="smoothness"),
        pytest.param(CrfSpec(theta_alpha=3.0, theta_beta=20.0, w_smoothness=0.0, w_appearance=2.0, n_steps=5), id="appearance"),
        pytest.param(SPEC, id="both"),
        pytest.param(dataclasses.replace(SPEC, compatibility=((0, 1, 1), (1, 0, 0.2), (1, 0.2, 0))), id="matrix"),
    ],
)
def test_the_marginals_are_those_of_the_mean_field_over_all_pairs(spec):
    """The lattice's filter is approximate: 0.06 at the worst pixel and 0.01 on average are allowed."""
    probabilities, guide = tile_of((8, 9))
    refined = pydensecrf.refine(probabilities, guide, everywhere((8, 9)), spec)
    expected = exact.refine(probabilities, guide, everywhere((8, 9)), spec)
    assert np.abs(expected - probabilities).max() > 0.12, "or the tolerance would say nothing"
    assert np.abs(refined - expected).max() < 0.06
    assert np.abs(refined - expected).mean() < 0.01


def test_marginals_sum_to_one():
    refined = pydensecrf.refine(*tile_of(n_classes=5), everywhere(), SPEC)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


def test_without_kernels_the_probabilities_come_back():
    probabilities, guide = tile_of()
    spec = CrfSpec(w_appearance=0.0, w_smoothness=0.0)
    np.testing.assert_allclose(pydensecrf.refine(probabilities, guide, everywhere(), spec), probabilities, atol=1e-6)


def test_the_guide_decides_where_labels_end():
    """Two flat colours: noise vanishes within each, and the edge between them stays in its column."""
    rng = np.random.default_rng(2)
    right = np.broadcast_to(np.arange(24) >= 11, (15, 24))
    chance = np.where(right, 0.7, 0.3) + rng.uniform(-0.35, 0.35, right.shape)
    probabilities = np.stack([1 - chance, chance]).clip(0.01, 0.99).astype(np.float32)
    guide = np.broadcast_to(np.where(right, 200, 50), (3, 15, 24)).astype(np.float32)
    assert (probabilities.argmax(axis=0) != right).mean() > 0.05
    refined = pydensecrf.refine(probabilities, guide, everywhere((15, 24)), SPEC)
    np.testing.assert_array_equal(refined.argmax(axis=0), right)


# --- nodata


def holes():
    valid = everywhere()
    valid[3:9, 5:11] = False
    valid[:, 0] = False
    return valid


def test_pixels_without_data_come_back_unchanged():
    probabilities, guide = tile_of()
    valid = holes()
    refined = pydensecrf.refine(probabilities, guide, valid, SPEC)
    np.testing.assert_array_equal(refined[:, ~valid], probabilities[:, ~valid])
    assert (refined[:, valid] != probabilities[:, valid]).any()


def test_pixels_without_data_take_no_part():
    probabilities, guide = tile_of()
    valid = holes()
    refined = pydensecrf.refine(probabilities, guide, valid, SPEC)
    other_probabilities, other_guide = probabilities.copy(), guide.copy()
    other_probabilities[:, ~valid] = [[0.98], [0.01], [0.01]]
    other_guide[:, ~valid] = 255
    again = pydensecrf.refine(other_probabilities, other_guide, valid, SPEC)
    assert again[:, valid].tobytes() == refined[:, valid].tobytes()


def test_a_tile_without_data_comes_back_unchanged():
    probabilities, guide = tile_of()
    np.testing.assert_array_equal(pydensecrf.refine(probabilities, guide, ~everywhere(), SPEC), probabilities)


def test_one_pixel_alone_keeps_its_order():
    probabilities, guide = tile_of((1, 1))
    refined = pydensecrf.refine(probabilities, guide, everywhere((1, 1)), SPEC)
    assert refined.argmax() == probabilities.argmax()


# --- the rest


def test_the_same_tile_gets_the_same_bytes_wherever_it_lies_in_memory():
    probabilities, guide = tile_of()
    expected = pydensecrf.refine(probabilities, guide, everywhere(), SPEC).tobytes()
    for pad in (1, 3):
        larger = np.zeros((3, SHAPE[0] + pad, SHAPE[1] + pad), np.float32)
        view = larger[:, pad:, pad:]
        view[...] = probabilities
        assert pydensecrf.refine(view, guide, everywhere(), SPEC).tobytes() == expected


def test_the_arguments_are_left_alone():
    probabilities, guide = tile_of()
    before = probabilities.copy(), guide.copy()
    pydensecrf.refine(probabilities, guide, everywhere(), SPEC)
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(guide, before[1])


@pytest.mark.parametrize("n_bands", [1, 5])
def test_any_number_of_bands_guides(n_bands):
    probabilities, guide = tile_of()
    refined = pydensecrf.refine(probabilities, np.resize(guide, (n_bands, *SHAPE)), everywhere(), SPEC)
    assert np.isfinite(refined).all()


def test_without_pydensecrf_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pydensecrf, "dcrf", None)
    with pytest.raises(MissingDependencyError, match=r"pydensecrf2.*pip install 'atrous\[crf\]'.*backend cpu"):
        pydensecrf.require()
    with pytest.raises(MissingDependencyError):
        pydensecrf.refine(*tile_of(), everywhere(), SPEC)


def test_steps_are_never_left_out():
    with pytest.raises(SpecError, match=r"stop_below = 0\.01 .*give 0"):
        pydensecrf.refine(*tile_of(), everywhere(), dataclasses.replace(SPEC, stop_below=0.01))


@pytest.mark.parametrize(("n_classes", "n_bands"), [(2, 1), (5, 3), (21, 4)])
def test_its_memory_grows_with_pixels_classes_and_bands(n_classes, n_bands):
    base = pydensecrf.tile_bytes(1000, n_classes=n_classes, n_bands=n_bands)
    assert pydensecrf.tile_bytes(2000, n_classes=n_classes, n_bands=n_bands) == 2 * base
    assert pydensecrf.tile_bytes(1000, n_classes=n_classes + 1, n_bands=n_bands) > base
    assert pydensecrf.tile_bytes(1000, n_classes=n_classes, n_bands=n_bands + 3) > base
    assert base >= 1000 * (305 + 44 * n_classes), "as measured with three bands"
