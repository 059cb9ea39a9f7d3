"""One name for one photograph: what names do not tell of two images that show the same, their pixels do."""

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from data_prep import duplicates, images
from data_prep.items import Item
from mirl_study.settings import SettingsError


def unify(items: Sequence[Item], progress: bool = True) -> list[Item]:
    """Gives one background to all items whose clean images show the same photograph.

    Args:
        items: as found; what has one background already keeps one.
        progress: whether to draw a bar.

    Returns:
        The items in their order. Of several names of a photograph one of BSD's is kept, or else the first.
    """
    thumbnails, shown = [], []
    targets = {item.target: item.background for item in items}
    for path in tqdm(targets, disable=not progress or None, file=sys.stdout, unit="image", desc="compare", ncols=110):
        try:
            thumbnails.append(duplicates.thumbnail(images.read(path)))
        except SettingsError:  # an image that cannot be used is refused when it is to be written, with all others
            continue
        shown.append(targets[path])
    if not thumbnails:
        return list(items)
    names = sorted({item.background for item in items}, key=lambda name: (not name.startswith("BSD/"), name))
    number = {name: place for place, name in enumerate(names)}
    places = np.array([number[name] for name in shown])
    scenes = duplicates.scenes(len(names), places[duplicates.near_duplicates(np.stack(thumbnails))[0]])
    _, first = np.unique(scenes, return_index=True)  # the names are sorted: the first of each scene is the one to keep
    return [item._replace(background=names[first[scenes[number[item.background]]]]) for item in items]
