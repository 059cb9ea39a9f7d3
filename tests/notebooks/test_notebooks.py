"""The notebooks: how they are written, that they run from any folder, and that mistakes stop them at once."""

import re
import shutil
from pathlib import Path

import nbconvert
import nbformat
import papermill
import pytest
from nbformat import NotebookNode

from mirl_study import SettingsError, controls, counts, load_settings
from mirl_study.settings import CONTROLS, ONE_SHOT
from mirl_study.store import project_root

NOTEBOOKS = {path.stem[:2]: path for path in sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))}
DEFAULTS = {
    "profile": '"laptop"',
    "setting": '"all_in_one"',
    "scope": '"global"',
    "seed": "0",
    "results": '""',
    "overrides": "{}",
}
SEVERAL = {"seeds": "[0]", "controls": "[]", "margin": "0.1", "confidence": "0.95"}  # instead of one seed
MODELS = {"models": "[]", "recipes": '["study"]', "densities": "[0.5, 0.2, 0.1, 0.05]"}  # instead of a scope
LOAD = "settings = load_settings(profile, setting=setting, scope=scope, seed={}, **overrides)"
MADE = {"02": ["dense"], "03": ["dense", *ONE_SHOT], "04": ["dense", "MIR-L-G"]}  # runs of the notebooks that train
EXERCISES = {  # answers to the exercises, right and wrong
    "00": """
assert lab.rounds == 2 and "hint" in widgets.exercises.check_round(None, lab)
assert "fits" in widgets.exercises.check_criterion(criterion)
assert "no control" in widgets.exercises.check_control("reinit", lab)
""",
    "01": """
wanted = inputs.loc["derain", "mean"]
assert check_sigma(255 / 10 ** (wanted / 20)).endswith("right")
assert "larger" in check_sigma(1) and "smaller" in check_sigma(200) and "hint" in check_sigma(None)
""",
    "02": """
gain = scores.psnr - scores.input_psnr
assert "right" in check_gain(gain.idxmax()) and "gain more" in check_gain(gain.idxmin())
assert "hint" in check_gain(None) and "hint" in check_gain("derian")
""",
    "03": """
assert check_removed(int(0.7 * dense.mask.size + 0.5)) == "right"
assert "off by 1:" in check_removed(int(0.7 * dense.mask.size + 0.5) + 1) and "hint" in check_removed(None)
""",
    "04": """
after_one = masks[0].kept - int(settings.rate * masks[0].kept + 0.5)
after_two = after_one - int(settings.rate * after_one + 0.5)
assert check_kept(after_two) == "right" and "off by 1:" in check_kept(after_two + 1) and "hint" in check_kept(None)
""",
    "08": """
largest = gap[gap.density == 0.1].set_index("model").difference.abs().sort_values()
assert check_largest(largest.index[-1]) == "right" and "further apart" in check_largest(largest.index[0])
assert check_largest(MODELS[largest.index[-1]].title) == "right" and "hint" in check_largest(None)
assert len(studies) == 5 and len(found) == 5 and set(scores.density) == {0.5, 0.1}
assert list(gap.model) == ["ffdnet", "ffdnet", "restormer", "restormer", "promptir", "promptir"]
""",
    "07": """
own = gaps["mean"].iloc[0]
nearest = max(0.0, -own)
assert check_margin(nearest) == "right" and "too large" in check_margin(nearest + 0.02)
assert own >= 0 or "too small" in check_margin(nearest - 1e-6)
assert "hint" in check_margin(None) and "hint" in check_margin(-1)
assert set(frame.control) == {"ticket", "dense", "shuffled", "random_layers"}
assert list(equal.index[equal["as many in each layer"]]) == ["ticket", "shuffled", "random_layers"]
assert list(equal.index[equal["the same weights"]]) == ["ticket"]
assert budget["steps in all"].to_dict() == dict.fromkeys(budget.index.drop("dense"), 18) | {"dense": 6}
assert len(gap) == 0 and set(name for name, _ in chains) == {"global", label(False)}
""",
}


@pytest.fixture(scope="module", params=NOTEBOOKS)
def number(request: pytest.FixtureRequest) -> str:
    return request.param


