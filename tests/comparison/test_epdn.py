import dataclasses

import pytest
import torch

from mirl_study import load_settings, store
from mirl_study.comparison import build_network
from mirl_study.comparison.epdn import EPDN, LAPTOP, PICO, EPDNSettings
from mirl_study.data import load_bank
from mirl_study.masks import Mask
from mirl_study.network import describe
from mirl_study.settings import ModelSettings, SettingsError
from mirl_study.training import train, validation_loss


@pytest.fixture
def network():
    return build_network(ModelSettings("epdn", size="pico"), 0)


def test_generator_and_discriminators_count_as_the_papers_column_does():
    with torch.device("meta"):
        network, lean = (EPDN(EPDNSettings(unused=unused)) for unused in (True, False))
    sizes = {name: sum(p.numel() for p in parameters) for name, parameters in network.groups().items()}
    assert sizes == {"generator": 17_379_249, "discriminator": 5_535_618}
    assert sum(p.numel() for p in network.parameters()) == 22_914_867
    assert sum(p.numel() for p in lean.parameters()) == 22_914_867 - 400
    judges = describe(network)
    judges = judges[judges.name.str.startswith("discriminators.")]
    assert set(judges.kind) == {"discriminator", "bias"}, "what restores nothing is not prunable"
    assert not any(name.startswith("discriminators.") for name in Mask.dense(network))


def test_the_groups_hold_every_parameter_once(network):
    grouped = [id(p) for parameters in network.groups().values() for p in parameters]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


@pytest.mark.parametrize("settings", [LAPTOP, PICO])
def test_all_of_it_takes_part_but_the_unused(settings):
    network = EPDN(dataclasses.replace(settings, unused=True))
    losses = network.loss(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), 0, 1)
    assert set(losses) == set(network.groups())
    for group, parameters in network.groups().items():
        gradients = torch.autograd.grad(losses[group], parameters, retain_graph=True, allow_unused=True)
        idle = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is None}
        names = {name for name, p in network.named_parameters() if id(p) in idle}
        assert names == {
            name for name, _ in network.named_parameters() if ".normalisation." in name and group[0] == "g"
        }


@pytest.mark.parametrize("settings", [EPDNSettings(), LAPTOP, PICO], ids=["paper", "laptop", "pico"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40), (64, 64)])
def test_any_multiple_of_eight_comes_back_in_its_size(settings, height, width):
    with torch.device("meta"):
        network = EPDN(settings)
        assert height % network.multiple == width % network.multiple == 0
        assert network(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


def test_what_is_made_is_an_image(network):
    made = network(torch.rand(2, 3, 16, 24))
    assert made.min() > 0 and made.max() < 1


def test_the_discriminators_teach_the_generator_and_not_the_other_way_round(network):
    degraded, target = torch.rand(2, 2, 3, 16, 16)
    losses, groups = network.loss(degraded, target, 0, 1), network.groups()
    through = torch.autograd.grad(losses["discriminator"], groups["generator"], retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in through)
    with torch.no_grad():  # a judge that finds everything real has nothing to teach
        for parameter in groups["discriminator"]:
            parameter.zero_()
        for judge in network.discriminators:
            judge.layers[-1].bias.fill_(1)
    losses = network.loss(degraded, target, 0, 1)
    squared = (2 * network(degraded) - 2 * target).square().mean()
    assert torch.allclose(losses["generator"], squared)
    assert float(losses["discriminator"].detach()) == len(network.discriminators) / 2, (
        "right on what is real, wrong on the rest"
    )


def test_features_of_equal_images_have_no_distance(network):
    images = torch.rand(2, 3, 16, 16)
    network.stages = lambda given: (given, given)
    losses = network.loss(images, images, 0, 1)
    verdicts = [each[-1] for each in network.discriminators(torch.cat((2 * images - 1,) * 2, dim=1))]
    assert torch.allclose(losses["generator"], sum((1 - verdict).square().mean() for verdict in verdicts))


def test_the_perceptual_term_is_refused_by_name():
    with pytest.raises(SettingsError, match="network.perceptual is True"):
        EPDNSettings(perceptual=True)


def test_both_groups_learn_by_the_original_recipe_under_a_mask():
    model = {"architecture": "epdn", "size": "pico", "recipe": "original"}
    settings = load_settings("smoke", network=model, steps=40, warmup_steps=4, validate_every=10)
    network = build_network(settings.network, 0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    mask = Mask({name: torch.rand(keep.shape) < 0.8 for name, keep in Mask.dense(network).items()})
    bank = load_bank(settings, "train", store.project_root())
    start = validation_loss(network, bank, settings)
    history = train(network, mask, bank, settings)
    # the sum of two players' losses need not fall; what is restored has to get better
    assert history.loss.notna().all() and validation_loss(network, bank, settings) < start
    assert all(not network.get_parameter(name)[~keep].any() for name, keep in mask.items())
    # what stands before an instance normalisation has a bias that nothing depends on
    still = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    assert not {name for name in still if name.endswith("weight")}
