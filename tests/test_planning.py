"""A plan: what is done, how far the rest is, and that its estimates follow from what was measured."""

import dataclasses
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mirl_study import cli, data, planning, study
from mirl_study.settings import METHODS, load_settings
from mirl_study.store import project_root

COST = planning.Cost(2.0, 10.0, {"all_in_one": 100.0, "derain": 1.0}, 10**6, 10**3, "an abacus")


@pytest.fixture
def smoke_jobs(smoke_results: Path, tmp_path: Path) -> tuple[Path, list[planning.Job]]:
    """Plans a study whose dense chain is done, whose global lottery is in its second round; nothing else is begun."""
    root = tmp_path / "results"
    for method in ("dense", "MIR-L-G"):
        shutil.copytree(smoke_results / "smoke" / "all_in_one" / method, root / "smoke" / "all_in_one" / method)
    broken = root / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    (broken / "summary.csv").unlink()
    (broken / "round02" / "round.json").unlink()
    (broken / "progress.json").write_text('{"done": 8, "total": 12, "round": 2, "rounds": 2}')
    return root, planning.jobs([load_settings("smoke")], [0], COST, root)


def test_a_plan_says_what_is_done_and_how_far_the_rest_is(smoke_jobs):
    states = {job.chain.method: job.state for job in smoke_jobs[1]}
    assert states == dict.fromkeys(METHODS, "to do") | {"dense": "done", "MIR-L-G": "1 of 2 rounds"}


def test_time_and_disk_are_the_sum_of_the_parts(smoke_jobs):
    by_method = {job.chain.method: job for job in smoke_jobs[1]}
    start = planning.JOB_SECONDS
    assert (by_method["dense"].seconds, by_method["dense"].size) == (0, 0)
    # 2 rounds of 6 steps, a look every 3 of them; 4 steps of the second round are still to go
    assert by_method["MIR-L-LW"].seconds == 12 * 2.0 + 4 * 10.0 + 2 * 100.0 + start
    assert by_method["MIR-L-G"].seconds == 4 * 2.0 + 2 * 10.0 + 100.0 + start
    assert by_method["PIR-OSM-I"].seconds == 3 * 2.0 + 10.0 + 100.0 + start
    assert by_method["MIR-L-LW"].size == 2 * 10**3 + 10**6 + planning.JOB_BYTES
    later = planning.jobs([load_settings("smoke", keep_weights=[1, 2])], [0], COST, smoke_jobs[0])
    assert later[-2].size - by_method["MIR-L-LW"].size == 10**6


def test_a_plan_in_words(smoke_jobs, monkeypatch):
    root, made = smoke_jobs
    words = "\n".join(planning.in_words(made, COST, 2, root))
    assert "7 chains: 1 done, 6 to do" in words and "an abacus" in words and "NOT ENOUGH" not in words
    assert "a step 2.0 s" in words and "the test images of derain 1.0 s" in words
    full = dataclasses.replace(COST, weights=10**18)
    assert "NOT ENOUGH" in planning.in_words(made, full, 2, root)[-1]
    done = [job for job in made if job.chain.finished]
    assert planning.in_words(done, COST, 2, root) == ["1 chains: 1 done, 0 to do"]


def test_the_bound_on_time_is_the_longest_way_or_all_the_work():
    chains = [
        study.Chain(setting, method, 0, Path(setting, method), 1)
        for setting in ("a", "b")
        for method in ("dense", "x", "y")
    ]
    work = {chain.folder: {"dense": 1.0, "x": 10.0, "y": 3.0}[chain.method] for chain in chains}
    assert study.span(chains, work, cores=1) == 28
    assert study.span(chains, work, cores=2) == 14
    assert study.span(chains, work, cores=100) == 11
    assert study.span([chain for chain in chains if chain.method != "dense"], {**work}, 100) == 10


@pytest.mark.parametrize(("visible", "cores", "expected"), [("", 8, 8), ("0,1", 8, 2), ("0,1", 1, 1), ("-1", 3, 3)])
def test_chains_at_a_time_are_bounded_by_gpus_if_there_are_any(visible, cores, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert study.at_a_time(cores) == expected


@pytest.mark.slow
def test_what_was_measured_goes_by_the_pixels_of_the_test_images():
    settings = load_settings("smoke")
    cost = planning.measure([settings, settings.replace(setting="derain")], "cpu")
    assert 0 < cost.step < 5 and 0 < cost.validation < 5
    assert 0 < cost.evaluation["derain"] < cost.evaluation["all_in_one"] < 60
    folder = data.data_folder(settings, project_root())
    table = pd.read_csv(folder / "manifest.csv").query("split == 'test'")
    pixels = table.target.map(lambda name: math.prod(Image.open(folder / name).size))
    pixels = pixels.groupby(table.task).sum()
    everything = 3 * pixels["denoise"] + pixels["derain"] + pixels["dehaze"]  # noise of three strengths
    ratio = cost.evaluation["derain"] / cost.evaluation["all_in_one"]
    assert ratio == pytest.approx(pixels["derain"] / everything)
    assert cost.weights > 4 * 10_000 and cost.record > 500


def test_a_plan_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "measure", lambda studies: COST)
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "--profile", "smoke", "--settings", "all_in_one,derain", "--results", str(tmp_path / "no")])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "14 chains: 0 done, 14 to do" in out
    assert [line.split()[0] for line in out.splitlines()[:15]] == ["setting", *["all_in_one"] * 7, *["derain"] * 7]
    assert list(tmp_path.iterdir()) == []
