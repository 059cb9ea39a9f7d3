"""One photograph has one background, whatever its files are called."""

from pathlib import Path

import numpy as np
from PIL import Image
from test_duplicates import photograph

from data_prep import backgrounds
from data_prep.items import Item


def item(folder: Path, background: str, image: np.ndarray | None, **options) -> Item:
    path = folder / f"{background.replace('/', '_')}.{'jpg' if options else 'png'}"
    if image is None:
        path.write_text("no image")
    else:
        Image.fromarray(image).save(path, **options)
    return Item("pairs", "train", "denoise", path.stem, None, path, background)


def unified(*items: Item) -> list[str]:
    after = backgrounds.unify(items, progress=False)
    assert [entry._replace(background="") for entry in after] == [entry._replace(background="") for entry in items]
    return [entry.background for entry in after]


def test_the_first_of_several_names_is_kept_and_others_stay(tmp_path):
    items = [item(tmp_path, name, photograph(0)) for name in ("pairs/z", "pairs/a")]
    again = item(tmp_path, "pairs/jpeg", photograph(0), quality=80)
    assert unified(*items, again, item(tmp_path, "pairs/0", photograph(1))) == [*["pairs/a"] * 3, "pairs/0"]


def test_a_name_of_the_berkeley_set_wins(tmp_path):
    items = [item(tmp_path, name, photograph(0)) for name in ("A/1", "BSD/9", "BSD/8")]
    assert unified(*items) == ["BSD/8"] * 3


def test_who_shared_a_name_still_does(tmp_path):
    """Two photographs of one name, each found under another one as well: a chain."""
    first, second = item(tmp_path, "m/1", photograph(0)), item(tmp_path, "m/2", photograph(1))
    others = [item(tmp_path, "z/1", photograph(0)), item(tmp_path, "a/1", photograph(1))]
    assert unified(first, second._replace(background="m/1"), *others) == ["a/1"] * 4


def test_what_is_no_image_keeps_its_name(tmp_path):
    assert unified(item(tmp_path, "b", None), item(tmp_path, "a", photograph(0))) == ["b", "a"]
    assert unified(item(tmp_path, "b", None)) == ["b"] and unified() == []
