"""The five stations of the lab: each function builds one panel from what the lab has read."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from torch import Tensor

from mirl_study import controls, similarity, verdicts
from mirl_study.figures import MARKS
from mirl_study.masks import Mask
from mirl_study.settings import LOTTERY, SettingsError
from mirl_study.widgets.lab import SCOPES, Lab, options, spread
from mirl_study.widgets.panel import STYLE, Canvas, Choice, Panel

COLORS = sns.color_palette("colorblind")
NAMES = {"MIR-L-G": "global", "MIR-L-LW": "layer-wise"}  # in the order in which they are shown
DENSE = {"color": "0.15", "linestyle": ":", "lw": 1.6}
INPUT = {"color": "0.35", "linestyle": "-.", "lw": 1.3}
ONLY = {  # of two masks: what a weight is, its colour; told apart by their lightness, too
    "kept by neither": (0.95, 0.95, 0.95),
    "kept by both": (0.2, 0.2, 0.2),
    "only by A": COLORS[0],
    "only by B": COLORS[1],
}
PRUNABLE = "gains prunable"


def degrade(lab: Lab) -> Panel:
    """Station 1: a degraded image, what the trained network makes of it, and what it should be."""
    titles = ["input", "restored", "target", "error of the input", "error that is left"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 2.75), layout="constrained")
        axes = figure.subplots(1, 5)
        images = [
            _image(axis, "cividis" if "error" in title else None) for axis, title in zip(axes, titles, strict=True)
        ]
        figure.colorbar(images[-1], ax=axes[3:], location="right", label="|difference|", shrink=0.8)
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
            f"<b>{task}</b>: the network lifts this crop by <b>{made.psnr - given.psnr:+.2f} dB</b> of PSNR "
            f"(SSIM {given.ssim:.3f} → {made.ssim:.3f}). On all test images of this task, whole, it is "
            f"{lab.levels.psnr[task] - lab.levels.input_psnr[task]:+.2f} dB on average."
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
        top, bottom = figure.subfigures(2, 1, height_ratios=(2.3, 3))
        histogram, spans = top.subplots(1, 2, width_ratios=(2, 3))
        histogram.hist(together, bins=80, range=(low, high), color="0.6")
        histogram.set(
            xlabel="|weight|, log scale", ylabel="prunable weights", title="all weights of the trained network"
        )
        quantiles = np.array([np.quantile(v.numpy(), (0.05, 0.95)) for v in sizes])
        spans.vlines(range(len(layers)), *quantiles.T, color="0.6", lw=3)
        spans.set(xlabel="prunable layer, in the network's order", ylabel="|weight|", ylim=(low - 0.7, high + 0.1))
        spans.set_title("each layer (bar: 5 to 95 % of its weights)")
        for axis in (histogram.xaxis, spans.yaxis):
            axis.set_major_locator(MultipleLocator(1))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:g}"))
        cut = histogram.axvline(low, color=COLORS[0], lw=2.5)
        level = spans.axhline(low, color=COLORS[0], lw=2.5, label="global threshold")
        (stairs,) = spans.plot(
            range(len(layers)), [low] * len(layers), **_line("MIR-L-LW"), label="layer-wise thresholds"
        )
        spans.legend(loc="lower right", fontsize=9, ncols=2)
        axes = bottom.subplots(1, 4)
        images = [_image(axis) for axis in axes]
    canvas = Canvas(figure, [cut, level, stairs, *images, *(axis.title for axis in axes)])

    def draw(density: float, task: str) -> tuple[bytes, str]:
        made = {method: lab.restored_pruned(task, density, LOTTERY[method]) for method in NAMES}
        given, dense, wanted = (lab.restored(task, name) for name in ("input", "dense", "target"))
        masks = {method: lab.pruned(density, LOTTERY[method]) for method in NAMES}
        flat, own = thresholds[density]
        cut.set_xdata([flat] * 2)
        level.set_ydata([flat] * 2)
        stairs.set_ydata(own)
        named = {"input": given, **{NAMES[method]: one for method, one in made.items()}, "target": wanted}
        for artist, (name, one), axis in zip(images, named.items(), axes, strict=True):
            artist.set_data(_pixels(one.image))
            axis.set_title(name if name == "target" else f"{name}, {one.psnr:.2f} dB")
        emptied = {NAMES[method]: len(mask.emptied()) for method, mask in masks.items()}
        return canvas.png(), (
            f"<b>{masks['MIR-L-G'].kept:,}</b> of {masks['MIR-L-G'].size:,} prunable weights are left in both. "
            f"Against the whole network ({dense.psnr:.2f} dB here): "
            + ", ".join(f"{NAMES[m]} <b>{made[m].psnr - dense.psnr:+.2f} dB</b>" for m in made)
            + f". Layers without a weight: {', '.join(f'{name} {count}' for name, count in emptied.items())}."
        )

    steps = {f"{0.8**k:.1%}": 0.8**k for k in range(16)}
    thresholds = {}
    for density in steps.values():  # here, so that a callback has no weights to sort
        edges = {
            method: [_threshold(lab.magnitudes[name], keep, low) for name, keep in lab.pruned(density, scope).items()]
            for scope, method in SCOPES.items()
        }
        thresholds[density] = min(edges["MIR-L-G"]), edges["MIR-L-LW"]
    tasks = list(lab.samples)
    choices = {
        "density": Choice("Density", steps, next(iter(steps)), "slider"),
        "task": Choice("Task", options(tasks), tasks[0]),
    }
    return Panel(choices, draw, [{"density": list(steps)[k]} for k in (0, 2, 5, 10)])


def play(lab: Lab) -> Panel:
    """Station 3: the lottery, a round at a time; curves and the mask of one layer for both scopes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.2), layout="constrained")
        axis, *others = figure.subplots(1, 3, width_ratios=(1.7, 1, 1))
        lines = {m: axis.plot([], [], **_line(m) | {"ms": 6}, label=NAMES[m])[0] for m in NAMES}
        dense, given = axis.axhline(0, **DENSE, label="dense"), axis.axhline(0, **INPUT, label="input (not restored)")
        axis.set(xlabel="round", ylabel="PSNR above the input / dB", xlim=(-0.4, lab.rounds + 0.4))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        tops = {task: [lab.curve(m, task) - lab.levels.input_psnr[task] for m in NAMES] for task in lab.panels}
        values = pd.concat([curve for curves in tops.values() for curve in curves])
        room = 0.08 * (max(values.max(), 0) - min(values.min(), 0))
        axis.set_ylim(min(values.min(), 0) - room, max(values.max(), 0) + room)
        axis.legend(loc="upper right", fontsize=9, framealpha=1)
        images = dict(zip(NAMES, (_image(one, "cividis") for one in others), strict=True))
        for one in others:
            one.set_xlabel("weights of a unit", fontsize=9)
        others[0].set_ylabel("units", fontsize=9)
    canvas = Canvas(figure, [*lines.values(), dense, given, axis.title, *images.values(), *(o.title for o in others)])

    def draw(index: int, task: str, layer: str) -> tuple[bytes, str]:
        level = lab.levels.input_psnr[task]
        told = []
        for method, line in lines.items():
            curve = lab.curve(method, task).loc[:index] - level
            line.set_data(curve.index, curve)
            mask = lab.mask(method, index)
            tensor = mask[f"{layer}.weight"]
            _mask_image(images[method], tensor)
            images[method].axes.set_title(f"{NAMES[method]}\n{int(tensor.sum()):,} of {tensor.numel():,} kept")
            told.append(f"{NAMES[method]} <b>{curve.iloc[-1] + level:.2f} dB</b> ({len(mask.emptied())} layers empty)")
        dense.set_ydata([lab.levels.psnr[task] - level] * 2)
        axis.set_title(f"{heading(task)}, seed {lab.seed}: rounds 0 to {index}")
        mask = lab.mask("MIR-L-G", index)
        return canvas.png(), (
            f"Round <b>{index}</b>: {mask.kept:,} of {mask.size:,} prunable weights ({mask.density():.1%}), rewound "
            f"and trained again. {'; '.join(told)}; dense {lab.levels.psnr[task]:.2f} dB, input {level:.2f} dB."
        )

    rounds = {f"round {index}": index for index in range(lab.rounds + 1)}
    for index in rounds.values():  # here, so that a callback reads no file
        for method in NAMES:
            lab.mask(method, index)
    first = next((name for name in lab.layers if "noise_level3.ffn" in name), lab.layers[0])
    choices = {
        "index": Choice("Round", rounds, "round 0", "steps", "Play a round"),
        "task": Choice("Score", options(lab.panels), lab.panels[0]),
        "layer": Choice("Layer", options(lab.layers), first),
    }
    return Panel(choices, draw, [{"index": f"round {index}"} for index in spread(lab.rounds)])


