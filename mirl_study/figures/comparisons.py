"""A ticket beside its dense network and its controls."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mirl_study import verdicts
from mirl_study.figures.style import PAIR, STYLE, heading, panels

SEEDS = "os^DvPX"  # a marker for each seed, in turn
PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # under text that lies on lines
FAR_OUT = 5  # interquartile ranges


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
    shown, (places, headings) = panels(frame.task), _lines(bars.control.unique())
    with mpl.rc_context(STYLE):
        rows = len(places) + len(headings)
        size = 2.2 + max(2.65 * len(shown), 6.5), 2.0 + 0.25 * rows
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, task in zip(axes, shown, strict=True):
            own, means = points[points.task == task], bars[bars.task == task].set_index("control")
            axis.set_xlim(*_reach(own.difference, means, margin))
            axis.axvspan(-margin, margin, color="0.86", lw=0)
            axis.axvline(0, color="0.15", linestyle=":", lw=1.6)
            for control, place in places.items():
                seeds = own[own.control == control].set_index("seed").difference
                _control(axis, place, seeds, means.loc[control], marks)
            axis.set_title(heading(task), fontsize=12)
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


def _lines(names: Sequence[str]) -> tuple[dict[str, int], dict[int, str]]:
    """The line of each control, and the headings of their groups by line; the ticket needs none."""
    known = {name for group in verdicts.GROUPS.values() for name in group}
    groups = {**verdicts.GROUPS, "other": tuple(sorted(set(names) - known))}
    places: dict[str, int] = {}
    headings: dict[int, str] = {}
    for title, group in groups.items():
        own = [name for name in group if name in names]
        if own and own != ["ticket"]:
            headings[len(places) + len(headings)] = title
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
    shown = panels(line.task)
    with mpl.rc_context(STYLE):
        columns = 2 if len(shown) > 1 else 1
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(6.4 * columns, 3.3 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for axis, task in zip(axes, shown, strict=True):
            named = []
            for control, mark in PAIR.items():
                for _, own in line[(line.task == task) & (line.control == control)].groupby("seed"):
                    axis.plot(own.alpha, own.psnr, **mark, lw=1.6, ms=4, mec="0.2", mew=0.5)
                barrier = heights[(heights.task == task) & (heights.control == control)].barrier
                named += [f"{control} {_barrier(barrier)}"] if len(barrier) else []
            axis.set_title(f"{heading(task)}\nbarrier: {', '.join(named)}", fontsize=12)
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
