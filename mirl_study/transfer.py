"""Does a ticket of one setting serve another? Its mask, trained on other images from the same initialisation.

A transfer is a run like a control, in ``results/<profile>/<setting>/controls/transfer-<from>-<method>-round<k>/``
of the setting that it is trained on, and belongs to the very mask it was made from.
"""

from pathlib import Path

import pandas as pd

from mirl_study.analysis import STILL, by_task, dense_folder, profile_folder, read_json, signed
from mirl_study.comparison import build_network
from mirl_study.lottery import Bench, Round, only_round, train_and_score
from mirl_study.progress import Progress
from mirl_study.session import Session
from mirl_study.settings import LOTTERY, SETTINGS, SettingsError, choose
from mirl_study.similarity import PAPERS
from mirl_study.store import Run

COLUMNS = ["to", "from", "method", "seed", "round", "task", "psnr", "input_psnr", "delta", "density", "folder"]


def play(
    ticket: Round,
    setting: str,
    results: Path | str | None = None,
    device: str | None = None,
    show: bool = True,
) -> Round:
    """Trains the mask of a ticket on another setting; a transfer that is finished is read.

    Everything is the ticket's but the images: steps, schedule, seed, and the initial values, which do not depend on the
    setting. What a setting does not rewind is not carried over: a transfer always starts from the initialisation.

    Args:
        ticket: a finished round of a lottery, as ``lottery.rounds`` yields it.
        setting: to train on, another than the ticket's.
        results: root of all results; the project's ``results/`` if not given.
        device: to train on; a GPU if there is one.
        show: whether to draw a progress bar.

    Returns:
        What was trained, as a round.

    Raises:
        SettingsError: for an unknown setting, the ticket's own, a ticket that is none, or a folder of another ticket or
            of other settings.
        Diverged: if the loss stops being a number.
    """
    source, method = ticket.run.settings, ticket.run.method
    choose("setting", setting, SETTINGS)
    if setting == source.setting:
        raise SettingsError(f"setting={setting!r} is the ticket's own: another of {', '.join(SETTINGS)} is wanted")
    if method not in LOTTERY or ticket.index < 1:
        raise SettingsError(f"round={ticket.index} of {method} is no ticket: a round from 1 of a lottery is wanted")
    settings = source.replace(setting=setting)
    about = {"control": "transfer", "ticket_setting": source.setting, "ticket_round": ticket.index}
    about["ticket_mask"] = ticket.mask.fingerprint
    run = Run(settings, method, results, label(source.setting, method, ticket.index), about)
    run.check_writable([1])
    bench = Bench.load(settings, device)

    def play_it(session: Session) -> None:
        progress = Progress(run, 1, settings.steps, show=show)
        network = build_network(settings.network, settings.seed)
        run.finish(1, *train_and_score(session, 1, ticket.mask, network, bench, progress))
        progress.close()

    return only_round(run, 1, bench, play_it)


def label(setting: str, method: str, index: int) -> str:
    """Returns the folder of a transfer: of this round's ticket of this setting."""
    return f"transfer-{setting}-{method}-round{index:02d}"


def table(profile: str, results: Path | str | None = None) -> pd.DataFrame:
    """Gathers all finished transfers of a profile, each beside the ticket that the setting has found for itself.

    Args:
        profile: whose results.
        results: root of all results; the project's ``results/`` if not given.

    Returns:
        A row a transfer and task, and one for ``mean`` (over families): ``to`` (trained and tested on), ``from`` (whose
        mask; ``to`` itself is the setting's own ticket of that method, seed and round, where it is there), ``method``,
        ``seed``, ``round`` (of the ticket), ``task``, ``psnr`` (dB), ``input_psnr``, ``delta`` (dB above the dense
        network of the setting and seed; missing if that is not there), ``density``, ``folder`` (of the round).
    """
    root = profile_folder(profile, results)
    rounds = []
    for path in sorted(root.glob("*/controls/transfer-*/seed*/summary.csv")):
        facts = read_json(path.parent / "run.json")
        about, method = facts["settings"], facts["method"]
        to, seed, index = about["setting"], about["seed"], about["ticket_round"]
        rounds.append((to, about["ticket_setting"], method, seed, index, path.parent / "round01"))
        own = root / to / method / f"seed{seed}" / f"round{index:02d}"
        if (own / "round.json").is_file():
            rounds.append((to, to, method, seed, index, own))
    parts = []
    for to, source, method, seed, index, folder in dict.fromkeys(rounds):
        means = by_task(pd.read_csv(folder / "metrics.csv"))[["task", "psnr", "input_psnr"]]
        dense = dense_folder(folder.parent) / "round00" / "metrics.csv"
        whole = by_task(pd.read_csv(dense)).set_index("task").psnr if dense.is_file() else pd.Series(dtype=float)
        named = {"to": to, "from": source, "method": method, "seed": seed, "round": index, "folder": folder}
        density = read_json(folder / "round.json")["density"]
        parts.append(means.assign(**named, density=density, delta=means.psnr - means.task.map(whole)))
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def in_words(transfers: pd.DataFrame) -> list[str]:
    """Says for each setting how masks that were found on others do there, beside its own ticket.

    Args:
        transfers: what ``table`` returned.

    Returns:
        Sentences, on the mean of the families; one that says how to make a transfer if there is none.
    """
    if transfers.empty:
        return ["No ticket was trained on another setting than its own; `mirl ticket transfer RUN --on LIST` does it."]
    told = []
    means = transfers[transfers.task == "mean"]
    for (to, method, index), group in means.groupby(["to", "method", "round"], sort=False):
        cells = {}
        for source, rows in group.groupby("from", sort=False):
            against = (
                f"{signed(rows.delta.mean())} dB" if rows.delta.notna().all() else f"{rows.psnr.mean():.2f} dB in all"
            )
            still = (rows.psnr - rows.input_psnr).abs().max() <= STILL
            seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
            cells[source] = f"{against}{' (it returns its input)' if still else ''}{seeds}"
        own = f"its own ticket {cells.pop(to)}" if to in cells else "it has no such ticket of its own"
        others = ", ".join(f"the mask of {source} {text}" for source, text in cells.items())
        told.append(f"Trained on {to}, {method}, round {index}, against the dense network: {own}; {others}.")
    for method, group in transfers.groupby("method", sort=False):
        if gone := missing(group):
            told.append(f"{method}: not tried are {', '.join(gone)}.")
    return told


def missing(transfers: pd.DataFrame, settings: tuple[str, ...] = PAPERS) -> list[str]:
    """Lists the pairs of settings that no transfer is of, as ``from -> to``."""
    there = set(zip(transfers["from"], transfers.to, strict=True))
    return [f"{a} -> {b}" for a in settings for b in settings if a != b and (a, b) not in there]
