"""What trained weights tell: what survives, whether the order of the weights lasts, prompts and heads by task."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from mirl_study.analysis import SINGLE
from mirl_study.figures.style import COLORS, MARKS, STYLE, line_of

RING: dict[str, Any] = {"linestyle": "", "marker": "o", "ms": 10, "mfc": "none", "mec": "0.1", "mew": 1.1}


def survivors_figure(survivors: pd.DataFrame) -> Figure:
    """Where the weights that stay stood at initialisation, and how many still have the sign they began with.

    Args:
        survivors: what ``trained.gather(found, "survivors")`` returned; means over seeds are drawn.

    Returns:
        A line of panels each for the initial rank and the sign, a panel a method. Curves are of the effective weights,
        the broken line is of all that are kept; tables of an earlier version have that one alone, by kind. A ring is
        around a mean that a single weight is in.
    """
    main = "effective" if (survivors.part == "effective").any() else "all"
    rows = {
        "rank": "mean initial rank in its tensor\n(0 smallest, 1 largest; chance 0.5)",
        "same_sign": "share with the sign\nthey began with",
    }
    methods = [method for method in MARKS if method in set(survivors.method)]
    kinds = [kind for kind in dict.fromkeys(survivors.kind) if kind != "all"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * len(methods), 7.6), layout="constrained")
        axes = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False)
        for line, (name, label) in zip(axes, rows.items(), strict=True):
            for axis, method in zip(line, methods, strict=True):
                own = survivors[survivors.method == method]
                part = own[own.part == main]
                means = part.groupby(["kind", "round"])[name].mean()
                for place, kind in enumerate(kinds):
                    curve = means.get(kind, pd.Series(dtype=float)).dropna()
                    axis.plot(curve, **line_of(place), ms=5, lw=1.5, label=kind)
                axis.plot(means["all"], color="black", lw=3, label=f"{'kept' if main == 'all' else main}, all kinds")
                if main != "all":
                    whole = own[(own.part == "all") & (own.kind == "all")].groupby("round")[name].mean()
                    axis.plot(whole, color="0.35", lw=3, linestyle=(0, (1, 1)), label="all that are kept")
                single = part[part.kept > 0].groupby(["kind", "round"]).kept.min().eq(1)
                few = means[single.reindex(means.index, fill_value=False)].dropna()
                if len(few):
                    axis.plot(few.index.get_level_values("round"), few, **RING, label="of a single weight")
                axis.axhline(0.5, color="0.35", linestyle="-.", lw=1.3)
                axis.set_title(method)
                axis.set_xticks(sorted(set(survivors["round"][survivors.method == method])))
            line[0].set_ylabel(label)
        for axis in axes[-1]:
            axis.set_xlabel("round (those whose weights were kept)")
        keys = {
            label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=6, fontsize=11, frameon=False)
    return figure


def ranking_figure(ranking: pd.DataFrame) -> Figure:
    """Whether the order of the weights by size in one round foretells that of a later one.

    Args:
        ranking: what ``trained.gather(found, "ranking")`` returned.

    Returns:
        A panel a method: a group a pair of rounds, a marker a seed. Of the effective weights of the later round; of all
        that it keeps, if the tables are of an earlier version.
    """
    part = "effective" if (ranking.part == "effective").any() else "all"
    ranking = ranking[ranking.part == part]
    ways = {
        "order": ("Spearman's correlation of the sizes", "o", COLORS[0]),
        "top": ("share of them among the largest before", "^", COLORS[1]),
        "chance": ("the same by chance", "_", "black"),
    }
    methods = [method for method in MARKS if method in set(ranking.method)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * len(methods), 5), layout="constrained")
        axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for axis, method in zip(axes, methods, strict=True):
            own = ranking[ranking.method == method]
            pairs = list(dict.fromkeys(zip(own.before, own.after, strict=True)))
            for shift, (name, (label, marker, color)) in zip((-0.15, 0.15, 0.15), ways.items(), strict=True):
                for place, (before, after) in enumerate(pairs):
                    values = own[(own.before == before) & (own.after == after)][name]
                    style = {"color": color, "marker": marker, "ms": 14 if marker == "_" else 7, "mec": "0.1"}
                    text = label if not place else None
                    axis.plot([place + shift] * len(values), values, linestyle="", **style, mew=1, label=text)
            names = [f"{'start' if before < 0 else before} → {after}" for before, after in pairs]
            axis.set_xticks(range(len(pairs)), names, rotation=30, ha="right")
            axis.set(title=method, xlabel="from round to round", ylim=(min(0, own.order.min()) - 0.03, 1.05))
        axes[0].set_ylabel(
            f"correlation, or share,\nof the {'kept' if part == 'all' else part} weights of the later round"
        )
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    return figure


def prompts_figure(prompts: pd.DataFrame, title: str = "") -> Figure:
    """How much of each prompt component each task takes.

    Args:
        prompts: rows of ``trained.gather(found, "prompt_weights")`` of one run and round.
        title: of the figure.

    Returns:
        A panel a prompt: a line a task, a column a component; the mean over images, and in brackets their range. The
        scale of the colours is the same for every network.
    """
    tasks = [task for task in SINGLE if task in set(prompts.task)]
    names = sorted(set(prompts.prompt))
    groups = prompts.groupby(["prompt", "task", "component"]).weight
    means, least, most = groups.mean(), groups.min(), groups.max()
    count = prompts.component.nunique()
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(15, 1.9 + 0.62 * len(tasks)), layout="constrained")
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, names, strict=True):
            table = means[name].unstack("component").loc[tasks]
            image = axis.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="none")
            for row, task in enumerate(tasks):
                for place in table.columns:
                    low, high = least[name, task, place], most[name, task, place]
                    text = f"{table.loc[task, place]:.2f}\n({low:.2f}–{high:.2f})"
                    color = "black" if table.loc[task, place] > 0.5 else "white"
                    axis.text(place, row, text, ha="center", va="center", fontsize=9, color=color)
            axis.set_xticks(range(len(table.columns)), table.columns)
            axis.set(title=name, xlabel="component")
        axes[0].set_yticks(range(len(tasks)), tasks)
        bar = figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
        bar.set_label(f"weight ({1 / count:.2g}: all alike)")
        figure.suptitle(title, fontsize=14)
    return figure


def heads_figure(heads: pd.DataFrame, title: str = "") -> Figure:
    """How far the error rises if a head or a prompt is switched off.

    Args:
        heads: rows of ``trained.gather(found, "heads")`` of one run and round, none of an earlier version.
        title: of the figure.

    Returns:
        A line a head or prompt, in the network's order, a column a task. Colours are linear near zero and logarithmic
        beyond.
    """
    tasks = [task for task in SINGLE if task in set(heads.task)]
    several = heads.groupby("layer")["head"].transform("max") > 0
    heads = heads.assign(name=heads.layer + np.where(several, " head " + heads["head"].astype(str), ""))
    names = list(dict.fromkeys(heads.name))
    rises = heads.assign(rise=1e3 * (heads.off - heads.error))
    table = rises.pivot(index="name", columns="task", values="rise").loc[names, tasks]
    reach = max(table.abs().max().max(), 1e-6)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(11, 1.8 + 0.27 * len(names)), layout="constrained")
        axis = figure.subplots()
        norm = SymLogNorm(linthresh=reach / 100, vmin=-reach, vmax=reach)
        image = axis.imshow(table, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="none")
        for row, values in enumerate(table.to_numpy()):
            for column, value in enumerate(values):
                color = "white" if abs(value) > 0.1 * reach else "black"
                text = f"{value:+.2g}".replace("-", "−") if value else "0"
                axis.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
        axis.set_xticks(range(len(tasks)), tasks)
        axis.set_yticks(range(len(names)), names, fontsize=10)
        ticks = 10.0 ** np.arange(np.ceil(np.log10(reach / 50)), np.log10(reach) + 1e-9)
        bar = figure.colorbar(image, ax=axis, fraction=0.03, pad=0.02)
        bar.set_ticks([*-ticks[::-1], 0, *ticks], labels=[f"{t:g}" for t in [*-ticks[::-1], 0, *ticks]], minor=False)
        bar.set_label("rise of the mean absolute error / 0.001\n(symmetric log scale)")
        axis.set_title(title)
    return figure
