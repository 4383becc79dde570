"""The losses against what torch, or a sum by hand, says."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import SpecError
from pipeline.network.deeplab import build_network
from pipeline.network.spec import NetworkSpec
from workflows.training_loss import LossSpec, Scores, batch_loss

WINDOWS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(1))
LABELS[0, :5] = 255


class Bands(nn.Module):
    """Its scores are the bands of the window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def loss(**settings) -> float:
    return float(batch_loss(Bands(), WINDOWS, LABELS, LossSpec(**settings)))


def test_without_more_it_is_torchs_cross_entropy() -> None:
    assert loss() == pytest.approx(float(functional.cross_entropy(WINDOWS, LABELS, ignore_index=255)), rel=1e-5)


def test_class_weights_and_smoothing_are_torchs() -> None:
    weights = (1.0, 3.0, 0.5)
    expected = functional.cross_entropy(WINDOWS, LABELS, weight=torch.tensor(weights), ignore_index=255)
    assert loss(class_weights=weights) == pytest.approx(float(expected), rel=1e-5)
    smoothed = functional.cross_entropy(WINDOWS, LABELS, ignore_index=255, label_smoothing=0.1)
    assert loss(label_smoothing=0.1) == pytest.approx(float(smoothed), rel=1e-5)


def test_hard_pixels_are_those_with_the_highest_cross_entropy() -> None:
    each = functional.cross_entropy(WINDOWS, LABELS, ignore_index=255, reduction="none")[LABELS != 255]
    n_hard = len(each) // 4
    assert loss(hard_fraction=0.25) == pytest.approx(float(each.sort(descending=True).values[:n_hard].mean()), rel=1e-5)


def test_dice_is_0_where_all_is_right_and_near_1_where_all_is_wrong() -> None:
    right = functional.one_hot(LABELS.where(LABELS != 255, 0), 3).movedim(-1, 1).float() * 50
    with_dice, without = (batch_loss(Bands(), right, LABELS, LossSpec(dice=weight)) for weight in (1.0, 0.0))
    assert float(with_dice - without) == pytest.approx(0, abs=1e-3)
    wrong = right.roll(1, dims=1)
    with_dice, without = (batch_loss(Bands(), wrong, LABELS, LossSpec(dice=1.0 * weight)) for weight in (1, 0))
    assert float(with_dice - without) == pytest.approx(1, abs=5e-3)


def test_dice_leaves_out_classes_that_the_batch_does_not_show() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    scores = torch.zeros(1, 3, 4, 4)
    found = batch_loss(Bands(), scores, labels, LossSpec(dice=1.0)) - math.log(3)
    assert float(found) == pytest.approx(1 - (2 * 16 / 3 + 1) / (16 / 3 + 16 + 1), rel=1e-5)


def test_a_batch_without_labels_has_loss_0_and_a_gradient_of_0() -> None:
    windows = WINDOWS.clone().requires_grad_()
    for settings in ({}, {"hard_fraction": 0.5}, {"dice": 1.0}, {"scales": (0.5, 1.0)}):
        found = batch_loss(Bands(), windows, torch.full_like(LABELS, 255), LossSpec(**settings))
        assert float(found.detach()) == 0
        found.backward()
        assert float(windows.grad.abs().max()) == 0


def test_losses_of_scales_and_of_their_maximum_are_summed() -> None:
    half = functional.interpolate(WINDOWS, (16, 16), mode="bilinear", align_corners=False)
    back = functional.interpolate(half, (32, 32), mode="bilinear", align_corners=False)
    nearest = functional.interpolate(LABELS[:, None].float(), (16, 16), mode="nearest-exact")[:, 0].long()
    pairs = ((half, nearest), (WINDOWS, LABELS), (torch.maximum(back, WINDOWS), LABELS))
    expected = sum(float(functional.cross_entropy(scores, labels, ignore_index=255)) for scores, labels in pairs)
    assert loss(scales=(0.5, 1.0)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_at_cells_labels_are_shrunk_to_the_scores() -> None:
    network = build_network(
        NetworkSpec(n_classes=3, architecture="deeplabv1", backbone_width=0.25, image_pooling="off", atrous_rates=(2,))
    ).eval()
    scores = network.score(WINDOWS)
    assert scores.shape[-2:] == (2, 2)
    nearest = functional.interpolate(LABELS[:, None].float(), (2, 2), mode="nearest-exact")[:, 0].long()
    expected = functional.cross_entropy(scores, nearest, ignore_index=255)
    spec = LossSpec(at="cells")
    assert float(batch_loss(Scores(network, spec.at), WINDOWS, LABELS, spec)) == pytest.approx(float(expected), rel=1e-5)
    pixels = batch_loss(Scores(network, "pixels"), WINDOWS, LABELS, LossSpec())
    assert float(pixels) == pytest.approx(float(functional.cross_entropy(network(WINDOWS), LABELS, ignore_index=255)), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"at": "corners"},
        {"scales": ()},
        {"scales": (0.0,)},
        {"hard_fraction": 0.0},
        {"hard_fraction": 1.5},
        {"dice": -1.0},
        {"label_smoothing": 1.0},
        {"class_weights": (-1.0, 1.0)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(SpecError, match="loss"):
        LossSpec(**settings)
