"""How fast is a CUDA device with us, how busy do we keep it, and how far is that from what the device could do?

    python tests/benchmarks/cuda.py [--models 'dubai|resnet101'] [--precisions fp32,tf32,bf16,fp16] [--mpx 2147] [--stage-only]

For each network and precision two lines. The network stage: windows that are on the device already, normalised, through the network,
blended and labelled there, one block after another. The whole run: ``atrous segment`` in a process of its own, from a GeoTIFF (LZW) to
labels and confidence on disk; the speed in the middle of the run, and the share of that time in which the device was busy (``nvidia-smi``).

The roofline is worked out layer by layer: each convolution takes at least its operations at the measured matrix rate of the precision, or
its input, output and kernel at the measured bandwidth of memory, whichever is longer; everything between convolutions is free. Networks but
the shipped one have random weights and 21 classes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from compose_scene import compose
from rasterio.errors import NotGeoreferencedWarning
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.engine.device_engine import DeviceEngine
from pipeline.engine.engines import loader_for, predict_loaded
from pipeline.engine.protocol import EngineSpec
from pipeline.network.checkpoint import load_network, save_checkpoint
from pipeline.network.counting import flop_per_pixel
from pipeline.network.deeplab import build_network
from pipeline.network.image_pooling import assemble
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.spec import ClassSpec, ModelSpec, MultiScaleSpec
from pipeline.network.variants import variant, variant_names
from pipeline.scene import Tile
from pipeline.stretch import Stretch
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.network.deeplab import DeepLab

WINDOW_PX = 2304
N_WINDOWS = 8
ROUNDS = 3
MATRIX_SIDE, COPY_BYTES = 8192, 2**31
WIDTH_PX, STRIP_PX = 32768, 8192
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "100"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the device can do."""

    flop_per_s: dict[str, float]
    """Products of square matrices, by precision."""
    bytes_per_s: float
    """A copy on the device, bytes read and bytes written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The device at one moment."""

    time_s: float
    """Since the epoch."""
    busy: float
    """Share of the last moments in which it computed, 0 to 1."""
    memory_mib: int
    """Memory that is taken, by all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the command."""

    middle_mpx_per_s: float
    """Between the first fifth and the last tenth of the blocks."""
    busy: float
    """Share of that time in which the device computed, 0 to 1."""
    mpx_per_s: float
    """Of the whole run."""
    run_s: float
    """The run's own time, without imports and plan."""
    wall_s: float
    """With them."""
    plan_s: float
    """What the plan said."""
    memory_mib: int
    """Most of the device's memory that was taken, by all."""
    stage_s: dict[str, float]
    """Sums over blocks."""


class Floor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the least time of each convolution."""

    def __init__(self, flop_per_s: float, bytes_per_s: float, item_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = 0.0
        self._flop_per_s, self._bytes_per_s, self._item_bytes = flop_per_s, bytes_per_s, item_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            flop = 2 * result.numel() * args[1][0].numel()
            moved = self._item_bytes * sum(tensor.numel() for tensor in (result, *args[:2]))
            self.seconds += max(flop / self._flop_per_s, moved / self._bytes_per_s)
        return result


def main() -> None:
    """Measure, and print the tables line by line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=f"^({DEFAULT_MODEL}|deeplabv3plus-resnet101)$", help="Regular expression.")
    parser.add_argument("--precisions", default="fp32,tf32,bf16,fp16")
    parser.add_argument("--run-precisions", default="fp32", help="Of whole runs.")
    parser.add_argument("--mpx", type=float, default=2147.0)
    parser.add_argument("--stage-only", action="store_true")
    parser.add_argument("--folder", help="Where scratch files go. [default: the system's]")
    given = parser.parse_args()
    torch.manual_seed(0)
    limits = ceilings()
    rates = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {name}" for name, rate in limits.flop_per_s.items())
    say(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}; matrix products {rates}; "
        f"copies {limits.bytes_per_s / 1e9:.0f} GB/s\n")  # fmt: skip
    models = {name: make for name, make in networks().items() if re.search(given.models, name)}
    say("| network | precision | network stage, Mpx/s | TFLOP/s | roofline, Mpx/s | of the roofline |\n|---|---|---|---|---|---|")
    for name, make in models.items():
        spec, network = make()
        for precision in given.precisions.split(","):
            speed, floor = stage(spec, network, precision), roofline(network, limits, precision)
            tera = flop_per_pixel(network.spec) * speed / 1e6
            say(f"| {name} | {precision} | {speed:.0f} | {tera:.1f} | {floor:.0f} | {100 * speed / floor:.0f} % |")
        del network
        torch.cuda.empty_cache()
    if not given.stage_only:
        runs(models, given)


