"""Which workers of a running cluster can do a job, and what do they need for it? Asked before the first block.

The output is tested in both directions: a worker must see the run's record that the client wrote, and the client a file that the worker
wrote.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UnfitWorkersError
from pipeline.network.models import find_model
from workflows.events import Notice
from workflows.fitness import PROBE_SUFFIX, Examination, conditions_of, examine
from workflows.run_state import RunPaths

if TYPE_CHECKING:
    from collections.abc import Callable

    from workflows.block_job import BlockJob
    from workflows.events import Listener
    from workflows.fitness import Conditions

    RunEverywhere = Callable[..., dict[str, Any]]

_APPEARS_S = 10.0
"""How long a network file system may take to show a file."""
_MOST_SENT = 2**30
"""Largest model that is sent, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found of all workers."""

    conditions: Conditions
    """What workers that join later must find."""
    weights: bytes | None
    """The model's file, where a worker does not see it and all else is right."""
    unfit: dict[str, str]
    """Workers that cannot do the job, by address, and why."""


def survey(run_everywhere: RunEverywhere, job: BlockJob, listen: Listener) -> Survey:
    """Look at all workers that are there now.

    Parameters
    ----------
    run_everywhere
        ``Client.run``.
    job
        What is to be done; its record is written.
    listen
        Hears of workers that are left out, and of a model that is sent.

    Raises
    ------
    UnfitWorkersError
        There are workers, and none can do the job; or they would run the network in different ways.
    """
    conditions = conditions_of(job)
    folder = RunPaths(out=Path(job.out)).folder
    try:
        answers = run_everywhere(_examine_with_probe, job, conditions, on_error="return")
        found = {address: _seen(_understood(answer), folder) for address, answer in answers.items()}
    finally:
        for probe in folder.glob(f"*{PROBE_SUFFIX}"):
            probe.unlink(missing_ok=True)
    lack_model = [address for address, one in found.items() if one.problems.keys() == {"model"}]
    weights = _weights(job) if lack_model else None
    if weights is not None:
        listen(Notice(text=f"the model is sent to {len(lack_model)} workers that do not see it, such as {lack_model[0]}"))
        found |= {address: replace(found[address], problems={}) for address in lack_model}
    unfit = {address: one.reason for address, one in found.items() if one.problems}
    if found and len(unfit) == len(found):
        address, reason = next(iter(unfit.items()))
        raise UnfitWorkersError(f"none of the cluster's {len(unfit)} workers can do this job; {address}: {reason}")
    for address, reason in unfit.items():
        listen(Notice(text=f"worker {address} gets no blocks: {reason}"))
    engines = {one.engine: address for address, one in found.items() if not one.problems}
    _check_one_engine(engines)
    return Survey(conditions=replace(conditions, engine=next(iter(engines), None)), weights=weights, unfit=unfit)


def _examine_with_probe(job: BlockJob, conditions: Conditions) -> Examination:
    """Run on a worker."""
    return examine(job, conditions, probe=f"{uuid.uuid4().hex}{PROBE_SUFFIX}")


def _understood(answer: object) -> Examination:
    """Return the answer of a worker; an error where it has no atrous, or another one, is an answer, too."""
    if isinstance(answer, Examination):
        return answer
    text = f"atrous cannot be run there ({type(answer).__name__}: {answer}): install the same versions"
    return Examination(problems={"versions": text}, engine="")


def _seen(found: Examination, folder: Path) -> Examination:
    """Add a problem where the file that a worker says it wrote is not here."""
    if not found.probe:
        return found
    deadline = time.monotonic() + _APPEARS_S
    while not (folder / found.probe).exists():
        if time.monotonic() > deadline:
            text = f"what it writes to {folder} is not seen here: put OUT on a file system that all workers see at the same path"
            return replace(found, problems={**found.problems, "output": text})
        time.sleep(0.1)
    return found


def _weights(job: BlockJob) -> bytes | None:
    path = find_model(job.spec.model_path)
    return path.read_bytes() if path.stat().st_size <= _MOST_SENT else None


def _check_one_engine(engines: dict[str, str]) -> None:
    """Raise UnfitWorkersError where workers would differ in rounding: the bytes would depend on who does a block."""
    if len(engines) > 1:
        listing = ", ".join(f"{engine} ({address})" for engine, address in engines.items())
        raise UnfitWorkersError(
            f"the workers would run the network in different ways: {listing}; one way is needed for equal bytes: give --device and --engine"
        )
