"""The CRF of a tile against pydensecrf's own 2-D interface and against a mean field over all pairs."""

import numpy as np
import pytest
from PIL import Image

from pipeline.crf import pydensecrf
from pipeline.crf.energy import CrfSpec
from pipeline.errors import MissingDependencyError

dcrf = pytest.importorskip("pydensecrf.densecrf")

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
    ],
)
def test_a_tile_is_what_pydensecrf_makes_of_the_image(changes):
    spec = CrfSpec(**{**{name: getattr(SPEC, name) for name in SPEC.__slots__}, **changes})
    probabilities, guide = tile_of()
    image = np.ascontiguousarray(guide.astype(np.uint8).transpose(1, 2, 0))
    crf = dcrf.DenseCRF2D(SHAPE[1], SHAPE[0], 3)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(3, -1)))
    if spec.w_smoothness:
        crf.addPairwiseGaussian(sxy=spec.theta_gamma, compat=spec.w_smoothness)
    if spec.w_appearance:
        crf.addPairwiseBilateral(sxy=spec.theta_alpha, srgb=spec.theta_beta, rgbim=image, compat=spec.w_appearance)
    expected = np.array(crf.inference(spec.n_steps)).reshape(3, *SHAPE)
    refined = pydensecrf.refine(probabilities, guide, everywhere(), spec)
    assert refined.dtype == np.float32
    assert np.abs(refined - probabilities).max() > 0.05, "or this test could not fail"
    np.testing.assert_allclose(refined, expected, rtol=0, atol=1e-5)


def test_probabilities_of_0_and_1_are_kept_finite_as_by_unary_from_softmax():
    from pydensecrf.utils import unary_from_softmax

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


def mean_field(probabilities, guide, spec):
    """Return the marginals with every pair of pixels in float64.

    The kernels hold the pair of a pixel with itself and are divided by the roots of the row sums of both pixels (pydensecrf's
    NORMALIZE_SYMMETRIC); all pixels move at once.
    """
    n_classes, height, width = probabilities.shape
    rows, cols = np.mgrid[:height, :width]
    positions = np.stack([rows.ravel(), cols.ravel()]).astype(float)
    appearance = np.concatenate([positions / spec.theta_alpha, guide.reshape(len(guide), -1) / spec.theta_beta])
    coupling = np.zeros((height * width, height * width))
    for features, weight in ((appearance, spec.w_appearance), (positions / spec.theta_gamma, spec.w_smoothness)):
        kernel = np.exp(-((features[:, :, None] - features[:, None, :]) ** 2).sum(axis=0) / 2)
        root = np.sqrt(kernel.sum(axis=1))
        coupling += weight * kernel / root[:, None] / root[None, :]
    unary = -np.log(np.clip(probabilities.reshape(n_classes, -1).astype(float), 1e-5, 1))
    marginals = np.exp(-unary) / np.exp(-unary).sum(axis=0)
    for _ in range(spec.n_steps):
        raised = np.exp(marginals @ coupling - unary)
        marginals = raised / raised.sum(axis=0)
    return marginals.reshape(probabilities.shape)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(CrfSpec(theta_gamma=2.0, w_smoothness=2.0, w_appearance=0.0, n_steps=5), id="smoothness"),
        pytest.param(CrfSpec(theta_alpha=3.0, theta_beta=20.0, w_smoothness=0.0, w_appearance=2.0, n_steps=5), id="appearance"),
        pytest.param(SPEC, id="both"),
    ],
)
def test_the_marginals_are_those_of_the_mean_field_over_all_pairs(spec):
    """The lattice's filter is approximate: 0.06 at the worst pixel and 0.01 on average are allowed."""
    probabilities, guide = tile_of((8, 9))
    refined = pydensecrf.refine(probabilities, guide, everywhere((8, 9)), spec)
    exact = mean_field(probabilities, guide, spec)
    assert np.abs(exact - probabilities).max() > 0.12, "or the tolerance would say nothing"
    assert np.abs(refined - exact).max() < 0.06
    assert np.abs(refined - exact).mean() < 0.01


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
    with pytest.raises(MissingDependencyError, match=r"pydensecrf2.*pip install 'atrous\[crf\]'.*--no-crf"):
        pydensecrf.require()
    with pytest.raises(MissingDependencyError):
        pydensecrf.refine(*tile_of(), everywhere(), SPEC)


@pytest.mark.shared
def test_pydensecrfs_own_example_comes_out_as_published(shared):
    """Its inference.py: a drawn annotation, 70 % certain, sxy 3 / compat 3 and sxy 80, srgb 13, compat 10, five steps."""
    image, drawn, published = (
        np.asarray(Image.open(shared / "crf" / f"{name}1.png").convert("RGB")) for name in ("im", "anno", "out")
    )
    colors, ids = np.unique(drawn.reshape(-1, 3), axis=0, return_inverse=True)
    ids, colors = ids.reshape(drawn.shape[:2]) - 1, colors[1:]
    assert (drawn[ids < 0] == 0).all(), "black is unlabelled"
    probabilities = np.full((len(colors), *ids.shape), 0.3 / (len(colors) - 1), np.float32)
    np.put_along_axis(probabilities, ids.clip(0)[None], np.float32(0.7), axis=0)
    probabilities[:, ids < 0] = 1 / len(colors)
    spec = CrfSpec(theta_alpha=80.0, theta_beta=13.0, theta_gamma=3.0, w_appearance=10.0, w_smoothness=3.0, n_steps=5)
    refined = pydensecrf.refine(probabilities, image.transpose(2, 0, 1).astype(np.float32), everywhere(ids.shape), spec)
    found = colors[refined.argmax(axis=0)]
    assert (found != drawn).any(axis=-1).mean() > 0.05, "the CRF fills what was not drawn"
    assert (found == published).all(axis=-1).mean() > 0.999
