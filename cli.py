"""The command ``atrous``: parse -> spec -> run -> exit code. No pixels and no loops over blocks here.

stdout carries results and JSON, stderr progress and messages.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import json
import logging
import os
import sys
import tomllib
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workflows.crf_request import CrfRequest
    from workflows.local_workers import ClusterSpec, EarlyWorkers
    from workflows.segment_scene import Execution, Summary

from pipeline.errors import (
    ClusterLostError,
    LockedError,
    MemoryBudgetError,
    PipelineError,
    SourceError,
    StoreError,
    StoreMismatchError,
    UnfitWorkersError,
    WeightsError,
)
from pipeline.keep_memory import keep_freed_memory

EXIT_UNEXPECTED, EXIT_USAGE, EXIT_MISMATCH, EXIT_QUARANTINED = 1, 2, 3, 4
EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_TRY_AGAIN = 65, 73, 75

_EXIT_CODES: tuple[tuple[type[PipelineError], int], ...] = (
    (StoreMismatchError, EXIT_MISMATCH),
    (MemoryBudgetError, EXIT_MISMATCH),
    (SourceError, EXIT_BAD_INPUT),
    (WeightsError, EXIT_BAD_INPUT),
    (StoreError, EXIT_CANNOT_WRITE),
    (LockedError, EXIT_TRY_AGAIN),
    (ClusterLostError, EXIT_TRY_AGAIN),
    (UnfitWorkersError, EXIT_MISMATCH),
    (PipelineError, EXIT_USAGE),
)

_stderr = Console(stderr=True)


def main() -> None:
    """Run the command line and exit with its code."""
    atexit.register(gc.freeze)  # what is left ends with the process: to look for garbage in it would take half a second
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    try:
        code = atrous.main(standalone_mode=False, auto_envvar_prefix="ATROUS")
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted; run the same command again to go on")
        sys.exit(EXIT_TRY_AGAIN)
    except PipelineError as error:
        _say(f"error: {error}")
        sys.exit(next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    _stderr.print(text, markup=False, highlight=False, soft_wrap=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="atrous")
def atrous() -> None:
    """Segment rasters that do not fit in memory."""


# Options that several commands share


def _numbers(kind: type[Any]) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...] | None]:
    """Return a click callback that parses "1,2,3" to a tuple of ``kind``."""

    def parse(_context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[Any, ...] | None:
        if text is None:
            return None
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(
                f"{text!r} was given; expected numbers with commas between, such as 1,2,3", param=parameter
            ) from None

    return parse


def _config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Make the values of a TOML file the defaults of the command's options."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path} cannot be read as TOML: {error}") from None
    known = {option.name: option for option in context.command.params if isinstance(option, click.Option) and option.name}
    for name in values:
        if name.replace("-", "_") not in known:
            close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
            raise click.BadParameter(f"{path} has the unknown key {name!r}{hint}")
    flat = {}
    for name, value in ((name.replace("-", "_"), value) for name, value in values.items()):
        if known[name].multiple:
            flat[name] = value if isinstance(value, list) else [value]
        else:
            flat[name] = _as_text(value)
    context.default_map = {**(context.default_map or {}), **flat}


def _as_text(value: Any) -> Any:
    """Return a value as it would be typed, so that it is checked like one: click would cut 64.5 to 64."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, float) else value


