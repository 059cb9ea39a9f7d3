"""From somebody's folder to a prepared one: what is wanted, or one line and no trace."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import files, images, importing, splits, verify
from data_prep.importing import Report, import_folder
from mirl_study import load_settings
from mirl_study.data import load_bank
from mirl_study.settings import SettingsError

SIZE = (48, 40)  # width, height


def picture(key: str) -> Image.Image:
    """A picture of its own for each key: broad shapes, so that no two are near-duplicates."""
    rng = np.random.default_rng(list(key.encode()))
    coarse = Image.fromarray(rng.integers(30, 220, (6, 7, 3), dtype=np.uint8))
    return coarse.resize(SIZE, Image.Resampling.BICUBIC)


def spoilt(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.minimum(np.asarray(image).astype(int) + 20, 255).astype(np.uint8))


def save(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def pair(folder: Path, name: str, word: str = "rainy") -> None:
    clean = picture(f"{folder}{name.split('_')[0]}")  # one scene may have several hazes
    save(folder / "target" / f"{name}_gt.png", clean)
    save(folder / "input" / f"{name}_{word}.png", spoilt(clean))


def authors(folder: Path) -> Path:
    """A small copy of the authors' archive: 4 images of each training set, 2 of each test set, 2 hazes of each."""
    train, test = folder / "train", folder / "test"
    for n in range(1, 5):
        save(train / f"denoise/WED/0000{n}.bmp", picture(f"wed{n}"))
        save(train / f"denoise/BSD400/{n}.png", picture(f"bsd{n}"))
        pair(train / "derain/Rain100L", f"rain-10{n}")
        for haze in ("0.8_0.2", "1_0.1"):
            pair(train / "dehaze/OTS", f"000{n}_{haze}", "hazy")
    for n in (1, 2):
        save(test / f"denoise/BSD68/0{n}.png", picture(f"test{n}"))
        save(test / f"denoise/Urban100/img_00{n}.png", picture(f"urban{n}"))
        pair(test / "derain/Rain100L", f"rain-00{n}")
        pair(test / "dehaze/SOTS", f"000{n}_0.8_0.2", "hazy")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return authors(tmp_path_factory.mktemp("somewhere") / "datasets")


@pytest.fixture(scope="module")
def report(source) -> Report:
    return import_folder(source, source.parent / "deep" / "prepared", validation=0.25, progress=False)


