"""The commands of ``mirl data``: from the sources, or from what somebody has, to a prepared and verified folder."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mirl_study.settings import SETTINGS, SettingsError

FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@contextmanager
def _whole_or_not_at_all() -> Iterator[None]:
    """What is to be said of a command that has nothing to go on with when it is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; nothing was left behind") from None


@click.group(no_args_is_help=False)
def data() -> None:
    """The images: prepare the embedded ones, or fetch, import and verify the paper's data sets."""


@data.command()
@click.option("--folder", metavar="DIR", type=click.Path(path_type=Path), help="[default: data/embedded]")
def prepare(folder: Path | None) -> None:
    """Make the embedded images, which need no download; nothing happens if they are there."""
    from data_prep.embedded import prepare as prepare_embedded

    click.echo(prepare_embedded(folder or _below("embedded")))


@data.command("list")
def list_sources() -> None:
    """List the data sets: what they hold, how they are got, under which licence."""
    from data_prep.sources import list_sources

    for row in list_sources():
        click.echo(f"{row['source']:<16} {row['holds']}")
        where = f"{row['how']}: {row['files']}" if row["files"] else row["how"]
        click.echo(f"{'':<16} {where}; {row['page']}{'' if row['verified'] == 'yes' else ' (not verified)'}")
        click.echo(f"{'':<16} licence: {row['licence']}")


@data.command()
@click.argument("name")
@click.option("--to", "folder", metavar="DIR", type=click.Path(path_type=Path), help="[default: data/raw/NAME]")
def fetch(name: str, folder: Path | None) -> None:
    """Download the data set NAME and unpack it; an interrupted download goes on where it was."""
    from data_prep import archives, sources
    from data_prep.words import counted

    everything = folder or _below("raw")  # where other sets are fetched to by default: to be imported with this one
    for path in sources.fetch(name, folder or everything / name):
        click.echo(path)
        inside = path.with_name(path.name.split(".")[0])
        if inside.exists():
            continue
        if (what := archives.kind(path)) not in archives.UNPACKED:
            way = f"unpack it by hand into {inside}, then run mirl data import {everything}"
            raise SettingsError(f"archive {path}: is {what}, which is not unpacked here; {way}")
        click.echo(f"{inside}: {counted(len(archives.unpack(path, inside)), 'file')}")
    click.echo(f"next: mirl data import {everything}")


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="[default: data/prepared/SPLIT]")
@click.option(
    "--split",
    default="paper",
    show_default=True,
    metavar="NAME",
    help="paper or leak_free; a task without training images then trains on half of its test scenes.",
)
@click.option(
    "--fraction",
    "given",
    nargs=2,
    multiple=True,
    metavar="DATASET SHARE",
    help="Draw a share of the training images; repeatable.",
)
@click.option(
    "--paper-fractions",
    is_flag=True,
    help="The paper's, of complete sets: 5 % of BSD400 and WED, 10 % of Rain100L, 3 % of OTS.",
)
@click.option("--seed", default=0, show_default=True, help="Of all draws.")
@click.option("--validation", default=0.1, show_default=True, help="Share of the training scenes that is set aside.")
@click.option("--task", metavar="NAME", help="What images suffer where folders do not say: derain, dehaze, ...")
@click.option(
    "--test-images",
    default=0,
    show_default=True,
    metavar="N",
    help="At most so many of each set and task, drawn by seed, for a study in little time; 0 is all.",
)
@click.option("--rain-variants", default=0, show_default=True, help="Pairs to make of each photograph with real rain.")
@click.option("--jpeg", is_flag=True, help="Also imitate a social network, for the task jpeg.")
@_whole_or_not_at_all()
def import_(
    source: Path,
    target: Path | None,
    split: str,
    given: tuple[tuple[str, str], ...],
    paper_fractions: bool,
    seed: int,
    validation: float,
    task: str | None,
    test_images: int,
    rain_variants: int,
    jpeg: bool,
) -> None:
    """Make a prepared folder of the data sets in SOURCE, in whatever layout they are; SOURCE is only read."""
    from data_prep import importing, layouts
    from mirl_study.running import cast

    fractions = {}
    for name, text in given:
        if name in fractions:
            raise SettingsError(f"fraction {name}={text!r} is not allowed: {name}={fractions[name]:g} is given already")
        fractions[name] = cast(f"fraction {name}", text, 0.0)
    if paper_fractions:
        paper = importing.PAPER_FRACTIONS
        there = {item.dataset for item in layouts.find(source, task).items if item.split == "train"}
        if not there & paper.keys():
            click.echo(f"note: --paper-fractions has no effect: no training images of {', '.join(paper)} are here")
        fractions = {name: share for name, share in paper.items() if name in there} | fractions
    target = target or _below("prepared") / split
    report = importing.import_folder(
        source,
        target,
        split=split,
        fractions=fractions,
        seed=seed,
        validation=validation,
        task=task,
        test_images=test_images,
        rain_variants=rain_variants,
        jpeg=jpeg,
    )
    for words in report.found.layouts:
        click.echo(f"recognised: {words}")
    for (dataset, part, kind), count in sorted(report.counts.items()):
        click.echo(f"{count:>7,} {part:<5} {kind:<8} {dataset}")
    for note in report.notes:
        click.echo(f"note: {note}")
    for words in report.left_out:
        click.echo(f"left out: {words}")
    for sentence in report.shared:
        click.echo(sentence)
    click.echo(f"card: {report.folder / 'card.md'}")
    _fail_for(report.folder, report.problems)
    for setting in _studies({(split, task) for _, split, task in report.counts}):
        click.echo(f"next: mirl study{setting} -p data {report.folder} --results DIR")


