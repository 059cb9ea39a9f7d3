"""Algorithm 1 as a generator of rounds, and the one-shot baselines."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from mirl_study import criteria, evaluation, store
from mirl_study.comparison import build_network
from mirl_study.data import Bank, load_bank
from mirl_study.distributed import check, train
from mirl_study.machine import keep_memory
from mirl_study.masks import Mask, dense_mask
from mirl_study.network import describe, fingerprint, tensors
from mirl_study.progress import Progress
from mirl_study.session import Session
from mirl_study.settings import ONE_SHOT, Settings, choose
from mirl_study.store import Run
from mirl_study.tickets import Ticket

REWIND_POINT = "rewind.safetensors"
CARRIED = "round{:02d}/carried.safetensors"
NOT_REWOUND = (
    "prompt",
    "temperature",
)  # kinds whose names hold neither `weight` nor `bias`: the released code skips them
LOOK_AT_DATA = ("snip", "grasp")
CRITERION_BATCHES = 4


@dataclass(frozen=True)
class Round:
    """One finished round: what was trained under which mask, and how well it restores.

    Attributes:
        run: whose round it is.
        index: 0 for the dense network.
        mask: what was kept while it was trained.
        history: a row a look at the training (see ``training.train``).
        metrics: a row a test image (see ``evaluation.evaluate``).
    """

    run: Run
    index: int
    mask: Mask
    history: pd.DataFrame
    metrics: pd.DataFrame

    @property
    def density(self) -> float:
        """Kept over prunable weights."""
        return self.mask.density()

    @property
    def scores(self) -> pd.DataFrame:
        """Means over images, by task: ``psnr`` (dB), ``ssim``, ``input_psnr``, ``input_ssim``."""
        return self.metrics.groupby("task", sort=False)[["psnr", "ssim", "input_psnr", "input_ssim"]].mean()

    def network(self, trained: bool = True) -> nn.Module:
        """Returns the sparse network, trained, or as its round started.

        Raises:
            FileNotFoundError: if the trained weights of this round, or what it started from, were not kept.
        """
        if trained:
            network = build_network(self.run.settings.network, self.run.settings.seed)
            self.run.load_weights(self.index, network)
        else:
            network = rewound(self.run, self.index)
        self.mask.apply_(dict(network.named_parameters()))
        return network

    @property
    def ticket(self) -> Ticket:
        """The round as a ticket, which stands alone: with what it started from, and its weights where they were kept.

        Raises:
            TicketError: naming the file, if the run's records are damaged or of another initialisation.
        """
        try:
            start = rewound(self.run, self.index)
        except (
            FileNotFoundError
        ):  # a copy of the records without tensors: the ticket then knows its start by hash alone
            start = None
        return Ticket.of(self.run, self.index, self.mask, self.scores, start)


def default_device() -> torch.device:
    """Returns the first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Bench:
    """What every round of a chain shares: the images of the three splits, and the device they are on."""

    train: Bank
    validation: Bank
    test: Bank

    @classmethod
    def load(cls, settings: Settings, device: torch.device | str | None) -> "Bench":
        """Decodes the three splits onto a device; a GPU if there is one and none is named."""
        keep_memory()
        place = torch.device(device) if device else default_device()
        check(settings, place)
        return cls(*(load_bank(settings, split, store.project_root(), place) for split in ("train", "val", "test")))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the images of all three splits."""
        banks = (self.train, self.validation, self.test)
        return hashlib.sha256("".join(bank.fingerprint for bank in banks).encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the images are and the training happens."""
        return self.train.pixels.device


def dense_round(
    settings: Settings, results: Path | str | None = None, device: torch.device | str | None = None, show: bool = True
) -> Round:
    """Returns round 0: the dense network, trained. All methods of one seed share it; it is trained once.

    Args:
        settings: of the run.
        results: root of all results; the project's ``results/`` if not given.
        device: to train on; a GPU if there is one.
        show: whether to draw a progress bar.

    Raises:
        SettingsError: if the folder holds a run with other settings.
        Diverged: if the loss stops being a number.
    """
    Run(settings, "dense", results).check_writable([0])
    return _dense_round(settings, results, Bench.load(settings, device), show)


def rounds(
    settings: Settings,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
    control: str | None = None,
) -> Iterator[Round]:
    """Plays the lottery of Algorithm 1, a round at a time: train, score, prune, rewind.

    Finished rounds are read, not run again; the generator can be left after any round and taken up later.

    Args:
        settings: of the run; ``scope`` says where weights compete.
        results: root of all results; the project's ``results/`` if not given.
        device: to train on; a GPU if there is one.
        show: whether to draw a progress bar.
        control: name of a lottery with other settings than the study's, which is kept under ``controls/``.

    Yields:
        Round 0 (dense) to round ``settings.rounds``.

    Raises:
        SettingsError: if the folder holds a run with other settings.
        Diverged: if the loss stops being a number.
    """
    run, indices = Run(settings, settings.method(), results, control), range(1, settings.rounds + 1)
    run.check_writable(indices)
    bench = Bench.load(settings, device)
    last = _dense_round(settings, results, bench, show)
    yield last
    run.claim(bench.fingerprint, bench.device)
    finished = sum(run.finished(index) for index in indices)
    show = show and finished < settings.rounds
    steps = settings.steps - settings.rewind_step
    progress = Progress(run, settings.rounds, settings.rounds * steps, finished * steps, show)
    session = Session(run, bench.device)
    for index in indices:
        if not run.finished(index):
            with session.alone():
                if not run.finished(index):  # by another process, while this one waited
                    progress.reach((index - 1) * steps)
                    _play(index, last, session, bench, progress)
        last = load_round(run, index)
        if index == settings.rounds:  # before the last round is handed out: who takes it may not come back
            progress.close()
            store.write_summary(run)
        yield last