def scopes(lab: Lab) -> Panel:
    """Station 3, all seeds: does global beat layer-wise here, and do the norms explain it?"""
    chains = _chains(lab)
    looks = {"global": MARKS["MIR-L-G"], "layer-wise": MARKS["MIR-L-LW"]}
    looks[f"layer-wise, {PRUNABLE}"] = {"color": "0.25", "marker": "D", "linestyle": ":"}
    looks["layer-wise, gains kept"] = {"color": "0.25", "marker": "D", "linestyle": ":"}
    drawn = {}
    for task in lab.panels:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(11.2, 4.2), layout="constrained")
            axis = figure.subplots()
            for name, own in chains[chains.task == task].groupby("chain", sort=False):
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
        return drawn[task], "<br>".join(told_scopes(lab, task, chains))

    choices = {"task": Choice("Score", options(lab.panels), lab.panels[0])}
    return Panel(choices, draw, [{"task": task} for task in lab.panels[:2]])


def _chains(lab: Lab) -> pd.DataFrame:
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


def told_scopes(lab: Lab, task: str, chains: pd.DataFrame | None = None) -> list[str]:
    """Says in sentences, from the scores alone, which scope is ahead where, and what the norms change.

    Args:
        lab: whose runs.
        task: family of tasks, or ``mean``.
        chains: as ``scopes`` gathers them; gathered if not given.
    """
    chains = _chains(lab) if chains is None else chains
    own = chains[chains.task == task].pivot_table(index=["round", "seed"], columns="chain", values="psnr")
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
    told.append(f"Round {last}: {third}, against layer-wise as it is = {_interval(changed.loc[last])}.")
    return [*told, *_gains_left(lab)]


