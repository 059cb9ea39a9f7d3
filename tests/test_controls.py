import inspect
import json
import shutil

import pandas as pd
import pytest
import torch

from mirl_study import build_network, controls, criteria, load_settings, lottery, study
from mirl_study.masks import Mask
from mirl_study.network import PromptIR, describe, fingerprint
from mirl_study.settings import CONTROLS, SettingsError

MASKS_OF_THE_TICKET = ("reinit", "sign")
FROM_THE_START = ("shuffled", "random_layers", "random_global", "weight_rewind", "snip", "grasp", "synflow")
FROM_THE_DENSE = ("fine_tune", "lr_rewind", "magnitude_long", "random_long")
PER_LAYER = ("reinit", "sign", "shuffled", "random_layers")


@pytest.fixture(scope="module", params=["global", "layerwise"])
def case(request, smoke_results):
    return make_case(load_settings("smoke", scope=request.param), smoke_results)


def make_case(settings, results, name="reinit"):
    ticket = controls.find_ticket(settings, results, "cpu", show=False)
    dense = lottery.dense_round(settings, results, "cpu", show=False)
    stream = criteria.stream(settings.seed, name)
    return controls.Case(ticket, dense, lottery.Bench.load(settings, "cpu"), stream)


def counts(mask):
    return {name: int(keep.sum()) for name, keep in mask.items()}


def trial(case, name, monkeypatch):
    monkeypatch.setattr(controls, "SYNFLOW_CUTS", 3)
    return controls.TRIALS[name](
        controls.Case(case.ticket, case.dense, case.bench, criteria.stream(case.settings.seed, name))
    )


def test_settings_and_functions_name_the_same_controls():
    names = [name for group in CONTROLS.values() for name in group]
    assert set(names) == {*controls.TRIALS, "instability", "instability_dense", "norms"}
    assert all(controls.question(name).count("?") == 1 for name in controls.TRIALS)
    assert "?" in (inspect.getdoc(controls.norms) or "")


@pytest.mark.parametrize("name", [name for name in controls.TRIALS if name not in ("dense_long", "small_dense")])
def test_each_control_keeps_the_counts_it_claims_to_keep(case, name, monkeypatch):
    mask, ticket = trial(case, name, monkeypatch).mask, case.ticket.mask
    if case.settings.scope == "layerwise" and name != "random_global":
        assert counts(mask) == counts(ticket)
    else:
        assert mask.kept == ticket.kept
        assert (counts(mask) == counts(ticket)) == (name in PER_LAYER)
    assert (mask == ticket) == (name in MASKS_OF_THE_TICKET)


@pytest.mark.parametrize("name", controls.TRIALS)
def test_each_control_starts_where_it_claims_to_start(case, name, monkeypatch):
    start = fingerprint(trial(case, name, monkeypatch).network)
    initial, trained = fingerprint(build_network("pico", 0)), fingerprint(case.dense.network())
    if name in FROM_THE_START or name == "dense_long":
        assert start == initial
    elif name in FROM_THE_DENSE:
        assert start == trained
    else:
        assert start not in (initial, trained)


def test_a_new_initialisation_is_new_everywhere_and_the_signs_can_stay(case, monkeypatch):
    original = dict(build_network("pico", 0).named_parameters())
    fresh, signed = (dict(trial(case, name, monkeypatch).network.named_parameters()) for name in ("reinit", "sign"))
    drawn = [
        row.name for row in describe(build_network("pico")).itertuples() if row.kind not in ("norm", "temperature")
    ]
    drawn = [name for name in drawn if ".body.bias" not in name]  # LayerNorm and temperatures start at constants
    assert all(not torch.equal(fresh[name], original[name]) for name in drawn)
    total = case.ticket.mask.size

    def agree(network):
        return sum(int((network[n].sign() == original[n].sign()).sum()) for n in case.ticket.mask) / total

    assert agree(signed) == 1 and 0.45 < agree(fresh) < 0.55
    magnitudes = torch.cat([(signed[n].abs() - original[n].abs()).flatten() for n in case.ticket.mask])
    assert (magnitudes == 0).float().mean() < 0.01


def test_shuffling_moves_weights_and_does_so_in_another_way_each_time(case, monkeypatch):
    """A control once shipped elsewhere rebound a local variable and shuffled nothing."""
    first, again = trial(case, "shuffled", monkeypatch).mask, trial(case, "shuffled", monkeypatch).mask
    other, anew = case.ticket.mask.shuffled(torch.Generator().manual_seed(1)), trial(case, "random_layers", monkeypatch)
    assert first == again
    expected = sum(count**2 / case.ticket.mask[name].numel() for name, count in counts(case.ticket.mask).items())
    for mask in (first, other, anew.mask):
        both = (mask & case.ticket.mask).kept
        assert abs(both - expected) < 6 * expected**0.5, "a shuffled mask meets the ticket's by chance alone"


@pytest.mark.parametrize(("name", "steps"), [("magnitude_long", 12), ("random_long", 12), ("dense_long", 18)])
def test_long_baselines_get_the_steps_that_the_ticket_has_cost(case, name, steps, monkeypatch):
    assert case.settings.steps == 6 and case.ticket.index == 2
    assert trial(case, name, monkeypatch).training == {"steps": steps}


def test_one_shot_cuts_leave_the_largest_of_the_dense_network(case, monkeypatch):
    mask = trial(case, "lr_rewind", monkeypatch).mask
    sizes = {name: case.dense.network().get_parameter(name).abs() for name in mask}
    for pool in [list(mask)] if case.settings.scope == "global" else [[name] for name in mask]:
        stay = [sizes[name][mask[name]] for name in pool]
        leave = torch.cat([sizes[name][~mask[name]] for name in pool])
        assert not leave.numel() or leave.max() <= torch.cat(stay).min()


