"""The benchmark's own bookkeeping, and that both sides do the same work; how fast they are is not tested."""

import json

import numpy as np
import pytest
import torch

from benchmarks import bench, plain, rounding, subjects
from mirl_study import criteria
from mirl_study.masks import Mask
from mirl_study.network import build_network
from mirl_study.settings import SettingsError


@pytest.mark.slow
def test_rows_are_measured_by_turns_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "AT_LEAST", 0)
    table = bench.bench(["metrics", "disk"], runs=2, threads=1)
    assert table["row"].tolist() == ["metrics", "disk"] and (table.ratio > 0).all()
    assert table.differ[0] < 1e-6, "both sides score alike"
    (record,) = tmp_path.glob("*.json")
    kept = json.loads(record.read_text())
    assert all(len(kept["measured"]["metrics"][side]["runs"]) == 2 for side in ("ours", "plain"))
    floor = kept["facts"]["floor"]
    assert floor["step_paper_gflop"] == pytest.approx(518, rel=0.01) and all(
        0 < share < 1 for share in floor["step_paper_products"].values()
    )
    text = record.with_suffix(".md").read_text()
    assert "scikit-image" in text
    assert text.count(" images/s ") == 1, "of metrics, none of disk"
    assert text.count("for there was no GPU") == (0 if torch.cuda.is_available() else 3)


def test_rates_are_of_what_a_run_gets_done():
    assert bench.rate_of("step_paper_compiled", 4.0) == "0.25 steps/s, 2 images/s"
    assert bench.rate_of("batches", 0.01) == "1,000 batches/s, 8,000 images/s"
    assert bench.rate_of("prune_rewind", 1.0) == bench.rate_of("metrics", float("nan")) == ""


def test_an_unknown_row_is_named():
    with pytest.raises(SettingsError, match="did you mean 'batches'"):
        bench.bench(["bathces"], 1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_row_that_needs_a_gpu_says_so_and_is_never_made_up():
    with pytest.raises(SettingsError, match="rows='step_gpu' needs a GPU"):
        bench.bench(["step_gpu"], 1, 1)


def test_nothing_is_called_compiled_where_nothing_compiles(monkeypatch, tmp_path):
    def none() -> None:
        raise bench.kernels.NoKernels("no C++ compiler")

    monkeypatch.setattr(bench.kernels, "build", none)
    with pytest.raises(SettingsError, match=r"rows='step_paper_compiled' needs a compiler \(no C\+\+ compiler\); here"):
        bench.bench(["step_paper_compiled"], 1, 1)
    with pytest.raises(SettingsError, match=r"compile=true is not possible here \(no C\+\+ compiler\)"):
        rounding.rounding(tmp_path, [0], 2, "smoke")


def test_both_sides_prune_alike_and_go_back_to_the_same_start():
    network, start = build_network("pico", seed=1), build_network("pico", seed=0)
    whole = Mask.dense(network, norms=True, unused=True)
    ours = criteria.prune(whole, criteria.magnitude(criteria.Evidence(network, whole)), 0.2)
    masks = {name: np.ones(keep.shape, np.float32) for name, keep in whole.items()}
    theirs = plain.prune(dict(network.named_parameters()), masks, 0.2)
    apart = sum(int((ours[name].numpy() != theirs[name].astype(bool)).sum()) for name in whole)
    assert apart <= 1, "a percentile between two values takes one more or less"
    plain.rewind(network, dict(start.named_parameters()), {name: keep.numpy() for name, keep in ours.items()})
    ours.apply_(dict(start.named_parameters()))
    for name in ours:
        assert torch.equal(network.get_parameter(name), start.get_parameter(name))


def test_time_in_products_is_that_of_products_alone():
    a, weight = torch.rand(64, 64, requires_grad=True), torch.rand(64, 1, 3, 3, requires_grad=True)
    with bench.Products() as products:
        torch.sort(torch.rand(1_000_000))
        nothing = products.seconds
        (a @ a).sum().backward()
        some = products.seconds
        torch.conv2d(torch.rand(1, 64, 8, 8), weight, groups=64).sum().backward()
        apart = products.seconds
        torch.conv2d(torch.rand(1, 1, 8, 8), weight).sum().backward()
    assert nothing == 0 < some == apart < products.seconds


@pytest.mark.parametrize("side", ["ours", "compiled"])
def test_all_sides_compute_the_same_steps(side):
    if side == "compiled" and bench._lack("step_laptop_compiled"):
        pytest.skip("nothing compiles here")
    found, plainly = subjects.step_laptop(side)(), subjects.step_laptop("plain")()
    assert len(found) > 8 * 3 * 32 * 32 + 10 + 100 and found == pytest.approx(plainly, abs=1e-4)


@pytest.mark.slow  # two threads beside another worker's
def test_rounding_is_measured_beside_a_control_and_read_again(tmp_path, monkeypatch):
    if bench._lack("step_laptop_compiled"):
        pytest.skip("nothing compiles here")
    monkeypatch.setattr(rounding, "RESULTS", tmp_path)
    table = rounding.rounding(tmp_path / "runs", [0, 1], 2, "smoke")
    monkeypatch.setattr(rounding.lottery, "train", lambda *_, **__: pytest.fail("trained again"))
    again = rounding.rounding(tmp_path / "runs", [0, 1], 2, "smoke")
    assert table.equals(again) and table["setting"].value_counts().to_dict() == dict.fromkeys(rounding.OTHERWISE, 2)
    assert table.filter(["denoise15", "derain", "dehaze", "mean"]).notna().all(axis=None)
    text = next(tmp_path.glob("*.md")).read_text()
    assert all(f"- {name}: " in text for name in rounding.OTHERWISE if name != "float32")
    with pytest.raises(SettingsError, match="threads=1 is not allowed with --rounding: at least 2"):
        rounding.rounding(tmp_path / "runs", [0], 1, "smoke")
