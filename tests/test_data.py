import csv
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image

from mirl_study import load_settings
from mirl_study.data import load_bank
from mirl_study.settings import SettingsError
from mirl_study.store import project_root


@pytest.fixture
def folder(tmp_path):
    """A prepared folder of three small images for each task."""
    rng = np.random.default_rng(0)
    rows = []
    for split in ("train", "val", "test"):
        for task in ("denoise", "derain", "dehaze", "jpeg"):
            for kind in ("clean", "bad")[: 1 if task == "denoise" else 2]:
                Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(
                    tmp_path / f"{split}_{task}_{kind}.png"
                )
            bad = "" if task == "denoise" else f"{split}_{task}_bad.png"
            rows.append((split, task, "one", bad, f"{split}_{task}_clean.png"))
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("split", "task", "name", "input", "target"), *rows])
    return tmp_path


def load(folder, split="train", **overrides):
    return load_bank(load_settings("smoke", data=str(folder), **overrides), split, project_root())


def test_a_batch_is_a_function_of_seed_order_and_step(folder):
    bank = load(folder)
    first = bank.batch(8, 16, seed=1, order=0, step=5)
    bank.batch(8, 16, seed=2, order=0, step=0)
    again = bank.batch(8, 16, seed=1, order=0, step=5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for change in ({"seed": 2}, {"order": 1}, {"step": 6}):
        other = bank.batch(8, 16, **{"seed": 1, "order": 0, "step": 5, **change})
        assert not torch.equal(first[1], other[1])


SQUARE = [(turns, flip) for turns in range(4) for flip in (False, True)]  # the eight symmetries of a square


@pytest.mark.parametrize(
    ("augmentation", "wanted"),
    [
        ("flips", {(0, False), (0, True), (2, False), (2, True)}),  # two flips are half a turn
        ("dihedral", set(SQUARE) - {(0, False)}),  # never the patch as it is
    ],
)
def test_patches_are_cut_from_the_images_pairwise(folder, augmentation, wanted):
    bank = load(folder, setting="derain", augmentation=augmentation)
    bad, clean = (np.asarray(Image.open(folder / f"train_derain_{kind}.png")) for kind in ("bad", "clean"))
    degraded, target = (
        t.mul(255).round().permute(0, 2, 3, 1).numpy() for t in bank.batch(48, 16, seed=0, order=0, step=0)
    )
    cuts = [(slice(top, top + 16), slice(left, left + 16)) for top in range(24 - 15) for left in range(40 - 15)]
    seen = []
    for patch, other in zip(degraded, target, strict=True):
        back = {}
        for turns, flip in SQUARE:
            views = [np.rot90(image, -turns) for image in (patch, other)]
            back[turns, flip] = [view[:, ::-1] if flip else view for view in views]
        changes = [
            change
            for change, (ours, others) in back.items()
            for cut in cuts
            if (bad[cut] == ours).all() and (clean[cut] == others).all()
        ]
        assert len(changes) == 1, "a patch and its target come from the same place of one pair, turned alike"
        seen += changes
    assert set(seen) == wanted


def test_the_flips_of_a_batch_restated(folder):
    """Written once more, in numpy: earlier results can be had again to the bit only if nobody draws in between."""
    settings = load_settings("smoke", data=str(folder))
    bank = load(folder)
    for step in (0, 7):
        rng = np.random.Generator(np.random.Philox(key=3, counter=[0, 0, step, 1]))
        noisy, clean, sigmas = [], [], []
        for place in range(6 * step, 6 * step + 6):
            task = ("denoise", "derain", "dehaze")[place % 3]
            rng.integers(1)  # one image a task: the first
            top, left = rng.integers(24 - 15), rng.integers(40 - 15)
            up, over = (slice(None, None, -1 if rng.integers(2) else 1) for _ in range(2))
            for patches, kind in ((noisy, "clean" if task == "denoise" else "bad"), (clean, "clean")):
                image = np.asarray(Image.open(folder / f"train_{task}_{kind}.png"))
                patches.append(image[top : top + 16, left : left + 16][up, over].transpose(2, 0, 1) / np.float32(255))
            sigmas += [(15, 25, 50)[place // 3 % 3]] if task == "denoise" else []
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(2, 3, 16, 16, generator=generator).numpy() * np.float32(sigmas)[:, None, None, None]
        for place, layer in zip((0, 3), noise, strict=True):
            grey = np.clip(layer + np.float32(255) * noisy[place], 0, 255)
            noisy[place] = np.round(grey) / np.float32(255)
        degraded, target = bank.batch(6, 16, seed=3, order=1, step=step)
        assert settings.augmentation == "flips" and settings.noise_rounding == "round"
        np.testing.assert_array_equal(target.numpy(), np.stack(clean))
        np.testing.assert_allclose(degraded.numpy(), np.stack(noisy), atol=1e-6)


def test_noise_is_rounded_as_the_settings_say(folder):
    draws = {}
    for rounding in ("none", "round", "truncate"):
        bank = load(folder, setting="denoise", noise_rounding=rounding)
        sample = next(iter(bank.samples())).degraded
        draws[rounding] = torch.cat([bank.batch(4, 16, seed=0, order=0, step=0)[0].flatten(), sample.flatten()]) * 255
    whole = draws["none"]
    assert (whole - whole.round()).abs().mean() > 0.1
    off_by_rounding = (whole - whole.floor() - 0.5).abs() < 1e-3
    torch.testing.assert_close(draws["round"][~off_by_rounding], whole.round()[~off_by_rounding])
    on_a_level = (whole - whole.round()).abs() < 1e-3
    torch.testing.assert_close(draws["truncate"][~on_a_level], whole.floor()[~on_a_level])


OVERLAP = [  # (background of each split's rain image, splits that lose it)
    ({"train": "bridge", "val": "river", "test": "bridge"}, {"train"}),
    ({"train": "river", "val": "bridge", "test": "bridge"}, {"val"}),
    ({"train": "bridge", "val": "bridge", "test": "bridge"}, {"train", "val"}),
    ({"train": "bridge", "val": "bridge", "test": "river"}, set()),
    ({"train": "", "val": "", "test": ""}, set()),  # not known: not the same
    ({"train": "7", "val": "8", "test": "7"}, {"train"}),  # names that look like numbers
    (None, set()),  # no such column
]


@pytest.mark.parametrize(("backgrounds", "lost"), OVERLAP)
@pytest.mark.parametrize("drop", [True, False])
def test_what_shows_a_test_image_is_left_out_of_training(folder, drop, backgrounds, lost):
    """Whatever the task: a background that is tested in rain leaves the noisy training images too."""
    rows = [("split", "task", "name", "input", "target", "background")]
    for split in ("train", "val", "test"):
        for task in ("denoise", "derain", "dehaze"):
            bad = "" if task == "denoise" else f"{split}_{task}_bad.png"
            shown = "" if task == "dehaze" or (task, split) == ("denoise", "test") else (backgrounds or {}).get(split)
            rows.append((split, task, "one", bad, f"{split}_{task}_clean.png", shown))
            rows.append((split, task, "two", bad, f"{split}_{task}_clean.png", f"sky of {split}"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows if backgrounds else [row[:-1] for row in rows])
    for split in ("train", "val", "test"):
        left = {task: [row.name for row in rows] for task, rows in load(folder, split, drop_overlap=drop).rows.items()}
        some = ["two"] if drop and split in lost else ["one", "two"]
        assert left == {"denoise": some, "derain": some, "dehaze": ["one", "two"]}


def test_a_family_that_the_overlap_empties_is_told_why(folder):
    with (folder / "manifest.csv").open() as file:
        header, *rows = csv.reader(file)
    with (folder / "manifest.csv").open("w", newline="") as file:
        shown = {"derain": "the same hill"}
        csv.writer(file).writerows([[*header, "background"], *([*row, shown.get(row[1], "")] for row in rows)])
    with pytest.raises(SettingsError, match="no train images for derain in .*: drop_overlap leaves out all 1, "):
        load(folder)
    assert len(load(folder, drop_overlap=False).rows["derain"]) == 1


def test_tasks_and_noise_levels_take_turns(folder):
    bank = load(folder)
    errors = torch.cat([a - b for a, b in (bank.batch(9, 24, seed=0, order=0, step=step) for step in range(2))])
    spread = (errors.flatten(1).std(1) * 255).view(6, 3)
    noise = spread[:, 0]  # denoise comes first in each turn of three families; its sigmas take turns too
    for sigma, measured in zip((15, 25, 50, 15, 25, 50), noise.tolist(), strict=True):
        assert 0.6 * sigma < measured < 1.1 * sigma  # clipping takes some away


def test_whole_images_are_the_same_for_everybody(folder):
    first, again = (list(load(folder, "test", seed=seed).samples()) for seed in (0, 1))
    assert [(s.task, s.name) for s in first] == [
        (t, "one") for t in ("denoise15", "denoise25", "denoise50", "derain", "dehaze")
    ]
    assert all(
        torch.equal(a.degraded, b.degraded) and torch.equal(a.target, b.target)
        for a, b in zip(first, again, strict=True)
    )
    assert first[0].degraded.shape == (1, 3, 24, 40)


def test_the_fingerprint_follows_pixels_and_pairs(folder):
    before = load(folder).fingerprint
    assert before == load(folder).fingerprint != load(folder, "val").fingerprint
    with (folder / "manifest.csv").open("a") as file:  # the same pixels once more, under another name
        file.write("train,derain,two,train_derain_bad.png,train_derain_clean.png\n")
    twice = load(folder).fingerprint
    assert twice != before
    path = folder / "train_derain_bad.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert load(folder).fingerprint not in (before, twice)


MADE_WITH = {"numpy": "2.4.6", "scipy": "1.17.1", "pillow": "13.0.0", "scikit-image": "0.26.0"}
EMBEDDED = {  # fingerprints of the embedded data by setting: train, val, test
    "all_in_one": (
        "ef70cb2fbe0d0f55a67241b709ffb5a8b5e29b600539d4e01d1adc3a80926f4b",
        "64bf24f9a624b829feb26e019d567f42178042ed1e2db61f266d26ead4cbabfb",
        "63cdbddaa3f6644a0b169d4fcc09455d1c88eceeca05900889fb28703a26db79",
    ),
    "derain": (
        "547f4d9ba6acf169cc9d1f80b262030c5241ea34c5236a3d62ec90460e6ded99",
        "990b234d07211096cb434dcf90c47fb9e926d8fd1747a85f0d4472b682078d46",
        "9cfc50c32fd07b3d29c2632ec7741d06737284576db859199b8b7e459d3583ec",
    ),
    "dehaze": (
        "1f689d2ade4ab77977a1582cf2c88d600ca5823cccd8fde9d0f6f27f70564db5",
        "4409eaaed0d04de02d9017cfe6223f41c11de88db1f1564b0064d208dbcb3a09",
        "e3d1dbcade8a012b9e9636d7cd0a140a0ba29dde842a14bb253f140e06ac782f",
    ),
    "denoise": (
        "d453e322dc79585a322da0563fa058e07a80426458ffd952d6b9365425dbaf69",
        "923d7e2fc23bd03caf92c26226c84ca4a102ff01ad883183cced4c22080df7e8",
        "8fb95ff5904ae47d7b0e81186c1ba6f4df6d4c3327adef2075c248af59e6c2ae",
    ),
}


@pytest.mark.parametrize("setting", EMBEDDED)
def test_the_embedded_data_are_those_of_earlier_results(setting):
    """Runs on disk belong to their data: another task, card or manifest column must not change these."""
    others = [name for name, made_with in MADE_WITH.items() if version(name) != made_with]
    if others:
        pytest.skip(f"the images depend on the versions of {', '.join(others)}, which are others here")
    settings = load_settings("laptop", setting=setting)
    banks = [load_bank(settings, split, project_root()) for split in ("train", "val", "test")]
    assert tuple(bank.fingerprint for bank in banks) == EMBEDDED[setting]


def test_the_traces_of_a_social_network_are_stored_pairs_of_a_setting_of_their_own(folder):
    assert list(load(folder).rows) == ["denoise", "derain", "dehaze"], "all-in-one is the paper's"
    bank = load(folder, setting="jpeg")
    assert {family: [row.name for row in rows] for family, rows in bank.rows.items()} == {"jpeg": ["one"]}
    degraded, target = bank.batch(4, 16, seed=0, order=0, step=0)
    assert not torch.equal(degraded, target)
    samples = list(load(folder, "test", setting="jpeg").samples())
    assert [(sample.task, sample.name) for sample in samples] == [("jpeg", "one")]
    stored = np.asarray(Image.open(folder / "test_jpeg_bad.png"))
    assert np.array_equal(samples[0].degraded[0].permute(1, 2, 0).mul(255).round().numpy(), stored)


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def redraw(height, width, mode="RGB"):
    return lambda path: Image.fromarray(np.zeros((height, width, 3), np.uint8)).convert(mode).save(path)


BAD = [
    ("truncated", truncate, "train_derain_bad.png", "cannot be read"),
    ("text", lambda path: path.write_text("no image"), "train_derain_bad.png", "cannot be read"),
    ("empty", lambda path: path.write_bytes(b""), "train_derain_bad.png", "cannot be read"),
    ("missing", lambda path: path.unlink(), "train_derain_bad.png", "cannot be read"),
    ("grey", redraw(24, 40, "L"), "train_derain_bad.png", "mode 'L'"),
    ("with alpha", redraw(24, 40, "RGBA"), "train_derain_bad.png", "mode 'RGBA'"),
    ("tiny", redraw(8, 40), "train_derain_bad.png", "40x8 pixels"),
    ("other size than its pair", redraw(24, 32), "train_derain_bad.png", "differ in size"),
    ("patch larger than the image", redraw(24, 16), "train_denoise_clean.png", "at most 16"),
]


@pytest.mark.parametrize(("damage", "name", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_images_are_named_in_one_line(folder, damage, name, hint):
    damage(folder / name)
    with pytest.raises(SettingsError) as caught:
        load(folder, patch_size=24)
    assert name in str(caught.value) and hint in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_prepared_and_a_setting_without_images(folder, tmp_path):
    with pytest.raises(SettingsError, match="neither 'embedded' nor a prepared folder"):
        load(tmp_path / "nowhere")
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text("".join(line for line in text.splitlines(True) if ",dehaze," not in line))
    with pytest.raises(SettingsError, match="no train images for dehaze"):
        load(folder)
    assert load(folder, setting="derain").rows.keys() == {"derain"}