def read(number: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS[number], as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_there():
    assert set(NOTEBOOKS) >= {"01", "02", "03", "04"}


def test_nothing_but_source(number):
    notebook = read(number)
    assert [cell.id for cell in code(notebook) if cell.outputs or cell.execution_count is not None] == []
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_cells_are_small_and_named(number):
    notebook = read(number)
    assert [cell.id for cell in code(notebook) if len(cell.source.splitlines()) > 20] == []
    assert [cell.id for cell in notebook.cells if not re.fullmatch(r"[a-z][a-z0-9-]*", cell.id)] == []


def test_opens_with_a_question_and_leads_on(number):
    notebook = read(number)
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert re.match(r"# \d", first) and "?" in first and "CPU" in first
    following = [path.stem for path in NOTEBOOKS.values() if path.stem[:2] == f"{int(number) + 1:02}"]
    assert all(name in last for name in following)


LAB = {
    "profile": '"laptop"',
    "setting": '"all_in_one"',
    "seed": "0",
    "results": '"results/reference"',
    "live": '"auto"',
}


def wanted_parameters(number: str) -> dict[str, str]:
    if number == "00":
        return LAB
    if number == "08":
        return {name: value for name, value in DEFAULTS.items() if name != "scope"} | MODELS
    if number == "07":
        return {name: value for name, value in DEFAULTS.items() if name != "seed"} | SEVERAL
    return DEFAULTS | ({"source": '""'} if number == "01" else {})


def load(number: str) -> str:
    if number == "00":
        return "lab = widgets.Lab.open(profile, setting, seed, results)"
    text = LOAD.format("seeds[0]" if number == "07" else "seed")
    return text.replace(" scope=scope,", "") if number == "08" else text


def test_parameters(number):
    tagged = [cell for cell in code(read(number)) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code(read(number))[:1]
    lines = [re.fullmatch(r"(\w+): (\w+) = (.+?)  # \S.*", line) for line in tagged[0].source.splitlines()]
    assert {line[1]: line[3] for line in lines} == wanted_parameters(number)
    # papermill shows them in its help only if it can read each line
    shown = papermill.inspect_notebook(NOTEBOOKS[number])
    assert {name: entry["default"] for name, entry in shown.items()} == wanted_parameters(number)
    assert all(entry["help"] and entry["inferred_type_name"] for entry in shown.values())


def test_validation_follows(number):
    assert load(number) in code(read(number))[1].source.splitlines()


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment, not one of the user's
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def results(smoke_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with finished runs of seed 0; of its own, for the notebooks add to it."""
    return shutil.copytree(smoke_results, tmp_path_factory.mktemp("notebooks") / "results")


def execute(notebook: NotebookNode, folder: Path, **parameters) -> None:
    """Runs a notebook with papermill in an empty folder, which must stay empty; writes executed.ipynb beside that."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    given = {"profile": "smoke", **parameters}
    options = {"kernel_name": "python3", "progress_bar": False, "cwd": elsewhere}
    try:
        papermill.execute_notebook(notebook, folder / "executed.ipynb", given, **options)
    finally:
        assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "number", [number if number == "04" else pytest.param(number, marks=pytest.mark.slow) for number in NOTEBOOKS]
)
def test_runs(number, results, environment, tmp_path):
    notebook = read(number)
    if number in EXERCISES:
        notebook.cells.append(nbformat.v4.new_code_cell(EXERCISES[number].strip()))
    given = {"seed": 1 if number in MADE else 0}
    if number == "07":
        given = {"seeds": [0], "controls": ["shuffled", "random_layers"]}
    if number == "08":
        given = {
            "models": ["ffdnet", "restormer", "promptir"],
            "densities": [0.5, 0.1],
            "recipes": ["study", "original"],
        }
    execute(notebook, tmp_path, results=str(results), **given)
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    outputs = [output for cell in code(executed) for output in cell.outputs]
    assert [cell.id for cell in code(executed) if cell.metadata.papermill.exception is not False] == []
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert any({"image/png", "image/svg+xml"} & output.get("data", {}).keys() for output in outputs)
    for method in MADE.get(number, []):
        assert (results / "smoke" / "all_in_one" / method / "seed1" / "summary.csv").is_file()


@pytest.mark.slow
def test_the_lab_from_the_reference_shows_a_still_for_every_widget(environment, tmp_path):
    """As it is exported: nothing is trained, no widget is left, and all of it stays within the file."""
    execute(read("00"), tmp_path, profile="laptop", results="results/reference")
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    kinds = {cell.id: [set(output.get("data", {})) for output in cell.outputs] for cell in code(executed)}
    assert not any("application/vnd.jupyter.widget-view+json" in kind for own in kinds.values() for kind in own)
    for name in ("degrade", "prune", "play", "scopes", "luck", "explore", "viewer"):
        assert any("image/png" in kind for kind in kinds[name]), name
    page, _ = nbconvert.HTMLExporter().from_notebook_node(executed)
    assert page.count("data:image/png;base64") >= sum("image/png" in kind for own in kinds.values() for kind in own)


@pytest.mark.slow
def test_the_solutions_are_right(environment, tmp_path):
    solutions = nbformat.read(project_root() / "notebooks" / "solutions" / "00_lottery_lab.ipynb", as_version=4)
    execute(solutions, tmp_path, profile="laptop", results="results/reference")
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    said = {cell.id: "".join(output.get("text", "") for output in cell.outputs) for cell in code(executed)}
    assert all("right" in said[name] for name in ("round", "empty", "control")) and "it fits" in said["criterion"]


@pytest.mark.slow
def test_the_explorers_run_in_batch(results, environment, tmp_path):
    explorers = nbformat.read(project_root() / "notebooks" / "app.ipynb", as_version=4)
    execute(explorers, tmp_path, results=str(results))


def test_controls_that_are_asked_for():
    everything = [name for group in CONTROLS.values() for name in group]
    assert controls.chosen([], [0]) == everything
    assert controls.chosen(["norms", "reinit", "norms"], [3, 0]) == ["reinit", "norms"]


@pytest.mark.parametrize(
    ("names", "seeds", "message"),
    [
        (["reinitt"], [0], "controls='reinitt' is not one of .* (did you mean 'reinit'?)"),
        ([3], [0], "controls=3 is not one of .*"),
        ("reinit", [0], "controls='reinit' is not allowed: a list of names, .*"),
        ([], [], "seeds=[] is not allowed: a list of different whole numbers, at least one"),
        ([], [0, 1, 0], "seeds=[0, 1, 0] is not allowed: .*"),
        ([], ["0"], "seeds=['0'] is not allowed: .*"),
        ([], [True], "seeds=[True] is not allowed: .*"),
        ([], 0, "seeds=0 is not allowed: .*"),
    ],
)
def test_controls_that_cannot_be(names, seeds, message):
    with pytest.raises(SettingsError) as error:
        controls.chosen(names, seeds)
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), str(error.value))


