"""Tables in the paper's form and one page that opens without a network, computed from the files of the runs."""

import os
import shutil
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from mirl_study import analysis, figures, verdicts
from mirl_study.analysis import IDENTITY, RUN, Restoration
from mirl_study.data import load_bank
from mirl_study.settings import LOTTERY, METHODS, SETTINGS, SettingsError, read_settings
from mirl_study.store import project_root, results_root, write_csv

MARGIN = 0.1  # dB
EQUAL = 0.02  # an interquartile range of densities below this is rounding
PAPER_PRUNED = 0.87  # share of all parameters that the lottery rows of the paper's tables have lost
HEADLINE = 15  # the round of the paper's title figure, 90 %
PAPER_NAMES = {"dense": "PromptIR"}
NOT_LISTED = ("profile", "protocol", "setting", "scope", "seed", "rounds", "checkpoint_every", "data_fingerprint")
HEAD = (
    "settings",
    "seeds",
    "steps",
    "rounds after the dense one",
    "device",
    "time",
)  # of the facts, what the page opens with
OURS, THEIRS = "this run", "paper (other network, data and steps)"


def write(results: Path | str | None = None, profile: str = "laptop", margin: float = MARGIN) -> Path:
    """Writes the report of a profile: ``results/<profile>/report/`` with ``index.html``, ``tables/`` and ``figures/``.

    Args:
        results: root of all results; the project's ``results/`` if not given.
        profile: whose runs.
        margin: dB below dense that still counts as close to it.

    Returns:
        The page.

    Raises:
        SettingsError: if there is no finished run, or a file of one cannot be read.
    """
    found = analysis.runs(profile, results)
    folder = results_root(results) / profile
    scores, densities = analysis.scores(found), analysis.densities(found)
    ended = analysis.collapse(scores, densities)
    made = folder / f".report.{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    try:
        write_csv(made / "tables" / "scores.csv", scores)
        write_csv(made / "tables" / "collapse.csv", ended)
        write_csv(made / "tables" / "densities.csv", densities.drop(columns=["stage", "part"]).round(6))
        parts = []
        for setting in (name for name in SETTINGS if name in set(scores.setting)):
            own = found[found.finished & (found.setting == setting)]
            numbers = table(scores, setting)
            files = write_table(numbers, made / "tables", setting)
            drawn, left_out = _draw(own, scores, densities, ended, made / "figures", setting)
            compared = _compare(own, made, setting, margin, results)
            parts.append(
                {
                    "name": setting,
                    "findings": findings(scores, densities, setting, margin),
                    "table": _html(as_text(numbers)),
                    "caption": caption(numbers),
                    "published": "paper_parameters" in numbers,
                    "files": [path.relative_to(made).as_posix() for path in files],
                    "figures": drawn,
                    "left_out": left_out,
                    "tickets": compared,
                }
            )
        run = facts(found)
        first = [(name, run[name]) for name in HEAD if name in run]
        page = {
            "profile": profile,
            "parts": parts,
            "missing": missing(found),
            "head": first,
            "facts": run,
            "margin": margin,
        }
        (made / "index.html").write_text(_template().render(page), encoding="utf-8")
        target = folder / "report"
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target / "index.html"