def test_a_few_test_images_of_each_set_are_enough_for_a_quick_study(source, report, tmp_path):
    rows = {}
    for most in (1, 2):
        few = import_folder(source, tmp_path / str(most), validation=0.25, test_images=most, progress=False)
        rows[most] = {tuple(row.values()) for row in manifest(few.folder)}
        assert few.notes == (["4 test images left out: at most 1 of each set and task stay"] if most == 1 else [])
        assert not few.problems
    tested = Counter(row[1] for row in rows[1] if row[0] == "test")
    assert tested == {"denoise": 2, "derain": 1, "dehaze": 1}
    assert rows[1] < rows[2] == {tuple(row.values()) for row in manifest(report.folder)}


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state(*folders: Path) -> dict[str, str | None]:
    """Everything below some folders, hidden or not, by content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def refused(before: dict, *watched: Path, **arguments) -> str:
    """The one line of a refused import that leaves everything as it was."""
    with pytest.raises(SettingsError) as caught:
        import_folder(**{"progress": False, **arguments})
    assert "\n" not in str(caught.value) and state(*watched) == before
    return str(caught.value)


def test_the_authors_archive_becomes_a_prepared_folder(source, report):
    folder, rows = report.folder, manifest(report.folder)
    assert [path.name for path in folder.parent.iterdir()] == ["prepared"], "nothing temporary is left"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("card.json", "card.md", "contact_sheet.png", "manifest.csv", "splits", "test", "train", "val")
    ]
    assert Counter((row["split"], row["task"]) for row in rows) == {
        **{("train", "denoise"): 6, ("train", "derain"): 3, ("train", "dehaze"): 6},
        **{("val", "denoise"): 2, ("val", "derain"): 1, ("val", "dehaze"): 2},
        **{("test", "denoise"): 4, ("test", "derain"): 2, ("test", "dehaze"): 2},
    }
    assert report.counts == Counter((row["dataset"], row["split"], row["task"]) for row in rows)
    assert report.notes == [] and report.found.unmatched == [] and report.converted == []
    assert verify.verify(folder, progress=False).ok
    stored = {hashlib.sha256(path.read_bytes()).digest() for path in source.rglob("*.*")}
    assert all(
        hashlib.sha256((folder / row[part]).read_bytes()).digest() in stored
        for row in rows
        for part in ("input", "target")
        if row[part]
    ), "8-bit RGB is copied byte for byte"


def test_pairs_stay_pairs_and_clean_images_are_stored_once(report):
    rows = manifest(report.folder)
    for row in rows:
        assert (row["input"] == "") == (row["task"] == "denoise")
        if row["input"]:
            degraded, clean = (images.read(report.folder / row[part]).astype(int) for part in ("input", "target"))
            assert np.array_equal(degraded, np.minimum(clean + 20, 255))
    files_there = [path for path in report.folder.glob("t*/**/*") if path.is_file()]
    listed = {row[part] for row in rows if row["split"] != "val" for part in ("input", "target")} - {""}
    assert {path.relative_to(report.folder).as_posix() for path in files_there} == listed


def test_no_background_both_trains_and_validates(report):
    shown = {
        split: {r["background"] for r in manifest(report.folder) if r["split"] == split} for split in ("train", "val")
    }
    assert shown["val"] and not shown["train"] & shown["val"]


def test_each_split_is_a_list_that_names_what_the_manifest_lists(report):
    rows = manifest(report.folder)
    listed = Counter()
    for path in (report.folder / "splits").iterdir():
        dataset, task, split = path.stem.split("_")
        own = splits.read_list(path)
        assert own.names == tuple(
            r["name"] for r in rows if (r["dataset"], r["task"], r["split"]) == (dataset, task, split)
        )
        listed[split] += len(own.names)
    assert listed == Counter(row["split"] for row in rows)


def test_the_card_tells_how_the_folder_was_made(report):
    made = json.loads((report.folder / "card.json").read_text())["made"]
    assert made["Split"].startswith("paper:") and made["Seed"] == 0 and "take turns" in made["Balance"]
    assert len(made["Recognised"]) == 8 and made["Left out"] == []
    text = (report.folder / "card.md").read_text() + json.dumps(made)
    assert str(report.folder.parent.parent) not in text, "no path of this machine"


def test_the_laptop_profile_reads_what_was_imported(report):
    settings = load_settings("laptop", data=str(report.folder))
    for split, counts in {"train": (6, 6, 3), "val": (2, 2, 1), "test": (4, 2, 2)}.items():
        bank = load_bank(settings, split, report.folder.parent)
        assert {task: len(rows) for task, rows in bank.rows.items()} == dict(
            zip(("denoise", "dehaze", "derain"), counts, strict=True)
        )
    degraded, clean = load_bank(settings, "train", report.folder.parent).batch(6, 32, seed=0, order=0, step=0)
    assert degraded.shape == clean.shape == (6, 3, 32, 32) and torch.isfinite(degraded).all()


def test_equal_arguments_give_equal_folders_and_another_seed_another_draw(source, tmp_path):
    draws = {"BSD400": 0.5, "OTS": 0.25}
    for name, seed in (("a", 0), ("b", 0), ("c", 3)):
        import_folder(source, tmp_path / name, fractions=draws, seed=seed, progress=False)
    a, b, c = (
        {Path(path).relative_to(tmp_path / name): digest for path, digest in state(tmp_path / name).items()}
        for name in "abc"
    )
    assert a == b and a.keys() != c.keys()
    rows = manifest(tmp_path / "a")
    assert sum(row["dataset"] == "BSD400" for row in rows) == 2 and sum(row["dataset"] == "OTS" for row in rows) == 2
    assert sum(row["dataset"] == "WED" for row in rows) == 4
    assert splits.read_list(tmp_path / "a/splits/BSD400_denoise_train.txt").fraction == 0.5


def rain_and_bsd(folder: Path) -> Path:
    """Rain100L's first 4 test pairs (two show images of BSD400, two one image of CBSD68) and what they show."""
    for n in range(1, 5):
        pair(folder / "Rain100L", f"00{n}")
    for name in ("BSR/images/train/100075", "BSR/images/test/105019", "BSR/images/train/8068", "BSR/images/test/8143"):
        save(folder / f"{name}.png", picture(name))
    for name in ("182053", "101085"):
        save(folder / f"BSR/images/val/{name}.png", picture(name))
    return folder


