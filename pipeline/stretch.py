"""How do 16-bit and float scenes reach a network trained on 8-bit images? Stretched to 0..255.

One straight line a band, the same for the whole scene: a stretch per tile would make the same field bright in
one tile and dark in the next. Its two ends are percentiles of valid pixels, taken from windows that are
spread evenly over the scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.errors import SpecError
from pipeline.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.scene_info import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A linear map of source units to 0..255, band by band, clipped at both ends.

    Examples
    --------
    >>> import numpy as np
    >>> Stretch(low=(100.0,), high=(200.0,)).apply(np.array([[[90, 100, 150, 300]]], dtype=np.uint16))
    array([[[  0. ,   0. , 127.5, 255. ]]], dtype=float32)
    """

    low: tuple[float, ...]
    """Per selected band: the value that becomes 0, source units."""
    high: tuple[float, ...]
    """Per selected band: the value that becomes 255, source units. Not below ``low``; where equal, the band
    becomes 0."""

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not self.low:
            raise SpecError(
                f"a stretch of {len(self.low)} low and {len(self.high)} high values was given; one of each per band is expected"
            )
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise SpecError(f"a stretch from {low} to {high} was given; two finite values, the lower one first, are expected")

    @classmethod
    def identity(cls, n_bands: int) -> Self:
        """Return the stretch that leaves 0..255 as it is."""
        return cls(low=(0.0,) * n_bands, high=(255.0,) * n_bands)

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return (bands, height, width) float32 in 0..255; NaN becomes 0, since a network would spread it."""
        if pixels.shape[0] != len(self.low):
            raise SpecError(f"{pixels.shape[0]} bands were given to a stretch of {len(self.low)}; estimate it for the same bands")
        result = np.empty(pixels.shape, dtype=np.float32)
        for band, target, low, factor in zip(pixels, result, self.low, self.factors, strict=True):
            target[...] = _stretched(band, low=low, factor=factor)
        return result

    @property
    def factors(self) -> tuple[float, ...]:
        """Per selected band: steps of 0..255 per source unit."""
        return tuple(255.0 / (high - low) if high > low else 0.0 for low, high in zip(self.low, self.high, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold."""
        return {"low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild a stretch from `to_dict`."""
        return cls(low=tuple(map(float, data["low"])), high=tuple(map(float, data["high"])))


def estimate_stretch(
    scene: Scene, *, percentiles: tuple[float, float] = (2, 98), n_windows: int = 64, window_px: int = 256
) -> Stretch:
    """Return the stretch between two percentiles of the valid pixels of a scene; the identity for uint8.

    Parameters
    ----------
    scene
        The scene, with the bands that the network will see.
    percentiles
        Which share of the pixels, %, falls below 0 and below 255; 0 to 100, rising.
    n_windows
        At most so many windows are read, on a lattice over the scene, so the answer is always the same.
    window_px
        Side of a window, px.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100 or n_windows < 1 or window_px < 1:
        raise SpecError(
            f"percentiles {percentiles} of {n_windows} windows of {window_px} px were asked for; "
            "percentiles rise within 0..100, "
            "counts are at least 1"
        )
    n_bands = len(scene.bands)
    if scene.info.dtype == "uint8":
        return Stretch.identity(n_bands)
    tiles = [scene.read(window) for window in sample_windows(scene.info.shape, n_windows=n_windows, side_px=window_px)]
    ends = [_ends([tile.pixels[band][tile.valid] for tile in tiles], percentiles) for band in range(n_bands)]
    return Stretch(low=tuple(low for low, _ in ends), high=tuple(high for _, high in ends))


def sample_windows(shape: tuple[int, int], *, n_windows: int, side_px: int) -> list[Window]:
    """Return at most ``n_windows`` windows, evenly spread over a (height, width), in reading order."""
    height, width = min(side_px, shape[0]), min(side_px, shape[1])
    n_rows = max(1, min(n_windows, round(math.sqrt(n_windows * shape[0] / shape[1])), -(-shape[0] // height)))
    n_cols = max(1, min(n_windows // n_rows, -(-shape[1] // width)))
    return [
        Window(row_off=row, col_off=col, height=height, width=width)
        for row in _spread(shape[0] - height, n_rows)
        for col in _spread(shape[1] - width, n_cols)
    ]


def _spread(last: int, count: int) -> list[int]:
    """Return ``count`` offsets in the middles of equal parts of ``0 .. last``."""
    return [last * (2 * i + 1) // (2 * count) for i in range(count)]


def _ends(samples: list[NDArray[Any]], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return two percentiles of the finite samples; 0 and 255 where there are none."""
    values = np.concatenate(samples).astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 255.0
    low, high = np.percentile(values, percentiles)
    return float(low), float(high)


def stretched_dtype(dtype: np.dtype[Any]) -> type[np.float32 | np.float64]:
    """Return what pixels of a type are stretched in.

    float32 holds 8- and 16-bit integers exactly; a difference of large 32-bit integers or doubles needs float64.
    """
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


def _stretched(band: NDArray[Any], *, low: float, factor: float) -> NDArray[Any]:
    """Return one band (height, width) in 0..255, NaN as 0."""
    if band.dtype == np.uint8 and (low, factor) == (0, 1):
        return band  # the sums below give the same numbers
    scaled: NDArray[np.floating[Any]] = band.astype(stretched_dtype(band.dtype))
    scaled -= low
    scaled *= factor
    scaled[np.isnan(scaled)] = 0
    return np.clip(scaled, 0, 255, out=scaled)
