"""Scores of weights, and the step from scores to a mask with an exact count."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mirl_study.masks import Mask
from mirl_study.settings import SCOPES, choose


def magnitude(network: nn.Module, mask: Mask, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores each prunable weight by its absolute value (Han et al., 2015)."""
    return {name: network.get_parameter(name).detach().abs().cpu() for name in mask}


def random(network: nn.Module, mask: Mask, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores each prunable weight uniformly at random."""
    return {name: torch.rand(mask[name].shape, generator=generator) for name in mask}


def stream(seed: int) -> torch.Generator:
    """Returns the random numbers that criteria draw from for a seed.

    They are not those of ``manual_seed(seed)``: the initialisation has consumed these, and a random score that replays
    them would prune by initial value.
    """
    digest = hashlib.sha256(f"criterion/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


CRITERIA = {"magnitude": magnitude, "random": random}


def prune(
    mask: Mask,
    scores: Mapping[str, Tensor],
    rate: float,
    scope: str = "global",
    rates: Mapping[str, float] | None = None,
) -> Mask:
    """Removes the lowest scores among the weights that are still kept.

    From each pool of n survivors exactly round(rate n) leave, halves rounded up. Ties leave in the order of the
    flattened index.

    Args:
        mask: the present mask.
        scores: a score for each prunable weight, by parameter name; what is not kept is ignored.
        rate: fraction of the survivors to remove, in [0, 1].
        scope: ``global``: all tensors are one pool; ``layerwise``: each tensor is its own.
        rates: other rates for single tensors; layer-wise only.

    Returns:
        A new mask, nested in the old one.

    Raises:
        SettingsError: for an unknown scope.
        ValueError: for a rate outside [0, 1], scores of another shape, or a score that is not a number.
    """
    choose("scope", scope, SCOPES)
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
        survivors = torch.cat([scores[name][mask[name]] for name in pool])
        stays = _without_lowest(survivors, int(pool_rate * survivors.numel() + 0.5))
        for name, part in zip(pool, stays.split([int(mask[name].sum()) for name in pool]), strict=True):
            pruned[name] = torch.zeros_like(mask[name]).masked_scatter_(mask[name], part)
    return Mask(pruned)


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    """Returns a boolean (n,): False for exactly ``count`` of the lowest ``scores``, the first ones among equals."""
    if torch.isnan(scores).any():
        raise ValueError("a score is not a number: the network it came from has diverged")
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = float(np.partition(scores.numpy(), count - 1)[count - 1])
    stays = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    stays[ties[count - int((scores < threshold).sum()) :]] = True
    return stays
