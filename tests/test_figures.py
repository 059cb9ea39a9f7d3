import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from mirl_study import Mask, SettingsError, analysis, counts, figures, load_settings, similarity, trained
from mirl_study.settings import LOTTERY, METHODS, TASKS


@pytest.fixture(scope="module")
def smoke_results(smoke_results, tmp_path_factory) -> Path:
    """A copy: a report keeps what trained weights tell beside the runs."""
    return shutil.copytree(smoke_results, tmp_path_factory.mktemp("copy") / "results")


@pytest.fixture(scope="module")
def study(smoke_results):
    found = analysis.runs("smoke", smoke_results)
    scores, densities = analysis.scores(found), analysis.densities(found)
    return scores, densities, analysis.collapse(scores, densities)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_every_method_has_marker_and_colour():
    assert set(figures.MARKS) == set(METHODS) - {"dense"}
    assert len({mark["marker"] for mark in figures.MARKS.values()}) == len(figures.MARKS)
    assert len({figures.MARKS[method]["linestyle"] for method in LOTTERY}) == 2


def test_figure1_draws_the_numbers(study):
    scores, _, ended = study
    figure = figures.figure1(scores, ended)
    assert [axis.get_title() for axis in figure.axes] == [
        "derain",
        "dehaze",
        "denoise (mean over σ)",
        "mean of the families",
    ]
    assert all(axis.xaxis_inverted() and axis.get_ylabel() == "PSNR / dB" for axis in figure.axes)
    wanted = scores[(scores.method == "MIR-L-G") & (scores.task == "derain")].sort_values("round")
    drawn = [tuple(line.get_ydata()) for line in figure.axes[0].lines]
    assert tuple(wanted.psnr) in drawn
    levels = {line.get_ydata()[0] for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1}
    assert any(level == pytest.approx(wanted.input_psnr.iloc[0]) for level in levels)
    assert "input (not restored)" in texts(figure) and "first empty layer" not in texts(figure)


def test_figure1_rings_the_round_that_emptied_a_layer(study):
    scores, _, ended = study
    ended = ended.assign(emptied_round=[pd.NA if method == "MIR-L-LW" else 2 for method in ended.method])
    figure = figures.figure1(scores, ended.astype({"emptied_round": "Int64"}))
    rings = [line for line in figure.axes[0].lines if line.get_markersize() == 13 and len(line.get_xdata())]
    wanted = scores[(scores.method == "MIR-L-G") & (scores["round"] == 2) & (scores.task == "derain")]
    assert [line.get_ydata().tolist() for line in rings] == [wanted.psnr.tolist()]
    assert "first empty layer" in texts(figure)


def test_figure1_of_one_task_has_one_panel(study):
    scores = study[0]
    one = scores[scores.task.isin(["derain", "mean"])].assign(setting="derain")
    assert [axis.get_title() for axis in figures.figure1(one, setting="derain").axes] == ["derain"]


def test_density_map_marks_empty_layers(study):
    densities = study[1]
    own = densities[densities.method == "MIR-L-G"].copy()
    crosses = [text.get_text() for axis in figures.density_map(own).axes for text in axis.texts]
    assert "×" not in crosses
    own.loc[(own.layer == "output") & (own["round"] == 2), ["kept", "density"]] = 0
    crosses = [text.get_text() for axis in figures.density_map(own).axes for text in axis.texts]
    assert crosses.count("×") == 1


def test_density_map_shows_every_layer(study):
    own = study[1].query("method == 'MIR-L-LW'")
    axes = figures.density_map(own).axes
    cells = sum(axis.images[0].get_array().size for axis in axes if axis.images)
    assert cells == len(own)  # one block a stage: nothing is pooled here


def test_curves_have_units_and_chance(study, smoke_results):
    found = analysis.runs("smoke", smoke_results)
    folders = {method: analysis.find(found, "all_in_one", method) for method in LOTTERY}
    masks = {method: analysis.load_masks(folder) for method, folder in folders.items()}
    kinds = analysis.kinds(analysis.open_run(folders["MIR-L-G"]).settings.network)
    figure = figures.survival_curves({name: analysis.survival(chain, kinds, [0]) for name, chain in masks.items()})
    assert "share of the weights of round 0" in figure.axes[0].get_ylabel()
    assert {"all prunable", "qkv", "output"} <= set(texts(figure))
    axis = figures.overlap_curves(similarity.over_rounds(*masks.values())).axes[0]
    assert [line.get_ydata()[0] for line in axis.lines] == [1, 1, 1]


