"""Which networks are compared, part by part as in the four papers? All on MobileNetV2, each a row beside the papers' own figures.

Of the papers' systems v1 and v2 have output stride 8, v3 and v3+ 16. Rates of v3 and v3+ are half of the papers', since windows are
little more than half as large: so the outermost taps lie about equally far out in relation to the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.network.spec import MultiScaleSpec, NetworkSpec

SINGLE, SEVERAL = "single", "several"
WITH_CRF = "+crf"
WAYS = (SINGLE, SINGLE + WITH_CRF, SEVERAL, SEVERAL + WITH_CRF)
"""How a trained network is measured."""

V2_SCALES = MultiScaleSpec(scales=(0.5, 0.75, 1.0), fusion="max")
V3_SCALES = MultiScaleSpec(scales=(0.75, 1.0, 1.25), flip=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network, and what is said of it in its paper."""

    name: str
    """Of the row in files and on the command line."""
    paper: str
    """``v1``, ``v2``, ``v3`` or ``v3plus``."""
    title: str
    """What the table calls it."""
    network: NetworkSpec
    """How it is built."""
    loss_scales: tuple[float, ...] = (1.0,)
    """Scales at which it is trained."""
    learning_rate: float = 2e-3
    """Of the head, at first."""
    several: MultiScaleSpec = V3_SCALES
    """What "several scales" means for it."""
    weights_of: str | None = None
    """The row whose weights it is; None: it is trained."""
    is_repeated: bool = False
    """Whether it is trained with several seeds."""
    theirs: tuple[str, str]
    """The paper's mean IoU on PASCAL VOC 2012 val, %: alone, and with what else; "" where there is none."""
    source: str
    """Backbone and table of these."""


# Score layers without normalisation sum thousands of inputs, so that one step at the rate of the others moves scores by more than 10.
# Of the rates 2e-3, 5e-4, 1e-4 and 3e-5 the last two did best for v2 in trials of 60 to 80 steps; for v1, 1e-3 did better than 2e-4.
_RATE_OF_V1, _RATE_OF_V2 = 1e-3, 1e-4
_COMMON: dict[str, Any] = {"n_classes": 5, "backbone": "mobilenet_v2", "padding": "tf_same"}
_V1: dict[str, Any] = {
    **_COMMON,
    "architecture": "deeplabv1",
    "output_stride": 8,
    "image_pooling": "off",
    "atrous_rates": (12,),
    "head_channels": 256,
}
_V2: dict[str, Any] = {**_COMMON, "architecture": "deeplabv2", "output_stride": 8, "image_pooling": "off"}
_V3: dict[str, Any] = {**_COMMON, "architecture": "deeplabv3", "separable": False, "atrous_rates": (3, 6, 9)}
_V3_GRID: dict[str, Any] = {**_V3, "multi_grid": (1, 2, 4)}
_ENCODER: dict[str, Any] = {**_V3, "separable": True}
_V3PLUS: dict[str, Any] = {**_ENCODER, "architecture": "deeplabv3plus"}

ROWS = (
    Row(
        name="v1-largefov",
        paper="v1",
        title="LargeFOV",
        learning_rate=_RATE_OF_V1,
        network=NetworkSpec(**_V1),
        theirs=("62.25", "67.64 CRF"),
        source="VGG-16, table 1",
    ),
    Row(
        name="v1-msc-largefov",
        paper="v1",
        title="MSc-LargeFOV",
        learning_rate=_RATE_OF_V1,
        network=NetworkSpec(**_V1, side_channels=128),
        theirs=("64.21", "68.70 CRF"),
        source="VGG-16, table 1",
    ),
    Row(
        name="v2-largefov",
        paper="v2",
        title="LargeFOV (12)",
        learning_rate=_RATE_OF_V2,
        network=NetworkSpec(**_V2, atrous_rates=(12,)),
        several=V2_SCALES,
        theirs=("65.76", "69.84 CRF"),
        source="VGG-16, table 3",
    ),
    Row(
        name="v2-aspp-s",
        paper="v2",
        title="ASPP-S (2, 4, 8, 12)",
        learning_rate=_RATE_OF_V2,
        network=NetworkSpec(**_V2, atrous_rates=(2, 4, 8, 12)),
        several=V2_SCALES,
        theirs=("66.98", "69.73 CRF"),
        source="VGG-16, table 3",
    ),
    Row(
        name="v2-aspp-l",
        paper="v2",
        title="ASPP-L (6, 12, 18, 24)",
        learning_rate=_RATE_OF_V2,
        network=NetworkSpec(**_V2, atrous_rates=(6, 12, 18, 24)),
        several=V2_SCALES,
        theirs=("68.96", "71.57 CRF"),
        source="VGG-16, table 3",
    ),
    Row(
        name="v2-aspp-l-msc",
        paper="v2",
        title="ASPP-L, trained at 0.5, 0.75, 1 (MSC)",
        learning_rate=_RATE_OF_V2,
        network=NetworkSpec(**_V2, atrous_rates=(6, 12, 18, 24)),
        loss_scales=(0.5, 0.75, 1.0),
        several=V2_SCALES,
        theirs=("", "68.72 to 71.27 by MSC, without ASPP"),
        source="ResNet-101, table 4",
    ),
    Row(
        name="v3-aspp",
        paper="v3",
        title="ASPP",
        network=NetworkSpec(**_V3, image_pooling="off"),
        is_repeated=True,
        theirs=("75.36", ""),
        source="ResNet-101, table 5",
    ),
    Row(
        name="v3-multi-grid",
        paper="v3",
        title="+ multi-grid (1, 2, 4)",
        network=NetworkSpec(**_V3_GRID, image_pooling="off"),
        theirs=("76.58", ""),
        source="ResNet-101, table 5",
    ),
    Row(
        name="v3-pooling",
        paper="v3",
        title="+ image-level pooling",
        network=NetworkSpec(**_V3_GRID),
        theirs=("77.21", ""),
        source="ResNet-101, table 5",
    ),
    Row(
        name="v3-stride-8",
        paper="v3",
        title="the same weights at output stride 8",
        network=NetworkSpec(**_V3_GRID, output_stride=8),
        weights_of="v3-pooling",
        theirs=("78.51", "79.77 six scales, mirrored"),
        source="ResNet-101, table 6",
    ),
    Row(
        name="v3plus-encoder",
        paper="v3plus",
        title="without decoder (v3, separable)",
        network=NetworkSpec(**_ENCODER),
        theirs=("77.21", ""),
        source="ResNet-101, table 3",
    ),
    Row(
        name="v3plus-decoder",
        paper="v3plus",
        title="with decoder",
        network=NetworkSpec(**_V3PLUS),
        is_repeated=True,
        theirs=("78.85", ""),
        source="ResNet-101, table 3",
    ),
    Row(
        name="v3plus-stride-8",
        paper="v3plus",
        title="the same weights at output stride 8",
        network=NetworkSpec(**_V3PLUS, output_stride=8),
        weights_of="v3plus-decoder",
        theirs=("79.35", "80.57 six scales, mirrored"),
        source="ResNet-101, table 3",
    ),
)


def find_row(name: str) -> Row:
    """Return the row of that name."""
    return next(row for row in ROWS if row.name == name)
