import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mirl_study import settings
from mirl_study.criteria import CRITERIA, Evidence, grasp, magnitude, movement, prune, random, snip, stream, synflow
from mirl_study.masks import Mask
from mirl_study.network import build_network, fingerprint
from mirl_study.settings import SettingsError


def full(*sizes: int) -> Mask:
    return Mask({f"{i}": torch.ones(n, dtype=torch.bool) for i, n in enumerate(sizes)})


def scores(*rows: list[float]) -> dict[str, torch.Tensor]:
    return {f"{i}": torch.tensor(row, dtype=torch.float32) for i, row in enumerate(rows)}


def bits(mask: Mask) -> list[list[int]]:
    return [tensor.int().tolist() for tensor in mask.values()]


@pytest.mark.parametrize(
    ("rows", "rate", "scope", "expected"),
    [
        ([[4, 1, 3, 2], [5, 6]], 0.5, "global", [[1, 0, 0, 0], [1, 1]]),
        ([[4, 1, 3, 2], [5, 6]], 0.5, "layerwise", [[1, 0, 1, 0], [0, 1]]),
        ([[1, 1, 1, 1]], 0.5, "global", [[0, 0, 1, 1]]),
        ([[2, 1, 2], [2, 1]], 0.6, "global", [[0, 0, 1], [1, 0]]),
        ([[0, 0, 0]], 1.0, "global", [[0, 0, 0]]),
        ([[3, 2, 1]], 0.0, "global", [[1, 1, 1]]),
        ([[1, 2, 3, 4, 5]], 0.1, "global", [[0, 1, 1, 1, 1]]),
        ([[1, 2, 3, 4]], 0.1, "global", [[1, 1, 1, 1]]),
        ([[float("inf"), 1]], 0.5, "global", [[1, 0]]),
    ],
    ids=[
        "global",
        "layerwise",
        "ties by index",
        "ties across tensors",
        "all",
        "none",
        "half rounds up",
        "less than half rounds down",
        "infinite",
    ],
)
def test_literal_arrays(rows, rate, scope, expected):
    assert bits(prune(full(*map(len, rows)), scores(*rows), rate, scope)) == expected


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=15), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from(["global", "layerwise"]),
)
def test_exact_counts_nested_and_no_better_one_removed(rows, rate, scope):
    values = scores(*[[float(score) for score, _ in row] for row in rows])
    mask = Mask({f"{i}": torch.tensor([kept for _, kept in row]) for i, row in enumerate(rows)})
    after = prune(mask, values, rate, scope)
    assert after <= mask
    for pool in [list(mask)] if scope == "global" else [[name] for name in mask]:
        before = sum(int(mask[name].sum()) for name in pool)
        removed = before - sum(int(after[name].sum()) for name in pool)
        assert removed == int(rate * before + 0.5)
        stay = [s for name in pool for s in values[name][after[name]].tolist()]
        leave = [s for name in pool for s in values[name][mask[name] & ~after[name]].tolist()]
        assert not stay or not leave or max(leave) <= min(stay)


def test_single_tensors_can_have_their_own_rate_layerwise():
    assert bits(prune(full(4, 4), scores([1, 2, 3, 4], [1, 2, 3, 4]), 0.5, "layerwise", {"1": 0.25})) == [
        [0, 0, 1, 1],
        [0, 1, 1, 1],
    ]
    assert bits(prune(full(4, 4), scores([1, 2, 3, 4], [1, 2, 3, 4]), 0.5, "global", {"1": 0.25})) == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]


def test_negative_weights_are_as_good_as_positive_ones():
    network = build_network("pico")
    mask = Mask.dense(network)
    values = magnitude(Evidence(network, mask))
    for name in mask:
        assert torch.equal(values[name], network.get_parameter(name).detach().abs())


def test_random_scores_follow_the_generator():
    network = build_network("pico")
    mask = Mask.dense(network)
    first, again, other = (random(Evidence(network, mask, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2))
    name = next(iter(mask))
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"scope": "globall"}, SettingsError, "did you mean 'global'"),
        ({"count": "percentil"}, SettingsError, "did you mean 'percentile'"),
        ({"rate": 1.2}, ValueError, "rate=1.2"),
        ({"scope": "layerwise", "rates": {"0": -0.1}}, ValueError, "rate=-0.1 of 0"),
        ({"scores": scores([1.0, float("nan")])}, ValueError, "diverged"),
        ({"scores": scores([1.0])}, ValueError, "shape"),
    ],
)
def test_bad_input(change, error, text):
    with pytest.raises(error, match=text):
        prune(**{"mask": full(2), "scores": scores([1.0, 2.0]), "rate": 0.5, **change})


