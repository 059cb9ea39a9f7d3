"""A prepared folder looked at file by file: what is broken, what is in it, and what its sets have in common."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_prep import duplicates, images, overlaps, sources, splits
from data_prep.layouts import TASKS
from data_prep.words import counted
from mirl_study.settings import SettingsError, nearest

SPLITS = ("train", "val", "test")
NEEDED = ("split", "task", "name", "input", "target")
COLUMNS = (*NEEDED, "background", "dataset")
CARD = ("card.json", "card.md", "contact_sheet.png")


@dataclass(frozen=True)
class Verification:
    """What a prepared folder holds, all of it measured.

    Attributes:
        folder: the prepared folder.
        rows: the manifest, with the column ``psnr``: of the input against the target in dB, missing if none.
        files: one line for each file of the manifest that can be read: ``path, sha256, height, width``.
        psnr: input PSNR in dB by ``dataset, task, split``: ``count, mean, sd, min, max``.
        counts: ``rows`` by ``dataset, task, split``, and, in words, how many were published, ``says``.
        pairs: clean images that show the same photograph: ``first, second, bits`` (in which the hashes differ),
            ``correlation``, ``psnr`` (in dB, at the smaller one's size). Of files equal byte by byte, each is listed
            with the first.
        scenes: every clean image and the number of the photograph it shows; see overlaps.scenes.
        overlaps: how many images of one set are in another; see overlaps.overlaps.
        disagreements: where the column ``background`` and the pixels differ; see overlaps.disagreements.
        altered: files that are not what ``card.json`` tells of, if there is one.
        problems: what must be mended, one line each.
    """

    folder: Path
    rows: pd.DataFrame
    files: pd.DataFrame
    psnr: pd.DataFrame
    counts: pd.DataFrame
    pairs: pd.DataFrame
    scenes: pd.DataFrame
    overlaps: pd.DataFrame
    disagreements: pd.DataFrame
    altered: list[str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing must be mended and nothing was altered."""
        return not self.problems and not self.altered


def verify(folder: Path, progress: bool = True) -> Verification:
    """Checks a prepared folder and measures what is in it.

    Every file is decoded once (a clean image that has a near-duplicate: twice).

    Args:
        folder: holds ``manifest.csv`` and the images it lists.
        progress: whether to draw a bar.

    Returns:
        All findings; damage to single files is among them and raises nothing.

    Raises:
        SettingsError: there is no such folder, or no manifest in it that can be read.
    """
    folder = Path(folder)
    rows = _manifest(folder)
    problems = [*_strange(rows), *_repeated(rows)]
    sound = _sound(folder, rows, problems)
    problems += [*_unlisted(folder, rows), *_wrong_lists(folder, rows)]
    files, thumbnails = _measure(folder, rows, sound, problems, progress)
    contents, thumbnails = _contents(rows, files, thumbnails)
    found = duplicates.near_duplicates(thumbnails)
    scenes = overlaps.scenes(rows, contents, found[0])
    problems += overlaps.leaks(scenes)
    return Verification(
        folder=folder,
        rows=rows,
        files=files,
        psnr=_psnr_by_set(rows),
        counts=_counts(rows),
        pairs=_pairs(folder, contents, *found),
        scenes=scenes,
        overlaps=overlaps.overlaps(scenes),
        disagreements=overlaps.disagreements(scenes, thumbnails),
        altered=list(_altered(folder, files)),
        problems=problems,
    )


def in_words(verification: Verification) -> list[str]:
    """What the sets have in common, a sentence each; for the command line and the card."""
    says = []
    for (dataset, split), part in verification.scenes.groupby(["dataset", "split"], sort=False):
        images, distinct = part.target.nunique(), part.scene.nunique()
        if distinct < images:
            says.append(
                f"{overlaps.title(dataset, split)}: {images} images show {counted(distinct, 'distinct photograph')}."
            )
    for row in verification.overlaps.itertuples():
        one, other = overlaps.title(row.dataset, row.split), overlaps.title(row.other_dataset, row.other_split)
        says.append(
            f"{row.images} of the {counted(row.of, 'image')} of {one} show photographs that are in {other} too "
            f"({row.other_images} of {row.other_of} there)."
        )
    if len(pairs := verification.pairs):
        says.append(
            f"These are {counted(len(pairs), 'pair')} of files, {np.isinf(pairs.psnr).sum()} of them equal in every "
            f"pixel; their hashes differ in at most {pairs.bits.max()} bits, and their detail correlates to at least "
            f"{pairs.correlation.min():.2f}."
        )
    return says or ["No two clean images show the same photograph."]


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> pd.DataFrame:
    """The manifest, every cell text; ``background`` and ``dataset`` empty where there is no such column."""
    path = folder / "manifest.csv"
    if not os.path.isdir(folder):
        raise SettingsError(f"data folder {folder}: there is no such folder")
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False).fillna("")
    except FileNotFoundError:
        raise SettingsError(f"data folder {folder}: manifest.csv is missing; this is no prepared folder") from None
    except OSError as error:
        raise SettingsError(f"manifest {path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # what pandas raises over a broken table
        raise SettingsError(f"manifest {path}: is no table ({str(error).strip().splitlines()[0]})") from error
    for column in NEEDED:
        if column not in rows:
            like = nearest(column, rows.columns).replace("did you mean", "is it")
            raise SettingsError(f"manifest {path}: has no column {column!r}; it has {', '.join(rows.columns)}{like}")
    if rows.empty:
        raise SettingsError(f"manifest {path}: lists nothing")
    return rows.assign(**{column: rows.get(column, "") for column in COLUMNS})


def _strange(rows: pd.DataFrame) -> Iterable[str]:
    """Names of columns, splits and tasks that mean nothing here."""
    for column in rows.columns.difference(COLUMNS):
        yield f"manifest.csv: column {column!r} is not one of {', '.join(COLUMNS)}{nearest(column, COLUMNS)}"
    for column, allowed in (("split", SPLITS), ("task", TASKS)):
        for value, count in rows[column].value_counts().items():
            if value not in allowed:
                hint = nearest(value, allowed)
                some = counted(count, "row")
                yield f"manifest.csv: {column} {value!r} ({some}) is not one of {', '.join(allowed)}{hint}"


def _repeated(rows: pd.DataFrame) -> Iterable[str]:
    """Names that are not unique."""
    for (split, task, name), count in rows.value_counts(["split", "task", "name"], sort=False).items():
        if count > 1 or not name:
            yield f"manifest.csv: {split} {task} {name or '(no name)'!r} is listed {counted(count, 'time')}"


def _sound(folder: Path, rows: pd.DataFrame, problems: list[str]) -> set[str]:
    """The listed files that are there; problems of the others, and of rows without a file, are noted."""
    for row in rows.itertuples():
        where = f"manifest.csv: {row.split} {row.task} {row.name!r}"
        if not row.target:
            problems.append(f"{where} has no target")
        if row.task == "denoise" and row.input:
            problems.append(f"{where} has the input {row.input}; noise is drawn on the fly")
        if row.task != "denoise" and not row.input:
            problems.append(f"{where} has no input")
    there = set()
    for path in sorted({*rows.input, *rows.target} - {""}):
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or pure.as_posix() != path:
            problems.append(f"{path}: is not a plain path inside the folder")
            continue
        try:
            is_file = (folder / path).is_file()
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if is_file:
            there.add(path)
        else:
            problems.append(f"{path}: is listed, but missing")
    return there


def _unlisted(folder: Path, rows: pd.DataFrame) -> Iterable[str]:
    """Files that nobody asked for."""
    known = {"manifest.csv", *CARD, *rows.input, *rows.target}
    for path in sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)  # as systems leave them, and an import under way
        if below.as_posix() not in known and not hidden and not below.match("splits/*.txt"):
            yield f"{below.as_posix()}: is on disk, but not in manifest.csv"


