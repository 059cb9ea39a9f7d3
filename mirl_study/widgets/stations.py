"""The five stations of the lab: each function builds one panel from what the lab has read."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from torch import Tensor

from mirl_study import analysis, controls, verdicts
from mirl_study.figures import MARKS
from mirl_study.settings import LOTTERY, SettingsError
from mirl_study.widgets.lab import CLOSE, SCOPES, Lab, options, spread
from mirl_study.widgets.panel import STYLE, Canvas, Choice, Panel
from mirl_study.widgets.told import NAMES, PRUNABLE, chains, chance, heading, told_scopes

COLORS = sns.color_palette("colorblind")
DENSE = {"color": "0.15", "linestyle": ":", "lw": 1.6}
INPUT = {"color": "0.35", "linestyle": "-.", "lw": 1.3}
ONLY = {  # of two masks: what a weight is, its colour; told apart by their lightness, too
    "kept by neither": mpl.colormaps["cividis"](0.0)[:3],
    "kept by both": mpl.colormaps["cividis"](1.0)[:3],
    "only by A": COLORS[0],
    "only by B": COLORS[1],
}


def degrade(lab: Lab) -> Panel:
    """Station 1: a degraded image, what the trained network makes of it, and what it should be."""
    titles = ["input", "restored", "target", "error of the input", "error that is left"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 2.75), layout="constrained")
        axes = figure.subplots(1, 5)
        images = [
            _image(axis, "cividis" if "error" in title else None) for axis, title in zip(axes, titles, strict=True)
        ]
        bar = figure.colorbar(images[-1], ax=axes[3:], location="right", label="|difference|, of 255", shrink=0.8)
        bar.ax.yaxis.set_major_locator(MultipleLocator(25 / 255))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{255 * value:.0f}"))
    canvas = Canvas(figure, [*images, *(axis.title for axis in axes)])
    for task in lab.samples:  # here, so that a callback only shows
        lab.restored(task, "dense")

    def draw(task: str) -> tuple[bytes, str]:
        given, made, wanted = (lab.restored(task, name) for name in ("input", "dense", "target"))
        errors = [(one.image - wanted.image).abs().mean(0) for one in (given, made)]
        shown = [given.image, made.image, wanted.image, *errors]
        lines = [
            f"input\n{given.psnr:.2f} dB",
            f"restored\n{made.psnr:.2f} dB",
            "target\n",
            *(f"{t}\n" for t in titles[3:]),
        ]
        for artist, values, axis, line in zip(images, shown, axes, lines, strict=True):
            artist.set_data(_pixels(values))
            axis.set_title(line)
        return canvas.png(), (
            f"<b>{task}</b>: on this crop the network changes PSNR by <b>{made.psnr - given.psnr:+.2f} dB</b> and SSIM "
            f"from {given.ssim:.3f} to {made.ssim:.3f}. On all test images of this task, whole, PSNR changes by "
            f"{lab.levels.psnr[task] - lab.levels.input_psnr[task]:+.2f} dB on average; the test images of all "
            f"tasks together show {lab.photographs} different photographs."
        )

    tasks = list(lab.samples)
    return Panel({"task": Choice("Task", options(tasks), tasks[0])}, draw, [{"task": task} for task in tasks])


def prune(lab: Lab) -> Panel:
    """Station 2: the trained dense network, pruned once by magnitude, without training again."""
    layers = list(lab.magnitudes)
    sizes = [values[values > 0].log10() for values in lab.magnitudes.values()]
    together = np.concatenate([v.numpy().ravel() for v in sizes])
    low, high = float(np.quantile(together, 0.002)), float(together.max())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(2.9, 2.2))
        histogram, spans = top.subplots(1, 2, width_ratios=(2, 3))
        histogram.hist(together, bins=80, range=(low, high), color="0.6")
        histogram.set(
            xlabel="|weight|, log scale", ylabel="prunable weights", title="all weights of the trained network"
        )
        quantiles = np.array([np.quantile(v.numpy(), (0.05, 1)) for v in sizes])
        spans.vlines(range(len(layers)), *quantiles.T, color="0.8", lw=3, label="all but the smallest 5 %")
        spans.set(xlabel="prunable layer, in the network's order", ylabel="|weight|", ylim=(low - 0.15, high + 0.1))
        for axis in (histogram.xaxis, spans.yaxis):
            axis.set_major_locator(MultipleLocator(1))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:g}"))
        cut = histogram.axvline(low, color=COLORS[0], lw=2.5)
        level = spans.axhline(low, color=COLORS[0], lw=2.5, label="global threshold")
        (stairs,) = spans.plot(
            range(len(layers)), [low] * len(layers), **_line("MIR-L-LW"), label="layer-wise thresholds"
        )
        spans.legend(loc="lower right", bbox_to_anchor=(1.01, 0.97), fontsize=9, ncols=3, frameon=False)
        axes = bottom.subplots(1, 4)
        images = [_image(axis, lines=1) for axis in axes]
    canvas = Canvas(figure, [cut, level, stairs, *images, *(axis.title for axis in axes)])

    def draw(density: float, task: str) -> tuple[bytes, str]:
        made = {method: lab.restored_pruned(task, density, LOTTERY[method]) for method in NAMES}
        given, dense, wanted = (lab.restored(task, name) for name in ("input", "dense", "target"))
        masks = {method: lab.pruned(density, LOTTERY[method]) for method in NAMES}
        flat, own = edges[density]
        cut.set_xdata([flat] * 2)
        level.set_ydata([flat] * 2)
        stairs.set_ydata(own)
        named = {"input": given, **{NAMES[method]: one for method, one in made.items()}, "target": wanted}
        for artist, (name, one), axis in zip(images, named.items(), axes, strict=True):
            artist.set_data(_pixels(one.image))
            axis.set_title(name if name == "target" else f"{name}, {one.psnr:.2f} dB")
        emptied = ", ".join(f"{NAMES[method]} {_some(mask.emptied())}" for method, mask in masks.items())
        idle = [NAMES[method] for method, one in made.items() if abs(one.psnr - given.psnr) < analysis.IDENTITY]
        note = f" <b>{' and '.join(idle)}</b> scores what the input scores: that network does nothing any more."
        return canvas.png(), (
            f"<b>{masks['MIR-L-G'].kept:,}</b> of {masks['MIR-L-G'].size:,} prunable weights are left in both. "
            f"Against the whole network ({dense.psnr:.2f} dB here): "
            + ", ".join(f"{NAMES[m]} <b>{made[m].psnr - dense.psnr:+.2f} dB</b>" for m in made)
            + f". Layers without a weight: {emptied}."
        ) + (note if idle else "")

    steps = {f"{0.8**k:.1%}": 0.8**k for k in range(16)}
    edges = {density: thresholds(lab, density, low) for density in steps.values()}  # here: a callback sorts no weights
    tasks = list(lab.samples)
    choices = {
        "density": Choice("Density", steps, next(iter(steps)), "slider"),
        "task": Choice("Task", options(tasks), tasks[0]),
    }
    return Panel(choices, draw, [{"density": list(steps)[k]} for k in (0, 3, 6, 10)])


def play(lab: Lab) -> Panel:
    """Station 3: the lottery, a round at a time; curves and the mask of one layer for both scopes."""
    boards = {task: _board(lab, task) for task in lab.panels}

    def draw(index: int, task: str, layer: str) -> tuple[bytes, str]:
        canvas, lines, images, title = boards[task]
        level, told = lab.levels.input_psnr[task], []
        for method, line in lines.items():
            curve = lab.curve(method, task).loc[:index]
            line.set_data(curve.index, curve)
            mask = lab.mask(method, index)
            tensor = mask[f"{layer}.weight"]
            _mask_image(images[method], tensor)
            images[method].axes.set_title(f"{NAMES[method]}\n{int(tensor.sum()):,} of {tensor.numel():,} kept")
            told.append(f"{NAMES[method]} <b>{curve.iloc[-1]:.2f} dB</b> ({len(mask.emptied())} layers empty)")
        title.set_text(f"{heading(task)}, seed {lab.seed}: rounds 0 to {index}")
        mask = lab.mask("MIR-L-G", index)
        how = "rewound and trained again" if index else "all of them, trained: the dense network"
        return canvas.png(), (
            f"Round <b>{index}</b>: {mask.kept:,} of {mask.size:,} prunable weights ({mask.density():.1%}), {how}. "
            f"{'; '.join(told)}; dense {lab.levels.psnr[task]:.2f} dB, input {level:.2f} dB."
        )

    rounds = {f"round {index}": index for index in range(lab.rounds + 1)}
    for index in rounds.values():  # here, so that a callback reads no file
        for method in NAMES:
            lab.mask(method, index)
    choices = {
        "index": Choice("Round", rounds, "round 0", "steps", "Play a round"),
        "task": Choice("Score", options(lab.panels), lab.panels[0]),
        "layer": _layers(lab),
    }
    return Panel(choices, draw, [{"index": f"round {index}"} for index in spread(lab.rounds)])


def _board(lab: Lab, task: str) -> tuple[Canvas, dict[str, Line2D], dict[str, AxesImage], Text]:
    """The figure of one family: curves to be filled, masks to be shown, the title."""
    curves = pd.concat([lab.curve(method, task) for method in NAMES])
    dense, given = lab.levels.psnr[task], lab.levels.input_psnr[task]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.2), layout="constrained")
        axis, *others = figure.subplots(1, 3, width_ratios=(1.7, 1, 1))
        axis.axhspan(dense - CLOSE, dense + CLOSE, color="0.86", lw=0, label=f"within {CLOSE:g} dB of dense")
        axis.axhline(dense, **DENSE, label="dense")
        axis.axhline(given, **INPUT, label="input (not restored)")
        lines = {m: axis.plot([], [], **_line(m) | {"ms": 6}, label=NAMES[m])[0] for m in NAMES}
        low, high = min(curves.min(), given) - CLOSE, max(curves.max(), dense) + CLOSE
        axis.set(xlabel="round", ylabel="PSNR / dB", xlim=(-0.4, lab.rounds + 0.4), ylim=(low, high), title=task)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower left", fontsize=9, ncols=5, frameon=False)
        images = dict(zip(NAMES, (_image(one, "cividis") for one in others), strict=True))
        for one in others:
            one.set_xlabel("weights of a unit", fontsize=9)
        others[0].set_ylabel("units", fontsize=9)
    moving = [*lines.values(), axis.title, *images.values(), *(one.title for one in others)]
    return Canvas(figure, moving), lines, images, axis.title


def _layers(lab: Lab) -> Choice:
    """The list of layers with the numbers that the figures have; it opens on one that never runs empty."""
    named = {f"{place}: {name}": name for place, name in enumerate(lab.layers)}
    wide = (text for text, name in named.items() if "decoder_level1" in name and "project_in" in name)
    return Choice("Layer", named, next(wide, next(iter(named))))


def scopes(lab: Lab) -> Panel:
    """Station 3, all seeds: does global beat layer-wise here, and do the norms explain it?"""
    played = chains(lab)
    looks = {"global": MARKS["MIR-L-G"], "layer-wise": MARKS["MIR-L-LW"]}
    third = {
        "color": COLORS[4],
        "marker": "D",
        "mec": COLORS[4],
        "mfc": "white",
        "linestyle": (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    }
    looks |= {f"layer-wise, {PRUNABLE}": third, "layer-wise, gains kept": third}
    drawn = {}
    for task in lab.panels:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(11.2, 4.2), layout="constrained")
            axis = figure.subplots()
            for name, own in played[played.task == task].groupby("chain", sort=False):
                means = own.groupby("round").psnr.mean()
                axis.plot(own["round"], own.psnr, **looks[name] | {"linestyle": ""}, ms=4, alpha=0.55)
                axis.plot(means.index, means, **looks[name] | {"marker": ""}, lw=2.2)
                axis.plot([], [], **looks[name], lw=2.2, label=name)
            dense = lab.scores[(lab.scores.method == "dense") & (lab.scores.task == task)]
            axis.axhline(dense.psnr.mean(), **DENSE, label="dense")
            axis.axhline(dense.input_psnr.mean(), **INPUT, label="input")
            axis.set(
                xlabel="round", ylabel="PSNR / dB", title=f"{heading(task)}: a point a seed, lines through the means"
            )
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            figure.legend(loc="outside right upper", frameon=False, fontsize=10)
        drawn[task] = Canvas(figure, []).png()

    def draw(task: str) -> tuple[bytes, str]:
        return drawn[task], "<br>".join(told_scopes(lab, task, played))

    choices = {"task": Choice("Score", options(lab.panels), lab.panels[-1])}  # the question before it is of the first
    return Panel(choices, draw, [{"task": task} for task in lab.panels])


def luck(lab: Lab, method: str = "MIR-L-G") -> Panel:
    """Station 4: a ticket beside one of its controls, seed by seed.

    Args:
        lab: whose runs.
        method: whose ticket.
    """
    frame = verdicts.gather(lab.profile, lab.setting, method, lab.ticket, lab.results)
    names = [name for name in frame.control.unique() if name not in ("ticket", "dense")]
    pairs = verdicts.paired(frame, "ticket")
    width = 3 if names else 2
    tables = {task: own.pivot(index="control", columns="seed", values="psnr") for task, own in frame.groupby("task")}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.8), layout="constrained")
        axis = figure.subplots()
        lines = {}
        for place, seed in enumerate(sorted(frame.seed.unique())):
            style = {"color": COLORS[place % len(COLORS)], "marker": "os^DvPX"[place % 7], "ms": 9}
            style["linestyle"] = ("-", "--", ":", "-.")[place % 4]
            lines[seed] = axis.plot(range(width), [20.0] * width, **style, label=f"seed {seed}")[0]
        given = axis.axhline(20, **INPUT, label="input")
        axis.set(
            ylabel="PSNR / dB", xlim=(-0.3, width - 0.7), ylim=(24.05, 24.3), title=" "
        )  # room for labels of five characters
        axis.set_xticks(range(width), ["dense", "ticket", ""][:width])
        figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    canvas = Canvas(figure, [])

    def draw(control: str, task: str) -> tuple[bytes, str]:
        columns = ["dense", "ticket", *([control] if control else [])]
        level = frame[frame.task == task].input_psnr.mean()
        for seed, line in lines.items():
            line.set_ydata(tables[task].reindex(columns)[seed])
        given.set_ydata([level] * 2)
        values = [*tables[task].reindex(columns).stack(), level]
        room = 0.08 * (max(values) - min(values))
        axis.set_ylim(min(values) - room, max(values) + room)
        axis.set_xticks(range(width), columns)
        axis.set_title(f"{heading(task)}: a line a seed")
        if not control:
            return canvas.whole(), "No control of this ticket has been played in these results."
        row = pairs[(pairs.control == control) & (pairs.task == task)].iloc[0]
        return canvas.whole(), f"<b>{control}</b>: {_asked(control)} {_told(row)}"

    listed = options(names) or {"none was played": ""}
    start = "dense_long" if "dense_long" in listed else next(iter(listed))  # the questions ask about others
    choices = {
        "control": Choice("Control", listed, start),
        "task": Choice("Score", options(lab.panels), lab.panels[0]),
    }
    asked = {"reinit": "dehaze", "shuffled": "denoise", "dense_long": lab.panels[0]}
    stills = [
        {"control": name, "task": task} for name, task in asked.items() if name in listed and task in lab.panels
    ] or [{}]
    return Panel(choices, draw, stills, 760)


def _asked(control: str) -> str:
    try:
        return controls.question(control).replace("`", "")
    except (KeyError, SettingsError):
        return ""


def _told(row: Any) -> str:
    """What the seeds say of one control against the ticket."""
    if row.seeds < 2:
        return f"It is {row['mean']:+.2f} dB to the ticket in its one seed, and one seed tells nothing apart."
    interval = f"95 % interval {row.low:+.2f} to {row.high:+.2f} dB, {row.seeds} seeds"
    if row.low > 0 or row.high < 0:
        word = "better" if row.low > 0 else "worse"
        return f"It is clearly {word} than the ticket, by {abs(row['mean']):.2f} dB ({interval})."
    return f"It cannot be told from the ticket: {row['mean']:+.2f} dB to it, {interval}."


def tickets(lab: Lab) -> dict[str, tuple[Any, str]]:
    """Lists the chains whose masks can be looked at: (folder, method) by text."""
    own = lab.found[lab.found.finished & lab.found.method.isin(LOTTERY)]
    return {f"{NAMES[r.method]}, seed {r.seed}, {r.setting}": (r.folder, r.method) for r in own.itertuples()}


def explore(lab: Lab) -> Panel:
    """Station 5, the mask explorer: two tickets, where they agree and where not."""
    chains = tickets(lab)
    count = len(lab.layers)
    floor = 0.5 / max(keep.numel() for keep in lab.mask("MIR-L-G", 0).values())  # below one weight of the largest layer
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2.3))
        axes = top.subplots(1, 3)
        images = [_image(axes[0], "cividis"), _image(axes[1], "cividis"), _image(axes[2])]
        axes[2].legend(
            handles=[Patch(facecolor=c, edgecolor="0.4", label=name) for name, c in ONLY.items()],
            loc="upper left",
            bbox_to_anchor=(1.02, 1),
            fontsize=9,
            frameon=False,
        )
        axis = bottom.subplots()
        axis.set(ylabel="density", yscale="log", ylim=(floor / 2, 1.6), xlim=(-1, count))
        axis.set_xlabel("prunable layer, by its number in the list; above, the part of the network")
        axis.xaxis.set_major_locator(MultipleLocator(5))
        for start, name in _parts(lab.layers).items():
            axis.axvline(start - 0.5, color="0.7", lw=0.6)
            axis.text(start, 2, name, fontsize=8.5, color="black")
        lines, empty = {}, {}
        for place, (name, mark, cross) in enumerate((("A", "o", "x"), ("B", "s", "+"))):
            look = {"color": COLORS[place], "ls": ""}
            shape = {"ms": 6, "mfc": "none", "mew": 1.3} if place else {"ms": 4.5, "mec": "0.2", "mew": 0.4}
            (lines[name],) = axis.plot(range(count), [1] * count, **look, **shape, marker=mark, label=name)
            (empty[name],) = axis.plot(
                range(count), [1] * count, **look, marker=cross, ms=6, mew=1.5, label=f"{name}, empty"
            )
        here = axis.axvline(0, color="0.15", lw=1.2, label="layer above")
        bottom.legend(loc="outside right upper", fontsize=9, frameon=False)
    canvas = Canvas(figure, [*images, *lines.values(), *empty.values(), here, *(one.title for one in axes)])

    def draw(a: Any, b: Any, index: int, layer: str) -> tuple[bytes, str]:
        masks = {"A": _last(lab, *a, index), "B": _last(lab, *b, index)}
        name = f"{layer}.weight"
        for artist, (label, mask) in zip(images, masks.items(), strict=False):
            _mask_image(artist, mask[name])
            artist.axes.set_title(f"{label}\n{int(mask[name].sum()):,} of {mask[name].numel():,} kept")
            densities = list(mask.densities().values())
            lines[label].set_ydata([value or np.nan for value in densities])
            empty[label].set_ydata([np.nan if value else floor for value in densities])
        ours, theirs = masks["A"][name], masks["B"][name]
        kinds = (ours.long() + 2 * theirs.long()).flatten(1).numpy()  # 0 neither, 1 only A, 2 only B, 3 both
        table = np.array([ONLY[key] for key in ("kept by neither", "only by A", "only by B", "kept by both")])
        _fit(images[2], table[kinds])
        own = masks["A"].density(), masks["B"].density()
        here.set_xdata([lab.layers.index(layer)] * 2)
        axes[2].set_title(f"A against B\n{_share(ours, theirs)}")
        return canvas.png(), (
            f"Whole network, round {index}: A keeps {own[0]:.1%}, B {own[1]:.1%} of the prunable weights. Of what "
            f"either keeps, both keep <b>{masks['A'].iou(masks['B']):.1%}</b>; masks with as many weights in each "
            f"layer that know nothing of each other would share {chance(masks['A'], masks['B']):.1%}."
        )

    texts = list(chains)
    own = [text for text, (folder, _) in chains.items() if folder in lab.folders.values()]
    rounds = {f"round {index}": index for index in range(1, lab.rounds + 1)}
    choices = {
        "a": Choice("Ticket A", chains, own[-1] if own else texts[0]),
        "b": Choice("Ticket B", chains, own[0] if own else texts[-1]),
        "layer": _layers(lab),
        "index": Choice("Round", rounds, "round 1", "slider"),  # the question before it is of a later one
    }
    stills = [{"index": f"round {index}"} for index in sorted({1, lab.ticket, lab.rounds})]
    twins = [text for text, (_, method) in chains.items() if method == "MIR-L-G"][:2]
    if len(twins) == 2:
        stills.append({"a": twins[0], "b": twins[1], "index": f"round {lab.ticket}"})
    return Panel(choices, draw, stills)


def _parts(layers: list[str], room: int = 6) -> dict[int, str]:
    """Where the larger parts of the network begin among its layers: names of those that have room for one."""
    names = [name.split(".")[0] for name in layers]
    return {names.index(name): name.replace("_level", " ") for name in names if names.count(name) >= room}


def _last(lab: Lab, folder: Any, method: str, index: int) -> Any:
    return lab.mask(method, index, folder)


def _share(a: Tensor, b: Tensor) -> str:
    either = int((a | b).sum())
    return f"this layer: both keep {int((a & b).sum()) / either:.1%}" if either else "both are empty here"


def _line(method: str) -> dict[str, Any]:
    return {**MARKS[method], "lw": 1.8, "mec": "0.2", "mew": 0.4, "ms": 4}


def _image(axis: Axes, colours: str | None = None, lines: int = 2) -> AxesImage:
    """An empty picture without ticks, with room for a title."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.set_title("\n".join("X" * lines))
    return axis.imshow(np.zeros((8, 8)), cmap=colours, vmin=0, vmax=0.3, interpolation="nearest", aspect="equal")


