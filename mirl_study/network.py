"""PromptIR at any width: a Restormer encoder-decoder with prompts in its decoder.

Written from the description in the papers (Zamir et al., *Restormer*, CVPR 2022; Potlapalli et al., *PromptIR*,
NeurIPS 2023). Modules carry the
names of the released checkpoints, so that a state dict fits without translation. Inside, features are (B, H, W, C):
LayerNorm is then the native one, a 1x1 convolution is a product of all pixels with a matrix, and a 3x3 convolution sees
channels-last memory without a copy.
"""

import functools
import hashlib
import io
import pickle
from collections.abc import Iterator

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.fused import EPSILON, attend, feed
from mirl_study.products import product
from mirl_study.settings import PRESETS, NetworkSettings, choose

DECLARED_KINDS = (  # prunable ones of a PromptIR
    "embed",
    "qkv",
    "depthwise",
    "projection",
    "gdfn_in",
    "gdfn_out",
    "resample",
    "reduce",
    "prompt_conv",
    "prompt_linear",
    "output",
)
PRUNABLE_KINDS = (*DECLARED_KINDS, "convolution", "linear")  # and of a layer that no class has declared
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
BY_TYPE = {CONVOLUTIONS: "convolution", (nn.Linear,): "linear", NORMS: "norm", (nn.PReLU,): "slope"}


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias on (B, H, W, C)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight.flatten(1))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias on (B, H, W, C)."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Norm(nn.Module):
    """LayerNorm over the channels, with gain and bias; the half of a block that it stands before applies it."""

    kinds = {"body": "norm"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.LayerNorm(channels, EPSILON)


class Attention(nn.Module):
    """Transposed attention (MDTA): channels attend to channels, (C / heads)^2 products at any image size."""

    kinds = {"temperature": "temperature", "qkv": "qkv", "qkv_dwconv": "depthwise", "project_out": "projection"}

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(channels, 3 * channels)
        self.qkv_dwconv = Conv3x3(3 * channels, 3 * channels, groups=3 * channels)
        self.project_out = Pointwise(channels, channels)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Returns x + attention(norm(x))."""
        wide, deep, narrow = self.qkv.weight.flatten(1), self.qkv_dwconv.weight, self.project_out.weight.flatten(1)
        return attend(x, norm.body.weight, norm.body.bias, wide, deep, self.temperature, narrow)


class FeedForward(nn.Module):
    """Gated feed-forward part (GDFN): one half of the hidden channels, through a GELU, gates the other."""

    kinds = {"project_in": "gdfn_in", "dwconv": "depthwise", "project_out": "gdfn_out"}

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = Pointwise(channels, 2 * hidden)
        self.dwconv = Conv3x3(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.project_out = Pointwise(hidden, channels)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Returns x + feed-forward(norm(x))."""
        wide, deep, narrow = self.project_in.weight.flatten(1), self.dwconv.weight, self.project_out.weight.flatten(1)
        return feed(x, norm.body.weight, norm.body.bias, wide, deep, narrow)


class Block(nn.Module):
    """One transformer block: attention, then feed-forward, each on normalised features and added to its input."""

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.attn = Attention(channels, heads)
        self.norm2 = Norm(channels)
        self.ffn = FeedForward(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attn(x, self.norm1), self.norm2)


class Embed(nn.Module):
    """The image's first features."""

    kinds = {"proj": "embed"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = Conv3x3(3, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Down(nn.Module):
    """Half the size, twice the channels."""

    kinds = {"body": "resample"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv3x3(channels, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        folded = self.body(x).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
        return folded.permute(0, 1, 3, 5, 2, 4).flatten(3)


class Up(nn.Module):
    """Twice the size, half the channels."""

    kinds = {"body": "resample"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv3x3(channels, 2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        folded = self.body(x).unflatten(3, (-1, 2, 2))  # (B, H, W, C, 2, 2)
        return folded.permute(0, 1, 4, 2, 5, 3).contiguous().flatten(3, 4).flatten(1, 2)


class Prompt(nn.Module):
    """Prompt generation (PGM): a mixture of learnt components, weighted by what the features say of the degradation."""

    kinds = {"prompt_param": "prompt", "linear_layer": "prompt_linear", "conv3x3": "prompt_conv"}

    def __init__(self, inputs: int, channels: int, size: int, components: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, components, channels, size, size))
        self.linear_layer = nn.Linear(inputs, components)
        self.conv3x3 = Conv3x3(channels, channels)

    def weights(self, x: Tensor) -> Tensor:
        """Returns the weights of the components, (B, components), for features (B, H, W, C)."""
        return self.linear_layer(x.mean(dim=(1, 2))).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        components = self.prompt_param[0]
        prompt = (self.weights(x) @ components.flatten(1)).unflatten(-1, components.shape[1:])
        prompt = F.interpolate(prompt, x.shape[1:3], mode="bilinear")
        return self.conv3x3(prompt.permute(0, 2, 3, 1).contiguous())


class PromptIR(nn.Module):
    """The restoration network: images in, images out, the correction added to the input.

    Args:
        settings: shape of the network.
    """

    kinds = {
        **dict.fromkeys((f"reduce_chan_level{level}" for level in (2, 3)), "reduce"),
        **dict.fromkeys((f"reduce_noise_level{level}" for level in (1, 2, 3)), "reduce"),
        **dict.fromkeys((f"chnl_reduce{level}" for level in (1, 2, 3)), "unused"),
        **dict.fromkeys((f"reduce_noise_channel_{level}" for level in (1, 2, 3)), "unused"),
        "output": "output",
    }
    levels = {  # where in the network a child is; a resampling layer belongs to the level that it leads to
        **dict.fromkeys(("patch_embed", "output"), "io"),
        **dict.fromkeys(("encoder_level1", "up2_1", "decoder_level1", "refinement"), "1"),
        **dict.fromkeys(("down1_2", "encoder_level2", "up3_2", "reduce_chan_level2", "decoder_level2"), "2"),
        **dict.fromkeys(("down2_3", "encoder_level3", "up4_3", "reduce_chan_level3", "decoder_level3"), "3"),
        **dict.fromkeys(("down3_4", "latent"), "latent"),
        **dict.fromkeys(
            (f"{part}{level}" for part in ("prompt", "noise_level", "reduce_noise_level") for level in (1, 2, 3)),
            "prompt",
        ),
        **dict.fromkeys(
            (f"{part}{level}" for part in ("chnl_reduce", "reduce_noise_channel_") for level in (1, 2, 3)), "unused"
        ),
    }

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        width, heads, blocks = settings.dim, settings.heads, settings.blocks
        prompts = settings.prompt_channels

        def stage(channels: int, heads: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Block(channels, heads, settings.expansion) for _ in range(count)))

        def prompt(level: int, inputs: int) -> Prompt:
            size = settings.prompt_size // 2 ** (level - 1)
            return Prompt(inputs, prompts[level - 1], size, settings.prompt_components)

        self.patch_embed = Embed(width)
        self.encoder_level1 = stage(width, heads[0], blocks[0])
        self.down1_2 = Down(width)
        self.encoder_level2 = stage(2 * width, heads[1], blocks[1])
        self.down2_3 = Down(2 * width)
        self.encoder_level3 = stage(4 * width, heads[2], blocks[2])
        self.down3_4 = Down(4 * width)
        self.latent = stage(8 * width, heads[3], blocks[3])

        self.prompt3 = prompt(3, 8 * width)
        self.noise_level3 = Block(8 * width + prompts[2], heads[2], settings.expansion)
        self.reduce_noise_level3 = Pointwise(8 * width + prompts[2], 4 * width)
        self.up4_3 = Up(4 * width)
        self.reduce_chan_level3 = Pointwise(6 * width, 4 * width)
        self.decoder_level3 = stage(4 * width, heads[2], blocks[2])

        self.prompt2 = prompt(2, 4 * width)
        self.noise_level2 = Block(4 * width + prompts[1], heads[2], settings.expansion)
        self.reduce_noise_level2 = Pointwise(4 * width + prompts[1], 4 * width)
        self.up3_2 = Up(4 * width)
        self.reduce_chan_level2 = Pointwise(4 * width, 2 * width)
        self.decoder_level2 = stage(2 * width, heads[1], blocks[1])

        self.prompt1 = prompt(1, 2 * width)
        self.noise_level1 = Block(2 * width + prompts[0], heads[2], settings.expansion)
        self.reduce_noise_level1 = Pointwise(2 * width + prompts[0], 2 * width)
        self.up2_1 = Up(2 * width)
        self.decoder_level1 = stage(2 * width, heads[0], blocks[0])
        self.refinement = stage(2 * width, heads[0], settings.refinement)
        self.output = Conv3x3(2 * width, 3)

        if settings.unused:  # carried by the released model, part of its parameter count, never run
            deep = prompts[2] * 4 // 5
            for level, (inputs, outputs) in enumerate(((prompts[0],) * 2, (prompts[1],) * 2, (prompts[2], deep)), 1):
                self.add_module(f"chnl_reduce{level}", Pointwise(inputs, outputs))
            for level, channels in enumerate((prompts[0], prompts[1], deep), 1):
                scale = 2 ** (level - 1) * width
                self.add_module(f"reduce_noise_channel_{level}", Pointwise(scale + channels, scale))

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
        x = self.latent(self.down3_4(third))

        x = self.reduce_noise_level3(self.noise_level3(torch.cat((x, self.prompt3(x)), dim=-1)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(x), third), dim=-1)))
        x = self.reduce_noise_level2(self.noise_level2(torch.cat((x, self.prompt2(x)), dim=-1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(x), second), dim=-1)))
        x = self.reduce_noise_level1(self.noise_level1(torch.cat((x, self.prompt1(x)), dim=-1)))
        x = self.decoder_level1(torch.cat((self.up2_1(x), first), dim=-1))
        return self.output(self.refinement(x)).permute(0, 3, 1, 2) + images


def build_network(settings: NetworkSettings | str = "paper", seed: int = 0) -> PromptIR:
    """Builds a network whose initialisation is a function of its arguments alone.

    Args:
        settings: the shape, or the name of a preset: ``paper``, ``small``, ``nano`` or ``pico``.
        seed: of the initialisation.

    Returns:
        A network on the CPU, in float32, initialised as PyTorch initialises its layers, prompts uniform in [0, 1).

    Raises:
        SettingsError: for an unknown preset.
    """
    if isinstance(settings, str):
        settings = PRESETS[choose("network", settings, PRESETS)]
    form, values = _drawn(settings, seed)
    return _Unpickler(form, values).load()


@functools.lru_cache(maxsize=1)  # a chain rewinds to one initialisation over and over, and drawing it is slow
def _drawn(settings: NetworkSettings, seed: int) -> tuple[bytes, list[Tensor]]:
    """A network without its values, pickled, which is copied ten times faster than by ``deepcopy``; and the values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PromptIR(settings)
    parameters = list(network.parameters())
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    form = io.BytesIO()
    pickler = pickle.Pickler(form)
    pickler.persistent_id = lambda thing: places.get(id(thing))
    pickler.dump(network)
    return form.getvalue(), [parameter.detach() for parameter in parameters]


class _Unpickler(pickle.Unpickler):
    """Reads a network back in, with copies of the values in the places of its parameters."""

    def __init__(self, form: bytes, values: list[Tensor]) -> None:
        super().__init__(io.BytesIO(form))
        self.values = values

    def persistent_load(self, place: int) -> nn.Parameter:
        return nn.Parameter(self.values[place].clone())


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Returns all that training can change, by name: parameters, then buffers (a PromptIR has none)."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def fingerprint(network: nn.Module) -> str:
    """Returns the SHA-256 (hex) of all tensors' names and values; of a new network, that is its initialisation's."""
    digest = hashlib.sha256()
    for name, tensor in tensors(network).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _kinds(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields (parameter name, kind), the last one of a name counts: by the type of the module, then as it is declared.

    Each module class declares the kinds of its own children.
    """
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            kind = next((kind for types, kind in BY_TYPE.items() if isinstance(module, types)), None)
            if name == "bias" or kind:
                yield f"{prefix}.{name}" if prefix else name, "bias" if name == "bias" else str(kind)
    for prefix, module in network.named_modules():
        for child, kind in getattr(module, "kinds", {}).items():
            target = getattr(module, child, None)
            path = f"{prefix}.{child}" if prefix else child
            if isinstance(target, nn.Parameter):
                yield path, kind
            elif target is not None:
                for layer, inner in target.named_modules():
                    own = "norm" if isinstance(inner, NORMS) else kind
                    for name, _ in inner.named_parameters(recurse=False):
                        yield ".".join(part for part in (path, layer, name) if part), "bias" if name == "bias" else own


def describe(network: nn.Module) -> pd.DataFrame:
    """Lists all parameters and what each is for.

    Returns:
        A row a parameter tensor, in the network's order: ``name``, ``layer`` (the name without its last part),
        ``kind`` (``qkv``, ``depthwise``,
        ``norm``, ``prompt``, ``bias``, ``unused``, ``frozen`` ...), ``shape``, ``size``. A layer that no class has
        declared is a ``convolution``, ``linear`` or ``norm`` by its type.
    """
    kinds = dict(_kinds(network))
    rows = [
        (name, name.rpartition(".")[0], kinds[name] if p.requires_grad else "frozen", tuple(p.shape), p.numel())
        for name, p in network.named_parameters()
    ]
    return pd.DataFrame(rows, columns=["name", "layer", "kind", "shape", "size"])
