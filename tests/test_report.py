import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mirl_study import SettingsError, analysis, cli, figures, gallery, report, sentences, tables, trained
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
def smoke_results(smoke_results, tmp_path_factory) -> Path:
    """A copy: a report keeps what trained weights tell beside the runs."""
    return shutil.copytree(smoke_results, tmp_path_factory.mktemp("copy") / "results")


@pytest.fixture(scope="module")
def page(smoke_results) -> Path:
    return report.write(smoke_results, "smoke")


def not_drawn(monkeypatch) -> None:
    """Figures are named, but neither drawn nor written: that takes most of the time."""
    for name in (name for name in figures.__all__ if name.endswith(("figure", "figure1", "curves", "map", "mosaic"))):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    for name in ("similarity_matrix", "restoration_panels"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    monkeypatch.setattr(figures, "save", lambda *_: [])
    monkeypatch.setattr(report, "inline", lambda _: "data:image/png;base64,")


def copied(source: Path, target: Path) -> Path:
    """A results root that a test may damage."""
    shutil.copytree(source / "smoke", target / "smoke", ignore=shutil.ignore_patterns("report"))
    return target


def test_page_opens_without_a_network(page):
    links = Links(page)
    assert not links.tags & {"script", "iframe", "link", "object", "embed"}
    inside = [link for link in links.links if link.startswith("data:image/")]
    beside = [link for link in links.links if link not in inside]
    assert len(inside) > 10 and not [link for link in beside if ":" in link or link.startswith(("/", "."))]
    assert beside and all((page.parent / link).is_file() for link in beside)
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
    shown = list(tables.as_text(numbers.astype({"round": "Int64", "seeds": "Int64"}))["this run", "derain"])
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
    assert tables.THEIRS in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("setting", ["derain", "dehaze", "denoise"])
def test_single_task_tables_take_table_ii(setting):
    paper = tables._paper(setting)
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


def said(scores: pd.DataFrame, **more) -> str:
    columns = [*analysis.RUN, "round", "layer", "kept"]
    empty = pd.DataFrame(more.pop("empty", []), columns=columns).assign(density=0.0, inputs=9)
    return "\n".join(sentences.findings(scores, empty, "derain", **more))


def made_up(*lotteries: pd.DataFrame) -> pd.DataFrame:
    dense = chain("dense", [25.0])
    return pd.concat([dense, *lotteries], ignore_index=True)


def test_sentences_say_what_happened():
    scores = made_up(chain("MIR-L-G", [25, 25.2, 24.95, 24.5]), chain("MIR-L-LW", [25, 25.3, 24, 20]))
    text = said(scores, empty=[("derain", "MIR-L-LW", 0, 3, "output", 0)])
    assert "dense network is 5.00 dB above its input (seed 0; one seed: no spread is known)" in text
    near = "MIR-L-G, on derain, is within 0.1 dB of its dense network, or above, in rounds 1 to 2"
    assert f"{near} (density 64.0% in the last of them); seed 0 alone." in text
    assert "MIR-L-G: no layer lost all its weights in its 3 rounds" in text
    assert "MIR-L-LW: the first layer emptied in round 3, output (seed 0)." in text
    assert "MIR-L-G: in none of its rounds is the network the identity" in text
    assert re.search(r"MIR-L-LW: the network is the identity .* from round 3 on with seed 0", text)
    assert "From round 2 on, to the last common one, 3, MIR-L-G is above MIR-L-LW" in text
    assert "by 0.95 to 4.50 dB" in text
    wider = said(scores, margin=0.6)
    assert "is within 0.6 dB of its dense network, or above, in every round, 1 to 3 (density 51.2%" in wider


def test_sentences_say_what_did_not_happen():
    scores = made_up(chain("MIR-L-G", [25, 24, 26, 24]), chain("MIR-L-LW", [25, 24.5, 25, 24.5]))
    text = said(scores)
    assert "within 0.1 dB of its dense network, or above, in round 2 (density 64.0% in the last of them)" in text
    assert "There is no round from which on MIR-L-G stays above MIR-L-LW" in text
    assert "above in round 2 only; in the last common one, 3, the difference is −0.50 dB" in text


def test_sentences_over_seeds_name_each():
    scores = made_up(
        chain("MIR-L-G", [25, 25, 25]), chain("MIR-L-G", [25, 24.7, 24], seed=1), chain("dense", [25.0], seed=1)
    )
    text = said(scores)
    assert "mean of 2 seeds; +5.00 to +5.00 dB" in text
    assert "mean of 2 seeds (seed 0 in every round, 1 to 2, seed 1 in none of its rounds)" in text


def test_rows_are_the_round_nearest_to_the_paper_and_the_headline():
    both = [chain(method, [25.0 + index for index in range(16)]) for method in ("MIR-L-G", "MIR-L-LW")]
    numbers = tables.table(made_up(*both), "derain")
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
    assert f"MIR-L-G round {nearest}: {shares[nearest]:.1%} of all parameters pruned" in tables.caption(numbers)


def test_the_papers_round_is_12_at_its_size():
    size, fixed = 33_199_064, 35_592_263 - 33_199_064
    both = [chain(method, [25.0] * 16) for method in ("MIR-L-G", "MIR-L-LW")]
    scores = made_up(*both)
    scores = scores.assign(kept=size * scores.density, parameters=fixed + size * scores.density)
    assert tables.table(scores, "derain")["round"].tolist()[2:] == [12, 12, 15, 15]


@pytest.mark.parametrize(
    ("rounds", "text"),
    [([3], "round 3"), ([2, 3, 4], "rounds 2 to 4"), ([1, 3, 4, 7], "rounds 1, 3 to 4 and 7")],
)
def test_rounds_in_words(rounds, text):
    assert sentences.in_rounds(rounds) == text


def test_missing_chains_are_named(smoke_results, tmp_path, monkeypatch):
    not_drawn(monkeypatch)
    root = copied(smoke_results, tmp_path)
    chains = root / "smoke" / "all_in_one"
    shutil.rmtree(chains / "PIR-OSR-I")
    (chains / "MIR-L-LW" / "seed0" / "summary.csv").unlink()
    text = report.write(root, "smoke").read_text(encoding="utf-8")
    assert "This report is incomplete" in text
    assert "all_in_one, PIR-OSR-I, seed 0: not begun" in text
    assert "all_in_one, MIR-L-LW, seed 0: not finished (2 rounds are)" in text
    assert "MIR-L-G" in text and "density-MIR-L-LW" not in text


def test_seeds_that_a_setting_does_not_have_are_one_line():
    rows = [("all_in_one", method, seed, 1, True) for method in METHODS for seed in (0, 1, 2)]
    rows += [("derain", method, 0, 1, True) for method in METHODS[:-1]]
    rows += [("dehaze", method, seed, 1, True) for method in METHODS for seed in (0, 2)]
    found = pd.DataFrame(rows, columns=[*analysis.RUN, "rounds", "finished"])
    lines = ["derain, seeds 1, 2: not begun", f"derain, {METHODS[-1]}, seed 0: not begun", "dehaze, seed 1: not begun"]
    assert report.missing(found) == lines


def test_without_dense_run_and_weights_there_is_still_a_page(smoke_results, tmp_path, monkeypatch):
    not_drawn(monkeypatch)
    root = copied(smoke_results, tmp_path)
    shutil.rmtree(root / "smoke" / "all_in_one" / "dense")
    for path in [*root.rglob("weights.safetensors"), *root.rglob("*-restored.png"), *root.rglob("survivors.csv")]:
        path.unlink()
    text = report.write(root, "smoke").read_text(encoding="utf-8")
    assert "all_in_one, dense, seed 0: not begun" in text
    assert "there is no dense run to compare it with" in text
    assert "No restored images: no restored images were kept in" in text
    assert "nothing was recorded of the trained weights of all_in_one, MIR-L-LW, seed 0" in text


def test_images_that_may_not_be_passed_on_are_not_shown(smoke_results, tmp_path, monkeypatch):
    not_drawn(monkeypatch)
    text = report.write(smoke_results, "smoke", out=tmp_path / "here", pictures=False).read_text(encoding="utf-8")
    assert "No restored images: they were not wanted (--no-pictures)" in text and "restored-" not in text


def test_a_report_goes_where_it_is_told_and_replaces_nothing_else(smoke_results, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "draw", lambda *_: ([], []))
    page = report.write(smoke_results, "smoke", out=tmp_path / "here")
    assert page == report.write(smoke_results, "smoke", out=tmp_path / "here") == tmp_path / "here" / "index.html"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    with pytest.raises(SettingsError, match="is not empty and holds no report") as error:
        report.write(smoke_results, "smoke", out=mine)
    assert "\n" not in str(error.value) and [path.name for path in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "smok"], "did you mean 'smoke'"),
        (["--profile", "smoke", "--results", "{empty}"], "profile='smoke' has no finished run in"),
        (["--profile", "smoke", "--out", "{mine}"], "is not empty and holds no report"),
        (["--prifile", "smoke"], "unknown option '--prifile' (did you mean '--profile'?)"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    places = {"mine": tmp_path / "mine", "empty": tmp_path / "empty"}
    with pytest.raises(SystemExit) as end:
        cli.main(["report", *(word.format(**places) for word in words)])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2 and message in error and "\n" not in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "thesis.txt"]


