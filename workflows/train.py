"""Train a DeepLab on labelled scenes and measure it on others.

Open scenes and labels -> initialise the network -> steps; from time to time: keep the state, measure the validation part, keep the best
weights -> store the best (or last) weights -> load what was stored, measure it on the test scenes -> store again with the figures.

The test scenes are touched once, at the end; nothing is chosen by them. What is kept on the way, in ``output``:

``state.pt``            everything the next step depends on (`workflows.training_state`)
``last.safetensors``    the model as of that state
``best.safetensors``    the model that was best on the validation part
``metrics.csv``         losses, rates and IoUs by step
``curves.png``          the same as curves; ``samples.png``: windows, labels and predictions
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.durable_file import make_directory_durably
from pipeline.engine.choose import choose_device
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import PipelineError, SpecError, StoreError, StoreMismatchError
from pipeline.network.checkpoint import load_network, save_checkpoint
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.fold import fold_batch_norm
from pipeline.network.initialise import start_from
from pipeline.network.model_file import file_sha256
from pipeline.network.spec import ModelSpec
from pipeline.ordered import map_ahead
from pipeline.window import Window
from workflows.confusion import SceneMetrics, pool_metrics
from workflows.processes import Processes, joined
from workflows.run_state import RunPaths, locked, remove_state
from workflows.training_input import TrainingInput, open_input
from workflows.training_log import TABLE_FILE, TrainingLog
from workflows.training_loop import Trainer
from workflows.training_measure import Meter, normalised
from workflows.training_pictures import write_curves, write_samples
from workflows.training_spec import TrainSpec
from workflows.training_state import STATE_FILE, TrainingState, check_goes_on, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from workflows.split import ScenePart
    from workflows.training_loop import Batch
    from workflows.training_pictures import Sample

    Report = Callable[["TrainingEvent"], None]

__all__ = ["Measured", "Resumed", "StepDone", "TrainSpec", "TrainSummary", "TrainingDivergedError", "TrainingEvent", "run"]

BEST_FILE, LAST_FILE, CURVES_FILE, SAMPLES_FILE = "best.safetensors", "last.safetensors", "curves.png", "samples.png"
"""Within the output folder."""

_N_SAMPLES = 6
_BATCHES_AHEAD = 2


class TrainingDivergedError(PipelineError, ArithmeticError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One update of the weights was made."""

    step: int
    """1 to ``n_steps``."""
    n_steps: int
    """Length of the schedule."""
    loss: float
    """Loss of the step's windows, nats per labelled pixel, and what `LossSpec` adds to it."""
    learning_rate: float
    """Of the head at this step."""
    elapsed_s: float
    """Since the first step of this process began, s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The validation part, or a test scene, was predicted and compared."""

    part: str
    """``validation`` or ``test``."""
    metrics: SceneMetrics
    """The figures."""
    is_best: bool = False
    """Whether these weights are the best so far, and were kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A state was found and is gone on from."""

    step: int
    """Updates that were made before."""


