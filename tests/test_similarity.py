import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirl_study import Mask, SettingsError, analysis, build_network, load_settings, lottery, sentences, similarity
from mirl_study.similarity import INITIAL


def mask(*tensors: list[int]) -> Mask:
    return Mask({f"layer{at}.weight": torch.tensor(bits, dtype=torch.bool) for at, bits in enumerate(tensors)})


MASKS = st.integers(1, 40).flatmap(
    lambda n: st.lists(
        st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.lists(st.booleans(), min_size=3, max_size=3)),
        min_size=2,
        max_size=4,
    )
)


@given(MASKS)
def test_bits_count_what_tensors_count(drawn):
    masks = {str(at): mask(*tensors) for at, tensors in enumerate(drawn)}
    a, b = list(masks.values())[:2]
    found = similarity.pair(similarity.pack(a), similarity.pack(b))
    assert found["iou"] == a.iou(b) and found["both"] == (a & b).kept
    assert str(found) == str(similarity.pair(similarity.pack(b), similarity.pack(a))), "it is symmetric"
    common = a
    for other in masks.values():
        common = common & other
    assert similarity.core(masks)["core"] == common.kept <= similarity.core(masks)["kept"]


def test_chance_is_independence_in_each_layer():
    a, b = mask([1, 1, 0, 0], [1, 1], [1, 1]), mask([0, 1, 1, 0], [1, 1], [1, 1])
    found = similarity.pair(similarity.pack(a), similarity.pack(b))
    assert (found["iou"], found["both"], found["expected"]) == (5 / 7, 5, 4 * 0.5 * 0.5 + 2 + 2)
    assert found["chance"] == 5 / (12 - 5) and found["z"] == 0
    assert similarity.core({"a": a, "b": b})["expected"] == 5


def test_masks_of_the_largest_initial_values_hold_each_other():
    settings = load_settings("smoke")
    whole = lottery.dense_mask(settings)
    few, many = (
        similarity.by_initial_size(settings, Mask({n: torch.rand(k.shape) < share for n, k in whole.items()}))
        for share in (0.2, 0.5)
    )
    found = similarity.pair(similarity.pack(few), similarity.pack(many))
    assert found["initial"] == pytest.approx(found["iou"]) and found["initial"] > found["chance"]
    table = similarity.matrix({"a": few, "b": many, "c": few}, {"a": 0, "b": 0, "c": 1}).set_index(["a", "b"])
    assert table.initial["a", "b"] == found["initial"] and pd.isna(table.initial["a", "c"])


def test_the_deviation_is_that_of_shuffled_masks():
    generator = torch.Generator().manual_seed(0)
    one = Mask({"a.weight": torch.rand(300, generator=generator) < 0.2, "b.weight": torch.rand(900) < 0.6})
    values = [similarity.pair(similarity.pack(one), similarity.pack(one.shuffled(generator)))["z"] for _ in range(400)]
    scores = torch.tensor(values)
    assert abs(scores.mean()) < 0.2 and abs(scores.std() - 1) < 0.12


@pytest.mark.parametrize(
    ("a", "b", "iou"), [([0, 0], [0, 0], 1.0), ([1, 1], [1, 1], 1.0), ([1, 0], [0, 1], 0.0), ([0, 0], [1, 1], 0.0)]
)
def test_empty_and_full_masks(a, b, iou):
    assert similarity.pair(similarity.pack(mask(a)), similarity.pack(mask(b)))["iou"] == iou


def test_masks_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="different networks"):
        similarity.matrix({"a": mask([1, 0]), "b": mask([1, 0, 1])})


def test_the_matrix_has_every_ordered_pair():
    table = similarity.matrix({"x": mask([1, 0, 1]), "y": mask([1, 1, 0]), "z": mask([0, 0, 0])})
    assert list(zip(table.a, table.b, strict=True)) == [(a, b) for a in "xyz" for b in "xyz"]
    assert (table[table.a == table.b].iou == 1).all() and table.iou[1] == table.iou[3] == 1 / 3


def test_rounds_that_both_have():
    table = similarity.over_rounds({1: mask([1, 0])}, {1: mask([1, 1]), 2: mask([1, 0])})
    assert table["round"].tolist() == [1] and table.iou.tolist() == [0.5]


@pytest.fixture(scope="module")
def several(smoke_results, tmp_path_factory):
    """Runs of two settings."""
    root = tmp_path_factory.mktemp("similarity")
    shutil.copytree(smoke_results / "smoke", root / "smoke")
    for _ in lottery.rounds(load_settings("smoke", setting="derain"), root, "cpu", show=False):
        pass
    return root, analysis.runs("smoke", root)


