"""Products of pixels and a weight, by either library, against their definition in double precision."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_kernels import both

from mirl_study import fused, products
from mirl_study.network import Pointwise

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 24), st.integers(1, 24))  # pixels and channels
two_libraries = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="one library is all"
)


@pytest.fixture(params=[(1, 0), (2, 0), (1, math.inf)], ids=["convolved", "by two threads", "multiplied"])
def way(request, monkeypatch, set_threads) -> None:
    """With how many threads, and from how many values on, a product is convolved."""
    threads, convolved_from = request.param
    set_threads(threads)
    monkeypatch.setattr(products, "CONVOLVED_FROM", convolved_from)


@pytest.mark.usefixtures("way")
@given(SIZES, st.sampled_from(["whole", "parts of pixels", "channels first"]))
@example((32, 3, 7, 9), "whole")
@example((32, 2, 5, 16), "parts of pixels")
@example((16, 4, 16, 3), "channels first")
@settings(max_examples=60)
def test_they_are_what_they_stand_for(sizes, layout):
    height, width, inputs, outputs = sizes
    torch.manual_seed(0)
    x, past, gradient = (torch.randn(2, height, width, channels) for channels in (inputs, outputs, outputs))
    weight = torch.randn(outputs, inputs)
    if layout == "parts of pixels":
        x, weight = torch.cat((x, x), dim=-1)[..., :inputs], weight.T.contiguous().T
    if layout == "channels first":
        x, gradient = (part.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for part in (x, gradient))
    exact = torch.einsum("bhwk,nk->bhwn", x.double(), weight.double())
    by_weight = torch.einsum("bhwn,bhwk->nk", gradient.double(), x.double())
    found = products.product(x, weight), products.added(past, x, weight), products.by_weight(gradient, x)
    for value, wanted in zip(found, (exact, past.double() + exact, by_weight), strict=True):
        assert value.shape == wanted.shape and value.is_contiguous()
        assert torch.allclose(value.double(), wanted, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_nothing_that_is_given_changes():
    x, y, weight = torch.randn(2, 32, 32, 96), torch.randn(2, 32, 32, 48), torch.randn(96, 48)
    before = [tensor.clone() for tensor in (x, y, weight)]
    products.added(x, y, weight)
    products.by_weight(x, y)
    assert all(map(torch.equal, (x, y, weight), before))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [(2, 8, 4), (1, 5, 3)])  # one that can be convolved, and one that cannot
def test_a_pointwise_layer_can_be_differentiated_twice(size):
    layer, x = Pointwise(3, 5).double(), torch.randn(*size, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x), "GraSP does"
    layer, x = layer.float(), x.detach().float().requires_grad_()  # doubles are never convolved
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    weight = layer.weight.detach().flatten(1)
    assert torch.allclose(x.grad, 8 * x.detach() @ (weight.T @ weight) @ (weight.T @ weight), atol=1e-4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("half", "plainly", "shapes"),
    [
        (fused.feed, fused.feed_plainly, [(42, 10), (42, 1, 3, 3), (10, 21)]),
        (fused.attend, fused.attend_plainly, [(30, 10), (30, 1, 3, 3), (2, 1, 1), (10, 10)]),
    ],
)
def test_the_halves_of_a_block_are_what_they_are_by_definition(half, plainly, shapes):
    torch.manual_seed(0)
    arguments = [torch.randn(2, 8, 4, 10), *torch.randn(2, 10), *map(torch.randn, shapes)]
    assert max(both(half, plainly, arguments, None)) < 1e-5


@two_libraries
def test_mkl_is_for_processors_of_its_maker_and_onednn_for_those_that_were_timed():
    assert products.convolved_from(["vendor_id\t: AuthenticAMD", "model name\t: AMD EPYC"]) == products.PAYS_FROM
    for maker in ("vendor_id\t: GenuineIntel", "model name: Intel64 Family 6, GenuineIntel", "model name: arm"):
        assert products.convolved_from([maker]) == math.inf


@two_libraries
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("size", "convolved"), [((64, 64, 96), True), ((64, 64, 8), False), ((65, 63, 96), False)])
def test_large_ones_are_convolved_by_onednn_and_others_are_not(size, convolved, threads, monkeypatch, set_threads):
    monkeypatch.setattr(products, "CONVOLVED_FROM", products.PAYS_FROM)
    set_threads(threads)
    x, weight = torch.randn(1, *size), torch.randn(size[-1], size[-1])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        products.product(x, weight)
        products.by_weight(x, x)
    called = {event.key for event in profile.key_averages()}
    assert ("aten::mkldnn_convolution" in called) == ("aten::convolution_backward" in called) == convolved
    assert ("aten::mm" in called) == (not convolved) and not any("slow_conv" in name for name in called)
