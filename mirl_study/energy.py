"""Energy and memory, where the system counts them; what is not counted is absent, never guessed."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


@dataclass
class Counter:
    """One counter of energy.

    Attributes:
        name: ``processor`` or ``gpu``.
        read: returns joules since some time in the past.
        turn: where it begins again at 0, in joules.
        last: what it said when it was last read.
        total: joules since then.
    """

    name: str
    read: Callable[[], float]
    turn: float
    last: float
    total: float = 0.0

    def look(self) -> None:
        """Takes in what was used since the last look."""
        now = self.read()
        self.total += now - self.last + (self.turn if now < self.last else 0)
        self.last = now


class Meter:
    """Joules since it was made, of whole devices, whoever else used them meanwhile.

    Read it every few minutes: the counters of processors begin again at 0 now and then.

    Args:
        device: of the training.
        powercap: where the kernel shows the counters of processors.
    """

    def __init__(self, device: torch.device | str, powercap: Path = POWERCAP) -> None:
        self.counters = [*_packages(powercap), *_gpu(torch.device(device))]

    def skip(self) -> None:
        """Leaves out what was used since the last look."""
        for counter in self.counters:
            counter.last = counter.read()

    def joules(self) -> dict[str, float]:
        """Returns the energy by name: ``processor`` (all packages, by RAPL) and ``gpu`` (by NVML)."""
        sums: dict[str, float] = {}
        for counter in self.counters:
            counter.look()
            sums[counter.name] = round(sums.get(counter.name, 0.0) + counter.total, 1)
        return sums


def peak_memory(device: torch.device | str) -> dict[str, int]:
    """Returns the largest memory that this process has held, in bytes: ``process``, and ``gpu`` on CUDA."""
    peaks = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.device(device).type == "cuda":
        peaks["gpu"] = torch.cuda.max_memory_allocated(device)
    return peaks


def _packages(powercap: Path) -> Iterator[Counter]:
    """The processors' counters, which many systems show to nobody but root."""
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            if (folder / "name").read_text().startswith("package"):
                turn = int((folder / "max_energy_range_uj").read_text()) / 1e6
                path = folder / "energy_uj"
                yield Counter("processor", partial(_joules, path), turn, _joules(path))
        except (OSError, ValueError):
            continue


def _joules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def _gpu(device: torch.device) -> Iterator[Counter]:
    """The GPU's counter, if the driver has one and its Python package, pynvml, is there."""
    if device.type != "cuda":
        return
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        first = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except Exception:  # no package, no driver, no such counter: each raises its own
        return
    yield Counter("gpu", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, float("inf"), first)
