"""What a worker lacks is said by name, and what can be mended is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from pipeline.engine.protocol import EngineSpec
from pipeline.errors import UnfitWorkersError
from workflows import fitness
from workflows import survey as survey_module
from workflows.block_job import BlockJob
from workflows.fitness import conditions_of, examine, installed_versions, with_model
from workflows.run_state import RunPaths
from workflows.segment_scene import segment
from workflows.survey import survey
from workflows.worker import load_engine


@pytest.fixture
def job(raster, request_for, execution, tmp_path, model):
    """A job whose record is written, and whose model lies in a folder of its own."""
    own = tmp_path / "models" / "own.safetensors"
    own.parent.mkdir()
    shutil.copy(model, own)
    out, request = tmp_path / "out.zarr", request_for(raster(height=64, width=64), model=str(own))
    segment(request, out, execution())
    from workflows.prepare import prepare
    from workflows.run_state import read_record

    spec = prepare(request).spec
    return BlockJob(
        spec=spec, engine=EngineSpec(device="cpu"), source=spec.scene, out=str(out), run_id=read_record(RunPaths(out=out)).run_id
    )


def everywhere(*addresses: str, answer=None):
    """Return a stand-in for `Client.run` on workers with those addresses."""

    def run(function, *arguments, on_error):
        assert on_error == "return"
        answers = {}
        for address in addresses:
            answers[address] = answer(function, *arguments) if answer else function(*arguments)
        return answers

    return run


def test_this_process_is_fit_for_its_own_job(job):
    found = examine(job, conditions_of(job), probe="a.seen")
    assert found.problems == {}
    assert found.engine.endswith("fp32 on cpu")
    assert (RunPaths(out=Path(job.out)).folder / "a.seen").read_text() == job.run_id


def remove_model(job, _monkeypatch):
    Path(job.spec.model_path).unlink()


def change_model(job, _monkeypatch):
    Path(job.spec.model_path).write_bytes(b"another one")


def remove_scene(job, _monkeypatch):
    Path(job.source.uri).unlink()


def change_scene(job, _monkeypatch):
    with Path(job.source.uri).open("ab") as file:
        file.write(b"x")


def remove_record(job, _monkeypatch):
    RunPaths(out=Path(job.out)).record.unlink()


def other_record(job, _monkeypatch):
    record = RunPaths(out=Path(job.out)).record
    record.write_text(record.read_text().replace(job.run_id, "0" * 12))


def other_zarr(_job, monkeypatch):
    monkeypatch.setattr(fitness, "installed_versions", lambda: {**installed_versions(), "zarr": "0.1"})


@pytest.mark.parametrize(
    ("spoil", "aspect", "words"),
    [
        (remove_model, "model", "cannot be read there"),
        (change_model, "model", "another one there"),
        (remove_scene, "scene", "same path"),
        (change_scene, "scene", "bytes, not"),
        (remove_record, "output", "run.json"),
        (other_record, "output", "run.json"),
        (other_zarr, "versions", "zarr 0.1 instead of"),
    ],
)
def test_what_is_missing_is_named(job, monkeypatch, spoil, aspect, words):
    conditions = conditions_of(job)
    spoil(job, monkeypatch)
    found = examine(job, conditions, probe="a.seen")
    assert list(found.problems) == [aspect]
    assert words in found.reason
    assert (found.probe == "") is (aspect == "output")


def test_another_engine_than_that_of_the_others_is_a_problem(job):
    conditions = dataclasses.replace(conditions_of(job), engine="torch fp16 on cuda")
    assert "others with torch fp16 on cuda" in examine(job, conditions).problems["engine"]


def test_an_engine_that_is_not_there_is_a_problem(job):
    job = dataclasses.replace(job, engine=EngineSpec(device="cuda"))
    found = examine(job, conditions_of(job))
    assert "CUDA" in found.problems["engine"]


def test_a_folder_that_cannot_be_written_is_a_problem(job):
    found = examine(job, conditions_of(job), probe="no-such-folder/a.seen")
    assert "cannot be written there" in found.problems["output"]


def test_a_model_that_was_sent_is_used(job, tmp_path):
    weights = Path(job.spec.model_path).read_bytes()
    Path(job.spec.model_path).unlink()
    there = with_model(job, weights, tmp_path)
    assert examine(there, conditions_of(there)).problems == {}
    engine, _ = load_engine(there.spec, there.engine)
    assert engine is not None


def test_a_survey_of_fit_workers_leaves_nothing_behind(job):
    said = []
    found = survey(everywhere("tcp://one", "tcp://two"), job, said.append)
    assert (found.unfit, found.weights, said) == ({}, None, [])
    assert found.conditions.engine == examine(job, conditions_of(job)).engine
    assert list(RunPaths(out=Path(job.out)).folder.glob("*.seen")) == []


def test_a_survey_of_nobody_expects_somebody(job):
    found = survey(everywhere(), job, pytest.fail)
    assert found.unfit == {}
    assert found.conditions.engine is None


def test_the_model_is_sent_where_it_is_all_that_is_missing(job):
    def answer(function, *arguments):
        return dataclasses.replace(function(*arguments), problems={"model": "it is not there"})

    said = []
    found = survey(everywhere("tcp://one", answer=answer), job, said.append)
    assert found.weights == Path(job.spec.model_path).read_bytes()
    assert found.unfit == {}
    assert "the model is sent to 1 workers" in said[0].text


def test_some_unfit_workers_are_left_out_with_a_notice(job):
    turns = iter([ModuleNotFoundError("No module named 'workflows'"), None])

    def answer(function, *arguments):
        return next(turns) or function(*arguments)

    said = []
    found = survey(everywhere("tcp://bare", "tcp://good", answer=answer), job, said.append)
    assert list(found.unfit) == ["tcp://bare"]
    assert "tcp://bare gets no blocks" in said[0].text
    assert "install the same versions" in said[0].text


def test_none_fit_is_an_error(job, monkeypatch):
    monkeypatch.setattr(survey_module, "_APPEARS_S", 0.0)

    def answer(function, *arguments):
        return dataclasses.replace(function(*arguments), probe="never-here.seen")

    with pytest.raises(UnfitWorkersError, match=r"none of the cluster's 1 workers.*is not seen here"):
        survey(everywhere("tcp://one", answer=answer), job, pytest.fail)


def test_workers_that_would_round_differently_are_refused(job):
    turns = iter(["torch fp32 on cuda", "openvino fp32 on cpu"])

    def answer(function, *arguments):
        return dataclasses.replace(function(*arguments), engine=next(turns))

    with pytest.raises(UnfitWorkersError, match=r"torch fp32 on cuda \(tcp://one\), openvino fp32 on cpu \(tcp://two\)"):
        survey(everywhere("tcp://one", "tcp://two", answer=answer), job, pytest.fail)
