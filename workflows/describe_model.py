"""What is a model? Its metadata and what follows from its network, for people and for scripts."""

from __future__ import annotations

from typing import Any

from pipeline.network.checkpoint import file_sha256, read_model_spec
from pipeline.network.footprint import parameter_bytes
from pipeline.network.models import resolve_model
from pipeline.network.receptive_field import margin_px


def describe(name_or_path: str) -> dict[str, Any]:
    """Return the facts of a model as JSON-able values."""
    path = resolve_model(name_or_path)
    model = read_model_spec(path)
    return {
        "path": str(path),
        "sha256": file_sha256(path),
        **model.to_dict(),
        "n_parameters": parameter_bytes(model.network) // 4,
        "margin_px": margin_px(model.network),
    }


def description_lines(facts: dict[str, Any]) -> list[str]:
    """Return what `describe` found as lines of text."""
    network = facts["network"]
    gsd = "unknown" if facts["gsd_m"] is None else f"{facts['gsd_m']:g} m"
    margin = "none (image-level pooling)" if facts["margin_px"] is None else f"{facts['margin_px']} px"
    lines = [
        f"name           {facts['name']}",
        f"file           {facts['path']}",
        f"sha256         {facts['sha256']}",
        f"network        {network['architecture']} on {network['backbone']}, output stride {network['output_stride']}",
        f"atrous rates   {', '.join(map(str, network['atrous_rates']))}",
        f"image pooling  {network['image_pooling']}",
        f"parameters     {facts['n_parameters'] / 1e6:.2f} M",
        f"exact margin   {margin}",
        f"classes        {', '.join(item['name'] for item in facts['classes'])}",
        f"bands          {', '.join(facts['bands'])}",
        f"trained at     {gsd} per pixel",
        f"licence        {facts['licence']}",
    ]
    metrics = facts["provenance"].get("metrics", {})
    return [*lines, *(f"mIoU           {value['mean_iou']:.3f} on {scene}" for scene, value in metrics.items())]
