"""Figures: a frame in, a matplotlib Figure out. No global state; colours never stand alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

from mirl_study import verdicts
from mirl_study.analysis import FAMILIES, RUN, Restoration, over_seeds
from mirl_study.settings import LOTTERY, ONE_SHOT
from mirl_study.store import atomic

COLORS = sns.color_palette("colorblind")
MARKS: dict[str, dict[str, Any]] = {  # a colour, a marker and a line style for each method
    "MIR-L-G": {"color": COLORS[0], "marker": "o", "linestyle": "-"},
    "MIR-L-LW": {"color": COLORS[1], "marker": "s", "linestyle": "--"},
    "PIR-OSM-I": {"color": COLORS[4], "marker": "^", "linestyle": ""},
    "PIR-OSM-II": {"color": COLORS[4], "marker": "v", "linestyle": ""},
    "PIR-OSR-I": {"color": COLORS[5], "marker": "P", "linestyle": ""},
    "PIR-OSR-II": {"color": COLORS[5], "marker": "X", "linestyle": ""},
}
STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.grid": True,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "svg.hashsalt": "mirl",  # the same figure is the same file
}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as SVG and PNG, all or nothing.

    Args:
        figure: to write.
        folder: where; made if it is not there.
        name: of the files, without a suffix.

    Returns:
        The two paths, SVG first.
    """
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    for path, more in zip(paths, ({"metadata": {"Date": None}}, {"dpi": 1.3 * figure.dpi}), strict=True):
        with atomic(path) as temporary, mpl.rc_context(STYLE):
            figure.savefig(temporary, format=path.suffix[1:], **more)
    return paths


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
    panels, means = _panels(scores.task), over_seeds(scores)
    with mpl.rc_context(STYLE):
        columns = 2 if len(panels) > 1 else 1
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(6.4 * columns, 3.7 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, task in zip(axes, panels, strict=True):
            top = _curves(axis, scores[scores.task == task], means[means.task == task], collapse)
            if task in panels[:columns]:
                top.set_xlabel("density / % of the prunable weights", fontsize=11)
            axis.set_title(_heading(task))
            axis.set_ylabel("PSNR / dB")
        for axis in axes[-columns:]:
            axis.set_xlabel("parameters left (all, log scale; pruned to the right)")
        figure.legend(handles=_keys(scores, collapse), loc="outside lower center", ncols=5, fontsize=11, frameon=False)
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


def _limits(axis: Axes, points: pd.DataFrame) -> None:
    """The curves fill the panel; a baseline far below them is an arrow with its value at the lower edge."""
    core = [*points[~points.method.isin(ONE_SHOT)].psnr, *points.input_psnr]
    span = max(max(core) - min(core), 0.5)
    low = min(core) - 0.45 * span
    if points.psnr.min() >= low:
        return
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


def count(value: float) -> str:
    """A number of parameters with three digits and its unit: 4.67 M."""
    for unit, size in ((" M", 1e6), (" k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


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
    palette = COLORS
    lines = ["-", "--", ":", "-."]
    marks = "os^vDPX*<>dph"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.3 * len(survival), 5.6), layout="constrained")
        axes = figure.subplots(1, len(survival), sharey=True, squeeze=False)[0]
        for axis, (title, table) in zip(axes, survival.items(), strict=True):
            table = table[table.since == table.since.min()]
            for place, kind in enumerate(kinds):
                own = table[(table.kind == kind) & (table.share > 0)]
                style = {"color": palette[place % len(palette)], "linestyle": lines[place % len(lines)]}
                axis.plot(own["round"], own.share, **style, marker=marks[place % len(marks)], ms=5, lw=1.5, label=kind)
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
    """How much two chains of masks share, and what chance alone would give.

    Args:
        overlap: what ``analysis.overlap`` returned.
        title: of the figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.plot(overlap["round"], overlap.iou, color=COLORS[0], marker="o", lw=2, label="these masks")
        chance = "chance (as many kept in each layer)"
        axis.plot(overlap["round"], overlap.chance, color="0.35", marker="D", ms=5, linestyle="--", label=chance)
        axis.set(xlabel="round", ylabel="IoU (kept by both / by either)", ylim=(0, 1.03), title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False)
    return figure


def restoration_panels(restorations: Sequence[Restoration], crop: int = 96) -> Figure:
    """One test image a task: degraded, restored by each network, and the target.

    Args:
        restorations: what ``analysis.restorations`` returned.
        crop: height and width, in pixels, of the middle part that is shown; the PSNR is of the whole image.
    """
    columns = list(restorations[0].images)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        wide = 15 / len(columns)
        figure = Figure(figsize=(15, (wide + 0.42) * len(restorations)), dpi=90, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        axes = figure.subplots(len(restorations), len(columns), squeeze=False)
        for line, item in zip(axes, restorations, strict=True):
            for axis, label in zip(line, columns, strict=True):
                axis.imshow(_middle(item.images[label], crop), interpolation="none")
                axis.set_xticks([])
                axis.set_yticks([])
                score = f"\n{item.psnr[label]:.2f} dB" if label in item.psnr else f"\n({item.name})"
                axis.set_title(label + score, fontsize=11, linespacing=1.1)
            line[0].set_ylabel(item.task)
    return figure


def _middle(image: Tensor, crop: int) -> np.ndarray:
    """The middle of a (3, H, W) image, as 8-bit (height, width, 3)."""
    height, width = image.shape[-2:]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    part = image[:, top : top + crop, left : left + crop].clamp(0, 1)
    return (part * 255).round().byte().permute(1, 2, 0).numpy()


SEEDS = "os^DvPX"  # a marker for each seed, in turn
PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # under text that lies on lines
FAR_OUT = 5  # interquartile ranges
PAIR: dict[str, dict[str, Any]] = {  # the two that are always compared
    "dense": {"color": COLORS[1], "linestyle": "--", "marker": "s"},
    "ticket": {"color": COLORS[0], "linestyle": "-", "marker": "o"},
}


def controls_figure(
    frame: pd.DataFrame, against: str = "dense", margin: float = 0.1, confidence: float = 0.95, title: str = ""
) -> Figure:
    """How far a ticket and its controls are above or below the dense network.

    Args:
        frame: what ``verdicts.gather`` returned.
        against: what all is compared with: ``dense``, or another control of the frame.
        margin: dB; the band around 0 that counts as matching.
        confidence: of each interval.
        title: of the figure.

    Returns:
        A panel for each family of tasks, and one for their mean. A line a control, and one for the input that nobody
        restored: each seed's difference is a marker, their mean and its paired interval are a bar. What is far outside
        is an arrow with its value at the edge.

    Raises:
        SettingsError: if ``against`` is not in the frame, or for a margin or confidence that is not allowed.
    """
    given = frame.drop_duplicates(["seed", "task"])
    frame = pd.concat([frame, given.assign(control="input", psnr=given.input_psnr)])
    points = verdicts.differences(frame, against)
    bars = verdicts.paired(frame, against, margin, confidence)
    marks = {seed: SEEDS[place % len(SEEDS)] for place, seed in enumerate(sorted(frame.seed.unique()))}
    panels, (places, headings) = _panels(frame.task), _lines(bars.control.unique())
    with mpl.rc_context(STYLE):
        rows = len(places) + len(headings)
        size = 2.2 + max(2.65 * len(panels), 6.5), 2.0 + 0.25 * rows
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, task in zip(axes, panels, strict=True):
            own, means = points[points.task == task], bars[bars.task == task].set_index("control")
            axis.set_xlim(*_reach(own.difference, means, margin))
            axis.axvspan(-margin, margin, color="0.86", lw=0)
            axis.axvline(0, color="0.15", linestyle=":", lw=1.6)
            for control, place in places.items():
                seeds = own[own.control == control].set_index("seed").difference
                _control(axis, place, seeds, means.loc[control], marks)
            axis.set_title(_heading(task), fontsize=12)
            axis.set_xlabel(f"PSNR above {against} / dB", fontsize=11)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", visible=False)
        axes[0].set_ylim(rows - 0.4, -0.9)
        names = {place: _name(control, bars) for control, place in places.items()} | headings
        axes[0].set_yticks(list(names), list(names.values()), fontsize=11)
        for place, text in zip(names, axes[0].get_yticklabels(), strict=True):
            text.set_fontweight("bold" if place in headings else "normal")
        figure.suptitle(title, fontsize=14)
        figure.legend(
            handles=_controls_keys(marks, bars, against, margin, confidence),
            loc="outside lower center",
            ncols=4,
            fontsize=11,
            frameon=False,
        )
    return figure


def _panels(tasks: pd.Series) -> list[str]:
    """Families and their mean; of a single task, the mean is that task."""
    panels = [name for name in (*FAMILIES, "mean") if name in set(tasks)]
    return panels if len(panels) > 2 else panels[:1]


def _heading(task: str) -> str:
    """The title of a panel."""
    several = len(FAMILIES.get(task, ())) > 1
    return task + (" (mean over σ)" if several else " of the families" if task == "mean" else "")


def _lines(names: Sequence[str]) -> tuple[dict[str, int], dict[int, str]]:
    """The line of each control, and the headings of their groups by line; the ticket needs none."""
    known = {name for group in verdicts.GROUPS.values() for name in group}
    groups = {**verdicts.GROUPS, "other": tuple(sorted(set(names) - known))}
    places: dict[str, int] = {}
    headings: dict[int, str] = {}
    for heading, group in groups.items():
        own = [name for name in group if name in names]
        if own and own != ["ticket"]:
            headings[len(places) + len(headings)] = heading
        for name in own:
            places[name] = len(places) + len(headings)
    return places, headings


def _name(control: str, bars: pd.DataFrame) -> str:
    """A control's name, with the number of its seeds if others have more."""
    seeds = bars[bars.control == control].seeds.iloc[0]
    return control if seeds == bars.seeds.max() else f"{control} ({seeds} seed{'' if seeds == 1 else 's'})"


def _reach(values: pd.Series, means: pd.DataFrame, margin: float) -> tuple[float, float]:
    """Limits that hold the margin and all but what is far out from the middle half of them."""
    first, third = values.quantile([0.25, 0.75])
    far = FAR_OUT * max(third - first, margin, 0.05)
    inside = [value for value in (*values, *means.low, *means.high) if first - far <= value <= third + far]
    low, high = min(*inside, -margin), max(*inside, margin)
    span = high - low
    # room for the arrows
    return low - (0.4 if values.min() < low else 0.08) * span, high + (0.4 if values.max() > high else 0.08) * span


def _control(axis: Axes, place: int, seeds: pd.Series, bar: pd.Series, marks: Mapping[int, str]) -> None:
    """One line of the figure of controls."""
    low, high = axis.get_xlim()
    color = PAIR["ticket"]["color"] if bar.name == "ticket" else "0.45"
    axis.axhline(place, color="0.92", lw=0.8, zorder=0.5)
    axis.plot([bar.low, bar.high], [place, place], color=color, lw=6, alpha=0.5, solid_capstyle="butt")
    axis.plot(bar["mean"], place, linestyle="", marker="|", ms=13, mew=2.5, color=color)
    for seed, value in seeds[seeds.between(low, high)].items():
        axis.plot(value, place, linestyle="", marker=marks[seed], ms=5.5, mfc="white", mec="0.1", mew=1, zorder=4)
    where = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 9, "bbox": PLATE}
    if len(below := sorted(seeds[seeds < low])):
        axis.text(0.015, place, f"← {', '.join(map(_db, below))}", ha="left", **where)
    if len(above := sorted(seeds[seeds > high])):
        axis.text(0.985, place, f"{', '.join(map(_db, above))} →", ha="right", **where)


