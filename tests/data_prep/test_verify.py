"""Every kind of damage is found and named, and what sets share is counted exactly."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_duplicates import photograph

from data_prep import duplicates, embedded, overlaps, splits, verify
from data_prep.verify import in_words
from mirl_study.settings import SettingsError

COLUMNS = ("split", "task", "name", "input", "target", "background", "dataset")


def save(path: Path, image: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def rainy(clean: np.ndarray, levels: int) -> np.ndarray:
    """The image, brighter by so many levels in every second column."""
    image = clean.astype(int)
    image[:, ::2] += levels
    return np.clip(image, 0, 255).astype(np.uint8)


def write_manifest(folder: Path, rows: list[tuple], columns: tuple = COLUMNS) -> None:
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def read_manifest(folder: Path) -> list[tuple]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def make(folder: Path) -> Path:
    """Two sets to train on (one photograph of which is for validation) and one of rain to test on, all different."""
    rows = []
    for place, split in enumerate(("train", "train", "val")):
        save(folder / f"{split}/c{place}.png", photograph(place))
        rows.append((split, "denoise", f"c{place}", "", f"{split}/c{place}.png", f"clean/{place}", "WED"))
    for place, split in enumerate(("train", "test", "test"), start=10):
        clean = np.clip(photograph(place), 0, 200)
        save(folder / f"{split}/t{place}.png", clean)
        save(folder / f"{split}/i{place}.png", rainy(clean, place))
        rows.append(
            (
                split,
                "derain",
                f"r{place}",
                f"{split}/i{place}.png",
                f"{split}/t{place}.png",
                f"rain/{place}",
                "Rain100L",
            )
        )
    write_manifest(folder, rows)
    (folder / "splits").mkdir()
    rain = splits.NameList("Rain100L", 1.0, 0, ("r10",))
    splits.write_list(folder / "splits/Rain100L_derain_train.txt", rain)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("verify") / "prepared")


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "prepared"))


def look(folder: Path) -> verify.Verification:
    result = verify.verify(folder, progress=False)
    assert all("\n" not in problem and str(folder) not in problem for problem in result.problems)
    return result


def add(folder: Path, *row: str) -> None:
    write_manifest(folder, [*read_manifest(folder), row])


def test_a_sound_folder_is_measured(original):
    result = look(original)
    assert result.ok and result.problems == [] and result.altered == []
    assert len(result.files) == 9 and len(result.rows) == 6
    measured = result.psnr.set_index(["dataset", "task", "split"])
    expected = [20 * np.log10(255 / levels) + 10 * np.log10(2) for levels in (11, 12)]
    test = measured.loc["Rain100L", "derain", "test"]
    assert test["count"] == 2 and test["mean"] == pytest.approx(np.mean(expected))
    assert (test["max"], test["min"]) == pytest.approx(tuple(expected)) and test["sd"] == pytest.approx(
        np.std(expected, ddof=1)
    )
    assert measured.loc["Rain100L", "derain", "train"]["count"] == 1 and len(measured) == 2
    assert result.overlaps.empty and result.disagreements.empty and result.pairs.empty
    assert in_words(result) == ["No two clean images show the same photograph."]


def truncate(folder: Path) -> None:
    path = folder / "test/t11.png"
    path.write_bytes(path.read_bytes()[:3000])


def swap_size(folder: Path) -> None:
    save(folder / "test/i11.png", photograph(50, 144, 96))


def edit(folder: Path, name: str, column: str, value: str) -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in read_manifest(folder)]
    rows = [row | {column: value} if row["name"] == name else row for row in rows]
    write_manifest(folder, [tuple(row.values()) for row in rows])


DAMAGE = {
    "truncated": (truncate, ["test/t11.png is broken"]),
    "empty file": (lambda f: (f / "train/c0.png").write_bytes(b""), ["train/c0.png is empty (0 bytes)"]),
    "text": (lambda f: (f / "train/c0.png").write_text("hello"), ["train/c0.png is no image"]),
    "missing": (lambda f: (f / "test/i11.png").unlink(), ["test/i11.png: is listed, but missing"]),
    "a folder": (
        lambda f: ((f / "test/i11.png").unlink(), (f / "test/i11.png").mkdir()),
        ["test/i11.png: is listed, but missing"],
    ),
    "unlisted": (
        lambda f: save(f / "test/extra.png", photograph(60)),
        ["test/extra.png: is on disk, but not in manifest.csv"],
    ),
    "note in splits": (
        lambda f: (f / "splits/x.csv").write_text(""),
        ["splits/x.csv: is on disk, but not in manifest.csv"],
    ),
    "size": (swap_size, ["test/i11.png: is 96x144, its target test/t11.png is 144x96"]),
    "grey": (lambda f: save(f / "test/i11.png", photograph(11)[..., 0]), ["test/i11.png: is not 8-bit RGB"]),
    "small": (
        lambda f: save(f / "train/c0.png", photograph(0)[:9, :9]),
        ["train/c0.png has 9x9 pixels: at least 16x16 is wanted"],
    ),
    "row twice": (
        lambda f: write_manifest(f, [*read_manifest(f), read_manifest(f)[0]]),
        ["manifest.csv: train denoise 'c0' is listed 2 times"],
    ),
    "no name": (lambda f: edit(f, "c0", "name", ""), ["manifest.csv: train denoise '(no name)' is listed 1 time"]),
    "split": (
        lambda f: edit(f, "c0", "split", "tests"),
        ["manifest.csv: split 'tests' (1 row) is not one of train, val, test (did you mean 'test'?)"],
    ),
    "task": (
        lambda f: edit(f, "c0", "task", "denose"),
        ["task 'denose' (1 row) is not one of", "(did you mean 'denoise'?)"],
    ),
    "no input": (lambda f: edit(f, "r11", "input", ""), ["test derain 'r11' has no input", "test/i11.png: is on disk"]),
    "noise stored": (
        lambda f: edit(f, "c0", "input", "train/c1.png"),
        ["has the input train/c1.png; noise is drawn on the fly"],
    ),
    "no target": (
        lambda f: edit(f, "c0", "target", ""),
        ["train denoise 'c0' has no target", "train/c0.png: is on disk"],
    ),
    "outside": (lambda f: edit(f, "c0", "target", "../c0.png"), ["../c0.png: is not a plain path inside the folder"]),
    "absolute": (lambda f: edit(f, "c0", "target", "/c0.png"), ["/c0.png: is not a plain path inside the folder"]),
    "backslash": (
        lambda f: edit(f, "c0", "target", "train\\c0.png"),
        ["train\\c0.png: is not a plain path inside the folder"],
    ),
    "input is target": (
        lambda f: shutil.copy(f / "test/t11.png", f / "test/i11.png"),
        ["test/i11.png: is the same image as its target test/t11.png"],
    ),
    "unknown column": (
        lambda f: write_manifest(f, read_manifest(f), (*COLUMNS[:5], "backgroud", "dataset")),
        ["manifest.csv: column 'backgroud' is not one of", "(did you mean 'background'?)"],
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(folder, kind):
    damage, wanted = DAMAGE[kind]
    damage(folder)
    result = look(folder)
    assert not result.ok
    for text in wanted:
        assert any(text in problem for problem in result.problems), result.problems
    assert len(result.problems) <= 2


def test_the_rest_is_measured_beside_the_damage(folder):
    truncate(folder)
    result = look(folder)
    assert result.psnr.set_index("split").loc["test", "count"] == 1 and len(result.files) == 8


def test_what_cannot_be_read_is_said_to_be_so(folder):
    """A name too long for the disk stands in for a folder that may not be looked into."""
    edit(folder, "c0", "target", "train/" + "c" * 300)
    (folder / "card.json").write_text(json.dumps({"files": {"d" * 300: "", "splits": ""}}))
    result = look(folder)
    assert result.problems[0].endswith("ccc: cannot be read (File name too long)") and len(result.problems) == 2
    assert [line.split(": ", 1)[1] for line in result.altered] == [
        "card.json tells of it, but it cannot be read (File name too long)",
        "card.json tells of it, but it cannot be read (Is a directory)",
    ]


def test_what_is_in_the_place_of_lists_and_card_is_named(folder):
    shutil.rmtree(folder / "splits")
    (folder / "splits").write_text("")
    (folder / "card.json").mkdir()
    result = look(folder)
    assert "splits: cannot be read (Not a directory)" in result.problems
    assert result.altered == ["card.json: cannot be read (Is a directory)"]


def test_hidden_files_are_passed_over(folder):
    for name in (".DS_Store", "train/._c0.png", ".manifest.csv.1-00000000.tmp"):
        (folder / name).touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").touch()
    assert look(folder).ok


@pytest.mark.parametrize("names", [("r9",), ("r10", "r11"), ("c0",)])
def test_lists_are_held_to_the_manifest(folder, names):
    splits.write_list(folder / "splits/Rain100L_derain_train.txt", splits.NameList("Rain100L", 1.0, 0, names))
    assert look(folder).problems == ["splits/Rain100L_derain_train.txt: names other images than manifest.csv"]


def test_a_list_of_ones_own_may_name_any_images_of_the_manifest(folder):
    splits.write_list(folder / "splits/mine.txt", splits.NameList("mine", 1.0, 0, ("r10", "c0")))
    assert look(folder).ok
    splits.write_list(folder / "splits/mine.txt", splits.NameList("mine", 1.0, 0, ("r10", "d0")))
    assert look(folder).problems == ["splits/mine.txt: names other images than manifest.csv"]


def test_a_damaged_list_is_a_problem(folder):
    path = folder / "splits/Rain100L_derain_train.txt"
    path.write_text(path.read_text() + "r11\n")
    assert look(folder).problems == ["splits/Rain100L_derain_train.txt: holds 2 names, its header says 1"]


REFUSED = {
    "unreadable": (
        lambda f: ((f / "manifest.csv").unlink(), (f / "manifest.csv").mkdir()),
        "manifest.csv: cannot be read",
    ),
    "no folder": (lambda f: shutil.rmtree(f), "there is no such folder"),
    "no manifest": (lambda f: (f / "manifest.csv").unlink(), "manifest.csv is missing"),
    "empty": (lambda f: (f / "manifest.csv").write_bytes(b""), "is no table"),
    "binary": (lambda f: (f / "manifest.csv").write_bytes(bytes(range(128, 256))), "is no table"),
    "ragged": (lambda f: (f / "manifest.csv").write_text("split,task\na,b\nc,d,e\n"), "is no table"),
    "only a head": (lambda f: write_manifest(f, []), "lists nothing"),
    "a column less": (
        lambda f: write_manifest(
            f, read_manifest(f), ("split", "task", "name", "inputs", "target", "background", "dataset")
        ),
        "has no column 'input'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_no_manifest_no_verification(folder, kind):
    damage, wanted = REFUSED[kind]
    damage(folder)
    with pytest.raises(SettingsError, match=wanted) as caught:
        verify.verify(folder, progress=False)
    assert "\n" not in str(caught.value)


PLANTED = {
    "jpeg": lambda image: image,
    "smaller": lambda image: image.resize((round(image.width * 0.9), round(image.height * 0.9))),
    "brighter": lambda image: image.point(lambda level: min(level + 2, 255)),
}


def plant(folder: Path, background: str, change: str = "jpeg") -> None:
    """Puts a clean image of the test set among those for training."""
    with Image.open(folder / "test/t11.png") as image:
        PLANTED[change](image).save(folder / "train/planted.jpg", quality=80)
    add(folder, "train", "denoise", "planted", "", "train/planted.jpg", background, "BSD400")


@pytest.mark.parametrize("change", PLANTED)
def test_a_leak_is_found(folder, change):
    plant(folder, "BSD/1", change)
    result = look(folder)
    assert result.problems == [
        "BSD400 train: column background does not say that photographs of the test split are here, in 1 image "
        "(first: train/planted.jpg is test/t11.png)"
    ]
    assert [tuple(row) for row in result.overlaps.values] == [("Rain100L", "test", 1, 2, "BSD400", "train", 1, 1)]
    assert in_words(result)[0] == (
        "1 of the 2 images of Rain100L test show photographs that are in BSD400 train too (1 of 1 there)."
    )
    pair = result.pairs.iloc[0]
    assert len(result.pairs) == 1 and {pair["first"], pair["second"]} == {"train/planted.jpg", "test/t11.png"}
    assert pair.bits <= duplicates.RADIUS and pair.correlation > 0.9 and 25 < pair.psnr < 60
    disagreement = result.disagreements.iloc[0]
    assert disagreement.same and (disagreement.background, disagreement.other_background) == ("rain/11", "BSD/1")


def test_a_marked_overlap_is_reported_but_no_problem(folder):
    plant(folder, "rain/11")
    result = look(folder)
    assert result.ok and len(result.overlaps) == 1 and result.disagreements.empty


def test_images_for_validation_count_with_those_for_training(folder):
    plant(folder, "rain/11")
    for name, split, source in (("t12", "val", "test/t12.png"), ("again", "val", "train/planted.jpg")):
        shutil.copy(folder / source, folder / f"val/{name}{Path(source).suffix}")
        add(folder, split, "denoise", name, "", f"val/{name}{Path(source).suffix}", "rain/12", "BSD400")
    assert in_words(look(folder))[:2] == [
        "2 of the 2 images of Rain100L test show photographs that are in BSD400 train and val too (3 of 3 there).",
        "1 of the 2 images of BSD400 val show photographs that are in BSD400 train too (1 of 1 there).",
    ]


def test_without_the_column_every_overlap_is_a_problem(folder):
    plant(folder, "")
    write_manifest(folder, [row[:5] for row in read_manifest(folder)], COLUMNS[:5])
    result = look(folder)
    assert len(result.problems) == 1 and "train: column background does not say" in result.problems[0]
    assert len(result.disagreements) == 1


def test_a_background_that_two_photographs_share_is_listed(folder):
    edit(folder, "c1", "background", "rain/11")
    result = look(folder)
    assert result.ok and result.overlaps.empty
    row = result.disagreements.iloc[0]
    assert (row["first"], row["second"], row.same) == ("test/t11.png", "train/c1.png", False) and row.correlation < 0.5


def test_copies_inside_a_set_are_counted(folder):
    """Byte by byte, and encoded anew."""
    shutil.copy(folder / "test/t11.png", folder / "test/t13.png")
    save(folder / "test/t14.jpg", np.asarray(Image.open(folder / "test/t11.png")), quality=95)
    for name, target in (("r13", "test/t13.png"), ("r14", "test/t14.jpg")):
        add(folder, "test", "derain", name, "test/i11.png", target, "rain/11", "Rain100L")
    result = look(folder)
    assert result.ok and result.overlaps.empty and result.disagreements.empty
    assert in_words(result)[0] == "Rain100L test: 4 images show 2 distinct photographs."
    near = {(pair.first, pair.second): pair.psnr for pair in result.pairs.itertuples(index=False)}
    assert near["test/t11.png", "test/t13.png"] == np.inf and 30 < near["test/t11.png", "test/t14.jpg"] < 60


def test_one_target_of_many_inputs_is_one_image(folder):
    save(folder / "test/more.png", rainy(np.asarray(Image.open(folder / "test/t11.png")), 30))
    add(folder, "test", "derain", "more", "test/more.png", "test/t11.png", "rain/11", "Rain100L")
    result = look(folder)
    assert result.ok and result.pairs.empty and len(result.scenes) == 6
    assert result.counts.set_index(["dataset", "split"]).loc[("Rain100L", "test"), "rows"] == 3


def test_counts_are_held_against_the_registry(original, folder):
    counts = look(original).counts
    assert list(counts.says[counts.dataset == "WED"]) == ["train and val: 3 (4744 are published for train)"] * 2
    assert list(counts.says[counts.dataset == "Rain100L"]) == [
        "test: 2 (100 are published for test)",
        "train: 1 (200 are published for train)",
    ]
    edited = [(*row[:6], "mine") if row[2] == "c0" else row for row in read_manifest(folder)]
    extra = [("test", "derain", f"x{n}", "test/i11.png", "test/t11.png", "rain/11", "Rain100L") for n in range(99)]
    write_manifest(folder, [*edited, *extra])
    result = look(folder)
    assert {"test: 101 (100 are published for test)", "train: 1 (no published count)"} <= set(result.counts.says)
    assert result.ok, "a leak-free split has other numbers than the published one, more of them as well"


def test_embedded_photographs_are_sound(tmp_path):
    folder = embedded.prepare(tmp_path / "embedded")
    result = look(folder)
    assert result.ok and result.overlaps.empty and len(result.files) == len(list(folder.rglob("*.png")))
    card = json.loads((folder / "card.json").read_text())
    for row in result.psnr.itertuples():
        assert card["input_psnr_db"][row.task][row.split]["mean"] == round(row.mean, 2)
    path = next(folder.rglob("clean/*.png"))
    save(path, 255 - np.asarray(Image.open(path)))
    assert look(folder).altered == [f"{path.relative_to(folder).as_posix()}: is not what card.json tells of"]
    (folder / "card.json").write_text("[]")
    assert look(folder).altered == ["card.json: is no data card; write it again"]


def test_progress_is_drawn_for_people_on_request(original, capsys, monkeypatch):
    verify.verify(original, progress=True)
    assert capsys.readouterr().out == "", "nothing into a file or a pipe"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    verify.verify(original, progress=True)
    assert "9/9" in capsys.readouterr().out
    verify.verify(original, progress=False)
    assert capsys.readouterr().out == ""


def test_real_backgrounds_are_found_from_pixels_alone(shared_data, tmp_path):
    """What another measurement, by equality of all pixels, found out about Rain100L: each image, nothing more."""
    with (shared_data / "rain100l_backgrounds.csv").open(newline="") as file:
        known = {row["rain100l"]: row["bsds500_image"] for row in csv.DictReader(file)}
    tested = {Path(name).stem for name in (shared_data / "BSD68.txt").read_text().split()}
    photographs = shared_data / "BSR/BSDS500/data/images"
    found = [path for part in ("train", "test", "val") for path in sorted((photographs / part).glob("*.jpg"))]
    sets = {
        "BSD400": [path for path in found if path.parent.name != "val"],
        "CBSD68": [path for path in found if path.stem in tested],
        "Rain100L": sorted((shared_data / "Rain100L/target").glob("*.png")),
    }
    rows = []
    for dataset, paths in sets.items():
        (tmp_path / dataset).mkdir()
        for path in paths:
            (tmp_path / dataset / path.name).symlink_to(path)
            split = "train" if dataset == "BSD400" else "test"
            rows.append((split, "denoise", f"{dataset} {path.stem}", "", f"{dataset}/{path.name}", "", dataset))
    write_manifest(tmp_path, rows)
    result = verify.verify(tmp_path, progress=False)
    assert [tuple(row) for row in result.overlaps.values] == [
        ("CBSD68", "test", 24, 68, "Rain100L", "test", 25, 100),
        ("Rain100L", "test", 75, 100, "BSD400", "train", 67, 400),
    ]
    assert in_words(result)[0] == "Rain100L test: 100 images show 91 distinct photographs."
    scenes = result.scenes.assign(stem=result.scenes.target.map(lambda path: Path(path).stem))
    rain = scenes[scenes.dataset == "Rain100L"].merge(scenes[scenes.dataset != "Rain100L"], on="scene")
    assert dict(zip(rain.stem_x, rain.stem_y, strict=True)) == known and len(rain) == len(known) == 100
    assert (
        len(result.problems) == 1
        and result.problems[0].startswith("BSD400 train:")
        and "in 67 images" in result.problems[0]
    )
    named = scenes.assign(background=scenes.stem.replace(known))
    assert list(overlaps.leaks(named)) == []
