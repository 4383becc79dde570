import pytest
import torch
from torch import nn

from pipeline.errors import SpecError
from pipeline.network.deeplab import build_network
from pipeline.network.spec import NetworkSpec

SMALL = {"n_classes": 2, "aspp_channels": 8, "low_level_channels": 4, "decoder_channels": 8}


def separable_parts(network: nn.Module) -> set[str]:
    """The parts of the network, behind the backbone, that have a depthwise convolution."""
    found = {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1}
    return {name.partition(".")[0] for name in found} - {"backbone"}


@pytest.mark.parametrize(
    ("separable", "aspp_separable", "parts"),
    [
        (True, None, {"aspp", "decoder"}),
        (False, None, set()),
        (True, False, {"decoder"}),
        (False, True, {"aspp"}),
    ],
)
def test_the_aspp_is_separable_like_the_rest_unless_said_otherwise(
    separable: bool, aspp_separable: bool | None, parts: set[str]
) -> None:
    spec = NetworkSpec(**SMALL, separable=separable, aspp_separable=aspp_separable)
    assert NetworkSpec.from_dict(spec.to_dict()) == spec
    with torch.device("meta"):
        assert separable_parts(build_network(spec)) == parts


@pytest.mark.parametrize("aspp_separable", [True, False])
def test_a_network_without_aspp_has_no_such_choice(aspp_separable: bool) -> None:
    with pytest.raises(SpecError, match=r"aspp_separable is (True|False) and this network has no ASPP; leave it out"):
        NetworkSpec(
            n_classes=2,
            architecture="deeplabv2",
            backbone="resnet101",
            output_stride=8,
            image_pooling="off",
            aspp_separable=aspp_separable,
        )