def _stack(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Join several options to one decorator."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_crf_options = _stack(
    click.option(
        "--crf-preset",
        metavar="NAME",
        help="Values of the CRF: model (its own), kazuto, v1, v1-default or v2. [default: model if it has one, else kazuto]",
    ),
    click.option(
        "--crf-param",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one value of the preset: theta_alpha, theta_beta, theta_gamma, w_appearance, w_smoothness, n_steps, "
        "compatibility (a .csv or .json file), guide_bands, tile_px, stop_below, absent_below, skip_above. May be repeated.",
    ),
    click.option(
        "--crf-backend",
        type=click.Choice(["auto", "cpu", "torch", "pydensecrf"]),
        help="What computes the CRF; auto is torch on CUDA, else cpu. [default: auto]",
    ),
)
_request_options = _stack(
    click.option("--model", default="dubai-mobilenetv2", help="Shipped name, or path of a .safetensors checkpoint."),
    click.option(
        "--bands", callback=_numbers(int), metavar="1,2,3", help="Bands of the scene in the model's order. [default: the first]"
    ),
    click.option("--nodata", type=float, help="Value that means nodata. [default: as the scene says]"),
    click.option(
        "--on-read-error",
        type=click.Choice(["fail", "nodata"]),
        default="fail",
        help="What damaged parts of the scene become: blocks that failed, or nodata that is named.",
    ),
    click.option("--allow-vrt", is_flag=True, help="Read a VRT, if it is a plain mosaic of files in its own folder."),
    click.option("--max-pixels", type=click.IntRange(min=1), help="Largest scene that is accepted, px. [default: 2**40]"),
    click.option(
        "--stretch",
        callback=_numbers(float),
        metavar="LOW,HIGH",
        help="Scene values that become 0 and 255. [default: 8-bit as it is, else 2nd and 98th percentile of each band]",
    ),
    click.option("--window", type=int, help="Side of the network windows, px. [default: what suits scene, model and memory]"),
    click.option(
        "--overlap", type=int, help="What neighbouring windows share, px. [default: 256; twice the network's margin with exact]"
    ),
    click.option("--blend", type=click.Choice(["taper", "exact"]), default="taper", help="How overlapping windows are joined."),
    click.option(
        "--scales",
        callback=_numbers(float),
        metavar="0.5,0.75,1",
        help="Scales at which the network sees every window. [default: as the model says]",
    ),
    click.option("--flip/--no-flip", default=None, help="Also see every window mirrored. [default: as the model says]"),
    click.option(
        "--fusion",
        type=click.Choice(["max", "mean"]),
        help="Of scales and mirror images: maximum of scores or mean of probabilities. [default: as the model says]",
    ),
    click.option(
        "--image-pooling",
        type=click.Choice(["global", "window", "off"]),
        help="What an image-level branch averages over. [default: as the model says]",
    ),
    click.option(
        "--crf/--no-crf",
        default=None,
        help="Refine with the fully connected CRF. [default: no, unless an option below asks for one]",
    ),
    _crf_options,
    click.option(
        "--block", type=int, help="Side of the unit of work, px; a multiple of the chunk. [default: 4096, or as memory allows]"
    ),
    click.option("--chunk", type=int, default=1024, help="Side of the Zarr chunks, px."),
    click.option("--shard", type=int, help="Side of the Zarr shards, px. [default: no shards]"),
    click.option("--probabilities", is_flag=True, help="Keep the probabilities of all classes."),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_config,
        is_eager=True,
        expose_value=False,
        help="TOML file with defaults for these options.",
    ),
)
_label_options = _stack(
    click.option(
        "--label-colors", metavar="#RRGGBB,...", help="Colours of the classes in the labels. [default: those of the classes]"
    ),
    click.option("--ignored-colors", metavar="#RRGGBB,...", help="Colours that mean: no label."),
    click.option(
        "--values", multiple=True, metavar="KEY=CLASS", help="What a number, colour or attribute means. May be repeated."
    ),
    click.option("--nodata", type=int, help="Number that means: no label. [default: 255, and what the raster says]"),
    click.option("--attribute", help="Column of polygons that holds the class. [default: class]"),
    click.option("--layer", help="Layer of a GeoPackage. [default: the only one]"),
    click.option("--outside", default="ignore", metavar="CLASS", help="What ground without a polygon is."),
    click.option(
        "--all-touched", is_flag=True, help="Polygons cover all pixels that they touch, not only those whose centre they do."
    ),
    click.option("--reproject", is_flag=True, help="Bring labels of another grid to that of the prediction."),
)
_cluster_options = _stack(
    click.option("--workers", type=int, help="Worker processes. [default: one per 16 cores, as memory allows]"),
    click.option("--threads", type=int, help="Network windows at once per worker. [default: cores / workers, as memory allows]"),
    click.option("--scheduler", metavar="ADDRESS|FILE", help="A running Dask cluster, by address or scheduler file."),
    click.option("--cluster", type=click.Choice(["local", "cuda", "serial"]), default="local", help="What to start otherwise."),
    click.option(
        "--block-timeout",
        type=float,
        metavar="SECONDS",
        help="Restart the worker of a block that takes longer. [default: ten times the slowest so far, at least 300]",
    ),
)
_execution_options = _stack(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the network runs."),
    click.option(
        "--engine",
        type=click.Choice(["auto", "torch", "openvino"]),
        default="auto",
        help="What runs it; auto is openvino on the CPU where it is installed, else torch.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "tf32", "bf16", "fp16"]),
        default="auto",
        help="Of the network; auto is fp32, on CUDA tf32.",
    ),
    _cluster_options,
)
_crf_device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the CRF is computed."
)
_report_options = _stack(
    click.option("--json", is_flag=True, help="Print the result as JSON."),
    click.option("-v", "--verbose", is_flag=True, help="Log more."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no notices."),
    click.option("--progress/--no-progress", default=None, help="Progress bar. [default: on a terminal]"),
)


# Commands


@atrous.command()
@click.argument("scene", type=click.Path())
@click.argument("out", type=click.Path(path_type=Path))
@_request_options
@_execution_options
@click.option("--overwrite", is_flag=True, help="Remove an OUT that another run made.")
@click.option("--strict", is_flag=True, help="Refuse a resume on another device, precision or version.")
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@_report_options
def segment(scene: str, out: Path, **options: Any) -> int:
    """Segment SCENE into the Zarr group OUT; an OUT that the same command made is resumed."""
    from workflows.scene_size import count_pixels  # noqa: PLC0415

    if options["dry_run"]:
        return _print_plan(_request(scene, options), options)
    with _workers_begun(options, count_pixels(scene)) as early:
        from workflows.segment_scene import segment as run_segment  # noqa: PLC0415  (while workers start)

        request, execution = _request(scene, options), _execution(options)
        with _view(options) as view:
            summary = run_segment(request, out, execution, view, early=early)
    return _report(summary, as_json=options["json"], quiet=options["quiet"])


@atrous.command()
@click.argument("out", type=click.Path(path_type=Path))
@_execution_options
@click.option("--retry-failed", is_flag=True, help="Try quarantined blocks again.")
@click.option("--strict", is_flag=True, help="Refuse on another device, precision or version.")
@_report_options
def resume(out: Path, **options: Any) -> int:
    """Go on with the run that makes OUT."""
    from workflows.scene_size import count_pixels_of_run  # noqa: PLC0415

    with _workers_begun(options, count_pixels_of_run(out)) as early:
        from workflows.segment_scene import resume as run_resume  # noqa: PLC0415

        execution = _execution(options)
        with _view(options) as view:
            summary = run_resume(out, execution, view, early=early)
    return _report(summary, as_json=options["json"], quiet=options["quiet"])


@atrous.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", is_flag=True, help="Print as JSON.")
def status(out: Path, **options: Any) -> int:
    """Tell how far the run that makes OUT is."""
    from workflows.report import status_lines  # noqa: PLC0415
    from workflows.status import status as read_status  # noqa: PLC0415

    now = read_status(out)
    if options["json"]:
        click.echo(json.dumps({**asdict(now), "n_left": now.n_left, "eta_s": now.eta_s}))
    else:
        click.echo("\n".join(status_lines(now)))
    return EXIT_QUARANTINED if now.n_failed or now.unreadable else 0


@atrous.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--fast", is_flag=True, help="Compare checksums only; decode no pixels.")
@click.option("--repair", is_flag=True, help="Remove what is damaged, so that resume does it again.")
@click.option(
    "--seams",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also compute labels again at N places where blocks meet, and compare.",
)
@_report_options
def verify(out: Path, **options: Any) -> int:
    """Compare every file of OUT with what was written, and decode every pixel."""
    from workflows.verify import run  # noqa: PLC0415
    from workflows.verify_report import seam_lines, seams_to_dict, verification_lines  # noqa: PLC0415

    with _view(options) as view:
        found = run(
            out,
            decode=not options["fast"],
            repair=options["repair"],
            on_progress=lambda done, total: view.advance("verifying", done=done, total=total),
        )
        seams = None if options["seams"] is None or found.damages else _look_at_seams(out, options["seams"], view)
    if options["json"]:
        verdict = {"sound": found.sound, "complete": found.complete}
        click.echo(json.dumps({**asdict(found), **verdict, "seams": seams_to_dict(seams)}))
    else:
        lines = [] if options["seams"] is None else seam_lines(seams)
        click.echo("\n".join([*verification_lines(found), *lines]))
    if not found.sound:
        return EXIT_QUARANTINED
    return 0 if found.complete else EXIT_TRY_AGAIN


@atrous.command()
@click.argument("scene", type=click.Path())
@_request_options
@_execution_options
@_report_options
def plan(scene: str, **options: Any) -> int:
    """Tell what segmenting SCENE would do and cost, without doing it."""
    return _print_plan(_request(scene, options), options)


@atrous.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--max-side", type=int, default=1600, help="Longest side of a picture, px.")
@click.option("--opacity", type=float, default=0.55, help="How much the labels hide of the scene in a picture, 0 to 1.")
@click.option("--scene", type=click.Path(), help="Where the scene is now. [default: where it was]")
@click.option("--overwrite", is_flag=True, help="Replace DEST.")
@_report_options
def export(out: Path, dest: Path, **options: Any) -> int:
    """Write the labels of OUT to DEST: map.tif (Cloud Optimized GeoTIFF) or map.png (picture)."""
    from workflows import export as job  # noqa: PLC0415
    from workflows.segment_scene import scene_of  # noqa: PLC0415

    with _view(options) as view:
        summary = job.run(
            out,
            dest,
            max_side_px=options["max_side"],
            scene=scene_of(out, moved_to=options["scene"]),
            opacity=options["opacity"],
            overwrite=options["overwrite"],
            on_progress=lambda done, total: view.advance("exporting", done=done, total=total),
        )
    for warning in summary.warnings:
        _say(f"warning: {warning}")
    click.echo(json.dumps({**asdict(summary), "dest": str(summary.dest)}) if options["json"] else str(summary.dest))
    return 0


@atrous.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from where an earlier run of CONFIG was ended.")
@click.option("--overwrite", is_flag=True, help="Remove what an earlier training left in the output folder.")
@_report_options
def train(config: Path, **options: Any) -> int:
    """Train or fine-tune a DeepLab on the scenes and labels (rasters or polygons) that the TOML file CONFIG lists."""
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite were given; one goes on, the other begins anew: choose one")
    from workflows.train import run  # noqa: PLC0415
    from workflows.training_report import show_event, summary_lines, summary_to_dict  # noqa: PLC0415
    from workflows.training_spec import TrainSpec  # noqa: PLC0415

    spec = TrainSpec.from_toml(config)
    with _view(options) as view:
        summary = run(spec, lambda event: show_event(event, spec, view), resume=options["resume"], overwrite=options["overwrite"])
    if summary is not None:  # of several processes, the first one tells
        click.echo(json.dumps(summary_to_dict(summary)) if options["json"] else "\n".join(summary_lines(summary)))
    return 0


@atrous.command()
@click.argument("pairs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="PRED LABELS [PRED LABELS]...")
@click.option("--classes", metavar="NAME,...", help="Names of class 0, 1, ... [default: PRED's, else the ids that occur]")
@_label_options
@click.option("--trimap", type=int, default=4, help="Tell the accuracy within so many px of a boundary, 1 to 32.")
@click.option("--block", type=int, default=512, help="Side of the blocks of ground that are drawn for the intervals, px.")
@click.option("--png", type=click.Path(path_type=Path), help="Draw the confusion matrix and a map of the errors to this file.")
@_report_options
def evaluate(pairs: tuple[Path, ...], **options: Any) -> int:
    """Compare PRED, an output of segment or a raster of class ids, with LABELS, a raster or polygons of the same ground."""
    from workflows import evaluation_picture as picture  # noqa: PLC0415
    from workflows.evaluate import run  # noqa: PLC0415
    from workflows.evaluation_report import evaluation_lines, evaluation_to_dict  # noqa: PLC0415

    request = _evaluate_request(pairs, options)
    if options["png"] is not None:
        picture.check_picture(options["png"])
    with _view(options) as view:
        found = run(request, lambda done, total: view.advance("evaluating", done=done, total=total))
    click.echo(json.dumps(evaluation_to_dict(found)) if options["json"] else "\n".join(evaluation_lines(found)))
    if options["png"] is not None:
        picture.write_picture(found, options["png"])
    return 0


@atrous.group()
def crf() -> None:
    """Refine stored probabilities again; search the best CRF on labelled scenes."""


@crf.command("refine")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_crf_options
@click.option("--scene", type=click.Path(), help="Where the scene is now. [default: where it was]")
@_crf_device_option
@_cluster_options
@click.option("--overwrite", is_flag=True, help="Remove an OUT that another run made.")
@click.option("--strict", is_flag=True, help="Refuse a resume on another device or version.")
@_report_options
def refine(store: Path, out: Path, **options: Any) -> int:
    """Refine the probabilities in STORE, an output of segment --probabilities, with another CRF into OUT, without the network."""
    from workflows.scene_size import count_pixels_of_run  # noqa: PLC0415

    with _workers_begun(options, count_pixels_of_run(store)) as early:
        from workflows.refinement import Refinement  # noqa: PLC0415
        from workflows.segment_scene import refine as run_refine  # noqa: PLC0415

        request, execution = Refinement(store=store, crf=_crf_request(options), scene=options["scene"]), _execution(options)
        with _view(options) as view:
            summary = run_refine(request, out, execution, view, early=early)
    return _report(summary, as_json=options["json"], quiet=options["quiet"])


@crf.command("search")
@click.argument("pairs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="STORE LABELS [STORE LABELS]...")
@click.option("--w-appearance", callback=_numbers(float), metavar="1,3,6", help="Values to try. [default: 1,3,6]")
@click.option("--theta-alpha", callback=_numbers(float), metavar="10,30,80", help="Values to try, px. [default: 10,30,80]")
@click.option("--theta-beta", callback=_numbers(float), metavar="3,5,10", help="Values to try. [default: 3,5,10]")
@click.option("--rounds", type=int, default=1, help="Rounds; each after the first tries a finer grid around the best.")
@_crf_options
@click.option("--scene", type=click.Path(), multiple=True, help="Where a scene is now; once for each STORE, in their order.")
@_label_options
@click.option(
    "--pixels", type=int, help="Refine about so many pixels with each CRF, in tiles spread evenly. [default: all labelled]"
)
@click.option("--trimap", type=int, default=4, help="Tell the accuracy within so many px of a boundary, 1 to 32.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the results to this PNG file.")
@click.option(
    "--write-model", type=click.Path(path_type=Path), help="Keep the best CRF in this model: an existing file, or a copy."
)
@click.option("--force", is_flag=True, help="Keep it although the network alone is better.")
@_crf_device_option
@click.option("--threads", type=int, help="Threads of the CRF. [default: all cores]")
@_report_options
def search(pairs: tuple[Path, ...], **options: Any) -> None:
    """Find the best CRF for labelled scenes: STORE is an output of segment --probabilities, LABELS a raster or polygons of its ground."""
    from workflows import crf_search_report as told  # noqa: PLC0415
    from workflows.crf_search import find_processor, run  # noqa: PLC0415
    from workflows.keep_crf import check_target, keep_best  # noqa: PLC0415

    request, target = _search_request(pairs, options), options["write_model"]
    if target is not None:
        check_target(target)
    processor = find_processor(options["device"], options["threads"])
    with _view(options) as view:
        report = run(request, lambda done, total: view.advance("searching", done=done, total=total), processor=processor)
    if options["json"]:
        click.echo(json.dumps(told.search_to_dict(report)))
    else:
        click.echo("\n".join(told.search_lines(report)))
    if options["plot"] is not None:
        told.write_search_chart(report, options["plot"])
    if target is not None:
        kept = keep_best(report, target, force=options["force"])
        _say(
            f"the best CRF is in {target}"
            if kept
            else f"{target} was not written: the network alone is better (--force writes it)"
        )


@atrous.group()
def models() -> None:
    """List and describe what can be run; bring a public checkpoint."""


@models.command("list")
@click.option("--variants", is_flag=True, help="The networks that can be built, instead of the models that are shipped.")
@click.option("--json", is_flag=True, help="Print as JSON.")
def list_models(**options: Any) -> None:
    """List the shipped models, or the variants of DeepLab that can be built."""
    from pipeline.network.variants import variant, variant_names  # noqa: PLC0415
    from workflows.describe_model import describe_shipped, describe_variant, list_lines  # noqa: PLC0415

    found = [describe_variant(variant(name)) for name in variant_names()] if options["variants"] else describe_shipped()
    click.echo(json.dumps(found) if options["json"] else "\n".join(list_lines(found)))


@models.command("info")
@click.argument("model")
@click.option("--json", is_flag=True, help="Print as JSON.")
def info(model: str, **options: Any) -> None:
    """Tell what MODEL (a shipped name, a file, or a variant) is: network, cost, margin, classes, licence, provenance."""
    from workflows.describe_model import describe, description_lines  # noqa: PLC0415

    facts = describe(model)
    click.echo(json.dumps(facts) if options["json"] else "\n".join(description_lines(facts)))


@models.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model to write, .safetensors.")
@click.option("--layout", help="Layout of FILE. [default: recognised by its keys]")
@click.option("--classes", type=click.Path(path_type=Path), help="Text file, one class a line: name and, if wished, #rrggbb.")
@click.option("--output-stride", type=click.Choice(["8", "16"]), help="Of FILE's network. [default: as its layout has it]")
@click.option("--rates", callback=_numbers(int), metavar="6,12,18", help="Atrous rates at that stride. [default: likewise]")
@click.option(
    "--multi-grid", callback=_numbers(int), metavar="1,2,4", help="Factors on the last three blocks' rates. [default: likewise]"
)
@click.option("--mean", callback=_numbers(float), metavar="R,G,B", help="Subtracted from the pixels. [default: likewise]")
@click.option("--std", callback=_numbers(float), metavar="R,G,B", help="The pixels are divided by. [default: likewise]")
@click.option("--input-range", callback=_numbers(float), metavar="0,255", help="Range of the pixels before. [default: likewise]")
@click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), help="Of mean, std and the first layer. [default: likewise]")
@click.option("--align-corners/--no-align-corners", default=None, help="Of FILE's own upsampling. [default: likewise]")
@click.option("--name", help="What the model is called. [default: as FILE]")
@click.option("--licence", default="unknown", help="Licence of the weights.")
@click.option("--half", is_flag=True, help="Store kernels as float16: half the size, rounded.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option("--json", is_flag=True, help="Print the result as JSON.")
def import_model(file: Path, **options: Any) -> None:
    """Convert the public checkpoint FILE; tell what was assumed."""
    from workflows.import_model import run  # noqa: PLC0415

    report = run(_import_request(file, options))
    if options["json"]:
        click.echo(json.dumps(asdict(report)))
        return
    click.echo(f"recognised: {report.layout}; {report.n_tensors} tensors taken, {len(report.left_out)} left out")
    for sentence in report.assumed:
        click.echo(f"assumed: {sentence}")
    click.echo(report.out)


@atrous.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--json", is_flag=True, help="Print as JSON.")
def doctor(folder: Path, **options: Any) -> int:
    """Tell whether everything that a run needs is here and works: libraries, devices, limits, locks in FOLDER, the network."""
    environment = dict(os.environ)  # before libraries add to it
    from workflows.doctor import diagnosis_lines, run  # noqa: PLC0415

    found = run(folder, environment=environment, known=frozenset(_variables(atrous, "ATROUS")))
    click.echo(json.dumps(found.to_dict()) if options["json"] else "\n".join(diagnosis_lines(found)))
    if not found.writable:
        return EXIT_CANNOT_WRITE
    return EXIT_UNEXPECTED if found.count("problem") else 0


# From options to specs, from results to text


def _variables(command: click.Command, prefix: str) -> Iterator[str]:
    """Yield the environment variables that stand for options."""
    yield from (
        f"{prefix}_{option.name.upper()}" for option in command.params if isinstance(option, click.Option) and option.name
    )
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _variables(child, f"{prefix}_{name.upper()}")


def _import_request(file: Path, options: dict[str, Any]) -> Any:
    from pipeline.network.importers.layout import Hints  # noqa: PLC0415
    from workflows.import_model import ImportRequest  # noqa: PLC0415

    if options["input_range"] is not None and len(options["input_range"]) != 2:
        raise click.BadParameter(f"--input-range has {len(options['input_range'])} values; expected two: LOW,HIGH")
    stride = options["output_stride"]
    names = ("multi_grid", "mean", "std", "input_range", "channel_order", "align_corners")
    return ImportRequest(
        file=file,
        out=options["out"],
        hints=Hints(
            output_stride=None if stride is None else int(stride),
            atrous_rates=options["rates"],
            **{name: options[name] for name in names},
        ),
        layout=options["layout"],
        classes=options["classes"],
        name=options["name"],
        licence=options["licence"],
        kernels="float16" if options["half"] else "float32",
        overwrite=options["overwrite"],
    )


def _request(scene: str, options: dict[str, Any]) -> Any:
    from pipeline.spec import OutputSpec  # noqa: PLC0415
    from workflows.choose_grid import GridRequest  # noqa: PLC0415
    from workflows.prepare import Request  # noqa: PLC0415

    stretch = options["stretch"]
    if stretch is not None and len(stretch) != 2:
        raise click.BadParameter(f"--stretch has {len(stretch)} values; expected two: LOW,HIGH")
    return Request(
        scene=scene,
        model=options["model"],
        bands=options["bands"],
        nodata=options["nodata"],
        stretch=stretch,
        grid=GridRequest(
            window_px=options["window"], overlap_px=options["overlap"], blend=options["blend"], block_px=options["block"]
        ),
        scales=options["scales"],
        flip=options["flip"],
        fusion=options["fusion"],
        image_pooling=options["image_pooling"],
        crf=_crf_request(options) if _wants_crf(options) else None,
        output=OutputSpec(chunk_px=options["chunk"], shard_px=options["shard"], probabilities=options["probabilities"]),
        **{name: options[name] for name in ("on_read_error", "allow_vrt", "max_pixels")},
    )


def _wants_crf(options: dict[str, Any]) -> bool:
    """Tell whether a CRF was asked for, by --crf or by an option that says how; typed beside --no-crf, such an option is refused."""
    names = [name for name in ("crf_preset", "crf_param", "crf_backend") if options[name]]
    if options["crf"] is not False:
        return bool(options["crf"] or names)
    context = click.get_current_context()
    typed = [name for name in names if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if typed:
        raise click.UsageError(
            f"--{typed[0].replace('_', '-')} was given, and --no-crf (or crf = false in a file), with which it would do nothing; "
            "leave one of them out"
        )
    return False


def _crf_request(options: dict[str, Any]) -> CrfRequest:
    from workflows.crf_request import parse_request  # noqa: PLC0415

    return parse_request(
        options["crf_param"],
        preset=options["crf_preset"],
        backend=options["crf_backend"] or "auto",
        device=options["device"],
    )


def _search_request(pairs: tuple[Path, ...], options: dict[str, Any]) -> Any:
    from workflows.crf_grid import AXES, CrfGrid  # noqa: PLC0415
    from workflows.crf_search import SearchRequest  # noqa: PLC0415
    from workflows.labelled_store import pair_up  # noqa: PLC0415

    return SearchRequest(
        sources=pair_up(pairs, scenes=options["scene"]),
        base=_crf_request({**options, "crf_preset": options["crf_preset"] or "v2"}),
        grid=CrfGrid(**{axis: options[axis] for axis in AXES if options[axis] is not None}),
        n_rounds=options["rounds"],
        max_pixels=options["pixels"],
        trimap_px=options["trimap"],
        reading=_label_reading(options),
    )


def _evaluate_request(paths: tuple[Path, ...], options: dict[str, Any]) -> Any:
    from workflows.evaluate import EvaluateRequest  # noqa: PLC0415
    from workflows.evaluation_pairs import pair_up  # noqa: PLC0415
    from workflows.evaluation_picture import map_room  # noqa: PLC0415

    return EvaluateRequest(
        pairs=pair_up(paths),
        classes=options["classes"] and tuple(options["classes"].split(",")),
        reading=_label_reading(options),
        trimap_px=options["trimap"],
        block_px=options["block"],
        map_px=None if options["png"] is None else map_room(len(paths) // 2),
    )


def _label_reading(options: dict[str, Any]) -> Any:
    from workflows.label_reading import LabelReading, parse_values  # noqa: PLC0415

    colors, ignored = (options[name] and tuple(options[name].split(",")) for name in ("label_colors", "ignored_colors"))
    return LabelReading(
        colors=colors,
        ignored_colors=ignored or (),
        values=parse_values(options["values"]),
        **{name: options[name] for name in ("nodata", "attribute", "layer", "outside", "all_touched", "reproject")},
    )


def _execution(options: dict[str, Any]) -> Execution:
    from pipeline.engine.protocol import EngineSpec  # noqa: PLC0415
    from workflows.segment_scene import Execution  # noqa: PLC0415

    return Execution(
        engine=EngineSpec(
            device=options["device"], engine=options.get("engine", "auto"), precision=options.get("precision", "auto")
        ),
        cluster=_cluster(options),
        overwrite=options.get("overwrite", False),
        retry_failed=options.get("retry_failed", False),
        strict=options.get("strict", False),
    )


@contextmanager
def _workers_begun(options: dict[str, Any], n_pixels: int) -> Iterator[EarlyWorkers | None]:
    """Begin the workers of a large job; None for another one, whose blocks may be this process's own work."""
    from workflows.fork_server import begin  # noqa: PLC0415
    from workflows.scene_size import wants_workers  # noqa: PLC0415

    if wants_workers(cluster=options["cluster"], scheduler=options["scheduler"], n_pixels=n_pixels):
        begin()
    from workflows.local_workers import started_early  # noqa: PLC0415  (dask takes half a second to import)

    with started_early(_cluster(options), n_pixels=n_pixels) as early:
        if early is None:
            keep_freed_memory()
        yield early


def _cluster(options: dict[str, Any]) -> ClusterSpec:
    from workflows.local_workers import ClusterSpec  # noqa: PLC0415

    return ClusterSpec(
        cluster=options["cluster"],
        scheduler=options["scheduler"],
        n_workers=options["workers"],
        threads=options["threads"],
        block_timeout_s=options["block_timeout"],
    )


def _view(options: dict[str, Any]) -> Any:
    from workflows.progress import ProgressView  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO if options["verbose"] else logging.ERROR, stream=sys.stderr)
    return ProgressView(_stderr, show_bar=options["progress"], quiet=options["quiet"])


def _print_plan(request: Any, options: dict[str, Any]) -> int:
    from workflows.calibrate import calibrate  # noqa: PLC0415
    from workflows.plan import fits_here, make_plan  # noqa: PLC0415
    from workflows.prepare import prepare  # noqa: PLC0415
    from workflows.report import plan_lines  # noqa: PLC0415

    keep_freed_memory()  # as the workers do, whose time is foretold
    execution = _execution(options)
    prepared = prepare(request, fits=fits_here(execution.cluster, execution.engine))
    made = make_plan(prepared, execution.cluster, execution.engine)
    estimate = calibrate(made, execution.engine)
    if options["json"]:
        click.echo(
            json.dumps({**made.to_dict(), "seconds": {name: round(seconds, 1) for name, seconds in estimate.to_dict().items()}})
        )
    else:
        click.echo("\n".join(plan_lines(made, estimate, verbose=options["verbose"])))
    return 0


def _look_at_seams(out: Path, n_places: int, view: Any) -> Any:
    from workflows.seams import run  # noqa: PLC0415

    return run(out, n_places=n_places, on_progress=lambda done, total: view.advance("seams", done=done, total=total))


def _report(summary: Summary, *, as_json: bool, quiet: bool) -> int:
    from workflows.report import summary_lines  # noqa: PLC0415

    if as_json:
        click.echo(json.dumps({**asdict(summary), "succeeded": summary.succeeded}))
    elif not quiet:
        click.echo("\n".join(summary_lines(summary)))
    for failure in summary.failures:
        _say(f"failed: block {failure.block}: {failure.error}")
    if summary.interrupted:
        _say(f"interrupted; go on with: atrous resume {summary.out}")
        return EXIT_TRY_AGAIN
    return EXIT_QUARANTINED if summary.failures or summary.unreadable else 0


if __name__ == "__main__":
    main()
