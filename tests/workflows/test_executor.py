"""The same faults and the same outcomes, in this process and on a Dask cluster; calls are counted on disk."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import dask.config
import pytest
from block_faults import faulty_block, faulty_task
from distributed import Client, KilledWorker, LocalCluster

from pipeline.engine.protocol import EngineSpec
from pipeline.errors import ClusterLostError, UnfitWorkersError
from pipeline.scene import SceneSpec
from pipeline.spec import SegmentSpec
from pipeline.stretch import Stretch
from workflows import dask_executor, executor, local_workers, serial_executor
from workflows import worker as work
from workflows.block_job import BlockJob
from workflows.dask_executor import DaskExecutor, Refusal
from workflows.events import BlockFailure, BlockReceipt
from workflows.executor import MAX_ATTEMPTS
from workflows.fitness import Conditions, Examination
from workflows.in_flight import TimeLimit
from workflows.serial_executor import SerialExecutor

BLOCKS = [(row, col) for row in range(3) for col in range(4)]
runs = itertools.count()


@pytest.fixture(scope="module")
def client():
    """Two worker processes with the settings of real runs, for all tests here."""
    with connected_to(n_workers=2) as connected:
        yield connected


@contextmanager
def connected_to(*, n_workers: int):
    """Worker processes with the settings of real runs."""
    path = str(Path(__file__).parent)
    settings = {**local_workers.SETTINGS, "distributed.nanny.pre-spawn-environ.PYTHONPATH": path}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs="CRITICAL",
            env={"PYTHONPATH": path},
        ) as local,
        Client(local) as connected,
    ):
        yield connected


@pytest.fixture(params=["serial", pytest.param("dask", marks=pytest.mark.cluster)])
def subject(request, monkeypatch):
    """Return an executor whose blocks do nothing but fail as they are told."""
    monkeypatch.setattr(serial_executor, "process_block", faulty_block)
    monkeypatch.setattr(executor, "_PAUSE_S", 0.01)
    if request.param == "serial":
        return SerialExecutor()
    monkeypatch.setattr(dask_executor, "run_task", faulty_task)
    monkeypatch.setattr(dask_executor, "JobPlugin", QuickPlugin)
    return DaskExecutor(request.getfixturevalue("client"))


class QuickPlugin(dask_executor.JobPlugin):
    """The real plugin, but there is no model to load."""

    def setup(self, worker) -> None:
        real, work.make_ready = work.make_ready, lambda *_: None
        try:
            super().setup(worker)
        finally:
            work.make_ready = real


@pytest.fixture
def job(tmp_path):
    """Return ``build({(row, col): (kind, until call n)})``."""

    def build(faults: dict) -> BlockJob:
        (tmp_path / "calls").mkdir()
        (tmp_path / "faults.json").write_text(json.dumps({f"{row}-{col}": fault for (row, col), fault in faults.items()}))
        spec = SegmentSpec(scene=SceneSpec(uri="scene", bands=(1,)), model_path="m", model_sha256="", stretch=Stretch.identity(1))
        return BlockJob(spec=spec, engine=EngineSpec(device="cpu"), source=spec.scene, out=str(tmp_path), run_id=f"{next(runs)}")

    return build


def calls(job) -> dict:
    counts = {tuple(map(int, path.name.split("-"))): path.stat().st_size for path in Path(job.out, "calls").iterdir()}
    return dict(sorted(counts.items()))


def run(subject, job, blocks=BLOCKS, stop=lambda: False) -> dict:
    outcomes = list(itertools.chain.from_iterable(subject.outcomes(job, blocks, stop)))
    assert len({outcome.block for outcome in outcomes}) == len(outcomes), "a block has two outcomes"
    return {outcome.block: outcome for outcome in outcomes}


def test_every_block_has_one_outcome_and_one_call(subject, job):
    made = job({})
    outcomes = run(subject, made)
    assert sorted(outcomes) == BLOCKS
    assert all(isinstance(outcome, BlockReceipt) and outcome.attempt == 1 for outcome in outcomes.values())
    assert calls(made) == dict.fromkeys(BLOCKS, 1)


@pytest.mark.parametrize(
    ("kind", "until", "n_calls", "error"),
    [
        pytest.param("source", 1, 2, None, id="fails once"),
        pytest.param("source", MAX_ATTEMPTS - 1, MAX_ATTEMPTS, None, id="succeeds at the last try"),
        pytest.param("source", 99, MAX_ATTEMPTS, "SourceError: the scene is damaged at (1, 2)", id="fails always"),
        pytest.param("odd", 99, MAX_ATTEMPTS, "odd (1, 2)", id="fails with an error that cannot be pickled"),
        pytest.param("store", 99, 1, "StoreError: cannot write: No space left on device", id="cannot write"),
    ],
)
def test_faults(subject, job, kind, until, n_calls, error):
    made = job({(1, 2): (kind, until)})
    outcomes = run(subject, made)
    assert calls(made) == {**dict.fromkeys(BLOCKS, 1), (1, 2): n_calls}
    others = [outcome for block, outcome in outcomes.items() if block != (1, 2)]
    assert len(others) == len(BLOCKS) - 1
    assert all(isinstance(outcome, BlockReceipt) for outcome in others)
    if error is None:
        assert outcomes[1, 2].attempt == n_calls
    else:
        failure = outcomes[1, 2]
        assert isinstance(failure, BlockFailure)
        assert error in failure.error
        assert "\n" not in failure.error
        assert (failure.attempts, failure.fatal) == (n_calls, kind == "store")


def test_after_stop_no_block_is_begun_and_none_at_work_is_lost(subject, job):
    made = job({})
    seen: list = []
    blocks = [(0, col) for col in range(40)]
    for ended in subject.outcomes(made, blocks, lambda: len(seen) >= 3):
        seen.extend(ended)
    assert 3 <= len(seen) <= 3 + 2 * 2
    assert calls(made) == dict.fromkeys(sorted(outcome.block for outcome in seen), 1)


def test_nothing_to_do_is_done_at_once(subject, job):
    assert run(subject, job({}), []) == {}


def test_a_stop_before_the_start_begins_nothing(subject, job):
    made = job({})
    assert run(subject, made, stop=lambda: True) == {}
    assert calls(made) == {}


def executor_with(**methods) -> DaskExecutor:
    return DaskExecutor(SimpleNamespace(**methods))


def test_a_worker_with_a_device_gets_as_many_blocks_as_it_has_threads_up_to_eight():
    threads = {"one": 1, "two": 2, "many": 16}
    subject = executor_with(nthreads=lambda: threads)
    assert subject._width() == (1 + 1) + (2 + 1) + (2 + 1)
    done = BlockReceipt(block=(0, 0), state="done", n_pixels=1, seconds=1.0, device="cuda", host="")
    subject._gather = lambda futures, _timeout_s: dict.fromkeys(futures, done)
    subject._fetch([SimpleNamespace(key="a", status="finished")])
    assert subject._width() == (1 + 1) + (2 + 1) + (8 + 1)


def test_a_worker_has_blocks_at_work_and_one_waiting_and_more_where_they_take_no_time():
    looks = []
    threads = {"one": 1, "two": 2, "many": 8}
    subject = executor_with(nthreads=lambda: looks.append(1) or threads)
    assert subject._width() == (1 + 1) + (2 + 1) + (2 + 1)

    def end(seconds: float) -> None:
        done = BlockReceipt(block=(0, 0), state="nodata", n_pixels=1, seconds=seconds, device="", host="")
        found = SimpleNamespace(key="a", status="finished")
        subject._gather = lambda futures, _timeout_s: dict.fromkeys(futures, done)
        subject._fetch([found])

    for _ in range(1000):
        end(0.0)
    assert subject._width() == 3 * dask_executor._MOST_AHEAD
    for _ in range(1000):
        end(0.5)
    assert subject._width() == 8
    assert len(looks) == 1


def test_a_result_that_is_lost_with_its_worker_is_no_end_of_the_run():
    lost = SimpleNamespace(key="lost", status="finished")
    broken = SimpleNamespace(key="broken", status="error", exception=lambda: KilledWorker("broken", None, 1))
    again = SimpleNamespace(key="again", status="lost")  # its worker died, and another one does it again
    receipt = BlockReceipt(block=(0, 0), state="nodata", n_pixels=1, seconds=0.1, device="", host="")
    kept = SimpleNamespace(key="kept", status="finished")
    asked = []

    async def gather(futures, *, errors, asynchronous):
        asked.append((sorted(futures), errors, asynchronous))
        return {"lost": None, "kept": receipt}

    subject = executor_with(gather=gather, sync=lambda function, **_: asyncio.run(function()))
    assert subject._fetch([lost, broken, kept, again]) == {"kept": receipt}
    assert asked == [(["kept", "lost"], "skip", True)]
    assert subject._unsent == [again]


def test_a_worker_that_does_not_send_what_it_has_holds_up_no_other():
    receipt = BlockReceipt(block=(0, 0), state="nodata", n_pixels=1, seconds=0.1, device="", host="")
    stuck, free = (SimpleNamespace(key=key, status="finished") for key in ("stuck", "free"))
    subject = executor_with()

    def gather(futures, _timeout_s):
        if "stuck" in futures:
            raise TimeoutError
        return dict.fromkeys(futures, receipt)

    subject._gather = gather
    assert subject._fetch([stuck, free]) == {}
    assert subject._unsent == [stuck, free]
    assert subject._fetch([]) == {"free": receipt}
    assert subject._unsent == [stuck]
    subject._gather = lambda futures, _timeout_s: dict.fromkeys(futures, receipt)
    assert subject._fetch([]) == {"stuck": receipt}
    assert subject._unsent == []


def test_blocks_that_were_cancelled_by_nobody_mean_that_the_scheduler_is_gone():
    subject = executor_with()
    cancelled = SimpleNamespace(key="a", status="cancelled")
    with pytest.raises(ClusterLostError, match="the Dask scheduler went away"):
        subject._judge((0, 0), cancelled, None, again=[], suspects={})


def test_a_worker_that_is_not_fit_gets_no_more_blocks_and_the_block_loses_no_try():
    said, again = [], []
    refusal = Refusal(worker="tcp://old", reason="it has zarr 2")
    subject = DaskExecutor(SimpleNamespace(nthreads=lambda: {"tcp://old": 2, "tcp://new": 2}), listen=said.append)
    assert subject._judge((0, 0), SimpleNamespace(key="a"), refusal, again=again, suspects={}) == []
    assert [index for _, index in again] == [(0, 0)]
    assert subject._tries == {}
    assert "worker tcp://old gets no blocks: it has zarr 2" in said[0].text
    subject._judge((0, 1), SimpleNamespace(key="b"), refusal, again=again, suspects={})
    assert len(said) == 1
    assert subject._width() == 3
    with pytest.raises(UnfitWorkersError, match="no worker of the cluster can do this job; tcp://new: no model"):
        subject._judge((0, 2), SimpleNamespace(key="c"), Refusal(worker="tcp://new", reason="no model"), again=again, suspects={})


def test_a_worker_looks_at_itself_when_it_joins(job, monkeypatch, tmp_path):
    made = job({})
    for problems, weights, known in [({}, None, True), ({"model": "gone"}, b"weights", True), ({"model": "gone"}, None, False)]:
        monkeypatch.setattr(dask_executor, "_jobs", {})
        monkeypatch.setattr(dask_executor, "_unfit", {})
        monkeypatch.setattr(dask_executor, "get_worker", lambda: SimpleNamespace(address="tcp://me"))
        monkeypatch.setattr(dask_executor, "examine", lambda *_, found=problems: Examination(problems=found, engine=""))
        plugin = QuickPlugin(made, Conditions(versions={}, scene_bytes=None), weights)
        plugin.setup(SimpleNamespace(local_directory=str(tmp_path)))
        assert (plugin.digest in dask_executor._jobs) is known
        if not known:
            assert dask_executor.run_task(plugin.digest, (0, 0), 1) == Refusal(worker="tcp://me", reason="gone")
        elif weights is not None:
            assert Path(dask_executor._jobs[plugin.digest].spec.model_path).read_bytes() == weights


@pytest.mark.parametrize("healthy", [True, False])
def test_a_process_whose_device_is_broken_ends(job, monkeypatch, healthy):
    made, ended = job({}), []
    monkeypatch.setattr(dask_executor, "_jobs", {made.digest(): made})
    monkeypatch.setattr(work, "process_block", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("device-side assert")))
    monkeypatch.setattr(dask_executor, "get_worker", lambda: SimpleNamespace(local_directory=None))
    monkeypatch.setattr(dask_executor, "is_healthy", lambda _device: healthy)
    monkeypatch.setattr(dask_executor.os, "_exit", ended.append)
    with pytest.raises(RuntimeError, match="device-side assert"):
        dask_executor.run_task(made.digest(), (0, 0), 1)
    assert ended == ([] if healthy else [75])


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("subject", ["dask"], indirect=True)
def test_a_block_that_kills_its_worker_harms_no_other(subject, job):
    made = job({(0, 1): ("die", 99), (2, 0): ("die", 1)})
    outcomes = run(subject, made)
    assert sorted(outcomes) == BLOCKS
    failure = outcomes.pop((0, 1))
    assert isinstance(failure, BlockFailure)
    assert "the worker process died" in failure.error
    assert not failure.fatal
    assert all(isinstance(outcome, BlockReceipt) for outcome in outcomes.values())
    assert calls(made)[0, 1] == 4  # two deaths among others, two alone


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("subject", ["dask"], indirect=True)
def test_a_block_that_never_ends_is_given_up_and_harms_no_other(subject, job):
    made, said = job({(0, 1): ("hang", 99), (2, 0): ("hang", 1)}), []
    subject._limit, subject._listen = TimeLimit(3.0), said.append
    outcomes = run(subject, made)
    assert sorted(outcomes) == BLOCKS
    failure = outcomes.pop((0, 1))
    assert isinstance(failure, BlockFailure)
    assert "longer than 3 s each time" in failure.error
    assert all(isinstance(outcome, BlockReceipt) for outcome in outcomes.values())
    assert all("the worker is restarted" in notice.text for notice in said)
    assert len(said) >= 2


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("subject", ["dask"], indirect=True)
def test_where_most_blocks_kill_their_worker_they_are_tried_alone_before_any_new_one(subject, job, monkeypatch):
    monkeypatch.setattr(dask_executor, "_MOST_SUSPECTS", 1)
    made = job(dict.fromkeys(BLOCKS, ("die", 99)))
    seen: list = []
    for ended in subject.outcomes(made, BLOCKS, lambda: len(seen) > 0):
        seen.extend(ended)
    assert all(isinstance(outcome, BlockFailure) for outcome in seen)
    assert len(calls(made)) < len(BLOCKS)


@pytest.mark.cluster
@pytest.mark.timeout(120)
@pytest.mark.parametrize("subject", ["dask"], indirect=True)
def test_a_worker_that_starts_slowly_after_it_died_is_not_given_up(subject, job):
    made = job({(0, 0): ("die", 1)})
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0 s"}), connected_to(n_workers=1) as connected:
        subject._client = connected
        assert all(isinstance(outcome, BlockReceipt) for outcome in run(subject, made).values())


@pytest.mark.cluster
@pytest.mark.parametrize("subject", ["dask"], indirect=True)
def test_runs_that_share_a_cluster_leave_each_other_alone(subject, job, client):
    made = job({})
    other = dask_executor.JobPlugin(dataclasses.replace(made, run_id="of somebody else"))
    client.register_plugin(other)
    try:
        run(subject, made)
        kept = client.run(lambda dask_worker: sorted(name for name in dask_worker.plugins if name.startswith("atrous-")))
    finally:
        client.unregister_worker_plugin(other.name)
    assert set(map(tuple, kept.values())) == {(other.name,)}
