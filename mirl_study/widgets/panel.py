"""A panel: choices above a picture, with words below; and what stands in its place where nothing can be clicked."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from IPython.display import HTML, Image, display
from ipywidgets import Widget
from ipywidgets import widgets as ipy
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Pictures

from mirl_study.settings import choose

FRONT_ENDS = (
    "JPY_SESSION_NAME",
    "VSCODE_PID",
    "COLAB_RELEASE_TAG",
)  # their kernels have one of these in the environment
LABEL = {"description_width": "7rem"}
STYLE = {"font.size": 11, "axes.titlesize": 12, "axes.grid": True, "grid.color": "0.88", "axes.axisbelow": True}


def is_live(live: str = "auto") -> bool:
    """Says whether somebody can click.

    Args:
        live: ``yes``, ``no`` or ``auto``: yes in the kernel of a front end (JupyterLab, Voila, VS Code, Colab), no in
            papermill and nbconvert, where a widget shows nothing and can hang.

    Raises:
        SettingsError: for another word.
    """
    if choose("live", live, ("auto", "yes", "no")) != "auto":
        return live == "yes"
    return any(os.environ.get(name) for name in FRONT_ENDS) or "voila" in os.environ.get("SERVER_SOFTWARE", "").lower()


def png(pixels: np.ndarray) -> bytes:
    """Encodes (H, W, 3) 8-bit pixels, quickly rather than small."""
    buffer = io.BytesIO()
    Pictures.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class Canvas:
    """A figure that is drawn once; afterwards only what moves is drawn again, on top.

    Args:
        figure: with all its artists.
        moving: the artists that change.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        self.figure, self.moving = figure, list(moving)
        self.canvas = FigureCanvasAgg(figure)
        for artist in self.moving:
            artist.set_animated(True)
        with mpl.rc_context(STYLE):
            self.canvas.draw()
        figure.set_layout_engine("none")
        self.still = self.canvas.copy_from_bbox(figure.bbox)

    def whole(self) -> bytes:
        """Returns the figure drawn anew, for one whose axes change, too."""
        with mpl.rc_context(STYLE):
            self.canvas.draw()
        return png(np.asarray(self.canvas.buffer_rgba())[..., :3])

    def png(self) -> bytes:
        """Returns the figure as it is now."""
        self.canvas.restore_region(self.still)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        return png(np.asarray(self.canvas.buffer_rgba())[..., :3])


@dataclass(frozen=True)
class Choice:
    """One thing to choose.

    Attributes:
        label: before it.
        options: values by the text that is shown.
        start: the text that is chosen at first.
        kind: ``list`` (drop-down), ``slider``, or ``steps`` (a slider with buttons for one step on, and back to the
            start).
        button: what the button for one step on is called.
    """

    label: str
    options: Mapping[str, Any]
    start: str
    kind: str = "list"
    button: str = "Next"


@dataclass
class Panel:
    """Choices above a picture.

    Attributes:
        choices: by the name of the argument of ``draw`` that they give.
        draw: from the chosen values to a PNG (None: no picture) and words in HTML; it trains nothing and answers at
            once.
        stills: texts of choices by name, of the pictures that stand in for the widget; what is not named is at its
            start.
        width: of the picture, in pixels.
    """

    choices: dict[str, Choice]
    draw: Callable[..., tuple[bytes | None, str]]
    stills: Sequence[Mapping[str, str]] = ({},)
    width: int = 1120
    inputs: dict[str, Widget] = field(default_factory=dict)

    def at(self, **texts: str) -> tuple[bytes | None, str]:
        """Returns picture and words for options named by their texts; others are at their start."""
        chosen = {name: texts.get(name, choice.start) for name, choice in self.choices.items()}
        return self.draw(**{name: self.choices[name].options[text] for name, text in chosen.items()})

    def widget(self) -> ipy.VBox:
        """Builds the live panel; every control can be reached and moved with the keyboard."""
        picture = ipy.Image(format="png", layout={"width": f"{self.width}px", "max_width": "100%", "height": "auto"})
        words = ipy.HTML()

        def answer(_: Any = None) -> None:
            content, words.value = self.draw(**{name: widget.value for name, widget in self.inputs.items()})
            if content is not None:
                picture.value = content

        lines = [self._line(name, choice) for name, choice in self.choices.items()]
        for widget in self.inputs.values():
            widget.observe(answer, names="value")
        answer()
        top = ipy.HBox(lines, layout={"flex_flow": "row wrap"})
        return ipy.VBox([top, *([picture] if picture.value else []), words])

    def _line(self, name: str, choice: Choice) -> Widget:
        """Builds the control of one choice."""
        more: dict[str, Any] = {"options": list(choice.options.items()), "value": choice.options[choice.start]}
        more |= {"description": choice.label, "style": LABEL}
        if choice.kind == "list":
            self.inputs[name] = ipy.Dropdown(**more, layout={"width": "22rem"})
            return self.inputs[name]
        slider = ipy.SelectionSlider(**more, continuous_update=False, layout={"width": "34rem"})
        self.inputs[name] = slider
        if choice.kind == "slider":
            return slider
        onward, back = ipy.Button(description=choice.button, button_style="primary"), ipy.Button(description="Restart")

        def step(_: Any) -> None:
            slider.index = min(slider.index + 1, len(choice.options) - 1)

        def restart(_: Any) -> None:
            slider.index = 0

        onward.on_click(step)
        back.on_click(restart)
        return ipy.HBox([slider, onward, back])

    def show(self, live: bool) -> Widget | None:
        """Returns the widget, or displays its stills.

        Args:
            live: whether somebody can click, see ``is_live``.
        """
        if live:
            return self.widget()
        for still in self.stills:
            content, words = self.at(**still)
            chosen = {name: still.get(name, choice.start) for name, choice in self.choices.items()}
            display(HTML(f"<b>{'; '.join(f'{self.choices[n].label}: {text}' for n, text in chosen.items())}</b>"))
            if content is not None:
                display(Image(content, width=self.width))
            display(HTML(words))
        return None
