"""Workers, threads and memory follow from cores, free memory and blocks; a scheduler that is not there is said to be so."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import dask
import pytest
from dask.utils import parse_timedelta
from distributed import Client
from distributed.comm import CommClosedError

from pipeline.engine import choose
from pipeline.errors import ClusterLostError, MissingDependencyError, SpecError
from pipeline.memory import UNKNOWN_BYTES
from workflows import cluster, local_workers
from workflows.cluster import executor_for, is_serial, staff
from workflows.local_workers import ClusterSpec, Staffing, started_early
from workflows.scene_size import count_pixels, count_pixels_of_run
from workflows.segment_scene import segment
from workflows.serial_executor import SerialExecutor

GIB = 2**30


def one_gib(_threads: int) -> int:
    return GIB


class Memory:
    available = 100 * GIB


@pytest.fixture
def machine(monkeypatch):
    """Return ``set(cores, gib)``: 80 % of the free memory may be planned with."""

    def pretend(cores: int, gib: float) -> None:
        memory = Memory()
        memory.available = int(gib * GIB)
        monkeypatch.setattr(local_workers, "virtual_memory", lambda: memory)
        monkeypatch.setattr(local_workers, "MEMORY_LIMIT", 1000 * GIB)
        monkeypatch.setattr(local_workers.os, "sched_getaffinity", lambda _pid: set(range(cores)))

    return pretend


@pytest.mark.parametrize(
    ("spec", "cores", "gib", "n_blocks", "expected"),
    [
        pytest.param({}, 8, 100, 100, (1, 8, 80), id="one process"),
        pytest.param({}, 40, 100, 100, (3, 13, 26.66), id="one process per 16 cores"),
        pytest.param({}, 160, 100, 3, (3, 53, 26.66), id="no more processes than blocks"),
        pytest.param({}, 160, 5, 100, (4, 40, 1), id="as many as fit into memory"),
        pytest.param({}, 8, 0.5, 100, (1, 1, 0.4), id="at least one, also where none fits"),
        pytest.param({}, 8, 100, 1, (1, 8, 80), id="a single block gets the machine"),
        pytest.param({}, 8, 100, 0, (1, 8, 80), id="no block left"),
        pytest.param({"cluster": "serial"}, 8, 100, 100, (1, 8, 80), id="serial"),
        pytest.param({"cluster": "serial", "n_workers": 5}, 8, 100, 100, (1, 8, 80), id="serial ignores workers"),
        pytest.param({"cluster": "serial", "threads": 2}, 8, 100, 100, (1, 2, 80), id="serial with threads"),
        pytest.param({"n_workers": 2}, 8, 100, 100, (2, 4, 40), id="as asked"),
        pytest.param({"n_workers": 16}, 8, 100, 100, (16, 1, 5), id="more workers than cores"),
        pytest.param({"threads": 3}, 8, 100, 100, (1, 3, 80), id="threads as asked"),
    ],
)
def test_staff(machine, spec, cores, gib, n_blocks, expected):
    machine(cores, gib)
    found = staff(ClusterSpec(**spec), n_blocks=n_blocks, bytes_of=one_gib)
    assert (found.n_workers, found.threads) == expected[:2]
    assert found.limit_bytes / GIB == pytest.approx(expected[2], abs=0.01)


def test_the_limit_of_a_container_counts(machine, monkeypatch):
    machine(80, 100)
    monkeypatch.setattr(local_workers, "MEMORY_LIMIT", 10 * GIB)
    assert staff(ClusterSpec(), n_blocks=100, bytes_of=lambda _threads: 4 * GIB).n_workers == 2


def test_processes_never_need_more_than_there_is(machine):
    for gib in (2, 3, 7, 50):
        machine(16, gib)
        found = staff(ClusterSpec(), n_blocks=99, bytes_of=one_gib)
        assert found.limit_bytes >= GIB
        assert found.n_workers * found.limit_bytes <= 0.8 * gib * GIB


@pytest.mark.parametrize(("spec", "threads"), [({}, 3), ({"threads": 8}, 8)], ids=["by itself", "as asked"])
def test_threads_are_as_many_as_memory_allows(machine, spec, threads):
    machine(8, 5)
    found = staff(ClusterSpec(n_workers=1, **spec), n_blocks=9, bytes_of=lambda threads: GIB + threads * GIB)
    assert found.threads == threads


@pytest.mark.parametrize(
    ("spec", "n_blocks", "expected"),
    [
        ({"cluster": "serial"}, 9, True),
        ({"cluster": "local"}, 1, True),
        ({"cluster": "local"}, 2, False),
        ({"cluster": "cuda"}, 1, False),
        ({"cluster": "serial", "scheduler": "tcp://host:1"}, 9, False),
        ({"scheduler": "tcp://host:1"}, 1, False),
    ],
)
def test_what_this_process_does_itself(spec, n_blocks, expected):
    assert is_serial(ClusterSpec(**spec), n_blocks=n_blocks) is expected


@pytest.mark.parametrize(
    ("given", "message"),
    [({"cluster": "moon"}, "local, cuda, serial"), ({"n_workers": 0}, "n_workers = 0"), ({"threads": -1}, "threads = -1")],
)
def test_impossible_wishes_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        ClusterSpec(**given)


@pytest.mark.parametrize(("silent", "patience"), [(False, "5 minutes"), (True, "30 minutes")])
def test_only_workers_that_may_fall_silent_are_waited_for(machine, monkeypatch, silent, patience):
    machine(2, 10)
    seen = {}

    class NoCluster(Exception):  # noqa: N818
        pass

    def start(*_arguments):
        seen["ttl"] = dask.config.get("distributed.scheduler.worker-ttl")
        raise NoCluster

    monkeypatch.setattr(cluster, "start_cluster", start)
    spec = ClusterSpec(cluster="local")
    staffing = staff(spec, n_blocks=5, bytes_of=one_gib)
    with pytest.raises(NoCluster), executor_for(spec, staffing, n_blocks=5, silent=silent):
        pass
    assert parse_timedelta(seen["ttl"]) == parse_timedelta(patience)


def test_a_serial_executor_has_no_dashboard(machine):
    machine(2, 10)
    spec = ClusterSpec(cluster="serial")
    with executor_for(spec, staff(spec, n_blocks=5, bytes_of=one_gib), n_blocks=5) as executor:
        assert isinstance(executor, SerialExecutor)
        assert executor.dashboard is None


def test_cuda_without_dask_cuda_says_what_to_install(machine):
    pytest.importorskip("distributed")
    try:
        import dask_cuda  # noqa: F401
    except ImportError:
        machine(2, 10)
        spec = ClusterSpec(cluster="cuda", n_workers=1)
        staffing = staff(spec, n_blocks=5, bytes_of=one_gib)
        with pytest.raises(MissingDependencyError, match="pip install dask-cuda"), executor_for(spec, staffing, n_blocks=5):
            pass
    else:
        pytest.skip("dask-cuda is installed")


@pytest.mark.parametrize(
    "scheduler",
    ["tcp://127.0.0.1:1", "nonsense://127.0.0.1:1", "missing.json", "torn.json", "other.json", "list.json"],
)
def test_a_scheduler_that_is_not_there_is_a_spec_error(tmp_path, monkeypatch, scheduler):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.3)
    (tmp_path / "torn.json").write_text('{"address": ')
    (tmp_path / "other.json").write_text(json.dumps({"id": "x"}))
    (tmp_path / "list.json").write_text("[]")
    spec = ClusterSpec(scheduler=scheduler)
    with pytest.raises(SpecError, match=r"no Dask scheduler answers there.*give an address"):
        staff(spec, n_blocks=5, bytes_of=one_gib)
    staffing = cluster.Staffing(n_workers=1, threads=1, limit_bytes=GIB)
    with pytest.raises(SpecError, match="--scheduler"), executor_for(spec, staffing, n_blocks=5):
        pass


@pytest.mark.cluster
def test_the_scheduler_keeps_nothing_of_what_was_submitted():
    staffing = Staffing(n_workers=1, threads=1, limit_bytes=2**30)
    with local_workers.start_cluster(ClusterSpec(n_workers=1), staffing) as local, Client(local) as client:
        for n in range(20):
            assert client.gather(client.map(abs, [-n], key=[f"abs-{n}"])) == [n]
        spans = local.scheduler.extensions["spans"].spans.values()
        assert [span.metadata["collections"] for span in spans] == [[]] * len(spans)
        assert len(spans) >= 1


@pytest.mark.cluster
@pytest.mark.parametrize(("has_driver", "threads"), [(False, 2), (True, 8)])
def test_workers_have_a_thread_for_each_block_that_they_may_work_on(monkeypatch, tmp_path, has_driver, threads):
    sign = tmp_path / "version"
    monkeypatch.setattr(choose, "_DRIVER_SIGNS", (str(sign),))
    if has_driver:
        sign.touch()
    staffing = Staffing(n_workers=1, threads=1, limit_bytes=2**30)
    with local_workers.start_cluster(ClusterSpec(n_workers=1), staffing) as local, Client(local) as client:
        assert list(client.nthreads().values()) == [threads]


def test_a_scheduler_is_waited_for(monkeypatch):
    tries = []

    def connect(scheduler, *, timeout_s):
        tries.append(scheduler)
        if len(tries) < 3:
            raise SpecError("nobody answers")
        return nullcontext()

    monkeypatch.setattr(cluster, "_connect", connect)
    monkeypatch.setattr(cluster, "_RETRY_S", 0.0)
    assert cluster.wait_for_scheduler("tcp://host:1", patience_s=60)
    assert tries == ["tcp://host:1"] * 3
    tries.clear()
    assert not cluster.wait_for_scheduler("tcp://host:1", patience_s=-1)


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (CommClosedError("closed"), "running", ClusterLostError),
        (RuntimeError("client is closed"), "closed", ClusterLostError),
        (RuntimeError("a bug"), "running", RuntimeError),
        (SpecError("a wish"), "closed", SpecError),
    ],
)
def test_what_comes_after_a_scheduler_went_away_is_a_loss(error, status, expected):
    with pytest.raises(expected), cluster._losses(SimpleNamespace(status=status)):
        raise error


def test_workers_that_are_not_there_yet_have_an_unknown_limit(monkeypatch):
    client = SimpleNamespace(scheduler_info=lambda **_: {"workers": {}})
    monkeypatch.setattr(cluster, "_connect", lambda _scheduler: nullcontext(client))
    found = cluster.staff_of_cluster(ClusterSpec(scheduler="tcp://host:1"), "tcp://host:1")
    assert (found.n_workers, found.threads, found.limit_bytes) == (1, 1, UNKNOWN_BYTES)


# --- workers that start while the job is planned


class Started:
    """Stands for a local cluster; remembers whether it was closed."""

    def __init__(self, staffing):
        self.n_workers, self.closed = staffing.n_workers, False
        self.settings = dask.config.get("distributed.scheduler.allowed-failures")


@pytest.fixture
def clusters(machine, monkeypatch):
    """The clusters that were started."""
    machine(8, 100)
    started = []

    def start(_spec, staffing):
        started.append(Started(staffing))
        return started[-1]

    monkeypatch.setattr(local_workers, "start_cluster", start)
    monkeypatch.setattr(local_workers, "close_cluster", lambda one: setattr(one, "closed", True))
    return started


LARGE = 5000**2


def test_a_large_job_takes_the_workers_that_were_started_early(clusters):
    with started_early(ClusterSpec(n_workers=2), n_pixels=LARGE) as early:
        taken = early.take(Staffing(n_workers=2, threads=1, limit_bytes=GIB))
        assert taken is clusters[0]
        assert early.take(Staffing(n_workers=2, threads=1, limit_bytes=GIB)) is None, "they are taken once"
    assert not taken.closed, "whoever took them closes them"
    assert taken.settings == 1
    assert len(clusters) == 1


def test_early_workers_that_the_plan_does_not_want_are_ended(clusters):
    with started_early(ClusterSpec(n_workers=2), n_pixels=LARGE) as early:
        assert early.take(Staffing(n_workers=1, threads=1, limit_bytes=GIB)) is None
    assert clusters[0].closed


def test_early_workers_are_ended_where_the_plan_fails(clusters):
    with pytest.raises(SpecError), started_early(ClusterSpec(), n_pixels=LARGE):
        raise SpecError("no such model")
    assert clusters[0].closed


def test_workers_that_did_not_start_early_are_started_in_their_time(clusters, monkeypatch):
    monkeypatch.setattr(local_workers, "start_cluster", lambda *_: (_ for _ in ()).throw(RuntimeError("no port")))
    with started_early(ClusterSpec(), n_pixels=LARGE) as early:
        assert early.take(Staffing(n_workers=1, threads=8, limit_bytes=GIB)) is None


def test_the_plan_begins_when_a_worker_has_begun_not_when_all_are_ready(clusters, monkeypatch):
    ready = threading.Event()

    def start(_spec, staffing):
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        process.start()
        assert ready.wait(60)
        process.kill()
        process.join()
        return Started(staffing)

    monkeypatch.setattr(local_workers, "start_cluster", start)
    with started_early(ClusterSpec(), n_pixels=LARGE):
        assert multiprocessing.active_children()
        ready.set()
    assert not multiprocessing.active_children()


def test_nothing_that_starts_workers_early_imports_torch():
    """That takes as long as all else before the workers start."""
    code = "import sys, cli, workflows.local_workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_pixels_of_a_scene_and_of_a_run_are_known_without_its_model(raster, request_for, execution, tmp_path):
    scene, out = raster(height=70, width=90), tmp_path / "out.zarr"
    assert count_pixels(str(scene)) == 70 * 90
    assert count_pixels(str(tmp_path / "nothing.tif")) == 0
    assert count_pixels_of_run(out) == 0
    segment(request_for(scene), out, execution())
    assert count_pixels_of_run(out) == 70 * 90


@pytest.mark.parametrize(
    ("spec", "n_pixels"),
    [({}, 4096**2), ({"cluster": "serial"}, LARGE), ({"cluster": "cuda"}, LARGE), ({"scheduler": "tcp://host:1"}, LARGE)],
)
def test_nothing_is_started_early_for_small_scenes_and_on_other_clusters(clusters, spec, n_pixels):
    with started_early(ClusterSpec(**spec), n_pixels=n_pixels) as early:
        assert early is None
    assert not clusters
