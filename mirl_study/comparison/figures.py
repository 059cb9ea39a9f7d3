"""Figures of the models of Table I: a frame in, a matplotlib Figure out."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from mirl_study.analysis import SINGLE, by_task
from mirl_study.comparison import MODELS
from mirl_study.comparison.tables import STUDY, learnt
from mirl_study.figures.style import COLORS, MARKS, STYLE, count
from mirl_study.settings import LOTTERY
from mirl_study.store import read_json

NAMES = {"denoise15": "noise 15", "denoise25": "noise 25", "denoise50": "noise 50"}
TASKS = {
    task: {"color": COLORS[place], "marker": marker}
    for place, (task, marker) in enumerate(zip(SINGLE, "os^vD" + "PX*hp", strict=False))
}


def models(found: pd.DataFrame, setting: str = "all_in_one") -> Figure:
    """What each model gains over the degraded input, task by task.

    Args:
        found: what ``tables.runs`` returned.
        setting: whose runs.

    Returns:
        A row a model and recipe, with its parameters; a mark a task, at the mean over seeds. Left of the line the
        model harms the image.
    """
    own = found[found.setting == setting]
    labels, gains = [], []
    for (name, recipe), group in own.groupby(["model", "recipe"], sort=False):
        scores = [by_task(pd.read_csv(folder / "round00" / "metrics.csv")).set_index("task") for folder in group.folder]
        gains.append(sum(score.psnr - score.input_psnr for score in scores) / len(scores))
        parameters = read_json(group.folder.iloc[0] / "round00" / "round.json")["parameters"]
        title = MODELS[name].title if recipe == STUDY else f"{MODELS[name].title}, {recipe}"
        labels.append(f"{title}\n{count(parameters)} parameters")
    tasks = [task for task in SINGLE if gains and task in gains[0].index]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.6 + 0.6 * max(len(labels), 2)), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0, color="0.35", linestyle="-.", lw=1.3)
        for row, gain in enumerate(gains):
            for place, task in enumerate(tasks):
                height = row + 0.13 * (place - (len(tasks) - 1) / 2)
                axis.plot(gain[task], height, linestyle="", ms=8, mec="0.2", mew=0.5, **TASKS[task])
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(max(len(labels), 1) - 0.5, -0.5)
        axis.set_xlabel("PSNR above the degraded input / dB")
        keys = [
            Line2D([], [], linestyle="", ms=8, mec="0.2", mew=0.5, label=NAMES.get(task, task), **TASKS[task])
            for task in tasks
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=len(tasks) or 1, fontsize=11, frameon=False)
    return figure


def beyond(scores: pd.DataFrame, task: str = "mean") -> Figure:
    """Global against layer-wise pruning, model by model.

    Args:
        scores: what ``tables.cut_scores`` returned.
        task: whose PSNR.

    Returns:
        A panel a model, all on one scale: dB above the degraded input against the density that it was cut to; a point a
        seed, lines through the means, the level of the dense network, and a ring, in the line's colour, where a layer
        emptied. A panel is
        grey where the dense network itself is below its input: what it loses says little.
    """
    own = scores[scores.task == task]
    own = own.assign(gain=own.psnr - own.input_psnr)
    dense = learnt(scores, task)
    names = list(dense.index)
    columns = min(4, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 3.2 * columns), 3.4 * rows + 0.8), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for axis, name in zip(axes, names, strict=False):
            part = own[own.model == name]
            axis.axhline(0, color="0.35", linestyle="-.", lw=1.3)
            axis.axhline(dense[name], color="0.15", linestyle=":", lw=1.6)
            for method, scope in reversed(LOTTERY.items()):
                line, mark = part[part.scope == scope], MARKS[method]
                axis.plot(line.density, line.gain, ls="", marker=mark["marker"], color=mark["color"], ms=6, mec="0.2")
                means = line.groupby("density").gain.mean()
                axis.plot(means.index, means, color=mark["color"], linestyle=mark["linestyle"], lw=2)
                empty = line[line.emptied > 0]
                axis.plot(empty.density, empty.gain, ls="", marker="o", ms=13, mfc="none", mec=mark["color"], mew=1.5)
            axis.set_xscale("log")
            axis.invert_xaxis()
            densities = sorted(part.density.unique())
            axis.set_xticks(densities, [f"{100 * density:g}" for density in densities])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_title(MODELS[name].title)
            if dense[name] <= 0:
                axis.set_facecolor("0.9")
                where = {"transform": axis.transAxes, "ha": "right", "va": "top", "fontsize": 9}
                axis.text(0.97, 0.96, "dense is below its input", **where)
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        figure.supxlabel("density it was cut to / % (log scale)", fontsize=12)
        figure.supylabel("PSNR above the degraded input / dB", fontsize=12)
        keys = [Line2D([], [], label=scope, **MARKS[method]) for method, scope in reversed(LOTTERY.items())]
        keys += [Line2D([], [], color="0.15", linestyle=":", label="dense"), _level(), _ring()]
        figure.legend(handles=keys, loc="outside upper center", ncols=5, fontsize=11, frameon=False)
    return figure


def _level() -> Line2D:
    return Line2D([], [], color="0.35", linestyle="-.", label="degraded input")


def _ring() -> Line2D:
    return Line2D([], [], ls="", marker="o", ms=11, mfc="none", mec="black", mew=1.5, label="a layer is empty")
