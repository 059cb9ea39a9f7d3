import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from mirl_study import Mask, SettingsError, analysis, build_network, load_settings, study, trained
from mirl_study.data import load_bank
from mirl_study.store import project_root


@pytest.fixture(scope="module")
def root(smoke_results, tmp_path_factory):
    """A results root whose runs have nothing recorded, to be filled and damaged."""
    ignore = shutil.ignore_patterns("report", "*.png", *(f"{name}.csv" for name in trained.TABLES))
    place = tmp_path_factory.mktemp("trained")
    shutil.copytree(smoke_results / "smoke", place / "smoke", ignore=ignore)
    return place


@pytest.fixture(scope="module")
def found(root):
    found = analysis.runs("smoke", root)
    assert "nothing was recorded of the trained weights of all_in_one, dense, seed 0" in trained.missing(found)
    assert trained.record_all(found) == [] and trained.missing(found) == ""
    return found


@pytest.fixture(scope="module")
def bank():
    return load_bank(load_settings("smoke"), "test", project_root())


def test_what_is_recorded_is_not_recorded_again(found, root, bank):
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert trained.record_all(found) == []
    assert not trained.record(analysis.find(found, "all_in_one", "dense"), bank)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == stamps


@pytest.mark.parametrize("name", trained.TABLES)
def test_tables_say_whose_they_are(found, name):
    table = trained.gather(found, name)
    assert list(table) == [*analysis.RUN, *trained.TABLES[name]]
    assert set(table.method) == {"dense", "MIR-L-G", "MIR-L-LW"}
    assert trained.gather(found[:0], name).empty


def test_survivors_of_known_weights():
    start, now = build_network("pico", 0), build_network("pico", 0)
    name = "patch_embed.proj.weight"
    with torch.no_grad():
        start.get_parameter(name).copy_(torch.linspace(0.01, 1.08, 108).view(4, 3, 3, 3))
        now.get_parameter(name).copy_(-2 * start.get_parameter(name))
    keep = torch.zeros(108, dtype=torch.bool)
    keep[-10:] = True
    live = keep.clone()
    live[-10:-6] = False
    masks = [Mask({name: chosen.view(4, 3, 3, 3)}) for chosen in (keep, live)]
    rows = trained.survivors(start, now, *masks).set_index(["part", "kind"])
    row = rows.loc["all", "embed"]
    assert (row.weights, row.kept, row.same_sign) == (108, 10, 0) and row.equals(rows.loc["all", "all"])
    assert rows.kept["effective", "all"] == 6 and rows.kept["rest", "embed"] == 4
    assert rows["rank"]["effective", "all"] > row["rank"] > rows["rank"]["rest", "all"]
    assert row["rank"] == pytest.approx(np.arange(98, 108).mean() / 107) and row.order == pytest.approx(1)
    assert row.trained == pytest.approx(2 * row.initial_kept) and row.initial == pytest.approx(0.545, abs=1e-3)


def test_the_order_of_known_weights():
    first, second = build_network("pico", 0), build_network("pico", 0)
    name = "output.weight"
    with torch.no_grad():
        values = torch.linspace(1, 2, second.get_parameter(name).numel())
        first.get_parameter(name).copy_(values.view_as(first.get_parameter(name)))
        second.get_parameter(name).copy_(values.flip(0).view_as(first.get_parameter(name)))
    size = len(values)
    keep = torch.zeros(size, dtype=torch.bool)
    keep[-4:] = True
    shape = second.get_parameter(name).shape
    masks = {0: Mask({name: torch.ones(shape, dtype=torch.bool)}), 3: Mask({name: keep.view(shape)})}
    live = masks | {3: Mask({name: (keep & (torch.arange(size) % 2 == 0)).view(shape)})}
    table = trained.ranking({-1: first, 0: first, 3: second}, masks, live)
    assert table[table.after == 3].weights.tolist() == [4, 2, 2] * 2
    rows = table[table.part == "all"].set_index(["before", "after"])
    assert rows.loc[(0, 3), ["weights", "kept", "top"]].tolist() == [4, 4, 1]
    assert rows.order[0, 3] == pytest.approx(-1) and rows.order[-1, 0] == pytest.approx(1)
    assert rows.chance[0, 3] == 4 / size and list(rows.index) == [(-1, 0), (-1, 3), (0, 3)]


def test_prompt_weights_are_those_of_the_network(found, bank):
    table = trained.gather(found, "prompt_weights").query("method == 'dense'")
    sums = table.groupby(["prompt", "task", "name"]).weight.sum()
    assert sums.to_numpy() == pytest.approx(1, abs=1e-6) and len(sums) == 3 * sum(1 for _ in bank.samples())
    network = build_network("pico", 0)
    with torch.no_grad():
        network.prompt2.linear_layer.weight.zero_()
        network.prompt2.linear_layer.bias.copy_(torch.tensor([0.0, 1.0]))
    alike = trained.prompt_weights(network, bank).query("prompt == 'prompt2'").groupby("component").weight.unique()
    assert alike[1] == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=1e-6)


