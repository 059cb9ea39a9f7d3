"""The commands of ``mirl ticket``: look at a ticket, hold it to what it says, take it elsewhere and bring others in."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirl_study.settings import SettingsError, choose

if TYPE_CHECKING:
    from mirl_study.lottery import Round
    from mirl_study.settings import ModelSettings, NetworkSettings
    from mirl_study.tickets import Ticket

PATH = click.argument("path", type=click.Path(path_type=Path))
ROUND = click.option("--round", "index", type=click.IntRange(0), help="Of a run folder. [default: the last one]")
FORMATS = ("released", "safetensors", "ticket")


@click.group(no_args_is_help=False)
def ticket() -> None:
    """Tickets: which weights of which network were kept. PATH is NAME.ticket.safetensors or a run folder."""


def _shape(network: "NetworkSettings | ModelSettings") -> str:
    """A network in words."""
    if not hasattr(network, "dim"):
        return f"{network.architecture}, size {network.size}, recipe {network.recipe}"
    heads, blocks = _dashed(network.heads), _dashed(network.blocks)
    return f"dim {network.dim}, blocks {blocks}, refinement {network.refinement}, heads {heads}"


@ticket.command()
@PATH
@ROUND
def show(path: Path, index: int | None) -> None:
    """Say what a ticket is: mask, densities and scores."""
    from mirl_study.tickets import ORIGINS

    shown = _open(path, index)
    settings, network, mask = shown.settings, shown.settings.network, shown.mask
    known = shown.origin != "unknown"
    lines = {
        "ticket": f"{shown.control or shown.method}, {settings.setting}, round {shown.index}"
        + (f", seed {shown.seed} (profile {settings.profile}, protocol {settings.protocol})" if known else ""),
        "network": _shape(network),
        "start": ORIGINS[shown.origin] + (f"; sha256 {shown.start_sha256}" if shown.start_sha256 else ""),
        "mask": f"{mask.kept:,} of {mask.size:,} prunable weights kept, density {mask.density():.4f}; sha256 "
        f"{mask.fingerprint}",
        "weights": (
            f"{'trained' if known else 'those of the checkpoint, trained or not'}, sha256 {shown.weights_sha256}"
        )
        if shown.weights_sha256
        else "trained ones were not kept",
        **{name: str(value) for name, value in shown.provenance.items() if not isinstance(value, dict | list)},
    }
    for name, words in lines.items():
        click.echo(f"{name:<16} {words}")
    by = "kind" if hasattr(network, "dim") else "layer"  # a mask knows the kinds of a PromptIR alone
    click.echo(f"\n{by:<16} {'kept':>12} {'prunable':>12} {'density':>8}")
    for kind, (kept, size) in mask.counts(by).items():
        click.echo(f"{kind:<16} {kept:>12,} {size:>12,} {kept / size:>8.4f}")
    if mask.emptied():
        click.echo(f"no weight left in {', '.join(mask.emptied())}")
    if shown.scores:
        columns = list(next(iter(shown.scores.values())))
        click.echo(f"\n{'task':<16} " + " ".join(f"{name:>12}" for name in columns))
    for task, row in shown.scores.items():
        click.echo(f"{task:<16} " + " ".join(f"{row[name]:>12.4f}" for name in columns))


@ticket.command()
@PATH
@ROUND
def verify(path: Path, index: int | None) -> None:
    """Hold a ticket to what it says: checksums, shapes, the initialisation built again, weights.

    A run folder is held to its round.json: counts and hashes of mask, scores and weights. A line each: OK, FAIL, or --
    where there is nothing to compare with.
    """
    from mirl_study.tickets import CHECKS, TicketError, check_mask, check_start, check_zeros, read, record_checks

    if not path.exists():
        raise SettingsError(f"path={str(path)!r} does not exist")
    failed, folder = 0, path.is_dir()
    try:
        if folder:
            played = _round(path, index)
            found, checks = played.ticket, (check_mask, check_start, check_zeros)
        else:
            found, checks = read(path), CHECKS
        click.echo("OK   records: can be read" if folder else "OK   file: is whole, and has its sha256")
    except TicketError as error:
        click.echo(f"FAIL {error}")
        raise click.ClickException(f"{path}: 1 problem") from None
    own = [partial(check, found) for check in checks]
    for check in [*own, *(record_checks(played.run, played.index) if folder else [])]:
        try:
            checked, words = check()
            click.echo(f"{'OK  ' if checked else '--  '} {words}")
        except TicketError as error:
            click.echo(f"FAIL {error}")
            failed += 1
    if failed:
        raise click.ClickException(f"{path}: {failed} problem{'s' if failed > 1 else ''}")


@ticket.command()
@PATH
@ROUND
@click.option("--to", "target", required=True, metavar="FILE", type=click.Path(path_type=Path), help="A new file.")
@click.option(
    "--format",
    "form",
    metavar="NAME",
    help="released (a Lightning-like .ckpt), safetensors (weights alone) or ticket. [default: by the name of FILE]",
)
@click.option("--rewound", is_flag=True, help="The network as its round started, not as it was trained.")
def export(path: Path, index: int | None, target: Path, form: str | None, rewound: bool) -> None:
    """Write a ticket as another file: its sparse network under the released names, or the ticket itself."""
    from mirl_study.tickets import SUFFIX, named

    by_name = "ticket" if target.name.endswith(SUFFIX) else target.suffix.removeprefix(".")
    form = choose("format", form or {"ckpt": "released"}.get(by_name, by_name), FORMATS)
    if form == "ticket" and rewound:
        raise SettingsError("rewound=True is not allowed with format='ticket': a ticket gives both networks")
    with _new(named(target) if form == "ticket" else target):
        found = _open(path, index)
        if form != "ticket" and not rewound and path.is_dir() and found.weights is None:
            from mirl_study.analysis import kept_rounds

            kept = ", ".join(map(str, kept_rounds(path))) or "none"
            raise SettingsError(
                f"round={found.index}: its trained weights were not kept (those of rounds: {kept}); --rewound writes "
                "the network as the round started"
            )
        if form == "ticket":
            found.save(target)
        else:
            _write_network(found, target, form, trained=not rewound)
    click.echo(target)


@ticket.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, metavar="FILE", type=click.Path(path_type=Path), help="A new ticket.")
@click.option("--setting", default="all_in_one", show_default=True, metavar="NAME", help="Of its run.")
@click.option("--scope", default="global", show_default=True, metavar="NAME", help="Of its run.")
@click.option("--round", "index", type=click.IntRange(0), help="Of its run. [default: by its density]")
def import_(checkpoint: Path, target: Path, setting: str, scope: str, index: int | None) -> None:
    """Make a ticket with weights of a released CHECKPOINT, whose mask is read from its zeros."""
    from mirl_study.released import import_released
    from mirl_study.tickets import SUFFIX, named

    if checkpoint.name.endswith(SUFFIX):
        raise SettingsError(f"checkpoint={str(checkpoint)!r} is a ticket already: mirl ticket show or export reads it")
    with _new(named(target)):
        found = import_released(checkpoint, setting, scope, index)
        found.save(target)
    mask = found.mask
    click.echo(
        f"{target}: {mask.kept:,} of {mask.size:,} prunable weights kept, {mask.density():.4f}: round {found.index}"
    )
    never = " and the convolutions that never run" if found.settings.network.unused else ""
    click.echo(
        "a checkpoint knows no seed, start, rules or scores, nor whether its weights are trained; as in the released "
        f"code LayerNorm gains{never} count as prunable, "
        "so its counts may be others than those of the ticket it was made from"
    )


@ticket.command()
@click.argument("run", type=click.Path(path_type=Path))
@ROUND
@click.option("--on", "settings", required=True, metavar="LIST", help="Settings to train on: dehaze,denoise.")
def transfer(run: Path, index: int | None, settings: str) -> None:
    """Train the mask of a lottery's round on other settings, from the same initialisation; RUN is its folder.

    A transfer lies among the runs of the setting that it is trained on, and the report reads it there.
    """
    from mirl_study import transfer as transfers
    from mirl_study.settings import SETTINGS

    names = [choose("on", name, SETTINGS) for name in settings.split(",")]
    found = _round(run, index)
    for name in names:
        played = transfers.play(found, name, found.run.root)
        click.echo(f"{played.run.folder}: {played.scores.psnr.mean():.2f} dB, mean over tasks")


def _open(path: Path, index: int | None) -> "Ticket":
    """The ticket of a file, or of a round of a run folder."""
    from mirl_study.tickets import Ticket

    if path.is_dir() or not path.exists():
        return _round(path, index).ticket
    if index is not None:
        raise SettingsError(f"round={index} is not allowed: {path} is one ticket, not a run folder")
    return Ticket.load(path)


def _round(path: Path, index: int | None) -> "Round":
    """A round of a run folder, the last one if none is named."""
    from mirl_study.analysis import open_run
    from mirl_study.lottery import load_round
    from mirl_study.tickets import TicketError

    if not path.exists():
        raise SettingsError(f"path={str(path)!r} does not exist")
    if not (path / "run.json").is_file():
        raise SettingsError(f"path={str(path)!r} is no run folder (no run.json in it) and no ticket")
    there = sorted(int(found.parent.name.removeprefix("round")) for found in path.glob("round*/round.json"))
    if not there:
        raise SettingsError(f"{path} has no finished round")
    if index is not None and index not in there:
        raise SettingsError(f"round={index} is not one of {', '.join(map(str, there))}, the finished rounds of {path}")
    index = there[-1] if index is None else index
    try:
        return load_round(open_run(path), index)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, SettingsError):
            raise
        raise TicketError(f"{path}, round {index}: {' '.join(str(error).split())}") from error


def _write_network(found: "Ticket", target: Path, form: str, trained: bool) -> None:
    import safetensors.torch

    from mirl_study.released import save_released
    from mirl_study.store import atomic

    network = found.network(trained)
    if form == "released":
        save_released(target, network)
        return
    with atomic(target) as temporary:
        temporary.write_bytes(safetensors.torch.save(network.state_dict(), {"format": "pt"}))


@contextmanager
def _new(target: Path) -> Iterator[None]:
    """Refuses a target that exists, before any work; says in one line if it cannot be written."""
    from mirl_study.tickets import SUFFIX, beside

    sides = [beside(target, part) for part in ("start", "weights")] if target.name.endswith(SUFFIX) else []
    for path in (target, *sides):
        if path.exists():
            raise SettingsError(f"to={str(path)!r} exists already and is never overwritten; name a new file")
    try:
        yield
    except OSError as error:
        raise SettingsError(f"to={str(target)!r} cannot be written: {error.strerror or error}") from error


def _dashed(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))
