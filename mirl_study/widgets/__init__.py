"""The lab's widgets: panels of choices, a picture and words, on finished runs; nothing is trained in a callback."""

from mirl_study.widgets import exercises, predictions
from mirl_study.widgets.explorers import Viewer, browse
from mirl_study.widgets.lab import Lab
from mirl_study.widgets.panel import Choice, Panel, is_live
from mirl_study.widgets.stations import degrade, explore, luck, play, prune, scopes
from mirl_study.widgets.told import FOUR, told_answer, told_controls, told_families, told_scopes, told_shared

__all__ = [
    "FOUR",
    "Choice",
    "Lab",
    "Panel",
    "Viewer",
    "browse",
    "degrade",
    "exercises",
    "explore",
    "is_live",
    "luck",
    "play",
    "predictions",
    "prune",
    "scopes",
    "told_answer",
    "told_controls",
    "told_families",
    "told_scopes",
    "told_shared",
]