def test_prompts_are_looked_at_without_the_rest_of_the_network(bank):
    network, late = build_network("pico", 0), []
    network.refinement.register_forward_hook(lambda *_: late.append(1))
    whole = trained.prompt_weights(network, bank)
    assert not late and len(whole) and network(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16) and late


def test_a_head_that_gives_nothing_matters_to_no_task(bank):
    network = build_network("pico", 0)
    mask = Mask.dense(network)
    with torch.no_grad():
        network.latent[0].attn.project_out.weight.zero_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = trained.heads(network, mask, bank).set_index("layer")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    rise = rows.off - rows.error
    assert (rise["latent.0.attn"] == 0).all() and (rise["refinement.0.attn"] != 0).all()
    assert (rows.density == 1).all() and set(rows.task) == set(load_settings("smoke").tasks)


def test_off_is_the_error_without_the_head(bank):
    network, name = build_network("pico", 0), "refinement.0.attn"
    rows = trained.heads(network, Mask.dense(network), bank)
    sample = trained._first(bank)[0]
    with torch.no_grad():
        network.get_parameter(f"{name}.project_out.weight").zero_()
        given, target = (trained._middle(image, 128, 8) for image in (sample.degraded, sample.target))
        wanted = (network(given) - target).abs().mean().item()
    assert rows[(rows.layer == name) & (rows.task == sample.task)].off.item() == pytest.approx(wanted)


def test_tables_of_an_earlier_version_are_read_and_made_anew(found, root, tmp_path, bank):
    ignore = shutil.ignore_patterns("report")
    shutil.copytree(root / "smoke", tmp_path / "reference" / "smoke", ignore=ignore)
    folder = tmp_path / "reference/smoke/all_in_one/MIR-L-G/seed0"
    for name in ("survivors", "ranking"):
        path = folder / f"{name}.csv"
        pd.read_csv(path).query("part == 'all'").drop(columns="part").to_csv(path, index=False)
    heads = pd.read_csv(folder / "heads.csv").drop(columns=["error", "off"]).assign(rise=0.1)
    heads.to_csv(folder / "heads.csv", index=False)
    old = analysis.runs("smoke", tmp_path / "reference")
    assert "an earlier version recorded all_in_one, MIR-L-G, seed 0: " in trained.outdated(old)
    assert trained.gather(old, "survivors").query("method == 'MIR-L-G'").part.unique().tolist() == ["all"]
    assert trained.gather(old, "heads").query("method == 'MIR-L-G'").off.isna().all()
    assert not trained.record(folder, bank), "nobody but `mirl reference` writes there"
    (tmp_path / "reference").rename(tmp_path / "mine")
    assert trained.record(tmp_path / "mine/smoke/all_in_one/MIR-L-G/seed0", bank)
    assert trained.outdated(analysis.runs("smoke", tmp_path / "mine")) == ""


def test_pictures_are_read_with_the_scores_of_the_records(found):
    chosen = trained.panels(found, "all_in_one")
    assert [label for label, *_ in chosen] == ["dense", "MIR-L-G round 2", "MIR-L-LW round 2"]
    items = {item.task: item for item in trained.restorations(chosen)}
    item = items["derain"]
    assert list(item.images) == ["input", *(label for label, *_ in chosen), "target"]
    metrics = pd.read_csv(chosen[1][1] / "round02" / "metrics.csv").query("task == 'derain'").iloc[0]
    assert (item.psnr["MIR-L-G round 2"], item.ssim["input"]) == (metrics.psnr, metrics.input_ssim)
    assert item.name == metrics["name"] and item.images["target"].shape[0] == 3


@pytest.mark.slow
def test_other_data_are_not_passed_off_as_the_runs(root, found, tmp_path, bank):
    shutil.copytree(root / "smoke", tmp_path / "smoke", ignore=shutil.ignore_patterns("survivors.csv"))
    path = tmp_path / "smoke/all_in_one/MIR-L-G/seed0/round02/metrics.csv"
    metrics = pd.read_csv(path)
    metrics.assign(psnr=metrics.psnr + 1).to_csv(path, index=False)
    with pytest.raises(SettingsError, match="the data are not those of the run"):
        trained.record(path.parents[1], bank)
    assert not (path.parents[1] / "survivors.csv").exists()
    (problem,) = trained.record_all(analysis.runs("smoke", tmp_path))
    assert problem.startswith("all_in_one: the trained weights cannot be looked at: data: ") and "\n" not in problem


def test_the_reference_keeps_what_was_recorded(found, root):
    folder, _ = study.keep_reference("smoke", root)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {f"{name}.csv" for name in trained.TABLES} <= names and "derain-restored.png" in names
    for path in folder.rglob("weights.safetensors"):  # whoever has the records needs no weights
        path.unlink()
    kept = analysis.runs("smoke", root / "reference")
    assert trained.missing(kept) == "" and len(trained.restorations(trained.panels(kept, "all_in_one"))) == 5
