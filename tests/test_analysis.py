import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch

from mirl_study import Mask, SettingsError, analysis, build_network, criteria, sentences
from mirl_study.analysis import RUN
from mirl_study.effective import classes
from mirl_study.settings import LOTTERY, METHODS, PRESETS

KINDS = {"level.0.attn.qkv.weight": "qkv", "up4_3.body.0.weight": "resample", "output.weight": "output"}


def mask(first: list[int], second: list[int], third: list[int]) -> Mask:
    tensors = (torch.tensor(values, dtype=torch.bool) for values in (first, second, third))
    return Mask(dict(zip(KINDS, tensors, strict=True)))


CHAIN = {
    0: mask([1, 1, 1, 1], [1, 1], [1, 1]),
    1: mask([1, 1, 1, 0], [1, 0], [1, 1]),
    2: mask([1, 0, 0, 0], [0, 0], [1, 1]),
}


def test_layer_densities_of_known_masks():
    table = analysis.layer_densities(CHAIN, KINDS)
    assert list(table.layer.unique()) == ["level.0.attn.qkv", "up4_3.body.0", "output"]
    wide = table.pivot(index="round", columns="layer", values="density")
    assert wide["level.0.attn.qkv"].tolist() == [1, 0.75, 0.25]
    assert wide["up4_3.body.0"].tolist() == [1, 0.5, 0]
    first = table.iloc[0]
    assert (first.kind, first.stage, first.part, first["size"], first.kept) == ("qkv", "level", "attn.qkv", 4, 4)
    assert table[table.layer == "output"].part.unique() == [""]


def test_survival_counts_those_that_live_on():
    table = analysis.survival(CHAIN, KINDS).set_index(["since", "round", "kind"])
    assert table.loc[(0, 2, "all"), ["alive", "living", "share"]].tolist() == [8, 3, 3 / 8]
    assert table.loc[(1, 2, "qkv"), ["alive", "living", "share"]].tolist() == [3, 1, 1 / 3]
    assert table.loc[(1, 2, "resample"), "share"] == 0
    assert pd.isna(table.loc[(2, 2, "resample"), "share"])  # nothing was alive that could live on
    assert set(analysis.survival(CHAIN, KINDS, since=[1]).since) == {1}


def test_survival_does_not_take_masks_for_nested():
    revived = {0: mask([1, 1, 0, 0], [1, 1], [1, 1]), 1: mask([0, 1, 1, 1], [1, 1], [1, 1])}
    table = analysis.survival(revived, KINDS, since=[0])
    assert table[(table["round"] == 1) & (table.kind == "qkv")].share.item() == 0.5


def test_levels_and_kinds_are_pooled():
    densities = analysis.layer_densities(CHAIN, KINDS)
    assert densities[densities["round"] == 0].level.tolist() == ["", "3", "io"]
    last = analysis.by_place(densities).query("round == 2").set_index("level")
    assert last.kept.to_dict() == {"": 1, "3": 0, "io": 2} and last["empty"].to_dict() == {"": 0, "3": 1, "io": 0}
    assert last.share["io"] == 2 / 3 and last.density["io"] == 1
    assert analysis.by_place(densities, "kind").kind.unique().tolist() == ["qkv", "resample", "output"]
    with pytest.raises(SettingsError, match="place='leve' .*did you mean 'level'"):
        analysis.by_place(densities, "leve")


def test_every_parameter_has_a_level():
    named = analysis.kinds(PRESETS["paper"])
    assert {analysis.level(name) for name in named} == set(analysis.LEVELS)
    assert {analysis.level(name) for name, kind in named.items() if kind == "unused"} == {"unused"}


def test_three_denominators(smoke_results):
    run = analysis.open_run(analysis.find(analysis.runs("smoke", smoke_results), "all_in_one", "MIR-L-G"))
    masks = analysis.load_masks(run.folder)
    whole = analysis.parameters(run.settings.network)
    counts = analysis.denominators(analysis.liveness(masks, run.settings.network), whole).set_index("round")
    facts = json.loads((run.folder / "round02" / "round.json").read_text())
    assert counts.left[2] == facts["parameters"] and counts.of_trainable[0] == 1
    assert counts.kept[2] == masks[2].kept and counts.of_prunable[2] == facts["density"]
    parts = classes(masks[2], run.settings.network)
    assert counts.effective[2] == parts["effective"].kept and counts.idle[2] == parts["idle"].kept / masks[2].kept
    assert counts.of_used[2] == sum(parts[kind].kept for kind in parts if kind != "idle") / masks[2].size
    units = [(keep & ~parts["idle"][name]).flatten(1).any(1) for name, keep in masks[2].items()]
    assert counts.dead[2] == sum(int((~works).sum()) for works in units) and counts.dead[0] == 0


def test_bare_units_are_dead_and_more_are():
    network = PRESETS["pico"]
    whole = Mask.dense(build_network(network))
    name = "encoder_level1.0.ffn.project_in.weight"
    keep = whole[name].clone()
    keep[0] = False  # the gate of the first hidden channel
    table = analysis.liveness({1: Mask({**whole, name: keep})}, network).set_index("layer")
    row = table.loc["encoder_level1.0.ffn.project_in"]
    assert (row.units, row.bare, row.dead, row.kept - row.effective) == (len(keep), 1, 2, 4)