def _pixels(values: Tensor) -> np.ndarray:
    """(3, H, W) or (H, W) in [0, 1] as matplotlib wants it."""
    return values.permute(1, 2, 0).clamp(0, 1).numpy() if values.ndim == 3 else values.numpy()


def _mask_image(artist: AxesImage, tensor: Tensor) -> None:
    """Shows a layer's mask: a line a unit, bright where a weight is kept."""
    artist.set_clim(0, 1)
    _fit(artist, tensor.flatten(1).float().numpy())


def _fit(artist: AxesImage, values: np.ndarray) -> None:
    """Puts an array of any shape into a picture, stretched to the panel."""
    height, width = values.shape[:2]
    artist.set_data(values)
    artist.set_extent((-0.5, width - 0.5, height - 0.5, -0.5))
    artist.axes.set_aspect("auto")


def thresholds(lab: Lab, density: float, low: float = -12) -> tuple[float, list[float]]:
    """log10 of the smallest magnitudes that a cut at once keeps: global, and layer-wise in each layer.

    Args:
        lab: whose dense network.
        density: to which it is pruned.
        low: what is smaller is raised to it.
    """
    masks = {scope: lab.pruned(density, scope) for scope in SCOPES}
    values, keep = (torch.cat([part.flatten() for part in own.values()]) for own in (lab.magnitudes, masks["global"]))
    own = [_threshold(lab.magnitudes[name], part, low) for name, part in masks["layerwise"].items()]
    return _threshold(values, keep, low), own


def _some(names: list[str], room: int = 2) -> str:
    """Counts layers and names the last ones, since nothing gets round the output layer."""
    told = [name.removesuffix(".weight") for name in names[::-1]]
    more = [f"{len(told) - room} more"] if len(told) > room else []
    return f"{len(told)}" + (f" ({' and '.join([', '.join(told[:room]), *more])})" if told else "")


def _threshold(values: Tensor, keep: Tensor, low: float) -> float:
    """log10 of the smallest magnitude that stays; of the largest one where none does."""
    kept = values[keep]
    edge = kept.min() if len(kept) else values.max()
    return max(float(edge.clamp_min(1e-12).log10()), low)
