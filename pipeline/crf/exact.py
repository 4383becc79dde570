"""What is the mean field, to the last pair of pixels? Brute force in float64; for tests, and for tiles of up to some 100 x 100 px."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.crf.energy import MIN_PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.crf.energy import CrfSpec

    Float64 = NDArray[np.float64]

_CHUNK_BYTES = 2**26
"""Of the rows of a kernel that are held at once."""
_HELD_BYTES = 2**28
"""A kernel of up to so many bytes is kept from step to step (5,800 pixels), a larger one is made anew."""
_LOWEST = -100.0
"""exp of less is taken for exp of this, 4e-44, which no sum that holds a 1 can tell from it: denormal numbers are slow."""


class _Kernel:
    """A Gaussian over pairs of pixels, k_ij = exp(-|f_i - f_j|^2 / 2) / sqrt(n_i n_j), n_i = the sum of row i before."""

    def __init__(self, features: Float64) -> None:
        self._features = features
        self._held = list(_gaussian(features)) if 8 * len(features) ** 2 <= _HELD_BYTES else None
        self._scale = 1 / np.sqrt(np.concatenate([rows.sum(axis=1) for rows in self._rows()]))[:, None]

    def apply(self, marginals: Float64) -> Float64:
        """Return the sum over j of k_ij q_j: (pixels, classes)."""
        scaled = marginals * self._scale
        return np.asarray(self._scale * np.concatenate([rows @ scaled for rows in self._rows()]))

    def _rows(self) -> Iterable[Float64]:
        return _gaussian(self._features) if self._held is None else self._held


def require() -> None:
    """Do nothing: numpy is all that it needs."""


def tile_bytes(n_pixels: int, *, n_classes: int, n_bands: int) -> int:
    """Return an upper bound of what refining a tile of so many pixels holds beside its arguments, bytes."""
    return n_pixels * 8 * (8 * n_classes + 4 * (n_bands + 4)) + 2 * _HELD_BYTES + 3 * max(_CHUNK_BYTES, 8 * n_pixels)


def refine(  # noqa: PLR0913
    probabilities: NDArray[np.float32],
    guide: NDArray[np.float32],
    valid: NDArray[np.bool_],
    spec: CrfSpec,
    *,
    offset_px: tuple[int, int] = (0, 0),  # noqa: ARG001
    threads: int = 1,  # noqa: ARG001
    device: str = "cpu",  # noqa: ARG001
) -> NDArray[np.float32]:
    """Refine the probabilities of one tile: `pipeline.crf.backends.Backend.refine`, with the sum over all pairs of pixels in float64."""
    if not valid.any():
        return probabilities
    places = np.argwhere(valid).astype(np.float64)
    colors = guide[:, valid].T.astype(np.float64)
    appearance = _Kernel(np.hstack([places / spec.theta_alpha, colors / spec.theta_beta]))
    smoothness = _Kernel(places / spec.theta_gamma)
    log_p = np.log(np.clip(probabilities[:, valid].T.astype(np.float64), MIN_PROBABILITY, 1))
    marginals = _softmax(log_p)
    for _ in range(spec.n_steps):
        message = spec.w_appearance * appearance.apply(marginals) + spec.w_smoothness * smoothness.apply(marginals)
        marginals = _softmax(log_p + (message if spec.compatibility is None else -message @ np.array(spec.compatibility)))
    refined = probabilities.copy()
    refined[:, valid] = marginals.T
    return refined


def _gaussian(features: Float64) -> Iterator[Float64]:
    """Yield the rows of exp(-|f_i - f_j|^2 / 2), so many at once."""
    squares = (features**2).sum(axis=1) / 2
    n_rows = max(1, _CHUNK_BYTES // (8 * len(features)))
    for start in range(0, len(features), n_rows):
        rows = features[start : start + n_rows] @ features.T
        rows -= squares[start : start + n_rows, None]
        rows -= squares
        yield np.exp(np.clip(rows, _LOWEST, 0, out=rows), out=rows)


def _softmax(scores: Float64) -> Float64:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