def test_how_much_of_a_ticket_never_runs():
    kinds = {"a.weight": "qkv", "chnl_reduce1.weight": "unused"}
    tensors = torch.tensor([True, True, False, False]), torch.tensor([True, True, True, False])
    row = analysis.unused_part({3: Mask(dict(zip(kinds, tensors, strict=True)))}, kinds).iloc[0]
    assert (row["round"], row.kept, row.unused, row.share, row.density, row.others) == (3, 5, 3, 0.6, 0.75, 0.5)
    assert analysis.unused_part(CHAIN, KINDS).empty


def test_costs_add_up_what_it_took(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    costs = analysis.costs(found).set_index(["method", "round"])
    facts = [
        json.loads(p.read_text()) for p in sorted(smoke_results.glob("smoke/all_in_one/MIR-L-G/*/round*/round.json"))
    ]
    dense = costs.loc[("dense", 0)]
    spent = dense.training + sum(fact["training_seconds"] for fact in facts)
    assert costs.loc[("MIR-L-G", 2)].training == pytest.approx(spent)
    assert costs.loc[("MIR-L-G", 2)]["bytes"] == 4 * facts[1]["parameters"] + facts[1]["prunable"] // 8
    assert dense["bytes"] == 4 * dense.parameters and ("PIR-OSM-I", 0) not in costs.index
    assert costs.loc[("PIR-OSM-I", 1)].training > dense.training


def frames(changes: list[float], masks: dict[int, Mask]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and densities of one global lottery, with the given largest changes of an image's PSNR by round."""
    named = {"setting": "derain", "method": "MIR-L-G", "seed": 3}
    rows = [{"round": index, "task": task, "change": change} for index, change in enumerate(changes) for task in "ab"]
    return pd.DataFrame(rows).assign(**named), analysis.layer_densities(masks, KINDS).assign(**named)


def test_collapse_names_round_and_layer():
    row = analysis.collapse(*frames([2, 1, 0.0005], CHAIN)).iloc[0]
    assert row[RUN].tolist() == ["derain", "MIR-L-G", 3]
    assert (row["last"], row.emptied_round, row.emptied_layers) == (2, 2, "up4_3.body.0")
    assert (row.identity_round, row.identity_from) == (2, 2)


def test_collapse_that_did_not_happen_is_missing():
    row = analysis.collapse(*frames([2, 1], {index: CHAIN[index] for index in (0, 1)})).iloc[0]
    assert row[["emptied_round", "identity_round", "identity_from"]].isna().all()
    assert row.emptied_layers == ""


def test_identity_for_a_round_is_not_identity_from_then_on():
    row = analysis.collapse(*frames([2, 0, 1], CHAIN)).iloc[0]
    assert row.identity_round == 1 and pd.isna(row.identity_from)
    row = analysis.collapse(*frames([2, 0, 1, 0], CHAIN)).iloc[0]
    assert (row.identity_round, row.identity_from) == (1, 3)


def test_one_changed_image_is_not_the_identity():
    scores, densities = frames([2, 0], CHAIN)
    scores["change"] = [2, 2, 0, 0.002]
    assert pd.isna(analysis.collapse(scores, densities).identity_round[0])


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([0, 0.2, -0.05, -0.3, 0.1], (2, [4])),
        ([0, -0.3, 0.1], (None, [2])),
        ([0, 0.1, -0.1], (2, [])),
        ([0, -1, -1], (None, [])),
        ([0], (None, [])),
    ],
)
def test_within_margin(deltas, expected):
    assert analysis.within_margin(pd.Series(deltas), 0.1) == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [([0, -1, 1, 2], (2, [2, 3])), ([0, 1, 1], (1, [1, 2])), ([0, 1, 0], (None, [1])), ([0, -1], (None, []))],
)
def test_stays_above(difference, expected):
    assert analysis.stays_above(pd.Series(difference)) == expected


