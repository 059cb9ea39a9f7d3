from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mirl_study import load_settings, lottery
from mirl_study.settings import LOTTERY, ONE_SHOT

torch.set_num_threads(1)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results root with every chain of the smoke profile, seed 0: real steps on real photographs."""
    root = tmp_path_factory.mktemp("results")
    for scope in LOTTERY.values():
        for _ in lottery.rounds(load_settings("smoke", scope=scope), root, "cpu", show=False):
            pass
    for method in ONE_SHOT:
        lottery.one_shot(load_settings("smoke"), method, root, "cpu", show=False)
    return root
