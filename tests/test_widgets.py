"""The lab's panels and questions: what they say is in the files, and they answer at once."""

import datetime
import io
import re
import statistics
import time

import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets import widgets as ipy
from matplotlib.lines import Line2D
from PIL import Image

from mirl_study import Mask, SettingsError, analysis, criteria, evaluation, load_settings, settings, verdicts, widgets
from mirl_study.widgets import exercises, predictions, stations
from mirl_study.widgets.lab import kept_only, spread
from mirl_study.widgets.panel import FRONT_ENDS

PANELS = {
    "degrade": widgets.degrade,
    "prune": widgets.prune,
    "play": widgets.play,
    "scopes": widgets.scopes,
    "luck": widgets.luck,
    "explore": widgets.explore,
    "viewer": lambda lab: widgets.Viewer(lab).panel,
    "browse": widgets.browse,
}
ANSWER = 0.1  # seconds that a callback may take; on a machine that does other things, too, see ``test_answers_at_once``


@pytest.fixture(scope="module")
def lab() -> widgets.Lab:
    """The lab as it comes with the project."""
    return widgets.Lab.open(results="results/reference")


@pytest.fixture(scope="module")
def small(smoke_results) -> widgets.Lab:
    """A lab on runs without controls, of a tiny network."""
    return widgets.Lab.open("smoke", results=smoke_results)


