"""Controls of a ticket: what else could explain its score. Each is one small function from a case to a trial.

Where something is not rewound to initialisation, controls that keep the ticket's start keep that too: values that carry
over (``rewind``), or the late rewind point, from which they train the rest of the schedule. ``reinit``, ``sign`` and
the networks that start anew train the whole of it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mirl_study import criteria, evaluation, store
from mirl_study.comparison import build_network
from mirl_study.distributed import train
from mirl_study.lottery import (
    Bench,
    Round,
    criterion_batches,
    dense_mask,
    dense_round,
    only_round,
    rewound,
    rounds,
    train_and_score,
)
from mirl_study.masks import Mask
from mirl_study.network import PromptIR, fingerprint
from mirl_study.progress import Progress
from mirl_study.session import Session
from mirl_study.settings import CONTROLS, LOTTERY, NetworkSettings, Settings, SettingsError, choose
from mirl_study.store import Run

SYNFLOW_CUTS = 100  # at initialisation SynFlow prunes little by little, as its authors do, or whole layers go


@dataclass(frozen=True)
class Case:
    """A ticket, and what its controls are made from.

    Attributes:
        ticket: a finished round of a lottery.
        dense: the trained dense network of its seed.
        bench: the images.
        generator: random numbers of this control and seed.
    """

    ticket: Round
    dense: Round
    bench: Bench
    generator: torch.Generator

    @property
    def settings(self) -> Settings:
        """Of the ticket's run."""
        return self.ticket.run.settings

    def start(self) -> PromptIR:
        """The network as the ticket's round started, before the mask."""
        return rewound(self.ticket.run, self.ticket.index)

    def fresh(self) -> PromptIR:
        """The same network with another initialisation."""
        seed = int(torch.randint(2**31, (1,), generator=self.generator))
        return build_network(self.settings.network, seed)

    def cut(self, scores: Mapping[str, torch.Tensor]) -> Mask:
        """Cuts the whole network at once by these scores: to the ticket's density, layer by layer in its scope."""
        whole = dense_mask(self.settings)
        if self.settings.scope == "global":
            return criteria.prune(whole, scores, 1 - self.ticket.density)
        return criteria.prune(whole, scores, 0.0, "layerwise", _rates(self.ticket.mask))

    def score(self, criterion: str, network: PromptIR, mask: Mask | None = None) -> criteria.Scores:
        """Scores the weights of a network by a criterion."""
        network, mask = network.to(self.bench.device), mask or dense_mask(self.settings)
        batches = criterion_batches(self.bench.train, self.settings)
        return criteria.CRITERIA[criterion](criteria.Evidence(network, mask, self.generator, None, batches))


@dataclass(frozen=True)
class Trial:
    """What is trained, and how.

    Attributes:
        network: as it starts.
        mask: what is kept.
        training: what ``training.train`` does otherwise than in a round: ``steps``, ``warmup``, ``lr``, ``first``.
    """

    network: PromptIR
    mask: Mask
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


def reinit(case: Case) -> Trial:
    """Is it the initialisation? The same mask on other initial values."""
    return Trial(case.fresh(), case.ticket.mask)


def sign(case: Case) -> Trial:
    """Is it the signs alone? Other initial values that keep each weight's sign (Zhou et al., 2019)."""
    network, original = case.fresh(), build_network(case.settings.network, case.settings.seed)
    with torch.no_grad():
        for name in case.ticket.mask:
            network.get_parameter(name).copysign_(original.get_parameter(name))
    return Trial(network, case.ticket.mask)


def shuffled(case: Case) -> Trial:
    """Is it which weights? The same number in each layer, the ticket's mask shuffled within it."""
    return Trial(case.start(), case.ticket.mask.shuffled(case.generator), _late(case))


def random_layers(case: Case) -> Trial:
    """How much is the luck of one draw? Drawn anew like `shuffled`: the same law, so they differ by chance alone."""
    scores = case.score("random", case.start())
    mask = criteria.prune(dense_mask(case.settings), scores, 0.0, "layerwise", _rates(case.ticket.mask))
    return Trial(case.start(), mask, _late(case))


def random_global(case: Case) -> Trial:
    """Is it how many in which layer? The same number of weights in all, drawn from the whole network."""
    mask = criteria.prune(
        dense_mask(case.settings), case.score("random", case.start()), 1 - case.ticket.density, "global"
    )
    return Trial(case.start(), mask, _late(case))


