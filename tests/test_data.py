import csv

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
        for task in ("denoise", "derain", "dehaze"):
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


def test_patches_are_cut_from_the_images_pairwise(folder):
    bank = load(folder, setting="derain")
    bad, clean = (np.asarray(Image.open(folder / f"train_derain_{kind}.png")) for kind in ("bad", "clean"))
    degraded, target = (
        t.mul(255).round().permute(0, 2, 3, 1).numpy() for t in bank.batch(16, 16, seed=0, order=0, step=0)
    )
    views = [(a, b) for a, b in ((bad[::v, ::h], clean[::v, ::h]) for v in (1, -1) for h in (1, -1))]
    seen = set()
    for patch, wanted in zip(degraded, target, strict=True):
        places = [
            (index, top, left)
            for index, (whole, other) in enumerate(views)
            for top in range(24 - 15)
            for left in range(40 - 15)
            if (whole[top : top + 16, left : left + 16] == patch).all()
            and (other[top : top + 16, left : left + 16] == wanted).all()
        ]
        assert len(places) == 1, "a patch and its target come from the same place of one pair, flipped alike"
        seen.add(places[0][0])
    assert seen == {0, 1, 2, 3}, "all four flips occur"


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
    path = folder / "train_derain_bad.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert load(folder).fingerprint != before


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
