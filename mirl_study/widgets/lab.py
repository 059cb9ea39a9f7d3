"""What the lab looks at: finished runs, their masks and their kept networks, opened once."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mirl_study import analysis, criteria, evaluation
from mirl_study.data import Sample, load_bank
from mirl_study.lottery import Round, load_round
from mirl_study.masks import Mask, dense_mask
from mirl_study.network import PromptIR
from mirl_study.settings import LOTTERY, Settings, SettingsError, load_settings
from mirl_study.store import project_root

CROP = 56  # pixels: of the middle part that a callback restores; two networks then take less than a tenth of a second
CLOSE = 0.1  # dB that count as no difference, as in the other notebooks
SCOPES = {scope: method for method, scope in LOTTERY.items()}


class Restored(NamedTuple):
    """An image (3, H, W) in [0, 1], its PSNR in dB and its SSIM; both are NaN where there is no target."""

    image: Tensor
    psnr: float
    ssim: float


@dataclass(frozen=True, eq=False)
class Lab:
    """Finished runs of one setting and seed: the dense network and both lotteries, with what lies beside them.

    Attributes:
        profile, setting, seed, results: which runs.
        settings: those of the runs.
        found: what ``analysis.runs`` returned.
        folders: of ``dense``, ``MIR-L-G`` and ``MIR-L-LW``.
        samples: the middle of the first test image of each task, by task.
        photographs: how many different targets the test images have.
    """

    profile: str
    setting: str
    seed: int
    results: Path | str | None
    settings: Settings
    found: pd.DataFrame
    folders: dict[str, Path]
    samples: dict[str, Sample]
    photographs: int

    @classmethod
    def open(
        cls, profile: str = "laptop", setting: str = "all_in_one", seed: int = 0, results: Path | str | None = None
    ) -> "Lab":
        """Looks whether all is there, and reads what every station needs.

        Args:
            profile, setting, seed: which runs.
            results: root of all results; the project's ``results/`` if not given.

        Raises:
            SettingsError: naming the run, or the weights, that are not there.
        """
        found = analysis.runs(profile, results)
        folders = {name: analysis.find(found, setting, name, seed) for name in ("dense", *LOTTERY)}
        if not analysis.kept_rounds(folders["dense"]):
            raise SettingsError(
                f"seed={seed!r}: {folders['dense']} keeps no trained weights, and the lab prunes them: take a seed "
                "whose weights were kept"
            )
        settings = analysis.open_run(folders["dense"]).settings
        samples: dict[str, Sample] = {}
        bank = load_bank(settings, "test", project_root())
        for sample in bank.samples():
            samples.setdefault(sample.task, middle(sample))
        targets = {row.target for rows in bank.rows.values() for row in rows}
        return cls(profile, setting, seed, results, settings, found, folders, samples, len(targets))

    @functools.cached_property
    def scores(self) -> pd.DataFrame:
        """What ``analysis.scores`` returns, of this setting."""
        return analysis.scores(self.found[self.found.setting == self.setting])

    @functools.cached_property
    def panels(self) -> list[str]:
        """Families of tasks and their mean, the mean first; of a single family, that one."""
        there = set(self.scores.task)
        families = [name for name in analysis.FAMILIES if name in there]
        return ["mean", *families] if len(families) > 1 else families

    @functools.cached_property
    def _curves(self) -> dict[tuple[str, str], pd.Series]:
        own = self.scores[self.scores.seed == self.seed].sort_values("round").set_index("round")
        return {key: part.psnr for key, part in own.groupby(["method", "task"])}

    def curve(self, method: str, task: str) -> pd.Series:
        """PSNR (dB) by round, of the lab's seed."""
        return self._curves[method, task]

    @functools.cached_property
    def levels(self) -> pd.DataFrame:
        """PSNR (dB) of the dense network and of the input, by task: ``psnr``, ``input_psnr``."""
        own = self.scores[(self.scores.method == "dense") & (self.scores.seed == self.seed)]
        return own.set_index("task")[["psnr", "input_psnr"]]

    @functools.cached_property
    def rounds(self) -> int:
        """The last round that both lotteries have."""
        return min(max(self.curve(method, self.panels[0]).index) for method in LOTTERY)

    @functools.cached_property
    def ticket(self) -> int:
        """The round whose ticket has controls, by the profile; what a run records of itself need not name it."""
        return min(load_settings(self.settings.profile).ticket(), self.rounds)

    def mask(self, method: str, index: int, folder: Path | None = None) -> Mask:
        """Reads the mask of a round, once."""
        return _mask(folder or self.folders[method], index)

    @functools.cached_property
    def layers(self) -> list[str]:
        """Names of the prunable layers, in the network's order."""
        return [name.removesuffix(".weight") for name in self.mask("MIR-L-G", 0)]

    def kept(self, method: str) -> list[int]:
        """Rounds of a lottery, or of ``dense``, whose trained weights were kept."""
        return analysis.kept_rounds(self.folders[method])

    def network(self, method: str = "dense", index: int = 0) -> PromptIR:
        """Returns a kept network, trained; read once, so leave it as it is."""
        return _network(self.folders[method], index)

    @functools.cached_property
    def magnitudes(self) -> dict[str, Tensor]:
        """Magnitudes of the dense network's prunable weights, by name."""
        return criteria.magnitude(criteria.Evidence(self.network(), self.mask("MIR-L-G", 0)))

    def pruned(self, density: float, scope: str) -> Mask:
        """Returns the mask that keeps the largest magnitudes of the dense network, made once."""
        key = (round(density, 6), scope)
        if key not in self._pruned:
            dense = self.mask("MIR-L-G", 0)
            self._pruned[key] = criteria.prune(dense, self.magnitudes, 1 - density, scope)
        return self._pruned[key]

    @functools.cached_property
    def _pruned(self) -> dict[tuple[float, str], Mask]:
        return {}

    @functools.cached_property
    def _restored(self) -> dict[tuple, Restored]:
        return {}

    def restored(self, task: str, method: str = "input", index: int = 0) -> Restored:
        """Restores a sample by a kept network; ``input`` and ``target`` are the sample itself."""
        sample = self.samples[task]
        if method in ("input", "target"):
            return rate(sample.degraded if method == "input" else sample.target, sample.target)
        key = (task, method, index)
        if key not in self._restored:
            self._restored[key] = rate(evaluation.restore(self.network(method, index), sample.degraded), sample.target)
        return self._restored[key]

    def restored_pruned(self, task: str, density: float, scope: str) -> Restored:
        """Restores a sample by the trained dense network, pruned and not trained again."""
        sample, key = self.samples[task], (task, round(density, 6), scope)
        if key not in self._restored:
            dense = self.network()
            with kept_only(dense, self.pruned(density, scope)) as network:
                self._restored[key] = rate(evaluation.restore(network, sample.degraded), sample.target)
        return self._restored[key]


