"""Ours and the plain path side by side: each in a process of its own, by turns, so that all see the same machine."""

import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain, subjects
from mirl_study import kernels, load_settings, store
from mirl_study.products import product
from mirl_study.settings import SettingsError, choose

TARGETS = {  # row: (what, at least so many times the plain path)
    "batches": ("batches from the data path, against decoding for every sample", 20.0),
    "step_paper": ("training step, `paper` network, 8 x 64x64, CPU float32", 2.5),
    "step_paper_compiled": ("the same with `compile=true`", 2.5),
    "forward_paper": ("forward on 320x480, `paper` network, CPU float32", 2.2),
    "step_laptop": ("ten training steps, `laptop` network, CPU float32", 2.0),
    "step_laptop_compiled": ("the same with `compile=true`", 2.0),
    "prune_rewind": ("prune and rewind 33.2M weights, against numpy's percentile", 10.0),
    "metrics": ("PSNR and SSIM of full images, against scikit-image one by one", 3.0),
    "disk": ("disk of a 16-round chain of `paper`: masks, against full checkpoints", 50.0),
    "disk_kept": ("the same with the trained weights that the profile keeps", 50.0),
    "memory": ("peak memory of a training step, `paper` network (1 / 0.6 is the aim)", 1 / 0.6),
    "memory_compiled": ("the same with `compile=true`", 1 / 0.6),
    "step_gpu": ("training step on one GPU, `paper`, 8 x 64x64, bf16 and compiled, against eager float32", 3.0),
    "images_gpu": ("100 images of 321x481 restored and scored on one GPU, against scikit-image one by one", 3.0),
    "memory_gpu": ("peak memory of a training step on one GPU, `paper` (1 / 0.6 is the aim)", 1 / 0.6),
}
MEASURED = {  # of some rows: what is timed, and the side that the row is about
    "step_paper_compiled": ("step_paper", "compiled"),
    "step_laptop_compiled": ("step_laptop", "compiled"),
    "memory": ("step_paper", "ours"),
    "memory_compiled": ("step_paper", "compiled"),
    "memory_gpu": ("step_gpu", "ours"),
}
# Runs that are not counted; elsewhere one. Until the heap of the C library has grown to hold what a plain step frees,
# the kernel hands out most of a step's memory anew, and fills it with zeros. Compilers and CUDA graphs want a few, too.
SETTLING = {"step_paper": 12, "step_gpu": 5}
AT_LEAST = 15.0  # seconds that a row is run for, all sides together: short runs are repeated until then
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"}  # of aten, beside convolutions
RESULTS = Path(__file__).parent / "results"
COLUMNS = ["row", "what", "ours", "plain", "unit", "ratio", "aim", "differ", "peak"]


def _child(pipe: Connection, row: str, side: str, threads: int) -> None:
    """Prepares one side of a row and runs it whenever it is told to."""
    torch.set_num_threads(threads)
    on_gpu = row.endswith("_gpu")
    before = _peak(on_gpu)
    run = subjects.TIMED[row](side)
    while _told(pipe):
        start, in_system = time.perf_counter(), os.times().system
        value = run()
        pipe.send((time.perf_counter() - start, value, _peak(on_gpu) - before, os.times().system - in_system))


def _told(pipe: Connection) -> bool:
    """Waits for the next turn; false when there will be none."""
    try:
        return pipe.recv()
    except EOFError:
        return False


def _peak(on_gpu: bool) -> int:
    """The largest amount of memory that this process has held so far, in bytes: the GPU's, or the machine's."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # what getrusage says on Linux begins with the parent's
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


@contextmanager
def _sides(row: str, sides: Sequence[str], threads: int) -> Iterator[dict[str, Connection]]:
    """The sides of a row, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    try:
        for side in sides:
            pipes[side], end = context.Pipe()
            children.append(context.Process(target=_child, args=(end, row, side, threads), daemon=True))
            children[-1].start()
            end.close()
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for child in children:
            child.terminate()
            child.join()