def _db(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _controls_keys(
    marks: Mapping[int, str], bars: pd.DataFrame, against: str, margin: float, confidence: float
) -> list[Line2D]:
    """Entries of the legend of the figure of controls: only what is in it."""
    seed = {"linestyle": "", "ms": 6, "mfc": "white", "mec": "0.1"}
    keys = [Line2D([], [], **seed, marker=mark, label=f"seed {name}") for name, mark in marks.items()]
    if bars.low.notna().any():
        mean = {"linestyle": "", "marker": "|", "ms": 13, "mew": 2.5, "color": "0.45"}
        keys.append(Line2D([], [], **mean, label="mean of the seeds"))
        label = f"{100 * confidence:g} % interval (paired by seed)"
        keys.append(Line2D([], [], color="0.45", lw=6, alpha=0.5, label=label))
    return [
        *keys,
        Line2D([], [], color="0.86", lw=10, label=f"within {margin:g} dB of {against}"),
        Line2D([], [], color="0.15", linestyle=":", lw=1.6, label=against),
    ]


def stopping_figure(histories: pd.DataFrame) -> Figure:
    """Validation loss during training, of ticket and dense network; the lowest point of each is marked.

    Args:
        histories: what ``verdicts.histories`` returned.

    Returns:
        A panel for each seed.
    """
    seeds = sorted(histories.seed.unique())
    with mpl.rc_context(STYLE):
        columns = min(len(seeds), 3)
        rows = -(-len(seeds) // columns)
        figure = Figure(figsize=(max(4.3 * columns, 6), 3.6 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axis, seed in zip(axes, seeds, strict=False):
            named = []
            for control, mark in PAIR.items():
                own = histories[(histories.seed == seed) & (histories.control == control)]
                if own.empty:
                    continue
                axis.plot(own.step, own.val_loss, **mark, lw=2, ms=4, label=control)
                lowest, step = own.val_loss.min(), verdicts.steps_to_lowest(own)
                axis.plot(step, lowest, linestyle="", marker=mark["marker"], ms=13, mfc="none", mec="black", mew=1.5)
                named.append(f"{control} {step}")
            axis.set_title(f"seed {seed}\nlowest at step: {', '.join(named)}", fontsize=12)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in axes[max(len(seeds) - columns, 0) : len(seeds)]:
            axis.set_xlabel("step")
            axis.tick_params(labelbottom=True)
        for axis in axes[::columns]:
            axis.set_ylabel("validation loss (mean L1)")
        for axis in axes[len(seeds) :]:
            axis.set_visible(False)
        there = [name for name in PAIR if name in set(histories.control)]
        keys = [Line2D([], [], **PAIR[name], lw=2, ms=5, label=name) for name in there]
        ring = {"marker": "o", "ms": 12, "mfc": "none", "mec": "black", "mew": 1.5}
        keys.append(Line2D([], [], linestyle="", **ring, label="lowest"))
        figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    return figure


def barrier_figure(interpolation: pd.DataFrame) -> Figure:
    """PSNR on the straight line between two copies that saw the data in other orders.

    Args:
        interpolation: what ``verdicts.interpolations`` returned.

    Returns:
        A panel for each family of tasks, and one for their mean: a line a seed; the barriers are named (mean over
        seeds, and their range).
    """
    line, heights = verdicts.lines(interpolation), verdicts.barriers(interpolation)
    panels = _panels(line.task)
    with mpl.rc_context(STYLE):
        columns = 2 if len(panels) > 1 else 1
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(6.4 * columns, 3.3 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for axis, task in zip(axes, panels, strict=True):
            named = []
            for control, mark in PAIR.items():
                for _, own in line[(line.task == task) & (line.control == control)].groupby("seed"):
                    axis.plot(own.alpha, own.psnr, **mark, lw=1.6, ms=4, mec="0.2", mew=0.5)
                barrier = heights[(heights.task == task) & (heights.control == control)].barrier
                named += [f"{control} {_barrier(barrier)}"] if len(barrier) else []
            axis.set_title(f"{_heading(task)}\nbarrier: {', '.join(named)}", fontsize=12)
            axis.set_ylabel("PSNR / dB")
        for axis in axes[-columns:]:
            axis.set_xlabel("α (0 and 1: the two copies)")
        keys = [
            Line2D([], [], **mark, lw=2, ms=5, mec="0.2", mew=0.5, label=f"{name}, a line a seed")
            for name, mark in PAIR.items()
            if name in set(line.control)
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=11, frameon=False)
    return figure


def _barrier(values: pd.Series) -> str:
    """A barrier in words: its mean over seeds, and the range of more than one."""
    text = f"{values.mean():.2f} dB"
    return text if len(values) == 1 else f"{text} ({values.min():.2f} to {values.max():.2f})"


def norm_collapse(frame: pd.DataFrame) -> Figure:
    """How many gains of a LayerNorm are left, round by round.

    Args:
        frame: what ``counts.norm_gains`` returned.

    Returns:
        A line a width, through the mean of the LayerNorms that have it; at its end stand what is left and how many
        LayerNorms that is true of. A line ends where none is left.
    """
    lines, marks, dashes = {}, "os^vDPX*<>dph", ["-", "--", ":", "-."]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 5.4), layout="constrained")
        axis = figure.subplots()
        for place, (width, own) in enumerate(frame.groupby("width")):
            kept = own.groupby("round").kept.mean()
            style = {"color": COLORS[place % len(COLORS)], "linestyle": dashes[place % len(dashes)]}
            axis.plot(kept[kept > 0], **style, marker=marks[place % len(marks)], ms=6, mec="0.2", mew=0.5, lw=1.8)
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
