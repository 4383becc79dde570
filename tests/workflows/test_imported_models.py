"""From a public checkpoint to labels through the command alone: import, segment a photo, compare with its reference mask."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from reference_twins import imported

import cli
from pipeline.network.importers.state import read_state

pytestmark = pytest.mark.shared

BIRD, CAT = 3, 8
HERE = ("--cluster", "serial", "--device", "cpu", "--threads", "1", "--block", "1024", "--quiet")


@pytest.fixture
def atrous(monkeypatch, capfd, tmp_path):
    """Return ``run(*arguments) -> stdout`` of the command in this process; it must succeed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["atrous", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert ended.value.code == 0, err
        return out

    return run


@pytest.fixture
def weights(shared):
    return shared / "weights"


@pytest.fixture
def segment(atrous, weights):
    """Return ``run(network, scene, *options) -> labels`` of an imported network."""

    def run(network, scene, *options):
        atrous("models", "import", weights / f"{network}.torch.pth", "--out", "model.safetensors")
        atrous("segment", scene, "out.zarr", "--model", "model.safetensors", *HERE, *options)
        return zarr.open_array(Path("out.zarr") / "0" / "labels", mode="r")[:]

    return run


def test_the_quantised_network_finds_the_bird_on_97_percent_of_the_pixels(segment, weights):
    labels = segment("deeplabv3_mnv2_pascal_quant", weights / "bird_segmentation.bmp")
    mask = np.asarray(Image.open(weights / "bird_segmentation_mask.bmp"))
    assert set(np.unique(labels)) == {0, BIRD}
    assert (labels == mask).mean() >= 0.97


def test_a_photo_of_many_windows_shows_one_cat(segment, weights):
    labels = segment("deeplabv3_mnv2_pascal_quant", weights / "cat_720p.jpg", "--window", "512", "--overlap", "128")
    assert set(np.unique(labels)) == {0, CAT}
    assert 0.4 < (labels == CAT).mean() < 0.5
    assert (labels[400:, 520:820] == CAT).mean() > 0.99  # its breast
    assert (labels[:200, :300] == CAT).mean() < 0.01  # the curtain


def test_the_small_network_gives_through_the_command_what_it_gives_alone(segment, weights):
    """Alone it sees 257 x 257 pixels, as TensorFlow Lite, with which it agrees at every pixel; a window of that size sees the same."""
    side = 257
    photo = Image.open(weights / "bird_segmentation.bmp").resize((side, side), Image.Resampling.BILINEAR)
    photo.save("bird.png")
    labels = segment("deeplabv3_257_mv_gpu", "bird.png", "--window", "257", "--overlap", "65")
    network = imported(read_state(weights / "deeplabv3_257_mv_gpu.torch.pth")).network
    x = (torch.tensor(np.asarray(photo), dtype=torch.float32) - 127.5) / 127.5
    with torch.inference_mode():
        alone = network(x.permute(2, 0, 1)[None])[0].argmax(0).numpy()
    mask = Image.open(weights / "bird_segmentation_mask.bmp").resize((side, side), Image.Resampling.NEAREST)
    assert (labels == alone).mean() >= 0.9999
    assert (labels == np.asarray(mask)).mean() >= 0.96


def test_what_was_assumed_is_printed_and_kept_in_the_model(atrous, weights):
    printed = atrous("models", "import", weights / "deeplabv3_257_mv_gpu.torch.pth", "--out", "model.safetensors")
    facts = json.loads(atrous("models", "info", "model.safetensors", "--json"))
    assumed = [line.removeprefix("assumed: ") for line in printed.splitlines() if line.startswith("assumed: ")]
    assert any("output stride 8" in sentence for sentence in assumed)
    assert facts["provenance"]["assumed"] == assumed
    assert facts["provenance"]["imported_from"] == "deeplabv3_257_mv_gpu.torch.pth"
