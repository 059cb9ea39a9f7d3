"""What an interrupted training goes on from: its two last checkpoints, each written whole and checked when read."""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from mirl_study import store
from mirl_study.network import tensors

COST = 50  # a checkpoint comes at the earliest after so many times what the last one took: 2 % of the time


@dataclass
class Standing:
    """How far a training is; batches depend on (seed, order, step) alone, so there are no random numbers to keep.

    Attributes:
        step: steps done, counted from the beginning of the schedule.
        loss: sum of the losses since the last look, a 0-d tensor on the training device.
        since: steps since the last look.
        rows: of the history.
    """

    step: int
    loss: torch.Tensor
    since: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)


class Checkpoints:
    """The two last checkpoints of one training.

    Args:
        path: of the last one; the one before has the suffix ``.former``.
        training: hash of all that decides the training; a checkpoint of another one is not used.
        every: seconds between two; 0 is one after every step.
    """

    def __init__(self, path: Path, training: str, every: float) -> None:
        self.path, self.former = path, path.with_name(f"{path.name}.former")
        self.training, self.every = training, every
        self.began = self.written = time.perf_counter()
        self.before, self.cost, self.step = 0.0, 0.0, -1

    @property
    def seconds(self) -> float:
        """What the training took so far, the part before the checkpoint that it went on from included."""
        return self.before + time.perf_counter() - self.began

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.perf_counter() - self.written >= (self.every and max(self.every, COST * self.cost))

    def save(self, standing: Standing, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Writes a checkpoint; what was the last one becomes the one before."""
        began = time.perf_counter()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(network, optimizer).items()}
        state["loss"] = standing.loss.detach().cpu()
        facts = {"training": self.training, "step": standing.step, "since": standing.since, "rows": standing.rows}
        text = json.dumps({**facts, "seconds": round(self.seconds, 3)})
        with store.atomic(self.path) as temporary:
            safetensors.torch.save_file(state, temporary, {"facts": text, "sha256": _digest(text, state)})
            if self.path.is_file():
                self.path.replace(self.former)
        self.step, self.written = standing.step, time.perf_counter()
        self.cost = self.written - began

    def load(self, standing: Standing, network: nn.Module, optimizer: torch.optim.Optimizer) -> Standing:
        """Brings network and optimiser to the last checkpoint that is whole and of this training.

        Args:
            standing: at the beginning of the training; returned as it is where there is no such checkpoint.
            network: of the training.
            optimizer: of its parameters, as yet without state.

        Returns:
            Where to go on.
        """
        self.began = time.perf_counter()
        for path, otherwise in ((self.path, "goes on from the one before"), (self.former, "starts again")):
            if not path.is_file():
                continue
            try:
                facts, state = self._read(path)
            except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                warnings.warn(f"checkpoint {path} is not used ({error}): this training {otherwise}", stacklevel=2)
                continue
            _restore(state, network, optimizer)
            self.before, self.step, self.written = facts["seconds"], facts["step"], time.perf_counter()
            loss = state["loss"].to(standing.loss.device)
            return Standing(facts["step"], loss, facts["since"], [tuple(row) for row in facts["rows"]])
        return standing

    def clear(self) -> None:
        """Removes both, and their folder if nothing else is in it."""
        for path in (self.path, self.former):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Reads a checkpoint whole, before anything is changed; raises ValueError if it is damaged or another one's."""
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if header["sha256"] != _digest(header["facts"], state):
            raise ValueError("it is damaged: its hash is another one")
        facts = json.loads(header["facts"])
        if facts["training"] != self.training:
            raise ValueError("it is of other settings, other images, another mask or another start")
        return facts, state


def _state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors that a training changes: ``network/<name>``, and what the optimiser has on each parameter."""
    found = {}
    for name, tensor in tensors(network).items():
        state = {"network": tensor, **optimizer.state.get(tensor, {})}
        found |= {f"{key}/{name}": value for key, value in state.items()}
    return found


@torch.no_grad()
def _restore(state: Mapping[str, torch.Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts back what ``_state`` gave."""
    found = tensors(network)
    for name, value in state.items():
        key, _, place = name.partition("/")
        if key == "network":
            found[place].copy_(value)
        elif place:
            # memory of its own, laid out as the parameter is: what safetensors returns may lie at any address
            like = found[place]
            made = torch.empty_like(like, dtype=value.dtype) if value.shape == like.shape else torch.empty(value.shape)
            optimizer.state[like][key] = made.to(like.device).copy_(value)


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of facts and tensors: safetensors itself would not notice a bit that has changed."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
