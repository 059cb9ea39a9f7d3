"""The compiled kernels against the definitions in double precision, and what happens where nothing compiles."""

import json
import os
import shlex
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl_study import fused, kernels, load_settings, lottery, products
from mirl_study.network import build_network

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))  # images, height, width


def compiled(monkeypatch: pytest.MonkeyPatch, cache: Path, lanes: int | None) -> kernels.Kernels:
    """The kernels with as many lanes as this CPU has, or as told."""
    try:
        if lanes is None:
            return kernels.build()
        monkeypatch.setenv("CXX", f"{shlex.join(kernels._compiler())} -DVECTOR={lanes}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        return kernels.build.__wrapped__()
    except (kernels.NoKernels, OSError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[None, *(pytest.param(lanes, marks=pytest.mark.slow) for lanes in (8, 16))])
def built(request, tmp_path_factory) -> kernels.Kernels:
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = compiled(monkeypatch, tmp_path_factory.mktemp("cache"), request.param)
    assert found.lanes in ((8, 16) if request.param is None else (request.param,))
    return found


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((value.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-3)).item()


def both(function, plainly, arguments: list[torch.Tensor], built: kernels.Kernels | None) -> list[float]:
    """Errors of a half's output and of all its derivatives in float32, by kernels if told, against its definition.

    That is in doubles.
    """
    exact = [argument.double().requires_grad_() for argument in arguments]
    short = [argument.clone().requires_grad_() for argument in arguments]
    wanted = plainly(*exact)
    with fused.with_kernels(built):
        found = function(*short)
    seed = torch.randn(wanted.shape, dtype=torch.double)
    wanted.backward(seed)
    found.backward(seed.float())
    pairs = [(found.detach(), wanted.detach()), *((a.grad, b.grad) for a, b in zip(short, exact, strict=True))]
    return [error(*pair) for pair in pairs]


@given(shapes, st.integers(4, 24), st.sampled_from([1, 5, 16, 21, 48, 130, 255]))
@settings(max_examples=40, deadline=None)
def test_a_gated_half_of_any_shape(built, shape, channels, hidden):
    torch.manual_seed(hidden)
    weights = (2 * hidden, channels), (2 * hidden, 1, 3, 3), (channels, hidden)
    arguments = [torch.randn(*shape, channels), *torch.randn(2, channels), *(torch.randn(size) for size in weights)]
    assert max(both(fused.feed, fused.feed_plainly, arguments, built)) < 1e-4


def test_a_gated_half_beside_convolved_products(built, monkeypatch):
    monkeypatch.setattr(products, "CONVOLVED_FROM", 0)
    torch.manual_seed(0)
    weights = (torch.randn(size) for size in ((42, 10), (42, 1, 3, 3), (10, 21)))
    arguments = [torch.randn(2, 8, 4, 10), *torch.randn(2, 10), *weights]
    assert max(both(fused.feed, fused.feed_plainly, arguments, built)) < 1e-4


@given(shapes, st.sampled_from([(2, 1), (6, 1), (6, 3), (16, 2), (45, 1), (48, 4), (50, 2)]))
@settings(max_examples=40, deadline=None)
def test_an_attending_half_of_any_shape(built, shape, form):
    channels, heads = form  # 3 x 2 channels of q, k and v are fewer than a vector: the definition's operations run
    torch.manual_seed(channels)
    weights = (3 * channels, channels), (3 * channels, 1, 3, 3), (heads, 1, 1), (channels, channels)
    arguments = [torch.randn(*shape, channels), *torch.randn(2, channels), *(torch.randn(size) for size in weights)]
    assert max(both(fused.attend, fused.attend_plainly, arguments, built)) < 1e-3  # one pixel has cosines of one


def test_gelu_everywhere(built):
    gate = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -0.0, 1e-30, -100.0, 1e4, -1e4, 1e20, -1e20])])
    x = torch.zeros(len(gate), 1, 1, 32)
    x[..., 0], x[..., 16] = gate[:, None, None], 1
    weight = torch.zeros(32, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    wanted = torch.nn.functional.gelu(gate.double())
    found = built.gated(x, weight)[:, 0, 0, 0].double()
    assert ((found - wanted).abs() <= 2e-7 * gate.abs().clamp_min(1)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_become_one(built, bad):
    network, images = build_network("nano"), torch.rand(1, 3, 16, 16)
    images[0, 0, 3, 3] = bad
    with fused.with_kernels(built):
        assert not network(images).isfinite().all()


def gradients(network, images, built=None) -> list[torch.Tensor]:
    network.zero_grad()
    if built is None:
        restored = network(images)
    else:
        with fused.with_kernels(built):
            restored = network(images)
    restored.square().mean().backward()
    return [restored.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


def test_a_network_is_the_same_to_rounding_and_with_any_number_of_threads(built, set_threads):
    network, images = build_network("nano"), torch.rand(3, 3, 24, 16)
    before = gradients(network, images)
    one = gradients(network, images, built)
    assert max(map(error, one, [tensor.double() for tensor in before])) < 1e-4
    assert not all(map(torch.equal, one, before)), "the kernels ran"
    x, weight = torch.randn(3, 7, 9, 50), torch.randn(50, 1, 3, 3)
    results = []
    for count in (1, 2, 5):
        set_threads(count)
        out, squares = built.depthwise(x, weight)
        back = built.depthwise_backward(x.clone(), out, squares, x, weight)
        gated = built.gated_backward(out[..., :25].contiguous(), x, weight)
        results.append([out, squares, *back, *gated])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_what_is_saved_is_not_written_over(built):
    network, images = build_network("nano"), torch.rand(2, 3, 16, 16)
    with fused.with_kernels(built):
        loss = network(images).square().mean()
    first = torch.autograd.grad(loss, [*network.encoder_level1.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [*network.encoder_level1.parameters()])
    assert all(map(torch.equal, first, second))


def test_derivatives_of_derivatives_are_the_definitions(built):
    network, images = build_network("nano"), torch.rand(1, 3, 16, 16)
    weights = [p for name, p in network.named_parameters() if "latent" in name]
    for context in (fused.with_kernels(built), fused.with_kernels(None)):
        with context:
            loss = network(images).square().mean()
        once = torch.autograd.grad(loss, weights, create_graph=True)
        twice = torch.autograd.grad(sum(part.square().sum() for part in once), weights)
        assert all(tensor.isfinite().all() for tensor in twice)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(1, 4, 4, 32).transpose(1, 2), "a tensor is not contiguous, or"),
        (torch.rand(1, 4, 4, 32).double(), "a tensor is not contiguous, or not float32"),
        (torch.rand(1, 4, 4, 7), "7 channels are not allowed: at least"),
        (torch.rand(1, 4, 0, 32), "an image of 4x0 pixels is not allowed"),
        (torch.rand(1, 4, 4, 48), r"a tensor \(32, 1, 3, 3\) does not go with \(1, 4, 4, 48\)"),
    ],
)
def test_what_the_kernels_were_not_written_for_is_refused(built, x, message):
    with pytest.raises(ValueError, match=f"depthwise: {message}"):
        built.depthwise(x, torch.rand(32, 1, 3, 3))


@pytest.mark.parametrize("channels", [17, 136, 255])
def test_the_gate_without_padding(built, channels):
    x, weight = torch.randn(2, 5, 3, 2 * channels), torch.randn(2 * channels, 1, 3, 3)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    gate, value = fused.depthwise(*exact).chunk(2, dim=-1)
    wanted = torch.nn.functional.gelu(gate) * value
    inner = torch.randn(wanted.shape)
    wanted.backward(inner.double())
    assert error(built.gated(x, weight), wanted.detach()) < 1e-5
    _, *derivatives = built.gated_backward(inner, x, weight)
    for found, exactly in zip(derivatives, exact, strict=True):
        assert error(found, exactly.grad) < 1e-5
    assert error(inner, wanted.detach()) < 1e-5, "the product takes its place"


def test_no_images_have_no_derivatives(built):
    x, weight = torch.empty(0, 4, 4, 64), torch.randn(64, 1, 3, 3)
    assert not built.gated_backward(torch.empty(0, 4, 4, 32), x, weight)[2].any()
    none = torch.empty(0, 4, 4, 64), torch.empty(0, 4, 4, 64), torch.empty(0, 64)
    assert not built.depthwise_backward(*none, x, weight)[1].any()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.build.cache_clear()
    yield tmp_path
    kernels.build.cache_clear()


def test_they_are_compiled_once_and_again_where_damaged(built, empty_cache, monkeypatch):
    kernels.build()
    (library,) = (empty_cache / "cache" / "mirl_study").iterdir()
    library.write_bytes(b"damaged")
    kernels.build.cache_clear()
    kernels.build()
    assert library.stat().st_size > 1000
    kernels.build.cache_clear()
    monkeypatch.setattr(kernels.subprocess, "run", lambda *_, **__: pytest.fail("compiled twice"))
    kernels.build()
    assert kernels.state() == f"{library.stem} compiled"


def compiler(folder, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'error: no such flag' >&2; exit 1", "compiler: error: no such flag"),
        ("exit 3", "compiler: .*exit status 3"),
        (r"printf 'a warning\n\377 error: odd\nnote\n' >&2; exit 1", "compiler: . error: odd"),
        ('for last; do :; done; echo no library > "$last"', "kernels-"),
    ],
)
def test_a_compiler_that_fails_is_named(empty_cache, monkeypatch, text, message):
    monkeypatch.setenv("CXX", compiler(empty_cache, text))
    with pytest.raises(kernels.NoKernels, match=message):
        kernels.build()
    assert not [*(empty_cache / "cache" / "mirl_study").iterdir()]


