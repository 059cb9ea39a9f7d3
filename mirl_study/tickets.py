"""A ticket on disk: one small file that says which weights of which network are kept, and can be held to what it says.

``NAME.ticket.safetensors`` holds a byte tensor for each tensor of the mask, eight weights a byte (``numpy.packbits`` of
the flattened tensor), and in its header, under ``mirl_ticket``, JSON: ``version``, ``sha256`` and ``content``. The hash
is over the content and the bytes; it guards against damage, not against forgery. Reading never runs code.

Tensors lie beside it where there are any: ``NAME.weights.safetensors`` has the trained weights,
``NAME.start.safetensors`` what the round started from where that is not the initialisation of its seed. The ticket
knows both by their hash.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirl_study.comparison import build_network
from mirl_study.masks import Mask, dense_mask
from mirl_study.network import PromptIR, fingerprint, tensors
from mirl_study.settings import METHODS, ONE_SHOT, Settings, SettingsError, choose, nearest, read_settings
from mirl_study.store import HASHED, Run, atomic, read_json, sha256

HEADER = "mirl_ticket"
VERSION = 1
SUFFIX = ".ticket.safetensors"
ORIGINS = {  # what the round started from
    "initialisation": "the initialisation of its network and seed",
    "changed": "the initialisation of its network and seed, with other values in some tensors",
    "elsewhere": "another network, of which the ticket has the hash alone",
    "unknown": "not known",
}


class TicketError(SettingsError):
    """One line that names the ticket and what is wrong with it."""


@dataclass(frozen=True)
class Ticket:
    """A round's settings, mask and scores, and what is needed to build its network again.

    Attributes:
        settings: of the run, all of them; ``data`` is the folder's name alone.
        method: by whose rules it was drawn.
        index: of its round.
        mask: what is kept.
        origin: what the round started from, one of ORIGINS.
        start_sha256: ``network.fingerprint`` of that, before the mask; None if it is not known.
        scores: by task: means over test images, ``psnr`` (dB), ``ssim``, ``input_psnr``, ``input_ssim``.
        provenance: versions, device, commit, fingerprint of the images, or the file that it was imported from.
        control: name of the control, if it is one.
        weights_sha256: ``network.fingerprint`` of the trained network, if its weights were kept.
        start: where ``origin`` is ``changed``: the tensors that are not those of the initialisation.
        weights: the trained weights by parameter name, if they are at hand.
    """

    settings: Settings
    method: str
    index: int
    mask: Mask
    origin: str
    start_sha256: str | None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None
    weights_sha256: str | None = None
    start: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)
    weights: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, run: Run, index: int, mask: Mask, scores: pd.DataFrame, start: PromptIR | None) -> "Ticket":
        """Makes the ticket of a finished round; ``Round.ticket`` calls it.

        Args:
            run, index, mask, scores: of the round.
            start: the network as the round started, by the rules of a lottery; None if that cannot be built any more.

        Raises:
            TicketError: naming the file, if the run's records are damaged or the start is not the one that they name.
        """
        path = run.round_folder(index) / "round.json"
        try:
            recorded, made = read_json(path)["start_sha256"], read_json(run.folder / "run.json")
            about = {name: made[name] for name in made if name not in ("method", "profile", "settings", "control")}
            about["data_fingerprint"] = made["settings"]["data_fingerprint"]
        except (SettingsError, KeyError, TypeError) as error:
            raise TicketError(f"{path} or the run.json of its run is damaged: {_line(error)}") from error
        settings = run.settings.replace(data=Path(run.settings.data).name)
        origin, values = "elsewhere", None
        if start is not None and fingerprint(start) == recorded:
            initial = build_network(settings.network, settings.seed)
            pairs = zip(tensors(start).items(), tensors(initial).values(), strict=True)
            values = {name: now.detach() for (name, now), then in pairs if not torch.equal(now, then)}
            origin = "changed" if values else "initialisation"
        elif start is not None and not run.control and run.method not in ONE_SHOT:
            raise TicketError(
                f"{path} names a start with sha256 {recorded}, which this version does not build from seed "
                f"{settings.seed} and what the run kept: {fingerprint(start)}"
            )
        weights, trained = None, build_network(settings.network, settings.seed)
        with suppress(FileNotFoundError):
            try:
                run.load_weights(index, trained)
            except (SafetensorError, RuntimeError) as error:
                raise TicketError(f"{path.with_name('weights.safetensors')} is damaged: {_line(error)}") from error
            weights = {name: tensor.detach() for name, tensor in tensors(trained).items()}
        return cls(
            settings=settings,
            method=run.method,
            index=index,
            mask=mask,
            origin=origin,
            start_sha256=recorded,
            scores={task: {k: float(v) for k, v in row.items()} for task, row in scores.to_dict("index").items()},
            provenance=about,
            control=run.control,
            weights_sha256=fingerprint(trained) if weights else None,
            start=values or None,
            weights=weights,
        )

    @property
    def seed(self) -> int:
        """Of the initialisation and the data order."""
        return self.settings.seed

    def network(self, trained: bool = True) -> PromptIR:
        """Returns the sparse network, trained, or as its round started.

        Raises:
            TicketError: if the ticket has no trained weights, or what it started from cannot be built from it.
        """
        network = self._trained() if trained else self._rewound()
        self.mask.apply_(dict(network.named_parameters()))
        return network

    def save(self, path: Path | str) -> None:
        """Writes the ticket, and its tensors beside it, each file all or nothing, the ticket last.

        Args:
            path: ends in ``.ticket.safetensors``; what is there is replaced.

        Raises:
            TicketError: for another ending.
            OSError: if it cannot be written.
        """
        path = named(path)
        packed = {name: torch.from_numpy(np.packbits(keep.cpu().numpy())) for name, keep in self.mask.items()}
        content = {
            "method": self.method,
            "control": self.control,
            "round": self.index,
            "origin": self.origin,
            "start_sha256": self.start_sha256,
            "weights_sha256": self.weights_sha256,
            "scores": {task: {k: _plain(v) for k, v in row.items()} for task, row in self.scores.items()},
            "settings": self.settings.plain(),
            "provenance": dict(self.provenance),
            "tensors": [[name, list(keep.shape)] for name, keep in self.mask.items()],
        }
        header = {"version": VERSION, "sha256": _digest(content, packed), "content": content}
        for part in ("start", "weights"):
            if (tensors := getattr(self, part)) is not None:
                _write(beside(path, part), {name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        _write(path, packed, {HEADER: json.dumps(header)})

    @classmethod
    def load(cls, path: Path | str) -> "Ticket":
        """Reads a ticket, with the tensors that lie beside it, and holds it to what it says of itself.

        Raises:
            TicketError: naming the file, if it is damaged, altered, of another version, or if mask, initialisation or
                tensors beside it are not what it says.
        """
        ticket = read(path)
        for check in CHECKS:
            try:
                check(ticket)
            except TicketError as error:
                raise TicketError(f"{path}: {error}") from error
        return ticket

    def _trained(self) -> PromptIR:
        if self.weights is None:
            why = "were not kept" if self.weights_sha256 is None else "do not lie beside it (NAME.weights.safetensors)"
            raise TicketError(
                f"the trained weights of this ticket {why}; it has the network as its round started: "
                "network(trained=False), or --rewound"
            )
        return fill(build_network(self.settings.network, self.seed), self.weights)

    def _rewound(self) -> PromptIR:
        if self.origin in ("elsewhere", "unknown"):
            raise TicketError(f"what this ticket started from is {ORIGINS[self.origin]}: it cannot be rewound")
        if self.origin == "changed" and self.start is None:
            raise TicketError("what this ticket started from does not lie beside it (NAME.start.safetensors)")
        return fill(build_network(self.settings.network, self.seed), self.start or {}, whole=False)


def read(path: Path | str) -> Ticket:
    """Reads a ticket whose content is what was written; whether that is sound is for CHECKS to say.

    Raises:
        TicketError: naming the file, if it is not a ticket, or damaged, altered or of another version.
    """
    path = Path(path)
    try:
        with safe_open(path, "np") as file:
            text, packed = (file.metadata() or {})[HEADER], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text)
        version = header["version"]
    except OSError as error:
        raise TicketError(f"{path} cannot be read: {error.strerror or _line(error)}") from error
    except Exception as error:  # a file that is no ticket fails in many ways; all mean the same to the reader
        raise TicketError(f"{path} is not a ticket, or damaged: {_line(error)}{_way_out(path)}") from error
    if version != VERSION:
        raise TicketError(f"{path} is a ticket of version {version!r}; this program reads version {VERSION}")
    try:
        if header["sha256"] != _digest(header["content"], packed):
            raise TicketError("its content has not the sha256 that it says: damaged, or altered")
        return _from(header["content"], packed, path)
    except SettingsError as error:
        raise TicketError(f"{path}: {error}") from error
    except Exception as error:  # as above
        raise TicketError(f"{path} is damaged: {type(error).__name__}: {_line(error)}") from error


def _way_out(path: Path) -> str:
    """What to give instead of tensors that lie beside a ticket, or in a run."""
    if path.name == "weights.safetensors":
        return "; these are weights of a run: give the folder with its run.json"
    for part in ("start", "weights"):
        if path.name.endswith(ending := f".{part}.safetensors"):
            return f"; these are tensors beside a ticket: give {path.name.removesuffix(ending)}{SUFFIX}"
    return ""


def _from(content: dict[str, Any], packed: Mapping[str, np.ndarray], path: Path) -> Ticket:
    shapes = {name: tuple(shape) for name, shape in content["tensors"]}
    if list(shapes) != [name for name, _ in content["tensors"]] or set(shapes) != set(packed):
        raise TicketError("the tensors are not those of its list")
    return Ticket(
        settings=read_settings(content["settings"]),
        method=choose("method", content["method"], METHODS),
        index=int(content["round"]),
        mask=Mask({name: _unpack(name, packed[name], shape) for name, shape in shapes.items()}),
        origin=choose("origin", content["origin"], ORIGINS),
        start_sha256=content["start_sha256"],
        scores={task: {k: float(v) for k, v in row.items()} for task, row in content["scores"].items()},
        provenance=content["provenance"],
        control=content["control"],
        weights_sha256=content["weights_sha256"],
        start=_tensors(beside(path, "start")) if content["origin"] == "changed" else None,
        weights=_tensors(beside(path, "weights")) if content["weights_sha256"] else None,
    )


def _unpack(name: str, bits: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise TicketError(f"mask of {name} is {bits.dtype} {bits.shape}, not the bits of {shape}")
    return torch.from_numpy(np.unpackbits(bits, count=size).astype(bool).reshape(shape))


def _tensors(path: Path) -> dict[str, Tensor] | None:
    """Tensors that lie beside a ticket; None if they do not."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise TicketError(f"{path.name} beside it is damaged: {_line(error)}") from error


