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
