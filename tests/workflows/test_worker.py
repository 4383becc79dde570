"""What a worker does before its first block: load network and compiled code, and say nothing of what fails before a block does."""

import dataclasses

import pytest

from pipeline.crf.energy import CrfSpec
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import WeightsError
from workflows import worker
from workflows.prepare import prepare
from workflows.worker import BlockJob, load_engine, make_ready, process_block


@pytest.fixture
def job(raster, request_for, tmp_path):
    spec = prepare(request_for(raster(), crf=CrfSpec(theta_alpha=7, tile_px=48, n_steps=1))).spec
    return BlockJob(spec=spec, engine=EngineSpec(device="cpu"), source=spec.scene, out=str(tmp_path / "out.zarr"), run_id="one")


def test_the_network_is_loaded_before_the_first_block_asks_for_it(job, monkeypatch):
    make_ready(job)
    monkeypatch.setattr(worker, "open_engine", lambda *_, **__: pytest.fail("it was loaded again"))
    engine, model = load_engine(job.spec, job.engine)
    assert engine.device == "cpu"
    assert model.name == "tiny"


def test_what_fails_is_told_by_the_block_and_not_before(job):
    other = dataclasses.replace(job, spec=dataclasses.replace(job.spec, model_sha256="0" * 64))
    make_ready(other)
    with pytest.raises(WeightsError, match="the run was planned with 000000000000"):
        process_block(other, (0, 0))


def test_an_engine_on_demand_is_the_engine(job):
    on_demand, (engine, _) = worker._EngineOnDemand(job), load_engine(job.spec, job.engine)
    assert (on_demand.name, on_demand.device, on_demand.cells) == (engine.name, engine.device, engine.cells)
