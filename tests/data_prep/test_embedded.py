"""The embedded data set: complete or absent, the same each time, honest about itself."""

import csv
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import embedded
from mirl_study.settings import SettingsError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return embedded.prepare(tmp_path_factory.mktemp("data") / "deep" / "embedded")


@pytest.fixture(scope="module")
def rows(prepared) -> list[dict[str, str]]:
    with (prepared / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "embedded"))


def refused(folder: Path, **arguments) -> str:
    """The one line that prepare() refuses with."""
    with pytest.raises(SettingsError) as caught:
        embedded.prepare(folder, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def test_manifest_and_images_agree(prepared, rows):
    assert list(rows[0]) == list(embedded.COLUMNS)
    assert len({(row["task"], row["name"]) for row in rows}) == len(rows)
    for row in rows:
        clean = read(prepared / row["target"])
        assert clean.shape[0] % 8 == clean.shape[1] % 8 == 0 and min(clean.shape[:2]) >= 64
        assert (row["input"] == "") == (row["task"] == "denoise")
        if row["task"] == "derain":
            assert (read(prepared / row["input"]) >= clean).all()
        if row["task"] in ("dehaze", "jpeg"):
            assert read(prepared / row["input"]).shape == clean.shape


def test_no_photograph_is_in_two_splits(rows):
    assert len(embedded.photographs()) >= 8
    seen = {split: {Path(r["target"]).stem for r in rows if r["split"] == split} for split in embedded.SPLITS}
    assert {split: len(names) for split, names in seen.items()} == {"train": 5, "val": 1, "test": 2}
    assert len(set().union(*seen.values())) == sum(map(len, seen.values()))
    for split in embedded.SPLITS:
        assert {row["task"] for row in rows if row["split"] == split} == {"denoise", "derain", "dehaze", "jpeg"}


def test_inputs_are_about_as_bad_as_those_of_real_benchmarks(prepared, rows):
    psnr, dry = {"derain": [], "dehaze": [], "jpeg": []}, []
    for row in rows:
        if row["input"]:
            error = read(prepared / row["input"]) - read(prepared / row["target"])
            psnr[row["task"]].append(10 * np.log10(255**2 / np.mean(error**2)))
            if row["task"] == "derain":
                dry.append(np.mean((error == 0).all(axis=-1)))
    assert 24 < np.mean(psnr["derain"]) < 27 and min(psnr["derain"]) > 17 and max(psnr["derain"]) < 36
    assert 15 < np.mean(psnr["dehaze"]) < 18 and min(psnr["dehaze"]) > 9 and max(psnr["dehaze"]) < 26
    assert 26 < np.mean(psnr["jpeg"]) < 33 and min(psnr["jpeg"]) > 20 and max(psnr["jpeg"]) < 41
    assert 0.6 < np.mean(dry) < 0.8
    noise = json.loads((prepared / "card.json").read_text())["input_psnr_db"]["denoise25"]
    assert all(20 < split["mean"] < 21.5 for split in noise.values())


def test_card_tells_what_is_there(prepared, rows):
    card = json.loads((prepared / "card.json").read_text())
    files = {p.relative_to(prepared).as_posix() for p in prepared.rglob("*") if p.is_file()}
    assert set(card["files"]) == files - {"card.json"}
    assert sum(sum(splits.values()) for splits in card["rows"].values()) == len(rows)
    error = read(prepared / "val/derain/grace_hopper_0.png") - read(prepared / "val/clean/grace_hopper.png")
    other = read(prepared / "val/derain/grace_hopper_1.png") - read(prepared / "val/clean/grace_hopper.png")
    measured = np.mean([10 * np.log10(255**2 / np.mean(e**2)) for e in (error, other)])
    assert card["input_psnr_db"]["derain"]["val"]["mean"] == pytest.approx(measured, abs=0.006)
    jpeg = [row for row in rows if row["task"] == "jpeg"]
    assert card["rows"]["jpeg"] == {split: sum(row["split"] == split for row in jpeg) for split in embedded.SPLITS}
    assert card["ranges"]["jpeg"]["quality"] == [71, 95] and set(card["input_psnr_db"]["jpeg"]) == set(embedded.SPLITS)
    text = (prepared / "card.md").read_text()
    assert "| jpeg | quality | (71, 95) |" in text and "| jpeg | test |" in text
    for photograph in embedded.photographs():
        assert photograph.licence in text and photograph.author in text and photograph.source in text
    assert all(digest in text for name, digest in card["files"].items() if name != "card.md")


def test_prepare_again_touches_nothing(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert embedded.prepare(copy) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_the_seed_decides_the_degradations_but_not_the_photographs(prepared, tmp_path, monkeypatch):
    some = [p for p in embedded.photographs() if p.name in ("china", "grace_hopper")]
    monkeypatch.setattr(embedded, "photographs", lambda: some)
    same, other = (json.loads((embedded.prepare(tmp_path / str(s), s) / "card.json").read_text()) for s in (0, 1))
    whole = json.loads((prepared / "card.json").read_text())
    for name, digest in same["files"].items():
        if name.endswith(".png"):
            assert digest == whole["files"][name]
            assert (digest == other["files"][name]) == ("/clean/" in name)


def test_another_seed_is_refused(copy):
    assert "seed=1" in refused(copy, seed=1)


def as_an_earlier_version_left_it(folder: Path) -> None:
    """The folder without the task that this version adds: other manifest, other card, another recipe's mark."""
    card = json.loads((folder / "card.json").read_text())
    for name in [name for name in card["files"] if "/jpeg/" in name]:
        (folder / name).unlink()
        del card["files"][name]
    for split in embedded.SPLITS:
        (folder / split / "jpeg").rmdir()
    manifest = folder / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if ",jpeg," not in line))
    card["files"]["manifest.csv"] = embedded._sha256(manifest)
    (folder / "card.json").write_text(json.dumps(card | {"recipe": "0123456789abcdef"}))


