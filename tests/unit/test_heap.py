"""Freed memory is kept: the same arrays again fault in no new pages."""

import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys, numpy as np
from hilum.heap import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2_000_000)
before = faults()
for _ in range(20):
    np.ones(2_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    def run(how: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True)
        return done.stdout.split()

    (_, plain), (told, kept) = run("plain"), run("kept")
    # numpy asks for huge pages where the system has them: then there is little left to save
    assert told == "True" and int(kept) < 100 and int(kept) <= int(plain)
