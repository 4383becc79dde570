"""Which file says what a pixel is, and what do its values mean?

===========  =========================================  ==============================
labels       read as                                    settings that matter
===========  =========================================  ==============================
ids          one band, the number of the class          values, nodata
colours      red, green and blue, or a palette          colors, ignored_colors, values
our output   class ids, by the names stored with them   values
polygons     an attribute of the polygon on a pixel     attribute, layer, outside, ...
===========  =========================================  ==============================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - read by those who list the settings of a spec

from pipeline.errors import SpecError
from pipeline.labels import NODATA_LABEL
from pipeline.network.spec import ClassSpec

IGNORED = NODATA_LABEL
"""Label of a pixel that is neither trained on nor counted."""

IGNORE = "ignore"
"""What stands in settings for a class name where a pixel has no label."""

POLYGON_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".parquet", ".geoparquet")
"""Ends of the names of files with polygons, in lower case; other files are rasters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPlace:
    """Where a file of labels has which class: what polygons say, and which grid they are brought to."""

    attribute: str | None = None
    """Column of the polygons. None: ``class``; and none is needed where polygons can be of one class only."""
    layer: str | None = None
    """Layer of a GeoPackage; None: the only one."""
    outside: str = IGNORE
    """What ground without a polygon is: the name of a class, or ``ignore``."""
    all_touched: bool = False
    """Whether polygons cover all pixels that they touch; otherwise those whose centre they cover."""
    reproject: bool = False
    """Whether labels of another CRS, transform or size are brought to the grid of the scene; otherwise they are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelValues(LabelPlace):
    """What the values of a file of labels mean."""

    colors: tuple[str, ...] | None = None
    """``#rrggbb`` of class 0, 1, ... where the raster is coloured; None: one band of numbers."""
    ignored_colors: tuple[str, ...] = ()
    """``#rrggbb`` of pixels without a label."""
    values: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    """Value of the raster (a number, or ``#rrggbb``) or of the attribute -> name of a class, or ``ignore``; values that are not listed are
    refused. Empty: numbers are ids, attributes are names or ids of classes. Stored as pairs."""
    nodata: int | None = None
    """Number in a raster that means "no label", in place of 255 and of what the raster itself says."""

    def __post_init__(self) -> None:
        pairs = self.values.items() if isinstance(self.values, Mapping) else self.values
        object.__setattr__(self, "values", tuple((str(value), str(name)) for value, name in pairs))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """``values`` as pairs."""
        assert isinstance(self.values, tuple)
        return self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec(LabelValues):
    """Which file holds the labels of a scene, and what its values mean."""

    path: Path
    """A raster, an output of `atrous segment`, or polygons (`POLYGON_SUFFIXES`)."""
    classes: tuple[str, ...]
    """Names of class 0, 1, ..., at most 255."""

    def __post_init__(self) -> None:
        LabelValues.__post_init__(self)
        if not 1 <= len(self.classes) <= IGNORED or len(set(self.classes)) < len(self.classes) or IGNORE in self.classes:
            raise SpecError(
                f"the classes {', '.join(self.classes)} were given; 1 to {IGNORED} names, each once, none of them {IGNORE!r}, are expected"
            )
        if self.colors is not None and len(self.colors) != len(self.classes):
            raise SpecError(
                f"{len(self.colors)} label colours were given; there are {len(self.classes)} classes ({', '.join(self.classes)}), give one "
                "for each, in this order"
            )
        for color in (*(self.colors or ()), *self.ignored_colors):
            rgb_of(color)
        for setting, name in (("outside", self.outside), *((f"values.{value}", name) for value, name in self.pairs)):
            if name != IGNORE and name not in self.classes:
                raise SpecError(f"{setting} is {name!r}; give one of {', '.join(self.classes)}, or {IGNORE!r} for no label")

    @property
    def is_polygons(self) -> bool:
        """Whether the file holds polygons; otherwise it is a raster."""
        return self.path.suffix.lower() in POLYGON_SUFFIXES

    @property
    def is_colored(self) -> bool:
        """Whether the raster holds colours; otherwise one band of numbers."""
        return self.colors is not None or any(value.startswith("#") for value, _ in self.pairs)

    def id_of(self, name: str) -> int:
        """Return the id of a class, 255 for ``ignore``."""
        return IGNORED if name == IGNORE else self.classes.index(name)


def rgb_of(color: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of ``#rrggbb``; raises SpecError."""
    return ClassSpec(name="label", color=color).rgb
