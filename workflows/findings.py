"""What does a check say? That something is fine, that it deserves a look, or that it will not work; and then what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    state: State
    """``ok``; ``warning``: it works, perhaps not as you think; ``problem``: runs fail, or their output cannot be trusted."""
    topic: str
    """What it is about, one word."""
    text: str
    """What was found."""
    advice: str = ""
    """What to do; empty where it is fine."""


def ok(topic: str, text: str) -> Finding:
    """Return a finding that needs nothing done."""
    return Finding(state="ok", topic=topic, text=text)


def warning(topic: str, text: str, advice: str) -> Finding:
    """Return a finding that a person should know of."""
    return Finding(state="warning", topic=topic, text=text, advice=advice)


def problem(topic: str, text: str, advice: str) -> Finding:
    """Return a finding that has to be put right."""
    return Finding(state="problem", topic=topic, text=text, advice=advice)
