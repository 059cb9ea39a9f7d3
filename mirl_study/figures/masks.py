"""Masks: where the weights are, which leave when, what masks have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mirl_study.analysis import LEVELS
from mirl_study.figures.style import COLORS, MARKS, STYLE, line_of
from mirl_study.masks import Mask
from mirl_study.settings import SettingsError, choose


def density_map(densities: pd.DataFrame, title: str = "") -> Figure:
    """Density by layer and round; layers of equal place in a run of blocks are pooled to keep deep networks readable.

    Args:
        densities: what ``analysis.layer_densities`` returned.
        title: of the figure.

    Returns:
        A panel for each part of a transformer block, with a line a stage of the network, and one for all other layers.
        Columns are rounds. A cross marks a place where a layer is empty.
    """
    blocks, others = densities[densities.part != ""], densities[densities.part == ""]
    parts = list(dict.fromkeys(blocks.part))
    lowest = densities[densities.kept > 0].density.min()
    norm = LogNorm(vmin=min(max(lowest, 0.01), 0.5), vmax=1)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        rows = max(blocks.stage.nunique(), others.layer.nunique())
        figure = Figure(figsize=(15, 1.9 + 0.27 * rows), layout="constrained")
        axes = figure.subplots(1, len(parts) + 1)
        for axis, part in zip(axes, parts, strict=False):
            image = _cells(axis, blocks[blocks.part == part], "stage", norm)
            axis.set_title(part.replace(".", "\n", 1), fontsize=11)
            if axis is not axes[0]:
                axis.set_yticklabels([])
        image = _cells(axes[-1], others, "layer", norm)
        axes[-1].set_title("other\nlayers", fontsize=11)
        axes[-1].yaxis.tick_right()
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=60, fraction=0.05, pad=0.03, extend="min")
        bar.set_label("density, log scale (kept / prunable weights of the layer; × = a layer is empty)")
        ticks = [value for value in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if value >= norm.vmin]
        bar.set_ticks(ticks, labels=[f"{value:g}" for value in ticks], minor=False)
        bar.ax.minorticks_off()
        figure.suptitle(title, fontsize=14)
    return figure


def _cells(axis: Axes, table: pd.DataFrame, lines: str, norm: LogNorm) -> Any:
    """One panel of a density map."""
    order = list(dict.fromkeys(table[lines]))
    counts = table.groupby([lines, "round"])[["kept", "size"]].sum()
    values = (counts.kept / counts["size"]).unstack("round").loc[order]
    empty = table.assign(empty=table.kept == 0).groupby([lines, "round"]).empty.any().unstack("round").loc[order]
    colours = mpl.colormaps["cividis"].with_extremes(bad="white")
    extent = (values.columns.min() - 0.5, values.columns.max() + 0.5, len(order) - 0.5, -0.5)
    image = axis.imshow(
        values.where(values > 0), aspect="auto", cmap=colours, norm=norm, interpolation="none", extent=extent
    )
    for row, name in enumerate(order):
        for index in values.columns[empty.loc[name]]:
            dark = 0 < values.loc[name, index] < (norm.vmin * norm.vmax) ** 0.5
            axis.text(index, row, "×", ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axis.set_yticks(range(len(order)), order, fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.set_xlabel("round", fontsize=10)
    return image


def density_by_inputs(densities: Mapping[str, pd.DataFrame], index: int) -> Figure:
    """Density of each layer against the inputs of its units, which set the size of its initial weights.

    Args:
        densities: what ``analysis.layer_densities`` returned, by method.
        index: the round to show.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.3 * len(densities), 4.4), layout="constrained")
        axes = figure.subplots(1, len(densities), sharey=True, squeeze=False)[0]
        for axis, (method, table) in zip(axes, densities.items(), strict=True):
            own = table[table["round"] == index]
            mark = MARKS[method]
            axis.scatter(
                own.inputs, own.density, color=mark["color"], marker=mark["marker"], edgecolor="0.2", alpha=0.8
            )
            axis.set_xscale("log")
            axis.set_xlabel("inputs of a unit (more inputs = smaller initial weights)")
            axis.set_title(f"{method}, round {index}, a point a layer")
        axes[0].set_ylabel("density of the layer")
    return figure


