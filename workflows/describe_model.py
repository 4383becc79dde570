"""What is a model? Its metadata and what follows from its network, for people and for scripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.crf.energy import CrfSpec
from pipeline.network.counting import flop_per_pixel
from pipeline.network.footprint import n_parameters
from pipeline.network.model_file import file_sha256, read_model_spec
from pipeline.network.models import resolve_model, shipped_models
from pipeline.network.receptive_field import margin_px, receptive_field
from pipeline.network.spec import MultiScaleSpec, NetworkSpec
from pipeline.network.variants import Variant, variant, variant_names
from workflows.report import describe_crf

_ALIGNMENTS = {
    "centre": "centre: cells lie over their pixels",
    "corner": "corner: made for windows of k x output stride + 1 px, such as --window 513 --overlap 65",
}


def describe(name_or_path: str) -> dict[str, Any]:
    """Return the facts of a model, or of a variant that has no weights yet, as JSON-able values."""
    if name_or_path in variant_names() and not Path(name_or_path).is_file():
        return describe_variant(variant(name_or_path))
    path = resolve_model(name_or_path)
    model = read_model_spec(path)
    return {
        "path": str(path),
        "sha256": file_sha256(path),
        **model.to_dict(),
        **network_facts(model.network, model.multiscale),
    }


def describe_variant(found: Variant) -> dict[str, Any]:
    """Return the facts of a named variant as JSON-able values."""
    return {
        "name": found.name,
        "source": found.source,
        "network": found.network.to_dict(),
        "multiscale": found.multiscale.to_dict(),
        **network_facts(found.network, found.multiscale),
    }


def describe_shipped() -> list[dict[str, Any]]:
    """Return the facts of all shipped models."""
    return [describe(name) for name in shipped_models()]


def network_facts(network: NetworkSpec, multiscale: MultiScaleSpec) -> dict[str, Any]:
    """Return what follows from a network and its scales.

    Receptive field and margin are None where an image-level branch averages over the window; ``margin_without_window_px`` is the margin
    that the network has with that branch averaging over the scene, or off.
    """
    reach = receptive_field(network, multiscale)
    bounded = replace(network, image_pooling="off") if network.image_pooling == "window" else network
    return {
        "n_parameters": n_parameters(network),
        "gflop_per_mpx": round(flop_per_pixel(network, multiscale) / 1000, 1),
        "receptive_field_px": None if reach is None else reach.before_px + reach.after_px + 1,
        "margin_px": margin_px(network, multiscale),
        "margin_without_window_px": margin_px(bounded, multiscale),
    }


def description_lines(facts: dict[str, Any]) -> list[str]:
    """Return what `describe` found as lines of text."""
    network = facts["network"]
    rows = [
        ("name", facts["name"]),
        *((name, facts[name]) for name in ("path", "sha256", "source") if name in facts),
        ("network", f"{network['architecture']} on {network['backbone']}, output stride {network['output_stride']}"),
        ("atrous rates", ", ".join(map(str, network["atrous_rates"])) or "none"),
        ("image pooling", network["image_pooling"]),
        ("alignment", _ALIGNMENTS[network["alignment"]]),
        ("scales", _scales(facts["multiscale"])),
        ("parameters", f"{facts['n_parameters'] / 1e6:.2f} M"),
        ("cost", f"{facts['gflop_per_mpx']:g} GFLOP per Mpx"),
        ("receptive field", _pixels(facts["receptive_field_px"], "the whole window (image-level pooling)")),
        ("exact margin", _margin(facts)),
    ]
    if "classes" in facts:
        rows += _weights_rows(facts)
    return [f"{name:<16} {value}" for name, value in rows]


def list_lines(models: list[dict[str, Any]]) -> list[str]:
    """Return a table with one line for each model or variant."""
    header = ("name", "parameters", "GFLOP/Mpx", "field", "margin", "classes", "from", "licence")
    rows = [header, *(_list_row(facts) for facts in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _list_row(facts: dict[str, Any]) -> tuple[str, ...]:
    names = [item["name"] for item in facts.get("classes", ())]
    classes = "-" if not names else ", ".join(names) if len(names) <= 6 else f"{len(names)}"
    return (
        facts["name"],
        f"{facts['n_parameters'] / 1e6:.1f} M",
        f"{facts['gflop_per_mpx']:g}",
        _pixels(facts["receptive_field_px"], "window"),
        _pixels(facts["margin_px"], "none"),
        classes,
        _origin(facts),
        facts.get("licence", "no weights"),
    )


def _origin(facts: dict[str, Any]) -> str:
    """Return in few words where weights come from."""
    provenance = facts.get("provenance", {})
    if "imported_from" in provenance:
        return f"{provenance['imported_from']} ({provenance['layout']})"
    trained_on = provenance.get("trained_on", ())
    return f"trained on {len(trained_on)} scenes" if trained_on else facts.get("source", "-")


def _weights_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    gsd = "unknown" if facts["gsd_m"] is None else f"{facts['gsd_m']:g} m"
    provenance = facts["provenance"]
    rows = [
        ("classes", ", ".join(item["name"] for item in facts["classes"])),
        ("bands", ", ".join(facts["bands"])),
        ("CRF", describe_crf(CrfSpec.from_dict(facts["crf"])) if facts.get("crf") else "none of its own"),
        ("trained at", f"{gsd} per pixel"),
        ("licence", facts["licence"]),
    ]
    if "imported_from" in provenance:
        rows.append(("imported from", f"{provenance['imported_from']} (layout {provenance['layout']})"))
        rows += [("assumed", sentence) for sentence in provenance["assumed"]]
    if "trained_on" in provenance:
        rows.append(("trained on", ", ".join(provenance["trained_on"])))
    rows += [("mIoU", f"{value['mean_iou']:.3f} on {scene}") for scene, value in provenance.get("metrics", {}).items()]
    return rows


def _scales(multiscale: dict[str, Any]) -> str:
    spec = MultiScaleSpec.from_dict(multiscale)
    if spec.is_single:
        return "1"
    mirrored = ", each also mirrored" if spec.flip else ""
    return f"{', '.join(f'{scale:g}' for scale in spec.scales)}{mirrored}, fused by {spec.fusion}"


def _margin(facts: dict[str, Any]) -> str:
    if facts["margin_px"] is not None:
        return f"{facts['margin_px']} px"
    return f"none (image-level pooling); {facts['margin_without_window_px']} px with --image-pooling global or off"


def _pixels(value: int | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value} px"