def measure(row: str, runs: int, threads: int) -> dict[str, Any]:
    """Times a row, by turns.

    Args:
        row: one of ``subjects.TIMED``.
        runs: of each side, at least, besides those of SETTLING; more until those of all sides took AT_LEAST seconds.
        threads: of torch.

    Returns:
        By side: ``median`` and all ``runs`` (seconds), those before that are not counted (``settling``), ``system``
        (median of the seconds that the kernel of the operating system took of the runs), ``peak`` (bytes, beyond what
        the imports hold) and ``differ``, the largest difference of what it computed in its first run from what the
        plain path did.
    """
    compiles = any(timed == (row, "compiled") for timed in MEASURED.values()) and not _lack(f"{row}_compiled")
    sides = ("ours", *(["compiled"] if compiles else []), "plain")
    found: dict[str, dict[str, Any]] = {side: {"settling": [], "runs": [], "system": []} for side in sides}
    values, spent = {}, 0.0
    with _sides(row, sides, threads) as pipes:
        for turn in itertools.count(-SETTLING.get(row, 1)):
            if turn >= runs and spent >= AT_LEAST:
                break
            for side, pipe in pipes.items():
                pipe.send(True)
                elapsed, value, found[side]["peak"], in_system = pipe.recv()
                values.setdefault(side, value)
                if turn < 0:
                    found[side]["settling"].append(elapsed)
                    continue
                found[side]["runs"].append(elapsed)
                found[side]["system"].append(in_system)
                spent += elapsed
    for side, facts in found.items():
        apart = np.abs(values[side] - values["plain"])
        facts["median"], facts["system"] = statistics.median(facts["runs"]), statistics.median(facts["system"])
        facts["differ"] = float(apart.max()) if apart.size else None
    return found


def floor(runs: int, threads: int) -> dict[str, Any]:
    """The machine at its best: its rates, and the seconds that one training step of ``paper`` would need at them.

    Besides, which share of a step of ours passes in products, as the median of ``runs``; looking at the clock included.
    """
    torch.set_num_threads(threads)
    a, b = torch.rand(2, 2048, 2048)
    block, target = torch.rand(2, 2**26)
    rates: dict[str, float] = {}
    for name, work, run in (
        ("gflop_per_s", 2 * 2048**3 / 1e9, lambda: a @ b),
        ("gflop_per_s", 2 * 2048**3 / 1e9, lambda: product(a, b)),  # where it is another library, the faster one counts
        ("gb_per_s", 2 * 4 * 2**26 / 1e9, lambda: target.copy_(block)),  # read once and written once
    ):
        run()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        rates[name] = max(rates.get(name, 0), work / statistics.median(times))
    settings = load_settings("paper")
    network = plain.build_network(settings.network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, 64, 64))
    step = 3 * 8 * counter.get_total_flops() / 1e9  # backward: a product for the input and one for the weight
    shares = {}
    for side in ("ours", *([] if _lack("step_paper_compiled") else ["compiled"])):
        run, spent = subjects.step_paper(side), []
        for _ in range(3):  # see SETTLING; ours keeps its memory from the first steps on
            run()
        for _ in range(runs):
            start = time.perf_counter()
            with Products() as products:
                run()
            spent.append(products.seconds / (time.perf_counter() - start))
        shares[side] = statistics.median(spent)
    return rates | {
        "step_paper_gflop": step,
        "step_paper_seconds": step / rates["gflop_per_s"],
        "step_paper_products": shares,
    }


class Products(TorchDispatchMode):
    """Adds up the time that passes in matrix products and convolutions, on a CPU: what no rewriting around them spares.

    Convolutions of each channel by itself are no products: their time is that of memory.

    Attributes:
        seconds: in them so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation as it is, and looks at the clock."""
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        elapsed, name = time.perf_counter() - start, function.overloadpacket.__name__
        if name.startswith("convolution"):
            image, weight = args[1:3] if name.endswith("backward") else args[:2]
            self.seconds += elapsed if image.shape[1] == weight.shape[1] else 0
        elif name in PRODUCTS:
            self.seconds += elapsed
        return result


