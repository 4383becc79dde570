"""Over what does the image-level branch of v3 and v3+ average: the window, the whole scene, or nothing?

``window`` is what the papers train: the mean of the last features over the image that the network is given. In tiles every
window then has another mean, and a pixel's logits depend on which window it was seen in, however far its edges are. ``global``
gives every window the mean over the scene, so that windows agree; ``off`` leaves the branch out, for networks that can do without.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import SpecError
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import with_image_pooling

if TYPE_CHECKING:
    from pipeline.network.choices import ImagePooling
    from pipeline.network.deeplab import DeepLab
    from pipeline.network.spec import MultiScaleSpec


def assemble(
    network: DeepLab,
    multiscale: MultiScaleSpec,
    *,
    mode: ImagePooling | None = None,
    scene_means: tuple[tuple[float, ...], ...] = (),
) -> MultiScale:
    """Return a trained network as a run uses it: with its scales, and its image-level branch in the mode that was chosen.

    Parameters
    ----------
    network
        As loaded; left as it is.
    multiscale
        The scales and mirror images.
    mode
        What the branch averages over; None: as the network says.
    scene_means
        (views, channels) for ``global``.
    """
    spec = with_image_pooling(network.spec, mode)
    if spec.image_pooling != "global":
        return MultiScale(without_image_pooling(network) if spec.image_pooling == "off" else network, multiscale)
    means = torch.tensor(scene_means, dtype=torch.float32)
    system = MultiScale(network, multiscale, means)
    expected = (len(system.views), network.backbone.high_level_channels)
    if means.shape != expected:
        raise SpecError(
            f"means of shape {tuple(means.shape)} over the scene were given to a network that needs {expected} (views, channels); measure "
            "them with the same model and scales"
        )
    return system


def without_image_pooling(network: DeepLab) -> DeepLab:
    """Return a copy of the network whose image-level branch adds nothing: its share of the projection's kernel is cut off."""
    if network.aspp is None or not network.aspp.has_image_pooling:
        return network
    shortened = deepcopy(network)
    aspp = shortened.aspp
    assert aspp is not None
    projection = aspp.project.conv
    kept = projection.in_channels - network.spec.aspp_channels
    projection.weight = nn.Parameter(projection.weight[:, :kept].detach().clone())
    projection.in_channels = kept
    aspp.branches = aspp.branches[:-1]
    aspp.has_image_pooling = False
    shortened.spec = replace(network.spec, image_pooling="off")
    return shortened


def feature_sums(system: MultiScale, window: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the last features over the valid cells of one window, for every view, and how many cells these are.

    Parameters
    ----------
    system
        The network with its scales.
    window
        (1, bands, height, width) float32, normalised.
    valid
        (height, width) bool, whether a pixel counts.

    Returns
    -------
    sums
        (views, channels) float64.
    counts
        (views,) float64.
    """
    sums, counts = [], []
    for index, (_, flip) in enumerate(system.views):
        features = system.network.features(system.view(window, index)).high_level[0].double()
        mask = functional.interpolate(valid[None, None].to(features.dtype), size=features.shape[-2:], mode="nearest")[0, 0]
        mask = mask.flip(-1) if flip else mask
        sums.append((features * mask).sum(dim=(1, 2)))
        counts.append(mask.sum())
    return torch.stack(sums), torch.stack(counts)
