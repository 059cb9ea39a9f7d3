"""The models of Table I in tables: what was counted, how each restores beside the paper's numbers, and when cut."""

from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from mirl_study.analysis import SINGLE, STILL, by_task, dense_folder, open_run, profile_folder, signed
from mirl_study.comparison import MODELS
from mirl_study.comparison.recipes import ORIGINAL
from mirl_study.figures import count
from mirl_study.settings import SCOPES, SETTINGS, ModelSettings
from mirl_study.store import read_json

STUDY = "study"
FOUND = ["setting", "model", "recipe", "size", "seed", "folder"]


def counted() -> pd.DataFrame:
    """Lists the models: parameters in the paper's tables and counted, configuration, recipe, source.

    Returns:
        A row a model: ``model``, ``published`` (text, in millions, with the digits of the paper), ``found``,
        ``agrees`` (less than one unit of the last digit away), ``configuration``, ``note``, ``authors' recipe``,
        ``source``, ``licence``.
    """
    rows = []
    for name, model in MODELS.items():
        digits = len(model.published.partition(".")[2])
        row = {"model": model.title, "published": model.published, "found": model.found}
        row["agrees"] = abs(model.found / 1e6 - float(model.published)) < 10**-digits
        row |= {"configuration": model.configuration, "note": model.note, "authors' recipe": str(ORIGINAL[name])}
        rows.append(row | {"source": model.source, "licence": model.licence})
    return pd.DataFrame(rows)


def runs(profile: str = "laptop", results: Path | str | None = None, setting: str | None = None) -> pd.DataFrame:
    """Finds the finished dense runs of all models, PromptIR's among them.

    Args:
        profile: whose results.
        results: root of all results; the project's ``results/`` if not given.
        setting: only runs of this one.

    Returns:
        A row a run, in the order of MODELS: ``setting``, ``model`` (its name in MODELS), ``recipe``, ``size``
        (``dim 8`` ... of a PromptIR), ``seed``, ``folder``.

    Raises:
        SettingsError: for an unknown profile.
    """
    return _runs(profile, results, setting, "dense", "dense")


def cut_scores(profile: str = "laptop", results: Path | str | None = None, setting: str = "all_in_one") -> pd.DataFrame:
    """Gathers what ``chains.cuts`` has played.

    Args:
        profile, results, setting: as in ``runs``.

    Returns:
        A row a model, scope, density, seed and task: ``model``, ``seed``, ``scope``, ``density`` (asked for), ``kept``
        (kept over prunable weights), ``task``, ``psnr``, ``input_psnr``, ``dense_psnr`` (dB), ``emptied`` (layers
        without a weight).
    """
    parts = []
    for run in _runs(profile, results, setting, "controls/cut-*", "round01").itertuples():
        facts, settings = (read_json(run.folder / name) for name in ("round01/round.json", "run.json"))
        scores = by_task(pd.read_csv(run.folder / "round01" / "metrics.csv"))[["task", "psnr", "input_psnr"]]
        dense = by_task(pd.read_csv(dense_folder(run.folder) / "round00" / "metrics.csv"))[["task", "psnr"]]
        scores = scores.merge(dense.rename(columns={"psnr": "dense_psnr"}), on="task")
        own = settings["settings"]
        names = {"model": run.model, "seed": run.seed, "scope": own["scope"], "density": own["cut_density"]}
        parts.append(scores.assign(**names, kept=facts["density"], emptied=len(facts["emptied"])))
    return pd.concat(parts, ignore_index=True)[CUTS] if parts else pd.DataFrame(columns=CUTS)


CUTS = ["model", "seed", "scope", "density", "kept", "task", "psnr", "input_psnr", "dense_psnr", "emptied"]


