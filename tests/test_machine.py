import resource
import subprocess
import sys

import pytest

from mirl_study import machine

FAULTS = """
import resource, torch
from mirl_study.machine import keep_memory
if {keep}:
    keep_memory()
def step():
    return sum(torch.ones(2**24).add_(1)[0] for _ in range(3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({steps}):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_not_asked_for_again():
    # By how small blocks happen to lie between large ones, the heap may grow in the first few steps; then it stays.
    steps = 24

    def faults(keep: bool) -> int:
        script = FAULTS.format(keep=keep, steps=steps)
        return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)

    pages = steps * 3 * 2**26 // resource.getpagesize()
    assert faults(keep=False) > pages / 2, "each tensor comes anew, page by page"
    assert faults(keep=True) < pages / 10


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert machine.keep_memory() is False
