"""How is one CRF tile refined, whatever the backend? Leave out what cannot matter, hand over the rest, put it back.

::

    certain? -> as it is        bands that guide        classes that occur -> backend -> absent classes back as 0
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.backends import backend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec
    from pipeline.window import Window

_LEAST = 1e-12
"""Smallest sum that is divided by: a pixel may have nothing of the classes that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """What refines a tile; nothing here is part of a run's fingerprint."""

    threads: int = 1
    """At most so many threads."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1`` ...; for the backend ``torch``."""


ONE_THREAD = Processor()


def refine_tile(  # noqa: PLR0913
    probabilities: NDArray[np.float32],
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    spec: CrfSpec,
    *,
    offset_px: tuple[int, int] = (0, 0),
    core: Window | None = None,
    processor: Processor = ONE_THREAD,
) -> NDArray[np.float32]:
    """Refine the probabilities of one tile with the backend of ``spec``.

    Parameters
    ----------
    probabilities
        (classes, height, width) float32, 0 to 1.
    guide
        (bands, height, width) float32, 0 to 255, all bands of the model.
    valid
        (height, width) bool, False at nodata. Such pixels take no part, and come back as they were.
    spec
        The energy, and what may be left out.
    offset_px
        (row, column) of the tile in its scene, so that all tiles share one lattice.
    core
        The pixels of the tile that are kept, None: all. What comes back for the others may be what they were some steps before.
    processor
        Threads and device; the result does not depend on threads.

    Returns
    -------
    (classes, height, width) float32: the mean-field marginals.
    """
    n_classes = len(probabilities)
    spec.check_fits(n_classes=n_classes, n_bands=len(guide))
    if not valid.any() or _is_certain(probabilities, valid, spec.skip_above):
        return probabilities
    present = _present(probabilities, valid, spec.absent_below)
    kept = probabilities if len(present) == n_classes else _of_classes(probabilities, present)
    marginals = backend(spec.backend).refine(
        kept,
        guide if spec.guide_bands is None else guide[[band - 1 for band in spec.guide_bands]],
        valid,
        spec if len(present) == n_classes else _energy_of(spec, present),
        offset_px=offset_px,
        core=core,
        threads=processor.threads,
        device=processor.device,
    )
    return marginals if len(present) == n_classes else _put_back(marginals, present, probabilities, valid)


def tile_bytes(spec: CrfSpec, n_pixels: int, *, n_classes: int, n_bands: int) -> int:
    """Return an upper bound of what refining a tile of so many pixels holds beside its arguments, bytes."""
    own = 4 * (2 * n_classes * (spec.absent_below > 0) + n_bands * (spec.guide_bands is not None))
    return n_pixels * own + backend(spec.backend).tile_bytes(n_pixels, n_classes=n_classes, n_bands=n_bands)


def _is_certain(probabilities: NDArray[np.float32], valid: NDArray[np.bool_], threshold: float) -> bool:
    """Tell whether the best class of every valid pixel is at least so probable; a threshold of 1 is never reached."""
    return threshold < 1 and bool(probabilities.max(axis=0).min(where=valid, initial=1) >= threshold)


def _present(probabilities: NDArray[np.float32], valid: NDArray[np.bool_], threshold: float) -> list[int]:
    """Return the classes that somewhere are more probable than the threshold; all of them where there would be none."""
    classes = range(len(probabilities))
    if threshold == 0:
        return list(classes)
    return [one for one in classes if probabilities[one].max(where=valid, initial=0) > threshold] or list(classes)


def _of_classes(probabilities: NDArray[np.float32], present: list[int]) -> NDArray[np.float32]:
    kept = probabilities[present]
    kept /= np.maximum(kept.sum(axis=0), np.float32(_LEAST))
    return kept


def _energy_of(spec: CrfSpec, present: list[int]) -> CrfSpec:
    """Return the energy of the classes that are kept."""
    if spec.compatibility is None:
        return spec
    rows = tuple(tuple(spec.compatibility[i][j] for j in present) for i in present)
    return dataclasses.replace(spec, compatibility=rows)


def _put_back(
    marginals: NDArray[np.float32], present: list[int], probabilities: NDArray[np.float32], valid: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the marginals of all classes: absent ones are 0, and pixels without data as they were."""
    refined = np.where(valid, np.float32(0), probabilities)
    refined[present] = np.where(valid, marginals, probabilities[present])
    return refined
