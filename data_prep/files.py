"""Files and folders that are whole or not there at all."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from mirl_study.settings import SettingsError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that takes the place of ``path`` if the block ends well, and vanishes if not."""
    temporary = _sibling(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``target`` that becomes it if the block ends well, and vanishes if not.

    Parents that are not there yet are made, and removed again if the block fails. What a process that was killed left
    of an earlier attempt at the same target is removed.

    Args:
        target: must not exist.

    Raises:
        SettingsError: the target exists, or cannot be written.
    """
    target = Path(target)
    check_new(target)
    made: list[Path] = []
    temporary = _sibling(target)
    try:
        try:
            _make(target.parent, made)
            remove_leftovers(target)
            temporary.mkdir()
        except OSError as error:
            raise SettingsError(f"target {target}: cannot be made ({error.strerror})") from error
        try:
            yield temporary
            check_new(target)
            temporary.rename(target)
        except OSError as error:
            raise SettingsError(f"target {target}: cannot be written ({error.strerror or error})") from error
        made.clear()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def check_new(target: Path) -> None:
    """Raises SettingsError if something, be it a broken link, is at ``target``: nothing existing is overwritten."""
    if os.path.lexists(target):
        raise SettingsError(f"target {target}: exists already and is never overwritten; name a new folder or remove it")


def remove_leftovers(path: Path) -> None:
    """Removes temporary siblings of ``path`` whose process is no more."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.tmp")
    for entry in path.parent.iterdir():
        if (match := pattern.fullmatch(entry.name)) and not psutil.pid_exists(int(match[1])):
            with suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _make(folder: Path, made: list[Path]) -> None:
    """Makes a folder and its parents, noting which were not there."""
    if not folder.is_dir():
        _make(folder.parent, made)
        folder.mkdir()
        made.append(folder)