def test_every_seed_stands_in_a_table_with_its_distance_to_dense(smoke_results):
    scores = analysis.scores(analysis.runs("smoke", smoke_results))
    one = scores.assign(seed=1, psnr=scores.psnr + 1)
    seeds = tables.by_seed(pd.concat([scores, one], ignore_index=True), "all_in_one").set_index(
        ["method", "round", "seed"]
    )
    assert seeds.index.is_unique and set(seeds.index.get_level_values("seed")) == {0, 1}
    wanted = scores[(scores.method == "MIR-L-G") & (scores["round"] == 2) & (scores.task == "derain")].iloc[0]
    row = seeds.loc[("MIR-L-G", 2, 1)]
    assert row.derain_psnr == wanted.psnr + 1 and row.derain_delta == pytest.approx(wanted.delta)
    assert (seeds.loc["dense"].mean_delta == 0).all()
    numbers = tables.table(scores, "all_in_one").set_index("method")
    assert numbers.loc["MIR-L-G", "derain_delta"] == pytest.approx(wanted.delta)
    dense = numbers.loc["dense"]
    assert numbers.loc["input", "mean_delta"] == pytest.approx(numbers.loc["input", "mean_psnr"] - dense.mean_psnr)
    text = tables.seeds_as_text(seeds.reset_index())
    assert text.derain[0].endswith("(+0.00)") and len(text) == len(seeds)


