"""What a study costs, before it is run: how far its chains are, time by a few measured steps, and disk."""

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mirl_study import criteria, evaluation, lottery
from mirl_study.comparison import build_network
from mirl_study.data import Bank, load_bank
from mirl_study.settings import LOTTERY, ONE_SHOT, SIGMAS, Settings
from mirl_study.store import project_root, results_root, write_csv
from mirl_study.study import Chain, plan, span
from mirl_study.training import train, validation_loss

PATIENCE = 2.0  # seconds that a measurement is repeated for
MOST = 50  # repetitions
JOB_SECONDS = 10.0  # start of a kernel, imports and figures of a notebook: seen on two CPU cores
JOB_BYTES = 2**20  # an executed notebook with its log: seen
COPIES = 9  # of the weights, in checkpoints: they and two moments; two are kept while a third is written


@dataclass(frozen=True)
class Cost:
    """What the parts of a chain cost on this machine.

    Attributes:
        step, validation: seconds of a training step, and of a look at the validation patches.
        evaluation: seconds of all test images, by setting.
        weights, record: bytes of a round's trained weights, and of everything else that is kept of a round.
        device: what was measured on.
    """

    step: float
    validation: float
    evaluation: Mapping[str, float]
    weights: int
    record: int
    device: str


@dataclass(frozen=True)
class Job:
    """One chain of a plan.

    Attributes:
        chain: which one, and how far it is.
        rounds: how many it has.
        finished: of these, how many are finished.
        seconds, size: what is left of it: time, and bytes on disk.
    """

    chain: Chain
    rounds: int
    finished: int
    seconds: float
    size: int

    @property
    def state(self) -> str:
        """``done``, ``to do``, or how many rounds are finished."""
        if self.chain.finished:
            return "done"
        return f"{self.finished} of {self.rounds} rounds" if self.chain.done or self.finished else "to do"


def measure(studies: Sequence[Settings], device: torch.device | str | None = None) -> Cost:
    """Times real steps of a study's network, and its smallest test image; nothing is left behind.

    A CPU has one thread for it, as a chain has.

    Args:
        studies: settings of the study; training is measured with the first.
        device: to measure on; a GPU if there is one.

    Returns:
        The cost of each part; that of the test images by their pixels.

    Raises:
        SettingsError: as ``data.load_bank``.
    """
    settings = studies[0]
    bench = lottery.Bench.load(settings, device)
    tests = {own.setting: load_bank(own, "test", project_root()) for own in studies[1:]}
    pixels = {setting: sum(_pixels(bank).values()) for setting, bank in {settings.setting: bench.test, **tests}.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = build_network(settings.network, settings.seed).to(bench.device)
        dense = lottery.dense_mask(settings)
        evidence = criteria.Evidence(network, dense, criteria.stream(settings.seed))
        mask = criteria.prune(dense, criteria.CRITERIA["random"](evidence), 0.5)  # the hardest to compress
        now = settings.replace(steps=max(settings.steps, MOST + 2), rewind_step=0)

        def steps(count: int) -> float:
            """Seconds of a step, the mean of so many after the first one."""
            ends: list[float] = []
            train(network, mask, bench.train, now, stop=count + 1, on_step=lambda *_: ends.append(_clock(bench.device)))
            return (ends[-1] - ends[0]) / count

        first = steps(1)
        again = min(MOST, int(PATIENCE / first))
        step = steps(again) if again > 1 else first
        validation = _seconds(lambda: validation_loss(network, bench.validation, settings), bench.device)
        one = _smallest(bench.test)
        scored = evaluation.evaluate(network, one)
        image = _seconds(lambda: evaluation.evaluate(network, one), bench.device)
    finally:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place:
        mask.save(Path(place, "mask.npz"))
        write_csv(Path(place, "metrics.csv"), scored)
        sizes = {path.stem: path.stat().st_size for path in Path(place).iterdir()}
    images = sum(_samples(family) for family, _ in _pixels(bench.test))
    return Cost(
        step=step,
        validation=validation,
        evaluation={setting: image * count / sum(_pixels(one).values()) for setting, count in pixels.items()},
        weights=sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()),
        record=sizes["mask"] + round(sizes["metrics"] * images / len(scored)),
        device=torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU, one thread",
    )


