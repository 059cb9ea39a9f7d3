import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mirl_study import SettingsError, build_network, comparison, load_settings
from mirl_study.comparison import MODELS, adair, airnet, ffdnet, recipes, skeleton
from mirl_study.evaluation import restore
from mirl_study.masks import Mask, dense_mask
from mirl_study.network import PRUNABLE_KINDS, describe, fingerprint, tensors
from mirl_study.settings import COMPARED, SIZES, ModelSettings, Settings, read_settings

NOT_PRUNED = {"norm", "bias", "temperature", "scale", "slope", "unused", "frozen", "discriminator", "prompt"}


def test_the_registry_is_the_papers_table():
    assert (*COMPARED, "promptir") == tuple(MODELS) == tuple(recipes.ORIGINAL)
    published = {"MSPFN": 21, "EPDN": 22.9, "FFDNet": 0.494, "AirNet": 7.6, "Restormer": 26.1, "MPRNet": 39.5}
    published |= {"AdaIR": 28.8, "PromptIR": 35.6}
    assert {model.title: float(model.published) for model in MODELS.values()} == published


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_size_has_the_count_that_the_registry_states(name):
    table = describe(skeleton(name))
    assert table[table.kind != "frozen"]["size"].sum() == MODELS[name].found


def test_parts_of_the_counts():
    """What the configurations say in words."""
    encoder = sum(p.numel() for n, p in skeleton("airnet").named_parameters() if n.startswith("encoder."))
    assert encoder == 1_319_936 and MODELS["airnet"].found - encoder == 6_290_441
    table = describe(skeleton("airnet"))
    assert table["size"].sum() == 8_930_313
    norms = describe(skeleton("restormer"))
    norms = norms[norms.kind == "norm"]["size"].sum()
    assert MODELS["restormer"].found - norms == 26_111_668  # a LayerNorm without bias: one value a channel fewer
    with torch.device("meta"):
        colour = ffdnet.FFDNet(ffdnet.FFDNetSettings(width=96, depth=12))
    assert sum(p.numel() for p in colour.parameters()) == 852_108


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", COMPARED)
def test_what_is_prunable_goes_by_the_type_of_the_layer(name, size):
    network = skeleton(ModelSettings(name, size))
    table = describe(network)
    assert set(table.kind) <= {*PRUNABLE_KINDS, *NOT_PRUNED}
    assert list(table.name) == [name for name, _ in network.named_parameters()]
    mask = Mask.dense(network)
    owners = {name: network.get_submodule(name.rpartition(".")[0]) for name in mask}
    layers = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear, airnet.Deformable)
    assert all(isinstance(owner, layers) for owner in owners.values())
    assert all(name.endswith("weight") and network.get_parameter(name).requires_grad for name in mask)
    assert (table.kind == "output").any(), "layer-wise pruning spares the layer that makes the image"
    assert mask.size > 0.5 * table["size"].sum()


@pytest.mark.parametrize("name", COMPARED)
def test_forward_and_backward_on_64_pixels(name):
    network = build_network(ModelSettings(name, "laptop"))
    table, images = describe(network), torch.rand(2, 3, 64, 64)
    restored = network(images)
    assert restored.shape == images.shape and restored.isfinite().all()
    restored.square().mean().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    expected = set(table.name[table.kind.isin({"unused", "frozen", "discriminator"})])
    extra = ("encoder.deeper", "encoder.head", "discriminators", "frequencies")  # learn by other losses, or never
    assert {name for name in idle - expected if not name.startswith(extra)} == set()
    assert 30_000 <= sum(p.numel() for p in network.parameters() if p.requires_grad) <= 500_000


@pytest.mark.parametrize("size", ["laptop", "pico"])
@pytest.mark.parametrize("name", COMPARED)
def test_images_of_any_size_are_restored(name, size):
    network = build_network(ModelSettings(name, size)).eval()
    for height, width in ((37, 53), (16, 17), (64, 40)):
        images = torch.rand(1, 3, height, width)
        restored = restore(network, images)
        assert restored.shape == images.shape and restored.min() >= 0 and restored.max() <= 1