def _gains_left(lab: Lab) -> list[str]:
    """Says how many gains of the norms the last round of the other layer-wise lottery has, by its masks."""
    place = lab.folders["dense"].parents[1] / "controls" / lab.settings.control("norms")
    told = []
    for folder in sorted(place.glob("seed*/round*/mask.npz"))[-1:]:
        left, size = Mask.load(folder).counts("kind").get("norm", (0, 0))
        told += [f"There, {left} of {size} gains are left in the last round."] if size else []
    return told


def _interval(values: pd.Series) -> str:
    mean, low, high = verdicts.interval(values)
    if len(values) < 2:
        return f"{mean:+.2f} dB, and one seed tells nothing apart"
    told = "0 lies inside: these seeds cannot tell" if low <= 0 <= high else "0 lies outside"
    return f"<b>{mean:+.2f} dB</b>, 95 % interval {low:+.2f} to {high:+.2f} dB over {len(values)} seeds ({told})"


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
    start = "reinit" if "reinit" in listed else next(iter(listed))
    choices = {
        "control": Choice("Control", listed, start),
        "task": Choice("Score", options(lab.panels), lab.panels[0]),
    }
    stills = [{"control": name} for name in ("reinit", "shuffled", "dense_long") if name in listed] or [{}]
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
    ends = f"{row['mean']:+.2f} dB to the ticket, 95 % interval {row.low:+.2f} to {row.high:+.2f} dB, {row.seeds} seeds"
    if row.low > 0 or row.high < 0:
        return f"It is told apart: {ends}."
    return f"It cannot be told from the ticket: {ends}."


def tickets(lab: Lab) -> dict[str, tuple[Any, str]]:
    """Lists the chains whose masks can be looked at: (folder, method) by text."""
    own = lab.found[lab.found.finished & lab.found.method.isin(LOTTERY)]
    return {f"{NAMES[r.method]}, seed {r.seed}, {r.setting}": (r.folder, r.method) for r in own.itertuples()}


