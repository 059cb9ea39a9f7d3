"""The commands of ``mirl data``: from the sources, or from what somebody has, to a prepared and verified folder."""

from pathlib import Path

import click

from mirl_study.settings import SettingsError

FOLDER = click.argument("folder", type=click.Path(path_type=Path))


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

    folder = folder or _below("raw") / name
    for path in sources.fetch(name, folder):
        click.echo(path)
        inside = path.with_name(path.name.split(".")[0])
        if archives.kind(path) in ("zip", "tar", "tar.gz") and not inside.exists():
            click.echo(f"{inside}: {len(archives.unpack(path, inside)):,} files")
    click.echo(f"next: mirl data import {folder}")


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="[default: data/NAME of SOURCE]")
@click.option("--split", default="paper", show_default=True, metavar="NAME", help="paper or leak_free.")
@click.option("--fraction", "given", nargs=2, multiple=True, metavar="DATASET SHARE", help="Draw a share; repeatable.")
@click.option(
    "--paper-fractions", is_flag=True, help="The paper's: 5 % of BSD400 and WED, 10 % of Rain100L, 3 % of OTS."
)
@click.option("--seed", default=0, show_default=True, help="Of all draws.")
@click.option("--validation", default=0.1, show_default=True, help="Share of the training scenes that is set aside.")
@click.option("--task", metavar="NAME", help="What images suffer where folders do not say: derain, dehaze, ...")
@click.option("--rain-variants", default=0, show_default=True, help="Pairs to make of each photograph with real rain.")
@click.option("--jpeg", is_flag=True, help="Also imitate a social network, for the task jpeg.")
def import_(
    source: Path,
    target: Path | None,
    split: str,
    given: tuple[tuple[str, str], ...],
    paper_fractions: bool,
    seed: int,
    validation: float,
    task: str | None,
    rain_variants: int,
    jpeg: bool,
) -> None:
    """Make a prepared folder of the data sets in SOURCE, in whatever layout they are; SOURCE is only read."""
    from data_prep import importing, layouts
    from mirl_study.running import cast

    fractions = {name: cast(f"fraction {name}", text, 0.0) for name, text in given}
    if paper_fractions:
        there = {item.dataset for item in layouts.find(source, task).items}
        fractions = {name: share for name, share in importing.PAPER_FRACTIONS.items() if name in there} | fractions
    target = target or _below(source.resolve().name)
    report = importing.import_folder(
        source,
        target,
        split=split,
        fractions=fractions,
        seed=seed,
        validation=validation,
        task=task,
        rain_variants=rain_variants,
        jpeg=jpeg,
    )
    for words in report.found.layouts:
        click.echo(f"recognised: {words}")
    for (dataset, part, kind), count in sorted(report.counts.items()):
        click.echo(f"{count:>7,} {part:<5} {kind:<8} {dataset}")
    for note in report.notes:
        click.echo(f"note: {note}")
    reasons: dict[str, list[Path]] = {}
    for path, reason in report.found.unmatched:
        reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        click.echo(f"left out: {len(paths):,} ({paths[0].name}{', ...' if len(paths) > 1 else ''}): {reason}")
    click.echo(f"card: {report.folder / 'card.md'}")
    click.echo(f"next: mirl study -p data {report.folder} --results DIR")


@data.command()
@FOLDER
def verify(folder: Path) -> None:
    """Check every file of the prepared FOLDER, and say what its sets have in common."""
    from data_prep import verify as checks

    found = checks.verify(folder)
    click.echo(found.counts.to_string(index=False))
    if len(found.psnr):
        click.echo("input PSNR / dB")
        click.echo(found.psnr.round(2).to_string(index=False))
    for sentence in checks.in_words(found):
        click.echo(sentence)
    wrong = [*found.problems, *(f"altered: {line}" for line in found.altered)]
    for line in wrong:
        click.echo(f"FAIL {line}")
    if wrong:
        raise click.ClickException(f"{folder}: {len(wrong)} problem{'s' if len(wrong) > 1 else ''}")
    click.echo(f"OK   {folder}: {len(found.files):,} files")


@data.command()
@FOLDER
def card(folder: Path) -> None:
    """Write the data card of the prepared FOLDER anew, from its files; how it was made is kept."""
    import json

    from data_prep import cards
    from data_prep import verify as checks

    try:
        former = json.loads((folder / "card.json").read_text(encoding="utf-8")).get("made", {})
    except FileNotFoundError:
        former = {}
    except ValueError as error:
        raise SettingsError(f"{folder / 'card.json'} cannot be read: {error}") from error
    found = checks.verify(folder)
    if found.problems:
        raise SettingsError(f"{folder}: {found.problems[0]} ({len(found.problems)} in all); see mirl data verify")
    cards.write_card(folder, found, former)
    click.echo(folder / "card.md")


def _below(name: str) -> Path:
    """A folder of the project's data."""
    from mirl_study.store import project_root

    return project_root() / "data" / name
