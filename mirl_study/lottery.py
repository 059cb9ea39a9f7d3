"""Algorithm 1 as a generator of rounds, and the one-shot baselines."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mirl_study import criteria, evaluation, store
from mirl_study.data import Bank, load_bank
from mirl_study.masks import Mask
from mirl_study.network import PromptIR, build_network, describe, fingerprint
from mirl_study.progress import Progress
from mirl_study.settings import ONE_SHOT, Settings, choose
from mirl_study.store import Run
from mirl_study.training import train


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

    def network(self, trained: bool = True) -> PromptIR:
        """Returns the sparse network, trained, or rewound to its initialisation.

        Raises:
            FileNotFoundError: if the trained weights of this round were not kept.
        """
        network = build_network(self.run.settings.network, self.run.settings.seed)
        if trained:
            self.run.load_weights(self.index, network)
        self.mask.apply_(dict(network.named_parameters()))
        return network


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
        place = torch.device(device) if device else default_device()
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
    return _dense_round(settings, results, Bench.load(settings, device), show)


def rounds(
    settings: Settings, results: Path | str | None = None, device: torch.device | str | None = None, show: bool = True
) -> Iterator[Round]:
    """Plays the lottery of Algorithm 1, a round at a time: train, score, prune an exact count, rewind.

    Finished rounds are read, not run again; the generator can be left after any round and taken up later.

    Args:
        settings: of the run; ``scope`` says where weights compete.
        results: root of all results; the project's ``results/`` if not given.
        device: to train on; a GPU if there is one.
        show: whether to draw a progress bar.

    Yields:
        Round 0 (dense) to round ``settings.rounds``.

    Raises:
        SettingsError: if the folder holds a run with other settings.
        Diverged: if the loss stops being a number.
    """
    bench = Bench.load(settings, device)
    last = _dense_round(settings, results, bench, show)
    yield last
    run = Run(settings, settings.method(), results)
    run.claim(bench.fingerprint, bench.device)
    finished = sum(run.finished(index) for index in range(1, settings.rounds + 1))
    show = show and finished < settings.rounds
    progress = Progress(run, settings.rounds, settings.rounds * settings.steps, finished * settings.steps, show)
    for index in range(1, settings.rounds + 1):
        if not run.finished(index):
            mask = run.load_mask(index) or next_mask(last.mask, last.network(), settings)
            network = build_network(settings.network, settings.seed)  # the rewind: everything is as it was at step 0
            record = _train_and_score(run, index, mask, network, bench, progress, steps=settings.steps)
            if index == settings.rounds or index in settings.keep_weights:
                run.save_weights(index, network)
            if index < settings.rounds:
                run.save_mask(index + 1, next_mask(mask, network, settings))
            run.finish(index, *record)  # last: a round counts as finished when the next one can begin
        last = load_round(run, index)
        yield last
    progress.close()
    store.write_summary(run.folder)


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
    bench = Bench.load(settings, device)
    dense = _dense_round(settings, results, bench, show)
    run = Run(settings, method, results)
    run.claim(bench.fingerprint, bench.device)
    if not run.finished(1):
        steps = max(1, round(settings.fine_tune * settings.steps))
        progress = Progress(run, 1, steps, show=show)
        network = dense.network()
        scores = criteria.CRITERIA[criterion](network, dense.mask, criteria.stream(settings.seed))
        mask = criteria.prune(dense.mask, scores, rate)
        record = _train_and_score(
            run, 1, mask, network, bench, progress, steps=steps, warmup=0, lr=settings.fine_tune_lr
        )
        run.save_weights(1, network)
        run.finish(1, *record)
        progress.close()
    store.write_summary(run.folder)
    return load_round(run, 1)


def next_mask(mask: Mask, network: PromptIR, settings: Settings) -> Mask:
    """Returns the mask of the next round, from the network trained under the present one.

    Args:
        mask: the present mask.
        network: trained under it.
        settings: of the run: criterion, scope, rate; in layer-wise pruning the output layer is pruned at ``rate *
            output_rate``.
    """
    scores = criteria.CRITERIA[settings.criterion](network, mask, criteria.stream(settings.seed))
    table = describe(network)
    rates = dict.fromkeys(table.name[table.kind == "output"], settings.rate * settings.output_rate)
    return criteria.prune(mask, scores, settings.rate, settings.scope, rates)


def load_round(run: Run, index: int) -> Round:
    """Reads a finished round from its folder."""
    folder = run.round_folder(index)
    mask = run.load_mask(index)
    if mask is None:
        raise FileNotFoundError(f"{folder / 'mask.npz'} is missing")
    return Round(run, index, mask, pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "metrics.csv"))


def _dense_round(settings: Settings, results: Path | str | None, bench: Bench, show: bool) -> Round:
    run = Run(settings, "dense", results)
    run.claim(bench.fingerprint, bench.device)
    if not run.finished(0):
        progress = Progress(run, 0, settings.steps, show=show)
        network = build_network(settings.network, settings.seed)
        mask = Mask.dense(network, norms=settings.prune_norms, unused=settings.prune_unused)
        record = _train_and_score(run, 0, mask, network, bench, progress, steps=settings.steps)
        run.save_weights(0, network)  # always: every method starts from them
        run.finish(0, *record)
        progress.close()
    store.write_summary(run.folder)
    return load_round(run, 0)


def _train_and_score(
    run: Run, index: int, mask: Mask, network: PromptIR, bench: Bench, progress: Progress, steps: int, **training: Any
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Trains ``network`` in place under ``mask``; returns the round's history, metrics and facts."""
    run.save_mask(index, mask)
    progress.start(index, mask.density(), steps)
    initial = fingerprint(network)
    network.to(bench.device)
    began = time.perf_counter()
    history = train(
        network,
        mask,
        bench.train,
        run.settings,
        validation=bench.validation,
        steps=steps,
        on_step=progress.step,
        **training,
    )
    trained = time.perf_counter()
    metrics = evaluation.evaluate(network, bench.test)
    facts = {
        "density": mask.density(),
        "kept": mask.kept,
        "prunable": mask.size,
        "parameters": sum(p.numel() for p in network.parameters()) - mask.size + mask.kept,
        "emptied": mask.emptied(),
        "steps": steps,
        "start_sha256": initial,
        "training_seconds": round(trained - began, 3),
        "evaluation_seconds": round(time.perf_counter() - trained, 3),
    }
    return history, metrics, facts
