"""What must something offer that minimises the CRF's energy, and which of them is used?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, get_args

from pipeline.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.crf.energy import BackendName, CrfSpec
    from pipeline.window import Window

BackendChoice = Literal["auto", "cpu", "torch", "pydensecrf"]


class Backend(Protocol):
    """What every backend, a module, offers."""

    def refine(  # noqa: PLR0913
        self,
        probabilities: NDArray[np.float32],
        guide: NDArray[np.float32],
        valid: NDArray[np.bool_],
        spec: CrfSpec,
        *,
        offset_px: tuple[int, int] = (0, 0),
        core: Window | None = None,
        threads: int = 1,
        device: str = "cpu",
    ) -> NDArray[np.float32]:
        """Refine the probabilities of one tile.

        Pixels that are not valid take no part in the energy and come back as they were.

        Parameters
        ----------
        probabilities
            (classes, height, width) float32, 0 to 1.
        guide
            (bands, height, width) float32, 0 to 255; any number of bands, none included.
        valid
            (height, width) bool, False at nodata.
        spec
            The energy. What is common to all backends (which bands guide, absent classes, certain tiles) was done before.
        offset_px
            (row, column) of the tile in its scene: all tiles of a scene share one lattice (``phase``).
        core
            The pixels that are kept, None: all. A backend need not bring the others up to date.
        threads
            At most so many compute at once; the result does not depend on it.
        device
            ``cpu``, ``cuda``, ``cuda:1`` ...; for backends that know devices.

        Returns
        -------
        (classes, height, width) float32: the mean-field marginals.
        """

    def tile_bytes(self, n_pixels: int, *, n_classes: int, n_bands: int) -> int:
        """Return an upper bound of what refining a tile of so many pixels holds beside its arguments, bytes."""

    def require(self) -> None:
        """Raise MissingDependencyError where a library that it needs is not installed."""


def backend(name: BackendName) -> Backend:
    """Return the backend of that name, importing its libraries only now."""
    if name == "cpu":
        from pipeline.crf import cpu  # noqa: PLC0415

        return cpu
    if name == "torch":
        from pipeline.crf import torch_lattice  # noqa: PLC0415  # torch takes seconds, and the others do without

        return torch_lattice
    if name == "pydensecrf":
        from pipeline.crf import pydensecrf  # noqa: PLC0415  # an extra

        return pydensecrf
    raise SpecError(f"the CRF backend {name!r} was asked for; choose one of {', '.join(get_args(BackendChoice))}")


def resolve(choice: BackendChoice, *, device: str) -> BackendName:
    """Return the backend that ``choice`` means on ``device`` (``cpu``, ``cuda``, ``cuda:1`` ...)."""
    if choice == "auto":
        return "torch" if device.startswith("cuda") else "cpu"
    if choice not in get_args(BackendChoice):
        raise SpecError(f"the CRF backend {choice!r} was asked for; choose one of {', '.join(get_args(BackendChoice))}")
    return choice
