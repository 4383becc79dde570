"""The reference mean field: pydensecrf's permutohedral lattice (distribution ``pydensecrf2``). The only door to that library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.energy import MIN_PROBABILITY
from pipeline.crf.phase import phase
from pipeline.errors import MissingDependencyError, SpecError

try:
    import pydensecrf.densecrf as dcrf
except ImportError:  # built with a compiler, so an optional extra
    dcrf = None

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec
    from pipeline.window import Window

_BYTES_PER_PIXEL = 310
"""The two lattices whatever the classes: features, offsets, weights, hash tables, neighbours. Measured on 700 x 700 px of imagery in three
bands with 3, 5 and 9 classes: 438, 526 and 704 bytes a pixel in all, 305 + 44 per class."""
_BYTES_PER_BAND = 40
"""What each band of the guide beyond three adds to features, offsets and weights, and to the corners of a lattice cell."""
_COPIES = 11
"""Unary, marginals, lattice values and working copies, in units of one float32 probability array of a CRF tile."""


def require() -> None:
    """Raise MissingDependencyError where pydensecrf is not installed."""
    if dcrf is None:
        raise MissingDependencyError(
            "the CRF backend pydensecrf was asked for; it needs the package pydensecrf2, which is not installed here: "
            "pip install 'atrous[crf]' (needs a C++ compiler), or take the backend cpu"
        )


def tile_bytes(n_pixels: int, *, n_classes: int, n_bands: int) -> int:
    """Return an upper bound of what refining a tile of so many pixels holds beside its arguments, bytes."""
    return n_pixels * (_BYTES_PER_PIXEL + _BYTES_PER_BAND * max(0, n_bands - 3) + _COPIES * 4 * n_classes)


def refine(  # noqa: PLR0913
    probabilities: NDArray[np.float32],
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    spec: CrfSpec,
    *,
    offset_px: tuple[int, int] = (0, 0),
    core: Window | None = None,  # noqa: ARG001
    threads: int = 1,  # noqa: ARG001  # it knows one
    device: str = "cpu",  # noqa: ARG001
) -> NDArray[np.float32]:
    """Refine the probabilities of one tile: `pipeline.crf.backends.Backend.refine`. The GIL is held meanwhile."""
    require()
    if spec.stop_below != 0:
        raise SpecError(
            f"stop_below = {spec.stop_below} was asked for; pydensecrf always does all steps: give 0, or take the backend cpu or torch"
        )
    if not valid.any():
        return probabilities
    n_classes = probabilities.shape[0]
    unary = -np.log(np.clip(probabilities[:, valid], MIN_PROBABILITY, 1.0))
    crf = dcrf.DenseCRF(unary.shape[1], n_classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    positions = np.argwhere(valid).T.astype(np.float32)  # (row, column), the order of its create_pairwise_bilateral
    if spec.w_smoothness > 0:
        features = _shifted(positions, offset_px, theta_px=spec.theta_gamma, n_features=2) / np.float32(spec.theta_gamma)
        crf.addPairwiseEnergy(np.ascontiguousarray(features), compat=_compatibility(spec, spec.w_smoothness))
    if spec.w_appearance > 0:
        places = _shifted(positions, offset_px, theta_px=spec.theta_alpha, n_features=2 + len(guide)) / np.float32(
            spec.theta_alpha
        )
        features = np.concatenate([places, guide[:, valid] / np.float32(spec.theta_beta)])
        crf.addPairwiseEnergy(np.ascontiguousarray(features, np.float32), compat=_compatibility(spec, spec.w_appearance))
    refined = probabilities.copy()
    refined[:, valid] = np.asarray(crf.inference(spec.n_steps), np.float32).reshape(n_classes, -1)
    return refined


def _shifted(
    positions: NDArray[np.float32], offset_px: tuple[int, int], *, theta_px: float, n_features: int
) -> NDArray[np.float32]:
    """Return (row, column) of pixels in the lattice of the scene: (2, pixels) float32."""
    shift = phase(offset_px, theta_px=theta_px, n_features=n_features)
    return positions + np.array(shift, np.float32)[:, np.newaxis]


def _compatibility(spec: CrfSpec, weight: float) -> float | NDArray[np.float32]:
    """Return a kernel's weight, with the matrix of costs where there is one."""
    if spec.compatibility is None:
        return weight
    return np.asarray(spec.compatibility, np.float32) * np.float32(weight)
