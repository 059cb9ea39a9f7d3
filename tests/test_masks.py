import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirl_study.masks import Mask
from mirl_study.network import build_network, describe


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