def missing(found: pd.DataFrame) -> list[str]:
    """Lists the chains that are not finished: of each setting that was begun, every method with every seed.

    Args:
        found: what ``analysis.runs`` returned.

    Returns:
        A line a chain, empty if all are there.
    """
    lines = []
    for setting, group in found.groupby("setting", sort=False):
        for method in METHODS:
            for seed in sorted(group.seed.unique()):
                run = group[(group.method == method) & (group.seed == seed)]
                if run.empty:
                    lines.append(f"{setting}, {method}, seed {seed}: not begun")
                elif not run.finished.iloc[0]:
                    lines.append(f"{setting}, {method}, seed {seed}: not finished ({run.rounds.iloc[0]} rounds are)")
    return lines


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
        seeds), ``<task>_ssim`` for each task and ``mean``; the paper's ``paper_parameters``, ``paper_compression`` and
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
        name = PAPER_NAMES.get(method, method)
        theirs = name in paper.index and (method not in LOTTERY or index == _paper_round(means, dense))
        rows.append(row | (paper.loc[name].to_dict() if theirs else dict.fromkeys(paper.columns)))
    return pd.DataFrame(rows).astype({"round": "Int64", "seeds": "Int64"})


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
        numbers: what ``table`` returned.

    Returns:
        Text: PSNR / SSIM in one cell; two groups of columns, ours and the paper's.
    """
    names = {"input": "input (no restoration)", "dense": "dense (PromptIR)"}
    several = numbers.seeds.max() > 1
    text = {
        ("", "method"): numbers.method.map(lambda name: names.get(name, name)),
        ("", "round"): numbers["round"].map(_or_dash("{:d}")),
    }
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
        text[group, "parameters"] = numbers[f"{prefix}parameters"].map(
            lambda value: "–" if pd.isna(value) else figures.count(value)
        )
        if not prefix:
            text[group, "pruned"] = numbers.pruned.map(_or_dash("{:.1%}"))
        text[group, "compression"] = numbers[f"{prefix}compression"].map(_or_dash("×{:.2f}"))
    order = [*[key for key in text if key[0] in ("", OURS)], *[key for key in text if key[0] == THEIRS]]
    return pd.DataFrame({key: text[key] for key in order})


def _html(text: pd.DataFrame) -> str:
    """The table for the page: SSIM below PSNR, so that it fits a screen; a line between the groups of columns."""
    groups = pd.Series([group for group, _ in text.columns])
    spans = "".join(f'<colgroup span="{(groups == group).sum()}"></colgroup>' for group in groups.unique())
    html = text.to_html(index=False, border=0).replace(" / ", "<br>")
    return html.replace("<thead>", f"{spans}<thead>", 1)


def _cell(psnr: float, sd: float | None, ssim: float) -> str:
    if pd.isna(psnr):
        return "–"
    return f"{psnr:.2f}{'' if sd is None or pd.isna(sd) else f' ± {sd:.2f}'} / {ssim:.4f}"


def _or_dash(form: str) -> Any:
    return lambda value: "–" if pd.isna(value) else form.format(value)


def caption(numbers: pd.DataFrame) -> str:
    """Says what the columns of the table are and of how many seeds, computed from its rows."""
    seeds = numbers.seeds.dropna()
    many = _count(int(seeds.min()), "seed") if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()} seeds"
    spread = "one seed: no spread is known" if seeds.max() == 1 else "± is the sample standard deviation over seeds"
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
        numbers: what ``table`` returned.
        folder: where.
        name: of the files.
    """
    paths = [folder / f"{name}{suffix}" for suffix in (".csv", ".md", ".tex")]
    write_csv(paths[0], numbers)
    text = as_text(numbers)
    flat = text.set_axis([column if group != THEIRS else f"paper: {column}" for group, column in text.columns], axis=1)
    source = " Columns that begin with “paper” are copied from arXiv 2510.14463: other network, data and steps."
    source = source if THEIRS in set(text.columns.get_level_values(0)) else ""
    paths[1].write_text(f"{flat.to_markdown(index=False)}\n\n{caption(numbers)}{source}\n", encoding="utf-8")
    columns = "ll" + "r" * (text.shape[1] - 2)
    plain = text.map(lambda cell: cell.replace("–", "--"))
    latex = plain.to_latex(
        index=False, escape=True, multicolumn_format="c", column_format=columns, caption=_tex(caption(numbers))
    )
    paths[2].write_text(latex.replace("±", r"$\pm$").replace("×", r"$\times$"), encoding="utf-8")
    return paths


