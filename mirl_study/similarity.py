"""Which weights masks have in common, beside what chance gives: any two of them, and all together.

Chance is independence at the same layer densities: two masks that keep d1 and d2 of a layer of n weights blindly share
n d1 d2 of them, give or take the standard deviation of the hypergeometric law. Masks of one seed start from the same
initial values, and a large initial value is kept more often whatever is trained on. So there is a second baseline:
masks that know nothing but the initial sizes, at the same layer densities. Of two such masks one holds the other in
each layer, which gives their IoU from the counts alone; ``by_initial_size`` makes one, as one more row to compare with.
That two masks are both closer to a third one than to each other does not say that it is all they have in common:
``beyond_start`` asks that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mirl_study import criteria
from mirl_study.analysis import RUN, load_masks, open_run
from mirl_study.lottery import dense_mask
from mirl_study.masks import Mask
from mirl_study.network import build_network
from mirl_study.settings import LOTTERY, SETTINGS, Settings, SettingsError, choose

BITS = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)
COLUMNS = ["iou", "chance", "initial", "both", "expected", "z"]  # of what ``pair`` returns
PAPERS = ("derain", "dehaze", "denoise", "all_in_one")
INITIAL = "largest at initialisation"
BINS, LEAST = 64, 64  # of initial sizes, a layer: at most so many, and at least so many weights in each


@dataclass(frozen=True)
class Packed:
    """A mask as bits.

    Attributes:
        names: of the tensors.
        bits: sixteen weights a number; tensor after tensor, each begins with a new number.
        sizes, kept: weights by tensor.
    """

    names: tuple[str, ...]
    bits: np.ndarray
    sizes: np.ndarray
    kept: np.ndarray


def pack(mask: Mask) -> Packed:
    """Turns a mask into bits, so that a pair of the paper's size is compared in hundredths of a second."""
    parts = []
    for keep in mask.values():
        octets = np.packbits(keep.cpu().numpy())
        parts.append(np.pad(octets, (0, len(octets) % 2)).view(np.uint16))
    bits = np.concatenate(parts) if parts else np.zeros(0, np.uint16)
    sizes = np.array([keep.numel() for keep in mask.values()], dtype=np.int64)
    kept = np.array([int(keep.sum()) for keep in mask.values()], dtype=np.int64)
    return Packed(tuple(mask), bits, sizes, kept)


def pair(a: Packed, b: Packed) -> dict[str, float]:
    """Compares two masks of one network.

    Args:
        a, b: what ``pack`` returned.

    Returns:
        ``iou`` (kept by both over kept by either; 1 if both are empty), ``chance`` (the same for masks that keep as
        many in each layer but know nothing of each other: expected both over expected either), ``initial`` (the same
        for masks that keep as many in each layer, the largest of one initialisation), ``both``, ``expected``
        (weights), ``z`` (both less expected, in standard deviations of chance; missing where chance leaves nothing
        open).

    Raises:
        ValueError: if the masks are of different networks.
    """
    if a.names != b.names or not np.array_equal(a.sizes, b.sizes):
        raise ValueError("the masks are of different networks: names or shapes differ")
    both = int(BITS[a.bits & b.bits].sum(dtype=np.int64))
    expected = float((a.kept * b.kept / a.sizes).sum())
    open_a, open_b = (mask.kept / mask.sizes * (1 - mask.kept / mask.sizes) for mask in (a, b))
    spread = open_a * open_b * (a.sizes.astype(float) ** 2 / np.maximum(a.sizes - 1, 1))
    deviation = float(spread.sum()) ** 0.5
    total = int(a.kept.sum() + b.kept.sum())
    iou, chance = (part / (total - part) if total > part else 1.0 for part in (both, expected))
    z = (both - expected) / deviation if deviation else float("nan")
    either = int(np.maximum(a.kept, b.kept).sum())
    initial = int(np.minimum(a.kept, b.kept).sum()) / either if either else 1.0
    return {"iou": iou, "chance": chance, "initial": initial, "both": both, "expected": expected, "z": z}


