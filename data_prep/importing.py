"""From a folder somebody has to a prepared folder: recognised, split, checked, and written whole or not at all.

No image is repeated to balance the tasks, as the paper does: batches take turns between the families of tasks
(``mirl_study.data.Bank.batch``), which balances them whatever their numbers.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_prep import backgrounds, cards, layouts, sources, splits, verify
from data_prep.files import check_new, new_folder
from data_prep.items import Item
from data_prep.layouts import Found
from data_prep.prepared import Writer
from data_prep.words import counted
from mirl_study.settings import SettingsError, choose

SPLITS = {
    "paper": "as published; where training and test images show the same scene, column background says so and the "
    "setting drop_overlap leaves them out of training",
    "leak_free": "no scene is both trained on and tested, in whatever task",
}
PAPER_FRACTIONS = {"BSD400": 0.05, "WED": 0.05, "Rain100L": 0.1, "OTS": 0.03}  # of the training images
ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Report:
    """What an import did.

    Attributes:
        folder: the prepared folder.
        counts: rows of the manifest by dataset, split and task.
        notes: what the user should know, one line each.
        found: what was recognised in the source, and what was left out.
        left_out: what was not imported, a line for each reason.
        converted: source files that were not copied byte for byte.
        shared: what the sets have in common, a sentence each.
        problems: what the verification of the new folder found, one line each.
    """

    folder: Path
    counts: dict[tuple[str, str, str], int]
    notes: list[str]
    found: Found
    left_out: list[str]
    converted: list[Path]
    shared: list[str]
    problems: list[str]


def import_folder(
    source: Path,
    target: Path,
    *,
    split: str = "paper",
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    task: str | None = None,
    test_images: int = 0,
    rain_variants: int = 0,
    jpeg: bool = False,
    progress: bool = True,
) -> Report:
    """Makes a prepared folder, with its card, of the data sets in a folder; the source is only read.

    Args:
        source: holds data sets in any layout that ``layouts.find`` knows.
        target: must not exist; it appears when all is written.
        split: ``paper`` or ``leak_free`` (see SPLITS and ``splits.leak_free``).
        fractions: by dataset, the share of its training images to draw.
        seed: of all draws.
        validation: share of the training backgrounds of each task that is set aside.
        task: what images suffer in folders whose names do not tell.
        test_images: how many of each set and task are drawn to be tested on, after the split; 0 is all of them, which
            published scores are of.
        rain_variants: pairs to make of each training photograph with rain lifted from real training pairs.
        jpeg: whether to put the photographs for noise through an imitation of a social network, as images of the
            task ``jpeg``.
        progress: whether to draw a bar.

    Returns:
        What was done.

    Raises:
        SettingsError: one line, nothing written: a parameter is not allowed, the target exists, nothing is recognised,
            or an image is broken, of a kind that is refused (``images.RULE``), or of another size than its pair.
    """
    source, target, fractions = Path(source).expanduser(), Path(target).expanduser(), fractions or {}
    choose("split", split, SPLITS)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise SettingsError(f"seed={seed!r} is not allowed: a whole number, 0 to {2**32 - 1}")
    splits.check_validation(validation)
    if not isinstance(test_images, int) or isinstance(test_images, bool) or test_images < 0:
        raise SettingsError(f"test_images={test_images!r} is not allowed: a whole number, 0 for all")
    check_new(target)
    if target.resolve().is_relative_to(source.resolve()):
        raise SettingsError(f"target {target}: lies inside the source {source}; name a folder outside")
    found = layouts.find(source, task)
    notes = _notes_on_shares(found.items, fractions)
    drawn = items = backgrounds.unify(_subset(found.items, fractions, seed), progress)
    if split == "leak_free":
        items = splits.leak_free(items, seed)
    if jpeg:
        items = [*items, *(web := _for_web(items))]
        notes += [] if web else ["jpeg: there are no photographs to put through a social network; nothing was made"]
    notes += _notes(drawn, items)
    if test_images and (gone := len(items) - len(items := splits.at_most(items, test_images, seed))):
        notes.append(f"{counted(gone, 'test image')} left out: at most {test_images} of each set and task stay")
    items = splits.validation(items, validation, seed)
    rain = {(pair.item.split, pair.item.name): pair for pair in splits.rain_pairs(items, rain_variants, seed)}
    if rain_variants and not rain:
        notes.append("rain_variants: without training pairs of rain and other training photographs nothing was made")
    items = sorted([*items, *(pair.item for pair in rain.values())], key=_order)
    below = source.resolve()
    left_out = _left_out(found, below)
    with new_folder(target) as folder:
        writer = Writer(folder, seed, rain)
        for item in tqdm(items, disable=not progress or None, file=sys.stdout, unit="image", desc="import", ncols=110):
            writer.put(item)
        writer.finish(_shares(found.items, fractions))
        made = {
            "Split": f"{split}: {SPLITS[split]}",
            "Tested on": f"at most {test_images} images of each set and task" if test_images else "everything",
            "Drawn": ", ".join(f"{share:g} of {name}" for name, share in fractions.items()) or "everything",
            "Validation": f"{validation:g} of the training backgrounds of each task",
            "Seed": seed,
            "Balance": "no image is repeated; batches take turns between the families of tasks",
            "Rain lifted from training pairs": f"on {rain_variants} copies of each photograph" if rain else "none",
            "Notes": notes,
            "Recognised": found.layouts,
            "Left out": left_out,
            "Converted": [path.relative_to(below).as_posix() for path in writer.converted],
        }
        checked = verify.verify(folder, progress)
        cards.write_card(folder, checked, made)
    counts = Counter((item.dataset, item.split, item.task) for item in items)
    shared = verify.in_words(checked)
    return Report(target, dict(counts), notes, found, left_out, writer.converted, shared, checked.problems)


def _subset(items: Sequence[Item], fractions: Mapping[str, float], seed: int) -> list[Item]:
    """Draws the wanted share of each set's training images."""
    left: set[Item] = set()
    for name, share in fractions.items():
        choose("fractions: dataset", name, sorted({item.dataset for item in items}))
        splits.check_fraction(share, f"fractions: {name}")
        pool = [item for item in items if item.dataset == name and item.split == "train"]
        if not pool:
            raise SettingsError(f"fractions: {name}={share!r} is not allowed: it has only test images, which all stay")
        left |= set(pool) - set(splits.draw(pool, share, seed))
    return [item for item in items if item not in left]