@pytest.fixture(scope="module")
def panels(lab) -> dict[str, widgets.Panel]:
    return {name: make(lab) for name, make in PANELS.items()}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def every(panel: widgets.Panel) -> list[dict[str, str]]:
    """Options of every choice, from its whole range, the others at their start."""
    chosen = {name: list(choice.options) for name, choice in panel.choices.items()}
    return [{name: text} for name, texts in chosen.items() for text in texts[:: max(1, len(texts) // 16)]]


@pytest.mark.parametrize("name", PANELS)
def test_every_option_draws(name, panels):
    panel, seen = panels[name], set()
    for texts in every(panel):
        content, words = panel.at(**texts)
        assert words
        seen.add((content, words))
        if content:
            assert pixels(content).shape[1] == panel.width
    assert len(seen) > 1


@pytest.mark.parametrize("name", PANELS)
def test_answers_at_once(name, panels):
    """The processor's time of a callback, not the clock's: others may work on this machine; hence the margin, too."""
    panel = panels[name]
    panel.at()
    took = []
    for texts in every(panel):
        before = time.process_time()
        panel.at(**texts)
        took.append(time.process_time() - before)
    assert statistics.median(took) < 2 * ANSWER


@pytest.mark.parametrize("name", PANELS)
def test_small_runs_without_controls(name, small):
    panel = PANELS[name](small)
    for still in panel.stills:
        assert panel.at(**still)[1]


@pytest.mark.parametrize("name", PANELS)
def test_moving_a_control_changes_what_is_seen(name, panels):
    widget = panels[name].widget()
    shown = [child for child in widget.children if isinstance(child, ipy.Image | ipy.HTML)]
    before = [child.value for child in shown]
    control = next(iter(panels[name].inputs.values()))
    control.index = len(control.options) - 1 if control.index == 0 else 0
    assert [child.value for child in shown] != before


def test_the_button_plays_a_round_and_restarts(lab):
    widget = widgets.play(lab).widget()
    slider, onward, back = widget.children[0].children[0].children
    for _ in range(3):
        onward.click()
    assert slider.value == 3 and "Round <b>3</b>" in widget.children[-1].value
    back.click()
    assert slider.value == 0
    for _ in range(lab.rounds + 2):
        onward.click()
    assert slider.value == lab.rounds


def test_stills_stand_in_for_the_widget(lab, capsys):
    panel = widgets.play(lab)
    assert panel.show(False) is None and not panel.inputs
    assert capsys.readouterr().out.count("Image object") == len(panel.stills) == len(spread(lab.rounds))


@pytest.mark.parametrize(
    ("live", "environment", "expected"),
    [
        ("yes", {}, True),
        ("no", {"JPY_SESSION_NAME": "a"}, False),
        ("auto", {}, False),
        ("auto", {"JPY_SESSION_NAME": "lab.ipynb"}, True),
        ("auto", {"SERVER_SOFTWARE": "voila/0.5"}, True),
        ("auto", {"SERVER_SOFTWARE": "other"}, False),
    ],
)
def test_who_can_click(live, environment, expected, monkeypatch):
    for name in (*FRONT_ENDS, "SERVER_SOFTWARE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert widgets.is_live(live) is expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widgets.is_live("yess"), "live='yess' is not one of auto, yes, no (did you mean 'yes'?)"),
        (lambda: widgets.Lab.open("laptopp"), "profile='laptopp' is not one of .*(did you mean 'laptop'?)"),
        (lambda: widgets.Lab.open(seed=9, results="results/reference"), "no finished run 'dense seed 9' of .*"),
        (lambda: widgets.Lab.open(seed=1, results="results/reference"), "seed=1: .* keeps no trained weights.*"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(SettingsError) as error:
        call()
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), str(error.value))


def test_a_pruned_network_is_whole_again(lab):
    network, mask = lab.network(), lab.pruned(0.5, "global")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with kept_only(network, mask) as cut:
        assert all(not cut.get_parameter(name)[~keep].any() for name, keep in mask.items())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_is_restored_is_what_the_network_restores(lab):
    task = next(iter(lab.samples))
    sample, made = lab.samples[task], lab.restored(task, "dense")
    image = evaluation.restore(lab.network(), sample.degraded)
    assert torch.equal(made.image, image[0])
    assert made.psnr == pytest.approx(evaluation.psnr(image, sample.target).item())
    whole = lab.restored_pruned(task, 1.0, "layerwise")
    assert torch.equal(whole.image, made.image)
    assert lab.restored_pruned(task, 0.1, "global").psnr != made.psnr


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_pruned_at_once_keeps_the_same_count_in_both(scope, lab):
    mask = lab.pruned(0.4, scope)
    assert abs(mask.kept - 0.4 * mask.size) <= len(mask)
    assert mask == criteria.prune(lab.mask("MIR-L-G", 0), lab.magnitudes, 0.6, scope)


def test_the_words_hold_the_recorded_scores(lab, panels):
    for index in (0, lab.rounds):
        words = panels["play"].at(index=f"round {index}")[1]
        for method in ("MIR-L-G", "MIR-L-LW"):
            assert f"{lab.curve(method, lab.panels[0])[index]:.2f} dB" in words


def test_the_curve_starts_at_the_dense_network(lab):
    for method in ("MIR-L-G", "MIR-L-LW"):
        assert lab.curve(method, lab.panels[0])[0] == lab.levels.psnr[lab.panels[0]]


def test_scopes_are_told_by_the_scores(lab):
    chains = pd.DataFrame(
        [
            (chain, seed, index, "mean", 20.0 + plus * index + seed / 10)
            for chain, plus in (("global", 0.0), ("layer-wise", -1.0), ("layer-wise, gains prunable", -3.0))
            for seed in (0, 1, 2)
            for index in range(lab.ticket + 1)
        ],
        columns=["chain", "seed", "round", "task", "psnr"],
    )
    last = lab.ticket
    ahead, gap, norms, *_ = widgets.told_scopes(lab, "mean", chains)
    assert ahead.startswith(f"Global is ahead of layer-wise in rounds {', '.join(map(str, range(1, last + 1)))} of")
    assert f"{last:+.2f} dB" in gap and "0 lies outside" in gap
    assert f"{-2 * last:+.2f} dB" in norms
    assert "has not been played" in widgets.told_scopes(lab, "mean", chains[~chains.chain.str.contains("gains")])[-1]


def test_families_are_told_by_the_last_round(lab):
    _, *families, gaps = widgets.told_families(lab)
    last = lab.scores[lab.scores["round"] == lab.rounds]
    means = (last.psnr - last.input_psnr).groupby([last.method, last.task]).mean()
    for task, line in zip(lab.panels, families, strict=True):
        assert f"global {means['MIR-L-G', task]:+.2f} dB, layer-wise {means['MIR-L-LW', task]:+.2f} dB" in line
    assert f"{means['MIR-L-G', 'mean'] - means['MIR-L-LW', 'mean']:+.2f} dB" in gaps


def test_controls_are_told_family_by_family():
    plus = {"ticket": (0, 0, 0), "dense": (1, 1, 1), "reinit": (2, -2, 0), "shuffled": (-1, -1, -1)}
    frame = pd.DataFrame(
        [
            (name, seed, task, 20 + value + 0.01 * seed * (name == "reinit"))
            for name, values in plus.items()
            for seed in (0, 1, 2)
            for task, value in zip(("derain", "dehaze", "denoise", "mean"), (*values, sum(values) / 3), strict=True)
        ],
        columns=["control", "seed", "task", "psnr"],
    )
    frame.loc[(frame.control == "reinit") & (frame.task == "mean"), "psnr"] += [-1, 0, 1]
    first, second, hidden, better = widgets.told_controls(frame)
    assert "reinit to the ticket" in first and "derain +2.01 dB (better)" in first and "-1.99 dB (worse)" in first
    assert second.count("(worse)") == 4
    assert hidden.startswith("On the mean, reinit cannot") and "shuffled" not in hidden
    assert "better than the ticket on derain" in better and "ticket -1.00 dB, reinit +1.01 dB" in better
    assert "No control" in widgets.told_controls(frame[frame.control.isin(["ticket", "dense"])])[0]


def test_the_question_is_answered_from_all_rounds(lab, small):
    *counts, found, margin = widgets.told_answer(lab)
    own = lab.scores[(lab.scores.method == "MIR-L-G") & (lab.scores.task == "mean") & (lab.scores["round"] > 0)]
    judged = [verdicts.verdict(values, 0.1).word for _, values in own.groupby("round").delta]
    assert f"{judged.count('not matching')} not matching, {judged.count('undecided')} undecided" in counts[0]
    assert len(counts) == 2 * len(lab.panels) and f"In all {len(counts) * lab.rounds} " in found
    matching = sum(int(re.search(r"(\d+) matching", line)[1]) for line in counts)
    assert "winning: none" in found and found.count(", round ") == matching
    dense = lab.scores[(lab.scores.method == "dense") & (lab.scores.task == "mean")].psnr
    assert f"{dense.max() - dense.min():.2f} dB apart" in margin
    assert f"{small.rounds} undecided" in widgets.told_answer(small)[0]  # one seed decides nothing


def test_what_seeds_share_is_told_beside_chance(lab, small):
    told = widgets.told_shared(lab)
    assert [line.split(":")[0] for line in told] == [
        "global and layer-wise of one seed",
        "two seeds, both global",
        "two seeds, both layer-wise",
    ]
    first = [lab.mask("MIR-L-G", lab.ticket, f) for f in lab.found[lab.found.method == "MIR-L-G"].folder[:2]]
    assert 0 < predictions.chance(*first) < 1 and "pairs: 3" in told[1]
    assert len(widgets.told_shared(small)) == 1


def test_what_opens_does_not_answer_the_question_before_it(lab, panels):
    start = {name: {key: one.start for key, one in panel.choices.items()} for name, panel in panels.items()}
    assert start["scopes"]["task"] != lab.panels[0]
    assert start["luck"]["control"] not in ("reinit", "shuffled")
    assert start["explore"]["index"] != f"round {lab.ticket}"
    layer = panels["explore"].choices["layer"]
    assert exercises.check_empty(layer.options[layer.start], lab).startswith(layer.options[layer.start])


@pytest.mark.parametrize("density", [0.8**7, 0.8**15])
def test_the_threshold_is_of_the_whole_network(density, lab):
    """A layer without a weight has no say in it: its largest weight lies below."""
    mask, (flat, own) = lab.pruned(density, "global"), stations.thresholds(lab, density)
    kept = torch.cat([lab.magnitudes[name][keep] for name, keep in mask.items()])
    left = torch.cat([lab.magnitudes[name][~keep] for name, keep in mask.items()])
    assert 10**flat == pytest.approx(kept.min().item(), rel=1e-5) and left.max() <= kept.min()
    assert all(lab.magnitudes[name].max() < kept.min() for name in mask.emptied()) and mask.emptied()
    assert len(own) == len(mask)


def test_a_picture_of_the_prune_panel_has_the_threshold(lab, monkeypatch):
    panel, seen, real = widgets.prune(lab), [], Line2D.set_ydata
    monkeypatch.setattr(Line2D, "set_ydata", lambda line, values: seen.append(values) or real(line, values))
    panel.at(density=f"{0.8**15:.1%}")
    assert seen[0] == [stations.thresholds(lab, 0.8**15)[0]] * 2


def test_layers_that_prune_empties_are_named(panels):
    assert "global 5 (output, up2_1.body.0 and 3 more)" in panels["prune"].at(density=f"{0.8**10:.1%}")[1]


def test_the_viewer_tells_the_mean_over_all_images_beside_a_crop(lab, panels):
    words = panels["viewer"].at(picture="dehaze", left="dense", right="global ticket, round 5")[1]
    for method, index in (("dense", 0), ("MIR-L-G", 5)):
        assert f"{lab.curve(method, 'dehaze')[index]:.2f} dB over all test images" in words
    assert "over all test images" not in panels["viewer"].at(left="target", right="target")[1]


def test_a_chain_that_falls_out_and_comes_back_is_told_so(lab):
    delta = lab.curve("MIR-L-G", "derain") - lab.levels.psnr["derain"]
    again = [str(index) for index in range(1, lab.rounds + 1) if delta[index] >= -0.1]
    told = f"derain: already round 1 falls out of it, back within it or above in round {', '.join(again)};"
    assert delta[1] < -0.1 and told in predictions.holds(lab).told


def test_a_dense_run_says_nothing_of_pruning(panels):
    assert "prunable weights" not in panels["browse"].at(folder="all_in_one, dense, seed 0")[1]
    assert "prunable weights" in panels["browse"].at(folder="all_in_one, MIR-L-G, seed 0")[1]


def test_a_network_that_returns_its_input_is_called_so(lab, panels):
    assert "does nothing" not in panels["prune"].at()[1]
    assert "<b>global</b> scores what the input scores" in panels["prune"].at(density=f"{0.8**12:.1%}")[1]


@pytest.mark.parametrize("ask", ["gains", "at_once", "holds", "ahead", "control", "shared"])
def test_questions_are_answered_from_records(ask, lab, small):
    for which in (lab, small):
        question = getattr(predictions, ask)(which)
        if question.options:
            assert question.answer in question.options and len(set(question.options)) == len(question.options) > 1
            assert question.judge(question.answer).startswith("As you said")
    assert any(character.isdigit() for character in getattr(predictions, ask)(lab).told)


def test_the_answers_follow_the_files(lab):
    gain = (lab.levels.psnr - lab.levels.input_psnr)[list(lab.samples)]
    assert predictions.gains(lab).answer == max(lab.samples, key=lambda task: gain[task])
    frame = verdicts.gather("laptop", "all_in_one", "MIR-L-G", lab.ticket, "results/reference")
    pairs = verdicts.paired(frame, "ticket").set_index(["control", "task"])
    for control, task in (("reinit", "mean"), ("reinit", "dehaze"), ("shuffled", "denoise")):
        row, word = pairs.loc[(control, task)], predictions.control(lab, control, task).answer
        assert word.startswith("clearly worse" if row.high < 0 else "clearly better" if row.low > 0 else "these seeds")


def test_nothing_is_revealed_before_a_choice(lab):
    question = predictions.gains(lab)
    _, guess, reveal, said = question.show(True).children
    assert guess.value is None and reveal.disabled and said.value == ""
    guess.value = question.options[0]
    assert not reveal.disabled and said.value == ""
    reveal.click()
    assert question.answer in said.value


def photograph(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("size", "mode"), [((200, 120), "RGB"), ((56, 56), "L"), ((90, 300), "RGB")])
def test_a_picture_of_ones_own(size, mode, lab):
    viewer = widgets.Viewer(lab)
    for noise in (False, True):
        label = viewer.add("mine.png", photograph(size, mode=mode), noise)
        content, words = viewer.draw(label, ("input", 0), ("dense", 0), 0.3)
        assert pixels(content).shape[1] == viewer.panel.width
        assert ("no target" in words) is not noise


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "picture 'mine.png' cannot be read: .*"),
        (photograph((200, 120))[:300], "picture 'mine.png' cannot be read: .*"),
        (photograph((40, 200)), "picture 'mine.png' is 40x200 pixels, at least 56x56 is wanted"),
    ],
)
def test_what_is_no_picture(content, message, lab):
    with pytest.raises(SettingsError, match=message):
        widgets.Viewer(lab).add("mine.png", content)


