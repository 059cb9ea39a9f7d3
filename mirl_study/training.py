"""The masked training loop and its schedule: Algorithm 1, lines 4 to 14."""

import math
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from mirl_study import stopping
from mirl_study.checkpoint import Checkpoints, Standing
from mirl_study.comparison.recipes import recipe_of
from mirl_study.data import Bank
from mirl_study.masks import Mask
from mirl_study.precision import forward_of
from mirl_study.settings import Settings
from mirl_study.team import Team

ALONE = Team()
HISTORY = ["step", "lr", "loss", "val_loss"]
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
    checkpoints: Checkpoints | None = None,
    team: Team = ALONE,
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
        checkpoints: to go on from, and to write. A request to stop (Ctrl-C, SIGTERM) waits for the end of its step, and
            for a checkpoint.
        team: who trains; see ``distributed.train``.

    Returns:
        A row for each look (every ``validate_every`` steps and at the end): ``step``, ``lr``, ``loss`` (mean L1 since
        the last look) and ``val_loss``.

    Raises:
        Diverged: at a look, naming the first step whose loss is not finite, and the tasks. The last checkpoint is from
            before that step.
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
    recipe = recipe_of(settings.network)
    betas = recipe.betas if recipe else (0.9, 0.999)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, betas=betas, weight_decay=settings.weight_decay, fused=True
    )
    network.train()
    with torch.no_grad():
        _multiply(weights, factors)

    def rate_at(step: int) -> float:
        if recipe:
            return lr * recipe.rate(step / steps)
        return learning_rate(step * ticks // steps, **schedule)

    at = Standing(first, torch.zeros((), device=device))
    watch, forward = Watch(settings.batch_size // team.size, device), forward_of(team.join(network), settings)
    if checkpoints:
        at = checkpoints.load(at, network, optimizer)
        if at.step > first and on_step:
            on_step(at.step - first, at.rows[-1][2] if at.rows else math.nan)
    with stopping.postponed() as asked:
        for step in range(at.step, stop):
            rate = rate_at(step)
            optimizer.param_groups[0]["lr"] = rate
            degraded, target = bank.batch(
                settings.batch_size, settings.patch_size, seed=settings.seed, order=order, step=step
            )
            degraded, target = team.share(degraded), team.share(target)
            optimizer.zero_grad()
            if recipe and hasattr(network, "loss"):
                loss = descend(network, degraded, target, step, steps)
                restored = loss.expand_as(target)
            else:
                restored = forward(degraded)
                loss = F.l1_loss(restored, target)
                loss.backward()
            with torch.no_grad():
                _multiply([weight.grad for weight in weights], factors)
                if settings.clip_norm:  # after masking: a norm that counts pruned weights would change the survivors'
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                optimizer.step()
                _multiply(weights, factors)
                loss = team.mean(loss.detach())
                at.loss += loss
                watch.see(step, loss, restored, target)
            at.step, at.since = step + 1, at.since + 1
            look = at.step % settings.validate_every == 0 or at.step == stop
            writes = checkpoints and team.rank == 0
            keep = writes and (at.step == stop or asked or checkpoints.due())
            if look:
                if (bad := watch.first()) is not None:
                    hits = zip(bank.tasks(settings.batch_size, bad), team.gather(watch.patches).tolist(), strict=True)
                    raise Diverged(
                        f"the loss is no finite number at step {bad + 1} of {steps}, for "
                        f"{', '.join(dict.fromkeys(task for task, hit in hits if hit))} "
                        f"(learning rate {rate_at(bad):.2e}): a lower lr may help"
                    )
                mean = float(at.loss) / at.since
                seen = validation_loss(network, validation, settings) if validation and not team.rank else math.nan
                at.rows.append((at.step, rate, mean, seen))
                at.loss, at.since = torch.zeros_like(at.loss), 0
            if keep and watch.first() is None:
                checkpoints.save(at, network, optimizer)
            if on_step:
                on_step(at.step - first, at.rows[-1][2] if at.rows else math.nan)
            ends = bool(asked)  # who asks from here on waits for the next step
            if writes and ends and not keep and watch.first() is None:  # asked for since the look at the checkpoint
                checkpoints.save(at, network, optimizer)
            if ends:
                asked.deliver()
    return pd.DataFrame(at.rows, columns=HISTORY)


def descend(network: nn.Module, degraded: torch.Tensor, target: torch.Tensor, step: int, steps: int) -> torch.Tensor:
    """Sets the gradients of a loss of the network's own (``loss``); one that has several is a game between its groups.

    Args:
        network: with ``loss``, and, where that returns a loss by group of parameters, with ``groups``: each group gets
            the gradient of its own loss.
        degraded, target: (B, 3, H, W) in [0, 1].
        step, steps: where in the schedule this is.

    Returns:
        The loss, or the sum of all, 0-d.
    """
    losses = network.loss(degraded, target, step, steps)
    if isinstance(losses, torch.Tensor):
        losses.backward()
        return losses
    for name, parameters in network.groups().items():
        gradients = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return torch.stack([loss.detach() for loss in losses.values()]).sum()


class Watch:
    """Keeps, on the device and without asking it, the first step whose loss is not finite, and for which patches."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.step = torch.full((), -1, device=device)
        self.patches = torch.zeros(size, dtype=torch.bool, device=device)

    def see(self, step: int, loss: torch.Tensor, restored: torch.Tensor, target: torch.Tensor) -> None:
        """Looks at the loss of a step and what it has restored, (B, 3, H, W)."""
        now = ~loss.isfinite() & (self.step < 0)
        self.step = torch.where(now, step, self.step)
        self.patches |= ~(restored - target).abs().sum((1, 2, 3)).isfinite() & now

    def first(self) -> int | None:
        """Returns that step, from 0, if there was one; this is what waits for the device."""
        step = int(self.step)
        return None if step < 0 else step


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
