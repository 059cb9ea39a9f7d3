"""The example folder of notebook 01: it holds what the notebook says it holds."""

import pytest

from data_prep import embedded, example, importing, layouts, verify
from mirl_study.store import project_root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    prepared = embedded.prepare(project_root() / "data" / "embedded")
    return example.example(prepared, tmp_path_factory.mktemp("somewhere") / "downloads")


def test_it_is_recognised_and_what_is_wrong_with_it_is_left_out(folder):
    found = layouts.find(folder)
    assert {(item.dataset, item.split, item.task) for item in found.items} == {
        ("BSD400", "train", "denoise"),
        ("CBSD68", "test", "denoise"),
        ("Rain100L", "test", "derain"),
    }
    assert {path.name for path, _ in found.unmatched} == {folder.name, "rain-100.png"}


def test_photographs_that_train_and_are_tested_are_found_and_do_not_leak(folder, tmp_path):
    shared = {}
    for split in importing.SPLITS:
        report = importing.import_folder(folder, tmp_path / split, split=split, progress=False)
        checked = verify.verify(report.folder, progress=False)
        assert checked.ok
        shared[split] = sum("test" in {row.split, row.other_split} for row in checked.overlaps.itertuples())
    assert shared == {"paper": 1, "leak_free": 0}
    paper = verify.verify(tmp_path / "paper", progress=False).overlaps.iloc[0]
    assert (paper.dataset, paper.images, paper.of, paper.other_images, paper.other_of) == ("Rain100L", 2, 3, 2, 4)
