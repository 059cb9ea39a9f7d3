"""Questions that are asked before something is shown; the answers come from the records."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import HTML, display
from ipywidgets import widgets as ipy

from mirl_study import verdicts
from mirl_study.analysis import within_margin
from mirl_study.settings import LOTTERY
from mirl_study.widgets.lab import CLOSE, Lab
from mirl_study.widgets.told import NAMES, chance, heading

HALF = 0.8**3  # density at which about half of the weights are left


@dataclass(frozen=True)
class Question:
    """Something to predict.

    Attributes:
        text: the question.
        options: answers to choose from.
        answer: the right one, by the records.
        told: the numbers behind it.
    """

    text: str
    options: tuple[str, ...]
    answer: str
    told: str

    def judge(self, guess: str) -> str:
        """Sets a guess beside the records, in HTML."""
        word = "As you said" if guess == self.answer else "Other than you said"
        return f"{word}: <b>{self.answer}</b>. {self.told}"

    def show(self, live: bool) -> ipy.VBox | None:
        """Asks with radio buttons, or displays question, options and answer."""
        if not self.options:
            display(HTML(self.told))
            return None
        if not live:
            listed = "".join(f"<li>{option}</li>" for option in self.options)
            answer = f"<p>The records say: <b>{self.answer}</b>. {self.told}</p>"
            display(HTML(f"<p><b>Predict:</b> {self.text}</p><ul>{listed}</ul>{answer}"))
            return None
        guess = ipy.RadioButtons(options=self.options, value=None, layout={"width": "max-content"})
        reveal, said = ipy.Button(description="Reveal", disabled=True, button_style="primary"), ipy.HTML()

        def chosen(_: Any) -> None:
            reveal.disabled = guess.value is None

        def answer(_: Any) -> None:
            said.value = self.judge(guess.value)

        guess.observe(chosen, names="value")
        reveal.on_click(answer)
        return ipy.VBox([ipy.HTML(f"<b>Predict:</b> {self.text}"), guess, reveal, said])


def gains(lab: Lab) -> Question:
    """Which task the trained network helps most."""
    gain = (lab.levels.psnr - lab.levels.input_psnr)[list(lab.samples)]
    told = ", ".join(f"{task} {value:+.2f} dB" for task, value in gain.items())
    text = "on which task does the trained dense network raise PSNR most over its input?"
    return Question(text, tuple(gain.index), gain.idxmax(), f"Over all test images: {told}.")


def at_once(lab: Lab, density: float = HALF) -> Question:
    """Which scope hurts less when the dense network is pruned once and not trained again."""
    losses = {}
    for method, scope in LOTTERY.items():
        made = [
            lab.restored_pruned(task, density, scope).psnr - lab.restored(task, "dense").psnr for task in lab.samples
        ]
        losses[method] = sum(made) / len(made)
    gap = losses["MIR-L-G"] - losses["MIR-L-LW"]
    options = ("global", "layer-wise", f"no difference (within {CLOSE} dB)")
    answer = options[2] if abs(gap) <= CLOSE else options[0 if gap > 0 else 1]
    told = ", ".join(f"{NAMES[method]} {losses[method]:+.2f} dB" for method in NAMES)
    text = f"{1 - density:.0%} of the weights, the smallest ones, leave at once (density {density:.1%}). Nothing is "
    text += "trained again. Which scope keeps more PSNR?"
    return Question(text, options, answer, f"Against the whole network, mean over the crops of all tasks: {told}.")


def holds(lab: Lab, method: str = "MIR-L-G") -> Question:
    """How long a chain of tickets stays within the margin of its dense network."""
    task = lab.panels[0]
    delta = lab.curve(method, task) - lab.levels.psnr[task]
    last, _ = within_margin(delta, CLOSE)
    edges = sorted({0, lab.rounds // 3, 2 * lab.rounds // 3, lab.rounds})
    spans = [(low + 1, high) for low, high in zip(edges, edges[1:], strict=False)]
    names = [
        "not even in round 1",
        *(f"up to a round from {low} to {high}" if low < high else f"up to round {low}" for low, high in spans),
    ]
    place = 0 if last is None else next(n for n, (low, high) in enumerate(spans, 1) if low <= last <= high)
    text = f"pruned little by little and trained again each time, how long does the {NAMES[method]} ticket stay "
    text += f"within {CLOSE} dB of the dense network, on {heading(task)}?"
    told = f"Seed {lab.seed}: {_stays(delta)}."
    more = "; ".join(f"{name}: {_stays(lab.curve(method, name) - lab.levels.psnr[name])}" for name in lab.panels[1:])
    return Question(text, tuple(names), names[place], told + (f" By family: {more}." if more else ""))


def _stays(delta: pd.Series) -> str:
    """Says how long scores stay within the margin, or above it, and when they come back."""
    last, again = within_margin(delta, CLOSE)
    told = "already round 1 falls out of it" if last is None else f"up to round {last}"
    return told + (f", back within it or above in round {', '.join(map(str, again))}" if again else "")


def ahead(lab: Lab) -> Question:
    """Which scope is ahead in more rounds."""
    task = lab.panels[0]
    own = lab.scores[(lab.scores.task == task) & lab.scores.method.isin(LOTTERY) & (lab.scores["round"] > 0)]
    table = own.groupby(["round", "method"]).psnr.mean().unstack()
    gap = (table["MIR-L-G"] - table["MIR-L-LW"]).dropna()
    more = int((gap > 0).sum())
    options = ("global", "layer-wise", "each in as many")
    answer = options[2] if 2 * more == len(gap) else options[0 if 2 * more > len(gap) else 1]
    told = f"On {heading(task)}, mean over {own.seed.nunique()} seeds: global is ahead in {more} of {len(gap)} rounds. "
    told += (
        f"Global − layer-wise is {gap.mean():+.2f} dB on average over the rounds, {gap.iloc[-1]:+.2f} dB in the last."
    )
    text = f"on {heading(task)}, which scope has the better ticket in more of the rounds?"
    return Question(text, options, answer, told)


def control(lab: Lab, control: str = "reinit", task: str = "mean", method: str = "MIR-L-G") -> Question:
    """Whether a control does as well as the ticket; nothing is asked if it was not played.

    Args:
        lab: whose runs.
        control: its name.
        task: a family of tasks, or ``mean``; where it was not tested, the first one is asked about.
        method: whose ticket.
    """
    frame = verdicts.gather(lab.profile, lab.setting, method, lab.ticket, lab.results)
    if control not in set(frame.control):
        return Question("", (), "", f"The control {control} was not played in these results.")
    pairs = verdicts.paired(frame, "ticket")
    pairs = pairs[pairs.control == control].set_index("task")
    task = task if task in lab.panels else lab.panels[0]
    row = pairs.loc[task]
    options = ("clearly worse than the ticket", "clearly better", "these seeds cannot tell the two apart")
    apart = row.seeds > 1 and (row.high < 0 or row.low > 0)
    answer = options[0 if row.high < 0 else 1] if apart else options[2]
    interval = f", 95 % interval {row.low:+.2f} to {row.high:+.2f} dB" if row.seeds > 1 else ""
    what = {
        "reinit": "the ticket's mask on other initial values",
        "shuffled": "as many weights in each layer, at places drawn at random",
    }
    text = f"{what.get(control, control)} ({control}), trained like the ticket of round {lab.ticket}. "
    text += f"On {heading(task)} it will be ..."
    told = f"On {heading(task)}, {row['mean']:+.2f} dB to the ticket over {row.seeds} seeds{interval}."
    others = ", ".join(f"{heading(name)} {pairs['mean'][name]:+.2f} dB" for name in lab.panels if name != task)
    return Question(text, options, answer, told + (f" Elsewhere: {others}." if others else ""))


def shared(lab: Lab, index: int | None = None) -> Question:
    """How much two lotteries from one start have in common."""
    index = lab.ticket if index is None else index
    a, b = (lab.mask(method, index) for method in NAMES)
    iou, luck = a.iou(b), chance(a, b)
    options = ("less than a quarter", "a quarter to a half", "half to three quarters", "more than three quarters")
    told = f"Both keep {iou:.1%} of what either keeps; "
    told += f"as many weights in each layer, drawn at random, would share {luck:.1%}."
    text = "global and layer-wise lottery start from the same initial weights. "
    text += f"Of the weights that either keeps in round {index}, how many do both keep?"
    return Question(text, options, options[min(int(iou * 4), 3)], told)
