"""Tables in the paper's form, with the paper's numbers beside ours: as numbers, as text, as files."""

from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from mirl_study import analysis
from mirl_study.analysis import signed
from mirl_study.figures import count
from mirl_study.sentences import counted
from mirl_study.settings import LOTTERY, METHODS
from mirl_study.store import write_csv

PAPER_PRUNED = 0.87  # share of all parameters that the lottery rows of the paper's tables have lost
HEADLINE = 15  # the round of the paper's title figure, 90 %
PAPER_NAMES = {"dense": "PromptIR"}
OURS, THEIRS = "this run", "paper (other network, data and steps)"


def published() -> pd.DataFrame:
    """Returns the numbers of the paper's Tables II and III (arXiv 2510.14463), a row a method, task and test set."""
    return pd.read_csv(resources.files("mirl_study") / "published.csv", comment="#")


def table(scores: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Makes the numbers of a table like the paper's II (one task) or III (all-in-one).

    The lottery rows are of the round whose share of pruned parameters is nearest to the paper's 87 %, and of round 15,
    or else the last one.

    Args:
        scores: what ``analysis.scores`` returned.
        setting: whose table.

    Returns:
        A row a method and round, ``input`` (no restoration) first: ``method``, ``round``, ``seeds``, ``density``,
        ``parameters``, ``pruned`` (share of all parameters), ``compression``; ``<task>_psnr`` (dB), ``<task>_sd`` (over
        seeds), ``<task>_ssim``, ``<task>_delta`` (dB above the dense network of the same seed, mean over seeds) for
        each task and ``mean``; the paper's ``paper_parameters``, ``paper_compression`` and
        ``paper_<task>_<test set>_psnr`` and ``_ssim``. Missing where there is no such number.
    """
    means = analysis.over_seeds(scores[scores.setting == setting])
    tasks = [task for task in (*analysis.SINGLE, "mean") if task in set(means.task)]
    tasks = tasks if len(tasks) > 2 else tasks[:1]  # of a single task, the mean is that task
    dense = round((means.parameters - means.kept + means.kept / means.density).max())  # never pruned + prunable
    paper = _paper(setting)
    rows = []
    for method, index in [("input", 0), *_rows(means, dense)]:
        own = means if method == "input" else means[(means["round"] == index) & (means.method == method)]
        own = own.drop_duplicates("task").set_index("task")
        kind = "input_" if method == "input" else ""
        row: dict[str, Any] = {"method": method}
        if method != "input":
            first = own.iloc[0]
            row |= {"round": index, "seeds": first.seeds, "density": first.density, "parameters": first.parameters}
            row |= {"pruned": 1 - first.parameters / dense, "compression": dense / first.parameters}
        for task in tasks:
            row[f"{task}_psnr"] = own.loc[task, f"{kind}psnr"]
            row[f"{task}_sd"] = own.loc[task, "sd"] if method != "input" else None
            row[f"{task}_ssim"] = own.loc[task, f"{kind}ssim"]
            row[f"{task}_delta"] = own.loc[task, "delta"] if method != "input" else _below(means, task)
        name = PAPER_NAMES.get(method, method)
        theirs = name in paper.index and (method not in LOTTERY or index == _paper_round(means, dense))
        rows.append(row | (paper.loc[name].to_dict() if theirs else dict.fromkeys(paper.columns)))
    return pd.DataFrame(rows).astype({"round": "Int64", "seeds": "Int64"})


def _below(means: pd.DataFrame, task: str) -> float | None:
    """How far the input is above the dense network, in dB."""
    dense = means[(means.method == "dense") & (means.task == task)]
    return (dense.input_psnr - dense.psnr).mean() if len(dense) else None


def by_seed(scores: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Lists every seed of the rows that ``table`` has means of.

    Args:
        scores: what ``analysis.scores`` returned.
        setting: whose.

    Returns:
        A row a method, round and seed: ``method``, ``round``, ``seed``, ``parameters``, and, for each task and
        ``mean``, ``<task>_psnr`` (dB), ``<task>_ssim`` and ``<task>_delta`` (dB above the dense network of the seed).
    """
    own = scores[scores.setting == setting]
    rows = table(scores, setting).dropna(subset="round")
    parts = []
    for row in rows.itertuples():
        chosen = own[(own.method == row.method) & (own["round"] == row.round)]
        wide = chosen.pivot(index="seed", columns="task", values=["psnr", "ssim", "delta"])
        tasks = [name.removesuffix("_psnr") for name in rows if name.endswith("_psnr") and not name.startswith("paper")]
        columns = {f"{task}_{name}": wide[name, task] for task in tasks for name in ("psnr", "ssim", "delta")}
        size = chosen.groupby("seed").parameters.first()
        parts.append(
            pd.DataFrame({"parameters": size, **columns}).assign(method=row.method, round=row.round).reset_index()
        )
    frame = pd.concat(parts, ignore_index=True)
    first = ["method", "round", "seed"]
    return frame[first + [name for name in frame if name not in first]]


def seeds_as_text(seeds: pd.DataFrame) -> pd.DataFrame:
    """Turns what ``by_seed`` returned into the table that is read: PSNR, SSIM and the difference to dense in a cell."""
    text = {"method": seeds.method, "round": seeds["round"].astype(str), "seed": seeds.seed.astype(str)}
    for name in (name.removesuffix("_psnr") for name in seeds if name.endswith("_psnr")):
        values = zip(seeds[f"{name}_psnr"], seeds[f"{name}_ssim"], seeds[f"{name}_delta"], strict=True)
        text[name] = [f"{_cell(psnr, None, ssim)} ({signed(delta)})" for psnr, ssim, delta in values]
    text["parameters"] = seeds.parameters.map(count)
    return pd.DataFrame(text)


def _rows(means: pd.DataFrame, dense: float) -> list[tuple[str, int]]:
    """Methods and rounds of the table's rows, in the paper's order; lotteries by round, then method."""
    there = set(means.method)
    rows = [(method, int(method != "dense")) for method in METHODS if method in there and method not in LOTTERY]
    chosen = []
    for method in (name for name in METHODS if name in there and name in LOTTERY):
        rounds = set(means[means.method == method]["round"])
        chosen.append((0, method, _paper_round(means, dense)))
        chosen.append((1, method, HEADLINE if HEADLINE in rounds else max(rounds)))
    chosen = [(place, method, index) for place, method, index in chosen if not (place and (0, method, index) in chosen)]
    return rows + [(method, index) for _, method, index in sorted(chosen, key=lambda row: row[0])]


def _paper_round(means: pd.DataFrame, dense: float) -> int:
    """The round, one for both lotteries, whose share of pruned parameters is nearest to that of the paper's tables."""
    lotteries = means[means.method.isin(LOTTERY) & (means["round"] > 0)]
    sizes = lotteries.groupby(["round", "method"]).parameters.first().unstack().dropna().mean(axis=1)
    return int((1 - sizes / dense - PAPER_PRUNED).abs().idxmin())


def _paper(setting: str) -> pd.DataFrame:
    """The paper's numbers for a setting, a row a method."""
    numbers = published()
    numbers = (
        numbers[numbers.setting == "all_in_one"]
        if setting == "all_in_one"
        else numbers[(numbers.setting == "single") & (numbers.task == setting)]
    )
    if numbers.empty:  # the paper has no such setting
        return pd.DataFrame()
    sigma = numbers.sigma.map(lambda value: "" if pd.isna(value) else f"{value:.0f}")
    numbers = numbers.assign(place="paper_" + numbers.task + sigma + "_" + numbers.dataset)
    wide = numbers.pivot(index="method", columns="place", values=["psnr_db", "ssim"])
    size = numbers.groupby("method").trainable_parameters.first()
    columns = {"paper_parameters": size, "paper_compression": size["PromptIR"] / size}
    for place in dict.fromkeys(numbers.place):
        columns |= {f"{place}_psnr": wide["psnr_db", place], f"{place}_ssim": wide["ssim", place]}
    return pd.DataFrame(columns)


def as_text(numbers: pd.DataFrame) -> pd.DataFrame:
    """Turns what ``table`` returned into the table that is read.

    Args:
        numbers: what ``table`` or ``comparison.tables.comparison_table`` returned.

    Returns:
        Text: PSNR / SSIM in one cell; two groups of columns, ours and the paper's.
    """
    names = {"input": "input (no restoration)", "dense": "dense (PromptIR)"}
    several = numbers.seeds.max() > 1
    text = {("", "method"): numbers.method.map(lambda name: names.get(name, name))}
    if "round" in numbers:
        text["", "round"] = numbers["round"].map(_or_dash("{:d}"))
    if numbers.seeds.nunique() > 1:
        text["", "seeds"] = numbers.seeds.map(_or_dash("{:d}"))
    if "recipe" in numbers:  # of models that are not pruned
        text["", "recipe"] = numbers.recipe.map(_or_dash("{}"))
    for name in numbers.columns:
        if name.endswith("_psnr"):
            place = name.removesuffix("_psnr")
            paper = place.startswith("paper_")
            sd = numbers[f"{place}_sd"] if several and not paper else [None] * len(numbers)
            cells = [_cell(*row) for row in zip(numbers[name], sd, numbers[f"{place}_ssim"], strict=True)]
            label = place.removeprefix("paper_").replace("_", " ")
            text[THEIRS if paper else OURS, label] = pd.Series(cells, index=numbers.index)
    for group, prefix in ((OURS, ""), (THEIRS, "paper_")):
        if f"{prefix}parameters" not in numbers:
            continue
        if not prefix and (last := [name for name in numbers if name.endswith("_delta")][-1:]):
            text[group, "above dense / dB"] = numbers[last[0]].map(signed)
        if not prefix and "gain" in numbers:
            text[group, "above input / dB"] = numbers.gain.map(signed)
        text[group, "parameters"] = numbers[f"{prefix}parameters"].map(
            lambda value: "–" if pd.isna(value) else count(value)
        )
        if f"{prefix}compression" not in numbers:
            continue
        if not prefix:
            text[group, "pruned"] = numbers.pruned.map(_or_dash("{:.1%}"))
        text[group, "compression"] = numbers[f"{prefix}compression"].map(_or_dash("×{:.2f}"))
    order = [*[key for key in text if key[0] in ("", OURS)], *[key for key in text if key[0] == THEIRS]]
    return pd.DataFrame({key: text[key] for key in order})


def _cell(psnr: float, sd: float | None, ssim: float) -> str:
    if pd.isna(psnr):
        return "–"
    return f"{psnr:.2f}{'' if sd is None or pd.isna(sd) else f' ± {sd:.2f}'} / {ssim:.4f}"


def _or_dash(form: str) -> Any:
    return lambda value: "–" if pd.isna(value) else form.format(value)


def caption(numbers: pd.DataFrame) -> str:
    """Says what the columns of the table are and of how many seeds, computed from its rows."""
    seeds = numbers.seeds.dropna()
    many = counted(int(seeds.min()), "seed") if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()} seeds"
    spread = "one seed: no spread is known" if seeds.max() == 1 else "± is the sample standard deviation over seeds"
    spread += "; differences to dense are paired by seed" if "mean_delta" in numbers and seeds.max() > 1 else ""
    lottery = numbers[numbers.method.isin(LOTTERY)]
    rounds = "; ".join(
        f"{row.method} round {row.round}: {row.pruned:.1%} of all parameters pruned" for row in lottery.itertuples()
    )
    return (
        f"PSNR / dB and SSIM, means over test images; {many} ({spread}). {rounds}."
        if rounds
        else f"PSNR / dB and SSIM; {many} ({spread})."
    )


