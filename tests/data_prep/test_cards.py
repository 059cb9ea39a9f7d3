"""The card says what was measured, holds together, and is written whole or not at all."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_verify import look, make, plant, truncate

from data_prep import cards, contact_sheet
from mirl_study.settings import SettingsError

OWN = ("card.json", "card.md", "contact_sheet.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    return make(tmp_path / "prepared")


def write(folder: Path, **extra) -> tuple[dict, str]:
    card = cards.write_card(folder, look(folder), extra)
    assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == card
    return card, (folder / "card.md").read_text(encoding="utf-8")


def test_the_card_tells_what_was_measured(folder):
    plant(folder, "rain/11")
    result = look(folder)
    card, page = write(folder, Split="paper", Notes=["a | b", "c"], Recognised=[])
    assert "| Rain100L | derain | test | 2 |" in page and f"{result.psnr['mean'].iloc[0]:.2f}" in page
    assert "1 of the 2 images of Rain100L test show photographs that are in BSD400 train too" in page
    assert "| WED | denoise | train | 2 | train and val: 3 (4744 are published for train) |" in page
    assert "- **Split**: paper\n" in page and "\n  - a \\| b\n  - c\n" in page and "- **Recognised**: none" in page
    for source in card["sources"]:
        assert source["licence"] in page and source["citation"] in page
    assert [source["dataset"] for source in card["sources"]] == ["WED", "Rain100L", "BSD400"]
    (lines,) = card["splits"].values()
    assert card["overlaps"]["pairs"][0]["correlation"] > 0.9 and lines[0] == "# dataset: Rain100L"
    assert "| Rain100L_derain_train.txt | 1 |" in page
    assert card["image_rule"] in page and "## Problems" not in page


def test_every_file_has_its_digest(folder):
    card, page = write(folder)
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(card["files"]) == on_disk - {"card.json"}
    for name, digest in card["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(card["files"].items()) if name not in OWN)
    assert hashlib.sha256(lines.encode()).hexdigest() in page
    assert look(folder).ok
    (folder / "card.md").write_text("mine")
    assert look(folder).altered == ["card.md: is not what card.json tells of"]
    assert write(folder) == (card, page) and look(folder).ok  # the same again


def test_problems_stand_in_the_card(folder):
    truncate(folder)
    card, page = write(folder)
    assert card["problems"] and f"## Problems\n\n- {card['problems'][0]}" in page


def test_long_lists_are_cut_on_the_page_only(folder):
    card, page = write(folder, Left=[f"file{number}" for number in range(80)])
    assert "file49" in page and "file50" not in page and "... and 30 more: see `card.json`" in page
    assert len(card["made"]["Left"]) == 80


@pytest.mark.parametrize("before", [False, True])
def test_all_or_nothing(folder, monkeypatch, before):
    if before:
        write(folder)
    old = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verification = look(folder)

    def fails(card):
        raise OSError("disk full")

    monkeypatch.setattr(cards, "_as_markdown", fails)
    with pytest.raises(SettingsError, match=r"cannot be written \(disk full\)"):
        cards.write_card(folder, verification, {"new": "words"})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == old


def test_an_image_that_is_gone_since_leaves_no_card(folder):
    verification = look(folder)
    (folder / "test/t11.png").unlink()
    with pytest.raises(SettingsError, match=r"t11\.png"):
        cards.write_card(folder, verification, {})
    assert not any((folder / name).exists() for name in OWN)


def test_a_card_of_another_kind_is_left_alone(folder):
    (folder / "card.json").write_text('{"seed": 0, "files": {}}')
    with pytest.raises(SettingsError, match="card.json: was written by another preparation"):
        write(folder)
    assert not (folder / "card.md").exists()
    (folder / "card.json").write_text("half a ca")
    write(folder)


@pytest.mark.parametrize("name", OWN)
def test_a_folder_in_the_way_is_named_before_anything_is_written(folder, name):
    write(folder)
    old = {other: (folder / other).read_bytes() for other in OWN if other != name}
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(SettingsError, match=f"{name}: is a folder"):
        cards.write_card(folder, look(folder), {"new": "words"})
    assert {other: (folder / other).read_bytes() for other in old} == old


def test_contact_sheet_shows_input_over_target(folder):
    result = look(folder)
    sheet = np.asarray(contact_sheet.contact_sheet(folder, result.rows[result.rows.split == "test"]))
    width, height = contact_sheet.CELL
    left, top = contact_sheet.LEFT, contact_sheet.HEADER
    for line, name in enumerate(("i12", "t12")):  # the lower input PSNR first
        start = top + line * (height + contact_sheet.GAP)
        with Image.open(folder / f"test/{name}.png") as image:
            scale = min(width / image.width, height / image.height)
            middle = np.asarray(image).mean(axis=(0, 1))
        drawn = sheet[start : start + height, left : left + width]
        inside = int(min(height, 96 * scale)) - 8, int(min(width, 144 * scale)) - 8
        rows, columns = (
            slice((whole - part) // 2, (whole + part) // 2) for whole, part in zip((height, width), inside, strict=True)
        )
        assert np.abs(drawn[rows, columns].mean(axis=(0, 1)) - middle).max() < 3
    both = contact_sheet.contact_sheet(folder, result.rows)
    assert both.height > sheet.shape[0] and both.width == sheet.shape[1]


def test_long_names_keep_both_ends():
    assert contact_sheet._short("short", 20) == "short"
    short = contact_sheet._short("a_very_long_name_of_an_image_0001_0.8_0.2", 20)
    assert len(short) <= 20 and short.startswith("a_very") and short.endswith("_0.2")