def test_restoration_panels_carry_scores_and_errors():
    image = torch.full((3, 16, 24), 0.5)
    given = {"input": image + 0.1, "dense": image, "target": image}
    item = trained.Restoration("derain", "a", given, {"input": 20, "dense": 31.234}, {"input": 0.5, "dense": 0.875})
    axes = figures.restoration_panels([item], crop=12).axes
    assert [axis.get_title() for axis in axes[:3]] == [
        "input\n20.00 dB, 0.500",
        "dense\n31.23 dB, 0.875",
        "target\n(a)",
    ]
    assert np.allclose(axes[3].images[0].get_array(), np.full((12, 12), 0.1))
    assert not axes[4].images[0].get_array().any()
    assert not axes[5].get_visible()


def test_mosaic_tells_idle_from_effective_and_refuses_what_is_not_there():
    keep = torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    works = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    masks, live = {4: Mask({"a.weight": keep})}, {4: Mask({"a.weight": works})}
    figure = figures.mosaic(masks, "a", live=live)
    assert figure.axes[0].images[0].get_array().tolist() == [[1, 0.5, 0], [0, 1, 0]]
    assert figure.axes[0].get_title() == "round 4: 3 of 6 kept, 2 effective"
    assert figures.mosaic(masks, "a").axes[0].images[0].get_array().tolist() == keep.tolist()
    with pytest.raises(SettingsError, match="layer='b'"):
        figures.mosaic(masks, "b")
    with pytest.raises(SettingsError, match="rounds=5 is not there: one of 4"):
        figures.mosaic(masks, "a", [5])


def test_similarity_matrix_writes_iou_and_chance():
    rows = [("x", "y", 0.5, 0.25), ("y", "x", 0.5, 0.25), ("x", "x", 1.0, 0.3), ("y", "y", 1.0, 0.3)]
    axis = figures.similarity_matrix(pd.DataFrame(rows, columns=["a", "b", "iou", "chance"])).axes[0]
    assert [text.get_text() for text in axis.texts] == ["same", "0.500\n(0.250)", "0.500\n(0.250)", "same"]
    assert axis.images[0].get_array()[0, 1] == 0.25
    more = pd.DataFrame([(*row, 0.4) for row in rows], columns=["a", "b", "iou", "chance", "initial"])
    assert figures.similarity_matrix(more).axes[0].texts[1].get_text() == "0.500\n(0.250 | 0.400)"


def test_quality_is_drawn_against_every_cost(study, smoke_results):
    found = analysis.runs("smoke", smoke_results)
    costs = analysis.costs(found)
    axes = figures.quality_figure(study[0], costs).axes
    assert [axis.get_xlabel().split(" (")[0] for axis in axes] == [
        *(
            "parameters left",
            "size of the trained network / MB",
            "training until then / min",
            "restoring all test images / s",
        )
    ]
    row = costs[(costs.method == "MIR-L-LW") & (costs["round"] == 2)].iloc[0]
    places = [x for line in axes[2].lines for x in line.get_xdata()]
    assert any(x == pytest.approx(row.training / 60) for x in places)


@pytest.mark.slow
def test_levels_denominators_and_what_weights_tell_are_drawn(study, smoke_results):
    found = analysis.runs("smoke", smoke_results)
    trained.record_all(found)
    axes = figures.places_figure(analysis.by_place(study[1])).axes
    assert [axis.get_title() for axis in axes] == ["MIR-L-G", "MIR-L-LW"] and len(axes[0].lines) == 6
    network = analysis.open_run(found.folder.iloc[0]).settings.network
    counts = analysis.denominators(analysis.lives(found), analysis.parameters(network))
    axes = figures.denominators_figure(counts).axes
    effective = counts[counts.method == "MIR-L-G"].sort_values("round").of_effective
    assert any(line.get_ydata().tolist() == effective.tolist() for line in axes[0].lines)
    stayed, order = (trained.gather(found, name) for name in ("survivors", "ranking"))
    assert len(figures.survivors_figure(stayed).axes) == 4 and len(figures.ranking_figure(order).axes) == 2
    prompts = trained.gather(found, "prompt_weights").query("method == 'dense'")
    axis = figures.prompts_figure(prompts).axes[0]
    means = prompts[prompts.prompt == "prompt1"].groupby(["task", "component"]).weight.mean()
    assert axis.images[0].get_array()[0, 0] == pytest.approx(means["derain", 0])
    heads = trained.gather(found, "heads").query("method == 'dense'")
    assert axis.images[0].get_clim() == (0, 1)
    old = stayed[stayed.part == "all"]
    assert "kept, all kinds" in texts(figures.survivors_figure(old)), "a table of an earlier version"
    labels = [label.get_text() for label in figures.heads_figure(heads).axes[0].get_yticklabels()]
    assert labels == list(dict.fromkeys(heads.layer)) and "prompt3" in labels


def test_save_writes_both_and_the_same_again(tmp_path, study):
    figure = figures.figure1(study[0])
    svg, png = figures.save(figure, tmp_path, "a")
    again, _ = figures.save(figures.figure1(study[0]), tmp_path, "b")
    assert svg.read_bytes() == again.read_bytes()
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]


