"""A folder such as people have, to try an import on: embedded photographs under the names of the paper's data sets."""

import shutil
from pathlib import Path

from data_prep.layouts import CBSD68, RAIN100L


def example(prepared: Path, folder: Path) -> Path:
    """Lays out embedded photographs as BSD400, CBSD68 and Rain100L would be found in a folder of downloads.

    What can go wrong in real folders goes wrong here: two test pairs for rain show photographs of BSD400, as 75 of the
    real 100 do; one rainy image has no clean one; one file is no image.

    Args:
        prepared: the embedded data, as ``embedded.prepare`` makes them.
        folder: must not exist.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    shared = [number for number, image in RAIN100L.items() if image not in CBSD68][:2]
    alone = next(number for number, image in RAIN100L.items() if image in CBSD68)
    clean = sorted((prepared / "train" / "clean").glob("*.png"))
    for number, photograph in zip((*shared, alone), clean, strict=False):
        rainy = prepared / "train" / "derain" / f"{photograph.stem}_0.png"
        _copy(photograph, folder / "Rain100L" / f"norain-{number:03}.png")
        _copy(rainy, folder / "Rain100L" / f"rain-{number:03}.png")
    _copy(rainy, folder / "Rain100L" / "rain-100.png")
    names = [*(RAIN100L[number] for number in shared), "0001", "0002"]
    for name, photograph in zip(names, (*clean[:2], *clean[3:]), strict=False):
        _copy(photograph, folder / "BSD400" / f"{name}.png")
    for photograph in sorted((prepared / "test" / "clean").glob("*.png")):
        _copy(photograph, folder / "CBSD68" / photograph.name)
    (folder / "readme.txt").write_text("Downloaded on some day.\n", encoding="utf-8")
    return folder


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)
