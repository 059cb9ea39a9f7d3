"""The authors' checkpoints: read by shape, refused by name, and ours written so that they are read the same."""

import argparse
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from mirl_study import Ticket, load_released, load_settings, lottery
from mirl_study.masks import Mask, dense_mask
from mirl_study.network import PromptIR, build_network, fingerprint
from mirl_study.released import import_released, save_released, shape_of
from mirl_study.settings import PRESETS, NetworkSettings
from mirl_study.tickets import TicketError

RELEASED = load_settings("smoke", protocol="released", network={"unused": True})


def sparse(density: float = 0.2, seed: int = 3) -> tuple[PromptIR, Mask]:
    """A network of the released kind: pico, with the unused convolutions, norms pruned too."""
    generator = torch.Generator().manual_seed(seed)
    mask = Mask({n: torch.rand(t.shape, generator=generator) < density for n, t in dense_mask(RELEASED).items()})
    network = build_network(RELEASED.network, seed)
    mask.apply_(dict(network.named_parameters()))
    return network, mask


def state(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"net.{name}": tensor for name, tensor in sparse()[0].state_dict().items()} | more


@torch.no_grad()
def output(network: PromptIR) -> torch.Tensor:
    return network(torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_there_and_back(tmp_path, density):
    network, mask = sparse(density)
    save_released(tmp_path / "a.ckpt", network)
    assert all(name.startswith("net.") for name in torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    back, found = load_released(tmp_path / "a.ckpt")
    assert found == mask and list(found) == list(mask)
    assert back.settings == network.settings
    assert (output(back) - output(network)).abs().max() <= 1e-5
    assert fingerprint(back) == fingerprint(network)


@pytest.mark.parametrize("trained", [True, False])
def test_a_finished_round_there_and_back(smoke_results, tmp_path, trained):
    *_, last = lottery.rounds(load_settings("smoke"), smoke_results, "cpu", show=False)
    save_released(tmp_path / "a.ckpt", last.ticket.network(trained))
    network, found = load_released(tmp_path / "a.ckpt")
    assert (output(network) - output(last.network(trained))).abs().max() <= 1e-5
    # Norms were not prunable in that run: in the released sense they are, and all are kept.
    assert Mask({name: found[name] for name in last.mask}) == last.mask
    assert all(found[name].all() for name in found if name not in last.mask)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("unused", [False, True])
def test_the_shape_is_read_from_tensors(preset, unused):
    wanted = load_settings("paper", network={"preset": preset, "unused": unused}).network
    with torch.device("meta"):
        assert shape_of(PromptIR(wanted).state_dict()) == wanted


def test_the_paper_s_checkpoint_has_its_size():
    with torch.device("meta"):
        network = PromptIR(shape_of(PromptIR(PRESETS["paper"]).state_dict()))
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_592_263


@pytest.mark.parametrize("expansion", [1.0, 2.0, 2.5, 2.6667, 3.14159, 0.25])
def test_an_expansion_that_makes_the_same_network_is_found(expansion):
    with torch.device("meta"):
        network = PromptIR(NetworkSettings(dim=8, expansion=expansion))
        found = PromptIR(shape_of(network.state_dict()))
    shapes = [{name: p.shape for name, p in net.named_parameters()} for net in (network, found)]
    assert shapes[0] == shapes[1]


def test_what_else_lightning_keeps_does_not_matter(tmp_path, monkeypatch):
    """Optimiser moments, loops, callbacks, and hyper-parameters in the containers that Lightning has for them."""
    module = types.ModuleType("lightning_fabric.utilities.data")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    for name in ("lightning_fabric", "lightning_fabric.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kept = module.AttributeDict(lr=2e-4, where=Path("/data"), opt=argparse.Namespace(cuda=0, tasks=["derain"]))
    content = {
        "epoch": 119,
        "pytorch-lightning_version": "2.0.1",
        "state_dict": OrderedDict(state()),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": kept,
    }
    torch.save(content, tmp_path / "a.ckpt")
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    monkeypatch.delitem(sys.modules, module.__name__)  # nobody has Lightning installed
    for name in ("a.ckpt", "old.ckpt"):
        assert load_released(tmp_path / name)[1] == sparse()[1]


@pytest.mark.parametrize("name", ["bare.pt", "bare.safetensors", "half.ckpt", "double.ckpt"])
def test_other_forms_of_the_same(tmp_path, name):
    import safetensors.torch

    plain = {key.removeprefix("net."): tensor for key, tensor in state().items()}
    if name == "bare.safetensors":
        safetensors.torch.save_file(plain, tmp_path / name)
    else:
        kind = {"half": torch.float16, "double": torch.float64}.get(name.split(".")[0], torch.float32)
        torch.save({key: tensor.to(kind) for key, tensor in plain.items()}, tmp_path / name)
    network, mask = load_released(tmp_path / name)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert mask == sparse()[1] or name == "half.ckpt" and mask <= sparse()[1]


class Sprung:
    """Unpickled, it leaves a folder."""

    def __init__(self, how, *arguments) -> None:
        self.how = how, arguments

    def __reduce__(self):
        return self.how


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state().items() if not name.startswith(names)}


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in state().items()}


T = torch.zeros
BAD = {  # (what is saved, what is said)
    "a call to the system": ({"state_dict": Sprung(os.mkdir, "sprung")}, r"wants to run (posix|nt)\.mkdir, which is"),
    "a builtin": ({"state_dict": {}, "x": Sprung(eval, "1")}, r"wants to run (builtins\.)?eval, which is refused"),
    "another class": (
        {"state_dict": state(), "hyper_parameters": Sprung(types.SimpleNamespace)},
        "types.SimpleNamespace",
    ),
    "a number": (3, "holds no state_dict"),
    "no state": ({"epoch": 1, "state_dict": {}}, "holds no state_dict"),
    "a list for a state": ({"state_dict": [T(1)]}, "holds no state_dict"),
    "text for a tensor": (
        {"state_dict": {"net.output.weight": "x"}},
        "'net.output.weight' is no tensor of real numbers",
    ),
    "whole numbers": ({"state_dict": {"net.output.weight": T(3, dtype=torch.int8)}}, "is no tensor of real numbers"),
    "two prefixes": ({"state_dict": state(**{"loss.weight": T(1)})}, "loss.weight is unexpected: all names start with"),
    "another network": (
        {"state_dict": {"net.conv.weight": T(3, 3)}},
        r"patch_embed\.proj\.weight is missing.*no PromptIR",
    ),
    "a stage less": ({"state_dict": without("net.latent")}, r"latent\.0\.attn\.temperature is missing"),
    "a tensor less": ({"state_dict": without("net.up4_3")}, r"up4_3\.body\.0\.weight is missing \(1 of"),
    "a tensor more": ({"state_dict": state(**{"net.outptu.weight": T(1)})}, r"outptu\.weight is unexpected \(did you"),
    "one renamed": (
        {"state_dict": renamed("prompt3.linear_layer", "prompt3.linear")},
        r"did you mean 'prompt3\.linear_l",
    ),
    "one of another shape": (
        {"state_dict": state(**{"net.output.weight": T(3, 9, 3, 3)})},
        r"output\.weight has shape",
    ),
    "one with other axes": (
        {"state_dict": state(**{"net.patch_embed.proj.weight": T(4)})},
        r"proj\.weight has shape \(4,\)",
    ),
    "no such width": (
        {"state_dict": state(**{"net.patch_embed.proj.weight": T(6, 3, 3, 3)})},
        "network.dim=6 is not allowed",
    ),
    "two expansions": (
        {"state_dict": state(**{"net.latent.0.ffn.project_out.weight": T(32, 9, 1, 1)})},
        "no one expansion widens",
    ),
    "no expansion": (
        {"state_dict": {name: t for name, t in state().items() if "ffn.project_out" not in name}},
        r"no ffn\.project_out\.weight",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old form"])
def test_what_does_not_fit_is_refused_by_name_and_not_run(tmp_path, monkeypatch, case, new):
    monkeypatch.chdir(tmp_path)
    content, words = BAD[case]
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=new)
    with pytest.raises(TicketError, match=words) as error:
        load_released(tmp_path / "a.ckpt")
    assert str(tmp_path / "a.ckpt") in str(error.value) and "\n" not in str(error.value)
    assert "weights_only" not in str(error.value), "no advice to read it in a way that runs it"
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("size", [0, 3, 100, 0.5, 0.999, -1])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old form"])
def test_a_checkpoint_cut_short_is_refused(tmp_path, size, new):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": state()}, path, _use_new_zipfile_serialization=new)
    data = path.read_bytes()
    path.write_bytes(data[: int(size * len(data))] if isinstance(size, float) else data[:size])
    with pytest.raises(TicketError, match="is no checkpoint, or damaged") as error:
        load_released(path)
    assert "\n" not in str(error.value)


def test_a_ticket_of_a_checkpoint_claims_no_more_than_the_file_says(tmp_path):
    network, mask = sparse(0.8**3)
    save_released(tmp_path / "a.ckpt", network)
    ticket = import_released(tmp_path / "a.ckpt", setting="derain", scope="layerwise")
    ticket.save(tmp_path / "a.ticket.safetensors")
    back = Ticket.load(tmp_path / "a.ticket.safetensors")
    assert back == ticket and back.mask == mask and (back.index, back.method) == (3, "MIR-L-LW")
    assert (back.origin, back.start_sha256, back.settings.setting) == ("unknown", None, "derain")
    assert back.provenance["source"] == "a.ckpt"
    assert fingerprint(back.network()) == fingerprint(network)
    with pytest.raises(TicketError, match="is not known: it cannot be rewound"):
        back.network(trained=False)
    assert import_released(tmp_path / "a.ckpt", index=9).index == 9


@pytest.mark.parametrize(
    ("density", "index", "method"), [(1.0, 0, "dense"), (0.8, 1, "MIR-L-G"), (0.035, 15, "MIR-L-G")]
)
def test_the_round_is_told_from_the_density(tmp_path, density, index, method):
    save_released(tmp_path / "a.ckpt", sparse(density)[0])
    ticket = import_released(tmp_path / "a.ckpt")
    assert (ticket.index, ticket.method) == (index, method)


def test_reading_a_checkpoint_draws_no_random_numbers(tmp_path):
    save_released(tmp_path / "a.ckpt", sparse()[0])
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    load_released(tmp_path / "a.ckpt")
    assert torch.rand(1) == first
