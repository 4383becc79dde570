"""Train a DeepLab on labelled scenes and measure it on others.

Read scenes -> build and initialise the network -> update it on random windows for a fixed number of steps ->
store -> load what was stored, measure it on the test scenes -> store again with the figures. The test scenes
are touched once, at the end; nothing is chosen by them.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import PipelineError, SourceError
from pipeline.network.checkpoint import file_sha256, load_network, save_checkpoint
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.fold import fold_batch_norm
from pipeline.network.initialise import start_from
from pipeline.network.spec import ClassSpec, ModelSpec
from workflows.training_data import IGNORED, LabelCoding, LabelledScene, random_window, read_scene
from workflows.training_metrics import SceneMetrics, measure_scene, normalise, pool_metrics, write_metrics
from workflows.training_spec import SceneEntry, TrainSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SceneMeasured", "StepDone", "TrainSpec", "TrainSummary", "TrainingDivergedError", "run"]

_POLY_POWER = 0.9


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
    """Mean cross-entropy of the batch's labelled pixels, nats."""
    learning_rate: float
    """Of the head at this step."""
    elapsed_s: float
    """Since the first step began, s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneMeasured:
    """One test scene was predicted and compared."""

    metrics: SceneMetrics
    """The figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a finished run left behind."""

    checkpoint: Path
    """The model."""
    metrics_csv: Path
    """IoU per test scene and class."""
    metrics: tuple[SceneMetrics, ...]
    """One per test scene and, where there are several, one named "all" over their pixels."""
    n_steps: int
    """Updates made."""
    final_loss: float
    """Loss of the last batch."""
    elapsed_s: float
    """Wall time of reading, training and measuring, s."""


def run(spec: TrainSpec, on_event: Callable[[StepDone | SceneMeasured], None] | None = None) -> TrainSummary:
    """Train, measure, and write the checkpoint and ``metrics.csv``; return where they are and what they say.

    Raises
    ------
    SourceError
        If a raster cannot be read or does not fit its labels.
    WeightsError
        If the initial weights do not fit.
    TrainingDivergedError
        If the loss stops being finite; the last intermediate checkpoint stays.
    """
    started, report = time.monotonic(), on_event or _ignore
    scenes, tests = read_entries(spec, spec.train), read_entries(spec, spec.test)
    spec.output.mkdir(parents=True, exist_ok=True)
    model = _describe(spec, scenes)
    with _determined(spec):
        network = _channels_last(build_network(spec.network))
        final_loss = _fit(network, model, spec, scenes, report)
        save_checkpoint(spec.checkpoint_path, network, model)
        metrics = _measure(spec, tests, report)
    measured = {one.scene: one.to_dict() for one in metrics}
    provenance = {
        **model.provenance,
        "complete": True,
        "n_steps_done": spec.schedule.n_steps,
        "metrics": measured,
    }
    save_checkpoint(spec.checkpoint_path, load_network(spec.checkpoint_path)[1], replace(model, provenance=provenance))
    write_metrics(spec.output / "metrics.csv", metrics)
    return TrainSummary(
        checkpoint=spec.checkpoint_path,
        metrics_csv=spec.output / "metrics.csv",
        metrics=metrics,
        n_steps=spec.schedule.n_steps,
        final_loss=final_loss,
        elapsed_s=time.monotonic() - started,
    )


def read_entries(spec: TrainSpec, entries: tuple[SceneEntry, ...]) -> list[LabelledScene]:
    """Return the scenes of ``entries``; without ``mosaic`` every file that a glob finds is one."""
    written = spec.label_colors or tuple(one.color for one in spec.classes)
    colors = _rgb(written) if spec.labels == "colors" else None
    ignored = _rgb(spec.ignored_colors)
    coding = LabelCoding(colors=colors, ignored_colors=ignored, n_classes=len(spec.classes))
    scenes = []
    for entry in entries:
        images, labels = _find(entry.image), _find(entry.label)
        if len(images) != len(labels):
            raise SourceError(
                f"{entry.image} finds {len(images)} files and {entry.label} finds {len(labels)}; they are "
                "paired in order of "
                "their names, so the numbers must agree"
            )
        if entry.mosaic:
            scenes.append(_read_mosaic(entry, entry.mosaic, images, labels, coding))
        else:
            scenes += [
                read_scene(_scene_name(entry, image, len(images)), [image], [label], coding=coding, mosaic=(1, 1))
                for image, label in zip(images, labels, strict=True)
            ]
    _check_bands(spec, scenes)
    return scenes


def _rgb(colors: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(ClassSpec(name="label", color=color).rgb for color in colors)


def _ignore(_: object) -> None:
    """Listen to nothing."""


def _find(pattern: Path) -> list[Path]:
    found = sorted(Path(name) for name in glob(str(pattern)))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        raise SourceError(f"{pattern} names no file; correct the path or the glob in the training configuration")
    return found


def _read_mosaic(
    entry: SceneEntry, mosaic: tuple[int, int], images: list[Path], labels: list[Path], coding: LabelCoding
) -> LabelledScene:
    rows, columns = mosaic
    if len(images) != rows * columns:
        raise SourceError(
            f"{entry.image} finds {len(images)} files and a mosaic of {rows} x {columns} needs {rows * columns}; correct either"
        )
    return read_scene(entry.name, images, labels, coding=coding, mosaic=mosaic)


def _scene_name(entry: SceneEntry, image: Path, n_images: int) -> str:
    return entry.name if n_images == 1 else f"{entry.name}/{image.name}"


def _check_bands(spec: TrainSpec, scenes: list[LabelledScene]) -> None:
    for scene in scenes:
        if scene.image.shape[0] != len(spec.bands):
            raise SourceError(
                f"{scene.name} has {scene.image.shape[0]} bands and the configuration names "
                f"{len(spec.bands)} "
                f"({', '.join(spec.bands)}); correct bands, or the image"
            )


def _describe(spec: TrainSpec, scenes: list[LabelledScene]) -> ModelSpec:
    mean, std = (spec.mean, spec.std) if spec.mean and spec.std else _statistics(scenes)
    return ModelSpec(
        name=spec.name,
        network=spec.network,
        classes=spec.classes,
        bands=spec.bands,
        mean=mean,
        std=std,
        input_range=spec.input_range,
        gsd_m=spec.gsd_m,
        licence=spec.licence,
        provenance=_origin(spec),
    )


def _statistics(scenes: list[LabelledScene]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per band over the training scenes, each scene counted once."""
    means = np.mean([scene.image.mean(axis=(1, 2), dtype=np.float64) for scene in scenes], axis=0)
    squares = np.mean([np.square(s.image, dtype=np.float64).mean(axis=(1, 2)) for s in scenes], axis=0)
    stds = np.sqrt(np.maximum(squares - means**2, 1e-12))
    return tuple(means.tolist()), tuple(stds.tolist())


