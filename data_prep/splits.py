"""Which images train, validate and test: subsets, splits without leaks, lists of names; real rain on other photographs.

Whatever is drawn is drawn by hashes of names, so that the same names are drawn on every machine, whatever the order of
the files.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from math import floor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.files import whole_file
from data_prep.items import Item
from mirl_study.settings import SettingsError

TRAINED_ON = "BSD400"  # BSDS500 train and test: where the backgrounds of Rain100L's test pairs come from, but for 25
LOSSY = 2, 0.01  # a pair is no rain added to its target if more than this share of pixels is off by more grey levels


class NameList(NamedTuple):
    """A split as a file that one can publish: names, and how they were drawn."""

    dataset: str
    fraction: float
    seed: int
    names: tuple[str, ...]


class RainPair(NamedTuple):
    """A training pair to be made: the rain of ``source`` on the photograph of ``item``, which has no input yet."""

    item: Item
    source: Item
    seed: int

    def generator(self) -> np.random.Generator:
        """Random numbers of this pair alone: how the rain is laid does not depend on what else is made."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{self.item.dataset}/{self.item.name}".encode())])


def draw(items: Sequence[Item], fraction: float, seed: int) -> list[Item]:
    """Draws a subset of a set of images. With the same seed, a smaller fraction is a part of a larger one.

    Args:
        items: of one set, each name once, in any order.
        fraction: of the images, more than 0, at most 1; at least one image is drawn.
        seed: of the draw.

    Returns:
        The images drawn, by name.

    Raises:
        SettingsError: there is nothing to draw from, a name is there twice, or the fraction is not allowed.
    """
    check_fraction(fraction)
    if not items:
        raise SettingsError("items: there are no images to draw from")
    _check_names(item.name for item in items)
    chosen = sorted(items, key=lambda item: _rank(seed, item.name))[: _count(fraction, len(items))]
    return sorted(chosen, key=lambda item: item.name)


def validation(items: Sequence[Item], share: float, seed: int) -> list[Item]:
    """Sets whole backgrounds of the training images aside for validation: at least one for each task.

    A background is set aside in all tasks at once, and each task keeps some to train on.

    Args:
        items: of all tasks, test images among them or not.
        share: of the backgrounds of each task that shall validate, more than 0, less than 1.
        seed: of the draw.

    Returns:
        All items in their order; those set aside are of the split ``val``, nothing else is changed.

    Raises:
        SettingsError: the share is not allowed, or a task has too few backgrounds to set any aside.
    """
    check_validation(share)
    scenes = _scenes(item for item in items if item.split == "train")
    aside: set[str] = set()
    for task, own in sorted(scenes.items()):
        wanted = _count(share, len(own))
        for scene in sorted(own - aside, key=lambda scene: _rank(seed, scene)):
            if len(own & aside) >= wanted:
                break
            if all(others - aside - {scene} for others in scenes.values() if scene in others):
                aside.add(scene)
        if not own & aside:
            raise SettingsError(
                f"validation={share!r}: {task} has too few backgrounds to train on ({len(own)}) to set one aside"
            )
    return [item._replace(split="val") if item.split == "train" and _scene(item) in aside else item for item in items]


