"""Draw where the default model is most wrong: of the tiles that it never saw, the windows with the largest share of wrong pixels.

    python docs/img/worst_errors.py [build/cross-validation]

Reads what ``tests/results/cross_validate.py`` left: scenes, labels, and the labels that the shipped model gave.
"""  # noqa: INP001 - a script beside its picture

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
import zarr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.network.model_file import read_model_spec  # noqa: E402
from pipeline.network.models import DEFAULT_MODEL, resolve_model  # noqa: E402
from workflows.training_pictures import Sample, write_samples  # noqa: E402

SIDE_PX, EACH = 384, 2
LEAST_LABELLED = 0.8
"""Share of a window's pixels that must have a label."""


def worst(tile: str, work: Path) -> list[Sample]:
    """Return the windows of a tile, on a grid, that are most wrong."""
    image, labels = (rasterio.open(work / name).read() for name in (f"{tile}.tif", f"{tile}-labels.tif"))
    predicted = np.asarray(zarr.open_group(work / "shipped-plain" / f"{tile}.zarr", mode="r")["0/labels"][:])
    found = []
    for row in range(0, labels.shape[1] - SIDE_PX + 1, SIDE_PX):
        for col in range(0, labels.shape[2] - SIDE_PX + 1, SIDE_PX):
            at = np.s_[row : row + SIDE_PX, col : col + SIDE_PX]
            labelled = labels[0][at] != 255
            if labelled.mean() >= LEAST_LABELLED:
                share = float((labels[0][at] != predicted[at])[labelled].mean())
                sample = Sample(
                    name=f"{tile}, {100 * share:.0f} % wrong",
                    image=np.ascontiguousarray(image[:3, *at].transpose(1, 2, 0)),
                    labels=labels[0][at],
                    predicted=predicted[at],
                )
                found.append((share, sample))
    found.sort(key=lambda pair: -pair[0])
    return [sample for _, sample in found[:EACH]]


def main(work: Path, out: Path) -> None:
    """Draw one row per window."""
    tiles = sorted(path.stem for path in (work / "shipped-plain").glob("tile?.zarr"))
    samples = [sample for tile in tiles for sample in worst(tile, work)]
    write_samples(out, samples, read_model_spec(resolve_model(DEFAULT_MODEL)).classes)
    for sample in samples:
        sys.stdout.write(f"{sample.name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/cross-validation", Path(__file__).with_suffix(".png"))
