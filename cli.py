"""The command ``atrous``: parse -> spec -> run -> exit code. No pixels and no loops over blocks here.

stdout carries results and JSON, stderr progress and messages.
"""

from __future__ import annotations

import difflib
import json
import logging
import sys
import tomllib
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

    from workflows.segment_scene import Execution, Summary

from pipeline.errors import (
    LockedError,
    MemoryBudgetError,
    PipelineError,
    SourceError,
    StoreError,
    StoreMismatchError,
    WeightsError,
)

EXIT_UNEXPECTED, EXIT_USAGE, EXIT_MISMATCH, EXIT_QUARANTINED = 1, 2, 3, 4
EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_TRY_AGAIN = 65, 73, 75

_EXIT_CODES: tuple[tuple[type[PipelineError], int], ...] = (
    (StoreMismatchError, EXIT_MISMATCH),
    (MemoryBudgetError, EXIT_MISMATCH),
    (SourceError, EXIT_BAD_INPUT),
    (WeightsError, EXIT_BAD_INPUT),
    (StoreError, EXIT_CANNOT_WRITE),
    (LockedError, EXIT_TRY_AGAIN),
    (PipelineError, EXIT_USAGE),
)

_stderr = Console(stderr=True)


def main() -> None:
    """Run the command line and exit with its code."""
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
    known = [parameter.name for parameter in context.command.params if isinstance(parameter, click.Option) and parameter.name]
    for name in values:
        if name.replace("-", "_") not in known:
            close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
            raise click.BadParameter(f"{path} has the unknown key {name!r}{hint}")
    flat = {name.replace("-", "_"): _as_text(value) for name, value in values.items()}
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


