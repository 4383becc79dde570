"""Which weights has the smoothness kernel on the pixel grid?

A lattice that splats, blurs and slices with random offset averages to a quadratic B-spline of the Gaussian's own standard deviation. On the
grid of pixels that is a short separable stencil, and no lattice is needed. The spline alone agrees best with pydensecrf, the Gaussian is
what the energy means; a third of the way from one to the other agrees with pydensecrf as well as the spline does, and is nearer to the
exact mean field than pydensecrf in every case that was measured (``docs/explanation/crf.md``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REACH_SIGMAS = 4.0
"""Where the Gaussian is cut; the spline ends at 3."""
_GAUSSIAN_SHARE = 1 / 3


def taps(theta_gamma: float) -> NDArray[np.float32]:
    """Return the kernel along one axis: (odd number,) float32, symmetric, of sum 1.

    >>> [round(float(tap), 3) for tap in taps(1.0)]
    [0.001, 0.06, 0.247, 0.383, 0.247, 0.06, 0.001]
    """
    reach = math.ceil(_REACH_SIGMAS * theta_gamma) - 1
    sigmas = np.abs(np.arange(-reach, reach + 1)) / theta_gamma
    t = sigmas / 2.0
    spline = np.where(t < 0.5, 0.75 - t**2, np.where(t < 1.5, 0.5 * (1.5 - t) ** 2, 0.0))
    gaussian = np.exp(-0.5 * sigmas**2)
    weights = (1 - _GAUSSIAN_SHARE) * spline / spline.sum() + _GAUSSIAN_SHARE * gaussian / gaussian.sum()
    return np.asarray(weights / weights.sum(), np.float32)
