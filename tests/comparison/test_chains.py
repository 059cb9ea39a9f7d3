import html
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from mirl_study import SettingsError, build_network, load_settings, lottery, report, store
from mirl_study import tables as study_tables
from mirl_study.checkpoint import Checkpoints
from mirl_study.comparison import MODELS, chains, figures, tables
from mirl_study.data import load_bank
from mirl_study.masks import Mask, dense_mask
from mirl_study.network import fingerprint, tensors
from mirl_study.settings import COMPARED, SCOPES
from mirl_study.training import train, validation_loss

SMOKE = load_settings("smoke")
DENSITIES = (0.5, 0.1)
LEARNS = load_settings("smoke", steps=40, warmup_steps=4, lr=4e-3, validate_every=10, batch_size=4)


@pytest.fixture(scope="module")
def bank():
    return load_bank(LEARNS, "train", store.project_root())


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Path:
    """A root with every model trained, one by its original's recipe, and two of them cut, PromptIR among them."""
    root = tmp_path_factory.mktemp("results")
    for name in MODELS:
        chains.play(name, SMOKE, root, "cpu", show=False)
    chains.play("airnet", SMOKE, root, "cpu", show=False, recipe="original")
    chains.cuts(["restormer", "promptir"], SMOKE, root, "cpu", show=False, densities=DENSITIES)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["study", "original"])
@pytest.mark.parametrize("name", COMPARED)
def test_training_lowers_the_loss_and_keeps_the_mask(name, recipe, bank):
    settings = chains.with_model(LEARNS, name, recipe).replace(lr=LEARNS.lr)
    network = build_network(settings.network, 0)
    whole = dense_mask(settings)
    mask = Mask({key: torch.rand(keep.shape, generator=torch.manual_seed(0)) < 0.7 for key, keep in whole.items()})
    mask.apply_(dict(network.named_parameters()))
    before = validation_loss(network, bank, settings)
    history = train(network, mask, bank, settings, validation=bank)
    assert history.loss.notna().all() and history.val_loss.iloc[-1] < before
    for key, keep in mask.items():
        weight = network.get_parameter(key)
        assert not weight[~keep].any() and weight[keep].any()


def test_a_model_without_a_loss_of_its_own_trains_by_l1_whatever_the_recipe(bank):
    """Only optimiser and schedule tell Restormer's recipe from the study's."""
    settings = chains.with_model(SMOKE, "restormer", "original")
    history = train(build_network(settings.network, 0), dense_mask(settings), bank, settings)
    study = train(build_network(settings.network, 0), dense_mask(settings), bank, SMOKE)
    assert history.loss.iloc[0] == pytest.approx(study.loss.iloc[0], rel=0.05)
    over = [(done - 92 / 300) / (1 - 92 / 300) for done in (2 / 6, 5 / 6)]  # looks come after steps 3 and 6
    assert list(history.lr) == pytest.approx(
        [1e-6 + (3e-4 - 1e-6) * (0.5 + 0.5 * math.cos(math.pi * share)) for share in over]
    )


def test_airnet_goes_on_from_a_checkpoint_to_the_same_bits(bank, tmp_path):
    """Its batch statistics, key encoder and queue are no parameters that are trained, and belong to it all the same."""
    settings = chains.with_model(SMOKE, "airnet", "original")
    whole, parts = (build_network(settings.network, 0) for _ in range(2))
    first = train(whole, dense_mask(settings), bank, settings)

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(parts, dense_mask(settings), bank, settings, on_step=stop, checkpoints=Checkpoints(path, "this", every=0))
    parts = build_network(settings.network, 0)
    again = train(parts, dense_mask(settings), bank, settings, checkpoints=Checkpoints(path, "this", every=0))
    pd.testing.assert_frame_equal(first, again)
    assert all(
        torch.equal(one, other) for one, other in zip(tensors(whole).values(), tensors(parts).values(), strict=True)
    )
    assert not torch.equal(whole.queue, build_network(settings.network, 0).queue)


@pytest.mark.slow  # every model is trained
def test_every_model_has_a_folder_of_its_own(played):
    root = played / "smoke" / "all_in_one"
    folders = {path.name for path in (root / "models").iterdir()}
    assert folders == {*COMPARED, "airnet-original"}
    assert (root / "dense" / "seed0" / "summary.csv").is_file(), "PromptIR is the study's own dense run"
    record = json.loads((root / "models" / "airnet-original" / "dense" / "seed0" / "run.json").read_text())
    assert record["settings"]["network"] == {"architecture": "airnet", "size": "pico", "recipe": "original"}


