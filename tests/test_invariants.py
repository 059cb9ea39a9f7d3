"""What must hold in every lottery, on the real loop: real training steps of a tiny network on tiny images.

Other public lottery-ticket code has broken each of these in silence: state that was not rewound, moments that outlived
a pruning step and revived weights, masks lost on resume, counts that were off by the ties.
"""

import csv
import functools
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_lottery import tree

from mirl_study import build_network, criteria, load_settings, lottery, store
from mirl_study.data import load_bank
from mirl_study.masks import Mask
from mirl_study.settings import CRITERIA, Settings
from mirl_study.training import learning_rate, train

CHAINS = {
    "global": {},
    "layer-wise": {"scope": "layerwise"},
    "released": {"protocol": "released", "network": {"unused": True}},
    "released layer-wise": {"protocol": "released", "network": {"unused": True}, "scope": "layerwise"},
    "late": {"rewind_step": 2},
    "late, prompts carried": {"rewind_step": 1, "rewind": "weights", "scope": "layerwise", "clip_norm": 0.01},
    "never back": {"rewind": "none", "weight_decay": 50.0},  # lr x decay is up to a tenth
    "movement": {"criterion": "movement", "rewind_step": 1},
    "by a list": {"densities": [0.6, 0.25], "scope": "layerwise", "prune_norms": True},
    "equal scores": {},
    "equal scores layer-wise": {"scope": "layerwise"},
}
EQUAL = ("equal scores", "equal scores layer-wise")  # chains with many of them
STEPS, WARMUP = 4, 2
DENSE = Path("smoke") / "all_in_one" / "dense"
CARRIED = ("prompt_param", "temperature")  # what the released code forgets to rewind
State = dict[str, torch.Tensor]


@dataclass
class Training:
    """What one call of ``train`` began with, and how it went on."""

    how: dict
    state: State = field(default_factory=dict)  # of the network as its first batch came
    moments: list[int] = field(default_factory=list)  # tensors with moments before each step
    rates: list[float] = field(default_factory=list)  # of learning


@dataclass
class Chain:
    settings: Settings
    rounds: list[lottery.Round]
    trainings: list[Training]  # of the rounds; that of a rewind point is not among them

    def trained(self, index: int) -> State:
        """All tensors of the network that a round left behind, as they are on disk."""
        run = self.rounds[index].run
        network = build_network(self.settings.network, self.settings.seed)
        run.load_weights(index, network)
        return network.state_dict()

    def facts(self, index: int) -> dict:
        return json.loads((self.rounds[index].run.round_folder(index) / "round.json").read_text())


def copied(network: torch.nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@contextmanager
def watched() -> Iterator[list[Training]]:
    """Notes every training of a lottery."""
    trainings: list[Training] = []

    def watched_train(network, *arguments, **how):
        training = Training(how)
        trainings.append(training)

        def note(module, inputs):
            training.state = copied(module)
            hook.remove()

        hook = network.register_forward_pre_hook(note)
        return train(network, *arguments, **how)

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            trainings[-1].moments.append(len(self.state))
            trainings[-1].rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lottery, "train", watched_train)
        patch.setattr(torch.optim, "AdamW", Watched)
        yield trainings


