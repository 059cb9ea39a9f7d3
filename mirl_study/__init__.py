"""The study package of MIR-L: lottery tickets in an all-in-one image restoration network.

The way through the house, one direction: settings -> data -> network -> (train -> prune -> rewind)* -> evaluate ->
store -> analyse -> draw.  See ``docs/design.md``.
"""

from importlib import import_module
from typing import Any

from mirl_study.settings import NetworkSettings, Settings, SettingsError, load_settings

__all__ = [
    "Mask",
    "NetworkSettings",
    "Settings",
    "SettingsError",
    "Ticket",
    "build_network",
    "load_released",
    "load_settings",
]
__version__ = "0.1.0"

_NEED_TORCH = {
    "Mask": "mirl_study.masks",
    "Ticket": "mirl_study.tickets",
    "build_network": "mirl_study.comparison",
    "load_released": "mirl_study.released",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch only when it is asked for: `mirl` answers at once, and also where torch is broken."""
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
