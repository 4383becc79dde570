"""The configurations that the documentation shows are those that run."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

from pipeline.network.model_file import read_model_spec
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from workflows.train import TrainSpec, run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def test_the_sample_is_learned_from_its_polygons(tmp_path: Path) -> None:
    spec = TrainSpec.from_toml(EXAMPLES / "train-sample.toml")
    schedule = replace(spec.schedule, n_steps=2, batch=2, window_px=64)
    summary = run(replace(spec, schedule=schedule, output=tmp_path, precision="fp32"))
    assert summary is not None
    assert summary.best_score is not None
    model = read_model_spec(summary.checkpoint)
    assert [one.name for one in model.classes] == ["building", "other"]
    pixels = model.provenance["labelled_px"]
    assert pixels["validation"]["pixels"]["building"] > 10_000
    held_out = sum(pixels["validation"]["pixels"].values())
    assert 0.15 < held_out / (held_out + sum(pixels["train"]["pixels"].values())) < 0.35


def test_the_tutorial_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs/tutorials/train-a-model.md").read_text()
    whole = tomllib.loads((EXAMPLES / "train-sample.toml").read_text())
    for fence in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        for name, value in tomllib.loads(fence).items():
            assert whole[name] == value


def test_the_example_trains_the_shipped_model() -> None:
    spec = TrainSpec.from_toml(EXAMPLES / "train-dubai.toml")
    model = read_model_spec(resolve_model(DEFAULT_MODEL))
    origin = model.provenance
    assert (model.network, model.classes, model.crf) == (spec.network, spec.classes, spec.crf)
    assert origin["trained_on"] == [entry.name for entry in spec.train]
    assert (origin["seed"], origin["precision"]) == (spec.seed, spec.precision)
    for name in ("n_steps", "batch", "window_px", "learning_rate"):
        assert origin[name] == getattr(spec.schedule, name)
    assert (origin["complete"], origin["n_steps_done"]) == (True, spec.schedule.n_steps)
