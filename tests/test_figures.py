import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from mirl_study import analysis, figures
from mirl_study.settings import LOTTERY, METHODS


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
    axis = figures.overlap_curves(analysis.overlap(*masks.values())).axes[0]
    assert [line.get_ydata()[0] for line in axis.lines] == [1, 1]


def test_restoration_panels_carry_scores():
    image = torch.full((3, 16, 24), 0.5)
    item = analysis.Restoration(
        "derain", "a", {"input": image, "dense": image, "target": image}, {"input": 20, "dense": 31.234}
    )
    titles = [axis.get_title() for axis in figures.restoration_panels([item]).axes]
    assert titles == ["input\n20.00 dB", "dense\n31.23 dB", "target\n(a)"]


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
