"""A training that is stopped after any step goes on from its checkpoint, to the same bits as if it had not been."""

import math
import os
import re
import signal
import threading

import pytest
import torch

from mirl_study import build_network, checkpoint, load_settings, stopping, store
from mirl_study.checkpoint import Checkpoints, Standing
from mirl_study.criteria import Evidence, magnitude, prune
from mirl_study.data import load_bank
from mirl_study.masks import Mask
from mirl_study.training import Diverged, train

SETTINGS = load_settings("smoke", steps=9, validate_every=4, checkpoint_every=0.0, network={"unused": True})
VARIANTS = {
    "as it is": (SETTINGS, {}),
    "clipped, with decay": (SETTINGS.replace(clip_norm=0.01, weight_decay=1.0), {}),
    "a late start": (SETTINGS, {"first": 2}),
    "the beginning only": (SETTINGS, {"stop": 7}),
    "another schedule": (SETTINGS, {"steps": 8, "warmup": 0, "lr": 1e-3, "order": 1}),
}


class Stop(Exception):
    """Ends a training after a step."""


@pytest.fixture(scope="module")
def banks():
    return [load_bank(SETTINGS, split, store.project_root()) for split in ("train", "val")]


def training(banks, settings=SETTINGS, path=None, stop_after=math.inf, name="it", **how):
    """Trains under a mask; returns all tensors and the history."""
    network = build_network(settings.network, 0)
    whole = Mask.dense(network)
    mask = prune(whole, magnitude(Evidence(network, whole)), 0.5)
    checkpoints = Checkpoints(path, name, settings.checkpoint_every) if path else None

    def on_step(step, loss):
        if step >= stop_after:
            raise Stop

    how = {"validation": banks[1], "on_step": on_step, "checkpoints": checkpoints, **how}
    history = train(network, mask, banks[0], settings, **how)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, history


def same(one, other):
    return all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and one[1].equals(other[1])


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_after_any_step_it_goes_on_and_ends_bit_identical(banks, tmp_path, name):
    settings, how = VARIANTS[name]
    path = tmp_path / "c.safetensors"
    whole = training(banks, settings, **how)
    last = how.get("stop", how.get("steps", settings.steps)) - how.get("first", 0)
    for step in range(1, last) if name == "as it is" else (1, 4):
        with pytest.raises(Stop):
            training(banks, settings, path, stop_after=step, **how)
        assert same(training(banks, settings, path, **how), whole), step
        for file in tmp_path.iterdir():
            file.unlink()
    assert not same(training(banks, settings, order=2), whole)


def test_stopped_again_and_again_it_ends_bit_identical(banks, tmp_path):
    path, steps = tmp_path / "c.safetensors", []
    for step in (2, 3, 6, 8):
        with pytest.raises(Stop):
            training(banks, SETTINGS, path, stop_after=step)
    went_on = training(banks, SETTINGS, path, on_step=lambda step, loss: steps.append(step))
    assert steps == [8, 9], "where it was, and the last step"
    assert same(went_on, training(banks))