def check_mask(ticket: Ticket) -> tuple[bool, str]:
    """Checks that the mask has exactly the tensors that its settings call prunable.

    Returns:
        Whether there was something to check, and what was found, in words.

    Raises:
        TicketError: naming the first tensor that does not fit.
    """
    whole = dense_mask(ticket.settings)
    if problem := misfit(whole, ticket.mask):
        raise TicketError(f"the mask does not fit the network of its settings: {problem}")
    return True, f"mask: {len(whole)} tensors, {whole.size:,} prunable weights, as its settings say"


def check_start(ticket: Ticket) -> tuple[bool, str]:
    """Builds what the round started from, and compares its hash.

    Returns, Raises:
        As ``check_mask``.
    """
    if ticket.origin in ("elsewhere", "unknown"):
        return False, f"start: {ORIGINS[ticket.origin]}"
    if ticket.origin == "changed" and ticket.start is None:
        return False, "start: does not lie beside it"
    found = fingerprint(ticket._rewound())
    if found != ticket.start_sha256:
        raise TicketError(
            f"start: {ORIGINS[ticket.origin]} ({ticket.seed}) has sha256 {found}, not {ticket.start_sha256}, as it says"
        )
    return True, f"start: {ORIGINS[ticket.origin]} ({ticket.seed}), built again, has its sha256"


