from pathlib import Path

import pytest
import torch
from reference_packages import import_smp
from reference_twins import TOLERANCE, imported, largest_difference, pixels, shaken, twin
from torch import Tensor, nn

from pipeline.errors import SpecError, WeightsError
from pipeline.network.importers.state import read_config, read_state

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")
SMALL_RATES = (2, 4, 6)
"""In cells; with the default 12, 24, 36 all taps but the middle one would lie outside the small windows of these tests."""


def reference(architecture: str = "DeepLabV3", encoder: str = "resnet18", **choices: object) -> nn.Module:
    torch.manual_seed(0)
    network = getattr(import_smp(), architecture)(encoder, encoder_weights=None, **{"classes": 5, **choices})
    return shaken(network, network.segmentation_head[0], n_bands=choices.get("in_channels", 3))


def joined_by_centres(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = False
    return network


def scores(network: nn.Module, x: Tensor) -> Tensor:
    return network.segmentation_head[0](network.decoder(network.encoder(x)))


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("encoder", ENCODERS)
@torch.inference_mode()
def test_deeplab_v3_gives_the_same_scores(encoder: str, stride: int) -> None:
    """Before the last resizing nothing differs; sizes are odd multiples of the stride, which smp asks for."""
    theirs = reference(encoder=encoder, encoder_output_stride=stride, decoder_atrous_rates=SMALL_RATES)
    ours = twin(theirs, output_stride=stride, atrous_rates=SMALL_RATES)
    x = pixels(9 * stride, 7 * stride)
    assert largest_difference(ours.score(x), scores(theirs, x)) <= TOLERANCE
    assert largest_difference(ours(x), joined_by_centres(theirs)(x)) <= TOLERANCE


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("encoder", ENCODERS)
@torch.inference_mode()
def test_deeplab_v3plus_gives_the_same_logits_where_features_are_joined_by_their_centres(encoder: str, stride: int) -> None:
    """smp resizes inside the decoder too, corner to corner; both resizings are switched to what ours does on every window."""
    theirs = reference("DeepLabV3Plus", encoder, encoder_output_stride=stride, decoder_atrous_rates=SMALL_RATES)
    ours = twin(theirs, output_stride=stride, atrous_rates=SMALL_RATES)
    x = pixels(9 * stride, 7 * stride)
    joined_by_centres(theirs)
    assert largest_difference(ours.score(x), scores(theirs, x)) <= TOLERANCE
    assert largest_difference(ours(x), theirs(x)) <= TOLERANCE


@pytest.mark.parametrize(("architecture", "separable"), [("DeepLabV3", True), ("DeepLabV3Plus", False)])
@torch.inference_mode()
def test_the_aspp_may_be_separable_where_the_decoder_is_not_and_the_other_way_round(architecture: str, separable: bool) -> None:
    theirs = joined_by_centres(reference(architecture, decoder_aspp_separable=separable, decoder_atrous_rates=SMALL_RATES))
    ours = twin(theirs, atrous_rates=SMALL_RATES)
    x = pixels(144, 112)
    assert ours.spec.aspp_separable is separable
    assert largest_difference(ours(x), theirs(x)) <= TOLERANCE


@torch.inference_mode()
def test_the_default_rates_are_smps_own_on_a_window_that_holds_them_all() -> None:
    theirs = reference(encoder="mobilenet_v2")
    x = pixels(39 * 8, 41 * 8)
    assert largest_difference(twin(theirs).score(x), scores(theirs, x)) <= TOLERANCE
    wrong = twin(theirs, atrous_rates=(12, 24, 34))
    assert largest_difference(wrong.score(x), scores(theirs, x)) > 10 * TOLERANCE


@torch.inference_mode()
def test_unchanged_smp_differs_at_the_edges_and_hardly_in_the_middle() -> None:
    """It joins corner to corner: half a cell off at the edges, none in the middle; 8 % of the labels of this random network differ."""
    theirs = reference()
    ours, x = twin(theirs), pixels(39 * 8, 41 * 8)
    right, given = theirs(x), ours(x)
    difference = (given - right).abs().amax(dim=1)[0]
    middle = difference[39 * 4 - 4 : 39 * 4 + 4, 41 * 4 - 4 : 41 * 4 + 4]
    assert float(middle.max()) < 0.03 * float(difference.max())
    assert float((given.argmax(1) != right.argmax(1)).float().mean()) < 0.12


def test_what_the_keys_cannot_tell_is_said() -> None:
    v3, plus = imported(reference()), imported(reference("DeepLabV3Plus"))
    assert (v3.network.spec.output_stride, plus.network.spec.output_stride) == (8, 16)
    assert v3.network.spec.effective_atrous_rates == plus.network.spec.effective_atrous_rates == (12, 24, 36)
    assert len(v3.draft.assumed) == len(plus.draft.assumed) == 4
    told = "; ".join(plus.draft.assumed)
    for part in ("output stride 16", "12, 24, 36", "corner to corner", "RGB, minus 123.675"):
        assert part in told


def test_align_corners_can_be_said() -> None:
    assert twin(reference(), align_corners=True).spec.alignment == "corner"
    assert len(imported(reference(), align_corners=False).draft.assumed) == 3


def test_the_configuration_of_the_hub_form_is_heeded(tmp_path: Path) -> None:
    theirs = reference(encoder_output_stride=16, decoder_atrous_rates=SMALL_RATES, decoder_aspp_separable=True, in_channels=4)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    converted = imported(read_state(file), read_config(file))
    spec = converted.network.spec
    assert (spec.output_stride, spec.effective_atrous_rates, spec.n_bands, spec.aspp_separable) == (16, SMALL_RATES, 4, True)
    assert not any("stride 16" in sentence or "rates" in sentence for sentence in converted.draft.assumed)
    x = pixels(144, 112, n_bands=4)
    with torch.inference_mode():
        assert largest_difference(converted.network.score(x), scores(theirs, x)) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"encoder_name": "resnet34"}, WeightsError, r"'resnet34'.*tensors are those of resnet18"),
        ({"encoder_name": "resnet18", "encoder_depth": 4}, WeightsError, "depth 4"),
        ({"encoder_name": "resnet18", "encoder_output_stride": "16"}, SpecError, "encoder_output_stride '16'"),
        ({"encoder_name": "resnet18", "decoder_atrous_rates": [12, 24.5, 36]}, SpecError, r"\[12, 24\.5, 36\]"),
    ],
    ids=["other encoder", "fewer stages", "no number", "no whole numbers"],
)
def test_a_configuration_that_does_not_fit_is_refused(config: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        imported(reference(), config)


def test_a_configuration_of_something_else_is_left_alone() -> None:
    assert imported(reference(), {"encoder_output_stride": "none of ours"}).network.spec.output_stride == 8


def test_keys_of_old_versions_are_known() -> None:
    theirs = reference(decoder_atrous_rates=SMALL_RATES)
    names = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}
    old = {}
    for key, tensor in theirs.state_dict().items():
        start = next((start for start in names if key.startswith(start)), "")
        old[names.get(start, "") + key[len(start) :]] = tensor
    assert old.keys() != theirs.state_dict().keys()
    x = pixels(72, 56)
    with torch.inference_mode():
        given = imported(old, atrous_rates=SMALL_RATES).network.score(x)
        assert largest_difference(given, scores(theirs, x)) <= TOLERANCE


