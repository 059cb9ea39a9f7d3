"""Which degraded image belongs to which clean one, told by their names."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_HAZE = re.compile(r"(.+?)_\d*\.?\d+_\d*\.?\d+")  # scene, airlight A and scattering beta
_AFFIXES = re.compile(r"^(no)?rain-|_(rainy|hazy|gt|clean|norain|rain)$", re.IGNORECASE)


class Pair(NamedTuple):
    """A degraded image and its clean one; ``scene`` is what the images of one clean image have in common."""

    key: str
    scene: str
    input: Path
    target: Path


def key(path: Path) -> str:
    """What a degraded image's name and its clean image's have in common: ``rain-001_gt`` is ``001``."""
    return _AFFIXES.sub("", _AFFIXES.sub("", path.stem))


def match(
    degraded: Iterable[Path], clean: Iterable[Path], hazy: bool = False
) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """Pairs the images of one place.

    Rain100L's oldest copies call the rainy ``1x2`` what is ``1`` without rain. One clean image may have many hazy ones,
    ``ID_A_beta``.

    Args:
        degraded: images to restore.
        clean: what they should become.
        hazy: whether two numbers at the end of a name may be those of haze.

    Returns:
        Pairs, and what belongs to none or to more than one, with the reason.
    """
    inputs, targets = defaultdict(list), defaultdict(list)
    for path in degraded:
        inputs[re.sub(r"^(\d+)x2$", r"\1", key(path))].append(path)
    for path in clean:
        targets[key(path)].append(path)
    pairs, left, used = [], [], set()
    for name, same in inputs.items():
        scene = parts[1] if hazy and (parts := _HAZE.fullmatch(name)) else name
        fitting = targets.get(name) or targets.get(scene, [])
        used.update(fitting)
        if len(same) > 1:
            left += [(path, f"{len(same)} degraded images of the same name {name!r}; one is wanted") for path in same]
        elif len(fitting) > 1:
            left.append((same[0], f"candidates for its clean image: {', '.join(path.name for path in fitting)}"))
        elif not fitting:
            left.append((same[0], "no clean image fits it"))
        else:
            pairs.append(Pair(name, scene, same[0], fitting[0]))
    left += [(path, "no degraded image fits it") for paths in targets.values() for path in paths if path not in used]
    return pairs, left
