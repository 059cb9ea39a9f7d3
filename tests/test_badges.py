"""Binder and Colab take the lab from the repository's public address, which is written by one command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mirl_study
from mirl_study.store import project_root

LAB = "notebooks/00_lottery_lab.ipynb"


def badges(folder: Path, repo: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "badges", f"REPO={repo}"], cwd=folder, capture_output=True, text=True)


def fetching(lab: dict) -> str:
    """What the lab does first: the beginning of its validation cell."""
    return next("".join(cell["source"]) for cell in lab["cells"] if cell["id"] == "validation").split("%matplotlib")[0]


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in ("Makefile", "README.md", LAB):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(project_root() / name, tmp_path / name)
    return tmp_path


def test_one_command_writes_the_address_everywhere_as_often_as_wanted(copy):
    for repo in ("some.body/mirl_study", "an-other/lottery"):
        assert badges(copy, repo).returncode == 0
        readme = (copy / "README.md").read_text()
        assert f"(https://mybinder.org/v2/gh/{repo}/main?labpath={LAB})" in readme
        assert f"(https://colab.research.google.com/github/{repo}/blob/main/{LAB})" in readme
        lab = json.loads((copy / LAB).read_text())
        assert f'"https://github.com/{repo}", "mirl_study"]' in fetching(lab)
        assert not list(copy.rglob("*.part"))
    before = json.loads((project_root() / LAB).read_text())
    changed = [a["id"] for a, b in zip(before["cells"], lab["cells"], strict=True) if a != b]
    assert changed == ["validation"] and (project_root() / LAB).is_file()


@pytest.mark.parametrize("repo", ["", "somebody", "a/b/c", "a b/c", "a/b#c"])
def test_an_address_that_is_none_is_refused(copy, repo):
    before = (copy / "README.md").read_text()
    refused = badges(copy, repo)
    assert refused.returncode and f"REPO='{repo}' is not allowed: owner/name" in refused.stderr
    assert (copy / "README.md").read_text() == before


def test_on_colab_the_lab_fetches_the_project_and_elsewhere_nothing(tmp_path):
    """The very lines, with a git that finds the address in a folder; what pip would install is here already."""
    lab = json.loads((project_root() / LAB).read_text())
    cell = fetching(lab)
    address = re.search(r"https://github\.com/[^\"]+", cell)[0]
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@n", "-C", str(there)]
    (there / "mirl_study").mkdir(parents=True)
    (there / "mirl_study" / "__init__.py").touch()
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    script = "\n".join(
        [
            "import subprocess, sys, types",
            "run = subprocess.run",
            "subprocess.run = lambda words, **more: run(words, **more) if words[0] == 'git' else print(words[2:5])",
            "if len(sys.argv) > 1: sys.modules['google.colab'] = types.ModuleType('colab')",
            cell,
            cell,  # run twice, as people do
            "import importlib.util; print(importlib.util.find_spec('mirl_study').origin, os.getcwd())",
        ]
    )
    told = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{there.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }
    how = {"cwd": here, "env": {**os.environ, **told}, "capture_output": True, "text": True, "check": True}
    elsewhere = subprocess.run([sys.executable, "-c", script], **how).stdout
    assert elsewhere.split() == [mirl_study.__file__, str(here)] and not list(here.iterdir())
    colab = subprocess.run([sys.executable, "-c", script, "colab"], **how).stdout
    assert colab.splitlines() == [
        "['pip', 'install', '--quiet']",
        f"{here / 'mirl_study' / 'mirl_study' / '__init__.py'} {here / 'mirl_study'}",
    ]
