"""How are the tensors of ASPP and decoder called in the projects that keep torchvision's ``convs`` and ``project``?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import Tensor

    from pipeline.network.importers.keymap import KeyMap

Parts = tuple[str, str]
"""What depthwise and pointwise are called within a separable convolution that has nothing between the two."""

SMP_PARTS: Parts = ("0", "1")
VAINF_PARTS: Parts = ("body.0", "body.1")


def found_parts(names: Collection[str], conv: str, parts: Parts) -> Parts | None:
    """Return ``parts`` where the convolution ``conv`` has them, None where it is a plain one."""
    return parts if any(f"{conv}.{part}.weight" in names for part in parts) else None


def map_aspp(keys: KeyMap, theirs: str, *, n_branches: int, parts: Parts | None = None) -> None:
    """Map ``<theirs>convs.0.0`` ... and ``<theirs>project.0``, with the image-level branch last."""
    last = n_branches - 1
    keys.normalised("aspp.branches.0", f"{theirs}convs.0.0", f"{theirs}convs.0.1")
    for index in range(1, last):
        map_context(keys, f"aspp.branches.{index}", f"{theirs}convs.{index}.0", f"{theirs}convs.{index}.1", parts=parts)
    keys.normalised(f"aspp.branches.{last}.project", f"{theirs}convs.{last}.1", f"{theirs}convs.{last}.2")
    keys.normalised("aspp.project", f"{theirs}project.0", f"{theirs}project.1")


def map_context(keys: KeyMap, ours: str, conv: str, norm: str, *, parts: Parts | None, n_first: int = 0) -> None:
    """Map a 3 x 3 convolution of ASPP or decoder with its normalisation: plain, or separable in ``parts``.

    ``n_first``: so many of their input channels come first and are the last of ours (a decoder that joins low-level features first).
    """
    if parts is None:
        keys.normalised(ours, conv, norm, change=_rolled(n_first, dim=1))
        return
    keys.plain(f"{ours}.0", f"{conv}.{parts[0]}", bias=False, change=_rolled(n_first, dim=0))
    keys.normalised(f"{ours}.1", f"{conv}.{parts[1]}", norm, change=_rolled(n_first, dim=1))


def _rolled(n_first: int, *, dim: int) -> Callable[[Tensor], Tensor] | None:
    return (lambda kernel: kernel.roll(-n_first, dims=dim)) if n_first else None
