"""Where does training start? With an ImageNet backbone, with or without its normalisations, or with a checkpoint.

A folded layer computes ``conv(x) + bias``. To train it with normalisation again, a layer with the batch
statistics (mean, var) gets ``gamma = sqrt(var + eps)`` and ``beta = bias + mean``: it then computes exactly
what the folded one did.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import WeightsError
from pipeline.network.checkpoint import read_tensors
from pipeline.network.convolution import ConvNormActivation
from pipeline.network.importers.efficientnet_keys import STEM_KEY, map_efficientnet
from pipeline.network.importers.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.network.deeplab import DeepLab


def start_from(path: Path, network: DeepLab, windows: Tensor) -> int:
    """Put the weights of ``path`` into ``network`` and return how many tensors were used.

    A first layer of another number of bands is made to fit. ``.safetensors`` is read as a checkpoint of this project: other tensors whose
    shapes differ, such as those of another number of classes, are left as they are. Anything else is read as ImageNet weights:
    EfficientNet-Lite0 as EfficientNet-PyTorch names it, or folded MobileNetV2, which is calibrated on ``windows``, normalised
    (N, bands, H, W) float32.

    Raises
    ------
    WeightsError
        If the file is unreadable, lacks a layer, or has one of another shape.
    """
    if path.suffix == ".safetensors":
        return _start_from_checkpoint(path, network)
    weights = _read_state_dict(path)
    if STEM_KEY in weights:
        return _load_efficientnet(path, weights, network)
    return _load_folded_mobilenet(path, weights, network, windows)


def _load_efficientnet(path: Path, weights: dict[str, Tensor], network: DeepLab) -> int:
    keys = KeyMap()
    map_efficientnet(keys)
    own, fitted = network.state_dict(), {}
    for name, source in keys.sources.items():
        given = source.take(weights) if source.key in weights else None
        if given is not None and name in own:
            fitted[name] = _for_bands(given, own[name], network)
        if name not in fitted or fitted[name].shape != own[name].shape:
            there = "missing" if given is None else tuple(given.shape)
            needed = tuple(own[name].shape) if name in own else "no such layer"
            raise WeightsError(
                f"{path}: {source.key} is {there} and the backbone has {needed} there; "
                'EfficientNet-Lite0 weights need backbone = "efficientnet_lite0"'
            )
    network.load_state_dict(fitted, strict=False)
    return len(fitted)


def _load_folded_mobilenet(path: Path, weights: dict[str, Tensor], network: DeepLab, windows: Tensor) -> int:
    """Put folded MobileNetV2 weights into the backbone such that it computes what they computed."""
    layers = {name: m for name, m in network.backbone.named_modules() if isinstance(m, ConvNormActivation)}
    hooks = []
    for name, layer in layers.items():
        weight, bias = (_take(path, weights, f"{name}.{kind}") for kind in ("weight", "bias"))
        _set_kernel(path, name, layer, _for_bands(weight, layer.conv.weight, network))
        hooks.append(layer.norm.register_forward_pre_hook(_calibration(bias)))
    _run_once(network, windows)
    for hook in hooks:
        hook.remove()
    return 2 * len(layers)


def _calibration(bias: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def calibrate(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Make the normalisation of what it is about to see add ``bias`` and nothing else."""
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            return
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.weight.copy_(torch.sqrt(var + norm.eps))
        norm.bias.copy_(bias + mean)

    return calibrate


def _run_once(network: DeepLab, windows: Tensor) -> None:
    was_training = network.training
    network.eval()
    with torch.no_grad():
        network.backbone(windows)
    network.train(was_training)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(
            f"{path} cannot be read as a file of weights ({error}); give ImageNet weights of EfficientNet-Lite0 or folded ones of "
            "MobileNetV2, or a .safetensors checkpoint"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise WeightsError(f"{path} holds a {type(weights).__name__}; a plain dictionary of tensors is expected")
    return weights


def _take(path: Path, weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise WeightsError(
            f"{path} has no tensor {name}; folded MobileNetV2 weights have stem and blocks.0 to blocks.16, with .weight and .bias"
        )
    return weights[name].to(torch.float32)


def _set_kernel(path: Path, name: str, layer: ConvNormActivation, weight: Tensor) -> None:
    if weight.shape != layer.conv.weight.shape:
        raise WeightsError(
            f"{path}: {name}.weight is {tuple(weight.shape)} and the backbone needs "
            f"{tuple(layer.conv.weight.shape)}; "
            "ImageNet weights need a backbone_width of 1.0"
        )
    with torch.no_grad():
        layer.conv.weight.copy_(weight)


def _start_from_checkpoint(path: Path, network: DeepLab) -> int:
    own = network.state_dict()
    given = {name: _for_bands(tensor, own[name], network) for name, tensor in read_tensors(path).items() if name in own}
    fitting = {name: tensor for name, tensor in given.items() if own[name].shape == tensor.shape}
    if not fitting:
        raise WeightsError(f"{path} has no tensor that this network could use; give a checkpoint of the same architecture")
    network.load_state_dict(fitting, strict=False)
    return len(fitting)


def _for_bands(given: Tensor, own: Tensor, network: DeepLab) -> Tensor:
    """Return the kernel of a first layer for another number of bands, any other tensor as it is.

    Bands keep their kernels in their order. Further bands get the mean of all, and the whole is scaled; where there are fewer, the kernels
    that are left over are shared out. So bands that are alike give what they gave.
    """
    n_bands = network.spec.n_bands
    wanted = (given.shape[0], n_bands, *given.shape[2:])
    if given.ndim != 4 or given.shape[1] == n_bands or tuple(own.shape) != wanted:
        return given
    if n_bands < given.shape[1]:
        return given[:, :n_bands] + given[:, n_bands:].sum(dim=1, keepdim=True) / n_bands
    further = given.mean(dim=1, keepdim=True).expand(-1, n_bands - given.shape[1], -1, -1)
    return torch.cat([given, further], dim=1) * (given.shape[1] / n_bands)
