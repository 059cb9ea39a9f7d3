"""AirNet (Li et al., CVPR 2022): an encoder learns by contrast what degrades an image, and guides the restoration.

The deformable convolutions are plain torch: ``grid_sample`` fetches the nine places of each kernel, one matrix product
weighs them. A batch of ours has one patch of each image, where the original has two: the second view of a patch is the
same patch, turned by a quarter.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 9  # places of a 3x3 kernel
MOMENTUM, TEMPERATURE = 0.999, 0.07  # of the contrast (He et al., MoCo, CVPR 2020)
ALONE = 0.1  # share of the training in which the encoder learns by contrast alone


@dataclass(frozen=True)
class AirNetSettings:
    """The shape of an AirNet; the defaults are the published one.

    Attributes:
        width: channels of the restorer, and of the encoder's first features; the encoder goes on to four times those.
        groups: of blocks.
        blocks: in each group.
        queue: features of past batches that a patch is told from.
    """

    width: int = 64
    groups: int = 5
    blocks: int = 5
    queue: int = 2048


LAPTOP = AirNetSettings(width=12, groups=2, blocks=1, queue=128)
PICO = AirNetSettings(width=4, groups=1, blocks=1, queue=16)


class Residual(nn.Module):
    """A residual block of the encoder, with batch normalisation.

    The way around it takes its stride from the input, and none in its convolution: the same values. On a CPU without
    AVX-512, oneDNN 3.12 writes past its memory in the derivatives of a 1x1 convolution that has a stride and fewer
    than 8 inputs (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.stride = stride
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.body(x) + self.shortcut(x[..., :: self.stride, :: self.stride]), 0.1)


class Encoder(nn.Module):
    """From an image to features of its degradation, at full size and as one vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Residual(3, width, 1)
        self.deeper = nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2))
        self.head = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.LeakyReLU(0.1), nn.Linear(4 * width, 4 * width))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features (B, width, H, W) and a vector of length 1, (B, 4 width)."""
        features = self.first(images)
        return features, F.normalize(self.head(self.deeper(features).mean((2, 3))), dim=1)


class Deformable(nn.Module):
    """A modulated deformable 3x3 convolution (Zhu et al., CVPR 2019), guided by features of the degradation.

    Offsets and weights of the nine places start at zero and a half, as in the original.
    """

    kinds = {"weight": "convolution"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.where = nn.Conv2d(2 * channels, 3 * TAPS, 3, padding=1)
        bound = 1 / math.sqrt(TAPS * channels)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.where.weight)
        nn.init.zeros_(self.where.bias)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        rows, columns, strength = self.where(torch.cat((x, guide), dim=1)).chunk(3, dim=1)  # (B, 9, H, W) each
        height, width = x.shape[2:]
        taps = torch.arange(TAPS, device=x.device)
        row = rows + torch.arange(height, device=x.device)[:, None] + (taps // 3 - 1)[:, None, None]
        column = columns + torch.arange(width, device=x.device) + (taps % 3 - 1)[:, None, None]
        grid = torch.stack((2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1), dim=-1)  # corners are -1 and 1
        found = F.grid_sample(x, grid.flatten(1, 2).to(x.dtype), align_corners=True)  # (B, C, 9 H, W), zeros outside
        found = found.unflatten(2, (TAPS, height)) * strength.sigmoid()[:, None]
        return torch.einsum("bcthw,oct->bohw", found, self.weight.flatten(2))


class Guided(nn.Module):
    """What features of the degradation make of features: where to look (deformed), and how much (scaled, shifted)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deformed = Deformable(channels)
        self.scale, self.shift = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.LeakyReLU(0.1),
                nn.Conv2d(channels, channels, 1, bias=False),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return x + self.deformed(x, guide) + x * self.scale(guide) + self.shift(guide)


class GuidedBlock(nn.Module):
    """Two guided steps, a convolution after each, around which the input goes by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.guided1, self.guided2 = Guided(channels), Guided(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(F.leaky_relu(self.guided1(x, guide), 0.1)), 0.1)
        return self.conv2(F.leaky_relu(self.guided2(y, guide), 0.1)) + x


class Group(nn.Module):
    """Some blocks and a convolution, around which the input goes by."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GuidedBlock(channels) for _ in range(blocks))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y, guide)
        return self.conv(y) + x


class AirNet(nn.Module):
    """Images in, images out: not a correction, the image itself.

    ``key`` follows ``encoder`` slowly and gets no gradient; it and the queue serve the contrast alone.

    Args:
        settings: shape of the network.
    """

    multiple = 4
    kinds = {"output": "output"}

    def __init__(self, settings: AirNetSettings) -> None:
        super().__init__()
        width = settings.width
        self.encoder = Encoder(width)
        self.embed = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(Group(width, settings.blocks) for _ in range(settings.groups))
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.output = nn.Conv2d(width, 3, 3, padding=1)
        self.key = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(settings.queue, 4 * width), dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """Restores images.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W multiples of 4.

        Returns:
            Restored images of the same shape, not clipped.
        """
        return self.restored(images, self.encoder.first(images))

    def restored(self, images: Tensor, guide: Tensor) -> Tensor:
        """Restores images by features of their degradation, (B, width, H, W)."""
        first = x = self.embed(images)
        for group in self.body:
            x = group(x, guide)
        return self.output(self.conv(x) + first)

    def loss(self, degraded: Tensor, target: Tensor, step: int, steps: int) -> Tensor:
        """Contrast alone in the first tenth of the training, then L1 + 0.1 contrast."""
        guide, query = self.encoder(degraded)
        contrast = self.contrast(query, degraded.rot90(1, (2, 3)))
        if step < ALONE * steps:
            return contrast
        return F.l1_loss(self.restored(degraded, guide), target) + 0.1 * contrast

    def contrast(self, query: Tensor, other_view: Tensor) -> Tensor:
        """How hard it is to tell each patch's other view from the queue; the key encoder and the queue move on."""
        with torch.no_grad():
            for key, own in zip(self.key.parameters(), self.encoder.parameters(), strict=True):
                key.lerp_(own, 1 - MOMENTUM)
            positive = self.key(other_view)[1]
            past = self.queue.clone()
            self.queue.copy_(torch.cat((positive, past))[: len(past)])
        logits = torch.cat(((query * positive).sum(1, keepdim=True), query @ past.T), dim=1) / TEMPERATURE
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
