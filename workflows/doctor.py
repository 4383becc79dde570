"""Will `atrous` work here? What is installed, the machine, its limits, the folder for outputs, and the network itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from workflows.folder_check import check_folder, is_unwritable
from workflows.machine_check import check_devices, check_environment, check_limits, check_versions
from workflows.self_test import check_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from workflows.findings import Finding, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that was looked at."""

    folder: str
    """Where outputs would be made."""
    findings: tuple[Finding, ...]
    """What was found."""
    writable: bool
    """Whether an output can be made in the folder."""

    def count(self, state: State) -> int:
        """Count the findings of a state."""
        return sum(found.state == state for found in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "n_problems": self.count("problem"), "n_warnings": self.count("warning")}


def run(folder: Path, *, environment: Mapping[str, str], known: frozenset[str]) -> Diagnosis:
    """Look at this machine, and at ``folder`` as a place for outputs; what is made there is removed again.

    Parameters
    ----------
    folder
        Where outputs would be made.
    environment
        The variables of this process.
    known
        Those that stand for an option.
    """
    of_folder = check_folder(folder.absolute())
    findings = (
        *check_versions(),
        *check_devices(),
        *check_limits(),
        *check_environment(environment, known),
        *of_folder,
        check_network(),
    )
    return Diagnosis(folder=str(folder.absolute()), findings=findings, writable=not is_unwritable(of_folder))


def diagnosis_lines(found: Diagnosis) -> list[str]:
    """Return one line for each finding, with what to do, and a verdict."""
    told = [f"{one.state:<8} {one.topic:<11} {one.text}{f': {one.advice}' if one.advice else ''}" for one in found.findings]
    return [*told, f"{_counted(found, 'problem')}, {_counted(found, 'warning')}"]


def _counted(found: Diagnosis, state: State) -> str:
    count = found.count(state)
    return f"{count or 'no'} {state}{'s' * (count != 1)}"
