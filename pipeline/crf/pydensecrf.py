"""The reference mean field: pydensecrf's permutohedral lattice (distribution ``pydensecrf2``). The only door to that library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import MissingDependencyError

try:
    import pydensecrf.densecrf as dcrf
except ImportError:  # built with a compiler, so an optional extra
    dcrf = None

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec

MIN_PROBABILITY = 1e-5
"""Floor of the probabilities, as in pydensecrf's own ``unary_from_softmax``: keeps -log P finite."""


def require() -> None:
    """Raise MissingDependencyError where pydensecrf is not installed."""
    if dcrf is None:
        raise MissingDependencyError(
            "--crf was asked for; it needs the package pydensecrf2, which is not installed here: "
            "pip install 'atrous[crf]' (needs a C++ compiler), or run with --no-crf"
        )


def refine(
    probabilities: NDArray[np.float32], guide: NDArray[np.float32], valid: NDArray[np.bool_], spec: CrfSpec
) -> NDArray[np.float32]:
    """Refine the probabilities of one tile.

    Pixels that are not valid take no part in the energy and come back as they were. The GIL is held meanwhile.

    Parameters
    ----------
    probabilities
        (classes, height, width) float32, 0 to 1.
    guide
        (bands, height, width) float32, 0 to 255.
    valid
        (height, width) bool, False at nodata.
    spec
        The energy.

    Returns
    -------
    (classes, height, width) float32: the mean-field marginals.
    """
    require()
    if not valid.any():
        return probabilities
    n_classes = probabilities.shape[0]
    unary = -np.log(np.clip(probabilities[:, valid], MIN_PROBABILITY, 1.0))
    crf = dcrf.DenseCRF(unary.shape[1], n_classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    positions = np.argwhere(valid).T[::-1].astype(np.float32)  # (x, y), the order of DenseCRF2D
    if spec.w_smoothness > 0:
        crf.addPairwiseEnergy(np.ascontiguousarray(positions / np.float32(spec.theta_gamma)), compat=spec.w_smoothness)
    if spec.w_appearance > 0:
        features = np.concatenate([positions / np.float32(spec.theta_alpha), guide[:, valid] / np.float32(spec.theta_beta)])
        crf.addPairwiseEnergy(np.ascontiguousarray(features, np.float32), compat=spec.w_appearance)
    refined = probabilities.copy()
    refined[:, valid] = np.asarray(crf.inference(spec.n_steps), np.float32).reshape(n_classes, -1)
    return refined
