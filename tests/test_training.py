import math

import pytest
import torch
import torch.nn.functional as F

from mirl_study import build_network, load_settings, store
from mirl_study.criteria import Evidence, magnitude, prune
from mirl_study.data import load_bank
from mirl_study.masks import Mask
from mirl_study.training import Diverged, learning_rate, train

SETTINGS = load_settings("smoke")


@pytest.fixture(scope="module")
def bank():
    return load_bank(SETTINGS, "train", store.project_root())


def half_mask(network):
    mask = Mask.dense(network)
    return prune(mask, magnitude(Evidence(network, mask)), 0.5, "layerwise")


def test_the_schedule_is_warm_up_then_cosine():
    rates = [learning_rate(t, steps=120, warmup=15, peak=2e-4, start=1e-6, floor=1e-6) for t in range(120)]
    assert rates[0] == 1e-6 and rates[14] == pytest.approx(2e-4) == rates[15]
    assert rates[:15] == sorted(rates[:15]) and rates[15:] == sorted(rates[15:], reverse=True)
    # Algorithm 1, line 5, with j = 120 and j_w = 15
    for t in (16, 67, 119):
        assert rates[t] == pytest.approx(1e-6 + 0.5 * (2e-4 - 1e-6) * (1 + math.cos(math.pi * (t - 15) / 105)))
    assert learning_rate(0, steps=10, warmup=0, peak=1.0, start=0.1, floor=0) == 1
    assert learning_rate(0, steps=10, warmup=1, peak=1.0, start=0.1, floor=0) == 1


