"""The models of Table I in the study: trained as everything else is, and pruned as PromptIR is.

A model's chains lie in ``results/<profile>/<setting>/models/<name>/``, and are the same otherwise: ``lottery.rounds``
plays a lottery of Restormer when its settings say so.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from mirl_study import criteria
from mirl_study.comparison import MODELS, multiple
from mirl_study.comparison.recipes import ORIGINAL
from mirl_study.lottery import Bench, Round, dense_round, only_round, train_and_score
from mirl_study.network import describe
from mirl_study.progress import Progress
from mirl_study.session import Session
from mirl_study.settings import RECIPES, SCOPES, ModelSettings, Settings, SettingsError, choose
from mirl_study.store import Run

DENSITIES = (0.5, 0.2, 0.1, 0.05)
TUNING = 0.2  # of the steps of a round: training after a cut


def with_model(settings: Settings, name: str, recipe: str = "study") -> Settings:
    """Returns the settings of the same study with another model, of the size that goes with its own network.

    Args:
        settings: of the study.
        name: one of MODELS; ``promptir`` is the study's own network.
        recipe: ``study``, or ``original``: then loss, optimiser and shape of the schedule are the original's, and so
            are learning rate, weight decay and limit of the gradient. Steps, batches and patches stay the study's.

    Raises:
        SettingsError: for an unknown name or recipe, or patches that the model cannot take.
    """
    choose("model", name, MODELS)
    choose("recipe", recipe, RECIPES)
    if name == "promptir":
        if isinstance(settings.network, ModelSettings) or recipe != "study":
            raise SettingsError("model='promptir' is the study's own network and recipe: give settings of that")
        return settings
    made = settings.replace(network={"architecture": name, "recipe": recipe})
    if recipe == "original":
        original = ORIGINAL[name]
        numbers = {"lr": original.lr, "lr_start": 0.0, "lr_min": 0.0}
        made = made.replace(**numbers, weight_decay=original.weight_decay, clip_norm=original.clip_norm)
    side = multiple(made.network)
    if made.patch_size % side:
        raise SettingsError(f"patch_size={made.patch_size} is not allowed: {name} takes multiples of {side}")
    return made


def chosen(names: Sequence[str]) -> list[str]:
    """Checks which models are asked for.

    Args:
        names: of MODELS; none means all.

    Returns:
        The names, in the order of MODELS.

    Raises:
        SettingsError: for an unknown name, or something else than a list of names.
    """
    if not isinstance(names, list | tuple):
        raise SettingsError(f"models={names!r} is not allowed: a list of names, for example ['restormer']")
    for name in names:
        choose("models", name, MODELS)
    return [name for name in MODELS if not names or name in names]


def check_cuts(densities: Sequence[float]) -> None:
    """Checks densities to cut to, before any work.

    Raises:
        SettingsError: for no list, the same density twice, or one outside 0 to 1.
    """
    listed = isinstance(densities, list | tuple)
    if not (listed and len(set(densities)) == len(densities)):
        raise SettingsError(f"densities={densities!r} is not allowed: a list of different numbers")
    for density in densities:
        if type(density) not in (int, float) or not 0 < density < 1:
            raise SettingsError(f"density={density!r} is not allowed: more than 0 and less than 1")


def play(
    name: str,
    settings: Settings,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
    recipe: str = "study",
) -> Round:
    """Trains one model of Table I, dense; one that is finished is read.

    Args:
        name: one of MODELS.
        settings: of the study.
        results, device, show: as in ``lottery.dense_round``.
        recipe: as in ``with_model``.

    Raises:
        SettingsError: as in ``with_model`` and ``lottery.dense_round``.
        Diverged: if the loss stops being a number.
    """
    return dense_round(with_model(settings, name, recipe), results, device, show)


def cut(
    settings: Settings,
    density: float,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
    tuning: float = TUNING,
) -> Round:
    """Cuts the trained dense network once, by magnitude, and trains it on for a while: cheap enough for every model.

    Args:
        settings: of the chain: network, ``scope``, and, layer by layer, ``output_rate``; ``fine_tune_lr``.
        density: kept over prunable weights; layer by layer a little more, where the output layer loses less.
        results, device, show: as in ``lottery.one_shot``.
        tuning: steps after the cut, as a share of ``steps``.

    Returns:
        The cut network, as a round.

    Raises:
        SettingsError: for a density or share outside 0 to 1, or if the folder holds a run with other settings.
        Diverged: if the loss stops being a number.
    """
    check_cuts([density])
    if not 0 < tuning < 1:
        raise SettingsError(f"tuning={tuning!r} is not allowed: more than 0 and less than 1")
    about = {"cut_density": density, "tuning": tuning}
    run = Run(settings, settings.method(), results, f"cut-{settings.scope}-{density:g}", about)
    run.check_writable([1])
    bench = Bench.load(settings, device)

    def play_it(session: Session) -> None:
        dense = dense_round(settings, results, device, show)
        steps = max(1, round(tuning * settings.steps))
        progress = Progress(run, 1, steps, show=show)
        network = dense.network()
        table, rate = describe(network), 1 - density
        rates = dict.fromkeys(table.name[table.kind == "output"], rate * settings.output_rate)
        scores = criteria.magnitude(criteria.Evidence(network, dense.mask))
        mask = criteria.prune(dense.mask, scores, rate, settings.scope, rates)
        how = {"steps": steps, "warmup": 0, "lr": settings.fine_tune_lr}
        run.finish(1, *train_and_score(session, 1, mask, network, bench, progress, **how))
        progress.close()

    return only_round(run, 1, bench, play_it)


def cuts(
    names: Sequence[str],
    settings: Settings,
    results: Path | str | None = None,
    device: torch.device | str | None = None,
    show: bool = True,
    densities: Sequence[float] = DENSITIES,
) -> None:
    """Plays ``cut`` for several models, in both scopes, at several densities; what is finished stays as it is.

    Args:
        names: of MODELS.
        settings: of the study.
        results, device, show: as in ``cut``.
        densities: to cut to.

    Raises:
        SettingsError, Diverged: as ``with_model`` and ``cut``.
    """
    check_cuts(densities)
    studies = [with_model(settings, name).replace(scope=scope) for name in chosen(names) for scope in SCOPES]
    for own in studies:
        for density in densities:
            cut(own, density, results, device, show)
