"""What does each part of the papers' networks bring on our tiles? Train it, segment tiles that it never saw, count, keep the counts.

    python tests/results/ablations.py [NAME ...] [--steps 300] [--batch 4] [--seeds 0,1,2] [--threads 1] [--work DIR] [--data DIR]

A row of `ablation_rows` is a run: trained on tiles 1, 4, 7 and 8 with the same budget as all others, then run by `atrous segment` over
tiles 2 and 5, once at one scale and once at several, each also refined by `atrous crf refine`, and compared by `atrous evaluate`. After
each run its confusion matrices are in ``ablations.json``; a run that is there already is not made again, so that the script can be
killed and started anew, and several can run beside each other, each with other names. Rows that are repeated are trained with every
seed; with the further seeds they are measured at one scale.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import io
import json
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The root makes `pipeline` the package, and not the folder tests/pipeline.
sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch
from ablation_rows import ROWS, SEVERAL, SINGLE, WAYS, WITH_CRF, Row, find_row
from tile_rasters import CLASSES, DATA, IGNORED_COLORS, tile_entry, write_tile

import cli
from pipeline.network.checkpoint import load_network, save_checkpoint
from pipeline.network.deeplab import build_network
from pipeline.network.footprint import n_parameters
from pipeline.network.spec import MultiScaleSpec
from workflows import train
from workflows.train import TrainSpec
from workflows.training_loss import LossSpec
from workflows.training_schedule import OptimizerSpec, ScheduleSpec
from workflows.window_sampler import Augmentation

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).with_name("ablations.json")
WORK = Path(__file__).resolve().parents[2] / "build" / "ablations"
TRAIN_TILES, TEST_TILES = (1, 4, 7, 8), (2, 5)
WINDOW_PX = 384
BACKBONE_RATE = 6e-4
"""At which the backbone of all rows learns at first; their heads do at the rate of the row."""
CRF = {"w_appearance": "3", "theta_alpha": "30", "theta_beta": "2", "theta_gamma": "1", "n_steps": "5"}
"""On top of the preset v2; docs/how-to/tune-the-crf.md found the first four on tile 2, with the first shipped model and 10 steps."""
SEGMENT = ("--window", "512", "--overlap", "128", "--precision", "bf16")
HERE = ("--cluster", "serial", "--device", "cpu", "--quiet")


def main() -> None:
    """Make what is missing."""
    options = _parse()
    kept = _read(options.json, _settings(options))
    for row, seed in _wanted(options):
        if not any(one["name"] == row.name and one["seed"] == seed for one in kept["rows"]):
            found = _run(row, seed, options)
            kept = _read(options.json, _settings(options))  # others may have been made beside it
            kept["rows"].append(found)
            kept["rows"].sort(key=lambda one: ([row.name for row in ROWS].index(one["name"]), one["seed"]))
            _write(options.json, kept)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows, of {', '.join(row.name for row in ROWS)}; all without")
    parser.add_argument("--steps", type=int, default=300, help="updates of the weights, the same in all rows")
    parser.add_argument("--batch", type=int, default=4, help=f"windows of {WINDOW_PX} x {WINDOW_PX} px in each of them")
    parser.add_argument("--seeds", default="0,1,2", help="the first is that of all rows, the others of those that are repeated")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoints and outputs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with dubai/ and weights/")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the counts are kept")
    return parser.parse_args()


def _wanted(options: argparse.Namespace) -> Iterator[tuple[Row, int]]:
    """Yield rows and seeds: first every row once, then repetitions."""
    unknown = set(options.names) - {row.name for row in ROWS}
    if unknown:
        sys.exit(f"no row is called {', '.join(sorted(unknown))}; known are {', '.join(row.name for row in ROWS)}")
    rows = [row for row in ROWS if not options.names or row.name in options.names]
    first, *further = map(int, options.seeds.split(","))
    yield from ((row, first) for row in rows)
    yield from ((row, seed) for seed in further for row in rows if row.is_repeated)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all rows have in common."""
    return {
        "train_tiles": list(TRAIN_TILES),
        "test_tiles": list(TEST_TILES),
        "classes": [one.name for one in CLASSES],
        "training": _shared(_training(ROWS[0], 0, options)),
        "crf": {"preset": "v2", **CRF},
        "segment": list(SEGMENT),
    }


def _shared(spec: TrainSpec) -> dict[str, Any]:
    """Return those settings of a training that do not differ between rows."""
    chosen = {name: getattr(spec, name) for name in ("schedule", "optimizer", "sampling", "augmentation")}
    values = {name: asdict(one) for name, one in chosen.items()}
    del values["schedule"]["learning_rate"], values["optimizer"]["backbone_factor"]
    found: dict[str, Any] = json.loads(json.dumps({**values, "backbone_rate": BACKBONE_RATE, "precision": spec.precision}))
    return found


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the rows that are there, or none; rows made with other settings are not mixed with new ones."""
    if not path.exists():
        return {"settings": settings, "rows": []}
    kept: dict[str, Any] = json.loads(path.read_text())
    changed = [name for name, value in settings.items() if kept["settings"].get(name) != value]
    if changed:
        there = ", ".join(f"{name} {kept['settings'].get(name)}" for name in changed)
        sys.exit(f"{path} was made with other settings ({there}); give the same, or another --json")
    return kept


def _write(path: Path, kept: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    head = json.dumps({"settings": kept["settings"]}, indent=1)[:-2]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in kept["rows"])
    partial.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n')
    partial.replace(path)


def _run(row: Row, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a row, or take the weights that it shares, measure it and return what is kept of it."""
    torch.set_num_threads(options.threads)
    folder = options.work / f"{row.name}-{seed}"
    started = time.monotonic()
    if row.weights_of is None:
        model = train.run(_training(row, seed, options), _Progress(f"{row.name} seed {seed}"), resume=True).checkpoint
    else:
        model = _at_stride(row, _training(find_row(row.weights_of), seed, options).checkpoint_path, folder)
    trained = time.monotonic()
    ways = WAYS if seed == int(options.seeds.split(",")[0]) else (SINGLE,)
    found = _Measurement(row, model, folder, options).measure(ways)
    _say(f"{row.name} seed {seed}: {trained - started:.0f} s of training, {time.monotonic() - trained:.0f} s of measuring")
    return {
        "name": row.name,
        "seed": seed,
        "n_parameters": n_parameters(row.network),
        "train_s": round(trained - started),
        "measure_s": round(time.monotonic() - trained),
        "threads": options.threads,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "date": f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}",
        "network": row.network.to_dict(),
        "loss_scales": list(row.loss_scales),
        "learning_rate": row.learning_rate,
        "several": asdict(row.several),
        "confusion": found,
    }


