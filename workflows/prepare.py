"""From what a person typed to what will be run: look at the scene's header and the model, fill in what follows from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.blend import check_grid
from pipeline.crf.backends import backend
from pipeline.errors import SourceError, SpecError
from pipeline.grid import LARGEST_BLOCK_PX
from pipeline.network.footprint import margin_px
from pipeline.network.model_file import file_sha256, read_model_spec
from pipeline.network.models import DEFAULT_MODEL, find_model, resolve_model
from pipeline.network.scales import check_scales
from pipeline.network.spec import MultiScaleSpec, with_image_pooling
from pipeline.scene import Scene, SceneInfo, SceneSpec, open_scene
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch, estimate_stretch
from workflows.choose_grid import GridRequest, complete, coverage, smaller_ones
from workflows.crf_request import CrfRequest, choose, tilings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.crf.energy import CrfSpec
    from pipeline.network.choices import Fusion, ImagePooling
    from pipeline.network.spec import ModelSpec, NetworkSpec
    from pipeline.scene_info import OnReadError

    Fits = Callable[[SegmentSpec, SceneInfo, ModelSpec], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks for."""

    scene: str
    """Path of the scene."""
    model: str = DEFAULT_MODEL
    """A shipped name, or the path of a checkpoint."""
    bands: tuple[int, ...] | None = None
    """Bands of the scene, counted from 1, in the order of the model's; None: the first ones."""
    nodata: float | None = None
    """Value that means nodata, in place of the scene's own."""
    stretch: tuple[float, float] | None = None
    """Scene values that become 0 and 255 for every band; None: as they are for u1, else the 2nd and 98th percentile of each band."""
    grid: GridRequest | GridSpec = field(default_factory=GridRequest)
    """Windows and blocks; what is left open is chosen for the scene and the model."""
    scales: tuple[float, ...] | None = None
    """Scales at which the network sees every window; None: as the model says."""
    flip: bool | None = None
    """Whether it also sees it mirrored; None: as the model says."""
    fusion: Fusion | None = None
    """How the answers become one; None: as the model says."""
    image_pooling: ImagePooling | None = None
    """What an image-level branch averages over; None: as the model says."""
    crf: CrfRequest | CrfSpec | None = None
    """The CRF: a preset with changes, or value by value; None: without."""
    output: OutputSpec = field(default_factory=OutputSpec)
    """Chunks and arrays."""
    on_read_error: OnReadError = "fail"
    """What pixels of the scene become that cannot be read."""
    allow_vrt: bool = False
    """Whether the scene may be a VRT."""
    max_pixels: int | None = None
    """Largest scene that is accepted, px; None: what is usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A spec with the headers that it was checked against."""

    spec: SegmentSpec
    """What will be run."""
    scene: SceneInfo
    """The scene's header, all bands."""
    model: ModelSpec
    """The model's metadata."""
    crf_origin: str | None = None
    """Where the CRF's values come from, in words; None: without CRF, or not known any more."""
    reasons: tuple[str, ...] = ()
    """Why windows, blocks and CRF tiles are as they are, one sentence each; empty where nothing was chosen."""

    @property
    def network(self) -> NetworkSpec:
        """The network as it is run: with its image-level branch in the mode that was chosen."""
        return with_image_pooling(self.model.network, self.spec.image_pooling)


def prepare(request: Request, *, fits: Fits = lambda *_: True) -> Prepared:
    """Check a request against the scene's header and the model, and complete it.

    ``fits`` tells whether a worker could hold a block of a spec; windows, blocks and CRF tiles that were left open are made smaller until
    it can.
    """
    if request.crf is not None:
        backend(request.crf.backend).require()
    path = resolve_model(request.model)
    model = read_model_spec(path)
    whole = SceneSpec(
        uri=request.scene,
        nodata=request.nodata,
        max_pixels=request.max_pixels,
        on_read_error=request.on_read_error,
        allow_vrt=request.allow_vrt,
    )
    with open_scene(whole) as scene:
        info = scene.info
    bands = request.bands or _first_bands(request.scene, info, model)
    if len(bands) != len(model.bands):
        raise SpecError(
            f"--bands {','.join(map(str, bands))} names {len(bands)} bands; the model {model.name} needs {len(model.bands)}: "
            f"{', '.join(model.bands)}"
        )
    source = dataclasses.replace(whole, bands=bands)
    with open_scene(source) as scene:  # refuses bands that the scene does not have
        stretch = _stretch(scene, request.stretch)
    multiscale = _multiscale(request, model)
    network = with_image_pooling(model.network, request.image_pooling)
    crfs, crf_origin = _crfs(request, model)

    def grids_for(crf: CrfSpec | None) -> Iterator[GridSpec]:
        unit = _block_unit(request, crf)
        return _grids(request.grid, shape=info.shape, network=network, multiscale=multiscale, block_unit_px=unit)

    first = SegmentSpec(
        scene=source,
        model_path=str(path),
        model_sha256=file_sha256(path),
        stretch=stretch,
        grid=next(grids_for(crfs[0])),
        multiscale=multiscale,
        image_pooling=network.image_pooling,
        crf=crfs[0],
        output=request.output,
    )
    spec = next((one for one in _smaller(first, crfs, grids_for) if fits(one, info, model)), first)
    _check_grid(spec.grid, network, multiscale)
    return Prepared(spec=spec, scene=info, model=model, crf_origin=crf_origin, reasons=_reasons(request, spec, first, info, crfs))


