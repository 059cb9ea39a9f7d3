"""EPDN: an image is generated at two resolutions against two discriminators, then enhanced by pyramid pooling.

Written from the description in the paper (Qu et al., *Enhanced Pix2pix Dehazing Network*, CVPR 2019) and of the
pix2pixHD generator that it builds on (Wang et al., CVPR 2018); widths and depths are those of its authors' options.
Inside, images are in [-1, 1].

The authors train the enhancer with a perceptual term too, ten times a distance between features of VGG-19. That needs
weights trained on ImageNet, which this project neither holds nor downloads: the term is left out (``perceptual``), and
the enhancer learns from the squared error alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.settings import SettingsError

FEATURE_WEIGHT = 10  # of the discriminators' features, as in the paper
SLOPE = 0.2  # of the leaky ReLUs


@dataclass(frozen=True)
class EPDNSettings:
    """Shape of an EPDN.

    Args:
        width: channels of the full-resolution part; the half-resolution part has twice as many.
        halvings: of the half-resolution part.
        blocks: residual blocks in each of the two parts.
        enhancer: channels of an enhancing block.
        pools: sizes, in pixels, of the windows over which an enhancing block averages.
        discriminator: channels of a discriminator's first layer.
        layers: of a discriminator that halve the size.
        discriminators: how many, each at half the resolution of the one before.
        unused: whether each enhancing block carries the normalisation of 100 channels that its authors never call.
        perceptual: whether the enhancer is trained with features of VGG-19; only False is possible.

    Raises:
        SettingsError: for ``perceptual=True``.
    """

    width: int = 16
    halvings: int = 4
    blocks: int = 3
    enhancer: int = 20
    pools: tuple[int, ...] = (32, 16, 8, 4)
    discriminator: int = 64
    layers: int = 3
    discriminators: int = 2
    unused: bool = True
    perceptual: bool = False

    def __post_init__(self) -> None:
        if self.perceptual:
            raise SettingsError("network.perceptual is True, but VGG-19's weights are not in this project: only False")


LAPTOP = EPDNSettings(4, 2, 2, enhancer=8, pools=(8, 4, 2), discriminator=8, layers=2, unused=False)
PICO = EPDNSettings(2, 1, 1, enhancer=4, pools=(4, 2), discriminator=4, layers=1, unused=False)


class Conv(nn.Module):
    """A convolution, then instance normalisation and ReLU; the size is kept, halved or doubled.

    Args:
        inputs, outputs: channels.
        kernel: 7 or 3; borders are reflected where the size is kept.
        scale: 1, 0.5 or 2.
        active: whether the ReLU is there.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, scale: float = 1, *, active: bool = True) -> None:
        super().__init__()
        if scale == 2:
            self.conv = nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=1, output_padding=1)
        elif scale == 1:
            self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")
        else:
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=1)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = F.instance_norm(self.conv(x))
        return F.relu(x) if self.active else x


class Residual(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(channels, channels), Conv(channels, channels, active=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Generator(nn.Module):
    """Generator at two resolutions: the half one's features join the full one's half way."""

    kinds = {"output": "output"}

    def __init__(self, settings: EPDNSettings) -> None:
        super().__init__()
        widths = [2 * settings.width * 2**level for level in range(settings.halvings + 1)]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.coarse = nn.Sequential(
            Conv(3, widths[0], 7),
            *(Conv(narrow, wide, scale=0.5) for narrow, wide in pairs),
            *(Residual(widths[-1]) for _ in range(settings.blocks)),
            *(Conv(wide, narrow, scale=2) for narrow, wide in reversed(pairs)),
        )
        width = settings.width
        self.down = nn.Sequential(Conv(3, width, 7), Conv(width, 2 * width, scale=0.5))
        self.up = nn.Sequential(*(Residual(2 * width) for _ in range(settings.blocks)), Conv(2 * width, width, scale=2))
        self.output = nn.Conv2d(width, 3, 7, padding=3, padding_mode="reflect")

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.up(self.down(images) + self.coarse(_halved(images)))).tanh()


class Enhancer(nn.Module):
    """Enhancing block: each pixel sees its surroundings' means, over windows of several sizes."""

    kinds = {"output": "output", "normalisation": "unused"}

    def __init__(self, channels: int, pools: tuple[int, ...], unused: bool) -> None:
        super().__init__()
        self.pools = pools
        self.features = nn.ModuleList(nn.Conv2d(inputs, channels, 3, padding=1) for inputs in (6, channels))
        self.means = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in pools)
        self.output = nn.Conv2d(channels + len(pools), 3, 3, padding=1)
        if unused:
            self.normalisation = nn.InstanceNorm2d(100, affine=True)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        x = torch.cat((first, second), dim=1)
        for layer in self.features:
            x = F.leaky_relu(layer(x), SLOPE)
        means = [
            F.interpolate(F.leaky_relu(layer(F.avg_pool2d(x, size)), SLOPE), scale_factor=size)
            for layer, size in zip(self.means, self.pools, strict=True)
        ]
        return self.output(torch.cat((*means, x), dim=1)).tanh()