def test_sizes_beyond_torch_quantile():
    size = 2**24 + 7
    after = prune(full(size), {"0": torch.arange(size, 0, -1).float()}, 0.2)
    assert after.kept == size - round(0.2 * size)


def sampled_scores(kind: str) -> torch.Tensor:
    """More values than are looked at one by one."""
    values = torch.rand(2**20 + 7, generator=torch.Generator().manual_seed(0))
    if kind == "many ties":
        return (values * 50).round()
    if kind == "a sample that misleads":
        values[::127] = -1
    return values


@pytest.mark.parametrize("kind", ["random", "many ties", "a sample that misleads"])
@pytest.mark.parametrize("rate", [0.001, 0.2, 0.97])
def test_of_many_scores_the_lowest_leave(kind, rate):
    values, keep = sampled_scores(kind), torch.rand(2**20 + 7, generator=torch.Generator().manual_seed(1)) < 0.7
    lowest = torch.where(keep, values, torch.inf).argsort(stable=True)[: int(rate * keep.sum() + 0.5)]
    expected = keep.clone()
    expected[lowest] = False
    assert torch.equal(prune(Mask({"0": keep}), {"0": values}, rate)["0"], expected)


def test_survivors_that_no_sample_meets_are_pruned_all_the_same():
    values, keep = sampled_scores("random"), torch.zeros(2**20 + 7, dtype=torch.bool)
    keep[1:11] = True
    assert torch.equal(prune(Mask({"0": keep}), {"0": values}, 0.5)["0"], keep & (values >= values[1:11].sort()[0][5]))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_random_scores_know_nothing_of_the_initialisation(seed):
    """The same seed drives both; a shared stream of numbers would make random pruning a cut by initial value."""
    network = build_network("nano", seed)
    mask = Mask.dense(network)
    scores = random(Evidence(network, mask, stream(seed)))
    for name in (name for name in mask if mask[name].numel() >= 1000):
        pair = torch.stack((scores[name].flatten(), network.get_parameter(name).detach().flatten()))
        assert torch.corrcoef(pair)[0, 1].abs() < 0.15, name


rows_of_scores = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20), min_size=1, max_size=4
)


@given(rows_of_scores, st.integers(0, 64), st.sampled_from(["global", "layerwise"]))
def test_percentile_is_numpys_rule_in_each_pool(rows, share, scope):
    """Shares of 64 are exact in binary, so that no rounding decides what is a percentile that falls on a score."""
    values = scores(*[[float(score) for score, _ in row] for row in rows])
    mask = Mask({f"{i}": torch.tensor([kept for _, kept in row]) for i, row in enumerate(rows)})
    after = prune(mask, values, share / 64, scope, count="percentile")
    assert after <= mask
    for pool in [list(mask)] if scope == "global" else [[name] for name in mask]:
        survivors = np.concatenate([values[name][mask[name]].double().numpy() for name in pool])
        stays = np.concatenate([after[name][mask[name]].numpy() for name in pool])
        if len(survivors):
            np.testing.assert_array_equal(stays, survivors >= np.percentile(survivors, 100 * share / 64))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60, unique=True), st.sampled_from([0.1, 0.2, 0.3, 0.7]))
def test_percentile_without_ties(row, rate):
    after = prune(full(len(row)), scores(row), rate, count="percentile")
    below = np.float64(row) < np.percentile(np.float64(row), 100 * rate)
    assert bits(after) == [(~below).astype(int).tolist()]
    assert len(row) - after.kept == np.ceil(rate * (len(row) - 1))


def test_ties_make_percentile_differ_from_exact():
    assert bits(prune(full(10), scores([1.0] * 10), 0.2, count="percentile")) == [[1] * 10]
    assert bits(prune(full(10), scores([1.0] * 10), 0.2)) == [[0, 0] + [1] * 8]
    assert bits(prune(full(6), scores([0, 0, 0, 1, 2, 3]), 0.5, count="percentile")) == [[0, 0, 0, 1, 1, 1]]
    assert bits(prune(full(6), scores([0, 0, 0, 1, 2, 3]), 0.4, count="percentile")) == [[1, 1, 1, 1, 1, 1]]


