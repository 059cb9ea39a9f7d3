"""The two halves of a transformer block with derivatives of their own: less is kept, less is copied, less is called.

Autograd keeps every intermediate value and joins the gradients of q, k and v (and of gate and value) by copying them.
Here what enters a half is kept, what LayerNorm made of it, what enters the depth-wise convolution, what leaves that
unless it is large, and the small matrices of attention; the backward pass computes the rest (the gate, its product)
again and writes each part where it belongs. Where derivatives of derivatives are wanted (GraSP), and under autocast or
a compiler, which have rules of their own, the definition is what runs.

What stands between the matrix products of a half can be run by kernels that were compiled for it (``with_kernels``):
they round otherwise, and need nothing of what leaves a depth-wise convolution but q, k and v.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirl_study.kernels import Kernels
from mirl_study.products import added, by_weight, product

EPSILON = 1e-5  # of LayerNorm
LARGE = 8_000_000  # values: what leaves a depth-wise convolution is kept, unless it is more (32 MB); that takes time
_kernels: ContextVar[Kernels | None] = ContextVar("kernels", default=None)


@contextmanager
def with_kernels(kernels: Kernels | None) -> Iterator[None]:
    """What is computed inside, and on the way back from it, is computed by these kernels (None: by none)."""
    before = _kernels.set(kernels)
    try:
        yield
    finally:
        _kernels.reset(before)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution of each channel by itself, on (B, H, W, C)."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


def feed_plainly(x: Tensor, gain: Tensor, bias: Tensor, wide: Tensor, deep: Tensor, narrow: Tensor) -> Tensor:
    """The definition of ``feed``."""
    gate, value = depthwise(F.linear(F.layer_norm(x, gain.shape, gain, bias, EPSILON), wide), deep).chunk(2, dim=-1)
    return x + F.linear(F.gelu(gate) * value, narrow)


def attend_plainly(
    x: Tensor, gain: Tensor, bias: Tensor, wide: Tensor, deep: Tensor, temperature: Tensor, narrow: Tensor
) -> Tensor:
    """The definition of ``attend``."""
    qkv = depthwise(F.linear(F.layer_norm(x, gain.shape, gain, bias, EPSILON), wide), deep).flatten(1, 2)
    q, k, v = (part.unflatten(-1, (len(temperature), -1)).permute(0, 2, 3, 1) for part in qkv.chunk(3, dim=-1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-1, -2) * temperature).softmax(dim=-1)
    return x + F.linear((attention @ v).permute(0, 3, 1, 2).flatten(2), narrow).view_as(x)


class _Feed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, wide: Tensor, deep: Tensor, narrow: Tensor) -> Tensor:
        normed, mean, spread = _normed(x, gain, bias)
        inputs = x, gain, bias, wide, deep, narrow
        ctx.kernels = _kernels_for(x)
        if ctx.kernels:
            wide, deep, narrow = _padded(wide, deep, narrow, ctx.kernels.lanes)
            entering, left = [product(normed, wide)], []
            opened = ctx.kernels.gated(*entering, deep)
        else:
            # The halves are computed one by one: elementwise functions are several times slower on halves of rows.
            entering = [product(normed, half) for half in wide.chunk(2)]
            gate, value = left = [*map(depthwise, entering, deep.chunk(2))]
            opened = F.gelu(gate).mul_(value)
        ctx.save_for_backward(*inputs, mean, spread, normed, *entering, *_if_not_large(left))
        return added(x, opened, narrow)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            return _by_definition(feed_plainly, ctx.saved_tensors[:6], gradient)
        x, gain, bias, *weights, mean, spread, normed = ctx.saved_tensors[:9]
        way = functools.partial(_feed_by_kernels, ctx.kernels) if ctx.kernels else _feed_by_halves
        for_normed, *for_weights = way(gradient, normed, *weights, *ctx.saved_tensors[9:])
        return *_norm_backward(for_normed, x, mean, spread, gain, bias, gradient, ctx.kernels), *for_weights


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, wide: Tensor, deep: Tensor, temperature: Tensor, narrow: Tensor
    ) -> Tensor:
        normed, mean, spread = _normed(x, gain, bias)
        entering = product(normed, wide)
        ctx.kernels = _kernels_for(x, len(wide))
        if ctx.kernels:
            left, squares = ctx.kernels.depthwise(entering, deep)
            kept = [qkv := left.flatten(1, 2)]
        else:
            qkv = depthwise(entering, deep).flatten(1, 2)
            squares = qkv[..., : qkv.shape[-1] // 3 * 2].square().sum(dim=1)
            kept = _if_not_large([qkv])
        small = attention, cosines, lengths, mix = _mixed(qkv, squares, temperature, narrow)
        weights = x, gain, bias, wide, deep, temperature, narrow
        ctx.save_for_backward(*weights, mean, spread, entering, normed, *small, *kept)
        return torch.baddbmm(x.flatten(1, 2), qkv.chunk(3, dim=-1)[2], mix).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            return _by_definition(attend_plainly, ctx.saved_tensors[:7], gradient)
        x, gain, bias, wide, deep, temperature, narrow, mean, spread, entering, normed, *small = ctx.saved_tensors
        small, left = small[:4], small[4:]
        qkv = left[0] if left else depthwise(entering, deep).flatten(1, 2)
        for_qkv, by_qkv, for_temperature, for_narrow = _mixed_backward(
            gradient.flatten(1, 2), qkv, temperature, narrow, *small, apart=bool(ctx.kernels)
        )
        if ctx.kernels:
            for_entering, for_deep = ctx.kernels.depthwise_backward(for_qkv, qkv, by_qkv, entering, deep)
        else:
            del qkv
            for_entering, for_deep = _depthwise_backward(for_qkv.view_as(entering), entering, deep)
        for_wide = by_weight(for_entering, normed)
        through = _norm_backward(product(for_entering, wide.T), x, mean, spread, gain, bias, gradient, ctx.kernels)
        return *through, for_wide, for_deep, for_temperature, for_narrow


def _if_not_large(tensors: list[Tensor]) -> list[Tensor]:
    """What is worth keeping of what leaves a depth-wise convolution."""
    return [tensor for tensor in tensors if tensor.numel() < LARGE]


def _kernels_for(x: Tensor, channels: int | None = None) -> Kernels | None:
    """The compiled kernels, where they are wanted and have been written for such a tensor.

    ``channels`` are those of a depth-wise convolution that are not padded to a whole vector.
    """
    kernels = _kernels.get()
    if kernels is None or (channels is not None and channels < kernels.lanes):
        return None
    return kernels if x.dtype is torch.float32 and x.device.type == "cpu" and x.is_contiguous() else None


def _normed(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm, with the means and the inverse standard deviations that its backward pass wants."""
    return torch.native_layer_norm(x, gain.shape, gain, bias, EPSILON)


