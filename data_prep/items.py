"""The unit of preparation: one image to restore, found in somebody's folder."""

from pathlib import Path
from typing import NamedTuple


class Item(NamedTuple):
    """One image to restore."""

    dataset: str  # registry name, such as BSD400 or SOTS; "pairs" for a folder of no known name
    split: str  # train | test; val is drawn from train later
    task: str  # denoise | derain | dehaze | jpeg
    name: str  # unique within (split, task)
    input: Path | None  # degraded file; None: noise drawn on the fly, or made at import
    target: Path  # clean file
    background: str  # what scene it shows, e.g. "BSD/100007"; equal means the same photograph
