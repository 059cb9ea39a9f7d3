"""Which kept weights do anything: those that carry the image to the output, that set a sign, that carry a constant.

What each channel can carry is propagated through the real wiring (``PromptIR.forward``) with twins of its layers that
know yes and no instead of numbers: forward whether a channel holds anything, and whether that depends on the image;
backward (by autograd) whether the output listens to it: through projections, gates (only while the other factor holds
something), attention (q only while the head has a k and a v, and so on) and skip connections. So a kept weight is

- *effective*, if its input depends on the image, the output listens to what it feeds, and its size matters;
- *sign only*, if but for its size all of this holds. q and k are divided by their lengths: a weight that is alone in
  feeding a channel of theirs, be it in the 1x1 convolution or as the only tap of its filter, sets a sign, and its
  gradient is zero. Without it the channel is empty, and the output another one;
- *constant*, if the output listens, but the input holds only constants (biases of LayerNorm, prompts that no image
  weights, as behind a layer that is empty). It does get a gradient, and without it the output is another one, but
  whoever reads it learns a constant, and restores nothing;
- *idle*, if its input holds nothing, or nobody listens. All idle weights can be removed at once, whatever their
  values, and the output stays what it is.

LayerNorm mixes: as soon as one channel depends on the image, all channels whose gain is kept do. So a dead channel of
the residual stream is alive behind the next LayerNorm. Biases, prompts and temperatures are never pruned; their values
count as any, but not zero (at initialisation, biases are zero; training moves them).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirl_study.masks import Mask
from mirl_study.network import Attention, Down, FeedForward, Norm, Prompt, PromptIR, Up, build_network
from mirl_study.settings import NetworkSettings

CLASSES = ("effective", "sign_only", "constant", "idle")
HELD, IMAGE = 0, 1  # rows of what is propagated: whether a channel holds anything; whether that depends on the image
NOISE = 1e-11  # a gradient that is this small beside the sum of the sizes of its terms is rounding


class _Any(torch.autograd.Function):
    """Numbers to yes and no (1 and 0), forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(gradient.dtype)


class _Reach:
    """Masks by name, and what was seen at each layer on the way forward."""

    def __init__(self) -> None:
        self.begin({})

    def begin(self, mask: Mapping[str, Tensor]) -> None:
        """Takes up a mask, and forgets what was seen with another one."""
        self.mask = mask
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}  # inputs, two rows; outputs, for the gradient
        self.lone: dict[str, Tensor] = {}  # weights whose size does not matter

    def keep(self, name: str, shape: torch.Size) -> Tensor:
        """The mask of a tensor; all of it, if it is not prunable."""
        return self.mask[name].cpu() if name in self.mask else torch.ones(shape, dtype=torch.bool)

    def see(self, name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Notes a layer and returns its outputs as yes and no."""
        outputs = _Any.apply(outputs)
        if outputs.requires_grad:
            outputs.retain_grad()
        self.seen[name] = inputs.detach().flatten(1) > 0, outputs
        return outputs


class _Twin(nn.Module):
    """Stands in for a layer of the network."""

    def __init__(self, layer: nn.Module, name: str, reach: _Reach) -> None:
        super().__init__()
        self.layer, self.name, self.reach = layer, name, reach


class _Linear(_Twin):
    """A convolution or linear layer: a unit holds something if one of the inputs that it keeps does."""

    def forward(self, x: Tensor) -> Tensor:
        keep = self.reach.keep(f"{self.name}.weight", self.layer.weight.shape)
        paths = keep.flatten(2).any(-1) if keep.dim() > 2 else keep
        return self.reach.see(self.name, x, F.linear(x, paths.to(x.dtype)))


class _Depthwise(_Twin):
    """A filter a channel."""

    def forward(self, x: Tensor) -> Tensor:
        keep = self.reach.keep(f"{self.name}.weight", self.layer.weight.shape)
        return self.reach.see(self.name, x, x * keep.flatten(1).any(-1))


class _Norm(_Twin):
    """LayerNorm: everything mixes through mean and variance; the bias holds something by itself."""

    def forward(self, x: Tensor) -> Tensor:
        name = f"{self.name}.body"
        gain = self.reach.keep(f"{name}.weight", self.layer.body.weight.shape)
        mixed = x.sum(-1, keepdim=True)
        return _with_constants(self.reach.see(name, mixed.expand_as(x), mixed * gain))


class _Attention(_Twin):
    """Attention: a head's output mixes all its v, in shares that q and k set together."""

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        past, x = x, norm(x)
        held = x[HELD].detach().flatten()
        channels, heads = len(held), self.layer.heads
        x = self.qkv_dwconv(self.qkv(x))
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in x.chunk(3, dim=-1))
        some_k, some_v = (part.sum(-1, keepdim=True) for part in (k, v))
        shares = q * some_k if channels // heads > 1 else torch.zeros_like(q)  # the share of a single one is 1
        mixed = some_v + shares * some_v
        # the shares depend on the image if q does or any k; they move something if there is any v
        moved = (q[IMAGE] * some_k[HELD] + q[HELD] * some_k[IMAGE]) * some_v[HELD] * (shares[HELD] > 0)
        mixed = torch.stack((mixed[HELD], (some_v[IMAGE] + moved).expand_as(mixed[IMAGE])))
        self._note_lone(held, channels)
        return past + self.project_out(_Any.apply(mixed.flatten(-2)))

    def _note_lone(self, held: Tensor, channels: int) -> None:
        """Weights that are alone in feeding a channel of q or k."""
        wide, deep = f"{self.name}.qkv.weight", f"{self.name}.qkv_dwconv.weight"
        for name, layer, inputs in ((wide, self.layer.qkv, held > 0), (deep, self.layer.qkv_dwconv, None)):
            keep = self.reach.keep(name, layer.weight.shape).flatten(1)
            feeding = (keep if inputs is None else keep & inputs).sum(-1)
            feeding[2 * channels :] = 2  # v is not divided by its length
            self.reach.lone[name] = feeding < 2


