"""A worker that runs the CRF must not look dead."""

import time

import numpy as np
import pytest
from distributed import Client, LocalCluster

from pipeline.crf import cpu
from pipeline.crf.energy import CrfSpec

pytestmark = pytest.mark.cluster


def refine_noise(side_px: int, n_steps: int) -> float:
    """Refine a tile in the worker; return how long it took, s."""
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.05, 1, (5, side_px, side_px)).astype(np.float32)
    probabilities /= probabilities.sum(axis=0)
    guide = rng.uniform(0, 255, (3, side_px, side_px)).astype(np.float32)
    started = time.perf_counter()
    cpu.refine(probabilities, guide, np.ones((side_px, side_px), bool), CrfSpec(theta_beta=13.0, n_steps=n_steps))
    return time.perf_counter() - started


def silence(dask_scheduler):
    """Return for how long the quietest worker has not been heard of, s."""
    return max(time.time() - worker.last_seen for worker in dask_scheduler.workers.values())


def test_heartbeats_of_a_worker_are_not_delayed_while_it_refines():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", processes=True) as cluster,
        Client(cluster) as client,
    ):
        client.submit(refine_noise, 64, 1).result()  # compiled, or loaded
        running = client.submit(refine_noise, 500, 150, pure=False)
        silences = []
        while not running.done():
            silences.append(client.run_on_scheduler(silence))
            time.sleep(0.05)
        took = running.result()
    assert took > 2, "or a worker without heartbeats would pass"
    assert max(silences) < took / 2, "a heartbeat is due every half second; pydensecrf gives none until it has finished"
