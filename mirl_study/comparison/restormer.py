"""Restormer (Zamir et al., CVPR 2022): the encoder-decoder that PromptIR adds its prompts to."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirl_study.network import Block, Conv3x3, Down, Embed, Pointwise, Up


@dataclass(frozen=True)
class RestormerSettings:
    """The shape of a Restormer; the defaults are the published one, LayerNorm with bias.

    Attributes:
        dim: channels of the first of four levels; each has twice those of the one before.
        blocks: transformer blocks at the four levels (the decoder repeats the first three).
        refinement: transformer blocks after the decoder.
        heads: attention heads at the four levels.
        expansion: widening of the feed-forward part.
    """

    dim: int = 48
    blocks: tuple[int, ...] = (4, 6, 6, 8)
    refinement: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    expansion: float = 2.66


LAPTOP = RestormerSettings(dim=8, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 2, 2))
PICO = RestormerSettings(dim=4, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 1, 1))


class Restormer(nn.Module):
    """Images in, images out, the correction added to the input; features are (B, H, W, C) inside.

    Args:
        settings: shape of the network.
    """

    multiple = 8
    kinds = {"reduce_chan_level2": "reduce", "reduce_chan_level3": "reduce", "output": "output"}

    def __init__(self, settings: RestormerSettings) -> None:
        super().__init__()
        width, heads, blocks = settings.dim, settings.heads, settings.blocks

        def stage(channels: int, level: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(channels, heads[level], settings.expansion) for _ in range(count)))

        self.patch_embed = Embed(width)
        self.encoder_level1 = stage(width, 0, blocks[0])
        self.down1_2 = Down(width)
        self.encoder_level2 = stage(2 * width, 1, blocks[1])
        self.down2_3 = Down(2 * width)
        self.encoder_level3 = stage(4 * width, 2, blocks[2])
        self.down3_4 = Down(4 * width)
        self.latent = stage(8 * width, 3, blocks[3])
        self.up4_3 = Up(8 * width)
        self.reduce_chan_level3 = Pointwise(8 * width, 4 * width)
        self.decoder_level3 = stage(4 * width, 2, blocks[2])
        self.up3_2 = Up(4 * width)
        self.reduce_chan_level2 = Pointwise(4 * width, 2 * width)
        self.decoder_level2 = stage(2 * width, 1, blocks[1])
        self.up2_1 = Up(2 * width)
        self.decoder_level1 = stage(2 * width, 0, blocks[0])
        self.refinement = stage(2 * width, 0, settings.refinement)
        self.output = Conv3x3(2 * width, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Restores images.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W multiples of 8.

        Returns:
            Restored images of the same shape, not clipped.
        """
        first = self.encoder_level1(self.patch_embed(images.permute(0, 2, 3, 1).contiguous()))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        x = self.modulate(1, self.latent(self.down3_4(third)), images)
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(x), third), dim=-1)))
        x = self.modulate(2, x, images)
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(x), second), dim=-1)))
        x = self.modulate(3, x, images)
        x = self.decoder_level1(torch.cat((self.up2_1(x), first), dim=-1))
        return self.output(self.refinement(x)).permute(0, 3, 1, 2) + images

    def modulate(self, place: int, x: Tensor, images: Tensor) -> Tensor:
        """What a network built on this one does to the features (B, H, W, C) before each step up; here nothing."""
        return x
