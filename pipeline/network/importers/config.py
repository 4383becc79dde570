"""What does the configuration beside a checkpoint say? Numbers out of JSON, each of the right kind or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping


def configured_whole(config: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number of the configuration; None where it says nothing of it."""
    value = config.get(name)
    if value is None:
        return None
    if not _is_whole(value):
        raise _unfit(name, value, "a whole number")
    return int(value)


def configured_wholes(config: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """Return a list of whole numbers of the configuration; None where it says nothing of it."""
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_whole(item) for item in value):
        raise _unfit(name, value, "a list of whole numbers")
    return tuple(int(item) for item in value)


def configured_number(config: Mapping[str, Any], name: str) -> float | None:
    """Return a number of the configuration; None where it says nothing of it."""
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _unfit(name, value, "a number")
    return float(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _unfit(name: str, value: object, expected: str) -> SpecError:
    return SpecError(f"config.json beside the checkpoint has {name} {value!r}; expected {expected}: correct it or move it away")