def runs(models: dict[str, Callable[[], tuple[ModelSpec, DeepLab]]], given: argparse.Namespace) -> None:
    """Measure whole runs."""
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        started = time.perf_counter()
        scene = stack(Path(folder), mpx=given.mpx)
        say(f"\nscene composed in {time.perf_counter() - started:.0f} s\n")
        say(
            "| network | precision | Mpx/s in the middle | device busy | Mpx/s | run s | wall s | plan s | stages, s | device MiB |"
        )
        say("|---|---|---|---|---|---|---|---|---|---|")
        for name, make in models.items():
            spec, network = make()
            path = Path(folder) / f"{name}.safetensors"
            save_checkpoint(path, network, spec)
            for precision in given.run_precisions.split(","):
                one = run(scene, path, precision, Path(folder))
                stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in one.stage_s.items())
                speeds = f"{one.middle_mpx_per_s:.0f} | {100 * one.busy:.0f} % | {one.mpx_per_s:.0f}"
                times = f"{one.run_s:.1f} | {one.wall_s:.1f} | {one.plan_s:.1f}"
                say(f"| {name} | {precision} | {speeds} | {times} | {stages} | {one.memory_mib} |")


def stack(folder: Path, *, mpx: float) -> Path:
    """Compose a strip, and a scene that shows it as often as it takes, one below the other: a VRT, which costs nothing to make."""
    strip, scene = folder / "strip.tif", folder / "scene.vrt"
    compose(Path("examples/dubai-tile2.tif"), strip, height=STRIP_PX, width=WIDTH_PX)
    n_strips = max(1, round(mpx * 1e6 / WIDTH_PX / STRIP_PX))
    size = f'xSize="{WIDTH_PX}" ySize="{STRIP_PX}"'
    bands = ""
    for band in (1, 2, 3):
        sources = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">strip.tif</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="0" yOff="{i * STRIP_PX}" {size}/></SimpleSource>'
            for i in range(n_strips)
        )
        bands += f'<VRTRasterBand dataType="Byte" band="{band}">{sources}</VRTRasterBand>'
    scene.write_text(f'<VRTDataset rasterXSize="{WIDTH_PX}" rasterYSize="{n_strips * STRIP_PX}">{bands}</VRTDataset>')
    return scene


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def networks() -> dict[str, Callable[[], tuple[ModelSpec, DeepLab]]]:
    """Return what makes each network with its description."""
    makers: dict[str, Callable[[], tuple[ModelSpec, DeepLab]]] = {
        DEFAULT_MODEL: lambda: load_network(resolve_model(DEFAULT_MODEL))
    }
    for name in variant_names():
        makers[name] = lambda name=name: random_model(name)
    return makers


def random_model(name: str) -> tuple[ModelSpec, DeepLab]:
    """Return a named variant with random weights."""
    spec = variant(name).network
    classes = tuple(ClassSpec(name=f"class {i}", color=f"#{i * 40503 % 2**24:06x}") for i in range(spec.n_classes))
    bands = ("red", "green", "blue")
    described = ModelSpec(name=name, network=spec, classes=classes, bands=bands, mean=(127.5,) * 3, std=(60.0,) * 3)
    return described, build_network(spec).eval()


def ceilings() -> Ceilings:
    """Measure products of square matrices in each precision, and a copy."""
    rates = {}
    for name, dtype in DTYPES.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=dtype) for _ in range(2))
        rates[name] = 2 * MATRIX_SIDE**3 / seconds(lambda left=left, right=right: left @ right)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return Ceilings(flop_per_s=rates, bytes_per_s=2 * COPY_BYTES / seconds(lambda: target.copy_(source)))


