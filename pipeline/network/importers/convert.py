"""From a foreign checkpoint to a network of ours: recognise, draft, take every tensor, account for the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import SpecError, WeightsError
from pipeline.network.checkpoint import stored_tensors
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.importers import known_layouts
from pipeline.network.importers.state import some
from pipeline.network.keys import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.network.importers.layout import Draft, Hints, Layout, Preprocessing

_ALWAYS_IGNORED = (r"(^|.*\.)num_batches_tracked",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A foreign checkpoint as one of ours."""

    layout: Layout
    """What it was recognised as."""
    network: DeepLab
    """float32, on the CPU, in evaluation mode; its first convolution takes red, green, blue."""
    preprocessing: Preprocessing
    """What is done to pixels first, in the order red, green, blue."""
    draft: Draft
    """The rest."""
    left_out: tuple[str, ...]
    """Their keys that were left out on purpose."""


def convert(tensors: Mapping[str, Tensor], hints: Hints, config: Mapping[str, Any], *, layout: str | None = None) -> Converted:
    """Return the network that a state dict holds.

    Parameters
    ----------
    tensors
        The state dict, as `read_state` returns it.
    hints
        What the user says about it.
    config
        The configuration beside the file; empty where there is none.
    layout
        Name of the layout; None: recognised by the keys.

    Raises
    ------
    WeightsError
        If the layout is not known, a tensor is missing, has another shape, or is left over.
    SpecError
        If a hint contradicts the tensors.
    """
    found = _layout(tensors, layout)
    tensors = _Named(tensors)
    draft = found.draft(tensors, hints, config)
    with torch.device("meta"):
        network = build_network(draft.network)
    left_out = _check_keys(tensors, draft, found, expected=set(stored_tensors(network)))
    state = {ours: source.take(tensors) for ours, source in draft.keys.sources.items()}
    _check_shapes(state, stored_tensors(network), draft, found)
    preprocessing = draft.preprocessing
    if preprocessing.channel_order == "bgr":
        state |= {name: state[name].flip(1) for name in first_kernels(network)}
        preprocessing = _reversed(preprocessing)
    if draft.network.n_classes == 1:
        network, draft = _against_background(state, draft)
    counters = {name: torch.tensor(0) for name in network.state_dict().keys() - state.keys()}
    network.load_state_dict({**state, **counters}, strict=True, assign=True)
    return Converted(layout=found, network=network.eval(), preprocessing=preprocessing, draft=draft, left_out=tuple(left_out))


class _Named(dict[str, "Tensor"]):
    """A state dict that says which tensor a layout looked for in vain, where its shape was asked for."""

    def __missing__(self, key: str) -> Tensor:
        raise WeightsError(
            f"the state dict has {len(self)} tensors and none called {key}, which its layout needs to tell the network's shape; give the "
            "whole network, or name another layout with --layout"
        )


def first_kernels(network: DeepLab) -> list[str]:
    """Return the names of the kernels that see the image itself: the backbone's first one, and that of MSc's first branch."""
    kernels = [name for name, tensor in network.backbone.state_dict().items() if tensor.ndim == 4]
    names = [f"backbone.{kernels[0]}"]
    return [*names, "head.side.0.gather.weight"] if network.spec.side_channels else names


def _layout(tensors: Mapping[str, Tensor], name: str | None) -> Layout:
    layouts = known_layouts()
    if name is not None:
        named = {layout.name: layout for layout in layouts}
        if name not in named:
            raise SpecError(f"the layout {name!r} was given; {suggest(name, named)}")
        return named[name]
    for layout in layouts:
        if layout.matches(tensors.keys()):
            return layout
    known = "; ".join(f"{layout.name}: {layout.title}, by {layout.recognised_by}" for layout in layouts)
    raise WeightsError(
        f"the state dict has {len(tensors)} tensors, the first are [{some(sorted(tensors))}]; that is none of the known layouts ({known}). "
        "Give a checkpoint of one of these, or name its layout with --layout"
    )


def _check_keys(tensors: Mapping[str, Tensor], draft: Draft, layout: Layout, *, expected: set[str]) -> list[str]:
    """Return their keys that are left out on purpose; WeightsError where tensors are missing or left over."""
    assert draft.keys.sources.keys() == expected, sorted(draft.keys.sources.keys() ^ expected)[:8]
    missing = sorted(draft.keys.used - tensors.keys())
    pattern = re.compile("|".join(f"(?:{item})" for item in (*_ALWAYS_IGNORED, *draft.ignored)))
    unused = sorted(tensors.keys() - draft.keys.used)
    extra = [key for key in unused if not pattern.fullmatch(key)]
    if missing or extra:
        raise WeightsError(
            f"the state dict looks like {layout.title} and does not fit it: {len(missing)} tensors are missing [{some(missing)}] and "
            f"{len(extra)} are left over [{some(extra)}]; if it is a changed network, it cannot be imported"
        )
    return unused


def _check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], draft: Draft, layout: Layout) -> None:
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{draft.keys.sources[name].key} is {tuple(tensor.shape)}; {layout.title} has "
                f"{tuple(expected[name].shape)} there: if it is a changed network, it cannot be imported"
            )


def _against_background(state: dict[str, Tensor], draft: Draft) -> tuple[DeepLab, Draft]:
    """Make two classes of one: with a score of 0 for the background, the softmax of the other is the sigmoid of its score."""
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    assumed = (*draft.assumed, "one output channel: the score of a class against background, read through a sigmoid")
    draft = replace(draft, network=replace(draft.network, n_classes=2), assumed=assumed)
    with torch.device("meta"):
        return build_network(draft.network), draft


def _reversed(preprocessing: Preprocessing) -> Preprocessing:
    return replace(preprocessing, mean=preprocessing.mean[::-1], std=preprocessing.std[::-1], channel_order="rgb")
