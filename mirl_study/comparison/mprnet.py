"""MPRNet: three stages that restore four patches, then two, then the whole image, each told what the last one found.

Written from the description in the paper (Zamir et al., *Multi-Stage Progressive Image Restoration*, CVPR 2021). No
convolution of it has a bias, and a single slope serves all its PReLUs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.comparison.losses import charbonnier, pyramid_edges

EDGE_WEIGHT = 0.05  # of the edge loss, as in the paper


@dataclass(frozen=True)
class MPRNetSettings:
    """Shape of an MPRNet.

    The default is the published layout at the widths whose count comes nearest to Table I's 39.5 million; the widths
    of the published models are ``DERAIN``, ``DENOISE`` and ``DEBLUR``.

    Args:
        width: channels at full resolution.
        deeper: channels more at each level of the encoder-decoders.
        wider: channels more in the stage that works at full resolution.
        blocks: attention blocks in each of that stage's three groups.
        reduction: by which channel attention squeezes.
    """

    width: int = 128
    deeper: int = 64
    wider: int = 64
    blocks: int = 8
    reduction: int = 4


DERAIN = MPRNetSettings(40, 20, 16)
DENOISE = MPRNetSettings(80, 48, 32)
DEBLUR = MPRNetSettings(96, 48, 32)
LAPTOP = MPRNetSettings(8, 4, 4, blocks=2)
PICO = MPRNetSettings(4, 2, 2, blocks=1, reduction=2)


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """Returns a convolution that keeps the size and has no bias."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


class ChannelAttention(nn.Module):
    """Each channel times a number in (0, 1) that follows from all channels' means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = conv(channels, channels // reduction, 1)
        self.excite = conv(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):
    """Channel attention block (CAB): two convolutions and channel attention, added to the input."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.first = conv(channels, channels, 3)
        self.second = conv(channels, channels, 3)
        self.attention = ChannelAttention(channels, reduction)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        return x + self.attention(self.second(F.prelu(self.first(x), slope)))


class Chain(nn.ModuleList):
    """Blocks one after another, all with the same slope."""

    def __init__(self, channels: int, reduction: int, count: int) -> None:
        super().__init__(Block(channels, reduction) for _ in range(count))

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        for block in self:
            x = block(x, slope)
        return x


class Shallow(nn.Module):
    """A stage's first features of its own view of the image."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.embed = conv(3, channels, 3)
        self.block = Block(channels, reduction)

    def forward(self, images: Tensor, slope: Tensor) -> Tensor:
        return self.block(self.embed(images), slope)


class Encoder(nn.Module):
    """Features at three levels; with ``fused``, those of an earlier stage are added at each (CSFF)."""

    def __init__(self, levels: tuple[int, ...], reduction: int, *, fused: bool) -> None:
        super().__init__()
        self.chains = nn.ModuleList(Chain(channels, reduction, 2) for channels in levels)
        self.downs = nn.ModuleList(map(lambda a, b: conv(a, b, 1), levels[:-1], levels[1:]))
        if fused:
            self.from_encoder = nn.ModuleList(conv(channels, channels, 1) for channels in levels)
            self.from_decoder = nn.ModuleList(conv(channels, channels, 1) for channels in levels)

    def forward(
        self, x: Tensor, slope: Tensor, earlier: tuple[list[Tensor], list[Tensor]] | None = None
    ) -> list[Tensor]:
        features = []
        for level, chain in enumerate(self.chains):
            if level:  # the mean of 2x2 is what bilinear interpolation to half the size gives
                x = self.downs[level - 1](F.avg_pool2d(x, 2))
            x = chain(x, slope)
            if earlier:
                encoded, decoded = earlier
                x = x + self.from_encoder[level](encoded[level]) + self.from_decoder[level](decoded[level])
            features.append(x)
        return features


class Up(nn.Module):
    """Twice the size; a 1x1 convolution and bilinear interpolation commute, and first is cheaper."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2, mode="bilinear")


class Decoder(nn.Module):
    """From the coarsest level back to full size; encoder features join through a block each."""

    def __init__(self, levels: tuple[int, ...], reduction: int) -> None:
        super().__init__()
        self.chains = nn.ModuleList(Chain(channels, reduction, 2) for channels in levels)
        self.skips = nn.ModuleList(Block(channels, reduction) for channels in levels[:-1])
        self.ups = nn.ModuleList(map(Up, levels[1:], levels[:-1]))

    def forward(self, encoded: list[Tensor], slope: Tensor) -> list[Tensor]:
        x = self.chains[-1](encoded[-1], slope)
        features = [x]
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x) + self.skips[level](encoded[level], slope)
            x = self.chains[level](x, slope)
            features.insert(0, x)
        return features


