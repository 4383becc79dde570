"""What do the values of label files mean, said once for all of them?

A command takes several files of labels and one set of options; which of these matter depends on each file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from pipeline.errors import SourceError, SpecError
from pipeline.scene import SceneSpec, open_scene
from pipeline.store import is_store
from workflows.label_spec import IGNORE, IGNORED, LabelSpec, LabelValues

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.network.spec import ClassSpec

NUMBERED = tuple(map(str, range(IGNORED)))
"""Names of all ids there can be, where nobody gives any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReading(LabelValues):
    """What the values of all label files mean; without ``colors``, a raster with several bands has those of the classes."""

    def spec(self, path: Path, classes: Classes) -> LabelSpec:
        """Return how the labels in ``path`` are read; SourceError where it is coloured, and SpecError where a class is named, unknown."""
        self._check_names(classes)
        written = {one.name: getattr(self, one.name) for one in fields(self)}
        spec = LabelSpec(path=path, classes=classes.names, **written)
        return replace(spec, colors=_colors_of(spec, classes))

    def _check_names(self, classes: Classes) -> None:
        named = [name for name in (*(name for _, name in self.pairs), self.outside) if name not in (*classes.names, IGNORE)]
        if named and classes.are_numbers:
            raise SpecError(f"the class {named[0]!r} was named, and nobody says which id it has; give all names with --classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The classes that labels are of."""

    names: tuple[str, ...]
    """Names of class 0, 1, ...."""
    colors: tuple[str, ...] | None
    """``#rrggbb`` of each; None: unknown."""

    @classmethod
    def of(cls, classes: Sequence[ClassSpec]) -> Classes:
        """Return those of a model or an output."""
        return cls(names=tuple(one.name for one in classes), colors=tuple(one.color for one in classes))

    @property
    def are_numbers(self) -> bool:
        """Whether nobody gave names, so that only those that occur are told."""
        return self.names == NUMBERED


def parse_values(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return KEY=CLASS texts as pairs; a key may hold an ``=`` itself."""
    pairs = tuple(text.rpartition("=")[::2] for text in texts)
    wrong = [text for text, (key, name) in zip(texts, pairs, strict=True) if not key or not name]
    if wrong:
        raise SpecError(
            f"--values {wrong[0]!r} was given; KEY=CLASS is expected, for example 3=water, residential=building or 0={IGNORE}"
        )
    return pairs


def _colors_of(spec: LabelSpec, classes: Classes) -> tuple[str, ...] | None:
    """Return the colours of a file of labels: those of the classes, where it has several bands and nobody said what it holds."""
    if spec.colors is not None or spec.pairs or spec.is_polygons or is_store(spec.path):
        return spec.colors
    with open_scene(SceneSpec(uri=str(spec.path)), indices=True) as scene:
        n_bands = scene.info.n_bands
    if n_bands == 1 and not spec.ignored_colors:
        return None
    if classes.colors is None:
        raise SourceError(f"{spec.path} has {n_bands} bands, so it is coloured; say what the colours are with --label-colors")
    return classes.colors
