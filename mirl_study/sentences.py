"""What the numbers say, in sentences, and what did not happen; computed from the records, never typed."""

from collections.abc import Iterable

import pandas as pd

from mirl_study import analysis
from mirl_study.analysis import IDENTITY, signed
from mirl_study.settings import LOTTERY
from mirl_study.similarity import INITIAL

MARGIN = 0.1  # dB
FAR = 3  # standard deviations that are no chance, for a handful of pairs
EQUAL = 0.02  # an interquartile range of densities below this is rounding


def findings(
    scores: pd.DataFrame,
    densities: pd.DataFrame,
    setting: str,
    margin: float = MARGIN,
    lives: pd.DataFrame | None = None,
) -> list[str]:
    """Says in sentences what the numbers say, and what did not happen.

    Args:
        scores: what ``analysis.scores`` returned.
        densities: what ``analysis.densities`` returned.
        setting: about which.
        margin: dB below dense that still counts as close to it.
        lives: what ``analysis.lives`` returned; without it, nothing is said of layers without an effective weight.
    """
    own = scores[(scores.setting == setting) & (scores.task == "mean")]
    ended, sizes = analysis.collapse(scores, densities), analysis.initial_size(densities)
    ended, sizes = ended[ended.setting == setting], sizes[sizes.setting == setting]
    lotteries = [method for method in reversed(LOTTERY) if method in set(own.method)]
    families = scores[(scores.setting == setting) & scores.task.isin(analysis.FAMILIES)]
    what = "the mean of the families" if families.task.nunique() > 1 else setting
    sentences = [_gain(own[own.method == "dense"], families[families.method == "dense"], margin, what)]
    for method in lotteries:
        sentences.append(_close(own[own.method == method], method, margin, what))
        if families.task.nunique() > 1:
            sentences.append(_by_family(families[families.method == method], method, margin))
    for method in lotteries:
        sentences.append(_emptied(ended[ended.method == method], method))
        if lives is not None:
            sentences.append(_ineffective(lives[(lives.setting == setting) & (lives.method == method)], method))
    sentences += [_identity(ended[ended.method == method], method) for method in lotteries]
    sentences += [_scale(sizes[sizes.method == method], method) for method in lotteries]
    sentences += [_end(scores[(scores.setting == setting) & (scores.method == method)], method) for method in lotteries]
    sentences += [_scatter(own[own.method == method], method, what) for method in lotteries]
    if len(lotteries) == 2:
        sentences.append(_above(own, what))
    return sentences


def _gain(dense: pd.DataFrame, families: pd.DataFrame, margin: float, what: str) -> str:
    """What the dense network gains over its input, in all and by family."""
    if dense.empty:
        return "There is no finished dense run."
    gains = dense.psnr - dense.input_psnr
    side = "above" if gains.mean() >= 0 else "below"
    text = f"On {what}, the dense network is {abs(gains.mean()):.2f} dB {side} its input"
    spread = f"mean of {len(gains)} seeds; {signed(gains.min())} to {signed(gains.max())} dB"
    alone = f"seed {dense.seed.iloc[0]}; one seed: no spread is known"
    text += f" ({alone if len(gains) == 1 else spread})"
    own = families.assign(gain=families.psnr - families.input_psnr).groupby("task", sort=False).gain
    if own.ngroups > 1:
        each = [f"{task} {', '.join(map(signed, seeds))} dB" for task, seeds in own]
        text += f"; by family{' and seed' if len(gains) > 1 else ''}: {'; '.join(each)}"
    if flat := [task for task, seeds in own if abs(seeds.mean()) <= margin]:
        text += f". On {' and '.join(flat)} it is within {margin:g} dB of its input: to match it there shows little"
    return f"{text}."


def _near(delta: pd.Series, margin: float) -> list[int]:
    """The rounds after the dense one that are within the margin of the dense network, or above it."""
    return [int(index) for index in delta.index if index > 0 and delta[index] >= -margin]


