"""What only trained weights can tell, measured once and kept as small tables and pictures beside the run.

Weights are large and stay where they were trained; ``record`` looks at them while they are there, and everything after
reads what it wrote. So a run without weights, like those in ``results/reference/``, still tells all of it.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from mirl_study import evaluation
from mirl_study.analysis import RUN, SINGLE, find, kept_rounds, open_run, read_json
from mirl_study.crew import crew
from mirl_study.data import Bank, Sample, load_bank
from mirl_study.effective import effective
from mirl_study.lottery import default_device, load_round
from mirl_study.masks import Mask
from mirl_study.network import Attention, Prompt, PromptIR, build_network, describe
from mirl_study.settings import LOTTERY, SettingsError, choose
from mirl_study.store import atomic, is_reference, project_root, write_csv

SAME_IMAGE = 0.05  # dB: further than this from the recorded score, and the data are not those of the run
PATCH = 128  # pixels: the part of an image that gradients are taken on
PICTURE = 192  # pixels: the part of an image that is kept
TABLES = {
    "survivors": [
        "round",
        "part",
        "kind",
        "weights",
        "kept",
        "rank",
        "initial_kept",
        "initial",
        "trained",
        "same_sign",
        "order",
    ],
    "ranking": ["before", "after", "part", "weights", "order", "kept", "top", "chance"],
    "prompt_weights": ["round", "prompt", "task", "name", "component", "weight"],
    "heads": ["round", "layer", "head", "density", "task", "error", "off"],
}
PARTS = ("all", "effective", "rest")  # of the kept weights: all of them, those that are effective, the others


def record(folder: Path, bank: Bank, pictures: bool = True) -> bool:
    """Measures the kept weights of a run and writes the tables; a run that has them, or no weights, is left alone.

    So is one of a reference, whatever it has: only ``mirl reference`` writes there. Tables that an earlier version made
    are made anew.

    Args:
        folder: of a dense run or a lottery.
        bank: test images of its setting.
        pictures: whether to keep restored images as well.

    Returns:
        Whether anything was written.

    Raises:
        SettingsError: if an image does not score what the run has recorded: the data or the code are others now.
    """
    rounds = kept_rounds(folder)
    if (
        not rounds
        or _of_reference(folder)
        or (_recorded(folder) == rounds and (not pictures or _pictured(folder, rounds)))
    ):
        return False
    run = open_run(folder)
    start = build_network(run.settings.network, run.settings.seed)
    played = [load_round(run, index) for index in rounds]
    networks = {one.index: one.network() for one in played}
    masks = {one.index: one.mask for one in played}
    for one in played:  # first, for it tells whether these are the images of the run
        network = networks[one.index].to(bank.pixels.device).eval()
        _check_and_keep(network, bank, one.metrics, folder / f"round{one.index:02d}", pictures)
    looks, effects = [], []
    for index, network in networks.items():
        looks.append(prompt_weights(network, bank).assign(round=index))
        effects.append(heads(network, masks[index], bank).assign(round=index))
        network.cpu()
    live = {index: effective(mask, run.settings.network) for index, mask in masks.items()}
    stayed = [survivors(start, networks[index], masks[index], live[index]).assign(round=index) for index in rounds]
    tables = {
        "survivors": pd.concat(stayed),
        "ranking": ranking({-1: start} | networks, masks, live),
        "prompt_weights": pd.concat(looks),
        "heads": pd.concat(effects),
    }
    for name, table in sorted(
        tables.items(), key=lambda item: item[0] == "survivors"
    ):  # last: it says that all is there
        write_csv(folder / f"{name}.csv", table[TABLES[name]].round(8))
    return True


def record_all(found: pd.DataFrame) -> list[str]:
    """Records every finished dense run and lottery whose weights are there.

    Args:
        found: what ``analysis.runs`` returned.

    Returns:
        A line for each setting that could not be recorded, saying why.
    """
    own = found[found.finished & found.method.isin(["dense", *LOTTERY])]
    jobs: dict[str, list[partial[str | None]]] = {}
    for setting, group in own.groupby("setting", sort=False):
        smallest = group.groupby("method").seed.transform("min") == group.seed
        chosen = [(folder, first) for folder, first in zip(group.folder, smallest, strict=True) if kept_rounds(folder)]
        chosen = [(folder, first) for folder, first in chosen if not _of_reference(folder)]
        if not all(_recorded(folder) == kept_rounds(folder) for folder, _ in chosen):
            jobs[setting] = [partial(_try_to_record, folder, first) for folder, first in chosen]
    work = [job for own in jobs.values() for job in own]
    with crew(len(work) > 3 and default_device().type == "cpu") as together:
        said = iter(together(work))
    return [
        f"{setting}: the trained weights cannot be looked at: {problems[0]}"
        for setting, own in jobs.items()
        if (problems := [problem for _ in own if (problem := next(said))])
    ]


def _try_to_record(folder: Path, pictures: bool) -> str | None:
    """Records a run, on its own test images; returns why that was not possible."""
    try:
        record(folder, load_bank(open_run(folder).settings, "test", project_root(), default_device()), pictures)
    except (SettingsError, OSError) as error:
        return str(error)
    return None


def gather(found: pd.DataFrame, name: str) -> pd.DataFrame:
    """Reads one of the tables of all runs that have it.

    Args:
        found: what ``analysis.runs`` returned.
        name: ``survivors``, ``ranking``, ``prompt_weights`` or ``heads``.

    Returns:
        ``setting``, ``method``, ``seed``, and the columns of TABLES; no row if nothing was recorded. A table of an
        earlier version has what it has: its ``part`` is ``all``, its ``error`` and ``off`` are missing (``outdated``).
    """
    choose("table", name, TABLES)
    parts = []
    for run in found[found.finished].itertuples():
        if (path := run.folder / f"{name}.csv").is_file():
            parts.append(pd.read_csv(path).assign(setting=run.setting, method=run.method, seed=run.seed))
    columns = [*RUN, *TABLES[name]]
    table = pd.concat(parts, ignore_index=True).reindex(columns=columns) if parts else pd.DataFrame(columns=columns)
    return table.fillna({"part": "all"}) if "part" in table else table


def outdated(found: pd.DataFrame) -> str:
    """Says in one line which runs have tables of an earlier version, and what these do not tell; empty if none."""
    own = found[found.finished & found.method.isin(["dense", *LOTTERY])]
    names = [f"{run.setting}, {run.method}, seed {run.seed}" for run in own.itertuples() if _is_outdated(run.folder)]
    if not names:
        return ""
    more = f"; and {len(names) - 2} more" if len(names) > 2 else ""
    return (
        f"an earlier version recorded {'; '.join(names[:2])}{more}: what survives is not told "
        "apart into effective and idle, and no head was switched off; the report makes these tables anew where the "
        "weights are"
    )


def missing(found: pd.DataFrame) -> str:
    """Says in one line which runs have neither these tables nor weights to make them from; empty if none."""
    own = found[found.finished & found.method.isin(["dense", *LOTTERY])]
    names = [
        f"{run.setting}, {run.method}, seed {run.seed}"
        for run in own.itertuples()
        if not (run.folder / "survivors.csv").is_file()
    ]
    return f"nothing was recorded of the trained weights of {'; '.join(names)}" if names else ""


def survivors(start: PromptIR, network: PromptIR, mask: Mask, live: Mask) -> pd.DataFrame:
    """Compares the weights that a mask keeps with their initial values.

    A weight without a gradient stays what it was, so what all of them have in common says little of training: the
    effective ones are told by themselves.

    Args:
        start: the network at initialisation.
        network: trained under the mask.
        mask: of its round.
        live: what ``effective.effective`` returned of it.

    Returns:
        A row a part and kind, and one for ``all`` kinds: ``part`` (one of PARTS), ``weights`` (prunable), ``kept`` (of
        that part, which all that follows is of), ``rank`` (mean share of their tensor's weights that were smaller at
        initialisation; 0.5 is chance), ``initial_kept``, ``initial`` (mean absolute initial value, of these and of all
        prunable ones), ``trained`` (now), ``same_sign`` (share that has the sign it began with), ``order`` (Spearman's
        correlation of absolute initial and trained values).
    """
    named = describe(network).set_index("name").kind
    groups: dict[tuple[str, str], list[tuple[Tensor, ...]]] = {}
    for name, keep in mask.items():
        before, after = (n.get_parameter(name).detach().flatten() for n in (start, network))
        ranks = stats.rankdata(before.abs().numpy())  # equal ones share theirs
        smaller = torch.from_numpy(ranks - 1) / max(len(before) - 1, 1)
        for part, chosen in _parts(keep, live[name]).items():
            columns = before[chosen], after[chosen], smaller[chosen], before.abs()
            for kind in (named[name], "all"):
                groups.setdefault((part, kind), []).append(columns)
    rows = []
    for (part, kind), group in groups.items():
        before, after, smaller, whole = (torch.cat(column) for column in zip(*group, strict=True))
        sizes = before.abs().mean(), whole.mean(), after.abs().mean()
        same = (before.sign() == after.sign()).double().mean()
        values = [float(value) for value in (smaller.double().mean(), *sizes, same)]
        rows.append((part, kind, len(whole), len(before), *values, _spearman(before.abs(), after.abs())))
    frame = pd.DataFrame(rows, columns=[name for name in TABLES["survivors"] if name != "round"])
    return frame.sort_values("part", key=lambda parts: parts.map(PARTS.index), kind="stable", ignore_index=True)


def ranking(networks: Mapping[int, PromptIR], masks: Mapping[int, Mask], live: Mapping[int, Mask]) -> pd.DataFrame:
    """Asks whether the order of the weights by size in one round foretells that in a later one.

    It needs trained values, so it compares the rounds whose weights were kept, not each with the next.

    Args:
        networks: by round; -1 is the network at initialisation.
        masks: by round.
        live: what ``effective.effective`` returned of each mask.

    Returns:
        A row a pair of rounds and part: ``before``, ``after``, ``part`` (one of PARTS, by the later round), ``weights``
        (of that part), ``order`` (Spearman's correlation of their absolute values), ``kept`` (all that the later one
        keeps), ``top`` (share of the part that was among the ``kept`` largest of the earlier one's, in the whole
        network), ``chance`` (kept over alive in the earlier one).
    """
    rows = []
    for before in networks:
        alive = masks.get(before)
        for after in (index for index in masks if index > before):
            early, late, chosen = [], [], {part: [] for part in PARTS}
            for name, keep in masks[after].items():
                own = alive[name].flatten() if alive else torch.ones(keep.numel(), dtype=torch.bool)
                early.append(networks[before].get_parameter(name).detach().abs().flatten()[own])
                late.append(networks[after].get_parameter(name).detach().abs().flatten()[own])
                for part, those in _parts(keep, live[after][name]).items():
                    chosen[part].append(those[own])
            first, second = torch.cat(early), torch.cat(late)
            stay = {part: torch.cat(those) for part, those in chosen.items()}
            kept = int(stay["all"].sum())
            largest = torch.zeros_like(stay["all"])
            largest[first.argsort(descending=True, stable=True)[:kept]] = True
            chance = kept / len(first) if len(first) else float("nan")
            for part, those in stay.items():
                count = int(those.sum())
                top = int((largest & those).sum()) / count if count else float("nan")
                rows.append((before, after, part, count, _spearman(first[those], second[those]), kept, top, chance))
    return pd.DataFrame(rows, columns=TABLES["ranking"])


def _parts(keep: Tensor, live: Tensor) -> dict[str, Tensor]:
    """The kept weights of a flattened tensor, by PARTS."""
    keep, live = keep.flatten(), live.flatten()
    return dict(zip(PARTS, (keep, keep & live, keep & ~live), strict=True))


class _Seen(Exception):
    """All prompts have been looked at."""


@torch.no_grad()
def prompt_weights(network: PromptIR, bank: Bank) -> pd.DataFrame:
    """Says how much of each prompt component each test image takes.

    Args:
        network: on the bank's device.
        bank: test images.

    Returns:
        A row an image and component: ``prompt`` (``prompt1`` to ``prompt3``, by level), ``task``, ``name``,
        ``component`` (from 0), ``weight`` (those of one prompt add up to 1).
    """
    seen: dict[str, Tensor] = {}
    modules = {name: module for name, module in network.named_modules() if isinstance(module, Prompt)}

    def look(name: str, features: Tensor) -> None:
        seen[name] = features
        if len(seen) == len(modules):
            raise _Seen  # what follows the last prompt is most of the work, and nobody looks at it

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: look(name, given[0]))
        for name, module in modules.items()
    ]
    rows = []
    try:
        for sample in bank.samples():
            seen.clear()
            with contextlib.suppress(_Seen):
                evaluation.restore(network, sample.degraded)
            for name, module in sorted(modules.items()):
                weights = module.weights(seen[name])[0].tolist()
                rows += [(name, sample.task, sample.name, place, weight) for place, weight in enumerate(weights)]
    finally:
        for hook in hooks:
            hook.remove()
    return pd.DataFrame(rows, columns=[name for name in TABLES["prompt_weights"] if name != "round"])


@torch.no_grad()
def heads(network: PromptIR, mask: Mask, bank: Bank) -> pd.DataFrame:
    """Says how far the error of each task rises if an attention head, or a prompt, is switched off, one by one.

    Args:
        network: trained under the mask, on the bank's device.
        mask: of its round.
        bank: test images; of each task the middle of the first one is restored.

    Returns:
        A row a task and head or prompt: ``layer``, ``head`` (0 for a prompt), ``density`` (of the weights that hand it
        on), ``task``, ``error`` (mean absolute error; images are in [0, 1]), ``off`` (the same without it).
    """
    layers: dict[str, tuple[str, int]] = {}
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            layers[name] = f"{name}.project_out.weight", module.heads
        elif isinstance(module, Prompt):
            layers[name] = f"{name}.conv3x3.weight", 1
    pairs = {
        sample.task: [_middle(image, PATCH, 8) for image in (sample.degraded, sample.target)] for sample in _first(bank)
    }

    def errors() -> dict[str, float]:
        return {task: (network(given) - target).abs().mean().item() for task, (given, target) in pairs.items()}

    whole, rows = errors(), []
    for layer, (name, count) in layers.items():
        weight = network.get_parameter(name)
        gates = weight.unflatten(1, (count, -1))
        densities = mask[name].flatten(2).unflatten(1, (count, -1)).double().mean((0, 2, 3)).tolist()
        for head, density in enumerate(densities):
            kept = gates[:, head].clone()
            gates[:, head] = 0
            off = errors() if kept.any() else whole
            gates[:, head] = kept
            rows += [(layer, head, density, task, whole[task], off[task]) for task in pairs]
    return pd.DataFrame(rows, columns=[name for name in TABLES["heads"] if name != "round"])


@dataclass(frozen=True)
class Restoration:
    """One test image and what networks made of it.

    Attributes:
        task, name: which image.
        images: (3, H, W) in [0, 1] by label, the middle part; the first is the degraded input, the last the target.
        psnr, ssim: dB, and of the whole image, by label; the target has none.
    """

    task: str
    name: str
    images: dict[str, Tensor]
    psnr: dict[str, float]
    ssim: dict[str, float]


def restorations(chosen: Iterable[tuple[str, Path, int]]) -> list[Restoration]:
    """Reads what networks made of the first test image of each task.

    Args:
        chosen: label, run folder and round of each network.

    Returns:
        One a task.

    Raises:
        FileNotFoundError: if the pictures were not kept.
    """
    made: dict[str, Restoration] = {}
    for label, folder, index in chosen:
        place = folder / f"round{index:02d}"
        metrics = pd.read_csv(place / "metrics.csv").drop_duplicates("task")
        for row in metrics.itertuples():
            given, target = (_read(_picture(folder, row.task, kind)) for kind in ("input", "target"))
            one = made.setdefault(row.task, Restoration(row.task, row.name, {"input": given}, {}, {}))
            one.images[label] = _read(_picture(place, row.task))
            one.psnr.update({"input": row.input_psnr, label: row.psnr})
            one.ssim.update({"input": row.input_ssim, label: row.ssim})
            one.images["target"] = one.images.pop("target", target)  # always the last
    return [made[task] for task in SINGLE if task in made]


def panels(found: pd.DataFrame, setting: str) -> list[tuple[str, Path, int]]:
    """Chooses the networks whose pictures are shown: the dense one and up to two kept rounds of each lottery.

    Args:
        found: what ``analysis.runs`` returned.
        setting: which.

    Returns:
        Label, run folder and round of each.

    Raises:
        FileNotFoundError: if the pictures of one were not kept.
    """
    chosen = []
    for method in ("dense", *reversed(LOTTERY)):
        if method not in set(found[found.finished & (found.setting == setting)].method):
            continue
        place = find(found, setting, method)
        kept = sorted({read_json(p.parent / "round.json")["index"] for p in place.glob("round*/*-restored.png")})
        if not kept:
            raise FileNotFoundError(f"no restored images were kept in {place}")
        labels = {kept[len(kept) // 2 - 1], kept[-1]}
        chosen += [(f"{method} round {index}" if index else method, place, index) for index in sorted(labels)]
    return chosen


def _recorded(folder: Path) -> list[int]:
    """The rounds that the tables are about; none, if an earlier version made them."""
    path = folder / "survivors.csv"
    there = path.is_file() and not _is_outdated(folder)
    return sorted(pd.read_csv(path)["round"].unique().tolist()) if there else []


def _is_outdated(folder: Path) -> bool:
    """Whether the tables of a run lack columns that they have by now."""
    paths = [folder / f"{name}.csv" for name in TABLES]
    return any(path.is_file() and not {*TABLES[path.stem]} <= {*pd.read_csv(path, nrows=0)} for path in paths)


def _of_reference(folder: Path) -> bool:
    """Whether a run lies among the records that come with the code, or were kept like those."""
    return is_reference(folder.resolve().parents[3])


def _pictured(folder: Path, rounds: Iterable[int]) -> bool:
    return all(any((folder / f"round{index:02d}").glob("*-restored.png")) for index in rounds)


def _first(bank: Bank) -> list[Sample]:
    """The first test image of each task."""
    first: dict[str, Sample] = {}
    for sample in bank.samples():
        first.setdefault(sample.task, sample)
    return list(first.values())


def _check_and_keep(network: PromptIR, bank: Bank, metrics: pd.DataFrame, place: Path, pictures: bool) -> None:
    """Restores the first test image of each task, compares its score with the recorded one, and keeps the pictures."""
    for sample in _first(bank):
        restored = evaluation.restore(network, sample.degraded)
        recorded = metrics[(metrics.task == sample.task) & (metrics["name"] == sample.name)].psnr
        now = evaluation.psnr(restored, sample.target).item()
        if len(recorded) != 1 or abs(recorded.iloc[0] - now) > SAME_IMAGE:
            was = f"{recorded.iloc[0]:.2f} dB" if len(recorded) else "no score"
            raise SettingsError(
                f"data: {sample.task} image {sample.name!r} scores {now:.2f} dB with {place}, {was} in its "
                "metrics.csv; the data are not those of the run"
            )
        if pictures:
            _write(_picture(place, sample.task), _middle(restored, PICTURE)[0])
            for kind, image in (("input", sample.degraded), ("target", sample.target)):
                _write(_picture(place.parent, sample.task, kind), _middle(image, PICTURE)[0])


def _picture(place: Path, task: str, kind: str = "restored") -> Path:
    return place / f"{task}-{kind}.png"


def _write(path: Path, image: Tensor) -> None:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", optimize=True)


def _read(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"{path} was not kept")
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _middle(image: Tensor, most: int, multiple: int = 1) -> Tensor:
    """The middle of an image (..., H, W), at most so many pixels high and wide, and a multiple of some number."""
    height, width = (min(size, most) // multiple * multiple for size in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def _spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; missing where there is no order."""
    if len(a) < 3 or a.min() == a.max() or b.min() == b.max():
        return float("nan")
    return float(stats.spearmanr(a.numpy(), b.numpy()).statistic)