@data.command()
@FOLDER
@_whole_or_not_at_all()
def verify(folder: Path) -> None:
    """Check every file of the prepared FOLDER, and say what its sets have in common."""
    from data_prep import verify as checks
    from data_prep.words import counted

    found = checks.verify(folder)
    click.echo(found.counts.to_string(index=False))
    if len(found.psnr):
        click.echo("input PSNR / dB")
        click.echo(found.psnr.round(2).to_string(index=False))
    for sentence in checks.in_words(found):
        click.echo(sentence)
    _fail_for(folder, [*found.problems, *(f"altered: {line}" for line in found.altered)])
    click.echo(f"OK   {folder}: {counted(len(found.files), 'file')}")


@data.command()
@FOLDER
@_whole_or_not_at_all()
def card(folder: Path) -> None:
    """Write the data card of the prepared FOLDER anew, from its files; how it was made is kept."""
    from data_prep import cards
    from data_prep import verify as checks

    former = _made(folder / "card.json")
    found = checks.verify(folder)
    if found.problems:
        raise SettingsError(f"{folder}: {found.problems[0]} ({len(found.problems)} in all); see mirl data verify")
    cards.write_card(folder, found, former)
    click.echo(folder / "card.md")


def _made(path: Path) -> dict:
    """How a folder was made, by its former card; nothing where that is missing or damaged."""
    import json

    try:
        made = json.loads(path.read_text(encoding="utf-8")).get("made", {})
        if isinstance(made, dict):
            return made
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError):
        pass
    click.echo(f"note: {path} is damaged; how the folder was made is not known any more")
    return {}


def _fail_for(folder: Path, problems: list[str]) -> None:
    """Lists problems, if there are any, and ends the command with exit code 1."""
    from data_prep.words import counted

    for line in problems:
        click.echo(f"FAIL {line}")
    if problems:
        raise click.ClickException(f"{folder}: {counted(len(problems), 'problem')}")


def _studies(there: set[tuple[str, str]]) -> Iterable[str]:
    """Options by which a study finds all it needs: none if it can be of everything, or else one for each task.

    Args:
        there: splits and tasks of which there are images.
    """
    # a setting of one family is called as its task
    able = [name for name in SETTINGS if all((split, name) in there for split in ("train", "val", "test"))]
    if {"denoise", "derain", "dehaze"} <= set(able):
        return [""]
    return [f" --setting {name}" for name in able]


def _below(name: str) -> Path:
    """A folder of the project's data."""
    from mirl_study.store import project_root

    return project_root() / "data" / name
