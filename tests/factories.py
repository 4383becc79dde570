"""Tiny models and textures for tests; the fixtures of ``conftest.py`` write them to files."""

from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.spec import ClassSpec, ModelSpec, NetworkSpec
from pipeline.scene import Tile
from pipeline.window import Window

COLORS = ("#3c1098", "#8429f6", "#6ec1e4", "#fedd3a", "#e2a929", "#00ff7f", "#c0c0c0")

SMALL = ("--window", "64", "--overlap", "16", "--block", "64", "--chunk", "32")
"""Options of a run of `atrous segment` over a small scene."""
HERE = ("--cluster", "serial", "--device", "cpu", "--threads", "1")
"""Options of a run in this process."""


def tiny_model_spec(**changes: object) -> ModelSpec:
    """Return the description of a model with few channels; ``name`` and fields of NetworkSpec can be changed."""
    name = str(changes.pop("name", "tiny"))
    small: dict[str, object] = {
        "n_classes": 3,
        "atrous_rates": (1, 2),
        "aspp_channels": 16,
        "low_level_channels": 8,
        "decoder_channels": 16,
        "image_pooling": "off",
    }
    return model_of(NetworkSpec(**{**small, **changes}), name=name)  # type: ignore[arg-type]


def model_of(network: NetworkSpec, *, name: str = "tiny") -> ModelSpec:
    """Return the description of a model with that network."""
    n_classes, n_bands = network.n_classes, network.n_bands
    return ModelSpec(
        name=name,
        network=network,
        classes=tuple(ClassSpec(name=f"class {i}", color=COLORS[i % len(COLORS)]) for i in range(n_classes)),
        bands=("red", "green", "blue")[:n_bands] if n_bands <= 3 else tuple(f"band {i}" for i in range(n_bands)),
        mean=(127.5,) * n_bands,
        std=(60.0,) * n_bands,
    )


def lively_network(spec: NetworkSpec, *, seed: int = 0) -> DeepLab:
    """Return a random network in evaluation mode whose probabilities vary from place to place, classes about equally frequent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(spec)
        scenes = torch.from_numpy(np.stack([texture((spec.n_bands, 64, 96), dtype="float32", seed=seed + i) for i in range(4)]))
        scenes = (scenes - 127.5) / 60.0
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None  # the plain mean of all batches
            for first in (0, 2):
                network(scenes[first : first + 2])
            network.eval()
            logits = network(scenes)
            spread, centre = logits.std(dim=(0, 2, 3)), logits.mean(dim=(0, 2, 3))
            scale = 2.0 / spread.clamp_min(1e-6)
            scoring = [network.classifier] if network.head is None else [branch.fc8 for branch in network.head.branches]
            for layer in scoring:
                layer.weight.mul_(scale[:, None, None, None])
                assert layer.bias is not None
                layer.bias.mul_(scale)
            assert scoring[0].bias is not None
            scoring[0].bias.sub_(centre * scale)
    return network


def texture(shape: tuple[int, int, int], *, dtype: str = "uint8", seed: int = 0) -> NDArray[np.generic]:
    """Return smooth random pixels (bands, height, width) from 1 to 254 with a few sharp edges."""
    rng = np.random.default_rng(seed)
    rows, cols = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    bands = []
    for _ in range(shape[0]):
        waves = sum(
            np.sin(rows / rng.uniform(3, 25) + rng.uniform(0, 6)) * np.cos(cols / rng.uniform(3, 25) + rng.uniform(0, 6))
            for _ in range(4)
        )
        stripes = ((rows + 2 * cols) // int(rng.integers(17, 41))) % 2
        bands.append(127.5 + 25 * waves + 40 * (stripes - 0.5) + rng.normal(0, 4, shape[1:]))
    values = np.clip(np.stack(bands), 1, 254)
    return values.round().astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


class MemoryScene:
    """A scene that is an array, and that refuses windows outside it as real scenes do."""

    def __init__(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
        self.pixels, self.valid = pixels, valid
        self.bands = tuple(range(1, pixels.shape[0] + 1))
        self.info = SimpleNamespace(height=pixels.shape[1], width=pixels.shape[2], shape=pixels.shape[1:], block_shape=(16, 16))

    def read(self, window: Window) -> Tile:
        assert Window.of_shape(self.info.shape).contains(window)
        at = window.to_slices()
        return Tile(window=window, pixels=self.pixels[:, *at], valid=self.valid[at])
