"""MSPFN: streaks are looked for at three sizes at once; what the coarser sizes find helps the finer ones.

Written from the description in the paper (Jiang et al., *Multi-Scale Progressive Fusion Network for Single Image
Deraining*, CVPR 2020); what it leaves open (where biases and slopes are, which widths the cells have) follows the
layers that its authors' TensorFlow source builds, 20,995,776 parameters. The network predicts what to subtract.

Its coarse fusion is a convolutional LSTM at each size that is run for a single step from a state of zeros. So its
forget gate and everything that reads the state multiply zeros: 15 % of the parameters take no part in the result and
never get a gradient. They are of the kind ``unused`` here, and are left out with ``unused=False``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.comparison.losses import charbonnier, neighbour_edges

EDGE_WEIGHT = 0.05  # of the edge loss, as in the paper
ATTENTIONS = (3, 3, 1)  # attention blocks in a block, at full, half and quarter size


@dataclass(frozen=True)
class MSPFNSettings:
    """Shape of an MSPFN.

    Args:
        width: channels of the features; a multiple of 2.
        blocks: of fine fusion, one after another.
        reduction: by which channel attention squeezes.
        unused: whether what multiplies the LSTMs' state of zeros is there.
    """

    width: int = 64
    blocks: int = 17
    reduction: int = 4
    unused: bool = True


LAPTOP = MSPFNSettings(8, blocks=3, unused=False)
PICO = MSPFNSettings(4, blocks=1, reduction=2, unused=False)


class Conv(nn.Module):
    """A 3x3 convolution without bias, then a PReLU with a slope a channel.

    Args:
        inputs, outputs: channels.
        scale: 1 keeps the size, 0.5 halves it, 2 doubles it (by a transposed convolution).
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 1) -> None:
        super().__init__()
        shape = {"kernel_size": 3, "padding": 1, "bias": False}
        if scale == 2:
            self.conv = nn.ConvTranspose2d(inputs, outputs, stride=2, output_padding=1, **shape)
        else:
            self.conv = nn.Conv2d(inputs, outputs, stride=round(1 / scale), **shape)
        self.act = nn.PReLU(outputs, init=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Attention(nn.Module):
    """Residual channel attention block (RCAB): two convolutions and channel attention, added to the input."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.first_act = nn.PReLU(channels, init=0.0)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.squeeze_act = nn.PReLU(channels // reduction, init=0.0)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(self.first_act(self.first(x)))
        squeezed = self.squeeze_act(self.squeeze(found.mean((2, 3), keepdim=True)))
        return x + found * self.excite(squeezed).sigmoid()


class Cell(nn.Module):
    """One step of a convolutional LSTM from a state of zeros: input gate, candidate and output gate are what is left.

    Args:
        inputs: channels.
        hidden: channels of the result.
        unused: whether the forget gate and the convolution of the state are carried along.
    """

    kinds = {"forget": "unused", "state": "unused"}

    def __init__(self, inputs: int, hidden: int, unused: bool) -> None:
        super().__init__()
        self.gates = nn.Conv2d(inputs, 3 * hidden, 3, padding=1)
        if unused:
            self.forget = nn.Conv2d(inputs, hidden, 3, padding=1)
            self.state = nn.Conv2d(hidden, 4 * hidden, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        entering, candidate, leaving = self.gates(x).chunk(3, dim=1)
        return (entering.sigmoid() * candidate.tanh()).tanh() * leaving.sigmoid()


class Memory(nn.Module):
    """Coarse fusion at one size: an LSTM between two convolutions, added to the features."""

    def __init__(self, width: int, hidden: int, unused: bool) -> None:
        super().__init__()
        self.enter = Conv(width, width // 2)
        self.cell = Cell(width // 2, hidden, unused)
        self.leave = Conv(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.cell(self.enter(x)))


class Unit(nn.Module):
    """Fine fusion at one size (URAB): attention at half of it, then back, to be added to the features."""

    def __init__(self, width: int, reduction: int, count: int) -> None:
        super().__init__()
        self.down = Conv(width, width, scale=0.5)
        self.attentions = nn.Sequential(*(Attention(width, reduction) for _ in range(count)))
        self.up = Conv(2 * width, width, scale=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.up(torch.cat((x, self.attentions(x)), dim=1))


class Lift(nn.Module):
    """What the coarser sizes tell the finer: quarter to half, that on to full, and half to full."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.quarter_half, self.half_full, self.quarter_full = (Conv(width, width, scale=2) for _ in range(3))


class Block(nn.Module):
    """One block of fine fusion: the quarter size first, told to the half, both told to the full."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(Unit(width, reduction, count) for count in ATTENTIONS)
        self.lift = Lift(width)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        full, half, quarter = features
        at_full, at_half, at_quarter = self.units
        quarter = quarter + at_quarter(quarter)
        told = self.lift.quarter_half(quarter)
        half = half + at_half(half + told)
        full = full + at_full(full + self.lift.quarter_full(told) + self.lift.half_full(half))
        return full, half, quarter


class MSPFN(nn.Module):
    """The restoration network: images in, images out, what it predicts subtracted from the input.

    Args:
        settings: shape of the network.
    """

    multiple = 8  # the quarter size is halved once more
    kinds = {"output": "output"}

    def __init__(self, settings: MSPFNSettings) -> None:
        super().__init__()
        self.settings = settings
        width, unused = settings.width, settings.unused
        self.embeds = nn.ModuleList(Conv(3, width) for _ in range(3))
        self.memories = nn.ModuleList(Memory(width, scale * width, unused) for scale in (4, 2, 1))
        self.lift = Lift(width)
        self.blocks = nn.Sequential(*(Block(width, settings.reduction) for _ in range(settings.blocks)))
        self.recalls = nn.ModuleList(Conv(2 * width, width) for _ in range(3))
        self.up_quarter, self.up_half = Conv(width, width, scale=2), Conv(2 * width, width, scale=2)
        self.merge = Conv(2 * width, width // 2)
        self.output = nn.Conv2d(width // 2, 3, 3, padding=1, bias=False)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Restores images.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W multiples of 8.

        Returns:
            Restored images of the same shape, not clipped.
        """
        sizes = (images, F.avg_pool2d(images, 2), F.avg_pool2d(images, 4))
        full, half, quarter = (embed(image) for embed, image in zip(self.embeds, sizes, strict=True))
        coarse = self._coarse(full, half, quarter)
        fine = self.blocks(coarse)
        pairs = zip(self.recalls, fine, coarse, strict=True)
        full, half, quarter = (recall(torch.cat(pair, dim=1)) for recall, *pair in pairs)
        half = torch.cat((self.up_quarter(quarter), half), dim=1)
        full = torch.cat((full, self.up_half(half)), dim=1)
        return images - self.output(self.merge(full))

    def _coarse(self, full: Tensor, half: Tensor, quarter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The memory at each size, coarsest first; what is lifted enters a memory, and is not added to its result."""
        at_full, at_half, at_quarter = self.memories
        quarter = quarter + at_quarter(quarter)
        told = self.lift.quarter_half(quarter)
        half = half + at_half(half + told)
        full = full + at_full(full + self.lift.half_full(half) + self.lift.quarter_full(told))
        return full, half, quarter

    def loss(self, degraded: Tensor, target: Tensor, step: int, steps: int) -> Tensor:
        """Charbonnier plus 0.05 times Charbonnier of the edges.

        Args:
            degraded, target: (B, 3, H, W) in [0, 1].
            step, steps: not used: the loss is the same throughout.
        """
        difference = self(degraded) - target
        return charbonnier(difference) + EDGE_WEIGHT * charbonnier(neighbour_edges(difference))


def _initialise(module: nn.Module) -> None:
    """As its authors did: Glorot, zero biases; the LSTMs' kernels next to zero."""
    if isinstance(module, Cell):  # visited after its children, so this is what stays
        for layer in module.children():
            nn.init.trunc_normal_(layer.weight, std=1e-3, a=-2e-3, b=2e-3)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