def jobs(
    studies: Sequence[Settings],
    seeds: Sequence[int],
    cost: Cost,
    results: Path | str | None = None,
    controls: bool = False,
) -> list[Job]:
    """Lists the chains of a study with what is left of each.

    Args:
        studies, seeds, results, controls: as in ``study.plan``.
        cost: what ``measure`` returned.

    Returns:
        One a chain.
    """
    made = []
    own = {settings.setting: settings for settings in studies}
    for chain in plan(studies, seeds, results, controls):
        chain.look()
        settings = own[chain.setting]
        a_round = max(1, settings.steps - settings.rewind_step)
        rounds = settings.rounds if chain.method in LOTTERY else max(1, chain.total // a_round)
        finished = len(list(chain.folder.glob("round*/round.json")))
        left = 0 if chain.finished else max(1, rounds - finished)
        looks = math.ceil(chain.left / settings.validate_every)
        seconds = chain.left * cost.step + looks * cost.validation + left * cost.evaluation[chain.setting]
        seconds += bool(left) * JOB_SECONDS
        kept = len({*settings.keep_weights, settings.rounds} & {*range(finished + 1, rounds + 1)})
        copies = kept if chain.method in LOTTERY else int(chain.method in ("dense", *ONE_SHOT))
        size = left * cost.record + bool(left) * (copies * cost.weights + JOB_BYTES)
        made.append(Job(chain, rounds, rounds if chain.finished else min(finished, rounds), seconds, size))
    return made


def in_words(made: Sequence[Job], cost: Cost, cores: int, results: Path | str | None = None) -> list[str]:
    """Says in a few lines what a plan comes to.

    Args:
        made: what ``jobs`` returned.
        cost: what it was reckoned with.
        cores: chains at a time.
        results: root of all results.

    Returns:
        Lines.
    """
    left = [job for job in made if not job.chain.finished]
    chains = f"{len(made)} chains: {len(made) - len(left)} done, {len(left)} to do"
    if not left:
        return [chains]
    work = {job.chain.folder: job.seconds for job in left}
    wall = span([job.chain for job in left], work, cores)
    place = results_root(results)
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
    size = sum(job.size for job in left) + min(cores, len(left)) * COPIES * cost.weights
    parts = {"a step": cost.step, "a look at the validation patches": cost.validation}
    parts |= {f"the test images of {setting}": seconds for setting, seconds in cost.evaluation.items()}
    measured = ", ".join(f"{name} {_short(seconds)}" for name, seconds in parts.items())
    return [
        f"{chains}, {sum(job.chain.left for job in left):,} steps",
        f"measured on {cost.device}: {measured}",
        f"time: about {_long(sum(work.values()))} of work, {_long(wall)} with {cores} at a time; "
        "some seconds to start each chain, and the report, come on top",
        f"disk: about {_bytes(size)}, {_bytes(free)} free{'' if size < free else ': NOT ENOUGH'}",
    ]


def as_text(made: Sequence[Job]) -> list[str]:
    """Returns a plan as lines of a table."""
    head = ("setting", "method", "seed", "state", "steps left", "time left")
    rows = [
        (
            job.chain.setting,
            job.chain.method,
            str(job.chain.seed),
            job.state,
            f"{job.chain.left:,}",
            "" if job.chain.finished else _long(job.seconds),
        )
        for job in made
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def _clock(device: torch.device) -> float:
    """The time, when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time of a few repetitions, or the only one of something long."""
    times: list[float] = []
    while not times or (sum(times) < PATIENCE and len(times) < MOST):
        began = _clock(device)
        work()
        times.append(_clock(device) - began)
    return min(times)


def _samples(family: str) -> int:
    """How many test images one row of the manifest gives."""
    return len(SIGMAS) if family == "denoise" else 1


def _pixels(bank: Bank) -> dict[tuple[str, int], int]:
    """How many pixels are restored for each row of a bank: by family, and place in it."""
    return {
        (family, place): math.prod(bank.shapes[row.target]) * _samples(family)
        for family, rows in bank.rows.items()
        for place, row in enumerate(rows)
    }


def _smallest(bank: Bank) -> Bank:
    """The bank with the row alone that has fewest pixels."""
    pixels = _pixels(bank)
    family, place = min(pixels, key=pixels.get)
    return dataclasses.replace(bank, rows={family: bank.rows[family][place : place + 1]})


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _long(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e6:.0f} MB"
