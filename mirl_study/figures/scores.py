"""Scores against what a network costs: Figure 1, and its like in bytes and seconds."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from mirl_study.analysis import RUN, over_seeds
from mirl_study.figures.style import MARKS, STYLE, count, heading, panels
from mirl_study.settings import LOTTERY, ONE_SHOT


def figure1(scores: pd.DataFrame, collapse: pd.DataFrame | None = None, setting: str = "all_in_one") -> Figure:
    """PSNR against the parameters that are left, as in the paper's Figure 1, global against layer-wise.

    Args:
        scores: what ``analysis.scores`` returned.
        collapse: what ``analysis.collapse`` returned; rounds in which a layer emptied are ringed.
        setting: whose scores.

    Returns:
        A panel for each family of tasks, and one for their mean: a point a seed and round, lines through the means over
            seeds, the levels of the
        input and of the dense network.
    """
    scores = scores[scores.setting == setting]
    shown, means = panels(scores.task), over_seeds(scores)
    with mpl.rc_context(STYLE):
        columns = 2 if len(shown) > 1 else 1
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(6.4 * columns, 3.7 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, task in zip(axes, shown, strict=True):
            top = _curves(axis, scores[scores.task == task], means[means.task == task], collapse)
            if task in shown[:columns]:
                top.set_xlabel("density / % of the prunable weights", fontsize=11)
            axis.set_title(heading(task))
            axis.set_ylabel("PSNR / dB")
        for axis in axes[-columns:]:
            axis.set_xlabel("parameters left (all, log scale; pruned to the right)")
        figure.legend(
            handles=_keys(scores, collapse),
            loc="outside lower center",
            ncols=5 if columns > 1 else 2,
            fontsize=11,
            frameon=False,
        )
    return figure


def _curves(axis: Axes, points: pd.DataFrame, means: pd.DataFrame, collapse: pd.DataFrame | None) -> Axes:
    """One panel of Figure 1; returns its upper axis."""
    for method in (*ONE_SHOT, *reversed(LOTTERY)):
        mark = MARKS[method]
        own, line = points[points.method == method], means[means.method == method].sort_values("round")
        axis.plot(
            own.parameters, own.psnr, linestyle="", marker=mark["marker"], color=mark["color"], ms=5, mec="0.2", mew=0.5
        )
        axis.plot(line.parameters, line.psnr, color=mark["color"], linestyle=mark["linestyle"], lw=2)
        if collapse is not None and method in LOTTERY:
            ringed = own.merge(collapse[collapse.method == method], on=RUN)
            ringed = ringed[(ringed["round"] == ringed.emptied_round).fillna(False)]
            axis.plot(ringed.parameters, ringed.psnr, linestyle="", marker="o", ms=13, mfc="none", mec="black", mew=1.5)
    axis.axhline(points.input_psnr.mean(), color="0.35", linestyle="-.", lw=1.3)
    axis.axhline(points[points.method == "dense"].psnr.mean(), color="0.15", linestyle=":", lw=1.6)
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.grid(axis="x", visible=False)
    _limits(axis, points)
    return _ticks(axis, means[means.method.isin([*LOTTERY, "dense"])])


def baselines_below(scores: pd.DataFrame, setting: str = "all_in_one") -> bool:
    """Whether a baseline lies so far below the curves of a panel of Figure 1 that an arrow stands for it."""
    own = scores[scores.setting == setting]
    return any((own[own.task == task].psnr < _floor(own[own.task == task])).any() for task in panels(own.task))


def _floor(points: pd.DataFrame) -> float:
    """The lowest PSNR that a panel shows."""
    core = [*points[~points.method.isin(ONE_SHOT)].psnr, *points.input_psnr]
    return min(core) - 0.45 * max(max(core) - min(core), 0.5)


def _limits(axis: Axes, points: pd.DataFrame) -> None:
    """The curves fill the panel; a baseline far below them is an arrow with its value at the lower edge."""
    low = _floor(points)
    if points.psnr.min() >= low:
        return
    core = [*points[~points.method.isin(ONE_SHOT)].psnr, *points.input_psnr]
    span = max(max(core) - min(core), 0.5)
    axis.set_ylim(low, max(*core, points.psnr.max()) + 0.07 * span)
    below = points[points.psnr < low].groupby("method").agg({"parameters": "first", "psnr": "mean"})
    levels: dict[float, int] = {}
    for method, point in below.iterrows():
        place = levels.get(point.parameters, 0)
        levels[point.parameters] = place + 1
        height = low + (0.06 + 0.15 * place) * span
        axis.plot(point.parameters, height, **{**MARKS[method], "ms": 6}, mec="0.2", mew=0.5)
        axis.annotate(f" ↓ {point.psnr:.1f}", (point.parameters, height), va="center", fontsize=9)


def _ticks(axis: Axes, means: pd.DataFrame) -> Axes:
    """Parameters below, density above, at the same places: every third round; returns the upper axis."""
    places = means.drop_duplicates("round").set_index("round").sort_index()
    step = 3 if places.index.max() > 6 else 1
    chosen = places[places.index % step == 0]
    axis.set_xticks(chosen.parameters, [count(value) for value in chosen.parameters])
    axis.xaxis.set_minor_locator(FixedLocator(list(places.parameters)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    top = axis.secondary_xaxis("top")
    top.xaxis.set_minor_formatter(NullFormatter())
    top.set_xticks(chosen.parameters, [f"{100 * value:.3g}" for value in chosen.density])
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(labelsize=10)
    axis.tick_params(axis="x", labelsize=10)
    return top


def _keys(scores: pd.DataFrame, collapse: pd.DataFrame | None) -> list[Line2D]:
    """Entries of Figure 1's legend: only what is in it."""
    names = {"MIR-L-G": "MIR-L-G (global)", "MIR-L-LW": "MIR-L-LW (layer-wise)"}
    there = [method for method in MARKS if method in set(scores.method)]
    keys = [
        Line2D([], [], **MARKS[method], label=names.get(method, method), mec="0.2", mew=0.5, lw=2) for method in there
    ]
    keys.append(Line2D([], [], color="0.15", linestyle=":", lw=1.6, label="dense"))
    keys.append(Line2D([], [], color="0.35", linestyle="-.", lw=1.3, label="input (not restored)"))
    if collapse is not None and collapse.emptied_round.notna().any():
        ring = {"marker": "o", "ms": 11, "mfc": "none", "mec": "black", "mew": 1.5}
        keys.append(Line2D([], [], linestyle="", **ring, label="first empty layer"))
    return keys