def _tex(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_")


def findings(scores: pd.DataFrame, densities: pd.DataFrame, setting: str, margin: float = MARGIN) -> list[str]:
    """Says in sentences what the numbers say, and what did not happen.

    Args:
        scores: what ``analysis.scores`` returned.
        densities: what ``analysis.densities`` returned.
        setting: about which.
        margin: dB below dense that still counts as close to it.
    """
    own = scores[(scores.setting == setting) & (scores.task == "mean")]
    ended, sizes = analysis.collapse(scores, densities), analysis.initial_size(densities)
    ended, sizes = ended[ended.setting == setting], sizes[sizes.setting == setting]
    lotteries = [method for method in reversed(LOTTERY) if method in set(own.method)]
    sentences = [_gain(own[own.method == "dense"])]
    for method in lotteries:
        sentences.append(_close(own[own.method == method], method, margin))
        families = scores[(scores.setting == setting) & (scores.method == method) & scores.task.isin(analysis.FAMILIES)]
        if families.task.nunique() > 1:
            sentences.append(_by_family(families, method, margin))
    sentences += [_emptied(ended[ended.method == method], method) for method in lotteries]
    sentences += [_identity(ended[ended.method == method], method) for method in lotteries]
    sentences += [_scale(sizes[sizes.method == method], method) for method in lotteries]
    sentences += [_end(scores[(scores.setting == setting) & (scores.method == method)], method) for method in lotteries]
    sentences += [_scatter(own[own.method == method], method) for method in lotteries]
    if len(lotteries) == 2:
        sentences.append(_above(own))
    return sentences


def _gain(dense: pd.DataFrame) -> str:
    if dense.empty:
        return "There is no finished dense run."
    gains = dense.psnr - dense.input_psnr
    side = "above" if gains.mean() >= 0 else "below"
    text = f"On the mean of the families, the dense network is {abs(gains.mean()):.2f} dB {side} its input"
    if len(gains) == 1:
        return f"{text} (seed {dense.seed.iloc[0]}; one seed: no spread is known)."
    return f"{text} (mean of {len(gains)} seeds; {_signed(gains.min())} to {_signed(gains.max())} dB)."


def _close(own: pd.DataFrame, method: str, margin: float) -> str:
    """Up to which round a lottery stays within the margin of its dense network."""
    delta = own.pivot(index="round", columns="seed", values="delta").dropna()
    if delta.empty:
        return f"{method}: there is no dense run to compare it with."
    density = own.groupby("round").density.mean()
    last, again = analysis.within_margin(delta.mean(axis=1), margin)
    at = "" if last is None else f" (density {density[last]:.1%})"
    name, end = f"{method}, on the mean of the families,", int(delta.index.max())
    if last is None:
        text = f"{name} is more than {margin:g} dB below its dense network in round 1 already"
    elif last == end:
        text = f"{name} is never more than {margin:g} dB below its dense network, up to its last round, {last}{at}"
    else:
        text = f"{name} stays within {margin:g} dB of its dense network, or above, up to round {last}{at}"
    if again:
        only = "only in" if last is None else "again in"
        text += f"; it is within {margin:g} dB of it, or above, {only} {_rounds(again)}"
    if delta.shape[1] == 1:
        return f"{text}; seed {delta.columns[0]} alone."
    each = [(seed, analysis.within_margin(delta[seed], margin)[0]) for seed in delta.columns]
    seeds = ", ".join(
        f"seed {seed} up to round {one}" if one is not None else f"seed {seed} in none" for seed, one in each
    )
    return f"{text}; mean of {delta.shape[1]} seeds ({seeds})."


def _by_family(families: pd.DataFrame, method: str, margin: float) -> str:
    """Up to which round a lottery stays within the margin, family by family."""
    parts = []
    for task, own in families.groupby("task", sort=False):
        last, _ = analysis.within_margin(own.groupby("round").delta.mean(), margin)
        density = own.groupby("round").density.mean()
        parts.append(
            f"{task} up to round {last} (density {density[last]:.1%})" if last else f"{task} not even in round 1"
        )
    return f"{method}, family by family, stays within {margin:g} dB of its dense network, or above: {'; '.join(parts)}."


def _emptied(ended: pd.DataFrame, method: str) -> str:
    """Which layer emptied first."""
    seen = ended[ended.emptied_round.notna()]
    if seen.empty:
        return f"{method}: no layer emptied in its {_count(int(ended['last'].max()), 'round')} ({_seeds(ended.seed)})."
    parts = [f"in round {row.emptied_round}, {row.emptied_layers} (seed {row.seed})" for row in seen.itertuples()]
    others = ended[ended.emptied_round.isna()]
    return f"{method}: the first layer emptied {'; '.join(parts)}" + (
        f"; none with {_seeds(others.seed)}." if len(others) else "."
    )


def _identity(ended: pd.DataFrame, method: str) -> str:
    """From which round on the network returns its input."""
    rule = f"every test image's PSNR within {IDENTITY:g} dB of the input's"
    seen = ended[ended.identity_round.notna()]
    if seen.empty:
        return f"{method}: in none of its rounds is the network the identity ({rule}; {_seeds(ended.seed)})."
    parts = []
    for row in seen.itertuples():
        lasting = pd.notna(row.identity_from)
        text = (
            f"from round {row.identity_from} on"
            if lasting
            else f"in round {row.identity_round}, though not in every later one,"
        )
        early = (
            f" (and in round {row.identity_round} before)" if lasting and row.identity_round < row.identity_from else ""
        )
        parts.append(f"{text}{early} with seed {row.seed}")
    others = ended[ended.identity_round.isna()]
    never = f"; never with {_seeds(others.seed)}" if len(others) else ""
    return f"{method}: the network is the identity ({rule}) {'; '.join(parts)}{never}."


def _end(own: pd.DataFrame, method: str) -> str:
    """How far above its input the last round is, family by family."""
    last = own[(own["round"] == own["round"].max()) & own.task.isin(analysis.FAMILIES)]
    gains = (last.psnr - last.input_psnr).groupby(last.task, sort=False).mean()
    parts = [f"{task} {_signed(gain)} dB" for task, gain in gains.items()]
    return f"{method}: in its last round, {own['round'].max()}, it scores, against its input, {', '.join(parts)}."


def _scatter(own: pd.DataFrame, method: str) -> str:
    """How much the score moves from one round to the next: what a difference between two points has to exceed."""
    wide = own.pivot(index="round", columns="seed", values="psnr").sort_index()
    steps = wide.diff().abs().stack()
    if steps.empty:
        return f"{method} has no round after the dense one."
    return (
        f"{method}: from one round to the next its score on the mean of the families moves by {steps.median():.2f} dB "
        f"in the median, {steps.max():.2f} dB at most; smaller differences between two points mean little."
    )


def _scale(sizes: pd.DataFrame, method: str) -> str:
    """Whether the size of the initial weights decides which layers empty."""
    last = sizes[sizes["round"] == sizes["round"].max()]
    values = last.rank_correlation.dropna()
    if values.empty or (last.spread < EQUAL).all():
        return (
            f"{method}: but for rounding, layers are equally dense; the size of their initial weights decides nothing."
        )
    shown = ", ".join(f"{row.rank_correlation:+.2f} with seed {row.seed}" for row in last.dropna().itertuples())
    return (
        f"{method}: over {last.layers.iloc[0]} layers in round {last['round'].iloc[0]}, the rank correlation of "
        f"density with the inputs of a layer's units is {shown} (near -1: layers initialised smaller keep less)."
    )


def _above(own: pd.DataFrame) -> str:
    """From which round on global stays above layer-wise."""
    wide = own[own.method.isin(LOTTERY)].pivot(index="round", columns=["method", "seed"], values="psnr")
    difference = (wide["MIR-L-G"] - wide["MIR-L-LW"]).dropna(axis=1, how="all").dropna().loc[1:]
    if difference.empty:
        return "MIR-L-G and MIR-L-LW have no round of one seed in common."
    mean = difference.mean(axis=1)
    since, above = analysis.stays_above(mean)
    last, seeds = int(mean.index.max()), difference.shape[1]
    who = f"seed {difference.columns[0]} alone" if seeds == 1 else f"mean of {seeds} seeds"
    count = f"it is above in {len(above)} of {len(mean)} rounds, {_signed(mean.mean())} dB on average"
    if since is not None:
        part = mean.loc[since:]
        gap = f"by {part.min():.2f} to {part.max():.2f} dB" if len(part) > 1 else f"by {part.min():.2f} dB"
        who = f"on the mean of the families, {gap} ({who})"
        return (
            f"From round {since} on, to the last common one, {last}, MIR-L-G is above MIR-L-LW {who}; in all, {count}."
        )
    some = f"it is above in {_rounds(above)} only" if above else "it is above in no round"
    return (
        f"There is no round from which on MIR-L-G stays above MIR-L-LW on the mean of the families: {some}; "
        f"in the last common one, {last}, the difference is {_signed(mean[last])} dB ({who}); in all, {count}."
    )


def _rounds(indices: Iterable[int]) -> str:
    """Rounds in words: ``round 3``, ``rounds 2 to 4 and 7``."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    texts = [f"{a}" if a == b else f"{a} to {b}" for a, b in spans]
    joined = " and ".join(([", ".join(texts[:-1])] if texts[1:] else []) + texts[-1:])
    return f"round{'' if len(spans) == 1 and spans[0][0] == spans[0][1] else 's'} {joined}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _seeds(seeds: Iterable[int]) -> str:
    numbers = sorted(set(seeds))
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def facts(found: pd.DataFrame) -> dict[str, str]:
    """Says what was run: settings, machine, time. A setting that differs between runs is listed with every value.

    Args:
        found: what ``analysis.runs`` returned.

    Returns:
        Values by name, for reading.
    """
    found = found[found.finished]
    records = [analysis.read_json(folder / "run.json") for folder in found.folder]
    values: dict[str, list[str]] = {}

    def note(name: str, value: Any) -> None:
        if str(value) not in values.setdefault(name, []):
            values[name].append(str(value))

    rounds = found[found.method.isin(LOTTERY)].rounds
    if len(rounds):
        note(
            "rounds after the dense one", rounds.min() if rounds.nunique() == 1 else f"{rounds.min()} to {rounds.max()}"
        )
    seconds = 0.0
    for folder, record in zip(found.folder, records, strict=True):
        settings = read_settings(record["settings"])
        changed = ", ".join(f"{name} {_plain(value)}" for name, value in settings.departures().items())
        note("protocol", f"{settings.protocol}{f', but for {changed}' if changed else ''}")
        for name, value in record["settings"].items():
            if name == "network":
                note(name, ", ".join(f"{key} {_plain(item)}" for key, item in value.items()))
            elif name not in NOT_LISTED:
                note(name.replace("_", " "), _plain(value))
        note("data fingerprint (SHA-256)", record["settings"].get("data_fingerprint", "unknown"))
        note("device", record["device"])
        note("threads", record["threads"])
        for package in ("torch", "python"):
            note(package, record["versions"][package])
        dirty = f" with {_count(record['changed_files'], 'changed file')}" if record["changed_files"] else ""
        note("commit", (record["commit"] or "not in a git checkout") + (dirty if record["commit"] else ""))
        for path in sorted(folder.glob("round*/round.json")):
            round_facts = analysis.read_json(path)
            seconds += round_facts["training_seconds"] + round_facts["evaluation_seconds"]
    alone = "" if found.seed.nunique() > 1 else " (one seed: no spread is known)"
    head = {
        "settings": ", ".join(dict.fromkeys(found.setting)),
        "methods": ", ".join(method for method in METHODS if method in set(found.method)),
        "seeds": ", ".join(map(str, sorted(found.seed.unique()))) + alone,
    }
    began = sorted(record["started"] for record in records)
    tail = {
        "time": f"{_clock(seconds)} of training and evaluation, all chains added up",
        "chains begun": f"{began[0]} to {began[-1]}",
        **_sessions(records),
    }
    return head | {name: "; ".join(items) for name, items in values.items()} | tail


def _sessions(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the processes that worked on the runs have left on record; runs of earlier versions have nothing."""
    sessions = [session for record in records for session in record.get("sessions", [])]
    values = {}
    if resumed := sum(len(record.get("sessions", [])) > 1 for record in records):
        values["resumed"] = _count(resumed, "chain")
    for name, label in (("process", "peak memory"), ("gpu", "peak GPU memory")):
        if peaks := [s["peak_memory_bytes"][name] for s in sessions if name in s.get("peak_memory_bytes", {})]:
            values[label] = f"{max(peaks) / 1e9:.2f} GB in one process"
    for name, label in (("processor", "processors"), ("gpu", "GPU")):
        if joules := [s["joules"][name] for s in sessions if name in s.get("joules", {})]:
            values[f"energy of the {label}"] = (
                f"{sum(joules) / 3.6e6:.3g} kWh, all chains added up, whatever else ran on them included"
            )
    return values


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        "-".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _draw(
    own: pd.DataFrame, scores: pd.DataFrame, densities: pd.DataFrame, ended: pd.DataFrame, folder: Path, setting: str
) -> tuple[list[dict[str, str]], list[str]]:
    """Draws the figures of one setting; returns them, and sentences on those that could not be."""
    drawn, left_out = [], []

    def keep(figure: Figure, name: str, title: str, text: str, kind: str = "svg") -> None:
        figures.save(figure, folder, f"{setting}-{name}")
        drawn.append({"file": f"figures/{setting}-{name}.{kind}", "title": title, "text": text})

    lotteries = [method for method in reversed(LOTTERY) if method in set(own.method)]
    if lotteries:
        text = "A point is a seed, lines join the means over seeds; an arrow names a baseline below the panel."
        keep(figures.figure1(scores, ended, setting), "figure1", "PSNR against the parameters that are left", text)
    masks, labels, run_kinds = {}, {}, {}
    for method in lotteries:
        place = analysis.find(own, setting, method)
        run = analysis.open_run(place)
        masks[method], labels[method] = analysis.load_masks(place), f"{method}, seed {run.settings.seed}"
        run_kinds = analysis.kinds(run.settings.network)
        part = densities[(densities[RUN] == pd.Series((setting, method, run.settings.seed), index=RUN)).all(axis=1)]
        text = "Layers at the same place in a run of blocks are pooled."
        keep(
            figures.density_map(part, labels[method]),
            f"density-{method}",
            f"Where the weights of {labels[method]} are",
            text,
        )
    if lotteries:
        curves = {
            labels[method]: analysis.survival(masks[method], run_kinds, since=[min(masks[method])])
            for method in lotteries
        }
        text = "The share of the weights that are left in each round, by kind of layer."
        keep(figures.survival_curves(curves), "survival", "Which kinds of layers lose their weights", text)
    if len(lotteries) == 2 and len({label.rpartition(" ")[2] for label in labels.values()}) == 1:
        text = "How much the two masks of a round share, and what masks with the same layer densities share by chance."
        keep(
            figures.overlap_curves(analysis.overlap(*masks.values())),
            "overlap",
            "Do both scopes keep the same weights?",
            text,
        )
    try:
        images = restore(own, setting)
        text = "The middle of the first test image of each task, in rounds whose weights were kept; whole-image PSNR."
        keep(figures.restoration_panels(images), "restorations", "What the networks make of an image", text, "png")
    except (SettingsError, FileNotFoundError) as error:
        left_out.append(f"No restored images: {error}")
    return drawn, left_out


def _compare(
    own: pd.DataFrame, made: Path, setting: str, margin: float, results: Path | str | None
) -> list[dict[str, Any]]:
    """Sets each ticket that has controls beside them: a figure, a table as a file, and sentences."""
    parts = []
    for method in (method for method in reversed(LOTTERY) if method in set(own.method)):
        run = analysis.open_run(analysis.find(own, setting, method))
        labels = (folder.name for folder in run.folder.parents[1].glob(f"controls/{method}-round*"))
        for index in sorted({int(label.removeprefix(f"{method}-round")[:2]) for label in labels}):
            frame = verdicts.gather(run.settings.profile, setting, method, index, results)
            if not {"ticket", "dense"} < set(frame.control):
                continue
            name = f"{setting}-controls-{method}-round{index:02d}"
            figures.save(figures.controls_figure(frame, margin=margin), made / "figures", name)
            write_csv(made / "tables" / f"{name}.csv", frame.drop(columns="folder"))
            part = {"title": f"Was it luck? {method}, round {index}", "findings": verdicts.findings(frame, margin)}
            parts.append(part | {"figure": f"figures/{name}.svg", "file": f"tables/{name}.csv"})
    return parts


def restore(own: pd.DataFrame, setting: str) -> list[Restoration]:
    """Restores the first test image of each task with the dense network and up to two kept rounds of each lottery.

    Args:
        own: what ``analysis.runs`` returned.
        setting: which.

    Raises:
        FileNotFoundError: if there are no weights.
        SettingsError: if the data are not those of the runs.
    """
    chosen = []
    for method in ("dense", *reversed(LOTTERY)):
        if method not in set(own[own.finished & (own.setting == setting)].method):
            continue
        place = analysis.find(own, setting, method)
        kept = analysis.kept_rounds(place)
        if not kept:
            raise FileNotFoundError(f"{place} holds no trained weights")
        chosen += [
            (f"{method} round {index}" if index else method, place, index)
            for index in sorted({kept[len(kept) // 2 - 1], kept[-1]})
        ]
    settings = analysis.open_run(chosen[0][1]).settings
    device = analysis.default_device()
    return analysis.restorations(chosen, load_bank(settings, "test", project_root(), device), device)


def _template() -> jinja2.Template:
    text = (resources.files("mirl_study") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