def _norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    gain: Tensor,
    bias: Tensor,
    past: Tensor,
    kernels: Kernels | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by x, gain and bias; ``past`` is what comes by the way around the half."""
    if kernels:
        return kernels.norm_backward(gradient, x, mean, spread, gain, past.contiguous())
    for_x, for_gain, for_bias = torch.ops.aten.native_layer_norm_backward(
        gradient.view_as(x), x, gain.shape, mean, spread, gain, bias, [True, True, True]
    )
    return for_x.add_(past), for_gain, for_bias


def _depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of ``depthwise`` by x and weight."""
    images = (part.permute(0, 3, 1, 2) for part in (gradient, x))
    same, wanted = [1, 1], [True, True, False]
    for_x, for_weight, _ = torch.ops.aten.convolution_backward(
        *images, weight, None, same, same, same, False, [0, 0], len(weight), wanted
    )
    return for_x.permute(0, 2, 3, 1), for_weight


def _feed_by_halves(gradient: Tensor, normed: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of a gated half by its LayerNorm's output and its three weights, gate and value apart.

    ``tensors`` are the weights, gate and value as they enter the depth-wise convolution, and as they leave, if kept.
    """
    (wide, deep, narrow, *entering), left = tensors[:5], tensors[5:]
    gate, value = left or map(depthwise, entering, deep.chunk(2))
    opened, inner = F.gelu(gate), product(gradient, narrow.T)
    for_value = inner * opened
    for_gate = torch.ops.aten.gelu_backward(inner.mul_(value), gate)
    for_narrow = by_weight(gradient, opened.mul_(value))
    del gate, value, opened, inner
    (for_gate, gate_kernel), (for_value, value_kernel) = map(
        _depthwise_backward, (for_gate, for_value), entering, deep.chunk(2)
    )
    for_wide = torch.cat([by_weight(part, normed) for part in (for_gate, for_value)])
    from_gate, from_value = wide.chunk(2)
    for_normed = added(product(for_gate, from_gate.T), for_value, from_value.T)
    return for_normed, for_wide, torch.cat((gate_kernel, value_kernel)), for_narrow


def _feed_by_kernels(
    kernels: Kernels, gradient: Tensor, normed: Tensor, wide: Tensor, deep: Tensor, narrow: Tensor, entering: Tensor
) -> tuple[Tensor, ...]:
    """The same by the compiled kernels, where gate and value enter side by side."""
    hidden = narrow.shape[1]
    wide, deep, narrow = _padded(wide, deep, narrow, kernels.lanes)
    opened, for_entering, for_deep = kernels.gated_backward(product(gradient, narrow.T), entering, deep)
    for_narrow = by_weight(gradient, opened)
    for_wide = by_weight(for_entering, normed)
    halves = (part.unflatten(0, (2, -1))[:, :hidden].flatten(0, 1) for part in (for_wide, for_deep))
    return product(for_entering, wide.T), *halves, for_narrow[:, :hidden]


def _padded(wide: Tensor, deep: Tensor, narrow: Tensor, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of a gated half with zeros for more channels, up to a whole number of the kernels' vectors."""
    spare = -narrow.shape[1] % lanes
    if not spare:
        return wide, deep, narrow
    halves = (part.unflatten(0, (2, -1)).flatten(2) for part in (wide, deep))
    wide, deep = (F.pad(part, (0, 0, 0, spare)).flatten(0, 1) for part in halves)
    return wide, deep.view(-1, 1, 3, 3), F.pad(narrow, (0, spare))


def _mixed(qkv: Tensor, squares: Tensor, temperature: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Attention (B, heads, c, c), cosines likewise, lengths (B, 2, heads, c), and the mix of v, (B, C, C).

    ``squares`` are the sums of the squares of q and k, (B, 2 C) or, with those of v, (B, 3 C).

    q and k have unit length along the pixels: dividing the small product is the same and cheaper. Attention and
    projection are both linear in v: multiplied into one matrix first, v is read once.
    """
    heads = len(temperature)
    q, k = _by_head(qkv, heads)
    lengths = squares[:, : qkv.shape[-1] // 3 * 2].sqrt().clamp_min_(1e-12).view(len(qkv), 2, heads, -1)
    cosines = (q.transpose(-1, -2) @ k) / (lengths[:, 0, ..., None] * lengths[:, 1, :, None])
    attention = (temperature * cosines).softmax(dim=-1)
    return attention, cosines, lengths, (attention.transpose(-1, -2) @ _by_input(weight, heads)).flatten(1, 2)


def _mixed_backward(
    gradient: Tensor,
    qkv: Tensor,
    temperature: Tensor,
    weight: Tensor,
    attention: Tensor,
    cosines: Tensor,
    lengths: Tensor,
    mix: Tensor,
    apart: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of v times mix by qkv, temperature and weight.

    Returns:
        Those by qkv first, (B, pixels, 3 C), and the factors of qkv itself in them, (B, 3 C). If ``apart``, the product
        of the two is yet to be added.
    """
    heads, twice = len(temperature), qkv.shape[-1] // 3 * 2
    for_mix = torch.bmm(qkv[..., twice:].transpose(1, 2), gradient).unflatten(1, (heads, -1))  # (B, heads, c, C)
    for_projection = (attention @ for_mix).sum(0)  # (heads, c, C)
    for_attention = _by_input(weight, heads) @ for_mix.transpose(-1, -2)
    inner = attention * (for_attention - (for_attention * attention).sum(-1, keepdim=True))  # before the softmax
    shares = inner * cosines
    for_temperature = shares.sum((0, 2, 3)).view_as(temperature)
    shares = shares * temperature
    cross = inner * temperature / (lengths[:, 0, ..., None] * lengths[:, 1, :, None])
    joined = torch.empty_like(qkv)
    torch.bmm(gradient, mix.transpose(1, 2), out=joined[..., twice:])
    factors = torch.stack((shares.sum(-1), shares.sum(-2)), dim=1).div_(lengths.square()).neg_().flatten(1)
    if not apart:
        torch.mul(qkv[..., :twice], factors[:, None], out=joined[..., :twice])
    (q, k), (for_q, for_k) = (_by_head(part, heads) for part in (qkv, joined))
    if heads == 1:
        for_q.squeeze(1).baddbmm_(k.squeeze(1), cross.squeeze(1).transpose(1, 2), beta=not apart)
        for_k.squeeze(1).baddbmm_(q.squeeze(1), cross.squeeze(1), beta=not apart)
    else:
        (for_q.copy_ if apart else for_q.add_)(k @ cross.transpose(-1, -2))
        (for_k.copy_ if apart else for_k.add_)(q @ cross)
    return joined, F.pad(factors, (0, twice // 2)), for_temperature, for_projection.permute(2, 0, 1).flatten(1)


def _by_head(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Views of q and k, (B, heads, pixels, c)."""
    q, k, _ = qkv.chunk(3, dim=-1)
    return q.unflatten(-1, (heads, -1)).transpose(1, 2), k.unflatten(-1, (heads, -1)).transpose(1, 2)


def _by_input(weight: Tensor, heads: int) -> Tensor:
    """The projection, (C, C), as (heads, c, C): for each of its inputs what it gives to all outputs."""
    return weight.unflatten(1, (heads, -1)).permute(1, 2, 0)


def _by_definition(function: Any, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs), inputs, gradient, create_graph=True)


def _where_possible(fused: Any, plainly: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The fused form; the definition where autocast or a compiler shall find each operation."""

    @functools.wraps(plainly)
    def run(x: Tensor, *weights: Tensor) -> Tensor:
        by_others = torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
        return (plainly if by_others else fused.apply)(x, *weights)

    return run


feed = _where_possible(_Feed, feed_plainly)
attend = _where_possible(_Attend, attend_plainly)
