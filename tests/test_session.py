"""Who worked on a run, for how long, with what: entries in ``run.json`` that decide nothing."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from mirl_study import energy, load_settings, lottery, report, session, store
from mirl_study.energy import Meter
from mirl_study.session import Session
from mirl_study.store import Run

SETTINGS = load_settings("smoke")


@pytest.fixture
def run(tmp_path):
    run = Run(SETTINGS, "MIR-L-G", tmp_path)
    run.claim("data", "cpu")
    return run


def entries(run):
    return json.loads((run.folder / "run.json").read_text())["sessions"]


@pytest.mark.slow
def test_a_chain_resumed_three_times_has_three_entries(smoke_results, tmp_path):
    shutil.copytree(smoke_results / "smoke/all_in_one/dense", tmp_path / "smoke/all_in_one/dense")
    for index in (1, 2, 3):
        chain = lottery.rounds(SETTINGS.replace(rounds=3, keep_weights=(0, 1, 2, 3)), tmp_path, "cpu", show=False)
        while next(chain).index < index:
            pass
    run = Run(SETTINGS, "MIR-L-G", tmp_path)
    found = entries(run)
    assert [(entry["from"], entry["to"]["round"]) for entry in found] == [
        ({"round": k, "step": 1}, k) for k in (1, 2, 3)
    ]
    for entry in found:
        assert entry["wall_seconds"] > 0 and entry["peak_memory_bytes"]["process"] > 1e8
        assert entry["device"] == "cpu" and entry["versions"]["torch"] and entry["started"] and "commit" in entry
    spent = json.loads((run.round_folder(1) / "round.json").read_text())
    assert found[0]["wall_seconds"] >= spent["training_seconds"] + spent["evaluation_seconds"] - 0.002


def test_what_is_on_record_decides_nothing(run):
    """Old records have no sessions, new ones have; both belong to their settings."""
    before = json.loads((run.folder / "run.json").read_text())
    assert "sessions" not in before and run.belongs()
    with Session(run, "cpu").alone():
        pass
    assert run.belongs()
    run.claim("data", "cpu")
    after = json.loads((run.folder / "run.json").read_text())
    assert len(after.pop("sessions")) == 1 and after == before


def test_the_committed_reference_still_belongs_to_its_settings():
    root = store.project_root() / "results" / "reference"
    for path in sorted(root.glob("laptop/all_in_one/*/seed0/run.json")):
        method = path.parents[1].name
        scope = "layerwise" if method == "MIR-L-LW" else "global"
        assert Run(load_settings("laptop", scope=scope), method, root).belongs(), method


def test_time_between_two_rounds_is_not_work(run, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(session.time, "perf_counter", lambda: now[0])
    work = Session(run, "cpu")
    for seconds in (5, 7):
        with work.alone():
            now[0] += seconds
        now[0] += 3600
    assert [entry["wall_seconds"] for entry in entries(run)] == [12]


def test_a_long_round_leaves_word_every_minute(run, monkeypatch):
    now, written = [1000.0], []
    monkeypatch.setattr(session.time, "perf_counter", lambda: now[0])
    with Session(run, "cpu").alone():
        work = Session(run, "cpu")
        work.since = now[0]
        for step in range(1, 200):
            now[0] += 1
            work.step(1, step)
            written.append(entries(run)[-1]["to"]["step"])
    assert sorted(set(written)) == [1, 61, 121, 181]


def fake_packages(root, *joules):
    for number, value in enumerate(joules):
        folder = root / f"intel-rapl:{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"package-{number}\n" if number < 2 else "psys\n")
        (folder / "max_energy_range_uj").write_text("100000000\n")
        (folder / "energy_uj").write_text(f"{round(value * 1e6)}\n")


def test_energy_of_all_packages_adds_up_and_survives_their_turns(tmp_path):
    fake_packages(tmp_path, 10, 90, 5)
    meter = Meter("cpu", tmp_path)
    assert meter.joules() == {"processor": 0.0}
    fake_packages(tmp_path, 15, 95, 50)
    assert meter.joules() == {"processor": 10.0}
    fake_packages(tmp_path, 16, 5, 50)  # the second began again at 100
    assert meter.joules() == {"processor": 21.0}
    fake_packages(tmp_path, 66, 55, 50)
    meter.skip()
    assert meter.joules() == {"processor": 21.0}


@pytest.mark.parametrize("damage", ["nothing there", "unreadable", "no number"])
def test_energy_that_is_not_counted_is_absent(tmp_path, damage):
    if damage != "nothing there":
        fake_packages(tmp_path, 10)
        (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    if damage == "no number":
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("much")
    assert Meter("cpu", tmp_path).joules() == {}


def test_energy_of_a_gpu_by_its_driver(tmp_path, monkeypatch):
    counter = [5000]
    driver = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counter[0] if handle == "GPU-abc" else None,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    meter = Meter("cuda:0", tmp_path)
    counter[0] += 1500
    assert meter.joules() == {"gpu": 1.5}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter("cuda:0", tmp_path).joules() == {}


def test_the_report_tells_what_is_on_record(run, monkeypatch):
    sessions = [
        {"peak_memory_bytes": {"process": 2e9}, "joules": {"gpu": 3.6e6}},
        {"peak_memory_bytes": {"process": 1e9}},
    ]
    told = report._sessions([{}, {"sessions": sessions}])
    assert told["resumed"].startswith("1 chain") and told["peak memory"].startswith("2.00 GB")
    assert told["energy of the GPU"].startswith("1 kWh") and "energy of the processors" not in told
    assert report._sessions([{}]) == {}
    assert energy.peak_memory("cpu")["process"] > 1e7
