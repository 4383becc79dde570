"""The fork server: what its processes find when they begin, and what a run does with it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is none")


def run_python(code, *words, **environment):
    """Return what a new process prints, by words or lines."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LOOK = """
    import multiprocessing, os, signal, sys
    from concurrent.futures import ProcessPoolExecutor
    from workflows import fork_server
    before = dict(os.environ)
    fork_server.begin()
    fork_server.begin()
    assert dict(os.environ) == before, "the coordinator keeps its own"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    context = multiprocessing.get_context(fork_server.start_method())
    with ProcessPoolExecutor(1, context) as pool:
        print(fork_server.start_method())
        print(pool.submit(eval, "[n for n in ('torch', 'openvino', 'workflows.worker') if n in __import__('sys').modules]").result())
        print(pool.submit(os.getenv, "MALLOC_MMAP_MAX_").result(), pool.submit(os.getenv, "GDAL_CACHEMAX").result())
        print(pool.submit(eval, "__import__('threading').active_count() < 4").result())
    assert "torch" not in sys.modules
"""


def test_a_forked_process_has_its_libraries_and_the_environment_of_a_worker():
    pytest.importorskip("openvino")
    assert run_python(LOOK, GDAL_CACHEMAX="7") == ["forkserver", "['workflows.worker']", "0 7", "True"]


def test_where_torch_runs_the_network_it_is_imported_before_a_process_is_forked():
    without = LOOK.replace(
        "from workflows import fork_server\n", "from workflows import fork_server\n    fork_server.has_openvino = lambda: False\n"
    )
    assert "['torch', 'workflows.worker']" in run_python(without)


def test_with_a_driver_for_cuda_workers_start_for_themselves():
    code = """
        from workflows import fork_server
        fork_server.may_have_cuda = lambda: True
        fork_server.begin()
        print(fork_server.start_method())
    """
    assert run_python(code) == ["spawn"]


def test_where_it_cannot_begin_workers_start_for_themselves():
    code = """
        from workflows import fork_server
        def fail():
            raise OSError("no sockets here")
        fork_server.forkserver.ensure_running = fail
        fork_server.begin()
        print(fork_server.start_method())
    """
    assert run_python(code) == ["spawn"]


RUN = """
    import os, signal, sys, threading, time
    import psutil
    from cli import main

    def strike():
        me = psutil.Process()
        while True:
            workers = [child for one in me.children() if "forkserver" in " ".join(one.cmdline()) for child in one.children()]
            if workers and len(open(sys.argv[2] + ".run/journal.jsonl").readlines()) > 3:
                return workers[0].kill()
            time.sleep(0.02)

    def struck():
        while True:
            try:
                return strike()
            except (OSError, psutil.Error):
                time.sleep(0.02)

    if os.environ.get("STRIKE"):
        threading.Thread(target=struck, daemon=True).start()
    sys.argv = ["atrous", "segment", *sys.argv[1:], "--block", "256", "--chunk", "256", "--window", "96", "--overlap", "32", "--quiet"]
    try:
        main()
    except SystemExit as end:
        print(end.code)
    print("torch" in sys.modules)
"""


@pytest.fixture
def large(tmp_path):
    """A scene of more pixels than one block may have; nearly all of it is nodata."""
    path = tmp_path / "large.tif"
    layout = {"count": 3, "height": 4160, "width": 4160, "dtype": "uint8", "tiled": True, "nodata": 0, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", **layout) as file:
        pixels = np.random.default_rng(0).integers(1, 255, (3, 700, 900), np.uint8)
        file.write(pixels, window=((300, 1000), (200, 1100)))
    return path


def files_of(store):
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("c/*/*") if path.is_file()}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_large_job_forks_its_workers_again_where_they_are_killed_and_its_coordinator_needs_no_torch(large, model, tmp_path):
    outputs, loaded = [], []
    for name, environment in (("one", {}), ("two", {"STRIKE": "yes"})):
        out = tmp_path / f"{name}.zarr"
        code, has_torch = run_python(RUN, large, out, "--model", model, **environment)
        assert code == "0"
        loaded.append(has_torch)
        outputs.append(files_of(out))
    assert loaded[1] == "False", "the first run may have had to work out what is kept"
    assert outputs[0], "no chunk was written"
    assert outputs[0] == outputs[1]
