"""A reference network with lively statistics, and what its import as one of ours is compared on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.network.deeplab import DeepLab
from pipeline.network.importers.convert import Converted, convert
from pipeline.network.importers.layout import Hints

TOLERANCE = 1e-4


def shaken(network: nn.Module, classifier: nn.Conv2d, *, n_bands: int = 3, seed: int = 0) -> nn.Module:
    """Return ``network`` in evaluation mode with batch statistics and factors such that every tensor matters.

    Its logits are spread over about one unit, so that an absolute tolerance says something: random residual networks give
    logits of thousands or of hundredths, by their depth.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.8, 1.2, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
        spread = _spread_of(network.eval(), classifier, pixels(144, 112, n_bands=n_bands, seed=seed))
        classifier.weight.div_(spread)
        classifier.bias.div_(spread)
    return network


def _spread_of(network: nn.Module, classifier: nn.Conv2d, x: Tensor) -> float:
    found = []
    hook = classifier.register_forward_hook(lambda _module, _given, scores: found.append(scores.std(dim=(2, 3)).mean()))
    network(x)
    hook.remove()
    return float(found[0])


def pixels(height: int, width: int, *, n_bands: int = 3, seed: int = 1) -> Tensor:
    """Return a batch of one random normalised window."""
    return torch.randn(1, n_bands, height, width, generator=torch.Generator().manual_seed(seed))


def imported(
    reference: nn.Module | Mapping[str, Tensor], config: Mapping[str, object] | None = None, **hints: object
) -> Converted:
    """Return what importing the reference gives."""
    state = reference.state_dict() if isinstance(reference, nn.Module) else reference
    return convert(dict(state), Hints(**hints), config or {})


def twin(reference: nn.Module, config: Mapping[str, object] | None = None, **hints: object) -> DeepLab:
    """Return the network that importing the reference gives."""
    return imported(reference, config, **hints).network


def largest_difference(given: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference; the reference must vary from place to place, or nothing would be compared."""
    assert given.shape == right.shape
    assert float(right.std(dim=(2, 3)).mean()) > 0.05
    return float((given - right).abs().max())
