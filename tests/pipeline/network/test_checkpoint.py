import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import StoreError, WeightsError
from pipeline.network.checkpoint import load_network, save_checkpoint
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.model_file import copy_with_spec, file_sha256, read_model_spec
from pipeline.network.spec import ClassSpec, ModelSpec, NetworkSpec

NETWORK = NetworkSpec(n_classes=2, atrous_rates=(1,), aspp_channels=8, low_level_channels=4, decoder_channels=8)
MODEL = ModelSpec(
    name="small",
    network=NETWORK,
    classes=(ClassSpec(name="land", color="#00ff7f"), ClassSpec(name="sea", color="#0000ff")),
    bands=("r", "g", "b"),
    mean=(1.0, 2.0, 3.0),
    std=(0.5, 0.25, 1.0),
    provenance={"n_steps": 3},
)


@pytest.fixture
def network() -> DeepLab:
    torch.manual_seed(1)
    return build_network(NETWORK)


@pytest.fixture
def checkpoint(tmp_path: Path, network: DeepLab) -> Path:
    save_checkpoint(tmp_path / "small.safetensors", network, MODEL)
    return tmp_path / "small.safetensors"


def rewrite(path: Path, tensors: dict[str, torch.Tensor], *, header: dict | None = None) -> None:
    metadata = {"atrous_model": json.dumps(header or {"format": 1, "model": MODEL.to_dict()})}
    save_file(tensors, path, metadata=metadata)


def test_what_was_saved_is_loaded_in_evaluation_mode(checkpoint: Path, network: DeepLab) -> None:
    spec, loaded = load_network(checkpoint)
    assert spec == MODEL
    assert not loaded.training
    network.eval()
    window = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(window), network(window), rtol=1e-2, atol=1e-2)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_saving_what_was_loaded_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    spec, loaded = load_network(checkpoint)
    save_checkpoint(tmp_path / "again.safetensors", loaded, spec)
    assert (tmp_path / "again.safetensors").read_bytes() == checkpoint.read_bytes()
    assert file_sha256(tmp_path / "again.safetensors") == file_sha256(checkpoint)


def test_nothing_else_is_left_in_the_folder(checkpoint: Path) -> None:
    assert [path.name for path in checkpoint.parent.iterdir()] == ["small.safetensors"]


def test_the_description_is_read_without_the_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.network.checkpoint.build_network", None)
    assert read_model_spec(checkpoint) == MODEL


def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, network: DeepLab) -> None:
    path = tmp_path / "model.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(WeightsError, match=r"model\.pth is a pickle.*can run code"):
        load_network(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a not a model", b"\x80\x04K\x01."])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.safetensors"):
        load_network(path)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999])
def test_a_truncated_file_is_refused(checkpoint: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match="truncated"):
        load_network(checkpoint)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a file"):
        load_network(tmp_path / "none.safetensors")


def test_missing_and_unknown_tensors_are_listed(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    tensors["head.weight"] = tensors.pop("classifier.weight")
    rewrite(checkpoint, tensors)
    with pytest.raises(WeightsError, match=r"classifier\.weight.*head\.weight"):
        load_network(checkpoint)


def test_a_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    tensors["classifier.weight"] = torch.zeros(5, 8, 1, 1)
    rewrite(checkpoint, tensors)
    with pytest.raises(WeightsError, match=r"classifier\.weight is \(5, 8, 1, 1\).*\(2, 8, 1, 1\)"):
        load_network(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(checkpoint: Path, value: float) -> None:
    tensors = load_file(checkpoint)
    tensors["classifier.bias"][1] = value
    rewrite(checkpoint, tensors)
    with pytest.raises(WeightsError, match=r"classifier\.bias"):
        load_network(checkpoint)


def test_weights_beyond_float16_are_not_saved(tmp_path: Path, network: DeepLab) -> None:
    network.classifier.weight.data.fill_(1e6)
    with pytest.raises(WeightsError, match=r"classifier\.weight"):
        save_checkpoint(tmp_path / "huge.safetensors", network, MODEL)
    assert not list(tmp_path.iterdir())


def test_tensors_without_a_description_are_refused(tmp_path: Path) -> None:
    save_file({"classifier.weight": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="no description"):
        read_model_spec(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"format": 99, "model": {}}, "format 99"),
        ({"model": {}}, "does not understand"),
        ({"format": 1, "model": {**MODEL.to_dict(), "colour": 1}}, "unknown key 'colour'"),
        ({"format": 1, "model": {**MODEL.to_dict(), "bands": ["r"]}}, "bands"),
    ],
)
def test_a_description_that_is_not_understood_is_refused(checkpoint: Path, header: dict, words: str) -> None:
    rewrite(checkpoint, load_file(checkpoint), header=header)
    with pytest.raises(WeightsError, match=words):
        read_model_spec(checkpoint)


def test_a_failed_save_keeps_the_old_file(checkpoint: Path, network: DeepLab) -> None:
    before = checkpoint.read_bytes()
    network.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(WeightsError):
        save_checkpoint(checkpoint, network, replace(MODEL, name="other"))
    assert checkpoint.read_bytes() == before


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, network: DeepLab) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        save_checkpoint(tmp_path / "no" / "model.safetensors", network, MODEL)


def test_kernels_are_stored_in_half_precision(checkpoint: Path) -> None:
    kinds = {name: tensor.dtype for name, tensor in load_file(checkpoint).items()}
    assert kinds["classifier.weight"] == torch.float16
    assert kinds["backbone.stem.norm.running_var"] == torch.float32
    assert checkpoint.stat().st_size < 2.2 * sum(int(np.prod(p.shape)) for p in build_network(NETWORK).parameters())


def test_another_description_leaves_the_weights_as_they_lie_in_the_file(checkpoint: Path, tmp_path: Path) -> None:
    described = replace(MODEL, licence="CC0-1.0", provenance={"n_steps": 3, "why": "a longer header"})
    copy_with_spec(checkpoint, tmp_path / "copy.safetensors", described)
    assert read_model_spec(tmp_path / "copy.safetensors") == described
    copied, original = load_file(tmp_path / "copy.safetensors"), load_file(checkpoint)
    assert copied.keys() == original.keys()
    assert all(torch.equal(copied[name], original[name]) and copied[name].dtype == original[name].dtype for name in original)
    copy_with_spec(tmp_path / "copy.safetensors", tmp_path / "copy.safetensors", MODEL)
    assert (tmp_path / "copy.safetensors").read_bytes() == checkpoint.read_bytes()


def test_the_description_of_another_network_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = replace(MODEL, network=replace(NETWORK, aspp_channels=16))
    with pytest.raises(WeightsError, match="are of another network than 'small' describes"):
        copy_with_spec(checkpoint, tmp_path / "copy.safetensors", other)
    assert not (tmp_path / "copy.safetensors").exists()


@pytest.mark.parametrize(
    "words", ["[1]", '"x"', '{"format": 1, "model": ""}', '{"format": 1, "model": []}', "[" * 100_000], ids=lambda w: w[:30]
)
def test_a_description_of_any_form_is_an_error_of_the_file(tmp_path: Path, words: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"atrous_model": words})
    with pytest.raises(WeightsError, match="carries a description that this version does not understand"):
        read_model_spec(path)