def test_a_leak_free_split_trains_on_nothing_that_is_tested(tmp_path):
    source = rain_and_bsd(tmp_path / "source")
    report = import_folder(source, tmp_path / "prepared", split="leak_free", progress=False)
    rows = manifest(tmp_path / "prepared")
    shown = {split: {row["background"] for row in rows if row["split"] == split} for split in ("train", "val", "test")}
    assert not (shown["train"] | shown["val"]) & shown["test"] and not shown["train"] & shown["val"]
    rain = {row["name"]: row["split"] for row in rows if row["task"] == "derain"}
    assert sorted(rain) == ["Rain100L_001", "Rain100L_002", "Rain100L_003", "Rain100L_004"]
    assert sorted(rain.values()) == ["test", "test", "train", "val"]
    assert report.notes == ["derain: 2 published test images moved to training, because what they show is trained on"]


def same_in_both(folder: Path) -> Path:
    """Pairs to train and to test on that show the same photographs, as names do not tell; and two that are apart."""
    for split in ("train", "test"):
        for n in range(3):
            save(folder / f"derain/{split}/target/{split}{n}.png", picture(f"rain{n}"))
            save(folder / f"derain/{split}/input/{split}{n}.png", spoilt(picture(f"rain{n}")))
    for name in ("x", "y"):
        pair(folder / "derain/train", name)
    return folder


@pytest.mark.parametrize("split", ["paper", "leak_free"])
def test_a_leak_is_told_from_pixels_when_names_do_not_tell_it(tmp_path, split):
    report = import_folder(same_in_both(tmp_path / "a"), tmp_path / "b", split=split, validation=0.3, progress=False)
    rows = manifest(report.folder)
    tested = {row["background"] for row in rows if row["split"] == "test"}
    leaking = [row["name"] for row in rows if row["split"] != "test" and row["background"] in tested]
    assert report.problems == [] and len(tested) == 3
    if split == "paper":
        assert len(leaking) == 3 and "3 of the 3 images of pairs test show photographs" in report.shared[0]
    else:
        assert not leaking and report.shared == ["No two clean images show the same photograph."]
        assert report.notes == ["derain: 3 training images left out, because what they show is tested"]


def test_problems_of_the_new_folder_are_reported(tmp_path):
    for place in ("input", "target"):
        save(tmp_path / f"a/derain/test/{place}/1.png", picture("x"))
    report = import_folder(tmp_path / "a", tmp_path / "b", progress=False)
    assert len(report.problems) == 1 and "is the same image as its target" in report.problems[0]


def test_half_of_what_a_task_tests_trains_where_it_has_no_training_set(tmp_path):
    for n in range(4):
        pair(tmp_path / "a/SOTS", f"000{n}_0.8_0.2", "hazy")
    report = import_folder(tmp_path / "a", tmp_path / "b", split="leak_free", progress=False)
    assert report.notes == ["dehaze: 2 published test images moved to training, because there is no training set"]


def test_lists_say_what_share_was_drawn_of_their_images(source, tmp_path):
    draws = {"BSD400": 0.75, "Rain100L": 0.5, "OTS": 0.5, "WED": 0.75}
    report = import_folder(source, tmp_path / "b", fractions=draws, rain_variants=1, jpeg=True, progress=False)
    said = {path.stem: splits.read_list(path).fraction for path in (tmp_path / "b/splits").iterdir()}
    assert {said[name] for name in said if name.endswith("_test") or "_jpeg_" in name} == {1.0}
    assert said["Rain100L_derain_train"] == 0.5 and said["BSD400_denoise_train"] == 0.75
    assert said["BSD400_derain_train"] == 1.0, "made, not drawn"
    assert (
        report.notes[0] == ("BSD400: a share of 4 images, 400 are published; the authors' archive is drawn already")
        and len(report.notes) == 4
    )