@pytest.mark.parametrize("share", [0.2, 0.3, 0.6])
def test_the_small_network_has_about_as_many_parameters(share):
    network = load_settings("laptop").network
    total = sum(p.numel() for p in build_network(network).parameters())
    small = PromptIR(controls.smaller(network, int(share * total)))
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(share * total, rel=0.03)
    assert small(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_the_small_network_stops_at_the_narrowest_there_is():
    assert controls.smaller(load_settings("laptop").network, 1).dim == 4


def test_a_late_ticket_hands_its_start_to_its_controls(tmp_path, smoke_results, monkeypatch):
    shutil.copytree(smoke_results / "smoke/all_in_one/dense", tmp_path / "smoke/all_in_one/dense")
    case = make_case(load_settings("smoke", rewind_step=2, rounds=1), tmp_path)
    for name in ("shuffled", "weight_rewind"):
        made = trial(case, name, monkeypatch)
        assert made.training == {"first": 2}
        assert fingerprint(made.network) == fingerprint(lottery.rewound(case.ticket.run, 1))
        assert fingerprint(made.network) != fingerprint(build_network("pico", 0))


@pytest.fixture(scope="module")
def played(smoke_results, tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    shutil.copytree(smoke_results / "smoke", root / "smoke")
    ticket = controls.find_ticket(load_settings("smoke"), root, "cpu", show=False)
    return root, ticket, {n: controls.play(ticket, n, root, "cpu", show=False) for n in ("reinit", "small_dense")}


def test_a_control_is_kept_and_read_again(played):
    root, ticket, rounds = played
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    for name, first in rounds.items():
        again = controls.play(ticket, name, root, "cpu", show=False)
        pd.testing.assert_frame_equal(first.metrics, again.metrics)
        assert first.mask == again.mask and again.run.folder.parent.name == f"MIR-L-G-round02-{name}"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == stamps


def test_a_control_belongs_to_one_ticket(played, monkeypatch):
    root, ticket, _ = played
    other = lottery.Round(ticket.run, 2, ticket.mask.shuffled(torch.Generator()), ticket.history, ticket.metrics)
    with pytest.raises(SettingsError, match="ticket_mask"):
        controls.play(other, "reinit", root, "cpu", show=False)


@pytest.mark.slow
def test_the_line_between_two_copies_ends_at_the_copies(played):
    root, ticket, _ = played
    line = controls.instability(ticket, root, "cpu", show=False, points=3)
    assert list(line.alpha.unique()) == [0, 0.5, 1] and set(line.task) == set(ticket.run.settings.tasks)
    network = lottery.rewound(ticket.run, ticket.index)
    bench = lottery.Bench.load(ticket.run.settings, "cpu")
    lottery.train(network, ticket.mask, bench.train, ticket.run.settings, order=2)
    wanted = lottery.evaluation.evaluate(network, bench.test).groupby("task").psnr.mean()
    end = line[line.alpha == 1].set_index("task").psnr
    assert end.to_dict() == pytest.approx(wanted.to_dict(), abs=1e-6)
    assert (line[line.alpha == 0].psnr.values != end.values).all(), "two data orders, two networks"


def test_the_norms_are_prunable_where_they_were_not(tmp_path, smoke_results):
    shutil.copytree(smoke_results / "smoke/all_in_one/dense", tmp_path / "smoke/all_in_one/dense")
    settings = load_settings("smoke", rounds=1)
    *_, last = controls.norms(settings, tmp_path, "cpu", show=False)
    kinds = describe(build_network("pico")).set_index("name").kind
    gains = [name for name in last.mask if kinds[name] == "norm"]
    assert gains and all(last.mask[name].float().mean() < 1 for name in gains)
    assert last.run.folder.parent.name == "MIR-L-LW-norms"
    assert not any(kinds[name] == "norm" for name in Mask.dense(build_network("pico")))


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda root, ticket: controls.play(ticket, "re-init", root), "did you mean 'reinit'"),
        (lambda root, ticket: controls.play(lottery.load_round(ticket.run, 1), "norm", root), "control='norm'"),
        (lambda root, ticket: controls.instability(ticket, root, points=2), "points=2"),
        (lambda root, ticket: load_settings("smoke").control("shufled"), "did you mean 'shuffled'"),
    ],
)
def test_bad_input_is_named(played, action, text):
    root, ticket, _ = played
    with pytest.raises(SettingsError, match=text):
        action(root, ticket)


def test_a_dense_round_is_no_ticket(played, smoke_results):
    dense = lottery.dense_round(load_settings("smoke"), played[0], "cpu", show=False)
    with pytest.raises(SettingsError, match="is no ticket"):
        controls.play(dense, "reinit", played[0])


@pytest.mark.slow
def test_the_plan_knows_how_long_controls_take(played, case, monkeypatch):
    chains = {chain.method: chain for chain in study.plan([case.settings], [0], played[0], controls=True)}
    for name in controls.TRIALS:
        made = trial(case, name, monkeypatch)
        steps = made.training.get("steps", case.settings.steps) - made.training.get("first", 0)
        assert chains[case.settings.control(name)].total == steps, name
    folder = played[2]["reinit"].run.folder
    facts = json.loads((folder / "round01/round.json").read_text())
    if case.settings.scope == "global":
        assert (
            chains["MIR-L-G-round02-reinit"].folder == folder
            and facts["steps"] == chains["MIR-L-G-round02-reinit"].total
        )
