"""What the lab's runs say, in sentences; computed from the records, never typed."""

import itertools
import statistics
from collections import Counter

import pandas as pd

from mirl_study import similarity, verdicts
from mirl_study.analysis import FAMILIES
from mirl_study.masks import Mask
from mirl_study.widgets.lab import CLOSE, Lab

NAMES = {"MIR-L-G": "global", "MIR-L-LW": "layer-wise"}  # in the order in which they are shown
PRUNABLE = "gains prunable"
FOUR = ("reinit", "shuffled", "random_global", "dense_long")  # the controls that the lesson speaks of


def heading(task: str) -> str:
    """A family of tasks, or their mean, in words."""
    return "the mean of the families" if task == "mean" else task


def chains(lab: Lab) -> pd.DataFrame:
    """Scores by chain, seed, round and task: both lotteries, and layer-wise with its norms treated otherwise."""
    parts = [
        lab.scores[lab.scores.method == method].assign(chain=NAMES[method])[["chain", "seed", "round", "task", "psnr"]]
        for method in NAMES
    ]
    name = f"layer-wise, {'gains kept' if lab.settings.prune_norms else PRUNABLE}"
    place = lab.folders["dense"].parents[1] / "controls" / lab.settings.control("norms")
    for folder in sorted(place.glob("seed*/summary.csv")):
        own = verdicts.lines(pd.read_csv(folder)[["round", "task", "psnr"]].assign(seed=int(folder.parent.name[4:])))
        dense = lab.scores[(lab.scores.method == "dense") & (lab.scores.seed == int(folder.parent.name[4:]))]
        both = pd.concat([dense[["seed", "round", "task", "psnr"]], own])
        parts.append(both.assign(chain=name)[["chain", "seed", "round", "task", "psnr"]])
    return pd.concat(parts, ignore_index=True)


def told_scopes(lab: Lab, task: str, played: pd.DataFrame | None = None) -> list[str]:
    """Says, from the scores alone, which scope is ahead where, and what the norms change.

    Args:
        lab: whose runs.
        task: family of tasks, or ``mean``.
        played: what ``chains`` returned; gathered if not given.
    """
    played = chains(lab) if played is None else played
    own = played[played.task == task].pivot_table(index=["round", "seed"], columns="chain", values="psnr")
    gap = (own["global"] - own["layer-wise"]).dropna()
    means = gap.groupby("round").mean()
    means = means[means.index > 0]
    seeds = gap.index.get_level_values("seed").nunique()
    ahead = [int(index) for index in means.index[means > 0]]
    where = f"in rounds {', '.join(map(str, ahead))}" if ahead else "in no round"
    told = [f"Global is ahead of layer-wise {where} of 1 to {means.index.max()} (mean of {seeds} seeds)."]
    for index in sorted({lab.ticket, int(means.index.max())} & set(means.index)):
        told.append(f"Round {index}: global − layer-wise = {_interval(gap.loc[index])}.")
    third = next((name for name in own if name.startswith("layer-wise, ")), None)
    if third is None:
        return [*told, "The layer-wise lottery with the norms treated the other way has not been played here."]
    changed = (own[third] - own["layer-wise"]).dropna()
    last = changed.index.get_level_values("round").max()
    told.append(f"Round {last}: ({third}) − layer-wise = {_interval(changed.loc[last])}{_gains_left(lab)}.")
    return told


def _gains_left(lab: Lab) -> str:
    """Says how many gains of the norms the last round of the other layer-wise lottery has, by its masks."""
    place = lab.folders["dense"].parents[1] / "controls" / lab.settings.control("norms")
    for folder in sorted(place.glob("seed*/round*/mask.npz"))[-1:]:
        left, size = Mask.load(folder).counts("kind").get("norm", (0, 0))
        return f"; {left} of its {size} gains are left" if size else ""
    return ""


def _interval(values: pd.Series) -> str:
    mean, low, high = verdicts.interval(values)
    if len(values) < 2:
        return f"{mean:+.2f} dB, and one seed tells nothing apart"
    told = "0 lies inside: these seeds cannot tell" if low <= 0 <= high else "0 lies outside"
    return f"{mean:+.2f} dB, 95 % interval {low:+.2f} to {high:+.2f} dB over {len(values)} seeds ({told})"


def told_families(lab: Lab) -> list[str]:
    """Says, family by family, what is left of the scores in the last round, and what that makes of the mean."""
    own = lab.scores[lab.scores.task.isin(lab.panels)]
    above = own.assign(psnr=own.psnr - own.input_psnr).pivot_table(
        index="task", columns=["method", "round"], values="psnr"
    )
    told, gaps = [], {}
    for task in lab.panels:
        last = {NAMES[method]: above.loc[task, (method, lab.rounds)] for method in NAMES}
        gaps[task] = last["global"] - last["layer-wise"]
        parts = [f"{name} {value:+.2f} dB" for name, value in {"dense": above.loc[task, ("dense", 0)], **last}.items()]
        told.append(f"{heading(task)}, above the input: {', '.join(parts)}")
    if len(gaps) > 1:
        parts = [f"{task} {gap:+.2f}" for task, gap in gaps.items() if task != "mean"]
        told.append(f"global − layer-wise: {', '.join(parts)}; their mean is {gaps['mean']:+.2f} dB")
    return [f"Round {lab.rounds}, mean of {own.seed.nunique()} seeds:", *told]