def seconds(work: Callable[[], object], *, rounds: int = 2 * ROUNDS) -> float:
    """Return the median time of something that is done on the device."""
    times = []
    for turn in range(rounds + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if turn:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def stage(spec: ModelSpec, network: DeepLab, precision: str) -> float:
    """Return the speed of the network stage, Mpx of windows per second."""
    mode = "window" if spec.network.image_pooling == "global" else None
    engine_spec = EngineSpec(device="cuda", precision=precision)  # type: ignore[arg-type]
    system = assemble(network, MultiScaleSpec(), mode=mode)
    engine = DeviceEngine(system, engine_spec, device=torch.device("cuda"), window_px=WINDOW_PX)
    window = Window.of_shape((WINDOW_PX, WINDOW_PX))
    pixels = np.random.default_rng(0).integers(0, 256, (3, *window.shape), np.uint8)
    tile = Tile(window=window, pixels=pixels, valid=np.ones(window.shape, bool))
    load = loader_for(engine, tile, stretch=Stretch.identity(3), model=spec)(window)

    def work() -> None:
        for blended in predict_loaded(engine, [load] * N_WINDOWS, side_px=WINDOW_PX):
            last = blended
        last.classify((slice(None), slice(None)), tile.valid)

    return N_WINDOWS * WINDOW_PX**2 / 1e6 / seconds(work, rounds=ROUNDS)


def roofline(network: DeepLab, limits: Ceilings, precision: str) -> float:
    """Return the speed that no version passes that computes convolution by convolution, Mpx/s."""
    with torch.device("meta"):
        bare = build_network(network.spec).eval()
        window = torch.empty(1, network.spec.n_bands, WINDOW_PX, WINDOW_PX)
    with torch.no_grad(), Floor(limits.flop_per_s[precision], limits.bytes_per_s, DTYPES[precision].itemsize) as floor:
        bare(window)
    return WINDOW_PX**2 / 1e6 / floor.seconds


def run(scene: Path, model: Path, precision: str, folder: Path) -> Run:
    """Plan and segment the scene."""
    options = ["--model", str(model), "--device", "cuda", "--precision", precision, "--allow-vrt"]
    atrous = [sys.executable, "-m", "cli"]
    planned = json.loads(
        subprocess.run([*atrous, "plan", str(scene), "--json", *options], check=True, stdout=subprocess.PIPE).stdout
    )
    out = folder / f"{model.stem}-{precision}.zarr"
    with watched_device() as looks:
        started = time.perf_counter()
        words = [*atrous, "segment", str(scene), str(out), "--json", "--quiet", *options]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
        wall_s = time.perf_counter() - started
    summary = json.loads(done.stdout)
    mpx = summary["n_pixels"] / 1e6
    lines = [json.loads(line) for line in Path(f"{out}.run/journal.jsonl").read_text().splitlines()]
    ends = sorted(line["time_s"] for line in lines if line["state"] == "done")
    first, last = (
        ends[len(ends) // 5],
        ends[-1 - len(ends) // 10],
    )  # without the start, and without the end, which has fewer at work
    n_between = sum(first < end <= last for end in ends)
    shares = [look.busy for look in looks if first <= look.time_s <= last]
    shutil.rmtree(out)
    return Run(
        middle_mpx_per_s=n_between * mpx / len(ends) / (last - first),
        busy=statistics.mean(shares),
        mpx_per_s=mpx / summary["seconds"],
        run_s=summary["seconds"],
        memory_mib=max(look.memory_mib for look in looks),
        wall_s=wall_s,
        plan_s=planned["seconds"]["total"],
        stage_s=summary["stage_s"],
    )


@contextlib.contextmanager
def watched_device() -> Iterator[list[Look]]:
    """Look at the device every tenth of a second."""
    looks: list[Look] = []

    def look() -> None:
        assert watcher.stdout is not None
        for line in watcher.stdout:
            busy, mib = map(int, line.split(","))
            looks.append(Look(time_s=time.time(), busy=busy / 100, memory_mib=mib))

    with subprocess.Popen(QUERY, stdout=subprocess.PIPE, text=True) as watcher:
        reader = threading.Thread(target=look)
        reader.start()
        try:
            yield looks
        finally:
            watcher.terminate()
            reader.join()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    main()