def explore(lab: Lab) -> Panel:
    """Station 5, the mask explorer: two tickets, where they agree and where not."""
    chains = tickets(lab)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.2, 4.4), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
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
        count = len(lab.layers)
        style = {
            "A": {"color": COLORS[0], "marker": "o"},
            "B": {"color": COLORS[1], "marker": "s"},
        }
        lines = {
            name: axis.plot(range(count), [1] * count, **look, ls="", ms=4.5, mec="0.2", mew=0.4, label=name)[0]
            for name, look in style.items()
        }
        here = axis.axvline(0, color="0.15", lw=1)
        axis.set(
            xlabel="prunable layer, in the network's order (an empty one has no marker)",
            ylabel="density",
            yscale="log",
            ylim=(3e-4, 1.6),
        )
        axis.legend(loc="lower left", fontsize=9, ncols=2)
    canvas = Canvas(figure, [*images, *lines.values(), here, *(one.title for one in axes)])

    def draw(a: Any, b: Any, index: int, layer: str) -> tuple[bytes, str]:
        masks = {"A": _last(lab, *a, index), "B": _last(lab, *b, index)}
        name = f"{layer}.weight"
        for artist, (label, mask) in zip(images, masks.items(), strict=False):
            _mask_image(artist, mask[name])
            artist.axes.set_title(f"{label}\n{int(mask[name].sum()):,} of {mask[name].numel():,} kept")
            lines[label].set_ydata([value or np.nan for value in mask.densities().values()])
        ours, theirs = masks["A"][name], masks["B"][name]
        kinds = (ours.long() + 2 * theirs.long()).flatten(1).numpy()  # 0 neither, 1 only A, 2 only B, 3 both
        table = np.array([ONLY[key] for key in ("kept by neither", "only by A", "only by B", "kept by both")])
        _fit(images[2], table[kinds])
        own = masks["A"].density(), masks["B"].density()
        here.set_xdata([lab.layers.index(layer)] * 2)
        axes[2].set_title(f"A against B\n{_share(ours, theirs)}")
        return canvas.png(), (
            f"Round {index}: A keeps {own[0]:.1%}, B {own[1]:.1%} of the prunable weights. Of the weights that either "
            f"keeps, both keep <b>{masks['A'].iou(masks['B']):.1%}</b>; masks with as many weights in each layer that "
            f"know nothing of each other would share {chance(masks['A'], masks['B']):.1%}."
        )

    texts = list(chains)
    own = [text for text, (folder, _) in chains.items() if folder in lab.folders.values()]
    first = next((name for name in lab.layers if "noise_level3.ffn" in name), lab.layers[0])
    rounds = {f"round {index}": index for index in range(1, lab.rounds + 1)}
    choices = {
        "a": Choice("Ticket A", chains, own[-1] if own else texts[0]),
        "b": Choice("Ticket B", chains, own[0] if own else texts[-1]),
        "layer": Choice("Layer", options(lab.layers), first),
        "index": Choice("Round", rounds, f"round {lab.ticket}", "slider"),
    }
    twins = [text for text, (_, method) in chains.items() if method == "MIR-L-G"][:2]
    stills = [{"index": f"round {index}"} for index in spread(lab.rounds, 3)]
    if len(twins) == 2:
        stills.append({"a": twins[0], "b": twins[1]})
    return Panel(choices, draw, stills)


def _last(lab: Lab, folder: Any, method: str, index: int) -> Any:
    return lab.mask(method, index, folder)


def _share(a: Tensor, b: Tensor) -> str:
    either = int((a | b).sum())
    return f"shared: {int((a & b).sum()) / either:.1%}" if either else "both are empty here"


def chance(a: Mask, b: Mask) -> float:
    """IoU to be expected of masks that keep as many weights in each layer and know nothing of each other."""
    return similarity.pair(similarity.pack(a), similarity.pack(b))["chance"]


def heading(task: str) -> str:
    """A family of tasks, or their mean, in words."""
    return "the mean of the families" if task == "mean" else task


def _line(method: str) -> dict[str, Any]:
    return {**MARKS[method], "lw": 1.8, "mec": "0.2", "mew": 0.4, "ms": 4}


def _image(axis: Axes, colours: str | None = None) -> AxesImage:
    """An empty picture without ticks."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.set_title(" \n ")
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


def _threshold(values: Tensor, keep: Tensor, low: float) -> float:
    """log10 of the smallest magnitude that stays; of the largest one where none does."""
    kept = values[keep]
    edge = kept.min() if len(kept) else values.max()
    return max(float(edge.clamp_min(1e-12).log10()), low)