def survival_curves(survival: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of the weights that live on, by kind of layer.

    Args:
        survival: what ``analysis.survival`` returned, by title; the first round in each is where the curves start.

    Returns:
        A panel for each entry: a curve a kind, and a thick one for all weights.
    """
    kinds = list(dict.fromkeys(kind for table in survival.values() for kind in table.kind if kind != "all"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.3 * len(survival), 5.6), layout="constrained")
        axes = figure.subplots(1, len(survival), sharey=True, squeeze=False)[0]
        for axis, (title, table) in zip(axes, survival.items(), strict=True):
            table = table[table.since == table.since.min()]
            for place, kind in enumerate(kinds):
                own = table[(table.kind == kind) & (table.share > 0)]
                axis.plot(own["round"], own.share, **line_of(place), ms=5, lw=1.5, label=kind)
            whole = table[table.kind == "all"]
            axis.plot(whole["round"], whole.share, color="black", lw=3, label="all prunable")
            axis.set_title(title)
            axis.set_xlabel("round")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
        start = min(table.since.min() for table in survival.values())
        axes[0].set_ylabel(
            f"share of the weights of round {start} that live on\n(log scale; a curve ends where none is left)"
        )
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=11, frameon=False)
    return figure


def overlap_curves(overlap: pd.DataFrame, title: str = "global against layer-wise") -> Figure:
    """How much two chains of masks share, and what chance, or their common initial values, would give.

    Args:
        overlap: what ``similarity.over_rounds`` returned.
        title: of the figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.plot(overlap["round"], overlap.iou, color=COLORS[0], marker="o", lw=2, label="these masks")
        initial = "the largest initial values (as many kept in each layer)"
        axis.plot(overlap["round"], overlap.initial, color=COLORS[2], marker="^", ms=6, linestyle=":", label=initial)
        chance = "chance (as many kept in each layer)"
        axis.plot(overlap["round"], overlap.chance, color="0.35", marker="D", ms=5, linestyle="--", label=chance)
        axis.set(xlabel="round", ylabel="IoU (kept by both / by either)", ylim=(0, 1.03), title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False)
    return figure


def norm_collapse(frame: pd.DataFrame) -> Figure:
    """How many gains of a LayerNorm are left, round by round.

    Args:
        frame: what ``counts.norm_gains`` returned.

    Returns:
        A line a width, through the mean of the LayerNorms that have it; at its end stand what is left and how many
        LayerNorms that is true of. A line ends where none is left.
    """
    lines = {}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 5.4), layout="constrained")
        axis = figure.subplots()
        for place, (width, own) in enumerate(frame.groupby("width")):
            kept = own.groupby("round").kept.mean()
            axis.plot(kept[kept > 0], **line_of(place), ms=6, mec="0.2", mew=0.5, lw=1.8)
            lines[width] = kept
        last = frame["round"].max()
        axis.set(xlabel="round", ylabel="gains left in a LayerNorm (log scale)", yscale="log")
        axis.set_xticks(range(0, last + 1, 3 if last > 6 else 1))
        axis.spines[["top", "right"]].set_visible(False)  # no frame across the labels
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        low, high = axis.get_ylim()
        height = 0.0
        for width, kept in sorted(lines.items(), key=lambda line: line[1].iloc[-1]):
            height = max(kept[kept > 0].iloc[-1], height * (high / low) ** 0.045)  # labels do not touch
            norms = frame[frame.width == width].layer.nunique()
            text = f"{kept.iloc[-1]:g} of {width} ({norms} norm{'' if norms == 1 else 's'})"
            axis.annotate(text, (last, height), (9, 0), textcoords="offset points", va="center", fontsize=11)
    return figure


