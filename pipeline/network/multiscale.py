"""How does a network see one window at several sizes, and mirrored, and how do the answers become one?

DeepLab v2 (arXiv 1606.00915, section 3.2) takes at each pixel and class the maximum of the scores of all scales; v3 (arXiv 1706.05587,
section 4) averages the probabilities over scales and mirror images.

::

    window -> resize -> [mirror] -> network -> [mirror back] -> resize back -+
    window -> resize -> [mirror] -> network -> [mirror back] -> resize back -+-> fuse

A window is resized to the multiple of the output stride that is nearest to ``scale * side``. Where ``scale`` times the distance
of two windows is a multiple of the output stride, both see a pixel that they share at the same place of a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.network.cells import cells_of
from pipeline.network.resize import resize_bilinear
from pipeline.network.scales import scaled_px

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.network.cells import Cells
    from pipeline.network.deeplab import DeepLab
    from pipeline.network.spec import MultiScaleSpec


class MultiScale(nn.Module):
    """A network together with the scales and mirror images that it sees."""

    def __init__(self, network: DeepLab, spec: MultiScaleSpec, scene_means: Tensor | None = None) -> None:
        """Wrap ``network``.

        Parameters
        ----------
        network
            Sees the window once per view.
        spec
            The scales, and whether mirrored.
        scene_means
            (views, channels) the image-level features of the whole scene for every view, in the order of `views`; None: each window
            has its own.
        """
        super().__init__()
        self.scene_means: Tensor | None
        self.network = network
        self.multiscale = spec
        self.register_buffer("scene_means", scene_means)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised (N, bands, H, W) float32 to (N, classes, H, W) whose softmax over the classes is the fused answer.

        For ``max`` these are scores, for ``mean`` the logarithms of the mean probabilities.
        """
        size = (int(x.shape[-2]), int(x.shape[-1]))  # plain numbers also for a tracer
        answers = (resize_to(self._logits(x, index), size) for index in range(len(self.views)))
        if len(self.views) == 1:
            return next(answers)
        if self.multiscale.fusion == "max":
            return _fold(torch.maximum, answers)
        summed = _fold(torch.add, (torch.softmax(_full_precision(answer), dim=1) for answer in answers))
        return torch.log(summed / len(self.views) + torch.finfo(summed.dtype).tiny)

    def score(self, x: Tensor) -> Tensor:
        """Map normalised (N, bands, H, W) float32 to scores that lie over the pixels as `cells` says; their softmax is the answer."""
        if not self.multiscale.is_single:
            return self.forward(x)
        return self.network.score(x, None if self.scene_means is None else self.scene_means[0])

    @property
    def cells(self) -> Cells:
        """How the scores lie over the pixels."""
        return cells_of(self.network.spec, self.multiscale)

    @property
    def views(self) -> tuple[tuple[float, bool], ...]:
        """(scale, mirrored) of each time that the network sees a window."""
        return self.multiscale.views

    def view(self, x: Tensor, index: int) -> Tensor:
        """Return what the network sees of ``x`` (N, bands, H, W) the ``index``-th time."""
        scale, flip = self.views[index]
        stride = self.network.spec.output_stride
        size = (scaled_px(int(x.shape[-2]), scale, stride), scaled_px(int(x.shape[-1]), scale, stride))
        resized = x if scale == 1 else resize_to(x, size)
        return resized.flip(-1) if flip else resized

    def _logits(self, x: Tensor, index: int) -> Tensor:
        mean = None if self.scene_means is None else self.scene_means[index]
        logits: Tensor = self.network(self.view(x, index), mean)
        return logits.flip(-1) if self.views[index][1] else logits


def _full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32, whatever autocast made of it."""
    return x if x.dtype == torch.float64 else x.float()


def _fold(join: Callable[[Tensor, Tensor], Tensor], answers: Iterator[Tensor]) -> Tensor:
    """Join one by one, so that two answers are alive at a time."""
    joined = next(answers)
    for answer in answers:
        joined = join(joined, answer)
    return joined


def resize_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``x`` at ``size`` (height, width), itself where it has that size."""
    return x if (int(x.shape[-2]), int(x.shape[-1])) == size else resize_bilinear(x, size)
