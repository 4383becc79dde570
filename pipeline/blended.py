"""What does a block hold once its windows are blended? Probabilities, wherever they lie, and ways to what is written.

::

    probabilities -+-> the CRF, tile by tile
                   +-> labels and confidence
                   +-> probabilities as they are stored
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.labels import quantise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


EVERYWHERE = (slice(None), slice(None))


class Blended(Protocol):
    """The probabilities of the pixels that a block needs."""

    def probabilities(self, part: tuple[slice, slice] = EVERYWHERE) -> NDArray[np.float32]:
        """Return those of a part: (classes, height, width) float32, 0 to 1."""

    def classify(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return labels and confidence of a part, whose valid pixels are given; as `classify.classify` does."""

    def quantise(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the probabilities of a part as they are stored: (classes, height, width) u1, 0 where not valid."""


class BlendedHere:
    """Probabilities in the memory of this process."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values

    def probabilities(self, part: tuple[slice, slice] = EVERYWHERE) -> NDArray[np.float32]:
        """Return them; not a copy."""
        return self._values[:, *part]

    def classify(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See `Blended`."""
        from pipeline.classify import classify  # noqa: PLC0415  (numba takes 60 MiB; who only plans or coordinates classifies nothing)

        return classify(self._values[:, *part], valid)

    def quantise(self, part: tuple[slice, slice], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """See `Blended`."""
        return quantise(self._values[:, *part] * valid)
