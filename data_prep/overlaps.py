"""Which photographs are in several sets of a prepared folder, and whether its manifest says so."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from data_prep import duplicates
from data_prep.words import counted

OVERLAPS = ("dataset", "split", "images", "of", "other_dataset", "other_split", "other_images", "other_of")
DISAGREEMENTS = ("first", "second", "background", "other_background", "same", "correlation")


def scenes(rows: pd.DataFrame, contents: pd.Series, pairs: np.ndarray) -> pd.DataFrame:
    """Numbers the photographs behind the clean images.

    Args:
        rows: of the manifest.
        contents: by path, which distinct content (0 to N - 1) the file has.
        pairs: (P, 2) int, contents that show the same photograph.

    Returns:
        ``dataset, split, target, background, content, scene``: one line for each clean image of a set, test sets first.
    """
    images = rows.loc[rows.target.isin(contents.index), ["dataset", "split", "target", "background"]].drop_duplicates()
    images = images.sort_values(["split", "dataset", "target"], key=_test_first, ignore_index=True)
    images["content"] = images.target.map(contents).astype(int)
    return images.assign(scene=duplicates.scenes(contents.nunique(), pairs)[images.content])


def overlaps(images: pd.DataFrame) -> pd.DataFrame:
    """Counts, for any two sets that share photographs, the images of each that are in the other; see OVERLAPS.

    Images for validation are drawn from those for training, so they count with them; what the two share comes last.
    """
    both = images.dataset.isin(images.dataset[images.split == "val"]).map({True: "train and val", False: "train"})
    pooled = _shared(images.assign(split=images.split.where(images.split == "test", both)))
    within = _shared(images[images.split != "test"])
    return pd.concat([pooled, within[within.split != within.other_split]], ignore_index=True)


def _shared(images: pd.DataFrame) -> pd.DataFrame:
    sets = {
        name: part.drop_duplicates("target").scene for name, part in images.groupby(["dataset", "split"], sort=False)
    }
    found = []
    for (one, first), (other, second) in combinations(sets.items(), 2):
        if shared := first.isin(second).sum():
            found.append((*one, shared, len(first), *other, second.isin(first).sum(), len(second)))
    return pd.DataFrame(found, columns=OVERLAPS)


def disagreements(images: pd.DataFrame, thumbnails: np.ndarray) -> pd.DataFrame:
    """Compares the column ``background`` with what the pixels say.

    Args:
        images: as ``scenes`` returns them.
        thumbnails: (N, 64, 64) uint8, of each content.

    Returns:
        One line (see DISAGREEMENTS) for each image that shows the same photograph as another but has another
        background or none, and for each photograph that has the background of another one.
    """
    found = []
    for same, by, other in ((True, "scene", "background"), (False, "background", "scene")):
        for label, part in images.groupby(by, sort=False):
            if label == "":
                continue
            first, *rest = part.drop_duplicates(["target", "background"] if same else other).itertuples()
            for second in rest:
                if not same or first.background != second.background or not first.background:
                    alike = duplicates.correlation(thumbnails[first.content], thumbnails[second.content])
                    found.append((first.target, second.target, first.background, second.background, same, alike))
    return pd.DataFrame(found, columns=DISAGREEMENTS)


def leaks(images: pd.DataFrame) -> Iterator[str]:
    """Names the sets whose training images show tested photographs without the column ``background`` saying so."""
    tested = images[images.split == "test"]
    unmarked = ~images.background.isin(set(tested.background) - {""})
    leaking = images[(images.split != "test") & images.scene.isin(tested.scene) & unmarked].drop_duplicates("target")
    for (dataset, split), part in leaking.groupby(["dataset", "split"], sort=False):
        first = part.iloc[0]
        twin = tested[tested.scene == first.scene].iloc[0].target
        yield (
            f"{title(dataset, split)}: column background does not say that photographs of the test split are here, in "
            f"{counted(len(part), 'image')} (first: {first.target} is {twin})"
        )


def title(dataset: str, split: str) -> str:
    """How a set is called in a sentence."""
    return f"{dataset} {split}".strip()


def _test_first(column: pd.Series) -> pd.Series:
    return column.map({"test": 0, "val": 1, "train": 2}).fillna(3) if column.name == "split" else column
