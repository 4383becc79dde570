"""MobileNetV2 as an atrous feature extractor (Sandler et al. 2018, arXiv 1801.04381, table 2)."""

from __future__ import annotations

from pipeline.network.backbones.inverted_residual import InvertedResidualBackbone, Stage
from pipeline.network.features import Backbone

STAGES = (
    Stage(expansion=1, channels=16, n_blocks=1, stride=1),
    Stage(expansion=6, channels=24, n_blocks=2, stride=2),
    Stage(expansion=6, channels=32, n_blocks=3, stride=2),
    Stage(expansion=6, channels=64, n_blocks=4, stride=2),
    Stage(expansion=6, channels=96, n_blocks=3, stride=1),
    Stage(expansion=6, channels=160, n_blocks=3, stride=2),
    Stage(expansion=6, channels=320, n_blocks=1, stride=1),
)
"""17 blocks."""


class MobileNetV2(InvertedResidualBackbone):
    """The convolutional part of MobileNetV2."""

    stages = STAGES
    last_low_level_block = 2
    side_blocks = (0, 2, 5, 12)


BACKBONES = {
    "mobilenet_v2": Backbone(
        build=MobileNetV2,
        knobs=frozenset(
            {"backbone_width", "backbone_eps", "final_expansion", "entry_rate", "multi_grid", "side_channels", "padding"}
        ),
    )
}