def test_what_has_no_effect_is_said(tmp_path):
    for n in range(3):
        pair(tmp_path / "a/derain/test", str(n))
    report = import_folder(tmp_path / "a", tmp_path / "b", rain_variants=1, jpeg=True, progress=False)
    assert [note for note in report.notes if "nothing was made" in note] == [
        "jpeg: there are no photographs to put through a social network; nothing was made",
        "rain_variants: without training pairs of rain and other training photographs nothing was made",
    ]
    before = state(tmp_path)
    line = refused(before, tmp_path, source=tmp_path / "a", target=tmp_path / "c", validation=2)
    assert "validation=2 is not allowed" in line, "even where nothing trains"


def test_rain_that_cannot_be_lifted_is_named_with_its_file(tmp_path):
    source = authors(tmp_path / "a")
    path = source / RAIN.format("input/rain-101_rainy.png")
    save(path, picture("other"))
    line = refused(state(tmp_path), tmp_path, source=source, target=tmp_path / "b", rain_variants=9)
    assert f"rain_variants: {path}: " in line and "at most 1% may" in line


def test_a_name_too_long_for_the_disk_is_the_source_s(tmp_path):
    for name in ("1", "2"):
        pair(tmp_path / "a" / ("derain" + "y" * 120) / ("x" * 120), name + "z" * 60)
    line = refused(state(tmp_path), tmp_path, source=tmp_path / "a", target=tmp_path / "b")
    assert f"image {tmp_path / 'a'}/derainyyy" in line and "shorten the names" in line