class _FeedForward(_Twin):
    """The gated part: a product holds something if both factors do."""

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        gate, value = self.dwconv(self.project_in(norm(x))).chunk(2, dim=-1)
        image = gate[IMAGE] * value[HELD] + gate[HELD] * value[IMAGE]
        return x + self.project_out(_Any.apply(torch.stack((gate[HELD] * value[HELD], image))))


class _Down(_Twin):
    """Four pixels become four channels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).repeat_interleave(4, dim=-1)


class _Up(_Twin):
    """Four channels become four pixels of one."""

    def forward(self, x: Tensor) -> Tensor:
        return _Any.apply(self.body(x).unflatten(-1, (-1, 4)).sum(-1))


class _Prompt(_Twin):
    """A prompt: it is always there; which components it is mixed from depends on the image if one weight does."""

    def forward(self, x: Tensor) -> Tensor:
        components = self.layer.prompt_param.shape[1]
        logits = self.linear_layer(x)
        mixed = logits.sum(-1, keepdim=True) if components > 1 else 0 * logits  # the share of a single one is 1
        prompt = mixed.expand(*mixed.shape[:-1], self.layer.prompt_param.shape[2])
        return self.conv3x3(_with_constants(_Any.apply(prompt)))


def _with_constants(x: Tensor) -> Tensor:
    """Says that every channel holds something, whatever else."""
    constants = torch.zeros_like(x)
    constants[HELD] = 1
    return _Any.apply(x + constants)


def _twins(network: PromptIR, reach: _Reach) -> None:
    """Puts twins in the place of a network's layers; the wiring between them stays what it is."""
    kinds = {Norm: _Norm, Attention: _Attention, FeedForward: _FeedForward, Prompt: _Prompt, Down: _Down, Up: _Up}
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            twin: _Twin = (_Depthwise if getattr(layer, "groups", 1) > 1 else _Linear)(layer, name, reach)
        elif type(layer) in kinds:
            twin = kinds[type(layer)](layer, name, reach)
        else:
            continue
        for child, module in layer.named_children():  # replaced in their turn
            twin.add_module(child, module)
        place, _, child = name.rpartition(".")
        setattr(network.get_submodule(place), child, twin)


