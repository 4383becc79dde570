from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.errors import SpecError, WeightsError
from pipeline.network.checkpoint import stored_tensors
from pipeline.network.deeplab import build_network
from pipeline.network.importers import convert as module
from pipeline.network.importers import known_layouts
from pipeline.network.importers.convert import convert
from pipeline.network.importers.keymap import KeyMap, Source, pooling_last
from pipeline.network.importers.layout import Draft, Hints, Layout, Preprocessing, rates_at_16
from pipeline.network.spec import NetworkSpec

SPEC = NetworkSpec(
    n_classes=3,
    backbone="resnet18",
    atrous_rates=(1,),
    aspp_channels=8,
    low_level_channels=4,
    decoder_channels=8,
    image_pooling="off",
)


def tensors(n_classes: int = 3) -> dict[str, Tensor]:
    """A small foreign state dict: our own names with another start."""
    torch.manual_seed(0)
    own = stored_tensors(build_network(replace(SPEC, n_classes=n_classes)))
    return {f"theirs/{name}": torch.rand_like(tensor) / tensor[0].numel() for name, tensor in own.items()}


def small_layout(preprocessing: Preprocessing | None = None) -> Layout:
    """A layout for it, which leaves out a head."""

    def draft(given: Mapping[str, Tensor], _hints: Hints, _config: Mapping[str, object]) -> Draft:
        spec = replace(SPEC, n_classes=int(given["theirs/classifier.weight"].shape[0]))
        keys = KeyMap()
        with torch.device("meta"):
            names = stored_tensors(build_network(spec))
        keys.sources = {name: Source(key=f"theirs/{name}") for name in names}
        return Draft(network=spec, keys=keys, ignored=(r"aux/.*",), preprocessing=preprocessing or Preprocessing())

    return Layout(
        name="small",
        title="a small test layout",
        recognised_by="theirs/classifier.weight and theirs/classifier.bias",
        matches=lambda keys: "theirs/classifier.weight" in keys and "theirs/classifier.bias" in keys,
        draft=draft,
    )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch):
    """Put layouts in the place of the known ones."""

    def put(*layouts: Layout) -> None:
        monkeypatch.setattr(module, "known_layouts", lambda: layouts)

    put(small_layout())
    return put


def test_every_tensor_lands_under_our_name(known) -> None:
    given = tensors()
    converted = convert(given, Hints(), {})
    for name, tensor in stored_tensors(converted.network).items():
        assert torch.equal(tensor, given[f"theirs/{name}"])
    assert not converted.network.training
    assert converted.left_out == ()


def test_half_precision_becomes_float32(known) -> None:
    given = {name: tensor.half() for name, tensor in tensors().items()}
    assert all(tensor.dtype == torch.float32 for tensor in stored_tensors(convert(given, Hints(), {}).network).values())


def test_what_is_left_out_on_purpose_is_listed(known) -> None:
    given = {**tensors(), "aux/weight": torch.ones(1), "theirs/backbone.stem.norm.num_batches_tracked": torch.tensor(3)}
    assert set(convert(given, Hints(), {}).left_out) == {"aux/weight", "theirs/backbone.stem.norm.num_batches_tracked"}


def test_missing_and_extra_tensors_are_listed(known) -> None:
    given = tensors()
    del given["theirs/backbone.stem.norm.bias"]
    given["theirs/attention.weight"] = torch.ones(1)
    message = (
        r"a small test layout and does not fit it: 1 tensors are missing \[theirs/backbone\.stem\.norm\.bias\] and 1 are left over "
        r"\[theirs/attention\.weight\]; if it is a changed network, it cannot be imported"
    )
    with pytest.raises(WeightsError, match=message):
        convert(given, Hints(), {})


def test_a_list_of_many_tensors_is_cut(known) -> None:
    given = {**tensors(), **{f"extra{i:02}": torch.ones(1) for i in range(20)}}
    with pytest.raises(WeightsError, match=r"20 are left over \[extra00, .*extra07 and 12 more\]"):
        convert(given, Hints(), {})


def test_a_tensor_of_another_shape_is_named(known) -> None:
    given = {**tensors(), "theirs/backbone.stem.conv.weight": torch.zeros(64, 3, 5, 5)}
    with pytest.raises(WeightsError, match=r"stem\.conv\.weight is \(64, 3, 5, 5\); a small test layout has \(64, 3, 7, 7\)"):
        convert(given, Hints(), {})


