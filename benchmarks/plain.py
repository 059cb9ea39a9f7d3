"""The reference path, restated plainly from the papers: what everything is measured against, and tested against.

Features are (B, C, H, W); LayerNorm goes through a transposed view, (B, HW, C), and back; 1x1 convolutions are
convolutions; q and k are divided by their lengths before the product; prompts are repeated over the batch; each patch
is cut from a photograph that is decoded for it; pruning takes numpy's percentile of all survivors, and each round
leaves a checkpoint with weights and both moments of the optimiser (after the papers on Restormer, PromptIR and MIR-L).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mirl_study import network as ours
from mirl_study.settings import NetworkSettings


class Norm(ours.Norm):
    """LayerNorm of (B, C, H, W) through (B, HW, C), operation by operation."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)  # a view, as einops makes it
        mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, keepdim=True, unbiased=False)
        rows = (rows - mean) / torch.sqrt(variance + 1e-5) * self.body.weight + self.body.bias
        return rows.transpose(1, 2).reshape(x.shape)


class Pointwise(ours.Pointwise):
    """A 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Conv3x3(ours.Conv3x3):
    """A 3x3 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=self.groups)


class Attention(ours.Attention):
    """Transposed attention as it is written down."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(batch, self.heads, channels // self.heads, height * width) for part in parts)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        return self.project_out((attention @ v).reshape(batch, channels, height, width))


class FeedForward(ours.FeedForward):
    """Gated feed-forward part."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(ours.Block):
    """One transformer block."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Down(ours.Down):
    """Half the size, twice the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.body(x), 2)


class Up(ours.Up):
    """Twice the size, half the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(x), 2)


class Prompt(ours.Prompt):
    """Prompt generation with the components repeated for each image."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear_layer(x.mean(dim=(-2, -1))).softmax(dim=-1)
        repeated = self.prompt_param.repeat(len(x), 1, 1, 1, 1)
        prompt = (weights[:, :, None, None, None] * repeated).sum(dim=1)
        return self.conv3x3(F.interpolate(prompt, x.shape[-2:], mode="bilinear"))


class PromptIR(ours.PromptIR):
    """The network on (B, C, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.encoder_level1(self.patch_embed(images))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        x = self.latent(self.down3_4(third))
        x = self.reduce_noise_level3(self.noise_level3(torch.cat((x, self.prompt3(x)), dim=1)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(x), third), dim=1)))
        x = self.reduce_noise_level2(self.noise_level2(torch.cat((x, self.prompt2(x)), dim=1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(x), second), dim=1)))
        x = self.reduce_noise_level1(self.noise_level1(torch.cat((x, self.prompt1(x)), dim=1)))
        x = self.decoder_level1(torch.cat((self.up2_1(x), first), dim=1))
        return self.output(self.refinement(x)) + images


PLAIN = (Norm, Pointwise, Conv3x3, Attention, FeedForward, Block, Down, Up, Prompt, PromptIR)
FORMS = {form.__mro__[1]: form for form in PLAIN}


def plainly(module: nn.Module) -> nn.Module:
    """Gives a network, or a part of one, the plain forms; in place, parameters are kept.

    Returns:
        The module.
    """
    for part in module.modules():
        part.__class__ = FORMS.get(type(part), type(part))
    return module


def build_network(settings: NetworkSettings | str, seed: int = 0) -> nn.Module:
    """Builds the network of these settings and this seed, with the same values, in its plain forms."""
    return plainly(ours.build_network(settings, seed))


def batch(
    rows: list[tuple[Path | None, Path]], size: int, patch: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cuts a batch as a loader does that decodes a photograph for every sample.

    Args:
        rows: degraded and clean file of each sample; None where noise is added.
        size: patches in the batch.
        patch: height and width of a patch in pixels.
        rng: source of every draw.

    Returns:
        Degraded and clean patches, (size, 3, patch, patch), float32 in [0, 1].
    """
    pairs = []
    for place in range(size):
        degraded, clean = rows[rng.integers(len(rows))]
        whole = [np.asarray(Image.open(path).convert("RGB")) for path in (degraded, clean) if path]
        top, left = rng.integers(whole[-1].shape[0] - patch + 1), rng.integers(whole[-1].shape[1] - patch + 1)
        both = [array[top : top + patch, left : left + patch] for array in whole]
        if degraded is None:
            noisy = both[0] + rng.standard_normal(both[0].shape) * (15, 25, 50)[place % 3]
            both.insert(0, noisy.clip(0, 255).astype(np.uint8))
        turns, flip = rng.integers(4), rng.integers(2)
        both = [np.rot90(array[:, :: -1 if flip else 1], turns) for array in both]
        pairs.append([torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255 for array in both])
    degraded, clean = (torch.stack(side) for side in zip(*pairs, strict=True))
    return degraded, clean


def prune(weights: Mapping[str, Tensor], masks: Mapping[str, np.ndarray], rate: float) -> dict[str, np.ndarray]:
    """Prunes globally by numpy's percentile of all values that are not zero.

    Args:
        weights: by name, on any device.
        masks: float arrays of ones and zeros, by name.
        rate: fraction of the survivors to remove.

    Returns:
        The next masks.
    """
    arrays = {name: weights[name].detach().cpu().numpy() for name in masks}
    alive = np.concatenate([array[np.nonzero(array)] for array in arrays.values()])
    threshold = np.percentile(np.abs(alive), rate * 100)
    return {name: np.where(np.abs(array) < threshold, 0, masks[name]) for name, array in arrays.items()}


def rewind(network: nn.Module, initial: Mapping[str, Tensor], masks: Mapping[str, np.ndarray]) -> None:
    """Sets every weight back to its initial value under its mask, tensor by tensor."""
    for name, parameter in network.named_parameters():
        if name in masks:
            values = masks[name] * initial[name].detach().cpu().numpy()
            parameter.data = torch.from_numpy(values).to(parameter.dtype).to(parameter.device)
        elif "bias" in name:
            parameter.data = initial[name].detach().clone()