def test_an_upload_is_offered_and_chosen(lab):
    viewer = widgets.Viewer(lab)
    _, line, said = viewer.widget().children
    upload = line.children[0]
    facts = {"type": "image/png", "size": 1, "last_modified": datetime.datetime.now()}
    upload.value = ({"name": "a.png", "content": memoryview(photograph((80, 80))), **facts},)
    assert viewer.panel.inputs["picture"].value == "a.png" and said.value == ""
    upload.value = ({"name": "b.png", "content": memoryview(b"none"), **facts},)
    assert "cannot be read" in said.value


def test_the_split_joins_left_and_right(lab):
    viewer = widgets.Viewer(lab)
    task = next(iter(lab.samples))
    at = {place: pixels(viewer.draw(task, ("input", 0), ("target", 0), place)[0]) for place in (0.0, 0.5, 1.0)}
    assert (at[0.5][:, :200] == at[1.0][:, :200]).all() and (at[0.5][:, -200:] == at[0.0][:, -200:]).all()


def test_checks_hint_and_do_not_tell(lab):
    first = next(k for k in range(lab.rounds + 1) if lab.mask("MIR-L-G", k).density() < 0.5)
    assert exercises.check_round(first, lab).startswith("right")
    assert exercises.check_round(first - 1, lab).startswith("not yet")
    assert "earlier" in exercises.check_round(first + 1, lab)
    empty = lab.mask("MIR-L-G", lab.rounds).emptied()[0].removesuffix(".weight")
    assert exercises.check_empty(empty, lab).startswith("right")
    assert exercises.check_empty(lab.layers.index(empty), lab) == exercises.check_empty(empty, lab)
    assert "still keeps" in exercises.check_empty(lab.layers[0], lab)
    assert exercises.check_control("reinit", lab).startswith("right")
    assert "another mask" in exercises.check_control("shuffled", lab)
    for wrong in (None, True, -1, 99, "3"):
        assert "hint" in exercises.check_round(wrong, lab)
    for check, wrong in ((exercises.check_empty, "outputt"), (exercises.check_control, "reinitt")):
        assert "did you mean" in check(wrong, lab) and "hint" in check(None, lab)


