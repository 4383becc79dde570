"""Which attributes tell others of classes, nodata, coordinates and CRS? Those of CF and of GeoZarr.

CF attributes serve xarray, rioxarray and GDAL; the ``proj``, ``spatial`` and ``multiscales`` conventions
serve GeoZarr readers. Both say the same. All functions only compute plain dictionaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.labels import NODATA_LABEL

if TYPE_CHECKING:
    from pipeline.georef import Georef
    from pipeline.store_layout import StoreLayout

SPATIAL_REF = "spatial_ref"
"""Name of the scalar variable that carries the CRS."""

_RAW = "https://raw.githubusercontent.com/zarr-conventions"
_WEB = "https://github.com/zarr-conventions"
_PROJ_UUID = "f17cb550-5864-4468-aeb7-f3180cfb622f"
_SPATIAL_UUID = "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4"
_MULTISCALES_UUID = "d35379db-88df-4056-af3a-620245f8e347"


def root_attributes(layout: StoreLayout) -> dict[str, Any]:
    """Return what GeoZarr readers look for at the root; only the full resolution exists yet."""
    return {
        "zarr_conventions": _conventions(layout.georef),
        **_proj(layout.georef),
        **spatial_attributes(layout.georef, height=layout.height, width=layout.width),
        "multiscales": {"layout": [{"asset": "0", "transform": {"scale": [1.0, 1.0], "translation": [0.0, 0.0]}}]},
        "provenance": layout.provenance,
    }


def level_attributes(layout: StoreLayout) -> dict[str, Any]:
    """Return the attributes of the group of one resolution."""
    spatial = spatial_attributes(layout.georef, height=layout.height, width=layout.width)
    # xarray takes the CRS variable for data unless it is listed here, and rioxarray then finds no CRS.
    coordinates = {"coordinates": SPATIAL_REF} if has_spatial_ref(layout.georef) else {}
    return {"Conventions": "CF-1.11", **coordinates, **_proj(layout.georef), **spatial}


def spatial_attributes(georef: Georef, *, height: int, width: int) -> dict[str, Any]:
    """Return the ``spatial:`` attributes of a grid of that size (px); transforms are of pixel corners."""
    attributes: dict[str, Any] = {"spatial:dimensions": ["y", "x"], "spatial:shape": [height, width]}
    if georef.transform is None:
        return attributes
    return {
        **attributes,
        "spatial:registration": "pixel",
        "spatial:transform_type": "affine",
        "spatial:transform": list(georef.transform),
        "spatial:bbox": _bbox(georef.transform, height=height, width=width),
    }


def labels_attributes(layout: StoreLayout) -> dict[str, Any]:
    """Return the attributes of ``labels``: nodata and classes.

    ``_FillValue`` is left out on purpose: with it xarray masks the labels and hands out float32.
    """
    return {
        "long_name": "class",
        "nodata": NODATA_LABEL,
        "flag_values": list(range(len(layout.classes))),
        "flag_meanings": " ".join("_".join(c.name.split()) for c in layout.classes),
        "flag_colors": " ".join(c.color for c in layout.classes),
        **_grid_mapping(layout.georef),
    }


def confidence_attributes(layout: StoreLayout) -> dict[str, Any]:
    """Return the attributes of ``confidence``."""
    return {
        "long_name": "probability of the label times 255, 0 where there is no data",
        **_grid_mapping(layout.georef),
    }


def probabilities_attributes(layout: StoreLayout) -> dict[str, Any]:
    """Return the attributes of ``probabilities``."""
    return {"long_name": "probability of the class times 255", **_grid_mapping(layout.georef)}


def axis_attributes(georef: Georef, axis: str) -> dict[str, Any]:
    """Return the CF attributes of the coordinate ``x`` or ``y`` (pixel centres)."""
    attributes: dict[str, Any] = {
        "axis": axis.upper(),
        "long_name": f"{axis} coordinate of the pixel's centre",
    }
    if georef.crs_wkt is None:
        return attributes
    if georef.is_geographic:
        geographic = {"x": ("longitude", "degrees_east"), "y": ("latitude", "degrees_north")}
        return attributes | dict(zip(("standard_name", "units"), geographic[axis], strict=True))
    return attributes | {"standard_name": f"projection_{axis}_coordinate", "units": georef.linear_units}


def spatial_ref_attributes(georef: Georef) -> dict[str, Any]:
    """Return the attributes of ``spatial_ref``: CRS as WKT, transform in GDAL's order."""
    attributes: dict[str, Any] = {}
    if georef.crs_wkt is not None:
        attributes |= {"crs_wkt": georef.crs_wkt, "spatial_ref": georef.crs_wkt}
        if georef.is_geographic:
            attributes["grid_mapping_name"] = "latitude_longitude"
    if georef.transform is not None:
        a, b, c, d, e, f = georef.transform
        # 17 digits: the shortest that give back every float64.
        attributes["GeoTransform"] = " ".join(f"{value:.17g}" for value in (c, a, b, f, d, e))
    return attributes


def has_spatial_ref(georef: Georef) -> bool:
    """Tell whether there is anything that ``spatial_ref`` could say."""
    return georef.crs_wkt is not None or georef.transform is not None


def _grid_mapping(georef: Georef) -> dict[str, Any]:
    return {"grid_mapping": SPATIAL_REF} if has_spatial_ref(georef) else {}


def _proj(georef: Georef) -> dict[str, Any]:
    if georef.crs_wkt is None:
        return {}
    if georef.epsg is not None:
        return {"proj:code": f"EPSG:{georef.epsg}"}
    try:
        return {"proj:wkt2": CRS.from_wkt(georef.crs_wkt).to_wkt(version="WKT2_2019")}
    except CRSError:
        return {}


def _bbox(transform: tuple[float, ...], *, height: int, width: int) -> list[float]:
    a, b, c, d, e, f = transform
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    xs = [a * col + b * row + c for col, row in corners]
    ys = [d * col + e * row + f for col, row in corners]
    return [min(xs), min(ys), max(xs), max(ys)]


def _conventions(georef: Georef) -> list[dict[str, str]]:
    """Return the declarations of the conventions in use.

    ``proj`` and ``spatial`` are declared under their names of v0.1 and of v1 ("proj:"): rioxarray 0.23 takes
    no CRS from the former alone, other readers know the former only.
    """
    entries = [
        _convention("multiscales", _MULTISCALES_UUID, "v0.1", "Multiscale layout of zarr datasets"),
        _convention("spatial", _SPATIAL_UUID, "v0.1", "Spatial coordinate information"),
        _convention("spatial:", _SPATIAL_UUID, "v1", "Spatial coordinate information"),
    ]
    if georef.crs_wkt is not None:
        described = "Coordinate reference system information for geospatial data"
        entries.append(_convention("proj", _PROJ_UUID, "v0.1", described))
        entries.append(_convention("proj:", _PROJ_UUID, "v1", described, repository="geo-proj"))
    return entries


def _convention(name: str, uuid: str, tag: str, description: str, repository: str | None = None) -> dict[str, str]:
    repository = repository or name.rstrip(":")
    return {
        "schema_url": f"{_RAW}/{repository}/refs/tags/{tag}/schema.json",
        "spec_url": f"{_WEB}/{repository}/blob/{tag}/README.md",
        "uuid": uuid,
        "name": name,
        "description": description,
    }
