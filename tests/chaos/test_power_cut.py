"""A power cut at any step leaves a disk from which the same command goes on to the same bytes."""

from __future__ import annotations

from unittest.mock import patch

import power_cut
import pytest
from disk import Step, Watch

from pipeline import durable_file


@pytest.mark.parametrize(
    ("name", "every"), [("first run", 37), ("resume", 13), ("overwrite", 53), ("repair and resume", 17)], ids=str
)
def test_power_cuts(tmp_path, name, every):
    scenario = next(one for one in power_cut.scenarios(tmp_path) if one.name == name)
    scenario.attack(every=every, n_chances=1)
    assert scenario.broken == []
    assert scenario.n_same == scenario.n_disks > 3
    assert scenario.n_done > 0


def test_without_syncs_blocks_are_lost_and_the_attack_sees_it(tmp_path):
    scenario = next(one for one in power_cut.scenarios(tmp_path) if one.name == "resume")
    with patch.object(durable_file, "_sync", lambda _path: None):
        scenario.attack(every=11, n_chances=1)
    assert scenario.n_lost > 0
    assert scenario.broken


def test_the_model_keeps_what_is_synced_and_nothing_else(tmp_path):
    model = power_cut.Model(tmp_path)
    file, line = tmp_path / "file", tmp_path / "journal"
    steps = [
        Step(kind="create", path=file),
        Step(kind="write", path=file, data=b"abcd"),
        Step(kind="create", path=line),
        Step(kind="write", path=line, data=b"12"),
        Step(kind="fsync", path=line),
        Step(kind="fsync", path=tmp_path),
        Step(kind="write", path=line, data=b"34", offset=2),
        Step(kind="rename", path=file, other=tmp_path / "other"),
    ]
    for step in steps:
        model.apply(step)
    chance = power_cut.random.Random(0)
    assert model.after_cut("nothing unsynced", chance) == {"": None, "file": b"", "journal": b"12"}
    assert model.after_cut("names with zeros", chance) == {"": None, "journal": b"12\0\0", "other": bytes(4)}
    assert model.after_cut("everything", chance) == {"": None, "journal": b"1234", "other": b"abcd"}


def test_every_step_is_seen_also_through_a_held_directory(tmp_path):
    with Watch(tmp_path) as seen, durable_file.held_directory(tmp_path) as held:
        durable_file.replace_durably(held / "file", b"abc")
    assert [step.kind for step in seen.steps] == ["create", "write", "fsync", "rename", "fsync"]
    assert seen.steps[-2].other == tmp_path / "file"
    assert seen.steps[-1].path == tmp_path
