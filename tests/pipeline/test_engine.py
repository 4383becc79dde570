"""The torch engine: probabilities, the same bytes in any batch and with any number of threads."""

import numpy as np
import pytest
import torch
from factories import lively_network, texture, tiny_model_spec

from pipeline.engine.protocol import EngineSpec
from pipeline.engine.torch_engine import TorchEngine, batch_size, choose_device
from pipeline.errors import SpecError
from pipeline.network.checkpoint import load_network
from pipeline.network.models import DEFAULT_MODEL, resolve_model
from pipeline.network.spec import NetworkSpec

CPU = EngineSpec(device="cpu")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def network():
    return lively_network(tiny_model_spec(n_classes=4).network)


def windows_of(n, side=64, *, width=None):
    pixels = [texture((3, side, width or side), dtype="float32", seed=seed) for seed in range(20, 20 + n)]
    return ((np.stack(pixels) - 127.5) / 60).astype(np.float32)


def test_predictions_are_probabilities_of_every_window(network):
    batch = windows_of(1, 48, width=80)
    predicted = TorchEngine(network, CPU).predict(batch)
    assert predicted.dtype == np.float32
    assert predicted.shape == (1, 4, 48, 80)
    assert predicted.min() >= 0
    np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-5)
    assert predicted.std() > 0.1


def test_predictions_are_the_softmax_of_the_network_as_it_was_given(network):
    batch = windows_of(1)
    with torch.inference_mode():
        expected = torch.softmax(network(torch.from_numpy(batch)), dim=1).numpy()
    np.testing.assert_allclose(TorchEngine(network, CPU).predict(batch), expected, rtol=0, atol=1e-3)


def test_the_callers_network_is_left_as_it_was(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TorchEngine(network, CPU).predict(windows_of(1))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_window_gets_the_same_bytes_however_many_run_beside_it(network, n):
    engine, batch = TorchEngine(network, EngineSpec(device="cpu", threads=3)), windows_of(3)
    assert engine.batch_size == batch_size(EngineSpec(device="cpu", threads=3)) == 3
    found = engine.predict(batch[:n])
    assert found.shape == (n, 4, 64, 64)
    alone = TorchEngine(network, CPU)
    for i in range(n):
        assert found[i].tobytes() == alone.predict(batch[i : i + 1]).tobytes()


def test_a_window_gets_the_same_bytes_at_any_place_of_a_batch(network):
    engine, batch = TorchEngine(network, EngineSpec(device="cpu", threads=2)), windows_of(2)
    assert engine.predict(batch[::-1])[::-1].tobytes() == engine.predict(batch).tobytes()


def test_a_result_outlives_the_next_call(network):
    engine, batch = TorchEngine(network, CPU), windows_of(2)
    first = engine.predict(batch[:1])
    kept = first.copy()
    engine.predict(batch[1:])
    np.testing.assert_array_equal(first, kept)


def test_the_number_of_threads_does_not_change_a_byte():
    network = lively_network(NetworkSpec(n_classes=5))  # the default architecture
    batch = windows_of(1, 256)
    one = TorchEngine(network, CPU).predict(batch)
    torch.set_num_threads(2)  # what the process does elsewhere has no effect
    two = TorchEngine(network, EngineSpec(device="cpu", threads=2)).predict(batch)
    assert one.std() > 0.1
    assert one.tobytes() == two.tobytes()


def test_bf16_is_close_to_fp32():
    _, network = load_network(resolve_model(DEFAULT_MODEL))
    batch = windows_of(1, 128)
    exact = TorchEngine(network, CPU).predict(batch)
    rough = TorchEngine(network, EngineSpec(device="cpu", precision="bf16")).predict(batch)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).mean() < 0.05
    np.testing.assert_allclose(rough.sum(axis=1), 1, atol=1e-3)


def test_auto_is_fp32(network):
    batch = windows_of(1)
    auto, fp32 = (TorchEngine(network, EngineSpec(device="cpu", precision=name)).predict(batch) for name in ("auto", "fp32"))
    assert auto.tobytes() == fp32.tobytes()


# --- devices


def test_cuda_where_there_is_none_is_refused(monkeypatch, network):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"--device cuda.*use --device cpu"):
        TorchEngine(network, EngineSpec(device="cuda"))


@pytest.mark.parametrize(
    ("device", "available", "expected", "windows"),
    [("auto", False, "cpu", 1), ("auto", True, "cuda", 4), ("cpu", True, "cpu", 1), ("cuda", True, "cuda", 4)],
)
def test_auto_takes_cuda_where_there_is_one(monkeypatch, device, available, expected, windows):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(EngineSpec(device=device)).type == expected
    assert batch_size(EngineSpec(device=device)) == windows


def test_the_engine_says_where_it_runs(network):
    assert TorchEngine(network, CPU).device == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"device": "tpu"}, r"device 'tpu'.*auto, cpu, cuda", id="device"),
        pytest.param({"precision": "fp8"}, r"precision 'fp8'.*auto, fp32, bf16, fp16", id="precision"),
        pytest.param({"threads": 0}, r"0 threads.*1 or more", id="threads"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        EngineSpec(**settings)


@pytest.mark.parametrize("n", [pytest.param(n, marks=gpu) for n in (1, 3, 4)])
def test_cuda_gives_what_the_cpu_gives(network, n):
    batch = windows_of(n)
    cuda = TorchEngine(network, EngineSpec(device="cuda"))
    cpu = TorchEngine(network, CPU)
    expected = np.concatenate([cpu.predict(window[None]) for window in batch])
    found = cuda.predict(batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert found.tobytes() == cuda.predict(batch).tobytes()


@pytest.mark.parametrize("side", [pytest.param(side, marks=gpu) for side in (64, 256)])
def test_on_cuda_a_window_gets_the_same_bytes_at_any_place_of_a_batch(network, side):
    cuda, batch = TorchEngine(network, EngineSpec(device="cuda")), windows_of(4, side)
    assert cuda.predict(batch[::-1].copy())[::-1].tobytes() == cuda.predict(batch).tobytes()