def gap(scores: pd.DataFrame, task: str = "mean") -> pd.DataFrame:
    """Subtracts layer-wise from global, model by model: does it hold beyond PromptIR?

    Args:
        scores: what ``cut_scores`` returned.
        task: whose PSNR.

    Returns:
        A row a model and density: ``global``, ``layerwise`` (dB above the dense network of the same seed, mean over
        seeds), ``difference`` (dB, global above layer-wise), ``seeds``.
    """
    own = scores[scores.task == task]
    own = own.assign(delta=own.psnr - own.dense_psnr)
    wide = own.pivot_table(index=["model", "density", "seed"], columns="scope", values="delta").reindex(columns=SCOPES)
    wide = wide.assign(difference=wide["global"] - wide["layerwise"]).dropna()
    grouped = wide.groupby(["model", "density"], sort=False)
    frame = grouped.mean().assign(seeds=grouped.size()).reset_index()
    order = {name: place for place, name in enumerate(MODELS)}
    return frame.sort_values(["model", "density"], key=lambda c: c.map(order) if c.name == "model" else -c).reset_index(
        drop=True
    )


def learnt(scores: pd.DataFrame, task: str = "mean") -> pd.Series:
    """Says how far the dense network of each model is above its input: what one that is not loses says little.

    Args:
        scores: what ``cut_scores`` returned.
        task: whose PSNR.

    Returns:
        dB by model, means over seeds, in the order of MODELS.
    """
    own = scores[scores.task == task].drop_duplicates(["model", "seed"])
    gains = (own.dense_psnr - own.input_psnr).groupby(own.model).mean()
    return gains.reindex([name for name in MODELS if name in gains.index])


def in_words(scores: pd.DataFrame) -> list[str]:
    """Says, density by density, in how many models the global cut is above the layer-wise one.

    Models whose dense network is below its input are named, and not counted.

    Args:
        scores: what ``cut_scores`` returned.
    """
    gains = learnt(scores)
    failed = [f"{MODELS[name].title} ({signed(gain)} dB)" for name, gain in gains.items() if gain <= 0]
    lines, beyond = [], []
    if failed:
        lines.append(
            f"{len(failed)} of {len(gains)} dense networks are below their input on the mean of the families: what "
            f"they lose or gain when cut says little, and they are not counted in what follows: {', '.join(failed)}."
        )
    rows = gap(scores[scores.model.isin(gains.index[gains > 0])])
    rows = rows.assign(best=rows[list(SCOPES)].max(axis=1) + rows.model.map(gains))
    for density, cut in rows.groupby("density", sort=False):
        each = [f"{MODELS[row.model].title} {signed(row.difference)} dB" for row in cut.itertuples()]
        gone = [MODELS[name].title for name in cut.model[cut.best <= STILL]]
        note = f" Of {', '.join(gone)} neither is above the input by then, on the mean of the families." if gone else ""
        seeds = "one seed" if cut.seeds.max() == 1 else f"up to {cut.seeds.max()} seeds"
        lines.append(
            f"Cut to {density:.0%}, the global cut is above the layer-wise one in {(cut.difference > 0).sum()} of "
            f"{len(cut)}: {', '.join(each)} ({seeds}).{note}"
        )
        others = cut[(cut.model != "promptir") & (cut.best > STILL)]
        beyond.append(f"{(others.difference > 0).sum()} of {len(others)} at {density:.0%}")
    if beyond:
        lines.append(
            "Beyond PromptIR, and among networks that restore something after the cut, global is above layer-wise in "
            f"{', '.join(beyond)}. One cut is no lottery: a hint, not a verdict."
        )
    return lines


def of_gains(table: pd.DataFrame) -> list[str]:
    """Names the models that are below their input, or return it.

    Args:
        table: what ``comparison_table`` returned.
    """
    below = [f"{_called(row)} {signed(row.gain)} dB" for row in table.itertuples() if row.gain < -STILL]
    still = [_called(row) for row in table.itertuples() if abs(row.gain) <= STILL]
    told = (("Below their input", below), ("Return their input", still))
    return [f"{words}: {', '.join(names)}." for words, names in told if names]


def _called(row: Any) -> str:
    return row.method if row.recipe == STUDY else f"{row.method} (recipe “{row.recipe}”)"


