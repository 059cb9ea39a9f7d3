"""The whole study in batch: Snakemake runs the chains, this file watches them and says how far they are."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import psutil
from tqdm import tqdm

from mirl_study import trained
from mirl_study.running import STUDY_PID
from mirl_study.settings import CONTROLS, LOTTERY, METHODS, ONE_SHOT, Settings
from mirl_study.store import Run, project_root, results_root

LINE_SECONDS = 15  # between two lines of progress where there is no terminal
STOP_SECONDS = 20  # that children get to end by themselves
REFERENCE = ("run.json", "summary.csv", "interpolation.csv", "round.json", "history.csv", "metrics.csv", "mask.npz")
REFERENCE += tuple(f"{name}.csv" for name in trained.TABLES)


class StudyFailed(RuntimeError):
    """A chain failed, or the study cannot be started; the message says which and where the log is."""


@dataclass
class Chain:
    """One method with one seed: how much work it is, and how far it got.

    Attributes:
        method, seed: which chain.
        folder: its run folder.
        total, done: optimiser steps.
        round, rounds: where it is.
        finished: its summary is written.
        touched: modification time of its progress, in seconds since the epoch; 0 before it started.
    """

    method: str
    seed: int
    folder: Path
    total: int
    done: int = 0
    round: int = 0
    rounds: int = 0
    finished: bool = False
    touched: float = 0.0

    @property
    def left(self) -> int:
        """Optimiser steps still to go."""
        return 0 if self.finished else max(0, self.total - self.done)

    def look(self) -> None:
        """Reads how far the chain is from its folder."""
        self.finished = (self.folder / "summary.csv").is_file()
        path = self.folder / "progress.json"
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(path.read_text())
            self.done, self.total = int(facts["done"]), max(1, int(facts["total"]))
            self.round, self.rounds = int(facts["round"]), int(facts["rounds"])
            self.touched = path.stat().st_mtime
        if self.finished:
            self.done = self.total


def plan(
    settings: Settings, seeds: Sequence[int], results: Path | str | None = None, controls: bool = False
) -> list[Chain]:
    """Lists every chain of a study with the optimiser steps it takes.

    Args:
        settings: of the study; its seed does not matter, its scope only for the controls.
        seeds: of the chains.
        results: root of all results.
        controls: whether the controls of the ticket are part of it.

    Returns:
        Chains, the dense ones first.
    """
    steps = {"dense": settings.steps, **dict.fromkeys(ONE_SHOT, max(1, round(settings.fine_tune * settings.steps)))}
    root, part = results_root(results) / settings.profile / settings.setting, settings.steps - settings.rewind_step
    chains = [
        Chain(method, seed, root / method / f"seed{seed}", steps.get(method, settings.rounds * part))
        for method in METHODS
        for seed in seeds
    ]
    spent = settings.ticket() * part
    longer = {"magnitude_long": spent, "random_long": spent, "dense_long": settings.steps + spent}
    longer |= {"instability": 2 * part, "instability_dense": 2 * part, "norms": settings.rounds * part}
    names = [name for group in CONTROLS.values() for name in group] if controls else []
    return chains + [
        Chain(label, seed, root / "controls" / label / f"seed{seed}", longer.get(name, settings.steps))
        for name, label in ((name, settings.control(name)) for name in names)
        for seed in seeds
    ]


def check_folders(settings: Settings, seeds: Sequence[int], results: Path | str | None = None) -> None:
    """Checks that the runs that are there already were made with these settings.

    Args:
        settings: of the study; its scope and seed do not matter.
        seeds: of the chains.
        results: root of all results.

    Raises:
        SettingsError: showing what differs, for the first run that was made otherwise.
    """
    for seed in seeds:
        for method in METHODS:
            own = settings.replace(seed=seed, scope=LOTTERY.get(method, settings.scope))
            Run(own, method, results).belongs()


@dataclass
class Pace:
    """How fast chains go, measured while watching; from it, how long the rest takes."""

    cores: int
    seconds: float = 0.0
    steps: int = 0
    last: dict[Path, tuple[float | None, int]] = field(default_factory=dict)

    def look(self, chains: Sequence[Chain], now: float) -> None:
        """Takes in how far the chains are at time ``now``, in seconds."""
        for chain in chains:
            then, done = self.last.setdefault(chain.folder, (None, chain.done))
            if then is not None and chain.done > done:
                self.steps += chain.done - done
                self.seconds += now - then
            if chain.done != done:  # the first change only starts the clock: until then a chain may wait its turn
                self.last[chain.folder] = (now, chain.done)

    def seconds_left(self, chains: Sequence[Chain]) -> float | None:
        """Estimates the time to the end of all chains.

        The dense chain of a seed comes before its other chains; so the longest way through one seed is a bound, and
        all the work spread over the cores is the other one.

        Returns:
            Seconds, or None as long as nothing was measured.
        """
        if not any(chain.left for chain in chains):
            return 0.0
        if not self.steps:
            return None
        ways = [0]
        for seed in {chain.seed for chain in chains}:
            dense = [c.left for c in chains if c.seed == seed and c.method == "dense"]
            others = [c.left for c in chains if c.seed == seed and c.method != "dense"]
            ways.append(sum(dense) + max(others, default=0))
        return max(*ways, sum(c.left for c in chains) / self.cores) * self.seconds / self.steps


class Bars:
    """Progress on a terminal: a bar for the study, and one for each chain that runs."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def show(self, chains: Sequence[Chain], running: Sequence[Chain], left: float | None) -> None:
        """Draws the state of the chains; ``left`` is in seconds."""
        names = {_name(chain) for chain in running}
        for name in [name for name in self.bars if name != "study" and name not in names]:
            self.bars.pop(name).close()
        self._draw("study", sum(c.done for c in chains), sum(c.total for c in chains), f"ETA {_clock(left)}")
        for chain in running:
            self._draw(_name(chain), chain.done, chain.total, f"round {chain.round}/{chain.rounds}")

    def _draw(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self.bars:
            layout = "{desc:<22} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
            self.bars[name] = tqdm(total=total, bar_format=layout, desc=name, leave=name == "study", dynamic_ncols=True)
        bar = self.bars[name]
        bar.n, bar.total = done, total
        bar.set_postfix_str(note)

    def close(self) -> None:
        """Leaves the terminal in order."""
        for bar in reversed(list(self.bars.values())):
            bar.close()


class Lines:
    """Progress where there is no terminal: a line every now and then."""

    def __init__(self) -> None:
        self.start, self.next = time.monotonic(), 0.0

    def show(self, chains: Sequence[Chain], running: Sequence[Chain], left: float | None) -> None:
        """Prints the state of the chains if it is time to; ``left`` is in seconds."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + LINE_SECONDS
        share = sum(c.done for c in chains) / sum(c.total for c in chains)
        parts = [f"{_name(c)} round {c.round}/{c.rounds} {c.done / c.total:.0%}" for c in running]
        print(" | ".join([f"{_clock(now - self.start)} {share:4.0%} ETA {_clock(left)}", *parts]), flush=True)

    def close(self) -> None:
        """Does nothing; a line is a line."""


def run_study(
    settings: Settings,
    seeds: Sequence[int],
    cores: int,
    given: Sequence[tuple[str, str]] = (),
    results: Path | str | None = None,
    cell_timeout: float = 0,
    notebooks: Path | None = None,
    controls: bool = False,
) -> tuple[Path, bool]:
    """Runs what is missing of a study, showing progress; a study that was stopped, or killed, goes on where it was.

    Args:
        settings: already validated.
        seeds: of the chains.
        cores: chains that run at a time, one thread each.
        given: what ``settings`` changes of its profile: pairs of a setting's name and its value as text.
        results: root of all results.
        cell_timeout: seconds that one cell may take; 0 is no limit.
        notebooks: folder to take them from, instead of the project's.
        controls: whether to play the controls of the ticket, too.

    Returns:
        The report's page, and whether there was anything to do.

    Raises:
        StudyFailed: another study works in this folder, or a chain failed.
        KeyboardInterrupt: stopped by a signal; every child process has ended.
    """
    folder = results_root(results) / settings.profile
    report, log = folder / "report" / "index.html", folder / "study.log"
    folder.mkdir(parents=True, exist_ok=True)
    before = report.stat().st_mtime if report.is_file() else None
    config = {
        "profile": settings.profile,
        "setting": settings.setting,
        "seeds": ",".join(map(str, seeds)),
        "results": str(folder.parent),
        "options": shlex.join(word for name, text in given for word in ("-p", name, text)),
        "cell_timeout": cell_timeout,
        **({"notebooks": str(notebooks.resolve())} if notebooks else {}),
        **({"controls": settings.ticket(), "scope": settings.scope} if controls else {}),
    }
    # No lock of Snakemake's: it outlives a killed process. Ours, below, does not.
    words = f"--cores {cores} --nolock --rerun-incomplete --rerun-triggers mtime input --scheduler greedy --nocolor"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "workflow" / "Snakefile")]
    command += ["--directory", str(folder), *words.split()]
    command += ["--config", *(f"{name}={json.dumps(value)}" for name, value in config.items())]
    with _only_study(folder), log.open("ab") as out, _signals_interrupt():
        start = out.tell()
        environment = {**os.environ, STUDY_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        child = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            _watch(child, plan(settings, seeds, results, controls), cores)
        finally:
            _stop(child)
    if child.returncode:
        raise StudyFailed(_why(log, start, child.returncode))
    return report, report.stat().st_mtime != before


def keep_reference(profile: str, results: Path | str | None = None) -> tuple[Path, int]:
    """Copies a profile's finished runs and report to ``results/reference/<profile>/``, replacing what was there.

    Weights, executed notebooks, logs and the runs that are not finished stay behind.

    Args:
        profile: whose results.
        results: root of all results.

    Returns:
        The folder, and how many files it holds.

    Raises:
        StudyFailed: there is no finished run.
    """
    root = results_root(results)
    source, target = root / profile, root / "reference" / profile
    depths = ("*/*/seed*/summary.csv", "*/controls/*/seed*/summary.csv")
    runs = sorted(path.parent for depth in depths for path in source.glob(depth))
    if not runs:
        raise StudyFailed(f"no finished run in {source}: mirl study --profile {profile}")
    part = target.with_name(f".{profile}.part")
    shutil.rmtree(part, ignore_errors=True)
    files = [
        path
        for run in runs
        for path in [*run.glob("*"), *run.glob("round*/*")]
        if path.name in REFERENCE or path.suffix == ".png"
    ]
    files += [path for path in (source / "report").rglob("*") if path.is_file()]
    for path in files:
        copy = part / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target, len(files)


def _name(chain: Chain) -> str:
    return f"{chain.method} seed {chain.seed}"


def _clock(seconds: float | None) -> str:
    return "--:--" if seconds is None else tqdm.format_interval(seconds)


@contextlib.contextmanager
def _only_study(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system takes back when this process ends in whatever way."""
    lock = filelock.FileLock(folder / ".study.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise StudyFailed(f"another study works in {folder}; wait for it, or give another --results") from None
    with lock:
        yield


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP stop a study as Ctrl-C does."""

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _watch(child: psutil.Popen, chains: list[Chain], cores: int) -> None:
    """Shows progress until the child ends."""
    started, pace = time.time(), Pace(cores)
    display = Bars() if sys.stdout.isatty() and sys.stderr.isatty() else Lines()
    try:
        while True:
            ended = child.poll() is not None
            for chain in chains:
                chain.look()
            pace.look(chains, time.monotonic())
            running = [chain for chain in chains if chain.touched > started and not chain.finished]
            display.show(chains, running, pace.seconds_left(chains))
            if ended:
                return
            with contextlib.suppress(psutil.TimeoutExpired):
                child.wait(1)
    finally:
        display.close()


def _stop(child: psutil.Popen) -> None:
    """Ends Snakemake and everything below it that still runs."""
    if child.poll() is not None:
        return
    below = child.children(recursive=True)
    child.send_signal(signal.SIGINT)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs([child, *below], timeout=STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()


def _why(log: Path, start: int, code: int) -> str:
    """The message of the notebook that failed, or else the log's last lines."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if first is None:
        tail = [f"  {line}" for line in lines[-15:]]
        return "\n".join([f"snakemake ended with exit code {code}; its last lines:", *tail, f"  all of it: {log}"])
    message = [lines[first].removeprefix("error: ")]
    for line in lines[first + 1 :]:
        if not line.startswith("  "):
            break
        message.append(line)
    return "\n".join([*message, f"  the study's log: {log}"])