def test_what_an_earlier_version_prepared_is_prepared_anew(copy, prepared):
    """The images of the other tasks, and their rows in the manifest, stay the same byte for byte."""
    whole = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    as_an_earlier_version_left_it(copy)
    assert not embedded.ready(copy)
    earlier = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.png")}
    assert 0 < len(earlier) < len(list(prepared.rglob("*.png")))
    embedded.prepare(copy)
    after = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert after == whole and earlier.items() <= after.items()
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("name", ["notes.txt", "train/mine.png", "val/derain/grace_hopper_9.png"])
def test_what_is_not_ours_in_another_recipe_s_folder_is_left_alone(copy, name):
    as_an_earlier_version_left_it(copy)
    (copy / name).write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert repr(name) in refused(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("damage", ["no manifest", "short manifest", "no card", "broken card"])
def test_an_incomplete_folder_is_prepared_again(copy, prepared, damage, monkeypatch):
    monkeypatch.setattr(embedded, "_write", lambda folder, seed: shutil.copytree(prepared, folder, dirs_exist_ok=True))
    manifest, card = copy / "manifest.csv", copy / "card.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "short manifest":
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    elif damage == "no card":
        card.unlink()
    else:
        card.write_text(card.read_text()[:100])
    with pytest.raises(SettingsError, match="no complete manifest"):
        embedded.verify(copy)
    embedded.prepare(copy)
    assert embedded.verify(copy) == len(json.loads(card.read_text())["files"])
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_missing_or_altered_file_is_named(copy):
    image = copy / "test/clean/china.png"
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(SettingsError, match="test/clean/china.png was altered"):
        embedded.verify(copy)
    image.unlink()
    assert "test/clean/china.png is missing" in refused(copy)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "'thesis.tex'" in refused(tmp_path)
    assert "is a file" in refused(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failing_writer_leaves_nothing(tmp_path, monkeypatch):
    calls, save = [], embedded._save

    def full_disk(path, grey):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("no space left on device")
        save(path, grey)

    monkeypatch.setattr(embedded, "_save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        embedded.prepare(tmp_path / "embedded")
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []


def test_two_at_once_both_get_the_whole_folder(tmp_path, prepared, monkeypatch):
    together = threading.Barrier(2, timeout=10)

    def write(folder, seed):
        together.wait()  # both have found no folder
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        together.wait()  # both are about to rename

    monkeypatch.setattr(embedded, "_write", write)
    folder = tmp_path / "embedded"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(embedded.prepare, [folder, folder])) == [folder, folder]
    assert embedded.verify(folder) and list(tmp_path.iterdir()) == [folder]


def test_a_missing_or_broken_photograph_is_named_in_one_line(tmp_path, monkeypatch):
    first = embedded.photographs()[0]
    absent = [replace(first, file=f"{package}/nothing.png") for package in ("skimage", "no_such_package")]
    for photograph in absent:
        monkeypatch.setattr(embedded, "photographs", lambda photograph=photograph: [photograph])
        assert f"photograph 'astronaut': {photograph.file}" in refused(tmp_path / "embedded")
    broken = tmp_path / "broken.png"
    for content in (b"not an image", first.path().read_bytes()[:5000]):
        broken.write_bytes(content)
        monkeypatch.setattr(embedded, "photographs", lambda: [first])
        monkeypatch.setattr(embedded.Photograph, "path", lambda self: broken)
        assert "photograph 'astronaut'" in refused(tmp_path / "embedded")
    assert list(tmp_path.iterdir()) == [broken]
