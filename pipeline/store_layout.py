"""What does an output hold? Its size, pieces, classes and place on Earth, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError
from pipeline.network.spec import MAX_CLASSES
from pipeline.window import Window

if TYPE_CHECKING:
    from pipeline.georef import Georef
    from pipeline.network.spec import ClassSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLayout:
    """Everything about an output but its pixels."""

    height: int
    """Rows of the scene, px, at least 1."""
    width: int
    """Columns of the scene, px, at least 1."""
    chunk: int = 1024
    """Side of a chunk, px: the unit of reading."""
    shard: int | None = None
    """Side of a shard, px, a multiple of the chunk: the unit of writing. None: each chunk is a file of its
    own."""
    classes: tuple[ClassSpec, ...]
    """Meaning of label 0, 1, ...; 1 to 255 of them."""
    probabilities: bool = False
    """Whether the probabilities of all classes are kept."""
    georef: Georef
    """Where the scene lies, as far as it is known."""
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)
    """How the output came to be; anything JSON holds."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SpecError(f"an output of {self.height} x {self.width} px was asked for; each side must be at least 1 px")
        if self.chunk < 1:
            raise SpecError(f"a chunk of {self.chunk} px was asked for; give at least 1 px, 1024 px are usual")
        if self.shard is not None and (self.shard < 1 or self.shard % self.chunk):
            raise SpecError(f"a shard of {self.shard} px was asked for; give a multiple of the chunk of {self.chunk} px")
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise SpecError(f"{len(self.classes)} classes were given; labels are one byte, give 1 to {MAX_CLASSES}")

    @property
    def array_names(self) -> tuple[str, ...]:
        """The arrays that every block writes."""
        return ("labels", "confidence", "probabilities") if self.probabilities else ("labels", "confidence")

    @property
    def write_unit(self) -> int:
        """Side of the smallest piece that may be written at once, px."""
        return self.shard or self.chunk

    @property
    def window(self) -> Window:
        """The window of the whole scene."""
        return Window.of_shape((self.height, self.width))
