"""The Snakefile by itself: its profiles can be read, and the graph has the jobs that it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mirl_study.settings import CONTROLS
from mirl_study.store import project_root
from mirl_study.study import TRAINING

WORKFLOW = project_root() / "workflow"
PROFILES = sorted(path.parent.name for path in WORKFLOW.glob("profiles/*/config.yaml"))


def dry_run(folder: Path, *words: str, config: tuple[str, ...] = ()) -> tuple[int, str]:
    command = [sys.executable, "-m", "snakemake", "-s", str(WORKFLOW / "Snakefile"), "--dry-run", "--quiet", "rules"]
    command += [
        *words,
        "--directory",
        str(folder),
        "--config",
        "profile=smoke",
        f"results={folder / 'results'}",
        *config,
    ]
    environment = {**os.environ, "PYTHONPATH": str(project_root())}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=120
    )
    return done.returncode, done.stdout


def counts(said: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}


def test_every_profile_gives_a_gpu_to_what_trains_and_nothing_else():
    assert PROFILES == ["gpus", "kubernetes", "local", "slurm"]
    rules = set(re.findall(r"^rule (\w+):", (WORKFLOW / "Snakefile").read_text(), re.MULTILINE))
    assert set(TRAINING) < rules
    for name in ("gpus", "kubernetes", "slurm"):
        profile = yaml.safe_load((WORKFLOW / "profiles" / name / "config.yaml").read_text())
        assert {entry.split(":")[0] for entry in profile["set-resources"] if entry.endswith("gpu=1")} == set(TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["local", "gpus", "slurm"])
def test_a_profile_is_understood(profile, tmp_path):
    code, said = dry_run(tmp_path, "--profile", str(WORKFLOW / "profiles" / profile))
    expected = {"data": 1, "dense": 1, "one_shot": 1, "lottery": 2, "masks": 1, "report": 1, "all": 1, "total": 8}
    assert code == 0 and counts(said) == expected, said
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_graph_has_every_setting_seed_and_control(tmp_path):
    words = ("--cores", "2")
    code, said = dry_run(tmp_path, *words, config=("settings=derain,dehaze", "seeds=0,1,2", "controls=2"))
    names = sum(len(group) for group in CONTROLS.values())
    expected = {"data": 1, "dense": 6, "one_shot": 6, "lottery": 12, "masks": 2, "report": 1, "all": 1}
    expected |= {"control": 6 * names, "controls": 2}
    assert code == 0 and counts(said) == expected | {"total": sum(expected.values())}, said


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "-p ticket_round 1", "-p rounds 2"])
def test_a_control_is_told_its_ticket_once(options, tmp_path):
    code, said = dry_run(
        tmp_path, "--cores", "2", "--printshellcmds", "--quiet", "progress", config=("controls=1", f"options={options}")
    )
    commands = [line for line in said.splitlines() if "07_controls" in line and "mirl_study.cli run" in line]
    assert code == 0 and len(commands) > 10, said
    assert all(line.count("-p ticket_round 1 ") == 1 == line.count(" ticket_round ") for line in commands)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("settings=deran", "setting='deran' is not one of .*did you mean 'derain'"),
        ("seed=3", "config key='seed' is not one of .*did you mean 'seeds'"),
        ("profile=smok", "profile='smok' is not one of .*did you mean 'smoke'"),
        ("options=-p stpes 3", "unknown setting 'stpes'.*did you mean 'steps'"),
        ("controls=9", "ticket_round=9 is not allowed: 1 to rounds"),
        ("controls=2 options=-p ticket_round 1", "ticket_round is given twice: '1' and '2'"),
    ],
)
def test_what_cannot_be_is_named_before_any_job(config, expected, tmp_path):
    code, said = dry_run(tmp_path, "--cores", "2", config=config.split(" ", config.startswith("controls=2")))
    assert code == 1 and re.search(expected, said), said
    assert not (tmp_path / "results").exists()