def of_training(found: pd.DataFrame) -> list[str]:
    """Says by which recipe the models of one setting were trained.

    Args:
        found: what ``runs`` returned.
    """
    lines = []
    for recipe, own in found.groupby("recipe", sort=False):
        settings = open_run(own.folder.iloc[0]).settings
        names = ", ".join(MODELS[name].title for name in MODELS if name in set(own.model))
        how = f"{settings.steps} steps of {settings.batch_size} patches of {settings.patch_size}x{settings.patch_size}"
        what = (
            f"L1 and Adam, learning rate {settings.lr:g} after {settings.warmup_steps} steps of warm-up, then a cosine"
            if recipe == STUDY
            else "loss, optimiser, learning rate and shape of the schedule of each model's authors, in the table above"
        )
        lines.append(f"Recipe “{recipe}”: {what}; {how}. {names}.")
    return lines


def of_sizes(found: pd.DataFrame) -> list[str]:
    """Says whether the sizes that were trained are in the order of the paper's.

    Args:
        found: what ``runs`` returned.
    """
    own = found.drop_duplicates("model")
    sizes = pd.Series(
        {run.model: read_json(run.folder / "round00/round.json")["parameters"] for run in own.itertuples()}
    )
    if len(sizes) < 3:
        return []
    order = sizes.corr(pd.Series({name: float(MODELS[name].published) for name in sizes.index}), method="spearman")
    kept = "in the order of" if order == 1 else "in another order than"
    end = "" if order == 1 else ": a difference between models says nothing of size"
    return [
        f"The models trained here have {count(sizes.min())} to {count(sizes.max())} parameters, {kept} the paper's "
        f"(rank correlation {signed(order)}){end}."
    ]


def comparison_table(found: pd.DataFrame, setting: str = "all_in_one") -> pd.DataFrame:
    """Makes the upper rows of a table like the paper's II (one task) or III (all-in-one): the models, not pruned.

    Args:
        found: what ``runs`` returned.
        setting: whose table.

    Returns:
        A row a model and recipe, ``input`` first, in the columns of ``report.table``: ``method`` (the model, and its
        recipe if that is the original's), ``round`` (0), ``seeds``, ``density``, ``parameters`` (trainable),
        ``pruned``, ``compression``, ``<task>_psnr`` (dB), ``<task>_sd`` (over seeds), ``<task>_ssim``, and the paper's
        ``paper_parameters``, ``paper_compression``, ``paper_<task>_<test set>_psnr`` and ``_ssim``. Models of which
        there is only the paper's row have that.
    """
    own = found[found.setting == setting]
    paper = _paper(setting)
    scores = _scores(own)
    tasks = [task for task in (*SINGLE, "mean") if task in set(scores.get("task", ()))]
    tasks = tasks if len(tasks) > 2 else tasks[:1]  # of a single task, the mean is that task
    rows: list[dict[str, Any]] = []
    if len(scores):
        inputs = scores.groupby("task")[["input_psnr", "input_ssim"]].mean()
        cells = {f"{task}_{what}": inputs.loc[task, f"input_{what}"] for task in tasks for what in ("psnr", "ssim")}
        rows.append({"model": "", "method": "input"} | cells)
    for name, model in MODELS.items():
        theirs = paper.loc[model.title].to_dict() if model.title in paper.index else {}
        recipes = list(own[own.model == name].recipe.unique())
        for recipe in recipes or ([""] if theirs else []):
            part = scores[(scores.model == name) & (scores.recipe == recipe)] if len(scores) else scores
            rows.append({"model": name, "method": model.title, "recipe": recipe} | _ours(part, tasks) | theirs)
    columns = ["model", "method", "recipe", "seeds"]
    columns += [f"{task}_{what}" for task in tasks for what in ("psnr", "sd", "ssim")]
    return pd.DataFrame(rows, columns=[*columns, "gain", "parameters", *paper.columns]).astype({"seeds": "Int64"})