def _shares(items: Sequence[Item], fractions: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """The share that was drawn of the training images, by dataset and task."""
    train = ((item.dataset, item.task) for item in items if item.split == "train")
    return {(dataset, task): fractions[dataset] for dataset, task in train if dataset in fractions}


def _notes_on_shares(items: Sequence[Item], fractions: Mapping[str, float]) -> list[str]:
    """Says where a share is drawn of what is a part already."""
    holdings = [held for source in sources.sources() for held in source.holds if held.split == "train"]
    published = {held.dataset: held.count for held in holdings if held.count}
    have = Counter(item.dataset for item in items if item.split == "train")
    return [
        f"{name}: a share of {have[name]:,} images, {published[name]:,} are published; "
        "the authors' archive is drawn already"
        for name in fractions
        if have[name] < published.get(name, 0)
    ]


def _for_web(items: Sequence[Item]) -> list[Item]:
    """The photographs that noise is drawn on, as images that a social network has yet to spoil."""
    return [item._replace(task="jpeg") for item in items if item.task == "denoise"]


def _notes(drawn: Sequence[Item], items: Sequence[Item]) -> list[str]:
    """What became of the families of tasks.

    Args:
        drawn: what was to be split.
        items: what trains and tests.
    """
    notes = []
    trained = {item.background for item in drawn if item.dataset == splits.TRAINED_ON}
    were = {(item.task, item.input, item.target): item.split for item in drawn}
    kept = {(item.task, item.input, item.target) for item in items}
    for task in layouts.TASKS:
        train = [item for item in items if item.task == task and item.split == "train"]
        if moved := [item for item in train if were.get((task, item.input, item.target)) == "test"]:
            leaks = all(item.background in trained for item in moved)
            why = "what they show is trained on" if leaks else "there is no training set"
            notes.append(f"{task}: {counted(len(moved), 'published test image')} moved to training, because {why}")
        if gone := sum(key not in kept for key in were if key[0] == task):
            notes.append(f"{task}: {counted(gone, 'training image')} left out, because what they show is tested")
        have = Counter(item.split for item in items if item.task == task)
        for one, other in (("train", "test"), ("test", "train")):
            if have[one] and not have[other]:
                some = counted(have[one], "image")
                notes.append(f"{task}: {some} to {one} on and none to {other} on; a study of it needs both")
    return notes


def _left_out(found: Found, source: Path) -> list[str]:
    """What was not imported, by reason."""
    reasons: dict[str, list[str]] = {}
    for path, reason in found.unmatched:
        name = source.name if path == source else path.relative_to(source).as_posix()
        reasons.setdefault(reason, []).append(name)
    return [
        f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}: {why}"
        for why, paths in reasons.items()
    ]


def _order(item: Item) -> tuple:
    return ORDER.index(item.split), item.task, item.name
