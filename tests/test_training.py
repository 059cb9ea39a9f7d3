import math

import pytest
import torch

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


def test_a_loss_that_is_no_number_stops_by_name(bank):
    network = build_network(SETTINGS.network, 0)
    torch.nn.init.constant_(network.output.weight, float("nan"))
    with pytest.raises(Diverged, match="step 3 of 6"):
        train(network, Mask.dense(network), bank, SETTINGS)


def test_steps_are_reported(bank):
    seen = []
    network = build_network(SETTINGS.network, 0)
    train(network, Mask.dense(network), bank, SETTINGS, steps=4, on_step=lambda step, loss: seen.append(step))
    assert seen == [1, 2, 3, 4]