def at_most(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """Keeps a few test images of each set and task. With the same seed, fewer are a part of more.

    Args:
        items: of all sets and splits.
        most: test images that stay of each set and task, at least 1.
        seed: of the draw.

    Returns:
        The items that remain, in their order; whatever is no test image stays.
    """
    pools: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        if item.split == "test":
            pools.setdefault((item.dataset, item.task), []).append(item)
    kept = {item for pool in pools.values() for item in sorted(pool, key=lambda item: _rank(seed, item.name))[:most]}
    return [item for item in items if item.split != "test" or item in kept]


def check_fraction(fraction: float, parameter: str = "fraction") -> None:
    """Raises SettingsError if this is no part of a set to draw; ``parameter`` is what the message calls it."""
    _check_share(parameter, fraction, 1.0, "more than 0, at most 1")


def check_validation(share: float) -> None:
    """Raises SettingsError if this is no share to set aside for validation."""
    _check_share("validation", share, np.nextafter(1, 0), "more than 0, less than 1")


def leak_free(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Splits real images so that no background is trained on and tested, in whatever task.

    Test pairs of Rain100L whose background is an image of BSD400 become training pairs: they could not be tested
    honestly by a network that learns to denoise on BSD400, and the official training pairs are not needed any more.
    Where a task has no training images at all (SOTS without OTS), half of the backgrounds that it alone tests, drawn by
    seed, become training. Then training images that show what is tested anywhere are left out.

    Args:
        items: splits as published, ``train`` or ``test``, and backgrounds.
        seed: of the half that is drawn where a task has test images only.

    Returns:
        The items that remain, in their order; one that moves into a split where its name is taken gets another name.
    """
    photographs = {_scene(item) for item in items if item.dataset == TRAINED_ON}
    split = _moved(items, lambda item: item.dataset == "Rain100L" and _scene(item) in photographs)
    trained, tested = (_scenes(item for item in split if item.split == name) for name in ("train", "test"))
    for task in sorted(tested.keys() - trained.keys()):
        elsewhere = set().union(*(scenes for other, scenes in tested.items() if other != task))
        own = sorted(tested[task] - elsewhere, key=lambda scene: _rank(seed, scene))
        half = set(own[: len(tested[task]) // 2])
        split = _moved(split, lambda item, task=task, half=half: item.task == task and _scene(item) in half)
    shown = {_scene(item) for item in split if item.split == "test"}
    return [item for item in split if item.split == "test" or _scene(item) not in shown]


def write_list(path: Path, listed: NameList) -> None:
    """Writes a split as text, one name a line, under a header that says how it was drawn.

    Raises:
        SettingsError: there are no names, a name is there twice, or is none that a line can hold.
    """
    _check_names(listed.names)
    for name in (listed.dataset, *listed.names):
        if not name or name != name.strip() or name.startswith("#") or len(name.splitlines()) != 1:
            raise SettingsError(f"list {path}: {name!r} cannot be written in a line of its own")
    lines = [
        f"# dataset: {listed.dataset}",
        f"# fraction: {listed.fraction!r}",
        f"# seed: {listed.seed}",
        f"# count: {len(listed.names)}",
        f"# sha256: {_digest(listed.names)}",
        *listed.names,
    ]
    with whole_file(Path(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def read_list(path: Path) -> NameList:
    """Reads what ``write_list`` wrote.

    Raises:
        SettingsError: naming the file, if it cannot be read, lacks a part of the header, or was altered.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SettingsError(f"list {path}: cannot be read ({reason})") from error
    header = dict(line[1:].strip().split(": ", 1) for line in lines if line.startswith("#") and ": " in line)
    names = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    try:
        listed = NameList(header["dataset"], float(header["fraction"]), int(header["seed"]), names)
        counted, digest = int(header["count"]), header["sha256"]
    except KeyError as error:
        raise SettingsError(f"list {path}: its header has no {error}") from None
    except ValueError as error:
        raise SettingsError(f"list {path}: its header is wrong: {error}") from None
    if counted != len(names):
        raise SettingsError(f"list {path}: holds {len(names)} names, its header says {counted}")
    if digest != _digest(names):
        raise SettingsError(f"list {path}: its names are not those of its header's sha256")
    _check_names(names)
    return listed


def lift_rain(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Lifts the rain off a real pair.

    In the common sets rain was added to a photograph, the same to R, G and B; where a channel saturates, the others
    still tell how much.

    Args:
        image: (H, W, 3) uint8, with rain.
        target: (H, W, 3) uint8, without.

    Returns:
        (H, W) uint8: grey levels that the rain adds, at least that many where all channels saturate.

    Raises:
        SettingsError: the images differ in size, or in more than rain (lossy copies of a pair do, too).
    """
    if image.shape != target.shape:
        raise SettingsError(f"rain pair: input is {image.shape[:2]} pixels high and wide, target {target.shape[:2]}")
    added = image.astype(np.int16) - target
    layer = added.max(axis=-1)
    off = np.where(image < 255, layer[..., None] - added, 0).max(axis=-1)
    levels, share = LOSSY
    wrong = np.mean((off > levels) | (added.min(axis=-1) < -levels))
    if wrong > share:
        raise SettingsError(
            f"rain pair: {wrong:.1%} of the pixels differ by more than brightness that rain adds, "
            f"as in lossy files; at most {share:.0%} may"
        )
    return np.maximum(layer, 0).astype(np.uint8)


def lay_rain(image: np.ndarray, layer: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Lays lifted rain on another photograph: mirrored or not, cut out at a random place, added and clipped.

    A layer smaller than the photograph goes on from its opposite edge, so that all streaks keep their direction.

    Args:
        image: (H, W, 3) uint8.
        layer: (h, w) uint8.
        generator: source of every draw.

    Returns:
        (H, W, 3) uint8, nowhere darker than ``image``.
    """
    layer = layer[:, :: -1 if generator.integers(2) else 1]
    for axis, size in enumerate(image.shape[:2]):
        have = layer.shape[axis]
        first = generator.integers(have - size + 1 if have >= size else have)
        layer = layer.take(np.arange(first, first + size), axis, mode="wrap")
    return np.minimum(image.astype(np.uint16) + layer[..., None], 255).astype(np.uint8)


def rain_pairs(items: Sequence[Item], variants: int, seed: int) -> list[RainPair]:
    """Plans an augmentation: the rain of training pairs on every clean training photograph.

    Args:
        items: of all tasks and splits; only those of ``train`` take part.
        variants: pairs to make of each photograph that noise is trained on, each with other rain as far as there is.
        seed: which rain, and how it is laid.

    Returns:
        The pairs to make, by name of the photograph; none if there is no photograph or no rain.

    Raises:
        SettingsError: ``variants`` is negative.
    """
    if variants < 0:
        raise SettingsError(f"rain_variants={variants!r} is not allowed: 0 or more")
    training = sorted((item for item in items if item.split == "train"), key=lambda item: (item.name, item.dataset))
    photographs = {item.target: item for item in training if item.task == "denoise"}
    rain = [item for item in training if item.task == "derain" and item.input is not None]
    taken = {item.name for item in training if item.task == "derain"}
    pairs = []
    for photograph in photographs.values():
        others = [item for item in rain if _scene(item) != _scene(photograph)]
        others.sort(key=lambda item, name=photograph.name: _rank(seed, f"{name}/{item.dataset}/{item.name}"))
        for variant in range(variants if others else 0):
            name = _free(f"{photograph.name}_rain{variant}", taken)
            item = photograph._replace(task="derain", name=name, input=None)
            pairs.append(RainPair(item, others[variant % len(others)], seed))
    return pairs


def _scene(item: Item) -> str:
    """What an item shows; one of unknown background shows what no other does."""
    return item.background or f"{item.dataset}/{item.split}/{item.task}/{item.name}"


def _scenes(items: Iterable[Item]) -> dict[str, set[str]]:
    """The backgrounds of each task."""
    scenes: dict[str, set[str]] = {}
    for item in items:
        scenes.setdefault(item.task, set()).add(_scene(item))
    return scenes


def _moved(items: Sequence[Item], which: Callable[[Item], bool]) -> list[Item]:
    """The items; those test images that are meant become training images, under a name that is not taken there."""
    taken: dict[str, set[str]] = {}
    for item in items:
        taken.setdefault(item.task, set()).update({item.name} if item.split == "train" else ())
    moved = []
    for item in items:
        if item.split == "test" and which(item):
            item = item._replace(split="train", name=_free(item.name, taken[item.task]))
        moved.append(item)
    return moved


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken; it is taken from now on."""
    free = next(text for number in count(1) if (text := name if number == 1 else f"{name}_{number}") not in taken)
    taken.add(free)
    return free


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def _count(share: float, size: int) -> int:
    """A share of a whole, rounded half up; at least one."""
    return max(1, floor(share * size + 0.5))


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def _check_share(parameter: str, value: float, most: float, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise SettingsError(f"{parameter}={value!r} is not allowed: {allowed}")


def _check_names(names: Iterable[str]) -> None:
    """Raises SettingsError if there are no names, or one is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SettingsError(f"name {name!r} is there twice: names must differ")
        seen.add(name)
    if not seen:
        raise SettingsError("names: there are none")
