import numpy as np
import pytest
import torch

from mirl_study import SettingsError, load_settings
from mirl_study.comparison.chains import chosen, with_model
from mirl_study.comparison.recipes import ORIGINAL, recipe_of
from mirl_study.settings import COMPARED
from mirl_study.training import descend

SHARES = np.linspace(0, 1, 1001)


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_schedule_stays_between_nothing_and_its_peak(name):
    recipe = ORIGINAL[name]
    rates = np.array([recipe.rate(float(done)) for done in SHARES])
    assert rates.min() >= 0 and rates.max() == pytest.approx(1.0)
    assert (np.diff(rates[recipe.warm <= SHARES]) <= 1e-12).all(), "after the warm-up it only falls"
    assert str(recipe).startswith(recipe.loss)


@pytest.mark.parametrize(
    ("name", "done", "rate"),
    [
        ("promptir", 15 / 240, 0.5),  # half of the warm-up
        ("promptir", 15 / 120, 1.0),
        ("restormer", 0.3, 1.0),
        ("restormer", 1.0, 1e-6 / 3e-4),
        ("epdn", 0.5, 1.0),
        ("epdn", 0.75, 0.5),
        ("ffdnet", 0.15, 0.5),
        ("ffdnet", 0.99, 1 / 32),
        ("airnet", 0.059, 1.0),
        ("airnet", 0.08, 0.1),
        ("airnet", 0.23, 0.05),
        ("mspfn", 0.25, 0.64),
    ],
)
def test_schedules_at_known_places(name, done, rate):
    assert ORIGINAL[name].rate(done) == pytest.approx(rate)


@pytest.mark.parametrize("name", COMPARED)
def test_the_original_recipe_brings_its_numbers_and_the_study_its_own(name):
    settings = load_settings("laptop")
    ours, theirs = with_model(settings, name), with_model(settings, name, "original")
    assert recipe_of(ours.network) is None and ours.lr == settings.lr and ours.steps == theirs.steps
    assert recipe_of(theirs.network) is ORIGINAL[name]
    assert (theirs.lr, theirs.weight_decay) == (ORIGINAL[name].lr, ORIGINAL[name].weight_decay)
    assert theirs.network.label == f"{name}-original" and ours.network.label == name
    assert theirs.replace(lr=1e-3).lr == 1e-3


def test_promptir_is_the_study_itself():
    settings = load_settings("laptop")
    assert with_model(settings, "promptir") is settings
    with pytest.raises(SettingsError, match="model='promptir'"):
        with_model(settings, "promptir", "original")


def test_names_of_models():
    assert chosen([]) == list(ORIGINAL) and chosen(["adair", "ffdnet", "adair"]) == ["ffdnet", "adair"]
    for names, message in (
        (["restormr"], "models='restormr' is not one of .*'restormer'"),
        ("adair", "models='adair' is not allowed: a list"),
        ([3], "models=3"),
    ):
        with pytest.raises(SettingsError, match=message):
            chosen(names)
    with pytest.raises(SettingsError, match="model='adairr'.*'adair'"):
        with_model(load_settings("smoke"), "adairr")
    with pytest.raises(SettingsError, match="recipe='origin'.*'original'"):
        with_model(load_settings("smoke"), "adair", "origin")


class Game(torch.nn.Module):
    """Two players, who want different things of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(3.0))

    def loss(self, degraded, target, step, steps):
        product = self.one * self.other
        return {"one": product + step / steps, "other": -(self.one.detach() * self.other)}

    def groups(self):
        return {"one": [self.one], "other": [self.other]}


def test_each_group_of_a_game_gets_the_gradient_of_its_own_loss():
    game = Game()
    loss = descend(game, torch.zeros(1), torch.zeros(1), 1, 2)
    assert game.one.grad == 3.0 and game.other.grad == -2.0 and loss == 0.5
