"""The main job: segment a scene into a Zarr group, or go on with one that was interrupted.

::

    prepare -> plan -> lock -> compare with an earlier run -> stage -> blocks left -> executor -> journal -> summary

Running again is resuming: the blocks that the journal proves finished are left out, all others are done.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engine.choose import choose_device
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import ClusterLostError, PipelineError, SpecError, StoreError, StoreMismatchError
from pipeline.grid import Blocks
from pipeline.scene import SceneSpec, open_scene
from pipeline.spec import SegmentSpec
from pipeline.staging import needs_staging, stage
from pipeline.store import create_store, is_store, remove_partials, remove_store
from workflows.block_job import BlockJob
from workflows.breaker import Breaker
from workflows.choose_grid import GridRequest
from workflows.cluster import WORKER_TTL_HINT, executor_for, wait_for_scheduler
from workflows.crf_request import as_begun
from workflows.events import BlockFailure, Listener, Measuring, Notice, RunStarted, Staging, ignore
from workflows.failures import write_failures
from workflows.fingerprint import hard_fields, soft_fields
from workflows.interrupt import stop_on_signal
from workflows.journal import Journal
from workflows.layout import plan_layout, this_software
from workflows.local_workers import ClusterSpec
from workflows.plan import Plan, fits_here, make_plan
from workflows.prepare import Prepared, Request, prepare, reopen
from workflows.refinement import Refinement, prepare_refinement, reopen_refinement
from workflows.replay import Replay
from workflows.run_state import (
    RunPaths,
    RunRecord,
    check_same,
    locked,
    new_run_id,
    passing_while_locked,
    read_record,
    remove_state,
    write_record,
)

if TYPE_CHECKING:
    import threading

    from pipeline.store_layout import StoreLayout
    from pipeline.window import Window
    from workflows.events import Outcome
    from workflows.executor import Executor
    from workflows.ledger import Ledger
    from workflows.local_workers import EarlyWorkers

_PATIENCE_S = 300.0
"""How long a scheduler that went away is waited for, s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a job is run; nothing here changes the result."""

    engine: EngineSpec = dataclasses.field(default_factory=EngineSpec)
    """Device and precision."""
    cluster: ClusterSpec = dataclasses.field(default_factory=ClusterSpec)
    """Workers."""
    overwrite: bool = False
    """Remove an output that another run made, and start again."""
    retry_failed: bool = False
    """Try the quarantined blocks again."""
    strict: bool = False
    """Refuse a resume also where only device, precision or versions changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended."""

    out: str
    """The Zarr group."""
    n_blocks: int
    """All blocks of the job."""
    n_done: int
    """Blocks with data that are finished, now or earlier."""
    n_nodata: int
    """Blocks that hold nodata only, and were skipped."""
    n_new: int
    """Blocks that this call finished."""
    failures: tuple[BlockFailure, ...]
    """Quarantined blocks, from this call or an earlier one."""
    class_names: tuple[str, ...]
    """Class names, by id."""
    class_counts: tuple[int, ...]
    """Pixels per class, over all finished blocks."""
    n_pixels: int
    """Pixels of the scene."""
    seconds: float
    """Wall time of this call, s."""
    interrupted: bool
    """Whether it was stopped before all blocks were through."""
    stage_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Wall time of each stage, summed over all finished blocks, s."""
    unreadable: tuple[Window, ...] = ()
    """Places that the scene did not give, and that are nodata for that reason, from this call or an earlier one."""

    @property
    def succeeded(self) -> bool:
        """Whether every block is finished."""
        return self.n_done + self.n_nodata == self.n_blocks


def segment(
    request: Request, out: Path, execution: Execution, listen: Listener = ignore, *, early: EarlyWorkers | None = None
) -> Summary:
    """Segment a scene; an output that the same request made is resumed. ``early``: workers that were started for it already."""
    fits, paths = fits_here(execution.cluster, execution.engine), RunPaths(out=out)
    return _run(prepare(_as_begun(request, paths, execution), fits=fits), paths, execution, listen, early)


def _as_begun(request: Request, paths: RunPaths, execution: Execution) -> Request:
    """Return the request with windows, blocks and CRF tiles of an earlier run where it leaves them open.

    Today's memory may suggest others.
    """
    if execution.overwrite or not paths.record.exists():
        return request
    begun = SegmentSpec.from_dict(read_record(paths).spec)
    grid = request.grid.filled_from(begun.grid) if isinstance(request.grid, GridRequest) else request.grid
    return dataclasses.replace(request, grid=grid, crf=None if request.crf is None else as_begun(request.crf, begun.crf))


