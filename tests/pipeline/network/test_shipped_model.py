from pathlib import Path

import pytest
import torch

from pipeline.network.checkpoint import load_network
from pipeline.network.model_file import read_model_spec
from pipeline.network.models import DEFAULT_MODEL, resolve_model, shipped_models
from pipeline.network.receptive_field import margin_px

TILE = Path(__file__).parents[4] / "shared" / "data" / "dubai" / "tile2"


def test_the_default_model_is_shipped() -> None:
    assert DEFAULT_MODEL in shipped_models()


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_small_and_has_a_card(name: str) -> None:
    path = resolve_model(name)
    assert path.stat().st_size < 12_000_000
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert all(c.name in card for c in read_model_spec(path).classes)


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_was_trained_to_the_end_and_tested_on_other_scenes(name: str) -> None:
    origin = read_model_spec(resolve_model(name)).provenance
    assert origin["complete"]
    assert origin["n_steps_done"] == origin["n_steps"]
    assert origin["tested_on"]
    assert not set(origin["tested_on"]) & set(origin["trained_on"])
    assert set(origin["tested_on"]) <= set(origin["metrics"])


@pytest.mark.parametrize("name", shipped_models())
def test_the_card_says_what_the_file_says(name: str) -> None:
    path = resolve_model(name)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for figures in read_model_spec(path).provenance["metrics"].values():
        assert f"{figures['mean_iou']:.3f}" in card


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_gives_finite_logits(name: str) -> None:
    spec, network = load_network(resolve_model(name))
    with torch.inference_mode():
        logits = network(torch.randn(1, spec.network.n_bands, 50, 70))
    assert logits.shape == (1, spec.network.n_classes, 50, 70)
    assert bool(torch.isfinite(logits).all())


def test_the_default_model_can_be_tiled_exactly() -> None:
    assert margin_px(read_model_spec(resolve_model(DEFAULT_MODEL)).network) == 432


@pytest.mark.shared
@pytest.mark.skipif(not TILE.is_dir(), reason="needs the test scenes")
def test_the_default_model_recognises_a_part_of_a_scene_it_never_saw() -> None:
    from workflows.split import whole
    from workflows.training_measure import Meter
    from workflows.training_scenes import DataSpec, SceneEntry, open_training_scenes

    model, network = load_network(resolve_model(DEFAULT_MODEL))
    data = DataSpec(
        classes=tuple(one.name for one in model.classes),
        colors=("#3c1098", "#8429f6", "#6ec1e4", "#fedd3a", "#e2a929"),
        ignored_colors=("#9b9b9b", "#000000"),
        bands=model.bands,
        input_range=model.input_range,
    )
    entry = SceneEntry(image=TILE / "images" / "image_part_005.jpg", label=TILE / "masks" / "image_part_005.png", name="part 5")
    (scene,) = open_training_scenes([entry], data)
    accuracy = Meter(network, model, window_px=512).measure(whole(scene, n_classes=len(model.classes))).accuracy
    assert accuracy is not None
    assert accuracy > 0.6, "always saying the most frequent class would be right in fewer pixels"
