"""The setting ``jpeg``, which the paper does not have, from training to the page: one task, no published numbers."""

from pathlib import Path

import pandas as pd
import pytest

from mirl_study import SettingsError, analysis, load_settings, lottery, report, tables, trained, verdicts
from mirl_study.settings import LOTTERY, SETTINGS, TASKS

SETTINGS_OF = {"setting": "jpeg", "steps": 2, "warmup_steps": 1, "batch_size": 2, "rounds": 1}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for scope in LOTTERY.values():
        for _ in lottery.rounds(load_settings("smoke", scope=scope, **SETTINGS_OF), root, "cpu", show=False):
            pass
    return root


def test_each_setting_has_its_tasks():
    assert set(SETTINGS) == set(TASKS) and TASKS["jpeg"] == ("jpeg",)
    assert TASKS["all_in_one"] == ("derain", "dehaze", "denoise15", "denoise25", "denoise50"), "as in the paper"
    assert set(analysis.SINGLE) == {task for tasks in TASKS.values() for task in tasks}
    with pytest.raises(SettingsError, match=r"did you mean 'jpeg'"):
        load_settings("smoke", setting="jpg")


def test_scores_are_of_the_task_and_of_the_mean_over_it(results):
    scores = analysis.scores(analysis.runs("smoke", results))
    assert set(scores.setting) == {"jpeg"} and list(scores.task.unique()) == ["jpeg", "mean"]
    wide = scores.pivot(index=["method", "round"], columns="task", values="psnr")
    assert (wide["jpeg"] == wide["mean"]).all() and wide.jpeg.between(20, 45).all()


def test_the_table_has_no_published_columns(results, tmp_path):
    numbers = tables.table(analysis.scores(analysis.runs("smoke", results)), "jpeg")
    assert numbers.method.tolist() == ["input", "dense", *LOTTERY]
    assert "jpeg_psnr" in numbers and "mean_psnr" not in numbers and not list(numbers.filter(like="paper"))
    columns = ["jpeg", "above dense / dB", "parameters", "pruned", "compression"]
    assert list(tables.as_text(numbers)["this run"]) == columns
    tables.write_table(numbers, tmp_path, "jpeg")
    assert (
        "paper" not in (tmp_path / "jpeg.md").read_text() and tables.THEIRS not in (tmp_path / "jpeg.tex").read_text()
    )


@pytest.mark.slow
def test_the_page_tells_of_it(results):
    page = report.write(results, "smoke")
    text = page.read_text(encoding="utf-8")
    assert "“paper”" not in text and "in its last round, 1, it scores, against its input, jpeg" in text
    assert pd.read_csv(page.parent / "tables" / "jpeg.csv").jpeg_psnr.notna().all()


def test_networks_restore_its_first_test_image(results):
    found = analysis.runs("smoke", results)
    trained.record_all(found)
    drawn = trained.restorations([("dense", analysis.find(found, "jpeg", "dense"), 0)])
    assert [one.task for one in drawn] == ["jpeg"] and set(drawn[0].images) == {"input", "dense", "target"}


def test_verdicts_are_on_the_one_task(results):
    frame = verdicts.gather("smoke", "jpeg", "MIR-L-G", 1, results)
    assert set(frame.task) == {"jpeg", "mean"}
