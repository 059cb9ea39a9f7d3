"""Counts of parameters: as the study's own masks have them, as the rules say, and as the paper prints them."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from mirl_study import cli, counts, load_settings, lottery
from mirl_study.network import build_network
from mirl_study.settings import LOTTERY, METHODS, ONE_SHOT, PRESETS, PROTOCOLS, SettingsError
from mirl_study.tables import published

FACTS = {("dense", 0): 35.59, ("PIR-OSM-I", 1): 25.63, ("PIR-OSM-II", 1): 12.35, ("PIR-OSR-I", 1): 25.63}
FACTS |= {("PIR-OSR-II", 1): 12.35, **{(method, 12): 4.67 for method in LOTTERY}}
FACTS |= {(method, 15): 3.56 for method in LOTTERY}


def settings(network: str = "nano", **more):
    return load_settings("paper", **{"network": network, "protocol": "released", **more})


def after(size: int, rate: float, count: str) -> int:
    """What is left of a pool by each rule, in arithmetic."""
    gone = int(rate * size + 0.5) if count == "exact" else math.ceil(rate * (size - 1))
    return size - gone


def restated(run) -> dict[tuple[str, int], int]:
    """Weights kept by method and round, from the sizes of the tensors."""
    sizes = {name: tensor.numel() for name, tensor in lottery.dense_mask(run).items()}
    total = sum(sizes.values())
    kept = {("dense", 0): total} | {(name, 1): after(total, rate, "exact") for name, (_, rate) in ONE_SHOT.items()}
    for index in range(1, run.rounds + 1):
        total = kept["MIR-L-G", index] = after(total, run.rate, run.count)
        for name in sizes:
            rate = run.rate * (run.output_rate if name == "output.weight" else 1)
            sizes[name] = after(sizes[name], rate, run.count)
        kept["MIR-L-LW", index] = sum(sizes.values())
    return kept


def by_round(frame: pd.DataFrame, column: str) -> dict[tuple[str, int], float]:
    return frame.set_index(["method", "round"])[column].to_dict()


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.37])
def test_the_percentile_of_numpy_leaves_what_the_arithmetic_says(rate):
    for size in range(1, 705):
        values = np.linspace(0.3, 1.7, size)
        assert (values >= np.percentile(values, 100 * rate)).sum() == after(size, rate, "percentile"), size


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_counts_follow_the_rules_under_every_protocol(protocol):
    run = settings(protocol=protocol)
    frame = counts.parameters(run)
    assert by_round(frame, "kept") == restated(run)
    assert [*dict.fromkeys(frame.method)] == [*METHODS]
    total = sum(parameter.numel() for parameter in build_network("nano").parameters())
    never = total - frame.kept[0]
    assert (frame.parameters == frame.kept + never).all() and frame.parameters[0] == total
    assert frame.density.tolist() == pytest.approx((frame.kept / frame.kept[0]).tolist())
    assert frame.gone.tolist() == pytest.approx((1 - frame.parameters / total).tolist())
    assert frame.factor.tolist() == pytest.approx((total / frame.parameters).tolist())


def test_counts_are_those_of_the_study_without_its_training(smoke_results):
    run = load_settings("smoke")
    frame = counts.parameters(run).set_index(["method", "round"])
    for (method, index), row in frame.iterrows():
        path = smoke_results / "smoke" / "all_in_one" / method / "seed0" / f"round{index:02d}" / "round.json"
        facts = json.loads(path.read_text())
        assert (row.kept, row.parameters, row.density) == (facts["kept"], facts["parameters"], facts["density"])


def test_densities_and_rate_are_followed():
    frame = counts.parameters(settings("pico", densities=[0.5, 0.1], count="exact"))
    own = frame[frame.method == "MIR-L-G"]
    assert own.density.tolist() == pytest.approx([0.5, 0.1], abs=1e-3)


def test_the_sizes_of_the_released_network_give_the_published_numbers():
    kept = restated(settings("paper"))
    assert kept["dense", 0] == 33_199_064
    left = {key: 35_592_263 - 33_199_064 + value for key, value in kept.items()}
    assert {key: round(left[key] / 1e6, 2) for key in FACTS} == FACTS
    assert {round(100 * (1 - left[method, 15] / left["dense", 0]), 2) for method in LOTTERY} == {89.99}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_at_the_papers_size_masks_agree_with_the_tables(protocol):
    run = settings("paper", protocol=protocol)
    frame = counts.parameters(run)
    assert by_round(frame, "kept") == restated(run)
    compared = frame[frame.published.notna()]
    assert len(compared) == len(METHODS)
    if protocol == "sound":  # what never runs is not pruned there, so more is left
        assert compared[compared.agrees].method.tolist() == ["dense"]
        return
    assert compared.agrees.all() and frame.parameters[0] == 35_592_263
    assert compared[compared.method.isin(LOTTERY)]["round"].tolist() == [12, 12]
    if protocol == "released":
        left = by_round(frame, "parameters")
        assert {key: round(left[key] / 1e6, 2) for key in FACTS} == FACTS
        assert {round(100 * share, 2) for share in frame[frame["round"] == 15].gone} == {89.99}


def test_the_paper_prints_one_number_a_method():
    numbers = published().groupby("method").trainable_parameters
    names = ["PromptIR", *(method for method in METHODS if method != "dense")]
    assert (numbers.nunique()[names] == 1).all() and (numbers.first()[names] % 10**5 == 0).all()


def test_published_numbers_stand_at_the_nearest_round_and_words_say_what_differs(monkeypatch):
    theirs = {"PromptIR": 4, "PIR-OSM-I": 3, "PIR-OSM-II": 1, "PIR-OSR-I": 3, "PIR-OSR-II": 2}
    theirs |= dict.fromkeys(LOTTERY, 1)
    table = pd.DataFrame({"method": theirs.keys(), "trainable_parameters": [10**5 * n for n in theirs.values()]})
    monkeypatch.setattr(counts, "published", lambda: table)
    monkeypatch.setattr(counts, "PRESETS", {"paper": PRESETS["nano"]})
    run = settings()
    frame = counts.parameters(run)
    for method in LOTTERY:
        own = frame[frame.method == method]
        assert own.published.notna().sum() == 1
        assert own.published.first_valid_index() == (own.parameters - 10**5).abs().idxmin()
    lines = counts.in_words(frame, run)
    prunable, total, wrong = frame.kept[0], frame.parameters[0], by_round(frame, "parameters")["PIR-OSR-II", 1]
    assert f"{prunable:,} of {total:,} parameters are prunable" in lines[0] and "with LayerNorm gains" in lines[0]
    assert "6 of 7 rows agree: dense, PIR-OSM-I, PIR-OSM-II, PIR-OSR-I, MIR-L-LW round " in lines[1]
    assert lines[2] == f"PIR-OSR-II does not: {wrong:,} here, 0.2M published."
    assert "x4.00; counted out it is x" in lines[-1]
    assert "0.2M" in counts.as_text(frame)


def test_no_published_ticket_stands_at_a_round_that_is_far_from_it(monkeypatch):
    monkeypatch.setattr(counts, "PRESETS", {"paper": PRESETS["nano"]})
    run = settings(rounds=1)
    table = pd.DataFrame({"method": ["PromptIR", *ONE_SHOT, *LOTTERY], "trainable_parameters": 10**5})
    monkeypatch.setattr(counts, "published", lambda: table)
    frame = counts.parameters(run)
    assert frame[frame.method.isin(LOTTERY)].published.isna().all() and frame.published.notna().sum() == 5


def test_another_network_has_nothing_to_compare():
    run = settings("pico", rounds=2, protocol="sound")
    frame = counts.parameters(run)
    assert frame.published.isna().all() and frame.agrees.isna().all()
    lines = counts.in_words(frame, run)
    assert "without LayerNorm gains, no unused convolutions" in lines[0] and "nothing to compare" in lines[1]
    assert "published" not in counts.as_text(frame)


def test_no_two_scores_are_equal_and_seeds_order_them_otherwise():
    names, values = list(lottery.dense_mask(settings())), []
    for seed in (0, 1):
        network = counts._empty(settings())
        counts._fill(network, names, seed)
        values.append(torch.cat([network.get_parameter(name).detach().flatten() for name in names]))
    for scores in values:
        assert scores.unique().numel() == scores.numel() and scores.min() > 0 and scores.isfinite().all()
    assert torch.corrcoef(torch.stack([value.argsort().float() for value in values]))[0, 1].abs() < 0.05


def last(frame: pd.DataFrame) -> dict[int, set[int]]:
    """What is left of each width in the last round."""
    return frame[frame["round"] == frame["round"].max()].groupby("width").kept.agg(set).to_dict()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_48_gains_one_survives_whatever_the_scores(seed):
    frame = counts.norm_gains(settings("paper", scope="layerwise", seed=seed))
    dense = frame[frame["round"] == 0]
    assert (len(dense), dense.kept.sum()) == (94, 17_344) and (dense.kept == dense.width).all()
    assert last(frame) == {48: {1}, 96: {3}, 160: {5}, 192: {6}, 320: {10}, 384: {13}, 704: {23}}
    for (_, width), kept in frame.groupby(["layer", "width"]).kept:
        wanted = [width]
        while len(wanted) < 16:
            wanted.append(after(wanted[-1], 0.2, "percentile"))
        assert kept.tolist() == wanted


@pytest.mark.parametrize(("mean", "spread"), [(1, 0.3), (0, 1e-3), (-5, 2)])
def test_gains_of_any_size_and_sign_leave_alike_but_equal_ones_do_not(mean, spread, monkeypatch):
    run = settings(scope="layerwise")
    wanted = counts.norm_gains(run)

    def trained(network, names, seed):
        for name in names:
            torch.nn.init.normal_(network.get_parameter(name), mean, spread, torch.Generator().manual_seed(seed))

    monkeypatch.setattr(counts, "_fill", trained)
    pd.testing.assert_frame_equal(counts.norm_gains(run), wanted)
    spread = 0  # as the network is initialised: nothing lies below the percentile
    equal = counts.norm_gains(run)
    assert (equal.kept == equal.width).all() and (wanted.kept < wanted.width).any()


def test_an_exact_count_keeps_a_few_more():
    frame = counts.norm_gains(settings("paper", scope="layerwise", count="exact"))
    for width, kept in last(frame).items():
        wanted = width
        for _ in range(15):
            wanted = after(wanted, 0.2, "exact")
        assert kept == {wanted}
    assert min(last(frame)[48]) > 1


def test_gains_that_are_not_prunable_stay():
    frame = counts.norm_gains(settings(scope="layerwise", protocol="paper"))
    assert (frame.kept == frame.width).all() and frame["round"].max() == 15


def test_a_global_count_of_gains_is_refused():
    with pytest.raises(SettingsError, match="^scope='global' is not allowed: layerwise[^\n]*$"):
        counts.norm_gains(settings())


def test_a_table_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        cli.main(["params", "--preset", "pico", "--csv", str(tmp_path / "file" / "table.csv")])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: csv=") and err.count("\n") == 1