def refine(
    request: Refinement, out: Path, execution: Execution, listen: Listener = ignore, *, early: EarlyWorkers | None = None
) -> Summary:
    """Refine the probabilities of an earlier output again, without the network; an output that the same request made is resumed.

    ``early``: workers that were started for it already.
    """
    if out.absolute() == request.store.absolute():
        raise SpecError(f"{out} was given as source and as output; give the output a path of its own")
    paths, fits = RunPaths(out=out), fits_here(execution.cluster, execution.engine)
    if paths.record.exists() and not execution.overwrite:
        request = dataclasses.replace(request, crf=as_begun(request.crf, SegmentSpec.from_dict(read_record(paths).spec).crf))
    return _run(prepare_refinement(request, fits=fits), paths, execution, listen, early)


def resume(out: Path, execution: Execution, listen: Listener = ignore, *, early: EarlyWorkers | None = None) -> Summary:
    """Go on with the run that makes ``out``. ``early``: workers that were started for it already."""
    paths = RunPaths(out=out.absolute())
    with passing_while_locked(paths):
        spec = SegmentSpec.from_dict(read_record(paths).spec)
    prepared = reopen(spec) if spec.probabilities_from is None else reopen_refinement(spec)
    return _run(prepared, paths, execution, listen, early)


def _run(
    prepared: Prepared, paths: RunPaths, execution: Execution, listen: Listener, early: EarlyWorkers | None = None
) -> Summary:
    paths = RunPaths(out=paths.out.absolute())
    with passing_while_locked(paths):
        _check_destination(paths, overwrite=execution.overwrite)
    make_plan(prepared, execution.cluster, execution.engine)
    with locked(paths):
        return _Run(prepared, paths, execution, listen, early).go()


