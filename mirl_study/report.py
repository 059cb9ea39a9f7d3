"""One page that opens without a network, with its tables and figures beside it, computed from the files of the runs."""

import base64
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from mirl_study import analysis, figures, gallery, sentences, similarity, tables, trained, transfer, verdicts
from mirl_study.comparison import chains
from mirl_study.comparison import figures as model_figures
from mirl_study.comparison import tables as model_tables
from mirl_study.crew import crew
from mirl_study.sentences import MARGIN, counted
from mirl_study.settings import LOTTERY, METHODS, SETTINGS, Settings, SettingsError, read_settings
from mirl_study.store import is_reference, results_root, write_csv

NOT_LISTED = ("profile", "protocol", "setting", "scope", "seed", "rounds", "checkpoint_every", "data_fingerprint")
HEAD = ("settings", "seeds", "steps", "rounds after the dense one", "device", "time")  # what the page opens with


def write(
    results: Path | str | None = None,
    profile: str = "laptop",
    margin: float = MARGIN,
    out: Path | str | None = None,
    pictures: bool = True,
) -> Path:
    """Writes the report of a profile: ``index.html``, which holds its figures, and ``tables/`` and ``figures/``.

    Where trained weights are at hand, what they tell is recorded beside them first (``trained.record_all``).

    Args:
        results: root of all results; the project's ``results/`` if not given.
        profile: whose runs.
        margin: dB below dense that still counts as close to it.
        out: folder to write; ``report/`` in the profile's results if not given, or, of a reference, which is not
            written to, a temporary folder. A report that is there is replaced.
        pictures: whether to show test images; not all may be passed on.

    Returns:
        The page.

    Raises:
        SettingsError: if there is no finished run, a file of one cannot be read, or ``out`` holds something else.
    """
    root = results_root(results)
    if not out and is_reference(root):
        target = Path(tempfile.mkdtemp(prefix="mirl-")) / "report"
    else:
        target = Path(out).resolve() if out else root / profile / "report"
    if (
        out
        and target.exists()
        and not (target.is_dir() and ((target / "index.html").is_file() or not any(target.iterdir())))
    ):
        raise SettingsError(f"out={str(out)!r} is not empty and holds no report: give a new folder")
    found = analysis.runs(profile, results)
    problems = trained.record_all(found)
    made = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    there = [setting for setting in SETTINGS if setting in set(found.setting[found.finished])]
    try:
        with crew(len(there) > 1) as together:
            study = gallery.look(found, together)
            _write_tables(study, made / "tables")
            jobs = [partial(_part, study, made, setting, margin, profile, results, pictures) for setting in there]
            jobs += [partial(_models, made, profile, results), partial(_between, study, made, profile, results)]
            *parts, models, between = together(jobs)
        run = facts(found)
        page = {
            "profile": profile,
            "parts": parts,
            "between": between,
            "models": models,
            "missing": missing(found),
            "notes": [*problems, *filter(None, [trained.missing(found), trained.outdated(found)])],
            "head": [(name, run[name]) for name in HEAD if name in run],
            "facts": run,
            "margin": margin,
        }
        (made / "index.html").write_text(_template().render(page), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target / "index.html"


def _write_tables(study: gallery.Study, folder: Path) -> None:
    """The numbers that the page is made of, as files."""
    frames = {
        "scores": study.scores,
        "collapse": study.ended,
        "densities": study.densities.drop(columns=["stage", "part"]).round(6),
        "liveness": study.lives,
        "denominators": study.counts.round(6),
        "similarity": study.chains.round(6),
        "costs": study.costs,
        **study.recorded,
    }
    for name, frame in frames.items():
        write_csv(folder / f"{name}.csv", frame)


def _part(
    study: gallery.Study,
    made: Path,
    setting: str,
    margin: float,
    profile: str,
    results: Path | str | None,
    pictures: bool,
) -> dict[str, Any]:
    """All that the page says of one setting."""
    numbers, seeds = tables.table(study.scores, setting), tables.by_seed(study.scores, setting)
    files = tables.write_table(numbers, made / "tables", setting)
    files += tables.write_seeds(seeds, made / "tables", f"{setting}-seeds")
    plates, left_out = gallery.draw(study, setting, pictures)
    drawn = []
    for plate in plates:
        paths = figures.save(plate.figure, made / "figures", f"{setting}-{plate.name}")
        drawn.append({"image": inline(paths), "title": plate.title, "text": plate.text, "name": plate.name})
    own = study.found[study.found.finished & (study.found.setting == setting)]
    return {
        "name": setting,
        "findings": sentences.findings(study.scores, study.densities, setting, margin, study.lives),
        "masks": sentences.of_masks(
            study.counts,
            study.chains,
            study.recorded["survivors"],
            study.unused,
            setting,
            study.ticket,
            study.recorded["prompt_weights"],
        ),
        "ticket": study.ticket,
        "table": _html(tables.as_text(numbers)),
        "seeds": tables.seeds_as_text(seeds).to_html(index=False, border=0),
        "caption": tables.caption(numbers),
        "published": "paper_parameters" in numbers,
        "files": [path.relative_to(made).as_posix() for path in files],
        "figures": drawn,
        "left_out": left_out,
        "tickets": _compare(own, made, setting, margin, results),
    }


def _unused(settings: Settings, ticket: int) -> list[str]:
    """How much of a ticket the convolutions that never run would be."""
    rounds = {min(ticket, settings.rounds), settings.rounds}
    told = sentences.of_unused(analysis.unused_at_start(settings.network, rounds, settings.rate, settings.seed))
    return [told if settings.prune_unused else f"{told} In these runs they are not prunable."]


def _between(study: gallery.Study, made: Path, profile: str, results: Path | str | None) -> dict[str, Any]:
    """Whether the settings' tickets share a core, and whether one serves another; or what is missing to say so."""
    told, images, files = [], [], []
    transfers = transfer.table(profile, results)
    if len(transfers):
        files.append(made / "tables" / "transfer.csv")
        write_csv(files[-1], transfers.drop(columns="folder"))
    for method in (method for method in reversed(LOTTERY) if method in set(study.found.method)):
        seed = similarity.common_seed(study.found, method, study.ticket)
        try:
            which = study.found, study.ticket, method, seed
            (matrix, core), pairs = similarity.shared_core(*which), similarity.beyond_starts(*which)
        except SettingsError:
            continue
        told += sentences.of_settings(core, matrix, method, study.ticket)
        told += sentences.of_starts(pairs, method, study.ticket)
        title = f"{method}, round {study.ticket}, seed {seed}"
        paths = figures.save(figures.similarity_matrix(matrix, title), made / "figures", f"core-{method}")
        for name, frame in {f"core-{method}": matrix, f"core-{method}-beyond": pairs}.items():
            files.append(made / "tables" / f"{name}.csv")
            write_csv(files[-1], frame.round(6))
        images.append({"image": inline(paths), "title": title})
        if gap := similarity.missing(study.found, method, seed, study.ticket, profile):
            told.append(f"Whether the tickets of all settings share a core cannot be said yet: {gap}.")
    settings = analysis.open_run(study.found[study.found.finished].folder.iloc[0]).settings
    told += [*transfer.in_words(transfers), *_unused(settings, study.ticket)]
    return {"told": told, "figures": images, "files": [path.relative_to(made).as_posix() for path in files]}


def _models(made: Path, profile: str, results: Path | str | None) -> dict[str, Any]:
    """The other models of the paper's Table I: their counts, how they restore, and whether pruning tells the same."""
    counts = model_tables.counted()
    write_csv(made / "tables" / "models.csv", counts)
    found = model_tables.alike(model_tables.runs(profile, results))
    parts = []
    for setting, numbers in model_tables.comparison_tables(profile, results).items():
        files = tables.write_table(numbers, made / "tables", f"{setting}-models")
        drawn = {"models": (model_figures.models(found, setting), "What each gains over the degraded input")}
        scores = model_tables.cut_scores(profile, results, setting)
        scores = scores[scores.seed.isin(found.seed[found.setting == setting])]
        if len(scores):
            files.append(made / "tables" / f"{setting}-beyond.csv")
            write_csv(files[-1], scores)
            drawn["beyond"] = (model_figures.beyond(scores), "Cut once, globally and layer by layer")
        part = {
            "name": setting,
            "table": _html(tables.as_text(numbers)),
            "files": [path.relative_to(made).as_posix() for path in files],
            "training": model_tables.of_training(found[found.setting == setting]),
            "caption": tables.caption(numbers),
            "tuning": f"{chains.TUNING:.0%}",
            "gains": model_tables.of_gains(numbers),
            "told": model_tables.in_words(scores) if len(scores) else [],
            "left_out": model_tables.missing(found, setting),
        }
        images = [
            {"title": title, "image": inline(figures.save(figure, made / "figures", f"{setting}-{name}"))}
            for name, (figure, title) in drawn.items()
        ]
        parts.append(part | {"figures": images})
    shown = counts[["model", "published", "found", "configuration", "note", "authors' recipe"]]
    html = shown.to_html(index=False, border=0, formatters={"found": "{:,}".format})
    return {"counts": html, "told": model_tables.of_sizes(found), "parts": parts}


def inline(paths: Iterable[Path]) -> str:
    """Returns the smallest of some image files as text that a page can hold."""
    path = min(paths, key=lambda path: path.stat().st_size if path.is_file() else 0)
    kind = {"svg": "svg+xml"}.get(path.suffix[1:], path.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def missing(found: pd.DataFrame) -> list[str]:
    """Lists the chains that are not finished: of each setting that was begun, every method with every seed of any.

    Args:
        found: what ``analysis.runs`` returned.

    Returns:
        A line a chain, or one for the seeds that a setting does not have at all; empty if all are there.
    """
    lines, seeds = [], sorted(found.seed.unique())
    for setting, group in found.groupby("setting", sort=False):
        own = sorted(group.seed.unique())
        if absent := [str(seed) for seed in seeds if seed not in own]:
            lines.append(f"{setting}, seed{'s' * (len(absent) > 1)} {', '.join(absent)}: not begun")
        for method in METHODS:
            for seed in own:
                run = group[(group.method == method) & (group.seed == seed)]
                if run.empty:
                    lines.append(f"{setting}, {method}, seed {seed}: not begun")
                elif not run.finished.iloc[0]:
                    lines.append(f"{setting}, {method}, seed {seed}: not finished ({run.rounds.iloc[0]} rounds are)")
    return lines


def _html(text: pd.DataFrame) -> str:
    """The table for the page: SSIM below PSNR, so that it fits a screen; a line between the groups of columns."""
    groups = pd.Series([group for group, _ in text.columns])
    spans = "".join(f'<colgroup span="{(groups == group).sum()}"></colgroup>' for group in groups.unique())
    html = text.to_html(index=False, border=0).replace(" / ", "<br>")
    return html.replace("<thead>", f"{spans}<thead>", 1)


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
    seconds, aside = 0.0, 0.0
    for place in {folder.parents[1] / "controls" for folder in found.folder}:
        for path in place.glob("*/seed*/round*/round.json"):
            round_facts = analysis.read_json(path)
            aside += round_facts["training_seconds"] + round_facts["evaluation_seconds"]
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
        if "cpu" in record:  # a younger fact than some runs
            note("processor", record["cpu"])
        note("threads", record["threads"])
        for package in ("torch", "python"):
            note(package, record["versions"][package])
        dirty = f" with {counted(record['changed_files'], 'changed file')}" if record["changed_files"] else ""
        note("commit", (record["commit"] or "not in a git checkout") + (dirty if record["commit"] else ""))
        for path in sorted(folder.glob("round*/round.json")):
            round_facts = analysis.read_json(path)
            seconds += round_facts["training_seconds"] + round_facts["evaluation_seconds"]
    tested = {}
    for folder in found[found.method == "dense"].drop_duplicates("setting").folder:
        images = pd.read_csv(folder / "round00" / "metrics.csv", usecols=["task", "name"]).groupby("task", sort=False)
        tested |= images.name.count().to_dict()
    values["test images"] = [", ".join(f"{task} {count}" for task, count in tested.items())]
    alone = "" if found.seed.nunique() > 1 else " (one seed: no spread is known)"
    head = {
        "settings": ", ".join(dict.fromkeys(found.setting)),
        "methods": ", ".join(method for method in METHODS if method in set(found.method)),
        "seeds": ", ".join(map(str, sorted(found.seed.unique()))) + alone,
    }
    began = sorted(record["started"] for record in records)
    tail = {
        "time": f"{_clock(seconds)} of training and evaluation, {'all' if not aside else 'these'} chains added up"
        + (f"; {_clock(aside)} more for controls and other variants" if aside else ""),
        "chains begun": f"{began[0]} to {began[-1]}",
        **_sessions(records),
    }
    return head | {name: "; ".join(items) for name, items in values.items()} | tail


def _sessions(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the processes that worked on the runs have left on record; runs of earlier versions have nothing."""
    sessions = [session for record in records for session in record.get("sessions", [])]
    values = {}
    if resumed := sum(len(record.get("sessions", [])) > 1 for record in records):
        values["resumed"] = counted(resumed, "chain")
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
            paths = figures.save(figures.controls_figure(frame, margin=margin), made / "figures", name)
            write_csv(made / "tables" / f"{name}.csv", frame.drop(columns="folder"))
            part = {"title": f"Was it luck? {method}, round {index}", "findings": verdicts.findings(frame, margin)}
            parts.append(part | {"figure": inline(paths), "file": f"tables/{name}.csv"})
    return parts


def _template() -> jinja2.Template:
    text = (resources.files("mirl_study") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
