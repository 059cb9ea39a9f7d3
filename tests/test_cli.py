"""The command line: mistakes are one line, before any work; notebooks run in this interpreter; studies go on."""

import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from mirl_study import cli, running, store, study
from mirl_study.settings import CONTROLS, METHODS, SettingsError, load_settings

PARAMETERS = """
profile: str = "laptop"  # named settings
setting: str = "all_in_one"
scope: str = "global"
seed: int = 0
results: str = ""
overrides: dict = {}
"""
LOAD = "settings = load_settings(profile, setting=setting, scope=scope, seed=seed, **overrides)"


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    first = nbformat.v4.new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def mirl(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "notebooks" / "04_lottery_rounds.ipynb", "print(seed)")


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


BAD_RUNS = {
    "unknown parameter": (("-p", "sede", "1"), ("'sede'", "did you mean 'seed'")),
    "unknown setting": (("-p", "stepz", "1"), ("'stepz'", "did you mean 'steps'")),
    "unknown setting in overrides": (("-p", "overrides", "{rat: 0.1}"), ("'rat'", "did you mean 'rate'")),
    "overrides that are no mapping": (("-p", "overrides", "3"), ("overrides=3",)),
    "overrides that are no YAML": (("-p", "overrides", "{"), ("overrides='{'",)),
    "seed that is a word": (("-p", "seed", "one"), ("seed='one'", "whole number")),
    "seed with a fraction": (("-p", "seed", "1.5"), ("seed='1.5'", "whole number")),
    "negative seed": (("-p", "seed", "-1"), ("seed=-1",)),
    "steps with a fraction": (("-p", "steps", "1.5"), ("steps='1.5'", "whole number")),
    "rate that is a word": (("-p", "rate", "high"), ("rate='high'", "a number")),
    "rate above 1": (("-p", "rate", "1.5"), ("rate=1.5", "less than 1")),
    "rate that is not a number": (("-p", "rate", "nan"), ("rate=nan",)),
    "truth that is neither": (("-p", "prune_norms", "maybe"), ("prune_norms='maybe'", "true or false")),
    "unknown profile": (("-p", "profile", "lapto"), ("profile='lapto'", "did you mean 'laptop'")),
    "unknown setting of tasks": (("-p", "setting", "deran"), ("setting='deran'", "did you mean 'derain'")),
    "unknown scope": (("-p", "scope", "globl"), ("scope='globl'", "did you mean 'global'")),
    "patch larger than an image": (("-p", "patch_size", "4000"), ("patch_size=4000", "larger than image", "at most")),
    "data that are not there": (("-p", "data", "nowhere"), ("data='nowhere'", "manifest.csv")),
    "unknown network": (("-p", "network", "nanno"), ("'nanno'", "did you mean 'nano'")),
    "unknown network field": (("-p", "network", "{dimm: 8}"), ("'dimm'", "did you mean 'dim'")),
    "output that is no notebook": (("--output", "out.html"), ("output='out.html'", ".ipynb")),
    "unknown option": (("--outptu", "x.ipynb"), ("'--outptu'", "did you mean '--output'")),
    "half a parameter": (("-p", "seed"), ("-p",)),
    "negative time": (("--cell-timeout", "-1"), ("--cell-timeout",)),
    "unknown kernel": (("--kernel", "pyton3"), ("kernel='pyton3'", "did you mean 'python3'")),
}


@pytest.mark.parametrize(("words", "expected"), BAD_RUNS.values(), ids=BAD_RUNS.keys())
def test_a_bad_run_is_one_line_and_leaves_nothing(words, expected, notebook, tmp_path, capsys):
    before = everything_below(tmp_path)
    code, out, err = mirl(capsys, "run", notebook, "-p", "results", tmp_path / "results", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in expected), err
    assert everything_below(tmp_path) == before


def test_an_unknown_notebook_names_the_nearest(notebook, capsys):
    code, _, err = mirl(capsys, "run", notebook.with_name("04_lotery_round.ipynb"))
    assert code == 2 and err.count("\n") == 1
    assert "04_lottery_rounds.ipynb" in err


