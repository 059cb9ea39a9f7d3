"""Which data sets lie in a folder, and which degraded image belongs to which clean one: told from names alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep import pairing
from data_prep.items import Item
from data_prep.pairing import Pair
from data_prep.walk import folders_of_images
from data_prep.words import counted
from mirl_study.settings import SettingsError, choose

TASKS = ("denoise", "derain", "dehaze", "jpeg")
KNOWN = (
    "the authors' archive (train/ and test/ with denoise/, derain/ and dehaze/)",
    "the Berkeley archive (BSDS500/data/images/)",
    "folders named BSD400, CBSD68, WED or Urban100 with clean images",
    "Rain100L, OTS or SOTS with rainy or hazy and clean images",
    "a photograph NAME_original beside its versions NAME_network",
    "two folders input/ and target/",
)
SETS = {  # the name of a folder that holds it, by pattern; split; task
    "BSD400": (r"c?bsds?[_-]?400", "train", "denoise"),
    "CBSD68": (r"c?bsds?[_-]?68", "test", "denoise"),
    "WED": (r"wed|waterloo.*|exploration.?database.*", "train", "denoise"),
    "Urban100": (r"urban[_-]?100.*", "test", "denoise"),
    "Rain100L": (r"rain[_-]?100[_-]?l([_-].*)?|(rain)?train(100)?l|rain_data_(train|test)_light", "", "derain"),
    "SOTS": (r"sots.*", "test", "dehaze"),
    "OTS": (r"ots.*", "train", "dehaze"),
}
DEGRADED = ("input", "inputs", "degraded", "lq", "rain", "rainy", "hazy", "haze", "synthetic")
CLEAN = ("target", "targets", "gt", "groundtruth", "hq", "norain", "clear", "clean", "original")
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "eval"), "val": ("val", "valid", "validation")}
VALIDATION = "a validation set; validation images are drawn from those for training"


def _facts(name: str) -> list[list[str]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line.split(",") for line in lines if line and not line.startswith("#")]


CBSD68 = frozenset(number for (number,) in _facts("cbsd68.txt"))
RAIN100L = {int(number): image for number, image in _facts("rain100l_backgrounds.csv")[1:]}


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        items: what can be imported, in the order of dataset, split, task and name.
        unmatched: files (or folders, where none of their files can be used) that are left out, each with the reason.
        layouts: what was recognised where, in words.
    """

    items: list[Item]
    unmatched: list[tuple[Path, str]]
    layouts: list[str]


def find(folder: Path, task: str | None = None) -> Found:
    """Recognises every known layout in a folder, at any depth.

    Args:
        folder: to search; links are followed only inside it.
        task: what images suffer in folders whose names do not tell (``denoise``: clean images alone are enough).

    Returns:
        Items, what is left out, and what was recognised.

    Raises:
        SettingsError: there is no such folder, nothing in it is known, or one image is there twice.
    """
    folder = Path(folder).expanduser()
    if task is not None:
        choose("task", task, TASKS)
    if not folder.is_dir():
        what = "is a file; unpack it first or name a folder" if folder.exists() else "does not exist"
        raise SettingsError(f"source folder {folder}: {what}")
    search = _Search(folder.resolve(), task)
    for parts, paths in folders_of_images(search.root, search.unmatched):
        _recognise(search, parts, paths)
    for (dataset, anchor), pair in search.pairs.items():
        _match(search, dataset, anchor, pair)
    for urban in search.urban.values():
        _choose_scale(search, urban)
    if not search.items:
        left = "; ".join(f"{path}: {reason}" for path, reason in search.unmatched[:1])
        raise SettingsError(
            f"source folder {folder}: no known layout{f' ({left})' if left else ''}; known are {'; '.join(KNOWN)}"
        )
    return Found(
        _distinct(search.items),
        search.unmatched,
        [f"{words}, {counted(count, 'image')}" for words, count in search.words.items()],
    )


@dataclass
class _Search:
    """What has been found so far; ``pairs`` and ``urban`` wait until all folders have been seen."""

    root: Path
    task: str | None
    items: list[Item] = field(default_factory=list)
    unmatched: list[tuple[Path, str]] = field(default_factory=list)
    words: Counter = field(default_factory=Counter)
    pairs: dict = field(default_factory=lambda: defaultdict(lambda: {"degraded": [], "clean": []}))
    urban: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, item: Item, where: tuple[str, ...]) -> None:
        """Takes an item, found below the folder ``where``."""
        self.items.append(item)
        self.words[f"{item.dataset} in {'/'.join(where)}: {item.split}, {item.task}"] += 1

    def leave(self, paths: Iterable[Path], reason: str) -> None:
        """Notes files that cannot be used."""
        self.unmatched += [(path, reason) for path in paths]