def change(evidence: criteria.Evidence) -> criteria.Scores:
    """How far each weight has come since the start, as the exercise suggests it."""
    return {name: (w.detach() - evidence.start[name]).abs() for name, w in evidence.weights().items()}


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (lambda evidence: criteria.magnitude(evidence), "it fits; it keeps the same weights as magnitude does"),
        (lambda evidence: {n: -w.detach().abs() for n, w in evidence.weights().items()}, "it fits and keeps other"),
        (lambda evidence: change(evidence), "it fits and keeps other"),
        (lambda evidence: evidence.weights(), "detach"),
        (lambda evidence: [1, 2], "a dictionary"),
        (lambda evidence: {}, "a dictionary"),
        (lambda evidence: {n: w.detach().sum() for n, w in evidence.weights().items()}, "one number a weight"),
        (lambda evidence: {n: w.detach() / 0 for n, w in evidence.weights().items()}, "not a finite number"),
        (lambda evidence: evidence.nothing, "raises AttributeError"),
    ],
)
def test_a_criterion_of_ones_own_is_checked(criterion, said):
    assert said in exercises.check_criterion(criterion)


@pytest.mark.slow
def test_a_criterion_of_ones_own_plays_the_real_loop():
    known = tuple(settings.CRITERIA)
    played = exercises.play(lambda evidence: {n: -w.detach().abs() for n, w in evidence.weights().items()})
    assert list(played["round"]) == [0, 1, 2] and played.density.is_monotonic_decreasing
    assert played.emptied.iloc[-1] > 0 and (played.sparsest <= played.density).all()
    assert (played.input_psnr == played.input_psnr[0]).all()
    assert known == settings.CRITERIA and "yours" not in criteria.CRITERIA
    with pytest.raises(SettingsError, match="did you mean"):
        load_settings("smoke", criterion="magnitud")
    with pytest.raises(SettingsError, match="taken"), criteria.trial("random", criteria.random):
        pass


def test_the_reference_holds_the_weights_that_belong_to_its_records(lab):
    for method, folder in lab.folders.items():
        for index in lab.kept(method):
            network = lab.network(method, index)
            if index:
                mask = Mask.load(folder / f"round{index:02d}" / "mask.npz")
                assert all(not network.get_parameter(name)[~keep].any() for name, keep in mask.items())
    assert lab.kept("dense") == [0] and lab.kept("MIR-L-G") == lab.kept("MIR-L-LW") != []
    assert analysis.kept_rounds(lab.folders["dense"]) == [0]
