"""Protocols: named sets of points, each of which is a setting that can be set alone and does what it says."""

import dataclasses
import functools
import re

import pytest
from PIL import Image

from mirl_study import build_network, load_settings, lottery
from mirl_study.data import load_bank
from mirl_study.settings import METHODS, PROTOCOLS, Settings, SettingsError, profiles, read_settings
from mirl_study.store import Run, project_root
from mirl_study.training import train

ALONE = [  # (point, a value that `sound` does not have)
    ("weight_decay", 0.01),
    ("prune_norms", True),
    ("prune_unused", True),
    ("rewind", "weights"),
    ("augmentation", "dihedral"),
    ("noise_rounding", "truncate"),
    ("schedule", "epoch"),
    ("lr_start", 0.0),
    ("count", "percentile"),
    ("drop_overlap", False),
]
TRAINING = {"weight_decay", "augmentation", "noise_rounding", "schedule", "lr_start"}  # these decide the dense network
PRUNING = {"prune_norms", "prune_unused", "rewind", "count"}  # and these only what comes after it
IMAGES = {"drop_overlap"}  # and this one which images there are


def differences(one: Settings, other: Settings) -> set[str]:
    return {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(other, f.name)}


def test_the_table_of_this_file_has_every_point():
    assert {point for point, _ in ALONE} == TRAINING | PRUNING | IMAGES
    for points in PROTOCOLS.values():
        assert points.keys() == TRAINING | PRUNING | IMAGES <= set(Settings.field_names())


def test_the_points_of_the_paper_and_of_its_released_code():
    """Facts, section 2; what the paper does not say (a step of the schedule, unused layers) is as in the code."""
    assert PROTOCOLS["paper"] == {
        "weight_decay": 0.0,  # Adam
        "prune_norms": False,  # weights are pruned
        "prune_unused": True,
        "rewind": "all",  # reset to their original initialisation
        "augmentation": "flips",
        "noise_rounding": "none",
        "schedule": "epoch",
        "lr_start": 1e-6,
        "count": "exact",
        "drop_overlap": False,
    }
    differ = {name: value for name, value in PROTOCOLS["released"].items() if value != PROTOCOLS["paper"][name]}
    assert differ == {
        "weight_decay": 0.01,
        "prune_norms": True,
        "rewind": "weights",
        "augmentation": "dihedral",
        "noise_rounding": "truncate",
        "lr_start": 0.0,
        "count": "percentile",
    }


def test_sound_is_what_is_recommended():
    sound = PROTOCOLS["sound"]
    assert (sound["rewind"], sound["prune_norms"], sound["prune_unused"]) == ("all", False, False)
    assert (sound["drop_overlap"], sound["noise_rounding"], sound["count"]) == (True, "round", "exact")
    assert load_settings("laptop").protocol == load_settings("smoke").protocol == Settings().protocol == "sound"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("profile", profiles())
def test_a_protocol_sets_exactly_its_points(profile, protocol):
    own, chosen = load_settings(profile), load_settings(profile, protocol=protocol)
    assert {name: getattr(chosen, name) for name in PROTOCOLS[protocol]} == PROTOCOLS[protocol]
    differ = {name for name, value in PROTOCOLS[protocol].items() if value != PROTOCOLS[own.protocol][name]}
    assert differences(own, chosen) == differ | ({"protocol"} if protocol != own.protocol else set())
    assert chosen.departures() == {} and chosen == own.replace(protocol=protocol)


@pytest.mark.parametrize("profile", profiles())
def test_a_profile_has_a_protocol_of_its_own_and_keeps_to_it(profile):
    settings = load_settings(profile)
    assert settings.departures() == {}
    assert settings.protocol == ("paper" if profile == "paper" else "sound")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("point", [point for point, _ in ALONE])
def test_each_point_can_be_set_alone(protocol, point):
    base = load_settings("smoke", protocol=protocol)
    others = {points[point] for points in PROTOCOLS.values()} - {PROTOCOLS[protocol][point]}
    for value in others:
        for alone in (load_settings("smoke", protocol=protocol, **{point: value}), base.replace(**{point: value})):
            assert differences(base, alone) == {point} and alone.departures() == {point: value}
    assert others, "no protocol differs in this point"