@pytest.mark.slow  # every model is trained
def test_what_is_finished_is_read(played, monkeypatch):
    monkeypatch.setattr(lottery, "train_and_score", None)
    again = chains.play("adair", SMOKE, played, "cpu", show=False)
    assert again.metrics.psnr.notna().all()
    stored = again.network()
    assert fingerprint(stored) != fingerprint(build_network(again.run.settings.network, 0))


@pytest.mark.slow  # every model is trained
def test_the_trained_weights_come_back_with_their_buffers(played):
    made = chains.play("airnet", SMOKE, played, "cpu", show=False)
    network = made.network()
    assert network.encoder.first.body[1].num_batches_tracked == SMOKE.steps
    ticket = made.ticket
    assert fingerprint(ticket.network()) == fingerprint(network) and ticket.origin == "initialisation"


@pytest.mark.slow  # every model is trained
def test_a_lottery_of_another_model(played):
    """The very loop of the study: nested masks, exact zeros, back to the initialisation."""
    settings = chains.with_model(SMOKE, "restormer")
    rounds = list(lottery.rounds(settings, played, "cpu", show=False))
    assert [round.index for round in rounds] == [0, 1, 2]
    assert rounds[2].mask <= rounds[1].mask and rounds[2].density == pytest.approx(0.64, abs=1e-3)
    trained = dict(rounds[2].network().named_parameters())
    assert not any(trained[name][~keep].any() for name, keep in rounds[2].mask.items())
    assert fingerprint(lottery.rewound(rounds[2].run, 2)) == fingerprint(build_network(settings.network, 0))
    assert rounds[2].run.folder == played / "smoke" / "all_in_one" / "models" / "restormer" / "MIR-L-G" / "seed0"


@pytest.mark.slow  # every model is trained
def test_cuts_have_the_density_asked_for(played):
    scores = tables.cut_scores("smoke", played)
    assert {tuple(row) for row in scores[["model", "scope", "density"]].values} == {
        (name, scope, density) for name in ("restormer", "promptir") for scope in SCOPES for density in DENSITIES
    }
    whole = scores[scores.scope == "global"]
    assert (whole.kept - whole.density).abs().max() < 1e-3
    layers = scores[scores.scope == "layerwise"]
    assert ((layers.kept >= layers.density - 1e-3) & (layers.kept < layers.density + 0.05)).all()
    gap = tables.gap(scores)
    assert list(gap.model) == ["restormer", "restormer", "promptir", "promptir"]
    assert list(gap.density) == [0.5, 0.1, 0.5, 0.1] and set(gap.seeds) == {1}
    row = gap.iloc[1]
    own = scores[(scores.model == "restormer") & (scores.density == 0.1) & (scores.task == "mean")].set_index("scope")
    assert row.difference == pytest.approx(own.psnr["global"] - own.psnr["layerwise"])


def cut_scores(gains: dict[str, tuple[float, float, float]], density: float = 0.5) -> pd.DataFrame:
    """Cut scores as they are gathered, on an input of 20 dB, from (dense, global, layer-wise) gains by model."""
    rows = [
        (name, 0, scope, density, density, "mean", 20 + cut, 20.0, 20 + dense, 0)
        for name, (dense, *cuts) in gains.items()
        for scope, cut in zip(SCOPES, cuts, strict=True)
    ]
    return pd.DataFrame(rows, columns=tables.CUTS)


def test_what_has_learnt_nothing_is_named_and_not_counted():
    made = {"restormer": (3, 1, 2), "mspfn": (-4, -1, -3), "promptir": (2, 1, 0.5), "airnet": (3, -1, -2)}
    scores = cut_scores(made)
    assert tables.learnt(scores).to_dict() == {"mspfn": -4, "airnet": 3, "restormer": 3, "promptir": 2}
    assert tables.in_words(scores) == [
        "1 of 4 dense networks are below their input on the mean of the families: what they lose or gain when cut "
        "says little, and they are not counted in what follows: MSPFN (−4.00 dB).",
        "Cut to 50%, the global cut is above the layer-wise one in 2 of 3: AirNet +1.00 dB, Restormer −1.00 dB, "
        "PromptIR +0.50 dB (one seed). Of AirNet neither is above the input by then, on the mean of the families.",
        "Beyond PromptIR, and among networks that restore something after the cut, global is above layer-wise in 0 of "
        "1 at 50%. One cut is no lottery: a hint, not a verdict.",
    ]
    grey = [axis.get_title() for axis in figures.beyond(scores).axes if axis.get_facecolor()[0] < 1]
    assert grey == ["MSPFN"]


