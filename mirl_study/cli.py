"""The command line, ``mirl``. What it is given is checked before any work; a mistake is one line and exit code 2.

Commands import what they run only when they run, so that ``mirl doctor`` works where something is missing.
"""

import os
import platform
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path

import click

from mirl_study.cli_data import data
from mirl_study.cli_tickets import ticket
from mirl_study.settings import SettingsError, nearest

PARAMETER = click.option(
    "-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter, or any setting by name; repeatable."
)
RESULTS = click.option("--results", metavar="DIR", help="Root of all results, in the project. [default: results]")
PROFILE = click.option("--profile", default="laptop", show_default=True, metavar="NAME")
GRID_OPTIONS = (
    PROFILE,
    click.option(
        "--settings",
        "--setting",
        default="all_in_one",
        show_default=True,
        metavar="LIST",
        help="all_in_one,derain,dehaze,denoise,jpeg; `all` is the first four.",
    ),
    click.option("--seeds", default="0", show_default=True, metavar="LIST", help="Whole numbers: 0,1,2."),
    click.option("--cores", type=click.IntRange(min=1), help="Chains at a time, one thread each. [default: all cores]"),
    RESULTS,
    PARAMETER,
)
CELL_TIMEOUT = click.option(
    "--cell-timeout",
    type=click.FloatRange(min=0),
    default=7 * 24 * 3600.0,
    show_default="a week",
    metavar="SECONDS",
    help="Longest time for one cell; 0 is no limit.",
)


def _grid(command: Callable) -> Callable:
    """Adds the options that say which chains."""
    for option in reversed(GRID_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="mirl-study")
