"""Products of pixels and a weight, by either library, against their definition in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl_study import products
from mirl_study.network import Pointwise

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 24), st.integers(1, 24))  # pixels and channels
EITHER = [0, 10**12]  # LEAST: convolved where that is possible, or never


@pytest.mark.parametrize("least", EITHER)
@given(SIZES, st.booleans())
@settings(max_examples=60)
def test_they_are_what_they_stand_for(least, sizes, strided):
    height, width, inputs, outputs = sizes
    torch.manual_seed(0)
    x, past, gradient = (torch.randn(2, height, width, channels) for channels in (inputs, outputs, outputs))
    weight = torch.randn(outputs, inputs)
    if strided:  # a part of each pixel, and a transposed weight
        x, weight = torch.cat((x, x), dim=-1)[..., :inputs], weight.T.contiguous().T
    exact = torch.einsum("bhwk,nk->bhwn", x.double(), weight.double())
    by_weight = torch.einsum("bhwn,bhwk->nk", gradient.double(), x.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LEAST", least)
        found = products.product(x, weight), products.added(past, x, weight), products.by_weight(gradient, x)
    for value, wanted in zip(found, (exact, past.double() + exact, by_weight), strict=True):
        assert (
            value.shape == wanted.shape and value.is_contiguous() and torch.allclose(value.double(), wanted, atol=1e-4)
        )


def test_nothing_that_is_given_changes():
    x, y, weight = torch.randn(2, 32, 32, 96), torch.randn(2, 32, 32, 48), torch.randn(96, 48)
    before = [tensor.clone() for tensor in (x, y, weight)]
    products.added(x, y, weight)
    products.by_weight(x, y)
    assert all(map(torch.equal, (x, y, weight), before))


@pytest.mark.parametrize("least", EITHER)
def test_a_pointwise_layer_can_be_differentiated_twice(least, monkeypatch):
    monkeypatch.setattr(products, "LEAST", least)
    layer, x = Pointwise(3, 5).double(), torch.randn(1, 4, 4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x), "GraSP does"
    layer, x = layer.float(), x.detach().float().requires_grad_()  # doubles are never convolved
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    weight = layer.weight.detach().flatten(1)
    assert torch.allclose(x.grad, 8 * x.detach() @ (weight.T @ weight) @ (weight.T @ weight), atol=1e-4)


@pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="one library is all"
)
def test_mkl_is_for_processors_of_its_maker_and_onednn_for_others():
    assert products.least(["vendor_id\t: GenuineIntel", "model name\t: Intel(R) Xeon(R) Processor"]) == math.inf
    assert products.least(["model name: Intel64 Family 6 Model 85 Stepping 7, GenuineIntel"]) == math.inf, "Windows"
    assert products.least(["vendor_id\t: AuthenticAMD", "model name\t: AMD EPYC"]) == products.PAYS_FROM


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "convolved"), [(96, True), (8, False)])
def test_large_ones_are_convolved_by_onednn_and_small_ones_are_not(channels, convolved, threads, monkeypatch):
    monkeypatch.setattr(products, "LEAST", products.PAYS_FROM)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x, weight = torch.randn(1, 64, 64, channels), torch.randn(channels, channels)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        products.product(x, weight)
        products.by_weight(x, x)
    torch.set_num_threads(before)
    called = {event.key for event in profile.key_averages()}
    assert ("aten::mkldnn_convolution" in called) == ("aten::convolution_backward" in called) == convolved
    assert ("aten::mm" in called) == (not convolved)