def write_table(numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Writes a table as CSV (plain numbers), Markdown and LaTeX (as it is read).

    Args:
        numbers: what ``table`` or ``comparison.tables.comparison_table`` returned.
        folder: where.
        name: of the files.

    Returns:
        The paths.
    """
    text = as_text(numbers)
    flat = text.set_axis([column if group != THEIRS else f"paper: {column}" for group, column in text.columns], axis=1)
    source = (
        " Columns that begin with “paper” are copied from arXiv 2510.14463: other network, data and steps (a "
        "compression that is not stated there follows from the parameters)."
    )
    source = source if THEIRS in set(text.columns.get_level_values(0)) else ""
    return _write(numbers, flat, text, caption(numbers), source, folder, name)


def write_seeds(seeds: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Writes what ``by_seed`` returned, as ``write_table`` does."""
    text = seeds_as_text(seeds)
    words = (
        "Every seed: PSNR / dB and SSIM, means over test images; in brackets dB above the dense network of the seed."
    )
    return _write(seeds, text, text, words, "", folder, name)


def _write(
    numbers: pd.DataFrame, flat: pd.DataFrame, text: pd.DataFrame, words: str, source: str, folder: Path, name: str
) -> list[Path]:
    paths = [folder / f"{name}{suffix}" for suffix in (".csv", ".md", ".tex")]
    write_csv(paths[0], numbers)
    paths[1].write_text(
        f"{flat.to_markdown(index=False, disable_numparse=True)}\n\n{words}{source}\n", encoding="utf-8"
    )
    plain = text.map(lambda cell: cell.replace("–", "--").replace("−", "-"))
    form = {"multicolumn_format": "c", "column_format": "ll" + "r" * (text.shape[1] - 2)}
    latex = plain.to_latex(index=False, escape=True, caption=_tex(words), **form)
    paths[2].write_text(latex.replace("±", r"$\pm$").replace("×", r"$\times$"), encoding="utf-8")
    return paths


def _tex(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_")