@click.pass_context
def cli(context: click.Context) -> None:
    """Lottery tickets in all-in-one image restoration: the study, from the command line."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.option("--rows", default="", metavar="LIST", help="Of the table: step_paper,batches. [default: all]")
@click.option(
    "--runs", default=5, show_default=True, type=click.IntRange(1), help="Of each side, at least; the median counts."
)
@click.option("--threads", default=os.cpu_count() or 1, type=click.IntRange(1), help="Of torch. [default: all]")
@click.option(
    "--rounding", is_flag=True, help="Instead: what `compile` and bf16 do to the PSNR of `laptop`, eight seeds."
)
def bench(rows: str, runs: int, threads: int, rounding: bool) -> None:
    """Time the study against a plain restatement of the reference path; on a machine that does nothing else."""
    from benchmarks.bench import bench as measure
    from benchmarks.rounding import rounding as compare
    from mirl_study.store import results_root

    if rounding:
        click.echo(compare(results_root() / "rounding", range(8), threads).to_string(index=False))
        return
    measure([row for row in rows.split(",") if row], runs, threads)


@cli.command()
def doctor() -> None:
    """Say of everything that the study needs whether it is there: OK or FAIL."""
    from packaging.requirements import Requirement

    problems = [_check("python", platform.python_version(), sys.version_info >= (3, 11), ">=3.11")]
    for text in _dependencies():
        wanted = Requirement(text)
        try:
            found = metadata.version(wanted.name)
            ok = wanted.specifier.contains(found, prereleases=True)
        except metadata.PackageNotFoundError:
            found, ok = "missing", False
        problems.append(_check(wanted.name, found, ok, str(wanted.specifier)))
    problems += [_check_torch(), _check_data()]
    _check("compile=true on a CPU", _kernels(), True, "")
    if any(problems):
        raise click.exceptions.Exit(1)


cli.add_command(data)
cli.add_command(ticket)


@cli.command()
@click.argument("notebook")
@PARAMETER
@click.option("--output", type=click.Path(path_type=Path), metavar="PATH", help="The executed notebook.")
@CELL_TIMEOUT
@click.option("--kernel", default="", metavar="NAME", help="A registered one. [default: that of this Python]")
@click.option("--lease", "leased", is_flag=True, help="Wait for a GPU that no other leased run uses, and use that one.")
def run(
    notebook: str,
    given: tuple[tuple[str, str], ...],
    output: Path | None,
    cell_timeout: float,
    kernel: str,
    leased: bool,
) -> None:
    """Execute NOTEBOOK with papermill, after a check of what it is given."""
    from mirl_study import running
    from mirl_study.lease import lease
    from mirl_study.store import check_writable

    path = running.find_notebook(notebook)
    parameters = running.check_parameters(path, given)
    place, output = ("output", output) if output else ("results", running.default_output(path, parameters))
    if output.suffix != ".ipynb":
        raise SettingsError(f"output={str(output)!r} is not allowed: a path that ends in .ipynb is wanted")
    if output.resolve() == path:
        raise SettingsError(f"output={str(output)!r} is not allowed: it is the notebook itself")
    check_writable(output.parent, place)
    found = running.find_kernel(kernel)
    again = running.command(path, given, output, kernel=kernel, lease=leased)
    try:
        with lease() if leased else nullcontext():
            running.run_notebook(path, parameters, output, cell_timeout, again, found)
    except running.NotebookFailed as error:
        raise click.ClickException(str(error)) from None
    click.echo(output)


@cli.command()
@_grid
@click.option("--controls", is_flag=True, help="The controls of the ticket, too.")
def plan(
    profile: str,
    settings: str,
    seeds: str,
    cores: int | None,
    results: str | None,
    controls: bool,
    given: tuple[tuple[str, str], ...],
) -> None:
    """Say what a study would take: its chains and how far they are, time by a few measured steps, and disk."""
    from mirl_study import planning
    from mirl_study import study as runner

    given = tuple((name, _placed(name, text)) for name, text in given)
    studies, numbers = runner.grid(profile, settings, seeds, given)
    runner.check_folders(studies, numbers, results)
    cost = planning.measure(studies)
    made = planning.jobs(studies, numbers, cost, results, controls)
    words = planning.in_words(made, cost, runner.at_a_time(cores or os.cpu_count() or 1), results)
    click.echo("\n".join([*planning.as_text(made), "", *words]))


@cli.command()
@_grid
@click.option("--controls", is_flag=True, help="Play the controls of the ticket (setting ticket_round), too.")
@click.option("--dry-run", is_flag=True, help="List the chains and how far they are; run nothing (see `mirl plan`).")
@CELL_TIMEOUT
@click.option("--notebooks", type=click.Path(exists=True, file_okay=False, path_type=Path), hidden=True)
def study(
    profile: str,
    settings: str,
    seeds: str,
    cores: int | None,
    results: str | None,
    controls: bool,
    dry_run: bool,
    given: tuple[tuple[str, str], ...],
    cell_timeout: float,
    notebooks: Path | None,
) -> None:
    """Run the whole study, from the data to the report; it goes on where it was stopped."""
    from mirl_study import study as runner

    given = tuple((name, _placed(name, text)) for name, text in given)
    studies, numbers = runner.grid(profile, settings, seeds, given)
    runner.check_folders(studies, numbers, results)
    if dry_run:
        for chain in runner.plan(studies, numbers, results, controls):
            chain.look()
            state = "finished" if chain.finished else f"{chain.done}/{chain.total} steps"
            name = f"{chain.setting:<12} {chain.method:<{34 if controls else 12}} seed {chain.seed:<4}"
            click.echo(f"{name} {state:<20} {chain.folder}")
        return
    try:
        report, changed = runner.run_study(
            studies, numbers, cores or os.cpu_count() or 1, given, results, cell_timeout, notebooks, controls
        )
    except runner.StudyFailed as error:
        again = "the same command goes on where it stopped; finished rounds are kept"
        raise click.ClickException(f"{error}\n  {again}") from None
    click.echo(f"{'' if changed else 'everything is done already; '}report: {report}")


@cli.command()
@PROFILE
@RESULTS
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder: results/reference/laptop-real. [default: reference/PROFILE of the results]",
)
@click.option("--no-pictures", is_flag=True, help="Of test images that may not be passed on, keep none.")
def reference(profile: str, results: str | None, to: Path | None, no_pictures: bool) -> None:
    """Copy the finished runs and the report of a profile to results/reference/; of the weights, what the lab needs."""
    from mirl_study import study as runner
    from mirl_study.settings import choose, profiles

    try:
        folder, count = runner.keep_reference(choose("profile", profile, profiles()), results, to, not no_pictures)
    except runner.StudyFailed as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{folder}: {count} files")


@cli.command()
@PROFILE
@RESULTS
@click.option(
    "--out",
    metavar="DIR",
    help="Folder to write. [default: report/ in the profile's results; a temporary one for a reference]",
)
@click.option("--no-pictures", is_flag=True, help="Show no test images: not all may be passed on.")
def report(profile: str, results: str | None, out: str | None, no_pictures: bool) -> None:
    """Write tables, figures and one page from finished runs; nothing is trained (try --results results/reference)."""
    from mirl_study import report as page

    click.echo(page.write(results, profile, out=out, pictures=not no_pictures))


@cli.command()
@click.option("--preset", default="paper", show_default=True, metavar="NAME", help="The network's size.")
@click.option("--protocol", default="released", show_default=True, metavar="NAME", help="Says what is prunable.")
@click.option("--rounds", type=int, default=15, show_default=True, help="Of the lotteries.")
@click.option("--rate", type=float, default=0.2, show_default=True, help="Of the lotteries, per round.")
@click.option("--csv", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the table there too.")
def params(preset: str, protocol: str, rounds: int, rate: float, path: Path | None) -> None:
    """Count the parameters that each method leaves, from masks alone; compare with Tables II and III."""
    from mirl_study.settings import PRESETS, choose, load_settings, profiles

    if preset not in PRESETS and preset in profiles():
        own = next(name for name, shape in PRESETS.items() if shape == load_settings(preset).network)
        raise SettingsError(f"preset={preset!r} is a profile; its network is --preset {own}")
    choose("preset", preset, PRESETS)
    settings = load_settings("paper", network=preset, protocol=protocol, rounds=rounds, rate=rate)

    from mirl_study import analysis, counts, sentences
    from mirl_study.store import write_csv

    frame = counts.parameters(settings)
    unused = analysis.unused_at_start(settings.network, {min(settings.ticket(), rounds), rounds}, rate)
    click.echo("\n".join([counts.as_text(frame), "", *counts.in_words(frame, settings), sentences.of_unused(unused)]))
    if path:
        try:
            write_csv(path, frame)
        except OSError as error:
            raise SettingsError(f"csv={str(path)!r} cannot be written: {error.strerror}") from error
        click.echo(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process.

    Exit codes: 0 done, 1 the work failed, 2 the command was wrong, 130 stopped, by Ctrl-C, SIGTERM or SIGHUP.

    Args:
        arguments: instead of the process's own.
    """
    with suppress(ValueError):  # in another thread than the first there is nobody to hear them
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup has one of them ignored
                signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(cli.main(args=arguments, prog_name="mirl", standalone_mode=False) or 0)
    except SettingsError as error:
        _fail(str(error), 2)
    except click.NoSuchOption as error:
        _fail(f"unknown option {error.option_name!r}{nearest(error.option_name, error.possibilities or ())}", 2)
    except click.UsageError as error:
        _fail(" ".join(error.format_message().split()), 2)
    except click.ClickException as error:
        _fail(error.message, 1)
    except OSError as error:
        from mirl_study.store import WriteFailed

        if not isinstance(error, WriteFailed):
            raise
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort) as error:
        _fail(str(error.__cause__ or "") or "stopped; the same command goes on where it was", 130)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _placed(name: str, text: str) -> str:
    """A data folder as it is to be recorded: by its path in the project if it lies there, else by its absolute path.

    Chains run in another folder than the one it was typed in. One that is not there stays as it is, to be refused.
    """
    folder = Path(text).expanduser()
    if name != "data" or text == "embedded" or not folder.is_dir():
        return text
    from mirl_study.store import project_root

    folder, project = folder.resolve(), project_root().resolve()
    return str(folder.relative_to(project) if folder.is_relative_to(project) else folder)


