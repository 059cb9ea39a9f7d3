"""FFDNet (Zhang et al., TIP 2018): convolutions on four sub-images and a map of the noise level.

The original is told the noise level. Here nobody knows it when an image is to be restored, so that it is estimated from
the image (Immerkaer, *Fast Noise Variance Estimation*, 1996); while training by the original's recipe it is what was
added.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class FFDNetSettings:
    """The shape of an FFDNet; the defaults are those of the count in the paper's tables.

    Attributes:
        width: channels.
        depth: convolutions.
    """

    width: int = 64
    depth: int = 15


LAPTOP = FFDNetSettings(width=40, depth=9)
PICO = FFDNetSettings(width=8, depth=4)


def noise_level(images: Tensor) -> Tensor:
    """Estimates the standard deviation of white noise, by what is left of an image when its structure is taken away.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B,), in the same units.
    """
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], device=images.device)
    left = F.conv2d(images.flatten(0, 1)[:, None], kernel.to(images.dtype)[None, None])
    return left.abs().unflatten(0, images.shape[:2]).mean((1, 2, 3, 4)) * math.sqrt(math.pi / 2) / 6


class FFDNet(nn.Module):
    """Images in, images out: not a correction, the image itself.

    Args:
        settings: shape of the network.
    """

    multiple = 2
    kinds = {"output": "output"}

    def __init__(self, settings: FFDNetSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (3 * 4 + 1, *[settings.width] * (settings.depth - 2)):
            layers += [nn.Conv2d(inputs, settings.width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.output = nn.Conv2d(settings.width, 3 * 4, 3, padding=1)

    def forward(self, images: Tensor, level: Tensor | None = None) -> Tensor:
        """Restores images.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W even.
            level: (B,), standard deviation of the noise in the same units; estimated if not given.

        Returns:
            Restored images of the same shape, not clipped.
        """
        level = noise_level(images).detach() if level is None else level
        parts = F.pixel_unshuffle(images, 2)
        noise = level[:, None, None, None].expand(-1, 1, *parts.shape[2:])
        return F.pixel_shuffle(self.output(self.body(torch.cat((parts, noise), dim=1))), 2)

    def loss(self, degraded: Tensor, target: Tensor, step: int, steps: int) -> Tensor:
        """L1, the network being told how much was added."""
        added = (degraded - target).flatten(1).square().mean(1).sqrt()
        return F.l1_loss(self(degraded, added), target)