@pytest.mark.parametrize(
    ("value", "text"), [(35_592_263, "35.6 M"), (4_670_000, "4.67 M"), (5122, "5.12 k"), (87, "87")]
)
def test_count(value, text):
    assert figures.count(value) == text


def compared(**differences: list[float]) -> pd.DataFrame:
    """Scores as `verdicts.gather` has them: of every task, each control so far above dense with each seed."""
    parts = []
    for control, values in {"dense": [0.0] * 3, **differences}.items():
        for seed, value in enumerate(values):
            psnr = dict.fromkeys(TASKS["all_in_one"], 30 + seed + value)
            tasks = pd.DataFrame({"psnr": psnr, "input_psnr": dict.fromkeys(psnr, 29.5 + seed)})
            parts.append(analysis.with_families(tasks).reset_index().assign(control=control, seed=seed))
    return pd.concat(parts, ignore_index=True)


def drawn(axis, marker: str) -> list[tuple[float, float]]:
    """Places of the single points that have this marker."""
    lines = [line for line in axis.lines if line.get_marker() == marker and len(line.get_xdata(orig=False)) == 1]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def test_controls_are_in_groups_under_the_ticket():
    frame = compared(
        snip=[0.1] * 3, mine=[0] * 3, ticket=[0.2] * 3, shuffled=[0] * 3, reinit=[0] * 3, small_dense=[0] * 3
    )
    axes = figures.controls_figure(frame, title="a title").axes
    assert [axis.get_title() for axis in axes] == ["derain", "dehaze", "denoise (mean over σ)", "mean of the families"]
    assert {axis.get_xlabel() for axis in axes} == {"PSNR above dense / dB"}
    labels = sorted(zip(axes[0].get_yticks(), axes[0].get_yticklabels(), strict=True), key=lambda pair: pair[0])
    assert [place for place, _ in labels] == list(range(12)) and axes[0].yaxis_inverted()
    assert [(label.get_text(), label.get_fontweight()) for _, label in labels] == [
        ("ticket", "normal"),
        ("one thing changed", "bold"),
        ("reinit", "normal"),
        ("shuffled", "normal"),
        ("pruned at the start", "bold"),
        ("snip", "normal"),
        ("not pruned", "bold"),
        ("small_dense", "normal"),
        ("not restored", "bold"),
        ("input", "normal"),
        ("other", "bold"),
        ("mine", "normal"),
    ]


def test_controls_figure_draws_every_seed_the_mean_and_the_interval():
    axis = figures.controls_figure(compared(ticket=[0.1, 0.2, 0.3], reinit=[0, 0.05, 0.1]), margin=0.25).axes[0]
    for marker, values in (("o", (0.1, 0)), ("s", (0.2, 0.05)), ("^", (0.3, 0.1)), ("|", (0.2, 0.05))):
        assert drawn(axis, marker)[:2] == [(pytest.approx(x), y) for x, y in zip(values, (0, 2), strict=True)]
    bars = [line for line in axis.lines if line.get_linewidth() == 6]
    assert list(bars[0].get_xdata()) == pytest.approx([0.2 - 0.248414, 0.2 + 0.248414], abs=1e-6)
    band = axis.patches[0]
    assert (band.get_x(), band.get_width()) == (-0.25, 0.5)
    assert [place for _, place in drawn(axis, "o")] == [0, 2, 4]
    assert drawn(axis, "^")[-1] == (pytest.approx(-0.5), 4), "the input, seed by seed"


def test_controls_figure_says_what_the_marks_mean():
    frame = compared(ticket=[0.1, 0.2, 0.3], reinit=[0, 0.05])
    figure = figures.controls_figure(frame, margin=0.25, confidence=0.9)
    assert texts(figure)[:5] == ["seed 0", "seed 1", "seed 2", "mean of the seeds", "90 % interval (paired by seed)"]
    assert "within 0.25 dB of dense" in texts(figure)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "ticket" in names and "reinit (2 seeds)" in names
    alone = figures.controls_figure(frame[frame.seed == 0])
    assert not any("interval" in text for text in texts(alone))
    assert drawn(alone.axes[0], "o")[:2] == [(pytest.approx(0.1), 0), (pytest.approx(0), 2)]


def test_a_seed_that_is_far_out_is_an_arrow_with_its_value():
    frame = compared(ticket=[0.1, 0.2, 0.3], reinit=[0, -9.04, 0.1], sign=[0.2, 0.1, 7])
    axis = figures.controls_figure(frame).axes[0]
    low, high = axis.get_xlim()
    assert low > -2 and high < 2
    arrows = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert {"← −9.0": 2, "7.0 →": 3}.items() <= arrows.items()
    assert len(drawn(axis, "s")) == 3 and len(drawn(axis, "^")) == 3