def test_a_file_that_is_no_notebook_is_refused(tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    path.write_text("{")
    code, _, err = mirl(capsys, "run", path)
    assert code == 2 and err.count("\n") == 1 and "cannot be read" in err


@pytest.mark.parametrize("source", ["seed = int('3')", "seed: int", "seed ="])
def test_a_default_that_is_no_literal_is_refused(source, tmp_path, capsys):
    path = write_notebook(tmp_path / "odd.ipynb", parameters=source)
    code, _, err = mirl(capsys, "run", path)
    assert code == 2 and err.count("\n") == 1 and "parameters cell" in err


def test_the_notebook_itself_is_not_overwritten(notebook, capsys):
    before = notebook.read_bytes()
    code, _, err = mirl(capsys, "run", notebook, "--output", notebook)
    assert code == 2 and "the notebook itself" in err
    assert notebook.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--profile", "lapto"), "did you mean 'laptop'"),
        (("--setting", "haze"), "did you mean 'dehaze'"),
        (("--settings", "derain,haze"), "did you mean 'dehaze'"),
        (("--settings", "derain,"), "setting=''"),
        (("--settings", ""), "setting=''"),
        (("--settings", "derain;dehaze"), "setting='derain;dehaze'"),
        (("--settings", "al"), "did you mean 'all'"),
        (("--seeds", "0,one"), "seeds='0,one' is not allowed: whole numbers, as 0,1,2, are wanted"),
        (("--seeds", "0-2"), "seeds='0-2'"),
        (("--seeds", "0,,1"), "seeds='0,,1'"),
        (("-p", "results", "/tmp/x"), "give --results"),
        (("-p", "densities", "0.5,0.2"), "densities='0.5,0.2' is not allowed: a list, as [0, 1], is wanted"),
        (("-p", "rounds", "3", "-p", "rounds", "4"), "rounds is given twice: '3' and '4'"),
        (("-p", "rounds", "3", "-p", "ticket_round", "9"), "ticket_round=9 is not allowed: 1 to rounds (3)"),
        (("--seeds", "0,-1"), "seed=-1"),
        (("--seeds", ""), "seeds=''"),
        (("--cores", "0"), "--cores"),
        (("-p", "rate", "1.5"), "rate=1.5"),
        (("-p", "rat", "0.5"), "did you mean 'rate'"),
        (("-p", "scope", "global"), "a study runs both"),
        (("-p", "seed", "1"), "--seeds"),
        (("-p", "setting", "derain"), "--settings"),
        (("-p", "data", "nowhere"), "data='nowhere'"),
        (("--profil", "smoke"), "did you mean '--profile'"),
    ],
)
@pytest.mark.parametrize("command", ["study", "plan"])
def test_a_bad_study_is_one_line_and_leaves_nothing(command, words, expected, tmp_path, capsys):
    code, out, err = mirl(capsys, command, "--results", tmp_path / "results", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert everything_below(tmp_path) == []


def test_an_unknown_command_names_the_nearest(capsys):
    code, _, err = mirl(capsys, "stduy")
    assert code == 2 and err.count("\n") == 1 and "study" in err


def test_help_comes_without_arguments(capsys):
    code, out, _ = mirl(capsys)
    assert code == 0 and "study" in out and "doctor" in out


@pytest.mark.parametrize("text", ["3", "0,1", "{a: 1}", "reinit", "'[0]'", ""])
def test_a_list_must_be_a_list(text, tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", parameters="seeds: list = [0]")
    with pytest.raises(SettingsError, match="a list, as"):
        running.check_parameters(notebook, [("seeds", text)])
    assert running.check_parameters(notebook, [("seeds", "[1, 2]")]) == {"seeds": [1, 2]}


def register(folder: Path, name: str, argv: list[str], language: str = "python") -> None:
    spec = folder / "kernels" / name
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": language}))


def test_the_kernel_is_the_one_asked_for_or_this_python_unless_another_can_use_the_gpu(tmp_path, monkeypatch):
    register(tmp_path, "torch-CUDA", ["/bin/false"])
    register(tmp_path, "julia-gpu", ["/bin/false"], "julia")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setattr(running, "_gpu_unused", lambda: False)
    assert running.find_kernel() == "" and running.find_kernel("torch-cuda") == "torch-cuda"
    with pytest.raises(SettingsError, match="kernel='julia-gpu' is not one of"):
        running.find_kernel("julia-gpu")
    monkeypatch.setattr(running, "_gpu_unused", lambda: True)
    assert running.find_kernel() == "torch-cuda"


def test_a_registered_kernel_runs_and_is_named_in_the_log_and_in_the_way_on(tmp_path, monkeypatch, capsys):
    argv = ["env", "MARK=yes", sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    register(tmp_path, "marked", argv)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    cells = ("import os; print('mark', os.environ['MARK'], os.environ['CUDA_VISIBLE_DEVICES'])", "1 / 0")
    notebook, output = write_notebook(tmp_path / "a.ipynb", *cells), tmp_path / "out.ipynb"
    code, _, err = mirl(capsys, "run", notebook, "--kernel", "marked", "--lease", "--output", output)
    log = output.with_suffix(".log").read_text()
    assert code == 1 and "mark yes 4" in log and "kernel: marked; CUDA_VISIBLE_DEVICES='4'" in log
    assert "--kernel marked --lease" in err.splitlines()[-1]


def test_parameters_get_the_type_of_their_defaults(notebook):
    given = [("seed", "3"), ("profile", "smoke"), ("rate", "3e-1"), ("prune_norms", "true"), ("keep_weights", "[0, 1]")]
    expected = {"rate": 0.3, "prune_norms": True, "keep_weights": [0, 1]}
    values = running.check_parameters(notebook, given)
    assert values == {"seed": 3, "profile": "smoke", "overrides": expected}
    assert type(values["seed"]) is int


def test_a_notebook_without_settings_takes_its_own_parameters_only(tmp_path):
    notebook = write_notebook(tmp_path / "plain.ipynb", parameters="width = 3\nname: str = 'x'")
    assert running.check_parameters(notebook, [("width", "4")]) == {"width": 4}
    with pytest.raises(SettingsError, match="takes width, name"):
        running.check_parameters(notebook, [("steps", "4")])


def test_a_run_executes_in_this_interpreter_even_if_another_kernel_has_the_same_name(tmp_path, monkeypatch, capsys):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "foreign", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    seen = "import json, sys; print(json.dumps([sys.executable, seed, overrides]))"
    notebook, output = write_notebook(tmp_path / "a.ipynb", seen), tmp_path / "deep" / "out.ipynb"
    code, out, err = mirl(capsys, "run", notebook, "-p", "seed", 7, "-p", "rounds", 3, "--output", output)
    assert (code, out.strip(), err) == (0, str(output), "")
    log = output.with_suffix(".log").read_text()
    assert json.dumps([sys.executable, 7, {"rounds": 3}]) in log and "finished" in log
    assert f"kernel: this Python, {sys.executable}; CUDA_VISIBLE_DEVICES" in log
    assert nbformat.read(output, as_version=4).metadata.papermill.exception is None
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.ipynb", "out.log"]


def test_a_failing_cell_is_named_with_its_error_its_log_and_the_way_on(tmp_path, capsys):
    cells = ("print('so far')", "raise RuntimeError('no\\nluck')", "print('never')")
    notebook = write_notebook(tmp_path / "bad.ipynb", *cells)
    output = tmp_path / "out.ipynb"
    code, _, err = mirl(capsys, "run", notebook, "-p", "seed", 1, "--output", output)
    lines = err.splitlines()
    assert code == 1
    # The fourth cell, as in the executed notebook: papermill adds one with the values.
    assert lines[0] == "error: cell [4] of bad.ipynb failed: RuntimeError: no luck"
    assert lines[1:3] == [f"  log: {output.with_suffix('.log')}", f"  executed: {output}"]
    assert lines[3].startswith("  go on with: mirl run ") and "-p seed 1" in lines[3]
    log = output.with_suffix(".log").read_text()
    assert "so far" in log and "RuntimeError" in log and "\x1b" not in log and "never" not in log
    assert nbformat.read(output, as_version=4).metadata.papermill.exception is True


@pytest.mark.parametrize(
    ("cell", "seconds", "expected"),
    [("import time; time.sleep(60)", 1, "longer than 1 s"), ("import os; os.kill(os.getpid(), 9)", 0, "kernel died")],
)
def test_a_cell_that_never_answers_is_named(cell, seconds, expected, tmp_path, capsys):
    notebook, output = write_notebook(tmp_path / "a.ipynb", cell, "print('never')"), tmp_path / "out.ipynb"
    code, _, err = mirl(capsys, "run", notebook, "--output", output, "--cell-timeout", seconds)
    assert code == 1
    assert err.startswith("error: cell [2] of a.ipynb failed") and expected in err.splitlines()[0]


def test_executed_notebooks_do_not_overwrite_each_other(notebook, tmp_path):
    given = [("scope", "layerwise"), ("network", "{dim: 8}"), ("results", str(tmp_path))]
    parameters = running.check_parameters(notebook, given)
    assert running.default_output(notebook, parameters) == (
        tmp_path / "laptop" / "notebooks" / "04_lottery_rounds-scope-layerwise-network-_dim_8_.ipynb"
    )


def test_doctor_finds_everything(capsys):
    code, out, _ = mirl(capsys, "doctor")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == {"OK"}
    assert all(name in out for name in ("python", "torch", "papermill", "device", "threads"))


def test_doctor_names_what_is_missing_and_what_is_too_old(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_dependencies", lambda: ["no-such-package>=1", "click>=999"])
    code, out, _ = mirl(capsys, "doctor")
    assert code == 1
    assert "FAIL no-such-package missing (wanted: >=1)" in out
    assert "FAIL click " in out and "(wanted: >=999)" in out


def test_the_plan_counts_the_steps_of_every_chain(tmp_path):
    settings = load_settings("smoke", steps=20, rounds=3, fine_tune=0.1)
    chains = study.plan([settings], [0, 4], tmp_path)
    assert [(chain.method, chain.seed) for chain in chains] == [(method, seed) for method in METHODS for seed in (0, 4)]
    assert {chain.method: chain.total for chain in chains} == {
        **dict.fromkeys(METHODS, 2),
        "dense": 20,
        "MIR-L-G": 60,
        "MIR-L-LW": 60,
    }
    assert chains[1].folder == tmp_path / "smoke" / "all_in_one" / "dense" / "seed4"


def test_a_grid_has_every_setting_once_and_all_are_the_papers_four():
    studies, seeds = study.grid("smoke", "derain,all,derain", "3,0,3", [("rate", "0.3")])
    assert [own.setting for own in studies] == ["derain", "all_in_one", "dehaze", "denoise"]
    assert seeds == [3, 0] and {own.rate for own in studies} == {0.3}
    chains = study.plan(studies, seeds)
    assert len({chain.folder for chain in chains}) == len(chains) == 4 * 2 * len(METHODS)


def test_data_in_the_project_are_recorded_by_their_place_in_it(tmp_path, monkeypatch):
    project, inside, outside = tmp_path / "project", tmp_path / "project" / "data" / "mine", tmp_path / "images"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
    monkeypatch.setattr("mirl_study.store.project_root", lambda: project)
    monkeypatch.chdir(project / "data")
    assert cli._placed("data", "mine") == "data/mine"
    assert cli._placed("data", str(outside)) == cli._placed("data", "../../images") == str(outside)
    assert cli._placed("data", "nowhere") == "nowhere" and cli._placed("rate", "0.5") == "0.5"


def test_a_dry_run_lists_the_chains_and_writes_nothing(tmp_path, capsys):
    code, out, _ = mirl(capsys, "study", "--profile", "smoke", "--results", tmp_path / "results", "--dry-run")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["all_in_one", method] for method in METHODS]
    assert everything_below(tmp_path) == []


def test_a_dry_run_with_controls_lists_them_too(tmp_path, capsys):
    code, out, _ = mirl(
        capsys, "study", "--profile", "smoke", "--results", tmp_path / "results", "--dry-run", "--controls"
    )
    names = [name for group in CONTROLS.values() for name in group]
    assert code == 0 and everything_below(tmp_path) == []
    labels = [load_settings("smoke").control(name) for name in names]
    assert [line.split()[1] for line in out.splitlines()] == [*METHODS, *labels]


def test_a_chain_reads_its_progress_and_survives_a_broken_one(tmp_path):
    chain = study.Chain("all_in_one", "dense", 0, tmp_path, total=10)
    chain.look()
    assert (chain.left, chain.touched) == (10, 0)
    (tmp_path / "progress.json").write_text("{")
    chain.look()
    assert chain.left == 10
    (tmp_path / "progress.json").write_text(json.dumps({"done": 4, "total": 12, "round": 0, "rounds": 1}))
    chain.look()
    assert (chain.left, chain.finished) == (8, False) and chain.touched > 0
    (tmp_path / "summary.csv").touch()
    chain.look()
    assert (chain.left, chain.done, chain.finished) == (0, 12, True)


def test_the_eta_follows_the_longest_way_and_the_cores():
    sizes = {"dense": 10, "A": 100, "B": 90}
    chains = [study.Chain("derain", method, 0, Path(method), total) for method, total in sizes.items()]
    pace = study.Pace(cores=2)
    pace.look(chains, now=0)
    assert pace.seconds_left(chains) is None
    chains[0].done = 2
    pace.look(chains, now=50)  # it had waited: this change only starts the clock
    assert pace.seconds_left(chains) is None
    chains[0].done = 6
    pace.look(chains, now=58)
    assert pace.seconds_left(chains) == pytest.approx((4 + 100) * 2)
    assert study.Pace(1, pace.seconds, pace.steps).seconds_left(chains) == pytest.approx((4 + 100 + 90) * 2)


def test_a_second_study_in_the_same_folder_is_refused(tmp_path, capsys):
    (tmp_path / "smoke").mkdir()
    with study._only_study(tmp_path / "smoke"):
        code, _, err = mirl(capsys, "study", "--profile", "smoke", "--results", tmp_path)
    assert code == 1 and "another study works in" in err


def test_the_reference_keeps_what_is_finished_without_logs(tmp_path, capsys):
    done, started = (tmp_path / "smoke" / "all_in_one" / method / "seed0" for method in ("dense", "MIR-L-G"))
    tables = [f"round00/{name}" for name in ("mask.npz", "history.csv", "metrics.csv", "round.json")]
    kept = ["run.json", "summary.csv", *tables]
    left = ["progress.json", "notebook.ipynb", "notebook.log"]
    where = "/home/somebody/images/fair"
    facts = json.dumps({"settings": {"data": where}})
    figure = tmp_path / "smoke/report/figures/a.svg"
    more, pictures = [f"../seed1/{name}" for name in kept], ["derain-input.png", "round00/derain-restored.png"]
    left += [f"../seed1/{name}" for name in pictures]
    for path in [*(done / name for name in kept + more + pictures + left), started / "run.json", figure]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(facts)
    figure.with_suffix(".png").write_text(2 * facts)  # the larger one of two files of a figure
    stale = tmp_path / "reference" / "smoke" / "stale.csv"
    stale.parent.mkdir(parents=True)
    stale.touch()
    code, out, _ = mirl(capsys, "reference", "--profile", "smoke", "--results", tmp_path)
    target = tmp_path / "reference" / "smoke"
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert code == 0 and out.strip() == f"{target}: 15 files"
    expected = {f"all_in_one/dense/{seed}/{name}" for seed in ("seed0", "seed1") for name in kept}
    pictured = {f"all_in_one/dense/seed0/{name}" for name in pictures}
    assert files == expected | pictured | {"report/figures/a.svg"}
    # a place on this machine is nobody's business, a name may be
    assert json.loads((target / "all_in_one/dense/seed0/run.json").read_text()) == {"settings": {"data": "fair"}}
    assert where not in (target / "report/figures/a.svg").read_text()
    named = tmp_path / "kept" / "smoke-fair"
    for _ in range(2):  # the second one replaces the first
        code, out, _ = mirl(capsys, "reference", "--profile", "smoke", "--results", tmp_path, "--to", named)
        assert code == 0 and out.strip() == f"{named}: 15 files"
    assert sorted(path.name for path in named.parent.iterdir()) == ["smoke-fair"]


def test_images_that_may_not_be_passed_on_stay_out_of_a_reference(tmp_path, capsys):
    run, figures = tmp_path / "smoke/all_in_one/dense/seed0", tmp_path / "smoke/report/figures"
    shown = figures / "all_in_one-restored-derain.svg"
    left = (run / "derain-input.png", run / "round00" / "weights.safetensors", shown)
    for path in (run / "run.json", run / "summary.csv", figures / "a.svg", *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"settings": {}}')
    words = ["reference", "--profile", "smoke", "--results", tmp_path, "--no-pictures"]
    code, _, err = mirl(capsys, *words)
    assert code == 2 and f"no-pictures: the report shows {shown.name}; mirl report" in err
    assert not (tmp_path / "reference").exists()
    shown.unlink()
    code, out, _ = mirl(capsys, *words)
    assert code == 0 and out.strip().endswith(": 3 files") and not list((tmp_path / "reference").rglob("*.png"))


def test_the_reference_keeps_the_weights_of_the_smallest_seed(tmp_path, monkeypatch, capsys):
    chains = [
        f"{setting}/{method}/seed{seed}"
        for setting in ("all_in_one", "derain")
        for method in ("dense", "MIR-L-G")
        for seed in (2, 10)
    ]
    chains += ["all_in_one/PIR-OSM-I/seed2", "all_in_one/controls/MIR-L-LW-norms/seed2"]
    models = ["all_in_one/models/airnet/dense/seed2", "all_in_one/models/airnet/controls/cut-global-0.1/seed2"]
    chains += models
    for chain in chains:
        folder = tmp_path / "smoke" / chain
        (folder / "round01").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"settings": {}}))
        (folder / "summary.csv").touch()
        (folder / "round01" / "weights.safetensors").write_bytes(bytes(100))

    def kept() -> list[str]:
        assert mirl(capsys, "reference", "--profile", "smoke", "--results", tmp_path)[0] == 0
        root = tmp_path / "reference" / "smoke"
        assert all((root / model / "run.json").is_file() for model in models)
        return sorted(str(path.parents[1].relative_to(root)) for path in root.rglob("*.safetensors"))

    first = ["all_in_one/MIR-L-G/seed2", "all_in_one/dense/seed2"]
    assert kept() == [*first, "derain/MIR-L-G/seed2", "derain/dense/seed2"]
    monkeypatch.setattr(study, "REFERENCE_WEIGHTS", 399)  # there is room for those of one setting
    assert kept() == first
    monkeypatch.setattr(study, "REFERENCE_WEIGHTS", 199)
    assert kept() == []


