"""What ``atrous models list`` and ``info`` say, against what the network itself gives."""

import re
from dataclasses import replace

import pytest
from factories import lively_network, tiny_model_spec

from pipeline.crf.energy import CrfSpec
from pipeline.errors import UnknownModelError
from pipeline.network.checkpoint import save_checkpoint
from pipeline.network.deeplab import build_network
from pipeline.network.receptive_field import margin_px, receptive_field
from pipeline.network.spec import MultiScaleSpec
from pipeline.network.variants import variant
from workflows.describe_model import describe, description_lines, list_lines


@pytest.fixture
def written(tmp_path):
    """Return ``write(**changes of ModelSpec, network={...}) -> path`` of a checkpoint."""

    def write(*, network=None, **changes):
        spec = replace(tiny_model_spec(**(network or {})), **changes)
        save_checkpoint(tmp_path / "tiny.safetensors", lively_network(spec.network), spec)
        return str(tmp_path / "tiny.safetensors")

    return write


def value_of(lines, name):
    return [line[len(name) :].strip() for line in lines if line.startswith(f"{name} ")]


def test_the_facts_are_those_of_the_network_as_built(written):
    facts = describe(written())
    spec = tiny_model_spec().network
    reach = receptive_field(build_network(spec))
    assert facts["n_parameters"] == sum(parameter.numel() for parameter in build_network(spec).parameters())
    assert facts["receptive_field_px"] == reach.before_px + reach.after_px + 1
    assert facts["margin_px"] == facts["margin_without_window_px"] == margin_px(spec)
    lines = description_lines(facts)
    assert value_of(lines, "exact margin") == [f"{margin_px(spec)} px"]
    assert value_of(lines, "scales") == ["1"]
    assert value_of(lines, "bands") == ["red, green, blue"]
    assert value_of(lines, "trained at") == ["unknown per pixel"]


def test_a_model_that_averages_over_its_window_has_no_margin_and_is_told_the_way_out(written):
    facts = describe(written(network={"image_pooling": "window"}, gsd_m=0.5))
    lines = description_lines(facts)
    off = margin_px(tiny_model_spec().network)
    assert value_of(lines, "exact margin") == [f"none (image-level pooling); {off} px with --image-pooling global or off"]
    assert value_of(lines, "receptive field") == ["the whole window (image-level pooling)"]
    assert value_of(lines, "trained at") == ["0.5 m per pixel"]
    assert re.split(r"\s{2,}", list_lines([facts])[1])[3:5] == ["window", "none"]


def test_a_models_own_crf_is_shown(written):
    assert value_of(description_lines(describe(written())), "CRF") == ["none of its own"]
    facts = describe(written(crf=CrfSpec(theta_alpha=33, compatibility=((0, 1, 1), (1, 0, 1), (1, 1, 0)), absent_below=0.02)))
    assert facts["crf"]["theta_alpha"] == 33
    (line,) = value_of(description_lines(facts), "CRF")
    assert line.startswith(
        "w_appearance 4 (theta_alpha 33 px, theta_beta 3), w_smoothness 3 (theta_gamma 1 px), 10 steps, own compatib"
    )
    assert line.endswith(", absent_below 0.02; backend cpu")


def test_scales_count_in_cost_and_margin(written):
    spec = tiny_model_spec().network
    plain = describe(written())
    scaled = describe(written(multiscale=MultiScaleSpec(scales=(0.5, 1.0), flip=True, fusion="max")))
    assert scaled["gflop_per_mpx"] == pytest.approx(2.5 * plain["gflop_per_mpx"], rel=0.01)
    assert scaled["margin_px"] == margin_px(spec, MultiScaleSpec(scales=(0.5, 1.0), flip=True)) > plain["margin_px"]
    assert value_of(description_lines(scaled), "scales") == ["0.5, 1, each also mirrored, fused by max"]


def test_aligned_corners_are_named_with_the_windows_that_fit(written):
    lines = description_lines(describe(written(network={"alignment": "corner"})))
    assert "--window 513 --overlap 65" in value_of(lines, "alignment")[0]


def test_where_an_imported_model_comes_from_and_what_was_assumed(written):
    provenance = {"imported_from": "city.pth", "layout": "smp", "assumed": ["output stride 16", "RGB"]}
    lines = description_lines(describe(written(provenance=provenance)))
    assert value_of(lines, "imported from") == ["city.pth (layout smp)"]
    assert value_of(lines, "assumed") == ["output stride 16", "RGB"]


def test_where_a_trained_model_comes_from(written):
    lines = description_lines(describe(written(provenance={"trained_on": ["tile1", "tile4"]})))
    assert value_of(lines, "trained on") == ["tile1, tile4"]


def test_a_variant_is_described_without_weights():
    facts = describe("deeplabv2-vgg16-aspp-s")
    lines = description_lines(facts)
    branch = 512 * 1024 * 9 + 1024 + 1024 * 1024 + 1024 + 1024 * 21 + 21  # fc6, fc7, fc8
    assert facts["n_parameters"] == 14_714_688 + 4 * branch  # the 13 convolutions of VGG-16, and one branch for each rate
    assert value_of(lines, "atrous rates") == ["2, 4, 8, 12"]
    assert value_of(lines, "source")
    assert not value_of(lines, "licence")
    assert list_lines([facts])[1].endswith("-        v2, table 3  no weights")


def test_a_file_wins_over_a_variant_of_its_name(written, tmp_path, monkeypatch):
    path = written()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deeplabv2-vgg16-aspp-s").write_bytes((tmp_path / "tiny.safetensors").read_bytes())
    assert path
    assert describe("deeplabv2-vgg16-aspp-s")["name"] == "tiny"


def test_a_name_that_is_nothing_is_refused():
    with pytest.raises(UnknownModelError, match="neither a shipped model"):
        describe("deeplabv9")


def test_classes_are_named_where_they_are_few(written):
    few = describe(written())
    many = {**few, "classes": [{"name": f"class {index}"} for index in range(21)]}
    table = list_lines([few, many])
    assert "class 0, class 1, class 2" in table[1]
    assert " 21 " in table[2]


def test_variants_are_the_same_whether_named_or_built():
    found = variant("deeplabv3-mobilenet_v2")
    assert describe("deeplabv3-mobilenet_v2")["network"] == found.network.to_dict()
