"""The images below a folder, and what lies there that cannot be used."""

import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.images import SUFFIXES
from data_prep.words import counted
from mirl_study.settings import SettingsError

DEEPEST = 10  # folders below the one that is searched


def folders_of_images(root: Path, unmatched: list[tuple[Path, str]]) -> Iterator[tuple[tuple[str, ...], list[Path]]]:
    """Yields each folder that holds images; hidden files are passed over.

    Args:
        root: where to begin, resolved; links are followed only inside it, and to each folder once.
        unmatched: takes what cannot be used, with the reason; what is no image by its name, as one entry a folder.

    Yields:
        The names of the folders from the root's own to this one, and its images in the order of their names.

    Raises:
        SettingsError: a folder cannot be read.
    """
    seen = {root}
    waiting = [(root, (root.name,))]
    while waiting:
        folder, parts = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise SettingsError(f"source folder {folder}: cannot be read ({error.strerror})") from error
        images, others, folders = [], [], []
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if not entry.name.isprintable():
                unmatched.append((folder, f"the name {ascii(entry.name)} has characters that cannot be printed"))
            elif entry.is_symlink() and not _inside(path, root):
                unmatched.append((path, "a link that leads out of the folder, or nowhere"))
            elif entry.is_dir():
                folders.append(path)
            elif entry.is_file() and path.suffix.casefold() in SUFFIXES:
                images.append(path)
            else:
                others.append(path)
        if others:
            files = counted(len(others), "file")
            unmatched.append((folder, f"no images by their names: {files}, such as {others[0].name!r}"))
        for path in reversed(folders):
            if (real := path.resolve()) in seen:
                unmatched.append((path, "a link to a folder that is read already"))
            elif len(parts) > DEEPEST:
                unmatched.append((path, f"more than {DEEPEST} folders deep"))
            else:
                seen.add(real)
                waiting.append((path, (*parts, path.name)))
        if images:
            yield parts, images


def _inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # nowhere, or round in circles
        return False
