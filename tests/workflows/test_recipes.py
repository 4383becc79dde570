"""The papers' recipes, as configurations."""

import tomllib
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.network.deeplab import build_network
from workflows.recipes import RECIPES, with_recipe
from workflows.training_spec import TrainSpec

CONFIG = """
name = "m"
output = "out"
recipe = "{recipe}"
[[classes]]
name = "a"
color = "#000001"
[[classes]]
name = "b"
color = "#000002"
[[train]]
image = "a.tif"
label = "b.tif"
"""


def parsed(tmp_path: Path, recipe: str, more: str = "") -> TrainSpec:
    (tmp_path / "c.toml").write_text(CONFIG.format(recipe=recipe) + more)
    return TrainSpec.from_toml(tmp_path / "c.toml")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_a_whole_configuration_whose_network_can_be_built(tmp_path: Path, recipe: str) -> None:
    spec = parsed(tmp_path, recipe)
    assert spec.recipe == recipe
    build_network(spec.network)


def test_v1_steps_its_rate_and_meets_labels_at_its_cells(tmp_path: Path) -> None:
    spec = parsed(tmp_path, "v1")
    assert (spec.network.architecture, spec.loss.at, spec.schedule.policy) == ("deeplabv1", "cells", "step")
    schedule, optimizer = spec.schedule, spec.optimizer
    assert schedule.rate_at(0) * optimizer.backbone_factor == pytest.approx(1e-3)
    assert schedule.rate_at(2000) == pytest.approx(1e-3)
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.bias_factor) == ("sgd", 0.9, 5e-4, 2.0)


def test_v2_freezes_normalisations_and_sums_the_losses_of_three_scales(tmp_path: Path) -> None:
    spec = parsed(tmp_path, "v2")
    assert spec.loss.scales == (0.5, 0.75, 1.0)
    assert [phase.normalisation for phase in spec.schedule.phases] == ["frozen"]
    assert spec.schedule.rate_at(0) * spec.optimizer.backbone_factor == pytest.approx(2.5e-4)
    assert spec.network.atrous_rates == (6, 12, 18, 24)


@pytest.mark.parametrize("recipe", ["v3", "v3plus"])
def test_v3_trains_at_stride_16_and_then_at_8_with_frozen_normalisations(tmp_path: Path, recipe: str) -> None:
    first, second = parsed(tmp_path, recipe).schedule.phases
    assert (first.output_stride, first.normalisation) == (None, "trained")
    assert (second.output_stride, second.normalisation, second.learning_rate) == (8, "frozen", 1e-3)


def test_what_the_configuration_says_wins_over_the_recipe(tmp_path: Path) -> None:
    spec = parsed(tmp_path, "v2", "[schedule]\nn_steps = 7\n[loss]\nscales = [1.0]\n")
    assert (spec.schedule.n_steps, spec.loss.scales) == (7, (1.0,))
    assert spec.schedule.batch == 10, "the rest of the section stays the recipe's"


def test_a_recipe_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="did you mean 'v3plus'"):
        with_recipe({"recipe": "v3-plus"})


def test_without_a_recipe_nothing_is_added() -> None:
    values = tomllib.loads(CONFIG.replace('recipe = "{recipe}"', ""))
    assert with_recipe(values) == values
