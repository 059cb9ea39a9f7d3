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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import psutil
from tqdm import tqdm

from mirl_study import trained
from mirl_study.lease import devices
from mirl_study.running import STUDY_PID, settings_and_overrides
from mirl_study.settings import CONTROLS, LOTTERY, METHODS, ONE_SHOT, SETTINGS, Settings, SettingsError, setting_names
from mirl_study.store import Run, check_no_reference, check_writable, make_folder, project_root, results_root

LINE_SECONDS = 15  # between two lines of progress where there is no terminal
STOP_SECONDS = 20  # that children get to end by themselves
TRAINING = ("dense", "one_shot", "lottery", "control")  # rules of the Snakefile
REFERENCE = ("run.json", "summary.csv", "interpolation.csv", "round.json", "history.csv", "metrics.csv", "mask.npz")
BINARY = (".npz", ".png", ".safetensors")
REFERENCE_WEIGHTS = 20e6  # bytes of trained weights that a reference may hold
REFERENCE += tuple(f"{name}.csv" for name in trained.TABLES)


class StudyFailed(RuntimeError):
    """A chain failed, or the study cannot be started; the message says which and where the log is."""


@dataclass
class Chain:
    """One setting, method and seed: how much work it is, and how far it got.

    Attributes:
        setting, method, seed: which chain.
        folder: its run folder.
        total, done: optimiser steps.
        round, rounds: where it is.
        finished: its summary is written.
        touched: modification time of its progress, in seconds since the epoch; 0 before it started.
    """

    setting: str
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


def grid(
    profile: str, settings: str, seeds: str, given: Sequence[tuple[str, str]] = ()
) -> tuple[list[Settings], list[int]]:
    """Reads what a study is asked for, and looks whether the images fit every setting.

    Args:
        profile: name of the profile.
        settings: ``all_in_one``, ``derain,dehaze`` or ``all``.
        seeds: ``0`` or ``0,1,2``.
        given: what else is changed: pairs of a setting's name and its value as text.

    Returns:
        Settings, one for each name, with the first seed; and the seeds. What is repeated counts once.

    Raises:
        SettingsError: one line, for the first thing that is wrong.
    """
    for name, _ in given:
        if name in ("profile", "setting", "settings", "seed", "seeds", "scope", "results", "cores"):
            hint = {"scope": "a study runs both", "seed": "give --seeds", "setting": "give --settings"}
            raise SettingsError(f"-p {name} is not allowed in a study: {hint.get(name, f'give --{name}')}")
    names = setting_names(settings)
    try:
        numbers = list(dict.fromkeys(map(int, seeds.split(","))))
    except ValueError:
        raise SettingsError(f"seeds={seeds!r} is not allowed: whole numbers, as 0,1,2, are wanted") from None
    studies = [settings_and_overrides(profile, given, setting=name, seed=numbers[0])[0] for name in names]
    for seed in numbers[1:]:
        studies[0].replace(seed=seed)
    return studies, numbers


def plan(
    studies: Sequence[Settings], seeds: Sequence[int], results: Path | str | None = None, controls: bool = False
) -> list[Chain]:
    """Lists every chain of a study with the optimiser steps it takes.

    Args:
        studies: settings of the study, as ``grid`` returns them; their seed does not matter, their scope only for the
            controls.
        seeds: of the chains.
        results: root of all results.
        controls: whether the controls of the ticket are part of it.

    Returns:
        Chains, setting by setting, the dense ones first.
    """
    chains = []
    for settings in studies:
        root, part = results_root(results) / settings.profile / settings.setting, settings.steps - settings.rewind_step
        steps = {"dense": settings.steps, **dict.fromkeys(ONE_SHOT, max(1, round(settings.fine_tune * settings.steps)))}
        steps |= dict.fromkeys(LOTTERY, settings.rounds * part)
        places = {method: root / method for method in METHODS}
        spent = settings.ticket() * part
        longer = {"magnitude_long": spent, "random_long": spent, "dense_long": settings.steps + spent}
        longer |= {"instability": 2 * part, "instability_dense": 2 * part, "norms": settings.rounds * part}
        for name in (name for group in CONTROLS.values() for name in group if controls):
            label = settings.control(name)
            places[label], steps[label] = root / "controls" / label, longer.get(name, settings.steps)
        chains += [
            Chain(settings.setting, name, seed, place / f"seed{seed}", steps[name])
            for name, place in places.items()
            for seed in seeds
        ]
    return chains


def check_folders(studies: Sequence[Settings], seeds: Sequence[int], results: Path | str | None = None) -> None:
    """Checks that the runs that are there already were made with these settings.

    Args:
        studies: settings of the study; their scope and seed do not matter.
        seeds: of the chains.
        results: root of all results.

    Raises:
        SettingsError: showing what differs, for the first run that was made otherwise.
    """
    for settings in studies:
        for seed in seeds:
            for method in METHODS:
                own = settings.replace(seed=seed, scope=LOTTERY.get(method, settings.scope))
                Run(own, method, results).belongs()


