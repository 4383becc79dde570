"""Every family learns four windows by heart: gradients reach all of its parts, and its scores lie where its labels do."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.network.deeplab import build_network
from pipeline.network.spec import ClassSpec, NetworkSpec
from workflows.processes import Processes
from workflows.training_loop import Trainer
from workflows.training_loss import LossSpec
from workflows.training_scenes import SceneEntry
from workflows.training_schedule import OptimizerSpec, ScheduleSpec
from workflows.training_spec import TrainSpec

N_CLASSES, SIDE_PX, PATCH_PX = 3, 96, 32
ENOUGH, MOST_STEPS = 0.95, 120

FAMILY = {
    "v1": {"architecture": "deeplabv1", "output_stride": 8, "atrous_rates": (4,), "head_channels": 64},
    "v1-msc": {
        "architecture": "deeplabv1",
        "backbone": "vgg16",
        "output_stride": 8,
        "atrous_rates": (4,),
        "head_channels": 64,
        "side_channels": 16,
    },
    "v2": {"architecture": "deeplabv2", "output_stride": 8, "atrous_rates": (2, 4)},
    "v2-resnet50": {
        "architecture": "deeplabv2",
        "backbone": "resnet50",
        "output_stride": 8,
        "atrous_rates": (2, 4),
        "bottleneck_stride": "1x1",
    },
    "v3": {"architecture": "deeplabv3", "atrous_rates": (1, 2), "image_pooling": "window", "separable": False},
    "v3-cascade": {
        "architecture": "deeplabv3",
        "backbone": "resnet50",
        "atrous_rates": (),
        "cascade_blocks": 1,
        "multi_grid": (1, 2, 1),
    },
    "v3plus": {"architecture": "deeplabv3plus", "atrous_rates": (1, 2)},
    "v3plus-os8": {"architecture": "deeplabv3plus", "output_stride": 8, "atrous_rates": (1, 2)},
    "v3plus-xception65": {"architecture": "deeplabv3plus", "backbone": "xception65", "atrous_rates": (1, 2)},
}


def windows_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Four windows of 3 x 3 patches, each of the colour and texture of its class."""
    generator = np.random.default_rng(3)
    patches = generator.integers(0, N_CLASSES, (4, SIDE_PX // PATCH_PX, SIDE_PX // PATCH_PX))
    labels = patches.repeat(PATCH_PX, axis=1).repeat(PATCH_PX, axis=2)
    colours = generator.normal(size=(N_CLASSES, 3))
    pixels = colours[labels].transpose(0, 3, 1, 2) + generator.normal(size=(4, 3, SIDE_PX, SIDE_PX)) * 0.3
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_four_windows_are_learned_by_heart(name: str, tmp_path: Path) -> None:
    network = NetworkSpec(
        **{"n_classes": N_CLASSES, "image_pooling": "off", "aspp_channels": 32, "decoder_channels": 32, **FAMILY[name]}
    )
    spec = TrainSpec(
        name=name,
        output=tmp_path,
        classes=tuple(ClassSpec(name=str(i), color="#000000") for i in range(N_CLASSES)),
        train=(SceneEntry(image=tmp_path / "a", label=tmp_path / "b"),),
        network=network,
        precision="fp32",
        schedule=ScheduleSpec(n_steps=MOST_STEPS, batch=4, window_px=SIDE_PX, learning_rate=1e-3, warmup_steps=5),
        optimizer=OptimizerSpec(backbone_factor=1.0, weight_decay=0.0),
        loss=LossSpec(at="cells" if network.has_score_branches else "pixels"),
    )
    torch.manual_seed(0)
    trainer = Trainer(spec, Processes(), build_network(network))
    windows, labels = windows_and_labels()
    accuracy = 0.0
    while accuracy < ENOUGH and trainer.step < MOST_STEPS:
        trainer.advance([(windows, labels)])
        if trainer.step % 10 == 0:
            with torch.no_grad():  # the statistics of these windows, as in training: those of a few steps are not theirs yet
                accuracy = float((trainer.kept(windows).argmax(dim=1) == labels).float().mean())
    assert accuracy >= ENOUGH, f"{accuracy:.3f} after {trainer.step} steps"