def sized(keep: np.ndarray) -> Mask:
    return Mask({"layer.weight": torch.from_numpy(keep).view(100, -1)})


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0])
def test_what_depends_on_initial_sizes_alone_is_no_core(sharpness):
    """Masks drawn by size, whatever the law, are as far from chance as chance goes; one weight in fifty is seen."""
    rng = np.random.default_rng(0)
    sizes = rng.random(40_000)
    chances = [1 / (1 + np.exp(-sharpness * (sizes - at))) for at in (0.4, 0.7)]
    initial = {"layer.weight": torch.from_numpy(sizes).view(100, -1)}
    scores = []
    for _ in range(30):
        one, other = (rng.random(len(sizes)) < chance for chance in chances)
        found = similarity.beyond_start(sized(one), sized(other), initial)
        assert found["both"] == np.count_nonzero(one & other)
        scores.append(found["z"])
    assert abs(np.mean(scores)) < 0.8 and 0.6 < np.std(scores) < 1.4
    core = rng.random(len(sizes)) < 0.02
    assert similarity.beyond_start(sized(one | core), sized(other | core), initial)["z"] > 3


def test_nothing_is_left_open_where_all_or_none_is_kept():
    initial, whole = {"layer.weight": torch.rand(100, 2)}, np.ones(200, bool)
    for keep in (whole, ~whole):
        found = similarity.beyond_start(sized(keep), sized(keep), initial)
        assert found["both"] == found["expected"] == keep.sum() and np.isnan(found["z"])


def test_labels_name_what_differs(several):
    _, found = several
    assert list(similarity.tickets(found, 2, settings=["all_in_one"])) == ["MIR-L-LW", "MIR-L-G"]
    both = similarity.tickets(found, 2, methods=["MIR-L-G"])
    assert list(both) == ["all_in_one", "derain"]
    with pytest.raises(SettingsError, match="round=9 is not finished"):
        similarity.tickets(found, 9)
    with pytest.raises(SettingsError, match="did you mean 'derain'"):
        similarity.tickets(found, 2, settings=["deran"])


def test_do_the_settings_share_a_core(several):
    root, found = several
    table, core = similarity.shared_core(found, 2, "MIR-L-G", 0)
    masks = similarity.tickets(found, 2, methods=["MIR-L-G"])
    a, b = masks.values()
    assert core["core"] == (a & b).kept and list(dict.fromkeys(table.a)) == ["all_in_one", "derain", INITIAL]
    assert table.set_index(["a", "b"]).iou["all_in_one", "derain"] == a.iou(b)
    first, second = sentences.of_settings(core, table, "MIR-L-G", 2)
    assert f"have {core['core']:,} weights in common" in first and f"{a.iou(b):.3f}" in second
    near = max(table.set_index(["a", "b"]).iou[INITIAL, name] for name in masks)
    assert f"In {int(a.iou(b) > near)} of 1 pair" in second
    pairs = similarity.beyond_starts(found, 2, "MIR-L-G", 0)
    assert [*pairs[["a", "b", "both"]].iloc[0]] == ["all_in_one", "derain", (a & b).kept]
    (told,) = sentences.of_starts(pairs, "MIR-L-G", 2)
    assert f"{pairs.expected[0]:,.0f} weights, mean of 1 pair; the tickets share {(a & b).kept:,}" in told
    assert "In 1 of 1 pair there is a core beyond them" in sentences.of_starts(pairs.assign(z=4.0), "MIR-L-G", 2)[0]
    assert "No core beyond" in sentences.of_starts(pairs.assign(z=2.9), "MIR-L-G", 2)[0]
    assert sentences.of_starts(pairs.iloc[:0], "MIR-L-G", 2) == []
    gap = similarity.missing(found, "MIR-L-G", 0, 2, "smoke")
    assert "of the settings dehaze, denoise: mirl study --profile smoke --setting dehaze" in gap and "\n" not in gap
    with pytest.raises(SettingsError, match="round=5"):
        similarity.shared_core(found, 5)


def test_the_seed_that_most_settings_have(several):
    found = several[1]
    more = pd.concat([found.assign(seed=-1).query("setting == 'all_in_one'"), found])
    assert similarity.common_seed(more, "MIR-L-G", 2) == 0 and similarity.common_seed(more, "MIR-L-LW", 2) == -1


def test_the_mask_of_initial_sizes_keeps_as_many_in_each_layer_and_the_largest(several):
    settings = load_settings("smoke")
    like = similarity.tickets(several[1], 2, methods=["MIR-L-G"])["derain"]
    found, start = similarity.by_initial_size(settings, like), build_network("pico", 0)
    assert found.densities() == like.densities()
    for name, keep in found.items():
        sizes = start.get_parameter(name).detach().abs()
        if keep.any() and not keep.all():
            assert sizes[keep].min() >= sizes[~keep].max()


def test_chains_differ_in_one_thing(several):
    table = similarity.chains(similarity.packed(several[1]))
    assert set(table.differ) == {"method", "setting"} and set(table["round"]) == {1, 2}
    assert len(table) == 4 and table.initial.notna().all()
    words = sentences._alike(table[table.differ == "method"], 2)
    assert len(words) == 1 and "than their initial values alone would make them" in words[0]