def test_a_finished_training_is_not_run_again(banks, tmp_path, monkeypatch):
    """Its last checkpoint is there for what comes after: scores, the next mask."""
    path = tmp_path / "c.safetensors"
    whole = training(banks, SETTINGS.replace(checkpoint_every=1e9), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.safetensors"]
    monkeypatch.setattr(torch.Tensor, "backward", None)
    assert same(training(banks, SETTINGS, path), whole)


def test_two_checkpoints_are_kept_and_both_are_removed(banks, tmp_path):
    path = tmp_path / "round01" / "c.safetensors"
    training(banks, SETTINGS, path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["c.safetensors", "c.safetensors.former"]
    Checkpoints(path, "it", 0).clear()
    assert not path.parent.exists()


DAMAGE = {
    "a bit of a tensor": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "a digit of the facts": lambda data: re.sub(rb'(step\\": )\d', rb"\g<1>0", data),
    "half of it": lambda data: data[: len(data) // 2],
    "nothing": lambda data: b"",
    "something else": lambda data: b"[1, 2, 3]" * 99,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(banks, tmp_path, damage, both):
    path, former = tmp_path / "c.safetensors", tmp_path / "c.safetensors.former"
    with pytest.raises(Stop):
        training(banks, SETTINGS, path, stop_after=6)
    for file in (path, former)[: 1 + both]:
        file.write_bytes(damage(file.read_bytes()))
    seen = []
    with pytest.warns(UserWarning) as caught:
        went_on = training(banks, SETTINGS, path, on_step=lambda step, loss: seen.append(step))
    lines = [str(warning.message) for warning in caught if "is not used" in str(warning.message)]
    wanted = [(path, "goes on from the one before"), (former, "starts again")][: 1 + both]
    assert len(lines) == len(wanted) and not any("\n" in line for line in lines)
    assert all(str(file) in line and what in line for line, (file, what) in zip(lines, wanted, strict=True))
    assert seen[0] == (1 if both else 5) and same(went_on, training(banks))


def test_a_checkpoint_of_another_training_is_not_used(banks, tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(Stop):
        training(banks, SETTINGS, path, stop_after=6)
    with pytest.warns(UserWarning, match="other settings"):
        assert same(training(banks, SETTINGS, path, name="another"), training(banks))


def test_checkpoints_take_a_fiftieth_of_the_time_at_most(monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    network = build_network("pico")
    optimizer = torch.optim.AdamW(network.parameters())
    checkpoints = Checkpoints(tmp_path / "c", "it", every=60.0)

    def slow(*arguments):
        now[0] += 3

    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", slow)
    monkeypatch.setattr(store.os, "replace", lambda *arguments: None)
    for wait in (60, 150):  # the second waits for 50 times what the first has taken
        now[0] += wait - 1
        assert not checkpoints.due()
        now[0] += 1
        assert checkpoints.due()
        checkpoints.save(Standing(1, torch.zeros(())), network, optimizer)
    assert checkpoints.seconds == 60 + 3 + 150 + 3
    assert Checkpoints(tmp_path / "c", "it", every=0.0).due()


def test_seconds_add_up_over_interruptions(banks, tmp_path):
    path, network = tmp_path / "c.safetensors", build_network(SETTINGS.network, 0)
    optimizer = torch.optim.AdamW(network.parameters())
    first = Checkpoints(path, "it", 0)
    first.before = 1000.0
    first.save(Standing(3, torch.zeros(())), network, optimizer)
    second = Checkpoints(path, "it", 0)
    assert second.seconds < 60
    assert second.load(Standing(0, torch.zeros(())), network, optimizer).step == 3
    assert 1000 <= second.seconds < 1060


def test_the_last_good_state_outlives_a_loss_that_is_no_number(banks, tmp_path, monkeypatch):
    """Between two looks: the checkpoint that was due is not written over a good one."""
    path = tmp_path / "c.safetensors"
    batch = type(banks[0]).batch

    def spoilt(self, size, patch, *, seed, order, step):
        images, target = batch(self, size, patch, seed=seed, order=order, step=step)
        return (images * math.nan if step == 5 and self is banks[0] else images), target

    with monkeypatch.context() as patch:
        patch.setattr(type(banks[0]), "batch", spoilt)
        with pytest.raises(Diverged, match="at step 6 of 9"):
            training(banks, SETTINGS, path)
    seen = []
    assert same(training(banks, SETTINGS, path, on_step=lambda step, loss: seen.append(step)), training(banks))
    assert seen[0] == 5


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_request_to_stop_waits_for_the_step_and_a_checkpoint(banks, tmp_path, monkeypatch, name):
    """Also in the middle of a step, and however old the last checkpoint is."""
    settings, path, number = SETTINGS.replace(checkpoint_every=1e9), tmp_path / "c.safetensors", getattr(signal, name)

    class Told(Exception):
        pass

    def stop(number, frame):
        raise Told

    batch = type(banks[0]).batch

    def batch_and_signals(self, *arguments, step, **more):
        if step == 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)  # and once more, impatiently
        return batch(self, *arguments, step=step, **more)

    former = signal.signal(number, stop), signal.signal(signal.SIGINT, stop)
    try:
        with monkeypatch.context() as patch, pytest.raises(Told):
            patch.setattr(type(banks[0]), "batch", batch_and_signals)
            training(banks, settings, path)
        assert signal.getsignal(number) is stop, "what was set before is set again"
    finally:
        signal.signal(signal.SIGINT, former[1])
        signal.signal(number, former[0])  # last, for it may be the same one
    seen = []
    assert same(training(banks, settings, path, on_step=lambda step, loss: seen.append(step)), training(banks))
    assert seen[:2] == [2, 3], "the signals came within step 2"


def test_a_request_that_comes_with_the_progress_of_a_step_has_its_checkpoint_too(banks, tmp_path):
    """When it is known whether a checkpoint is due, but before the step has ended."""
    settings, path = SETTINGS.replace(checkpoint_every=1e9), tmp_path / "c.safetensors"

    def ask(step, loss):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        training(banks, settings, path, on_step=ask)
    seen = []
    assert same(training(banks, settings, path, on_step=lambda step, loss: seen.append(step)), training(banks))
    assert seen[:2] == [2, 3]


def test_a_handler_that_returns_lets_the_training_go_on(banks, tmp_path):
    heard = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        went_on = training(banks, on_step=lambda step, _: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM] * SETTINGS.steps and same(went_on, training(banks))


def test_in_another_thread_nothing_is_heard_and_nothing_breaks():
    asked = []

    def work():
        with stopping.postponed() as request:
            asked.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