_request_options = _stack(
    click.option("--model", default="dubai-mobilenetv2", help="Shipped name, or path of a .safetensors checkpoint."),
    click.option(
        "--bands", callback=_numbers(int), metavar="1,2,3", help="Bands of the scene in the model's order. [default: the first]"
    ),
    click.option("--nodata", type=float, help="Value that means nodata. [default: as the scene says]"),
    click.option(
        "--stretch",
        callback=_numbers(float),
        metavar="LOW,HIGH",
        help="Scene values that become 0 and 255. [default: 8-bit as it is, else 2nd and 98th percentile of each band]",
    ),
    click.option("--window", type=int, default=1024, help="Side of the network windows, px."),
    click.option("--overlap", type=int, default=256, help="What neighbouring windows share, px."),
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
    click.option("--crf/--no-crf", default=False, help="Refine with the fully connected CRF."),
    click.option("--block", type=int, default=4096, help="Side of the unit of work, px; a multiple of the chunk."),
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
_execution_options = _stack(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where the network runs."),
    click.option(
        "--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", help="Of the network; auto is fp32."
    ),
    click.option("--workers", type=int, help="Worker processes. [default: one per core, as memory allows]"),
    click.option("--threads", type=int, help="Network windows at once per worker. [default: cores / workers, as memory allows]"),
    click.option("--scheduler", metavar="ADDRESS|FILE", help="A running Dask cluster, by address or scheduler file."),
    click.option("--cluster", type=click.Choice(["local", "cuda", "serial"]), default="local", help="What to start otherwise."),
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
    from workflows.segment_scene import segment as run_segment  # noqa: PLC0415  (torch and dask take a second to import)

    request = _request(scene, options)
    if options["dry_run"]:
        return _print_plan(request, options)
    with _view(options) as view:
        summary = run_segment(request, out, _execution(options), view)
    return _report(summary, as_json=options["json"], quiet=options["quiet"])


@atrous.command()
@click.argument("out", type=click.Path(path_type=Path))
@_execution_options
@click.option("--retry-failed", is_flag=True, help="Try quarantined blocks again.")
@click.option("--strict", is_flag=True, help="Refuse on another device, precision or version.")
@_report_options
def resume(out: Path, **options: Any) -> int:
    """Go on with the run that makes OUT."""
    from workflows.segment_scene import resume as run_resume  # noqa: PLC0415

    with _view(options) as view:
        summary = run_resume(out, _execution(options), view)
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
    return EXIT_QUARANTINED if now.n_failed else 0


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
@_report_options
def train(config: Path, **options: Any) -> int:
    """Train a DeepLab on the scenes and labels that the TOML file CONFIG lists."""
    from workflows.train import run  # noqa: PLC0415
    from workflows.training_report import show_event, summary_lines, summary_to_dict  # noqa: PLC0415
    from workflows.training_spec import TrainSpec  # noqa: PLC0415

    spec = TrainSpec.from_toml(config)
    with _view(options) as view:
        summary = run(spec, lambda event: show_event(event, spec, view))
    click.echo(json.dumps(summary_to_dict(summary)) if options["json"] else "\n".join(summary_lines(summary)))
    return 0


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
    "--multi-grid", callback=_numbers(int), metavar="1,2,4", help="Rates of a ResNet's last blocks. [default: likewise]"
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


# From options to specs, from results to text


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
    from pipeline.crf.energy import CrfSpec  # noqa: PLC0415
    from pipeline.spec import GridSpec, OutputSpec  # noqa: PLC0415
    from workflows.prepare import Request  # noqa: PLC0415

    source = click.get_current_context().get_parameter_source("overlap")
    stretch = options["stretch"]
    if stretch is not None and len(stretch) != 2:
        raise click.BadParameter(f"--stretch has {len(stretch)} values; expected two: LOW,HIGH")
    return Request(
        scene=scene,
        model=options["model"],
        bands=options["bands"],
        nodata=options["nodata"],
        stretch=stretch,
        grid=GridSpec(
            window_px=options["window"], overlap_px=options["overlap"], blend=options["blend"], block_px=options["block"]
        ),
        overlap_is_default=source is click.core.ParameterSource.DEFAULT,
        scales=options["scales"],
        flip=options["flip"],
        fusion=options["fusion"],
        image_pooling=options["image_pooling"],
        crf=CrfSpec() if options["crf"] else None,
        output=OutputSpec(chunk_px=options["chunk"], shard_px=options["shard"], probabilities=options["probabilities"]),
    )


def _execution(options: dict[str, Any]) -> Execution:
    from pipeline.engine.protocol import EngineSpec  # noqa: PLC0415
    from workflows.cluster import ClusterSpec  # noqa: PLC0415
    from workflows.segment_scene import Execution  # noqa: PLC0415

    return Execution(
        engine=EngineSpec(device=options["device"], precision=options["precision"]),
        cluster=ClusterSpec(
            cluster=options["cluster"],
            scheduler=options["scheduler"],
            n_workers=options["workers"],
            threads=options["threads"],
        ),
        overwrite=options.get("overwrite", False),
        retry_failed=options.get("retry_failed", False),
        strict=options.get("strict", False),
    )


def _view(options: dict[str, Any]) -> Any:
    from workflows.progress import ProgressView  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO if options["verbose"] else logging.ERROR, stream=sys.stderr)
    return ProgressView(_stderr, show_bar=options["progress"], quiet=options["quiet"])


def _print_plan(request: Any, options: dict[str, Any]) -> int:
    from workflows.plan import calibrate, make_plan  # noqa: PLC0415
    from workflows.prepare import prepare  # noqa: PLC0415
    from workflows.report import plan_lines  # noqa: PLC0415

    execution = _execution(options)
    made = make_plan(prepare(request), execution.cluster, execution.engine)
    estimate = calibrate(made, execution.engine)
    if options["json"]:
        click.echo(
            json.dumps({**made.to_dict(), "seconds": {"network": round(estimate.network_s, 1), "crf": round(estimate.crf_s, 1)}})
        )
    else:
        click.echo("\n".join(plan_lines(made, estimate)))
    return 0


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
    return EXIT_QUARANTINED if summary.failures else 0


if __name__ == "__main__":
    main()
