"""A small data set from photographs inside installed packages: no download, a few seconds.

`prepare` shrinks and crops each photograph, degrades it with seeded rain, haze and a social network's handling, and
writes PNG pairs, a manifest and a data card. Noise is not stored: it is drawn on the fly from the clean images.
"""

import csv
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from mirl_study import degradations
from mirl_study.degradations import HazeRanges, RainRanges, UploadRanges
from mirl_study.settings import SIGMAS, SettingsError

SPLITS = ("train", "val", "test")
COLUMNS = ("split", "task", "name", "input", "target")
RECIPE = Path(__file__).with_suffix(".yaml")
# Everything prepare() may write at the top of a data folder; a folder that holds anything else is not ours to replace.
OURS = {*SPLITS, "manifest.csv", "card.json", "card.md"}


@dataclass(frozen=True)
class Photograph:
    """One photograph: where it is installed, its split, and whom it is owed to (see embedded.yaml)."""

    name: str
    package: str
    file: str
    split: str
    author: str
    licence: str
    source: str

    def path(self) -> Path:
        """Where the photograph lies, found without importing the package.

        Raises:
            SettingsError: the package or the file is not installed.
        """
        package, _, rest = self.file.partition("/")
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(folder) / rest).is_file():
                return path
        raise SettingsError(f"photograph {self.name!r}: {self.file} of package {self.package} is not installed")

    def read(self) -> np.ndarray:
        """The photograph shrunk by area averaging and cropped, about the middle, to multiples of 8.

        Returns:
            (H, W, 3) uint8.

        Raises:
            SettingsError: the photograph is missing or broken.
        """
        path = self.path()
        try:
            with Image.open(path) as picture:
                small = np.asarray(picture.convert("RGB").reduce(_recipe()["reduce"]))
        except (OSError, SyntaxError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(f"photograph {self.name!r}: {path} cannot be read ({reason})") from error
        height, width = (side // 8 * 8 for side in small.shape[:2])
        top, left = (small.shape[0] - height) // 2, (small.shape[1] - width) // 2
        return small[top : top + height, left : left + width]


def photographs() -> list[Photograph]:
    """The photographs of the embedded set, in the order of embedded.yaml."""
    return [Photograph(**entry) for entry in _recipe()["photographs"]]


def prepare(folder: Path, seed: int = 0) -> Path:
    """Prepare the embedded data set, once.

    Returns at once if the folder is complete. Otherwise all is written into a temporary sibling, which is then
    renamed: nobody ever sees half a folder, and of two processes at once one wins and both return. What was prepared
    by another recipe (that of an earlier version) is prepared anew.

    Args:
        folder: where the data set goes; absent, empty, complete, by another recipe, or left incomplete by an earlier
            run.
        seed: of every degraded variant.

    Returns:
        `folder`.

    Raises:
        SettingsError: a photograph is missing or broken, or the folder is unusable: it holds something else, lacks
            a listed file, or was prepared with another seed.
    """
    folder = Path(folder)
    if ready(folder, seed):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _set_aside(folder)
    temporary = _sibling(folder)
    try:
        temporary.mkdir()
        _write(temporary, seed)
        try:
            temporary.rename(folder)
        except OSError:
            if not ready(folder, seed):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def verify(folder: Path) -> int:
    """Check every file of a prepared folder against the card.

    Returns:
        The number of files checked.

    Raises:
        SettingsError: the folder has no complete manifest, or a file is missing or altered.
    """
    folder = Path(folder)
    if (card := _read_card(folder)) is None:
        raise SettingsError(f"data folder {folder}: no complete manifest; prepare it again")
    for name, digest in card["files"].items():
        if _sha256(_listed(folder, name)) != digest:
            raise SettingsError(f"data folder {folder}: {name} was altered; delete the folder and prepare it again")
    return len(card["files"])


def ready(folder: Path, seed: int = 0) -> bool:
    """Whether the folder holds the whole data set of this seed and recipe.

    Raises:
        SettingsError: it holds that of another seed, or a listed file is missing.
    """
    if (card := _read_card(folder)) is None:
        return False
    if card["seed"] != seed:
        raise SettingsError(
            f"seed={seed!r}: data folder {folder} was prepared with {card['seed']!r}; "
            "remove it and it is made again, or name another"
        )
    if card["recipe"] != _fingerprint():
        return False
    for name in card["files"]:
        _listed(folder, name)
    return True


def _read_card(folder: Path) -> dict | None:
    """The card, or None where card or manifest are absent or the manifest is not the one the card tells of."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        return card if card["files"]["manifest.csv"] == _sha256(folder / "manifest.csv") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listed(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise SettingsError(f"data folder {folder}: {name} is missing; delete the folder and prepare it again")
    return folder / name


def _set_aside(folder: Path) -> None:
    """Remove what an incomplete preparation or another recipe left, unless it could be somebody's own files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SettingsError(f"data folder {folder}: is a file; name a folder")
    aside = _sibling(folder)
    try:
        if strangers := _strangers(folder):
            raise SettingsError(
                f"data folder {folder}: holds {strangers[0]!r}, not prepared here; name an empty folder"
            )
        folder.rename(aside)
    except FileNotFoundError:  # another process has just done it
        return
    shutil.rmtree(aside, ignore_errors=True)


def _strangers(folder: Path) -> list[str]:
    """What lies in the folder and is not ours: by the card where it is whole, or else by the names at the top."""
    if (card := _read_card(folder)) is None:
        return sorted({path.name for path in folder.iterdir()} - OURS)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return sorted(there - {*card["files"], "card.json"})


def _sibling(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")


def _recipe() -> dict:
    return yaml.safe_load(RECIPE.read_text(encoding="utf-8"))


def _rain() -> RainRanges:
    """The ranges of rain at the size of these images."""
    return RainRanges(**{name: tuple(values) for name, values in _recipe()["rain"].items()})


def _fingerprint() -> str:
    """Hash of what, besides the seed, decides the data: the list of photographs and the ranges."""
    recipe = _recipe()
    files = [(photograph["name"], photograph["file"], photograph["split"]) for photograph in recipe["photographs"]]
    text = f"{files!r} {recipe['reduce']!r} {recipe['variants']!r} {_rain()!r} {HazeRanges()!r} {UploadRanges()!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(folder: Path, seed: int) -> None:
    """Write images, manifest and card."""
    recipe, rows, sources, psnr = _recipe(), [], [], {}
    degrade_as = {
        "derain": functools.partial(degradations.rain, ranges=_rain()),
        "dehaze": degradations.haze,
        "jpeg": degradations.social_network,
    }
    for photograph in photographs():
        clean = photograph.read()
        split, name = photograph.split, photograph.name
        target = f"{split}/clean/{name}.png"
        _save(folder / target, clean)
        rows.append((split, "denoise", name, "", target))
        for task, grey in _noisy(clean, name, seed):
            psnr.setdefault((task, split), []).append(_psnr(grey, clean))
        for task, degrade in degrade_as.items():
            for variant in range(recipe["variants"][split]):
                rng = np.random.default_rng(_entropy(seed, task, name, variant))
                grey = _to_grey(degrade(_to_unit(clean), rng))
                stored = f"{split}/{task}/{name}_{variant}.png"
                _save(folder / stored, grey)
                rows.append((split, task, f"{name}_{variant}", stored, target))
                psnr.setdefault((task, split), []).append(_psnr(grey, clean))
        sources.append(_source(photograph, clean))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *sorted(rows, key=_order)])
    _write_card(folder, seed, recipe, sources, rows, psnr)


def _order(row: tuple[str, ...]) -> tuple:
    return SPLITS.index(row[0]), row[1], row[2]


def _noisy(clean: np.ndarray, name: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The photograph under each strength of noise, for the card only."""
    image = torch.from_numpy(_to_unit(clean)).permute(2, 0, 1)[None]
    for sigma in SIGMAS:
        generator = torch.Generator().manual_seed(_entropy(seed, "denoise", name, sigma)[1])
        noisy = degradations.gaussian_noise(image, torch.tensor([float(sigma)]), generator)
        yield f"denoise{sigma}", _to_grey(noisy[0].permute(1, 2, 0).numpy())


def _entropy(seed: int, *words: object) -> list[int]:
    """Seeds one draw by what it is for, so that adding a photograph changes no other."""
    return [seed, zlib.crc32("/".join(map(str, (seed, *words))).encode())]


def _to_unit(grey: np.ndarray) -> np.ndarray:
    return grey.astype(np.float32) / 255


def _to_grey(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * 255).astype(np.uint8)


def _psnr(grey: np.ndarray, clean: np.ndarray) -> float:
    """PSNR in dB of one 8-bit image against another."""
    return float(10 * np.log10(255**2 / np.mean((grey.astype(np.float64) - clean) ** 2)))


def _save(path: Path, grey: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path, compress_level=3)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _source(photograph: Photograph, clean: np.ndarray) -> dict:
    return {
        **asdict(photograph),
        "version": importlib.metadata.version(photograph.package),
        "source_sha256": _sha256(photograph.path()),
        "height": clean.shape[0],
        "width": clean.shape[1],
    }


def _write_card(folder: Path, seed: int, recipe: dict, sources: list[dict], rows: list[tuple], psnr: dict) -> None:
    """Write the data card, for programs and for people; every number in it is measured here."""
    counts = {task: dict.fromkeys(SPLITS, 0) for task in ("denoise", "derain", "dehaze", "jpeg")}
    for split, task, *_ in rows:
        counts[task][split] += 1
    card = {
        "what": f"Photographs from installed packages, shrunk to 1/{recipe['reduce']} by area averaging (which also "
        "removes most traces of JPEG) and cropped to multiples of 8, with seeded synthetic rain and haze, and as "
        "a social network would give them back. Real photographs, synthetic degradations: results on it are no "
        "benchmark results.",
        "seed": seed,
        "recipe": _fingerprint(),
        "split_why": recipe["why"],
        "photographs": sources,
        "rows": counts,
        "aims_db": recipe["aims_db"],
        "input_psnr_db": {
            task: {
                split: {"mean": round(float(np.mean(v)), 2), "min": round(min(v), 2), "max": round(max(v), 2)}
                for split in SPLITS
                if (v := psnr.get((task, split)))
            }
            for task in sorted({task for task, _ in psnr})
        },
        "ranges": {"rain": asdict(_rain()), "haze": asdict(HazeRanges()), "jpeg": asdict(UploadRanges())},
        "files": {p.relative_to(folder).as_posix(): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()},
    }
    (folder / "card.md").write_text(_as_markdown(card), encoding="utf-8")
    card["files"]["card.md"] = _sha256(folder / "card.md")
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _as_markdown(card: dict) -> str:
    keys = ("name", "split", "width", "height", "author", "licence", "source", "package", "version", "file")
    psnr = [
        (task, split, *(f"{value[key]:.2f}" for key in ("mean", "min", "max")))
        for task, splits in card["input_psnr_db"].items()
        for split, value in splits.items()
    ]
    ranges = [(kind, *item) for kind, values in card["ranges"].items() for item in values.items()]
    parts = [
        "# Data card: embedded photographs",
        card["what"],
        f"Seed {card['seed']}, recipe {card['recipe']}. Identical from one machine to the next only with the same "
        "versions of the packages below and of numpy, scipy and Pillow.",
        "## Photographs",
        _table(keys, [[photograph[key] for key in keys] for photograph in card["photographs"]]),
        "## Split",
        card["split_why"],
        "Rows of the manifest (noise is drawn on the fly):",
        _table(("task", *SPLITS), [(task, *counts.values()) for task, counts in card["rows"].items()]),
        "## Input PSNR, dB",
        "Of the degraded image against the clean one, both 8 bit, no restoration.",
        _table(("task", "split", "mean", "min", "max"), psnr),
        "## Ranges drawn from",
        _table(("degradation", "parameter", "range"), ranges),
        "## SHA-256",
        _table(("file", "sha256"), card["files"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple, rows: object) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
