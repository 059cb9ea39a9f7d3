"""How far a chain is: a text bar with an ETA for a person, ``progress.json`` for the runner."""

import sys
import time
from datetime import UTC, datetime

from tqdm import tqdm

from mirl_study.store import Run, write_json


class Progress:
    """Counts the optimiser steps of one chain.

    The bar is text on standard output: widgets hang now and then under papermill, and text is readable in an exported
    page.

    Args:
        run: the chain.
        rounds: index of its last round.
        total: optimiser steps of the whole chain.
        done: of those, the steps of rounds finished earlier.
        show: whether to draw the bar.
    """

    def __init__(self, run: Run, rounds: int, total: int, done: int = 0, show: bool = True) -> None:
        self.run, self.rounds, self.total, self.done = run, rounds, total, done
        self.index, self.density, self.steps, self.written = 0, 1.0, 0, 0.0
        self.at = 0  # steps of the present round
        self.bar = tqdm(
            total=total, initial=done, disable=not show, file=sys.stdout, mininterval=2, unit="step", ncols=110
        )
        self.bar._time = time.monotonic  # its own clock can be set back, and then it stands still
        self.bar.start_t = self.bar.last_print_t = time.monotonic()

    def reach(self, done: int) -> None:
        """So many steps of the chain are done already, whoever did them."""
        self._skip(done - self.done)
        self.done = done

    def start(self, index: int, density: float, steps: int) -> None:
        """A round begins."""
        self.index, self.density, self.steps, self.at = index, density, steps, 0
        self.bar.set_description(
            f"{self.run.control or self.run.method} round {index}/{self.rounds}, density {density:.1%}", refresh=False
        )

    def step(self, step: int, loss: float) -> None:
        """Step ``step`` of the present round is done; writes at most once a second, and at a round's end."""
        self._skip(step - self.at - 1)  # after a checkpoint
        self.bar.update(1)
        self.at = step
        last = step == self.steps
        if last or time.monotonic() - self.written >= 1:
            self.written = time.monotonic()
            settings = self.run.settings
            state = {"method": self.run.control or self.run.method, "setting": settings.setting, "seed": settings.seed}
            state |= {
                "round": self.index,
                "rounds": self.rounds,
                "step": step,
                "steps": self.steps,
                "done": self.done + step,
                "total": self.total,
            }
            state |= {"density": self.density, "loss": loss, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
            write_json(self.run.folder / "progress.json", state)
        if last:
            self.done += step

    def _skip(self, steps: int) -> None:
        """Moves the bar without counting this as work, which would spoil its rate."""
        if steps > 0 and not self.bar.disable:
            self.bar.n += steps
            self.bar.initial += steps
            self.bar.last_print_n += steps

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