def check_weights(ticket: Ticket) -> tuple[bool, str]:
    """Compares the hash of the trained weights, and whether they are zero where the mask says so.

    Returns, Raises:
        As ``check_mask``.
    """
    if ticket.weights is None:
        return False, f"weights: {'were not kept' if ticket.weights_sha256 is None else 'do not lie beside it'}"
    if (found := fingerprint(ticket._trained())) != ticket.weights_sha256:
        raise TicketError(f"weights: have sha256 {found}, not {ticket.weights_sha256}, as it says: of another ticket")
    check_zeros(ticket)
    return True, "weights: have their sha256, and are zero where the mask is"


def check_zeros(ticket: Ticket) -> tuple[bool, str]:
    """Looks whether the trained weights are zero where the mask says so.

    Returns, Raises:
        As ``check_mask``.
    """
    if ticket.weights is None:
        return False, "weights: were not kept"
    network = ticket._trained()
    for name, keep in ticket.mask.items():
        if ((network.get_parameter(name) != 0) & ~keep).any():
            raise TicketError(f"weights: {name} is not zero where the mask is")
    return True, "weights: are zero where the mask is"


CHECKS = (check_mask, check_start, check_weights)


def record_checks(run: Run, index: int) -> Iterator[Callable[[], tuple[bool, str]]]:
    """Yields the checks that hold the files of a finished round to its ``round.json``.

    A ticket that is made from a run folder has the hashes of what lies there now; whether that is what the round left
    is known from its record alone, which has hashes since the version that this came with.

    Args:
        run, index: whose round.

    Yields:
        Functions without arguments; they return and raise as ``check_mask`` does.
    """
    folder = run.round_folder(index)
    facts = read_json(folder / "round.json")
    mask, recorded = run.load_mask(index), facts.get("sha256", {})
    yield lambda: _counts(mask, facts)
    found = {"mask": lambda: mask and mask.fingerprint}
    found |= {name: lambda path=folder / name: sha256(path) if path.is_file() else None for name in HASHED}
    for name, look in found.items():
        yield lambda name=name, look=look: _recorded(name, look(), recorded)


