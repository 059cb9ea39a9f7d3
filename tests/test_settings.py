import dataclasses
import json

import pytest

from mirl_study.settings import METHODS, PRESETS, NetworkSettings, Settings, SettingsError, load_settings, profiles

BAD = [
    ("profile", {"profile": "labtop"}, "profile='labtop'", "'laptop'"),
    ("setting", {"setting": "derian"}, "setting='derian'", "'derain'"),
    ("scope", {"scope": "layer_wise"}, "scope='layer_wise'", "'layerwise'"),
    ("criterion", {"criterion": "magnitud"}, "criterion='magnitud'", "'magnitude'"),
    ("unknown key", {"step": 3}, "unknown setting 'step'", "'steps'"),
    ("rate 0", {"rate": 0.0}, "rate=0.0", "more than 0"),
    ("rate 1", {"rate": 1.0}, "rate=1.0", "less than 1"),
    ("rate 1.5", {"rate": 1.5}, "rate=1.5", "less than 1"),
    ("rate as text", {"rate": "0.2"}, "rate='0.2'", "a number"),
    ("rate as nan", {"rate": float("nan")}, "rate=nan", "more than 0"),
    ("seed as text", {"seed": "notanint"}, "seed='notanint'", "whole number"),
    ("seed as float", {"seed": 1.0}, "seed=1.0", "whole number"),
    ("seed as bool", {"seed": True}, "seed=True", "whole number"),
    ("seed below 0", {"seed": -1}, "seed=-1", "0 to"),
    ("no rounds", {"rounds": 0}, "rounds=0", "at least 1"),
    ("no steps", {"steps": 0}, "steps=0", "at least 1"),
    ("warm-up too long", {"warmup_steps": 10**6}, "warmup_steps=1000000", "less than steps"),
    ("patch no multiple of 8", {"patch_size": 30}, "patch_size=30", "multiple of 8"),
    ("patch too small", {"patch_size": 8}, "patch_size=8", "at least 16"),
    ("lr", {"lr": 0.0}, "lr=0.0", "more than 0"),
    ("final lr above lr", {"lr_min": 0.5}, "lr_min=0.5", "0 to lr"),
    ("rounding", {"noise_rounding": "floor"}, "noise_rounding='floor'", "truncate"),
    ("preset", {"network": "nanno"}, "network='nanno'", "'nano'"),
    ("network field", {"network": {"dims": 8}}, "'dims'", "'dim'"),
    ("network of another kind", {"network": 8}, "network=8", "a preset"),
    ("width", {"network": {"dim": 10}}, "network.dim=10", "multiple of 4"),
    ("heads", {"network": {"heads": [3, 1, 1, 1]}}, "network.heads=(3, 1, 1, 1)", "divide"),
    ("three levels", {"network": {"blocks": [1, 1, 1]}}, "network.blocks=(1, 1, 1)", "four"),
    ("prompt size", {"network": {"prompt_size": 6}}, "network.prompt_size=6", "multiple of 4"),
    ("rounds to keep", {"keep_weights": "all"}, "keep_weights='all'", "list of whole numbers"),
    ("protocol", {"protocol": "releasd"}, "protocol='releasd'", "'released'"),
    ("protocol as a list", {"protocol": ["paper"]}, "protocol=['paper']", "sound"),
    ("rewind", {"rewind": "weigths"}, "rewind='weigths'", "'weights'"),
    ("rewind as bool", {"rewind": True}, "rewind=True", "text"),
    ("rewind before the start", {"rewind_step": -1}, "rewind_step=-1", "0 to less than steps"),
    ("rewind to the end", {"steps": 6, "warmup_steps": 2, "rewind_step": 6}, "rewind_step=6", "less than steps (6)"),
    ("rewind step as float", {"rewind_step": 2.0}, "rewind_step=2.0", "whole number"),
    ("a step to rewind to, without rewind", {"rewind": "none", "rewind_step": 2}, "rewind_step=2", "rewind is 'none'"),
    ("count", {"count": "percentil"}, "count='percentil'", "'percentile'"),
    ("densities that rise", {"densities": [0.5, 0.6]}, "densities=(0.5, 0.6)", "less than the one before"),
    ("densities that stay", {"densities": [0.5, 0.5]}, "densities=(0.5, 0.5)", "less than the one before"),
    ("density 1", {"densities": [1, 0.5]}, "densities=(1.0, 0.5)", "less than the one before"),
    ("density 0", {"densities": [0.5, 0.0]}, "densities=(0.5, 0.0)", "between 0 and 1"),
    ("density nan", {"densities": [float("nan")]}, "densities=(nan,)", "between 0 and 1"),
    ("densities as text", {"densities": "0.5"}, "densities='0.5'", "a list of numbers"),
    ("one density", {"densities": 0.5}, "densities=0.5", "a list of numbers"),
    ("density as bool", {"densities": [True]}, "densities=(True,)", "a list of numbers"),
    ("schedule", {"schedule": "epochs"}, "schedule='epochs'", "'epoch'"),
    ("no epochs", {"epochs": 0}, "epochs=0", "at least 1"),
    ("half an epoch", {"epochs": 0.5}, "epochs=0.5", "whole number"),
    ("weight decay below 0", {"weight_decay": -0.01}, "weight_decay=-0.01", "0 or more"),
    ("weight decay without end", {"weight_decay": float("inf")}, "weight_decay=inf", "0 or more"),
    ("weight decay as text", {"weight_decay": "0.01"}, "weight_decay='0.01'", "a number"),
    ("norm to clip at below 0", {"clip_norm": -1}, "clip_norm=-1.0", "0 or more"),
    ("norm to clip at as nan", {"clip_norm": float("nan")}, "clip_norm=nan", "0 or more"),
    ("augmentation", {"augmentation": "flip"}, "augmentation='flip'", "'flips'"),
    ("overlap", {"drop_overlap": "yes"}, "drop_overlap='yes'", "true or false"),
    ("prunable norms", {"prune_norms": 1}, "prune_norms=1", "true or false"),
    ("first lr above lr", {"lr_start": 0.5}, "lr_start=0.5", "0 to lr"),
    ("round of the ticket", {"ticket_round": 0}, "ticket_round=0", "at least 1"),
]