def _training(row: Row, seed: int, options: argparse.Namespace) -> TrainSpec:
    return TrainSpec(
        name=row.name,
        output=options.work / f"{row.name}-{seed}",
        classes=CLASSES,
        train=tuple(tile_entry(options.data, number) for number in TRAIN_TILES),
        ignored_colors=IGNORED_COLORS,
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
        licence="CC0-1.0 (training data), Apache-2.0 (ImageNet backbone)",
        init=options.data / "weights" / "tf2_mobilenet_v2_1.0_224_ptq.torch.pth",
        seed=seed,
        threads=options.threads,
        device="cpu",
        network=row.network,
        schedule=ScheduleSpec(
            n_steps=options.steps,
            batch=options.batch,
            window_px=WINDOW_PX,
            learning_rate=row.learning_rate,
            checkpoint_every=50,
        ),
        optimizer=OptimizerSpec(backbone_factor=BACKBONE_RATE / row.learning_rate),
        loss=LossSpec(scales=row.loss_scales),
        augmentation=Augmentation(scale_range=(0.7, 1.4), jitter=0.15),
    )


def _at_stride(row: Row, checkpoint: Path, folder: Path) -> Path:
    """Write weights that were trained at another output stride as a model of the row's; return where."""
    if not checkpoint.exists():
        sys.exit(f"{row.name} has the weights of {row.weights_of}, and {checkpoint} is not there; run that row first")
    model, trained = load_network(checkpoint)
    network = build_network(row.network)
    network.load_state_dict(trained.state_dict())
    path = folder / f"{row.name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, network, replace(model, name=row.name, network=row.network))
    return path


class _Measurement:
    """How a model is measured."""

    def __init__(self, row: Row, model: Path, folder: Path, options: argparse.Namespace) -> None:
        self._row, self._model, self._folder, self._options = row, model, folder, options

    def measure(self, ways: tuple[str, ...]) -> dict[str, dict[str, list[list[int]]]]:
        """Return the confusion matrix of each tile by way."""
        found: dict[str, dict[str, list[list[int]]]] = {way: {} for way in ways}
        for number in TEST_TILES:
            image, labels = write_tile(self._options.data, number, self._options.work)
            for scale in (SINGLE, SEVERAL):
                if scale not in ways:
                    continue
                out = self._segment(image, scale)
                found[scale][f"tile{number}"] = _evaluate(out, labels)
                if scale + WITH_CRF in ways:
                    found[scale + WITH_CRF][f"tile{number}"] = _evaluate(self._refine(out, image), labels)
        return found

    def _segment(self, image: Path, scale: str) -> Path:
        out = self._folder / f"{image.stem}-{scale}.zarr"
        asked = self._row.several if scale == SEVERAL else MultiScaleSpec()
        scales = ("--scales", ",".join(map(str, asked.scales)), "--flip" if asked.flip else "--no-flip", "--fusion", asked.fusion)
        threads = ("--threads", self._options.threads)
        _atrous(
            "segment", image, out, "--model", self._model, "--probabilities", *SEGMENT, *scales, *threads, *HERE, "--overwrite"
        )
        return out

    def _refine(self, store: Path, image: Path) -> Path:
        out = store.with_name(f"{store.stem}-crf.zarr")
        values = (word for name, value in CRF.items() for word in ("--crf-param", f"{name}={value}"))
        threads = ("--threads", self._options.threads)
        _atrous("crf", "refine", store, out, "--scene", image, "--crf-preset", "v2", *values, *threads, *HERE, "--overwrite")
        return out


def _evaluate(out: Path, labels: Path) -> list[list[int]]:
    found: list[list[int]] = json.loads(_atrous("evaluate", out, labels, "--json", "--quiet"))["all"]["confusion"]
    return found


def _atrous(*words: object) -> str:
    """Run `atrous` in this process and return what it printed; end where it failed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.atrous.main([str(word) for word in words], prog_name="atrous", standalone_mode=False)
    if code:
        sys.exit(f"atrous {' '.join(map(str, words))} ended with exit code {code}")
    return printed.getvalue()


class _Progress:
    """Prints a line now and then."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, event: train.TrainingEvent) -> None:
        if isinstance(event, train.StepDone) and (event.step % 25 == 0 or event.step == event.n_steps):
            _say(f"{self._name}: step {event.step} of {event.n_steps}, loss {event.loss:.3f}, {event.elapsed_s:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  (a script's progress)


if __name__ == "__main__":
    main()
