"""From pixels to logits: backbone, ASPP, decoder, classifier (DeepLab v3+, arXiv 1802.02611, figure 2).

::

    (N, bands, H, W) -> backbone -> stride 4 -----------------------> decoder -> classifier -> upsample
                                 -> output stride -> ASPP -> upsample -^       -> (N, classes, H, W)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from pipeline.network.aspp import ASPP
from pipeline.network.backbones.mobilenet_v2 import MobileNetV2
from pipeline.network.decoder import Decoder
from pipeline.network.resize import resize_bilinear

if TYPE_CHECKING:
    from pipeline.network.spec import NetworkSpec


class DeepLab(nn.Module):
    """A DeepLab built from its parts; ``spec`` says which."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = MobileNetV2(n_bands=spec.n_bands, output_stride=spec.output_stride, padding=spec.padding)
        self.aspp = ASPP(
            self.backbone.high_level_channels,
            spec.aspp_channels,
            rates=spec.effective_atrous_rates,
            separable=spec.separable,
            image_pooling=spec.image_pooling == "window",
        )
        self.decoder = Decoder(
            n_low_level=self.backbone.low_level_channels,
            n_reduced=spec.low_level_channels,
            n_context=spec.aspp_channels,
            n_out=spec.decoder_channels,
            separable=spec.separable,
        )
        self.classifier = nn.Conv2d(spec.decoder_channels, spec.n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised (N, bands, H, W) float32 to logits (N, classes, H, W) of the same type.

        A size that is no multiple of the output stride is zero-padded at the right and bottom, so that cell
        (0, 0) always covers the same pixels and the grid does not depend on the size of the window.
        """
        height, width = x.shape[-2:]
        padded = functional.pad(x, (0, -width % self.spec.output_stride, 0, -height % self.spec.output_stride))
        low_level, high_level = self.backbone(padded)
        logits = self.classifier(self.decoder(low_level, self.aspp(high_level)))
        return resize_bilinear(logits, (padded.shape[-2], padded.shape[-1]))[..., :height, :width]


def build_network(spec: NetworkSpec) -> DeepLab:
    """Return the network of ``spec`` with torch's random initial weights, in training mode."""
    return DeepLab(spec)