def _origin(spec: TrainSpec) -> dict[str, Any]:
    """Return what is known before the first step; the run adds its length and the figures."""
    return {
        "trained_on": [entry.name for entry in spec.train],
        "tested_on": [entry.name for entry in spec.test],
        "init": {"file": spec.init.name, "sha256": file_sha256(spec.init)} if spec.init else None,
        "seed": spec.seed,
        "n_steps": spec.schedule.n_steps,
        "batch": spec.schedule.batch,
        "window_px": spec.schedule.window_px,
        "learning_rate": spec.schedule.learning_rate,
        "precision": spec.precision,
        "torch": torch.__version__,
        "complete": False,
        "n_steps_done": 0,
        "metrics": {},
    }


@contextmanager
def _determined(spec: TrainSpec) -> Iterator[None]:
    """Fix the seed and the number of threads, and put back what was there."""
    n_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        torch.set_num_threads(spec.threads or n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)


def _fit(
    network: DeepLab,
    model: ModelSpec,
    spec: TrainSpec,
    scenes: list[LabelledScene],
    report: Callable[[StepDone], None],
) -> float:
    """Update ``network`` for the whole schedule and return the last loss."""
    schedule, generator = spec.schedule, np.random.default_rng(spec.seed)
    if spec.init:
        start_from(spec.init, network, _draw(spec, model, scenes, generator)[0])
    optimizer = _optimizer(network, spec)
    network.train()
    started, loss = time.monotonic(), math.nan
    for step in range(schedule.n_steps):
        decay = (1 - step / schedule.n_steps) ** _POLY_POWER
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * decay
        windows, labels = _draw(spec, model, scenes, generator)
        loss = _update(network, optimizer, windows, labels, bf16=spec.precision == "bf16")
        if not math.isfinite(loss):
            raise TrainingDivergedError(_explain_divergence(spec, step, loss))
        report(
            StepDone(
                step=step + 1,
                n_steps=schedule.n_steps,
                loss=loss,
                learning_rate=schedule.learning_rate * decay,
                elapsed_s=time.monotonic() - started,
            )
        )
        if (step + 1) % schedule.checkpoint_every == 0:
            partial = replace(model, provenance={**model.provenance, "n_steps_done": step + 1})
            save_checkpoint(spec.checkpoint_path, network, partial)
    return loss