def test_latex_and_markdown_of_every_seed_are_written(page):
    for suffix, sign in ((".md", "|"), (".tex", "tabular"), (".csv", "derain_delta")):
        assert sign in (page.parent / "tables" / f"all_in_one-seeds{suffix}").read_text()


def test_records_alone_give_the_same_page(smoke_results, page, tmp_path, monkeypatch):
    """As in results/reference/: without weights, from what was recorded beside them."""
    not_drawn(monkeypatch)
    whole = report.write(smoke_results, "smoke", out=tmp_path / "whole").read_text(encoding="utf-8")
    root = copied(smoke_results, tmp_path)
    for path in root.rglob("weights.safetensors"):
        path.unlink()
    again = report.write(root, "smoke").read_text(encoding="utf-8")
    assert again == whole and "No restored images" not in again and "restored-derain" in again


def test_sentences_on_masks_are_of_the_frames():
    counts = pd.DataFrame(
        {"setting": "derain", "method": "MIR-L-G", "seed": [0, 1], "round": 3, "idle": [0.1, 0.3], "of_prunable": 0.5}
        | {
            "kept": 10,
            "effective": [6, 4],
            "sign_only": [2, 3],
            "constant": [1, 0],
            "of_effective": 0.4,
            "of_trainable": 0.6,
            "dead": 1,
            "units": 4,
        }
    )
    pairs = [("seed", "derain, MIR-L-G, 0", "derain, MIR-L-G, 1", 3, 0.2, 0.21, -1.5)]
    chains = pd.DataFrame(pairs, columns=["differ", "a", "b", "round", "iou", "chance", "z"])
    stayed = pd.DataFrame(columns=["setting", "method", "seed", *trained.TABLES["survivors"]])
    unused = pd.DataFrame({"method": "MIR-L-G", "seed": [0], "round": 3, "share": 0.25, "density": 0.9, "others": 0.1})
    text = "\n".join(sentences.of_masks(counts, chains, stayed, unused, "derain", 3))
    assert "MIR-L-G, round 3: of the kept weights 50.0% (40.0% to 60.0%) are effective" in text
    assert "25.0% (20.0% to 30.0%) set but a sign" in text and "5.0% (0.0% to 10.0%) carry a constant" in text
    assert "and 20.0% (10.0% to 30.0%) are idle: without them the output is the same" in text
    assert "40.0% by those that are effective" in text and "25.0% of the units are dead (seeds 0, 1)" in text
    assert "MIR-L-G, two seeds (other initial values, other order): in round 3 their masks" in text
    assert "IoU of 0.200, by chance 0.210 (mean of 1 pair); the number of shared weights is −1.5 standard" in text
    assert "25.0% of what is kept lies in convolutions that never run; they are 90.0% full, the others 10.0%" in text