def _counts(mask: Mask | None, facts: Mapping[str, Any]) -> tuple[bool, str]:
    """Compares a mask with the numbers that the round's record gives."""
    if mask is None:
        return False, "mask: does not lie there"
    found = {"kept": mask.kept, "prunable": mask.size, "density": mask.density(), "emptied": mask.emptied()}
    for name, value in found.items():
        if facts.get(name) != value:
            raise TicketError(f"mask: {name} is {value!r}, and {facts.get(name)!r} in round.json")
    return True, f"mask: {', '.join(found)} are those of round.json"


def _recorded(name: str, found: str | None, recorded: Mapping[str, str]) -> tuple[bool, str]:
    """Compares one hash with the recorded one."""
    if found is None:
        return False, f"{name}: does not lie there"
    if name not in recorded:
        return False, f"no hash on record: {name} (the round was finished by an earlier version)"
    if recorded[name] != found:
        raise TicketError(f"{name}: has sha256 {found}, not {recorded[name]}, as round.json says: changed since")
    return True, f"{name}: has the sha256 of round.json"


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], whole: bool = True) -> str | None:
    """Says by name where tensors are not those that are wanted; None if they are.

    Args:
        wanted, found: by name; values do not matter.
        whole: whether all of the wanted ones must be there.
    """
    for name in found:
        if name not in wanted:
            return f"{name} is unexpected{nearest(name, wanted)}"
        if found[name].shape != wanted[name].shape:
            return f"{name} has shape {tuple(found[name].shape)}, {tuple(wanted[name].shape)} is wanted"
    missing = [name for name in wanted if name not in found]
    if whole and missing:
        return f"{missing[0]} is missing ({len(missing)} of {len(wanted)})"
    return None


def fill(network: PromptIR, values: Mapping[str, Tensor], whole: bool = True) -> PromptIR:
    """Copies values into a network's tensors of the same names, and returns it.

    Args:
        network: changed in place.
        values: by name.
        whole: whether every tensor must be among them.

    Raises:
        TicketError: naming the first tensor that does not fit.
    """
    own = tensors(network)
    if problem := misfit(own, values, whole):
        raise TicketError(f"the tensors do not fit the network: {problem}")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return network


def named(path: Path | str) -> Path:
    """Returns the path of a ticket, which must end as tickets do.

    Raises:
        TicketError: if it does not.
    """
    if not Path(path).name.endswith(SUFFIX) or Path(path).name == SUFFIX:
        raise TicketError(f"ticket={str(path)!r} is not allowed: a name that ends in {SUFFIX} is wanted")
    return Path(path)


def beside(path: Path, part: str) -> Path:
    """Returns where a ticket's ``start`` or ``weights`` lie."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.{part}.safetensors")


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    with atomic(path) as temporary:  # as bytes: safetensors' own writer makes files that only their owner may read
        temporary.write_bytes(safetensors.torch.save(dict(tensors), header))


def _digest(content: dict[str, Any], packed: Mapping[str, Tensor] | Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) of the canonical JSON of the content, then of the bytes in the order of its list."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    for name, _ in content["tensors"]:
        digest.update(np.asarray(packed[name]).tobytes())
    return digest.hexdigest()


def _plain(value: float) -> float | str:
    """A score as strict JSON has it, which knows no infinity."""
    return value if math.isfinite(value) else str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
