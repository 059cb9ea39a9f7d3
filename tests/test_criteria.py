import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirl_study.criteria import Evidence, magnitude, prune, random, stream
from mirl_study.masks import Mask
from mirl_study.network import build_network
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
        ({"rate": 1.2}, ValueError, "rate=1.2"),
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


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_random_scores_know_nothing_of_the_initialisation(seed):
    """The same seed drives both; a shared stream of numbers would make random pruning a cut by initial value."""
    network = build_network("nano", seed)
    mask = Mask.dense(network)
    scores = random(Evidence(network, mask, stream(seed)))
    for name in (name for name in mask if mask[name].numel() >= 1000):
        pair = torch.stack((scores[name].flatten(), network.get_parameter(name).detach().flatten()))
        assert torch.corrcoef(pair)[0, 1].abs() < 0.15, name