@pytest.mark.parametrize("into", ["smoke", "smoke/report", ".", "precious", "file"])
def test_a_reference_replaces_nothing_but_a_reference(into, smoke_results, tmp_path, capsys):
    results = tmp_path / "results"
    shutil.copytree(smoke_results, results)
    (results / "precious").mkdir()
    (results / "precious" / "thesis.tex").touch()
    (results / "file").touch()
    before = everything_below(results)
    code, out, err = mirl(capsys, "reference", "--profile", "smoke", "--results", results, "--to", results / into)
    assert (code, out) == (2, "") and err.startswith("error: to=") and err.count("\n") == 1
    assert everything_below(results) == before


def test_a_reference_is_not_replaced_by_less_or_by_another_profile(tmp_path, capsys):
    runs = [f"all_in_one/dense/seed{seed}" for seed in (0, 1)] + ["all_in_one/controls/MIR-L-LW-norms/seed0"]
    for run in runs:
        (tmp_path / "smoke" / run).mkdir(parents=True)
        (tmp_path / "smoke" / run / "run.json").write_text('{"profile": "smoke", "settings": {}}')
        (tmp_path / "smoke" / run / "summary.csv").touch()
    words, target = ["reference", "--results", tmp_path, "--to", tmp_path / "kept"], tmp_path / "kept"
    assert mirl(capsys, *words, "--profile", "smoke")[0] == 0
    (tmp_path / "smoke" / runs[-1] / "summary.csv").unlink()
    shutil.copytree(tmp_path / "smoke", tmp_path / "laptop")
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    for profile, expected in {"smoke": f"has {runs[-1]}, which", "laptop": "is of the profile 'smoke'"}.items():
        code, out, err = mirl(capsys, *words, "--profile", profile)
        assert (code, out) == (2, "") and err.startswith(f"error: to='{target}' {expected}") and err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    (tmp_path / "smoke" / runs[-1] / "summary.csv").touch()
    assert mirl(capsys, *words, "--profile", "smoke")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "laptop", "smoke"], "nothing is left over"