def mosaic(
    masks: Mapping[int, Mask], layer: str, rounds: Sequence[int] = (), live: Mapping[int, Mask] | None = None
) -> Figure:
    """The mask of one layer in several rounds, weight by weight.

    Args:
        masks: by round.
        layer: its name, without ``.weight``.
        rounds: which; up to six, spread over those up to the one in which the layer is empty, if not given.
        live: what ``effective.effective`` returned, by round; kept weights that are not in it are drawn grey.

    Returns:
        A panel a round: an output channel in one direction, its weights in the other; yellow is kept.

    Raises:
        SettingsError: for a layer or a round that is not there.
    """
    names = [name.removesuffix(".weight") for name in next(iter(masks.values()))]
    choose("layer", layer, names)
    there = sorted(masks)
    empty = [index for index in there if not masks[index][f"{layer}.weight"].any()]
    until = [index for index in there if not empty or index <= empty[0]]
    for index in rounds:
        if index not in masks:
            raise SettingsError(f"rounds={index!r} is not there: one of {', '.join(map(str, there))}")
    rounds = list(rounds) or sorted({until[round(at)] for at in np.linspace(0, len(until) - 1, min(6, len(until)))})
    tiles = {index: masks[index][f"{layer}.weight"].flatten(1).numpy() for index in rounds}
    height, width = next(iter(tiles.values())).shape
    turned = height > width  # many units with few inputs, as in a depth-wise filter
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        columns = min(3, len(rounds))
        lines = -(-len(rounds) // columns)
        long, short = max(height, width), min(height, width)
        size = 12.8 / columns * min(max(short / long, 0.25), 1.0) + 0.7
        figure = Figure(figsize=(12.8, size * lines + 0.8), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis, index in zip(axes, rounds, strict=False):
            tile = tiles[index].T if turned else tiles[index]
            works = live[index][f"{layer}.weight"].flatten(1).numpy() if live else tiles[index]
            shade = (tile + (works.T if turned else works).astype(float)) / 2
            axis.imshow(shade, cmap="cividis", vmin=0, vmax=1, interpolation="none", aspect="auto")
            words = f"round {index}: {tile.sum():,} of {tile.size:,} kept" + (
                f", {works.sum():,} effective" if live else ""
            )
            axis.set_title(words, fontsize=11)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axis in axes[len(rounds) :]:
            axis.set_visible(False)
        words = ("output channel", "weights of the channel")
        axes[0].set_ylabel(words[1] if turned else words[0])
        for axis in axes[max(len(rounds) - columns, 0) : len(rounds)]:
            axis.set_xlabel(words[0] if turned else words[1])
        light = "yellow: effective, grey: kept, but not effective" if live else "yellow: kept"
        key = f"{light}, dark blue: pruned"
        figure.suptitle(f"{layer} ({key})", fontsize=14)
    return figure


MATRIX = ("a", "b", "iou", "chance", "initial")


def similarity_matrix(matrix: pd.DataFrame, title: str = "") -> Figure:
    """What every two masks have in common, beside what chance gives.

    Args:
        matrix: what ``similarity.matrix`` returned.
        title: of the figure.

    Returns:
        A cell a pair: IoU, and in brackets that of masks with the same layer densities that know nothing of each other;
        where the two started from the same values, behind a bar, that of masks that keep the largest of these. Colour
        is the difference from chance.
    """
    labels, matrix = list(dict.fromkeys(matrix.a)), matrix.reindex(columns=[*MATRIX])
    values = {
        name: matrix.pivot(index="a", columns="b", values=name).loc[labels, labels]
        for name in ("iou", "chance", "initial")
    }
    excess = (values["iou"] - values["chance"]).to_numpy(copy=True)
    np.fill_diagonal(excess, np.nan)
    reach = max(np.nanmax(np.abs(excess), initial=0.0), 0.05)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        side = (1.15 if values["initial"].isna().all(axis=None) else 1.45) * len(labels)
        figure = Figure(figsize=(max(side, 3.5) + 4.2, max(0.62 * len(labels), 1.8) + 2.2), layout="constrained")
        axis = figure.subplots()
        colours = mpl.colormaps["PuOr_r"].with_extremes(bad="0.85")
        image = axis.imshow(excess, cmap=colours, vmin=-reach, vmax=reach, aspect="auto", interpolation="none")
        for row, a in enumerate(labels):
            for column, b in enumerate(labels):
                iou, chance, initial = (values[name].loc[a, b] for name in values)
                beside = f"{chance:.3f}" + (f" | {initial:.3f}" if pd.notna(initial) else "")
                text = f"{iou:.3f}\n({beside})" if a != b else "same"
                strong = a != b and abs(excess[row, column]) > 0.6 * reach
                axis.text(
                    column, row, text, ha="center", va="center", fontsize=10, color="white" if strong else "black"
                )
        axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axis.set_yticks(range(len(labels)), labels)
        axis.set_title(title)
        figure.colorbar(image, ax=axis, label="IoU less chance").outline.set_visible(False)
    return figure


def denominators_figure(counts: pd.DataFrame) -> Figure:
    """How full a network is, by each denominator of sparsity, and how many of its units are dead.

    Args:
        counts: what ``analysis.denominators`` returned, with ``method`` and ``seed``.

    Returns:
        A panel for the shares, and one for the dead units: lines through means over seeds, a small mark a seed.
    """
    ways = {  # none of the colours of the methods
        "of_trainable": ("left, of all parameters", "D", ":", "0.55"),
        "of_prunable": ("kept, of the prunable weights", "s", "-", "black"),
        "of_used": ("kept and not idle, of the prunable weights", "v", "-.", COLORS[9]),
        "of_effective": ("effective, of the prunable weights", "^", "--", COLORS[2]),
    }
    methods = [method for method in MARKS if method in set(counts.method)]
    dead = counts.assign(share=counts.dead / counts.units)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.8, 5.9), layout="constrained")
        axes = figure.subplots(1, len(methods) + 1)
        for axis, method in zip(axes, methods, strict=False):
            for name, (label, marker, line, color) in ways.items():
                own = counts[(counts.method == method) & (counts[name] > 0)]
                style = {"color": color, "marker": marker, "linestyle": line}
                _by_seed(axis, own["round"], own[name], style, label)
            axis.set(title=method, xlabel="round", yscale="log")
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        low = min(axis.get_ylim()[0] for axis in axes[:-1])
        for axis in axes[:-1]:
            axis.set_ylim(low, 1.3)
        axes[0].set_ylabel("share / % (log scale)")
        for method in methods:
            own = dead[dead.method == method]
            _by_seed(axes[-1], own["round"], 100 * own.share, MARKS[method], method)
        axes[-1].set(title="units that keep idle\nweights alone, or none", xlabel="round", ylabel="dead units / %")
        for axis in axes:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = [line for axis in (axes[0], axes[-1]) for line in axis.get_legend_handles_labels()[0]]
        labels = [label for axis in (axes[0], axes[-1]) for label in axis.get_legend_handles_labels()[1]]
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    return figure