def coarse(evidence: criteria.Evidence) -> State:
    """Magnitudes with one digit: very many are equal."""
    return {name: (10 * weight.detach().abs()).round() for name, weight in evidence.weights().items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """A prepared folder with one small image a task and split."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = [("split", "task", "name", "input", "target")]
    for split in ("train", "val", "test"):
        for task in ("denoise", "derain", "dehaze"):
            clean, bad = f"{split}_{task}.png", "" if task == "denoise" else f"{split}_{task}_bad.png"
            for name in filter(None, (clean, bad)):
                Image.fromarray(rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)).save(folder / name)
            rows.append((split, task, "one", bad, clean))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(folder)


@pytest.fixture(scope="module")
def chain(images, tmp_path_factory):
    """Plays a chain of the table, once; a dense round is shared by all that have the same."""
    dense: dict[str, tuple[Path, Training]] = {}

    @functools.cache
    def play(name: str) -> Chain:
        settings = load_settings(
            "smoke",
            data=images,
            steps=STEPS,
            warmup_steps=WARMUP,
            validate_every=STEPS,
            keep_weights=(0, 1, 2),
            **CHAINS[name],
        )
        root = tmp_path_factory.mktemp("results")
        known = dense.get(settings.key("dense"))
        if known:
            shutil.copytree(known[0] / DENSE, root / DENSE)
        with watched() as trainings, pytest.MonkeyPatch.context() as patch:
            if name in EQUAL:
                patch.setitem(criteria.CRITERIA, "magnitude", coarse)
            rounds = list(lottery.rounds(settings, root, "cpu", show=False))
        trainings = [*([known[1]] if known else []), *(t for t in trainings if "stop" not in t.how)]
        dense[settings.key("dense")] = root, trainings[0]
        return Chain(settings, rounds, trainings)

    return play


def rewind_point(settings: Settings) -> State:
    """Everything in the network at the step that is gone back to: of the dense round, trained anew."""
    network = build_network(settings.network, settings.seed)
    if settings.rewind_step:
        bank = load_bank(settings, "train", store.project_root())
        train(network, Mask.dense(network), bank, settings, stop=settings.rewind_step)
    return copied(network)


def leaving(scores: np.ndarray, rate: float, count: str) -> np.ndarray:
    """Which of the survivors leave, by the definition."""
    if count == "percentile":
        return scores < np.percentile(scores, 100 * rate)
    gone = np.zeros(len(scores), bool)
    gone[np.argsort(scores, kind="stable")[: int(np.floor(rate * len(scores) + 0.5))]] = True
    return gone


@pytest.mark.parametrize("name", CHAINS)
def test_what_leaves_is_what_scores_lowest_to_the_last_weight(chain, name):
    """Counts, ties and nesting, restated with numpy from the weights on disk; True in the next mask is True here."""
    played = chain(name)
    settings = played.settings
    assert [r.index for r in played.rounds] == [0, 1, 2] and played.rounds[0].density == 1
    for before, after in zip(played.rounds, played.rounds[1:], strict=False):
        end, start = played.trained(before.index), played.trainings[before.index].state
        pools, broken = [list(before.mask)] if settings.scope == "global" else [[name] for name in before.mask], 0
        for pool in pools:
            scores = {tensor: end[tensor].abs() for tensor in pool}
            if settings.criterion == "movement":
                scores = {tensor: end[tensor] ** 2 - start[tensor] ** 2 for tensor in pool}
            if name in EQUAL:
                scores = {tensor: (10 * end[tensor].abs()).round() for tensor in pool}
            survivors = np.concatenate([scores[tensor][before.mask[tensor]].double().numpy() for tensor in pool])
            stays = np.concatenate([after.mask[tensor][before.mask[tensor]].numpy() for tensor in pool])
            rate = settings.rate * (settings.output_rate if pool == ["output.weight"] else 1)
            if settings.densities:  # here only which ones leave: how many, a test of its own says
                rate = 1 - stays.mean() if len(stays) else 0
            gone = leaving(survivors, rate, settings.count)
            np.testing.assert_array_equal(stays, ~gone, err_msg=pool[0])
            broken += bool(gone.any()) and survivors[gone].max() in survivors[~gone]
        assert broken > len(pools) / 2 or name not in EQUAL, "this chain is there for ties to be broken"
        assert after.mask <= before.mask and after.mask.kept < before.mask.kept
        facts = played.facts(after.index)
        assert (facts["kept"], facts["prunable"]) == (after.mask.kept, before.mask.size)


@pytest.mark.parametrize("name", CHAINS)
def test_pruned_weights_are_exactly_zero_from_the_first_step_to_the_last(chain, name):
    played = chain(name)
    for round, training in zip(played.rounds, played.trainings, strict=True):
        for state in (training.state, played.trained(round.index)):
            for tensor, keep in round.mask.items():
                assert (state[tensor][~keep] == 0).all(), tensor
                assert not keep.any() or (state[tensor][keep] != 0).any(), tensor


@pytest.mark.parametrize("name", CHAINS)
def test_a_round_starts_from_its_rewind_point_to_the_bit_and_whole(chain, name):
    """Every parameter and buffer: survivors, norms, biases, prompts, temperatures, layers that never run."""
    played = chain(name)
    settings = played.settings
    initial = copied(build_network(settings.network, settings.seed))
    point = rewind_point(settings)
    for round, training in zip(played.rounds, played.trainings, strict=True):
        wanted = dict(point if round.index else initial)
        if round.index and settings.rewind != "all":
            last = played.trained(round.index - 1)
            carried = [tensor for tensor in last if settings.rewind == "none" or tensor.endswith(CARRIED)]
            assert not any(torch.equal(last[tensor], point[tensor]) for tensor in carried if "reduce" not in tensor)
            wanted |= {tensor: last[tensor] for tensor in carried}
        assert training.state.keys() == wanted.keys()
        for tensor, value in wanted.items():
            keep = round.mask.get(tensor, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(training.state[tensor], value * keep), f"{tensor} at the start of round {round.index}"
        again = copied(round.network(trained=False))
        assert all(torch.equal(again[tensor], training.state[tensor]) for tensor in again)


def test_what_is_carried_over_is_what_the_released_code_skips():
    """It rewinds the names that hold `weight` or `bias`; here kinds decide, and they decide the same."""
    from mirl_study.network import describe

    network = build_network(load_settings("smoke", network={"unused": True}).network)
    table = describe(network)
    skipped = {name for name, _ in network.named_parameters() if "weight" not in name and "bias" not in name}
    assert set(table.name[table.kind.isin(lottery.NOT_REWOUND)]) == skipped
    assert skipped == {name for name in table.name if name.endswith(CARRIED)}


@pytest.mark.parametrize("name", CHAINS)
def test_no_moment_outlives_a_round(chain, name):
    for training in chain(name).trainings:
        assert training.moments[0] == 0 < min(training.moments[1:])


@pytest.mark.parametrize("name", CHAINS)
def test_a_round_trains_the_part_of_the_schedule_that_is_left(chain, name):
    played = chain(name)
    settings = played.settings
    assert settings.epochs > settings.steps, "an epoch is a step"
    values = {"peak": settings.lr, "start": settings.lr_start, "floor": settings.lr_min}
    rates = [learning_rate(step, steps=STEPS, warmup=WARMUP, **values) for step in range(STEPS)]
    for round, training in zip(played.rounds, played.trainings, strict=True):
        first = settings.rewind_step if round.index else 0
        assert training.rates == rates[first:] and played.facts(round.index)["steps"] == STEPS - first
        assert round.history.step.tolist() == [STEPS] and round.history.lr.tolist() == pytest.approx(rates[-1:])


@pytest.mark.parametrize("name", ["late", "late, prompts carried"])
def test_a_late_round_ends_where_its_part_of_the_schedule_leads(chain, name):
    played = chain(name)
    settings, bank = played.settings, load_bank(played.settings, "train", store.project_root())
    for round in played.rounds[1:]:
        network = round.network(trained=False)
        train(network, round.mask, bank, settings, first=settings.rewind_step)
        ended = played.trained(round.index)
        assert all(torch.equal(tensor, ended[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_list_of_densities_is_reached_to_within_rounding(scope):
    """Each density of the whole, or of each tensor, to half a weight: also after many small steps."""
    densities = [0.95, 0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01]
    settings = load_settings("smoke", densities=densities, scope=scope, output_rate=1.0, prune_norms=True)
    mask, network = lottery.dense_mask(settings), build_network(settings.network)
    whole = mask
    for index, density in enumerate(densities, 1):
        mask = lottery.next_mask(mask, network, settings, index)
        for pool in [list(mask)] if scope == "global" else [[name] for name in mask]:
            kept, size = (sum(int(m[name].sum()) for name in pool) for m in (mask, whole))
            assert abs(kept - density * size) <= 0.5 + 1e-6, (index, pool[0], size)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_lottery_can_be_played_by_any_criterion(chain, tmp_path, monkeypatch, criterion):
    monkeypatch.setattr(lottery, "CRITERION_BATCHES", 1)
    base = chain("global")
    settings = base.settings.replace(criterion=criterion, rounds=1, keep_weights=())
    shutil.copytree(base.rounds[0].run.root / DENSE, tmp_path / DENSE)
    _, ticket = lottery.rounds(settings, tmp_path, "cpu", show=False)
    assert ticket.mask.kept == base.rounds[1].mask.kept
    assert (ticket.mask == base.rounds[1].mask) == (criterion == "magnitude")
    evidence = criteria.Evidence(
        base.rounds[0].network(),
        base.rounds[0].mask,
        criteria.stream(settings.seed),
        dict(build_network(settings.network, settings.seed).named_parameters()),
        lottery.criterion_batches(load_bank(settings, "train", store.project_root()), settings),
    )
    assert ticket.mask == criteria.prune(base.rounds[0].mask, criteria.CRITERIA[criterion](evidence), settings.rate)


def test_criteria_look_at_batches_that_nobody_trains_on(images):
    settings = load_settings("smoke", data=images)
    bank = load_bank(settings, "train", store.project_root())
    looked = lottery.criterion_batches(bank, settings)
    assert len(looked) == lottery.CRITERION_BATCHES
    for order in range(3):
        for step in range(settings.steps):
            batch = bank.batch(settings.batch_size, settings.patch_size, seed=settings.seed, order=order, step=step)
            assert not any(torch.equal(batch[0], degraded) for degraded, _ in looked)


class Killed(BaseException):
    """Not an Exception: nothing may catch it on its way."""


@contextmanager
def killed_while_writing(name: str):
    """The first time that a file of this name is about to take its place, the chain ends."""
    replace = store.os.replace

    def fatal(source, target):
        if Path(target).as_posix().endswith(name):
            raise Killed
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(store.os, "replace", fatal)
        yield


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("global", "round02/mask.npz"),
        ("late", "rewind.safetensors"),
        ("late, prompts carried", "round01/mask.npz"),  # what is carried over is written, the mask is not
        ("released layer-wise", "round02/mask.npz"),  # the same, a round later
        ("never back", "round01/carried.safetensors"),
        ("never back", "round02/round.json"),
    ],
)
def test_a_chain_that_dies_between_two_files_goes_on_and_ends_bit_identical(chain, tmp_path, name, file):
    """The weights of round 1 are not kept: what round 2 needs of them must be there when round 1 counts as finished."""
    played = chain(name)
    settings, root = played.settings.replace(keep_weights=(0,)), played.rounds[0].run.root
    whole = {name: content for name, content in tree(root).items() if not name.endswith("round01/weights.safetensors")}
    record = next(name for name in whole if re.search(r"/MIR-L-L?[GW]/seed0/round01/round.json$", name))
    whole[record]["sha256"].pop("weights.safetensors", None)
    shutil.copytree(root / DENSE, tmp_path / DENSE)
    with killed_while_writing(file):
        list(lottery.rounds(settings, tmp_path, "cpu", show=False))
    assert tree(tmp_path) != whole
    *_, last = lottery.rounds(settings, tmp_path, "cpu", show=False)
    assert tree(tmp_path) == whole
    network = build_network(settings.network)
    last.run.load_weights(last.index, network)
    assert all((network.get_parameter(name)[~keep] == 0).all() for name, keep in last.mask.items())


@pytest.mark.parametrize("name", ["late, prompts carried", "never back", "released"])
def test_a_finished_chain_is_read_and_not_played_again(chain, name):
    played = chain(name)
    root = played.rounds[0].run.root
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    with watched() as trainings:
        list(lottery.rounds(played.settings, root, "cpu", show=False))
    assert not trainings
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
