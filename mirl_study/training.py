"""The masked training loop and its schedule: Algorithm 1, lines 4 to 14."""

import math
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from mirl_study.data import Bank
from mirl_study.masks import Mask
from mirl_study.settings import Settings

VALIDATION_BATCHES = 3  # so that, with balanced batches of 8, each task is seen


class Diverged(RuntimeError):
    """The loss is no longer a number."""


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, start: float, floor: float) -> float:
    """Linear warm-up, then a cosine (Algorithm 1, line 5; t may count steps or epochs).

    Args:
        step: 0 to ``steps`` - 1.
        steps: of the whole schedule.
        warmup: steps that rise from ``start`` to ``peak``; the last of them has the peak.
        peak, start, floor: learning rates.
    """
    if step < warmup:
        return start + (peak - start) * (step + 1 if warmup == 1 else step) / max(warmup - 1, 1)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(
    network: nn.Module,
    mask: Mask,
    bank: Bank,
    settings: Settings,
    *,
    validation: Bank | None = None,
    steps: int | None = None,
    warmup: int | None = None,
    lr: float | None = None,
    first: int = 0,
    stop: int | None = None,
    order: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> pd.DataFrame:
    """Trains the kept weights in place; those that are not kept are and stay exactly zero.

    Args:
        network: on the bank's device; its weights are masked before the first step.
        mask: what is kept.
        bank: training images.
        settings: of the run.
        validation: images for the validation loss, or None.
        steps, warmup, lr: of this training's schedule, if not those of the settings.
        first, stop: the part of the schedule to train, in steps from 0; the whole if not given.
        order: which data order of the seed; the same for everything that is to be compared.
        on_step: called with the steps done and the last loss known, for progress.

    Returns:
        A row for each look (every ``validate_every`` steps and at the end): ``step``, ``lr``, ``loss`` (mean L1 since
        the last look) and ``val_loss``.

    Raises:
        Diverged: naming the step, if the loss is not finite at a look.
    """
    steps, warmup, lr = steps or settings.steps, settings.warmup_steps if warmup is None else warmup, lr or settings.lr
    stop = stop or steps
    ticks = steps if settings.schedule == "step" else min(settings.epochs, steps)  # of the learning rate
    schedule = {"steps": ticks, "warmup": round(warmup * ticks / steps), "peak": lr}
    schedule |= {"start": min(settings.lr_start, lr), "floor": min(settings.lr_min, lr)}
    device = bank.pixels.device
    kept = {name: keep for name, keep in mask.to(device).items() if not keep.all()}
    weights = [network.get_parameter(name) for name in kept]
    factors = [keep.to(torch.float32) for keep in kept.values()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=settings.weight_decay, fused=True)
    network.train()
    with torch.no_grad():
        _multiply(weights, factors)

    rows, total, since = [], torch.zeros((), device=device), 0
    for step in range(first, stop):
        rate = learning_rate(step * ticks // steps, **schedule)
        optimizer.param_groups[0]["lr"] = rate
        degraded, target = bank.batch(
            settings.batch_size, settings.patch_size, seed=settings.seed, order=order, step=step
        )
        loss = F.l1_loss(network(degraded), target)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            _multiply([weight.grad for weight in weights], factors)
            if settings.clip_norm:  # after masking: a norm that counts pruned weights would change the survivors' steps
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimizer.step()
            _multiply(weights, factors)
            total += loss
        since += 1
        if (step + 1) % settings.validate_every == 0 or step + 1 == stop:
            mean = float(total) / since
            if not math.isfinite(mean):
                raise Diverged(
                    f"the loss is {mean} at step {step + 1} of {steps} (learning rate {rate:.2e}): a lower lr may help"
                )
            rows.append(
                (step + 1, rate, mean, validation_loss(network, validation, settings) if validation else math.nan)
            )
            total, since = torch.zeros_like(total), 0
        if on_step:
            on_step(step + 1 - first, rows[-1][2] if rows else math.nan)
    return pd.DataFrame(rows, columns=["step", "lr", "loss", "val_loss"])


@torch.no_grad()
def validation_loss(network: nn.Module, bank: Bank, settings: Settings) -> float:
    """Returns the mean L1 on a fixed set of validation patches, the same for all seeds and methods."""
    network.eval()
    size, patch = settings.batch_size, settings.patch_size
    batches = [bank.batch(size, patch, seed=0, order=0, step=step) for step in range(VALIDATION_BATCHES)]
    losses = [F.l1_loss(network(degraded), target) for degraded, target in batches]
    network.train()
    return float(torch.stack(losses).mean())


def _multiply(tensors: list[torch.Tensor | None], factors: list[torch.Tensor]) -> None:
    """Multiplies in place, all in one call; the missing gradient of an unused layer is passed over."""
    pairs = [(tensor, factor) for tensor, factor in zip(tensors, factors, strict=True) if tensor is not None]
    if pairs:
        torch._foreach_mul_([tensor for tensor, _ in pairs], [factor for _, factor in pairs])
