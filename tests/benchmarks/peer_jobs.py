"""How is the whole job done with other tools, as their users write it? One job a process, from raster file to label file.

    python tests/benchmarks/peer_jobs.py TOOL SCENE OUT [--network default|smp.pth] [--crf none|tile|halo] [--sw-batch 1]

The network is the same torch module with the same weights for all: float32, NCHW, eager, on all cores. Its windows are 1024 px with a
quarter of overlap. The CRF is pydensecrf with the energy that is atrous' default, over tiles of the finished probabilities: 1024 px, alone
(``tile``), or the tiles of atrous, 2048 px, read with its halo, which is cut off afterwards (``halo``).

TOOL is ``loop`` (a plain loop over windows, probabilities averaged where they overlap), ``monai``
(``sliding_window_inference``, Gaussian weights), ``tiatoolbox`` (``SemanticSegmentor``, network only), or ``whole``
(one pass and one CRF over the whole scene, without any window or tile: what the others are compared with).
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import nn

SIDE, STEP = 1024, 768
"""Of the network's windows, px."""
TILES = {"tile": (1024, 0), "halo": (2048, 148)}
"""Side and halo of the CRF's tiles, px; the second are those of atrous for theta_alpha 67."""
N_CLASSES = 5


def predict_loop(scene: Path, network: nn.Module, _sw_batch: int) -> NDArray[np.float32]:
    """Return averaged probabilities (classes, height, width), window by window."""
    with rasterio.open(scene) as source:
        total = np.zeros((N_CLASSES, source.height, source.width), np.float32)
        count = np.zeros((source.height, source.width), np.float32)
        for row, col in itertools.product(offsets(source.height), offsets(source.width)):
            pixels = source.read((1, 2, 3), window=Window(col, row, SIDE, SIDE))
            with torch.inference_mode():
                probabilities = torch.softmax(network(normalised(pixels)), 1)[0].numpy()
            place = np.s_[row : row + pixels.shape[1], col : col + pixels.shape[2]]
            total[:, *place] += probabilities
            count[place] += 1
    total /= count
    return total


def predict_monai(scene: Path, network: nn.Module, sw_batch: int) -> NDArray[np.float32]:
    """Return probabilities by MONAI's sliding window, over the scene in memory."""
    from monai.inferers import sliding_window_inference

    with rasterio.open(scene) as source:
        pixels = normalised(source.read((1, 2, 3)))
    with torch.inference_mode():
        scores = sliding_window_inference(pixels, (SIDE, SIDE), sw_batch, network, overlap=1 - STEP / SIDE, mode="gaussian")
        return torch.softmax(scores, 1)[0].numpy()


def predict_whole(scene: Path, network: nn.Module, _sw_batch: int) -> NDArray[np.float32]:
    """Return the probabilities of one pass over the whole scene."""
    with rasterio.open(scene) as source:
        pixels = normalised(source.read((1, 2, 3)))
    with torch.inference_mode():
        return torch.softmax(network(pixels), 1)[0].numpy()


def segment_tiatoolbox(scene: Path, network: nn.Module, out: Path) -> None:
    """Write the labels of TIAToolbox's engine for whole slides, a Zarr group, to the folder ``out``."""
    declare_torchvision()
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    class Wrapped(ModelABC):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels)

        @staticmethod
        def infer_batch(model: nn.Module, batch_data: torch.Tensor, *, device: str) -> NDArray[np.float32]:
            pixels = (batch_data.permute(0, 3, 1, 2).float() / 127.5 - 1).to(device)
            with torch.inference_mode():
                return torch.softmax(model(pixels.contiguous()), 1).permute(0, 2, 3, 1).numpy()

        @staticmethod
        def postproc(image: NDArray[np.float32]) -> NDArray[np.uint8]:
            return np.argmax(image, axis=-1).astype(np.uint8)

    full = [{"units": "baseline", "resolution": 1.0}]
    shapes = {"patch_input_shape": (SIDE, SIDE), "patch_output_shape": (SIDE, SIDE), "stride_shape": (STEP, STEP)}
    config = IOSegmentorConfig(input_resolutions=full, output_resolutions=full, save_resolution=full[0], **shapes)
    engine = SemanticSegmentor(model=Wrapped(), batch_size=1, num_workers=0, verbose=False)
    options = {"patch_mode": False, "auto_get_mask": False, "output_type": "zarr", "overwrite": True}
    engine.run(images=[scene], ioconfig=config, save_dir=out, **options)


