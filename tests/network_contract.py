"""What every network must do, whatever its backbone and its head: rules that a test runs one by one."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import model_of
from torch import Tensor, nn

from pipeline.network.checkpoint import load_network, save_checkpoint
from pipeline.network.convolution import ConvNormActivation
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.fold import fold_batch_norm
from pipeline.network.spec import ModelSpec, NetworkSpec

ODD_SHAPE, RAGGED_SHAPE = (65, 97), (50, 31)
"""One pixel more than a multiple of every output stride, and nothing of the kind."""

_SHAPE = (50, 71)
"""Of the windows whose logits are compared: wide enough for taps of fc6 that lie 4 and 12 cells off."""


def calibrated(spec: NetworkSpec) -> DeepLab:
    """Return a random network in evaluation mode whose logits spread over about one unit, so that an error in them is seen.

    Kernels are numbers that float16 has, so that a checkpoint can hold the network itself.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        network = build_network(spec).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, ConvNormActivation):
                _shake(module.norm, gain=0.3 if isinstance(module.activation, nn.Identity) else 1.0)
        logits = network(torch.randn(2, spec.n_bands, *ODD_SHAPE))
        for layer in [network.classifier] if network.head is None else [branch.fc8 for branch in network.head.branches]:
            layer.weight.div_(_spread(logits))
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    return network


def _shake(norm: nn.BatchNorm2d, *, gain: float) -> None:
    """Give a normalisation something to do; with a small gain where a block adds to its input, so that sums do not grow."""
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.8, 1.2)
    norm.weight.uniform_(0.8 * gain, 1.2 * gain)
    norm.bias.normal_(0, 0.1)


def _spread(logits: Tensor) -> float:
    """Return how much a class varies from pixel to pixel."""
    return float(logits.std(dim=(2, 3)).mean())


def logits_have_the_size_of_the_input(network: DeepLab, _folder: Path) -> None:
    for shape in (ODD_SHAPE, RAGGED_SHAPE):
        logits = _logits(network, _windows(network, 1, shape))
        assert logits.shape == (1, network.spec.n_classes, *shape)
        assert logits.dtype == torch.float32
        assert bool(torch.isfinite(logits).all())
        assert shape != ODD_SHAPE or _spread(logits) > 0.5


def the_same_window_gives_the_same_bytes(network: DeepLab, _folder: Path) -> None:
    window = _windows(network, 1)
    assert torch.equal(_logits(network, window), _logits(network, window.clone()))


def a_window_alone_gives_what_it_gives_in_a_batch(network: DeepLab, _folder: Path) -> None:
    windows = _windows(network, 2)
    _assert_close(_logits(network, windows[1:2]), _logits(network, windows)[1:2])


def a_checkpoint_gives_the_network_back(network: DeepLab, folder: Path) -> None:
    path, model = folder / "model.safetensors", model_of(network.spec)
    save_checkpoint(path, network, model)
    given, loaded = load_network(path)
    path.unlink()  # up to 270 MB
    assert given == model
    assert not loaded.training
    window = _windows(network, 1)
    _assert_close(_logits(loaded, window), _logits(network, window))


def its_description_survives_json(network: DeepLab, _folder: Path) -> None:
    model = model_of(network.spec)
    assert ModelSpec.from_dict(json.loads(json.dumps(model.to_dict()))) == model


def folding_normalisation_keeps_the_logits(network: DeepLab, _folder: Path) -> None:
    window, folded = _windows(network, 1), fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    _assert_close(_logits(folded, window), _logits(network, window))


def onnxruntime_gives_the_same_logits(network: DeepLab, _folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    window, file = _windows(network, 1), io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that traces takes a tenth of the time of the one that replaced it.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network, (window,), file, dynamo=False, do_constant_folding=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # one run; it would not pay
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: window.numpy()})
    _assert_close(torch.from_numpy(given), _logits(network, window))


RULES: tuple[Callable[[DeepLab, Path], None], ...] = (
    logits_have_the_size_of_the_input,
    the_same_window_gives_the_same_bytes,
    a_window_alone_gives_what_it_gives_in_a_batch,
    a_checkpoint_gives_the_network_back,
    its_description_survives_json,
    folding_normalisation_keeps_the_logits,
    onnxruntime_gives_the_same_logits,
)


def _windows(network: DeepLab, n: int, shape: tuple[int, int] = _SHAPE) -> Tensor:
    return torch.randn(n, network.spec.n_bands, *shape, generator=torch.Generator().manual_seed(2))


def _logits(network: DeepLab, windows: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(windows)
    return logits


def _assert_close(given: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(given, right, rtol=0, atol=1e-4)
