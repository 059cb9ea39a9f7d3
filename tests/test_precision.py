"""What changes rounding is a setting: bf16 and compiled training, and what happens where nothing compiles."""

import warnings

import pytest
import torch
from torch import nn

from mirl_study import kernels, load_settings
from mirl_study.data import load_bank
from mirl_study.masks import Mask
from mirl_study.network import build_network
from mirl_study.precision import _compiled, forward_of
from mirl_study.settings import SettingsError
from mirl_study.store import project_root
from mirl_study.training import train


def test_by_default_the_network_itself_is_called():
    network = build_network("pico")
    assert forward_of(network, load_settings("smoke")) is network


def test_bf16_trains_weights_that_stay_float32_and_masked():
    histories = {}
    for precision in ("float32", "bf16"):
        settings = load_settings("smoke", precision=precision)
        network = build_network(settings.network)
        whole = Mask.dense(network)
        mask = Mask({name: keep.clone().index_fill_(0, torch.tensor([0]), False) for name, keep in whole.items()})
        histories[precision] = train(network, mask, load_bank(settings, "train", project_root()), settings)
        assert all(p.dtype is torch.float32 and p.isfinite().all() for p in network.parameters())
        assert not any(network.get_parameter(name)[~keep].any() for name, keep in mask.items())
    losses = [history.loss.tolist() for history in histories.values()]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_an_unknown_precision_is_named():
    with pytest.raises(SettingsError, match="did you mean 'bf16'"):
        load_settings("smoke", precision="bf61")


def test_where_no_compiler_works_training_goes_on_without(monkeypatch):
    def none() -> None:
        raise kernels.NoKernels("no C++ compiler")

    monkeypatch.setattr(kernels, "build", none)
    network = build_network("pico")
    with pytest.warns(UserWarning, match=r"compile=True is not possible here \(no C\+\+ compiler\): .*goes on without"):
        assert forward_of(network, load_settings("smoke", compile=True)) is network


def test_where_torch_cannot_compile_it_is_said_once(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    torch._dynamo.reset()
    network, images = nn.Sequential(nn.Conv2d(3, 3, 3), nn.GELU()), torch.rand(1, 3, 8, 8)
    run = _compiled(network)  # what a GPU gets
    with pytest.warns(UserWarning, match="compile=True is not possible here .*goes on without"):
        assert torch.equal(run(images), network(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(images), network(images)), "said once"


@pytest.mark.slow
def test_a_compiled_network_restores_the_same():
    torch._dynamo.reset()
    network, images = nn.Sequential(nn.Conv2d(3, 3, 3), nn.GELU()), torch.rand(1, 3, 8, 8)
    run = _compiled(network)
    with warnings.catch_warnings(record=True) as said:
        assert torch.allclose(run(images), network(images), atol=1e-6)
    assert all("compile=True is not possible" in str(warning.message) for warning in said)


def test_a_training_on_kernels_is_the_same_to_rounding_and_stays_masked():
    try:
        kernels.build()
    except kernels.NoKernels as error:
        pytest.skip(str(error))
    histories, weights = {}, {}
    for compiled in (False, True):
        settings = load_settings("smoke", compile=compiled, network="nano", steps=6, warmup_steps=1)
        network = build_network(settings.network)
        whole = Mask.dense(network)
        mask = Mask({name: keep.clone().index_fill_(0, torch.tensor([0]), False) for name, keep in whole.items()})
        histories[compiled] = train(network, mask, load_bank(settings, "train", project_root()), settings)
        assert not any(network.get_parameter(name)[~keep].any() for name, keep in mask.items())
        weights[compiled] = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert not torch.equal(*weights.values()), "the kernels ran"
    assert histories[True].loss.tolist() == pytest.approx(histories[False].loss.tolist(), rel=1e-4)
