"""Is it a winning ticket? Ticket, dense network and controls, paired by seed, and what the seeds can tell."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mirl_study.analysis import FAMILIES, by_task, dense_folder, profile_folder, read_json, signed, with_families
from mirl_study.settings import CONTROLS, LOTTERY, SETTINGS, SettingsError, choose

GROUPS = {  # of what is compared, in the order of tables and figures
    "ticket": ("ticket",),
    **{name: names for name, names in CONTROLS.items() if name != "probes"},
    "not pruned": ("dense", *CONTROLS["not pruned"]),
    "not restored": ("input",),
}
LINES = {"instability": "ticket", "instability_dense": "dense"}  # folders that hold a straight line between two copies
ROUNDING = 1e-9  # dB: what the last digits of a float say decides nothing


def order(names: Iterable[str]) -> list[str]:
    """Sorts names of what is compared as in GROUPS; others come last, by name."""
    place = {name: at for at, name in enumerate(name for group in GROUPS.values() for name in group)}
    return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def gather(
    profile: str, setting: str, method: str, ticket_round: int, results: Path | str | None = None
) -> pd.DataFrame:
    """Gathers the test scores of a ticket, of its dense network and of every finished control.

    Args:
        profile, setting: whose results.
        method: the lottery, ``MIR-L-G`` or ``MIR-L-LW``.
        ticket_round: the round whose ticket it is, from 1.
        results: root of all results; the project's ``results/`` if not given.

    Returns:
        A row a control, seed and task, in the order of GROUPS: ``control`` (``ticket`` and ``dense`` are two of them),
        ``seed``, ``task`` (families and ``mean`` too, as in ``analysis.scores``), ``psnr`` (dB), ``ssim``,
        ``input_psnr``, ``density``, ``parameters`` (kept + never pruned), ``steps`` (of its own last training; what
        it took to find a mask is not in it), ``folder`` (of the round).

    Raises:
        SettingsError: saying what there is, if this lottery or round is not there, or naming a file that is damaged.
    """
    place = _place(profile, setting, method, results)
    found: dict[int, list[Path]] = {}
    for path in place.glob(f"{method}/seed*/round*/round.json"):
        found.setdefault(read_json(path)["index"], []).append(path.parent)
    if ticket_round not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise SettingsError(
            f"ticket_round={ticket_round!r} of {method} is not finished in {place}; there is {there}"
            f": mirl study --profile {profile}"
        )
    folders = [("ticket", folder) for folder in found[ticket_round]]
    folders += [("dense", dense_folder(folder.parent) / "round00") for folder in found[ticket_round]]
    for name, folder in _controls(place, method, ticket_round, "summary.csv"):
        if name not in CONTROLS["probes"]:
            folders.append((name, folder / "round01"))
    parts = []
    for control, folder in folders:
        facts = {name: read_json(folder / "round.json")[name] for name in ("density", "parameters", "steps")}
        means = by_task(pd.read_csv(folder / "metrics.csv"))[["task", "psnr", "ssim", "input_psnr"]]
        parts.append(means.assign(control=control, seed=_seed(folder.parent), **facts, folder=folder))
    ranks = {name: rank for rank, name in enumerate(order({control for control, _ in folders}))}
    parts.sort(key=lambda part: (ranks[part.control[0]], part.seed[0]))
    return pd.concat(parts, ignore_index=True)[["control", "seed", *COLUMNS, "folder"]]


COLUMNS = ["task", "psnr", "ssim", "input_psnr", "density", "parameters", "steps"]


def _place(profile: str, setting: str, method: str, results: Path | str | None) -> Path:
    """The folder of a setting's results."""
    choose("setting", setting, SETTINGS)
    choose("method", method, LOTTERY)
    return profile_folder(profile, results) / setting


def _controls(place: Path, method: str, ticket_round: int, file: str) -> Iterator[tuple[str, Path]]:
    """Names and run folders of a ticket's controls that hold this file."""
    label = f"{method}-round{ticket_round:02d}-"
    for path in sorted(place.glob(f"controls/{label}*/seed*/{file}")):
        yield path.parents[1].name.removeprefix(label), path.parent


def _seed(folder: Path) -> int:
    return read_json(folder / "run.json")["settings"]["seed"]


