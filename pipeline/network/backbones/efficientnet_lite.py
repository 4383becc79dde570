"""EfficientNet-Lite0 as an atrous feature extractor: the blocks of MobileNetV2, some of them with 5 x 5 depthwise kernels.

The shape is that of EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946, table 1). The Lite release (tensorflow/tpu,
``efficientnet/lite``) leaves out squeeze-and-excitation and puts ReLU6 in place of Swish, so that it runs well where a CPU or 8-bit
arithmetic does the work.
"""

from __future__ import annotations

from pipeline.network.backbones.inverted_residual import InvertedResidualBackbone, Stage
from pipeline.network.features import Backbone

STAGES = (
    Stage(expansion=1, channels=16, n_blocks=1, stride=1),
    Stage(expansion=6, channels=24, n_blocks=2, stride=2),
    Stage(expansion=6, channels=40, n_blocks=2, stride=2, kernel=5),
    Stage(expansion=6, channels=80, n_blocks=3, stride=2),
    Stage(expansion=6, channels=112, n_blocks=3, stride=1, kernel=5),
    Stage(expansion=6, channels=192, n_blocks=4, stride=2, kernel=5),
    Stage(expansion=6, channels=320, n_blocks=1, stride=1),
)
"""16 blocks."""


class EfficientNetLite0(InvertedResidualBackbone):
    """The convolutional part of EfficientNet-Lite0."""

    stages = STAGES
    last_low_level_block = 2
    side_blocks = (0, 2, 4, 10)


BACKBONES = {
    "efficientnet_lite0": Backbone(
        build=EfficientNetLite0,
        knobs=frozenset({"backbone_eps", "final_expansion", "entry_rate", "multi_grid", "side_channels", "padding"}),
    )
}
