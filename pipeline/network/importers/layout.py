"""What must be known of a foreign layout of checkpoints, and what comes of reading one?

A state dict tells shapes. It does not tell output stride, atrous rates, normalisation, order of the colour channels or how features are
aligned: those come from what the user says (`Hints`), from a configuration beside the file, or from the default of the layout's own code,
and every default that was taken is said (`Draft.assumed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.errors import SpecError
from pipeline.network.spec import MultiScaleSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor

    from pipeline.network.importers.keymap import KeyMap

T = TypeVar("T")

ChannelOrder = Literal["rgb", "bgr"]

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
"""Red, green, blue, for pixels of 0 to 255."""
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Red, green, blue, for pixels of 0 to 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What the user says about a checkpoint; None: not said."""

    output_stride: int | None = None
    """Input pixels per cell of the backbone's last features."""
    atrous_rates: tuple[int, ...] | None = None
    """Rates of the context's branches in cells, as the checkpoint's own configuration writes them for its output stride."""
    multi_grid: tuple[int, ...] | None = None
    """Factors on the rates of a ResNet's last three blocks."""
    mean: tuple[float, ...] | None = None
    """Per band, in the order of the checkpoint's channels, for pixels in ``input_range``."""
    std: tuple[float, ...] | None = None
    """Per band, likewise."""
    input_range: tuple[float, float] | None = None
    """Lowest and highest pixel value that the network was trained on."""
    channel_order: ChannelOrder | None = None
    """Order of the first convolution's input channels."""
    align_corners: bool | None = None
    """Whether the checkpoint's own code upsamples with ``align_corners=True``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What the network expects of its input, in the order of the checkpoint's channels."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from pixels in ``input_range``."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divided by."""
    input_range: tuple[float, float] = (0.0, 255.0)
    """Lowest and highest pixel value."""
    channel_order: ChannelOrder = "rgb"
    """Order of the channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a layout makes of one checkpoint: the network, and where each of its tensors comes from."""

    network: NetworkSpec
    """The network that computes what the checkpoint's own code computes."""
    keys: KeyMap
    """Where every tensor of that network comes from."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of keys that are left out on purpose, such as heads used in training only."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What is done to pixels first."""
    multiscale: MultiScaleSpec = field(default_factory=MultiScaleSpec)
    """The scales at which the checkpoint's own code evaluates."""
    assumed: tuple[str, ...] = ()
    """One sentence for every property that the keys cannot tell and the user did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One layout of state dicts."""

    name: str
    """What ``--layout`` calls it."""
    title: str
    """Where such checkpoints come from, for messages."""
    recognised_by: str
    """The keys that tell it from others, for messages."""
    matches: Callable[[Collection[str]], bool]
    """Tells from all keys whether a state dict is of this layout; two keys that stand together, never one."""
    draft: Callable[[Mapping[str, Tensor], Hints, Mapping[str, Any]], Draft]
    """Works out the network from the tensors, the hints, and the configuration found beside the file (empty where there is none)."""


def rates_at_16(rates: tuple[int, ...], output_stride: int) -> tuple[int, ...]:
    """Return rates given in cells at ``output_stride`` as `NetworkSpec.atrous_rates` has them for v3 and v3+, at output stride 16.

    Raises
    ------
    SpecError
        If a rate does not come out whole.
    """
    if any(rate * output_stride % 16 for rate in rates):
        raise SpecError(
            f"the rates {', '.join(map(str, rates))} were given for output stride {output_stride}; this project keeps rates for "
            "output stride 16 and doubles them at 8, so at 8 they must be even: check --rates"
        )
    return tuple(rate * output_stride // 16 for rate in rates)


def check_n_rates(rates: tuple[int, ...], expected: int) -> tuple[int, ...]:
    """Return ``rates``; SpecError unless there are as many as the checkpoint has atrous branches."""
    if len(rates) != expected:
        raise SpecError(f"{len(rates)} rates were given; the checkpoint has {expected} atrous branches: give as many to --rates")
    return rates


def settle(assumed: list[str], said: T | None, default: T, sentence: str) -> T:
    """Return what the user said, or else the default, adding ``sentence`` to what was assumed."""
    if said is not None:
        return said
    assumed.append(sentence)
    return default


def settle_preprocessing(assumed: list[str], hints: Hints, default: Preprocessing, origin: str) -> Preprocessing:
    """Return the preprocessing that the user said, and the default of ``origin`` for what was not said, adding it to what was assumed."""
    said = {name: getattr(hints, name) for name in ("mean", "std", "input_range", "channel_order")}
    settled = replace(default, **{name: value for name, value in said.items() if value is not None})
    if None in said.values():
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (settled.mean, settled.std))
        low, high = settled.input_range
        assumed.append(
            f"pixels of {low:g} to {high:g} in the order {settled.channel_order.upper()}, minus {mean}, divided by {std}, as "
            f"{origin} has it"
        )
    return settled
