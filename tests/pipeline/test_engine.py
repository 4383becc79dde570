"""The engines: the same answers from both, and the same bytes in any company and with any number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import lively_network, texture, tiny_model_spec

from pipeline.engine import choose, openvino_conversion
from pipeline.engine.choose import choose_device, choose_engine, is_healthy, windows_at_once
from pipeline.engine.engines import open_engine, predict_windows
from pipeline.engine.protocol import EngineSpec
from pipeline.errors import MissingDependencyError, SpecError
from pipeline.network.checkpoint import load_network
from pipeline.network.image_pooling import assemble
from pipeline.network.late import LateNetwork
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.multiscale import MultiScale
from pipeline.network.spec import MultiScaleSpec, NetworkSpec
from pipeline.normalise import normalise
from pipeline.scene import SceneSpec, open_scene, read_reflected
from pipeline.stretch import Stretch
from pipeline.window import Window

ROOT = Path(__file__).parents[2]

CPU = EngineSpec(device="cpu", engine="torch")
engines = pytest.mark.parametrize("name", ["torch", "openvino"])
"""Both, on the CPU."""


@pytest.fixture(autouse=True)
def needs_openvino(request):
    if "openvino" in str(getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")):
        pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def network():
    return lively_network(tiny_model_spec(n_classes=4).network)


def windows_of(n, side=64):
    pixels = [texture((3, side, side), dtype="float32", seed=seed) for seed in range(20, 20 + n)]
    return ((np.stack(pixels) - 127.5) / 60).astype(np.float32)


def open_(network, name, *, side=64, multiscale=MultiScaleSpec(), **settings):  # noqa: B008
    spec = EngineSpec(**{"device": "cpu", "engine": name, **settings})
    return open_engine(LateNetwork.loaded(MultiScale(network, multiscale)), spec, window_px=side)


def as_torch_says(network, windows, multiscale=MultiScaleSpec()):  # noqa: B008
    with torch.inference_mode():
        return torch.softmax(MultiScale(network, multiscale)(torch.from_numpy(windows)), dim=1).numpy()


@engines
@pytest.mark.parametrize("side", [64, 80])
def test_predictions_are_the_softmax_of_the_network_as_it_was_given(network, name, side):
    windows = windows_of(2, side)
    predicted = predict_windows(open_(network, name, side=side), windows)
    assert predicted.dtype == np.float32
    assert predicted.shape == (2, 4, side, side)
    np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-5)
    assert predicted.std() > 0.1
    np.testing.assert_allclose(predicted, as_torch_says(network, windows), rtol=0, atol=1e-3)


@engines
@pytest.mark.parametrize(
    "changes", [{"scales": (0.5, 1.0), "flip": True}, {"scales": (0.75, 1.0), "fusion": "max"}], ids=["mean", "max"]
)
def test_scales_and_mirror_images_are_fused_as_the_network_says(network, name, changes):
    multiscale, windows = MultiScaleSpec(**changes), windows_of(1)
    found = predict_windows(open_(network, name, multiscale=multiscale), windows)
    np.testing.assert_allclose(found, as_torch_says(network, windows, multiscale), rtol=0, atol=1e-3)


@engines
@pytest.mark.parametrize(
    ("alignment", "padding", "side"),
    [("corner", "symmetric", 65), ("corner", "symmetric", 64), ("centre", "tf_same", 80)],
)
def test_odd_windows_are_padded_as_the_network_says(name, alignment, padding, side):
    spec = tiny_model_spec(n_classes=4, alignment=alignment, padding=padding).network
    network, windows = lively_network(spec), windows_of(1, side)
    found = predict_windows(open_(network, name, side=side), windows)
    np.testing.assert_allclose(found, as_torch_says(network, windows), rtol=0, atol=1e-3)


@engines
def test_the_mean_of_the_scene_goes_in(name):
    network = lively_network(tiny_model_spec(n_classes=4, image_pooling="window").network)
    means = torch.linspace(-1, 1, network.backbone.high_level_channels)[None]
    system = assemble(network, MultiScaleSpec(), mode="global", scene_means=tuple(map(tuple, means.tolist())))
    windows = windows_of(1)
    found = predict_windows(open_engine(LateNetwork.loaded(system), EngineSpec(device="cpu", engine=name), window_px=64), windows)
    with torch.inference_mode():
        expected = torch.softmax(network(torch.from_numpy(windows), means[0]), dim=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.abs(found - as_torch_says(network, windows)).max() > 0.01, "or the mean would not matter"


@engines
def test_the_callers_network_is_left_as_it_was(network, name):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    predict_windows(open_(network, name), windows_of(1))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@engines
def test_a_window_gets_the_same_bytes_in_any_company_and_order(network, name):
    engine, windows = open_(network, name, threads=3), windows_of(5)
    alone = open_(network, name)
    together = predict_windows(engine, windows)
    assert together.tobytes() == predict_windows(engine, windows[::-1])[::-1].tobytes()
    for i in range(5):
        assert together[i].tobytes() == predict_windows(alone, windows[i : i + 1]).tobytes()


@engines
def test_the_number_of_threads_does_not_change_a_byte(name):
    network = lively_network(NetworkSpec(n_classes=5))  # the default architecture
    windows = windows_of(1, 256)
    one = predict_windows(open_(network, name, side=256), windows)
    torch.set_num_threads(2)  # what the process does elsewhere has no effect
    two = predict_windows(open_(network, name, side=256, threads=2), windows)
    assert one.std() > 0.1
    assert one.tobytes() == two.tobytes()


@engines
def test_a_result_outlives_the_next_window(network, name):
    engine, windows = open_(network, name), windows_of(2)
    first, second = engine.scores([lambda: windows[0], lambda: windows[1]])
    kept = first.copy()
    assert not np.array_equal(first, second)
    list(engine.scores([lambda: windows[1]]))
    np.testing.assert_array_equal(first, kept)


@engines
def test_a_window_that_cannot_be_read_fails_and_the_engine_goes_on(network, name):
    engine, windows = open_(network, name), windows_of(1)

    def broken():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.scores([lambda: windows[0], broken, lambda: windows[0]]))
    assert len(list(engine.scores([lambda: windows[0]]))) == 1


@engines
def test_bf16_is_close_to_fp32_and_says_its_name(name):
    _, network = load_network(resolve_model(DEFAULT_MODEL))
    windows = windows_of(1, 128)
    exact = predict_windows(open_(network, name, side=128), windows)
    engine = open_(network, name, side=128, precision="bf16")
    rough = predict_windows(engine, windows)
    assert engine.name == f"{name} bf16"
    assert np.abs(rough - exact).mean() < 0.05
    np.testing.assert_allclose(rough.sum(axis=1), 1, atol=1e-3)


@engines
def test_auto_is_fp32(network, name):
    windows = windows_of(1)
    auto, fp32 = (open_(network, name, precision=precision) for precision in ("auto", "fp32"))
    assert auto.name == fp32.name == f"{name} fp32"
    assert predict_windows(auto, windows).tobytes() == predict_windows(fp32, windows).tobytes()


def test_both_engines_give_the_shipped_model_the_same_labels_on_imagery():
    pytest.importorskip("openvino")
    model, network = load_network(resolve_model(DEFAULT_MODEL))
    with open_scene(SceneSpec(uri=str(ROOT / "examples" / "dubai-tile2.tif"))) as scene:
        tile = read_reflected(scene, Window(row_off=300, col_off=600, height=512, width=512))
    pixels = normalise(tile, tile.window, stretch=Stretch.identity(3), model=model)[np.newaxis]
    of_torch, of_openvino = (open_(network, name, side=512) for name in ("torch", "openvino"))
    torch_labels, openvino_labels = (predict_windows(engine, pixels).argmax(axis=1) for engine in (of_torch, of_openvino))
    assert len(np.unique(torch_labels)) == 5
    assert (torch_labels == openvino_labels).mean() >= 0.9999


# --- the cache of conversions


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "atrous" / "openvino"


def converted(network, key="key"):
    late = LateNetwork.loaded(MultiScale(network, MultiScaleSpec()))
    return open_engine(late, EngineSpec(device="cpu", engine="openvino"), window_px=64, cache_key=key)


def test_a_conversion_is_kept_and_gives_the_same_bytes(network, cache, monkeypatch):
    windows = windows_of(1)
    first = predict_windows(converted(network), windows)
    assert {path.suffix for path in cache.iterdir()} == {".xml", ".bin", ".sha256"}
    monkeypatch.setattr(openvino_conversion, "convert", None)  # not called
    assert predict_windows(converted(network), windows).tobytes() == first.tobytes()


@pytest.mark.parametrize("suffix", [".xml", ".bin", ".sha256"])
def test_a_damaged_conversion_is_made_anew(network, cache, suffix):
    windows = windows_of(1)
    first = predict_windows(converted(network), windows)
    damaged = next(path for path in cache.iterdir() if path.suffix == suffix)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert predict_windows(converted(network), windows).tobytes() == first.tobytes()
    assert damaged.read_bytes() != content


def test_another_network_or_none_is_not_taken_from_the_cache(network, cache):
    converted(network)
    n_files = len(list(cache.iterdir()))
    converted(network, key=None)
    assert len(list(cache.iterdir())) == n_files
    converted(network, key="other")
    assert len(list(cache.iterdir())) == 2 * n_files


def test_a_cache_that_cannot_be_written_costs_time_only(network, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert predict_windows(converted(network), windows_of(1)).shape == (1, 4, 64, 64)


# --- the choice


@pytest.mark.parametrize(
    ("settings", "has_openvino", "expected"),
    [
        ({}, True, "openvino"),
        ({}, False, "torch"),
        ({"engine": "torch"}, True, "torch"),
        ({"precision": "bf16"}, True, "openvino"),
        ({"precision": "fp16"}, True, "torch"),
    ],
)
def test_auto_takes_openvino_on_the_cpu_where_it_is_installed(monkeypatch, settings, has_openvino, expected):
    monkeypatch.setattr("pipeline.engine.choose.has_openvino", lambda: has_openvino)
    assert choose_engine(EngineSpec(device="cpu", **settings)) == expected


def test_auto_takes_torch_on_cuda_and_openvino_is_refused_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_engine(EngineSpec()) == "torch"
    if choose.has_openvino():
        with pytest.raises(SpecError, match=r"openvino was asked for on a CUDA device.*--device cpu"):
            choose_engine(EngineSpec(engine="openvino"))


def test_openvino_that_is_not_installed_is_missed(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install openvino, or use --engine torch"):
        choose_engine(EngineSpec(device="cpu", engine="openvino"))


def test_fp16_is_refused_by_openvino(network):
    pytest.importorskip("openvino")
    with pytest.raises(SpecError, match=r"--precision fp16.*fp32 and bf16"):
        open_(network, "openvino", precision="fp16")


# --- devices


def test_cuda_where_there_is_none_is_refused(monkeypatch, network):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"--device cuda.*use --device cpu"):
        open_(network, "torch", device="cuda")


@pytest.mark.parametrize(
    ("device", "available", "expected", "windows"),
    [("auto", False, "cpu", 1), ("auto", True, "cuda", 4), ("cpu", True, "cpu", 1), ("cuda", True, "cuda", 4)],
)
def test_auto_takes_cuda_where_there_is_one(monkeypatch, device, available, expected, windows):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(EngineSpec(device=device)) == expected
    assert windows_at_once(EngineSpec(device=device), window_px=1024) == windows


@pytest.mark.parametrize(("window_px", "windows"), [(64, 64), (512, 16), (1024, 4), (1500, 1), (2304, 1)])
def test_a_device_sees_as_many_windows_as_fill_it(monkeypatch, window_px, windows):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert windows_at_once(EngineSpec(), window_px=window_px) == windows


def test_tf32_is_for_devices(network):
    with pytest.raises(SpecError, match=r"--precision tf32.*only CUDA devices have it: use fp32 or bf16"):
        open_(network, "auto", precision="tf32")


def test_the_engine_says_where_it_runs(network):
    assert open_(network, "torch").device == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"device": "tpu"}, r"device 'tpu'.*auto, cpu, cuda", id="device"),
        pytest.param({"engine": "onnx"}, r"engine 'onnx'.*auto, torch, openvino", id="engine"),
        pytest.param({"precision": "fp8"}, r"precision 'fp8'.*auto, fp32, tf32, bf16, fp16", id="precision"),
        pytest.param({"threads": 0}, r"0 threads.*1 or more", id="threads"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        EngineSpec(**settings)


def test_the_cpu_is_always_healthy_and_a_device_that_is_not_there_is_not():
    assert is_healthy("cpu")
    assert torch.cuda.is_available() or not is_healthy("cuda")


def test_openvino_is_kept_from_reporting(tmp_path):
    """Its import alone would send an event, and keep an identity in the home folder."""
    pytest.importorskip("openvino")
    code = (
        "import sys, pipeline.engine.openvino_engine, openvino\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]))"
    )
    home = {**os.environ, "HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=home)
    assert ended.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []
