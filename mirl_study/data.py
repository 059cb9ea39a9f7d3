"""Images decoded once into one uint8 bank on the training device; a batch is a pure function of (seed, order, step)."""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from data_prep import embedded
from mirl_study.degradations import gaussian_noise
from mirl_study.settings import SIGMAS, Settings, SettingsError

SMALLEST = 16  # pixels: below, neither the network's three halvings nor SSIM's window make sense


class Sample(NamedTuple):
    """One full image of one task: names, and (1, 3, H, W) float32 images in [0, 1]."""

    task: str
    name: str
    degraded: Tensor
    target: Tensor


class Row(NamedTuple):
    """One line of the manifest: a name and places in the bank; ``degraded`` is None where noise is drawn on the fly."""

    name: str
    degraded: int | None
    target: int


Rows = dict[str, tuple[Row, ...]]


@dataclass(frozen=True)
class Bank:
    """All images of one split.

    Attributes:
        pixels: every image, flat, uint8, on the training device.
        shapes: (height, width) of each image.
        starts: where each image begins in ``pixels``.
        rows: what there is to restore, by family of tasks (``denoise``, ``derain``, ``dehaze``, ``jpeg``).
        noise_rounding, augmentation: see Settings.
    """

    pixels: Tensor
    shapes: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]
    rows: Rows
    noise_rounding: str
    augmentation: str = "flips"

    def image(self, index: int) -> Tensor:
        """Returns image ``index`` as a uint8 view, (H, W, 3)."""
        height, width = self.shapes[index]
        return self.pixels[self.starts[index] : self.starts[index] + height * width * 3].view(height, width, 3)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all pixels and of what belongs to what."""
        return hashlib.sha256(self.pixels.cpu().numpy().tobytes() + repr((self.shapes, self.rows)).encode()).hexdigest()

    def batch(self, size: int, patch: int, *, seed: int, order: int, step: int) -> tuple[Tensor, Tensor]:
        """Draws patches; equal arguments give equal batches, whatever was drawn before.

        The families of tasks take turns, and so do the noise levels, so that any run of steps is balanced.

        Args:
            size: patches in the batch.
            patch: height and width of a patch in pixels.
            seed: of the run.
            order: which of the many data orders of this seed.
            step: place in that order.

        Returns:
            Degraded and clean patches, (size, 3, patch, patch), float32 in [0, 1].
        """
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, order]))
        degraded, target, sigmas = [], [], []
        for family, sigma in self._turns(size, step):
            row = self.rows[family][rng.integers(len(self.rows[family]))]
            height, width = self.shapes[row.target]
            top, left = rng.integers(height - patch + 1), rng.integers(width - patch + 1)
            if self.augmentation == "flips":
                turns, flips = 0, [axis for axis in (0, 1) if rng.integers(2)]
            else:  # the symmetries of a square but for the one that changes nothing
                turns, flip = divmod(int(rng.integers(1, 8)), 2)
                flips = [0] * flip
            for place_in_bank, patches in (
                (row.target if row.degraded is None else row.degraded, degraded),
                (row.target, target),
            ):
                cut = self.image(place_in_bank)[top : top + patch, left : left + patch].flip(flips)
                patches.append(cut.rot90(turns) if turns else cut)
            sigmas.append(sigma)
        images, clean = (torch.stack(patches).permute(0, 3, 1, 2).float() / 255 for patches in (degraded, target))
        noisy = torch.tensor([sigma > 0 for sigma in sigmas], device=images.device)
        if noisy.any():
            generator = torch.Generator(images.device).manual_seed(int(rng.integers(2**62)))
            levels = torch.tensor([s for s in sigmas if s], device=images.device, dtype=torch.float32)
            images[noisy] = gaussian_noise(images[noisy], levels, generator, self.noise_rounding)
        return images, clean

    def tasks(self, size: int, step: int) -> list[str]:
        """Returns the task of each patch of a batch."""
        return [f"{family}{sigma or ''}" for family, sigma in self._turns(size, step)]

    def _turns(self, size: int, step: int) -> Iterator[tuple[str, int]]:
        """Yields family and noise level, 0 if there is none, of each patch of a batch."""
        families = tuple(self.rows)
        for place in range(step * size, step * size + size):
            turn, number = divmod(place, len(families))
            family = families[number]
            yield family, SIGMAS[turn % len(SIGMAS)] if family == "denoise" else 0

    def samples(self) -> Iterator[Sample]:
        """Yields every full image of every task; noise depends on task and name alone, so all methods see the same."""
        for family, rows in self.rows.items():
            for row in rows:
                target = self._float(row.target)
                if row.degraded is not None:
                    yield Sample(family, row.name, self._float(row.degraded), target)
                    continue
                for sigma in SIGMAS:
                    task = f"{family}{sigma}"
                    generator = torch.Generator(target.device).manual_seed(zlib.crc32(f"{task}/{row.name}".encode()))
                    level = torch.tensor([float(sigma)], device=target.device)
                    yield Sample(task, row.name, gaussian_noise(target, level, generator, self.noise_rounding), target)

    def _float(self, index: int) -> Tensor:
        return self.image(index).permute(2, 0, 1)[None].float() / 255


def data_folder(settings: Settings, root: Path) -> Path:
    """Returns the prepared folder that ``settings.data`` means; the embedded photographs are prepared on first use.

    Args:
        settings: of the run.
        root: folder under which ``data/`` lies.

    Raises:
        SettingsError: if there is no prepared folder.
    """
    if settings.data == "embedded":
        return embedded.prepare(root / "data" / "embedded")
    folder = Path(settings.data).expanduser()
    folder = folder if folder.is_absolute() else root / folder
    if not (folder / "manifest.csv").is_file():
        raise SettingsError(
            f"data={settings.data!r} is neither 'embedded' nor a prepared folder: {folder / 'manifest.csv'} is missing"
        )
    return folder


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image; an 8-bit RGB one that is large enough, or a line that names the file."""
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                raise SettingsError(f"image {path} has mode {image.mode!r}, RGB with 8 bits is wanted")
            if min(image.size) < SMALLEST:
                size = "x".join(map(str, image.size))
                raise SettingsError(f"image {path} is {size} pixels, at least {SMALLEST}x{SMALLEST} is wanted")
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise SettingsError(f"image {path} cannot be read: {error}") from error