def test_runs_finds_every_folder(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    assert found.method.tolist() == list(METHODS)
    assert found.finished.all() and set(found.seed) == {0}
    assert found.set_index("method").rounds[["dense", "MIR-L-G", "PIR-OSM-I"]].tolist() == [1, 2, 1]


def test_scores_are_those_of_the_files(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    table = analysis.scores(found).set_index(["method", "round", "task"])
    folder = analysis.find(found, "all_in_one", "MIR-L-G")
    metrics = pd.read_csv(folder / "round02" / "metrics.csv").groupby("task").psnr.mean()
    row = table.sort_index().loc[("MIR-L-G", 2)].psnr
    assert row["derain"] == pytest.approx(metrics["derain"], abs=1e-12)
    denoise = metrics[["denoise15", "denoise25", "denoise50"]].mean()
    assert row["denoise"] == pytest.approx(denoise, abs=1e-12)
    assert row["mean"] == pytest.approx((metrics["derain"] + metrics["dehaze"] + denoise) / 3, abs=1e-12)
    facts = json.loads((folder / "round02" / "round.json").read_text())
    assert table.loc[("MIR-L-G", 2, "mean"), "parameters"] == facts["parameters"]


def test_dense_is_round_0_of_both_lotteries(smoke_results):
    table = analysis.scores(analysis.runs("smoke", smoke_results))
    first = table[table["round"] == 0].pivot(index="task", columns="method", values="psnr")
    assert set(first.columns) == {"dense", *LOTTERY}
    assert (first["MIR-L-G"] == first["dense"]).all() and (first["MIR-L-LW"] == first["dense"]).all()
    table["dense"] = table.task.map(first["dense"])
    assert table.delta.to_numpy() == pytest.approx((table.psnr - table.dense).to_numpy(), abs=1e-12)


def test_over_seeds_keeps_rounds_that_all_seeds_have(smoke_results):
    one = analysis.scores(analysis.runs("smoke", smoke_results))
    other = one[~((one.method == "MIR-L-G") & (one["round"] == 2))].assign(seed=1, psnr=lambda table: table.psnr + 2)
    means = analysis.over_seeds(pd.concat([one, other])).set_index(["method", "round", "task"])
    row, single = means.loc[("MIR-L-LW", 2, "mean")], one.set_index(["method", "round", "task"])
    assert row.psnr == pytest.approx(single.loc[("MIR-L-LW", 2, "mean"), "psnr"] + 1)
    assert row.sd == pytest.approx(2**0.5) and row.seeds == 2
    assert ("MIR-L-G", 1, "mean") in means.index and ("MIR-L-G", 2, "mean") not in means.index


def test_masks_of_a_lottery_begin_dense(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    masks = analysis.load_masks(analysis.find(found, "all_in_one", "MIR-L-LW", 0))
    assert list(masks) == [0, 1, 2] and masks[0].density() == 1 and masks[2] <= masks[1] <= masks[0]
    table = analysis.densities(found)
    last = table[(table.method == "MIR-L-LW") & (table["round"] == 2)]
    assert last.kept.sum() == masks[2].kept and last["size"].sum() == masks[2].size


def test_kinds_covers_every_parameter():
    assert analysis.kinds(PRESETS["paper"])["encoder_level1.0.attn.qkv.weight"] == "qkv"


def test_settings_of_a_folder(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    for folder in found.folder:
        run = analysis.open_run(folder)
        assert run.folder == folder
        facts = json.loads((folder / "run.json").read_text())
        assert run.settings.key(run.method) == facts["key"]


def test_no_results_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match="no finished run") as error:
        analysis.runs("smoke", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match="smoke"):
        analysis.runs("smoek", tmp_path)


def test_find_says_what_there_is(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    with pytest.raises(SettingsError, match="MIR-L-G seed 0"):
        analysis.find(found, "all_in_one", "MIR-L-G", 7)


def test_damaged_run_is_named(smoke_results, tmp_path):
    shutil.copytree(smoke_results, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "smoke" / "all_in_one" / "dense" / "seed0" / "run.json"
    path.write_text("{")
    with pytest.raises(SettingsError, match=r"run\.json cannot be read"):
        analysis.runs("smoke", tmp_path)


def test_check_sparsest_gives_hints():
    table = analysis.layer_densities(CHAIN, KINDS)
    assert analysis.check_sparsest("up4_3.body.0", table).startswith("right")
    assert "1 layers keep less" in analysis.check_sparsest("level.0.attn.qkv", table)
    assert "did you mean 'output'" in analysis.check_sparsest("outptu", table)
    assert "3 layer names" in analysis.check_sparsest(None, table)


def test_initial_size_is_a_rank_correlation_over_layers():
    names = {"setting": "derain", "method": "MIR-L-G", "seed": 0}
    rows = [
        {**names, "round": index, "layer": f"l{i}", "inputs": 10**i, "density": density}
        for index, row in ((1, (0.9, 0.5, 0.1)), (2, (0.1, 0.5, 0.9)), (3, (0.5, 0.5, 0.5)))
        for i, density in enumerate(row)
    ]
    sizes = analysis.initial_size(pd.DataFrame(rows))
    assert sizes.layers.tolist() == [3, 3, 3]
    assert sizes.rank_correlation.tolist()[:2] == pytest.approx([-1, 1]) and pd.isna(sizes.rank_correlation[2])


def test_what_never_runs_at_the_start():
    network = PRESETS["pico"]
    table = analysis.unused_at_start(network, [2], rate=0.5).set_index("round")
    start = build_network(dataclasses.replace(network, unused=True))
    whole = Mask.dense(start, unused=True)
    never = {name for name, kind in analysis.kinds(start.settings).items() if kind == "unused"}
    assert table.unused[0] == sum(whole[name].numel() for name in never) and table.kept[0] == whole.size
    scores = {name: start.get_parameter(name).detach().abs() for name in whole}
    mask = criteria.prune(whole, scores, 0.75)
    assert abs(table.unused[2] - sum(int(mask[name].sum()) for name in never)) <= 1
    assert "layer-wise they stay that share" in sentences.of_unused(table.reset_index())
