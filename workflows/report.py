"""What does a person read of a plan, of a run's status, and of its end? Results as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.memory import UNKNOWN_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.crf.energy import CrfSpec
    from pipeline.window import Window
    from workflows.calibrate import Estimate
    from workflows.plan import Plan
    from workflows.segment_scene import Summary

_STAGES = {"crf": "CRF", "wait": "waiting for their turn"}
"""How stages are called where it is not by their name."""
_NAMED_PLACES = 20
"""So many unreadable places are listed."""


def plan_lines(plan: Plan, estimate: Estimate, *, verbose: bool = False) -> list[str]:
    """Return what a run would do and cost; ``verbose``: also why windows and blocks are as they are."""
    spec, scene, staffing = plan.prepared.spec, plan.prepared.scene, plan.staffing
    staged = ", copied to tiles first" if plan.stages else ""
    names = [item.name for item in plan.prepared.model.classes]
    classes = ", ".join(names) if len(names) <= 8 else f"{len(names)} classes"
    grid, times = spec.grid, (_duration(estimate.network_s), _duration(estimate.crf_s))
    seen = f"every pixel is seen {plan.redundancy:.2f} times"
    multiscale = spec.multiscale
    scales = f"{', '.join(f'{scale:g}' for scale in multiscale.scales)}{', each also mirrored' if multiscale.flip else ''}"
    views = (
        []
        if multiscale.is_single
        else [f"scales     {scales} ({multiscale.fusion}): {multiscale.relative_cost:.2f} times the work"]
    )
    return [
        f"scene      {scene.width} x {scene.height} px, {scene.n_bands} x {scene.dtype}{staged}",
        f"model      {plan.prepared.model.name} ({classes})",
        f"blocks     {plan.n_blocks} of {grid.block_px} px",
        f"windows    {plan.n_windows} of {grid.window_px} px, overlap {grid.overlap_px} px: {seen}",
        *(f"           {reason}" for reason in plan.prepared.reasons if verbose),
        *views,
        *_crf_lines(plan),
        f"engine     {plan.engine}",
        f"workers    {staffing.n_workers} x {staffing.threads} thread(s)",
        f"memory     {plan.memory.total_bytes / 2**30:.2f} GiB per worker, of {_limit(staffing.limit_bytes)}",
        *(f"           {term.n_bytes / 2**20:8.0f} MiB  {term.name}" for term in plan.memory.terms),
        f"time       about {_duration(estimate.total_s)} from a timed piece of the scene (network {times[0]}, CRF {times[1]})",
    ]


def _limit(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes < UNKNOWN_BYTES else "an unknown limit: no worker is there yet"


def _crf_lines(plan: Plan) -> list[str]:
    crf, origin = plan.prepared.spec.crf, plan.prepared.crf_origin
    if crf is None:
        return ["CRF        none"]
    return [
        f"CRF        {describe_crf(crf)}",
        *([] if origin is None else [f"           from: {origin}"]),
        f"           tiles of {crf.tile_px} px, halo {crf.halo_px} px, {plan.n_crf_pixels / 1e6:.1f} Mpx in all",
    ]


def describe_crf(crf: CrfSpec) -> str:
    """Return what decides the labels of a CRF, in one line."""
    costs = "" if crf.compatibility is None else ", own compatibility matrix"
    bands = "" if crf.guide_bands is None else f", guided by band(s) {', '.join(map(str, crf.guide_bands)) or 'none'}"
    options = "".join(
        f", {name} {getattr(crf, name):g}"
        for name, off in (("stop_below", 0), ("absent_below", 0), ("skip_above", 1))
        if getattr(crf, name) != off
    )
    return (
        f"w_appearance {crf.w_appearance:g} (theta_alpha {crf.theta_alpha:g} px, theta_beta {crf.theta_beta:g}), "
        f"w_smoothness {crf.w_smoothness:g} (theta_gamma {crf.theta_gamma:g} px), {crf.n_steps} steps{costs}{bands}{options}; "
        f"backend {crf.backend}"
    )


def status_lines(now: Any) -> list[str]:
    """Return how far a run is."""
    speed = "-" if now.pixels_per_s is None else f"{now.pixels_per_s / 1e6:.2f} Mpx/s"
    eta = "-" if now.eta_s is None else _duration(now.eta_s)
    return [
        f"blocks   {now.n_blocks}: {now.n_done} done, {now.n_nodata} nodata, {now.n_failed} failed, {now.n_left} left",
        f"pixels   {now.n_pixels_finished / 1e6:.1f} of {now.n_pixels / 1e6:.1f} Mpx",
        f"running  {'yes' if now.running else 'no'}",
        f"speed    {speed}",
        f"left     {eta}",
        *_stage_lines(now.stage_s),
        *(f"failed   block {failure.block}: {failure.error}" for failure in now.failures),
        *unreadable_lines(now.unreadable),
    ]


def summary_lines(summary: Summary) -> list[str]:
    """Return how a run ended."""
    labelled = sum(summary.class_counts)
    width = max(len(name) for name in (*summary.class_names, "nodata"))
    lines = [f"{'class':<{width}}  {'pixels':>14}  share"]
    for name, count in zip(summary.class_names, summary.class_counts, strict=True):
        lines.append(f"{name:<{width}}  {count:>14,}  {100 * count / max(1, labelled):5.1f} %")
    if summary.succeeded:
        lines.append(f"{'nodata':<{width}}  {summary.n_pixels - labelled:>14,}")
    if summary.succeeded and labelled == 0:
        lines.append("the scene holds nodata only: no block was segmented")
    state = "complete" if summary.succeeded else "incomplete"
    lines.append(
        f"{state}: {summary.n_done} blocks done, {summary.n_nodata} nodata, {len(summary.failures)} failed of {summary.n_blocks}; "
        f"{summary.n_new} new in {_duration(summary.seconds)}"
    )
    return [*lines, *_stage_lines(summary.stage_s), *unreadable_lines(summary.unreadable), summary.out]


def unreadable_lines(places: Sequence[Window]) -> list[str]:
    """Return what the scene did not give, in a few lines; none where it gave everything."""
    if not places:
        return []
    total = sum(place.n_pixels for place in places)
    named = [
        f"           rows {place.row_off} to {place.row_end - 1}, columns {place.col_off} to {place.col_end - 1}"
        for place in places[:_NAMED_PLACES]
    ]
    more = [f"           and {len(places) - _NAMED_PLACES} more, in failed.geojson"] if len(places) > _NAMED_PLACES else []
    return [f"unreadable {total:,} pixels of the scene, which are nodata for that reason:", *named, *more]


def _stage_lines(stage_s: dict[str, float]) -> list[str]:
    """Return where the time of the finished blocks went, in one line; none where it was not taken."""
    total = sum(stage_s.values())
    if not total:
        return []
    shares = (
        f"{_STAGES.get(name, name)} {seconds / total:.0%} ({_duration(seconds)})" for name, seconds in stage_s.items() if seconds
    )
    return [f"stages   {', '.join(shares).replace('%', ' %')}"]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