def _recognise(search: _Search, parts: tuple[str, ...], paths: list[Path]) -> None:
    """Tells by a folder's name, and those above it, what its images are."""
    place, dataset = _dataset(parts)
    if _is_berkeley(parts, paths):
        _berkeley(search, parts, paths)
    elif dataset and SETS[dataset][2] == "denoise":
        _clean_set(search, parts, place, dataset, paths)
    elif any(part.casefold() == "indoor" for part in parts):
        search.leave(paths, "indoor; the study uses the outdoor images")
    else:
        _degraded_or_clean(search, parts, place, dataset, paths)


def _dataset(parts: tuple[str, ...]) -> tuple[int, str]:
    """The deepest folder that is named like a data set, and that set."""
    for place in reversed(range(len(parts))):
        for name, (pattern, _, _) in SETS.items():
            if re.fullmatch(pattern, parts[place].casefold()):
                return place, name
    return -1, ""


def _split(parts: tuple[str, ...]) -> str:
    """The split that the deepest telling folder names, or an empty string."""
    for part in reversed(parts):
        words = re.split(r"[^a-z]+", part.casefold().replace("raintrain", "train_").replace("train100l", "train"))
        for split, names in SPLITS.items():
            if set(words) & set(names):
                return split
    return ""


def _is_berkeley(parts: tuple[str, ...], paths: list[Path]) -> bool:
    """Whether this is images/train, val or test of BSDS500; in the older BSDS300 the test images are others."""
    names = [part.casefold() for part in parts]
    if names[-2:-1] != ["images"] or names[-1] not in ("train", "val", "test") or "bsds300" in names:
        return False
    return "bsds500" in names or all(re.fullmatch(r"[1-9]\d{3,5}", path.stem) for path in paths)


def _berkeley(search: _Search, parts: tuple[str, ...], paths: list[Path]) -> None:
    for path in paths:
        if path.stem in CBSD68:
            search.add(Item("CBSD68", "test", "denoise", f"CBSD68_{path.stem}", None, path, f"BSD/{path.stem}"), parts)
        elif parts[-1].casefold() == "val":
            search.leave([path], "in BSDS500 val, but none of the 68 of CBSD68: the paper does not use it")
        else:
            search.add(Item("BSD400", "train", "denoise", f"BSD400_{path.stem}", None, path, f"BSD/{path.stem}"), parts)


def _clean_set(search: _Search, parts: tuple[str, ...], place: int, dataset: str, paths: list[Path]) -> None:
    """Clean images in a folder named after their set."""
    if any(part.casefold() in DEGRADED or part.casefold().startswith("noisy") for part in parts[place + 1 :]):
        search.leave(paths, f"a degraded copy of {dataset}; noise is drawn on the fly")
        return
    for path in paths:
        if dataset == "Urban100":
            _urban(search, parts[: place + 1], path)
            continue
        name = re.sub(r"^a(?=\d+$)", "", path.stem)  # some copies of BSD400 begin each name with an a
        known = dataset.startswith(("BSD", "CBSD")) and name.isdecimal()
        background = f"{'BSD' if known else dataset}/{name}"
        search.add(
            Item(dataset, SETS[dataset][1], "denoise", f"{dataset}_{name}", None, path, background), parts[: place + 1]
        )


def _urban(search: _Search, where: tuple[str, ...], path: Path) -> None:
    """Urban100 also comes as high- and low-resolution images for several scales."""
    match = re.fullmatch(r"(.+?)(?:_SRF_(\d)_(HR|LR))?", path.stem)
    if match[3] == "LR":
        search.leave([path], "a shrunk copy of an Urban100 image")
    else:
        search.urban[match[1]].append((int(match[2] or 1), path, where))


def _choose_scale(search: _Search, copies: list[tuple[int, Path, tuple[str, ...]]]) -> None:
    """Takes the image that was cropped for no scale, or else for the smallest, which crops least."""
    best = min(copies)[0]
    for scale, path, where in copies:
        if scale == best:
            name = re.sub(r"_SRF_.*", "", path.stem)
            search.add(Item("Urban100", "test", "denoise", f"Urban100_{name}", None, path, f"Urban100/{name}"), where)
        else:
            search.leave([path], "the same Urban100 image cropped for another scale")


def _degraded_or_clean(search: _Search, parts: tuple[str, ...], place: int, dataset: str, paths: list[Path]) -> None:
    """Sorts images by the role that their folder or their name gives them, to be paired later."""
    roles = [at for at, part in enumerate(parts) if at and part.casefold() in (*DEGRADED, *CLEAN)]
    at = next((at for at in reversed(roles) if at > place), roles[0] if roles else None)
    originals = [path.stem.removesuffix("_original") for path in paths if path.stem.endswith("_original")]
    if at is None and not dataset and originals:
        _networks(search, parts, paths, originals)
        return
    rest = []
    for path in paths:
        if at is not None:
            role, anchor = "degraded" if parts[at].casefold() in DEGRADED else "clean", parts[:at]
        elif match := re.search(r"^(norain|rain)-|_(gt|rainy|hazy)$", path.stem.casefold()):
            role, anchor = "clean" if "norain" in match[0] or "gt" in match[0] else "degraded", parts
        else:
            rest.append(path)
            continue
        search.pairs[dataset, anchor][role].append(path)
    if rest and not dataset and _task(search, parts, rest[0]) == "denoise":
        _photographs(search, parts, rest)
    else:
        search.leave(rest, "in no folder with a known name, nor beside its pair")


