import json
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from mirl_study import build_network, load_settings, lottery
from mirl_study.network import describe, fingerprint
from mirl_study.settings import LOTTERY, ONE_SHOT, SettingsError
from mirl_study.store import Run


def chain(results, scope):
    settings = load_settings("smoke", scope=scope)
    return settings, list(lottery.rounds(settings, results, "cpu", show=False))


def tree(folder):
    """What a run leaves behind, without clocks."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in [n for n in files if n.endswith("round.json")]:
        facts = json.loads(files[name])
        files[name] = {k: v for k, v in facts.items() if not k.endswith("_seconds")}
    return {name: content for name, content in files.items() if not name.endswith(("progress.json", "run.json"))}


@pytest.mark.parametrize("scope", LOTTERY.values())
def test_each_round_removes_an_exact_count_and_nothing_comes_back(smoke_results, scope):
    settings, rounds = chain(smoke_results, scope)
    assert [r.index for r in rounds] == [0, 1, 2] and rounds[0].density == 1
    output = "output.weight"
    for before, after in zip(rounds, rounds[1:], strict=False):
        assert after.mask <= before.mask
        if scope == "global":
            assert after.mask.kept == before.mask.kept - int(settings.rate * before.mask.kept + 0.5)
        else:
            for name in before.mask:
                kept, rate = (
                    int(before.mask[name].sum()),
                    settings.rate * (settings.output_rate if name == output else 1),
                )
                assert int(after.mask[name].sum()) == kept - int(rate * kept + 0.5)


@pytest.mark.parametrize("scope", LOTTERY.values())
def test_every_round_starts_from_the_initialisation_whole(smoke_results, scope):
    settings, rounds = chain(smoke_results, scope)
    wanted = fingerprint(
        build_network(settings.network, settings.seed)
    )  # all parameters: prompts, norms, temperatures, biases too
    for round in rounds:
        facts = json.loads((round.run.round_folder(round.index) / "round.json").read_text())
        assert facts["start_sha256"] == wanted
    initial = build_network(settings.network, settings.seed).state_dict()
    ticket = rounds[-1].network(trained=False).state_dict()
    for name, value in initial.items():
        keep = rounds[-1].mask.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(ticket[name], value * keep)


def test_trained_tickets_are_zero_where_pruned_and_score_as_recorded(smoke_results):
    from mirl_study.evaluation import evaluate

    settings, rounds = chain(smoke_results, "global")
    network = torch.nn.Module.state_dict(rounds[-1].network(trained=True))
    stored = build_network(settings.network, settings.seed)
    rounds[-1].run.load_weights(2, stored)
    for name, keep in rounds[-1].mask.items():
        assert (stored.get_parameter(name)[~keep] == 0).all() and torch.equal(network[name], stored.get_parameter(name))
    again = evaluate(rounds[-1].network(), lottery.Bench.load(settings, "cpu").test)
    pd.testing.assert_frame_equal(again, rounds[-1].metrics, rtol=1e-6)


def test_the_lowest_magnitudes_of_the_trained_dense_network_leave_first(smoke_results):
    _, rounds = chain(smoke_results, "global")
    weights = {n: p.abs() for n, p in rounds[0].network().named_parameters() if n in rounds[0].mask}
    stay = torch.cat([weights[n][rounds[1].mask[n]] for n in weights])
    leave = torch.cat([weights[n][~rounds[1].mask[n]] for n in weights])
    assert leave.max() <= stay.min() and (leave < 0).sum() == 0


@pytest.mark.parametrize("left", ["nothing of round 2", "its mask", "half of it"])
def test_an_interrupted_chain_goes_on_and_ends_bit_identical(smoke_results, tmp_path, left):
    shutil.copytree(smoke_results, tmp_path / "results")
    settings = load_settings("smoke")
    run = Run(settings, "MIR-L-G", tmp_path / "results")
    whole, folder = tree(run.folder), run.round_folder(2)
    for name in {
        "nothing of round 2": ["."],
        "its mask": ["round.json", "metrics.csv", "history.csv"],
        "half of it": ["round.json"],
    }[left]:
        shutil.rmtree(folder) if name == "." else (folder / name).unlink()
    untouched = (run.round_folder(1) / "round.json").stat().st_mtime_ns
    if left == "nothing of round 2":  # then the weights of round 1 are needed, and this profile has not kept them
        with pytest.raises(FileNotFoundError, match="keep_weights"):
            chain(tmp_path / "results", "global")
        shutil.rmtree(run.round_folder(1))
        untouched = None
    chain(tmp_path / "results", "global")
    assert tree(run.folder) == whole
    assert untouched in (None, (run.round_folder(1) / "round.json").stat().st_mtime_ns), (
        "a finished round was run again"
    )


def test_leaving_the_generator_early_keeps_what_is_done(tmp_path, smoke_results):
    settings = load_settings("smoke")
    shutil.copytree(smoke_results / "smoke" / "all_in_one" / "dense", tmp_path / "smoke" / "all_in_one" / "dense")
    for round in lottery.rounds(settings, tmp_path, "cpu", show=False):
        if round.index == 1:
            break
    run = Run(settings, "MIR-L-G", tmp_path)
    assert run.finished(1) and not run.finished(2) and not (run.folder / "summary.csv").exists()


@pytest.mark.parametrize(
    ("change", "shown"), [({"steps": 7}, "steps: 6 there, 7 asked"), ({"rate": 0.3}, "rate: 0.2 there, 0.3 asked")]
)
def test_other_settings_never_mix_with_finished_rounds(smoke_results, change, shown):
    before = tree(smoke_results)
    with pytest.raises(SettingsError, match=shown):
        list(lottery.rounds(load_settings("smoke", **change), smoke_results, "cpu", show=False))
    assert tree(smoke_results) == before


@pytest.mark.parametrize("method", ONE_SHOT)
def test_one_shot_baselines_prune_the_trained_network_once(smoke_results, method):
    settings = load_settings("smoke")
    dense = lottery.dense_round(settings, smoke_results, "cpu", show=False)
    round = lottery.one_shot(settings, method, smoke_results, "cpu", show=False)
    assert round.mask.kept == round.mask.size - int(ONE_SHOT[method][1] * round.mask.size + 0.5)
    facts = json.loads((round.run.round_folder(1) / "round.json").read_text())
    assert (
        facts["start_sha256"] == fingerprint(dense.network()) and facts["steps"] == settings.fine_tune * settings.steps
    )
    largest = torch.cat([dense.network().get_parameter(n).abs()[~round.mask[n]] for n in round.mask]).max()
    smallest = torch.cat([dense.network().get_parameter(n).abs()[round.mask[n]] for n in round.mask]).min()
    assert (largest <= smallest) == method.startswith("PIR-OSM")


def test_an_unknown_method_is_named():
    with pytest.raises(SettingsError, match="did you mean 'PIR-OSM-I"):
        lottery.one_shot(load_settings("smoke"), "PIR-OSM-III", show=False)


@pytest.mark.parametrize("method", ["dense", "MIR-L-G", "MIR-L-LW", *ONE_SHOT])
def test_the_summary_is_the_mean_of_the_metrics(smoke_results, method):
    folder = smoke_results / "smoke" / "all_in_one" / method / "seed0"
    summary = pd.read_csv(folder / "summary.csv")
    total = describe(build_network("pico"))["size"].sum()
    for index, part in summary.groupby("round"):
        metrics = pd.read_csv(folder / f"round{index:02d}" / "metrics.csv")
        assert part.set_index("task").psnr.to_dict() == pytest.approx(metrics.groupby("task").psnr.mean().to_dict())
        facts = json.loads((folder / f"round{index:02d}" / "round.json").read_text())
        assert (part.parameters == total - facts["prunable"] + facts["kept"]).all()


def test_reading_a_finished_chain_again_writes_nothing(smoke_results):
    folder = smoke_results / "smoke"

    def stamps():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    before = stamps()
    chain(smoke_results, "global")
    lottery.one_shot(load_settings("smoke"), "PIR-OSM-I", smoke_results, "cpu", show=False)
    assert stamps() == before


@pytest.mark.slow
@pytest.mark.parametrize("place", [(0, 4), (1, 2), (2, 5)])
def test_a_chain_that_is_killed_goes_on_and_ends_bit_identical(tmp_path, place):
    code = "import sys, torch; torch.set_num_threads(1); from mirl_study import load_settings, lottery\n"
    code += "list(lottery.rounds(load_settings('smoke', steps=40, validate_every=20), sys.argv[1], 'cpu', show=False))"
    command = [sys.executable, "-c", code]
    subprocess.run([*command, tmp_path / "whole"], check=True)

    victim = subprocess.Popen([*command, tmp_path / "killed"])
    while not any(
        (facts["round"], facts["step"]) >= place
        for path in (tmp_path / "killed").rglob("progress.json")
        for facts in [json.loads(path.read_text())]
    ):
        assert victim.poll() is None, "the chain ended before it could be killed"
        time.sleep(0.005)
    victim.kill()
    victim.wait()
    assert tree(tmp_path / "killed") != tree(tmp_path / "whole")
    subprocess.run([*command, tmp_path / "killed"], check=True)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