def test_a_file_that_can_no_longer_be_read_is_named(source, tmp_path, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("data_prep.prepared.Path.read_bytes", fails)
    with pytest.raises(SettingsError, match=rf"image {source}\S+ cannot be read \(Input/output error\)"):
        import_folder(source, tmp_path / "b", progress=False)
    assert not any(tmp_path.iterdir())


def test_a_family_without_training_images_is_said_to_be_so(tmp_path):
    source = rain_and_bsd(tmp_path / "source")
    report = import_folder(source, tmp_path / "prepared", progress=False)
    assert report.notes == ["derain: 4 images to test on and none to train on; a study of it needs both"]
    settings = load_settings("laptop", data=str(tmp_path / "prepared"), setting="denoise")
    assert {row.name for row in load_bank(settings, "train", tmp_path).rows["denoise"]} <= {
        "BSD400_8068",
        "BSD400_8143",
    }
    with pytest.raises(SettingsError, match="no train images for derain"):
        load_bank(settings.replace(setting="derain"), "train", tmp_path)


def test_rain_of_real_pairs_falls_on_other_photographs(source, tmp_path):
    report = import_folder(source, tmp_path / "prepared", rain_variants=2, progress=False)
    made = [row for row in manifest(tmp_path / "prepared") if row["task"] == "derain" and "_rain" in row["name"]]
    assert len(made) == 14 and {row["split"] for row in made} == {"train"} and not report.notes
    for row in made:
        degraded, clean = (images.read(tmp_path / "prepared" / row[part]).astype(int) for part in ("input", "target"))
        assert np.array_equal(degraded, np.minimum(clean + (degraded - clean).max(axis=-1, keepdims=True), 255))
        assert 0 < (degraded - clean).max() <= 20


def test_photographs_through_an_imitated_network(source, tmp_path):
    report = import_folder(source, tmp_path / "prepared", jpeg=True, progress=False)
    assert not report.notes
    rows = [row for row in manifest(tmp_path / "prepared") if row["task"] == "jpeg"]
    assert Counter(row["split"] for row in rows) == {"train": 7, "val": 1, "test": 4}
    for row in rows:
        degraded, clean = (images.read(tmp_path / "prepared" / row[part]) for part in ("input", "target"))
        assert degraded.shape == clean.shape and not np.array_equal(degraded, clean)


def test_real_images_of_a_network_are_tested_on_what_was_made(source, tmp_path):
    for name in ("a_original", "a_network"):
        save(tmp_path / f"more/OSN/{name}.png", picture(name))
    save(tmp_path / "more/BSD400/1.png", picture("1"))
    save(tmp_path / "more/BSD400/2.png", picture("2"))
    report = import_folder(tmp_path / "more", tmp_path / "prepared", jpeg=True, progress=False)
    assert report.notes == ["denoise: 2 images to train on and none to test on; a study of it needs both"]


def test_images_of_other_kinds_are_converted_by_the_rule_and_said_to_be(tmp_path):
    source = tmp_path / "Urban100"
    grey = np.random.default_rng(0).integers(0, 2**16, SIZE[::-1], dtype=np.uint16)
    save(source / "wide.png", Image.fromarray(grey))
    save(source / "palette.gif", picture("a").quantize(8))
    save(source / "Übung, 1.png", picture("b").convert("RGBA"))
    save(source / "plain.JPG", picture("c"))
    (source / "lies.jpg").write_bytes((source / "plain.JPG").read_bytes()[:0] + _png(picture("d")))
    report = import_folder(source, tmp_path / "prepared", progress=False)
    assert {path.name for path in report.converted} == {"wide.png", "palette.gif", "Übung, 1.png"}
    targets = {row["name"]: tmp_path / "prepared" / row["target"] for row in manifest(tmp_path / "prepared")}
    for name, path in targets.items():
        original = next(file for file in source.iterdir() if file.stem == name.removeprefix("Urban100_"))
        assert np.array_equal(images.read(path), images.read(original)) and images.is_plain(path)
    assert targets["Urban100_plain"].suffix == ".jpg" and targets["Urban100_wide"].suffix == ".png"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_names_that_differ_in_case_alone_do_not_meet_in_one_file(tmp_path):
    for name in ("a.png", "A.png"):
        save(tmp_path / "Urban100" / name, picture(name))
    import_folder(tmp_path / "Urban100", tmp_path / "prepared", progress=False)
    targets = [row["target"] for row in manifest(tmp_path / "prepared")]
    assert len({target.casefold() for target in targets}) == 2


def _broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _other_size(path: Path) -> None:
    picture("x").resize((64, 40)).save(path)


RAIN, URBAN = "train/derain/Rain100L/{}", "test/denoise/Urban100/img_001.png"
BAD = {  # what is wrong: (how it comes about, other arguments, words of the refusal)
    "truncated PNG": (lambda s: _broken(s / URBAN), {}, "is broken"),
    "truncated BMP": (lambda s: _broken(s / "train/denoise/WED/00001.bmp"), {}, "is broken"),
    "text for an image": (lambda s: (s / URBAN).write_text("hello\nyou"), {}, "is no image of a known kind"),
    "an empty file": (lambda s: (s / URBAN).write_bytes(b""), {}, "is empty"),
    "a web page": (lambda s: (s / URBAN).write_text("<!DOCTYPE html>"), {}, "is no image of a known kind"),
    "an archive's pointer file": (lambda s: (s / URBAN).write_text("version https://"), {}, "is no image"),
    "1 x 1": (lambda s: Image.new("RGB", (1, 1)).save(s / URBAN), {}, "1x1 pixels"),
    "transparent": (lambda s: Image.new("RGBA", SIZE).save(s / URBAN), {}, "transparent"),
    "CMYK": (lambda s: Image.new("CMYK", SIZE).save(s / URBAN, format="JPEG"), {}, "is CMYK"),
    "animated": (
        lambda s: picture("x").save(s / URBAN, format="GIF", save_all=True, append_images=[picture("y")]),
        {},
        "2 frames",
    ),
    "a pair of two sizes": (lambda s: _other_size(s / RAIN.format("input/rain-101_rainy.png")), {}, "differ in size"),
    "two bad files": (
        lambda s: [(s / RAIN.format(f"input/rain-10{n}_rainy.png")).write_text("") for n in (1, 2, 3)],
        {},
        "(and 2 more files)",
    ),
    "a set twice": (lambda s: save(s / "more/Urban100/img_001.png", picture("x")), {}, "is there twice"),
    "a name twice": (lambda s: save(s / "test/denoise/Urban100/img_001.bmp", picture("x")), {}, "is there twice"),
    "fraction 0": (None, {"fractions": {"WED": 0}}, "WED=0 is not allowed: more than 0"),
    "fraction over 1": (None, {"fractions": {"WED": 1.5}}, "WED=1.5 is not allowed"),
    "fraction in words": (None, {"fractions": {"WED": "5 %"}}, "WED='5 %' is not allowed"),
    "fraction no number": (None, {"fractions": {"WED": float("nan")}}, "WED=nan is not allowed"),
    "fraction of an unknown set": (None, {"fractions": {"BSD40": 0.1}}, "did you mean 'BSD400'"),
    "fraction of a set that is not there": (None, {"fractions": {"DIV2K": 0.1}}, "'DIV2K' is not one of BSD400"),
    "fraction of test images": (None, {"fractions": {"SOTS": 0.5}}, "SOTS=0.5 is not allowed: it has only test"),
    "an unknown split": (None, {"split": "leakfree"}, "did you mean 'leak_free'"),
    "an unknown task": (None, {"task": "denoising"}, "did you mean 'denoise'"),
    "no validation": (None, {"validation": 0}, "validation=0 is not allowed"),
    "nothing but validation": (None, {"validation": 1.0}, "validation=1.0 is not allowed"),
    "validation in words": (None, {"validation": "a tenth"}, "validation='a tenth' is not allowed"),
    "a negative seed": (None, {"seed": -1}, "seed=-1 is not allowed"),
    "a seed in words": (None, {"seed": "0"}, "seed='0' is not allowed"),
    "less than no test image": (None, {"test_images": -1}, "test_images=-1 is not allowed: a whole number, 0 for all"),
    "less than no rain": (None, {"rain_variants": -1}, "rain_variants=-1 is not allowed"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_no_trace(tmp_path, what):
    spoil, arguments, words = BAD[what]
    source = authors(tmp_path / "source")
    if spoil:
        spoil(source)
    before = state(tmp_path)
    assert words in refused(before, tmp_path, source=source, target=tmp_path / "new" / "prepared", **arguments)


def _only(*names: str):
    """A source with these files alone, each an image unless its name says otherwise."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for name in names:
            if name.endswith(".txt"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("text")
            else:
                save(folder / name, picture(name))

    return make


SOURCES = {
    "nothing": (lambda folder: None, "does not exist"),
    "a file": (lambda folder: folder.write_text(""), "is a file"),
    "an archive": (lambda folder: folder.write_bytes(b"PK\3\4"), "unpack it first"),
    "an empty folder": (_only(), "no known layout"),
    "a folder of text": (_only("a.txt", "b/c.txt"), "no known layout"),
    "images of unknown use": (_only("holiday/1.png"), "no known layout"),
    "a folder that is called an image": (_only("Urban100/x.png/readme.txt"), "no known layout"),
    "inputs alone": (_only("Rain100L/input/1.png"), "no clean image fits it"),
    "targets alone": (_only("Rain100L/target/1.png"), "no degraded image fits it"),
    "pairs of an unknown task": (_only("input/1.png", "target/1.png"), "state the task"),
    "a validation set alone": (
        _only("val/Rain100L/input/1.png", "val/Rain100L/target/1.png"),
        "validation images are drawn",
    ),
    "too little to validate": (_only("BSD400/1.png"), "too few backgrounds"),
}


@pytest.mark.parametrize("what", SOURCES)
def test_a_source_without_use_is_refused_in_one_line_and_leaves_no_trace(tmp_path, what):
    make, words = SOURCES[what]
    make(tmp_path / "source")
    assert words in refused(state(tmp_path), tmp_path, source=tmp_path / "source", target=tmp_path / "new" / "prepared")


TARGETS = {
    "a prepared folder": (lambda path: save(path / "manifest.csv.png", picture("x")), "exists already"),
    "an empty folder": (lambda path: path.mkdir(), "exists already"),
    "a file": (lambda path: path.touch(), "exists already"),
    "a broken link": (lambda path: path.symlink_to("nowhere"), "exists already"),
}


@pytest.mark.parametrize("what", TARGETS)
def test_nothing_existing_is_overwritten(source, tmp_path, what):
    make, words = TARGETS[what]
    make(tmp_path / "prepared")
    assert words in refused(state(tmp_path), tmp_path, source=source, target=tmp_path / "prepared")


def test_a_target_that_cannot_be_made_is_refused_in_one_line(source, tmp_path):
    (tmp_path / "file").touch()
    before = state(tmp_path, source)
    assert "cannot be made" in refused(before, tmp_path, source, source=source, target=tmp_path / "file" / "new")
    assert "inside the source" in refused(before, tmp_path, source, source=source, target=source / "prepared")
    long = tmp_path / ("n" * 300)
    assert "cannot be" in refused(before, tmp_path, source, source=source, target=long)


def test_a_full_disk_is_one_line_and_leaves_no_trace(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.prepared.Path.write_bytes", full)
    text = refused({}, tmp_path, source=source, target=tmp_path / "deep" / "prepared")
    assert "cannot be written (No space left on device)" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_target_is_one_line(source, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be made" in refused(
        state(tmp_path), tmp_path, source=source, target=tmp_path / "closed" / "prepared"
    )


@pytest.mark.parametrize("moment", ["splits.write_list", "verify.verify", "cards.write_card"])
def test_ctrl_c_leaves_no_trace(source, tmp_path, monkeypatch, moment):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"data_prep.{moment}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_folder(source, tmp_path / "deep" / "prepared", progress=False)
    assert state(tmp_path) == {}


@pytest.mark.slow
def test_what_a_killed_import_left_is_hidden_and_goes_with_the_next_one(source, tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom data_prep import importing, verify\n"
        "verify.verify = lambda *_: (print('now', flush=True), time.sleep(60))\n"
        "importing.import_folder(Path(sys.argv[1]), Path(sys.argv[2]), progress=False)"
    )
    target = tmp_path / "prepared"
    child = subprocess.Popen([sys.executable, "-c", script, source, target], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "now\n"
    other = files._sibling(target)
    other.mkdir()  # of a process that is still at work: this one
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = [path for path in tmp_path.iterdir() if path != other]
    assert len(left) == 1 and left[0].name.startswith(".prepared.")
    import_folder(source, target, progress=False)
    assert sorted(tmp_path.iterdir()) == sorted([target, other])


def test_a_target_that_appears_meanwhile_is_not_overwritten(source, tmp_path, monkeypatch):
    target = tmp_path / "prepared"
    monkeypatch.setattr(importing.cards, "write_card", lambda *_: target.mkdir())
    assert "exists already" in refused({str(target): None}, tmp_path, source=source, target=target)


def test_the_source_is_only_read(source, report):
    before = state(source)
    os.chmod(source, 0o500)
    try:
        import_folder(source, report.folder.parent / "again", progress=False)
    finally:
        os.chmod(source, 0o700)
    assert state(source) == before


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory) -> Path:
    """The authors' layout made of real images: a few of each set that is here."""
    root = tmp_path_factory.mktemp("real") / "datasets"
    bsd = sorted((shared_data / "BSR/BSDS500/data/images").glob("t*/*.jpg"))[::60]
    for place, path in enumerate(bsd):
        _copy(path, root / "train/denoise" / ("WED" if place % 2 else "BSD400") / path.name)
    for name in ("101085", "182053"):
        _copy(shared_data / f"BSR/BSDS500/data/images/val/{name}.jpg", root / f"test/denoise/BSD68/{name}.jpg")
    _copy(shared_data / "Urban100/img_012.png", root / "test/denoise/Urban100/img_012.png")
    for number in (1, 2, 3, 5, 6):
        split = "test" if number in (1, 3) else "train"
        for part, word in (("input", "rainy"), ("target", "gt")):
            name = f"rain-{number + 100 * (split == 'train'):03}_{word}.png"
            _copy(shared_data / f"Rain100L/{part}/{number:03}.png", root / split / "derain/Rain100L" / part / name)
    for place, path in enumerate(sorted((shared_data / "SOTS/outdoor/hazy").iterdir())):
        where = root / ("test/dehaze/SOTS" if place < 3 else "train/dehaze/OTS")
        _copy(path, where / "input" / f"{path.stem}_hazy.jpg")
        scene = path.stem.split("_")[0]
        _copy(shared_data / f"SOTS/outdoor/gt/{scene}.png", where / "target" / f"{path.stem}_gt.png")
    return root


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(path.read_bytes())


def test_the_authors_layout_of_real_images(real, tmp_path):
    report = import_folder(real.parent, tmp_path / "prepared", validation=0.3, progress=False)
    assert sum(report.counts.values()) == 7 + 3 + 5 + 7 and not report.notes and not report.found.unmatched
    assert verify.verify(tmp_path / "prepared", progress=False).problems == []
    settings = load_settings("laptop", data=str(tmp_path / "prepared"))
    for split in ("train", "val", "test"):
        assert set(load_bank(settings, split, tmp_path).rows) == {"denoise", "derain", "dehaze"}
