"""Whatever ends a chain, the next start goes on and leaves what an undisturbed chain leaves, to the bit."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_lottery import tree

from mirl_study import cli, load_settings, lottery, store
from mirl_study.data import Bank
from mirl_study.settings import SettingsError
from mirl_study.store import Run, WriteFailed
from mirl_study.training import Diverged

SETTINGS = load_settings("smoke", checkpoint_every=0.0)  # a checkpoint after every step
DENSE, GLOBAL = (Path("smoke/all_in_one") / method / "seed0" for method in ("dense", "MIR-L-G"))

CHAIN = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from mirl_study import evaluation, load_settings, lottery, store
from mirl_study.data import Bank
root = Path(sys.argv[1])

def fatal(number=signal.SIGKILL):
    os.kill(os.getpid(), number)

def before(place, name, what):
    former = getattr(place, name)
    def call(*arguments, **more):
        what(*arguments, **more)
        return former(*arguments, **more)
    setattr(place, name, call)

def later():  # the dense round was there already
    return (root / "smoke/all_in_one/MIR-L-G/seed0/round01").exists()

{disturbance}
list(lottery.rounds(load_settings("smoke", checkpoint_every=0.0), root, "cpu", show=False))
"""
IN_TRAINING = "before(Bank, 'batch', lambda *_, step, **more: step == 4 and later() and fatal({number}))"
HALF = """
import safetensors.torch
save = safetensors.torch.save_file
def half(tensors, path, *more):
    save(tensors, path, *more)
    if later() and (path.parent / store.CHECKPOINT).exists():
        os.truncate(path, path.stat().st_size // 2)
        fatal()
safetensors.torch.save_file = half
"""
KILLED = {
    "training": IN_TRAINING.format(number=9),
    "pruning": "before(lottery.criteria, 'prune', lambda *_: later() and fatal())",
    "scoring": "before(evaluation, 'evaluate', lambda *_: later() and fatal())",
    "writing a checkpoint": HALF,
    "writing a table": "before(store, 'write_csv', lambda path, _: path.write_text('ha') and later() and fatal())",
}


def chain(root, settings=SETTINGS):
    return list(lottery.rounds(settings, root, "cpu", show=False))


def start(root, disturbance=""):
    code = CHAIN.replace("{disturbance}", disturbance)
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def root(smoke_results, tmp_path):
    """A results root with a finished dense round."""
    shutil.copytree(smoke_results / DENSE, tmp_path / "results" / DENSE)
    return tmp_path / "results"


@pytest.fixture
def whole(smoke_results):
    return tree(smoke_results / GLOBAL)