def _where(near: list[int], delta: pd.Series) -> str:
    """Rounds in words: none, every one, or which."""
    if not near:
        return "in none of its rounds"
    every = [int(index) for index in delta.index if index > 0]
    return f"in every round, {near[0]} to {near[-1]}" if near == every and len(near) > 1 else f"in {in_rounds(near)}"


def _close(own: pd.DataFrame, method: str, margin: float, what: str) -> str:
    """In which rounds a lottery is within the margin of its dense network."""
    delta = own.pivot(index="round", columns="seed", values="delta").dropna()
    if delta.empty:
        return f"{method}: there is no dense run to compare it with."
    mean, density = delta.mean(axis=1), own.groupby("round").density.mean()
    near = _near(mean, margin)
    text = f"{method}, on {what}, is within {margin:g} dB of its dense network, or above, {_where(near, mean)}" + (
        f" (density {density[near[-1]]:.1%} in the last of them)" if near else ""
    )
    if delta.shape[1] == 1:
        return f"{text}; seed {delta.columns[0]} alone."
    each = ", ".join(f"seed {seed} {_where(_near(delta[seed], margin), delta[seed])}" for seed in delta.columns)
    return f"{text}; mean of {delta.shape[1]} seeds ({each})."


def _by_family(families: pd.DataFrame, method: str, margin: float) -> str:
    """In which rounds a lottery is within the margin, family by family."""
    parts = []
    for task, own in families.groupby("task", sort=False):
        delta, density = own.groupby("round").delta.mean(), own.groupby("round").density.mean()
        near = _near(delta, margin)
        parts.append(f"{task} {_where(near, delta)}" + (f" (density {density[near[-1]]:.1%})" if near else ""))
    return (
        f"{method}, family by family, is within {margin:g} dB of its dense network, or above (in brackets the density "
        f"of the last such round): {'; '.join(parts)}."
    )


def _emptied(ended: pd.DataFrame, method: str) -> str:
    """Which layer emptied first."""
    seen = ended[ended.emptied_round.notna()]
    if seen.empty:
        rounds = counted(int(ended["last"].max()), "round")
        return f"{method}: no layer lost all its weights in its {rounds} ({_seeds(ended.seed)})."
    parts = [f"in round {row.emptied_round}, {row.emptied_layers} (seed {row.seed})" for row in seen.itertuples()]
    others = ended[ended.emptied_round.isna()]
    return f"{method}: the first layer emptied {'; '.join(parts)}" + (
        f"; none with {_seeds(others.seed)}." if len(others) else "."
    )


