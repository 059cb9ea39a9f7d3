"""How the authors of each model trained it: numbers, and the shape of the learning rate's schedule."""

import math
from dataclasses import dataclass

from mirl_study.settings import ModelSettings, NetworkSettings


@dataclass(frozen=True)
class Recipe:
    """The training of an original.

    The loss is the model's own (``loss`` of its class, or L1). ``lr``, ``weight_decay`` and ``clip_norm`` are what its
    authors took; in a run the settings of these names decide, and ``comparison.chains.with_model`` copies them there.

    Attributes:
        loss: in words.
        lr: peak learning rate.
        extent: how long and on what, for the record; a run has the steps, batches and patches of its settings.
        betas: of Adam.
        weight_decay: decoupled; 0 is Adam.
        clip_norm: largest norm of the gradient; 0 is no limit.
        warm: share of the training in which the learning rate rises linearly from 0.
        hold: share after which it begins to fall.
        falls: ``cosine``, ``linear``, or ``drops``.
        floor: what it falls to, as a share of the peak.
        drops: (share of the training, share of the peak) pairs in order: from there on this.
    """

    loss: str
    lr: float
    extent: str
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    warm: float = 0.0
    hold: float = 0.0
    falls: str = "cosine"
    floor: float = 0.0
    drops: tuple[tuple[float, float], ...] = ()

    def rate(self, done: float) -> float:
        """Returns the learning rate, as a share of its peak, when a share ``done`` of the training is over."""
        if self.falls == "drops":
            return next((share for start, share in reversed(self.drops) if start <= done), 1.0)
        if done < self.warm:
            return done / self.warm
        begin = max(self.warm, self.hold)
        over = max(0.0, (done - begin) / (1 - begin))
        left = 0.5 * (1 + math.cos(math.pi * over)) if self.falls == "cosine" else 1 - over
        return self.floor + (1 - self.floor) * left

    def __str__(self) -> str:
        fall = {"drops": "falls in steps", "cosine": "cosine", "linear": "linear"}[self.falls]
        start = f", warm-up {self.warm:.0%}" if self.warm else ""
        more = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return (
            f"{self.loss}; {'AdamW' if self.weight_decay else 'Adam'} {self.lr:g}, betas {self.betas[0]:g}/"
            f"{self.betas[1]:g}{more}{start}, {fall}; {self.extent}"
        )


ORIGINAL = {
    "mspfn": Recipe(  # 0.8 times in every 20,000 steps; where it ends is not stated: ten such spans, a fall after each
        "Charbonnier + 0.05 Laplacian",
        5e-4,
        "batch 12, patch 96",
        falls="drops",
        drops=tuple((k / 10, 0.8**k) for k in range(1, 10)),
    ),
    "epdn": Recipe(
        "least-squares GAN + 10 feature matching + squared error (without the VGG term)",
        2e-4,
        "200 epochs, batch 1, whole images",
        betas=(0.6, 0.999),
        hold=0.5,
        falls="linear",
    ),
    "ffdnet": Recipe(  # halved at 200k, 400k, 600k, 800k and 1M steps of 2M
        "L1, the noise level given",
        1e-4,
        "2,000,000 steps, batch 64, patch 64",
        falls="drops",
        drops=tuple((k / 10, 0.5**k) for k in range(1, 6)),
    ),
    "airnet": Recipe(  # a tenth after 60 of 1000 epochs; from epoch 100 on a tenth again, halved every 125
        "contrast alone in the first tenth, then L1 + 0.1 contrast",
        1e-3,
        "1000 epochs, batch 5, patch 128",
        falls="drops",
        drops=((0.06, 0.1), *((0.1 + 0.125 * k, 0.1 * 0.5**k) for k in range(8))),
    ),
    "restormer": Recipe(  # flat for 92,000 of 300,000 steps
        "L1",
        3e-4,
        "300,000 steps, batch 64 to 8, patch 128 growing to 384",
        weight_decay=1e-4,
        clip_norm=0.01,
        hold=92 / 300,
        floor=1e-6 / 3e-4,
    ),
    "mprnet": Recipe(
        "Charbonnier + 0.05 edge, over three outputs",
        2e-4,
        "250 epochs, batch 16, patch 256",
        warm=3 / 250,
        floor=1e-6 / 2e-4,
    ),
    "adair": Recipe("L1", 2e-4, "150 epochs, batch 8, patch 128", weight_decay=0.01, warm=15 / 150),
    "promptir": Recipe("L1", 2e-4, "120 epochs, batch 8, patch 128", weight_decay=0.01, warm=15 / 120),
}


def recipe_of(network: NetworkSettings | ModelSettings) -> Recipe | None:
    """Returns the recipe of a run that is trained as the original was; None if it is trained as the study trains."""
    return ORIGINAL[network.architecture] if isinstance(network, ModelSettings) and network.recipe != "study" else None