def test_controls_figure_against_the_ticket():
    axis = figures.controls_figure(compared(ticket=[0.5, 0.2, 0.1]), "ticket").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dense", "input", "not pruned", "not restored"]
    assert axis.get_xlabel() == "PSNR above ticket / dB"
    assert drawn(axis, "o")[0] == (pytest.approx(-0.5), 1)
    with pytest.raises(SettingsError, match="against='tiket'"):
        figures.controls_figure(compared(ticket=[0.5, 0.2, 0.1]), "tiket")


def test_controls_figure_of_one_task_has_one_panel():
    frame = compared(ticket=[0.5, 0.2, 0.1]).query("task in ('derain', 'mean')")
    assert [axis.get_title() for axis in figures.controls_figure(frame).axes] == ["derain"]


def test_stopping_figure_marks_the_lowest():
    losses = {("ticket", 0): [3, 1, 2], ("dense", 0): [3, 2, 1.5], ("ticket", 4): [3, 2, 1]}
    parts = [
        pd.DataFrame({"control": control, "seed": seed, "step": [50, 100, 150], "val_loss": values})
        for (control, seed), values in losses.items()
    ]
    axes = figures.stopping_figure(pd.concat(parts)).axes
    assert [axis.get_title() for axis in axes] == [
        "seed 0\nlowest at step: dense 150, ticket 100",
        "seed 4\nlowest at step: ticket 150",
    ]
    rings = [line for line in axes[0].lines if line.get_markersize() == 13]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(150, 1.5), (100, 1)]
    assert axes[0].get_ylabel() == "validation loss (mean L1)" and axes[1].get_xlabel() == "step"


def test_barrier_figure_draws_a_line_a_seed_and_names_the_barrier():
    rows = [
        (control, seed, alpha, task, 30 - depth * alpha * (1 - alpha))
        for control, seed, depth in (("ticket", 0, 0), ("ticket", 1, 1), ("dense", 0, 8))
        for alpha in (0, 0.5, 1)
        for task in TASKS["all_in_one"]
    ]
    frame = pd.DataFrame(rows, columns=["control", "seed", "alpha", "task", "psnr"])
    figure = figures.barrier_figure(frame)
    assert [axis.get_title() for axis in figure.axes] == [
        f"{name}\nbarrier: dense 2.00 dB, ticket 0.12 dB (0.00 to 0.25)"
        for name in ("derain", "dehaze", "denoise (mean over σ)", "mean of the families")
    ]
    drawn = sorted(tuple(line.get_ydata()) for line in figure.axes[2].lines)
    assert drawn == [(30, 28, 30), (30, 29.75, 30), (30, 30, 30)]
    assert texts(figure) == ["dense, a line a seed", "ticket, a line a seed"]
    derain = figures.barrier_figure(frame[(frame.task == "derain") & (frame.control == "ticket")])
    assert [axis.get_title() for axis in derain.axes] == ["derain\nbarrier: ticket 0.12 dB (0.00 to 0.25)"]


def test_norm_collapse_names_what_is_left_of_each_width():
    frame = counts.norm_gains(load_settings("paper", network="nano", protocol="released", scope="layerwise"))
    axis = figures.norm_collapse(frame).axes[0]
    widths = sorted(set(frame.width))
    assert (axis.get_yscale(), axis.get_xlabel()) == ("log", "round") and "gains left" in axis.get_ylabel()
    for width, line in zip(widths, axis.lines, strict=True):
        own = frame[frame.width == width]
        assert line.get_ydata().tolist() == own.groupby("round").kept.first().tolist()
        norms, left = own.layer.nunique(), own.kept.iloc[-1]
        assert f"{left} of {width} ({norms} norm{'s' * (norms > 1)})" in [text.get_text() for text in axis.texts]
    styles = {(line.get_marker(), line.get_linestyle()) for line in axis.lines}
    assert len(styles) == len(widths) == len(axis.texts)
    heights = sorted(text.xy[1] for text in axis.texts)
    assert all(b / a > 1.1 for a, b in zip(heights, heights[1:], strict=False))  # labels do not touch


def test_norm_collapse_ends_a_line_where_nothing_is_left():
    rows = [(0, "a", 4, 4), (0, "b", 4, 4), (1, "a", 4, 1), (1, "b", 4, 2), (2, "a", 4, 0), (2, "b", 4, 0)]
    axis = figures.norm_collapse(pd.DataFrame(rows, columns=["round", "layer", "width", "kept"])).axes[0]
    assert axis.lines[0].get_ydata().tolist() == [4, 1.5]
    assert [text.get_text() for text in axis.texts] == ["0 of 4 (2 norms)"]