@pytest.mark.parametrize("name", COMPARED)
def test_the_smallest_patches_of_a_profile_fit(name):
    """Smoke trains the size pico on 16 pixels, laptop the size laptop on 32."""
    for size, side in (("pico", 16), ("laptop", 32)):
        network = build_network(ModelSettings(name, size))
        assert side % network.multiple == 0 == side % comparison.multiple(ModelSettings(name, size))
        assert network(torch.rand(2, 3, side, side)).shape == (2, 3, side, side)


@pytest.mark.parametrize("name", COMPARED)
def test_initialisation_is_a_function_of_name_size_and_seed(name):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    settings = ModelSettings(name, "pico")
    first, again, other = (fingerprint(build_network(settings, seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert first == fingerprint(build_network(ModelSettings(name, "pico", "original"), 3))
    assert torch.equal(state, torch.random.get_rng_state())
    changed = build_network(settings, 3)
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    assert fingerprint(build_network(settings, 3)) == first, "what is built must not share memory with what is kept"


@pytest.mark.parametrize("name", ["paper", "promptir"])
def test_promptir_is_the_main_network(name):
    assert fingerprint(build_network("pico", 2)) == fingerprint(
        comparison.build_network(load_settings("smoke").network, 2)
    )
    assert type(skeleton(name)).__name__ == "PromptIR"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("restormr", "network='restormr' is not one of .* \\(did you mean 'restormer'\\?\\)"),
        ({"architecture": "airnett"}, "network.architecture='airnett' .* \\(did you mean 'airnet'\\?\\)"),
        ({"architecture": "airnet", "size": "laptp"}, "network.size='laptp' .* \\(did you mean 'laptop'\\?\\)"),
        ({"architecture": "airnet", "recipe": "own"}, "network.recipe='own' is not one of study, original"),
        ({"architecture": "airnet", "dim": 8}, "network field='dim' is not one of architecture, size, recipe"),
        ({"architecture": 3}, "network.architecture=3 is not allowed: text is wanted"),
        (["airnet"], "network=\\['airnet'\\] is not allowed: a preset .*"),
    ],
)
def test_bad_names(network, message):
    with pytest.raises(SettingsError, match=f"^{message}") as error:
        load_settings("smoke", network=network)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["restormr", "prompt", ""])
def test_build_network_names_the_nearest(name):
    with pytest.raises(SettingsError, match="is not one of"):
        build_network(name)


@pytest.mark.parametrize(("setting", "value"), [("devices", 2), ("precision", "bf16"), ("compile", True)])
def test_an_originals_loss_runs_plainly(setting, value):
    with pytest.raises(SettingsError, match=f"{setting}=.*recipe 'original'"):
        load_settings("smoke", network={"architecture": "airnet", "recipe": "original"}, **{setting: value})


@pytest.mark.parametrize(
    ("profile", "size"), [("smoke", "pico"), ("laptop", "laptop"), ("gpu", "paper"), ("paper", "paper")]
)
def test_a_model_has_the_size_of_its_profile(profile, size):
    settings = load_settings(profile, network="adair")
    assert settings.network == ModelSettings("adair", size)
    assert read_settings(settings.plain()) == settings
    changed = settings.replace(network={"recipe": "original"})
    assert changed.network == ModelSettings("adair", size, "original") == changed.replace(seed=4).network
    assert settings.replace(network="nano").network == load_settings("laptop").network


def test_models_change_neither_key_nor_content_of_a_promptir_run():
    """The keys are those of the version that knew no other model."""
    assert load_settings("laptop").key("dense") == "5281518a72c8a2b0"
    assert load_settings("laptop").key("MIR-L-G") == "9d7c6f0a277d06c8"
    shape = {field.name for field in dataclasses.fields(load_settings("laptop").network)}
    assert set(Settings().plain()["network"]) == shape and not {"architecture", "size", "recipe"} & shape
    keys = {load_settings("laptop", network=name).key("dense") for name in COMPARED}
    original = load_settings("laptop", network={"architecture": "airnet", "recipe": "original"}).key("dense")
    assert len(keys | {original, load_settings("laptop").key("dense")}) == len(COMPARED) + 2


def test_a_mask_of_a_model_needs_no_values():
    settings = load_settings("smoke", network="airnet")
    assert dense_mask(settings) == Mask.dense(build_network(settings.network))