def _play(index: int, last: Round, session: Session, bench: Bench, progress: Progress) -> None:
    """Plays one round: mask, rewind, train, score, keep, and hand over to the next."""
    run, settings = session.run, session.run.settings
    if index == 1:
        _keep_rewind_point(session, bench)
    mask = run.load_mask(index) or _hand_over(last, last.network().to(bench.device), run, bench)
    network = rewound(run, index)
    record = train_and_score(session, index, mask, network, bench, progress, first=settings.rewind_step)
    if index == settings.rounds or index in settings.keep_weights:
        run.save_weights(index, network)
    if index < settings.rounds:
        _hand_over(Round(run, index, mask, *record[:2]), network, run, bench)
    run.finish(index, *record)  # last: a round counts as finished when the next one can begin


def rewound(run: Run, index: int) -> nn.Module:
    """Returns the network as a round starts: everything at the rewind point, but for what the protocol carries over."""
    network = build_network(run.settings.network, run.settings.seed)
    if index and run.settings.rewind_step:
        run.load_tensors(REWIND_POINT, network)
    if index and run.settings.rewind != "all":
        run.load_tensors(CARRIED.format(index), network)
    return network


def _keep_rewind_point(session: Session, bench: Bench) -> None:
    """Writes the state that a late rewind goes back to: that of the dense round after so many of its steps."""
    run, settings = session.run, session.run.settings
    if not settings.rewind_step or (run.folder / REWIND_POINT).is_file():
        return
    network = build_network(settings.network, settings.seed).to(bench.device)
    checkpoints = session.checkpoints(run.folder / "rewind")
    how = {"stop": settings.rewind_step, "checkpoints": checkpoints}
    train(network, dense_mask(settings), bench.train, settings, **how)
    run.save_tensors(REWIND_POINT, tensors(network))
    checkpoints.clear()


def _hand_over(last: Round, network: nn.Module, run: Run, bench: Bench) -> Mask:
    """Writes what the next round begins with: the values that are not rewound, then the mask, which is returned."""
    settings, index = run.settings, last.index + 1
    if settings.rewind != "all":
        table = describe(network)
        own = tensors(network)
        names = own if settings.rewind == "none" else table.name[table.kind.isin(NOT_REWOUND)]
        run.save_tensors(CARRIED.format(index), {name: own[name] for name in names})
    mask = next_mask(last.mask, network, settings, index, bench.train, last.network(trained=False))
    run.save_mask(index, mask)
    return mask


def one_shot(
    settings: Settings,
    method: str,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
) -> Round:
    """Plays a one-shot baseline: the trained dense network is pruned once and fine-tuned from there.

    Args:
        settings: of the run; ``fine_tune`` and ``fine_tune_lr`` say how it is tuned.
        method: ``PIR-OSM-I``, ``PIR-OSM-II`` (magnitude), ``PIR-OSR-I`` or ``PIR-OSR-II`` (random).
        results: root of all results; the project's ``results/`` if not given.
        device: to train on; a GPU if there is one.
        show: whether to draw a progress bar.

    Raises:
        SettingsError: for an unknown method, or if the folder holds a run with other settings.
        Diverged: if the loss stops being a number.
    """
    criterion, rate = ONE_SHOT[choose("method", method, ONE_SHOT)]
    run = Run(settings, method, results)
    run.check_writable([1])
    bench = Bench.load(settings, device)
    dense = _dense_round(settings, results, bench, show)

    def play(session: Session) -> None:
        steps = max(1, round(settings.fine_tune * settings.steps))
        progress = Progress(run, 1, steps, show=show)
        network = dense.network()
        evidence = criteria.Evidence(network, dense.mask, criteria.stream(settings.seed))
        mask = criteria.prune(dense.mask, criteria.CRITERIA[criterion](evidence), rate)
        record = train_and_score(
            session, 1, mask, network, bench, progress, steps=steps, warmup=0, lr=settings.fine_tune_lr
        )
        run.save_weights(1, network)
        run.finish(1, *record)
        progress.close()

    return only_round(run, 1, bench, play)