@pytest.mark.parametrize(
    "words",
    [
        ("study", "--profile", "smoke"),
        pytest.param(("run", "04_lottery_rounds", "-p", "profile", "smoke"), marks=pytest.mark.slow),
    ],
)
def test_nothing_is_trained_into_a_reference(words, tmp_path, capsys):
    place = ("--results", tmp_path / "reference") if words[0] == "study" else ("-p", "results", tmp_path / "reference")
    output = ("--output", tmp_path / "executed.ipynb") if words[0] == "run" else ()
    code, _, err = mirl(capsys, *words, *place, *output)
    assert code and "holds references, which are only read" in err and "go on with" not in err
    assert not (tmp_path / "reference").exists()


def test_a_notebook_that_looks_at_a_reference_is_kept_with_the_results_of_the_project():
    made = running.default_output(
        Path("05_mask_evolution.ipynb"), {"profile": "laptop", "results": "results/reference"}
    )
    assert made.parent == store.results_root() / "laptop" / "notebooks"


@pytest.mark.parametrize("command", [("study",), ("plan",), ("report",), ("study", "--dry-run")])
def test_results_in_a_file_are_refused(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, out, err = mirl(capsys, *command, "--profile", "smoke", "--results", tmp_path / "file")
    assert (code, out) == (2, "") and f"results={str(tmp_path / 'file')!r} is a file" in err and err.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize(
    "words",
    [
        ("study", "--profile", "smoke", "--results", "/proc/x"),
        ("run", "01_data_preparation", "--output", "/proc/x/a.ipynb"),
    ],
)
def test_a_folder_that_not_even_root_can_make_is_one_line(words, capsys):
    code, _, err = mirl(capsys, *words)
    assert code == 2 and "cannot be written" in err and err.count("\n") == 1


def test_a_report_that_cannot_be_written_is_one_line(smoke_results, tmp_path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise store.WriteFailed("page.csv cannot be written: no room")

    monkeypatch.setattr("mirl_study.report.write", full)
    code, out, err = mirl(capsys, "report", "--results", tmp_path)
    assert (code, out, err) == (1, "", "error: page.csv cannot be written: no room\n")


def test_progress_says_when_only_the_report_is_left():
    chains = [study.Chain("derain", "dense", 0, Path("dense"), 10, finished=done) for done in (True, False)]
    assert study._ahead(chains, 61) == "ETA 01:01" and study._ahead(chains[:1], 0) == "writing the report"


def test_a_reference_needs_a_finished_run(tmp_path, capsys):
    code, _, err = mirl(capsys, "reference", "--profile", "smoke", "--results", tmp_path)
    assert code == 1 and "no finished run" in err
    assert everything_below(tmp_path) == []


CHAIN = """
import time
from mirl_study.settings import ONE_SHOT, load_settings
from mirl_study.store import Run, results_root, write_json
settings = load_settings(profile, setting=setting, scope=scope, seed=seed, **overrides)

def play(method, rounds, steps):
    folder = Run(settings, method, results).folder
    for done in range(1, rounds * steps + 1):
        where = {"round": (done - 1) // steps + 1, "rounds": rounds, "done": done, "total": rounds * steps}
        write_json(folder / "progress.json", where)
        time.sleep(0.02)
    (folder / "summary.csv").write_text("round\\n")
"""
STANDINS = {  # the six notebooks, without the learning
    "01_data_preparation": "print('data')",
    "02_dense_baseline": CHAIN + "play('dense', 1, settings.steps)",
    "03_one_shot_baselines": CHAIN + "for method in ONE_SHOT:\n    play(method, 1, 3)",
    "04_lottery_rounds": CHAIN + "play(settings.method(), settings.rounds, settings.steps)",
    "05_mask_evolution": "print('masks')",
    "06_report": CHAIN + "page = results_root(results) / profile / 'report' / 'index.html'\n"
    "page.parent.mkdir(exist_ok=True)\npage.write_text('<p>')",
}


@pytest.fixture
def standins(tmp_path) -> Path:
    for name, cell in STANDINS.items():
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", cell)
    return tmp_path / "notebooks"


def start_study(results: Path, notebooks: Path, *words: str) -> psutil.Popen:
    command = [sys.executable, "-m", "mirl_study.cli", "study", "--profile", "smoke", "--results", str(results)]
    command += ["--cores", "2", "--notebooks", str(notebooks), *words]
    pipe = subprocess.PIPE
    # a shell that starts the tests in the background makes them, and all that they start, deaf to SIGINT
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return psutil.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=hear)


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_study_runs_every_chain_and_a_second_start_has_nothing_to_do(standins, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")  # as if there were two GPUs: each chain gets one
    words = ("--settings", "all_in_one,derain", "--seeds", "1", "-p", "rate", "0.3")
    first = start_study(tmp_path / "results", standins, *words)
    out, err = first.communicate(timeout=300)
    root = tmp_path / "results" / "smoke"
    assert first.returncode == 0, err
    assert out.splitlines()[-1] == f"report: {root / 'report' / 'index.html'}"
    for setting, method in itertools.product(("all_in_one", "derain"), METHODS):
        assert (root / setting / method / "seed1" / "summary.csv").is_file()
    log = (root / "derain" / "MIR-L-LW" / "seed1" / "notebook.log").read_text()
    assert "'scope': 'layerwise'" in log and "'rate': 0.3" in log and "'setting': 'derain'" in log
    assert "CUDA_VISIBLE_DEVICES='4'" in log or "CUDA_VISIBLE_DEVICES='7'" in log
    for name, setting in (("05_mask_evolution", "all_in_one"), ("05_mask_evolution-derain", "derain")):
        assert f"'setting': '{setting}'" in (root / "notebooks" / f"{name}.log").read_text()
    second = start_study(tmp_path / "results", standins, *words)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert out.splitlines()[-1].startswith("everything is done already; report: ")


@pytest.mark.slow
def test_a_failing_chain_is_named_and_the_next_start_goes_on(standins, tmp_path):
    good = STANDINS["04_lottery_rounds"]
    write_notebook(standins / "04_lottery_rounds.ipynb", good, "assert scope != 'layerwise', 'no luck'")
    failing = start_study(tmp_path / "results", standins)
    _, err = failing.communicate(timeout=300)
    assert failing.returncode == 1
    assert err.startswith("error: cell [4] of 04_lottery_rounds.ipynb failed: AssertionError: no luck\n  log: ")
    assert "the study's log: " in err
    write_notebook(standins / "04_lottery_rounds.ipynb", good)
    again = start_study(tmp_path / "results", standins)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "again"), [("ctrl-c", False), ("terminate", False), ("kill", True), ("kill snakemake", True)]
)
def test_a_stopped_study_leaves_no_process_and_the_next_start_needs_no_help(how, again, standins, tmp_path):
    results = tmp_path / "results"
    first = start_study(results, standins, "-p", "steps", "2000")
    wait_for(results / "smoke" / "all_in_one" / "dense" / "seed0" / "progress.json")
    below = first.children(recursive=True)
    if how == "ctrl-c":
        os.killpg(first.pid, signal.SIGINT)
    elif how == "terminate":
        first.terminate()
    elif how == "kill":
        first.kill()
    else:
        next(child for child in below if "snakemake" in child.cmdline()).kill()
    first.communicate(timeout=60)
    assert first.returncode == {"ctrl-c": 130, "terminate": 130, "kill": -signal.SIGKILL, "kill snakemake": 1}[how]
    _, alive = psutil.wait_procs(below, timeout=30)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    if again:
        second = start_study(results, standins)
        _, err = second.communicate(timeout=300)
        assert second.returncode == 0, err


