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
@pytest.mark.slow
def test_freed_memory_is_not_asked_for_again():
    def share_of_new_pages(keep: bool, steps: int) -> float:
        script = FAULTS.format(keep=keep, steps=steps)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return int(done.stdout) / (steps * 3 * 2**26 / resource.getpagesize())

    assert share_of_new_pages(False, 4) > 0.5, "each tensor comes anew, page by page"
    # By how small blocks happen to lie between large ones, the heap may grow in the first few steps; then it stays.
    assert share_of_new_pages(True, 24) < 0.1


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert machine.keep_memory() is False


def test_a_processor_has_a_name_wherever_its_facts_are_kept(monkeypatch):
    assert any(fact.startswith("model name") for fact in machine.processor_facts())
    monkeypatch.setattr(machine.Path, "read_text", lambda self: (_ for _ in ()).throw(PermissionError))
    (named,) = machine.processor_facts()
    assert named.startswith("model name: ") and len(named) > len("model name: ")
