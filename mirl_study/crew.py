"""Independent pieces of work, one after the other or side by side."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

Together = Callable[[Sequence[Callable[[], Any]]], list[Any]]  # does all of some work; returns what each has returned


def one_by_one(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Does the work in this process."""
    return [job() for job in jobs]


@contextmanager
def crew(wanted: bool = True) -> Iterator[Together]:
    """Does work side by side, in a process for each core, each with one thread; all of it must be picklable.

    Args:
        wanted: whether it is worth the few seconds that processes take to start; else one by one.

    Yields:
        What does it.
    """
    cores = os.cpu_count() or 1
    if not wanted or cores == 1:
        yield one_by_one
        return
    with ProcessPoolExecutor(cores, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield lambda jobs: [future.result() for future in [pool.submit(job) for job in jobs]]
