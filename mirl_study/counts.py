"""How many parameters each method leaves, round by round: from masks alone, without training."""

from collections.abc import Collection, Iterator

import pandas as pd
import torch
from torch import nn

from mirl_study import criteria, lottery
from mirl_study.comparison import skeleton
from mirl_study.masks import Mask
from mirl_study.network import describe
from mirl_study.settings import LOTTERY, METHODS, ONE_SHOT, PRESETS, Settings, SettingsError
from mirl_study.tables import PAPER_NAMES, published

DIGITS = -5  # the paper's tables give millions with one digit after the point
FIRST_NORMAL = 1 << 23  # the bits of the smallest float32 that is not denormal


def parameters(settings: Settings) -> pd.DataFrame:
    """Counts what is left of the network under every method: the parameter column of the paper's Tables II and III.

    The masks are those of ``lottery``, by scores that mean nothing. As long as scores differ from each other, how many
    weights leave depends on the rule and on the sizes of the tensors only.

    Args:
        settings: network, prunable set, rate or densities, rounds, ``output_rate`` and ``count``.

    Returns:
        A row a method and round: ``method``, ``round``, ``density`` (of the prunable weights), ``kept``, ``parameters``
        (kept and never pruned), ``gone`` (share of all parameters), ``factor`` (all over left), ``published`` and
        ``agrees`` (whether it is ``parameters`` to the digits it has). The published number of a lottery is of a
        round that the tables do not name; it stands at the nearest, if one is within half a round's rate. Networks
        of another shape have none.
    """
    dense = lottery.dense_mask(settings)
    network = _empty(settings)
    _fill(network, dense, settings.seed)
    total = sum(parameter.numel() for parameter in network.parameters())
    rows = []
    for method in METHODS:
        for index, mask in _chain(method, dense, network, settings):
            kept = mask.kept
            left = total - dense.size + kept
            rows.append((method, index, kept / dense.size, kept, left, 1 - left / total, total / left))
    columns = ["method", "round", "density", "kept", "parameters", "gone", "factor"]
    return _compared(pd.DataFrame(rows, columns=columns), settings)


def _chain(method: str, dense: Mask, network: nn.Module, settings: Settings) -> Iterator[tuple[int, Mask]]:
    """Yields (round, mask) of one method."""
    if method in LOTTERY:
        yield from _rounds(dense, network, settings.replace(scope=LOTTERY[method]))
    elif method in ONE_SHOT:  # always an exact count, as in lottery.one_shot: the released code has none
        yield 1, criteria.prune(dense, criteria.magnitude(criteria.Evidence(network, dense)), ONE_SHOT[method][1])
    else:
        yield 0, dense


def _rounds(mask: Mask, network: nn.Module, settings: Settings) -> Iterator[tuple[int, Mask]]:
    """Yields (round, mask) from round 1 on, by the magnitude of the network's values."""
    settings = settings.replace(criterion="magnitude")
    for index in range(1, settings.rounds + 1):
        mask = lottery.next_mask(mask, network, settings, index)
        yield index, mask


def _empty(settings: Settings) -> nn.Module:
    """A network whose values are not set, and take no memory yet."""
    return skeleton(settings.network).to_empty(device="cpu")


def _fill(network: nn.Module, names: Collection[str], seed: int) -> None:
    """Sets tensors to random values, no two of them equal: equal ones stay together at a percentile."""
    parameters = [network.get_parameter(name) for name in names]
    sizes = [parameter.numel() for parameter in parameters]
    # torch.rand has 2^24 values in float32, fewer than the weights; whole numbers, read as the bits of floats, do not
    # repeat, and take half the memory of float64
    bits = torch.randperm(sum(sizes), generator=criteria.stream(seed, "counts"), dtype=torch.int32)
    values = bits.add_(FIRST_NORMAL).view(torch.float32)
    with torch.no_grad():
        for parameter, part in zip(parameters, values.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))


