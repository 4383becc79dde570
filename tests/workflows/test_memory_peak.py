"""The plan's memory bound against the peak that the operating system saw, on a scene and on one ten times as long."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's process status"),
]

GRID = ["--window", "256", "--overlap", "32", "--block", "512", "--chunk", "256"]
RUN = ["--cluster", "serial", "--threads", "1"]


# The high-water mark of the process itself: what wait4 reports of a child includes the parent that it was forked from.
REPORT = """
import sys, cli
try:
    cli.main()
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_bytes(scene: Path, model: Path, out: Path, *options: str) -> int:
    """Segment in a process of its own and return its peak resident memory, bytes."""
    words = [sys.executable, "-c", REPORT, "segment", str(scene), str(out), "--model", str(model), *GRID, *RUN, *options, "-q"]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return int(printed.split()[1]) * 1024


def bound_bytes(scene: Path, model: Path, *options: str) -> int:
    words = [sys.executable, "-m", "cli", "plan", str(scene), "--model", str(model), *GRID, *RUN, *options, "--json"]
    plan = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return int(plan["memory"]["bytes_per_worker"])


def test_the_peak_is_flat_and_below_the_bound_by_less_than_a_factor_of_two(
    raster: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model()
    scenes = [raster(height=height, width=1024, name=f"{height}.tif") for height in (512, 5120)]
    peak_bytes(scenes[0], model, tmp_path / "first.zarr")  # compiles, and converts with torch: the next ones do not
    peaks = [peak_bytes(scene, model, tmp_path / f"{scene.stem}.zarr") for scene in scenes]
    bounds = [bound_bytes(scene, model) for scene in scenes]
    assert abs(peaks[1] - peaks[0]) < 0.15 * peaks[0]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.01)  # inner blocks touch a window more than the first ones
    assert max(peaks) < bounds[0] < 2 * min(peaks)


def test_the_bound_holds_for_a_resnet_at_several_scales(
    raster: Callable[..., Path], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    scene = raster(height=512, width=512)
    model = tiny_model(architecture="deeplabv3", backbone="resnet50", separable=False, name="resnet")
    options = ("--scales", "0.75,1.25", "--flip")
    peak = peak_bytes(scene, model, tmp_path / "out.zarr", *options)
    assert peak < bound_bytes(scene, model, *options) < 2 * peak
