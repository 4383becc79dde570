"""What goes into a training? Its scenes, open; where windows are drawn from; what is held out; what the bands look like."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.gdal_scene import gdal_environment
from workflows.band_statistics import band_statistics
from workflows.memory_scene import MemoryAllowance
from workflows.split import ScenePart, Split, split_scenes, whole
from workflows.training_scenes import DataSpec, TrainingScene, open_training_scenes
from workflows.window_sampler import WindowSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflows.training_scenes import SceneEntry
    from workflows.training_spec import TrainSpec


_CACHE_BYTES = 256 * 2**20
"""Of GDAL, for decoded pixels of all files; its own choice is a twentieth of the machine's memory."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingInput:
    """The data of a training, open. For one thread at a time."""

    split: Split
    """What is trained on, and what is held out."""
    test: tuple[ScenePart, ...]
    """Scenes that the finished model is measured on."""
    mean: tuple[float, ...]
    """Per band, model input units."""
    std: tuple[float, ...]
    """Per band, model input units."""
    sampler: WindowSampler
    """Draws training windows."""

    @property
    def train(self) -> tuple[ScenePart, ...]:
        """Where windows are drawn."""
        return self.split.train

    @property
    def validation(self) -> tuple[ScenePart, ...]:
        """What the best weights are chosen by; empty: nothing is."""
        return self.split.validation

    @property
    def totals(self) -> dict[str, Any]:
        """Sizes and labelled pixels of what is trained on and held out, as JSON holds them."""
        return {
            part: {one.name: {"shape": list(one.shape), "pixels": one.totals.tolist()} for one in scenes}
            for part, scenes in (("train", self.train), ("validation", self.validation))
        }


@contextmanager
def open_input(spec: TrainSpec) -> Iterator[TrainingInput]:
    """Open all scenes of ``spec``, read their labels once, and measure the bands where the settings do not say what they are.

    Raises
    ------
    SourceError
        A file is missing or damaged, image, labels and settings do not fit together, or a class is missing from a part.
    """
    allowance = MemoryAllowance()
    with ExitStack() as stack:
        stack.enter_context(gdal_environment(GDAL_CACHEMAX=_CACHE_BYTES))

        def opened(entries: tuple[SceneEntry, ...]) -> tuple[TrainingScene, ...]:
            scenes = open_training_scenes(entries, data_of(spec), allowance=allowance)
            for scene in scenes:
                stack.enter_context(scene)
            return scenes

        classes = tuple(one.name for one in spec.classes)
        train, validation, test = opened(spec.train), opened(spec.validation), opened(spec.test)
        split = split_scenes(spec.split, train, validation, classes=classes)
        mean, std = (spec.mean, spec.std) if spec.mean and spec.std else band_statistics(split.train)
        yield TrainingInput(
            split=split,
            test=tuple(whole(scene, n_classes=len(classes)) for scene in test),
            mean=mean,
            std=std,
            sampler=WindowSampler(
                split.train,
                window_px=spec.schedule.window_px,
                augmentation=spec.augmentation,
                sampling=spec.sampling,
                seed=spec.seed,
                fill=mean,
            ),
        )


def data_of(spec: TrainSpec) -> DataSpec:
    """Return what pixels and labels of all scenes mean."""
    return DataSpec(
        classes=tuple(one.name for one in spec.classes),
        colors=spec.raster_colors,
        ignored_colors=spec.ignored_colors,
        values=spec.label_values,
        bands=spec.bands,
        input_range=spec.input_range,
    )
