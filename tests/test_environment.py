"""One list of dependencies: pyproject.toml, environment.yml and the lock must say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "snakemake-minimal": "snakemake"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line of the lock is name==version"
    return {canonicalize_name(name): version for name, version in pins}


def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_lists_the_same_packages_with_the_same_bounds():
    items = [item for item in conda()["dependencies"] if isinstance(item, str)]
    listed = dict(re.fullmatch(r"([\w-]+)(.*)", item).groups() for item in items)
    assert listed.pop("python") == PROJECT["requires-python"]
    listed.pop("pip")
    assert {CONDA_NAMES.get(name, name): bound for name, bound in listed.items()} == {
        requirement.name: str(requirement.specifier) for requirement in REQUIREMENTS
    }


def test_conda_installs_the_package_itself_from_the_checkout():
    assert conda()["dependencies"][-1] == {"pip": ["-e ."]}
    assert conda()["channels"][0] == "conda-forge"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_the_lock_covers_every_dependency_within_its_bounds(requirement, lock):
    assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("extra", ["data", "slurm", "distributed"])
def test_the_tests_bring_what_they_need_of_the_other_extras(extra):
    assert set(PROJECT["optional-dependencies"][extra]) <= set(PROJECT["optional-dependencies"]["test"])


def test_every_dependency_has_a_lower_bound():
    assert all(str(requirement.specifier).startswith(">=") for requirement in REQUIREMENTS)


def test_the_lock_pins_torch_for_every_platform(lock):
    assert lock["torch"] == "2.13.0"


def test_the_lock_names_no_host_no_build_and_not_the_package_itself(lock):
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://| @ |--|\+", text)
    assert "mirl-study" not in lock
