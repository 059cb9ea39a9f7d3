"""A lease: one process to a GPU, free again however the process ends; what is set already is honoured."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirl_study import lease

HOLD = """
import os, pathlib, subprocess, sys, time
from mirl_study.lease import lease
folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
with lease(sys.argv[3:], folder) as name:
    began = time.monotonic()
    seen = subprocess.run([sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"],
                          capture_output=True, text=True).stdout.strip()
    (folder / f"{os.getpid()}.begun").write_text(name)
    time.sleep(seconds)
    print(name, seen, began, time.monotonic())
"""


def hold(folder: Path, seconds: float, *names: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds), *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(folder: Path, process: subprocess.Popen) -> str:
    path, end = folder / f"{process.pid}.begun", time.monotonic() + 30
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return path.read_text()


def test_no_two_processes_hold_a_gpu_at_a_time(tmp_path):
    processes = [hold(tmp_path, 0.3, "0", "GPU-1/a") for _ in range(5)]
    held = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        name, seen, start, end = out.split()
        assert seen == name  # its children see that one alone
        held.append((name, float(start), float(end)))
    assert {name for name, *_ in held} == {"0", "GPU-1/a"}
    for name in ("0", "GPU-1/a"):
        spans = sorted((start, end) for own, start, end in held if own == name)
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_a_killed_process_holds_nothing(tmp_path):
    first = hold(tmp_path, 600, "7")
    assert begun(tmp_path, first) == "7"
    second = hold(tmp_path, 0, "7")
    time.sleep(1)
    assert second.poll() is None and not (tmp_path / f"{second.pid}.begun").exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    out, err = second.communicate(timeout=30)
    assert out.split()[0] == "7", err


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2,3", ["2", "3"]),
        ("5", ["5"]),
        (" 0 , 1 ", ["0", "1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("MIG-a", ["MIG-a"]),
    ],
)
def test_what_is_set_already_is_what_there_is(visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert lease.devices() == expected


def test_without_a_gpu_nothing_is_leased(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with lease.lease(folder=tmp_path / "locks") as name:
        assert name is None and "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not (tmp_path / "locks").exists()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert lease.devices() == ["0", "1"]


@pytest.mark.parametrize("before", [None, "3,4"])
def test_the_environment_is_as_it_was_afterwards(before, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    names = lease.devices() or ["9"]
    with pytest.raises(KeyboardInterrupt), lease.lease(names, tmp_path) as name:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == name == names[0]
        raise KeyboardInterrupt
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    with lease.lease(names, tmp_path) as again:
        assert again == name


def test_each_job_of_a_cluster_has_locks_of_its_own(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    here = lease.default_folder()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert lease.default_folder().name == f"{here.name}-12"
