"""One notebook in batch: what it is given is checked first, then papermill executes it in this very interpreter."""

import ast
import contextlib
import datetime
import difflib
import functools
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from mirl_study import data
from mirl_study.lease import VISIBLE
from mirl_study.settings import Settings, SettingsError, choose, load_settings, nearest
from mirl_study.store import is_reference, make_folder, project_root, results_root

STUDY_PID = "MIRL_STUDY_PID"  # environment: the process of `mirl study` that a notebook must not outlive
AUTOSAVE_SECONDS = 5


class NotebookFailed(RuntimeError):
    """A cell raised, ran out of time, or lost its kernel; the message says which, and how to go on."""


def find_notebook(name: str) -> Path:
    """Finds a notebook by path, or by name in ``notebooks/`` of the project.

    Args:
        name: ``notebooks/04_lottery_rounds.ipynb``, or ``04_lottery_rounds``.

    Returns:
        The absolute path.

    Raises:
        SettingsError: there is no such notebook; the message names the nearest one.
    """
    path, shelf = Path(name), project_root() / "notebooks"
    for candidate in (path, shelf / path.name, shelf / f"{path.name}.ipynb"):
        if candidate.suffix == ".ipynb" and candidate.is_file():
            return candidate.resolve()
    known = {entry.name: str(entry) for entry in path.parent.glob("*.ipynb")}
    known |= {entry.name: os.path.relpath(entry) for entry in shelf.glob("*.ipynb")}
    close = difflib.get_close_matches(path.name, known, n=1, cutoff=0.3)
    hint = f" (did you mean {known[close[0]]!r}?)" if close else ""
    raise SettingsError(f"notebook={name!r} is not there{hint}")


def parameter_defaults(notebook: Path) -> dict[str, Any]:
    """Reads the cell tagged ``parameters``: names and default values, which must be literals.

    Raises:
        SettingsError: the file is no notebook, or a default is no literal.
    """
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except Exception as error:  # nbformat raises its own, json's and jsonschema's errors
        raise SettingsError(f"notebook={str(notebook)!r} cannot be read: {error}".splitlines()[0]) from error
    defaults = {}
    for cell in cells:
        if cell.cell_type != "code" or "parameters" not in cell.metadata.get("tags", []):
            continue
        try:
            for node in ast.parse(cell.source).body:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                if isinstance(target, ast.Name):
                    defaults[target.id] = ast.literal_eval(node.value)
        except (SyntaxError, ValueError, TypeError) as error:
            raise SettingsError(f"{notebook.name} has a parameters cell with a default that is no literal") from error
    return defaults


def cast(name: str, text: str, like: Any) -> Any:
    """Turns the text of a command line into a value of the type of ``like``.

    Raises:
        SettingsError: the text does not say such a value.
    """
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}
    wanted = "a list, as [0, 1]," if isinstance(like, list | tuple) else wanted.get(type(like), "YAML")
    try:
        if isinstance(like, str):
            return text
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        value = type(like)(text) if isinstance(like, int | float) else yaml.safe_load(text)
        if isinstance(like, list | tuple) and not isinstance(value, list):
            raise ValueError
        return value
    except (ValueError, KeyError, yaml.YAMLError):
        raise SettingsError(f"{name}={text!r} is not allowed: {wanted} is wanted") from None


def settings_and_overrides(
    profile: str, given: Iterable[tuple[str, str]], **values: Any
) -> tuple[Settings, dict[str, Any]]:
    """Casts and validates overrides of a profile that came as text, and looks whether the images fit them.

    Args:
        profile: name of the profile.
        given: pairs of a setting's name and its value as text.
        **values: further settings, already of their type.

    Returns:
        The settings, and the overrides in plain types.

    Raises:
        SettingsError: one line, for the first thing that is wrong.
    """
    base, overrides = load_settings(profile), {}
    _once(given)
    for name, text in given:
        overrides[name] = cast(name, text, getattr(base, name, ""))
    settings = load_settings(profile, **{**values, **overrides})
    data.check(settings, project_root())
    return settings, overrides


