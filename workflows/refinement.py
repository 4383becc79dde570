"""From an earlier output to a job that refines its probabilities again: everything as that run had it, but the CRF.

::

    STORE.zarr (probabilities, before its CRF)  +  scene (guide)  --another CRF-->  OUT.zarr

The job is the one that segments, block by block, with the network left out; so it is resumed, watched and exported like it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.crf.backends import backend
from pipeline.errors import SpecError
from workflows.crf_request import choose, tilings
from workflows.prepare import Prepared
from workflows.stored_run import open_stored

if TYPE_CHECKING:
    from pipeline.crf.energy import CrfSpec
    from pipeline.spec import SegmentSpec
    from workflows.crf_request import CrfRequest
    from workflows.prepare import Fits
    from workflows.stored_run import StoredRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What a person asks for."""

    store: Path
    """A finished output of `atrous segment --probabilities`."""
    crf: CrfRequest | CrfSpec
    """The CRF: a preset with changes, or value by value."""
    scene: str | None = None
    """Where the scene is now; None: where it was."""


def prepare_refinement(request: Refinement, *, fits: Fits = lambda *_: True) -> Prepared:
    """Check a request against the earlier output and its scene, and complete it from there.

    ``fits`` tells whether a worker could hold a block of a spec; CRF tiles that were left open are made smaller until it can.
    """
    found = refinement_of(open_stored(request.store, scene=request.scene), request.crf)
    if found.spec.crf is None:
        return found
    sides = tilings(request.crf, found.spec.crf, block_px=found.spec.grid.block_px)
    specs = [dataclasses.replace(found.spec, crf=crf) for crf in sides]
    return dataclasses.replace(found, spec=next((spec for spec in specs if fits(spec, found.scene, found.model)), specs[-1]))


def refinement_of(stored: StoredRun, request: CrfRequest | CrfSpec) -> Prepared:
    """Complete a job from an earlier output that was looked at already."""
    crf, origin = choose(request, stored.model)
    backend(crf.backend).require()
    spec = dataclasses.replace(
        stored.spec,
        crf=crf,
        output=dataclasses.replace(stored.spec.output, probabilities=False),
        probabilities_from=str(stored.store),
        probabilities_sha256=stored.sha256,
    )
    return Prepared(spec=spec, scene=stored.scene, model=stored.model, crf_origin=origin)


def reopen_refinement(spec: SegmentSpec) -> Prepared:
    """Look again at the earlier output and the scene of a refinement's spec, for a resume."""
    if spec.probabilities_from is None or spec.crf is None:
        raise SpecError("a run that uses the network was given; a refinement of stored probabilities is expected")
    return prepare_refinement(Refinement(store=Path(spec.probabilities_from), crf=spec.crf, scene=spec.scene.uri))
