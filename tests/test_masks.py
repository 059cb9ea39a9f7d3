import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mirl_study import load_settings
from mirl_study.masks import Mask
from mirl_study.network import DECLARED_KINDS, PRUNABLE_KINDS, build_network, describe


def mask_of(*rows: list[bool]) -> Mask:
    return Mask({f"layer{i}.weight": torch.tensor(row, dtype=torch.bool) for i, row in enumerate(rows)})


bits = st.lists(st.booleans(), min_size=1, max_size=20)
pairs = st.lists(bits, min_size=1, max_size=4).flatmap(
    lambda rows: st.tuples(
        st.just(rows), st.tuples(*(st.lists(st.booleans(), min_size=len(r), max_size=len(r)) for r in rows))
    )
)


@given(pairs)
def test_algebra(pair):
    a, b = mask_of(*pair[0]), mask_of(*pair[1])
    both, either = a & b, a | b
    assert both <= a <= either and both <= b <= either
    assert both.kept + either.kept == a.kept + b.kept
    assert a.iou(b) == b.iou(a) == (both.kept / either.kept if either.kept else 1.0)
    assert a == a & a == a | a and a.iou(a) == 1
    assert (a <= b and b <= a) == (a == b)
    assert 0 <= a.density() <= 1 and a.kept == round(a.density() * a.size)


@given(st.lists(bits, min_size=1, max_size=4))
def test_one_bit_a_weight_on_disk_and_back(rows):
    import tempfile
    from pathlib import Path

    mask = mask_of(*rows)
    with tempfile.TemporaryDirectory() as folder:
        mask.save(Path(folder) / "mask.npz")
        assert Mask.load(Path(folder) / "mask.npz") == mask


@pytest.mark.parametrize(
    ("rows", "density", "emptied"),
    [
        ([[1, 1], [1]], 1.0, []),
        ([[0, 0], [0]], 0.0, ["layer0.weight", "layer1.weight"]),
        ([[0, 0], [1]], 1 / 3, ["layer0.weight"]),
    ],
    ids=["full", "empty", "one layer empty"],
)
def test_density_and_emptied_layers(rows, density, emptied):
    mask = mask_of(*rows)
    assert mask.density() == density and mask.emptied() == emptied


def test_masks_of_other_networks_do_not_mix():
    for other in (mask_of([True]), mask_of([True, True], [True])):
        with pytest.raises(ValueError, match="different networks"):
            mask_of([True, False]) & other
        assert mask_of([True, False]) != other


def test_only_boolean_tensors():
    with pytest.raises(TypeError, match="a.weight is torch.float32"):
        Mask({"a.weight": torch.ones(3)})


