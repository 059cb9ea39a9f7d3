"""Training by several processes, each with its share of every batch: Lightning Fabric starts them and joins them (DDP).

The batch is the same function of (seed, order, step) as for one process, so the data are the same, and the gradient is
its mean but for rounding. The first process writes the checkpoints; the last of them is the result.
"""

import copy
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessException

from mirl_study import training
from mirl_study.checkpoint import Checkpoints, Standing
from mirl_study.data import Bank
from mirl_study.masks import Mask
from mirl_study.settings import Settings, SettingsError
from mirl_study.stopping import postponed
from mirl_study.store import WriteFailed
from mirl_study.team import Team


class Ranks(Team):
    """One of several processes.

    Args:
        fabric: Lightning's, launched.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric, self.rank, self.size = fabric, fabric.global_rank, fabric.world_size

    def join(self, network: nn.Module) -> nn.Module:
        """Wraps the network in DDP."""
        return self.fabric.setup_module(network)

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns the equal part that begins at rank x its size."""
        return batch.chunk(self.size)[self.rank]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean over all ranks."""
        return self.fabric.all_reduce(value.clone(), reduce_op="mean")

    def gather(self, parts: torch.Tensor) -> torch.Tensor:
        """Returns the parts of all ranks."""
        return self.fabric.all_gather(parts.int()).flatten(0, 1).bool()


def check(settings: Settings, device: torch.device) -> None:
    """Looks, before any work, whether the devices that are asked for can work together.

    Args:
        settings: of the run.
        device: that one process would train on.

    Raises:
        SettingsError: Lightning Fabric is not installed, or there are fewer GPUs.
    """
    if settings.devices == 1:
        return
    try:
        import lightning_fabric  # noqa: F401 (whether it is there)
    except ImportError:
        raise SettingsError(
            f"devices={settings.devices} needs Lightning Fabric: pip install lightning-fabric, or devices=1"
        ) from None
    there = torch.cuda.device_count()
    if device.type == "cuda" and settings.devices > there:
        raise SettingsError(f"devices={settings.devices} is not allowed: this machine has {there}")


def train(network: nn.Module, mask: Mask, bank: Bank, settings: Settings, **how: Any) -> pd.DataFrame:
    """Trains as ``training.train`` does, on as many devices as the settings say.

    Args:
        network, mask, bank, settings, **how: as there.

    Returns:
        The history.

    Raises:
        Diverged, WriteFailed: as there.
    """
    if settings.devices == 1:
        return training.train(network, mask, bank, settings, **how)
    device = bank.pixels.device
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = how.pop("checkpoints", None) or Checkpoints(Path(folder) / "checkpoint", "", every=float("inf"))
        on_step = how.pop("on_step", None) or (lambda step, loss: None)
        network.cpu()
        how["validation"] = _on(torch.device("cpu"), how.get("validation"))
        place = (checkpoints.path, checkpoints.training, checkpoints.every)
        work = (network, mask.to("cpu"), _on(torch.device("cpu"), bank), settings, how, place)
        _launch(device, settings, work, on_step)
        optimizer = torch.optim.AdamW(network.to(device).parameters())
        at = checkpoints.load(Standing(0, torch.zeros((), device=device)), network, optimizer)
    return pd.DataFrame(at.rows, columns=training.HISTORY)


def _launch(
    device: torch.device, settings: Settings, work: tuple[Any, ...], on_step: Callable[[int, float], None]
) -> None:
    """Starts the processes, hears what the first of them tells, and waits for their end."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    os.environ.pop("MASTER_PORT", None)  # of the last training: a free one is found
    fabric = Fabric(
        accelerator=device.type,
        devices=settings.devices,
        strategy=DDPStrategy(start_method="spawn", find_unused_parameters=settings.network.unused),
        plugins=[LightningEnvironment()],  # these processes are nobody else's, whatever a cluster's variables say
    )
    told, failed, first = multiprocessing.get_context("spawn").SimpleQueue(), [], []

    def forward(*signals: int) -> None:
        """A request to stop goes to the first process, which writes a checkpoint and ends; the others end with it."""
        for pid in first:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def listen() -> None:
        while (message := told.get()) is not None:
            try:
                if isinstance(message, int):
                    first.append(message)
                    if asked:
                        forward()
                elif isinstance(message, BaseException):
                    failed.append(message)
                else:
                    on_step(*message)
            except Exception as error:  # of on_step: it ends the training as it would in one process
                failed.append(error)
                forward()

    with postponed(forward) as asked:
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            fabric.launch(partial(_work, work, told))
        except ProcessException as error:
            told.put(None)
            listener.join()
            asked.deliver()
            raise (failed or [error])[0] from None
        told.put(None)
        listener.join()
        if failed:
            raise failed[0]


def _work(work: tuple[Any, ...], told: Any, fabric: Any) -> None:
    """What each process does; the first one tells its id, its steps, and why it fails."""
    network, mask, bank, settings, how, place = work
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # whoever is killed takes all
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that started them passes it on
    how["validation"] = _on(fabric.device, how["validation"])
    if fabric.global_rank == 0:
        told.put(os.getpid())
        how["on_step"] = lambda step, loss: told.put((step, loss))
    team = Ranks(fabric)
    network = copy.deepcopy(network).to(fabric.device)  # on the CPU it came in memory that all processes share
    try:
        training.train(
            network, mask, _on(fabric.device, bank), settings, **how, checkpoints=Checkpoints(*place), team=team
        )
    except (training.Diverged, WriteFailed) as error:
        if fabric.global_rank == 0:
            told.put(error)
        raise


def _on(device: torch.device, bank: Bank | None) -> Bank | None:
    return bank and replace(bank, pixels=bank.pixels.to(device))