def _dependencies() -> list[str]:
    """Requirements by pyproject.toml in a checkout, by the package's metadata otherwise."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text())["project"]["dependencies"]
    return [text for text in metadata.requires("mirl-study") or [] if "extra ==" not in text]


def _check(name: str, found: str, ok: bool, wanted: str) -> bool:
    """Prints a line; returns whether it is a problem."""
    click.echo(f"{'OK  ' if ok else 'FAIL'} {name} {found}{'' if ok else f' (wanted: {wanted})'}")
    return not ok


def _check_torch() -> bool:
    """Whether torch computes, and on what."""
    try:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        value = torch.ones(8, device="cuda" if torch.cuda.is_available() else "cpu").sum().item()
    except Exception as error:  # whatever a broken installation raises, it is a line here
        return _check("device", " ".join(f"{type(error).__name__}: {error}".split()), False, "a torch that computes")
    return _check("device", f"{device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores", value == 8, "8")


def _check_data() -> bool:
    """Whether the embedded images are there, or can be made."""
    try:
        from data_prep.embedded import photographs, ready
        from mirl_study.store import project_root

        folder = project_root() / "data" / "embedded"
        state = "there" if ready(folder) else f"{len([p.path() for p in photographs()])} photographs to make them from"
    except Exception as error:  # as above: a line, whatever it is
        return _check("embedded images", " ".join(str(error).split()), False, "a prepared folder, or none")
    return _check("embedded images", state, True, "")


def _kernels() -> str:
    """Whether the setting ``compile`` has an effect on this CPU; without, all works the same, only slower."""
    try:
        from mirl_study.kernels import state

        return state()
    except Exception as error:  # as above
        return f"goes on without: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
