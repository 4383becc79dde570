import json
import pickle
from dataclasses import replace

import pytest

from pipeline.crf.energy import CrfSpec
from pipeline.errors import SpecError
from pipeline.network.spec import ClassSpec, ModelSpec, NetworkSpec

NETWORK = NetworkSpec(n_classes=2, n_bands=4, atrous_rates=(2, 5), output_stride=8, image_pooling="off")
MODEL = ModelSpec(
    name="small",
    network=NETWORK,
    classes=(ClassSpec(name="land", color="#00ff7F"), ClassSpec(name="sea", color="#0000ff")),
    bands=("b", "g", "r", "nir"),
    mean=(1.0, 2.0, 3.0, 4.0),
    std=(0.5, 0.25, 1.0, 2.0),
    input_range=(0.0, 1.0),
    gsd_m=0.3,
    licence="CC0-1.0",
    provenance={"n_steps": 3, "scenes": ["a", "b"], "metrics": {"a": {"miou": None}}},
)


def test_a_model_survives_json_and_back() -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(MODEL.to_dict()))) == MODEL


def test_a_crf_travels_with_its_model() -> None:
    crf = CrfSpec(theta_alpha=9, compatibility=((0, 2), (2, 0)), guide_bands=(4, 1), stop_below=0.01)
    with_crf = replace(MODEL, crf=crf)
    assert ModelSpec.from_dict(json.loads(json.dumps(with_crf.to_dict()))) == with_crf
    assert with_crf != MODEL


def test_a_model_without_crf_is_described_as_it_always_was() -> None:
    assert "crf" not in MODEL.to_dict()


def test_a_crf_for_other_classes_is_refused() -> None:
    with pytest.raises(SpecError, match="compatibility of 3 classes was given; the model has 2"):
        replace(MODEL, crf=CrfSpec(compatibility=((0, 1, 1), (1, 0, 1), (1, 1, 0))))
    with pytest.raises(SpecError, match=r"guide_bands = 5 .*the model has 4 band"):
        replace(MODEL, crf=CrfSpec(guide_bands=(5,)))


def test_a_network_survives_json_and_back() -> None:
    assert NetworkSpec.from_dict(json.loads(json.dumps(NETWORK.to_dict()))) == NETWORK


def test_specs_survive_a_pickle() -> None:
    assert pickle.loads(pickle.dumps(MODEL)) == MODEL


def test_rates_are_doubled_at_output_stride_8() -> None:
    assert NetworkSpec(n_classes=2, output_stride=16).effective_atrous_rates == (6, 12, 18)
    assert NetworkSpec(n_classes=2, output_stride=8).effective_atrous_rates == (12, 24, 36)


def test_a_colour_is_read_as_rgb() -> None:
    assert ClassSpec(name="land", color="#00ff7F").rgb == (0, 255, 127)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_classes": 0}, "n_classes is 0"),
        ({"n_classes": 256}, "1 to 255"),
        ({"output_stride": 12}, "8, 16, 32"),
        ({"architecture": "unet"}, "deeplabv3plus"),
        ({"backbone": "vgg"}, "mobilenet_v2"),
        ({"padding": "reflect"}, "tf_same"),
        ({"image_pooling": "mean"}, "global, window, off"),
        ({"atrous_rates": (), "architecture": "deeplabv2"}, "at least one rate"),
        ({"architecture": "deeplabv2", "image_pooling": "window"}, "no ASPP"),
        ({"architecture": "deeplabv2", "head_kernel": 4, "atrous_rates": (3,)}, "even kernel needs even rates"),
        ({"architecture": "deeplabv2", "side_channels": 128}, "only deeplabv1 has MSc"),
        ({"cascade_blocks": 3}, "only deeplabv3 is cascaded"),
        ({"stem": "deep"}, "mobilenet_v2 has no such choice"),
        ({"backbone": "resnet50", "padding": "tf_same"}, "resnet50 has no such choice"),
        ({"backbone": "resnet50", "multi_grid": (1, 2)}, "three factors"),
        ({"backbone": "resnet50", "multi_grid": (1, 2, 0)}, "multi_grid is 0"),
        ({"backbone_width": 0.0}, "backbone_width is 0.0"),
        ({"backbone_eps": 0.0}, "backbone_eps is 0.0"),
        ({"alignment": "left"}, "centre, corner"),
        ({"atrous_rates": (6, 0)}, "atrous_rates is 0"),
        ({"n_bands": 0}, "n_bands is 0"),
        ({"decoder_channels": 1.5}, "decoder_channels is 1.5"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(change: dict, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        replace(NETWORK, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": MODEL.classes[:1]}, "classes of model 'small' has 1 entries; 2 are needed"),
        ({"classes": MODEL.classes[:1] * 2}, "one name"),
        ({"bands": ("b", "g", "r")}, "bands of model 'small' has 3"),
        ({"mean": (1.0,)}, "mean of model 'small' has 1"),
        ({"std": (1.0, 1.0, 1.0, 0.0)}, "above 0"),
        ({"mean": (1.0, 2.0, 3.0, float("nan"))}, "finite"),
        ({"input_range": (1.0, 1.0)}, "below the second"),
        ({"gsd_m": 0.0}, "gsd_m is 0.0"),
        ({"name": " "}, "without a name"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(change: dict, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        replace(MODEL, **change)


@pytest.mark.parametrize("color", ["3c1098", "#3c109", "#3c109g", "red", "#3c1098\n"])
def test_a_colour_in_another_notation_is_refused(color: str) -> None:
    with pytest.raises(SpecError, match="#rrggbb"):
        ClassSpec(name="land", color=color)


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SpecError, match="did you mean 'output_stride'"):
        NetworkSpec.from_dict({"n_classes": 2, "output_strid": 16})


def test_a_missing_key_is_named() -> None:
    values = MODEL.to_dict()
    del values["classes"]
    with pytest.raises(SpecError, match=r"lacks .*classes"):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        {"context_convolutions": 2**31},
        {"decoder_convolutions": 65},
        {"aspp_channels": 2**40},
        {"n_bands": 1025},
        {"backbone_width": 1e6},
        {"atrous_rates": (1,) * 65},
        {"atrous_rates": (2**31,)},
    ],
    ids=str,
)
def test_a_network_that_no_file_could_hold_is_refused_before_it_is_built(change: dict) -> None:
    with pytest.raises(SpecError, match="at most"):
        replace(NETWORK, **change)