def test_pruned_weights_are_and_stay_exactly_zero(bank):
    network = build_network(SETTINGS.network, 0)
    mask = half_mask(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    history = train(network, mask, bank, SETTINGS)
    assert history.loss.notna().all() and list(history.step) == [3, 6]
    moved = 0
    for name, keep in mask.items():
        weight = network.get_parameter(name).detach()
        assert (weight[~keep] == 0).all()
        moved += int((weight[keep] != before[name][keep]).sum())
    assert moved > 0.9 * mask.kept
    for name, parameter in network.named_parameters():
        if name not in mask:
            assert not torch.equal(parameter, before[name]), f"{name} is not prunable and has to learn"


def test_what_stands_in_a_pruned_place_does_not_matter(bank):
    """The survivors' training must not see pruned weights at all, whatever was left there."""
    states = []
    for rubbish in (0.0, 100.0):
        network = build_network(SETTINGS.network, 0)
        mask = half_mask(network)
        with torch.no_grad():
            for name, keep in mask.items():
                network.get_parameter(name)[~keep] = rubbish
        train(network, mask, bank, SETTINGS)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_same_arguments_give_the_same_bits_and_another_order_does_not(bank):
    results = []
    for order in (0, 0, 1):
        network = build_network(SETTINGS.network, 0)
        train(network, Mask.dense(network), bank, SETTINGS, order=order)
        results.append(network.output.weight.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_loss_that_is_no_number_stops_and_names_the_first_bad_step(bank, monkeypatch):
    """It is noticed at the look, after step 3; by then all weights are gone, and so are the losses of all tasks."""
    batch = type(bank).batch

    def spoilt(self, size, patch, *, seed, order, step):
        degraded, target = batch(self, size, patch, seed=seed, order=order, step=step)
        if step >= 1:
            degraded[1, 0, 3, 3] = float("inf")
        return degraded, target

    monkeypatch.setattr(type(bank), "batch", spoilt)
    network = build_network(SETTINGS.network, 0)
    steps = []
    with pytest.raises(Diverged, match="at step 2 of 6, for denoise25 ") as caught:
        train(network, Mask.dense(network), bank, SETTINGS, on_step=lambda step, _: steps.append(step))
    assert bank.tasks(SETTINGS.batch_size, 1) == ["dehaze", "denoise25"] and "lower lr" in str(caught.value)
    assert steps == [1, 2], "the third was a look"


def test_weights_that_are_no_numbers_spoil_every_task(bank):
    network = build_network(SETTINGS.network, 0)
    torch.nn.init.constant_(network.output.weight, float("nan"))
    with pytest.raises(Diverged, match="at step 1 of 6, for denoise15, derain "):
        train(network, Mask.dense(network), bank, SETTINGS)


def test_steps_are_reported(bank):
    seen = []
    network = build_network(SETTINGS.network, 0)
    train(network, Mask.dense(network), bank, SETTINGS, steps=4, on_step=lambda step, loss: seen.append(step))
    assert seen == [1, 2, 3, 4]


def tensors(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


def trained(bank, settings=SETTINGS, **how):
    """Trains under the half mask; returns the mask, all tensors, and the history."""
    network = build_network(settings.network, 0)
    mask = half_mask(network)
    history = train(network, mask, bank, settings, **how)
    return mask, tensors(network), history


def restated(bank, settings, rates, optimizer, first=0):
    """The loop once more in its plainest form, with one learning rate a step; returns the tensors after each."""
    network = build_network(settings.network, 0)
    mask = half_mask(network)
    weights = dict(network.named_parameters())
    optimizer = optimizer(network.parameters())
    states = []
    mask.apply_(weights)
    for step, rate in enumerate(rates, first):
        optimizer.param_groups[0]["lr"] = rate
        degraded, target = bank.batch(settings.batch_size, settings.patch_size, seed=settings.seed, order=0, step=step)
        optimizer.zero_grad()
        F.l1_loss(network(degraded), target).backward()
        mask.apply_({name: weights[name].grad for name in mask})
        optimizer.step()
        mask.apply_(weights)
        states.append(tensors(network))
    return states


def adam(parameters):
    return torch.optim.Adam(parameters, fused=True)


def rates_of(settings):
    return [
        learning_rate(t, steps=settings.steps, warmup=settings.warmup_steps, peak=settings.lr, start=1e-6, floor=1e-6)
        for t in range(settings.steps)
    ]


def test_without_decay_it_is_adam_to_the_bit(bank):
    assert SETTINGS.weight_decay == 0
    assert same(trained(bank)[1], restated(bank, SETTINGS, rates_of(SETTINGS), adam)[-1])


@pytest.mark.parametrize("decay", [0.01, 100.0])
def test_decay_shrinks_what_is_kept_and_revives_nothing(bank, decay):
    """Decoupled: on top of Adam's step, w loses lr x decay x w. Here lr x decay is up to a fifth, 6 times."""
    mask, after, _ = trained(bank, SETTINGS.replace(weight_decay=decay))
    for name, keep in mask.items():
        assert (after[name][~keep] == 0).all() and after[name][keep].any()
    assert not same(after, trained(bank)[1])

    rate = SETTINGS.lr
    how = {"steps": 1, "warmup": 0}
    plain, decayed = (trained(bank, SETTINGS.replace(weight_decay=value), **how)[1] for value in (0.0, decay))
    start = tensors(build_network(SETTINGS.network, 0))
    mask.apply_(start)
    for name, tensor in start.items():
        torch.testing.assert_close(decayed[name], plain[name] - rate * decay * tensor, rtol=0, atol=1e-6)


def test_stopping_early_is_the_beginning_of_the_whole(bank):
    network = build_network(SETTINGS.network, 0)
    mask = half_mask(network)
    states = {}
    whole = train(network, mask, bank, SETTINGS, on_step=lambda step, _: states.update({step: tensors(network)}))
    for stop in (1, 4, 6):
        _, part, history = trained(bank, stop=stop)
        assert same(part, states[stop]) and history.step.iloc[-1] == stop
    assert whole.equals(history)
    assert not same(states[1], states[4]) and not same(states[4], states[6])


@pytest.mark.parametrize("first", [1, 4])
def test_starting_late_has_the_rates_and_the_images_of_these_steps(bank, first):
    """With an optimiser that knows nothing: this is not the end of the whole."""
    seen = []
    _, late, history = trained(bank, first=first, on_step=lambda step, loss: seen.append(step))
    rates = rates_of(SETTINGS)
    assert same(late, restated(bank, SETTINGS, rates[first:], adam, first)[-1])
    assert list(history.step) == [step for step in (3, 6) if step > first] and history.lr.iloc[-1] == rates[-1]
    assert seen == list(range(1, 7 - first)), "progress counts the steps that are taken"


def test_within_an_epoch_the_rate_stays(bank):
    """Eight steps in four epochs, two of them warm-up; the schedule is that of four ticks."""
    settings = SETTINGS.replace(steps=8, warmup_steps=4, schedule="epoch", epochs=4, validate_every=1)
    ticks = [1e-6, 2e-3, 2e-3, 1e-6 + 0.5 * (2e-3 - 1e-6)]
    history = trained(bank, settings)[2]
    assert list(history.lr) == pytest.approx([rate for rate in ticks for _ in range(2)], rel=1e-12)
    single = trained(bank, settings.replace(epochs=100))[2]  # an epoch is a step at least
    assert single.lr.equals(trained(bank, settings.replace(schedule="step"))[2].lr)
    assert single.lr.nunique() > 4


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_released_code_does_nothing_in_its_first_epoch(bank, decay):
    """Its warm-up starts at 0 and is stepped once an epoch; what decay takes is in proportion to the rate."""
    settings = SETTINGS.replace(protocol="released", weight_decay=decay, steps=8, warmup_steps=4, epochs=4)
    start = build_network(settings.network, 0)
    half_mask(start).apply_(dict(start.named_parameters()))
    assert same(trained(bank, settings, stop=2)[1], tensors(start))
    moved = trained(bank, settings, stop=3)[1]
    assert all(not torch.equal(moved[name], tensor) for name, tensor in tensors(start).items())


class Norms(torch.optim.AdamW):
    """Notes the norm of the gradient that each step is taken with."""

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.seen.append(float(torch.nn.utils.get_total_norm(gradients)))
        return super().step(closure)


def test_a_gradient_is_clipped_after_it_is_masked(bank, monkeypatch):
    """A pruned weight with a huge gradient must not shorten the survivors' step."""
    limit, results = 1e-3, {}
    monkeypatch.setattr(torch.optim, "AdamW", Norms)
    for name, clip, huge in (("free", 0.0, False), ("clipped", limit, False), ("beside a huge one", limit, True)):
        network = build_network(SETTINGS.network, 0)
        mask = half_mask(network)
        for weight, keep in ((network.get_parameter(name), keep) for name, keep in mask.items()):
            if huge:
                weight.register_hook(lambda gradient, keep=keep: gradient.masked_fill(~keep, 1e12))
        Norms.seen = []
        train(network, mask, bank, SETTINGS.replace(clip_norm=clip))
        results[name] = tensors(network)
        if clip:
            assert Norms.seen == pytest.approx([limit] * SETTINGS.steps, rel=1e-3)
        else:
            assert min(Norms.seen) > 2 * limit and max(Norms.seen) > 1.1 * min(Norms.seen)
    assert same(results["clipped"], results["beside a huge one"])
    assert not same(results["clipped"], results["free"])


def test_short_gradients_are_left_as_they_are(bank):
    assert same(trained(bank, SETTINGS.replace(clip_norm=1e9))[1], trained(bank)[1])