class _Run:
    """One call on one output, with the lock held."""

    def __init__(
        self, prepared: Prepared, paths: RunPaths, execution: Execution, listen: Listener, early: EarlyWorkers | None
    ) -> None:
        self._early = early
        self._prepared = prepared
        self._paths = paths
        self._execution = execution
        self._listen = listen
        self._started = time.perf_counter()
        self._blocks = Blocks(shape=prepared.scene.shape, block_px=prepared.spec.grid.block_px)
        self._record = self._enter()
        self._ledger = self._collect_evidence()

    def go(self) -> Summary:
        """Do what is left to do."""
        n_before = self._ledger.n_finished
        interrupted = self._ledger.n_left > 0 and self._work()
        self._clean_up(complete=self._ledger.n_finished == len(self._blocks))
        return self._summary(n_new=self._ledger.n_finished - n_before, interrupted=interrupted)

    def _enter(self) -> RunRecord:
        """Return the record of the run that goes on, or begin a new one."""
        if self._execution.overwrite:
            _remove_run(self._paths)
        new = _new_record(self._prepared, self._execution.engine)
        if not self._paths.record.exists():
            return self._begin(new)
        old = read_record(self._paths)
        self._use_means(SegmentSpec.from_dict(old.spec).scene_means)
        warnings = check_same(self._paths, old, new)
        if warnings and self._execution.strict:
            raise StoreMismatchError(
                f"--strict was asked for, and {self._paths.out} was begun under other conditions: {'; '.join(warnings)}. "
                "Restore them, or run without --strict"
            )
        for warning in warnings:
            self._listen(Notice(text=f"resuming although {warning}"))
        if not self._paths.out.exists():
            create_store(self._paths.out, _layout(self._prepared, new.hard))
        return old

    def _begin(self, new: RunRecord) -> RunRecord:
        """Measure what the network needs to know of the scene, write the record and the empty store; where that fails, leave nothing."""
        try:
            new = dataclasses.replace(new, spec=self._measured().to_dict())
            write_record(self._paths, new)
            create_store(self._paths.out, _layout(self._prepared, new.hard))
        except PipelineError:
            shutil.rmtree(self._paths.folder, ignore_errors=True)
            raise
        return new

    def _measured(self) -> SegmentSpec:
        """Return the spec of a run that begins, with the means of the scene where the network needs them."""
        prepared = self._prepared
        if prepared.network.image_pooling == "global" and prepared.spec.probabilities_from is None:
            from pipeline.network.checkpoint import load_network  # noqa: PLC0415  (torch, which most runs need in workers only)
            from pipeline.scene_means import measure_scene_means  # noqa: PLC0415

            model, network = load_network(Path(prepared.spec.model_path))
            network = network.to(choose_device(self._execution.engine))
            with open_scene(self._source()) as scene:
                self._use_means(
                    measure_scene_means(
                        scene,
                        network,
                        model=model,
                        spec=prepared.spec,
                        on_progress=lambda done, total: self._listen(Measuring(done=done, total=total)),
                    )
                )
        return with_absolute_paths(self._prepared.spec)

    def _use_means(self, means: tuple[tuple[float, ...], ...]) -> None:
        self._prepared = dataclasses.replace(self._prepared, spec=dataclasses.replace(self._prepared.spec, scene_means=means))

    def _collect_evidence(self) -> Ledger:
        """Take a block as finished only where the journal says so and its chunk files are as long as it says."""
        for place in (self._paths.out, self._paths.folder):
            remove_partials(place)
        replay = Replay(self._paths.journal, run_id=self._record.run_id, blocks=self._blocks, out=self._paths.out)
        if replay.n_damaged:
            text = f"{replay.n_damaged} finished blocks are damaged and will be done again: {replay.first_damage()}"
            self._listen(Notice(text=text))
        if self._execution.retry_failed:
            for failure in list(replay.ledger.failures.values()):
                replay.ledger.take_back(failure)
        return replay.ledger

    def _work(self) -> bool:
        """Run the blocks that are left; return whether it was stopped before the end."""
        execution, n_left = self._execution, self._ledger.n_left
        plan = make_plan(self._prepared, execution.cluster, execution.engine, n_blocks_left=n_left)
        engine = dataclasses.replace(execution.engine, threads=plan.staffing.threads)
        job = BlockJob(
            spec=with_absolute_paths(self._prepared.spec),
            engine=engine,
            source=self._source(),
            out=str(self._paths.out),
            run_id=self._record.run_id,
        )
        crf = self._prepared.spec.crf
        silent = crf is not None and crf.backend == "pydensecrf"
        if execution.cluster.scheduler is not None and silent:
            self._listen(
                Notice(text=f"pydensecrf can keep a worker silent for minutes: start the scheduler with {WORKER_TTL_HINT}")
            )
        with (
            stop_on_signal(self._announce_stop) as stop,
            Journal(self._paths.journal, run_id=self._record.run_id) as journal,
        ):
            while True:
                try:
                    with executor_for(
                        execution.cluster, plan.staffing, n_blocks=n_left, silent=silent, listen=self._listen, early=self._early
                    ) as executor:
                        self._announce_start(executor, plan)
                        self._do_blocks(executor, job, journal, stop)
                    break
                except ClusterLostError as loss:
                    self._wait_for_cluster(loss, stop)
            return stop.is_set() and self._ledger.n_left > 0

    def _do_blocks(self, executor: Executor, job: BlockJob, journal: Journal, stop: threading.Event) -> None:
        """Run the blocks that are left, until there are none or something says that no more should be begun."""
        fatal: list[BlockFailure] = []
        breaker = Breaker()

        def halt() -> bool:
            return stop.is_set() or bool(fatal) or breaker.is_open

        with closing(executor.outcomes(job, self._ledger.left(), halt)) as outcomes:
            for ended in outcomes:
                fatal.extend(outcome for outcome in ended if isinstance(outcome, BlockFailure) and outcome.fatal)
                self._note([outcome for outcome in ended if outcome not in fatal], journal)
                for outcome in ended:
                    breaker.note(outcome)
        if fatal:
            raise StoreError(
                f"block {fatal[0].block} could not be written, and the run stopped: {fatal[0].error}. Run again to go on"
            )
        if breaker.is_open and self._ledger.n_left:
            self._listen(Notice(text=f"stopped: {breaker.reason}"))

    def _wait_for_cluster(self, loss: ClusterLostError, stop: threading.Event) -> None:
        """Wait for the scheduler to come back; what was at work there is done again. Raise the loss where it does not, or Ctrl-C came."""
        scheduler = self._execution.cluster.scheduler
        if scheduler is None or stop.is_set():
            raise loss
        self._listen(Notice(text=f"{loss}; waiting {_PATIENCE_S / 60:.0f} minutes for it at {scheduler}"))
        if not wait_for_scheduler(scheduler, patience_s=_PATIENCE_S):
            raise loss

    def _note(self, outcomes: list[Outcome], journal: Journal) -> None:
        """Make outcomes durable; only then they count."""
        if not outcomes:
            return
        journal.append(*outcomes)
        for outcome in outcomes:
            self._ledger.record(outcome)
            self._listen(outcome)

    def _source(self) -> SceneSpec:
        """Return what workers read: the scene, or its staged copy."""
        spec = self._prepared.spec.scene
        absolute = dataclasses.replace(spec, uri=str(Path(spec.uri).absolute()))
        if not needs_staging(self._prepared.scene):
            return absolute
        return stage(absolute, self._paths.scratch, lambda done, total: self._listen(Staging(done=done, total=total)))

    def _announce_start(self, executor: Executor, plan: Plan) -> None:
        self._listen(
            RunStarted(
                n_blocks=len(self._blocks),
                n_finished=self._ledger.n_finished,
                pixels_left=self._ledger.n_pixels_left,
                n_workers=executor.n_workers,
                dashboard=executor.dashboard,
                engine="" if self._prepared.spec.probabilities_from else plan.describe_engine(self._execution.engine),
            )
        )

    def _announce_stop(self) -> None:
        self._listen(Notice(text="stopping: the blocks at work are being finished; press Ctrl-C again to leave them"))

    def _clean_up(self, *, complete: bool) -> None:
        """Remove the staged copy of a complete run, and bring the list of failures up to date."""
        if complete:
            remove_state(self._paths.scratch)
            remove_partials(self._paths.out)  # of workers that were killed meanwhile
        ledger = self._ledger
        write_failures(self._paths.failures, self._prepared, list(ledger.failures.values()), ledger.unreadable_windows())

    def _summary(self, *, n_new: int, interrupted: bool) -> Summary:
        ledger, classes = self._ledger, self._prepared.model.classes
        return Summary(
            out=str(self._paths.out),
            n_blocks=len(self._blocks),
            n_done=ledger.n_done,
            n_nodata=ledger.n_nodata,
            n_new=n_new,
            failures=tuple(ledger.failures.values()),
            class_names=tuple(item.name for item in classes),
            class_counts=ledger.class_counts or (0,) * len(classes),
            n_pixels=self._prepared.scene.height * self._prepared.scene.width,
            seconds=round(time.perf_counter() - self._started, 3),
            interrupted=interrupted,
            stage_s={name: round(seconds, 3) for name, seconds in ledger.stage_s.items()},
            unreadable=ledger.unreadable_windows(),
        )


