"""What all figures share: colours with markers and line styles, sizes, and how a figure is written."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mirl_study.analysis import FAMILIES
from mirl_study.store import atomic

COLORS = sns.color_palette("colorblind")
MANY = [*COLORS, "#222255", "#225522", "#663333"]  # as many as there are kinds of layers
MARKS: dict[str, dict[str, Any]] = {  # a colour, a marker and a line style for each method
    "MIR-L-G": {"color": COLORS[0], "marker": "o", "linestyle": "-"},
    "MIR-L-LW": {"color": COLORS[1], "marker": "s", "linestyle": "--"},
    "PIR-OSM-I": {"color": COLORS[4], "marker": "^", "linestyle": ""},
    "PIR-OSM-II": {"color": COLORS[4], "marker": "v", "linestyle": ""},
    "PIR-OSR-I": {"color": COLORS[5], "marker": "P", "linestyle": ""},
    "PIR-OSR-II": {"color": COLORS[5], "marker": "X", "linestyle": ""},
}
STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.grid": True,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "svg.hashsalt": "mirl",  # the same figure is the same file
}


PAIR: dict[str, dict[str, Any]] = {  # the two that are always compared
    "dense": {"color": COLORS[1], "linestyle": "--", "marker": "s"},
    "ticket": {"color": COLORS[0], "linestyle": "-", "marker": "o"},
}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as SVG and PNG, all or nothing.

    Args:
        figure: to write.
        folder: where; made if it is not there.
        name: of the files, without a suffix.

    Returns:
        The two paths, SVG first.
    """
    paths, engine = [folder / f"{name}.svg", folder / f"{name}.png"], figure.get_layout_engine()
    for path, more in zip(paths, ({"metadata": {"Date": None}}, {"dpi": 1.3 * figure.dpi}), strict=True):
        with atomic(path) as temporary, mpl.rc_context(STYLE):
            figure.savefig(temporary, format=path.suffix[1:], **more)
        figure.set_layout_engine("none")  # laid out once: that takes as long as drawing
    figure.set_layout_engine(engine)
    return paths


def count(value: float) -> str:
    """Returns a number of parameters with three digits and its unit: 4.67 M."""
    for unit, size in ((" M", 1e6), (" k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def panels(tasks: pd.Series) -> list[str]:
    """Families and their mean; of a single task, the mean is that task."""
    panels = [name for name in (*FAMILIES, "mean") if name in set(tasks)]
    return panels if len(panels) > 2 else panels[:1]


def heading(task: str) -> str:
    """Returns the title of a panel."""
    several = len(FAMILIES.get(task, ())) > 1
    return task + (" (mean over σ)" if several else " of the families" if task == "mean" else "")


def line_of(place: int) -> dict[str, Any]:
    """Returns a colour, a marker and a line style for the entry at some place of a list."""
    lines, marks = ["-", "--", ":", "-."], "os^vDPX*<>dph"
    return {
        "color": MANY[place % len(MANY)],
        "linestyle": lines[place % len(lines)],
        "marker": marks[place % len(marks)],
    }
