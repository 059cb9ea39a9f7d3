"""A sheet of thumbnails: what the pairs of a prepared folder look like."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_prep import images
from data_prep.overlaps import title
from data_prep.words import counted

ACROSS = 6  # thumbnails in a line
CELL = (216, 150)  # pixels, width and height
GAP, LEFT, HEADER, CAPTION = 6, 60, 36, 22  # pixels between cells, left of a line, above and below a block


def contact_sheet(folder: Path, rows: pd.DataFrame) -> Image.Image:
    """Draws a few of each set and task, input over target, from the lowest input PSNR to the highest.

    Noise is drawn on the fly, so images for ``denoise`` stand alone.

    Args:
        folder: the prepared folder.
        rows: of the manifest, all of whose files can be read, with ``psnr`` in dB (see Verification).

    Raises:
        SettingsError: an image can no longer be read.
    """
    blocks = [_block(folder, key, part) for key, part in rows.groupby(["dataset", "task", "split"])]
    width = LEFT + ACROSS * (CELL[0] + GAP)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks) + GAP), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _block(folder: Path, key: tuple[str, str, str], rows: pd.DataFrame) -> Image.Image:
    """The thumbnails of one set and task."""
    dataset, task, split = key
    columns = ["input", "target"] if rows.psnr.notna().any() else ["target"]
    drawn = _spread(rows.sort_values(["psnr", "name"], ignore_index=True))
    size = LEFT + ACROSS * (CELL[0] + GAP), HEADER + len(columns) * (CELL[1] + GAP) + CAPTION
    block = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(block)
    draw.text((GAP, 10), f"{title(dataset, split)}, {task}: {_about(rows)}", "black", ImageFont.load_default(17))
    for line, column in enumerate(columns):
        top = HEADER + line * (CELL[1] + GAP)
        draw.text((GAP, top + CELL[1] // 2 - 8), column, "dimgray", ImageFont.load_default(14))
        for place, row in enumerate(drawn.itertuples()):
            small = ImageOps.pad(Image.fromarray(images.read(folder / getattr(row, column))), CELL, color="whitesmoke")
            block.paste(small, (LEFT + place * (CELL[0] + GAP), top))
    for place, row in enumerate(drawn.itertuples()):
        measured = f"  {row.psnr:.1f} dB" if np.isfinite(row.psnr) else ""
        where = LEFT + place * (CELL[0] + GAP), size[1] - CAPTION
        draw.text(where, _short(row.name, 29 - len(measured)) + measured, "black", ImageFont.load_default(14))
    return block


def _spread(rows: pd.DataFrame) -> pd.DataFrame:
    """A few rows, evenly from the first to the last."""
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, ACROSS).round().astype(int))]


def _about(rows: pd.DataFrame) -> str:
    psnr = rows.psnr[np.isfinite(rows.psnr)]
    if psnr.empty:
        clean = (rows.input == "").all()
        return f"{counted(len(rows), 'image')}, noise is drawn on the fly" if clean else counted(len(rows), "pair")
    return f"{counted(len(rows), 'pair')}, input {psnr.mean():.2f} dB ({psnr.min():.2f} to {psnr.max():.2f})"


def _short(name: str, length: int) -> str:
    """A name cut in its middle, so that its beginning and its end stay."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}...{name[-(length // 2 - 2) :]}"