def at_a_time(cores: int) -> int:
    """How many chains run at a time on so many cores: no more than there are GPUs, if there is any."""
    return min(cores, len(devices()) or cores)


def span(chains: Sequence[Chain], work: Mapping[Path, float], cores: int) -> float:
    """Bounds the time in which chains can be done.

    The dense chain of a setting and seed comes before its other chains; so the longest way through one of them is a
    bound, and all the work spread over the cores is the other one.

    Args:
        chains: to be done.
        work: of each, by its folder, in any unit.
        cores: chains at a time.

    Returns:
        The larger bound, in the unit of ``work``.
    """
    before, after = Counter(), Counter()
    for chain in chains:
        where, left = (chain.setting, chain.seed), work[chain.folder]
        if chain.method == "dense":
            before[where] = left
        else:
            after[where] = max(after[where], left)
    longest = max(before[where] + after[where] for where in {*before, *after})
    return max(longest, sum(work.values()) / cores)


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

        Returns:
            Seconds, or None as long as nothing was measured.
        """
        if not any(chain.left for chain in chains):
            return 0.0
        if not self.steps:
            return None
        return span(chains, {chain.folder: chain.left for chain in chains}, self.cores) * self.seconds / self.steps


class Bars:
    """Progress on a terminal: a bar for the study, and one for each chain that runs."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def show(self, chains: Sequence[Chain], running: Sequence[Chain], left: float | None) -> None:
        """Draws the state of the chains; ``left`` is in seconds."""
        names = {_name(chain) for chain in running}
        for name in [name for name in self.bars if name != "study" and name not in names]:
            self.bars.pop(name).close()
        self._draw("study", sum(c.done for c in chains), sum(c.total for c in chains), _ahead(chains, left))
        for chain in running:
            self._draw(_name(chain), chain.done, chain.total, f"round {chain.round}/{chain.rounds}")

    def _draw(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self.bars:
            layout = "{desc:<30} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
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
        print(" | ".join([f"{_clock(now - self.start)} {share:4.0%} {_ahead(chains, left)}", *parts]), flush=True)

    def close(self) -> None:
        """Does nothing; a line is a line."""


def run_study(
    studies: Sequence[Settings],
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
        studies: one settings for each setting of the grid, already validated.
        seeds: of the chains.
        cores: chains that run at a time, one thread each.
        given: what the settings change of their profile: pairs of a setting's name and its value as text.
        results: root of all results.
        cell_timeout: seconds that one cell may take; 0 is no limit.
        notebooks: folder to take them from, instead of the project's.
        controls: whether to play the controls of the ticket, too.

    Returns:
        The report's page, and whether there was anything to do.

    Raises:
        SettingsError: the results folder is read-only.
        StudyFailed: another study works in this folder, or a chain failed.
        KeyboardInterrupt: stopped by a signal; every child process has ended.
    """
    first = studies[0]
    folder = results_root(results) / first.profile
    report, log = folder / "report" / "index.html", folder / "study.log"
    check_no_reference(folder.parent)
    check_writable(folder)
    make_folder(folder)
    before = report.stat().st_mtime if report.is_file() else None
    config = {
        "profile": first.profile,
        "settings": ",".join(settings.setting for settings in studies),
        "seeds": ",".join(map(str, seeds)),
        "results": str(folder.parent),
        "options": shlex.join(word for name, text in given for word in ("-p", name, text)),
        "cell_timeout": cell_timeout,
        **({"notebooks": str(notebooks.resolve())} if notebooks else {}),
        **({"controls": first.ticket(), "scope": first.scope} if controls else {}),
    }
    # No lock of Snakemake's: it outlives a killed process. Ours, below, does not.
    words = f"--cores {cores} --nolock --rerun-incomplete --rerun-triggers mtime input --scheduler greedy --nocolor"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "workflow" / "Snakefile")]
    command += ["--directory", str(folder), *words.split()]
    if gpus := len(devices()):  # Snakemake counts them; which one a chain gets, its lease says
        command += ["--resources", f"gpu={gpus}", "--set-resources", *(f"{rule}:gpu=1" for rule in TRAINING)]
    command += ["--config", *(f"{name}={json.dumps(value)}" for name, value in config.items())]
    with _only_study(folder), log.open("ab") as out, _signals_interrupt():
        start = out.tell()
        environment = {**os.environ, STUDY_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        child = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            _watch(child, plan(studies, seeds, results, controls), at_a_time(cores))
        finally:
            _stop(child)
    if child.returncode:
        raise StudyFailed(_why(log, start, child.returncode))
    return report, report.stat().st_mtime != before


def keep_reference(
    profile: str, results: Path | str | None = None, to: Path | str | None = None, pictures: bool = True
) -> tuple[Path, int]:
    """Copies a profile's finished runs and report into one folder, replacing the reference that was there.

    Executed notebooks, logs and the runs that are not finished stay behind. So do trained weights, but for those that
    the lab prunes and compares: of the dense network and the lotteries of each setting's smallest seed, as long as they
    take no more than 20 MB; pictures of other seeds than the smallest; and of each figure, the larger one of its two
    files. Where somebody's images lie on this machine does not matter to a reader: of a data folder outside the
    project, only the name is kept.

    Args:
        profile: whose results.
        results: root of all results.
        to: the folder; ``reference/<profile>`` of the results if not given.
        pictures: whether test images may be passed on; without them, no weights are kept, either: the lab needs both.

    Returns:
        The folder, and how many files it holds.

    Raises:
        SettingsError: the folder holds something else than a reference, or one that has more; or the report shows
            pictures that shall not be passed on.
        StudyFailed: there is no finished run.
    """
    root = results_root(results)
    source, target = root / profile, Path(to).absolute() if to else root / "reference" / profile
    nested = source.resolve() in (target.resolve(), *target.resolve().parents)
    there = [path.name for path in target.iterdir()] if target.is_dir() else [""] if target.exists() else []
    if nested or (to and not set(there) <= {*SETTINGS, "report"}):
        raise SettingsError(f"to={str(to)!r} is not allowed: a new folder, or a reference to replace, is wanted")
    runs = _finished(source)
    if not runs:
        raise StudyFailed(f"no finished run in {source}: mirl study --profile {profile}")
    for run in _finished(target):  # what was played for hours is not replaced by less, or by something else
        name, other = run.relative_to(target), json.loads((run / "run.json").read_text()).get("profile", profile)
        if other != profile or not (source / name / "summary.csv").is_file():
            lacks = f"is of the profile {other!r}" if other != profile else f"has {name}, which {source} lacks"
            raise SettingsError(f"to={str(target)!r} {lacks}: give a new folder, or remove that one")
    if not pictures and (shown := sorted((source / "report" / "figures").glob("*-restored-*"))):
        raise SettingsError(
            f"no-pictures: the report shows {shown[0].name}; mirl report --profile {profile} --no-pictures replaces it"
        )
    places = {json.loads((run / "run.json").read_text())["settings"].get("data", "") for run in runs}
    names = {place.encode(): Path(place).name.encode() for place in places if Path(place).is_absolute()}
    part, former = (target.with_name(f".{target.name}.{what}") for what in ("part", "former"))
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part, "to")
    files = [path for run in runs for path in [*run.glob("*"), *run.glob("round*/*")] if path.name in REFERENCE]
    first = {run.parent: run for run in sorted(runs, key=_seed, reverse=True)}  # whose pictures the report shows
    files += [path for run in first.values() if pictures for path in [*run.glob("*.png"), *run.glob("round*/*.png")]]
    if pictures:
        files += _weights([run for run in runs if run.parents[2] == source])
    files += [path for path in (source / "report").rglob("*") if path.is_file() and not _has_smaller_twin(path)]
    for path in files:
        content = path.read_bytes()
        for place, name in names.items():
            content = content if path.suffix in BINARY else content.replace(place, name)
        copy = part / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    part.rename(target)
    shutil.rmtree(former, ignore_errors=True)
    return target, len(files)


def _finished(folder: Path) -> list[Path]:
    """All finished runs of a profile's folder: chains, controls, and those of other models."""
    depths = ("*/*", "*/controls/*", "*/models/*/*", "*/models/*/controls/*")
    return sorted(path.parent for depth in depths for path in folder.glob(f"{depth}/seed*/summary.csv"))


def _has_smaller_twin(path: Path) -> bool:
    """Whether a figure is there in another format, which takes less room."""
    others = [path.with_suffix(suffix) for suffix in (".svg", ".png") if suffix != path.suffix]
    sizes = [other.stat().st_size for other in others if path.suffix in (".svg", ".png") and other.is_file()]
    return any(size < path.stat().st_size for size in sizes)


def _weights(runs: Sequence[Path]) -> list[Path]:
    """Trained weights that go with a reference: setting by setting, as long as there is room for all of one."""
    chosen: list[Path] = []
    chains = [run for run in runs if run.parent.name in ("dense", *LOTTERY)]
    for setting in dict.fromkeys(run.parents[1] for run in chains):
        own = [run for run in chains if run.parents[1] == setting]
        first = min(map(_seed, own))
        more = [path for run in own if _seed(run) == first for path in sorted(run.glob("round*/weights.safetensors"))]
        if sum(path.stat().st_size for path in [*chosen, *more]) <= REFERENCE_WEIGHTS:
            chosen += more
    return chosen


def _seed(run: Path) -> int:
    return int(run.name.removeprefix("seed"))


def _name(chain: Chain) -> str:
    setting = "" if chain.setting == "all_in_one" else f"{chain.setting} "
    return f"{setting}{chain.method} seed {chain.seed}"


def _ahead(chains: Sequence[Chain], left: float | None) -> str:
    """What is still to be waited for: the ETA of the chains, then the report, which takes minutes for large images."""
    return "writing the report" if all(chain.finished for chain in chains) else f"ETA {_clock(left)}"


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