def test_a_head_for_classification_is_left_out_and_listed() -> None:
    converted = imported(reference(aux_params={"classes": 3}))
    assert "classification_head.3.weight" in converted.left_out
    assert all(key.endswith("num_batches_tracked") or key.startswith("classification_head.") for key in converted.left_out)


def test_one_class_becomes_two_with_its_sigmoid_as_their_softmax() -> None:
    theirs = joined_by_centres(reference(classes=1, decoder_atrous_rates=SMALL_RATES))
    ours, x = twin(theirs, atrous_rates=SMALL_RATES), pixels(72, 56)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x).softmax(dim=1)[:, 1:], theirs(x).sigmoid(), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.timm-. encoders are deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("encoder", "family"),
    [
        ("resnext50_32x4d", "ResNeXt"),
        ("se_resnet50", "SE-ResNet"),
        ("efficientnet-b0", "EfficientNet"),
        ("timm-efficientnet-b0", "EfficientNet of timm"),
        ("densenet121", "DenseNet"),
        ("vgg11_bn", "VGG"),
        ("mit_b0", "Mix Transformer"),
        ("mobileone_s0", "MobileOne"),
        ("timm-skresnet18", "changed block"),
        ("tu-resnet18", "timm model"),
    ],
)
def test_another_encoder_is_refused_by_its_family(encoder: str, family: str) -> None:
    with torch.device("cpu" if encoder == "mit_b0" else "meta"):
        state = import_smp().encoders.get_encoder(encoder, weights=None).state_dict()
    head = {"decoder.aspp.convs.0.0.weight": torch.zeros(256, 512, 1, 1), "segmentation_head.0.weight": torch.zeros(5, 256, 1, 1)}
    with pytest.raises(WeightsError, match=rf"the encoder is .*{family}.*resnet18, resnet34.*mobilenet_v2"):
        imported({**head, **{f"encoder.{key}": tensor for key, tensor in state.items()}})


def test_an_encoder_that_the_configuration_names_is_refused_by_name() -> None:
    head = {"decoder.aspp.convs.0.0.weight": torch.zeros(256, 512, 1, 1), "segmentation_head.0.weight": torch.zeros(5, 256, 1, 1)}
    with pytest.raises(WeightsError, match="the encoder is tu-convnext_tiny"):
        imported(head, {"encoder_name": "tu-convnext_tiny"})
