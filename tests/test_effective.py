"""Propagated reach against the gradient itself, and against which features change with the image."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import plain
from mirl_study import Mask, build_network
from mirl_study.effective import CLASSES, classes, effective, probe, random_values
from mirl_study.network import Norm, describe
from mirl_study.settings import PRESETS, NetworkSettings

PICO = PRESETS["pico"]
TWO_HEADS = NetworkSettings(
    dim=4, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 2, 2, 4), prompt_components=1, prompt_size=4, unused=True
)


def dense(network: NetworkSettings = PICO, norms: bool = False) -> Mask:
    return Mask.dense(build_network(network), norms=norms, unused=network.unused)


def random_mask(whole: Mask, density: float, seed: int, emptied: tuple[str, ...] = ()) -> Mask:
    """Keeps each weight with some probability; every layer whose name begins so is emptied."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(keep.shape, generator=generator) < density for name, keep in whole.items()}
    return Mask({name: keep & (not name.startswith(emptied or ("-",))) for name, keep in drawn.items()})


def changing(mask: Mask, network: NetworkSettings, seed: int = 0) -> dict[str, torch.Tensor]:
    """By tensor, which inputs change with the image: seen with hooks in the plain network, at random values."""
    generator = torch.Generator().manual_seed(seed)
    model = plain.build_network(network, 0).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_values(parameter, mask.get(name), generator))
    seen: dict[str, list[torch.Tensor]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear | Norm):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64))
    moved = {}
    for name, (one, other) in seen.items():
        differs = (one - other).abs().reshape(one.shape[1], -1).amax(1) > 1e-10
        norm = isinstance(model.get_submodule(name), Norm)
        moved[f"{name}.body.weight" if norm else f"{name}.weight"] = (
            differs.any().expand_as(differs) if norm else differs
        )
    return moved


def by_looking(mask: Mask, network: NetworkSettings) -> Mask:
    """The definition of `effective`, from gradients and features: what both methods must agree on."""
    moved, found = changing(mask, network), probe(mask, network)
    inputs = {}
    for name, keep in mask.items():
        fed = moved.get(name, torch.zeros(1, dtype=torch.bool))  # a layer that never ran
        inputs[name] = fed.view(
            (1, -1, *[1] * (keep.dim() - 2)) if keep.dim() > 1 < keep.shape[1] else (-1, *[1] * (keep.dim() - 1))
        )
    return Mask({name: keep & inputs[name] for name, keep in found.items()})


LAYERS = sorted({name.split(".")[0] for name in dense(TWO_HEADS)})
any_mask = given(
    density=st.sampled_from([0.04, 0.1, 0.2, 0.4, 0.8, 1.0]),
    seed=st.integers(0, 10**6),
    norms=st.booleans(),
    two=st.booleans(),
    emptied=st.lists(st.sampled_from(LAYERS), max_size=2),
)


@pytest.mark.slow
@any_mask
@settings(max_examples=25, deadline=None)
def test_propagation_agrees_with_the_gradient(density, seed, norms, two, emptied):
    network = TWO_HEADS if two else PICO
    mask = random_mask(dense(network, norms), density, seed, tuple(emptied))
    ours, wanted = effective(mask, network), by_looking(mask, network)
    assert ours <= mask
    apart = {name: (ours[name] != wanted[name]).sum().item() for name in mask if (ours[name] != wanted[name]).any()}
    assert apart == {}


def output(mask: Mask, network: NetworkSettings, keep: Mask, times: Mask | None = None) -> torch.Tensor:
    """What a network with random values under a mask returns, in float64, when only ``keep`` of it stays."""
    generator = torch.Generator().manual_seed(0)
    model = build_network(network).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_values(parameter, mask.get(name), generator))
            if name in mask:
                parameter.mul_(keep[name])
            if times and name in times:
                parameter.mul_(1 + 2 * times[name])
        return model(torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64))


def without(mask: Mask, part: Mask) -> Mask:
    return Mask({name: keep & ~part[name] for name, keep in mask.items()})


