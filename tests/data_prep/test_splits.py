"""Splits: drawn alike everywhere, without leaks, written as lists; rain lifted from one pair and laid on another."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import splits
from data_prep.items import Item
from mirl_study.settings import SettingsError


def item(name, split="train", task="denoise", dataset="BSD400", background="", paired=None):
    paired = task in ("derain", "dehaze") if paired is None else paired
    return Item(dataset, split, task, name, Path("in", name) if paired else None, Path("gt", name), background)


def some(count, **what):
    return [item(f"{number:03}", background=f"{number:03}", **what) for number in range(count)]


def refused(call, *arguments) -> str:
    """The one line that something is refused with."""
    with pytest.raises(SettingsError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(items):
    return [entry.name for entry in items]


def shown(items, split):
    return {entry.background for entry in items if entry.split == split}


# --- drawing

SIZES = [(400, 0.05, 20), (4744, 0.05, 237), (200, 0.1, 20), (7, 0.5, 4), (3, 0.01, 1), (1, 0.03, 1), (5, 1.0, 5)]


@pytest.mark.parametrize(("count", "fraction", "wanted"), SIZES)
def test_the_count_is_the_fraction_rounded_and_at_least_one(count, fraction, wanted):
    assert len(splits.draw(some(count), fraction, 0)) == wanted


def test_the_order_of_files_does_not_matter_and_nothing_but_the_names_does():
    items = some(60)
    drawn = splits.draw(items, 0.2, 3)
    assert splits.draw(random.Random(0).sample(items, 60), 0.2, 3) == drawn and names(drawn) == sorted(names(drawn))
    elsewhere = [entry._replace(target=Path("C:/pictures", entry.name), dataset="copy") for entry in items]
    assert names(splits.draw(elsewhere, 0.2, 3)) == names(drawn)
    assert names(splits.draw(items, 0.2, 4)) != names(drawn)


def test_what_is_drawn_is_written_down_here_for_every_machine():
    """Published lists must be had again from their header."""
    assert names(splits.draw(some(100), 0.05, 0)) == ["014", "017", "021", "058", "066"]


@given(st.integers(1, 80), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_smaller_fraction_is_a_part_of_a_larger_one(count, one, other, seed):
    small, large = (set(names(splits.draw(some(count), share, seed))) for share in sorted((one, other)))
    assert small and small <= large


def test_each_image_is_drawn_about_as_often():
    often = Counter(name for seed in range(300) for name in names(splits.draw(some(10), 0.3, seed)))
    assert len(often) == 10 and all(60 < times < 120 for times in often.values())  # 90 on average, deviation 8


# --- validation


def test_whole_backgrounds_of_every_task_validate():
    items = [
        item(f"{scene}_{haze}", task="dehaze", background=f"sky{scene}") for scene in range(20) for haze in range(3)
    ]
    items += [item(f"{scene}", background=f"sky{scene}") for scene in range(10)]
    tests = [item(f"{scene}", split="test", background=f"sky{scene}") for scene in range(20)]
    items += tests
    after = splits.validation(items, 0.1, 1)
    assert [entry._replace(split="") for entry in after] == [entry._replace(split="") for entry in items]
    assert after[-20:] == tests, "test images stay what they are"
    aside, left = shown(after, "val"), shown(after, "train")
    assert not aside & left and aside | left == {f"sky{scene}" for scene in range(20)}
    assert len(aside) == 2 and {entry.task for entry in after if entry.split == "val"} == {"dehaze", "denoise"}


def test_images_of_unknown_background_validate_one_by_one():
    items = [item(f"{number}", background="") for number in range(10)]
    assert Counter(entry.split for entry in splits.validation(items, 0.2, 0)) == {"train": 8, "val": 2}


@pytest.mark.parametrize("seed", range(12))
def test_no_task_is_left_without_training_images(seed):
    """Two tasks have two scenes each and share one of them; the third task has all."""
    tasks = {"denoise": "ab", "derain": "bc", "jpeg": "abcd"}
    items = [item(f"{task}{scene}", task=task, background=scene) for task, own in tasks.items() for scene in own]
    after = splits.validation(items, 0.5, seed)
    for task in tasks:
        assert {entry.split for entry in after if entry.task == task} == {"train", "val"}
    triangle = [*items, item("x", task="dehaze", background="a"), item("y", task="dehaze", background="c")]
    assert "too few backgrounds" in refused(splits.validation, triangle, 0.5, seed)


# --- leak-free


def published() -> list[Item]:
    """A small world like the real one: rain whose backgrounds are trained on (0..2), tested on (10) or neither (20)."""
    items = [item(f"{n}", background=f"BSD/{n}") for n in range(6)]
    items += [item(f"{n}", split="test", dataset="CBSD68", background=f"BSD/{n}") for n in (10, 11)]
    items += [item("u", split="test", dataset="Urban100", background="Urban/u")]
    rain = {"001": 0, "002": 1, "003": 1, "004": 2, "005": 10, "006": 20, "007": 20}
    items += [item(f"{n}", "test", "derain", "Rain100L", f"BSD/{scene}") for n, scene in rain.items()]
    return items


def test_rain_goes_where_its_background_is_trained_on():
    after = splits.leak_free(published())
    rain = {split: [e.name for e in after if (e.task, e.split) == ("derain", split)] for split in ("train", "test")}
    assert rain == {"train": ["001", "002", "003", "004"], "test": ["005", "006", "007"]}
    noise = {split: [e.name for e in after if (e.task, e.split) == ("denoise", split)] for split in ("train", "test")}
    assert noise == {"train": list("012345"), "test": ["10", "11", "u"]}, "BSD400 trains, CBSD68 and Urban100 test"


def test_what_is_tested_anywhere_is_not_trained_on():
    tested = item("s1", "test", "dehaze", "SOTS", "BSD/5")
    official = [
        item("001", "train", "derain", "Rain100L", "BSD/20"),
        item("002", "train", "derain", "Rain100L", "BSD/3"),
    ]
    after = splits.leak_free([*published(), *official, tested, item("o", "train", "dehaze", "OTS", "OTS/o")])
    assert "5" not in names(e for e in after if e.split == "train") and tested in after
    rain = sorted(e.name for e in after if (e.task, e.split) == ("derain", "train"))
    assert rain == ["001_2", "002", "002_2", "003", "004"], "names that the official pairs have are taken"
    assert {e.background for e in after if e.name == "002_2"} == {"BSD/1"}
    assert "BSD/20" not in shown(after, "train"), "the official 001 shows what is tested"


def test_a_task_with_test_images_only_trains_on_half_of_what_it_alone_tests():
    alone = [item(f"{n}_{haze}", "test", "dehaze", "SOTS", f"SOTS/{n}") for n in range(7) for haze in range(2)]
    after = splits.leak_free([*published(), *alone])
    count = Counter(e.split for e in after if e.task == "dehaze")
    assert count == {"train": 6, "test": 8} and splits.leak_free([*published(), *alone]) == after
    others = [splits.leak_free([*published(), *alone], seed) for seed in range(1, 9)]
    assert any(other != after for other in others)
    assert all(e.split == "test" for e in splits.leak_free([*published(), alone[0]]) if e.task == "dehaze")


def test_what_another_task_tests_too_is_not_trained_on():
    """Of four scenes of haze, two are tested under noise: these stay, the other two train."""
    haze = [item(str(n), "test", "dehaze", "SOTS", f"BSD/{n}") for n in (10, 11, 30, 31)]
    after = splits.leak_free([*published(), *haze])
    assert {e.name: e.split for e in after if e.task == "dehaze"} == {
        "10": "test",
        "11": "test",
        "30": "train",
        "31": "train",
    }


def test_rain_alone_is_split_in_halves():
    rain = [entry for entry in published() if entry.task == "derain"]
    after = splits.leak_free(rain)
    assert len(after) == 7 and not shown(after, "train") & shown(after, "test")
    assert len(shown(after, "train")) == 2 and len(shown(after, "test")) == 3


SCENES = st.sampled_from(["", *(f"BSD/{n}" for n in range(8)), "x/1", "x/2"])
WORLD = st.lists(
    st.builds(
        item,
        st.integers(0, 30).map(str),
        st.sampled_from(["train", "test"]),
        st.sampled_from(["denoise", "derain", "dehaze", "jpeg"]),
        st.sampled_from(["BSD400", "CBSD68", "Rain100L", "SOTS", "pairs"]),
        SCENES,
    ),
    max_size=40,
    unique_by=lambda entry: (entry.split, entry.task, entry.name),
)


@given(WORLD, st.integers(0, 5), st.floats(0.05, 0.6))
@settings(max_examples=300, deadline=None)
def test_no_background_is_in_two_splits(items, seed, share):
    after = splits.leak_free(items, seed)
    assert not (shown(after, "train") & shown(after, "test")) - {""}
    assert len({(e.split, e.task, e.name) for e in after}) == len(after), "names stay unique"
    assert {e.target for e in after} <= {e.target for e in items}
    test_sets = [e for e in items if e.split == "test" and e.dataset in ("CBSD68", "pairs")]
    trained = {e.task for e in items if e.split == "train"}
    assert all(e in after for e in test_sets if e.task in trained), (
        "sets that only test, and need not train, stay whole"
    )
    try:
        final = splits.validation(after, share, seed)
    except SettingsError as error:
        assert "too few backgrounds" in str(error)
        return
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not (shown(final, one) & shown(final, other)) - {""}
    tasks = {split: {e.task for e in final if e.split == split} for split in ("train", "val")}
    assert tasks["train"] == tasks["val"] == {e.task for e in after if e.split == "train"}


# --- lists

LISTED = splits.NameList("BSD400", 0.05, 7, ("100007", "a name with spaces", "Bär"))


def test_a_list_is_read_back_and_says_how_it_was_drawn(tmp_path):
    path = tmp_path / "BSD400_train.txt"
    splits.write_list(path, LISTED)
    assert splits.read_list(path) == LISTED and list(tmp_path.iterdir()) == [path]
    digest = hashlib.sha256("100007\na name with spaces\nBär\n".encode()).hexdigest()
    assert path.read_bytes().decode().splitlines() == [
        "# dataset: BSD400",
        "# fraction: 0.05",
        "# seed: 7",
        "# count: 3",
        f"# sha256: {digest}",
        *LISTED.names,
    ]


def test_a_list_edited_on_another_system_is_read(tmp_path):
    path = tmp_path / "list.txt"
    splits.write_list(path, LISTED)
    path.write_bytes(b"# a remark\r\n\r\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert splits.read_list(path) == LISTED


def test_the_seed_and_fraction_of_a_list_draw_it_again(tmp_path):
    items = some(40)
    path = tmp_path / "list.txt"
    splits.write_list(path, splits.NameList("BSD400", 0.1, 5, tuple(names(splits.draw(items, 0.1, 5)))))
    read = splits.read_list(path)
    assert tuple(names(splits.draw(items[::-1], read.fraction, read.seed))) == read.names


EDITS = [
    ("altered name", ("100007", "100008"), "not those of its header's sha256"),
    ("two names exchanged", ("100007\na name with spaces", "a name with spaces\n100007"), "sha256"),
    ("a name too few", ("Bär\n", ""), "holds 2 names, its header says 3"),
    ("no dataset", ("# dataset: BSD400\n", ""), "has no 'dataset'"),
    ("no sum", ("# sha256", "# md5"), "has no 'sha256'"),
    ("a seed in words", ("seed: 7", "seed: seven"), "'seven'"),
    ("a fraction in words", ("0.05", "five percent"), "five percent"),
]


@pytest.mark.parametrize(("edit", "hint"), [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_a_damaged_list_is_named(tmp_path, edit, hint):
    path = tmp_path / "list.txt"
    splits.write_list(path, LISTED)
    path.write_text(path.read_text(encoding="utf-8").replace(*edit), encoding="utf-8")
    line = refused(splits.read_list, path)
    assert hint in line and str(path) in line


def test_what_is_no_list_is_named(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\xff\xfe")
    for path in (tmp_path, tmp_path / "nowhere.txt", tmp_path / "picture.png"):
        assert str(path) in refused(splits.read_list, path)


# --- bad input

RAIN = np.full((16, 20), 9, np.uint8)
GREY = np.full((16, 20, 3), 100, np.uint8)
BAD = [
    ("fraction 0", lambda: splits.draw(some(5), 0, 0), "fraction=0"),
    ("fraction below 0", lambda: splits.draw(some(5), -0.1, 0), "fraction=-0.1"),
    ("fraction above 1", lambda: splits.draw(some(5), 1.01, 0), "fraction=1.01"),
    ("fraction nan", lambda: splits.draw(some(5), float("nan"), 0), "fraction=nan"),
    ("fraction in words", lambda: splits.draw(some(5), "5 %", 0), "fraction='5 %'"),
    ("fraction true", lambda: splits.draw(some(5), True, 0), "fraction=True"),
    ("nothing to draw from", lambda: splits.draw([], 0.1, 0), "no images"),
    ("a name twice", lambda: splits.draw([item("a"), item("a")], 0.1, 0), "'a' is there twice"),
    ("share 0", lambda: splits.validation(some(5), 0, 0), "validation=0"),
    ("share 1", lambda: splits.validation(some(5), 1, 0), "validation=1"),
    ("share in words", lambda: splits.validation(some(5), "all", 0), "validation='all'"),
    ("one background", lambda: splits.validation(some(1), 0.1, 0), "denoise has too few backgrounds to train on (1)"),
    ("empty list", lambda: splits.write_list(Path("x"), LISTED._replace(names=())), "there are none"),
    ("a name twice in a list", lambda: splits.write_list(Path("x"), LISTED._replace(names=("a", "a"))), "twice"),
    ("two lines", lambda: splits.write_list(Path("x"), LISTED._replace(names=("a\nb",))), "'a\\nb'"),
    ("a remark as name", lambda: splits.write_list(Path("x"), LISTED._replace(names=("#a",))), "'#a'"),
    ("blanks at the end", lambda: splits.write_list(Path("x"), LISTED._replace(names=("a ",))), "'a '"),
    ("data set of two lines", lambda: splits.write_list(Path("x"), LISTED._replace(dataset="a\r")), "'a\\r'"),
    ("sizes differ", lambda: splits.lift_rain(GREY[1:], GREY), "input is (15, 20)"),
    ("darker", lambda: splits.lift_rain(GREY - 10, GREY), "100.0% of the pixels"),
    ("coloured", lambda: splits.lift_rain(GREY + np.uint8([0, 30, 0]), GREY), "100.0% of the pixels"),
    ("fewer than none", lambda: splits.rain_pairs(some(5), -1, 0), "rain_variants=-1"),
]


@pytest.mark.parametrize(("call", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_named_in_one_line_and_nothing_is_written(call, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hint in refused(call)
    assert not list(tmp_path.iterdir())


# --- rain


def test_lifted_rain_is_what_was_added_even_where_a_channel_saturates():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 240, (30, 40, 3), dtype=np.uint8)
    target[:5, :, 0] = 250  # red saturates, green and blue tell
    rain = np.where(rng.random((30, 40)) < 0.3, rng.integers(1, 16, (30, 40)), 0).astype(np.uint8)
    wet = np.minimum(target.astype(int) + rain[..., None], 255).astype(np.uint8)
    assert np.array_equal(splits.lift_rain(wet, target), rain)
    white = np.full_like(target, 250)
    lifted = splits.lift_rain(np.minimum(white.astype(int) + rain[..., None], 255).astype(np.uint8), white)
    assert np.array_equal(lifted, np.minimum(rain, 5)), "where all saturate, what is seen"


@pytest.mark.parametrize("size", [(16, 20), (10, 12), (40, 50), (16, 50), (40, 7)])
def test_rain_is_laid_on_a_photograph_of_any_size(size):
    rng = np.random.default_rng(1)
    layer = rng.integers(0, 60, (16, 20), dtype=np.uint8)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    before, seen = image.copy(), set()
    mirrored = {False: layer, True: layer[:, ::-1]}
    for seed in range(12):
        wet = splits.lay_rain(image, layer, np.random.default_rng(seed))
        assert wet.shape == image.shape and wet.dtype == np.uint8 and (wet >= image).all()
        black = splits.lay_rain(np.zeros_like(image), layer, np.random.default_rng(seed))[..., 0]
        assert np.array_equal(wet, np.minimum(image.astype(int) + black[..., None], 255))
        rows, columns = (np.arange(length) for length in size)
        places = [
            (flip, top, left)
            for flip, source in mirrored.items()
            for top in range(16)
            for left in range(20)
            if black[0, 0] == source[top, left]
            and np.array_equal(black, source[np.ix_((top + rows) % 16, (left + columns) % 20)])
        ]
        assert places, "the layer, cut out or going on from its opposite edge"
        seen.add(places[0])
    assert {flip for flip, *_ in seen} == {False, True} and np.array_equal(image, before)


def test_rain_that_does_not_fit_goes_on_without_a_seam_where_it_fits():
    image = np.zeros((40, 10, 3), np.uint8)
    columns = np.broadcast_to(np.arange(20, dtype=np.uint8), (16, 20))  # tells where it was cut
    for seed in range(10):
        laid = splits.lay_rain(image, columns, np.random.default_rng(seed))[0, :, 0].astype(int)
        assert set(np.diff(laid)) in ({1}, {-1}), "ten columns of twenty: no jump"


def test_lifting_what_was_laid_gives_it_back():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 180, (24, 30, 3), dtype=np.uint8)
    layer = rng.integers(0, 70, (24, 30), dtype=np.uint8)
    wet = splits.lay_rain(image, layer, np.random.default_rng(3))
    lifted = splits.lift_rain(wet, image)
    assert any(np.array_equal(lifted, view) for view in (layer, layer[:, ::-1]))


def test_rain_of_training_pairs_falls_on_other_training_photographs():
    items = [*splits.leak_free(published()), item("v", split="val", background="v")]
    pairs = splits.rain_pairs(items, 2, 0)
    assert len(pairs) == 2 * 6 and len({pair.item.name for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.source.split == pair.item.split == "train" and pair.source.task == "derain"
        assert pair.item.task == "derain" and pair.item.input is None and pair.item.dataset == "BSD400"
        assert pair.item.background != pair.source.background, "never on its own photograph"
    by_photograph = {}
    for pair in pairs:
        by_photograph.setdefault(pair.item.background, []).append(pair.source.name)
    assert all(len(set(rain)) == 2 for rain in by_photograph.values()), "each time other rain"
    assert splits.rain_pairs(items[::-1], 2, 0) == pairs and splits.rain_pairs(items, 2, 1) != pairs
    assert not splits.rain_pairs(items, 0, 0)
    assert not splits.rain_pairs([entry for entry in items if entry.task == "denoise"], 2, 0)


def test_more_variants_than_rain_use_it_again_and_each_is_laid_in_its_own_way():
    items = [item("p", background="p"), item("r", task="derain", dataset="Rain100L", background="r")]
    pairs = splits.rain_pairs(items, 3, 0)
    assert [pair.source.name for pair in pairs] == ["r", "r", "r"]
    draws = [pair.generator().random() for pair in pairs]
    assert len(set(draws)) == 3 and draws == [pair.generator().random() for pair in pairs]


# --- real images


@pytest.fixture(scope="module")
def real(shared_data) -> list[Item]:
    """BSD400, CBSD68 and the test pairs of Rain100L, with the backgrounds that were measured."""
    photographs = shared_data / "BSR/BSDS500/data/images"
    cbsd68 = set((shared_data / "BSD68.txt").read_text().split())
    items = []
    for split in ("train", "test", "val"):
        for path in sorted((photographs / split).glob("*.jpg")):
            known = ("CBSD68", "test") if split == "val" else ("BSD400", "train")
            if split != "val" or path.stem in cbsd68:
                items.append(Item(*known, "denoise", path.stem, None, path, f"BSD/{path.stem}"))
    for line in (shared_data / "rain100l_backgrounds.csv").read_text().split()[1:]:
        name, _, number = line.split(",")
        pair = [shared_data / "Rain100L" / kind / f"{name}.png" for kind in ("input", "target")]
        items.append(Item("Rain100L", "test", "derain", name, *pair, f"BSD/{number}"))
    return items


def test_the_real_sets_are_split_without_a_leak(real):
    after = splits.leak_free(real)
    count = Counter((e.dataset, e.split) for e in after)
    assert count == {
        ("BSD400", "train"): 400,
        ("CBSD68", "test"): 68,
        ("Rain100L", "train"): 75,
        ("Rain100L", "test"): 25,
    }
    assert not shown(after, "train") & shown(after, "test")
    assert len({e.background for e in real if e.dataset == "Rain100L"}) == 91
    final = splits.validation(after, 0.1, 0)
    assert not shown(final, "val") & (shown(final, "train") | shown(final, "test"))
    assert {e.task for e in final if e.split == "val"} == {"denoise", "derain"}


def test_real_rain_is_lifted_exactly_and_as_dry_as_measured(real):
    dry = []
    for pair in [entry for entry in real if entry.task == "derain"][::5]:
        wet, clean = (np.asarray(Image.open(path)) for path in (pair.input, pair.target))
        layer = splits.lift_rain(wet, clean)
        dry.append(np.mean(layer == 0))
        assert np.array_equal(np.minimum(clean.astype(int) + layer[..., None], 255), wet), "laid back, it is the input"
        photograph = np.zeros((64, 64, 3), np.uint8)
        assert splits.lay_rain(photograph, layer, np.random.default_rng(0)).any(axis=-1).mean() < 0.9
    assert 0.5 < np.mean(dry) < 0.8