def test_without_a_compiler_or_a_cache_it_says_so(empty_cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(kernels.NoKernels, match="no C.. compiler; looked for c.., g.., clang"):
        kernels.build()
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(kernels.NoKernels, match="CXX='no-such-compiler -x' is no command here"):
        kernels.build()
    assert kernels.state().startswith("goes on without: CXX=")
    (empty_cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache / "file"))
    monkeypatch.setenv("CXX", compiler(empty_cache, "exit 1"))
    with pytest.raises(kernels.NoKernels, match="file"):
        kernels.build()


@pytest.mark.parametrize("value", ["", "relative"])
def test_a_cache_that_is_not_absolute_counts_as_none(empty_cache, monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(empty_cache))
    assert kernels._cache() == empty_cache / ".cache" / "mirl_study"


def test_a_user_without_a_home_is_told(empty_cache, monkeypatch):
    def homeless(_: type) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(kernels.Path, "home", classmethod(homeless))
    with pytest.raises(kernels.NoKernels, match="home directory"):
        kernels.build()


def test_a_run_says_whether_it_had_kernels(built, tmp_path):
    said = {}
    for precision in ("float32", "bf16"):
        lottery.dense_round(load_settings("smoke", compile=True, precision=precision), tmp_path / precision)
        (record,) = (tmp_path / precision).rglob("run.json")
        said[precision] = [entry.get("kernels") for entry in json.loads(record.read_text())["sessions"]]
    assert said == {"float32": [f"{kernels.build().name} compiled"], "bf16": [None]}, "bf16 has rules of its own"
