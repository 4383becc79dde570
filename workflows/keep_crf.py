"""How does a model remember the CRF that was found for it? In its description; the weights stay as they are, byte for byte."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError, StoreError, WeightsError
from pipeline.network.model_file import copy_with_spec, read_model_spec
from pipeline.network.models import find_model

if TYPE_CHECKING:
    from pathlib import Path

    from workflows.crf_search import SearchReport


def check_target(target: Path) -> None:
    """Refuse, before a long search, a file that could not be written after it."""
    if target.suffix != ".safetensors":
        raise SpecError(f"{target} was given as the model to write; models are .safetensors files, give such a name")
    if target.exists():
        read_model_spec(target)
    elif not target.parent.is_dir():
        raise StoreError(f"{target} cannot be written: {target.parent} is no folder; make it or choose another path")


def keep_best(report: SearchReport, target: Path, *, force: bool = False) -> bool:
    """Write the best CRF of a search to the model ``target``; return False where none beat the network and nothing was written.

    Parameters
    ----------
    report
        What was found.
    target
        The model. An existing file must be of the network and the classes that were searched with, and keeps its weights; otherwise it
        becomes a copy of the model that made the stores.
    force
        Write the best CRF also where the network alone is better.
    """
    if not report.improved and not force:
        return False
    made_with = find_model(report.model_path)
    source = target if target.exists() else made_with
    model, wanted = read_model_spec(source), read_model_spec(made_with)
    if (model.network, model.classes) != (wanted.network, wanted.classes):
        raise WeightsError(
            f"{target} is another model than {made_with}, whose probabilities were searched on; give that file, or a path that is free"
        )
    provenance = {**model.provenance, "crf_search": _evidence(report)}
    copy_with_spec(source, target, dataclasses.replace(model, crf=report.best.crf, provenance=provenance))
    return True


def _evidence(report: SearchReport) -> dict[str, Any]:
    """Return what the choice rests on, for who looks at the model later."""
    return {
        "stores": list(report.sources),
        "n_pixels": sum(map(sum, report.network.metrics.confusion)),
        "n_tried": len(report.rows),
        "trimap_px": report.trimap_px,
        **{
            name: {"mean_iou": row.metrics.mean_iou, "trimap_accuracy": row.trimap.accuracy(report.trimap_px)}
            for name, row in (("network", report.network), ("best", report.best))
        },
    }