@pytest.mark.slow
@any_mask
@settings(max_examples=25, deadline=None)
def test_idle_weights_can_be_removed_and_the_others_are_what_they_are_called(density, seed, norms, two, emptied):
    network = TWO_HEADS if two else PICO
    mask = random_mask(dense(network, norms), density, seed, tuple(emptied))
    parts = classes(mask, network)
    assert sum(part.kept for part in parts.values()) == mask.kept and all(part <= mask for part in parts.values())
    whole = output(mask, network, mask)
    torch.testing.assert_close(output(mask, network, without(mask, parts["idle"])), whole, rtol=0, atol=1e-10)
    scaled = output(mask, network, mask, times=parts["sign_only"])
    torch.testing.assert_close(scaled, whole, rtol=0, atol=1e-10)
    assert probe(mask, network) <= parts["effective"] | parts["constant"]


@pytest.mark.parametrize("kind", ["effective", "sign_only", "constant"])
def test_without_weights_that_are_not_idle_the_output_is_another(kind):
    mask = random_mask(dense(), 0.2, 1, ("down3_4",))
    part = classes(mask, PICO)[kind]
    assert list(classes(mask, PICO)) == list(CLASSES) and part.kept
    assert (output(mask, PICO, without(mask, part)) - output(mask, PICO, mask)).abs().max() > 1e-3


def kept_by_stage(mask: Mask) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, keep in mask.items():
        stage = name.split(".")[0]
        counts[stage] = counts.get(stage, 0) + int(keep.sum())
    return counts


def test_all_of_the_dense_network_is_effective():
    assert effective(dense(), PICO) == dense()


def test_the_convolutions_that_never_run_are_not():
    network = dataclasses.replace(PICO, unused=True)
    found = effective(dense(network), network)
    kinds = describe(build_network(network)).set_index("name").kind
    assert {kinds[name] for name in found.emptied()} == {"unused"}


def test_nothing_is_behind_an_empty_output():
    assert effective(random_mask(dense(), 1, 0, ("output",)), PICO).kept == 0


def test_what_reads_constants_alone_has_a_gradient_but_carries_no_image():
    mask = random_mask(dense(), 1, 0, ("down3_4",))  # nothing of the image comes into the latent level
    found, gradient = effective(mask, PICO), probe(mask, PICO)
    assert found["latent.0.attn.project_out.weight"].sum() == 0 < gradient["latent.0.attn.project_out.weight"].sum()
    assert kept_by_stage(found)["decoder_level3"] == kept_by_stage(mask)["decoder_level3"], "the skip path is there"


def test_a_layer_on_the_way_up_takes_all_below_it_along():
    counts = kept_by_stage(effective(random_mask(dense(), 1, 0, ("up2_1",)), PICO))
    assert {stage for stage, count in counts.items() if count} == {
        *("patch_embed", "encoder_level1", "decoder_level1", "refinement", "output")
    }


def test_a_weight_that_is_alone_in_feeding_a_query_sets_only_its_sign():
    whole = dense()
    name = "encoder_level1.0.attn.qkv.weight"
    keep = whole[name].clone()
    keep[0, 1:] = False  # one weight feeds the first channel of q
    keep[8, 1:] = False  # and one the first of v
    mask = Mask({**whole, name: keep})
    found = effective(mask, PICO)[name]
    assert not found[0, 0] and found[8, 0] and found[1].all()
    assert classes(mask, PICO)["sign_only"][name].nonzero().tolist() == [[0, 0, 0, 0]]
    assert not probe(mask, PICO)[name][0, 0]


def test_a_gate_needs_both_factors():
    whole = dense()
    name = "encoder_level1.0.ffn.project_in.weight"
    keep = whole[name].clone()
    hidden = len(keep) // 2
    keep[0] = False  # the first gate is dead: its partner multiplies zero
    found = effective(Mask({**whole, name: keep}), PICO)
    assert not found[name][hidden].any() and found[name][hidden + 1].all()
    assert not found["encoder_level1.0.ffn.project_out.weight"][:, 0].any()
    assert not found["encoder_level1.0.ffn.dwconv.weight"][[0, hidden]].any()


@pytest.mark.parametrize("network", ["small", "nano"])
def test_a_mask_of_another_network_is_refused(network):
    with pytest.raises(ValueError, match="of another network: patch_embed.proj.weight"):
        effective(dense(), PRESETS[network])
