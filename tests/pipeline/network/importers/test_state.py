from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import WeightsError
from pipeline.network.importers.state import read_config, read_state

STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model_state": STATE, "cur_itrs": 30_000, "optimizer_state": {"lr": [0.1]}},
        {"model": {"state_dict": STATE}},
        {"meta": {"classes": ["a"]}, "state_dict": STATE},
        {f"module.{key}": tensor for key, tensor in STATE.items()},
        {"state_dict": {f"model.module.{key}": tensor for key, tensor in STATE.items()}},
        {f"_orig_mod.net.{key}": tensor for key, tensor in STATE.items()},
    ],
    ids=["bare", "state_dict", "model_state", "nested", "meta", "module.", "model.module.", "_orig_mod.net."],
)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, wrapped: object) -> None:
    found = read_state(written(tmp_path / "file.pth", wrapped))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("score", [np.float64(0.75), np.array([0.5, 1.0]), {"per class": [np.float32(1)]}], ids=type)
def test_scores_from_numpy_beside_the_tensors_do_no_harm(tmp_path: Path, score: object) -> None:
    """Training scripts keep their best score so; it is dropped, without a call into numpy."""
    found = read_state(written(tmp_path / "best.pth", {"model_state": STATE, "best_score": score}))
    assert found.keys() == STATE.keys()


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    found = read_state(written(tmp_path / "file.pth", {"model.a": torch.ones(1), "b": torch.ones(1)}))
    assert found.keys() == {"model.a", "b"}


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file({f"model.{key}": tensor for key, tensor in STATE.items()}, tmp_path / "file.safetensors")
    assert read_state(tmp_path / "file.safetensors").keys() == STATE.keys()


class Hostile:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("hostile-ran"),))


@pytest.mark.parametrize("content", [Hostile(), {"state_dict": STATE, "extra": Hostile()}], ids=["alone", "beside tensors"])
def test_a_pickle_of_other_objects_is_refused_and_not_run(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "hostile.pth", content)
    with pytest.raises(
        WeightsError, match=r"hostile\.pth cannot be read.*torch\.save\(model\.state_dict\(\)\).*could run code"
    ) as error:
        read_state(path)
    assert "weights_only=False" not in str(error.value)
    assert not (tmp_path / "hostile-ran").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    path = written(tmp_path / "diverged.pth", {**STATE, "bn.running_var": torch.tensor([1.0, value])})
    with pytest.raises(WeightsError, match=r"1 tensors hold NaN or infinity \[bn\.running_var\].*use another checkpoint"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds a dict and no dictionary of tensors"),
        ({"state_dict": {}}, "holds a dict and no dictionary of tensors"),
        ([torch.ones(1)], "holds a list and no dictionary of tensors"),
        ({"conv.weight": torch.ones(1), "epoch": 3, "lr": 0.1}, r"2 entries that are no tensors \[epoch, lr\]"),
        ({"conv.weight": np.ones(1)}, r"1 entries that are no tensors \[conv\.weight\]"),
    ],
    ids=["empty", "empty inside", "list", "numbers among tensors", "numpy"],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_state(written(tmp_path / "other.pth", content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth was given as a checkpoint and is not a file; give the path of a \.pth"):
        read_state(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="is not a file"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("weights")
    with pytest.raises(WeightsError, match=name):
        read_state(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "half.pth", {"conv.weight": torch.ones(100, 100)})
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(WeightsError, match=r"half\.pth cannot be read"):
        read_state(path)


def test_the_configuration_beside_a_file_is_found(tmp_path: Path) -> None:
    assert read_config(tmp_path / "model.safetensors") == {}
    (tmp_path / "config.json").write_text('{"encoder_name": "resnet18"}')
    assert read_config(tmp_path / "model.safetensors") == {"encoder_name": "resnet18"}
    (tmp_path / "config.json").write_text("[1]")
    assert read_config(tmp_path / "model.safetensors") == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json lies beside the checkpoint and is not JSON.*move it away"):
        read_config(tmp_path / "model.safetensors")