@pytest.mark.parametrize("damage", ["truncated", "text", "edited", "no shapes"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "mask.npz"
    mask_of(*(torch.rand(2, 4000) < 0.5).tolist()).save(path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("not a mask")
    elif damage == "edited":
        content[len(content) // 4] ^= 0xFF
        path.write_bytes(content)
    else:
        import numpy as np

        np.savez(path, weight=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"mask\.npz is not a mask, or damaged"):
        Mask.load(path)


def test_what_is_prunable_is_chosen_by_kind():
    network = build_network("pico")
    table = describe(network).set_index("name")
    kinds = {table.kind[name] for name in Mask.dense(network)}
    assert (
        kinds.isdisjoint({"norm", "prompt", "bias", "temperature", "unused"})
        and {"qkv", "depthwise", "output", "embed"} <= kinds
    )
    with_norms = Mask.dense(network, norms=True)
    assert {table.kind[name] for name in set(with_norms) - set(Mask.dense(network))} == {"norm"}


def test_the_papers_prunable_sets():
    network = build_network("paper")
    released = Mask.dense(network, norms=True, unused=True)
    assert (len(released), released.size) == (401, 33_199_064)
    assert Mask.dense(network).size == 33_199_064 - 17_344 - 215_296


def test_apply_zeroes_exactly_what_is_not_kept():
    tensors = {"layer0.weight": torch.tensor([-1.0, 2.0, -3.0]), "other": torch.ones(2)}
    mask_of([True, False, True]).apply_(tensors)
    assert tensors["layer0.weight"].tolist() == [-1, 0, -3] and tensors["other"].tolist() == [1, 1]


@given(pairs)
def test_a_fingerprint_tells_masks_apart_and_nothing_else(pair):
    a, b = mask_of(*pair[0]), mask_of(*pair[1])
    assert (a.fingerprint == b.fingerprint) == (a == b)


def test_a_fingerprint_follows_names_and_shapes():
    bits = torch.tensor([True, False, True, True, False, True])
    masks = [{"a": bits}, {"b": bits}, {"a": bits.view(2, 3)}, {"a": bits.view(3, 2)}, {"a": bits[:3], "b": bits[3:]}]
    assert len({Mask(mask).fingerprint for mask in masks}) == len(masks)


@given(st.lists(bits, min_size=1, max_size=4), st.integers(0, 2**32))
def test_shuffling_moves_weights_within_their_tensor_only(rows, seed):
    mask = mask_of(*rows)
    after = mask.shuffled(torch.Generator().manual_seed(seed))
    assert list(after) == list(mask) and after.densities() == mask.densities()
    assert all(after[name].shape == mask[name].shape for name in mask)
    assert mask == mask_of(*rows), "the mask itself stays as it was"
    assert after == mask.shuffled(torch.Generator().manual_seed(seed))


def test_shuffling_shuffles_and_every_place_is_as_likely():
    """Other public code had such a control that shuffled nothing (it rebound a local variable)."""
    mask = Mask({"a": torch.arange(40).view(5, 8) < 20, "b": torch.arange(6) < 1})
    generator = torch.Generator().manual_seed(0)
    draws = [mask.shuffled(generator) for _ in range(400)]
    assert all(draw["a"].tolist() != mask["a"].tolist() for draw in draws)
    for name, share in (("a", 1 / 2), ("b", 1 / 6)):
        mean = torch.stack([draw[name].float() for draw in draws]).mean(0)
        assert ((mean - share).abs() < 5 * (share * (1 - share) / 400) ** 0.5).all()


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("unused", [False, True])
def test_each_parameter_has_a_kind_and_the_prunable_ones_are_of_the_right_type(norms, unused):
    network = build_network(load_settings("smoke", network={"unused": True}).network)
    table = describe(network).set_index("name")
    assert list(table.index) == [name for name, _ in network.named_parameters()]
    assert set(table.kind) == {*DECLARED_KINDS, "norm", "unused", "prompt", "bias", "temperature"}
    mask = Mask.dense(network, norms=norms, unused=unused)
    kinds = {*PRUNABLE_KINDS, *(["norm"] if norms else []), *(["unused"] if unused else [])}
    assert list(mask) == [name for name in table.index if table.kind[name] in kinds]
    for name in table.index:
        module = network.get_submodule(table.layer[name])
        weight = getattr(module, "weight", None) is network.get_parameter(name)
        if isinstance(module, nn.LayerNorm):
            assert (table.kind[name] == "norm") == weight and (name in mask) == (norms and weight)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            assert (name in mask) == (weight and (unused or table.kind[name] != "unused"))
        else:
            assert name not in mask and table.kind[name] in ("prompt", "temperature")


class Mixed(nn.Module):
    """Names that mislead whoever looks for `weight` in them: a scale, and a matrix without the word."""

    kinds = {"weightless": "temperature", "mixer": "projection", "weighting": "reduce", "steps": "gdfn_in"}

    def __init__(self):
        super().__init__()
        self.weightless = nn.Parameter(torch.ones(1))
        self.mixer = nn.Parameter(torch.ones(2, 2))
        self.weighting = nn.Linear(2, 2)
        self.steps = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)))


def test_no_name_decides_what_is_prunable():
    network = nn.Sequential(Mixed())
    weights = {"0.mixer", "0.weighting.weight", "0.steps.0.weight", "0.steps.2.1.weight"}
    assert set(Mask.dense(network)) == weights
    assert set(Mask.dense(network, norms=True)) == weights | {"0.steps.1.weight", "0.steps.2.0.weight"}


def test_a_layer_without_a_kind_is_not_passed_over_in_silence():
    network = build_network("pico")
    network.add_module("weightless", nn.Conv2d(1, 1, 1))
    assert describe(network).set_index("name").kind["weightless.weight"] == "convolution"
    assert "weightless.weight" in Mask.dense(network)
    network.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(KeyError, match="scale"):
        describe(network)