def fine_tune(case: Case) -> Trial:
    """Why go back? The dense network cut once to this density, trained on at the fine-tuning learning rate."""
    return Trial(case.dense.network(), _one_shot(case), {"warmup": 0, "lr": case.settings.fine_tune_lr})


def weight_rewind(case: Case) -> Trial:
    """Why in rounds? The dense network cut once to this density, its weights rewound."""
    return Trial(case.start(), _one_shot(case), _late(case))


def lr_rewind(case: Case) -> Trial:
    """Why rewind the weights? Cut once, only the learning rate goes back to its beginning (Renda et al., 2020)."""
    return Trial(case.dense.network(), _one_shot(case))


def magnitude_long(case: Case) -> Trial:
    """Is it the budget? Cut once by magnitude, then trained on for all the steps that the ticket has cost."""
    return Trial(case.dense.network(), _one_shot(case), {"steps": _cost(case) - case.settings.steps})


def random_long(case: Case) -> Trial:
    """Does it take a criterion at all? As `magnitude_long`, but cut at random."""
    mask = case.cut(case.score("random", case.dense.network()))
    return Trial(case.dense.network(), mask, {"steps": _cost(case) - case.settings.steps})


def dense_long(case: Case) -> Trial:
    """What would the steps be worth without pruning? The dense network, trained for all the steps of the ticket."""
    return Trial(
        build_network(case.settings.network, case.settings.seed), dense_mask(case.settings), {"steps": _cost(case)}
    )


def small_dense(case: Case) -> Trial:
    """Why prune at all? A dense network with as many parameters as the ticket has left."""
    settings = _settings("small_dense", case.ticket)
    return Trial(build_network(settings.network, settings.seed), dense_mask(settings))


def snip(case: Case) -> Trial:
    """Does it take training to find a mask? Cut at initialisation by |weight x gradient| (SNIP)."""
    return Trial(case.start(), case.cut(case.score("snip", case.start())), _late(case))


def grasp(case: Case) -> Trial:
    """Does it take training to find a mask? Cut at initialisation so that the gradient keeps flowing (GraSP)."""
    return Trial(case.start(), case.cut(case.score("grasp", case.start())), _late(case))


def synflow(case: Case) -> Trial:
    """Does it take data to find a mask? Cut at initialisation by the paths alone, bit by bit (SynFlow)."""
    mask, network = dense_mask(case.settings), case.start()
    rates, scope = _rates(case.ticket.mask), case.settings.scope
    for cut in range(1, SYNFLOW_CUTS + 1):
        mask.apply_(dict(network.named_parameters()))
        scores = case.score("synflow", network, mask)
        if scope == "global":
            left = case.ticket.density ** (cut / SYNFLOW_CUTS)
            mask = criteria.prune(mask, scores, max(0.0, 1 - left * mask.size / mask.kept))
        else:
            now = mask.densities()
            aims = {name: (1 - rate) ** (cut / SYNFLOW_CUTS) for name, rate in rates.items()}
            parts = {name: 1 - aim / now[name] if now[name] else 0.0 for name, aim in aims.items()}
            mask = criteria.prune(mask, scores, 0.0, "layerwise", {n: min(max(p, 0.0), 1.0) for n, p in parts.items()})
    return Trial(case.start(), mask, _late(case))


TRIALS: dict[str, Callable[[Case], Trial]] = {
    trial.__name__: trial
    for trial in (reinit, sign, shuffled, random_layers, random_global)
    + (fine_tune, weight_rewind, lr_rewind, magnitude_long, random_long)
    + (snip, grasp, synflow, dense_long, small_dense)
}


def question(name: str) -> str:
    """Returns what a control asks, in one line."""
    return (TRIALS[choose("control", name, TRIALS)].__doc__ or "").strip()


def find_ticket(
    settings: Settings, results: Path | str | None = None, device: torch.device | str | None = None, show: bool = True
) -> Round:
    """Returns the ticket of these settings: the round ``ticket_round`` of the lottery, played so far if need be.

    Args:
        settings: of the lottery.
        results, device, show: as in ``lottery.rounds``.

    Raises:
        SettingsError: if the lottery's folder holds other settings.
    """
    return next(played for played in rounds(settings, results, device, show) if played.index == settings.ticket())