def test_settings_know_the_criteria_that_there_are():
    assert list(CRITERIA) == list(settings.CRITERIA)


@pytest.fixture(scope="module")
def evidence():
    """The smallest network under a mask that was trained a little, so to say, on two batches."""
    network = build_network("pico", 0)
    mask = prune(Mask.dense(network, norms=True), magnitude(Evidence(network, Mask.dense(network, norms=True))), 0.3)
    start = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    mask.apply_(dict(network.named_parameters()))
    batches = [tuple(torch.rand(2, 2, 3, 16, 16, generator=generator)) for _ in range(2)]
    return lambda: Evidence(network, mask, stream(0), start, batches)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_scores_each_weight_and_touches_nothing(evidence, name):
    given = evidence()
    before, threads = fingerprint(given.network), torch.random.get_rng_state()
    values = CRITERIA[name](given)
    assert {n: s.shape for n, s in values.items()} == {n: keep.shape for n, keep in given.mask.items()}
    assert all(s.isfinite().all() and not s.requires_grad for s in values.values())
    assert fingerprint(given.network) == before and torch.equal(torch.random.get_rng_state(), threads)
    for parameter in given.network.parameters():
        assert parameter.grad is None and parameter.requires_grad and parameter.dtype == torch.float32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in given.network.modules()) and given.network.training
    again = CRITERIA[name](evidence())
    assert all(torch.equal(values[n], again[n]) for n in values)
    after = prune(given.mask, values, 0.2)
    assert after <= given.mask and after.kept == given.mask.kept - int(0.2 * given.mask.kept + 0.5)


@pytest.mark.parametrize(("name", "wanted"), [("movement", "started from"), ("snip", "batches"), ("grasp", "batches")])
def test_a_criterion_says_what_it_lacks(evidence, name, wanted):
    given = evidence()
    with pytest.raises(ValueError, match=wanted):
        CRITERIA[name](Evidence(given.network, given.mask))


class Line(nn.Module):
    """One linear layer, or its sines: everything about its loss can be written down."""

    def __init__(self, weight, bend=None):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight))
        self.bend = bend or (lambda x: x)

    def forward(self, x):
        return self.bend(x @ self.weight.T)


def whole(network):
    return Mask({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in network.named_parameters()})


def test_movement_is_high_where_a_weight_left_zero():
    network = Line([[2.0, -1.0, -0.5, 0.0]])
    given = Evidence(network, whole(network), start={"weight": torch.tensor([[1.0, -2.0, 0.5, 0.25]])})
    assert movement(given)["weight"].tolist() == [[3.0, -3.0, 0.0, -0.0625]]


def test_snip_by_hand():
    """x = (1, 2) gives (-1, 3) for a target of (0, 0): signs (-1, 1), and a mean over two outputs."""
    network = Line([[1.0, -1.0], [3.0, 0.0]])
    x, target = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    given = Evidence(network, whole(network), batches=[(x, target)])
    assert snip(given)["weight"].tolist() == [[0.5, 1.0], [1.5, 0.0]]
    above = (x, torch.tensor([[-9.0, 9.0]]))  # the other way round: the mean gradient counts, not the mean of its size
    assert snip(Evidence(network, whole(network), batches=[(x, target), above]))["weight"].tolist() == [[0, 0], [0, 0]]


def test_grasp_is_how_fast_the_gradient_gets_weaker_as_a_weight_leaves():
    """Half the slope of |gradient|^2 in the direction of one weight's removal, by differences, in float64."""
    generator = torch.Generator().manual_seed(0)
    weight, *data = (torch.randn(shape, generator=generator).double() for shape in [(2, 3), (5, 3), (4, 3)])
    batches = [(x, torch.full((len(x), 2), 9.0, dtype=torch.float64)) for x in data]

    def strength(weight):
        weight = weight.clone().requires_grad_()
        losses = [F.l1_loss((x @ weight.T).sin(), target) for x, target in batches]
        return float(torch.autograd.grad(sum(losses) / len(losses), weight)[0].square().sum())

    step, slopes = 1e-5, torch.empty(2, 3, dtype=torch.float64)
    for place in np.ndindex(2, 3):
        less, more = (weight.clone() for _ in range(2))
        less[place], more[place] = (1 - step) * weight[place], (1 + step) * weight[place]
        slopes[place] = (strength(more) - strength(less)) / (2 * step)
    network = Line(weight, torch.sin)
    values = grasp(Evidence(network, whole(network), batches=batches))["weight"]
    torch.testing.assert_close(values, slopes / 2, rtol=1e-6, atol=1e-9)
    assert (values < 0).any() and (values > 0).any()


