"""The data card of a prepared folder: a page for people, the same for programs, and a sheet of thumbnails."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from data_prep import duplicates, images, sources
from data_prep.contact_sheet import contact_sheet
from data_prep.files import whole_file
from data_prep.verify import CARD, Verification, in_words, sha256
from data_prep.words import counted
from mirl_study.settings import SettingsError

MOST = 50  # lines of one list or table of the page


def write_card(folder: Path, verification: Verification, extra: dict | None = None) -> dict:
    """Writes ``card.json``, ``card.md`` and ``contact_sheet.png`` into a prepared folder: all three or none.

    Args:
        folder: the prepared folder.
        verification: of this folder.
        extra: how the folder was made, as JSON can hold it: words, lists or mappings, by title.

    Returns:
        The card, as in ``card.json``.

    Raises:
        SettingsError: an image can no longer be read, the folder has a card of another kind, or cannot be written.
    """
    folder = Path(folder)
    _check_own(folder / "card.json")
    for name in CARD:
        if (folder / name).is_dir():  # before another of the three has taken its place
            raise SettingsError(f"{folder / name}: is a folder, and the card needs its place")
    try:
        return _write(folder, _card(folder, verification, extra or {}), verification)
    except OSError as error:
        raise SettingsError(f"card of {folder}: cannot be written ({error.strerror or error})") from error


def _write(folder: Path, card: dict, verification: Verification) -> dict:
    """Writes the three files; returns the card, with the digests of the other two."""
    # the first to be opened is the last to take its place: card.json, which vouches for the others
    with (
        whole_file(folder / "card.json") as data,
        whole_file(folder / "card.md") as page,
        whole_file(folder / "contact_sheet.png") as sheet,
    ):
        contact_sheet(folder, _whole(verification)).save(sheet, format="PNG")
        page.write_text(_as_markdown(card), encoding="utf-8")
        card["files"] |= {"card.md": sha256(page), "contact_sheet.png": sha256(sheet)}
        data.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def _check_own(path: Path) -> None:
    """The card of the embedded photographs decides whether they are prepared anew: it is not ours to replace."""
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(former, dict) and "made" not in former:
        raise SettingsError(f"{path}: was written by another preparation of this folder, and is left as it is")


def _card(folder: Path, verification: Verification, extra: dict) -> dict:
    """All but the card's own files."""
    rows, lists = verification.rows, sorted((folder / "splits").glob("*.txt"))
    own = ["manifest.csv", *(path.relative_to(folder).as_posix() for path in lists)]
    tasks = ", ".join(f"{count} {task}" for task, count in rows.task.value_counts().items())
    return {
        "what": f"{counted(len(rows), 'image')} to restore ({tasks}) in {counted(len(verification.files), 'file')} of "
        "8-bit RGB.",
        "made": extra,
        "sources": _sources(rows.dataset.unique()),
        "counts": _records(verification.counts),
        "input_psnr_db": _records(verification.psnr),
        "overlaps": {
            "in_words": in_words(verification),
            "how": f"Pairs of clean images whose 64-bit hashes differ in at most {duplicates.RADIUS} bits and whose "
            f"detail correlates to at least {duplicates.ALIKE}. Found: the same photograph {duplicates.FOUND}. "
            f"Not found: {duplicates.NOT_FOUND}.",
            "sets": _records(verification.overlaps),
            "pairs": _records(verification.pairs),  # psnr is null where all pixels are equal
            "disagreements": _records(verification.disagreements),
        },
        "image_rule": images.RULE,
        "problems": verification.problems,
        "splits": {path.name: path.read_text(encoding="utf-8").splitlines() for path in lists},
        "files": dict(verification.files[["path", "sha256"]].values) | {name: sha256(folder / name) for name in own},
    }


def _whole(verification: Verification) -> pd.DataFrame:
    """The rows that can be shown."""
    rows = verification.rows
    return rows[rows.target.isin(verification.files.path) & ((rows.input == "") | rows.psnr.notna())]


def _sources(datasets: Iterable[str]) -> list[dict]:
    """What the registry says of each set that occurs, at the source that holds the least besides it."""
    known, found = sources.sources(), []
    for dataset in datasets:
        holding = [source for source in known if dataset in {held.dataset for held in source.holds}]
        if holding:
            own = min(holding, key=lambda source: len(source.holds))
            found.append({"dataset": dataset} | {key: getattr(own, key) for key in ("licence", "citation", "page")})
    return found


def _records(table: pd.DataFrame) -> list[dict]:
    """A table as JSON can hold it; what is missing or infinite is null."""
    return json.loads(table.to_json(orient="records", double_precision=4))


def _as_markdown(card: dict) -> str:
    overlap, digests = card["overlaps"], card["files"]
    psnr = [{key: f"{v:.2f}" if isinstance(v, float) else v for key, v in row.items()} for row in card["input_psnr_db"]]
    lists = [
        {"list": name, "names": sum(not line.startswith("#") for line in lines)}
        for name, lines in card["splits"].items()
    ]
    every = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    sections = {
        "Problems": card["problems"],
        "How it was made": card["made"],
        "Sources": card["sources"],
        "Counts": card["counts"],
        "Input PSNR, dB": psnr,
        "Photographs in more than one set": overlap["in_words"],
        "Where background and pixels disagree": overlap["disagreements"],
        "Lists of the splits": lists,
    }
    notes = {
        "How it was made": card["image_rule"],
        "Input PSNR, dB": "Of the degraded image against the clean one, both 8 bit; noise is drawn on the fly.",
        "Photographs in more than one set": overlap["how"],
    }
    parts = ["# Data card", card["what"]]
    for title, content in sections.items():
        if content or title in notes:
            parts += [f"## {title}", *filter(None, [_text(content), notes.get(title)])]
    parts += [
        "## SHA-256",
        f"Of every file: in `card.json`. Of `manifest.csv`: `{digests['manifest.csv']}`. Of all files but the card's, "
        f"as lines of digest, two spaces and path, sorted by path: `{hashlib.sha256(every.encode()).hexdigest()}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _text(content: Mapping | Sequence) -> str:
    """A mapping, or a list of words or of equal mappings, as a Markdown list or table; long ones are cut."""
    if isinstance(content, Mapping):
        return "\n".join(f"- **{_cell(name)}**:{_within(value)}" for name, value in content.items())
    more = [f"... and {len(content) - MOST} more: see `card.json`."] if len(content) > MOST else []
    if content and isinstance(content[0], Mapping):
        lines = [list(content[0]), ["---"] * len(content[0]), *(row.values() for row in content[:MOST])]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    else:
        text = "\n".join(f"- {_cell(item)}" for item in content[:MOST])
    return "\n\n".join([text, *more])


def _within(value: object) -> str:
    """What follows the colon: a value, or a list of them as a list within a list."""
    if not isinstance(value, list):
        return f" {_cell(value)}"
    more = [f"... and {len(value) - MOST} more: see `card.json`"] if len(value) > MOST else []
    return "".join(f"\n  - {_cell(item)}" for item in [*value[:MOST], *more]) or " none"


def _cell(value: object) -> str:
    """One value on one line that no table breaks at."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