class Discriminator(nn.Module):
    """Judges patches: whether the second image of a pair (input, output) is real."""

    def __init__(self, channels: int, halvings: int) -> None:
        super().__init__()
        widths = [6, *(min(channels * 2**level, 512) for level in range(halvings + 1)), 1]
        strides = [2] * halvings + [1, 1]
        triples = zip(widths[:-1], widths[1:], strides, strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride, padding=2) for a, b, stride in triples)

    def forward(self, pairs: Tensor) -> list[Tensor]:
        """Returns the features of all layers, the verdicts last, for pairs (B, 6, H, W)."""
        features = []
        for index, layer in enumerate(self.layers):
            pairs = layer(pairs)
            if index < len(self.layers) - 1:
                pairs = F.leaky_relu(F.instance_norm(pairs) if index else pairs, SLOPE)
            features.append(pairs)
        return features


class Discriminators(nn.ModuleList):
    """One discriminator for each resolution."""

    def forward(self, pairs: Tensor) -> list[list[Tensor]]:
        """Returns the features of each, for pairs (B, 6, H, W)."""
        features = []
        for level, judge in enumerate(self):
            pairs = _halved(pairs) if level else pairs
            features.append(judge(pairs))
        return features


class EPDN(nn.Module):
    """The restoration network: images in, images out; the discriminators matter in training alone.

    Args:
        settings: shape of the network.
    """

    multiple = 8
    kinds = {"discriminators": "discriminator"}

    def __init__(self, settings: EPDNSettings) -> None:
        super().__init__()
        self.settings = settings
        # whole windows everywhere, and more than one value in every normalisation
        self.grid = math.lcm(2 ** (settings.halvings + 2), *settings.pools)
        self.generator = Generator(settings)
        self.enhancers = nn.ModuleList(Enhancer(settings.enhancer, settings.pools, settings.unused) for _ in range(2))
        self.discriminators = Discriminators(
            Discriminator(settings.discriminator, settings.layers) for _ in range(settings.discriminators)
        )
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Restores images.

        Args:
            images: (B, 3, H, W) in [0, 1]; padded inside to multiples of what the windows need.

        Returns:
            Restored images of the same shape, in (0, 1).
        """
        return (self.stages(2 * images - 1)[1] + 1) / 2

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is generated and what is made of it, (B, 3, H, W) in (-1, 1), for images in [-1, 1]."""
        first, second = self.enhancers
        height, width = images.shape[2:]
        right, bottom = -width % self.grid, -height % self.grid
        mode = "reflect" if right < width and bottom < height else "replicate"
        images = F.pad(images, (0, right, 0, bottom), mode=mode)
        generated = self.generator(images)
        enhanced = second(generated, first(generated, images))
        return generated[..., :height, :width], enhanced[..., :height, :width]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the parameters of each optimiser."""
        parts = {"generator": (self.generator, self.enhancers), "discriminator": (self.discriminators,)}
        return {name: [p for part in each for p in part.parameters()] for name, each in parts.items()}

    def loss(self, degraded: Tensor, target: Tensor, step: int, steps: int) -> dict[str, Tensor]:
        """Least squares against the discriminators, plus 10 times their features' distance, plus the squared error.

        Args:
            degraded, target: (B, 3, H, W) in [0, 1].
            step, steps: not used: the loss is the same throughout.

        Returns:
            The loss of each of ``groups``; each is to be differentiated by its own parameters alone.
        """
        degraded, target = 2 * degraded - 1, 2 * target - 1
        generated, enhanced = self.stages(degraded)
        real = self.discriminators(torch.cat((degraded, target), dim=1))
        fake = self.discriminators(torch.cat((degraded, generated.detach()), dim=1))
        judged = self.discriminators(torch.cat((degraded, generated), dim=1))
        return {
            "generator": _verdict(judged, 1) + FEATURE_WEIGHT * _distance(judged, real) + F.mse_loss(enhanced, target),
            "discriminator": (_verdict(real, 1) + _verdict(fake, 0)) / 2,
        }


def _halved(images: Tensor) -> Tensor:
    """Half the size, each pixel the mean of 3x3, of fewer at the border."""
    return F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)


def _verdict(features: list[list[Tensor]], wanted: float) -> Tensor:
    """Squared distance of the verdicts from the one that is wanted (LSGAN), summed over resolutions."""
    return torch.stack([(each[-1] - wanted).square().mean() for each in features]).sum()


def _distance(ours: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
    """Four times the mean absolute distance of the features, over all layers but the verdicts and all resolutions."""
    apart = [
        4 / (len(mine) - 1) * F.l1_loss(one, other.detach())
        for mine, theirs in zip(ours, real, strict=True)
        for one, other in zip(mine[:-1], theirs[:-1], strict=True)
    ]
    return torch.stack(apart).sum() / len(ours)


def _initialise(module: nn.Module) -> None:
    """As its authors did: every kernel from a normal distribution, 0.02 wide."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