def check_parameters(notebook: Path, given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Checks what a notebook is to be given, without starting anything.

    papermill itself takes any name and any type.

    Args:
        notebook: with a cell tagged ``parameters``.
        given: pairs of a name and a value as text; a name is a parameter of the notebook, or any setting if the
            notebook has the parameters ``profile`` and ``overrides``.

    Returns:
        Parameters for papermill; settings that are no parameters of the notebook are in ``overrides``.

    Raises:
        SettingsError: one line: unknown name, wrong type, value not allowed.
    """
    defaults = parameter_defaults(notebook)
    _once(given)
    has_settings = {"profile", "overrides"} <= defaults.keys()
    others = [name for name in Settings.field_names() if not (name == "seed" and "seeds" in defaults)]
    names = [*defaults, *(others if has_settings else ())]
    for name, _ in given:
        if name not in names:
            known = ", ".join(dict.fromkeys(names)) or "none"
            raise SettingsError(f"unknown parameter {name!r}{nearest(name, names)}; {notebook.name} takes {known}")
    values = {name: cast(name, text, defaults[name]) for name, text in given if name in defaults}
    if not has_settings:
        return values
    everything = {**defaults, **values}
    fields = {name: everything[name] for name in Settings.field_names() if name in defaults and name != "profile"}
    others = [(name, text) for name, text in given if name not in defaults]
    if not isinstance(everything["overrides"], dict):
        raise SettingsError(f"overrides={everything['overrides']!r} is not allowed: a mapping of settings is wanted")
    _, overrides = settings_and_overrides(everything["profile"], others, **fields, **everything["overrides"])
    if overrides:
        values["overrides"] = {**everything["overrides"], **overrides}
    return values


def _once(given: Iterable[tuple[str, str]]) -> None:
    """Raises SettingsError for a name that is given twice: which one counts would be anybody's guess."""
    seen: dict[str, str] = {}
    for name, text in given:
        if name in seen:
            raise SettingsError(f"{name} is given twice: {seen[name]!r} and {text!r}")
        seen[name] = text


def default_output(notebook: Path, parameters: dict[str, Any]) -> Path:
    """``results/<profile>/notebooks/<name>-<what was changed>.ipynb``; of a reference, in the project's own results."""
    profile = parameters.get("profile") or parameter_defaults(notebook).get("profile", "laptop")
    flat = {**parameters, **parameters.get("overrides", {})}
    changed = [f"{name}-{value}" for name, value in flat.items() if name not in ("profile", "results", "overrides")]
    name = re.sub(r"[^\w.-]+", "_", "-".join([notebook.stem, *changed]))
    root = results_root(parameters.get("results"))
    return (results_root() if is_reference(root) else root) / profile / "notebooks" / f"{name}.ipynb"


def find_kernel(name: str = "") -> str:
    """Says which kernel is to execute a notebook.

    That of this very Python is the right one where nothing else is asked for: it is the environment that ``mirl`` was
    installed in. There is one exception: this machine has an NVIDIA GPU, the torch of this Python cannot use it, and a
    kernel is registered that has ``gpu`` or ``cuda`` in its name.

    Args:
        name: of a registered kernel, asked for explicitly.

    Returns:
        The name of a registered kernel, or an empty string for this Python.

    Raises:
        SettingsError: no such kernel is registered, or it is not one of Python.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    kernels = KernelSpecManager().get_all_specs()
    python = [known for known, entry in kernels.items() if entry["spec"].get("language", "").lower() == "python"]
    if name:
        return choose("kernel", name, python)
    if not _gpu_unused():
        return ""
    return next((known for known in sorted(python) if re.search("gpu|cuda", known, re.IGNORECASE)), "")


def run_notebook(
    notebook: Path,
    parameters: dict[str, Any],
    output: Path,
    cell_timeout: float = 0,
    again: str = "",
    kernel: str = "",
) -> None:
    """Executes a notebook with papermill, saving every few seconds; the log lies beside the output.

    Args:
        notebook: what to execute.
        parameters: already checked, see ``check_parameters``.
        output: where the executed notebook goes, each save as a whole; the log has the same name and ``.log``.
        cell_timeout: seconds that one cell may take; 0 is no limit.
        again: command that goes on after a failure, for the message.
        kernel: what ``find_kernel`` returned.

    Raises:
        NotebookFailed: with cell, error, log and ``again`` in its message.
        KeyboardInterrupt: stopped by a signal; the kernel is gone.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    output = output.resolve()
    make_folder(output.parent, "output")
    log_path = output.with_suffix(".log")
    _atomic_saves()
    with log_path.open("w", encoding="utf-8") as log, _papermill_messages(log), _told_to_stop() as stopped:
        log.write(f"{_now()} {notebook.name} {parameters}\n")
        log.write(f"{_now()} kernel: {kernel or f'this Python, {sys.executable}'}; {_visible()}\n")
        log.flush()
        try:
            papermill.execute_notebook(
                notebook,
                output,
                parameters,
                kernel_name=kernel or "python3",
                kernel_manager_class=_kernel_manager(log, kernel),
                progress_bar=False,
                coalesce_streams=True,  # or each redraw of a progress bar stays in the notebook as an output of its own
                stdout_file=log,
                stderr_file=log,
                autosave_cell_every=AUTOSAVE_SECONDS,
                execution_timeout=cell_timeout or None,
            )
            log.write(f"{_now()} finished\n")
            return
        except papermill.PapermillExecutionError as error:
            cell, what = error.exec_count, _one_line(f"{error.ename}: {error.evalue}")
            again = "" if error.ename == SettingsError.__name__ else again  # the same would fail the same way
            log.write(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)) + "\n")
        except (CellTimeoutError, DeadKernelError, KeyboardInterrupt) as error:
            if stopped.is_set():
                log.write(f"{_now()} stopped\n")
                raise KeyboardInterrupt from None
            late = f"it ran longer than {cell_timeout:g} s (--cell-timeout)"
            cell = _last_cell(output)
            what = late if isinstance(error, CellTimeoutError) else "its kernel died (out of memory?)"
        log.write(f"{_now()} failed: {what}\n")
    lines = [f"cell [{cell}] of {notebook.name} failed: {what}", f"  log: {log_path}", f"  executed: {output}"]
    raise NotebookFailed("\n".join(lines + ([f"  go on with: {again}"] if again else [])))