def bench(rows: Sequence[str], runs: int, threads: int) -> pd.DataFrame:
    """Measures rows and keeps the result in ``benchmarks/results/``, as JSON and as a Markdown table.

    Args:
        rows: of TARGETS; none means all.
        runs: of each side, at least; short ones are repeated for AT_LEAST seconds.
        threads: of torch.

    Returns:
        The table: see COLUMNS.

    Raises:
        SettingsError: for an unknown row, or one that needs a GPU or a C++ compiler where there is none.
    """
    lacking = {row: lack for row in TARGETS if (lack := _lack(row))}
    there = [row for row in TARGETS if row not in lacking]
    rows = [choose("rows", row, TARGETS) for row in rows] or there
    if absent := [row for row in rows if row not in there]:
        raise SettingsError(f"rows={absent[0]!r} needs {lacking[absent[0]]}; here there is {', '.join(there)}")
    found, lines = {}, []
    for row in rows:
        differ, peak = None, ""
        if row in ("disk", "disk_kept"):
            ours, against = (subjects.chain_bytes(side, row == "disk_kept") / 1e6 for side in ("ours", "plain"))
            unit = "MB"
        else:
            timed, side = MEASURED.get(row, (row, "ours"))
            if timed not in found:
                found[timed] = measure(timed, runs, threads)
            both = found[timed][side], found[timed]["plain"]
            held = [facts["peak"] / 1e6 for facts in both]
            if row.startswith("memory"):
                (ours, against), unit = held, "MB"
            else:
                (ours, against), unit = (facts["median"] for facts in both), "s"
                differ, peak = both[0]["differ"], "{:.0f} / {:.0f}".format(*held)
        what, aim = TARGETS[row]
        lines.append((row, what, ours, against, unit, against / ours, aim, differ, peak))
        print(
            f"{row:<14} {against / ours:6.2f}x  (aim {aim:.3g}x)  ours {ours:.4g}, plain {against:.4g} {unit}",
            flush=True,
        )
    table = pd.DataFrame(lines, columns=COLUMNS)
    device = "cuda" if any(row.endswith("_gpu") for row in rows) else "cpu"
    facts = store.provenance(device) | {"threads": threads, "runs": runs, "floor": floor(runs, threads)}
    facts["notebook_overhead"] = overhead()
    name = machine_of(facts) + ("" if set(rows) == set(there) else "-" + "-".join(rows))
    unmeasured = {row: f"for there was no {lack.split()[1]}: {TARGETS[row][0]}" for row, lack in lacking.items()}
    record = {"facts": facts, "rows": table.to_dict("records"), "measured": found, "unmeasured": unmeasured}
    store.write_json(RESULTS / f"{name}.json", record)
    with store.atomic(RESULTS / f"{name}.md") as temporary:
        temporary.write_text(_markdown(table, facts, found, unmeasured), encoding="utf-8")
    return table


def machine_of(facts: dict[str, Any]) -> str:
    """Returns what a file of results is named by: the GPU, or the processor and the number of threads."""
    on_gpu = facts["device"] != "cpu"
    name = re.sub(r"\W+", "-", facts["device" if on_gpu else "cpu"].lower()).strip("-")
    return name if on_gpu else f"{name}-{facts['threads']}-threads"


def version_of(facts: dict[str, Any]) -> str:
    """Returns the commit, and whether files were changed since."""
    return str(facts["commit"])[:7] + ("-changed" if facts["changed_files"] else "")


def _lack(row: str) -> str:
    """Returns what a row needs and this machine lacks; nothing if it can be measured."""
    if row.endswith("_gpu") and not torch.cuda.is_available():
        return "a GPU that torch can use"
    if row.endswith("_compiled"):
        try:
            kernels.build()
        except kernels.NoKernels as error:  # the training would go on without, and the row would say otherwise
            return f"a compiler ({error})"
    return ""


