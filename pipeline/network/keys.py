"""Does a mapping that came from a file have exactly the keys that a spec knows?"""

from __future__ import annotations

from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def check_keys(given: Mapping[str, Any], spec: type[Any], *, where: str) -> None:
    """Refuse keys that ``spec`` (a dataclass) has no field for, and fields without default not given.

    Raises
    ------
    SpecError
        Naming the key, ``where`` it stood, and the nearest known key.
    """
    known = {field.name for field in fields(spec)}
    required = {f.name for f in fields(spec) if f.default is MISSING and f.default_factory is MISSING}
    for key in given:
        if key not in known:
            raise SpecError(f"{where} has the unknown key {key!r}; {suggest(key, known)}")
    absent = sorted(required - given.keys())
    if absent:
        raise SpecError(f"{where} lacks the key(s) {', '.join(absent)}; add them")


def check_choice(name: str, given: object, known: tuple[object, ...]) -> None:
    """Raise SpecError unless ``given``, the value of the setting ``name``, is one of those that are known."""
    if given not in known:
        raise SpecError(f"{name} is {given!r}; choose one of {', '.join(map(str, known))}")


def suggest(word: str, known: Collection[str]) -> str:
    """Return "did you mean ...?" for a near miss, and the list of what is known otherwise."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known)) or 'none'}"