def command(notebook: Path, given: Sequence[tuple[str, str]], output: Path, **options: Any) -> str:
    """Returns the command line that runs a notebook again; empty within a study, which is what to run again then.

    Args:
        notebook, given, output: as they were given to ``mirl run``.
        **options: others of its options, by name; what is empty or false is left out, True is a flag.
    """
    if STUDY_PID in os.environ:
        return ""
    words = [word for name, text in given for word in ("-p", name, text)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])] if value else []
    return shlex.join(["mirl", "run", os.path.relpath(notebook), *words, "--output", os.path.relpath(output)])


@contextlib.contextmanager
def _papermill_messages(log: TextIO) -> Iterator[None]:
    """Sends what papermill and nbclient have to say to the log."""
    logger, handler = logging.getLogger("papermill"), logging.StreamHandler(log)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _last_cell(output: Path) -> int:
    """How many cells were started, by the executed notebook."""
    import nbformat

    cells = [cell for cell in nbformat.read(output, as_version=4).cells if cell.cell_type == "code"]
    return sum(bool(cell.metadata.get("papermill", {}).get("start_time")) for cell in cells)


def _visible() -> str:
    """Which GPUs the kernel will see, as far as its environment says so."""
    return f"{VISIBLE}={os.environ[VISIBLE]!r}" if VISIBLE in os.environ else f"{VISIBLE} is not set"


def _gpu_unused() -> bool:
    """Whether this machine has an NVIDIA GPU that the torch of this Python cannot use."""
    import torch

    return any(Path("/dev").glob("nvidia[0-9]*")) and not torch.cuda.is_available()


def _kernel_manager(log: TextIO, kernel: str) -> type:
    """A kernel manager whose process prints into the log, apart from what its cells print.

    Without a name it is for this very interpreter: a kernelspec named python3 elsewhere on the machine must not win.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class Registered(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**options, stdout=log, stderr=log)

    class ThisPython(Registered):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return Registered if kernel else ThisPython


@functools.cache
def _atomic_saves() -> None:
    """Makes papermill replace local notebooks as a whole, so that a kill leaves the former file and no half one."""
    from papermill.iorw import LocalHandler, papermill_io

    class Atomic(LocalHandler):
        def write(self, buf: str, path: str) -> None:
            part = f"{path}.part"
            Path(part).write_text(buf, encoding="utf-8")
            os.replace(part, path)

    papermill_io.register(os.sep, Atomic())  # handlers are chosen by how a path begins, and ours are absolute


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Yields an event that is set once this process is told to stop, by SIGINT or SIGTERM.

    The study that started this process is watched too: when it is gone, even by SIGKILL, this process stops itself.
    """
    import psutil

    stopped = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        stopped.set()
        raise KeyboardInterrupt

    def watch(study: psutil.Process) -> None:
        while study.is_running() and study.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if pid := os.environ.get(STUDY_PID):
            threading.Thread(target=watch, args=(psutil.Process(int(pid)),), daemon=True).start()
        yield stopped
    except psutil.NoSuchProcess:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
