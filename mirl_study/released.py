"""Checkpoints as the authors release them: read into our network, and written from it.

They are PyTorch Lightning files, which hold a ``state_dict`` whose names start with ``net.`` beside optimiser moments
and the like. They are pickles, so only ``torch.load(weights_only=True)`` opens them: nothing in them is run.
"""

import hashlib
import math
import pathlib
import pickle
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mirl_study.masks import Mask
from mirl_study.network import PromptIR, build_network, fingerprint
from mirl_study.settings import NetworkSettings, SettingsError, load_settings, nearest
from mirl_study.store import atomic
from mirl_study.tickets import Ticket, TicketError, fill

PREFIX = "net."
HARMLESS = [  # what Lightning keeps hyper-parameters in, read as plain containers: nothing of Lightning is imported
    (Namespace, "argparse.Namespace"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]


def load_released(path: Path | str) -> tuple[PromptIR, Mask]:
    """Reads a checkpoint of the authors, or one that ``save_released`` wrote.

    The network's shape is read from the tensors. The mask is read from their zeros, in every tensor that the released
    code prunes: all those whose names hold ``weight``, which are LayerNorm gains and convolutions that never run, too.
    What a file of weights alone cannot tell: whether a zero was pruned or has just that value (of a new network, about
    one weight in 17 million has), what the network started from, and which rules pruned it.

    Args:
        path: a Lightning file, a state dict saved by PyTorch or as safetensors; names with or without ``net.``.

    Returns:
        The network on the CPU in float32, pruned weights zero, and the mask.

    Raises:
        TicketError: naming the file, and the class that it wants to run or the tensor that does not fit.
    """
    path = Path(path)
    try:
        state = _bare(_load(path))
        network = fill(build_network(shape_of(state)), state)
    except SettingsError as error:
        raise TicketError(f"{path}: {error}") from error
    whole = Mask.dense(network, norms=True, unused=True)
    return network, Mask({name: network.get_parameter(name).detach() != 0 for name in whole})


def save_released(path: Path | str, network: PromptIR) -> None:
    """Writes a network under the released names, all or nothing: ``{"state_dict": {"net.patch_embed...": ...}}``.

    The authors' own network has six convolutions that never run. A network built without them (``unused=False``, as in
    the protocol ``sound``) is loaded there with ``strict=False``.

    Raises:
        OSError: if it cannot be written.
    """
    state = {PREFIX + name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    with atomic(Path(path)) as temporary:
        torch.save({"state_dict": state}, temporary)


def import_released(
    path: Path | str, setting: str = "all_in_one", scope: str = "global", index: int | None = None
) -> Ticket:
    """Makes a ticket of a checkpoint of the authors, with its weights.

    Args:
        path: of the checkpoint.
        setting, scope: of the run that it comes from, which the file does not say.
        index: of the round; the one that leaves the nearest density at the released rate, if not given.

    Returns:
        A ticket of unknown start: shape, mask and weights are read from the file, all other settings, the seed among
            them, are those of the protocol ``released``.

    Raises:
        SettingsError: for a setting or scope that does not exist.
        TicketError: as ``load_released``.
    """
    settings = load_settings("paper", protocol="released", setting=setting, scope=scope)
    network, mask = load_released(path)
    settings = settings.replace(network=network.settings)
    if index is None:
        index = round(math.log(max(mask.density(), 1e-9)) / math.log(1 - settings.rate))
    with Path(path).open("rb") as file:
        source = {"source": Path(path).name, "source_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return Ticket(
        settings=settings,
        method=settings.method() if index else "dense",
        index=index,
        mask=mask,
        origin="unknown",
        start_sha256=None,
        provenance=source,
        weights_sha256=fingerprint(network),
        weights={name: parameter.detach() for name, parameter in network.named_parameters()},
    )


def shape_of(state: Mapping[str, Tensor]) -> NetworkSettings:
    """Reads the shape of a PromptIR from its tensors.

    Args:
        state: tensors by parameter name.

    Raises:
        SettingsError: naming the tensor, if one that is needed is missing or no network has such a shape.
    """

    def size(name: str, axes: int, axis: int = 0) -> int:
        if name not in state:
            raise TicketError(f"{name} is missing{nearest(name, state)}: this is no PromptIR")
        if state[name].ndim != axes:
            raise TicketError(f"{name} has shape {tuple(state[name].shape)}, {axes} axes are wanted")
        return state[name].shape[axis]

    def blocks(stage: str) -> int:
        return len({match[1] for name in state if (match := re.match(rf"{stage}\.(\d+)\.", name))})

    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    prompt = "prompt1.prompt_param"
    return NetworkSettings(
        dim=size("patch_embed.proj.weight", 4),
        blocks=tuple(blocks(stage) for stage in stages),
        refinement=blocks("refinement"),
        heads=tuple(size(f"{stage}.0.attn.temperature", 3) for stage in stages),
        expansion=_expansion({tuple(t.shape[:2]) for n, t in state.items() if n.endswith("ffn.project_out.weight")}),
        prompt_components=size(prompt, 5, 1),
        prompt_size=size(prompt, 5, 4),
        unused=any(name.startswith("chnl_reduce") for name in state),
    )


def _expansion(shapes: set[tuple[int, ...]]) -> float:
    """The number of fewest decimals that widens each (channels, hidden) as it is: hidden = int(channels x number)."""
    pairs = [shape for shape in shapes if len(shape) == 2 and min(shape) > 0]
    if not pairs:
        raise TicketError("no ffn.project_out.weight of two axes or more: this is no PromptIR")
    low = max(Fraction(hidden, channels) for channels, hidden in pairs)
    for decimals in range(9):
        value = math.ceil(low * 10**decimals) / 10**decimals
        if all(int(channels * value) == hidden for channels, hidden in pairs):
            return value
    raise TicketError(f"no one expansion widens (channels, hidden) {', '.join(map(str, sorted(pairs)))}")


def _load(path: Path) -> Any:
    """What the file holds, by readers that run nothing."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(HARMLESS):  # mmap: optimiser moments are then never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise TicketError(f"cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f"wants to run {wanted[1]}, which is refused" if wanted else "is no checkpoint, or damaged"
        raise TicketError(f"{what}; only tensors, numbers, text and lists of them are read") from error
    except Exception as error:  # a damaged file fails in many ways; all mean the same to the reader
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TicketError(f"is no checkpoint, or damaged: {first}") from error


def _bare(content: Any) -> dict[str, Tensor]:
    """The network's tensors by their names in our network."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise TicketError("holds no state_dict")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TicketError(f"state_dict: {name!r} is no tensor of real numbers")
    if any(name.startswith(PREFIX) for name in state):
        if others := [name for name in state if not name.startswith(PREFIX)]:
            raise TicketError(f"state_dict: {others[0]} is unexpected: all names start with {PREFIX}, or none")
        state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return dict(state)
