"""One of several clients works; what a dead one left at work does no harm."""

from __future__ import annotations

import concurrency
import pytest
from jobs import make_job, reference


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"), height=100, width=90, options=("--chunk", "64"))


@pytest.mark.slow
def test_of_three_that_resume_one_works_and_the_others_change_nothing(job, tmp_path):
    finding = concurrency.Finding(attack="")
    concurrency.race(job, tmp_path, reference(job), finding, n_clients=3, begun=True)
    assert finding.broken == []
    assert finding.n_same == 1


@pytest.mark.slow
def test_of_three_of_whom_one_overwrites_one_works(job, tmp_path):
    finding = concurrency.Finding(attack="")
    concurrency.overwrite_race(job, tmp_path, reference(job), finding, n_clients=3)
    assert finding.broken == []


def test_an_orphan_between_its_look_and_its_rename_writes_nothing_into_the_next_run(job, tmp_path):
    finding = concurrency.Finding(attack="")
    concurrency.orphan(job, tmp_path, finding, option=("--overlap", "32"))
    assert finding.broken == []
    assert finding.n_same == 1
