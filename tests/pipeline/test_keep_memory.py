"""Freed memory stays with the process that asked for that."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT = """
import sys
from resource import RUSAGE_SELF, getrusage
from pipeline.keep_memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
bytearray(b"x") * 40_000_000
before = getrusage(RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(b"x") * 40_000_000
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are settings of glibc")
def test_an_array_gets_the_memory_of_the_last_one():
    def pages_cleared(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", _COUNT, how], check=True, capture_output=True, text=True).stdout)

    assert pages_cleared("kept") < 100
    assert pages_cleared("given back") > 1000
