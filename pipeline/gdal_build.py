"""What can the GDAL that is installed here read?"""

from __future__ import annotations

import rasterio

from pipeline.gdal_scene import DRIVERS, gdal_environment


def gdal_version() -> str:
    """Return the version of GDAL that rasterio brings or was built with."""
    return str(rasterio.__gdal_version__)


def missing_drivers() -> tuple[str, ...]:
    """Return those of our drivers that this GDAL was built without."""
    with gdal_environment() as environment:
        known = environment.drivers()
    return tuple(name for name in DRIVERS if name not in known)