class kept_only:
    """Within the block, a network has only what a mask keeps; afterwards it is whole again."""

    def __init__(self, network: PromptIR, mask: Mask) -> None:
        self.network, self.mask = network, mask

    def __enter__(self) -> PromptIR:
        self.whole = {name: self.network.get_parameter(name).detach().clone() for name in self.mask}
        self.mask.apply_(dict(self.network.named_parameters()))
        return self.network

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for name, values in self.whole.items():
                self.network.get_parameter(name).copy_(values)


def middle(sample: Sample, size: int = CROP) -> Sample:
    """Cuts the middle out of a sample's images."""
    height, width = sample.target.shape[-2:]
    top, left = max(0, height - size) // 2, max(0, width - size) // 2
    cut = (..., slice(top, top + size), slice(left, left + size))
    return sample._replace(degraded=sample.degraded[cut].contiguous(), target=sample.target[cut].contiguous())


def rate(images: Tensor, target: Tensor | None) -> Restored:
    """Sets an image (1, 3, H, W) beside its target."""
    if target is None:
        return Restored(images[0], float("nan"), float("nan"))
    scores = evaluation.psnr(images, target).item(), evaluation.ssim(images, target).item()
    return Restored(images[0], *scores)


@functools.lru_cache(maxsize=256)
def _mask(folder: Path, index: int) -> Mask:
    run = analysis.open_run(folder)
    return load_round(run, index).mask if index else dense_mask(run.settings)


@functools.lru_cache(maxsize=16)
def _network(folder: Path, index: int) -> PromptIR:
    played: Round = load_round(analysis.open_run(folder), index)
    return played.network().eval()


def spread(last: int, count: int = 4) -> list[int]:
    """A few rounds from the first to the last one, for stills."""
    return sorted({round(1 + (last - 1) * place / (count - 1)) for place in range(count)}) if last else [0]


def options(names: Iterable[str]) -> dict[str, str]:
    """Options whose text is their value."""
    return {name: name for name in names}