def test_an_unknown_layout_lists_the_known_ones_and_the_first_keys() -> None:
    with pytest.raises(WeightsError) as error:
        convert({"up.weight": torch.ones(1), "down.weight": torch.ones(1)}, Hints(), {})
    text = str(error.value)
    assert "has 2 tensors, the first are [down.weight, up.weight]" in text
    assert len(known_layouts()) >= 4
    for layout in known_layouts():
        assert f"{layout.name}: {layout.title}, by {layout.recognised_by}" in text


def test_one_key_of_a_pair_is_not_enough_for_any_layout() -> None:
    for layout in known_layouts():
        assert not layout.matches({"classifier.4.weight"})
        assert not layout.matches({"segmentation_head.0.weight", "encoder.conv1.weight"})
        assert not layout.matches(set())


def test_a_layout_can_be_named_and_then_says_what_is_missing(known) -> None:
    assert convert(tensors(), Hints(), {}, layout="small").layout.name == "small"
    with pytest.raises(WeightsError, match=r"none called theirs/classifier\.weight"):
        convert({"weight": torch.ones(1)}, Hints(), {}, layout="small")


def test_a_layout_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SpecError, match=r"the layout 'torchvison' was given.*torchvision"):
        convert(tensors(), Hints(), {}, layout="torchvison")


@pytest.mark.parametrize("layout", [layout.name for layout in known_layouts()])
def test_every_layout_refuses_a_foreign_state_dict_with_an_explanation(layout: str) -> None:
    with pytest.raises((WeightsError, SpecError)):
        convert(tensors(), Hints(), {}, layout=layout)


def test_blue_green_red_becomes_red_green_blue(known) -> None:
    """In the first kernel, and in what is done to pixels."""
    bgr = Preprocessing(mean=(104.0, 117.0, 123.0), std=(1.0, 2.0, 3.0), channel_order="bgr")
    known(small_layout(bgr))
    given = tensors()
    converted = convert(given, Hints(), {})
    theirs = given["theirs/backbone.stem.conv.weight"]
    assert torch.equal(converted.network.backbone.stem.conv.weight, theirs[:, [2, 1, 0]])
    assert torch.equal(
        converted.network.backbone.stages[0][0].branch[0].conv.weight, given["theirs/backbone.stages.0.0.branch.0.conv.weight"]
    )
    assert converted.preprocessing == Preprocessing(mean=(123.0, 117.0, 104.0), std=(3.0, 2.0, 1.0), channel_order="rgb")


def test_one_output_channel_becomes_a_class_against_background(known) -> None:
    converted = convert(tensors(n_classes=1), Hints(), {})
    x = torch.randn(1, 3, 33, 47)
    with torch.inference_mode():
        scores = converted.network.score(x)
    assert scores.shape[1] == converted.network.spec.n_classes == 2
    assert float(scores[:, 0].abs().max()) == 0
    assert float(scores[:, 1].abs().max()) > 0
    assert "sigmoid" in converted.draft.assumed[-1]


@pytest.mark.parametrize(
    ("rates", "stride", "at_16"), [((6, 12, 18), 16, (6, 12, 18)), ((12, 24, 36), 8, (6, 12, 18)), ((3, 6), 32, (6, 12))]
)
def test_rates_are_kept_for_stride_16(rates: tuple[int, ...], stride: int, at_16: tuple[int, ...]) -> None:
    assert rates_at_16(rates, stride) == at_16
    assert replace(SPEC, atrous_rates=at_16, output_stride=stride).effective_atrous_rates == rates


def test_odd_rates_at_stride_8_are_refused() -> None:
    with pytest.raises(SpecError, match=r"the rates 6, 11 were given for output stride 8.*must be even: check --rates"):
        rates_at_16((6, 11), 8)


def test_the_image_level_group_of_a_kernel_moves_to_the_end() -> None:
    kernel = torch.arange(6.0).view(1, 6, 1, 1)
    assert pooling_last(3)(kernel).flatten().tolist() == [2, 3, 4, 5, 0, 1]


def test_a_folded_normalisation_adds_the_bias_and_does_nothing_else() -> None:
    keys, eps = KeyMap(), 1e-3
    keys.folded("layer", "theirs", eps=eps)
    given = {"theirs.weight": torch.randn(4, 2, 1, 1), "theirs.bias": torch.randn(4)}
    taken = {name.removeprefix("layer.norm."): source.take(given) for name, source in keys.sources.items()}
    x = torch.randn(1, 4, 3, 5)
    normed = torch.nn.functional.batch_norm(
        x, taken["running_mean"], taken["running_var"], taken["weight"], taken["bias"], training=False, eps=eps
    )
    torch.testing.assert_close(normed, x + given["theirs.bias"].view(1, -1, 1, 1))
