"""The two heavy ends of a transformer block with derivatives of their own: less is kept, less is copied.

Autograd keeps every intermediate value and joins the gradients of q, k and v (and of gate and value) by copying them.
Here the backward pass computes cheap values again and writes each part where it belongs. Where derivatives of
derivatives are wanted (GraSP), the definition is differentiated by autograd instead.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_plainly(gate: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The definition of ``gated``."""
    return F.linear(F.gelu(gate) * value, weight)


def attended_plainly(qkv: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """The definition of ``attended``."""
    heads = len(temperature)
    q, k, v = (part.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1) for part in qkv.chunk(3, dim=-1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-1, -2) * temperature).softmax(dim=-1)
    return F.linear((attention @ v).permute(0, 3, 1, 2).flatten(2), weight)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value, weight)
        return F.linear(F.gelu(gate).mul_(value), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            return _by_definition(gated_plainly, ctx.saved_tensors, gradient)
        gate, value, weight = ctx.saved_tensors
        opened, inner = F.gelu(gate), gradient @ weight
        for_value = inner * opened
        for_gate = torch.ops.aten.gelu_backward(inner.mul_(value), gate)
        for_weight = gradient.flatten(0, -2).T @ opened.mul_(value).flatten(0, -2)
        return for_gate, for_value, for_weight


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
        attention, cosines, lengths, mix = _mixed(qkv, temperature, weight)
        ctx.save_for_backward(qkv, temperature, weight, attention, cosines, lengths, mix)
        return torch.bmm(qkv.chunk(3, dim=-1)[2], mix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            return _by_definition(attended_plainly, ctx.saved_tensors[:3], gradient)
        qkv, temperature, weight, attention, cosines, lengths, mix = ctx.saved_tensors
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
        shrink = torch.stack((shares.sum(-1), shares.sum(-2)), dim=1).div_(lengths.square()).neg_()
        torch.mul(qkv[..., :twice], shrink.flatten(1)[:, None], out=joined[..., :twice])
        (q, k), (for_q, for_k) = (_by_head(part, heads) for part in (qkv, joined))
        if heads == 1:
            for_q.squeeze(1).baddbmm_(k.squeeze(1), cross.squeeze(1).transpose(1, 2))
            for_k.squeeze(1).baddbmm_(q.squeeze(1), cross.squeeze(1))
        else:
            for_q.add_(k @ cross.transpose(-1, -2))
            for_k.add_(q @ cross)
        return joined, for_temperature, for_projection.permute(2, 0, 1).flatten(1)


def _by_head(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Views of q and k, (B, heads, pixels, c)."""
    q, k, _ = qkv.chunk(3, dim=-1)
    return q.unflatten(-1, (heads, -1)).transpose(1, 2), k.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mixed(qkv: Tensor, temperature: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Attention (B, heads, c, c), cosines likewise, lengths (B, 2, heads, c), and the mix of v, (B, C, C).

    q and k have unit length along the pixels: dividing the small product is the same and cheaper. Attention and
    projection are both linear in v: multiplied into one matrix first, v is read once.
    """
    heads = len(temperature)
    q, k = _by_head(qkv, heads)
    lengths = torch.linalg.vector_norm(qkv[..., : qkv.shape[-1] // 3 * 2], dim=1).clamp_min(1e-12)
    lengths = lengths.view(len(qkv), 2, heads, -1)
    cosines = (q.transpose(-1, -2) @ k) / (lengths[:, 0, ..., None] * lengths[:, 1, :, None])
    attention = (temperature * cosines).softmax(dim=-1)
    return attention, cosines, lengths, (attention.transpose(-1, -2) @ _by_input(weight, heads)).flatten(1, 2)


def _by_input(weight: Tensor, heads: int) -> Tensor:
    """The projection, (C, C), as (heads, c, C): for each of its inputs what it gives to all outputs."""
    return weight.unflatten(1, (heads, -1)).permute(1, 2, 0)


def _by_definition(function: Any, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs), inputs, gradient, create_graph=True)


gated = _Gated.apply
attended = _Attended.apply
