"""Where on Earth is a pixel? The CRS and the affine transform of a scene or of a window of it.

Geography is (x, y), arrays are (row, col); this module is where one becomes the other. The six numbers of a
transform follow Affine's order and map the outer corner of pixel (row, col)::

    x = a * col + b * row + c
    y = d * col + e * row + f
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.window import Window

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""What GDAL reports for a raster that has no transform."""

_CODE = re.compile(r"(urn:ogc:def:crs:)?[A-Za-z]+:([\d.]*:)?[A-Za-z]*\d+")
_WKT = re.compile(r"\s*[A-Za-z]\w*\s*[\[(]")
_FILES_IN_WKT = ("grids=", "+init", "+file", "parameterfile")
"""What makes PROJ open a file, in lower case; ``nadgrids=@null``, of Web Mercator, does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Georef:
    """The CRS and the transform of a raster, or what is known of them.

    Examples
    --------
    >>> Georef(crs_wkt=None, transform=(10.0, 0.0, 500.0, 0.0, -10.0, 900.0)).x_centres(3)
    array([505., 515., 525.])
    """

    crs_wkt: str | None = None
    """Coordinate reference system as WKT; None: unknown."""
    transform: tuple[float, ...] | None = None
    """Six numbers a, b, c, d, e, f: pixel corner -> CRS. None: there is none (an identity counts as none)."""

    def __post_init__(self) -> None:
        if self.transform is None:
            return
        numbers = tuple(float(number) for number in self.transform)
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)):
            raise SpecError(
                f"the transform {self.transform} was given; six finite numbers a, b, c, d, e, f in Affine's "
                "order "
                "are expected; leave it out where there is none"
            )
        object.__setattr__(self, "transform", None if numbers == IDENTITY else numbers)

    @property
    def is_rectilinear(self) -> bool:
        """Whether x depends on the column only and y on the row only."""
        return self.transform is not None and self.transform[1] == 0 and self.transform[3] == 0

    @property
    def is_north_up(self) -> bool:
        """Whether x grows with the column and y falls with the row, without rotation."""
        return self.transform is not None and self.is_rectilinear and self.transform[0] > 0 > self.transform[4]

    @property
    def is_geographic(self) -> bool:
        """Whether x and y are longitude and latitude; False where the CRS is unknown."""
        crs = self._crs()
        return crs is not None and bool(crs.is_geographic)

    @property
    def linear_units(self) -> str:
        """Name of the unit of x and y, such as ``metre``; ``unknown`` where the CRS is."""
        crs = self._crs()
        return "unknown" if crs is None else str(crs.linear_units)

    @property
    def epsg(self) -> int | None:
        """The EPSG code of the CRS; None where it has none."""
        crs = self._crs()
        code = None if crs is None else crs.to_epsg()
        return None if code is None else int(code)

    @property
    def pixel_size_m(self) -> float | None:
        """Side of a pixel (root of its area), m; None in degrees, or where the CRS or its unit is unknown."""
        crs = self._crs()
        if crs is None or self.transform is None or not crs.is_projected:
            return None
        try:
            metres_per_unit = float(crs.linear_units_factor[1])
        except CRSError:
            return None
        a, b, _, d, e, _ = self.transform
        return math.sqrt(abs(a * e - b * d)) * metres_per_unit

    def x_centres(self, width: int) -> NDArray[np.float64] | None:
        """Return x of pixel centres, (width,) float64, CRS units; None where rotated or no transform."""
        if self.transform is None or not self.is_rectilinear:
            return None
        return self.transform[2] + self.transform[0] * (np.arange(width, dtype=np.float64) + 0.5)

    def y_centres(self, height: int) -> NDArray[np.float64] | None:
        """Return y of pixel centres, (height,) float64, CRS units; None where rotated or no transform."""
        if self.transform is None or not self.is_rectilinear:
            return None
        return self.transform[5] + self.transform[4] * (np.arange(height, dtype=np.float64) + 0.5)

    def for_window(self, window: Window) -> Georef:
        """Return the georeference of ``window``: the origin moves to the window's first pixel."""
        if self.transform is None:
            return self
        a, b, c, d, e, f = self.transform
        x = c + a * window.col_off + b * window.row_off
        y = f + d * window.col_off + e * window.row_off
        return Georef(crs_wkt=self.crs_wkt, transform=(a, b, x, d, e, y))

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold."""
        return {
            "crs_wkt": self.crs_wkt,
            "transform": None if self.transform is None else list(self.transform),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild a georeference from `to_dict`."""
        transform = data["transform"]
        return cls(crs_wkt=data["crs_wkt"], transform=None if transform is None else tuple(transform))

    def _crs(self) -> CRS | None:
        """Return rasterio's CRS; None where there is none or PROJ does not understand it."""
        if self.crs_wkt is None:
            return None
        try:
            return CRS.from_wkt(self.crs_wkt)
        except CRSError:
            return None


def wkt_of_code(code: str) -> str:
    """Return the WKT of a CRS given as WKT or as a code such as ``EPSG:32618``; SpecError where nobody knows it.

    PROJ and GDAL take other texts too, among them paths and addresses, which they would read.
    """
    quiet = code.lower().replace("nadgrids=@null", "")
    if not (_CODE.fullmatch(code) or (_WKT.match(code) and not any(word in quiet for word in _FILES_IN_WKT))):
        raise SpecError(
            f"the CRS {code[:80]!r} was given; an authority code such as EPSG:32618, or WKT without files, is expected"
        )
    try:
        return str(CRS.from_string(code).to_wkt())
    except CRSError as error:
        raise SpecError(
            f"the CRS {code!r} was given; an authority code such as EPSG:32618, or WKT, is expected; check the spelling"
        ) from error
