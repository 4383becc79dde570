from pathlib import Path

import pytest

from pipeline.errors import UnknownModelError
from pipeline.network import models
from pipeline.network.models import resolve_model, shipped_models


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("sea", "land"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "land.md").touch()
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    return tmp_path


def test_shipped_models_are_listed_by_name(shelf: Path) -> None:
    assert shipped_models() == ("land", "sea")


def test_a_name_means_the_shipped_file(shelf: Path) -> None:
    assert resolve_model("sea") == shelf / "sea.safetensors"


def test_a_path_means_itself(shelf: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.bin"
    own.touch()
    assert resolve_model(own) == own
    assert resolve_model(str(own)) == own


def test_a_near_miss_is_suggested(shelf: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"land, sea.*did you mean 'land'"):
        resolve_model("lnad")


def test_a_folder_is_no_model(shelf: Path) -> None:
    with pytest.raises(UnknownModelError, match="known are: land, sea"):
        resolve_model(shelf)
