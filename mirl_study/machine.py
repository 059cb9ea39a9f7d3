"""The machine that this runs on: what its processor is, and how the memory of a process stays with it."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**30  # bytes: glibc takes at most half of a heap; any activation is smaller
_TUNABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> bool:
    """Lets the process keep the memory of freed tensors for the next ones.

    glibc hands every large block back to the kernel as soon as it is freed, and the kernel hands it out again page by
    page, each filled with zeros. A training step frees all of its activations, so it would pay for every page of them
    in every step. The process holds on to its peak instead.

    Returns:
        Whether that is so now; not where the C library is another one or the user has set its tunables.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _TUNABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def processor_facts() -> list[str]:
    """Returns what the system says of its processors, a fact a line; one of them begins with ``model name``."""
    facts = []
    with suppress(OSError):  # there is no /proc, or it is not to be read
        facts = Path("/proc/cpuinfo").read_text().splitlines()
    if not any(fact.startswith("model name") for fact in facts):
        facts.append(f"model name: {platform.processor() or platform.machine()}")
    return facts
