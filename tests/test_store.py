import json

import pytest

from mirl_study import build_network, load_settings, store
from mirl_study.settings import SettingsError
from mirl_study.store import Run, atomic, write_json


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="disk full"), atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_folder_belongs_to_its_settings_and_data(tmp_path):
    run = Run(load_settings("smoke"), "MIR-L-G", tmp_path)
    assert run.folder == tmp_path / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    run.claim("data-a", "cpu")
    content = json.loads((run.folder / "run.json").read_text())
    assert content["versions"]["torch"] and content["device"] == "cpu" and content["key"] == run.settings.key("MIR-L-G")
    run.claim("data-a", "cpu")
    Run(load_settings("smoke", rounds=3), "MIR-L-G", tmp_path).claim("data-a", "cpu")
    with pytest.raises(SettingsError, match="data_fingerprint: 'data-a' there, 'data-b' asked"):
        run.claim("data-b", "cpu")
    with pytest.raises(SettingsError, match=r"lr: 0\.002 there, 0\.001 asked"):
        Run(load_settings("smoke", lr=1e-3), "MIR-L-G", tmp_path).claim("data-a", "cpu")


def test_weights_come_back_bit_for_bit_or_are_named(tmp_path):
    run = Run(load_settings("smoke"), "dense", tmp_path)
    network, other = build_network("pico", 1), build_network("pico", 2)
    run.save_weights(0, network)
    run.load_weights(0, other)
    assert all(a.equal(b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="keeps the weights of round00"):
        run.load_weights(3, other)


def test_results_lie_in_the_project_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.results_root() == store.project_root() / "results"
    assert store.results_root("elsewhere") == store.project_root() / "elsewhere"
    assert store.results_root(tmp_path) == tmp_path