def _ineffective(lives: pd.DataFrame, method: str) -> str:
    """When a layer first had weights, or none, but not an effective one; and how many such layers there are at last."""
    begin = lives[(lives["round"] == 0) & (lives.effective == 0)].layer  # never run
    own = lives[~lives.layer.isin(set(begin))]
    last, parts = own["round"].max(), []
    for seed, run in own.groupby("seed"):
        without = run[run.effective == 0]
        end = without[without["round"] == last]
        count = f"in round {last} {len(end)} of {run.layer.nunique()}"
        if without.empty:
            parts.append(f"none with seed {seed}")
            continue
        first = without[without["round"] == without["round"].min()]
        names = ", ".join(first.layer[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
        parts.append(f"first {names}, in round {first['round'].iloc[0]}; {count} (seed {seed})")
    return f"{method}: layers without an effective weight, whatever they keep: {'; '.join(parts)}."


def _identity(ended: pd.DataFrame, method: str) -> str:
    """From which round on the network returns its input."""
    rule = f"every test image's PSNR within {IDENTITY:g} dB of the input's"
    seen = ended[ended.identity_round.notna()]
    if seen.empty:
        return f"{method}: in none of its rounds is the network the identity ({rule}; {_seeds(ended.seed)})."
    parts = []
    for row in seen.itertuples():
        lasting = pd.notna(row.identity_from)
        text = (
            f"from round {row.identity_from} on"
            if lasting
            else f"in round {row.identity_round}, though not in every later one,"
        )
        early = (
            f" (and in round {row.identity_round} before)" if lasting and row.identity_round < row.identity_from else ""
        )
        full = pd.isna(row.emptied_round) or row.identity_round < row.emptied_round
        why = ", before any layer was empty: its mask would let it restore" if full else ""
        parts.append(f"{text}{early} with seed {row.seed}{why}")
    others = ended[ended.identity_round.isna()]
    never = f"; never with {_seeds(others.seed)}" if len(others) else ""
    return f"{method}: the network is the identity ({rule}) {'; '.join(parts)}{never}."


def _end(own: pd.DataFrame, method: str) -> str:
    """How far above its input the last round is, family by family."""
    last = own[(own["round"] == own["round"].max()) & own.task.isin(analysis.FAMILIES)]
    gains = (last.psnr - last.input_psnr).groupby(last.task, sort=False).mean()
    parts = [f"{task} {signed(gain)} dB" for task, gain in gains.items()]
    return f"{method}: in its last round, {own['round'].max()}, it scores, against its input, {', '.join(parts)}."


def _scatter(own: pd.DataFrame, method: str, what: str) -> str:
    """How much the score moves from one round to the next: what a difference between two points has to exceed."""
    moving = own[~(own.change <= IDENTITY)]  # what returns its input does not move, and says nothing of scatter
    wide = moving.pivot(index="round", columns="seed", values="psnr").sort_index()
    steps = wide.diff().abs().stack()
    if steps.empty:
        return f"{method} has no two rounds in a row to tell its scatter from."
    return (
        f"{method}: from one round to the next the score of one seed on {what} moves by {steps.median():.2f} dB in the "
        f"median, {steps.max():.2f} dB at most; smaller differences between two points of one seed mean little."
    )


def _scale(sizes: pd.DataFrame, method: str) -> str:
    """Whether the size of the initial weights decides which layers empty."""
    last = sizes[sizes["round"] == sizes["round"].max()]
    values = last.rank_correlation.dropna()
    if values.empty or (last.spread < EQUAL).all():
        return (
            f"{method}: but for rounding, and the rate of the output layer, layers are equally dense: between layers, "
            "the size of their initial weights decides nothing."
        )
    shown = ", ".join(f"{row.rank_correlation:+.2f} with seed {row.seed}" for row in last.dropna().itertuples())
    return (
        f"{method}: over {last.layers.iloc[0]} layers in round {last['round'].iloc[0]}, the rank correlation of "
        f"density with the inputs of a layer's units is {shown} (near -1: layers initialised smaller keep less)."
    )


def _above(own: pd.DataFrame, what: str) -> str:
    """From which round on global stays above layer-wise."""
    wide = own[own.method.isin(LOTTERY)].pivot(index="round", columns=["method", "seed"], values="psnr")
    difference = (wide["MIR-L-G"] - wide["MIR-L-LW"]).dropna(axis=1, how="all").dropna().loc[1:]
    if difference.empty:
        return "MIR-L-G and MIR-L-LW have no round of one seed in common."
    mean = difference.mean(axis=1)
    since, above = analysis.stays_above(mean)
    last, seeds = int(mean.index.max()), difference.shape[1]
    who = f"seed {difference.columns[0]} alone" if seeds == 1 else f"mean of {seeds} seeds"
    count = f"it is above in {len(above)} of {len(mean)} rounds, {signed(mean.mean())} dB on average"
    if since is not None:
        part = mean.loc[since:]
        gap = f"by {part.min():.2f} to {part.max():.2f} dB" if len(part) > 1 else f"by {part.min():.2f} dB"
        who = f"on {what}, {gap} ({who})"
        return (
            f"From round {since} on, to the last common one, {last}, MIR-L-G is above MIR-L-LW {who}; in all, {count}."
        )
    some = f"it is above in {in_rounds(above)} only" if above else "it is above in no round"
    return (
        f"There is no round from which on MIR-L-G stays above MIR-L-LW on {what}: {some}; "
        f"in the last common one, {last}, the difference is {signed(mean[last])} dB ({who}); in all, {count}."
    )


def in_rounds(indices: Iterable[int]) -> str:
    """Returns rounds in words: ``round 3``, ``rounds 2 to 4 and 7``."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    texts = [f"{a}" if a == b else f"{a} to {b}" for a, b in spans]
    joined = " and ".join(([", ".join(texts[:-1])] if texts[1:] else []) + texts[-1:])
    return f"round{'' if len(spans) == 1 and spans[0][0] == spans[0][1] else 's'} {joined}"


def _seeds(seeds: Iterable[int]) -> str:
    numbers = sorted(set(seeds))
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: 1 seed, 2 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def of_masks(
    counts: pd.DataFrame,
    chains: pd.DataFrame,
    survivors: pd.DataFrame,
    unused: pd.DataFrame,
    setting: str,
    index: int,
    prompts: pd.DataFrame | None = None,
) -> list[str]:
    """Says what the tickets of one setting are made of.

    Args:
        counts: what ``analysis.denominators`` returned of ``analysis.lives``.
        chains: what ``similarity.chains`` returned.
        survivors: what ``trained.gather(found, "survivors")`` returned.
        unused: what ``analysis.unused_part`` returned, with ``method`` and ``seed``; empty if they are not prunable.
        setting: about which.
        index: the round that is looked at, beside the last one.
        prompts: what ``trained.gather(found, "prompt_weights")`` returned.

    Returns:
        Sentences; none about what is not there.
    """
    told = []
    counts = counts[counts.setting == setting]
    for method in (method for method in reversed(LOTTERY) if method in set(counts.method)):
        own = counts[counts.method == method]
        told += [
            _idle(own, method, there)
            for there in dict.fromkeys((index, own["round"].max()))
            if there in set(own["round"])
        ]
    told += _alike(chains[chains.a.str.startswith(f"{setting}, ") & chains.b.str.startswith(f"{setting}, ")], index)
    survivors = survivors[(survivors.setting == setting) & (survivors.kind == "all") & (survivors["round"] > 0)]
    for method in (method for method in reversed(LOTTERY) if method in set(survivors.method)):
        last = survivors[survivors.method == method]
        told.append(_survived(last[last["round"] == last["round"].max()], method))
    if prompts is not None:
        told += of_prompts(prompts[prompts.setting == setting], index)
    for method in (method for method in reversed(LOTTERY) if method in set(unused.get("method", ()))):
        own = unused[unused.method == method]
        last = own[own["round"] == own["round"].max()]
        told.append(
            f"{method}, round {last['round'].iloc[0]}: {last.share.mean():.1%} of what is kept lies in convolutions "
            f"that never run; they are {last.density.mean():.1%} full, the others {last.others.mean():.1%} "
            f"({_seeds(last.seed)})."
        )
    return told


def of_unused(table: pd.DataFrame) -> str:
    """Says how much of a ticket the convolutions that never run would be, by initial sizes alone.

    Args:
        table: what ``analysis.unused_at_start`` returned.
    """
    first, later = table.iloc[0], table[table["round"] > 0]
    shares = [
        f"{row.share:.2%} of the ticket of round {row.round} ({row.density:.1%} of them left)"
        for row in later.itertuples()
    ]
    return (
        f"Where they are prunable, the convolutions that never run are {first.unused:,.0f} of {first.kept:,.0f} "
        f"prunable weights, {first.share:.2%}; layer-wise they stay that share of every ticket. No gradient reaches "
        f"them, so globally their initial size decides: if nothing was trained at all, they would be "
        f"{' and '.join(shares)}."
    )


def _survived(last: pd.DataFrame, method: str) -> str:
    """Where what is kept in the last round stood at initialisation: first the effective weights, then the others."""
    words = {"effective": "the effective weights", "rest": "those that are not", "all": "all that are kept"}
    parts = [part for part in words if part in set(last.part)]
    parts = parts[:2] if "effective" in parts else parts
    texts = []
    if "effective" in parts and not last.kept[last.part == "effective"].any():
        texts, words = ["no weight is effective"], words | {"rest": "those that are kept"}
    for part in parts:
        own = last[(last.part == part) & (last.kept > 0)]
        if len(own):
            texts.append(
                f"{words[part]} ({own.kept.mean():,.0f} on average) were larger at initialisation than "
                f"{own['rank'].mean():.0%} of their tensor, and {own.same_sign.mean():.1%} of them have the sign they "
                "began with"
            )
    end = ", the idle ones included, which stay as they were drawn" if parts == ["all"] else ""
    return (
        f"{method}, round {last['round'].iloc[0]}: {'; '.join(texts)}{end} (chance: 50% and 50%; {_seeds(last.seed)})."
    )


def of_prompts(prompts: pd.DataFrame, index: int) -> list[str]:
    """Says whether a family of tasks has a prompt component of its own.

    Args:
        prompts: what ``trained.gather(found, "prompt_weights")`` returned, of one setting.
        index: of the round to look at, or else the nearest one that there is.

    Returns:
        A sentence a method; none if there is one family only.
    """
    family = {task: name for name, tasks in analysis.FAMILIES.items() for task in tasks}
    prompts, told = prompts.assign(family=prompts.task.map(family)), []
    if prompts.family.nunique() < 2:
        return []
    for method in (method for method in ("dense", *reversed(LOTTERY)) if method in set(prompts.method)):
        own = prompts[prompts.method == method]
        at = min(own["round"].unique(), key=lambda there: abs(there - index))
        own = own[own["round"] == at]
        weights = own.groupby(["seed", "prompt", "component", "family"]).weight.agg(["min", "mean", "max"])
        found = []
        for (seed, prompt), part in weights.groupby(["seed", "prompt"]):
            favourite = part["mean"].groupby("family").idxmax()
            for name, (*_, component, _) in favourite.items():
                rows = part.xs(component, level="component").droplevel(["seed", "prompt"])
                if rows["min"][name] > rows["max"].drop(name).max():
                    found.append(f"{name} has component {component} of {prompt} (seed {seed})")
        means = weights["mean"].groupby(["seed", "prompt", "component"])
        apart = (means.max() - means.min()).max()
        text = "; ".join(found) if found else "no family of tasks has one"
        told.append(
            f"{method}{f' round {at}' if at else ''}: a prompt component of its own (its largest, and larger on "
            f"each of its images than on any of the others'): {text}. The means of two families differ by at most "
            f"{apart:.2f} in a component's weight ({1 / own.component.nunique():.2g} each if all were alike; "
            f"{_seeds(own.seed)})."
        )
    return told


def _idle(own: pd.DataFrame, method: str, index: int) -> str:
    """How much of what is kept does something, and what."""
    rows = own[own["round"] == index]
    share = {name: rows[name] / rows.kept for name in ("effective", "sign_only", "constant")} | {"idle": rows.idle}
    texts = {
        name: f"{part.mean():.1%}" + (f" ({part.min():.1%} to {part.max():.1%})" if len(part) > 1 else "")
        for name, part in share.items()
    }
    return (
        f"{method}, round {index}: of the kept weights {texts['effective']} are effective: by the mask, they carry the "
        f"image to the output, and their size matters. {texts['sign_only']} set but a sign (alone in feeding a channel "
        f"of q or k), {texts['constant']} carry a constant, and {texts['idle']} are idle: without them the output is "
        "the same. "
        f"Density is {rows.of_prunable.mean():.1%} of the prunable weights, {rows.of_effective.mean():.1%} by those "
        f"that are effective; {rows.of_trainable.mean():.1%} of all parameters are left; "
        f"{(rows.dead / rows.units).mean():.1%} of the units are dead ({_seeds(rows.seed)})."
    )


def _alike(chains: pd.DataFrame, index: int) -> list[str]:
    """What masks that differ in one thing share, beside chance."""
    told = []
    rows = chains[chains["round"] == index]
    own = rows[rows.differ == "method"]
    if len(own):
        text = f"Both scopes, from the same initial values: in round {index} {_shared(own)}"
        if "initial" in own and own.initial.notna().all():
            less = int((own.iou < own.initial).sum())
            side = "less" if less == len(own) else "more" if not less else f"in {less} of {len(own)} pairs less"
            text += (
                f" Masks that know only the initial sizes, and keep the largest, as many in each layer, would have an "
                f"IoU of {own.initial.mean():.3f}: the scopes agree {side} than their initial values alone would make "
                "them."
            )
        told.append(text)
    own = rows[rows.differ == "seed"]
    for method in (method for method in reversed(LOTTERY) if own.a.str.contains(f", {method}, ").any()):
        part = own[own.a.str.contains(f", {method}, ")]
        told.append(f"{method}, two seeds (other initial values, other order): in round {index} {_shared(part)}")
    return told


def _shared(pairs: pd.DataFrame) -> str:
    """What pairs of masks share, beside chance, and how far that is from it."""
    least, most = (signed(value, 1) for value in (pairs.z.min(), pairs.z.max()))
    far = f"between {least} and {most}" if len(pairs) > 1 else least
    return (
        f"their masks have an IoU of {pairs.iou.mean():.3f}, by chance {pairs.chance.mean():.3f} (mean of "
        f"{counted(len(pairs), 'pair')}); the number of shared weights is {far} standard deviations from chance."
    )


def of_settings(core: dict[str, float], matrix: pd.DataFrame, method: str, index: int) -> list[str]:
    """Says whether the settings' tickets share a core.

    Args:
        core, matrix: what ``similarity.shared_core`` returned.
        method, index: whose tickets, of which round.

    Returns:
        Sentences; none if there is one setting only.
    """
    pairs = matrix[(matrix.a < matrix.b) & (matrix.a != INITIAL) & (matrix.b != INITIAL)]
    if pairs.empty:
        return []
    first = matrix[(matrix.a == INITIAL) & (matrix.b != INITIAL)].set_index("b").iou
    names = sorted({*pairs.a, *pairs.b})
    closer = sum(row.iou > max(first[row.a], first[row.b]) for row in pairs.itertuples())
    return [
        f"{method}, round {index}: the tickets of {', '.join(names)} have {core['core']:,.0f} weights in common, "
        f"{core['share']:.1%} of what one keeps; by chance it would be {core['chance']:.1%}.",
        f"Two of them have an IoU of {pairs.iou.min():.3f} to {pairs.iou.max():.3f}, by chance "
        f"{pairs.chance.min():.3f} to {pairs.chance.max():.3f}; with the mask that keeps what was largest at "
        f"initialisation, and has seen no image, it is {first.min():.3f} to {first.max():.3f}. In {closer} of "
        f"{counted(len(pairs), 'pair')} the two are closer to each other than either is to that mask.",
    ]


def of_starts(pairs: pd.DataFrame, method: str, index: int) -> list[str]:
    """Says whether the settings' tickets share more than where their weights stood at initialisation explains.

    Args:
        pairs: what ``similarity.beyond_starts`` returned.
        method, index: whose tickets, of which round.

    Returns:
        A sentence; none if there is one setting only.
    """
    if pairs.empty:
        return []
    more = int((pairs.z > FAR).sum())
    excess = pairs.both / pairs.expected - 1
    end = "No core beyond the initial sizes is seen"
    if more:
        end = (
            f"In {more} of {counted(len(pairs), 'pair')} there is a core beyond them, of training or of how the "
            "weights of one start act together"
        )
    return [
        f"{method}, round {index}: masks that depend on the initial sizes alone, each in its own way, would share "
        f"{pairs.expected.mean():,.0f} weights, mean of {counted(len(pairs), 'pair')}; the tickets share "
        f"{pairs.both.mean():,.0f}. The difference is {signed(100 * excess.min(), 1)} to "
        f"{signed(100 * excess.max(), 1)} %, {signed(pairs.z.min(), 1)} to {signed(pairs.z.max(), 1)} standard "
        f"deviations of chance. {end} (a pair counts from {FAR} on)."
    ]
