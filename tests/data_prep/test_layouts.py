"""Names alone tell which data sets a folder holds and which image belongs to which."""

import os
from collections import Counter
from pathlib import Path

import pytest

from data_prep import layouts
from data_prep.layouts import find
from mirl_study.settings import SettingsError


def tree(folder: Path, *names: str) -> Path:
    """A folder of empty files: no layout needs to look into one."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def refusal(folder: Path, **arguments) -> str:
    with pytest.raises(SettingsError) as caught:
        find(folder, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(folder: Path, **arguments) -> dict[str, tuple]:
    """By name: dataset, split, task, background, and input and target below the folder."""
    found = find(folder, **arguments)
    assert len({(item.split, item.task, item.name) for item in found.items}) == len(found.items)
    real = folder.resolve()

    def below(path: Path | None) -> str | None:
        return path and path.relative_to(real).as_posix()

    return {
        item.name: (item.dataset, item.split, item.task, item.background, below(item.input), below(item.target))
        for item in found.items
    }


def reasons(folder: Path, **arguments) -> dict[str, str]:
    """Why each file that is left out is."""
    return {path.relative_to(folder.resolve()).as_posix(): why for path, why in find(folder, **arguments).unmatched}


AUTHORS = (
    "datasets/train/denoise/WED/00007.bmp",
    "datasets/train/denoise/BSD400/100080.jpg",
    "datasets/train/derain/Rain100L/target/rain-101_gt.png",
    "datasets/train/derain/Rain100L/input/rain-101_rainy.png",
    "datasets/train/dehaze/OTS/target/0025_0.9_0.2_gt.jpg",
    "datasets/train/dehaze/OTS/input/0025_0.9_0.2_hazy.jpg",
    "datasets/test/denoise/BSD68/101085.jpg",
    "datasets/test/denoise/Urban100/img_001.png",
    "datasets/test/derain/Rain100L/target/rain-001_gt.png",
    "datasets/test/derain/Rain100L/input/rain-001_rainy.png",
    "datasets/test/dehaze/SOTS/target/0001_0.8_0.2_gt.png",
    "datasets/test/dehaze/SOTS/input/0001_0.8_0.2_hazy.jpg",
)


@pytest.mark.parametrize("start", [".", "datasets"])
def test_the_authors_archive(tmp_path, start):
    source = tree(tmp_path / "source", *AUTHORS) / start
    assert {name: values[:4] for name, values in told(source).items()} == {
        "WED_00007": ("WED", "train", "denoise", "WED/00007"),
        "BSD400_100080": ("BSD400", "train", "denoise", "BSD/100080"),
        "Rain100L_101": ("Rain100L", "train", "derain", "Rain100L/train-101"),
        "OTS_0025_0.9_0.2": ("OTS", "train", "dehaze", "OTS/0025"),
        "CBSD68_101085": ("CBSD68", "test", "denoise", "BSD/101085"),
        "Urban100_img_001": ("Urban100", "test", "denoise", "Urban100/img_001"),
        "Rain100L_001": ("Rain100L", "test", "derain", "BSD/100075"),
        "SOTS_0001_0.8_0.2": ("SOTS", "test", "dehaze", "SOTS/0001"),
    }
    assert find(source).unmatched == []
    inputs = told(source)["OTS_0025_0.9_0.2"][4:]
    assert [Path(path).name for path in inputs] == ["0025_0.9_0.2_hazy.jpg", "0025_0.9_0.2_gt.jpg"]


def test_the_berkeley_archive(tmp_path):
    below = "BSR/BSDS500/data/images"
    source = tree(
        tmp_path / "source",
        *(f"{below}/{name}" for name in ("train/100075.jpg", "test/100007.jpg", "val/101085.jpg", "val/156065.jpg")),
        "BSR/BSDS500/data/groundTruth/train/100075.mat",
        f"{below}/train/Thumbs.db",
        f"{below}/train/.DS_Store",
    )
    assert {name: values[:4] for name, values in told(source).items()} == {
        "BSD400_100007": ("BSD400", "train", "denoise", "BSD/100007"),
        "BSD400_100075": ("BSD400", "train", "denoise", "BSD/100075"),
        "CBSD68_101085": ("CBSD68", "test", "denoise", "BSD/101085"),
    }
    left = reasons(source)
    assert "none of the 68" in left[f"{below}/val/156065.jpg"]
    assert "no images" in left["BSR/BSDS500/data/groundTruth/train"] and "'Thumbs.db'" in left[f"{below}/train"]
    assert set(told(source / below)) == set(told(source))


def test_folders_that_are_only_called_like_berkeleys_are_not_taken_for_it(tmp_path):
    assert "no known layout" in refusal(tree(tmp_path / "yolo", "images/train/000001.jpg", "images/val/000002.jpg"))


def test_the_older_berkeley_set_whose_test_images_are_those_of_cbsd68_is_not_taken_for_training(tmp_path):
    assert "no known layout" in refusal(tree(tmp_path / "BSDS300", "images/test/101085.jpg"))


RAIN = {
    "as published": ("Rain100L/rainy/rain-{:03}.png", "Rain100L/norain-{:03}.png"),
    "published, two folders": ("Rain100L/rain/rain-{:03}.png", "Rain100L/norain/norain-{:03}.png"),
    "one folder": ("Rain100L/rain-{:03}.png", "Rain100L/norain-{:03}.png"),
    "equal names": ("Rain100L/input/{:03}.png", "Rain100L/target/{:03}.png"),
    "older": ("rain_data_test_Light/rain/X2/norain-{}x2.png", "rain_data_test_Light/norain/norain-{}.png"),
    "PromptIR": ("derain/Rain100L/input/rain-{:03}.png", "derain/Rain100L/target/rain-{:03}.png"),
    "MPRNet": ("test/Rain100L/input/{}.png", "test/Rain100L/target/{}.png"),
    "gt": ("Rain100L/rainy/rain-{:03}.png", "Rain100L/gt/norain-{:03}.png"),
}


@pytest.mark.parametrize("naming", RAIN)
def test_rain100l_in_its_namings(tmp_path, naming):
    source = tree(tmp_path / "source", *(name.format(n) for n in (1, 3) for name in RAIN[naming]))
    items = list(told(source).values())
    assert [item[:4] for item in items] == [
        ("Rain100L", "test", "derain", "BSD/100075"),
        ("Rain100L", "test", "derain", "BSD/182053"),
    ]
    assert [item[4:] for item in items] == [tuple(name.format(n) for name in RAIN[naming]) for n in (1, 3)]
    assert find(source).unmatched == []


def test_rain100l_is_split_by_its_folders_or_else_by_its_numbers(tmp_path):
    for folder, numbers, split in (
        ("a/Rain100L", range(1, 101), "test"),
        ("b/Rain100L", range(1, 201), "train"),
        ("c/RainTrainL", range(1, 3), "train"),
        ("d/train/Rain100L", range(1, 3), "train"),
        ("e/rain_data_train_Light", range(1, 3), "train"),
        ("f/Rain100L_train", range(1, 3), "train"),
        ("g/Train100L", range(1, 3), "train"),
        ("h/Rain100L/test", range(150, 152), "test"),
    ):
        names = (f"{folder}/{kind}rain-{number}.png" for number in numbers for kind in ("", "no"))
        items = find(tree(tmp_path / folder[0], *names)).items
        assert {item.split for item in items} == {split} and len(items) == len(numbers), folder
        shown = {item.background for item in items}
        assert len(shown) == (91 if folder[0] == "a" else len(numbers)), "only 91 of the 100 are distinct"


def test_the_training_pair_of_a_number_shows_another_scene_than_the_test_pair(tmp_path):
    names = [f"{split}/Rain100L/{part}/1.png" for split in ("train", "test") for part in ("input", "target")]
    items = find(tree(tmp_path / "source", *names)).items
    assert {item.background for item in items} == {"BSD/100075", "Rain100L/train-1"}
    assert {item.name for item in items} == {"Rain100L_1"}


def test_reside(tmp_path):
    source = tree(
        tmp_path / "source",
        "SOTS/outdoor/hazy/0001_0.8_0.2.jpg",
        "SOTS/outdoor/gt/0001.png",
        "SOTS/indoor/hazy/1400_1.png",
        "SOTS/indoor/gt/1400.png",
        "OTS_BETA/haze/OTS/0005_0.8_0.04.jpg",
        "OTS_BETA/haze/OTS/0005_1_0.2.jpg",
        "OTS_BETA/clear/clear_images/0005.jpg",
    )
    items = told(source)
    assert {name: values[:4] for name, values in items.items()} == {
        "SOTS_0001_0.8_0.2": ("SOTS", "test", "dehaze", "SOTS/0001"),
        "OTS_0005_0.8_0.04": ("OTS", "train", "dehaze", "OTS/0005"),
        "OTS_0005_1_0.2": ("OTS", "train", "dehaze", "OTS/0005"),
    }
    assert items["SOTS_0001_0.8_0.2"][4:] == ("SOTS/outdoor/hazy/0001_0.8_0.2.jpg", "SOTS/outdoor/gt/0001.png")
    assert items["OTS_0005_1_0.2"][5] == "OTS_BETA/clear/clear_images/0005.jpg"
    assert Counter(reasons(source).values()) == {"indoor; the study uses the outdoor images": 2}


def test_urban100_as_published_and_as_cropped_for_scales(tmp_path):
    plain = tree(tmp_path / "Urban100", "img_001.png", "img_002.png")
    assert list(told(plain)) == ["Urban100_img_001", "Urban100_img_002"]
    scaled = tree(
        tmp_path / "source",
        *(f"Urban100/image_SRF_{s}/img_001_SRF_{s}_{kind}.png" for s in (2, 4) for kind in ("HR", "LR")),
    )
    assert {n: v[5] for n, v in told(scaled).items()} == {
        "Urban100_img_001": "Urban100/image_SRF_2/img_001_SRF_2_HR.png"
    }
    assert Counter(reasons(scaled).values()) == {
        "a shrunk copy of an Urban100 image": 2,
        "the same Urban100 image cropped for another scale": 1,
    }


def test_sets_of_clean_images_by_the_name_of_their_folder(tmp_path):
    source = tree(
        tmp_path / "source",
        "WaterlooExplorationDatabase/pristine/00001.bmp",
        "bsd400/a100007.jpg",
        "CBSD68/original/0000.png",
        "CBSD68/noisy25/0000.png",
        "CBSD68/original/101085.png",
    )
    assert {name: values[:4] for name, values in told(source).items()} == {
        "BSD400_100007": ("BSD400", "train", "denoise", "BSD/100007"),
        "CBSD68_0000": ("CBSD68", "test", "denoise", "BSD/0000"),
        "CBSD68_101085": ("CBSD68", "test", "denoise", "BSD/101085"),
        "WED_00001": ("WED", "train", "denoise", "WED/00001"),
    }
    assert "noise is drawn on the fly" in reasons(source)["CBSD68/noisy25/0000.png"]


def test_images_of_one_name_in_two_sets_keep_apart(tmp_path):
    source = tree(tmp_path / "source", "Urban100/1.png", "CBSD68/1.png", "WED/1.png", "BSD400/1.png")
    assert sorted(told(source)) == ["BSD400_1", "CBSD68_1", "Urban100_1", "WED_1"]


def test_the_layout_of_promptir(tmp_path):
    source = tree(
        tmp_path / "data",
        "Train/Denoise/00001.bmp",
        "Train/Denoise/a100007.jpg",
        "Train/Derain/gt/norain-1.png",
        "Train/Derain/rainy/rain-1.png",
        "Train/Dehaze/original/0025.jpg",
        "Train/Dehaze/synthetic/part1/0025_0.8_0.1.jpg",
        "test/denoise/bsd68/101085.jpg",
        "test/derain/Rain100L/input/1.png",
        "test/derain/Rain100L/target/1.png",
    )
    assert {name: values[:4] for name, values in told(source).items()} == {
        "WED_00001": ("WED", "train", "denoise", "WED/00001"),
        "BSD400_100007": ("BSD400", "train", "denoise", "BSD/100007"),
        "pairs_Train_Derain_1": ("pairs", "train", "derain", "pairs/Train_Derain/1"),
        "pairs_Train_Dehaze_0025_0.8_0.1": ("pairs", "train", "dehaze", "pairs/Train_Dehaze/0025"),
        "CBSD68_101085": ("CBSD68", "test", "denoise", "BSD/101085"),
        "Rain100L_1": ("Rain100L", "test", "derain", "BSD/100075"),
    }


@pytest.mark.parametrize("task", ["derain", "dehaze", "jpeg"])
def test_a_pair_of_folders_of_any_task(tmp_path, task):
    source = tree(tmp_path / "mine", *(f"{split}/{part}/1.png" for split in ("a", "test") for part in ("input", "gt")))
    assert told(source, task=task) == {
        "pairs_a_1": ("pairs", "train", task, "pairs/a/1", "a/input/1.png", "a/gt/1.png"),
        "pairs_test_1": ("pairs", "test", task, "pairs/test/1", "test/input/1.png", "test/gt/1.png"),
    }
    assert "state the task (denoise, derain, dehaze, jpeg)" in refusal(source)


def test_roles_are_told_by_the_deepest_folder_that_has_one(tmp_path):
    """What a folder suffers may be called as a role is: rain/input, haze/clear."""
    source = tree(
        tmp_path / "mine",
        *("rain/input/1.png", "rain/target/1.png", "haze/hazy/1.png", "haze/clear/1.png"),
        *(f"more/rain/{split}/{part}/1.png" for split in ("train", "test") for part in ("input", "target")),
    )
    assert {values[1:3] + values[4:] for values in told(source).values()} == {
        ("train", "derain", "rain/input/1.png", "rain/target/1.png"),
        ("train", "dehaze", "haze/hazy/1.png", "haze/clear/1.png"),
        ("train", "derain", "more/rain/train/input/1.png", "more/rain/train/target/1.png"),
        ("test", "derain", "more/rain/test/input/1.png", "more/rain/test/target/1.png"),
    }
    assert find(source).unmatched == []


def test_images_that_are_noisy_already_are_left_out(tmp_path):
    source = tree(tmp_path / "mine", "train/input/1.png", "train/target/1.png")
    assert {name: values[4:] for name, values in told(source, task="denoise").items()} == {
        "pairs_train_1": (None, "train/target/1.png")
    }
    assert reasons(source, task="denoise") == {"train/input/1.png": "noisy already; noise is drawn on the fly"}


def test_what_names_say_of_a_task_is_enough(tmp_path):
    source = tree(tmp_path / "mine", "x/hazy/1.png", "x/clean/1.png", "y/rainy/1.png", "y/clean/1.png")
    assert {values[2] for values in told(source).values()} == {"dehaze", "derain"}


def test_photographs_alone_are_enough_for_noise(tmp_path):
    source = tree(tmp_path / "mine", "Tür 1.png", "test/b.jpg", "val/c.jpg")
    assert told(source, task="denoise") == {
        "pairs_Tür 1": ("pairs", "train", "denoise", "pairs/Tür 1", None, "Tür 1.png"),
        "pairs_test_b": ("pairs", "test", "denoise", "pairs/test_b", None, "test/b.jpg"),
    }
    assert "validation images are drawn" in reasons(source, task="denoise")["val/c.jpg"]
    assert "no known layout" in refusal(source)


def test_a_photograph_through_social_networks(tmp_path):
    source = tree(tmp_path / "source", "OSN/a_original.tif", "OSN/a_facebook.jpg", "OSN/a_weibo.jpg", "OSN/b_weibo.jpg")
    assert told(source) == {
        f"OSN_a_{name}": ("OSN", "test", "jpeg", "OSN/a", f"OSN/a_{name}.jpg", "OSN/a_original.tif")
        for name in ("facebook", "weibo")
    }
    assert reasons(source) == {"OSN/b_weibo.jpg": "belongs to 0 originals; one is wanted"}


def test_what_does_not_match_is_listed_with_its_reason(tmp_path):
    source = tree(
        tmp_path / "source",
        *(f"Rain100L/test/{name}" for name in ("input/001.png", "target/001.png")),
        "Rain100L/test/input/002.png",
        "Rain100L/test/target/003.png",
        "Rain100L/test/input/004.png",
        "Rain100L/test/target/004.png",
        "Rain100L/test/target/004.jpg",
        "Rain100L/test/input/005.png",
        "Rain100L/test/input/005.jpg",
        "Rain100L/test/target/005.png",
        "Rain100L/val/input/001.png",
        "Rain100L/val/target/001.png",
        "Rain100L/stray.png",
        "stray.jpg",
        "notes/readme.txt",
    )
    assert list(told(source)) == ["Rain100L_001"]
    assert reasons(source) == {
        "Rain100L/test/input/002.png": "no clean image fits it",
        "Rain100L/test/target/003.png": "no degraded image fits it",
        "Rain100L/test/input/004.png": "candidates for its clean image: 004.jpg, 004.png",
        "Rain100L/test/input/005.jpg": "2 degraded images of the same name '005'; one is wanted",
        "Rain100L/test/input/005.png": "2 degraded images of the same name '005'; one is wanted",
        "Rain100L/val/input/001.png": layouts.VALIDATION,
        "Rain100L/val/target/001.png": layouts.VALIDATION,
        "Rain100L/stray.png": "in no folder with a known name, nor beside its pair",
        "stray.jpg": "in no folder with a known name, nor beside its pair",
        "notes": "no images by their names: 1 file, such as 'readme.txt'",
    }


def test_links_are_followed_only_inside_the_folder(tmp_path):
    outside = tree(tmp_path / "outside", "Urban100/img_009.png")
    source = tree(tmp_path / "source", "Urban100/img_001.png", "stored/img_002.png")
    (source / "Urban100/img_002.png").symlink_to(source / "stored/img_002.png")
    (source / "Urban100/img_003.png").symlink_to(outside / "Urban100/img_009.png")
    (source / "Urban100/img_004.png").symlink_to("nowhere.png")
    (source / "Urban100/img_005.png").symlink_to("img_005.png")
    (source / "more").symlink_to(outside)
    (source / "Urban100/again").symlink_to(source)
    assert list(told(source)) == ["Urban100_img_001", "Urban100_img_002"]
    out = "a link that leads out of the folder, or nowhere"
    assert {Path(name).name: why for name, why in reasons(source).items()} == {
        **dict.fromkeys(("img_003.png", "img_004.png", "img_005.png", "more"), out),
        "again": "a link to a folder that is read already",
        "img_002.png": "in no folder with a known name, nor beside its pair",
    }


def test_a_link_to_the_folder_itself_is_followed(tmp_path):
    tree(tmp_path / "stored", "Urban100/img_001.png")
    (tmp_path / "source").symlink_to(tmp_path / "stored")
    assert [item.name for item in find(tmp_path / "source").items] == ["Urban100_img_001"]


def test_names_that_cannot_be_printed_and_folders_too_deep_are_left_out(tmp_path):
    source = tree(tmp_path / "source", "Urban100/img_001.png", "Urban100/a\nb.png", "/".join("d" * 12) + "/x.png")
    (source / os.fsdecode(b"\xff.png")).touch()
    assert list(told(source)) == ["Urban100_img_001"]
    left = " ".join(why for _, why in find(source).unmatched)
    assert r"'a\nb.png'" in left and "deep" in left and "udcff" in left


@pytest.mark.parametrize(
    "names, words",
    [
        ((), "no known layout"),
        (("readme.txt", "a/notes.md"), "no known layout"),
        (("a.png",), "no known layout"),
        (("Urban100/readme.txt",), "no known layout"),
        (("Rain100L/input/1.png",), "no clean image fits it"),
        (("one/Urban100/img_001.png", "two/Urban100/img_001.png"), "Urban100_img_001 is there twice"),
        (("BSD400/1.jpg", "BSD400/1.png"), "BSD400_1 is there twice"),
        (("Urban100.png/readme",), "no known layout"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path, names, words):
    (tmp_path / "source").mkdir()
    text = refusal(tree(tmp_path / "source", *names))
    assert words in text
    if words.startswith("no"):
        assert all(known in text for known in layouts.KNOWN)


def test_what_is_no_folder_is_refused_in_one_line(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent")
    assert "unpack it first" in refusal(tree(tmp_path, "a.zip") / "a.zip")
    assert "did you mean 'derain'" in refusal(tmp_path, task="derian")


def test_a_folder_that_cannot_be_read_is_refused_in_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("data_prep.walk.os.scandir", refuse)
    assert "cannot be read (Permission denied)" in refusal(tmp_path)


def test_what_is_neither_file_nor_folder_is_left_out(tmp_path):
    source = tree(tmp_path / "source", "Urban100/img_001.png")
    os.mkfifo(source / "Urban100/img_002.png")
    assert list(told(source)) == ["Urban100_img_001"] and "'img_002.png'" in reasons(source)["Urban100"]


def test_order_is_that_of_names(tmp_path):
    names = [f"Urban100/img_{number:03}.png" for number in range(1, 30)]
    assert find(tree(tmp_path / "a", *names)).items == sorted(
        find(tree(tmp_path / "a", *reversed(names))).items, key=lambda item: item.name
    )


def test_the_real_images(shared_data):
    found = find(shared_data)
    assert Counter((item.dataset, item.split, item.task) for item in found.items) == {
        ("BSD400", "train", "denoise"): 400,
        ("CBSD68", "test", "denoise"): 68,
        ("Urban100", "test", "denoise"): 12,
        ("Rain100L", "test", "derain"): 100,
        ("SOTS", "test", "dehaze"): 7,
        ("OSN", "test", "jpeg"): 3,
    }
    shown = {
        name: [i.background for i in found.items if i.dataset == name] for name in ("Rain100L", "BSD400", "CBSD68")
    }
    rain = shown["Rain100L"]
    trained, tested = ([scene for scene in rain if scene in shown[name]] for name in ("BSD400", "CBSD68"))
    assert (len(trained), len(set(trained))) == (75, 67), "pairs that show a training image for denoising"
    assert (len(tested), len(set(tested))) == (25, 24), "pairs that show a test image for denoising"
    assert len(found.unmatched) == 33