def _check_destination(paths: RunPaths, *, overwrite: bool) -> None:
    """Raise StoreError where ``out`` is something that may not be touched."""
    out = paths.out
    if not out.exists() and not out.is_symlink():
        return
    if not is_store(out):
        raise StoreError(f"{out} exists and is no output of atrous; it was left as it is: choose another OUT")
    if not paths.record.exists() and not overwrite:
        raise StoreError(
            f"{out} is an output of atrous, but the state of its run ({paths.record}) is gone; choose another OUT, or use --overwrite"
        )


def _remove_run(paths: RunPaths) -> None:
    """Remove an earlier run. The record goes first: from then on its orphaned workers write no more."""
    remove_state(paths.record)
    if paths.out.exists():
        remove_store(paths.out)
    remove_state(paths.journal, paths.failures, paths.scratch)


def _new_record(prepared: Prepared, engine: EngineSpec) -> RunRecord:
    return RunRecord(
        run_id=new_run_id(),
        hard=hard_fields(prepared.spec, prepared.scene),
        soft=soft_fields(prepared.spec, engine),
        spec=with_absolute_paths(prepared.spec).to_dict(),
        scene=prepared.scene.to_dict(),
    )


def with_absolute_paths(spec: SegmentSpec) -> SegmentSpec:
    """Return the spec as it can be read from any working directory."""
    scene = dataclasses.replace(spec.scene, uri=str(Path(spec.scene.uri).absolute()))
    source = None if spec.probabilities_from is None else str(Path(spec.probabilities_from).absolute())
    return dataclasses.replace(spec, scene=scene, model_path=str(Path(spec.model_path).absolute()), probabilities_from=source)


def _layout(prepared: Prepared, hard: dict[str, Any]) -> StoreLayout:
    model = prepared.model
    return plan_layout(prepared.spec, prepared.scene, hard, model=model.name, classes=model.classes, software=this_software())


def scene_of(out: Path, *, moved_to: str | None = None) -> SceneSpec | None:
    """Return the scene that ``out`` was made from, in its place or at ``moved_to``; None where the run's record is gone."""
    paths = RunPaths(out=out.absolute())
    if not paths.record.exists():
        return None if moved_to is None else SceneSpec(uri=moved_to)
    scene = SegmentSpec.from_dict(read_record(paths).spec).scene
    return scene if moved_to is None else dataclasses.replace(scene, uri=moved_to)
