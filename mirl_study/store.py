"""Where artefacts live, how they are written (all or nothing), and under which settings they were made."""

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import safetensors.torch
import torch
from torch import nn

from mirl_study.machine import processor_facts
from mirl_study.masks import Mask
from mirl_study.network import tensors as network_tensors
from mirl_study.settings import ModelSettings, Settings, SettingsError

CHECKPOINT = "checkpoint.safetensors"  # of a round that is being trained
HASHED = ("metrics.csv", "weights.safetensors")  # files of a round whose SHA-256 is on record, beside its mask's
TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")  # what ``atomic`` writes first
PACKAGES = ("torch", "numpy", "pandas", "scikit-image", "safetensors", "papermill")


def project_root() -> Path:
    """Returns the project's folder: the checkout that the package is installed from, or else the working folder."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def results_root(results: Path | str | None = None) -> Path:
    """Returns the folder of all results; relative paths, and nothing given, mean inside the project.

    Raises:
        SettingsError: it is a file.
    """
    root = project_root() / Path(results or "results").expanduser()
    if root.is_file():
        raise SettingsError(f"results={str(results)!r} is a file, no folder: give another one")
    return root


def is_reference(root: Path) -> bool:
    """Whether a results root holds references (``mirl reference``), which nobody else writes to."""
    return root.name == "reference"


class WriteFailed(OSError):
    """A file cannot be written; the message says which, why, and how much space is left there."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path that takes the place of ``path`` if the block ends well, and vanishes if not.

    Raises:
        WriteFailed: the disk is full, or whatever else the system has against it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        free = shutil.disk_usage(_existing(path)).free / 1e6
        failed = WriteFailed(f"{path} cannot be written: {reason} ({free:,.1f} MB are free there)")
        failed.strerror = str(reason)
        raise failed from error
    finally:
        with suppress(OSError):  # the folder itself may be missing or closed
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path, parameter: str = "results") -> None:
    """Looks, before any work, whether results can be written.

    Args:
        folder: that will be written to; it need not be there yet.
        parameter: what it was given as, for the message.

    Raises:
        SettingsError: naming the folder.
    """
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "read-only" if place.is_dir() else "no folder"
        raise SettingsError(f"{parameter}={str(folder)!r} cannot be written, {place} is {what}: give another folder")