PREDICT: dict[str, Callable[[Path, nn.Module, int], NDArray[np.float32]]] = {
    "loop": predict_loop,
    "monai": predict_monai,
    "whole": predict_whole,
}


def offsets(size: int) -> list[int]:
    """Return where windows start along a side; the last one ends with the scene."""
    last = max(0, size - SIDE)
    return [*range(0, last, STEP), last]


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return (1, bands, height, width) float32 of (bands, height, width) u1: mean and deviation of the shipped model are 127.5."""
    return torch.from_numpy(pixels.astype(np.float32))[None] / 127.5 - 1


def load(network: str) -> nn.Module:
    """Return the shipped model's network, or an smp DeepLabV3+ with the weights of a file."""
    if network == "default":
        from pipeline.network.checkpoint import load_network
        from pipeline.network.models import DEFAULT_MODEL, resolve_model

        model, module = load_network(resolve_model(DEFAULT_MODEL))
        if (*model.mean, *model.std) != (127.5,) * 6 or len(model.classes) != N_CLASSES:
            raise SystemExit(f"{model.name} has another normalisation or number of classes than these jobs; change them")
        return module
    module = build_smp()
    module.load_state_dict(torch.load(network, weights_only=True))
    return module


def build_smp() -> nn.Module:
    """Return segmentation_models_pytorch's DeepLabV3+ on MobileNetV2, weights random, ready to run."""
    declare_torchvision()
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=N_CLASSES).eval()


def declare_torchvision() -> None:
    """Let torchvision be imported where its compiled operators do not fit the torch that is installed; none of them is called here."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


_declared: list[torch.library.Library] = []
"""Kept, since the operators of a library go when it is freed."""


def refine_tiles(probabilities: NDArray[np.float32], scene: Path, *, tile: int, halo: int) -> NDArray[np.uint8]:
    """Return labels (height, width) after pydensecrf over tiles, each read with ``halo`` pixels more on all sides."""
    labels = np.empty(probabilities.shape[1:], np.uint8)
    with rasterio.open(scene) as source:
        for rows, cols in tiles(*labels.shape, tile):
            top, left = max(0, rows.start - halo), max(0, cols.start - halo)
            bottom, right = min(labels.shape[0], rows.stop + halo), min(labels.shape[1], cols.stop + halo)
            pixels = source.read((1, 2, 3), window=Window(left, top, right - left, bottom - top))
            refined = refine(probabilities[:, top:bottom, left:right], pixels)
            labels[rows, cols] = refined[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    return labels


def tiles(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Give the rows and columns of each CRF tile."""
    for row, col in itertools.product(range(0, height, side), range(0, width, side)):
        yield slice(row, min(row + side, height)), slice(col, min(col + side, width))


def refine(probabilities: NDArray[np.float32], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return labels after one call of pydensecrf, with its own helpers and the energy that is the default of atrous."""
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_softmax

    n_classes, height, width = probabilities.shape
    crf = dcrf.DenseCRF(height * width, n_classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    crf.addPairwiseEnergy(create_pairwise_gaussian(sdims=(1, 1), shape=(height, width)), compat=3)
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    crf.addPairwiseEnergy(create_pairwise_bilateral(sdims=(67, 67), schan=(3, 3, 3), img=image, chdim=2), compat=4)
    marginals = np.array(crf.inference(10)).reshape(n_classes, height, width)
    return marginals.argmax(0).astype(np.uint8)


def write(labels: NDArray[np.uint8], out: Path) -> None:
    """Write labels as a tiled, compressed GeoTIFF."""
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    height, width = labels.shape
    with rasterio.open(out, "w", driver="GTiff", count=1, dtype="uint8", height=height, width=width, **layout) as target:
        target.write(labels, 1)


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=[*PREDICT, "tiatoolbox"])
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", default="default")
    parser.add_argument("--crf", choices=["none", "tile", "halo"], default="none")
    parser.add_argument("--sw-batch", type=int, default=1)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    network = load(given.network)
    if given.tool == "tiatoolbox":
        segment_tiatoolbox(given.scene, network, given.out)
        return
    probabilities = PREDICT[given.tool](given.scene, network, given.sw_batch)
    if given.crf == "none":
        labels = probabilities.argmax(0).astype(np.uint8)
    elif given.tool == "whole":
        with rasterio.open(given.scene) as source:
            labels = refine(probabilities, source.read((1, 2, 3)))
    else:
        tile, halo = TILES[given.crf]
        labels = refine_tiles(probabilities, given.scene, tile=tile, halo=halo)
    write(labels, given.out)


if __name__ == "__main__":
    main()
