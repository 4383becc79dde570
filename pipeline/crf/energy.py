"""What does the fully connected CRF minimise?

Kraehenbuehl and Koltun (2011), as in DeepLab v1 equation 3: unary -log P(label), and for every pair of pixels the Potts model times ::

    w_appearance * exp(-|p_i - p_j|^2 / (2 theta_alpha^2) - |I_i - I_j|^2 / (2 theta_beta^2))      appearance
  + w_smoothness * exp(-|p_i - p_j|^2 / (2 theta_gamma^2))                                         smoothness

with positions p in pixels and guide values I in units of 0 to 255, minimised by ``n_steps`` of mean field. Each kernel k is normalised as
in pydensecrf: k_ij / sqrt(sum_j k_ij * sum_i k_ij).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import SpecError

HALO_SIGMAS = 2.0
"""Halo of a CRF tile in units of the widest kernel: a pixel this far away weighs exp(-2) = 0.14 of a near one of the same colour. What it
leaves of seams is measured in ``docs/explanation/blocks-and-halos.md``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrfSpec:
    """The energy and how long it is minimised. Defaults: the values published for DeepLab v2 on VOC 2012 by kazuto1011."""

    theta_alpha: float = 67.0
    """Spatial reach of the appearance kernel, px; above 0."""
    theta_beta: float = 3.0
    """Reach of the appearance kernel in guide units of 0 to 255; above 0."""
    theta_gamma: float = 1.0
    """Reach of the smoothness kernel, px; above 0."""
    w_appearance: float = 4.0
    """Weight of the appearance kernel (w1 in the papers); 0 or more."""
    w_smoothness: float = 3.0
    """Weight of the smoothness kernel (w2 in the papers); 0 or more."""
    n_steps: int = 10
    """Steps of mean field; 1 or more."""
    tile_px: int = 1024
    """Side of the tiles of the CRF's own lattice, px, without halo."""

    def __post_init__(self) -> None:
        for name in ("theta_alpha", "theta_beta", "theta_gamma", "w_appearance", "w_smoothness"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 67 and 67.0 are one energy, and one fingerprint
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise SpecError(f"{name} = {value} was asked for; it must be a finite number above 0")
        for name in ("w_appearance", "w_smoothness"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise SpecError(f"{name} = {value} was asked for; it must be a finite number of 0 or more")
        for name in ("n_steps", "tile_px"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} = {getattr(self, name)} was asked for; it must be 1 or more")

    @property
    def halo_px(self) -> int:
        """What a CRF tile reads around what it keeps, px: ``HALO_SIGMAS`` of the widest spatial kernel."""
        return math.ceil(HALO_SIGMAS * max(self.theta_alpha, self.theta_gamma))