def test_models_below_their_input_and_those_that_return_it_are_named():
    rows = [("mspfn", "study", -0.001), ("epdn", "study", -5.0), ("epdn", "original", -0.01), ("airnet", "study", 3.0)]
    table = pd.DataFrame(rows, columns=["model", "recipe", "gain"])
    table = table.assign(method=[MODELS[name].title for name in table.model])
    assert tables.of_gains(table) == [
        "Below their input: EPDN −5.00 dB, EPDN (recipe “original”) −0.01 dB.",
        "Return their input: MSPFN.",
    ]
    assert tables.of_gains(table[3:]) == []


def test_models_are_compared_by_the_seeds_that_all_have():
    rows = [("all_in_one", "promptir", "study", "dim 8", seed, Path()) for seed in (0, 1, 2)]
    rows += [("all_in_one", "airnet", "study", "laptop", seed, Path()) for seed in (1, 2)]
    rows += [("all_in_one", "airnet", "original", "laptop", seed, Path()) for seed in (2, 3)]
    rows += [("derain", "promptir", "study", "dim 8", 0, Path()), ("derain", "airnet", "study", "laptop", 1, Path())]
    found = pd.DataFrame(rows, columns=tables.FOUND)
    kept = tables.alike(found)
    assert [*kept[kept.setting == "all_in_one"].seed] == [1, 2, 1, 2, 2] and len(kept[kept.setting == "derain"]) == 2
    assert tables.alike(found.iloc[:0]).empty


@pytest.mark.parametrize(
    ("density", "tuning"), [(0, 0.2), (1, 0.2), (-0.5, 0.2), (0.5, 0), (0.5, 1.5), (math.nan, 0.2)]
)
def test_cuts_that_cannot_be(density, tuning, tmp_path):
    with pytest.raises(SettingsError, match="is not allowed: more than 0 and less than 1"):
        chains.cut(SMOKE, density, tmp_path, "cpu", show=False, tuning=tuning)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # every model is trained
def test_a_cut_with_other_steps_is_refused(played):
    settings = chains.with_model(SMOKE, "restormer")
    with pytest.raises(SettingsError, match="tuning: 0.2 there, 0.5 asked"):
        chains.cut(settings, 0.5, played, "cpu", show=False, tuning=0.5)


@pytest.mark.parametrize(
    ("check", "given", "message"),
    [
        (chains.check_cuts, 0.5, r"densities=0.5 is not allowed: a list"),
        (chains.check_cuts, [0.5, 0.5], r"densities=\[0.5, 0.5\] is not allowed: a list of different numbers"),
        (chains.check_cuts, [0.5, 1.5], r"density=1.5 is not allowed: more than 0 and less than 1"),
        (chains.chosen, "airnet", r"models='airnet' is not allowed: a list of names"),
        (chains.chosen, ["airnett"], r"models='airnett' is not one of .* \(did you mean 'airnet'"),
    ],
)
def test_what_cannot_be_asked_for(check, given, message):
    with pytest.raises(SettingsError, match=message):
        check(given)


def test_patches_that_a_model_cannot_take(monkeypatch):
    monkeypatch.setattr(chains, "multiple", lambda network: 32)
    with pytest.raises(SettingsError, match="patch_size=16 is not allowed: restormer takes multiples of 32"):
        chains.with_model(SMOKE, "restormer")


