import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from mirl_study import SettingsError, analysis, controls, load_settings, lottery, verdicts
from mirl_study.settings import TASKS
from mirl_study.store import Run

NAMES = ("smoke", "all_in_one", "MIR-L-G")


@pytest.fixture(scope="module")
def results(smoke_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study with two controls and the two lines of its last ticket."""
    root = tmp_path_factory.mktemp("controls")
    shutil.copytree(smoke_results, root, dirs_exist_ok=True)
    ticket = lottery.load_round(Run(load_settings("smoke"), "MIR-L-G", root), 2)
    for name in ("small_dense", "reinit"):
        controls.play(ticket, name, root, "cpu", show=False)
    for dense in (False, True):
        controls.instability(ticket, root, "cpu", show=False, dense=dense, points=3)
    return root


def frame(**psnr: dict[int, float]) -> pd.DataFrame:
    """Scores of one task, by control and seed."""
    rows = [(name, seed, "mean", value) for name, seeds in psnr.items() for seed, value in seeds.items()]
    return pd.DataFrame(rows, columns=["control", "seed", "task", "psnr"])


def one_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value)


def test_groups_name_every_control_once():
    names = [name for group in verdicts.GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) == {"ticket", "dense", "input", *controls.TRIALS}


def test_order_puts_the_ticket_first_and_the_unknown_last():
    assert verdicts.order(["zzz", "dense", "snip", "abc", "reinit", "ticket"]) == [
        "ticket",
        "reinit",
        "snip",
        "dense",
        "abc",
        "zzz",
    ]


def test_gather_reads_the_files(results):
    table = verdicts.gather(*NAMES, 2, results)
    assert list(table.control.unique()) == ["ticket", "reinit", "dense", "small_dense"]
    assert list(table.columns) == ["control", "seed", *verdicts.COLUMNS, "folder"]
    assert list(table[table.control == "reinit"].task) == [*TASKS["all_in_one"], "denoise", "mean"]
    root = results / "smoke" / "all_in_one"
    folders = table.groupby("control").folder.first()
    assert folders["ticket"] == root / "MIR-L-G" / "seed0" / "round02"
    assert folders["dense"] == root / "dense" / "seed0" / "round00"
    assert folders["reinit"] == root / "controls" / "MIR-L-G-round02-reinit" / "seed0" / "round01"
    for row in table[table.task == "derain"].itertuples():
        metrics = pd.read_csv(row.folder / "metrics.csv").query("task == 'derain'")
        facts = analysis.read_json(row.folder / "round.json")
        assert row.psnr == pytest.approx(metrics.psnr.mean(), abs=1e-12)
        assert row.input_psnr == pytest.approx(metrics.input_psnr.mean(), abs=1e-12)
        assert (row.density, row.parameters, row.steps) == (facts["density"], facts["parameters"], facts["steps"])
    density = table.drop_duplicates("control").set_index("control").density
    assert density["dense"] == density["small_dense"] == 1 and density["ticket"] == density["reinit"] < 0.7


def test_gather_has_families_as_the_scores_have_them(results):
    ours = verdicts.gather(*NAMES, 2, results).query("control == 'ticket'").set_index("task").psnr
    theirs = analysis.scores(analysis.runs("smoke", results)).query("method == 'MIR-L-G' and round == 2")
    assert ours.to_dict() == theirs.set_index("task").psnr.to_dict()


def test_gather_of_another_round_has_none_of_this_ticket_s_controls(results):
    assert set(verdicts.gather(*NAMES, 1, results).control) == {"ticket", "dense"}


def test_a_control_that_is_not_finished_is_left_out(results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "smoke" / "all_in_one" / "controls"
    (place / "MIR-L-G-round02-reinit" / "seed0" / "summary.csv").unlink()
    assert set(verdicts.gather(*NAMES, 2, tmp_path).control) == {"ticket", "dense", "small_dense"}


def test_gather_says_what_there_is(results, tmp_path):
    with pytest.raises(SettingsError, match=r"ticket_round=9 of MIR-L-G is not finished .* there is 1, 2") as error:
        verdicts.gather(*NAMES, 9, results)
    assert one_line(error)
    with pytest.raises(SettingsError, match="there is none: mirl study --profile smoke"):
        verdicts.gather("smoke", "derain", "MIR-L-G", 2, results)
    with pytest.raises(SettingsError, match=r"method='MIR-L-g' is not one of .*did you mean 'MIR-L-G'"):
        verdicts.gather("smoke", "all_in_one", "MIR-L-g", 2, results)
    with pytest.raises(SettingsError, match="setting='all'"):
        verdicts.gather("smoke", "all", "MIR-L-G", 2, results)
    with pytest.raises(SettingsError, match="did you mean 'smoke'"):
        verdicts.gather("smok", "all_in_one", "MIR-L-G", 2, tmp_path)


def test_differences_are_of_the_same_seed():
    table = verdicts.differences(frame(dense={0: 30, 1: 40}, ticket={1: 40.25, 0: 29.5}))
    assert table.set_index("seed").difference.to_dict() == {0: -0.5, 1: 0.25}
    assert set(table.control) == {"ticket"}
    against = verdicts.differences(frame(dense={0: 30, 1: 40}, ticket={1: 40.25, 0: 29.5}), "ticket")
    assert against.set_index("seed").difference.to_dict() == {0: 0.5, 1: -0.25}
    with pytest.raises(SettingsError, match=r"against='tickte' .*did you mean 'ticket'"):
        verdicts.differences(frame(dense={0: 30}, ticket={0: 30}), "tickte")


@pytest.mark.parametrize(
    ("values", "confidence", "mean", "half"),
    [
        ([0.1, 0.2, 0.3], 0.95, 0.2, 4.302653 * 0.1 / 3**0.5),  # t of 2 degrees of freedom, sd 0.1
        ([0.1, 0.2, 0.3], 0.90, 0.2, 2.919986 * 0.1 / 3**0.5),
        ([0.0, 0.2], 0.95, 0.1, 12.706205 * 0.1),  # 1 degree of freedom, standard error 0.1
        ([1.5, 1.5, 1.5], 0.95, 1.5, 0),
    ],
)
def test_interval_of_known_values(values, confidence, mean, half):
    assert verdicts.interval(values, confidence) == pytest.approx((mean, mean - half, mean + half), abs=1e-6)


def test_one_value_has_no_interval():
    mean, low, high = verdicts.interval([0.3])
    assert mean == 0.3 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, math.nan])
def test_confidence_is_checked(confidence):
    with pytest.raises(SettingsError, match="confidence="):
        verdicts.interval([1, 2], confidence)


def test_pairing_takes_out_what_a_seed_brings():
    # the seeds differ by tens of dB, the ticket from dense by 0.1, 0.2 and 0.3
    table = frame(dense={0: 10, 1: 20, 2: 30}, ticket={0: 10.1, 1: 20.2, 2: 30.3})
    row = verdicts.paired(table).iloc[0]
    assert (row["mean"], row.low, row.high) == pytest.approx((0.2, -0.048414, 0.448414), abs=1e-6)
    assert row.seeds == 3 and row.left_out == ()


def test_only_common_seeds_count_and_it_is_said():
    table = frame(
        dense={0: 10, 1: 20, 2: 30}, ticket={0: 10.1, 1: 20.2, 2: 30.3}, reinit={2: 30.2, 0: 10.0}, snip={4: 7}
    )
    rows = verdicts.paired(table, margin=0.1).set_index("control")
    row = rows.loc["reinit"]
    assert row["mean"] == pytest.approx(0.1) and row.high == pytest.approx(0.1 + 1.2706205, abs=1e-6)
    assert (row.seeds, row.left_out) == (2, (1,))
    assert rows.loc["ticket", "left_out"] == ()
    assert rows.loc["snip", ["seeds", "left_out", "word", "decided"]].tolist() == [0, (0, 1, 2, 4), "", False]
    assert math.isnan(rows.loc["snip", "mean"])


def test_paired_gives_verdicts_with_a_margin_only():
    table = frame(dense={0: 10, 1: 20}, ticket={0: 11, 1: 21}, snip={0: 9.0, 1: 19.0})
    assert "word" not in verdicts.paired(table)
    rows = verdicts.paired(table, margin=0.1).set_index("control")
    assert rows.word.to_dict() == {"ticket": "winning", "snip": "not matching"} and rows.decided.all()
    with pytest.raises(SettingsError, match="margin=-1"):
        verdicts.paired(table, margin=-1)


@pytest.mark.parametrize(
    ("differences", "margin", "word", "decided"),
    [
        ([0.4, 0.5, 0.6], 0.1, "winning", True),  # interval 0.252 to 0.748
        ([0.1, 0.2, 0.3], 0.1, "matching", True),  # -0.048 to 0.448
        ([0.1, 0.2, 0.3], 0.0, "undecided", False),  # without a margin, matching is winning
        ([0.4, 0.5, 0.6], 0.0, "winning", True),
        ([0.1, 0.2, 0.3], 0.04, "undecided", False),
        ([-0.5, 0.0, 0.5], 0.1, "undecided", False),  # -1.242 to 1.242
        ([-0.4, -0.5, -0.6], 0.1, "not matching", True),  # -0.748 to -0.252
        ([-0.4, -0.5, -0.6], 0.3, "undecided", False),
        ([-0.4, -0.5, -0.6], 0.75, "matching", True),
        ([0.0, 0.0, 0.0], 0.0, "winning", True),  # exact ties
        ([-0.1, -0.1, -0.1], 0.1, "matching", True),
        ([29.9 - 30, 30.9 - 31], 0.1, "matching", True),  # -0.1 up to the last digits of a float
        ([-0.11, -0.11], 0.1, "not matching", True),
        ([0.3], 0.1, "winning", False),
        ([0.0], 0.1, "winning", False),
        ([-0.1], 0.1, "matching", False),
        ([-0.2], 0.1, "not matching", False),
    ],
)
def test_verdict(differences, margin, word, decided):
    judged = verdicts.verdict(differences, margin)
    assert (judged.word, judged.decided, judged.seeds) == (word, decided, len(differences))
    assert judged.mean == pytest.approx(sum(differences) / len(differences))
    assert str(judged).startswith(word) and "\n" not in str(judged)
    assert ("cannot tell" in str(judged)) == (not decided and len(differences) > 1)
    assert ("one seed decides nothing" in str(judged)) == (len(differences) == 1)


def test_confidence_can_change_the_word():
    assert verdicts.verdict([0.1, 0.2, 0.3], 0, confidence=0.9).word == "winning"
    assert verdicts.verdict([0.1, 0.2, 0.3], 0, confidence=0.95).word == "undecided"


@pytest.mark.parametrize(
    ("differences", "margin", "sentence"),
    [
        (
            [0.1, 0.2, 0.3],
            0.1,
            "matching: +0.200 dB to dense, 95 % interval −0.048 to +0.448 dB over 3 seeds; the whole interval is at or "
            "above −0.1 dB",
        ),
        (
            [0.1, 0.2, 0.3],
            0,
            "undecided: +0.200 dB to dense, 95 % interval −0.048 to +0.448 dB over 3 seeds; the interval reaches to "
            "both sides of 0 dB, so these 3 seeds cannot tell",
        ),
        (
            [-0.5, 0.0, 0.5],
            0.1,
            "undecided: +0.000 dB to dense, 95 % interval −1.242 to +1.242 dB over 3 seeds; the interval reaches to "
            "both sides of −0.1 dB, so these 3 seeds cannot tell; at their scatter, an interval of ±0.1 dB would take "
            "about 97 seeds",
        ),
        (
            [-0.4, -0.5, -0.6],
            0.2,
            "not matching: −0.500 dB to dense, 95 % interval −0.748 to −0.252 dB over 3 seeds; the whole interval is "
            "below −0.2 dB",
        ),
        ([-0.05], 0.1, "matching by its one seed, and one seed decides nothing: −0.050 dB to dense, margin 0.1 dB"),
    ],
)
def test_the_sentence_has_the_numbers(differences, margin, sentence):
    assert str(verdicts.verdict(differences, margin)) == sentence


@pytest.mark.parametrize(
    ("differences", "margin", "confidence", "named"),
    [
        ([0.1], -0.1, 0.95, "margin=-0.1"),
        ([0.1], math.nan, 0.95, "margin=nan"),
        ([0.1], math.inf, 0.95, "margin=inf"),
        ([], 0.1, 0.95, "differences="),
        ([0.1, math.nan], 0.1, 0.95, "differences="),
        ([0.1], 0.1, 1.0, "confidence=1.0"),
    ],
)
def test_verdict_refuses(differences, margin, confidence, named):
    with pytest.raises(SettingsError, match=named) as error:
        verdicts.verdict(differences, margin, confidence)
    assert one_line(error)


def history(*losses: float) -> pd.DataFrame:
    return pd.DataFrame({"step": [50 * (i + 1) for i in range(len(losses))], "val_loss": losses})


def test_findings_say_on_which_side_of_the_ticket_a_control_is():
    seeds = (0, 1, 2)
    scores = frame(
        dense={s: 30.0 + s for s in seeds},
        ticket={s: 30.2 + s + 0.01 * s for s in seeds},
        reinit={s: 29.2 + s + 0.01 * s * s for s in seeds},
        snip={s: 31.2 + s for s in seeds},
        grasp={s: 30.2 + s + (-1) ** s for s in seeds},
    )
    first, second = verdicts.findings(scores, 0.1)
    assert first.startswith("On the mean of the families, the ticket is winning: +0.210 dB to dense")
    below, above, same = second.partition(": ")[2].split("; ")
    assert below == "below it are reinit (−0.99 dB)" and above == "above it are snip (+0.99 dB)"
    assert same.startswith("not to be told from it are grasp")


def test_findings_of_one_seed_tell_nothing_apart():
    scores = frame(dense={0: 30.0}, ticket={0: 29.95}, reinit={0: 20.0})
    verdict, rest = verdicts.findings(scores, 0.1)
    assert "matching by its one seed" in verdict and "no control can be told" in rest
    assert len(verdicts.findings(scores[scores.control != "reinit"], 0.1)) == 1


@pytest.mark.parametrize(
    ("losses", "step"), [((3, 1, 2), 100), ((3, 1, 1), 100), ((3, 2, 1), 150), ((math.nan, 2, 3), 100)]
)
def test_steps_to_lowest(losses, step):
    assert verdicts.steps_to_lowest(history(*losses)) == step


def test_steps_to_lowest_needs_a_loss():
    with pytest.raises(SettingsError, match="val_loss"):
        verdicts.steps_to_lowest(history(math.nan, math.nan))


def test_stopping_is_side_by_side_by_seed():
    runs = {
        ("ticket", 0): history(3, 1, 2),
        ("dense", 0): history(3, 2, 1.5),
        ("ticket", 1): history(3, 2, 1),
        ("dense", 1): history(3, 0.5, 2),
        ("ticket", 2): history(2, 2.5),
        ("dense", 2): history(2, 2.5),
        ("ticket", 3): history(1),
    }
    parts = [own.assign(control=control, seed=seed) for (control, seed), own in runs.items()]
    table = verdicts.stopping(pd.concat(parts, ignore_index=True))
    assert table.values.tolist() == [
        [0, 100, 150, 1, 1.5, True],
        [1, 150, 100, 1, 0.5, False],
        [2, 50, 50, 2, 2, True],
    ]


def test_histories_are_those_of_the_files(results):
    table = verdicts.gather(*NAMES, 2, results)
    read = verdicts.histories(table)
    assert list(read.columns) == ["control", "seed", "step", "lr", "loss", "val_loss"]
    for control, folder in table.groupby("control").folder.first()[["ticket", "dense"]].items():
        own = read[read.control == control].drop(columns=["control", "seed"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(own, pd.read_csv(folder / "history.csv"))
    assert verdicts.stopping(read).seed.tolist() == [0]
    assert set(verdicts.histories(table, ["reinit"]).control) == {"reinit"}
    with pytest.raises(SettingsError, match="did you mean 'reinit'"):
        verdicts.histories(table, ["reinti"])


LINE = pd.DataFrame(  # alpha, task, psnr
    [
        (0, "derain", 30),
        (0.5, "derain", 27),
        (1, "derain", 32),
        (0, "dehaze", 20),
        (0.5, "dehaze", 20.5),
        (1, "dehaze", 21),
        *(
            (alpha, f"denoise{sigma}", 25 - alpha * (1 - alpha) * at)
            for at, sigma in enumerate((15, 25, 50))
            for alpha in (0, 0.5, 1)
        ),
    ],
    columns=["alpha", "task", "psnr"],
)


def test_barriers_of_known_lines():
    table = verdicts.barriers(LINE).set_index("task")
    assert table.loc["derain", ["ends", "apart", "barrier"]].tolist() == [31, 2, 4]
    assert table.loc["dehaze", ["apart", "barrier"]].tolist() == [1, 0], "a line that only rises has no valley"
    assert table.barrier[["denoise15", "denoise25", "denoise50"]].tolist() == [0, 0.25, 0.5]
    assert table.loc["denoise", "barrier"] == 0.25
    # of the mean, not the mean of theirs: its line is 25, 24.0833, 26
    middle = (27 + 20.5 + 24.75) / 3
    assert table.loc["mean", "barrier"] == pytest.approx(25.5 - middle)


def test_barriers_tell_lines_apart():
    flat = LINE.assign(psnr=25.0)
    both = pd.concat([LINE.assign(control="dense", seed=0), flat.assign(control="ticket", seed=1)])
    table = verdicts.barriers(both).set_index(["control", "seed", "task"]).barrier
    assert table["dense", 0, "derain"] == 4 and table["ticket", 1, "derain"] == 0
    assert len(table) == 2 * 7
    again = verdicts.lines(verdicts.lines(both))
    pd.testing.assert_frame_equal(again, verdicts.lines(both))


def test_barriers_need_both_ends():
    with pytest.raises(SettingsError, match=r"alpha=\[0.0, 0.5\]"):
        verdicts.barriers(LINE[LINE.alpha < 1])


def test_interpolations_are_those_of_the_files(results):
    read = verdicts.interpolations(*NAMES, 2, results)
    assert set(read.control) == {"ticket", "dense"} and set(read.seed) == {0}
    for control, name in (("ticket", "instability"), ("dense", "instability_dense")):
        folder = results / "smoke" / "all_in_one" / "controls" / f"MIR-L-G-round02-{name}" / "seed0"
        own = read[read.control == control].drop(columns=["control", "seed"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(own, pd.read_csv(folder / "interpolation.csv"))
    assert (verdicts.barriers(read).barrier >= 0).all()
    with pytest.raises(SettingsError, match="ticket_round=1 of MIR-L-G has no interpolation"):
        verdicts.interpolations(*NAMES, 1, results)
