"""What does the fully connected CRF minimise?

Kraehenbuehl and Koltun (2011), as in DeepLab v1 equation 3: unary -log P(label), and for every pair of pixels the cost of their two labels
times ::

    w_appearance * exp(-|p_i - p_j|^2 / (2 theta_alpha^2) - |I_i - I_j|^2 / (2 theta_beta^2))      appearance
  + w_smoothness * exp(-|p_i - p_j|^2 / (2 theta_gamma^2))                                         smoothness

with positions p in pixels and guide values I in units of 0 to 255, minimised by ``n_steps`` of mean field. The cost is 1 for unequal labels
(the Potts model), or comes from a matrix. Each kernel k is normalised as in pydensecrf: k_ij / sqrt(sum_j k_ij * sum_i k_ij).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.errors import SpecError
from pipeline.network.keys import check_keys

BackendName = Literal["cpu", "torch", "pydensecrf"]
Matrix = tuple[tuple[float, ...], ...]

MIN_PROBABILITY = 1e-5
"""Floor of P in the unary, as in pydensecrf's own ``unary_from_softmax``: keeps -log P finite."""

_FLOATS = ("theta_alpha", "theta_beta", "theta_gamma", "w_appearance", "w_smoothness", "stop_below", "absent_below", "skip_above")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrfSpec:
    """The energy, how long it is minimised, and by what. Defaults: the values published for DeepLab v2 on VOC 2012 by kazuto1011."""

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
    compatibility: Matrix | None = None
    """Cost of each class beside each, on which the weights are factors: a symmetric matrix. None: 1 for unequal classes (Potts)."""
    n_steps: int = 10
    """Steps of mean field; 1 or more."""
    guide_bands: tuple[int, ...] | None = None
    """The model's bands that guide the appearance kernel, counted from 1; None: all."""
    tile_px: int = 1024
    """Side of the tiles of the CRF's own lattice, px, without halo. Commands take larger ones where memory allows and nobody named one."""
    backend: BackendName = "cpu"
    """What minimises. The backends agree on nearly all labels, not on all bytes."""
    stop_below: float = 0.0
    """Work whose effect on any probability is below this may be left out; 0: none is, but below 2^-12 with the backend `cpu`."""
    absent_below: float = 0.0
    """A class that nowhere in a tile is more probable than this is left out of it, and gets probability 0; 0: all are kept."""
    skip_above: float = 1.0
    """A tile in which every pixel has a class at least this probable is left as it is; 1: every tile is refined."""

    def __post_init__(self) -> None:
        for name in _FLOATS:
            object.__setattr__(self, name, float(getattr(self, name)))  # 67 and 67.0 are one energy, and one fingerprint
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise SpecError(f"{name} = {value} was asked for; it must be a finite number above 0")
        for name in ("w_appearance", "w_smoothness"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise SpecError(f"{name} = {value} was asked for; it must be a finite number of 0 or more")
        for name in ("n_steps", "tile_px"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise SpecError(f"{name} = {value} was asked for; it must be a whole number, 1 or more")
        self._check_backend()
        self._check_thresholds()
        self._check_compatibility()
        self._check_guide_bands()

    def _check_backend(self) -> None:
        if self.backend not in get_args(BackendName):
            raise SpecError(f"backend {self.backend!r} was asked for; choose one of {', '.join(get_args(BackendName))}")
        if self.backend == "pydensecrf" and self.stop_below != 0:
            raise SpecError(
                f"stop_below = {self.stop_below} was asked for with the backend pydensecrf, which always does all steps; "
                "give 0, or take the backend cpu or torch"
            )

    def _check_thresholds(self) -> None:
        for name in ("stop_below", "absent_below"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise SpecError(f"{name} = {value} was asked for; it is a probability, give 0 (leave out nothing) to less than 1")
        if not 0 < self.skip_above <= 1:
            raise SpecError(
                f"skip_above = {self.skip_above} was asked for; it is a probability, give more than 0, up to 1 (skip nothing)"
            )

    def _check_compatibility(self) -> None:
        if self.compatibility is None:
            return
        rows = tuple(tuple(float(cost) for cost in row) for row in self.compatibility)
        object.__setattr__(self, "compatibility", rows)
        n = len(rows)
        if n < 1 or any(len(row) != n for row in rows):
            raise SpecError(
                f"a compatibility of {n} rows with {sorted({len(row) for row in rows})} costs was given; it needs one row and one "
                "cost in it for each class"
            )
        for i, row in enumerate(rows):
            for j, cost in enumerate(row):
                if not math.isfinite(cost) or cost != rows[j][i]:
                    raise SpecError(
                        f"the compatibility of classes {i} and {j} is {cost}, of {j} and {i} {rows[j][i]}; costs must be finite and the "
                        "same both ways: give a symmetric matrix"
                    )

    def _check_guide_bands(self) -> None:
        if self.guide_bands is None:
            return
        object.__setattr__(self, "guide_bands", tuple(self.guide_bands))
        bands = self.guide_bands
        if any(not isinstance(band, int) or band < 1 for band in bands) or len(set(bands)) != len(bands):
            raise SpecError(
                f"guide_bands = {','.join(map(str, bands))} was asked for; give numbers of the model's bands, counted from 1, each once"
            )

    @property
    def halo_px(self) -> int:
        """What a CRF tile reads around what it keeps, px: 2.2 of the widest spatial kernel at 10 steps, 0.9 more for ten times as many.

        A step carries a label about as far as a kernel reaches, ever fainter. What is left of seams at this width and others is measured in
        ``docs/explanation/crf.md``: less than 0.1 % of labels.
        """
        sigmas = 1.3 + 0.9 * math.log10(self.n_steps)
        return math.ceil(round(sigmas * max(self.theta_alpha, self.theta_gamma), 6))

    def check_fits(self, *, n_classes: int, n_bands: int) -> None:
        """Raise SpecError where the matrix or the guide bands are those of another model than one of so many classes and bands."""
        if self.compatibility is not None and len(self.compatibility) != n_classes:
            raise SpecError(
                f"a compatibility of {len(self.compatibility)} classes was given; the model has {n_classes}: give "
                f"{n_classes} rows of {n_classes} costs"
            )
        if self.guide_bands is not None and max(self.guide_bands, default=0) > n_bands:
            raise SpecError(
                f"guide_bands = {','.join(map(str, self.guide_bands))} was asked for; the model has {n_bands} band(s): "
                f"give numbers from 1 to {n_bands}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CrfSpec:
        """Build the spec that ``to_dict`` wrote; raises SpecError on an unknown key.

        Without a backend it is of a time when there was only pydensecrf.
        """
        check_keys(values, cls, where="the description of the CRF")
        given = {"backend": "pydensecrf", **values}
        if given.get("compatibility") is not None:
            given["compatibility"] = tuple(tuple(row) for row in given["compatibility"])
        if given.get("guide_bands") is not None:
            given["guide_bands"] = tuple(given["guide_bands"])
        return cls(**given)
