"""The models of the paper's Table I, one file a model, built by name like the main network.

A model's file holds its settings (``<Name>Settings``, whose defaults are the size nearest to the paper's count), the
smaller sizes ``LAPTOP`` and ``PICO``, and the module ``<Name>``: images (B, 3, H, W) in [0, 1] in and out, H and W
multiples of ``multiple``. ``loss(degraded, target, step, steps)``, where it is there, is its original's, used by the
recipe ``original``; if it returns a loss by group, ``groups()`` says whose gradient each is.

This file and the models stand left of ``masks``; ``chains``, ``tables`` and ``figures`` of this package, which play and
show them, stand right of ``lottery``.
"""

import copy
import functools
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from mirl_study import network
from mirl_study.settings import PRESETS, ModelSettings, NetworkSettings, choose


@dataclass(frozen=True)
class Model:
    """A row of the paper's Table I.

    Attributes:
        title: as the paper spells it, and its class.
        published: parameters in the paper's tables, in millions to the digits that they have.
        found: trainable parameters of the size ``paper``, counted.
        configuration: which of the published configurations that is.
        note: what is otherwise than in the original, or than in the paper's table.
        source, licence: of the original.
    """

    title: str
    published: str
    found: int
    configuration: str
    note: str
    source: str
    licence: str


ACADEMIC = "academic, non-commercial"
MODELS = {
    "mspfn": Model(
        "MSPFN",
        "21",
        20_995_776,
        "17 blocks; 1, 3 and 3 attention blocks",
        "its LSTMs run for one step from a state of zeros, so 15 % of the parameters take no part, and the smaller "
        "sizes leave them out",
        "kuijiang94/MSPFN",
        "none stated",
    ),
    "epdn": Model(
        "EPDN",
        "22.9",
        22_914_867,
        "generator 17,379,249, discriminators 5,535,618",
        "the paper's count holds the discriminators, which restore nothing and are not pruned; without the VGG term, "
        "whose weights would have to be downloaded",
        "ErinChen1/EPDN",
        "non-commercial, as pix2pixHD",
    ),
    "ffdnet": Model(
        "FFDNet",
        "0.494",
        494_540,
        "colour, width 64, 15 layers",
        "the authors' own colour network is another one (width 96, 12 layers, 852,108); the noise level, which the "
        "original is told, is estimated from the image",
        "cszn/KAIR",
        "MIT",
    ),
    "airnet": Model(
        "AirNet",
        "7.6",
        7_610_377,
        "restorer 6,290,441, encoder 1,319,936",
        "with the frozen copy of the encoder there are 8,930,313; the second view for the contrast is the same patch, "
        "turned",
        "XLearning-SCU/2022-CVPR-AirNet",
        "none stated",
    ),
    "restormer": Model(
        "Restormer",
        "26.1",
        26_126_644,
        "LayerNorm with bias",
        "without that bias there are 26,111,668; patches do not grow while it trains",
        "swz30/Restormer",
        ACADEMIC,
    ),
    "mprnet": Model(
        "MPRNet",
        "39.5",
        39_486_145,
        "width 128, U-Net 64, original resolution 64",
        "no published configuration has the paper's count: deraining 3,637,249, denoising 15,741,025, deblurring "
        "20,127,073; this one comes nearest, perhaps by chance",
        "swz30/MPRNet",
        ACADEMIC,
    ),
    "adair": Model(
        "AdaIR",
        "28.8",
        28_784_824,
        "with frequency blocks",
        "as published, the low band is empty for features below 128 pixels a side; the smaller sizes have a wider one",
        "c-yn/AdaIR",
        "MIT",
    ),
    "promptir": Model(
        "PromptIR",
        "35.6",
        35_592_263,
        "with prompts in the decoder, and six convolutions that never run",
        "without prompts there are 32,107,288",
        "va1shn9v/PromptIR",
        ACADEMIC,
    ),
}


def build_network(settings: NetworkSettings | ModelSettings | str = "paper", seed: int = 0) -> nn.Module:
    """Builds a network whose initialisation is a function of its arguments alone.

    Args:
        settings: the shape of a PromptIR; another model's name and size; the name of a preset of PromptIR; or the name
            of a model, which is then of the size ``paper``.
        seed: of the initialisation.

    Returns:
        A network on the CPU, in float32, initialised as PyTorch initialises its layers.

    Raises:
        SettingsError: for an unknown name.
    """
    settings = _shape(settings)
    if isinstance(settings, NetworkSettings):
        return network.build_network(settings, seed)
    return copy.deepcopy(_drawn(settings.architecture, settings.size, seed))


def skeleton(settings: NetworkSettings | ModelSettings | str) -> nn.Module:
    """Returns a network without values: names, shapes and kinds of its parameters, on the device ``meta``."""
    settings = _shape(settings)
    with torch.device("meta"):
        if isinstance(settings, NetworkSettings):
            return network.PromptIR(settings)
        return _new(settings.architecture, settings.size)


def multiple(settings: NetworkSettings | ModelSettings) -> int:
    """Returns what height and width of its images must be multiples of; ``evaluation.restore`` sees to it."""
    return 8 if isinstance(settings, NetworkSettings) else _class(settings.architecture).multiple


def _shape(settings: NetworkSettings | ModelSettings | str) -> NetworkSettings | ModelSettings:
    if not isinstance(settings, str):
        return settings
    choose("network", settings, (*PRESETS, *MODELS))
    if settings == "promptir":
        return PRESETS["paper"]
    return PRESETS[settings] if settings in PRESETS else ModelSettings(settings)


def _file(name: str) -> Any:
    """The file of a model, imported when it is asked for."""
    return import_module(f"mirl_study.comparison.{name}")


def _class(name: str) -> Any:
    return getattr(_file(name), MODELS[name].title)


def _new(name: str, size: str) -> nn.Module:
    file = _file(name)
    shape = getattr(file, f"{MODELS[name].title}Settings")() if size == "paper" else getattr(file, size.upper())
    return _class(name)(shape)


@functools.lru_cache(maxsize=1)  # as in network.build_network
def _drawn(name: str, size: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _new(name, size)