@pytest.mark.slow
def test_a_probe_alone_plays_that_and_copes_with_the_rest(smoke_results, environment, tmp_path):
    """As the study's jobs run it: one control, and nothing else is there yet."""
    notebook, results = read("07"), shutil.copytree(smoke_results, tmp_path / "results")
    notebook.cells.append(
        nbformat.v4.new_code_cell("assert len(gap) == 2 and set(frame.control) == {'ticket', 'dense'}")
    )
    execute(notebook, tmp_path, results=str(results), seeds=[0], controls=["norms"])
    made = [path.name for path in (results / "smoke" / "all_in_one" / "controls").iterdir()]
    assert made == ["MIR-L-LW-norms"]
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    text = "".join(output.get("text", "") for cell in code(executed) for output in cell.outputs)
    assert "no line to show" in text and "the measure of chance is not there" in text
    gains = counts.norm_gains(load_settings("smoke", prune_norms=True, scope="layerwise"))
    left = gains[gains["round"] == gains["round"].max()]
    assert f"{left.kept.sum()} of {left.width.sum()} gains left" in text  # as the rule has it, without a training


MISTAKES = [
    ("00", {"profile": "smokey"}, "profile='smokey' is not one of .* \\(did you mean 'smoke'\\?\\)"),
    ("00", {"seed": 7}, "profile='smoke' has no finished run in .*"),
    ("01", {"profile": "smokey"}, "profile='smokey' is not one of .* \\(did you mean 'smoke'\\?\\)"),
    ("01", {"source": "no/such/folder"}, "source folder no/such/folder: does not exist"),
    ("02", {"setting": "deran"}, "setting='deran' is not one of .* \\(did you mean 'derain'\\?\\)"),
    ("03", {"overrides": {"stepz": 3}}, "unknown setting 'stepz' \\(did you mean 'steps'\\?\\)"),
    ("04", {"overrides": {"rate": 1.5}}, "rate=1.5 is not allowed: more than 0 and less than 1"),
    ("07", {"controls": ["shufled"]}, "controls='shufled' is not one of .* \\(did you mean 'shuffled'\\?\\)"),
    ("08", {"models": ["restormr"]}, "models='restormr' is not one of .* \\(did you mean 'restormer'\\?\\)"),
    ("08", {"densities": [0.5, 1.5]}, "density=1.5 is not allowed: more than 0 and less than 1"),
    ("08", {"recipes": ["orignal"]}, "recipe='orignal' is not one of .* \\(did you mean 'original'\\?\\)"),
    ("07", {"margin": -0.1}, "margin=-0.1 is not allowed: 0 or more, in dB"),
]


@pytest.mark.parametrize(
    ("number", "given", "message"),
    [case if "01" <= case[0] <= "04" else pytest.param(*case, marks=pytest.mark.slow) for case in MISTAKES],
)
def test_a_mistake_stops_before_any_work(number, given, message, environment, tmp_path):
    results = tmp_path / "results"
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        execute(read(number), tmp_path, results=str(results), **given)
    assert stopped.value.ename == "SettingsError"
    assert re.match(message, stopped.value.evalue) and "\n" not in stopped.value.evalue
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    failed = [cell.source for cell in code(executed) if any(o.output_type == "error" for o in cell.outputs)]
    assert [load(number) in source for source in failed] == [True]
    assert not results.exists()
