"""How wrong are the scores of a batch? The losses of the four papers, and one that asks for overlap.

::

    v1, v2   scores at the network's own cells against labels shrunk to them     (at = "cells")
    v2       the same at the scales 0.5, 0.75 and 1 and for their maximum, summed (scales, section 4.1.2)
    v3, v3+  scores enlarged to the pixels, labels kept whole                     (at = "pixels", v3 section 4.1)
    v3       only the hardest pixels count                                        (hard_fraction)

Labels are class ids; 255 counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import SpecError
from pipeline.network.keys import check_choice
from pipeline.network.multiscale import resize_to
from pipeline.network.resize import resize_bilinear
from pipeline.network.scales import scaled_px
from workflows.label_spec import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network.deeplab import DeepLab

LossPlace = Literal["pixels", "cells"]
"""Scores are compared with labels at every pixel, or at the network's own cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """What is made small."""

    at: LossPlace = "pixels"
    """Where scores meet labels."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which the network sees each window; with several, the losses of each and of their maximum are summed (v2)."""
    hard_fraction: float = 1.0
    """Share of the labelled pixels, those with the highest cross-entropy, that count; 1: all."""
    dice: float = 0.0
    """Weight of 1 - mean soft Dice coefficient over the classes of a batch, which small classes enter like large ones
    (Milletari et al. 2016, arXiv 1606.04797); 0: none."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, 0 to below 1 (Szegedy et al. 2016): labels may be wrong."""
    class_weights: tuple[float, ...] | None = None
    """Factors on the cross-entropy of the pixels of class 0, 1, ...; None: 1 each."""

    def __post_init__(self) -> None:
        check_choice("loss.at", self.at, get_args(LossPlace))
        if not self.scales or not all(0 < scale <= 4 for scale in self.scales):
            raise SpecError(f"loss.scales is {self.scales}; give factors above 0 and up to 4, for example 0.5, 0.75, 1.0")
        if not 0 < self.hard_fraction <= 1:
            raise SpecError(f"loss.hard_fraction is {self.hard_fraction}; give a share above 0 and up to 1, for example 0.25")
        if not self.dice >= 0 or not 0 <= self.label_smoothing < 1:
            raise SpecError(
                f"loss has dice {self.dice} and label_smoothing {self.label_smoothing}; give 0 or more, the second below 1"
            )
        if self.class_weights is not None and not all(weight >= 0 for weight in self.class_weights):
            raise SpecError(f"loss.class_weights is {self.class_weights}; give a number of 0 or more for each class")


def batch_loss(network: nn.Module, windows: Tensor, labels: Tensor, spec: LossSpec) -> Tensor:
    """Return the loss of a batch, a scalar in nats per pixel; 0 where nothing is labelled.

    Parameters
    ----------
    network
        Maps (N, bands, H, W) to scores (N, classes, h, w), at every pixel or at its cells as ``spec.at`` says.
    windows
        (N, bands, H, W) float32, normalised.
    labels
        (N, H, W) int64, 255: no label.
    spec
        What is made small.
    """
    answers = [network(_at_scale(windows, scale)).float() for scale in spec.scales]
    total = torch.stack([_loss_of(scores, labels, spec) for scores in answers]).sum()
    if len(answers) == 1:
        return total
    finest = max((int(scores.shape[-2]), int(scores.shape[-1])) for scores in answers)
    fused = torch.stack([resize_to(scores, finest) for scores in answers]).amax(dim=0)
    return total + _loss_of(fused, labels, spec)


class Scores(nn.Module):
    """What a training pass calls: a network that answers at every pixel, or at its own cells."""

    def __init__(self, network: DeepLab, at: LossPlace) -> None:
        super().__init__()
        self.network, self._at = network, at

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised (N, bands, H, W) to scores (N, classes, h, w)."""
        scores: Tensor = self.network.score(x) if self._at == "cells" else self.network(x)
        return scores


def _at_scale(windows: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return windows
    size = (scaled_px(int(windows.shape[-2]), scale, 16), scaled_px(int(windows.shape[-1]), scale, 16))
    return resize_bilinear(windows, size)


def _loss_of(scores: Tensor, labels: Tensor, spec: LossSpec) -> Tensor:
    """Return the loss of scores (N, classes, h, w) against labels (N, H, W), which are brought to (h, w) by their nearest pixel."""
    at = _shrunk(labels, (int(scores.shape[-2]), int(scores.shape[-1])))
    loss = _cross_entropy(scores, at, spec)
    return loss + spec.dice * _dice(scores, at) if spec.dice else loss


def _shrunk(labels: Tensor, size: tuple[int, int]) -> Tensor:
    if (int(labels.shape[-2]), int(labels.shape[-1])) == size:
        return labels
    return functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def _cross_entropy(scores: Tensor, labels: Tensor, spec: LossSpec) -> Tensor:
    weights = None if spec.class_weights is None else scores.new_tensor(spec.class_weights)
    each = functional.cross_entropy(
        scores, labels, weight=weights, ignore_index=IGNORED, reduction="none", label_smoothing=spec.label_smoothing
    )
    labelled = labels != IGNORED
    n_labelled = labelled.sum()
    if spec.hard_fraction == 1:
        share = n_labelled if weights is None else weights[labels.where(labelled, 0)].where(labelled, 0).sum()
        return each.sum() / share.clamp(min=1)
    n_hard = int(n_labelled * spec.hard_fraction)
    return each.flatten().topk(n_hard).values.mean() if n_hard else each.sum() * 0


def _dice(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 minus the mean over the classes that the batch shows of 2 |P T| / (|P| + |T|), P being probabilities."""
    labelled = (labels != IGNORED)[:, None]
    probabilities = scores.softmax(dim=1) * labelled
    truth = functional.one_hot(labels.where(labelled[:, 0], 0), scores.shape[1]).movedim(-1, 1) * labelled
    over = (0, 2, 3)
    common, both = (probabilities * truth).sum(over), probabilities.sum(over) + truth.sum(over)
    shown = truth.sum(over) > 0
    coefficients = (2 * common + 1) / (both + 1)
    return (1 - coefficients[shown]).sum() / shown.sum().clamp(min=1)