def test_choosing_a_protocol_again_takes_departures_back():
    settings = load_settings("smoke", weight_decay=0.5)
    assert settings.departures() == {"weight_decay": 0.5}
    assert settings.replace(protocol="paper").departures() == {}
    assert settings.replace(seed=1).departures() == {"weight_decay": 0.5}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.5, "densities": [0.5, 0.25], "network": {"dim": 8}}])
def test_settings_come_back_from_what_run_json_has(protocol, more):
    settings = load_settings("smoke", protocol=protocol, **more)
    assert read_settings(settings.plain()) == settings
    assert read_settings({**settings.plain(), "method": "dense", "data_fingerprint": "0"}) == settings


@functools.cache
def dense_bits(settings: Settings) -> list[bytes]:
    """The dense network after two steps."""
    network = build_network(settings.network, settings.seed)
    bank = load_bank(settings, "train", project_root())
    train(network, lottery.dense_mask(settings), bank, settings, stop=2)
    return [tensor.numpy().tobytes() for tensor in network.state_dict().values()]


@pytest.mark.parametrize(("point", "value"), ALONE, ids=[point for point, _ in ALONE])
def test_a_point_decides_what_it_can_change_and_nothing_else(point, value):
    """The dense run is shared by all that prunes it otherwise: what its key leaves out must not change its weights."""
    base = load_settings("smoke", network={"unused": True}, epochs=2)
    alone = base.replace(**{point: value})
    decides = {method for method in METHODS if alone.key(method) != base.key(method)}
    lotteries, one_shots = ({m for m in METHODS if m.startswith(start)} for start in ("MIR", "PIR"))
    wanted = dict.fromkeys(TRAINING, set(METHODS)) | dict.fromkeys(IMAGES, set())
    wanted |= dict.fromkeys({"rewind", "count"}, lotteries)
    wanted |= dict.fromkeys({"prune_norms", "prune_unused"}, lotteries | one_shots)
    assert decides == wanted[point]
    assert (dense_bits(base) != dense_bits(alone)) == (point in TRAINING)


@pytest.mark.parametrize(
    ("norms", "unused", "more"),
    [(False, False, set()), (True, False, {"norm"}), (False, True, {"unused"}), (True, True, {"norm", "unused"})],
)
def test_what_is_prunable_follows_the_two_points(norms, unused, more):
    from mirl_study.network import DECLARED_KINDS, describe

    settings = load_settings("smoke", network={"unused": True}, prune_norms=norms, prune_unused=unused)
    kinds = describe(build_network(settings.network)).set_index("name").kind
    assert {kinds[name] for name in lottery.dense_mask(settings)} == {*DECLARED_KINDS, *more}


def overlapping(folder):
    """A prepared folder in which one training image shows what a test image shows."""
    rows = ["split,task,name,input,target,background"]
    for split in ("train", "train", "val", "test"):
        name = f"{split}{len(rows)}"
        for kind in ("bad", "clean"):
            Image.new("RGB", (16, 16), (len(rows), 0, 0)).save(folder / f"{name}_{kind}.png")
        background = "bridge" if name in ("train1", "test4") else name
        rows.append(f"{split},derain,{name},{name}_bad.png,{name}_clean.png,{background}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


def test_a_run_without_the_overlap_never_mixes_with_one_that_has_it(tmp_path):
    """``drop_overlap`` is not in the key: the fingerprint of the images that are left decides."""
    (tmp_path / "data").mkdir()
    settings = load_settings("smoke", setting="derain", data=overlapping(tmp_path / "data"))
    prints = {
        drop: lottery.Bench.load(settings.replace(drop_overlap=drop), "cpu").fingerprint for drop in (True, False)
    }
    assert prints[True] != prints[False]
    Run(settings, "dense", tmp_path).claim(prints[True], "cpu")
    with pytest.raises(SettingsError, match="data_fingerprint"):
        Run(settings.replace(drop_overlap=False), "dense", tmp_path).claim(prints[False], "cpu")

    text = (tmp_path / "data" / "manifest.csv").read_text()
    (tmp_path / "data" / "manifest.csv").write_text(re.sub("bridge", "", text))  # nothing known: nothing to drop
    prints = {lottery.Bench.load(settings.replace(drop_overlap=drop), "cpu").fingerprint for drop in (True, False)}
    assert len(prints) == 1