def make_folder(folder: Path, parameter: str = "results") -> None:
    """Makes a folder, with all above it.

    Raises:
        SettingsError: naming it, where even the system's administrator cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}): give another folder"
        raise SettingsError(f"{parameter}={str(folder)!r} {reason}") from error


def check_no_reference(root: Path) -> None:
    """Looks, before any work, whether a results root holds references, which are read only.

    Raises:
        SettingsError: naming it.
    """
    if is_reference(root):
        raise SettingsError(f"results={str(root)!r} holds references, which are only read: give another folder")


def _existing(path: Path) -> Path:
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def sha256(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        SettingsError: naming the file, if it is not there or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON, all or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame without its index, all or nothing."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


class Run:
    """One chain's folder, ``results/<profile>/<setting>/<method>/seed<k>/``; a control's is under ``controls/``.

    Another model than PromptIR has its chains under ``models/<name>/``.

    Args:
        settings: of the run.
        method: by whose rules it is played.
        results: root of all results.
        control: name of a control or variant, which has a folder of its own.
        about: what else decides the results of a control.
    """

    def __init__(
        self,
        settings: Settings,
        method: str,
        results: Path | str | None = None,
        control: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self.method, self.control, self.about = settings, method, control, about or {}
        place = Path("controls") / control if control else Path(method)
        if isinstance(settings.network, ModelSettings):
            place = Path("models") / settings.network.label / place
        self.root = results_root(results)
        self.folder = self.root / settings.profile / settings.setting / place / f"seed{settings.seed}"

    def round_folder(self, index: int) -> Path:
        """Returns the folder of one round."""
        return self.folder / f"round{index:02d}"

    def claim(self, fingerprint: str, device: torch.device | str) -> None:
        """Writes ``run.json`` into a new folder; checks that an old one was made with the same settings and data.

        Args:
            fingerprint: of the images.
            device: of the training.

        Raises:
            SettingsError: showing what differs.
        """
        wanted = {**self.deciding(), "data_fingerprint": fingerprint}
        if self.belongs(wanted):
            return
        with self.alone():
            if not self.belongs(wanted):  # or another process was here first
                self._begin(wanted, device)

    def _begin(self, wanted: dict[str, Any], device: torch.device | str) -> None:
        run = {"method": self.method, "profile": self.settings.profile, "key": self.settings.key(self.method)}
        run |= {"control": self.control} if self.control else {}
        settings = {**self.settings.plain(), **wanted}
        write_json(self.folder / "run.json", {**run, "settings": settings, **provenance(device)})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the folder: whoever else wants to work in it waits. However a process ends, the system lets go of it.

        Whoever comes after a killed process removes the half-written files that it left.

        Raises:
            SettingsError: if the folder is read-only.
        """
        check_no_reference(self.root)
        check_writable(self.folder)
        make_folder(self.folder)
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            print(f"waiting for another process, which works on {self.folder}", flush=True)
            lock.acquire(poll_interval=0.5)
        try:
            self._sweep()
            yield
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Removes what a killed process left: half-written files, and checkpoints of rounds that are finished."""
        for path in self.folder.rglob(".*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        for path in self.folder.glob("round*/round.json"):
            self._drop_checkpoints(path.parent)

    @staticmethod
    def _drop_checkpoints(folder: Path) -> None:
        for path in folder.glob(f"{CHECKPOINT}*"):
            path.unlink(missing_ok=True)

    def deciding(self) -> dict[str, Any]:
        """All that decides the results, but for the images."""
        return {**self.settings.deciding(self.method), **self.about}

    def belongs(self, wanted: dict[str, Any] | None = None) -> bool:
        """Whether the folder holds a run already, which must be of the same settings.

        Args:
            wanted: what ``run.json`` must say; the settings that decide, whatever the data, if not given.

        Raises:
            SettingsError: showing what differs.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            return False
        # A setting that is younger than the run had its default then.
        found = {**Settings().plain(), **json.loads(path.read_text())["settings"]}
        wanted = wanted or self.deciding()
        keys = sorted(k for k in wanted if wanted[k] != found.get(k))
        if keys:
            changes = ", ".join(f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} asked" for k in keys)
            raise SettingsError(
                f"{self.folder} holds a run with other settings ({changes}); give another results folder, or remove it"
            )
        return True

    def check_writable(self, indices: Iterable[int]) -> None:
        """Looks, before any work, whether rounds that are still to be played can be written.

        Raises:
            SettingsError: naming the folder, if it is read-only.
        """
        if not all(self.finished(index) for index in indices):
            check_no_reference(self.root)
            check_writable(self.folder)

    def finished(self, index: int) -> bool:
        """Whether a round is complete: its ``round.json`` is written last."""
        return (self.round_folder(index) / "round.json").is_file()

    def save_mask(self, index: int, mask: Mask) -> None:
        """Writes the mask that a round is (to be) trained under."""
        with atomic(self.round_folder(index) / "mask.npz") as temporary:
            mask.save(temporary)

    def load_mask(self, index: int) -> Mask | None:
        """Reads the mask of a round, or returns None if there is none yet."""
        path = self.round_folder(index) / "mask.npz"
        return Mask.load(path) if path.is_file() else None

    def save_weights(self, index: int, network: nn.Module) -> None:
        """Writes the network's weights as safetensors."""
        self.save_tensors(f"round{index:02d}/weights.safetensors", network.state_dict())

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes tensors as safetensors.

        Args:
            name: of the file, in the run's folder.
            tensors: by name.
        """
        with atomic(self.folder / name) as temporary:
            safetensors.torch.save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary)

    def load_tensors(self, name: str, network: nn.Module) -> None:
        """Reads what ``save_tensors`` wrote into the network's tensors of the same names."""
        own = network_tensors(network)
        with torch.no_grad():
            for place, value in safetensors.torch.load_file(self.folder / name).items():
                own[place].copy_(value)

    def load_weights(self, index: int, network: nn.Module) -> None:
        """Reads a round's trained weights into a network.

        Raises:
            FileNotFoundError: saying which rounds are kept, if this one's are not.
        """
        path = self.round_folder(index) / "weights.safetensors"
        if not path.is_file():
            kept = sorted(p.parent.name for p in self.folder.glob("round*/weights.safetensors"))
            raise FileNotFoundError(
                f"{path} is missing: this run keeps the weights of {', '.join(kept) or 'no round'} "
                "(setting keep_weights)"
            )
        network.load_state_dict(safetensors.torch.load_file(path))

    def finish(self, index: int, history: pd.DataFrame, metrics: pd.DataFrame, facts: dict[str, Any]) -> None:
        """Writes a round's tables, and, last, ``round.json`` with its facts; then it needs no checkpoint any more.

        On record are also the fingerprint of the mask, and SHA-256 (hex) of the files in HASHED that are there by then.
        """
        folder = self.round_folder(index)
        write_csv(folder / "history.csv", history)
        write_csv(folder / "metrics.csv", metrics)
        hashes = {name: sha256(folder / name) for name in HASHED if (folder / name).is_file()}
        if mask := self.load_mask(index):
            hashes["mask"] = mask.fingerprint
        write_json(folder / "round.json", {"index": index, **facts, "sha256": hashes})
        self._drop_checkpoints(folder)


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Returns what a reader needs to judge a run: versions, machine, device, threads, commit, time."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": platform.machine(),
        "cpu": processor(),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain", "--untracked-files=no") or "").splitlines()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Returns the processor's name, as far as the system knows it, and the widest instructions that torch found there.

    Either may make sums round otherwise; many a virtual machine hides which model it is.
    """
    name = next(line.split(":", 1)[1].strip() for line in processor_facts() if line.startswith("model name"))
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project_root(), capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")


def write_summary(run: Run) -> None:
    """Writes ``summary.csv`` of a run; an equal one is left alone, so that what was made from it stays new."""
    path, frame = run.folder / "summary.csv", summary(run.folder)
    if not path.is_file() or path.read_text() != frame.to_csv(index=False):
        with run.alone():
            write_csv(path, frame)


def summary(folder: Path) -> pd.DataFrame:
    """Gathers the finished rounds of one run folder: a row a round and task, means over images.

    Returns:
        Columns ``round``, ``density``, ``kept``, ``parameters`` (kept + never pruned), ``task``, ``psnr``, ``ssim``,
        ``input_psnr``, ``input_ssim``.
    """
    parts = []
    for path in sorted(folder.glob("round*/round.json")):
        facts = json.loads(path.read_text())
        metrics = pd.read_csv(path.with_name("metrics.csv"))
        means = metrics.groupby("task", sort=False)[["psnr", "ssim", "input_psnr", "input_ssim"]].mean().reset_index()
        for place, name in enumerate(("index", "density", "kept", "parameters")):
            means.insert(place, "round" if name == "index" else name, facts[name])
        parts.append(means)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
