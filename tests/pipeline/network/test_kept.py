"""What is kept of networks: for the next process, not for other code, and never a reason to fail."""

import pytest

from pipeline.network import backbones
from pipeline.network import kept as kept_module
from pipeline.network.choices import BACKBONE_KNOBS
from pipeline.network.kept import kept


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "atrous" / "networks"


def fail():
    raise AssertionError("it was worked out again")


def test_an_answer_is_worked_out_once():
    assert kept("sum", [1, 2], lambda: 3) == 3
    assert kept("sum", [1, 2], fail) == 3


def test_another_question_or_other_code_or_another_torch_is_another_answer(folder, monkeypatch):
    assert [kept("sum", [1, 2], lambda: 3), kept("sum", [2, 2], lambda: 4), kept("product", [1, 2], lambda: 2)] == [3, 4, 2]
    monkeypatch.setattr(kept_module, "_code_digest", lambda: "other code")
    assert kept("sum", [1, 2], lambda: 5) == 5
    monkeypatch.setattr(kept_module.metadata, "version", lambda _: "99")
    assert kept("sum", [1, 2], lambda: 6) == 6
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("damage", [b"\xff", b"", b"{"])
def test_a_damaged_answer_is_worked_out_again(folder, damage):
    kept("sum", [1, 2], lambda: 3)
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    assert kept("sum", [1, 2], lambda: 3) == 3
    assert path.read_text() == "3"


def test_without_a_cache_it_is_worked_out_every_time(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing/here")
    assert [kept("sum", 1, lambda: 3), kept("sum", 1, lambda: 4)] == [3, 4]


def test_what_backbones_heed_is_the_same_kept_and_asked():
    backbones._kept_knobs.cache_clear()
    found = backbones._kept_knobs()
    backbones._kept_knobs.cache_clear()
    assert found == backbones._kept_knobs() == backbones._all_knobs()
    assert set(found) == set(backbones.known_backbones())
    assert set().union(*found.values()) <= set(BACKBONE_KNOBS)
    backbones._kept_knobs.cache_clear()
