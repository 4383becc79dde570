"""Each hard field that changes is refused by name, each soft one warns."""

from __future__ import annotations

import fingerprints
import pytest


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {run.name: run for run in fingerprints.runs(tmp_path_factory.mktemp("runs"))}


@pytest.mark.parametrize("name", ["with CRF", "refined"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_every_field(runs, name, kind):
    finding = fingerprints.Finding(run=name)
    getattr(fingerprints, kind)(runs[name], finding)
    assert finding.broken == []
    assert finding.n_kept == finding.n_untouched == finding.n == len(runs[name].record()[kind])


def test_every_case_is_of_a_field_that_some_run_has(runs):
    fields = {name for run in runs.values() for part in ("hard", "soft") for name in run.record()[part]}
    cases = fingerprints.SCENE.keys() | fingerprints.OPTIONS.keys() | fingerprints.SOFT.keys()
    assert cases - {"version.openvino"} <= fields


def test_a_field_without_a_case_is_a_broken_promise(runs, monkeypatch):
    monkeypatch.delitem(fingerprints.SOFT, "machine")
    finding = fingerprints.Finding(run="")
    fingerprints.soft(runs["refined"], finding)
    assert finding.broken == ["machine: no case was written for this field"]