class Supervised(nn.Module):
    """Supervised attention (SAM): a stage's image is made, judged by the loss, and weights what is handed on."""

    kinds = {"image": "output"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = conv(channels, channels, 1)
        self.image = conv(channels, 3, 1)
        self.attention = conv(3, channels, 1)

    def forward(self, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features for the next stage, and the restored images of this one."""
        restored = self.image(x) + images
        return x + self.features(x) * self.attention(restored).sigmoid(), restored


class OriginalResolution(nn.Module):
    """Original-resolution subnetwork (ORSNet): groups of blocks that never change the size."""

    def __init__(self, levels: tuple[int, ...], channels: int, reduction: int, blocks: int) -> None:
        super().__init__()
        self.groups = nn.ModuleList(Chain(channels, reduction, blocks) for _ in levels)
        self.ends = nn.ModuleList(conv(channels, channels, 3) for _ in levels)
        self.up_encoder, self.up_decoder = (nn.ModuleList(self._up(levels, at) for at in (0, 1, 2)) for _ in "ed")
        self.from_encoder, self.from_decoder = (
            nn.ModuleList(conv(levels[0], channels, 1) for _ in levels) for _ in "ed"
        )

    @staticmethod
    def _up(levels: tuple[int, ...], level: int) -> nn.Sequential:
        """From a level to full size."""
        return nn.Sequential(*(Up(levels[at], levels[at - 1]) for at in range(level, 0, -1)))

    def forward(self, x: Tensor, slope: Tensor, encoded: list[Tensor], decoded: list[Tensor]) -> Tensor:
        for level, (group, end) in enumerate(zip(self.groups, self.ends, strict=True)):
            x = x + end(group(x, slope))
            x = x + self.from_encoder[level](self.up_encoder[level](encoded[level]))
            x = x + self.from_decoder[level](self.up_decoder[level](decoded[level]))
        return x


class MPRNet(nn.Module):
    """The restoration network: images in, images out, each stage's correction added to the input.

    Args:
        settings: shape of the network.
    """

    multiple = 8  # halves of the image in stage 1, halved twice
    kinds = {"slope": "slope", "output": "output"}

    def __init__(self, settings: MPRNetSettings) -> None:
        super().__init__()
        self.settings = settings
        width, reduction = settings.width, settings.reduction
        wide = width + settings.wider
        levels = tuple(width + level * settings.deeper for level in range(3))
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        self.shallow1, self.shallow2, self.shallow3 = (Shallow(width, reduction) for _ in range(3))
        self.encoder1 = Encoder(levels, reduction, fused=False)
        self.decoder1 = Decoder(levels, reduction)
        self.supervised1 = Supervised(width)
        self.join2 = conv(2 * width, width, 3)
        self.encoder2 = Encoder(levels, reduction, fused=True)
        self.decoder2 = Decoder(levels, reduction)
        self.supervised2 = Supervised(width)
        self.join3 = conv(2 * width, wide, 3)
        self.stage3 = OriginalResolution(levels, wide, reduction, settings.blocks)
        self.output = conv(wide, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Restores images.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W multiples of 8.

        Returns:
            Restored images of the same shape, not clipped.
        """
        return self.stages(images)[-1]

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the restored images of all three stages, each (B, 3, H, W)."""
        slope = self.slope
        halves = _split(images, 2)
        quarters = _split(halves, 3)

        encoded = self.encoder1(self.shallow1(quarters, slope), slope)
        encoded = [_join(features, 3) for features in encoded]
        decoded = self.decoder1(encoded, slope)
        handed, first = self.supervised1(decoded[0], halves)

        x = self.join2(torch.cat((self.shallow2(halves, slope), handed), dim=1))
        encoded = [_join(features, 2) for features in self.encoder2(x, slope, (encoded, decoded))]
        decoded = self.decoder2(encoded, slope)
        handed, second = self.supervised2(decoded[0], images)

        x = self.join3(torch.cat((self.shallow3(images, slope), handed), dim=1))
        third = self.output(self.stage3(x, slope, encoded, decoded)) + images
        return _join(first, 2), second, third

    def loss(self, degraded: Tensor, target: Tensor, step: int, steps: int) -> Tensor:
        """Charbonnier plus 0.05 times Charbonnier of the edges, over the images of all three stages.

        Args:
            degraded, target: (B, 3, H, W) in [0, 1].
            step, steps: not used: the loss is the same throughout.
        """
        differences = [restored - target for restored in self.stages(degraded)]
        pixels, edges = (sum(map(charbonnier, each)) for each in (differences, map(pyramid_edges, differences)))
        return pixels + EDGE_WEIGHT * edges


def _split(x: Tensor, axis: int) -> Tensor:
    """Both halves along an axis, as a batch twice as large."""
    return torch.cat(x.chunk(2, dim=axis))


def _join(x: Tensor, axis: int) -> Tensor:
    """The inverse of ``_split``."""
    return torch.cat(x.chunk(2), dim=axis)
