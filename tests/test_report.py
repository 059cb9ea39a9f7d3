import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mirl_study import SettingsError, analysis, figures, report
from mirl_study.settings import METHODS


class Links(HTMLParser):
    """Collects tags, and what they point to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags, self.links = set(), []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


@pytest.fixture(scope="module")
def page(smoke_results) -> Path:
    return report.write(smoke_results, "smoke")


def copied(source: Path, target: Path) -> Path:
    """A results root that a test may damage."""
    shutil.copytree(source / "smoke", target / "smoke", ignore=shutil.ignore_patterns("report"))
    return target


def test_page_opens_without_a_network(page):
    links = Links(page)
    assert not links.tags & {"script", "iframe", "link", "object", "embed"}
    assert links.links and not [link for link in links.links if ":" in link or link.startswith(("/", "."))]
    assert all((page.parent / link).is_file() for link in links.links)
    assert "url(" not in page.read_text(encoding="utf-8") and "@import" not in page.read_text(encoding="utf-8")


def test_page_says_what_was_run(page, smoke_results):
    text = page.read_text(encoding="utf-8")
    run = json.loads((smoke_results / "smoke/all_in_one/dense/seed0/run.json").read_text())
    seconds = 0.0
    for path in (smoke_results / "smoke").glob("*/*/seed*/round*/round.json"):
        facts = json.loads(path.read_text())
        seconds += facts["training_seconds"] + facts["evaluation_seconds"]
    values = report.facts(analysis.runs("smoke", smoke_results))
    assert values["time"].startswith(f"{seconds:.0f} s" if seconds < 100 else f"{round(seconds / 60)} min")
    assert values["steps"] == "6" and values["prune norms"] == "no" and values["rounds after the dense one"] == "2"
    for wanted in (run["settings"]["data_fingerprint"], run["versions"]["torch"], run["device"], values["time"]):
        assert wanted in text
    assert "one seed: no spread is known" in text and "incomplete" not in text


def test_tables_are_the_numbers_of_the_runs(page, smoke_results):
    numbers = pd.read_csv(page.parent / "tables" / "all_in_one.csv")
    assert numbers.method.tolist() == ["input", *METHODS]
    summary = pd.read_csv(smoke_results / "smoke/all_in_one/MIR-L-G/seed0/summary.csv").set_index(["round", "task"])
    ours = numbers.set_index("method")
    assert ours.loc["MIR-L-G", "round"] == 2
    assert ours.loc["MIR-L-G", "denoise25_psnr"] == pytest.approx(summary.loc[(2, "denoise25"), "psnr"], abs=1e-9)
    assert ours.loc["MIR-L-G", "parameters"] == summary.loc[(2, "derain"), "parameters"]
    assert ours.loc["input", "derain_psnr"] == pytest.approx(summary.loc[(2, "derain"), "input_psnr"], abs=1e-9)
    assert ours.loc["MIR-L-G", "compression"] == ours.loc["dense", "parameters"] / ours.loc["MIR-L-G", "parameters"]
    shown = list(report.as_text(numbers.astype({"round": "Int64", "seeds": "Int64"}))["this run", "derain"])
    assert shown == [f"{row.derain_psnr:.2f} / {row.derain_ssim:.4f}" for row in numbers.itertuples()]
    html = page.read_text(encoding="utf-8")
    markdown, latex = ((page.parent / "tables" / f"all_in_one{suffix}").read_text() for suffix in (".md", ".tex"))
    for cell in shown:
        assert cell.replace(" / ", "<br>") in html and cell in markdown and cell in latex


def test_the_paper_stands_beside_it(page):
    numbers = pd.read_csv(page.parent / "tables" / "all_in_one.csv").set_index("method")
    assert numbers.loc["MIR-L-G", "paper_derain_Rain100L_psnr"] == 32.43
    assert numbers.loc["dense", "paper_denoise50_BSD68_ssim"] == 0.7667
    assert numbers.loc["MIR-L-LW", "paper_compression"] == pytest.approx(7.57, abs=0.005)
    assert numbers.loc["input"].filter(like="paper_").isna().all()
    assert report.THEIRS in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("setting", ["derain", "dehaze", "denoise"])
def test_single_task_tables_take_table_ii(setting):
    paper = report._paper(setting)
    assert {"PromptIR", "PIR-OSM-I", "MIR-L-G"} <= set(paper.index)
    wanted = {"derain": 34.72, "dehaze": 27.62, "denoise": 33.85}[setting]
    assert paper.loc["MIR-L-G"].filter(like="psnr").iloc[0] == wanted


def chain(method: str, psnr: list[float], seed: int = 0) -> pd.DataFrame:
    """Scores of a made-up chain of a network with 1000 prunable and 100 other weights, on one task and the mean."""
    rows = [
        {"setting": "derain", "method": method, "seed": seed, "round": index, "task": task, "psnr": value, "ssim": 0.5}
        | {"input_psnr": 20.0, "input_ssim": 0.4, "change": abs(value - 20), "delta": value - 25.0}
        | {"density": 0.8**index, "kept": 1000 * 0.8**index, "parameters": 100 + 1000 * 0.8**index}
        for index, value in enumerate(psnr)
        for task in ("derain", "mean")
    ]
    return pd.DataFrame(rows)


def sentences(scores: pd.DataFrame, **more) -> str:
    columns = [*analysis.RUN, "round", "layer", "kept"]
    empty = pd.DataFrame(more.pop("empty", []), columns=columns).assign(density=0.0, inputs=9)
    return "\n".join(report.findings(scores, empty, "derain", **more))


def made_up(*lotteries: pd.DataFrame) -> pd.DataFrame:
    dense = chain("dense", [25.0])
    return pd.concat([dense, *lotteries], ignore_index=True)


def test_sentences_say_what_happened():
    scores = made_up(chain("MIR-L-G", [25, 25.2, 24.95, 24.5]), chain("MIR-L-LW", [25, 25.3, 24, 20]))
    text = sentences(scores, empty=[("derain", "MIR-L-LW", 0, 3, "output", 0)])
    assert "dense network is 5.00 dB above its input (seed 0; one seed: no spread is known)" in text
    assert (
        "MIR-L-G, on the mean of the families, stays within 0.1 dB of its dense network, or above, up to round 2"
        in text
    )
    assert "(density 64.0%)" in text
    assert "MIR-L-G: no layer emptied in its 3 rounds" in text
    assert "MIR-L-LW: the first layer emptied in round 3, output (seed 0)." in text
    assert "MIR-L-G: in none of its rounds is the network the identity" in text
    assert re.search(r"MIR-L-LW: the network is the identity .* from round 3 on with seed 0", text)
    assert "From round 2 on, to the last common one, 3, MIR-L-G is above MIR-L-LW" in text
    assert "by 0.95 to 4.50 dB" in text
    wider = sentences(scores, margin=0.6)
    assert "MIR-L-G, on the mean of the families, is never more than 0.6 dB below its dense network" in wider


def test_sentences_say_what_did_not_happen():
    scores = made_up(chain("MIR-L-G", [25, 24, 26, 24]), chain("MIR-L-LW", [25, 24.5, 25, 24.5]))
    text = sentences(scores)
    assert (
        "MIR-L-G, on the mean of the families, is more than 0.1 dB below its dense network in round 1 already" in text
    )
    assert "; it is within 0.1 dB of it, or above, only in round 2; seed 0 alone" in text
    assert "There is no round from which on MIR-L-G stays above MIR-L-LW" in text
    assert "above in round 2 only; in the last common one, 3, the difference is −0.50 dB" in text


def test_sentences_over_seeds_name_each():
    scores = made_up(
        chain("MIR-L-G", [25, 25, 25]), chain("MIR-L-G", [25, 24.7, 24], seed=1), chain("dense", [25.0], seed=1)
    )
    text = sentences(scores)
    assert "mean of 2 seeds; +5.00 to +5.00 dB" in text
    assert "mean of 2 seeds (seed 0 up to round 2, seed 1 in none)" in text


def test_rows_are_the_round_nearest_to_the_paper_and_the_headline():
    both = [chain(method, [25.0 + index for index in range(16)]) for method in ("MIR-L-G", "MIR-L-LW")]
    numbers = report.table(made_up(*both), "derain")
    assert numbers.method.tolist() == ["input", "dense", "MIR-L-LW", "MIR-L-G", "MIR-L-LW", "MIR-L-G"]
    shares = {index: 1 - (100 + 1000 * 0.8**index) / 1100 for index in range(1, 16)}
    nearest = min(shares, key=lambda index: abs(shares[index] - 0.87))
    assert numbers["round"].tolist()[2:] == [nearest, nearest, 15, 15]
    assert numbers.pruned[2] == pytest.approx(shares[nearest])
    assert numbers.paper_parameters[2:].notna().tolist() == [
        True,
        True,
        False,
        False,
    ]  # the paper has no row for round 15
    assert f"MIR-L-G round {nearest}: {shares[nearest]:.1%} of all parameters pruned" in report.caption(numbers)


def test_the_papers_round_is_12_at_its_size():
    size, fixed = 33_199_064, 35_592_263 - 33_199_064
    both = [chain(method, [25.0] * 16) for method in ("MIR-L-G", "MIR-L-LW")]
    scores = made_up(*both)
    scores = scores.assign(kept=size * scores.density, parameters=fixed + size * scores.density)
    assert report.table(scores, "derain")["round"].tolist()[2:] == [12, 12, 15, 15]


@pytest.mark.parametrize(
    ("rounds", "text"),
    [([3], "round 3"), ([2, 3, 4], "rounds 2 to 4"), ([1, 3, 4, 7], "rounds 1, 3 to 4 and 7")],
)
def test_rounds_in_words(rounds, text):
    assert report._rounds(rounds) == text


def test_missing_chains_are_named(smoke_results, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda *_: [])  # drawn, but not written: that takes seconds
    root = copied(smoke_results, tmp_path)
    chains = root / "smoke" / "all_in_one"
    shutil.rmtree(chains / "PIR-OSR-I")
    (chains / "MIR-L-LW" / "seed0" / "summary.csv").unlink()
    text = report.write(root, "smoke").read_text(encoding="utf-8")
    assert "This report is incomplete" in text
    assert "all_in_one, PIR-OSR-I, seed 0: not begun" in text
    assert "all_in_one, MIR-L-LW, seed 0: not finished (2 rounds are)" in text
    assert "MIR-L-G" in text and "density-MIR-L-LW" not in text


def test_without_dense_run_and_weights_there_is_still_a_page(smoke_results, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda *_: [])
    root = copied(smoke_results, tmp_path)
    shutil.rmtree(root / "smoke" / "all_in_one" / "dense")
    for path in root.rglob("weights.safetensors"):
        path.unlink()
    text = report.write(root, "smoke").read_text(encoding="utf-8")
    assert "all_in_one, dense, seed 0: not begun" in text
    assert "there is no dense run to compare it with" in text
    assert "No restored images:" in text and "holds no trained weights" in text


def test_other_data_are_not_passed_off_as_the_runs(smoke_results, tmp_path):
    root = copied(smoke_results, tmp_path)
    path = root / "smoke" / "all_in_one" / "MIR-L-G" / "seed0" / "round02" / "metrics.csv"
    metrics = pd.read_csv(path)
    metrics.assign(psnr=metrics.psnr + 1).to_csv(path, index=False)
    with pytest.raises(SettingsError, match="the data are not those of the run"):
        report.restore(analysis.runs("smoke", root), "all_in_one")


def test_nothing_at_all_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match="no finished run") as error:
        report.write(tmp_path, "smoke")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_second_report_replaces_the_first(smoke_results, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: ([], []))
    root = copied(smoke_results, tmp_path)
    page = report.write(root, "smoke")
    stale = page.parent / "tables" / "stale.csv"
    stale.write_text("")
    assert report.write(root, "smoke") == page
    assert not stale.exists() and not list(page.parents[1].glob(".report*"))


def test_families_are_judged_one_by_one():
    lottery = pd.concat(
        [chain("MIR-L-G", values).query("task == 'mean'").assign(task=task) for task, values in FAMILY_CHAINS.items()]
    )
    text = report._by_family(lottery, "MIR-L-G", 0.1)
    assert "derain up to round 2 (density 64.0%)" in text and "dehaze not even in round 1" in text


FAMILY_CHAINS = {"derain": [25, 25.2, 24.95, 24.5], "dehaze": [25, 24, 25, 25]}


def test_scatter_and_the_last_round_are_said():
    text = sentences(made_up(chain("MIR-L-G", [25, 24, 26, 19])))
    assert "MIR-L-G: in its last round, 3, it scores, against its input, derain −1.00 dB." in text
    assert "moves by 2.00 dB in the median, 7.00 dB at most" in text
