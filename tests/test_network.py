import copy

import pytest
import torch

from benchmarks import plain
from mirl_study.criteria import prune
from mirl_study.masks import Mask
from mirl_study.network import (
    PRUNABLE_KINDS,
    Block,
    Down,
    Embed,
    Prompt,
    Up,
    build_network,
    describe,
    fingerprint,
)
from mirl_study.settings import PRESETS, NetworkSettings, SettingsError


def test_the_papers_size_counts_as_the_paper_counts():
    table = describe(build_network("paper"))
    size = table.groupby("kind")["size"].sum()
    assert table["size"].sum() == 35_592_263
    assert size["prompt"] == 2_375_680 and size["bias"] == 17_359 and size["temperature"] == 160
    assert size["norm"] == 17_344 and (table.kind == "norm").sum() == 94
    assert size["unused"] == 215_296 and (table.kind == "unused").sum() == 6
    weights = table[table.kind.isin({*PRUNABLE_KINDS, "norm", "unused"})]
    assert (len(weights), weights["size"].sum()) == (401, 33_199_064)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_exactly_one_kind(preset):
    network = build_network(preset)
    table = describe(network)
    assert list(table.name) == [name for name, _ in network.named_parameters()]
    assert set(table.kind) <= {*PRUNABLE_KINDS, "norm", "unused", "prompt", "bias", "temperature"}


@pytest.mark.parametrize("dim", [4, 8, 12, 20])
def test_every_width_runs_and_uses_all_but_the_unused(dim):
    settings = NetworkSettings(
        dim=dim, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 2, 2), prompt_size=8, unused=True
    )
    network = build_network(settings)
    images = torch.rand(2, 3, 24, 40)
    restored = network(images)
    assert restored.shape == images.shape
    restored.square().mean().backward()
    table = describe(network)
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == set(table.name[table.kind == "unused"])


def test_initialisation_is_a_function_of_settings_and_seed():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = (fingerprint(build_network("pico", seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state()), "building a network must not touch the global generator"


def test_an_unknown_preset_is_named():
    with pytest.raises(SettingsError, match="did you mean 'paper'"):
        build_network("papper")


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_fast_forms_equal_the_definitions(heads):
    """Each part of the network against its plain restatement on (B, C, H, W), forward and backward."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, 10, 12)
    block = Block(8, heads, 2.66)
    torch.nn.init.uniform_(block.attn.temperature, 0.5, 2)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.body.weight)
        torch.nn.init.normal_(norm.body.bias)
    for fast in (block, Prompt(8, 12, 5, 4), Embed(8), Down(8), Up(8)):
        plainly = plain.plainly(copy.deepcopy(fast))
        entering = x[:, : next(fast.parameters()).shape[1]] if isinstance(fast, Embed) else x
        ours, theirs = fast(entering.permute(0, 2, 3, 1).contiguous()), plainly(entering)
        assert torch.allclose(ours.permute(0, 3, 1, 2), theirs, atol=1e-5)
        assert ours.is_contiguous(), "what follows would copy it again and again"
        ours.square().sum().backward()
        theirs.square().sum().backward()
        for (name, mine), other in zip(fast.named_parameters(), plainly.parameters(), strict=True):
            assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("rate", [0.0, 0.8])
def test_the_whole_network_equals_its_plain_restatement(rate):
    """In float64, under a mask that leaves channels empty: the same images, and the same gradients."""
    images, target = torch.rand(2, 2, 3, 16, 24, dtype=torch.double)
    ours = build_network("pico", seed=3).double()
    whole = Mask.dense(ours)
    mask = prune(whole, {name: torch.rand(keep.shape) for name, keep in whole.items()}, rate)
    mask.apply_(dict(ours.named_parameters()))
    theirs = plain.plainly(copy.deepcopy(ours))
    for network in (ours, theirs):
        (network(images) - target).abs().mean().backward()
    assert torch.allclose(ours(images), theirs(images), atol=1e-12)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        keep = mask[name] if name in mask else torch.ones_like(mine, dtype=torch.bool)
        if mine.grad is not None:
            assert torch.allclose(mine.grad[keep], other.grad[keep], rtol=1e-6, atol=1e-12), name


def test_a_fully_pruned_output_layer_makes_the_network_the_identity():
    network = build_network("pico")
    torch.nn.init.zeros_(network.output.weight)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network(images), images)