TrainingEvent = StepDone | Measured | Resumed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a finished run left behind."""

    checkpoint: Path
    """The model."""
    metrics_csv: Path
    """Losses, rates and IoUs by step."""
    curves: Path
    """The same as a picture."""
    samples: Path
    """Picture of windows with labels and predictions."""
    metrics: tuple[SceneMetrics, ...]
    """One per test scene and, where there are several, one named "all" over their pixels."""
    best_step: int | None
    """Updates after which the kept weights were made, where a validation part chose them."""
    best_score: float | None
    """Their mean IoU on the validation part."""
    n_steps: int
    """Updates made."""
    ended_early: bool
    """Whether the schedule was cut short, since validation got no better."""
    final_loss: float
    """Loss of the last step."""
    elapsed_s: float
    """Wall time of this process, s."""


def run(spec: TrainSpec, on_event: Report | None = None, *, resume: bool = False, overwrite: bool = False) -> TrainSummary | None:
    """Train, measure, and write model, table and pictures; return where they are and what they say; None but from the first process.

    Parameters
    ----------
    spec
        What is done.
    on_event
        Told of steps and measurements.
    resume
        Go on from the state in the output folder; without a state, begin.
    overwrite
        Remove what an earlier training left in the output folder.

    Raises
    ------
    SourceError
        A raster cannot be read, does not fit its labels, or a class is missing from a part.
    SpecError
        The settings do not go with the data or the machine.
    WeightsError
        The initial weights do not fit.
    StoreMismatchError
        The output folder holds a training, and neither ``resume`` nor ``overwrite`` is set; or another one than ``spec`` describes.
    LockedError
        Another process trains into the folder.
    StoreError
        Something cannot be written; the state before stays.
    TrainingDivergedError
        The loss stops being finite; the last state and checkpoint stay.
    """
    started, report = time.monotonic(), on_event or _ignore
    device = torch.device(choose_device(EngineSpec(device=spec.device)))
    _check_device(spec, device)
    with joined(device) as processes, open_input(spec) as data:
        _check_batch(spec, processes)
        with _held(spec, processes, resume=resume, overwrite=overwrite), _determined(spec):
            job = _Job(spec, data, processes, report if processes.is_first else _ignore)
            job.train(resume=resume)
            return job.finish(started) if processes.is_first else None


class _Job:
    """A training from its first step to its pictures."""

    def __init__(self, spec: TrainSpec, data: TrainingInput, processes: Processes, report: Report) -> None:
        self._spec, self._data, self._processes, self._report = spec, data, processes, report
        self._model = _describe(spec, data)
        self._trainer = Trainer(spec, processes, self._initial_network())
        self._best_step: int | None = None
        self._best_score: float | None = None
        self._n_worse, self._ended_early = 0, False
        self._log = TrainingLog(spec.output, tensorboard=False)

    def train(self, *, resume: bool) -> None:
        """Make the steps that are left."""
        state = self._resume() if resume else None
        if self._processes.is_first:
            self._log = TrainingLog(self._spec.output, state.rows if state is not None else ())
        started, schedule = time.monotonic(), self._spec.schedule
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as reader:
            steps = range(schedule.n_steps if self._ended_early else self._trainer.step, schedule.n_steps)
            for batches in map_ahead(reader, self._draw, steps, ahead=_BATCHES_AHEAD):
                self._step(batches, started)
                done = self._trainer.step
                if self._data.validation and schedule.validates_after(done):
                    self._validate(reader)
                if done % schedule.checkpoint_every == 0 or done == schedule.n_steps or self._ended_early:
                    self._keep()
                if self._ended_early:
                    break

    def finish(self, started: float) -> TrainSummary:
        """Store the model, measure it, and draw the pictures."""
        spec = self._spec
        metrics = self._store_and_test()
        self._log.write()
        self._log.close()
        write_curves(spec.output / CURVES_FILE, self._log, spec.classes, "validation")
        write_samples(spec.output / SAMPLES_FILE, self._samples(), spec.classes)
        losses = self._log.series("train", "loss")
        return TrainSummary(
            checkpoint=spec.checkpoint_path,
            metrics_csv=spec.output / TABLE_FILE,
            curves=spec.output / CURVES_FILE,
            samples=spec.output / SAMPLES_FILE,
            metrics=metrics,
            best_step=self._best_step,
            best_score=self._best_score,
            n_steps=self._trainer.step,
            ended_early=self._ended_early,
            final_loss=losses[-1][1] if losses else math.nan,
            elapsed_s=time.monotonic() - started,
        )

    def _initial_network(self) -> DeepLab:
        network = build_network(self._spec.network)
        if self._spec.init:
            # A batch of the training itself, but for its number: folded weights are calibrated on it.
            start_from(self._spec.init, network, self._draw(-1)[0][0])
        return network

    def _draw(self, step: int) -> list[Batch]:
        """Return the windows of a step that are this process's: normalised (N, bands, S, S) float32 and (N, S, S) int64, per batch."""
        schedule, batches = self._spec.schedule, []
        for first in range(0, schedule.batch * schedule.accumulate, schedule.batch):
            items = [first + item for item in self._processes.own(schedule.batch)]
            pixels, labels = self._data.sampler.draw_batch(step + 1, items)
            windows = normalised(pixels.clamp(*self._spec.input_range), self._model)
            batches.append((windows.contiguous(memory_format=torch.channels_last), labels))
        return batches

    def _step(self, batches: list[Batch], started: float) -> None:
        rate = self._trainer.learning_rate
        loss = self._trainer.advance(batches)
        if not math.isfinite(loss):
            self._log.write()
            raise TrainingDivergedError(self._explain_divergence(loss))
        step = self._trainer.step
        if self._processes.is_first:
            self._log.add_step(step, loss=loss, learning_rate=rate)
        self._report(
            StepDone(
                step=step,
                n_steps=self._spec.schedule.n_steps,
                loss=loss,
                learning_rate=rate,
                elapsed_s=time.monotonic() - started,
            )
        )

    def _validate(self, reader: ThreadPoolExecutor) -> None:
        """Measure the validation part, keep the weights where they are the best so far, and see whether to go on."""
        if self._processes.is_first:
            # By the thread that reads training windows, too: a scene is for one thread.
            parts = reader.submit(self._measure, self._trainer.kept, self._data.validation).result()
            self._judge(parts)
        self._ended_early = self._processes.agree(self._ended_early)

    def _judge(self, parts: list[SceneMetrics]) -> None:
        step, pooled = self._trainer.step, pool_metrics(parts, "all")
        for metrics in (*parts, pooled):
            self._log.add_metrics(step, "validation", metrics)
        score = pooled.mean_iou or 0.0
        is_best = self._best_score is None or score > self._best_score
        if is_best:
            self._best_step, self._best_score, self._n_worse = step, score, 0
            self._save(BEST_FILE)
        else:
            self._n_worse += 1
        patience = self._spec.schedule.patience
        self._ended_early = patience is not None and self._n_worse >= patience
        self._report(Measured(part="validation", metrics=pooled, is_best=is_best))

    def _measure(self, network: DeepLab, scenes: tuple[ScenePart, ...]) -> list[SceneMetrics]:
        meter = Meter(fold_batch_norm(network), self._model, window_px=2 * self._spec.schedule.window_px)
        return [meter.measure(scene) for scene in scenes]

    def _keep(self) -> None:
        """Write the state and the model as it is."""
        if not self._processes.is_first:
            return
        self._save(LAST_FILE)
        write_state(
            self._spec.output,
            TrainingState(
                trains_for=self._spec.trains_for,
                data=self._data.totals,
                best_step=self._best_step,
                best_score=self._best_score,
                n_worse=self._n_worse,
                ended_early=self._ended_early,
                rows=self._log.rows,
                **self._trainer.state(),
            ),
        )
        self._log.write()

    def _resume(self) -> TrainingState | None:
        state = read_state(self._spec.output)
        if state is None:
            return None
        check_goes_on(state, trains_for=self._spec.trains_for, data=self._data.totals, folder=self._spec.output)
        self._trainer.go_on_from(state)
        self._best_step, self._best_score = state.best_step, state.best_score
        self._n_worse, self._ended_early = state.n_worse, state.ended_early
        self._report(Resumed(step=state.step))
        return state

    def _save(self, name: str) -> None:
        kept = self._trainer.kept
        provenance = {**self._model.provenance, "n_steps_done": self._trainer.step}
        save_checkpoint(self._spec.output / name, kept, replace(self._model, network=kept.spec, provenance=provenance))

    def _store_and_test(self) -> tuple[SceneMetrics, ...]:
        """Store the model and return the metrics of what was stored, whose kernels are rounded to float16, on the test scenes."""
        spec = self._spec
        found, network = load_network(spec.output / (LAST_FILE if self._best_step is None else BEST_FILE))
        metrics = []
        for scene in self._data.test:
            metrics += self._measure(network, (scene,))
            self._report(Measured(part="test", metrics=metrics[-1]))
        if len(metrics) > 1:
            metrics.append(pool_metrics(metrics, "all"))
        for one in metrics:
            self._log.add_metrics(self._trainer.step, "test", one)
        provenance = {**found.provenance, "complete": True, "metrics": {one.scene: one.to_dict() for one in metrics}}
        if self._best_score is not None:
            provenance["validation_mean_iou"] = round(self._best_score, 4)
        save_checkpoint(spec.checkpoint_path, network, replace(found, provenance=provenance))
        return tuple(metrics)

    def _samples(self) -> list[Sample]:
        """Return windows evenly spread over the validation part, else the test scenes, else what was trained on."""
        scenes = self._data.validation or self._data.test or self._data.train
        side = self._spec.schedule.window_px
        meter = Meter(fold_batch_norm(load_network(self._spec.checkpoint_path)[1]), self._model, window_px=side)
        each = -(-_N_SAMPLES // len(scenes))
        places = [(scene, window) for scene in scenes for window in _spread(scene, side, each)]
        return [meter.sample(scene, window) for scene, window in places[:_N_SAMPLES]]

    def _explain_divergence(self, loss: float) -> str:
        step, every = self._trainer.step, self._spec.schedule.checkpoint_every
        last = self._spec.output / LAST_FILE
        kept = f"{last} holds step {step // every * every}" if last.exists() else "none was written yet"
        return (
            f"the loss is {loss} at step {step + 1} of {self._spec.schedule.n_steps}; a finite loss is expected. Last good checkpoint: "
            f"{kept}. Lower schedule.learning_rate, or look for NaN in the images"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FolderLock(RunPaths):
    """The lock of a training lies in its own folder."""

    @property
    def folder(self) -> Path:
        return self.out


@contextmanager
def _held(spec: TrainSpec, processes: Processes, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the output folder and hold its lock, by the first process; refuse what an earlier training left there."""
    if not processes.is_first:
        yield
        return
    try:
        make_directory_durably(spec.output)
    except OSError as error:
        raise StoreError(f"the folder {spec.output} cannot be made ({error}); give another output") from error
    with locked(_FolderLock(out=spec.output)):
        if overwrite:
            names = (STATE_FILE, BEST_FILE, LAST_FILE, TABLE_FILE, CURVES_FILE, SAMPLES_FILE, spec.checkpoint_path.name)
            remove_state(*(spec.output / name for name in names))
        elif not resume and (spec.output / STATE_FILE).exists():
            raise StoreMismatchError(
                f"{spec.output} holds a training; go on with it by --resume, begin anew by --overwrite, or give another output"
            )
        yield


@contextmanager
def _determined(spec: TrainSpec) -> Iterator[None]:
    """Fix the seed and the number of threads, and put back what was there."""
    n_threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        torch.set_num_threads(spec.threads or n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)


def _spread(scene: ScenePart, side: int, count: int) -> list[Window]:
    """Return at most so many squares that hold labels, evenly spread."""
    found = scene.labelled_windows(side)
    count = min(count, len(found))
    chosen = [found[len(found) * (2 * i + 1) // (2 * count)] for i in range(count)]
    starts = [
        (min(one.row_off, max(0, scene.shape[0] - side)), min(one.col_off, max(0, scene.shape[1] - side))) for one in chosen
    ]
    return [Window(row_off=row, col_off=col, height=side, width=side) for row, col in starts]


def _ignore(_: object) -> None:
    """Listen to nothing."""


def _check_device(spec: TrainSpec, device: torch.device) -> None:
    if spec.precision == "fp16" and device.type == "cpu":
        raise SpecError("precision is 'fp16' and there is no CUDA device; choose bf16 or fp32")


def _check_batch(spec: TrainSpec, processes: Processes) -> None:
    if spec.schedule.batch % processes.count or spec.schedule.batch < 2 * processes.count:
        raise SpecError(
            f"schedule.batch is {spec.schedule.batch} and {processes.count} processes train; give a multiple of {processes.count}, at "
            f"least {2 * processes.count} (batch normalisation)"
        )


def _describe(spec: TrainSpec, data: TrainingInput) -> ModelSpec:
    return ModelSpec(
        name=spec.name,
        network=spec.network,
        classes=spec.classes,
        bands=spec.bands,
        mean=data.mean,
        std=data.std,
        input_range=spec.input_range,
        multiscale=spec.multiscale,
        crf=spec.crf,
        gsd_m=spec.gsd_m,
        licence=spec.licence,
        provenance=_origin(spec, data),
    )


def _origin(spec: TrainSpec, data: TrainingInput) -> dict[str, Any]:
    """Return what is known before the first step; the run adds its length and the figures."""
    settings = spec.trains_for
    return {
        "trained_on": [scene.name for scene in data.train],
        "validated_on": [scene.name for scene in data.validation],
        "labelled_px": data.split.to_dict(),
        "tested_on": [scene.name for scene in data.test],
        "init": {"file": spec.init.name, "sha256": file_sha256(spec.init)} if spec.init else None,
        **{name: settings[name] for name in ("recipe", "seed", "precision")},
        **{name: settings[name] for name in ("split", "schedule", "optimizer", "loss", "sampling", "augmentation")},
        "torch": torch.__version__,
        "complete": False,
        "n_steps_done": 0,
        "metrics": {},
    }