def overhead() -> dict[str, float]:
    """Share of each finished lottery's notebook of `laptop` that is neither training nor evaluation, by run folder.

    A chain that was taken up again, or only read, is left out: its notebook is that of the last session alone.
    """
    shares, root = {}, store.results_root() / "laptop"
    for path in sorted(root.glob("*/MIR-L-*/seed*/notebook.ipynb")):
        rounds = [json.loads(record.read_text()) for record in path.parent.glob("round*/round.json")]
        wall = json.loads(path.read_text())["metadata"]["papermill"]["duration"]
        sessions = json.loads((path.parent / "run.json").read_text()).get("sessions", [])
        if not wall or len(sessions) > 1:
            continue
        busy = sum(facts["training_seconds"] + facts["evaluation_seconds"] for facts in rounds)
        if busy > wall:  # it read rounds that were finished before
            continue
        shares[path.parent.relative_to(root).as_posix()] = 1 - busy / wall
    return shares


def rate_of(row: str, seconds: float) -> str:
    """Returns what is done in a second by runs that take so long, in words; nothing where that is no number."""
    done = subjects.work(MEASURED.get(row, (row,))[0])
    rates = {what: float(f"{count / seconds:.3g}") for what, count in done.items()}
    return "" if math.isnan(seconds) else ", ".join(f"{rate:,g} {what}/s" for what, rate in rates.items())


def _markdown(
    table: pd.DataFrame, facts: dict[str, Any], measured: dict[str, dict[str, Any]], unmeasured: dict[str, str]
) -> str:
    seconds = table.ours.where(table.unit == "s")
    shown = table.assign(
        rate=[rate_of(*pair) for pair in zip(table.row, seconds, strict=True)],
        **{column: table[column].map("{:.4g}".format) for column in ("ours", "plain")},
        ratio=table.ratio.map("{:.2f}x".format),
        aim=table.aim.map("{:.3g}x".format),
        differ=table.differ.map(lambda value: "" if pd.isna(value) else f"{value:.1e}"),
    )
    spent = facts["notebook_overhead"].values()
    aside = (
        f"{min(spent):.1%} to {max(spent):.1%} of {len(spent)} chains" if spent else "not measured: no chain is here"
    )
    best, torch_version, version = facts["floor"], facts["versions"]["torch"], version_of(facts)
    forms = {"ours": "", "compiled": " (with `compile=true`)"}
    products = " and ".join(f"{share:.0%}{forms[form]}" for form, share in best["step_paper_products"].items())
    spells = "; ".join(
        ", ".join(f"{of['system']:.1f} s ({side})" for side, of in measured[row].items()) + name
        for row, name in {"step_paper": " of a step", "forward_paper": " of the forward pass"}.items()
        if row in measured
    )
    in_system = (
        f" Of all threads' time, the operating system takes {spells}, mostly for new pages of memory: the allocator "
        "that keeps them is ours alone, as is the fused optimiser."
        if spells
        else ""
    )
    settled = bound = ""
    if sides := measured.get("step_paper"):
        first = ", ".join(f"{max(of['settling']):.1f} s ({side})" for side, of in sides.items())
        settled = f" The first {SETTLING['step_paper']} steps of `paper` are not counted: they take up to {first}."
        bound = f" (the plain one {sides['plain']['median'] / best['step_paper_seconds']:.1f} times as long)"
    return (
        f"{shown.drop(columns='row').to_markdown(index=False)}\n\n"
        f"{facts['cpu']}, {facts['threads']} of {os.cpu_count()} threads, torch {torch_version}, commit {version}; "
        f"medians of {facts['runs']} runs by turns, of more where they are short, each side in a process of its own; "
        f"both forms of a step by turns with the same plain one.{settled} `rate` is ours; `peak` memory in MB on top "
        "of the imports, ours / plain; `differ` the largest difference of images, losses and derivatives (these over "
        "their largest), or of the number of weights that are kept.\n\n"
        f"The machine multiplies {best['gflop_per_s']:.0f} GFLOP/s and copies {best['gb_per_s']:.1f} GB/s; at that "
        f"rate a step of `paper`, {best['step_paper_gflop']:.0f} GFLOP, takes {best['step_paper_seconds']:.2f} s"
        f"{bound}. Of a step of ours {products} pass in matrix products and convolutions.{in_system}\n\n"
        f"Share of a `laptop` lottery's notebook that is neither training nor evaluation (aim: under 5 %): {aside}.\n\n"
        + "".join(f"- not measured, {what}\n" for what in unmeasured.values())
    )