def test_a_study_with_other_settings_than_finished_runs_is_refused(smoke_results, capsys):
    before = everything_below(smoke_results)
    for more in ((), ("--dry-run",)):
        words = ("study", "--profile", "smoke", "--results", smoke_results, "-p", "steps", "7", *more)
        code, out, err = mirl(capsys, *words)
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "steps: 6 there, 7 asked" in err
    assert mirl(capsys, "study", "--profile", "smoke", "--results", smoke_results, "--dry-run")[0] == 0
    assert everything_below(smoke_results) == before


def test_params_prints_every_method_and_round_and_writes_the_same_numbers(tmp_path, capsys):
    from mirl_study import counts

    path = tmp_path / "deep" / "params.csv"
    words = ("params", "--preset", "pico", "--protocol", "paper", "--rounds", 2, "--rate", 0.5, "--csv", path)
    code, out, err = mirl(capsys, *words)
    settings = load_settings("paper", network="pico", protocol="paper", rounds=2, rate=0.5)
    wanted = counts.parameters(settings)
    head, *rows = out.split("\n\n")[0].splitlines()
    assert (code, err) == (0, "") and head.split()[:5] == ["method", "round", "density", "kept", "parameters"]
    assert [row.split()[0] for row in rows] == ["dense", *METHODS[1:5], *["MIR-L-LW"] * 2, *["MIR-L-G"] * 2]
    assert [f"{left:,}" in row for left, row in zip(wanted.parameters, rows, strict=True)] == [True] * 9
    assert out.splitlines()[-1] == str(path) and counts.in_words(wanted, settings)[0] in out
    assert "the convolutions that never run are " in out and "of the ticket of round 2" in out
    assert path.read_text() == wanted.to_csv(index=False)
    assert [file.name for file in path.parent.iterdir()] == ["params.csv"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--preset", "papr"), "preset='papr' is not one of paper, small, nano, pico (did you mean 'paper'?)"),
        (("--preset", "laptop"), "preset='laptop' is a profile; its network is --preset nano"),
        (("--protocol", "relased"), "did you mean 'released'"),
        (("--rate", "1.5"), "rate=1.5"),
        (("--rounds", "0"), "rounds=0"),
        (("--rounds", "many"), "--rounds"),
        (("--presett", "nano"), "did you mean '--preset'"),
        (("--csv", "."), "--csv"),
    ],
)
def test_a_bad_count_is_one_line_before_any_work(words, expected, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mirl_study.counts.parameters", None)
    code, out, err = mirl(capsys, "params", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert everything_below(tmp_path) == []
