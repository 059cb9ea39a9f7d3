"""One process's work on one run: alone in its folder, and on the record in ``run.json``."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from mirl_study import kernels, store
from mirl_study.checkpoint import Checkpoints
from mirl_study.energy import Meter, peak_memory
from mirl_study.store import Run

HEARTBEAT = 60  # seconds between two writings of an entry: what a killed process leaves is not older


class Session:
    """One process's work on one run; it can be laid down and taken up.

    Args:
        run: that is worked on; it is claimed already.
        device: of the training.
    """

    def __init__(self, run: Run, device: torch.device | str) -> None:
        self.run, self.device, self.meter = run, device, Meter(device)
        self.place: int | None = None  # among the sessions of the run
        self.facts: dict[str, Any] = {}
        self.seconds, self.since, self.written = 0.0, 0.0, -math.inf

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Works on the run; another process waits, with a line that says for which run."""
        with self.run.alone():
            self.since = time.perf_counter()
            self.meter.skip()
            self.facts = self.facts or self._facts()
            try:
                yield
            finally:
                with suppress(OSError):  # a disk that is full has raised its error already
                    self.note()
                self.seconds += time.perf_counter() - self.since

    def _facts(self) -> dict[str, Any]:
        settings = self.run.settings
        facts = {**store.provenance(self.device), "devices": settings.devices}
        if settings.compile and settings.precision == "float32" and torch.device(self.device).type == "cpu":
            facts["kernels"] = kernels.state()
        return facts

    def checkpoints(self, folder: Path, **training: Any) -> Checkpoints:
        """Returns the checkpoints of one training of this run.

        Args:
            folder: where they are.
            **training: what decides it beside the run's settings and images.
        """
        images = json.loads((self.run.folder / "run.json").read_text())["settings"]["data_fingerprint"]
        text = json.dumps([self.run.deciding(), images, training], sort_keys=True)
        every = self.run.settings.checkpoint_every
        return Checkpoints(folder / store.CHECKPOINT, hashlib.sha256(text.encode()).hexdigest(), every)

    def step(self, index: int, step: int) -> None:
        """Step ``step`` of round ``index`` is done."""
        self.facts.setdefault("from", {"round": index, "step": step})
        self.facts["to"] = {"round": index, "step": step}
        if time.perf_counter() - self.written >= HEARTBEAT:
            self.note()

    def note(self) -> None:
        """Writes the entry of this session; who calls it is alone."""
        path = self.run.folder / "run.json"
        content = json.loads(path.read_text())
        sessions = content.setdefault("sessions", [])
        if self.place is None:
            self.place = len(sessions)
            sessions.append({})
        seconds = round(self.seconds + time.perf_counter() - self.since, 3)
        entry = {**self.facts, "wall_seconds": seconds, "peak_memory_bytes": peak_memory(self.device)}
        sessions[self.place] = entry | ({"joules": joules} if (joules := self.meter.joules()) else {})
        store.write_json(path, content)
        self.written = time.perf_counter()