def test_what_survives_is_told_of_effective_weights_first():
    rows = [("all", 10, 0.8, 0.99), ("effective", 2, 0.6, 0.5), ("rest", 8, 0.9, 1.0)]
    last = pd.DataFrame(rows, columns=["part", "kept", "rank", "same_sign"]).assign(seed=0).rename_axis("x")
    last["round"] = 3
    text = sentences._survived(last, "MIR-L-G")
    assert text.index("the effective weights (2 on average)") < text.index("those that are not (8 on average)")
    assert "60% of their tensor, and 50.0% of them have the sign" in text and "99.0%" not in text
    assert "the idle ones included" in sentences._survived(last[last.part == "all"], "MIR-L-G")


def test_a_component_of_its_own_is_above_all_images_of_others():
    rows = [
        ("dense", 0, 0, "prompt1", task, name, component, weight if component else 1 - weight)
        for task, weights in {"derain": (0.7, 0.8), "dehaze": (0.4, 0.5), "denoise25": (0.2, 0.6)}.items()
        for name, weight in zip("ab", weights, strict=True)
        for component in (0, 1)
    ]
    columns = ["method", "seed", "round", "prompt", "task", "name", "component", "weight"]
    (text,) = sentences.of_prompts(pd.DataFrame(rows, columns=columns), 3)
    assert "derain has component 1 of prompt1 (seed 0)." in text and "dehaze has" not in text
    assert "differ by at most 0.35 in a component's weight (0.5 each" in text


def test_nothing_at_all_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match="no finished run") as error:
        report.write(tmp_path, "smoke")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_second_report_replaces_the_first(smoke_results, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "draw", lambda *_: ([], []))
    root = copied(smoke_results, tmp_path)
    page = report.write(root, "smoke")
    stale = page.parent / "tables" / "stale.csv"
    stale.write_text("")
    assert report.write(root, "smoke") == page
    assert not stale.exists() and not list(page.parents[1].glob(".report*"))


def test_the_report_of_a_reference_goes_elsewhere(smoke_results, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "draw", lambda *_: ([], []))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    root = copied(smoke_results, tmp_path / "reference")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    page = report.write(root, "smoke")
    assert page.is_file() and page.is_relative_to(tmp_path / "elsewhere")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_families_are_judged_one_by_one():
    lottery = pd.concat(
        [chain("MIR-L-G", values).query("task == 'mean'").assign(task=task) for task, values in FAMILY_CHAINS.items()]
    )
    text = sentences._by_family(lottery, "MIR-L-G", 0.1)
    assert "derain in rounds 1 to 2 (density 64.0%); dehaze in rounds 2 to 3 (density 51.2%)" in text


def test_families_that_the_dense_network_does_not_restore_are_named():
    whole = chain("dense", [25.0]).query("task == 'mean'")
    each = [whole.assign(task=task, psnr=20 + gain) for task, gain in (("derain", 0.05), ("dehaze", 5.0))]
    text = sentences._gain(whole, pd.concat(each), 0.1, "the mean of the families")
    assert "; by family: derain +0.05 dB; dehaze +5.00 dB. On derain it is within 0.1 dB of its input" in text


def test_layers_without_an_effective_weight_are_told():
    rows = [
        (0, index, layer, effective)
        for index, layer, effective in [
            (0, "a", 4),
            (0, "b", 4),
            (0, "never", 0),
            (1, "a", 2),
            (1, "b", 0),
            (1, "never", 0),
        ]
    ]
    lives = pd.DataFrame(rows, columns=["seed", "round", "layer", "effective"])
    text = sentences._ineffective(lives, "MIR-L-LW")
    assert text.endswith("whatever they keep: first b, in round 1; in round 1 1 of 2 (seed 0).")


FAMILY_CHAINS = {"derain": [25, 25.2, 24.95, 24.5], "dehaze": [25, 24, 25, 25]}


def test_scatter_and_the_last_round_are_said():
    text = said(made_up(chain("MIR-L-G", [25, 24, 26, 19])))
    assert "MIR-L-G: in its last round, 3, it scores, against its input, derain −1.00 dB." in text
    assert "moves by 2.00 dB in the median, 7.00 dB at most" in text
