"""The mean field over all pairs of pixels: by hand, against plain sums, and what must hold of it whatever the numbers."""

import dataclasses
import math

import numpy as np
import pytest

from pipeline.crf import exact
from pipeline.crf.energy import CrfSpec

SPEC = CrfSpec(theta_alpha=4.0, theta_beta=10.0, theta_gamma=1.5, w_appearance=4.0, w_smoothness=3.0, n_steps=5)
COSTS = ((0.0, 1.5, 0.25), (1.5, 0.0, -0.5), (0.25, -0.5, 0.125))


def tile_of(shape=(7, 11), *, n_classes=3, n_bands=3, seed=0):
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    patches = (rows // 3 + cols // 4) % n_classes
    guide = 40.0 + 60.0 * patches + rng.normal(0, 5, (n_bands, *shape))
    raw = rng.uniform(0.05, 1, (n_classes, *shape)) + 0.4 * (patches == np.arange(n_classes)[:, None, None])
    return (raw / raw.sum(axis=0)).astype(np.float32), guide.round().clip(0, 255).astype(np.float32)


def everywhere(shape=(7, 11)):
    return np.ones(shape, bool)


def mean_field(probabilities, guide, valid, spec):
    """Return the marginals of the valid pixels, (classes, pixels), by loops over pixels and classes as in the paper."""
    places = np.argwhere(valid)
    colors = guide[:, valid].T.astype(float)
    n, n_classes = len(places), len(probabilities)
    coupling = np.zeros((n, n))
    for weight, theta, with_color in ((spec.w_appearance, spec.theta_alpha, True), (spec.w_smoothness, spec.theta_gamma, False)):
        kernel = np.empty((n, n))
        for i in range(n):
            square = ((places - places[i]) ** 2).sum(axis=1) / (2 * theta**2)
            if with_color:
                square = square + ((colors - colors[i]) ** 2).sum(axis=1) / (2 * spec.theta_beta**2)
            kernel[i] = np.exp(-square)
        sums = kernel.sum(axis=1)
        coupling += weight * kernel / np.sqrt(np.outer(sums, sums))
    potts = [[float(a != b) for b in range(n_classes)] for a in range(n_classes)]
    costs = np.array(potts if spec.compatibility is None else spec.compatibility)
    unary = -np.log(probabilities[:, valid].astype(float))
    q = np.exp(-unary)
    q /= q.sum(axis=0)
    for _ in range(spec.n_steps):
        energy = np.array([unary[a] + sum(costs[a, b] * (coupling @ q[b]) for b in range(n_classes)) for a in range(n_classes)])
        q = np.exp(-energy)
        q /= q.sum(axis=0)
    return q


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="Potts"),
        pytest.param({"compatibility": COSTS}, id="matrix"),
        pytest.param({"w_smoothness": 0.0}, id="appearance"),
        pytest.param({"w_appearance": 0.0}, id="smoothness"),
        pytest.param({"n_steps": 1}, id="one step"),
    ],
)
@pytest.mark.parametrize("n_bands", [0, 1, 3])
def test_it_is_the_sum_over_all_pairs(changes, n_bands):
    spec = dataclasses.replace(SPEC, **changes)
    probabilities, guide = tile_of(n_bands=n_bands)
    valid = everywhere()
    valid[2:4, 3:8] = False
    refined = exact.refine(probabilities, guide, valid, spec)
    assert refined.dtype == np.float32
    expected = mean_field(probabilities, guide, valid, spec)
    assert np.abs(expected - probabilities[:, valid]).max() > 0.1, "or this test could not fail"
    np.testing.assert_allclose(refined[:, valid], expected, atol=1e-6)
    np.testing.assert_array_equal(refined[:, ~valid], probabilities[:, ~valid])


def test_two_pixels_by_hand():
    """Two pixels side by side, one step, smoothness only: k = exp(-1/2), both sums are 1 + k."""
    probabilities = np.array([[[0.8, 0.4]], [[0.2, 0.6]]], np.float32)
    spec = CrfSpec(theta_gamma=1.0, w_smoothness=2.0, w_appearance=0.0, n_steps=1)
    refined = exact.refine(probabilities, np.zeros((1, 1, 2), np.float32), np.ones((1, 2), bool), spec)
    k = math.exp(-0.5)
    message = [2 * (0.8 + k * 0.4) / (1 + k), 2 * (0.2 + k * 0.6) / (1 + k)]  # of each class to the first pixel
    raised = [0.8 * math.exp(message[0]), 0.2 * math.exp(message[1])]
    assert refined[0, 0, 0] == pytest.approx(raised[0] / sum(raised), abs=1e-6)
    message = [2 * (0.4 + k * 0.8) / (1 + k), 2 * (0.6 + k * 0.2) / (1 + k)]
    raised = [0.4 * math.exp(message[0]), 0.6 * math.exp(message[1])]
    assert refined[0, 0, 1] == pytest.approx(raised[0] / sum(raised), abs=1e-6)