@pytest.mark.slow  # every model is trained
def test_table_with_every_model(played):
    found = tables.runs("smoke", played)
    assert list(found.model) == [name for name in MODELS for _ in range(1 + (name == "airnet"))]
    table = tables.comparison_table(found)
    titles = [model.title for model in MODELS.values()]
    titles.insert(4, "AirNet")
    assert list(table.method) == ["input", *titles]
    assert list(table.recipe[4:6]) == ["study", "original"]
    rows = table[table.recipe != "original"].set_index("method")
    assert rows.parameters["AirNet"] == sum(
        p.numel()
        for p in build_network(load_settings("smoke", network="airnet").network).parameters()
        if p.requires_grad
    )
    dense = lottery.dense_round(SMOKE, played, "cpu", show=False).scores
    for task in dense.index:
        assert rows.loc["PromptIR", f"{task}_psnr"] == pytest.approx(dense.psnr[task])
        assert rows.loc["input", f"{task}_psnr"] == pytest.approx(dense.input_psnr[task])
    assert rows.gain["PromptIR"] == pytest.approx(rows.mean_psnr["PromptIR"] - rows.mean_psnr["input"])
    assert rows.paper_derain_Rain100L_psnr.dropna().to_dict() == {
        "MPRNet": 27.64, "AirNet": 27.83, "PromptIR": 32.17, "AdaIR": 25.9
    }  # fmt: skip
    assert tables.missing(found) == [] and tables.missing(found, "derain") == list(MODELS)


@pytest.mark.slow  # every model is trained
def test_published_rows_are_there_without_a_run(played):
    found = tables.runs("smoke", played)
    rows = {
        "derain": {"MSPFN", "AirNet", "Restormer", "PromptIR"},
        "dehaze": {"EPDN", "AirNet", "Restormer", "PromptIR"},
    }
    rows["denoise"] = {"FFDNet", "AirNet", "Restormer", "PromptIR"}
    for setting, names in rows.items():
        assert set(tables.comparison_table(found, setting).method) == names
    assert tables.comparison_table(found, "jpeg").empty
    assert list(tables.comparison_tables("smoke", played)) == ["all_in_one"]


@pytest.mark.slow  # every model is trained
def test_the_reports_own_functions_read_the_table(played, tmp_path):
    table = tables.comparison_table(tables.runs("smoke", played))
    text = study_tables.as_text(table)
    assert len(text) == len(table)
    ours = [name for group, name in text.columns if group in ("", study_tables.OURS)]
    assert ours[:2] == ["method", "recipe"] and ours[-2:] == ["above input / dB", "parameters"]
    paths = study_tables.write_table(table, tmp_path, "models")
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
    assert "25.90 / 0.8409" in paths[1].read_text() and "input (no restoration)" in paths[1].read_text()


@pytest.mark.slow  # every model is trained
def test_the_report_has_all_models(played):
    page = report.write(played, "smoke").read_text()
    section = page.split("The other models of Table I")[1]
    for name, model in MODELS.items():
        assert section.count(model.title) >= 2 and (name == "promptir" or f"{model.found:,}" in section)
    assert "Recipe “study”: L1 and Adam, learning rate 0.002" in section and "Recipe “original”: loss" in section
    for sentence in tables.in_words(tables.cut_scores("smoke", played)):
        assert sentence in html.unescape(section)
    made = played / "smoke" / "report"
    for file in ("models.csv", "all_in_one-models.csv", "all_in_one-beyond.csv"):
        assert (made / "tables" / file).is_file()
    assert (made / "figures" / "all_in_one-beyond.svg").is_file()


def test_counted():
    frame = tables.counted()
    assert list(frame.model) == [model.title for model in MODELS.values()] and frame.agrees.all()
    assert frame["authors' recipe"].str.len().min() > 10


@pytest.mark.slow  # every model is trained
def test_the_rest_of_the_study_does_not_see_the_models(played):
    from mirl_study import analysis

    found = analysis.runs("smoke", played)
    assert set(found.method) == {"dense"} and len(found) == 1


@pytest.mark.slow  # every model is trained
def test_figures(played, tmp_path):
    from mirl_study.figures import save

    found, scores = tables.runs("smoke", played), tables.cut_scores("smoke", played)
    drawn = figures.models(found)
    labels = [label.get_text().splitlines()[0] for label in drawn.axes[0].get_yticklabels()]
    rows = tables.comparison_table(found)[1:].itertuples()
    assert labels == [row.method + (", original" if row.recipe == "original" else "") for row in rows]
    grid = figures.beyond(scores)
    assert [axis.get_title() for axis in grid.axes[:2]] == ["Restormer", "PromptIR"]
    for name, figure in (("models", drawn), ("beyond", grid)):
        assert all(path.is_file() for path in save(figure, tmp_path, name))
    assert figures.beyond(scores.iloc[:0]).axes and figures.models(found.iloc[:0]).axes
