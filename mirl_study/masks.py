"""Mask algebra: boolean tensors by parameter name, True = kept."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from mirl_study.comparison import skeleton
from mirl_study.network import PRUNABLE_KINDS, PromptIR, describe
from mirl_study.settings import PRESETS, Settings, choose


class Mask(Mapping[str, Tensor]):
    """Which of the prunable weights are kept.

    Args:
        tensors: boolean tensors by parameter name; a parameter without one is not prunable.

    Raises:
        TypeError: for a tensor that is not boolean.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        wrong = [name for name, tensor in tensors.items() if tensor.dtype is not torch.bool]
        if wrong:
            raise TypeError(f"mask of {wrong[0]} is {tensors[wrong[0]].dtype}, torch.bool is wanted")
        self._tensors = dict(tensors)

    @classmethod
    def dense(cls, network: nn.Module, *, norms: bool = False, unused: bool = False) -> "Mask":
        """Returns the mask that keeps everything.

        Args:
            network: with parameters described by ``network.describe``.
            norms: whether LayerNorm gains are prunable, as in the released code.
            unused: whether the convolutions that never run are prunable, as in the released code.
        """
        kinds = {*PRUNABLE_KINDS, *(["norm"] if norms else []), *(["unused"] if unused else [])}
        table = describe(network)
        table = table[table.kind.isin(kinds)]
        return cls(
            {
                name: torch.ones(shape, dtype=torch.bool)
                for name, shape in zip(table["name"], table["shape"], strict=True)
            }
        )

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Mask({self.kept:,} of {self.size:,} kept, density {self.density():.4f}, {len(self)} tensors)"

    def __eq__(self, other: object) -> bool:
        """Whether both keep exactly the same weights of the same tensors."""
        return (
            isinstance(other, Mask) and self._fits(other) and all(torch.equal(self[name], other[name]) for name in self)
        )

    @property
    def size(self) -> int:
        """Number of prunable weights."""
        return sum(tensor.numel() for tensor in self.values())

    @property
    def kept(self) -> int:
        """Number of weights that are kept."""
        return sum(map(_count, self.values()))

    @overload
    def density(self) -> float: ...
    @overload
    def density(self, by: str) -> dict[str, float]: ...
    def density(self, by: str | None = None) -> float | dict[str, float]:
        """Kept over prunable; 1 if nothing is prunable.

        Args:
            by: ``kind`` (``qkv``, ``depthwise`` ...) or ``layer``, for the density of each; the whole if not given.

        Returns:
            One number, or numbers by name, in the network's order.

        Raises:
            SettingsError: for an unknown ``by``.
        """
        if by is None:
            return self.kept / self.size if self.size else 1.0
        return {name: kept / size for name, (kept, size) in self.counts(by).items()}

    def counts(self, by: str) -> dict[str, tuple[int, int]]:
        """Counts (kept, prunable) by ``kind`` or ``layer``, in the network's order.

        Raises:
            SettingsError: for an unknown ``by``.
        """
        choose("by", by, ("kind", "layer"))
        groups: dict[str, tuple[int, int]] = {}
        for name, tensor in self.items():
            group = kind_of(name) if by == "kind" else name.rpartition(".")[0]
            kept, size = groups.get(group, (0, 0))
            groups[group] = kept + _count(tensor), size + tensor.numel()
        return groups

    def densities(self) -> dict[str, float]:
        """Density by parameter name."""
        return {name: _count(tensor) / tensor.numel() for name, tensor in self.items()}

    def emptied(self) -> list[str]:
        """Names of tensors without a single kept weight, in the network's order."""
        return [name for name, tensor in self.items() if not tensor.any()]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, shapes and bits."""
        digest = hashlib.sha256()
        for name, tensor in self.items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(np.packbits(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def shuffled(self, generator: torch.Generator) -> "Mask":
        """Returns a mask that keeps as many weights in each tensor, at places drawn at random."""
        return Mask(
            {
                name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
                for name, tensor in self.items()
            }
        )

    def iou(self, other: "Mask") -> float:
        """Weights kept by both over weights kept by either; 1 if both are empty.

        Raises:
            ValueError: if the masks are of different networks.
        """
        both, either = (self._combine(other, op).kept for op in (torch.logical_and, torch.logical_or))
        return both / either if either else 1.0

    def __and__(self, other: "Mask") -> "Mask":
        return self._combine(other, torch.logical_and)

    def __or__(self, other: "Mask") -> "Mask":
        return self._combine(other, torch.logical_or)

    def __le__(self, other: "Mask") -> bool:
        """Whether everything kept here is kept in ``other``: pruning only ever removes."""
        return self._combine(other, lambda a, b: a & ~b).kept == 0

    def to(self, device: torch.device | str) -> "Mask":
        """Returns the mask on another device."""
        return Mask({name: tensor.to(device) for name, tensor in self.items()})

    def apply_(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets what is not kept to zero, in place.

        Args:
            tensors: weights or gradients by parameter name, of the mask's shapes and on its device; others are left
                alone.
        """
        with torch.no_grad():
            for name, tensor in self.items():
                tensors[name].mul_(tensor.view(torch.uint8))  # bytes become floats twice as fast as booleans do

    def save(self, path: Path) -> None:
        """Writes one bit a weight, as a compressed npz that numpy reads."""
        packed = {name: np.packbits(tensor.cpu().numpy()) for name, tensor in self.items()}
        shapes = {f"shape/{name}": np.array(tensor.shape) for name, tensor in self.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, **packed, **shapes)

    @classmethod
    def load(cls, path: Path) -> "Mask":
        """Reads what ``save`` wrote; runs no code from the file.

        Raises:
            ValueError: naming the file, if it is not a mask.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = [name for name in file.files if not name.startswith("shape/")]
                shapes = {name: tuple(int(n) for n in file[f"shape/{name}"]) for name in names}
                bits = {
                    name: np.unpackbits(file[name], count=int(np.prod(shapes[name]))).astype(bool) for name in names
                }
                return cls({name: torch.from_numpy(bits[name].reshape(shapes[name])) for name in names})
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged archive fails in many ways; all mean the same to the reader
            raise ValueError(f"{path} is not a mask, or damaged: {error}") from error

    def _fits(self, other: "Mask") -> bool:
        return {n: t.shape for n, t in self.items()} == {n: t.shape for n, t in other.items()}

    def _combine(self, other: "Mask", op: Callable[[Tensor, Tensor], Tensor]) -> "Mask":
        if not self._fits(other):
            raise ValueError("the masks are of different networks: names or shapes differ")
        return Mask({name: op(self[name], other[name]) for name in self})


def dense_mask(settings: Settings) -> Mask:
    """Returns the mask of round 0, without a network's values."""
    network = skeleton(settings.network)
    return Mask.dense(network, norms=settings.prune_norms, unused=settings.prune_unused)


def kind_of(name: str) -> str:
    """Returns what a parameter of a PromptIR of any size is for: widths and numbers of blocks do not change names.

    Raises:
        KeyError: if no PromptIR has a parameter of this name.
    """
    return _kinds()[re.sub(r"(?<=\.)\d+(?=\.)", "0", name)]


@functools.cache
def _kinds() -> dict[str, str]:
    """Kinds by name, of the first block of each stage."""
    with torch.device("meta"):
        table = describe(PromptIR(dataclasses.replace(PRESETS["pico"], unused=True)))
    return dict(zip(table["name"], table["kind"], strict=True))


def _count(keep: Tensor) -> int:
    """How many are kept; numpy counts bytes ten times faster than a sum of integers does."""
    return int(np.count_nonzero(keep.cpu().numpy()))
