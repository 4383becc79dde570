"""What torch once worked out about networks is kept for the next process, which then need not import it: that takes a second.

It is kept under a name that changes with the question, the code that builds networks, and torch. Nothing is lost where it is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.durable_file import replace_durably
from pipeline.errors import StoreError
from pipeline.user_cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable


def kept(question: str, about: Any, work_out: Callable[[], Any]) -> Any:
    """Return the answer that an earlier process kept, or work it out and keep it.

    Parameters
    ----------
    question
        What is asked; changes where the meaning of the answer does.
    about
        What it is asked about, as JSON-able values.
    work_out
        Gives the answer, as a JSON-able value.
    """
    folder = cache_folder("networks")
    text = json.dumps([question, about, metadata.version("torch"), _code_digest()], sort_keys=True)
    path = None if folder is None else folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text())
    answer = work_out()
    if path is not None:
        with contextlib.suppress(OSError, StoreError):
            replace_durably(path, json.dumps(answer).encode())
    return answer


@cache
def _code_digest() -> str:
    """Return the digest of the modules that build networks."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()