def test_a_deformable_convolution_with_no_offsets_is_a_convolution_of_half_the_weight():
    torch.manual_seed(0)
    layer, x = airnet.Deformable(6), torch.rand(2, 6, 9, 7)
    wanted = 0.5 * F.conv2d(x, layer.weight, padding=1)
    assert torch.allclose(layer(x, torch.rand(2, 6, 9, 7)), wanted, atol=1e-6)


def test_a_deformable_convolution_looks_where_its_offsets_say():
    """One row down and one column right of each place, at full strength: a convolution of the shifted image."""
    torch.manual_seed(0)
    layer, x = airnet.Deformable(4).double(), torch.rand(1, 4, 8, 10, dtype=torch.double)
    with torch.no_grad():
        layer.where.bias.copy_(torch.cat((torch.ones(9), torch.ones(9), torch.full((9,), 40.0))))
    found = layer(x, torch.zeros_like(x))
    shifted = F.pad(x[..., 1:, 1:], (0, 1, 0, 1))
    wanted = F.conv2d(shifted, layer.weight, padding=1)
    inside = (..., slice(1, -2), slice(1, -2))  # at the edges the shifted image has lost what lies outside
    assert torch.allclose(found[inside], wanted[inside], atol=1e-12)


def test_airnets_contrast_moves_key_and_queue_and_gives_the_key_no_gradient():
    network = build_network(ModelSettings("airnet", "pico")).train()
    before = {name: tensor.detach().clone() for name, tensor in tensors(network).items()}
    degraded, target = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    first = network.loss(degraded, target, 0, 100)
    first.backward()
    assert network.output.weight.grad is None, "contrast alone comes first"
    assert all(p.grad is None for p in network.key.parameters())
    after = tensors(network)
    assert torch.equal(after["queue"][4:], before["queue"][:-4]) and not torch.equal(after["queue"], before["queue"])
    assert torch.allclose(after["queue"].norm(dim=1), torch.ones(len(after["queue"])), atol=1e-5)
    name = "key.first.body.1.weight"  # the key starts as a copy, and moves only once the encoder has
    assert torch.equal(after[name], before[name])
    with torch.no_grad():
        network.encoder.first.body[1].weight.add_(1)
    network.loss(degraded, target, 50, 100).backward()
    assert torch.allclose(tensors(network)[name], before[name] + 0.001, atol=1e-5)
    assert network.output.weight.grad is not None


@pytest.mark.parametrize("sigma", [5, 25, 50])
def test_ffdnet_estimates_the_noise(sigma):
    generator = torch.Generator().manual_seed(sigma)
    slopes = torch.linspace(0.2, 0.8, 96)[None, None, None].expand(2, 3, 96, 96)
    noisy = slopes + sigma / 255 * torch.randn(2, 3, 96, 96, generator=generator)
    assert torch.allclose(ffdnet.noise_level(noisy), torch.full((2,), sigma / 255), rtol=0.03)
    assert ffdnet.noise_level(slopes).max() < 1e-6


def test_ffdnet_is_told_what_was_added_where_it_is_trained_as_the_original():
    network = build_network(ModelSettings("ffdnet", "pico"))
    target = torch.rand(2, 3, 16, 16)
    degraded = target + torch.tensor([0.1, -0.3])[:, None, None, None]
    told = F.l1_loss(network(degraded, torch.tensor([0.1, 0.3])), target)
    assert torch.allclose(network.loss(degraded, target, 0, 1), told, atol=1e-6)


def test_adairs_two_bands_are_the_whole_spectrum():
    """Where the low band takes everything, its part is the magnitude of the features, and nothing is left."""
    torch.manual_seed(0)
    block, x = adair.FrequencyBlock(8, 1, 1), torch.randn(2, 8, 6, 8)
    with torch.no_grad():
        block.rate[2].weight.fill_(1e4)
        block.rate[0].weight.fill_(1.0)
    bright = x + 5  # so that the shares are 1, and the band reaches from end to end
    low, high = block.split(bright)
    assert block.low_band(bright).all()
    assert torch.allclose(low, bright.abs(), atol=1e-4) and high.abs().max() < 1e-4
    wide = adair.FrequencyBlock(8, 1, 128)
    low, high = wide.split(x)
    assert not wide.low_band(x).any() and torch.allclose(high, x.abs(), atol=1e-5) and low.abs().max() == 0
