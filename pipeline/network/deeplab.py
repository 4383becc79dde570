"""From pixels to logits: every member of the DeepLab family, joined from its parts.

::

    v1, v2   (N, bands, H, W) -> backbone -> score branches, summed --------------------> upsample -> (N, classes, H, W)
    v3       (N, bands, H, W) -> backbone -> ASPP -> classifier -------------------------> upsample
    v3+      (N, bands, H, W) -> backbone -> stride 4 -----------------------> decoder -> classifier -> upsample
                                          -> output stride -> ASPP -> upsample -^

v1: arXiv 1412.7062, v2: 1606.00915, v3: 1706.05587 (the cascaded variant has no ASPP), v3+: 1802.02611, figure 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from pipeline.network.aspp import ASPP
from pipeline.network.backbones import backbone_entry
from pipeline.network.convolution import context_convolution
from pipeline.network.decoder import Decoder
from pipeline.network.resize import upsample
from pipeline.network.score_branches import ScoreBranches

if TYPE_CHECKING:
    from pipeline.network.features import BackboneModule, Features
    from pipeline.network.spec import NetworkSpec


class DeepLab(nn.Module):
    """A DeepLab built from its parts; ``spec`` says which."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone_entry(spec.backbone).build(spec)
        self.head = ScoreBranches(self.backbone, spec) if spec.has_score_branches else None
        self.aspp: ASPP | None = None
        self.decoder: Decoder | None = None
        if not spec.has_score_branches:
            self._add_context(self.backbone, spec)

    def _add_context(self, backbone: BackboneModule, spec: NetworkSpec) -> None:
        n_context = spec.aspp_channels if spec.has_aspp else backbone.high_level_channels
        if spec.has_aspp:
            self.aspp = ASPP(backbone.high_level_channels, spec)
        self.context = nn.Sequential(
            *(
                context_convolution(n_context, n_context, separable=spec.separable, separable_norm=spec.separable_norm)
                for _ in range(spec.context_convolutions)
            )
        )
        if spec.architecture == "deeplabv3plus":
            self.decoder = Decoder(n_low_level=backbone.low_level_channels, n_context=n_context, spec=spec)
        self.classifier = nn.Conv2d(n_context if self.decoder is None else spec.decoder_channels, spec.n_classes, 1)

    def forward(self, x: Tensor, scene_mean: Tensor | None = None) -> Tensor:
        """Map normalised (N, bands, H, W) float32 to logits (N, classes, H, W) of the same type.

        Cell (0, 0) of all features always covers the same pixels, whatever the size of the window. ``scene_mean`` (channels,) replaces
        the window's own mean in the image-level branch (`Features.high_level` averaged over the whole scene).
        """
        height, width = x.shape[-2:]
        return upsample(self.score(x, scene_mean), self.spec.score_stride, self.spec.alignment)[..., :height, :width]

    def score(self, x: Tensor, scene_mean: Tensor | None = None) -> Tensor:
        """Map (N, bands, H, W) to the scores before the last upsampling, one cell per `NetworkSpec.score_stride` pixels."""
        features = self.features(x)
        if self.head is not None:
            scored: Tensor = self.head(features)
            return scored
        context = features.high_level if self.aspp is None else self.aspp(features.high_level, scene_mean)
        context = self.context(context)
        joined = context if self.decoder is None else self.decoder(features.low_level, context)
        scores: Tensor = self.classifier(joined)
        return scores

    def features(self, x: Tensor) -> Features:
        """Map (N, bands, H, W) to what the backbone gives for it."""
        features: Features = self.backbone(self._padded(x))
        return features

    def _padded(self, x: Tensor) -> Tensor:
        """Add at the right and bottom what puts the cells where the alignment wants them.

        TensorFlow pads even sizes otherwise than odd ones, so they are made multiples of the output stride; with corners aligned a
        last cell at ``k * output stride`` is needed.
        """
        height, width = x.shape[-2:]
        stride = self.spec.output_stride
        if self.spec.alignment == "corner":
            return functional.pad(x, (0, (1 - width) % stride, 0, (1 - height) % stride), mode="replicate")
        if self.spec.padding == "tf_same":
            return functional.pad(x, (0, -width % stride, 0, -height % stride))
        return x


def build_network(spec: NetworkSpec) -> DeepLab:
    """Return the network of ``spec`` with torch's random initial weights, in training mode."""
    return DeepLab(spec)
