"""Freed memory stays with the process that asked for that."""

from __future__ import annotations

import os
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
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # Dask leaves those of workers

    def pages_cleared(how: str) -> int:
        words = [sys.executable, "-c", _COUNT, how]
        return int(subprocess.run(words, env=usual, check=True, capture_output=True, text=True).stdout)

    assert pages_cleared("kept") < 100
    assert pages_cleared("given back") > 1000