def play(
    ticket: Round,
    name: str,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
) -> Round:
    """Trains one control of a ticket; one that is finished is read.

    Args:
        ticket: a finished round of a lottery, as ``lottery.rounds`` yields it.
        name: one of TRIALS.
        results: root of all results; the project's ``results/`` if not given.
        device: to train on; a GPU if there is one.
        show: whether to draw a progress bar.

    Returns:
        What was trained, as a round.

    Raises:
        SettingsError: for an unknown name, a ticket that is none, or a folder of another ticket or other settings.
        Diverged: if the loss stops being a number.
    """
    choose("control", name, TRIALS)
    run = _run(ticket, name, results)
    run.check_writable([1])
    bench = Bench.load(ticket.run.settings, device)

    def play_it(session: Session) -> None:
        dense = dense_round(ticket.run.settings, results, device, show)
        case = Case(ticket, dense, bench, criteria.stream(run.settings.seed, name))
        trial = TRIALS[name](case)
        steps = trial.training.get("steps", run.settings.steps) - trial.training.get("first", 0)
        progress = Progress(run, 1, steps, show=show)
        run.finish(1, *train_and_score(session, 1, trial.mask, trial.network, bench, progress, **trial.training))
        progress.close()

    return only_round(run, 1, bench, play_it)


def instability(
    ticket: Round,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
    dense: bool = False,
    points: int = 11,
) -> pd.DataFrame:
    """Trains two copies from where the ticket started, on two data orders, and walks the straight line between them.

    If the score falls on the way, the start does not yet decide which valley training ends in (Frankle et al., *Linear
    Mode Connectivity and the Lottery Ticket Hypothesis*, ICML 2020).

    Args:
        ticket: a finished round of a lottery.
        results, device, show: as in ``play``.
        dense: whether to take the dense network from the same start instead.
        points: on the line, both ends included.

    Returns:
        A row a point and task: ``alpha`` (0 and 1 are the two copies), ``task``, ``psnr`` (dB).

    Raises:
        SettingsError: as in ``play``, or for fewer than 3 points.
    """
    if points < 3:
        raise SettingsError(f"points={points} is not allowed: at least 3, both ends included")
    run = _run(ticket, "instability_dense" if dense else "instability", results, points=points)
    path = run.folder / "interpolation.csv"
    bench = Bench.load(ticket.run.settings, device)
    run.claim(bench.fingerprint, bench.device)
    if not path.is_file():
        session = Session(run, bench.device)
        with session.alone():
            if not path.is_file():  # by another process, while this one waited
                mask = dense_mask(run.settings) if dense else ticket.mask
                store.write_csv(path, _between(ticket, mask, session, bench, points, show))
    if not (run.folder / "summary.csv").is_file():
        frame = pd.read_csv(path)
        store.write_csv(run.folder / "summary.csv", frame.groupby("alpha", as_index=False).psnr.mean())
    return pd.read_csv(path)


def _between(ticket: Round, mask: Mask, session: Session, bench: Bench, points: int, show: bool) -> pd.DataFrame:
    """Trains the two copies, and scores points on the line between them."""
    run, settings = session.run, session.run.settings
    first = settings.rewind_step
    progress = Progress(run, 2, 2 * (settings.steps - first), show=show)
    ends, checkpoints = [], []
    for order in (1, 2):  # 0 is the order that everything else was trained in
        network = rewound(ticket.run, ticket.index)
        what = {"start": fingerprint(network), "mask": mask.fingerprint, "order": order}
        checkpoints.append(session.checkpoints(run.round_folder(order), **what))
        progress.start(order, mask.density(), settings.steps - first)
        how = {"first": first, "order": order, "on_step": progress.step, "checkpoints": checkpoints[-1]}
        train(network.to(bench.device), mask, bench.train, settings, **how)
        ends.append([parameter.detach().clone() for parameter in network.parameters()])
    progress.close()
    rows = []
    for alpha in torch.linspace(0, 1, points).tolist():
        with torch.no_grad():
            for parameter, one, other in zip(network.parameters(), *ends, strict=True):
                parameter.copy_(torch.lerp(one, other, alpha))
        scores = evaluation.evaluate(network, bench.test).groupby("task", sort=False).psnr.mean()
        rows += [(round(alpha, 6), task, psnr) for task, psnr in scores.items()]
    for kept in checkpoints:
        kept.clear()
    return pd.DataFrame(rows, columns=["alpha", "task", "psnr"])