def _wrong_lists(folder: Path, rows: pd.DataFrame) -> Iterable[str]:
    """Lists that are damaged, or name other images than the manifest."""
    sets = {"_".join(key): set(part.name) for key, part in rows.groupby(["dataset", "task", "split"])}
    try:
        lists = sorted(path for path in (folder / "splits").iterdir() if path.suffix == ".txt")
    except FileNotFoundError:
        return
    except OSError as error:
        yield f"splits: cannot be read ({error.strerror})"
        return
    for path in lists:
        try:
            names = set(splits.read_list(path).names)
        except SettingsError as error:
            yield str(error).replace(f"list {path}", f"splits/{path.name}")
            continue
        wanted = sets.get(path.stem)
        if names != wanted if wanted else not names <= set(rows.name):
            yield f"splits/{path.name}: names other images than manifest.csv"


def _measure(
    folder: Path, rows: pd.DataFrame, sound: set[str], problems: list[str], progress: bool
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Reads every file; adds the column ``psnr`` to the rows; returns the files and, by content, the thumbnails."""
    files: dict[str, tuple[str, int, int]] = {}
    thumbnails: dict[str, np.ndarray] = {}
    rows["psnr"] = np.nan
    with tqdm(
        total=len(sound), disable=not progress or None, file=sys.stdout, unit="file", desc="verify", ncols=110
    ) as bar:

        def look(path: str) -> np.ndarray | None:
            if path not in sound:
                return None
            if path not in files:
                bar.update()
            try:
                if not images.is_plain(folder / path):
                    raise SettingsError(f"{path}: is not 8-bit RGB as PNG, JPEG or BMP")
                image = images.read(folder / path)
            except SettingsError as error:
                problems.append(str(error).replace(f"image {folder / path}", path))
                sound.discard(path)
                return None
            files[path] = (sha256(folder / path), *image.shape[:2])
            return image

        for target, group in rows.groupby("target", sort=False):
            clean = look(target)
            if clean is not None and files[target][0] not in thumbnails:
                thumbnails[files[target][0]] = duplicates.thumbnail(clean)
            for path, index in group[group.input != ""].groupby("input", sort=False).groups.items():
                degraded = look(path)
                if clean is None or degraded is None:
                    continue
                if clean.shape != degraded.shape:
                    problems.append(f"{path}: is {_size(degraded)}, its target {target} is {_size(clean)}")
                    continue
                rows.loc[index, "psnr"] = value = duplicates.psnr(degraded, clean)
                if np.isinf(value):
                    problems.append(f"{path}: is the same image as its target {target}")
    table = [(path, *seen) for path, seen in sorted(files.items())]
    return pd.DataFrame(table, columns=["path", "sha256", "height", "width"]), thumbnails


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _psnr_by_set(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of what could be measured; equal images, which are a problem of their own, are left out."""
    measured = rows[np.isfinite(rows.psnr)]
    grouped = measured.groupby(["dataset", "task", "split"]).psnr
    return grouped.agg(count="count", mean="mean", sd="std", min="min", max="max").reset_index()


def _contents(
    rows: pd.DataFrame, files: pd.DataFrame, thumbnails: dict[str, np.ndarray]
) -> tuple[pd.Series, np.ndarray]:
    """Numbers the distinct clean images: by path which one a file is, and their (N, 64, 64) thumbnails."""
    places = {digest: place for place, digest in enumerate(thumbnails)}
    contents = files[files.path.isin(rows.target)].set_index("path").sha256.map(places)
    return contents, np.array(list(thumbnails.values()), np.uint8).reshape(-1, duplicates.SIDE, duplicates.SIDE)


def _pairs(folder: Path, contents: pd.Series, pairs: np.ndarray, bits: np.ndarray, alike: np.ndarray) -> pd.DataFrame:
    """The near-duplicates by path with how near they are at full size, and the files that are equal byte by byte."""
    first_with = contents.drop_duplicates().reset_index().set_index("sha256").path
    found = [
        (first_with[number], path, 0, 1.0, np.inf) for path, number in contents.items() if path != first_with[number]
    ]
    for (one, other), distance, correlation in zip(pairs, bits, alike, strict=True):
        paths = first_with[one], first_with[other]
        near = duplicates.psnr_at_one_size(*(images.read(folder / path) for path in paths))
        found.append((*paths, distance, correlation, near))
    return pd.DataFrame(found, columns=["first", "second", "bits", "correlation", "psnr"])


def _counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by set and task, beside what was published; images for validation are drawn from those for training."""
    published = {(h.dataset, h.task, h.split): h.count for source in sources.sources() for h in source.holds if h.count}
    count = rows.groupby(["dataset", "task", "split"]).size()
    says = []
    for dataset, task, split in count.index:
        whole = "test" if split == "test" else "train"
        parts = [part for part in SPLITS if (part == "test") == (split == "test") and (dataset, task, part) in count]
        have, of = sum(count[dataset, task, part] for part in parts), published.get((dataset, task, whole))
        # no judgement: a leak-free split moves images from one to the other
        known = f"{of} are published for {whole}" if of else "no published count"
        says.append(f"{' and '.join(parts)}: {have} ({known})")
    return count.reset_index(name="rows").assign(says=says)


def _altered(folder: Path, files: pd.DataFrame) -> Iterable[str]:
    """Files that are not what the card tells of."""
    try:
        told = dict(json.loads((folder / "card.json").read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return
    except OSError as error:
        yield f"card.json: cannot be read ({error.strerror})"
        return
    except (ValueError, KeyError, TypeError):
        yield "card.json: is no data card; write it again"
        return
    known = dict(zip(files.path, files.sha256, strict=True))
    for name, digest in told.items():
        try:
            found = known.get(name) or sha256(folder / name)
        except OSError as error:
            yield f"{name}: card.json tells of it, but it cannot be read ({error.strerror})"
            continue
        if found != digest:
            yield f"{name}: is not what card.json tells of"
