"""What does a person read of a verification? What was looked at, what is wrong, and what to do about it."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from workflows.seam_places import PlaceKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from workflows.block_check import Damage
    from workflows.seams import SeamReport
    from workflows.verify import Verification

_N_SHOWN = 20
_KINDS: dict[PlaceKind, str] = {
    "block": "where blocks meet",
    "tile": "where CRF tiles meet",
    "window": "where network windows meet",
    "inside": "away from all of these",
}


def verification_lines(found: Verification) -> list[str]:
    """Return what was found, the first damages by name."""
    return [
        f"blocks   {found.n_blocks}: {_describe_blocks(found)}",
        f"files    {found.n_files} of {found.n_bytes / 2**20:.1f} MiB: checksums{' and pixels' if found.decoded else ''} compared",
        f"journal  {_describe_journal(found)}",
        *(["running  yes; what it finishes meanwhile is not looked at"] if found.running else []),
        *_list("damaged", map(_describe_damage, found.damages)),
        *_list("failed", (f"block {failure.block}: {failure.error}" for failure in found.failures)),
        *_list("foreign", found.foreign),
        *_left_behind(found),
        *_verdict(found),
    ]


def seam_lines(found: SeamReport | None) -> list[str]:
    """Return what was computed again, and which share of the labels differs; None: the output is damaged, and nothing was."""
    if found is None:
        return ["seams    not looked at: the output is damaged"]
    if not found.places:
        return ["seams    none in what is finished: it is of one block, one network window and at most one CRF tile"]
    told = (_describe_seams(found, kind) for kind in get_args(PlaceKind) if found.share(kind) is not None)
    return [
        *(f"seams    {line}" for line in told),
        f"seams    computed again with {found.engine or 'the stored probabilities'}, in squares of {found.square_px} px",
        *(f"seams    although {sentence}" for sentence in found.changed),
    ]


def seams_to_dict(found: SeamReport | None) -> dict[str, Any] | None:
    """Return everything that was found, with the shares of each kind of place."""
    if found is None:
        return None
    return {"shares": {kind: found.share(kind) for kind in get_args(PlaceKind)}, **asdict(found)}


def _describe_seams(found: SeamReport, kind: PlaceKind) -> str:
    places = found.of(kind)
    worst = max(places, key=lambda place: place.n_differ)
    share = found.share(kind) or 0.0
    text = f"{len(places)} place{'s' * (len(places) != 1)} {_KINDS[kind]}: {100 * share:.3f} % of labels differ"
    if kind == "inside":
        return f"{text}, computed with a window {found.displaced_px} px aside"
    where = f"; most at row {worst.row}, column {worst.col}: {100 * worst.n_differ / worst.n_pixels:.3f} %"
    return text + where * bool(worst.n_differ)


def _describe_blocks(found: Verification) -> str:
    counts = (
        (found.n_sound, "sound"),
        (found.n_nodata, "nodata"),
        (found.n_damaged, "damaged"),
        (found.n_failed, "failed"),
        (found.n_left, "left"),
    )
    return ", ".join(f"{count} {what}" for count, what in counts)


def _describe_journal(found: Verification) -> str:
    journal = found.journal
    parts = [
        f"{count} {what}"
        for count, what in (
            (journal.n_replaced, "replaced by later ones"),
            (journal.n_foreign, "of other runs"),
            (journal.n_unreadable, "unreadable"),
        )
        if count
    ]
    parts += ["the last one cut short"] if journal.torn else []
    return f"{journal.n_lines} lines" + (f": {', '.join(parts)}" if parts else "")


def _describe_damage(damage: Damage) -> str:
    place = "" if damage.block is None else f"block {damage.block}: "
    file = "" if damage.key in damage.reason else f"{damage.key}: "
    return f"{place}{damage.kind}: {file}{damage.reason}"


def _list(name: str, items: Iterable[str]) -> Iterator[str]:
    """Yield the first items, and the count of the others."""
    rest = iter(items)
    yield from (f"{name:<8} {item}" for item in itertools.islice(rest, _N_SHOWN))
    if n_more := sum(1 for _ in rest):
        yield f"{name:<8} and {n_more} more; --json lists all"


def _left_behind(found: Verification) -> Iterator[str]:
    if found.n_unfinished_files and not found.running:
        yield f"left     {found.n_unfinished_files} files of blocks that are not finished; a resume writes them again"
    if found.n_partial_files and not found.running:
        yield f"left     {found.n_partial_files} half-written files of killed writers; a resume removes them"


def _verdict(found: Verification) -> Iterator[str]:
    resume = f"atrous resume {found.out}"
    if any(not damage.key for damage in found.damages):
        yield "damaged: the journal itself, beyond repair; run the job again with --overwrite"
    elif found.damages and not found.repaired:
        yield f"damaged: run `atrous verify {found.out} --repair`, which takes out what is wrong, then `{resume}`"
    elif found.damages:
        again = f"; {found.n_damaged} blocks are to be done again: `{resume}`" if found.n_damaged else ""
        yield f"repaired: what was wrong is taken out or written anew{again}"
    if found.n_failed:
        yield f"failed: {found.n_failed} blocks; remove the cause, then `{resume} --retry-failed`"
    if found.n_left:
        yield f"not finished: {found.n_left} blocks are left" + ("" if found.running else f": `{resume}`")
    if found.complete:
        yield "sound: every block is finished and as it was written"