def norms(
    settings: Settings, results: Path | str | None = None, device: torch.device | str | None = None, show: bool = True
) -> Iterator[Round]:
    """Were the norms to blame? The layer-wise lottery, with LayerNorm gains prunable if they are not, and the reverse.

    Args:
        settings: of the study.
        results, device, show: as in ``lottery.rounds``.

    Returns:
        Its rounds.
    """
    other = settings.replace(scope="layerwise", prune_norms=not settings.prune_norms)
    return rounds(other, results, device, show, control=settings.control("norms"))


def smaller(network: NetworkSettings, parameters: int) -> NetworkSettings:
    """Returns the shape of a narrower network with about so many parameters.

    The width is the largest that does not exceed them with the same feed-forward expansion, or else the narrowest there
    is, 4; then the expansion is set to come as near as it can. Prompts are part of the floor below which it cannot go.

    Args:
        network: the shape to start from.
        parameters: to aim at.
    """

    def size(shape: NetworkSettings) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in PromptIR(shape).parameters())

    widths = range(network.dim, 3, -4)
    shapes = (dataclasses.replace(network, dim=width, unused=False) for width in widths)
    shape = next((shape for shape in shapes if size(shape) <= parameters), None)
    shape = shape or dataclasses.replace(network, dim=4, unused=False)
    low, high = 1 / shape.dim, 4 * network.expansion
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if size(dataclasses.replace(shape, expansion=middle)) <= parameters else (low, middle)
        )
    ends = [dataclasses.replace(shape, expansion=round(value, 4)) for value in (max(low, 1 / shape.dim + 1e-4), high)]
    return min(ends, key=lambda end: abs(size(end) - parameters))


def _run(ticket: Round, name: str, results: Path | str | None, **more: Any) -> Run:
    """The folder of a control, which belongs to this very ticket."""
    method = ticket.run.method
    if method not in LOTTERY or ticket.index < 1:
        raise SettingsError(f"round={ticket.index} of {method} is no ticket: a round from 1 of a lottery is wanted")
    about = {"control": name, "ticket_round": ticket.index, "ticket_mask": ticket.mask.fingerprint, **more}
    label = ticket.run.settings.replace(ticket_round=ticket.index).control(name)
    return Run(_settings(name, ticket), method, results, label, about)


def _settings(name: str, ticket: Round) -> Settings:
    """The settings of a control: the ticket's, but for the size of the small network."""
    settings = ticket.run.settings
    if name != "small_dense":
        return settings
    if not isinstance(settings.network, NetworkSettings):
        raise SettingsError(
            f"control='small_dense' is not there for network={settings.network.label!r}: a PromptIR is wanted"
        )
    total = sum(parameter.numel() for parameter in build_network(settings.network).parameters())
    return settings.replace(network=smaller(settings.network, total - ticket.mask.size + ticket.mask.kept))


def _one_shot(case: Case) -> Mask:
    return case.cut(case.score("magnitude", case.dense.network()))


def _late(case: Case) -> dict[str, int]:
    """A network that starts at a late rewind point trains the rest of the schedule."""
    return {"first": case.settings.rewind_step}


def _cost(case: Case) -> int:
    """Optimiser steps that the ticket has taken, its dense round and all rounds before it included."""
    settings = case.settings
    return settings.steps + case.ticket.index * (settings.steps - settings.rewind_step)


def _rates(mask: Mask) -> dict[str, float]:
    """What share of each tensor has to leave for a mask of these densities."""
    return {name: 1 - density for name, density in mask.densities().items()}


def chosen(names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Checks which controls of which seeds are asked for.

    Args:
        names: of controls and probes, as in ``settings.CONTROLS``; none means all.
        seeds: whole numbers.

    Returns:
        The names, in the order of ``settings.CONTROLS``.

    Raises:
        SettingsError: for an unknown name, no seed, or the same seed twice.
    """
    known = [name for group in CONTROLS.values() for name in group]
    if not isinstance(names, list | tuple):
        raise SettingsError(f"controls={names!r} is not allowed: a list of names, for example [{known[0]!r}]")
    for name in names:
        choose("controls", name, known)
    whole = isinstance(seeds, list | tuple) and all(type(seed) is int for seed in seeds)
    if not (whole and seeds and len(set(seeds)) == len(seeds)):
        raise SettingsError(f"seeds={seeds!r} is not allowed: a list of different whole numbers, at least one")
    return [name for name in known if not names or name in names]