def told_controls(frame: pd.DataFrame, names: tuple[str, ...] = FOUR) -> list[str]:
    """Says, control by control, in which families the seeds tell it from the ticket, and what the mean hides.

    Args:
        frame: what ``verdicts.gather`` returned.
        names: of the controls; those that were not played are left out.
    """
    tasks = [task for task in (*FAMILIES, "mean") if task in set(frame.task)]
    tasks = tasks if len(tasks) > 2 else tasks[:1]
    pairs = verdicts.paired(frame, "ticket").set_index(["control", "task"])
    dense = verdicts.paired(frame, "dense").set_index(["control", "task"])["mean"]
    told, hidden, better = [], [], {}
    for name in [name for name in names if name in pairs.index]:
        words = {task: _side(pairs.loc[name, task]) for task in tasks}
        parts = [f"{task} {pairs.loc[(name, task), 'mean']:+.2f} dB ({word})" for task, word in words.items()]
        told.append(f"{name} to the ticket: {', '.join(parts)}")
        apart = {word for task, word in words.items() if task != "mean" and word != "cannot be told"}
        hidden += [name] if apart and words.get("mean") == "cannot be told" else []
        for task, word in words.items():
            if word == "better" and task != "mean":
                better.setdefault(task, []).append(name)
    if hidden:
        told.append(f"On the mean, {', '.join(hidden)} cannot be told from the ticket; on some family they can.")
    for task, which in better.items():
        parts = [f"{name} {dense[name, task]:+.2f} dB" for name in ("ticket", *which)]
        told.append(f"Who is better than the ticket on {task}, and by how much to dense: {', '.join(parts)}")
    return told or ["No control of this ticket has been played in these results."]


def _side(row: pd.Series) -> str:
    """Whether a paired interval lies on one side of 0."""
    return "better" if row.low > 0 else "worse" if row.high < 0 else "cannot be told"


def chance(a: Mask, b: Mask) -> float:
    """IoU to be expected of masks that keep as many weights in each layer and know nothing of each other."""
    return similarity.pair(similarity.pack(a), similarity.pack(b))["chance"]


def told_shared(lab: Lab) -> list[str]:
    """Says how far tickets of one seed, and of two, agree beyond what the densities of their layers explain."""
    own = lab.found[lab.found.finished & (lab.found.setting == lab.setting)]
    masks = {
        (r.method, r.seed): lab.mask(r.method, lab.ticket, r.folder) for r in own.itertuples() if r.method in NAMES
    }
    groups: dict[str, list[tuple[Mask, Mask]]] = {}
    for (one, a), (other, b) in itertools.combinations(masks.items(), 2):
        if one[1] == other[1]:
            groups.setdefault("global and layer-wise of one seed", []).append((a, b))
        elif one[0] == other[0]:
            groups.setdefault(f"two seeds, both {NAMES[one[0]]}", []).append((a, b))
    return [
        f"{name}: IoU {statistics.mean(a.iou(b) for a, b in pairs):.1%}, by the densities of the layers alone "
        f"{statistics.mean(chance(a, b) for a, b in pairs):.1%} (round {lab.ticket}, pairs: {len(pairs)})"
        for name, pairs in sorted(groups.items())
    ]


def told_answer(lab: Lab, margin: float = CLOSE) -> list[str]:
    """Answers the lab's question: which tickets of all rounds win or match, and what the seeds could tell at all.

    Args:
        lab: whose runs, of all seeds.
        margin: dB below dense that still counts as matching.
    """
    own = lab.scores[lab.scores.method.isin(NAMES) & (lab.scores["round"] > 0)]
    told, found, seen = [], {"winning": [], "matching": []}, 0
    for method, name in NAMES.items():
        for task in lab.panels:
            part = own[(own.method == method) & (own.task == task)]
            judged = {index: verdicts.verdict(values, margin) for index, values in part.groupby("round").delta}
            words = Counter(one.word if one.decided else "undecided" for one in judged.values())
            seen += len(judged)
            for index, one in judged.items():
                if one.decided and one.word in found:
                    found[one.word].append(f"{name}, round {index}, on {heading(task)}")
            parts = [f"{words[word]} {word}" for word in ("winning", "matching", "not matching", "undecided")]
            told.append(f"{name}, {heading(task)}: of {len(judged)} tickets {', '.join(parts)}")
    task = lab.panels[0]
    dense = lab.scores[(lab.scores.method == "dense") & (lab.scores.task == task)].psnr
    seeds = len(dense)
    parts = "; ".join(f"{word}: {' and '.join(which) or 'none'}" for word, which in found.items())
    told.append(f"In all {seen} cases, over {seeds} seeds: {parts}.")
    if seeds > 1:
        noise = own[own.task == task].groupby(["method", "round"]).delta.std().median()
        told.append(
            f"The margin is {margin:g} dB. On {heading(task)} the dense networks alone lie "
            f"{dense.max() - dense.min():.2f} dB apart, and ticket − dense scatters by {noise:.2f} dB between seeds "
            f"(standard deviation, median of all tickets)."
        )
    return told