def reopen(spec: SegmentSpec) -> Prepared:
    """Look again at the scene and the model of a run's spec, for a resume."""
    if spec.crf is not None:
        backend(spec.crf.backend).require()
    path = find_model(spec.model_path)
    with open_scene(dataclasses.replace(spec.scene, bands=None)) as scene:
        info = scene.info
    found = dataclasses.replace(spec, model_path=str(path), model_sha256=file_sha256(path))
    return Prepared(spec=found, scene=info, model=read_model_spec(path))


def _first_bands(uri: str, info: SceneInfo, model: ModelSpec) -> tuple[int, ...]:
    needed = len(model.bands)
    if info.n_bands < needed:
        raise SourceError(
            f"{uri} has {info.n_bands} band{'s' * (info.n_bands != 1)} ({', '.join(info.band_names)}); the model {model.name} needs "
            f"{needed}: {', '.join(model.bands)}. Give a scene with these bands, or repeat one: --bands {','.join(['1'] * needed)}"
        )
    return tuple(range(1, needed + 1))


def _stretch(scene: Scene, asked: tuple[float, float] | None) -> Stretch:
    if asked is None:
        return estimate_stretch(scene)
    if not asked[0] < asked[1]:
        raise SpecError(f"--stretch {asked[0]:g},{asked[1]:g} was asked for; the first value must be below the second")
    n_bands = len(scene.bands)
    return Stretch(low=(asked[0],) * n_bands, high=(asked[1],) * n_bands)


def _multiscale(request: Request, model: ModelSpec) -> MultiScaleSpec:
    own = model.multiscale
    return MultiScaleSpec(
        scales=own.scales if request.scales is None else request.scales,
        flip=own.flip if request.flip is None else request.flip,
        fusion=request.fusion or own.fusion,
    )


def _crfs(request: Request, model: ModelSpec) -> tuple[tuple[CrfSpec | None, ...], str | None]:
    """Return the CRF with each side of its tiles that may be chosen, and where its values come from; None without one."""
    if request.crf is None:
        return (None,), None
    crf, origin = choose(request.crf, model)
    return tilings(request.crf, crf, block_px=request.grid.block_px), origin


def _block_unit(request: Request, crf: CrfSpec | None) -> int:
    """Return what a block should be a multiple of, px: the piece that is written at once, and the CRF's tiles, so that none is shared."""
    unit = request.output.write_unit_px
    whole_tiles = math.lcm(unit, crf.tile_px) if crf is not None else unit
    return whole_tiles if whole_tiles <= LARGEST_BLOCK_PX else unit


def _grids(
    asked: GridRequest | GridSpec,
    *,
    shape: tuple[int, int],
    network: NetworkSpec,
    multiscale: MultiScaleSpec,
    block_unit_px: int,
) -> Iterator[GridSpec]:
    """Yield the grid that suits best, and after it those that need less memory."""
    if isinstance(asked, GridSpec):
        yield asked
        return
    for request, largest_px in [(asked, None), *smaller_ones(asked, block_unit_px=block_unit_px)]:
        yield complete(
            request, shape=shape, network=network, multiscale=multiscale, block_unit_px=block_unit_px, largest_px=largest_px
        )


def _smaller(
    first: SegmentSpec, crfs: tuple[CrfSpec | None, ...], grids_for: Callable[[CrfSpec | None], Iterator[GridSpec]]
) -> Iterator[SegmentSpec]:
    """Yield ``first`` and what needs less memory: smaller blocks, then smaller CRF tiles, and only then smaller windows."""
    for crf in crfs:
        for grid in grids_for(crf):
            if crf is crfs[-1] or grid.window_px == first.grid.window_px:
                yield dataclasses.replace(first, grid=grid, crf=crf)


def _check_grid(grid: GridSpec, network: NetworkSpec, multiscale: MultiScaleSpec) -> None:
    margin = margin_px(network, multiscale) if grid.blend == "exact" else None
    check_grid(grid, output_stride=network.output_stride, margin_px=margin, alignment=network.alignment)
    check_scales(
        multiscale,
        window_px=grid.window_px,
        step_px=grid.step_px,
        output_stride=network.output_stride,
        exact=grid.blend == "exact",
    )


def _reasons(
    request: Request, spec: SegmentSpec, first: SegmentSpec, scene: SceneInfo, crfs: tuple[CrfSpec | None, ...]
) -> tuple[str, ...]:
    asked, grid, crf = request.grid, spec.grid, spec.crf
    short = " (smaller than suits best: memory is short)"
    chosen = []
    if isinstance(asked, GridRequest):
        times = coverage(scene.shape, window_px=grid.window_px, overlap_px=grid.overlap_px)
        pieces = "whole chunks" if crf is None else "whole chunks and CRF tiles"
        window = f"window {grid.window_px} px: covers the scene {times:.2f} times"
        block = f"block {grid.block_px} px: {pieces}"
        chosen = [
            (asked.window_px is None, window + short * (grid.window_px < first.grid.window_px)),
            (asked.overlap_px is None, f"overlap {grid.overlap_px} px: {_why_overlap(grid)}"),
            (asked.block_px is None, block + short * (grid.block_px < first.grid.block_px)),
        ]
    if crf is not None and first.crf is not None:
        times = ((crf.tile_px + 2 * crf.halo_px) / crf.tile_px) ** 2
        tile = f"CRF tile {crf.tile_px} px: with its halo {times:.2f} times its own pixels"
        chosen.append((len(crfs) > 1, tile + short * (crf.tile_px < first.crf.tile_px)))
    return tuple(sentence for is_open, sentence in chosen if is_open)


def _why_overlap(grid: GridSpec) -> str:
    return "twice the margin of the network" if grid.blend == "exact" else "where windows meet, both see the ground around them"