def _by_seed(axis: Axes, rounds: pd.Series, values: pd.Series, style: Mapping[str, Any], label: str) -> None:
    """A line through the means over seeds, and a small mark for each seed."""
    axis.plot(values.groupby(rounds).mean(), **style, ms=5.5, mec="0.2", mew=0.5, lw=2, label=label)
    axis.plot(rounds, values, color=style["color"], marker=style["marker"], ms=2.5, mec="0.2", mew=0.3, linestyle="")


def places_figure(places: pd.DataFrame, place: str = "level") -> Figure:
    """Density of each level, or kind of layer, over the rounds.

    Args:
        places: what ``analysis.by_place`` returned, with ``method``; means over seeds are drawn.
        place: ``level`` or ``kind``, as it was asked for.

    Returns:
        A panel a method; a curve ends where nothing is left.
    """
    methods = [method for method in MARKS if method in set(places.method)]
    names = list(dict.fromkeys(places[place]))
    order = [name for name in LEVELS if name in names] if place == "level" else names
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * len(methods), 5.6), layout="constrained")
        axes = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
        for axis, method in zip(axes, methods, strict=True):
            for at, name in enumerate(order):
                own = places[(places.method == method) & (places[place] == name)].groupby("round").density.mean()
                axis.plot(own[own > 0], **line_of(at), ms=5, mec="0.2", mew=0.5, lw=1.8, label=name)
            axis.set(title=method, xlabel="round", yscale="log")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
        axes[0].set_ylabel("density / % (log scale)")
        handles, labels = axes[0].get_legend_handles_labels()
        labels = [f"level {label}" if label.isdigit() else label for label in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=11, frameon=False)
    return figure