def test_synflow_by_hand():
    """Two layers without a bend: the flow through a weight is the product of the sums on both sides of it."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, -0.5]]).view(2, 3, 1, 1))
        network[1].weight.copy_(torch.tensor([[-3.0, 4.0]]).view(1, 2, 1, 1))
    first, second = synflow(Evidence(network, whole(network))).values()
    pixels = first.sum() / 13  # (1 + 2) x 3 + (0.5 + 0.5) x 4
    assert first.flatten().tolist() == [3 * pixels, 6 * pixels, 0, 2 * pixels, 0, 2 * pixels]
    assert second.flatten().tolist() == [9 * pixels, 4 * pixels]


EVERY_PATH = (  # layers that each path from the image to the output passes, but for those around a block
    ("patch_embed.proj", "output"),
    ("output", "reduce_noise_level1"),
    ("reduce_noise_level1", "reduce_noise_level2"),
    ("encoder_level1.0.attn.qkv", "encoder_level1.0.attn.qkv_dwconv", "encoder_level1.0.attn.project_out"),
    ("latent.0.ffn.project_in", "latent.0.ffn.dwconv", "latent.0.ffn.project_out"),
    ("prompt2.linear_layer", "prompt2.conv3x3"),
)


def test_synaptic_flow_is_conserved_and_never_negative():
    """Tanaka et al., theorem 2: what flows into a layer flows out of it."""
    network = build_network("pico", 0)
    values = synflow(Evidence(network, Mask.dense(network)))
    assert all((score >= 0).all() and score.any() for score in values.values())
    for layers in EVERY_PATH:
        flows = [float(values[f"{layer}.weight"].sum()) for layer in layers]
        assert flows == pytest.approx([flows[0]] * len(flows), rel=1e-9), layers


@pytest.mark.parametrize(
    ("emptied", "behind"),
    [
        ("output", ["patch_embed.proj", "latent.0.attn.qkv", "prompt1.conv3x3"]),
        ("patch_embed.proj", ["encoder_level1.0.attn.qkv", "latent.0.ffn.dwconv", "prompt3.conv3x3", "output"]),
        ("latent.0.ffn.project_in", ["latent.0.ffn.dwconv", "latent.0.ffn.project_out"]),
        ("latent.0.attn.project_out", ["latent.0.attn.qkv", "latent.0.attn.qkv_dwconv"]),
        ("prompt2.conv3x3", ["prompt2.linear_layer"]),
    ],
)
def test_nothing_flows_before_or_behind_an_emptied_layer(emptied, behind):
    network = build_network("pico", 0)
    before = synflow(Evidence(network, Mask.dense(network)))
    nn.init.zeros_(network.get_submodule(emptied).weight)
    after = synflow(Evidence(network, Mask.dense(network)))
    for name in (f"{layer}.weight" for layer in behind):
        assert before[name].max() > 0 and after[name].max() <= 1e-60 * before[name].max()
    blocked = emptied in ("output", "patch_embed.proj")  # else there is a way around
    assert (after["decoder_level1.0.ffn.dwconv.weight"].sum() > 1e-6 * before["output.weight"].sum()) == (not blocked)


def test_synaptic_flow_of_the_papers_size_has_a_number():
    """A deep network of positive weights multiplies: here as far as in the paper's, whose output is about 1e185."""
    network = build_network("pico", 0)
    with torch.no_grad():
        network.patch_embed.proj.weight.fill_(1e30)
        for layer in (network.down1_2, network.down2_3, network.down3_4, network.up4_3, network.up3_2, network.up2_1):
            layer.body[0].weight.fill_(1e25)
    values = synflow(Evidence(network, Mask.dense(network)))
    assert all(score.isfinite().all() for score in values.values())
    assert values["output.weight"].sum() > 1e190
