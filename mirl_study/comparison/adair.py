"""AdaIR (Cui et al., ICLR 2025): a Restormer whose decoder looks at low and high frequencies of the image apart.

Before each step up, a block makes features of the degraded image, splits their spectrum in two, lets the network's
features attend to either part, weighs the parts by each other, and adds what the features find in the result.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.comparison.restormer import Restormer, RestormerSettings
from mirl_study.network import Conv3x3, Pointwise


@dataclass(frozen=True)
class AdaIRSettings(RestormerSettings):
    """The shape of an AdaIR; the defaults are the published one.

    Attributes:
        band: the low band reaches at most (side // band) frequencies from zero to each side. At the published 128, it
            is empty for features of fewer than 128 pixels a side.
    """

    band: int = 128


LAPTOP = AdaIRSettings(dim=8, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 2, 2), band=4)
PICO = AdaIRSettings(dim=4, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 1, 1), band=4)


class CrossAttention(nn.Module):
    """Channels of one feature map attend to those of another, (B, H, W, C) both."""

    kinds = {
        **dict.fromkeys(("q", "kv"), "qkv"),
        **dict.fromkeys(("q_dwconv", "kv_dwconv"), "depthwise"),
        "temperature": "temperature",
        "project_out": "projection",
    }

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = Pointwise(channels, channels)
        self.q_dwconv = Conv3x3(channels, channels, groups=channels)
        self.kv = Pointwise(channels, 2 * channels)
        self.kv_dwconv = Conv3x3(2 * channels, 2 * channels, groups=2 * channels)
        self.project_out = Pointwise(channels, channels)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        heads = len(self.temperature)
        parts = (self.q_dwconv(self.q(asking)), *self.kv_dwconv(self.kv(asked)).chunk(2, dim=-1))
        q, k, v = (part.flatten(1, 2).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1) for part in parts)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * self.temperature
        mixed = attention.softmax(dim=-1) @ v  # (B, heads, c, H W)
        return self.project_out(mixed.permute(0, 3, 1, 2).flatten(2).view_as(asking))


class Exchange(nn.Module):
    """High frequencies say where the low ones count, low frequencies say which channels of the high ones do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.where = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.which = nn.Sequential(Pointwise(channels, hidden), nn.ReLU(), Pointwise(hidden, channels))
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        seen = torch.stack((high.amax(-1), high.mean(-1)), dim=1)
        where = self.where(seen).sigmoid().permute(0, 2, 3, 1)
        peak, mean = low.amax((1, 2), keepdim=True), low.mean((1, 2), keepdim=True)
        which = (self.which(mean) + self.which(peak)).sigmoid()
        return F.linear(low * where + high * which, self.proj.weight.flatten(1), self.proj.bias)


class FrequencyBlock(nn.Module):
    """Splits features of the image by frequency, and adds to the network's features what they find in both parts.

    The width of the low band is rounded to whole frequencies, so that what it is computed by (``rate``) gets no
    gradient and stays as it was initialised; two convolutions of the original are carried and never run.
    """

    kinds = {
        "proj": "embed",
        "rate": "unused",
        "spare": "unused",
        "spare_score": "unused",
        "gain": "scale",
        "keep": "scale",
    }

    def __init__(self, channels: int, heads: int, band: int) -> None:
        super().__init__()
        self.band = band
        self.spare = Conv3x3(3, channels)
        self.proj = Conv3x3(3, channels)
        self.spare_score = nn.Conv2d(2, 2, 7, padding=3)
        self.gain = nn.Parameter(torch.zeros(channels))
        self.keep = nn.Parameter(torch.ones(channels))
        self.to_high, self.to_low, self.gather = (CrossAttention(channels, heads) for _ in range(3))
        self.exchange = Exchange(channels)
        hidden = max(1, channels // 8)
        self.rate = nn.Sequential(Pointwise(channels, hidden), nn.GELU(), Pointwise(hidden, 2))

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        """Returns features (B, H, W, C) that have looked at the images (B, 3, H', W')."""
        small = F.interpolate(images, x.shape[1:3], mode="bilinear").permute(0, 2, 3, 1).contiguous()
        low, high = self.split(self.proj(small))
        found = self.gather(x, self.exchange(self.to_low(low, x), self.to_high(high, x)))
        return found * self.gain + x * self.keep

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes of what the low band of (B, H, W, C) gives back in space, and of the rest."""
        spectrum = torch.fft.fft2(x.float(), dim=(1, 2), norm="forward")
        inside = self.low_band(x)[..., None]
        low, high = (
            torch.fft.ifft2(spectrum * part, dim=(1, 2), norm="forward").abs().to(x.dtype) for part in (inside, ~inside)
        )
        return low, high

    def low_band(self, x: Tensor) -> Tensor:
        """Which frequencies are low, (B, H, W), by the shares of the band that the features ask for."""
        shares = self.rate(x.mean((1, 2))).sigmoid()  # (B, 2)
        sides = []
        for size, share in zip(x.shape[1:3], shares.unbind(1), strict=True):
            reach = (size // self.band * share).int()[:, None]
            place = torch.fft.fftfreq(size, 1 / size, device=x.device).round()
            sides.append((place >= -reach) & (place < reach))
        return sides[0][:, :, None] & sides[1][:, None, :]


class AdaIR(Restormer):
    """A Restormer with a block for frequencies before each step up.

    Args:
        settings: shape of the network.
    """

    def __init__(self, settings: AdaIRSettings) -> None:
        super().__init__(settings)
        channels = (8 * settings.dim, 4 * settings.dim, 2 * settings.dim)
        self.frequencies = nn.ModuleList(FrequencyBlock(c, settings.heads[2], settings.band) for c in channels)

    def modulate(self, place: int, x: Tensor, images: Tensor) -> Tensor:
        """The features after they have looked at the image's frequencies."""
        return self.frequencies[place - 1](x, images)
