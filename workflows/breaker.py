"""Do most blocks fail? Then something is wrong with the job, and going on would only fill the list of failures."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from workflows.events import BlockFailure

if TYPE_CHECKING:
    from workflows.events import Outcome

_LAST = 20
"""Outcomes that are looked at; a damaged corner of a scene is smaller than that, or it is most of it."""
_MOST = 0.8
"""Share of failures among them that stops a run."""


class Breaker:
    """Opens when four of five among the last twenty blocks failed."""

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=_LAST)
        self._error = ""

    def note(self, outcome: Outcome) -> None:
        """Take in what became of a block."""
        self._failed.append(isinstance(outcome, BlockFailure))
        if isinstance(outcome, BlockFailure):
            self._error = outcome.error

    @property
    def is_open(self) -> bool:
        """Whether no further block should be begun."""
        return len(self._failed) == _LAST and sum(self._failed) >= _MOST * _LAST

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        return f"{sum(self._failed)} of the last {len(self._failed)} blocks failed, so no more were begun; the last error: {self._error}"