def _index(settings: Settings, split: str, root: Path) -> tuple[list[Path], list[tuple[int, int]], Rows]:
    """Reads the manifest and the headers of one split's images; returns paths, (height, width) of each, and rows."""
    folder = data_folder(settings, root)
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False, dtype=str)
    listed = manifest[manifest.split == split].task.value_counts()
    if settings.drop_overlap and "background" in manifest:
        tested = manifest[manifest.split == "test"].background
        manifest = manifest[(manifest.split == "test") | ~manifest.background.isin(tested[tested != ""])]
    manifest = manifest[manifest.split == split]
    families = ("denoise", "derain", "dehaze") if settings.setting == "all_in_one" else (settings.setting,)
    places: dict[str, int] = {}
    rows: Rows = {}
    for family in families:
        part = manifest[manifest.task == family]
        if part.empty:
            where = folder / "manifest.csv"
            why = ""
            if family in listed:
                why = f": drop_overlap leaves out all {listed[family]}, for the test set shows the same photographs"
            raise SettingsError(f"data={settings.data!r} has no {split} images for {family} in {where}{why}")
        rows[family] = tuple(
            Row(
                name,
                places.setdefault(degraded, len(places)) if degraded else None,
                places.setdefault(target, len(places)),
            )
            for name, degraded, target in part[["name", "input", "target"]].itertuples(index=False)
        )
    paths = [folder / name for name in places]
    shapes = []
    for path in paths:
        with _opened(path) as image:
            shapes.append((image.height, image.width))
    for row in (row for family in rows.values() for row in family):
        if row.degraded is not None and shapes[row.degraded] != shapes[row.target]:
            pair = f"{paths[row.degraded].name} and {paths[row.target].name}"
            raise SettingsError(f"images {pair} in {folder} differ in size")
    smallest = min(range(len(paths)), key=lambda place: min(shapes[place]))
    most = min(shapes[smallest]) // 8 * 8
    if split != "test" and settings.patch_size > most:
        raise SettingsError(
            f"patch_size={settings.patch_size} is larger than image {paths[smallest]}: at most {most} is allowed"
        )
    return paths, shapes, rows


def check(settings: Settings, root: Path) -> None:
    """Looks, by their headers alone, whether the images of all splits are there and fit the settings.

    Args:
        settings: of the run.
        root: folder under which ``data/`` lies.

    Raises:
        SettingsError: as ``load_bank``, but for damage that only decoding shows.
    """
    for split in ("train", "val", "test"):
        _index(settings, split, root)


def load_bank(settings: Settings, split: str, root: Path, device: torch.device | str = "cpu") -> Bank:
    """Decodes one split of the data for one setting.

    Args:
        settings: of the run.
        split: ``train``, ``val`` or ``test``.
        root: folder under which ``data/`` lies.
        device: where the bank shall be.

    Returns:
        The bank.

    Raises:
        SettingsError: naming the file, if an image is missing, broken, too small, of another size than its pair, or
            (but for ``test``) smaller than a patch.
    """
    paths, shapes, rows = _index(settings, split, root)
    images = []
    for path in paths:
        with _opened(path) as image:
            images.append(np.asarray(image))
    starts = np.cumsum([0, *(image.size for image in images)])[:-1]
    pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images])).to(device)
    return Bank(
        pixels,
        tuple(shapes),
        tuple(int(start) for start in starts),
        rows,
        settings.noise_rounding,
        settings.augmentation,
    )