COSTS = {
    "parameters": ("parameters left (log scale)", 1.0),
    "bytes": ("size of the trained network / MB (log scale)", 1e-6),
    "training": ("training until then / min (log scale)", 1 / 60),
    "restoring": ("restoring all test images / s", 1.0),
}


def quality_figure(scores: pd.DataFrame, costs: pd.DataFrame, setting: str = "all_in_one") -> Figure:
    """PSNR on the mean of the families against what a network costs: parameters, bytes, time.

    Args:
        scores: what ``analysis.scores`` returned.
        costs: what ``analysis.costs`` returned.
        setting: whose.

    Returns:
        A panel for each cost: a point a seed and round, lines through the means over seeds in the order of the rounds.
    """
    own = scores[(scores.setting == setting) & (scores.task == "mean")].drop(columns="parameters")
    points = own.merge(costs, on=[*RUN, "round"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.8, 8), layout="constrained")
        axes = figure.subplots(2, 2, sharey=True).flatten()
        for axis, (name, (label, unit)) in zip(axes, COSTS.items(), strict=True):
            for method in (method for method in (*ONE_SHOT, *reversed(LOTTERY)) if method in set(points.method)):
                mark, run = MARKS[method], points[points.method == method]
                plain = {"linestyle": "", "marker": mark["marker"], "color": mark["color"], "mec": "0.2", "mew": 0.5}
                axis.plot(run[name] * unit, run.psnr, **plain, ms=5)
                means = run.groupby("round")[[name, "psnr"]].mean()
                if name != "restoring":  # that is a matter of the machine: a line through it would be a scribble
                    axis.plot(means[name] * unit, means.psnr, color=mark["color"], linestyle=mark["linestyle"], lw=2)
            dense = points[points.method == "dense"]
            axis.plot(dense[name] * unit, dense.psnr, linestyle="", marker="D", ms=7, mfc="white", mec="0.1", mew=1.3)
            axis.axhline(own.input_psnr.mean(), color="0.35", linestyle="-.", lw=1.3)
            axis.set_xlabel(label)
            if "log" in label:
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter(
                    FuncFormatter(lambda value, _: count(value) if value >= 1e3 else f"{value:g}")
                )
                axis.xaxis.set_minor_formatter(NullFormatter())
        _limits(axes[0], points[points.task == "mean"])
        for axis in axes[::2]:
            axis.set_ylabel("PSNR, mean of the families / dB")
        keys = _keys(own, None)
        dense = {"linestyle": "", "marker": "D", "ms": 7, "mfc": "white", "mec": "0.1", "mew": 1.3}
        keys = [key for key in keys if key.get_label() != "dense"] + [Line2D([], [], **dense, label="dense")]
        figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=11, frameon=False)
    return figure
