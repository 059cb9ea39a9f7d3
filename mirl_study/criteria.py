"""Scores of weights, and the step from scores to a mask with an exact count."""

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study import settings
from mirl_study.masks import Mask
from mirl_study.network import Attention, FeedForward, Prompt
from mirl_study.settings import SCOPES, choose

Scores = dict[str, Tensor]
SYNFLOW_IMAGE = 32  # pixels; the flow does not depend on what is in the image, only on the paths through the network
TINY = 1e-100  # keeps the derivative of a logarithm finite where nothing flows


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        network: as the round left it, or at initialisation.
        mask: under which it was trained; everything outside it is zero.
        generator: random numbers of this criterion, see ``stream``.
        start: values by name that the round started from.
        batches: (degraded, target) patches on the network's device, for criteria that look at data.
    """

    network: nn.Module
    mask: Mask
    generator: torch.Generator = field(default_factory=torch.Generator)
    start: Mapping[str, Tensor] | None = None
    batches: Sequence[tuple[Tensor, Tensor]] = ()

    def weights(self) -> Scores:
        """The prunable weights by name."""
        weights = dict(self.network.named_parameters())
        return {name: weights[name] for name in self.mask}


def magnitude(evidence: Evidence) -> Scores:
    """Scores by absolute value (Han et al., 2015)."""
    return {name: weight.detach().abs() for name, weight in evidence.weights().items()}


def random(evidence: Evidence) -> Scores:
    """Scores uniformly at random."""
    return {name: torch.rand(keep.shape, generator=evidence.generator) for name, keep in evidence.mask.items()}


def movement(evidence: Evidence) -> Scores:
    """Scores by how far a weight moved away from zero (Sanh et al., 2020).

    There, minus weight times gradient is added up over the steps. With the step itself in place of the gradient the
    sum is half of w_end^2 - w_start^2, which needs no record of the steps.
    """
    if evidence.start is None:
        raise ValueError("movement needs the values that the round started from")
    return {
        name: weight.detach().cpu() ** 2 - evidence.start[name].detach().cpu() ** 2
        for name, weight in evidence.weights().items()
    }


def snip(evidence: Evidence) -> Scores:
    """Scores by |weight x gradient|: what the loss would change if the weight left (Lee et al., 2019)."""
    gradients = _gradients(evidence)
    return {name: (weight * gradients[name]).detach().abs() for name, weight in evidence.weights().items()}


def grasp(evidence: Evidence) -> Scores:
    """Scores by weight x (Hessian x gradient): high where removal would weaken the gradient (Wang et al., 2020)."""
    gradients = {name: gradient.detach() for name, gradient in _gradients(evidence).items()}
    total = dict.fromkeys(gradients, 0.0)
    names, weights = list(gradients), [evidence.network.get_parameter(name) for name in gradients]
    for loss in _losses(evidence):
        own = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        flow = sum((a * gradients[name]).sum() for name, a in zip(names, own, strict=True))
        for name, part in zip(names, torch.autograd.grad(flow, weights, materialize_grads=True), strict=True):
            total[name] = total[name] + part / len(evidence.batches)
    return {name: (weight * total[name]).detach() for name, weight in evidence.weights().items()}


def synflow(evidence: Evidence) -> Scores:
    """Scores by the synaptic flow through a weight: no data, only paths (Tanaka et al., 2020).

    The flow is the sum of the output for an image of ones, with all weights positive and no biases. So that no flow is
    lost between layers, each part of the network must double when one of its layers doubles; ``_homogeneous`` says
    what stands in for the parts that do not. Computed in float64.
    """
    network = copy.deepcopy(evidence.network).double()
    hooks = [
        module.register_forward_hook(_homogeneous)
        for module in network.modules()
        if isinstance(module, FeedForward | Attention | Prompt)
    ]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    device = next(network.parameters()).device
    flow = network(torch.ones(1, 3, SYNFLOW_IMAGE, SYNFLOW_IMAGE, dtype=torch.float64, device=device)).sum()
    weights = [network.get_parameter(name) for name in evidence.mask]
    gradients = torch.autograd.grad(flow, weights, materialize_grads=True)
    for hook in hooks:
        hook.remove()
    return {
        name: (weight * gradient).detach()
        for name, weight, gradient in zip(evidence.mask, weights, gradients, strict=True)
    }


def _homogeneous(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """What a part of the network gives in place of its output while synaptic flow is measured.

    LayerNorm keeps its gain alone; products (the gate; query, key and value) become geometric means, which still are
    zero as soon as one factor is; prompts are mixed without a softmax.
    """
    x, *norm = inputs
    if isinstance(module, Prompt):
        mix = F.linear(x.mean(dim=(1, 2)), module.linear_layer.weight)
        prompt = torch.einsum("bn,nchw->bchw", mix, module.prompt_param[0])
        return module.conv3x3(F.interpolate(prompt, x.shape[1:3], mode="bilinear").permute(0, 2, 3, 1))
    scaled = x * norm[0].body.weight
    if isinstance(module, Attention):
        factors = module.qkv_dwconv(module.qkv(scaled)).chunk(3, dim=-1)
    else:
        factors = module.dwconv(module.project_in(scaled)).chunk(2, dim=-1)
    product = torch.stack([factor.clamp_min(TINY) for factor in factors]).log().mean(0).exp()
    return x + module.project_out(product)


def _losses(evidence: Evidence) -> Iterator[Tensor]:
    if not evidence.batches:
        raise ValueError("this criterion looks at data: give it batches")
    for degraded, target in evidence.batches:
        yield F.l1_loss(evidence.network(degraded), target)


def _gradients(evidence: Evidence) -> Scores:
    """The mean gradient of the prunable weights over the batches; zero where none reaches them."""
    weights = list(evidence.weights().values())
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in _losses(evidence):
        torch._foreach_add_(total, torch.autograd.grad(loss, weights, materialize_grads=True))
    torch._foreach_div_(total, len(evidence.batches))
    return dict(zip(evidence.mask, total, strict=True))


def stream(seed: int, use: str = "criterion") -> torch.Generator:
    """Returns random numbers for one use and seed.

    They are not those of ``manual_seed(seed)``: the initialisation has consumed these, and a random score that replays
    them would prune by initial value.

    Args:
        seed: of the run.
        use: what for; another use has other numbers.
    """
    digest = hashlib.sha256(f"{use}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


Criterion = Callable[[Evidence], Scores]
CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "movement": movement,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}


@contextmanager
def trial(name: str, criterion: Criterion) -> Iterator[None]:
    """Lets settings name one more criterion while the block runs; runs that are kept should not be made with it.

    Args:
        name: for the settings.
        criterion: from evidence to scores.

    Raises:
        SettingsError: if there is a criterion of this name.
    """
    if name in CRITERIA:
        raise settings.SettingsError(f"criterion={name!r} is not allowed: the name of another criterion is taken")
    known = settings.CRITERIA
    CRITERIA[name], settings.CRITERIA = criterion, (*known, name)
    try:
        yield
    finally:
        del CRITERIA[name]
        settings.CRITERIA = known


def prune(
    mask: Mask,
    scores: Mapping[str, Tensor],
    rate: float,
    scope: str = "global",
    rates: Mapping[str, float] | None = None,
    count: str = "exact",
) -> Mask:
    """Removes the lowest scores among the weights that are still kept.

    Args:
        mask: the present mask.
        scores: a score for each prunable weight, by parameter name; what is not kept is ignored.
        rate: fraction of the survivors to remove, in [0, 1].
        scope: ``global``: all tensors are one pool; ``layerwise``: each tensor is its own.
        rates: other rates for single tensors; layer-wise only.
        count: ``exact``: from each pool of n survivors exactly round(rate n) leave, halves rounded up, ties in the
            order of the flattened index. ``percentile``: those strictly below the rate's percentile leave, linearly
            interpolated as numpy does by default; about one more of each pool than exact, and the count is off by
            ties.

    Returns:
        A new mask, nested in the old one.

    Raises:
        SettingsError: for an unknown scope or count.
        ValueError: for a rate outside [0, 1], scores of another shape, or a score that is not a number.
    """
    choose("scope", scope, SCOPES)
    choose("count", count, ("exact", "percentile"))
    pools = [list(mask)] if scope == "global" else [[name] for name in mask]
    pruned = {}
    for pool in pools:
        pool_rate = rate if scope == "global" else (rates or {}).get(pool[0], rate)
        if not 0 <= pool_rate <= 1:
            where = "" if scope == "global" else f" of {pool[0]}"
            raise ValueError(f"rate={pool_rate!r}{where} is not between 0 and 1")
        for name in pool:
            if scores[name].shape != mask[name].shape:
                raise ValueError(
                    f"scores of {name} have shape {tuple(scores[name].shape)}, {tuple(mask[name].shape)} is wanted"
                )
        values = [scores[name].detach().cpu().numpy() for name in pool]
        kept = [mask[name].cpu().numpy() for name in pool]
        stays = _without_lowest(values, kept, pool_rate, count == "exact")
        pruned |= {name: torch.from_numpy(part) for name, part in zip(pool, stays, strict=True)}
    return Mask(pruned)


Arrays = list[np.ndarray]


def _without_lowest(values: Arrays, kept: Arrays, rate: float, exact: bool) -> Arrays:
    """Returns who stays.

    A sample says between which two values the threshold must lie; only what is between them is put in order. Should the
    sample have been misleading, everything is.
    """
    size = sum(map(np.count_nonzero, kept))
    # A percentile between two neighbours in order separates them; so what lies below it is what lies below the upper
    # one. The rounding: 0.07 * 100 is a little more than 7.
    place = int(rate * size + 0.5) - 1 if exact else int(np.ceil(round(rate * (size - 1), 6)))
    if size == 0 or place < 0:
        return [keep.copy() for keep in kept]
    stays = [np.empty(keep.shape, bool) for keep in kept]
    pieces = list(_pieces(values, kept, stays))
    near, parts, above = _split(pieces, *_bracket(values, kept, place / size))
    below = size - above - sum(map(len, near))
    if not below <= place < size - above:
        (near, parts, _), below = _split(pieces, -np.inf, np.inf), 0
    between = np.concatenate(parts)
    if np.isnan(between).any():
        raise ValueError("a score is not a number: the network it came from has diverged")
    threshold = np.partition(between, place - below)[place - below]
    stay = between >= threshold
    if exact:  # of those that equal the threshold, the first ones leave
        ties = np.flatnonzero(between == threshold)
        stay[ties[: place + 1 - below - np.count_nonzero(~stay)]] = False
    ends = np.cumsum([len(places) for places in near])[:-1]
    for (*_, stays_here), places, decided in zip(pieces, near, np.split(stay, ends), strict=True):
        stays_here[places] = decided
    return stays


def _bracket(values: Arrays, kept: Arrays, quantile: float) -> tuple[float, float]:
    """Returns two values between which the quantile of what is kept most likely lies.

    From the quantile of a sample it is six of its standard errors to each.
    """
    sample = np.concatenate([value[keep] for value, keep in zip(_thin(values), _thin(kept), strict=True)])
    if not len(sample):
        return -np.inf, np.inf
    middle, room = quantile * len(sample), 6 * (len(sample) * quantile * (1 - quantile)) ** 0.5 + 1
    first, last = max(int(middle - room), 0), min(int(middle + room), len(sample) - 1)
    sample.partition((first, last))
    low = sample[first] if middle > room else -np.inf
    high = sample[last] if middle + room < len(sample) else np.inf
    return low, high


def _split(pieces: Sequence[Arrays], low: float, high: float) -> tuple[Arrays, Arrays, int]:
    """Parts what is kept at two values; what is not a number is neither below nor above.

    Args:
        pieces: (values, kept, stays); ``stays`` is set where a kept value is higher than ``high``.

    Returns:
        Of each piece the places in between and the values there, and how many kept values are higher in all.
    """

    def split(share: Sequence[Arrays]) -> list[tuple[np.ndarray, np.ndarray, int]]:
        found = []
        for value, keep, stays in share:
            between = value < low
            np.greater(value, high, out=stays)
            np.equal(between, stays, out=between)
            between &= keep
            stays &= keep
            places = np.flatnonzero(between)
            found.append((places, value[places], np.count_nonzero(stays)))
        return found

    size = -(-len(pieces) // torch.get_num_threads())
    with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter
        shares = pool.map(split, (pieces[start : start + size] for start in range(0, len(pieces), size)))
        near, parts, above = zip(*itertools.chain.from_iterable(shares), strict=True)
    return list(near), list(parts), sum(above)


def _pieces(*pools: Arrays, size: int = 2**18) -> Iterator[Arrays]:
    """The same stretch of each pool's arrays, flattened: it comes from memory once and is in the cache from then on."""
    for arrays in zip(*pools, strict=True):
        flat = [array.reshape(-1) for array in arrays]
        for start in range(0, flat[0].size, size):
            yield [array[start : start + size] for array in flat]


def _thin(arrays: Arrays, step: int = 127) -> Arrays:
    """Every so many values of each array, from another place in each; arrays that are small in all, whole."""
    if sum(array.size for array in arrays) < 2**20:
        return [array.ravel() for array in arrays]
    return [array.ravel()[place % step :: step] for place, array in enumerate(arrays)]