def _photographs(search: _Search, parts: tuple[str, ...], paths: list[Path]) -> None:
    """Clean images in a folder of any name; PromptIR's mixes WED (00001.bmp) and BSD400 (a100007.jpg)."""
    split = _split(parts) or "train"
    if split == "val":
        search.leave(paths, VALIDATION)
        return
    for path in paths:
        name = "_".join([*parts[1:], path.stem])
        item = Item("pairs", split, "denoise", f"pairs_{name}", None, path, f"pairs/{name}")
        if split == "train" and re.fullmatch(r"a\d{4,6}\.jpg", path.name):
            number = path.stem[1:]
            item = item._replace(dataset="BSD400", name=f"BSD400_{number}", background=f"BSD/{number}")
        elif split == "train" and re.fullmatch(r"\d{5}\.bmp", path.name):
            item = item._replace(dataset="WED", name=f"WED_{path.stem}", background=f"WED/{path.stem}")
        search.add(item, parts)


def _networks(search: _Search, parts: tuple[str, ...], paths: list[Path], originals: list[str]) -> None:
    """Photographs as social networks gave them back, each beside its original."""
    for path in paths:
        owners = [original for original in originals if path.stem.startswith(f"{original}_")]
        targets = [other for other in paths for owner in owners if other.stem == f"{owner}_original"]
        if path in targets:
            continue
        if len(targets) != 1:
            search.leave([path], f"belongs to {len(targets)} originals; one is wanted")
            continue
        search.add(Item("OSN", "test", "jpeg", f"OSN_{path.stem}", path, targets[0], f"OSN/{owners[0]}"), parts)


def _match(search: _Search, dataset: str, anchor: tuple[str, ...], found: dict[str, list[Path]]) -> None:
    """Pairs the degraded and clean images of one place."""
    degraded, clean = found["degraded"], found["clean"]
    everything = [*degraded, *clean]
    parts = (*anchor[:1], *everything[0].parent.relative_to(search.root).parts)
    task = SETS[dataset][2] if dataset else _task(search, parts, everything[0])
    split = dataset and SETS[dataset][1] or _split(parts)
    if dataset == "Rain100L" and not split:  # 100 pairs to test on, 200 to train on, both numbered from 1
        numbers = [int(name) for name in map(pairing.key, clean) if name.isdecimal()]
        split = "test" if max(numbers, default=0) <= 100 else "train"
    if task is None:
        search.leave(everything, f"what it suffers is not told by any name: state the task ({', '.join(TASKS)})")
    elif split == "val":
        search.leave(everything, VALIDATION)
    elif task == "denoise":
        search.leave(degraded, "noisy already; noise is drawn on the fly")
        _photographs(search, anchor, clean)
    else:
        pairs, left = pairing.match(degraded, clean, hazy=task == "dehaze")
        search.unmatched += left
        for pair in pairs:
            name, background = _titles(dataset, split, anchor, pair)
            item = Item(dataset or "pairs", split or "train", task, name, pair.input, pair.target, background)
            search.add(item, anchor)


def _titles(dataset: str, split: str, anchor: tuple[str, ...], pair: Pair) -> tuple[str, str]:
    """Name and background of a pair."""
    if not dataset:
        name, background = (["pairs", "_".join(anchor[1:]), text] for text in (pair.key, pair.scene))
        return "_".join(filter(None, name)), "/".join(filter(None, background))
    if dataset == "Rain100L":
        known = RAIN100L.get(int(pair.key)) if split == "test" and pair.key.isdecimal() else None
        return f"Rain100L_{pair.key}", f"BSD/{known}" if known else f"Rain100L/{split}-{pair.key}"
    return f"{dataset}_{pair.key}", f"{dataset}/{pair.scene}"


def _task(search: _Search, parts: tuple[str, ...], path: Path) -> str | None:
    """What images of a place without a data set's name suffer, as the user or the names of folders and files say."""
    if search.task:
        return search.task
    text = "/".join((*parts, path.stem)).casefold()
    for task, pattern in {
        "denoise": "denois",
        "derain": "derain|rainy|norain|/rain[-/]",
        "dehaze": "dehaz|hazy|/haze/",
    }.items():
        if re.search(pattern, text):
            return task
    return None


def _distinct(items: list[Item]) -> list[Item]:
    """The items in order; raises SettingsError if two have one name."""
    places: dict[tuple[str, str, str], Item] = {}
    for item in items:
        other = places.setdefault((item.split, item.task, item.name), item)
        if other is not item:
            first, second = other.input or other.target, item.input or item.target
            raise SettingsError(
                f"{item.name} is there twice, {first} and {second}: move one out, or import them singly"
            )
    return sorted(items, key=lambda item: (item.dataset, item.split, item.task, item.name))
