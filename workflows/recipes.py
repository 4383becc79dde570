"""How did the papers train? Named recipes: defaults of a configuration, which the configuration itself can override.

Rates are those of the papers for their batches of 10 to 20 and 6,000 to 30,000 steps on PASCAL VOC 2012, starting from ImageNet.
Sources: v1 arXiv 1412.7062 section 4.1 and its published solver; v2 arXiv 1606.00915 sections 4.1.1 and 4.1.2; v3 arXiv 1706.05587
section 4.1; v3+ arXiv 1802.02611 section 4.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import SpecError
from pipeline.network.keys import suggest


def _v3(network: dict[str, Any], *, weight_decay: float) -> dict[str, dict[str, Any]]:
    """Poly 0.9 from 0.007 at stride 16 with trained normalisations; then from 0.001 at stride 8 with frozen ones; hard pixels."""
    return {
        "network": {**network, "output_stride": 16, "atrous_rates": [6, 12, 18]},
        "schedule": {
            "n_steps": 60000,
            "batch": 16,
            "window_px": 512,
            "learning_rate": 7e-3,
            "phases": [{}, {"learning_rate": 1e-3, "output_stride": 8, "normalisation": "frozen"}],
        },
        "optimizer": {"name": "sgd", "weight_decay": weight_decay, "backbone_factor": 1.0},
        "loss": {"at": "pixels", "hard_fraction": 0.25},
        "augmentation": {"scale_range": [0.5, 2.0], "jitter": 0.0},
        "sampling": {"class_balance": 0.25},
    }


RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # Momentum 0.9, weight decay 5e-4, last layer x 10, biases x 2; the rate falls to a tenth every 2000 of 6000 steps.
    "v1": {
        "network": {
            "architecture": "deeplabv1",
            "output_stride": 8,
            "atrous_rates": [12],
            "head_channels": 1024,
            "image_pooling": "off",
        },
        "schedule": {"n_steps": 6000, "batch": 20, "window_px": 320, "learning_rate": 1e-2, "policy": "step"},
        "optimizer": {"name": "sgd", "weight_decay": 5e-4, "backbone_factor": 0.1, "bias_factor": 2.0},
        "loss": {"at": "cells"},
        "augmentation": {"scale_range": [1.0, 1.0], "jitter": 0.0},
        "sampling": {"class_balance": 0.0},
    },
    # Poly 0.9 from 2.5e-4, last layer x 10 (biases x 20), normalisations frozen, losses at three scales and of their maximum summed.
    "v2": {
        "network": {"architecture": "deeplabv2", "output_stride": 8, "atrous_rates": [6, 12, 18, 24], "image_pooling": "off"},
        "schedule": {
            "n_steps": 20000,
            "batch": 10,
            "window_px": 320,
            "learning_rate": 2.5e-3,
            "phases": [{"normalisation": "frozen"}],
        },
        "optimizer": {"name": "sgd", "weight_decay": 5e-4, "backbone_factor": 0.1, "bias_factor": 2.0},
        "loss": {"at": "cells", "scales": [0.5, 0.75, 1.0]},
        "augmentation": {"scale_range": [0.5, 1.5], "jitter": 0.0},
        "sampling": {"class_balance": 0.0},
    },
    "v3": _v3({"architecture": "deeplabv3", "separable": False}, weight_decay=1e-4),
    "v3plus": _v3({"architecture": "deeplabv3plus", "separable": True}, weight_decay=4e-5),
    # For a few labelled hectares on top of a trained model: short, slow backbone, frozen normalisations, averaged weights.
    "small": {
        "schedule": {
            "n_steps": 400,
            "batch": 8,
            "window_px": 256,
            "learning_rate": 5e-4,
            "warmup_steps": 20,
            "average": 0.98,
            "phases": [{"normalisation": "frozen"}],
        },
        "optimizer": {"name": "adamw", "weight_decay": 2e-2, "backbone_factor": 0.1},
        "loss": {"dice": 0.5, "label_smoothing": 0.05},
        "augmentation": {"scale_range": [0.5, 2.0], "jitter": 0.3},
        "sampling": {"class_balance": 0.5},
    },
}


def with_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults of the recipe that it names laid under it.

    Raises
    ------
    SpecError
        If there is no such recipe; the message names the nearest one.
    """
    name = values.get("recipe")
    if name is None:
        return values
    if name not in RECIPES:
        raise SpecError(f"recipe is {name!r}; {suggest(str(name), RECIPES)}")
    filled = dict(values)
    for section, defaults in RECIPES[name].items():
        given = values.get(section, {})
        filled[section] = {**defaults, **given} if isinstance(given, dict) else given
    return filled
