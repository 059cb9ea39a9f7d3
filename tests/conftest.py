from pathlib import Path

import pytest
import torch

from mirl_study import load_settings, lottery
from mirl_study.settings import LOTTERY, ONE_SHOT

torch.set_num_threads(1)


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
