"""``mirl data``: from a folder of downloads to a verified one, by the commands of the README."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import embedded, example, sources
from mirl_study import cli, load_settings
from mirl_study.data import load_bank
from mirl_study.store import project_root


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = embedded.prepare(project_root() / "data" / "embedded")
    return example.example(prepared, tmp_path_factory.mktemp("somewhere") / "downloads")


def mirl(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["data", *map(str, words)])
    out, err = capsys.readouterr()
    return end.value.code, out.split("\r")[-1], err


def test_import_verify_and_card(capsys, downloads, tmp_path):
    folder = tmp_path / "prepared"
    code, out, err = mirl(
        capsys, "import", downloads, "--to", folder, "--split", "leak_free", "--rain-variants", 1, "--jpeg"
    )
    assert (code, err) == (0, "")
    assert "recognised: Rain100L in downloads/Rain100L: test, derain, 3 images" in out
    assert "left out: Rain100L/rain-100.png: no clean image fits it" in out
    assert "left out: downloads: no images by their names: 1 file, such as 'readme.txt'" in out
    assert "2 published test images moved to training" in out and " show photographs that are in " in out
    assert out.endswith(
        "".join(
            f"next: mirl study --setting {name} -p data {folder} --results DIR\n"
            for name in ("derain", "denoise", "jpeg")
        )
    ), "nothing is here for haze"
    for setting in ("denoise", "derain", "jpeg"):
        for split in ("train", "val", "test"):
            load_bank(load_settings("laptop", data=str(folder), setting=setting), split, tmp_path)
    code, out, err = mirl(capsys, "verify", folder)
    assert (code, err) == (0, "") and out.splitlines()[-1].startswith(f"OK   {folder}: ")
    made = json.loads((folder / "card.json").read_text())["made"]
    (folder / "card.md").unlink()
    code, out, err = mirl(capsys, "card", folder)
    assert (code, err) == (0, "") and out == f"{folder / 'card.md'}\n"
    assert json.loads((folder / "card.json").read_text())["made"] == made, "how it was made is kept"


def test_shares_are_drawn_by_seed_and_the_paper_s_need_not_be_typed(capsys, downloads, tmp_path):
    def drawn(name: str, *options: str) -> set[str]:
        assert mirl(capsys, "import", downloads, "--to", tmp_path / name, "--validation", "0.5", *options)[0] == 0
        lines = (tmp_path / name / "manifest.csv").read_text().splitlines()
        return {line.split(",")[2] for line in lines if "BSD400" in line}

    half = [drawn(f"half{seed}", "--fraction", "BSD400", "0.5", "--seed", str(seed)) for seed in range(4)]
    assert {len(names) for names in half} == {2} and len(set(map(frozenset, half))) > 1
    code, out, err = mirl(capsys, "import", downloads, "--to", tmp_path / "paper", "--paper-fractions")
    assert (code, out) == (2, "") and "denoise has too few backgrounds" in err, "5 % of 4 is 1: nothing to set aside"


def test_of_the_paper_s_shares_only_those_of_training_sets_are_drawn(capsys, downloads, tmp_path):
    code, out, _ = mirl(capsys, "import", downloads / "Rain100L", "--to", tmp_path / "rain", "--paper-fractions")
    assert code == 0 and "note: --paper-fractions has no effect: no training images of BSD400, WED" in out
    assert "      3 test  derain   Rain100L" in out and "next:" not in out, "a test set stays whole"


def test_problems_of_a_new_folder_are_listed_and_its_exit_code_tells_of_them(capsys, downloads, tmp_path):
    shutil.copytree(downloads, tmp_path / "downloads")
    for file in sorted((tmp_path / "downloads/Rain100L").glob("norain-*"))[:1]:
        shutil.copyfile(file, file.with_name(file.name.removeprefix("no")))
    code, out, err = mirl(capsys, "import", tmp_path / "downloads", "--to", tmp_path / "prepared")
    assert code == 1 and "is the same image as its target" in out.split("FAIL ")[1] and err.endswith(": 1 problem\n")


def test_an_import_goes_to_the_prepared_folders_by_its_split(capsys, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr("mirl_study.store.project_root", lambda: tmp_path)
    code, out, _ = mirl(capsys, "import", downloads, "--split", "leak_free")
    assert code == 0 and f"card: {tmp_path / 'data' / 'prepared' / 'leak_free' / 'card.md'}" in out


STOP = """
import os, signal, sys, time
from data_prep import verify
from mirl_study.cli import main
verify.verify = lambda *_: (os.kill(os.getpid(), getattr(signal, sys.argv[1])), time.sleep(60))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background would not hear it
main(sys.argv[2:])
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_import_that_is_stopped_leaves_nothing_and_says_so(downloads, tmp_path, number):
    words = [number, "data", "import", downloads, "--to", tmp_path / "new" / "prepared"]
    ended = subprocess.run([sys.executable, "-c", STOP, *words], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130 and ended.stderr.strip() == "error: stopped; nothing was left behind"
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(downloads, tmp_path):
    """As nohup has it."""
    script = STOP.replace(
        "import os, signal, sys, time", "import os, signal, sys, time; signal.signal(1, signal.SIG_IGN)"
    )
    words = ["SIGHUP", "data", "import", downloads, "--to", tmp_path / "prepared"]
    ended = subprocess.run(
        [sys.executable, "-c", script.replace("time.sleep(60)", "sys.exit(9)"), *words],
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == 9


DAMAGED = ["[]", "{", '{"made": 3}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_card_is_written_anew(capsys, downloads, tmp_path, text):
    folder = tmp_path / "prepared"
    mirl(capsys, "import", downloads, "--to", folder)
    (folder / "card.json").write_text(text)
    code, out, err = mirl(capsys, "card", folder)
    assert (code, err) == (0, "") and f"note: {folder / 'card.json'} is damaged; how the folder was made" in out
    assert json.loads((folder / "card.json").read_text())["made"] == {}
    (folder / "card.json").unlink()
    (folder / "card.json").mkdir()
    code, out, err = mirl(capsys, "card", folder)
    assert code == 2 and "card.json: cannot be read (Is a directory)" in err and len(err.splitlines()) == 1


def test_damage_is_found_and_named(capsys, downloads, tmp_path):
    folder = tmp_path / "prepared"
    mirl(capsys, "import", downloads, "--to", folder)
    broken = next((folder / "test" / "derain").iterdir())
    broken.write_bytes(broken.read_bytes()[:-50])
    code, out, err = mirl(capsys, "verify", folder)
    name = broken.relative_to(folder).as_posix()
    assert code == 1 and f"FAIL {name} is broken" in out and f"FAIL altered: {name}" in out
    assert "2 problems" in err and len(err.splitlines()) == 1
    before = (folder / "card.json").read_bytes()
    code, _, err = mirl(capsys, "card", folder)
    assert code == 2 and name in err and (folder / "card.json").read_bytes() == before


def test_list_names_every_source(capsys):
    code, out, err = mirl(capsys, "list")
    assert (code, err) == (0, "") and all(source.name in out and source.licence in out for source in sources.sources())


def test_fetch_unpacks_what_came_and_does_not_unpack_it_again(capsys, downloads, tmp_path, monkeypatch):
    archive = Path(shutil.make_archive(str(tmp_path / "Rain100L"), "gztar", downloads, "Rain100L"))
    monkeypatch.setattr(sources, "fetch", lambda name, folder: [archive])
    for _ in range(2):
        code, out, _ = mirl(capsys, "fetch", "Rain100L", "--to", tmp_path)
        assert code == 0 and out.endswith(f"next: mirl data import {tmp_path}\n")
    assert len(list((tmp_path / "Rain100L" / "Rain100L").iterdir())) == 7
    monkeypatch.setattr("mirl_study.store.project_root", lambda: tmp_path)
    code, out, _ = mirl(capsys, "fetch", "Rain100L")
    assert out.endswith(f"next: mirl data import {tmp_path / 'data' / 'raw'}\n"), "with all else that is fetched"


def test_what_is_not_unpacked_here_is_to_be_unpacked_by_hand(capsys, tmp_path, monkeypatch):
    archive = tmp_path / "WaterlooED.rar"
    archive.write_bytes(b"Rar!" + bytes(100))
    monkeypatch.setattr(sources, "fetch", lambda name, folder: [archive])
    code, _, err = mirl(capsys, "fetch", "WED", "--to", tmp_path)
    assert code == 2 and len(err.splitlines()) == 1
    assert f"is RAR, which is not unpacked here; unpack it by hand into {tmp_path / 'WaterlooED'}, then run" in err
    (tmp_path / "WaterlooED").mkdir()
    code, out, err = mirl(capsys, "fetch", "WED", "--to", tmp_path)
    assert (code, err) == (0, "") and f"next: mirl data import {tmp_path}" in out


MISTAKES = {
    "no such source folder": (("import", "nowhere"), "source folder nowhere: does not exist"),
    "a split that is none": (("import", "{}", "--split", "leakfree"), "did you mean 'leak_free'?"),
    "a share in words": (("import", "{}", "--fraction", "BSD400", "half"), "fraction BSD400='half' is not allowed"),
    "a share of nothing": (("import", "{}", "--fraction", "BSD40", "0.5"), "did you mean 'BSD400'?"),
    "two shares of one set": (
        ("import", "{}", "--fraction", "BSD400", "0.5", "--fraction", "BSD400", "0.1"),
        "fraction BSD400='0.1' is not allowed: BSD400=0.5 is given already",
    ),
    "a share of a test set": (("import", "{}", "--fraction", "CBSD68", "0.5"), "it has only test images"),
    "too much validation": (("import", "{}", "--validation", "1"), "validation=1.0 is not allowed"),
    "fewer than no variants": (("import", "{}", "--rain-variants", "-1"), "rain_variants=-1 is not allowed"),
    "a task that is none": (("import", "{}", "--task", "derian"), "did you mean 'derain'?"),
    "a target that is there": (("import", "{}", "--to", "{}"), "exists already and is never overwritten"),
    "no prepared folder": (("verify", "{}"), "manifest.csv is missing"),
    "no folder": (("card", "nowhere"), "data folder nowhere: there is no such folder"),
    "the embedded folder's card": (
        ("card", project_root() / "data" / "embedded"),
        "was written by another preparation",
    ),
    "a source that is none": (("fetch", "SOT"), "source='SOT' is not one of"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(capsys, downloads, tmp_path, monkeypatch, what):
    words, expected = MISTAKES[what]
    monkeypatch.chdir(tmp_path)
    given = [str(word).format(downloads) for word in words]
    if given[0] == "import" and "--to" not in given:
        given += ["--to", str(tmp_path / "new" / "prepared")]
    code, _, err = mirl(capsys, *given)
    assert code == 2 and expected in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
