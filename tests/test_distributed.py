"""Two processes, each with half of each batch, do what one process does with the whole, but for rounding."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest
import torch

from mirl_study import build_network, distributed, load_settings, store
from mirl_study.checkpoint import Checkpoints
from mirl_study.criteria import Evidence, magnitude, prune
from mirl_study.data import load_bank
from mirl_study.masks import Mask
from mirl_study.settings import SettingsError
from mirl_study.store import Run
from mirl_study.training import Diverged

ONE = load_settings("smoke", network={"unused": True}, validate_every=2, checkpoint_every=0.0)
TWO = ONE.replace(devices=2)

pytest.importorskip("lightning_fabric", reason="devices > 1 needs lightning-fabric")


@pytest.fixture(scope="module")
def banks():
    return [load_bank(ONE, split, store.project_root()) for split in ("train", "val")]


def half(network):
    whole = Mask.dense(network)
    return prune(whole, magnitude(Evidence(network, whole)), 0.5)


def train(banks, settings, **how):
    network = build_network(settings.network, 0)
    mask = half(network)
    history = distributed.train(network, mask, banks[0], settings, validation=banks[1], **how)
    return network, mask, history


@pytest.mark.slow
def test_two_processes_do_what_one_does(banks):
    steps = []
    one, mask, history = train(banks, ONE)
    two, _, shared = train(banks, TWO, on_step=lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(torch.tensor(shared.values), torch.tensor(history.values), rtol=1e-4, atol=1e-7)
    assert list(shared.columns) == list(history.columns)
    for name, keep in mask.items():
        assert (two.get_parameter(name)[~keep] == 0).all()
    after = [prune(mask, magnitude(Evidence(network, mask)), 0.2) for network in (one, two)]
    assert after[0].kept == after[1].kept and after[0].iou(after[1]) > 0.999


@pytest.mark.slow
def test_a_stopped_training_goes_on_with_both(banks, tmp_path):
    """What a callback raises ends all processes, after a checkpoint; the same two go on to the same bits."""

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 3:
            raise Stop

    whole, _, history = train(banks, TWO, checkpoints=Checkpoints(tmp_path / "whole", "it", 0))
    with pytest.raises(Stop):
        train(banks, TWO, on_step=stop, checkpoints=Checkpoints(tmp_path / "parts", "it", 1e9))
    steps = []
    how = {"on_step": lambda step, loss: steps.append(step), "checkpoints": Checkpoints(tmp_path / "parts", "it", 0)}
    again, _, parts = train(banks, TWO, **how)
    assert 3 <= steps[0] < 6 and parts.equals(history)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_tasks_of_all(banks):
    assert banks[0].tasks(TWO.batch_size, 0) == ["denoise15", "derain"]
    network = build_network(TWO.network, 0)
    mask = half(network)
    torch.nn.init.constant_(network.output.weight, float("nan"))
    with pytest.raises(Diverged, match="at step 1 of 6, for denoise15, derain "):
        distributed.train(network, mask, banks[0], TWO)


CHAIN = """
import sys
from mirl_study import load_settings, lottery
list(lottery.rounds(load_settings("smoke", devices=2, rounds=1, steps=20, checkpoint_every=0.0), sys.argv[1], "cpu"))
"""


@pytest.mark.slow
def test_a_killed_chain_leaves_no_process_and_goes_on(tmp_path):
    from test_lottery import tree

    def start(root):
        return psutil.Popen([sys.executable, "-c", CHAIN, root], stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(120) == 0
    for end in ("terminate", "kill"):  # the family is told to stop as a whole, as a scheduler or a terminal does it
        victim = start(tmp_path / end)
        while not list((tmp_path / end).rglob(store.CHECKPOINT)):
            assert victim.poll() is None, "the chain ended before it could be stopped"
            time.sleep(0.01)
        family = victim.children(recursive=True)
        assert len(family) >= 2
        for process in [victim, *(family if end == "terminate" else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, end)()
        assert victim.wait(30) == (-15 if end == "terminate" else -9)
        assert not psutil.wait_procs(family, timeout=20)[1]
        assert start(tmp_path / end).wait(120) == 0
        assert tree(tmp_path / end) == tree(tmp_path / "whole")


def test_how_many_decides_nothing_and_is_on_record(tmp_path):
    run = Run(ONE, "dense", tmp_path)
    run.claim("data", "cpu")
    assert Run(TWO, "dense", tmp_path).belongs() and ONE.key("dense") == TWO.key("dense")


@pytest.mark.parametrize(
    ("devices", "allowed"), [(3, "a divisor of batch_size"), (0, "at least 1"), (1.5, "a whole number")]
)
def test_shares_are_equal(devices, allowed):
    with pytest.raises(SettingsError, match=rf"devices={devices} is not allowed: {allowed}"):
        load_settings("smoke", devices=devices)


def test_devices_that_are_not_there_are_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="devices=2 is not allowed: this machine has 1"):
        distributed.check(TWO, torch.device("cuda"))
    distributed.check(TWO, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(SettingsError, match="pip install lightning-fabric, or devices=1"):
        distributed.check(TWO, torch.device("cpu"))
    distributed.check(ONE, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 3])
def test_told_to_stop_while_it_starts_it_ends_at_once(banks, tmp_path, seconds):
    """As a whole family: a child that is gone must not be waited for."""
    code = CHAIN.replace("list(", "print(flush=True)\nlist(")
    victim = psutil.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    victim.stdout.readline()
    deadline = time.monotonic() + 60
    while len(victim.children()) < 2 and time.monotonic() < deadline:  # the first is a helper of multiprocessing
        time.sleep(0.01)
    time.sleep(seconds)
    family = victim.children(recursive=True)
    for process in [*family, victim]:
        process.terminate()
    assert victim.wait(40) == -15 and not psutil.wait_procs(family, timeout=20)[1]
