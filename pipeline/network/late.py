"""A network that is described now, and loaded when somebody needs its weights: they and torch take a second, which most runs save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.network.cells import cells_of
from pipeline.network.model_file import read_model_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.network.cells import Cells
    from pipeline.network.choices import ImagePooling
    from pipeline.network.multiscale import MultiScale
    from pipeline.network.spec import ModelSpec, MultiScaleSpec, NetworkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LateNetwork:
    """A network together with the scales that it sees."""

    spec: NetworkSpec
    """The network."""
    multiscale: MultiScaleSpec
    """The scales, and whether mirrored."""
    load: Callable[[], MultiScale]
    """Loads it; imports torch."""

    @property
    def cells(self) -> Cells:
        """How scores lie over pixels."""
        return cells_of(self.spec, self.multiscale)

    @classmethod
    def loaded(cls, system: MultiScale) -> LateNetwork:
        """Return one that is there already."""
        return cls(spec=system.network.spec, multiscale=system.multiscale, load=lambda: system)


def late_network(
    path: Path,
    multiscale: MultiScaleSpec | None = None,
    *,
    mode: ImagePooling | None = None,
    scene_means: tuple[tuple[float, ...], ...] = (),
) -> tuple[ModelSpec, LateNetwork]:
    """Return what a model file says of itself, and its network as `pipeline.network.image_pooling.assemble` makes it.

    Without ``multiscale`` it has the model's own scales. Raises WeightsError where there is no such description.
    """
    model = read_model_spec(path)
    scales = multiscale or model.multiscale

    def load() -> MultiScale:
        from pipeline.network.checkpoint import load_network  # noqa: PLC0415  (torch)
        from pipeline.network.image_pooling import assemble  # noqa: PLC0415  (torch)

        _, network = load_network(path)
        return assemble(network, scales, mode=mode, scene_means=scene_means)

    return model, LateNetwork(spec=model.network, multiscale=scales, load=load)