def next_mask(
    mask: Mask,
    network: nn.Module,
    settings: Settings,
    index: int = 1,
    bank: Bank | None = None,
    start: nn.Module | None = None,
) -> Mask:
    """Returns the mask of a round, from the network trained under the mask of the one before.

    Args:
        mask: the present mask.
        network: trained under it.
        settings: of the run: criterion, scope, count, rate or densities; in layer-wise pruning the output layer is
            pruned at the rate times ``output_rate``.
        index: of the round that the mask is for.
        bank: training images, for criteria that look at data.
        start: the network as the round before began, for criteria that look at that.
    """
    evidence = criteria.Evidence(
        network,
        mask,
        criteria.stream(settings.seed),
        dict(start.named_parameters()) if start else None,
        criterion_batches(bank, settings) if bank and settings.criterion in LOOK_AT_DATA else (),
    )
    table, rate = describe(network), settings.rate_of(index)
    rates = dict.fromkeys(table.name[table.kind == "output"], rate * settings.output_rate)
    if settings.densities:  # from the whole network, so that rounding does not add up over the rounds
        rate = _to_density(list(mask.values()), settings, index)
        rates = {
            name: _to_density([keep], settings, index, settings.output_rate if name in rates else 1.0)
            for name, keep in mask.items()
        }
    scores = criteria.CRITERIA[settings.criterion](evidence)
    return criteria.prune(mask, scores, rate, settings.scope, rates, settings.count)


def _to_density(tensors: list[torch.Tensor], settings: Settings, index: int, share: float = 1.0) -> float:
    """Returns the rate that brings tensors of a mask to the density listed for a round; ``share`` of its rates."""
    density = math.prod(1 - share * settings.rate_of(past) for past in range(1, index + 1))
    kept = sum(int(keep.sum()) for keep in tensors)
    target = int(density * sum(keep.numel() for keep in tensors) + 0.5)
    return max(0.0, 1 - target / kept) if kept else 0.0


def criterion_batches(bank: Bank, settings: Settings) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the batches that a criterion looks at; they are of a data order that no training uses."""
    size, patch = settings.batch_size, settings.patch_size
    return [bank.batch(size, patch, seed=settings.seed, order=2**32, step=step) for step in range(CRITERION_BATCHES)]


def load_round(run: Run, index: int) -> Round:
    """Reads a finished round from its folder."""
    folder = run.round_folder(index)
    mask = run.load_mask(index) if index else dense_mask(run.settings)
    if mask is None:
        raise FileNotFoundError(f"{folder / 'mask.npz'} is missing")
    return Round(run, index, mask, pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "metrics.csv"))


def _dense_round(settings: Settings, results: Path | str | None, bench: Bench, show: bool) -> Round:
    run = Run(settings, "dense", results)

    def play(session: Session) -> None:
        progress = Progress(run, 0, settings.steps, show=show)
        network = build_network(settings.network, settings.seed)
        record = train_and_score(session, 0, dense_mask(settings), network, bench, progress)
        run.save_weights(0, network)  # always: every method starts from them
        run.finish(0, *record)
        progress.close()

    return only_round(run, 0, bench, play)


def only_round(run: Run, index: int, bench: Bench, play: Callable[[Session], None]) -> Round:
    """Returns the one round of a run; it is played if it is not finished, by one process at a time.

    Args:
        run, index: whose round it is.
        bench: the images.
        play: trains, scores and finishes the round.
    """
    run.claim(bench.fingerprint, bench.device)
    if not run.finished(index):
        session = Session(run, bench.device)
        with session.alone():
            if not run.finished(index):  # by another process, while this one waited
                play(session)
    store.write_summary(run)
    return load_round(run, index)


def train_and_score(
    session: Session, index: int, mask: Mask, network: nn.Module, bench: Bench, progress: Progress, **training: Any
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Trains a network in place and scores it.

    Args:
        session: of the run, which is alone.
        index: of the round.
        mask: what is kept.
        network: as it starts.
        bench: the images.
        progress: to tell.
        **training: what ``training.train`` shall do otherwise than the settings say.

    Returns:
        The round's history, metrics and facts.
    """
    run, first = session.run, training.get("first", 0)
    steps = (training.get("steps") or run.settings.steps) - first
    run.save_mask(index, mask)
    progress.start(index, mask.density(), steps)
    initial = fingerprint(network)
    checkpoints = session.checkpoints(run.round_folder(index), mask=mask.fingerprint, start=initial, how=training)
    network.to(bench.device)

    def on_step(step: int, loss: float) -> None:
        progress.step(step, loss)
        session.step(index, first + step)

    how = {"validation": bench.validation, "on_step": on_step, "checkpoints": checkpoints, **training}
    history = train(network, mask, bench.train, run.settings, **how)
    spent, trained = checkpoints.seconds, time.perf_counter()
    metrics = evaluation.evaluate(network, bench.test)
    facts = {
        "density": mask.density(),
        "kept": mask.kept,
        "prunable": mask.size,
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad) - mask.size + mask.kept,
        "emptied": mask.emptied(),
        "steps": steps,
        "start_sha256": initial,
        "training_seconds": round(spent, 3),
        "evaluation_seconds": round(time.perf_counter() - trained, 3),
    }
    return history, metrics, facts