@pytest.mark.parametrize(("overrides", "names", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_line_that_names_it(overrides, names, hint):
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    message = str(caught.value)
    assert names in message and hint in message and "\n" not in message


@pytest.mark.parametrize("profile", ["gpu", "laptop", "paper", "smoke"])
def test_profiles_load_and_are_frozen(profile):
    assert profile in profiles()
    settings = load_settings(profile)
    assert settings.profile == profile
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1
    json.dumps(settings.deciding("dense"))


def test_the_paper_profile_holds_the_papers_numbers():
    settings = load_settings("paper")
    assert (settings.rounds, settings.rate, settings.lr, settings.batch_size, settings.patch_size) == (
        15,
        0.2,
        2e-4,
        8,
        64,
    )
    assert settings.steps / settings.warmup_steps == 120 / 15
    assert settings.network == PRESETS["paper"] == NetworkSettings(unused=True)
    assert settings.network.prompt_channels == (64, 128, 320)


def test_overrides_reach_the_network_field_by_field():
    settings = load_settings("smoke", network={"dim": 12, "heads": [1, 1, 1, 1]})
    assert settings.network == dataclasses.replace(PRESETS["pico"], dim=12)
    assert load_settings("smoke", network={"preset": "nano", "dim": 16}).network == dataclasses.replace(
        PRESETS["nano"], dim=16
    )
    assert settings.replace(seed=3).network == settings.network


@pytest.mark.parametrize("method", METHODS)
def test_the_key_changes_exactly_with_what_decides(method):
    base = load_settings("smoke")
    assert base.key(method) == load_settings("smoke").key(method)
    for free in ({"rounds": 5}, {"keep_weights": (1,)}, {"protocol": "sound"}, {"data": "elsewhere"}):
        assert base.replace(**free).key(method) == base.key(method)
    for decides in (
        {"seed": 1},
        {"steps": 7},
        {"lr": 1e-3},
        {"network": "nano"},
        {"weight_decay": 0.01},
        {"augmentation": "dihedral"},
        {"schedule": "epoch"},
        {"setting": "derain"},
    ):
        assert base.replace(**decides).key(method) != base.key(method)
    prunable = base.replace(prune_norms=True).key(method) != base.key(method)
    assert prunable == (method != "dense"), "the dense network is trained the same, whatever is pruned afterwards"
    pruning = base.replace(rate=0.3).key(method) != base.key(method)
    tuning = base.replace(fine_tune_lr=1e-3).key(method) != base.key(method)
    assert (pruning, tuning) == (method.startswith("MIR"), method.startswith("PIR"))


def test_settings_of_each_setting_name_their_tasks():
    assert load_settings(setting="all_in_one").tasks == ("derain", "dehaze", "denoise15", "denoise25", "denoise50")
    assert load_settings(setting="denoise").tasks == ("denoise15", "denoise25", "denoise50")
    assert (load_settings(scope="global").method(), load_settings(scope="layerwise").method()) == (
        "MIR-L-G",
        "MIR-L-LW",
    )
    assert "profile" in Settings.field_names() and len(Settings.field_names()) == len(dataclasses.fields(Settings))


def test_a_list_of_densities_says_how_many_rounds_there_are():
    settings = load_settings("smoke", densities=[0.5, 0.2, 0.1], rounds=15)
    assert settings.rounds == 3
    left = 1.0
    for index, density in enumerate(settings.densities, 1):
        left *= 1 - settings.rate_of(index)
        assert left == pytest.approx(density, rel=1e-12)
    assert settings.replace(densities=(), rounds=4).rate_of(4) == settings.rate