def test_renaming_classes_renames_the_answer():
    probabilities, guide = tile_of()
    order = [2, 0, 1]
    costs = np.array(COSTS)[np.ix_(order, order)]
    spec = dataclasses.replace(SPEC, compatibility=COSTS)
    other = dataclasses.replace(SPEC, compatibility=tuple(map(tuple, costs)))
    expected = exact.refine(probabilities, guide, everywhere(), spec)[order]
    np.testing.assert_allclose(exact.refine(probabilities[order], guide, everywhere(), other), expected, atol=1e-6)


def test_without_kernels_the_probabilities_come_back():
    probabilities, guide = tile_of()
    spec = dataclasses.replace(SPEC, w_appearance=0.0, w_smoothness=0.0)
    np.testing.assert_allclose(exact.refine(probabilities, guide, everywhere(), spec), probabilities, atol=1e-6)


def test_the_potts_model_is_a_matrix_of_ones_off_the_diagonal():
    probabilities, guide = tile_of()
    potts = dataclasses.replace(SPEC, compatibility=((0, 1, 1), (1, 0, 1), (1, 1, 0)))
    expected = exact.refine(probabilities, guide, everywhere(), SPEC)
    np.testing.assert_allclose(exact.refine(probabilities, guide, everywhere(), potts), expected, atol=1e-6)


@pytest.mark.parametrize("flip", [np.s_[..., ::-1, :], np.s_[..., ::-1], np.s_[..., ::-1, ::-1]], ids=["rows", "columns", "both"])
def test_a_mirrored_tile_gives_the_mirrored_answer(flip):
    probabilities, guide = tile_of()
    expected = exact.refine(probabilities, guide, everywhere(), SPEC)[flip]
    np.testing.assert_allclose(exact.refine(probabilities[flip], guide[flip], everywhere(), SPEC), expected, atol=1e-6)


def test_a_symmetric_tile_gives_a_symmetric_answer():
    probabilities, guide = tile_of()
    both = np.concatenate([probabilities, probabilities[..., ::-1]], axis=2), np.concatenate([guide, guide[..., ::-1]], axis=2)
    refined = exact.refine(*both, everywhere((7, 22)), SPEC)
    np.testing.assert_allclose(refined, refined[..., ::-1], atol=1e-6)


def test_a_constant_tile_becomes_surer_of_its_best_class_everywhere():
    probabilities = np.broadcast_to(np.array([0.5, 0.3, 0.2], np.float32)[:, None, None], (3, 6, 9)).copy()
    refined = exact.refine(probabilities, np.full((3, 6, 9), 90, np.float32), everywhere((6, 9)), SPEC)
    assert (refined[0] > 0.5).all()
    assert (refined[1] > refined[2]).all()
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-6)


def test_chunks_of_rows_do_not_change_the_answer(monkeypatch):
    probabilities, guide = tile_of()
    expected = exact.refine(probabilities, guide, everywhere(), SPEC)
    monkeypatch.setattr(exact, "_CHUNK_BYTES", 8 * 77 * 10)
    np.testing.assert_allclose(exact.refine(probabilities, guide, everywhere(), SPEC), expected, atol=1e-7)
    monkeypatch.setattr(exact, "_HELD_BYTES", 0)
    np.testing.assert_allclose(exact.refine(probabilities, guide, everywhere(), SPEC), expected, atol=1e-7)


def test_a_tile_without_data_comes_back_unchanged():
    probabilities, guide = tile_of()
    np.testing.assert_array_equal(exact.refine(probabilities, guide, ~everywhere(), SPEC), probabilities)


def test_probabilities_of_0_and_1_are_kept_finite():
    certain = np.zeros((2, 3, 5), np.float32)
    certain[0] = 1
    assert np.isfinite(exact.refine(certain, np.zeros((1, 3, 5), np.float32), everywhere((3, 5)), SPEC)).all()


def test_it_needs_nothing_and_knows_its_memory():
    exact.require()
    assert exact.tile_bytes(2000, n_classes=5, n_bands=3) > exact.tile_bytes(1000, n_classes=5, n_bands=3) > 2 * exact._HELD_BYTES