def _draw(
    spec: TrainSpec, model: ModelSpec, scenes: list[LabelledScene], generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return normalised windows (N, bands, S, S) float32 and labels (N, S, S) int64."""
    chosen = generator.integers(len(scenes), size=spec.schedule.batch)
    drawn = [random_window(scenes[i], spec.schedule.window_px, spec.augmentation, generator) for i in chosen]
    low, high = model.input_range
    pixels = torch.stack([window for window, _ in drawn]).clamp(low, high)
    windows = normalise(pixels, model).contiguous(memory_format=torch.channels_last)
    return windows, torch.stack([labels for _, labels in drawn])


def _optimizer(network: DeepLab, spec: TrainSpec) -> torch.optim.Optimizer:
    """Return AdamW over four groups: backbone or head, decaying (kernels) or not (vectors)."""
    schedule, groups = spec.schedule, []
    for is_backbone in (True, False):
        for decays in (True, False):
            chosen = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith("backbone.") == is_backbone and (parameter.ndim > 1) == decays
            ]
            rate = schedule.learning_rate * (schedule.backbone_factor if is_backbone else 1.0)
            decay = schedule.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, windows: Tensor, labels: Tensor, *, bf16: bool) -> float:
    """Make one step, unless the loss is not finite, and return the loss (0 for a batch without a label)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(windows)
    n_labelled = (labels != IGNORED).sum().clamp(min=1)
    loss = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / n_labelled
    optimizer.zero_grad(set_to_none=True)
    if bool(torch.isfinite(loss)):
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def _channels_last(network: DeepLab) -> DeepLab:
    """Return ``network`` with its kernels in the order that is fastest on a CPU."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _explain_divergence(spec: TrainSpec, step: int, loss: float) -> str:
    every = spec.schedule.checkpoint_every
    kept = f"{spec.checkpoint_path} holds step {step // every * every}" if step >= every else "none was written yet"
    return (
        f"the loss is {loss} at step {step + 1} of {spec.schedule.n_steps}; a finite loss is expected. Last "
        f"good checkpoint: {kept}. "
        "Lower schedule.learning_rate, or look for NaN in the images"
    )


def _measure(spec: TrainSpec, tests: list[LabelledScene], report: Callable[[SceneMeasured], None]) -> tuple[SceneMetrics, ...]:
    """Return the metrics of the stored checkpoint, whose kernels are rounded to float16."""
    model, stored = load_network(spec.checkpoint_path)
    network = _channels_last(fold_batch_norm(stored))
    metrics = []
    for scene in tests:
        metrics.append(measure_scene(network, model, scene, window_px=2 * spec.schedule.window_px))
        report(SceneMeasured(metrics=metrics[-1]))
    if len(metrics) > 1:
        metrics.append(pool_metrics(metrics, "all"))
    return tuple(metrics)
