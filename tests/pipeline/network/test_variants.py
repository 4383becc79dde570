import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from network_contract import ODD_SHAPE, RAGGED_SHAPE, RULES, calibrated
from reference_packages import import_smp, import_torchvision

from pipeline.errors import SpecError
from pipeline.network.backbones import backbone_entry
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.footprint import n_parameters
from pipeline.network.multiscale import MultiScale
from pipeline.network.receptive_field import Reach, _Follow
from pipeline.network.spec import MultiScaleSpec, NetworkSpec
from pipeline.network.variants import variant, variant_names

# One contract for all


@pytest.fixture(scope="module", params=variant_names())
def network(request: pytest.FixtureRequest) -> Iterator[DeepLab]:
    """The variant for five bands and seven classes; one at a time is alive, since the largest takes 0.5 GB."""
    yield calibrated(variant(request.param, n_classes=7, n_bands=5).network)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_variant_keeps_the_contract(network: DeepLab, rule: Any, tmp_path: Path) -> None:
    rule(network, tmp_path)