def mounted(folder: Path, options: str) -> None:
    """Mounts a small disk, where that is allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root can mount a small disk")


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    yield folder
    subprocess.run(["umount", folder], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLED)
def test_killed_anywhere_it_goes_on_and_ends_bit_identical(root, whole, where):
    victim = start(root, KILLED[where])
    assert victim.wait(60) == -9
    if where != "writing a table":
        assert (root / GLOBAL / "round01" / store.CHECKPOINT).is_file()
    begun = json.loads((root / GLOBAL / "progress.json").read_text()) if where == "training" else None
    assert begun is None or begun["step"] < 6
    chain(root)
    assert tree(root / GLOBAL) == whole, "half-written files and checkpoints are gone, too"


@pytest.mark.slow
def test_told_to_stop_it_writes_a_checkpoint_and_ends_as_the_system_would_have_it(root, whole):
    told = start(root, IN_TRAINING.format(number="signal.SIGTERM"))
    assert told.wait(60) == -15, "143 in a shell"
    entry = json.loads((root / GLOBAL / "run.json").read_text())["sessions"][-1]
    assert entry["to"] == {"round": 1, "step": 1}
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        batch = Bank.batch

        def noted(self, *arguments, step, order, **more):
            seen.append(step)
            return batch(self, *arguments, step=step, order=order, **more)

        patch.setattr(Bank, "batch", noted)
        chain(root)
    assert seen[0] == 5 and tree(root / GLOBAL) == whole


@pytest.mark.slow
def test_a_second_start_waits_says_for_whom_and_reads_what_the_first_has_done(smoke_results, tmp_path):
    """Method A trains the dense network; B needs it, too."""
    run = Run(SETTINGS, "dense", tmp_path)
    with run.alone():
        second = start(tmp_path)
        assert second.stdout.readline() == f"waiting for another process, which works on {run.folder}\n"
        time.sleep(0.2)
        assert second.poll() is None and not (run.folder / "run.json").exists()
        shutil.copytree(smoke_results / DENSE, run.folder, dirs_exist_ok=True)
    assert second.wait(60) == 0
    assert tree(run.folder) == tree(smoke_results / DENSE)
    assert len(json.loads((run.folder / "run.json").read_text())["sessions"]) == 1, "it did not work on this one"
    assert tree(tmp_path / GLOBAL) == tree(smoke_results / GLOBAL)


@pytest.mark.slow
def test_two_starts_of_one_chain_never_mix(root, whole):
    both = [start(root) for _ in range(2)]
    assert [process.wait(100) for process in both] == [0, 0]
    assert tree(root / GLOBAL) == whole
    facts = json.loads((root / GLOBAL / "run.json").read_text())
    assert 1 <= len(facts["sessions"]) <= 2


@pytest.mark.slow
def test_a_generator_that_waits_for_its_caller_holds_nothing(root, whole):
    """In a notebook the same chain is started again in another cell."""
    begun = lottery.rounds(SETTINGS, root, "cpu", show=False)
    assert [next(begun).index for _ in range(2)] == [0, 1]
    chain(root)
    assert [played.index for played in begun] == [2] and tree(root / GLOBAL) == whole


def test_a_lock_does_not_outlive_a_killed_process(root):
    killed = start(root, "with store.Run(load_settings('smoke'), 'MIR-L-G', root).alone(): fatal()")
    assert killed.wait(60) == -9 and (root / GLOBAL / ".lock").exists()
    with Run(SETTINGS, "MIR-L-G", root).alone():
        pass


@pytest.mark.slow
def test_a_full_disk_is_named_and_nothing_is_half_written(disk, smoke_results):
    mounted(disk, "size=600k")
    with pytest.raises(
        WriteFailed, match=rf"^{disk}/\S+ cannot be written: .*[Nn]o space left.*MB are free there"
    ) as caught:
        chain(disk)
    assert "\n" not in str(caught.value)
    left = [path for path in disk.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.endswith(".tmp")]
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    chain(disk)
    assert tree(disk / GLOBAL) == tree(smoke_results / GLOBAL) and tree(disk / DENSE) == tree(smoke_results / DENSE)


def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(disk, monkeypatch):
    mounted(disk, "size=1m,ro")
    monkeypatch.setattr(lottery.Bench, "load", None)
    for play in (
        chain,
        lambda root: lottery.dense_round(SETTINGS, root),
        lambda root: lottery.one_shot(SETTINGS, "PIR-OSM-I", root),
    ):
        with pytest.raises(SettingsError, match=f"results='{disk}.* read-only: give another") as caught:
            play(disk)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [("run", "02_dense_baseline", "-p", "results"), ("study", "--results")])
def test_the_command_line_says_so_at_once_too(disk, capsys, words):
    mounted(disk, "size=1m,ro")
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, str(disk)])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "") and err.startswith("error: results=") and err.count("\n") == 1


def test_a_file_in_place_of_a_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lottery.Bench, "load", None)
    (tmp_path / "results").touch()
    with pytest.raises(SettingsError, match="no folder"):
        chain(tmp_path / "results")


def test_finished_runs_are_read_from_a_read_only_folder(disk, smoke_results):
    mounted(disk, "size=64m")
    for place in (DENSE, GLOBAL):
        shutil.copytree(smoke_results / place, disk / place)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert [played.index for played in chain(disk)] == [0, 1, 2]


def test_a_clock_that_goes_back_disturbs_nothing(root, whole, monkeypatch, capsys):
    now = [2e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    list(lottery.rounds(SETTINGS, root, "cpu", show=True))
    bar = capsys.readouterr().out
    assert "12/12" in bar and "-1" not in bar and "?" not in bar.splitlines()[-1]
    assert tree(root / GLOBAL) == whole
    for path in (root / GLOBAL).glob("round*/round.json"):
        facts = json.loads(path.read_text())
        assert 0 < facts["training_seconds"] < 600 and 0 < facts["evaluation_seconds"] < 600
    assert 0 < json.loads((root / GLOBAL / "run.json").read_text())["sessions"][0]["wall_seconds"] < 600


def test_a_loss_that_is_no_number_names_step_and_task_and_the_last_good_state_is_gone_on_from(root, whole):
    batch, seen = Bank.batch, []

    def spoilt(self, size, patch, *, seed, order, step):
        images, target = batch(self, size, patch, seed=seed, order=order, step=step)
        if step == 4:
            images[0] = float("nan")
        seen.append(step)
        return images, target

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Diverged, match="at step 5 of 6, for dehaze "):
        patch.setattr(Bank, "batch", spoilt)
        chain(root)
    assert not (root / GLOBAL / "round01" / "round.json").exists()
    seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bank, "batch", lambda *a, step, **k: (seen.append(step), batch(*a, step=step, **k))[1])
        chain(root)
    assert seen[0] == 4 and tree(root / GLOBAL) == whole
