"""Derivatives written by hand, against finite differences and against autograd of the definitions."""

import pytest
import torch

from mirl_study import fused
from mirl_study.network import build_network


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, requires_grad=True)


def feed() -> tuple[torch.Tensor, ...]:
    """Arguments of ``feed``: 4 channels, 5 hidden ones."""
    return doubles(2, 3, 2, 4), doubles(4), doubles(4), doubles(10, 4), doubles(10, 1, 3, 3), doubles(4, 5)


def attend(heads: int) -> tuple[torch.Tensor, ...]:
    """Arguments of ``attend``: 6 channels."""
    weights = doubles(18, 6), doubles(18, 1, 3, 3), doubles(heads, 1, 1), doubles(6, 6)
    return doubles(2, 3, 2, 6), doubles(6), doubles(6), *weights


@pytest.fixture(params=["kept", "computed again"])
def large(request, monkeypatch):
    monkeypatch.setattr(fused, "LARGE", 2**23 if request.param == "kept" else 0)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attend(heads, large):
    torch.manual_seed(heads)
    arguments = attend(heads)
    assert torch.allclose(fused.attend(*arguments), fused.attend_plainly(*arguments))
    assert torch.autograd.gradcheck(fused.attend, arguments)
    if fused.LARGE:  # what is kept makes no difference to it
        assert torch.autograd.gradgradcheck(fused.attend, arguments), "GraSP differentiates twice"


def test_feed(large):
    torch.manual_seed(0)
    arguments = feed()
    assert torch.allclose(fused.feed(*arguments), fused.feed_plainly(*arguments))
    assert torch.autograd.gradcheck(fused.feed, arguments) and torch.autograd.gradgradcheck(fused.feed, arguments)


def test_pixels_without_any_light_have_finite_derivatives():
    x, gain, bias, *weights = attend(2)
    with torch.no_grad():
        bias.zero_()  # a black image has no features after LayerNorm, and q and k no length
    x = torch.zeros_like(x, requires_grad=True)
    fused.attend(x, gain, bias, *weights).sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (x, gain, bias, *weights))


def kept(function, *arguments) -> int:
    """Values that a call keeps for its backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        function(*arguments)
    return sum(sizes)


@pytest.mark.parametrize(("name", "arguments"), [("feed", feed()), ("attend", attend(2))])
def test_less_is_kept_than_by_autograd(name, arguments, monkeypatch):
    arguments = torch.randn(2, 32, 32, arguments[0].shape[-1], dtype=torch.double), *arguments[1:]
    short, whole = (kept(getattr(fused, name + form), *arguments) for form in ("", "_plainly"))
    monkeypatch.setattr(fused, "LARGE", 0)
    assert kept(getattr(fused, name), *arguments) < short < whole


def test_under_autocast_the_definitions_run():
    network, images = build_network("pico"), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        restored = network(images)
    assert not torch.equal(restored, network(images)) and torch.allclose(restored, network(images), atol=0.05)
    restored.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