def _compared(frame: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Adds ``published`` and ``agrees``."""
    theirs = published().groupby("method").trainable_parameters.first()
    frame["published"] = pd.array([pd.NA] * len(frame), dtype="Int64")
    if settings.network == PRESETS["paper"]:
        for method, own in frame.groupby("method"):
            value = theirs[PAPER_NAMES.get(method, method)]
            place = (own.parameters - value).abs().idxmin()
            if method not in LOTTERY or abs(own.parameters[place] - value) <= settings.rate / 2 * value:
                frame.loc[place, "published"] = value  # else no round that was counted comes near it
    frame["agrees"] = frame.parameters.round(DIGITS) == frame.published
    return frame


def as_text(frame: pd.DataFrame) -> str:
    """Turns what ``parameters`` returned into the table that is read."""
    names = {ours: f"{ours} ({theirs})" for ours, theirs in PAPER_NAMES.items()}
    text = {
        "method": [names.get(method, method) for method in frame.method],
        "round": frame["round"],
        "density": [f"{value:.2%}" for value in frame.density],
        "kept": [f"{value:,}" for value in frame.kept],
        "parameters left": [f"{value:,}" for value in frame.parameters],
        "gone": [f"{value:.2%}" for value in frame.gone],
        "factor": [f"x{value:.2f}" for value in frame.factor],
    }
    if frame.published.notna().any():
        text["published"] = ["" if pd.isna(value) else _millions(value) for value in frame.published]
    return pd.DataFrame(text).to_string(index=False)


def in_words(frame: pd.DataFrame, settings: Settings) -> list[str]:
    """Says what was counted, and how it compares with the published numbers.

    Args:
        frame: what ``parameters`` returned for these settings.
        settings: of the count.

    Returns:
        Sentences.
    """
    dense = lottery.dense_mask(settings)
    total = frame[frame.method == "dense"].parameters.iloc[0]
    gains = "with" if settings.prune_norms else "without"
    unused = "no unused convolutions in this network"
    if settings.network.unused:
        unused = f"{'with' if settings.prune_unused else 'without'} the unused convolutions"
    lines = [
        f"Protocol {settings.protocol}: {dense.size:,} of {total:,} parameters are prunable, in {len(dense)} tensors "
        f"({gains} LayerNorm gains, {unused}); density is of these, gone and factor are of all."
    ]
    compared = frame[frame.published.notna()]
    if compared.empty:
        return [*lines, "The published numbers are of the paper's network: here there is nothing to compare."]
    rows = compared.method + [f" round {row.round}" if row.method in LOTTERY else "" for row in compared.itertuples()]
    lines.append(
        f"To the published digits (millions, one after the point) {compared.agrees.sum()} of {len(compared)} rows "
        f"agree: {', '.join(rows[compared.agrees]) or 'none'}."
    )
    for name, row in zip(rows[~compared.agrees], compared[~compared.agrees].itertuples(), strict=True):
        lines.append(f"{name} does not: {row.parameters:,} here, {_millions(row.published)} published.")
    lines.append("The tables name no round for the lotteries: their number stands at the round that is nearest to it.")
    smallest = compared.loc[compared.published.idxmin()]
    lines.append(
        f"From the published, rounded numbers the factor is x{compared.published.max() / smallest.published:.2f}; "
        f"counted out it is x{smallest.factor:.2f}."
    )
    return lines


def _millions(value: int) -> str:
    """As the paper's tables print it."""
    return f"{value / 1e6:.1f}M"


def norm_gains(settings: Settings) -> pd.DataFrame:
    """Counts the LayerNorm gains that layer-wise pruning leaves, tensor by tensor.

    Each tensor of gains is a pool of its own and loses its share in every round, whatever was trained, as long as no
    two gains are equal. Globally the gains compete with all weights, so how many stay is decided by their values: no
    mask tells that without a training.

    Args:
        settings: with ``scope`` layerwise; unless ``prune_norms`` is set, all gains stay.

    Returns:
        A row a round (from 0) and tensor of gains: ``round``, ``scope``, ``layer``, ``width``, ``kept``.

    Raises:
        SettingsError: for another scope.
    """
    if settings.scope != "layerwise":
        raise SettingsError(f"scope={settings.scope!r} is not allowed: layerwise, where counts need no training")
    network = _empty(settings)
    table, prunable = describe(network), lottery.dense_mask(settings)
    gains = table[table.kind == "norm"]
    mask = Mask({name: prunable[name] for name in gains.name if name in prunable})
    _fill(network, mask, settings.seed)
    rows = [
        (index, settings.scope, gain.layer, gain.size, int(kept[gain.name].sum()) if gain.name in kept else gain.size)
        for index, kept in [(0, mask), *_rounds(mask, network, settings)]
        for gain in gains.itertuples()
    ]
    return pd.DataFrame(rows, columns=["round", "scope", "layer", "width", "kept"])
