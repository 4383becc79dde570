import dataclasses

import numpy as np
import pytest
import torch
from factories import MemoryScene, lively_network, model_of, texture, tiny_model_spec

from pipeline import scene_means
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec
from pipeline.scene import SceneSpec
from pipeline.scene_means import measure_scene_means
from pipeline.spec import GridSpec, OutputSpec, SegmentSpec
from pipeline.stretch import Stretch

MODEL = tiny_model_spec(image_pooling="global")


@pytest.fixture(scope="module")
def network():
    return lively_network(MODEL.network, seed=2)


def scene_of(shape, *, valid=None):
    return MemoryScene(texture((3, *shape), seed=7), np.ones(shape, bool) if valid is None else valid)


def spec_of(**changes):
    values = {
        "scene": SceneSpec(uri="in memory", bands=(1, 2, 3)),
        "model_path": "none",
        "model_sha256": "0" * 64,
        "stretch": Stretch.identity(3),
        "grid": GridSpec(window_px=64, overlap_px=16, block_px=64),
        "output": OutputSpec(chunk_px=32),
    }
    return SegmentSpec(**{**values, **changes})


def measured(scene, network, **changes):
    return np.array(measure_scene_means(scene, network, model=model_of(MODEL.network), spec=spec_of(**changes)))


def test_of_a_scene_of_one_window_they_are_the_mean_of_its_features(network):
    scene = scene_of((64, 64))
    with torch.inference_mode():
        features = network.features(torch.from_numpy((scene.pixels.astype(np.float32) - 127.5) / 60)[None]).high_level
    np.testing.assert_allclose(measured(scene, network)[0], features.mean(dim=(0, 2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_there_is_one_for_every_view(network):
    multiscale = MultiScaleSpec(scales=(0.5, 1.0), flip=True)
    scene = scene_of((64, 128))
    means = measured(scene, network, multiscale=multiscale)
    assert means.shape == (len(MultiScale(network, multiscale).views), 320)
    assert np.abs(means[0] - means[2]).max() > 1e-3, "another scale has other features"


def test_every_cell_of_the_scene_counts_once_and_none_of_the_reflection(network):
    scene = scene_of((64, 112))  # windows from 0, 32 and 64; the last 16 columns of the third one are reflection
    pixels = (np.pad(scene.pixels.astype(np.float32), ((0, 0), (0, 0), (0, 16)), mode="reflect") - 127.5) / 60
    with torch.inference_mode():
        one, two, three = (
            network.features(torch.from_numpy(pixels[None, :, :, at : at + 64])).high_level[0] for at in (0, 32, 64)
        )
    counted = torch.cat([one[:, :, :3], two[:, :, 1:3], three[:, :, 1:3]], dim=2)  # cells up to 48, 80 and 112 px
    assert counted.shape[2] == 112 // 16
    expected = counted.mean(dim=(1, 2))
    np.testing.assert_allclose(measured(scene, network)[0], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_nodata_does_not_count(network):
    valid = np.ones((64, 64), bool)
    valid[:, 32:] = False
    scene = scene_of((64, 64), valid=valid)
    pixels = (scene.pixels.astype(np.float32) - 127.5) / 60
    pixels[:, ~valid] = 0
    with torch.inference_mode():
        features = network.features(torch.from_numpy(pixels)[None]).high_level[0]
    np.testing.assert_allclose(measured(scene, network)[0], features[:, :, :2].mean(dim=(1, 2)).numpy(), rtol=1e-4, atol=1e-5)
    assert not measured(scene_of((64, 128), valid=np.zeros((64, 128), bool)), network).any()


def test_of_a_large_scene_windows_spread_over_it_are_looked_at(network, monkeypatch):
    monkeypatch.setattr(scene_means, "MAX_WINDOWS", 4)
    scene = scene_of((64 * 3, 64 * 5))
    seen = []
    read = scene.read
    scene.read = lambda window: (seen.append((window.row_off, window.col_off)), read(window))[1]
    progress = []
    measure_scene_means(
        scene,
        network,
        model=model_of(MODEL.network),
        spec=spec_of(),
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert 2 <= len(seen) <= 4
    assert {row for row, _ in seen} | {col for _, col in seen} >= {0, 256}, "corners are among them"
    assert progress[-1] == (len(seen), len(seen))


def test_they_do_not_depend_on_how_the_scene_is_blocked(network):
    scene = scene_of((100, 130))
    first = measured(scene, network)
    assert np.array_equal(first, measured(scene, network, grid=dataclasses.replace(spec_of().grid, block_px=32)))
