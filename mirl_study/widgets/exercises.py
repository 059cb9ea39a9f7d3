"""Exercises of the lab: each check gives a hint and never the answer."""

import tempfile
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from mirl_study import criteria, lottery, verdicts
from mirl_study.analysis import find
from mirl_study.criteria import Criterion, Evidence
from mirl_study.masks import Mask
from mirl_study.network import build_network
from mirl_study.settings import load_settings, nearest
from mirl_study.widgets.lab import Lab

WANTED = "put your answer in `answer`; a wrong one gets a hint"  # before a try, no hint


def check_round(answer: Any, lab: Lab, density: float = 0.5) -> str:
    """Checks: the first round whose tickets keep less than a share of the prunable weights."""
    if answer is None:
        return WANTED
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer <= lab.rounds:
        hint = f"each round keeps {1 - lab.settings.rate:.0%} of the weights that the one before has kept"
        return f"put a whole number from 0 to {lab.rounds} in `answer`; hint: {hint}"
    own = lab.mask("MIR-L-G", answer).density()
    if own >= density:
        return f"not yet: round {answer} still keeps {own:.1%}"
    if answer and lab.mask("MIR-L-G", answer - 1).density() < density:
        return "that few are left, but an earlier round was there already"
    return f"right: round {answer} keeps {own:.1%}"


def check_empty(answer: Any, lab: Lab, index: int | None = None) -> str:
    """Checks: a layer, by its name or number, that the global lottery has emptied by its last round."""
    index = lab.rounds if index is None else index
    mask = lab.mask("MIR-L-G", index)
    empty = [name.removesuffix(".weight") for name in mask.emptied()]
    if not empty:
        return f"round {index} of this lottery has emptied no layer: any answer would be wrong"
    if answer is None:
        return WANTED
    if type(answer) is int and 0 <= answer < len(lab.layers):
        answer = lab.layers[answer]
    if answer not in lab.layers:
        near = nearest(str(answer), lab.layers)
        hint = "in station 5 an empty layer is a cross at the bottom, and the list of layers has the numbers below it"
        return f"put a layer's name, or its number in `lab.layers`, in `answer`{near}; hint: {hint}"
    kept = int(mask[f"{answer}.weight"].sum())
    return (
        f"right: {answer} has nothing left"
        if not kept
        else f"{answer} still keeps {kept} weights in round {index}; look for a cross in station 5, last round"
    )


def check_control(answer: Any, lab: Lab, method: str = "MIR-L-G") -> str:
    """Checks: a control that keeps exactly the weights of the ticket."""
    frame = verdicts.gather(lab.profile, lab.setting, method, lab.ticket, lab.results)
    frame = frame[~frame.control.isin(["ticket", "dense"])].drop_duplicates("control").set_index("control")
    if frame.empty:
        return "no control has been played in these results"
    if answer is None:
        return WANTED
    if answer not in frame.index:
        near = nearest(str(answer), frame.index)
        return f"put the name of a control in `answer`{near}; hint: station 4 says what each changes"
    ticket = lab.mask(method, lab.ticket, find(lab.found, lab.setting, method, frame.seed[answer]))
    if Mask.load(frame.folder[answer] / "mask.npz") == ticket:
        return f"right: {answer} keeps the ticket's very weights and changes something else"
    return f"{answer} has another mask than the ticket; hint: what could a control change besides the mask?"


def check_criterion(criterion: Callable[[Evidence], Any]) -> str:
    """Checks a pruning criterion on a tiny network, before it meets the real loop."""
    network, start = build_network("pico", seed=0), build_network("pico", seed=1)
    mask = Mask.dense(network)
    before = {name: start.get_parameter(name).detach() for name in mask}
    try:
        scores = criterion(Evidence(network, mask, criteria.stream(0), before))
    except Exception as error:  # whatever a learner's code raises is said in one line
        return f"it raises {type(error).__name__}: {error}"
    if not isinstance(scores, dict) or set(scores) != set(mask):
        return "give a dictionary with a score tensor for each name in `evidence.mask`"
    for name, score in scores.items():
        if not isinstance(score, torch.Tensor) or score.shape != mask[name].shape:
            return f"the score of {name} must be a tensor of shape {tuple(mask[name].shape)}: one number a weight"
        if not torch.isfinite(score).all():
            return f"a score of {name} is not a finite number: is something divided by zero?"
        if score.requires_grad:
            return f"the score of {name} still hangs on the network: `.detach()` the weights first"
    known = criteria.magnitude(Evidence(network, mask))
    other = criteria.prune(mask, scores, 0.5) != criteria.prune(mask, known, 0.5)
    return "it fits" + (
        " and keeps other weights than magnitude does" if other else "; it keeps the same weights as magnitude does"
    )


def play(criterion: Criterion, scope: str = "global", seed: int = 0, rate: float = 0.7) -> pd.DataFrame:
    """Plays the real lottery with a criterion of one's own: the profile ``smoke``, in a folder that is thrown away.

    A round removes more than in the other runs, so that a tiny network shows in two of them where a criterion cuts.

    Args:
        criterion: from evidence to scores by name; the lowest leave.
        scope: where weights compete.
        seed: of the run.
        rate: fraction of the weights left that leaves in a round.

    Returns:
        A row a round: ``round``, ``density``, ``emptied`` (layers, of ``layers``), ``sparsest`` and ``densest``
        (densities of layers), ``psnr`` and ``input_psnr`` (dB, mean over tasks).
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, criteria.trial("yours", criterion):
        settings = load_settings("smoke", criterion="yours", scope=scope, seed=seed, rate=rate)
        for played in lottery.rounds(settings, folder, "cpu", show=False):
            mask, scores = played.mask, played.scores
            ends = min(mask.densities().values()), max(mask.densities().values())
            means = scores.psnr.mean(), scores.input_psnr.mean()
            rows.append((played.index, mask.density(), len(mask.emptied()), len(mask), *ends, *means))
    columns = ["round", "density", "emptied", "layers", "sparsest", "densest", "psnr", "input_psnr"]
    return pd.DataFrame(rows, columns=columns)