def differences(frame: pd.DataFrame, against: str = "dense") -> pd.DataFrame:
    """Subtracts, seed by seed, the PSNR of what all is compared with.

    Args:
        frame: what ``gather`` returned.
        against: a control of the frame, mostly ``dense`` or ``ticket``.

    Returns:
        A row a control, seed and task, of the seeds that both have: ``control``, ``seed``, ``task``, ``difference``
        (dB: above what it is compared with).

    Raises:
        SettingsError: if ``against`` is not in the frame.
    """
    choose("against", against, frame.control.unique())
    base = frame.loc[frame.control == against, ["seed", "task", "psnr"]]
    both = frame[frame.control != against].merge(base, on=["seed", "task"], suffixes=("", "_against"))
    return both.assign(difference=both.psnr - both.psnr_against)[["control", "seed", "task", "difference"]]


def paired(
    frame: pd.DataFrame, against: str = "dense", margin: float | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Compares every control with one of them, paired by seed: a seed has one initialisation and one data order.

    Args:
        frame: what ``gather`` returned.
        against: a control of the frame, mostly ``dense`` or ``ticket``.
        margin: dB below it that still counts as matching; without it there are no verdicts.
        confidence: of each interval by itself; of many intervals, some miss.

    Returns:
        A row a control and task: ``control``, ``task``, ``mean``, ``low``, ``high`` (dB, of the differences and of
        their Student t interval; no interval from one seed), ``seeds`` (how many pairs), ``left_out`` (the seeds that
        only one of the two has); with a margin, ``word`` and ``decided`` as in ``verdict``.

    Raises:
        SettingsError: if ``against`` is not in the frame, or for a margin or confidence that is not allowed.
    """
    table = differences(frame, against)
    pairs = dict(iter(table.groupby(["control", "task"])))
    seeds = frame.groupby("control").seed.agg(set)
    rows = []
    for control, task in frame.loc[frame.control != against, ["control", "task"]].drop_duplicates().values:
        left_out = tuple(sorted(seeds[control] ^ seeds[against]))
        own = pairs.get((control, task), table[:0]).difference
        row = (control, task, *interval(own, confidence), len(own), left_out)
        if margin is not None:
            judged = verdict(own, margin, confidence) if len(own) else None
            row += (judged.word, judged.decided) if judged else ("", False)
        rows.append(row)
    columns = ["control", "task", "mean", "low", "high", "seeds", "left_out"]
    return pd.DataFrame(rows, columns=columns + (["word", "decided"] if margin is not None else []))


def interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns the mean of values and the two ends of its Student t interval, which are NaN for less than two values.

    Raises:
        SettingsError: for a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence={confidence!r} is not allowed: more than 0 and less than 1")
    values = np.asarray(list(values), dtype=float)
    if len(values) < 2:
        return values.mean() if len(values) else math.nan, math.nan, math.nan
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of a ticket; as text, a sentence.

    Attributes:
        word: ``winning``, ``matching``, ``not matching`` or ``undecided``.
        mean, low, high: dB, of the differences to dense and of their interval; NaN where one seed gives none.
        seeds: how many.
        margin: dB.
        confidence: of the interval.
    """

    word: str
    mean: float
    low: float
    high: float
    seeds: int
    margin: float
    confidence: float

    def __str__(self) -> str:
        if self.seeds == 1:
            return (
                f"{self.word} by its one seed, and one seed decides nothing: {signed(self.mean, 3)} dB to dense, "
                f"margin {self.margin:g} dB"
            )
        limit = "0 dB" if self.word == "winning" or not self.margin else f"−{self.margin:g} dB"
        where = f"the whole interval is at or above {limit}"
        if self.word == "not matching":
            where = f"the whole interval is below {limit}"
        if not self.decided:
            where = f"the interval reaches to both sides of {limit}, so these {self.seeds} seeds cannot tell"
            if self.margin:
                where += (
                    f"; at their scatter, an interval of ±{self.margin:g} dB would take about {self.needed:,} seeds"
                )
        return (
            f"{self.word}: {signed(self.mean, 3)} dB to dense, {100 * self.confidence:g} % interval "
            f"{signed(self.low, 3)} to {signed(self.high, 3)} dB over {self.seeds} seeds; {where}"
        )

    @property
    def decided(self) -> bool:
        """Whether these seeds can tell; one alone never can."""
        return self.seeds > 1 and self.word != "undecided"

    @property
    def needed(self) -> int:
        """How many seeds of this scatter give an interval that reaches no farther than the margin to each side."""
        student = stats.t.ppf((1 + self.confidence) / 2, self.seeds - 1)
        deviation = (self.high - self.low) / 2 * math.sqrt(self.seeds) / student
        return math.ceil((stats.norm.ppf((1 + self.confidence) / 2) * deviation / self.margin) ** 2)


def verdict(differences: Iterable[float], margin: float, confidence: float = 0.95) -> Verdict:
    """Says whether a ticket wins, by the first clause of the paper's Definition 1, with what the seeds can tell.

    With d = ticket - dense in dB, paired by seed, and the Student t interval of its mean:

    - ``winning`` if the whole interval is at or above 0: at least the dense score;
    - ``matching`` if the whole interval is at or above -margin;
    - ``not matching`` if the whole interval is below -margin;
    - ``undecided`` if it reaches to both sides of that: these seeds cannot tell.

    One seed gives no interval: the word goes by its value, and nothing is decided. The other two clauses are those of
    ``stopping`` (no more steps to the lowest validation loss) and of the mask (far fewer parameters).

    Args:
        differences: dB, one a seed.
        margin: dB below dense that still counts as matching.
        confidence: of the interval.

    Raises:
        SettingsError: for a margin below 0, a confidence that is not between 0 and 1, or differences that are none.
    """
    values = [float(value) for value in differences]
    if not (math.isfinite(margin) and margin >= 0):
        raise SettingsError(f"margin={margin!r} is not allowed: 0 or more, in dB")
    if not values or not all(map(math.isfinite, values)):
        raise SettingsError(f"differences={values} is not allowed: one number a seed, in dB, and at least one")
    mean, low, high = interval(values, confidence)
    several = len(values) > 1
    worst, best = (low, high) if several else (mean, mean)
    if worst >= -margin - ROUNDING:
        word = "winning" if worst >= -ROUNDING else "matching"
    else:
        word = "not matching" if best < -margin - ROUNDING else "undecided"
    return Verdict(word, mean, low, high, len(values), margin, confidence)


def findings(frame: pd.DataFrame, margin: float, confidence: float = 0.95) -> list[str]:
    """Says, family by family, what a ticket is, and which controls these seeds can tell from it.

    Args:
        frame: what ``gather`` returned.
        margin: dB below dense that still counts as matching.
        confidence: of each interval by itself.

    Returns:
        Sentences: the verdicts first.
    """
    tasks = [task for task in frame.task.unique() if task in (*FAMILIES, "mean")]
    tasks = tasks if len(tasks) > 2 else tasks[:1]  # of a single task, the mean is that task
    names = {"mean": "the mean of the families"}
    own = differences(frame, "dense")
    verdicts = [own[(own.control == "ticket") & (own.task == task)].difference for task in tasks]
    told = [
        f"On {names.get(task, task)}, the ticket is {verdict(values, margin, confidence)}."
        for task, values in zip(tasks, verdicts, strict=True)
    ]
    against = paired(frame, "ticket", confidence=confidence)
    against = against[against.control != "dense"]
    if against.empty:
        return told
    if against.seeds.max() < 2:
        return [*told, "One seed gives no interval: by it alone, no control can be told from the ticket."]
    for task in tasks:
        rows = against[against.task == task]
        groups = {
            "below it are": rows[rows.high < 0],
            "above it are": rows[rows.low > 0],
            "not to be told from it are": rows[~(rows.high < 0) & ~(rows.low > 0)],
        }
        parts = [
            f"{word} {', '.join(f'{row.control} ({signed(row.mean)} dB)' for row in part.itertuples())}"
            for word, part in groups.items()
            if len(part)
        ]
        told.append(
            f"Against the ticket on {names.get(task, task)}, by {100 * confidence:g} % intervals over the seeds: "
            f"{'; '.join(parts)}."
        )
    return told


def steps_to_lowest(history: pd.DataFrame) -> int:
    """Returns the step with the lowest validation loss, the first of equal ones (j in the paper's Definition 1).

    Args:
        history: of one training (see ``training.train``); it looks every ``validate_every`` steps, no finer.

    Raises:
        SettingsError: if there is no validation loss in it.
    """
    lowest = history.val_loss.min()
    if not math.isfinite(lowest):
        raise SettingsError(f"history: val_loss has no lowest value in {len(history)} rows")
    return int(history.step[history.val_loss == lowest].min())


def histories(frame: pd.DataFrame, controls: Iterable[str] = ("ticket", "dense")) -> pd.DataFrame:
    """Reads how the training went.

    Args:
        frame: what ``gather`` returned.
        controls: of whom.

    Returns:
        A row a look at the training: ``control``, ``seed``, ``step``, ``lr``, ``loss``, ``val_loss`` (mean L1).
    """
    for name in (controls := list(controls)):
        choose("controls", name, frame.control.unique())
    own = frame[frame.control.isin(controls)].drop_duplicates(["control", "seed"])
    parts = []
    for row in own.itertuples():
        history = pd.read_csv(row.folder / "history.csv")
        history.insert(0, "control", row.control)
        history.insert(1, "seed", row.seed)
        parts.append(history)
    return pd.concat(parts, ignore_index=True)


def stopping(histories: pd.DataFrame) -> pd.DataFrame:
    """Compares the steps to the lowest validation loss: the second clause of the paper's Definition 1, j_w <= j_f.

    Under a learning rate that falls to nearly 0, the lowest loss mostly comes at the end for both; the clause says
    little then.

    Args:
        histories: what ``histories`` returned, with ``ticket`` and ``dense``.

    Returns:
        A row a seed that both have: ``seed``, ``ticket_step``, ``dense_step``, ``ticket_val_loss``,
        ``dense_val_loss``, ``holds`` (the ticket needs no more steps).
    """
    runs = dict(iter(histories.groupby(["control", "seed"])))
    rows = []
    for seed in sorted({seed for control, seed in runs if control == "ticket" and ("dense", seed) in runs}):
        ticket, dense = runs["ticket", seed], runs["dense", seed]
        steps = steps_to_lowest(ticket), steps_to_lowest(dense)
        rows.append((seed, *steps, ticket.val_loss.min(), dense.val_loss.min(), steps[0] <= steps[1]))
    columns = ["seed", "ticket_step", "dense_step", "ticket_val_loss", "dense_val_loss", "holds"]
    return pd.DataFrame(rows, columns=columns)


def interpolations(
    profile: str, setting: str, method: str, ticket_round: int, results: Path | str | None = None
) -> pd.DataFrame:
    """Gathers the scores on the straight lines between two copies of a ticket, and of its dense network.

    Args:
        profile, setting, method, ticket_round, results: as in ``gather``.

    Returns:
        A row a point of a line: ``control`` (``ticket`` or ``dense``), ``seed``, ``alpha`` (0 and 1 are the copies),
        ``task``, ``psnr`` (dB).

    Raises:
        SettingsError: if there is no such line.
    """
    place = _place(profile, setting, method, results)
    parts = []
    for name, folder in _controls(place, method, ticket_round, "interpolation.csv"):
        line = pd.read_csv(folder / "interpolation.csv")
        line.insert(0, "control", LINES[choose("control", name, LINES)])
        line.insert(1, "seed", _seed(folder))
        parts.append(line)
    if not parts:
        raise SettingsError(f"ticket_round={ticket_round!r} of {method} has no interpolation.csv in {place}/controls")
    return pd.concat(parts, ignore_index=True)


def lines(interpolation: pd.DataFrame) -> pd.DataFrame:
    """Adds the families of tasks and their mean to scores on straight lines.

    Args:
        interpolation: a row a point and task: ``alpha``, ``task``, ``psnr`` (dB); other columns tell lines apart.

    Returns:
        The same columns; families that are there already stay as they are.
    """
    keys = [name for name in interpolation.columns if name not in ("task", "psnr")]
    parts = [
        with_families(own.groupby("task", sort=False)[["psnr"]].mean())
        .reset_index()
        .assign(**dict(zip(keys, key, strict=True)))
        for key, own in interpolation.groupby(keys, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)[list(interpolation.columns)]


def barriers(interpolation: pd.DataFrame) -> pd.DataFrame:
    """Measures how far the score falls on the straight line between two networks.

    The barrier is the largest distance by which the score falls below the straight line between the scores of the two
    ends, at least 0 (Entezari et al., *The Role of Permutation Invariance in Linear Mode Connectivity of Neural
    Networks*, ICLR 2022, in dB instead of loss). Frankle et al. (ICML 2020) take the mean of the ends in place of that
    line, which is the same where both score alike, and counts half of their difference where they do not.

    Args:
        interpolation: as in ``lines``.

    Returns:
        A row a line and task, families and ``mean`` (of their PSNR) included: what tells lines apart, ``task``,
        ``ends`` (dB: mean of the two), ``apart`` (dB: what they differ by, which the order of the data has decided),
        ``barrier`` (dB).

    Raises:
        SettingsError: if an end is missing.
    """
    names = [name for name in interpolation.columns if name not in ("alpha", "task", "psnr")]
    rows = []
    for key, own in lines(interpolation).groupby([*names, "task"], sort=False):
        psnr = own.set_index("alpha").psnr
        if not {0.0, 1.0} <= set(psnr.index):
            raise SettingsError(f"alpha={sorted(psnr.index)} is not allowed: both ends, 0 and 1, are wanted")
        straight = psnr[0.0] + (psnr[1.0] - psnr[0.0]) * psnr.index.to_numpy()
        row = (psnr[0.0] + psnr[1.0]) / 2, abs(psnr[1.0] - psnr[0.0]), max(0.0, (straight - psnr).max())
        rows.append((*key, *row))
    return pd.DataFrame(rows, columns=[*names, "task", "ends", "apart", "barrier"])