def matrix(masks: Mapping[str, Mask], starts: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Compares every mask with every other.

    Args:
        masks: by label, of one network.
        starts: by label, the seed of the initialisation that a mask was found from; not known if not given.

    Returns:
        A row an ordered pair, of a mask with itself too: ``a``, ``b`` (labels), and what ``pair`` returns; ``initial``
        is missing where the two did not start from the same values.

    Raises:
        ValueError: if the masks are of different networks.
    """
    packed = {label: pack(mask) for label, mask in masks.items()}
    rows = []
    for a, b in combinations_with_replacement(packed, 2):
        values = pair(packed[a], packed[b])
        if not starts or starts[a] != starts[b]:
            values["initial"] = float("nan")
        rows += [{"a": a, "b": b, **values}] + ([{"a": b, "b": a, **values}] if a != b else [])
    frame = pd.DataFrame(rows, columns=["a", "b", *COLUMNS])
    place = {label: at for at, label in enumerate(packed)}
    return frame.sort_values(["a", "b"], key=lambda labels: labels.map(place), ignore_index=True)


def core(masks: Mapping[str, Mask]) -> dict[str, float]:
    """Counts what all masks keep.

    Args:
        masks: by label, of one network; at least one.

    Returns:
        ``kept`` (of the smallest mask), ``core`` (weights that all keep), ``expected`` (the same for masks that keep as
        many in each layer but know nothing of each other), ``share`` (core over kept), ``chance`` (expected over kept).

    Raises:
        ValueError: if the masks are of different networks.
    """
    packed = [pack(mask) for mask in masks.values()]
    for other in packed[1:]:
        pair(packed[0], other)
    common = np.bitwise_and.reduce([mask.bits for mask in packed])
    shares = np.prod([mask.kept / mask.sizes for mask in packed], axis=0)
    expected, kept = float((packed[0].sizes * shares).sum()), min(int(mask.kept.sum()) for mask in packed)
    count = int(BITS[common].sum(dtype=np.int64))
    share, chance = (part / kept if kept else 1.0 for part in (count, expected))
    return {"kept": kept, "core": count, "expected": expected, "share": share, "chance": chance}


def by_initial_size(settings: Settings, like: Mask) -> Mask:
    """Keeps the weights that were largest at initialisation, as many in each layer as another mask.

    Args:
        settings: network, seed and what is prunable.
        like: whose layer densities it gets.
    """
    whole = dense_mask(settings)
    network = build_network(settings.network, settings.seed)
    scores = criteria.magnitude(criteria.Evidence(network, whole))
    return criteria.prune(whole, scores, 0.0, "layerwise", {name: 1 - d for name, d in like.densities().items()})


def beyond_start(a: Mask, b: Mask, sizes: Mapping[str, Tensor]) -> dict[str, float]:
    """Asks whether two masks share more than where their weights stood at initialisation explains.

    The weights of each layer are put into bins by their initial size. Masks that depend on that size in whatever way,
    but on nothing else in common, share in each bin what independence says.

    Args:
        a, b: masks of one network and one initialisation.
        sizes: initial magnitudes by parameter name.

    Returns:
        ``both``, ``expected`` (weights), ``z`` (both less expected, in standard deviations; missing where nothing is
        left open).
    """
    both = expected = variance = 0.0
    for name in a:
        size, one, other = (tensors[name].flatten().numpy() for tensors in (sizes, a, b))
        bins = max(1, min(BINS, len(size) // LEAST))
        place = np.minimum(size * (bins / (size.max(initial=0) or 1)), bins - 1).astype(np.int64)
        counts = np.bincount(4 * place + 2 * one + other, minlength=4 * bins).reshape(bins, 4)  # none, b, a, both
        n, p, q = counts.sum(1), counts[:, 2:].sum(1), counts[:, 1::2].sum(1)
        both += counts[:, 3].sum()
        expected += (p * q / np.maximum(n, 1)).sum()
        variance += (p * (n - p) * q * (n - q) / np.maximum(n * n * (n - 1.0), 1)).sum()
    z = (both - expected) / variance**0.5 if variance else float("nan")
    return {"both": int(both), "expected": float(expected), "z": float(z)}


def tickets(
    found: pd.DataFrame,
    index: int,
    settings: Sequence[str] = (),
    methods: Sequence[str] = tuple(LOTTERY),
    seeds: Sequence[int] = (),
) -> dict[str, Mask]:
    """Loads the masks of one round of all finished lotteries.

    Args:
        found: what ``analysis.runs`` returned.
        index: of the round.
        settings, seeds: only these; all that are there if not given.
        methods: lotteries.

    Returns:
        By label, which names what differs between them: setting, method, seed.

    Raises:
        SettingsError: for a name that is none, or if no finished lottery has this round.
    """
    return _tickets(found, index, settings, methods, seeds)[0]


def compare(found: pd.DataFrame, index: int, **which: Sequence[Any]) -> pd.DataFrame:
    """Compares the masks of one round of all finished lotteries, beside chance and the initial values.

    Args:
        found, index: as ``tickets`` takes them.
        **which: ``settings``, ``methods``, ``seeds``, as ``tickets`` takes them.

    Returns:
        What ``matrix`` returns.

    Raises:
        SettingsError: as ``tickets``.
    """
    return matrix(*_tickets(found, index, **which))


def _tickets(
    found: pd.DataFrame,
    index: int,
    settings: Sequence[str] = (),
    methods: Sequence[str] = tuple(LOTTERY),
    seeds: Sequence[int] = (),
) -> tuple[dict[str, Mask], dict[str, int]]:
    """Masks and seeds by label."""
    for name in settings:
        choose("settings", name, SETTINGS)
    for name in methods:
        choose("methods", name, LOTTERY)
    own = found[found.finished & found.method.isin(methods)]
    own = own[own.setting.isin(settings or own.setting) & own.seed.isin(seeds or own.seed)]
    own = own[[(_round(folder, index) / "round.json").is_file() for folder in own.folder]]
    if own.empty:
        raise SettingsError(f"round={index!r} is not finished in any lottery that was asked for; mirl study makes it")
    differ = [name for name in RUN if own[name].nunique() > 1] or ["method"]
    words = {"setting": "{}", "method": "{}", "seed": "seed {}"}
    labels = [", ".join(words[name].format(row[name]) for name in differ) for row in own.to_dict("records")]
    masks = [Mask.load(_round(folder, index) / "mask.npz") for folder in own.folder]
    return dict(zip(labels, masks, strict=True)), dict(zip(labels, own.seed, strict=True))


def missing(found: pd.DataFrame, method: str, seed: int, index: int, profile: str) -> str:
    """Says in one line what is not there to ask whether the settings' tickets share a core; empty if nothing is.

    Args:
        found: what ``analysis.runs`` returned, of all settings.
        method, seed, index: whose tickets, of which round.
        profile: for the command that makes them.
    """
    there = set(_finished(found, method, seed, index).setting)
    gaps = [name for name in PAPERS if name not in there]
    if not gaps:
        return ""
    return (
        f"no finished {method} with seed {seed} and round {index} of the setting{'s' if len(gaps) > 1 else ''} "
        f"{', '.join(gaps)}: mirl study --profile {profile} --setting {gaps[0]} --seeds {seed}"
    )


def shared_core(
    found: pd.DataFrame, index: int, method: str = "MIR-L-G", seed: int = 0
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Asks whether the settings' tickets share a core: one method, seed and round, every setting that is there.

    Args:
        found: what ``analysis.runs`` returned, of all settings.
        index: of the round.
        method, seed: whose tickets.

    Returns:
        What ``matrix`` returns, of the settings' tickets and of the mask that only knows the initial sizes (at the
        densities of the first); and what ``core`` returns, of the settings' tickets.

    Raises:
        SettingsError: if there is no such ticket.
    """
    own = _finished(found, method, seed, index)
    if own.empty:
        raise SettingsError(f"round={index!r} of {method} with seed {seed} is not finished in any setting")
    masks = {row.setting: Mask.load(_round(row.folder, index) / "mask.npz") for row in own.itertuples()}
    like = masks[own.setting.iloc[0]]
    return matrix(masks | {INITIAL: by_initial_size(open_run(own.folder.iloc[0]).settings, like)}), core(masks)


def beyond_starts(found: pd.DataFrame, index: int, method: str = "MIR-L-G", seed: int = 0) -> pd.DataFrame:
    """Asks of every two settings' tickets whether they share more than their initial values explain.

    Args:
        found, index, method, seed: as ``shared_core`` takes them.

    Returns:
        A row a pair: ``a``, ``b`` (settings), and what ``beyond_start`` returns.
    """
    own = _finished(found, method, seed, index)
    masks = {row.setting: Mask.load(_round(row.folder, index) / "mask.npz") for row in own.itertuples()}
    settings = open_run(own.folder.iloc[0]).settings
    network = build_network(settings.network, settings.seed)
    sizes = criteria.magnitude(criteria.Evidence(network, next(iter(masks.values()))))
    rows = [{"a": a, "b": b, **beyond_start(masks[a], masks[b], sizes)} for a, b in combinations(masks, 2)]
    return pd.DataFrame(rows, columns=["a", "b", "both", "expected", "z"])


def common_seed(found: pd.DataFrame, method: str, index: int) -> int:
    """Returns the seed whose tickets of a method and round are there for most settings; the smallest of equal ones."""
    seeds = sorted(set(found.seed))
    return max(seeds, key=lambda seed: len(_finished(found, method, seed, index)))


def _finished(found: pd.DataFrame, method: str, seed: int, index: int) -> pd.DataFrame:
    """The runs, one a setting, of which this round is finished."""
    own = found[found.finished & (found.method == choose("method", method, LOTTERY)) & (found.seed == seed)]
    return own[[(_round(folder, index) / "round.json").is_file() for folder in own.folder]]


def _round(folder: Path, index: int) -> Path:
    return folder / f"round{index:02d}"


def over_rounds(a: Mapping[int, Mask], b: Mapping[int, Mask]) -> pd.DataFrame:
    """Compares two chains of masks of one network, round by round.

    Args:
        a, b: masks by round.

    Returns:
        A row a round that both have: ``round``, and what ``pair`` returns.

    Raises:
        ValueError: if the masks are of different networks.
    """
    rows = [{"round": index, **pair(pack(a[index]), pack(b[index]))} for index in sorted(set(a) & set(b))]
    return pd.DataFrame(rows, columns=["round", *COLUMNS])


def packed(found: pd.DataFrame) -> dict[tuple[str, str, int], dict[int, Packed]]:
    """Reads the masks of the finished lotteries among ``found`` as bits: by what names the run, then by round."""
    own = found[found.finished & found.method.isin(LOTTERY)]
    return {
        tuple(run[name] for name in RUN): {index: pack(mask) for index, mask in load_masks(run["folder"]).items()}
        for run in own.to_dict("records")
    }


def chains(packed: Mapping[tuple[str, str, int], Mapping[int, Packed]]) -> pd.DataFrame:
    """Compares, round by round, every two lotteries of one network that differ in exactly one thing.

    Args:
        packed: what ``packed`` returned.

    Returns:
        A row a pair and round: ``differ`` (``setting``, ``method`` or ``seed``), ``a``, ``b`` (what names the two),
        ``round``, and what ``pair`` returns; ``initial`` is missing where the seeds differ.
    """
    rows = []
    for one, other in ((one, other) for one in packed for other in packed if one < other):
        differ = [name for name, x, y in zip(RUN, one, other, strict=True) if x != y]
        mine, theirs = packed[one], packed[other]
        if len(differ) > 1 or mine[0].names != theirs[0].names:
            continue
        named = {"differ": differ[0], "a": ", ".join(map(str, one)), "b": ", ".join(map(str, other))}
        other_start = {"initial": float("nan")} if differ == ["seed"] else {}
        common = [n for n in sorted(set(mine) & set(theirs)) if n]
        rows += [{**named, "round": n, **pair(mine[n], theirs[n]), **other_start} for n in common]
    return pd.DataFrame(rows, columns=["differ", "a", "b", "round", *COLUMNS])
