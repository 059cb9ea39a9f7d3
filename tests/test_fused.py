"""Derivatives written by hand, against finite differences and against autograd of the definitions."""

import pytest
import torch

from mirl_study import fused


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attended(heads):
    torch.manual_seed(heads)
    arguments = doubles(2, 7, 18), doubles(heads, 1, 1), doubles(6, 6)
    assert torch.allclose(fused.attended(*arguments), fused.attended_plainly(*arguments))
    assert torch.autograd.gradcheck(fused.attended, arguments)
    assert torch.autograd.gradgradcheck(fused.attended, arguments), "GraSP differentiates twice"


def test_gated():
    torch.manual_seed(0)
    arguments = doubles(2, 3, 2, 5), doubles(2, 3, 2, 5), doubles(4, 5)
    assert torch.allclose(fused.gated(*arguments), fused.gated_plainly(*arguments))
    assert torch.autograd.gradcheck(fused.gated, arguments) and torch.autograd.gradgradcheck(fused.gated, arguments)


def test_pixels_without_any_light_have_finite_derivatives():
    qkv = torch.zeros(1, 4, 12, requires_grad=True)
    temperature, weight = torch.ones(2, 1, 1, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    fused.attended(qkv, temperature, weight).sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (qkv, temperature, weight))


def test_less_is_kept_than_by_autograd():
    def kept(function, *arguments) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            function(*arguments)
        return sum(sizes)

    hidden = [torch.randn(1, 64, 16, requires_grad=True) for _ in range(2)]
    weight = torch.randn(8, 16, requires_grad=True)
    assert kept(fused.gated, *hidden, weight) < kept(fused.gated_plainly, *hidden, weight)
    arguments = torch.randn(1, 64, 24, requires_grad=True), torch.ones(2, 1, 1), torch.randn(8, 8, requires_grad=True)
    assert kept(fused.attended, *arguments) < kept(fused.attended_plainly, *arguments)
