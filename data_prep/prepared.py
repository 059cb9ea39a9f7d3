"""Writing a prepared folder: images, the manifest that lists them, and each split as a list of names."""

import csv
import errno
import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep import images, splits
from data_prep.items import Item
from data_prep.splits import NameList, RainPair
from data_prep.words import counted
from mirl_study import degradations
from mirl_study.settings import SettingsError

COLUMNS = ("split", "task", "name", "input", "target", "background", "dataset")


class Writer:
    """Puts images into a folder, one by one, each clean image once for each split.

    Args:
        folder: exists and is empty.
        seed: of images that are made here.
        rain: pairs whose input is made here, by split and name.

    Attributes:
        rows: of the manifest, so far.
        converted: source files that could not be copied byte for byte.
        refused: why files cannot be used; once there is one, nothing more is written.
    """

    def __init__(self, folder: Path, seed: int, rain: Mapping[tuple[str, str], RainPair]) -> None:
        self.folder, self.seed, self.rain = folder, seed, rain
        self.rows: list[tuple[str, ...]] = []
        self.converted: list[Path] = []
        self.refused: list[str] = []
        self._targets: dict[tuple[str, Path], str] = {}
        self._taken: set[str] = set()
        self._read = lru_cache(maxsize=2)(images.read)  # many hazy images in a row share a clean one

    def put(self, item: Item) -> None:
        """Checks an item's images and writes them; what is wrong with them is noted in ``refused``."""
        try:
            clean = self._read(item.target)
            degraded = self._degraded(item, clean)
        except SettingsError as error:
            self.refused.append(str(error))
            return
        if self.refused:
            return
        stored = ""
        if degraded is not None:
            stored = self._store(f"{item.split}/{item.task}/{item.name}", item.input, degraded)
        if (item.split, item.target) not in self._targets:
            title = re.sub(r"_gt$", "", item.target.stem)
            place = f"{item.split}/clean/{item.dataset}_{title}"
            self._targets[item.split, item.target] = self._store(place, item.target, clean)
        target = self._targets[item.split, item.target]
        self.rows.append((item.split, item.task, item.name, stored, target, item.background, item.dataset))

    def finish(self, shares: Mapping[tuple[str, str], float]) -> None:
        """Writes the manifest and the lists.

        Args:
            shares: of the training images that were drawn, by dataset and task; for the lists' headers.

        Raises:
            SettingsError: images were refused: the first of them, and how many more.
        """
        if self.refused:
            more = f" (and {counted(len(self.refused) - 1, 'more file')})" if len(self.refused) > 1 else ""
            raise SettingsError(self.refused[0] + more)
        with (self.folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *self.rows])
        names: dict[tuple[str, str, str], list[str]] = {}
        for split, task, name, *_, dataset in self.rows:
            names.setdefault((dataset, task, split), []).append(name)
        (self.folder / "splits").mkdir()
        for (dataset, task, split), own in names.items():
            share = 1.0 if split == "test" else shares.get((dataset, task), 1.0)
            listed = NameList(dataset, share, self.seed, tuple(own))
            splits.write_list(self.folder / "splits" / f"{dataset}_{task}_{split}.txt", listed)

    def _degraded(self, item: Item, clean: np.ndarray) -> np.ndarray | None:
        """The degraded image, read or made; None where noise will be drawn."""
        if item.input is not None:
            degraded = images.read(item.input)
            if degraded.shape != clean.shape:
                sizes = " and ".join(f"{width}x{height}" for height, width, _ in (degraded.shape, clean.shape))
                raise SettingsError(f"images {item.input} and {item.target} of a pair differ in size ({sizes})")
            return degraded
        if item.task == "derain":
            pair = self.rain[item.split, item.name]
            wet, dry = images.read(pair.source.input), images.read(pair.source.target)
            try:
                layer = splits.lift_rain(wet, dry)
            except SettingsError as error:
                raise SettingsError(f"rain_variants: {pair.source.input}: {error}") from error
            return splits.lay_rain(clean, layer, pair.generator())
        if item.task == "jpeg":
            generator = np.random.default_rng([self.seed, zlib.crc32(f"{item.dataset}/{item.name}".encode())])
            spoilt = degradations.social_network((clean / 255).astype(np.float32), generator)
            return np.rint(spoilt * 255).astype(np.uint8)
        return None

    def _store(self, place: str, source: Path | None, image: np.ndarray) -> str:
        """Copies a plain file, or writes the image as PNG; returns where, below the folder."""
        copied = source is not None and images.is_plain(source)
        suffix = source.suffix.casefold() if copied else ".png"
        name, number = place + suffix, 1
        while name.casefold() in self._taken:  # some file systems tell no A from a
            number += 1
            name = f"{place}_{number}{suffix}"
        self._taken.add(name.casefold())
        path = self.folder / name
        data = _bytes(source) if copied else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is not None:
                path.write_bytes(data)
            else:
                Image.fromarray(image).save(path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            long = f"its name in the prepared folder has {len(path.name.encode())} bytes, more than the disk can hold"
            raise SettingsError(
                f"image {source or name}: {long}; shorten the names of the file and its folders"
            ) from error
        self.converted += [source] if source is not None and not copied else []
        return name


def _bytes(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise SettingsError(f"image {source} cannot be read ({error.strerror or error})") from error
