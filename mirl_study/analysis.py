"""Finished runs and their masks in numbers: tidy frames, made from files, nothing is run again."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mirl_study.comparison import build_network, skeleton
from mirl_study.effective import CLASSES, classes_of
from mirl_study.lottery import dense_mask
from mirl_study.masks import Mask
from mirl_study.network import PromptIR, describe
from mirl_study.settings import (
    LOTTERY,
    METHODS,
    SETTINGS,
    TASKS,
    ModelSettings,
    NetworkSettings,
    SettingsError,
    choose,
    nearest,
    profiles,
    read_settings,
)
from mirl_study.store import Run, is_reference, project_root, read_json, results_root

FAMILIES = {name: tasks for name, tasks in TASKS.items() if name != "all_in_one"}
SINGLE = tuple(task for tasks in FAMILIES.values() for task in tasks)  # every task, in the order of the tables
RUN = ["setting", "method", "seed"]  # what names a run
IDENTITY = 1e-3  # dB: closer than this on every test image, and the network returns its input
STILL = 5e-3  # dB: closer than this to the input on the mean, and nothing was restored
BLOCK = re.compile(r"(?P<stage>\w+?)(?:\.\d+)?\.(?P<part>(?:attn|ffn|norm\d)\..+)")


def profile_folder(profile: str, results: Path | str | None = None) -> Path:
    """Returns the folder of a profile's results, or of any other runs that lie beside them, as ``laptop-real``.

    Args:
        profile: name of a profile, or of the folder.
        results: root of all results; the project's ``results/`` if not given.

    Raises:
        SettingsError: the name is neither.
    """
    root = results_root(results)
    others = {path.parents[3].name for path in root.glob("*/*/*/seed*/run.json")} - set(profiles())
    return root / choose("profile", profile, (*profiles(), *sorted(others)))


def runs(profile: str = "laptop", results: Path | str | None = None, setting: str | None = None) -> pd.DataFrame:
    """Finds every run folder of a profile.

    Args:
        profile: whose results.
        results: root of all results; the project's ``results/`` if not given.
        setting: only runs of this one.

    Returns:
        A row a run, in the order of the tables: ``setting``, ``method``, ``seed``, ``rounds`` (finished ones),
            ``finished`` (the whole chain is),
        ``folder``.

    Raises:
        SettingsError: if no run is finished, or, naming the file, if a ``run.json`` cannot be read.
    """
    root = profile_folder(profile, results)
    rows = []
    for path in root.glob(f"{setting or '*'}/*/seed*/run.json"):
        facts = read_json(path)
        rounds = len(list(path.parent.glob("round*/round.json")))
        finished = rounds > 0 and (path.parent / "summary.csv").is_file()
        seed, setting = facts["settings"]["seed"], facts["settings"]["setting"]
        rows.append((setting, facts["method"], seed, rounds, finished, path.parent))
    if not any(finished for *_, finished, _ in rows):
        place = f"{root}/{setting}" if setting else root
        way = f"mirl study --profile {profile}"
        if not is_reference(results_root(results)) and (project_root() / "results/reference" / root.name).is_dir():
            way += "; the results root `results/reference` has the runs that come with the code"
        raise SettingsError(f"profile={profile!r} has no finished run in {place}: {way}")
    rows.sort(key=lambda row: (SETTINGS.index(row[0]), METHODS.index(row[1]), row[2]))
    return pd.DataFrame(rows, columns=[*RUN, "rounds", "finished", "folder"])


def find(found: pd.DataFrame, setting: str, method: str, seed: int | None = None) -> Path:
    """Returns the folder of one finished run.

    Args:
        found: what ``runs`` returned.
        setting, method: of the run.
        seed: of the run; its smallest one if not given.

    Raises:
        SettingsError: saying which runs there are.
    """
    there = found[found.finished & (found.setting == setting)]
    match = there[(there.method == method) & ((there.seed == seed) if seed is not None else True)]
    if match.empty:
        names = sorted({f"{row.method} seed {row.seed}" for row in there.itertuples()})
        wanted = f"{method} seed {seed}" if seed is not None else method
        raise SettingsError(
            f"no finished run {wanted!r} of setting={setting!r}; there is {', '.join(names) or 'none'}"
            "; `mirl study` makes what is missing"
        )
    return match.sort_values("seed").folder.iloc[0]


def open_run(folder: Path) -> Run:
    """Returns the run of a folder, with the settings that it was made with."""
    facts = read_json(folder / "run.json")
    settings = read_settings({"profile": facts["profile"], **facts["settings"]})
    control = facts.get("control")
    depth = 3 + bool(control) + 2 * isinstance(settings.network, ModelSettings)
    if len(folder.resolve().parents) <= depth:
        raise SettingsError(f"{folder} lies in no results root: .../<profile>/<setting>/<method>/seed<k> is wanted")
    run = Run(settings, facts["method"], folder.resolve().parents[depth], control)
    run.folder = folder.resolve()  # its own, also where a reference has another name than its profile
    return run


def dense_folder(folder: Path) -> Path:
    """Returns the folder of the dense run that a run started from: same setting, same seed."""
    setting = folder.parents[2 if folder.parents[1].name == "controls" else 1]
    return setting / "dense" / folder.name


def scores(found: pd.DataFrame) -> pd.DataFrame:
    """Gathers the test scores of finished runs.

    Args:
        found: what ``runs`` returned; rows that are not finished are left out.

    Returns:
        A row a run, round and task: ``setting``, ``method``, ``seed``, ``round``, ``task``, ``psnr`` (dB), ``ssim``,
            ``input_psnr``, ``input_ssim``,
        ``change`` (dB: the largest difference that the network makes to one image's PSNR), ``density``, ``kept``,
        ``parameters`` (kept + never pruned), ``delta`` (dB: above the dense network of the same seed). Besides the
        tasks there are the families (``denoise``: mean over sigmas) and ``mean`` (over families). Round 0 of a lottery
        is its dense run.
    """
    parts = []
    for run in found[found.finished].itertuples():
        folders = [dense_folder(run.folder)] if run.method in LOTTERY else []
        for folder in [*folders, run.folder]:
            for path in sorted(folder.glob("round*/round.json")):
                facts = read_json(path)
                means = by_task(pd.read_csv(path.with_name("metrics.csv")))
                named = {"setting": run.setting, "method": run.method, "seed": run.seed, "round": facts["index"]}
                more = {name: facts[name] for name in ("density", "kept", "parameters")}
                parts.append(means.assign(**named, **more))
    if not parts:
        return pd.DataFrame(columns=[*RUN, "round", "task", *COLUMNS, "density", "kept", "parameters", "delta"])
    frame = pd.concat(parts, ignore_index=True)[[*RUN, "round", "task", *COLUMNS, "density", "kept", "parameters"]]
    dense = frame[frame.method == "dense"][["setting", "seed", "task", "psnr"]].rename(columns={"psnr": "dense_psnr"})
    frame = frame.merge(dense, on=["setting", "seed", "task"], how="left")
    return frame.assign(delta=frame.psnr - frame.dense_psnr).drop(columns="dense_psnr")


COLUMNS = ["psnr", "ssim", "input_psnr", "input_ssim", "change"]


def by_task(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over test images by task, with those of the families and of all.

    Args:
        metrics: what ``evaluation.evaluate`` returned.

    Returns:
        A row a task, a family (of more than one task) and ``mean``: ``task``, ``psnr`` (dB), ``ssim``, ``input_psnr``,
        ``input_ssim``, and ``change`` (dB: the largest difference that the network makes to one image's PSNR).
    """
    metrics = metrics.assign(change=(metrics.psnr - metrics.input_psnr).abs())
    how = {**dict.fromkeys(COLUMNS, "mean"), "change": "max"}
    return with_families(metrics.groupby("task", sort=False).agg(how), how).reset_index()


def with_families(tasks: pd.DataFrame, how: Any = "mean") -> pd.DataFrame:
    """Adds families of tasks and their mean to a table of single tasks.

    Args:
        tasks: by task, in the index.
        how: each column is brought together, as ``DataFrame.agg`` takes it.

    Returns:
        By task: first the tasks, then families of more than one, then ``mean`` (over families).
    """
    families = {
        name: tasks.loc[list(parts)].agg(how) for name, parts in FAMILIES.items() if set(parts) <= set(tasks.index)
    }
    groups = pd.DataFrame(families).T
    groups.loc["mean"] = groups.agg(how)
    groups = groups[~groups.index.isin(tasks.index)]
    order = [name for name in (*SINGLE, "denoise", "mean") if name in {*tasks.index, *groups.index}]
    return pd.concat([tasks, groups]).loc[order].rename_axis("task")


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of what ``scores`` returned, of the rounds that all seeds of a method have.

    Returns:
        A row a setting, method, round and task: means as in ``scores``, ``sd`` (dB: of the PSNR, sample standard
        deviation), ``seeds`` (their number).
    """
    names = ["setting", "method", "round", "task"]
    columns = [name for name in frame.columns if name not in {*names, "seed"}]
    groups = frame.groupby(names, sort=False)
    means = groups[columns].mean().assign(sd=groups.psnr.std(), seeds=groups.seed.nunique()).reset_index()
    everyone = frame.groupby(["setting", "method"]).seed.nunique().rename("everyone").reset_index()
    means = means.merge(everyone, on=["setting", "method"])
    return means[means.seeds == means.everyone].drop(columns="everyone").reset_index(drop=True)


def load_masks(folder: Path) -> dict[int, Mask]:
    """Reads the masks of a run's finished rounds, by round; a lottery's begin with its dense one.

    Args:
        folder: of the run.

    Raises:
        ValueError: naming the file, if one is damaged.
    """
    records = sorted(folder.glob("round*/round.json"))
    return dict(_masks(folder, tuple((path, path.stat().st_mtime_ns) for path in records)))


@functools.lru_cache(maxsize=2)  # chains are looked at one after the other, or two of them side by side
def _masks(folder: Path, records: tuple[tuple[Path, int], ...]) -> dict[int, Mask]:
    """Reads the masks that go with records, each named with the time that it is from."""
    run = open_run(folder)
    begin = {0: dense_mask(run.settings)} if run.method in LOTTERY else {}
    return begin | {read_json(path)["index"]: Mask.load(path.with_name("mask.npz")) for path, _ in records}


def kinds(network: NetworkSettings | ModelSettings) -> dict[str, str]:
    """Returns what each parameter tensor of a network is for, by name, without building the network's values."""
    table = describe(skeleton(network))
    return dict(zip(table["name"], table["kind"], strict=True))


def layer_densities(masks: Mapping[int, Mask], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Says how full each layer is in each round.

    Args:
        masks: by round.
        kinds: by parameter name.

    Returns:
        A row a round and layer, in the network's order: ``round``, ``layer`` (the tensor's name without ``.weight``),
        ``kind``, ``level`` (see LEVELS), ``stage`` and ``part`` (a layer in a transformer block: which run of blocks,
        and where in the block; elsewhere ``part`` is empty), ``inputs`` (of one unit; the layer's initial weights are
        uniform within one over the square root of it), ``size``, ``kept``, ``density``.
    """
    rows = []
    for index, mask in sorted(masks.items()):
        for name, tensor in mask.items():
            layer, size, kept = name.removesuffix(".weight"), tensor.numel(), int(tensor.sum())
            block = BLOCK.fullmatch(layer)
            stage, part = (block["stage"], block["part"]) if block else (layer.split(".")[0], "")
            where = kinds[name], level(name), stage, part
            rows.append((index, layer, *where, size // len(tensor), size, kept, kept / size))
    return pd.DataFrame(rows, columns=LAYER)


LAYER = ["round", "layer", "kind", "level", "stage", "part", "inputs", "size", "kept", "density"]
LEVELS = ("io", "1", "2", "3", "latent", "prompt", "unused")  # in and out; full size to an eighth; prompts; never run


def level(name: str) -> str:
    """Returns at which level of the network a parameter or layer is, one of LEVELS; empty for another network's."""
    return PromptIR.levels.get(name.split(".")[0], "")


def by_place(densities: pd.DataFrame, place: str = "level") -> pd.DataFrame:
    """Pools layers by level or kind.

    Args:
        densities: what ``layer_densities`` or ``densities`` returned.
        place: ``level`` or ``kind``.

    Returns:
        A row a round and place (and run, if they are named): ``size``, ``kept``, ``density``, ``share`` (of all that is
        kept), ``empty`` (layers without a kept weight), ``layers``.
    """
    keys = [name for name in (*RUN, "round") if name in densities]
    groups = densities.assign(empty=densities.kept == 0).groupby([*keys, choose("place", place, PLACES)], sort=False)
    table = groups.agg(
        size=("size", "sum"), kept=("kept", "sum"), empty=("empty", "sum"), layers=("layer", "count")
    ).reset_index()
    whole = table.groupby(keys).kept.transform("sum")
    return table.assign(density=table.kept / table["size"], share=table.kept / whole.where(whole > 0))


PLACES = ("level", "kind")


def liveness(masks: Mapping[int, Mask], network: NetworkSettings) -> pd.DataFrame:
    """Says how much of each layer does anything: what is kept is not yet what counts.

    Args:
        masks: by round.
        network: the shape of theirs.

    Returns:
        A row a round and layer: ``round``, ``layer``, ``kind``, ``level``, ``size``, ``kept``;
        kept weights by what they do, see ``effective.classes``: ``effective``, ``sign_only``, ``constant``, ``idle``;
        ``units`` (output channels), ``bare`` (units without a kept weight), ``dead`` (units whose kept weights, if
        any, are all idle).
    """
    rows, named = [], kinds(network)
    indices = sorted(masks)
    for index, parts in zip(indices, classes_of((masks[index] for index in indices), network), strict=True):
        mask = masks[index]
        for name, keep in mask.items():
            counts, idle = (
                part.flatten(1).sum(1) if keep.dim() > 1 else part.long() for part in (keep, parts["idle"][name])
            )
            sizes = keep.numel(), int(counts.sum()), *(int(parts[kind][name].sum()) for kind in CLASSES)
            units = len(keep), int((counts == 0).sum()), int((counts == idle).sum())
            rows.append((index, name.removesuffix(".weight"), named[name], level(name), *sizes, *units))
    return pd.DataFrame(rows, columns=LIVE)


LIVE = ["round", "layer", "kind", "level", "size", "kept", *CLASSES, "units", "bare", "dead"]


def lives(found: pd.DataFrame) -> pd.DataFrame:
    """Gathers ``liveness`` of the finished lotteries among ``found``, with what names the run in front."""
    parts = []
    for run in found[found.finished & found.method.isin(LOTTERY)].itertuples():
        table = liveness(load_masks(run.folder), open_run(run.folder).settings.network)
        parts.append(table.assign(setting=run.setting, method=run.method, seed=run.seed))
    return pd.concat(parts, ignore_index=True)[[*RUN, *LIVE]] if parts else pd.DataFrame(columns=[*RUN, *LIVE])


def denominators(lives: pd.DataFrame, parameters: int) -> pd.DataFrame:
    """Counts a mask against each of the denominators of sparsity.

    Args:
        lives: what ``liveness`` or ``lives`` returned.
        parameters: of the whole network, those that are never pruned included.

    Returns:
        A row a round (and run, if they are named): ``prunable``, ``kept``, ``effective``, ``sign_only``, ``constant``
        (weights), ``left`` (kept and never pruned), ``units``, ``dead`` (see ``liveness``); ``of_prunable`` (kept over
        prunable), ``of_trainable`` (left over all parameters), ``of_effective`` (effective over prunable), ``of_used``
        (all that is kept but the idle ones, over prunable), ``idle`` (share of the kept weights that is).
    """
    keys = [name for name in (*RUN, "round") if name in lives]
    table = lives.groupby(keys, sort=False)[["size", "kept", *CLASSES, "units", "dead"]].sum().reset_index()
    table = table.rename(columns={"size": "prunable"})
    left = parameters - table.prunable + table.kept
    return table.assign(
        left=left,
        of_prunable=table.kept / table.prunable,
        of_trainable=left / parameters,
        of_effective=table.effective / table.prunable,
        of_used=(table.kept - table.idle) / table.prunable,
        idle=table.idle / table.kept.where(table.kept > 0),
    )


def parameters(network: NetworkSettings) -> int:
    """Returns how many parameters a network of this shape has in all."""
    return sum(parameter.numel() for parameter in skeleton(network).parameters())


def unused_part(masks: Mapping[int, Mask], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Says how much of a ticket lies in the six convolutions that never run.

    They are prunable under the released protocol only, and no gradient ever reaches them: their weights keep their
    initial size, whatever is trained.

    Args:
        masks: by round.
        kinds: by parameter name.

    Returns:
        A row a round: ``round``, ``kept`` (in all), ``unused`` (of those, in the six), ``share`` (unused over kept),
        ``density`` (of the six), ``others`` (density of all other layers). Empty if they are not in the masks.
    """
    rows = []
    for index, mask in sorted(masks.items()):
        own = [keep for name, keep in mask.items() if kinds[name] == "unused"]
        if own:
            kept, size = sum(int(keep.sum()) for keep in own), sum(keep.numel() for keep in own)
            share = kept / mask.kept if mask.kept else 0.0
            rows.append((index, mask.kept, kept, share, kept / size, (mask.kept - kept) / (mask.size - size)))
    return pd.DataFrame(rows, columns=["round", "kept", "unused", "share", "density", "others"])


def unused_at_start(network: NetworkSettings, rounds: Iterable[int], rate: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """Says how much of a ticket the convolutions that never run would be by initial size alone, if they were prunable.

    Nothing is trained: it is what the largest initial values of the whole network would be, as many as a lottery's
    round keeps. Layer-wise they stay the share that they are in round 0.

    Args:
        network: a shape; they are added where it has none.
        rounds: of a global lottery; round 0 is added.
        rate: of the prunable weights, that leave in a round.
        seed: of the initialisation.

    Returns:
        A row a round: ``round``, ``kept`` (in all), ``unused`` (of those, in the six), ``share`` (unused over kept),
        ``density`` (of the six).
    """
    start = build_network(replace(network, unused=True), seed)
    kinds, whole = describe(start).set_index("name").kind, Mask.dense(start, unused=True)
    sizes = torch.cat([start.get_parameter(name).detach().abs().flatten() for name in whole])
    never = torch.cat([torch.full((keep.numel(),), kinds[name] == "unused") for name, keep in whole.items()])
    counts = never[sizes.argsort(descending=True)].cumsum(0, dtype=torch.int32)
    rows = []
    for index in sorted({0, *rounds}):
        kept = max(round((1 - rate) ** index * len(sizes)), 1)
        unused = int(counts[kept - 1])
        rows.append((index, kept, unused, unused / kept, unused / int(counts[-1])))
    return pd.DataFrame(rows, columns=["round", "kept", "unused", "share", "density"])


def costs(found: pd.DataFrame) -> pd.DataFrame:
    """Says what each network costs: parameters, bytes, time.

    Args:
        found: what ``runs`` returned; rows that are not finished are left out.

    Returns:
        A row a run and round: ``setting``, ``method``, ``seed``, ``round``, ``parameters`` (kept and never pruned),
        ``bytes`` (of the trained network: four a parameter, and one bit a prunable weight to say which), ``training``
        (seconds of all trainings up to it, the dense one included), ``restoring`` (seconds for all test images).
    """
    rows = []
    for run in found[found.finished].itertuples():
        dense = [dense_folder(run.folder)] if run.method != "dense" else []
        spent = 0.0
        for folder in [*dense, run.folder]:
            for path in sorted(folder.glob("round*/round.json")):
                facts = read_json(path)
                spent += facts["training_seconds"]
                if folder != run.folder and run.method not in LOTTERY:
                    continue  # a one-shot baseline starts from the dense network, but has no round 0
                which = facts["prunable"] // 8 if facts["kept"] < facts["prunable"] else 0
                size = 4 * facts["parameters"] + which
                row = facts["index"], facts["parameters"], size, spent, facts["evaluation_seconds"]
                rows.append((run.setting, run.method, run.seed, *row))
    return pd.DataFrame(rows, columns=[*RUN, "round", "parameters", "bytes", "training", "restoring"])


def initial_size(densities: pd.DataFrame) -> pd.DataFrame:
    """Asks how far the size of the initial weights alone decides where weights survive.

    Args:
        densities: what ``densities`` returned.

    Returns:
        A row a lottery and round after the dense one: ``setting``, ``method``, ``seed``, ``round``, ``layers``,
        ``spread`` (interquartile range of their densities), and ``rank_correlation``: Spearman's, over layers, of
        density with ``inputs``; near -1, layers that were initialised smaller keep less. Missing where all layers are
        equally dense.
    """
    pruned = densities[densities["round"] > 0]
    rows = [
        (
            *key,
            len(layers),
            layers.density.quantile(0.75) - layers.density.quantile(0.25),
            layers.density.corr(layers.inputs, method="spearman") if layers.density.nunique() > 1 else None,
        )
        for key, layers in pruned.groupby([*RUN, "round"], sort=False)
    ]
    return pd.DataFrame(rows, columns=[*RUN, "round", "layers", "spread", "rank_correlation"])


def densities(found: pd.DataFrame) -> pd.DataFrame:
    """Gathers ``layer_densities`` of the finished lotteries among ``found``, with what names the run in front."""
    parts = []
    for run in found[found.finished & found.method.isin(LOTTERY)].itertuples():
        table = layer_densities(load_masks(run.folder), kinds(open_run(run.folder).settings.network))
        parts.append(table.assign(setting=run.setting, method=run.method, seed=run.seed))
    columns = [*RUN, *LAYER]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def survival(masks: Mapping[int, Mask], kinds: Mapping[str, str], since: Iterable[int] | None = None) -> pd.DataFrame:
    """Of the weights alive in one round, counts those that are alive in a later one.

    Args:
        masks: by round.
        kinds: by parameter name.
        since: rounds to start from; all if not given.

    Returns:
        A row a pair of rounds and kind, and one for ``all`` kinds: ``since``, ``round``, ``kind``, ``alive`` (in round
        ``since``), ``living`` (of those, in ``round``), ``share`` (living over alive; missing if none was alive).
    """
    rows = []
    starts = sorted(masks) if since is None else sorted(set(since) & set(masks))
    for start in starts:
        for later in (index for index in sorted(masks) if index >= start):
            table = pd.DataFrame(
                [(kinds[name], int(t.sum()), int((t & masks[later][name]).sum())) for name, t in masks[start].items()],
                columns=["kind", "alive", "living"],
            )
            counts = table.groupby("kind", sort=False).sum()
            counts.loc["all"] = counts.sum()
            rows.append(counts.reset_index().assign(since=start, round=later))
    frame = pd.concat(rows, ignore_index=True)
    frame["share"] = frame.living / frame.alive.where(frame.alive > 0)
    return frame[["since", "round", "kind", "alive", "living", "share"]]


def collapse(scores: pd.DataFrame, densities: pd.DataFrame) -> pd.DataFrame:
    """Says when layers emptied and when the network became the identity.

    Args:
        scores: what ``scores`` returned, of the lotteries or of more.
        densities: what ``densities`` returned.

    Returns:
        A row a lottery: ``setting``, ``method``, ``seed``, ``last`` (round), ``emptied_round`` (the first with an empty
            layer), ``emptied_layers``
        (which ones, comma-separated), ``identity_round`` (the first in which every test image's PSNR is the input's, to
        0.001 dB), ``identity_from`` (the first from which on that is so in every round). Missing where it did not
        happen.
    """
    empty = densities[densities.kept == 0]
    rows = []
    for key, run in scores[scores.method.isin(LOTTERY)].groupby(RUN, sort=False):
        still = run.groupby("round").change.max() <= IDENTITY
        last = int(still.index.max())
        moving = [index for index in still.index if not still[index]]
        since = [index for index in still.index if not moving or index > max(moving)]
        layers = empty[(empty[RUN] == pd.Series(key, index=RUN)).all(axis=1)]
        first = layers["round"].min() if len(layers) else pd.NA
        names = ", ".join(layers[layers["round"] == first].layer) if len(layers) else ""
        rows.append((*key, last, first, names, min(still.index[still], default=pd.NA), min(since, default=pd.NA)))
    columns = [*RUN, "last", "emptied_round", "emptied_layers", "identity_round", "identity_from"]
    rounds = ["emptied_round", "identity_round", "identity_from"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(rounds, "Int64"))


def within_margin(delta: pd.Series, margin: float) -> tuple[int | None, list[int]]:
    """Says how long a chain stays close to its dense network.

    Args:
        delta: dB above dense, by round; round 0 does not count.
        margin: dB that it may fall below.

    Returns:
        The last round up to which every round is within the margin, None if the first one is not; and the later rounds
        that are within it again.
    """
    close = (delta[delta.index >= 1] >= -margin).sort_index()
    out = [index for index in close.index if not close[index]]
    if not out:
        return int(close.index.max()) if len(close) else None, []
    before = [int(index) for index in close.index if index < out[0]]
    return max(before, default=None), [int(index) for index in close.index if index > out[0] and close[index]]


def stays_above(difference: pd.Series) -> tuple[int | None, list[int]]:
    """Says from which round on a difference is above zero for good.

    Args:
        difference: by round; round 0 does not count.

    Returns:
        The first round from which on every difference is positive, None if the last one is not; and all rounds with a
        positive difference.
    """
    difference = difference[difference.index >= 1].sort_index()
    above = [int(index) for index in difference.index if difference[index] > 0]
    others = [index for index in difference.index if not difference[index] > 0]
    return next((index for index in above if not others or index > max(others)), None), above


def kept_rounds(folder: Path) -> list[int]:
    """Returns the finished rounds of a run whose trained weights were kept."""
    places = sorted(path.parent for path in folder.glob("round*/weights.safetensors"))
    return [read_json(place / "round.json")["index"] for place in places if (place / "round.json").is_file()]


def check_sparsest(answer: str | None, densities: pd.DataFrame) -> str:
    """Checks an exercise's answer: the layer with the smallest density in the last round.

    Args:
        answer: a layer's name, or None.
        densities: what ``layer_densities`` returned.

    Returns:
        One line: right, or a hint.
    """
    last = densities[densities["round"] == densities["round"].max()].set_index("layer").density
    if answer is None:
        return f"put one of {len(last)} layer names in `answer`, for example {last.index[0]!r}"
    if answer not in last.index:
        return f"{answer!r} is not a layer{nearest(answer, last.index)}"
    if last[answer] <= last.min():
        return f"right: {answer} keeps {last[answer]:.2%} of its weights"
    sparser = int((last < last[answer]).sum())
    return f"{answer} keeps {last[answer]:.2%}; {sparser} layers keep less: sort by density"


def signed(value: float, digits: int = 2) -> str:
    """Returns a number for reading, with its sign; a dash for a missing one."""
    return "–" if pd.isna(value) else f"{value:+.{digits}f}".replace("-", "−")
