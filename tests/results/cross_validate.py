"""How good is what is learned from these tiles on a tile that was not among them? Train without one tile, segment it, count; six times.

    python tests/results/cross_validate.py [--config examples/train-dubai-short.toml] [--folds 1 2 4 5 7 8] [--work build/cross-validation]

Every fold is trained by the configuration, but for its scenes, and measured through the command line: ``atrous segment`` at one
scale and at several with mirror images, ``atrous crf search`` on the tiles of the *other* folds (by models that had not seen them), and
``atrous crf refine`` with the values found there. So nothing that is measured was trained on or chosen by. The shipped model is measured in
the same ways on the tiles that it was not trained on. What is there is not done again; ``cross_validation.json`` beside this file gets
the confusion matrices. The data are those of ``../shared/data/dubai``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tile_rasters import CLASSES, DATA, write_tile

from pipeline.network.models import DEFAULT_MODEL, resolve_model
from workflows.confusion import SceneMetrics, count_confusion, pool_metrics
from workflows.train import StepDone, run
from workflows.training_spec import TrainSpec

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).with_name("cross_validation.json")
SCALES = ("--scales", "0.75,1,1.25", "--flip")
ATROUS = [sys.executable, "-m", "cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "examples/train-dubai-short.toml")
    parser.add_argument("--folds", nargs="*", default=["1", "2", "4", "5", "7", "8"], help="tiles that are held out together")
    parser.add_argument("--work", type=Path, default=ROOT / "build/cross-validation")
    parser.add_argument("--shipped", type=Path, default=resolve_model(DEFAULT_MODEL), help="the model to compare with")
    parser.add_argument("--unseen", default="2,5", help="tiles that it was not trained on, measured in the same ways")
    parser.add_argument("--pixels", type=int, default=1_500_000, help="of the search for CRF values, per fold")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    folds = [names_of(fold) for fold in given.folds]
    spec = TrainSpec.from_toml(given.config)
    tiles = {entry.name: entry for entry in (*spec.train, *spec.test)}
    given.work.mkdir(parents=True, exist_ok=True)
    for name in tiles:
        write_tile(DATA, int(name.removeprefix("tile")), given.work)
    models = {fold: train_fold(fold, spec, tiles, given.work) for fold in folds}
    rows: list[dict[str, Any]] = []
    for fold, model in models.items():
        for tile in fold:
            segment(model, tile, given.work / "plain" / f"{tile}.zarr", given.work)
    for fold, model in models.items():
        others = [tile for other in folds if other != fold for tile in other]
        crf = search(others, given.work, given.pixels) if others else ()
        rows += measure("short", model, fold, given.work, crf=crf)
    unseen = names_of(given.unseen)
    crf = search([name for name in tiles if name not in unseen], given.work, given.pixels)
    rows = measure("shipped", given.shipped, unseen, given.work, crf=crf) + rows
    told = {
        "config": tomllib.loads(given.config.read_text()),
        "folds": folds,
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "written": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    given.out.write_text(json.dumps(told, indent=1) + "\n")
    sys.stdout.write(summary(rows) + "\n")


def names_of(fold: str) -> tuple[str, ...]:
    return tuple(f"tile{number}" for number in fold.split(","))


def train_fold(fold: tuple[str, ...], spec: TrainSpec, tiles: dict[str, Any], work: Path) -> Path:
    """Return the model that was trained without ``fold``."""
    held_out = tuple(tiles[name] for name in fold)
    output = work / "-".join(("without", *fold))
    own = replace(spec, output=output, train=tuple(e for n, e in sorted(tiles.items()) if n not in fold), test=held_out)
    if not own.checkpoint_path.exists():
        started = time.monotonic()
        run(own, lambda event: tell(fold, event), resume=True)
        (output / "seconds.txt").write_text(f"{time.monotonic() - started:.0f}\n")
    return own.checkpoint_path


def tell(fold: tuple[str, ...], event: Any) -> None:
    if not isinstance(event, StepDone) or event.step % 50 == 0:
        sys.stderr.write(f"{'-'.join(fold)}: {event}\n")


def measure(name: str, model: Path, fold: tuple[str, ...], work: Path, *, crf: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the rows of a model on the tiles of a fold, in four ways, or in two without CRF values."""
    rows = []
    for tile in fold:
        for way, options in (("plain", ()), ("scales", SCALES)):
            out = work / (way if name == "short" else f"{name}-{way}") / f"{tile}.zarr"
            segment(model, tile, out, work, *options)
            rows.append(count(name, tile, way, out, work))
            if crf:
                refined = out.with_name(f"{tile}-crf.zarr")
                if not refined.exists():
                    atrous("crf", "refine", out, refined, *(word for value in crf for word in ("--crf-param", value)))
                rows.append({**count(name, tile, f"{way}+crf", refined, work), "crf": list(crf)})
    return rows


def segment(model: Path, tile: str, out: Path, work: Path, *options: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    atrous("segment", work / f"{tile}.tif", out, "--model", model, "--probabilities", *options)


def search(tiles: list[str], work: Path, n_pixels: int) -> tuple[str, ...]:
    """Return the CRF values, as ``atrous`` takes them, that are best on the predictions of ``tiles``.

    The stores are of models of several folds, which one search refuses, so each tile is searched alone and the grids are joined.
    """
    pooled: dict[tuple[tuple[str, float], ...], list[Any]] = {}
    for tile in tiles:
        found = work / f"search-{tile}.json"
        if not found.exists():
            words = (work / "plain" / f"{tile}.zarr", work / f"{tile}-labels.tif", "--pixels", n_pixels // len(tiles), "--json")
            found.write_text(atrous("crf", "search", *words))
        for row in json.loads(found.read_text())["rows"]:
            key = tuple((axis, row["crf"][axis]) for axis in ("w_appearance", "theta_alpha", "theta_beta"))
            pooled.setdefault(key, []).append(row)
    best = max(pooled, key=lambda key: np.mean([row["mean_iou"] for row in pooled[key]]))
    return tuple(f"{axis}={value:g}" for axis, value in best)


def count(name: str, tile: str, way: str, out: Path, work: Path) -> dict[str, Any]:
    """Return what was predicted, by true class."""
    labels = rasterio.open(work / f"{tile}-labels.tif").read(1)
    store = zarr.open_group(out, mode="r")["0/labels"]
    matrix = count_confusion(labels, np.asarray(store[:]), n_classes=len(CLASSES))
    return {
        "model": name,
        "tile": tile,
        "way": way,
        "classes": [one.name for one in CLASSES],
        "confusion": matrix.tolist(),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the mean over tiles of the mean IoU of each model and way."""
    lines = []
    for model, way in dict.fromkeys((row["model"], row["way"]) for row in rows):
        own = [row for row in rows if (row["model"], row["way"]) == (model, way)]
        metrics = [SceneMetrics.of_matrix(r["tile"], tuple(r["classes"]), np.array(r["confusion"])) for r in own]
        each = ", ".join(f"{one.scene} {one.mean_iou:.3f}" for one in metrics)
        mean = np.mean([one.mean_iou for one in metrics])
        lines.append(f"{model} {way}: mean {mean:.4f} ({each}); pooled {pool_metrics(metrics, 'all').mean_iou:.4f}")
    return "\n".join(lines)


def atrous(*words: object) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run([*ATROUS, *map(str, words)], cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"atrous {' '.join(map(str, words))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