def comparison_tables(profile: str = "laptop", results: Path | str | None = None) -> dict[str, pd.DataFrame]:
    """Makes ``comparison_table`` for each setting that has runs of other models than PromptIR, of ``alike`` seeds.

    Args:
        profile, results: as in ``runs``.

    Returns:
        Tables by setting, in the order of ``settings.SETTINGS``; none if no other model was trained.
    """
    found = alike(runs(profile, results))
    there = set(found.setting[found.model != "promptir"])
    return {setting: comparison_table(found, setting) for setting in SETTINGS if setting in there}


def alike(found: pd.DataFrame) -> pd.DataFrame:
    """Leaves out, setting by setting, the seeds that not all models have: a mean beside one seed would mislead.

    Args:
        found: what ``runs`` returned; a setting whose models have no seed in common stays as it is.
    """
    parts = [found.iloc[:0]]
    for _, own in found.groupby("setting", sort=False):
        seeds = [set(group.seed) for _, group in own[own.recipe == STUDY].groupby("model")]
        common = set.intersection(*seeds) if seeds else set()
        parts.append(own[own.seed.isin(common)] if common else own)
    return pd.concat(parts)


def missing(found: pd.DataFrame, setting: str = "all_in_one") -> list[str]:
    """Names the models that were not trained by the study's recipe in a setting, in the order of MODELS."""
    there = set(found.model[(found.setting == setting) & (found.recipe == STUDY)])
    return [name for name in MODELS if name not in there]


def _runs(profile: str, results: Path | str | None, setting: str | None, place: str, finished: str) -> pd.DataFrame:
    """Finished runs at a place in the folders of all models; PromptIR's is the setting's own."""
    root, rows = profile_folder(profile, results), []
    for models in ("", "models/*/"):
        for path in root.glob(f"{setting or '*'}/{models}{place}/seed*/run.json"):
            round_folder = path.parent / ("round00" if finished == "dense" else finished)
            if not (round_folder / "round.json").is_file():
                continue
            settings = open_run(path.parent).settings
            model = settings.network
            if isinstance(model, ModelSettings):
                named = (model.architecture, model.recipe, model.size)
            else:
                named = ("promptir", STUDY, f"dim {model.dim}")
            rows.append((settings.setting, *named, settings.seed, path.parent))
    order = list(MODELS)
    rows.sort(key=lambda row: (SETTINGS.index(row[0]), order.index(row[1]), row[2] != STUDY, row[4], str(row[5])))
    return pd.DataFrame(rows, columns=FOUND)


def _scores(found: pd.DataFrame) -> pd.DataFrame:
    """Scores of dense runs by task: what ``analysis.by_task`` returns, with model, recipe, seed and parameters."""
    parts = []
    for run in found.itertuples():
        facts = read_json(run.folder / "round00" / "round.json")
        scores = by_task(pd.read_csv(run.folder / "round00" / "metrics.csv"))
        names = {"model": run.model, "recipe": run.recipe, "seed": run.seed, "parameters": facts["parameters"]}
        parts.append(scores.assign(**names))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _ours(part: pd.DataFrame, tasks: list[str]) -> dict[str, Any]:
    """Our cells of one row; none if there is no run."""
    if part.empty:
        return {}
    row: dict[str, Any] = {"seeds": part.seed.nunique(), "parameters": part.parameters.iloc[0]}
    for task in tasks:
        own = part[part.task == task]
        row |= {f"{task}_psnr": own.psnr.mean(), f"{task}_sd": own.psnr.std(), f"{task}_ssim": own.ssim.mean()}
        row["gain"] = (own.psnr - own.input_psnr).mean()
    return row


def _paper(setting: str) -> pd.DataFrame:
    """The paper's numbers for the models, in a setting, a row a model; in the columns of ``report.table``."""
    numbers = pd.read_csv(resources.files("mirl_study") / "published.csv", comment="#")
    kind = numbers.setting == ("all_in_one" if setting == "all_in_one" else "single")
    numbers = numbers[kind & numbers.method.isin([model.title for model in MODELS.values()])]
    numbers = numbers if setting == "all_in_one" else numbers[numbers.task == setting]
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
