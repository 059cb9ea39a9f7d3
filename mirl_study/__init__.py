"""The study package of MIR-L: lottery tickets in an all-in-one image restoration network.

The way through the house, one direction: settings -> data -> network -> (train -> prune -> rewind)* -> evaluate ->
store ->
analyse -> draw.  See ``docs/design.md``.
"""

from mirl_study import lottery
from mirl_study.masks import Mask
from mirl_study.network import build_network
from mirl_study.settings import NetworkSettings, Settings, SettingsError, load_settings

__all__ = ["Mask", "NetworkSettings", "Settings", "SettingsError", "build_network", "load_settings", "lottery"]
__version__ = "0.1.0"