def effective(mask: Mask, network: NetworkSettings) -> Mask:
    """Returns the weights of a mask that carry the image to the output, and whose size matters.

    Args:
        mask: of a network of this shape.
        network: its shape.

    Returns:
        A mask of the same tensors, a part of the one given.

    Raises:
        ValueError: if the mask does not fit the network.
    """
    return classes(mask, network)["effective"]


def classes(mask: Mask, network: NetworkSettings) -> dict[str, Mask]:
    """Divides the weights of a mask by what they do.

    Args:
        mask: of a network of this shape.
        network: its shape.

    Returns:
        By class, those of CLASSES: masks of the same tensors. Each kept weight is in exactly one.

    Raises:
        ValueError: if the mask does not fit the network.
    """
    return next(classes_of([mask], network))


def classes_of(masks: Iterable[Mask], network: NetworkSettings) -> Iterator[dict[str, Mask]]:
    """Divides the weights of several masks of one network, whose twins are made once; see ``classes``."""
    reach = _Reach()
    with torch.device("meta"):
        twin = PromptIR(network)
    shapes = {name: parameter.shape for name, parameter in twin.named_parameters()}
    _twins(twin, reach)
    image = torch.ones(2, 3, 1, 1, requires_grad=True)
    for mask in masks:
        wrong = [name for name, keep in mask.items() if shapes.get(name) != keep.shape]
        if wrong:
            raise ValueError(f"the mask is of another network: {wrong[0]} is not in it, or has another shape")
        reach.begin(mask)
        with torch.enable_grad():
            (twin(image) - image)[HELD].sum().backward()
        parts = {name: _of_tensor(name, keep.cpu(), reach) for name, keep in mask.items()}
        yield {kind: Mask({name: part[at] for name, part in parts.items()}) for at, kind in enumerate(CLASSES)}


def _of_tensor(name: str, keep: Tensor, reach: _Reach) -> tuple[Tensor, ...]:
    """The weights of one tensor, by class."""
    inputs, outputs = reach.seen.get(name.removesuffix(".weight"), (None, None))
    none = torch.zeros_like(keep)
    if inputs is None or outputs.grad is None:  # never runs, or nobody listens to it
        return none, none, none, keep
    heard = outputs.grad[HELD].flatten() > 0
    lone = reach.lone.get(name, torch.zeros_like(heard))
    shared = keep.dim() > 1 and keep.shape[1] > 1  # else a filter, or a gain, for each channel

    def between(inputs: Tensor, units: Tensor) -> Tensor:
        fed = units[:, None] & inputs if shared else units & inputs
        return keep & fed.view(*fed.shape, *[1] * (keep.dim() - fed.dim()))

    used = between(inputs[HELD], heard)
    whole, sign = (between(inputs[IMAGE], units) for units in (heard & ~lone, heard & lone))
    return whole, sign, used & ~whole & ~sign, keep & ~used


def probe(mask: Mask, network: NetworkSettings, seed: int = 0, draws: int = 2, size: int = 32) -> Mask:
    """Asks the gradient itself: which kept weights change the output, at random values, in float64.

    It is slow, and counts weights that only read constants as well; ``classes`` is held to it by the tests.

    Args:
        mask: of a network of this shape.
        network: its shape.
        seed: of the random values.
        draws: of values and images; a weight counts if it has a gradient in one of them.
        size: height and width of the images, in pixels.

    Returns:
        A mask of the same tensors, a part of the one given.
    """
    generator = torch.Generator().manual_seed(seed)
    model = build_network(network).double()
    found = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    for _ in range(draws):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(random_values(parameter, mask.get(name), generator))
        images = torch.rand(1, 3, size, size, generator=generator, dtype=torch.float64)
        weights = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        model.zero_grad()
        (model(images) * weights).sum().backward()
        for name, keep in mask.items():
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                found[name] |= keep & (gradient.abs() > NOISE)
    return Mask(found)


def random_values(parameter: Tensor, keep: Tensor | None, generator: torch.Generator) -> Tensor:
    """Random values away from zero, such that units neither vanish nor grow, whatever the mask keeps of them."""
    draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    value = (0.5 + draw) * (torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5).sign()
    if keep is None:
        return value
    value = value * keep
    if parameter.dim() > 1:
        inputs = keep.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (parameter.dim() - 1))
        value = value / inputs**0.5
    return value
