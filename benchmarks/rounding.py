"""What the settings that round otherwise do to PSNR: the dense network of `laptop`, trained with each, on each seed.

The control is the same training with half the threads: sums are then added up in another order, and nothing else is
different. What it moves, any rounding moves.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.bench import RESULTS, machine_of, version_of
from mirl_study import kernels, load_settings, lottery, store
from mirl_study.settings import SettingsError
from mirl_study.verdicts import interval

CONTROL = "float32, half the threads"
OTHERWISE = {
    "float32": {},
    CONTROL: {},
    "compile=true": {"compile": True},
    "precision=bf16": {"precision": "bf16"},
}


def rounding(folder: Path, seeds: Sequence[int], threads: int, profile: str = "laptop") -> pd.DataFrame:
    """Trains and scores; what is in the folder already is read. Keeps the result in ``benchmarks/results/``.

    Args:
        folder: for the runs; those of one folder go on where they stopped.
        seeds: of the initialisation, the batches and the noise.
        threads: of torch, two at least.
        profile: whose dense network is trained.

    Returns:
        A row a setting and seed: ``setting``, ``seed``, and the PSNR in dB of each task and their ``mean``.

    Raises:
        SettingsError: for a single thread, which has no half; where ``compile=true`` could change nothing.
    """
    if threads < 2:
        raise SettingsError(
            f"threads={threads} is not allowed with --rounding: at least 2, for half of them is the control"
        )
    device = lottery.default_device()
    if device.type == "cpu":
        try:
            kernels.build()  # a training that goes on without would be compared with itself
        except kernels.NoKernels as error:
            raise SettingsError(
                f"compile=true is not possible here ({error}), so there is nothing to compare"
            ) from error
    facts = store.provenance(device) | {"threads": threads}
    folder = folder / f"{machine_of(facts)}-{version_of(facts)}"  # runs of other code or machines are none of these
    rows, before = [], torch.get_num_threads()
    try:
        for name, changes in OTHERWISE.items():
            torch.set_num_threads(threads // 2 if name == CONTROL else threads)
            for seed in seeds:
                settings = load_settings(profile, seed=seed, **changes)
                dense = lottery.dense_round(settings, folder / name)
                rows.append({"setting": name, "seed": seed, **dense.scores.psnr, "mean": dense.scores.psnr.mean()})
    finally:
        torch.set_num_threads(before)
    table = pd.DataFrame(rows)
    name = f"rounding-{machine_of(facts)}"
    store.write_json(RESULTS / f"{name}.json", {"facts": facts, "rows": table.to_dict("records")})
    with store.atomic(RESULTS / f"{name}.md") as temporary:
        temporary.write_text(_markdown(table, facts, profile), encoding="utf-8")
    return table


def _markdown(table: pd.DataFrame, facts: dict, profile: str) -> str:
    wide = table.pivot(index="seed", columns="setting", values="mean")
    apart = wide.drop(columns="float32").sub(wide["float32"], axis=0)
    lines = []
    for name, values in apart[[name for name in OTHERWISE if name in apart]].items():
        mean, low, high = interval(values)
        lines.append(
            f"- {name}: {mean:+.3f} dB against float32 as it is (95 % interval {low:+.3f} to {high:+.3f}; single seeds "
            f"{values.min():+.3f} to {values.max():+.3f})"
        )
    scatter = wide["float32"].std()
    return (
        f"PSNR of `{profile}`'s dense network on its test images, in dB, {facts['threads']} threads; half of them are "
        "the control: sums in another order, and nothing else.\n\n"
        f"{table.to_markdown(index=False, floatfmt='.3f')}\n\n"
        + "\n".join(lines)
        + f"\n\nMeans of the rows, each of {len(wide)} seeds against itself. From seed to seed, float32 as it is has a "
        f"standard deviation of {scatter:.3f} dB. {facts['cpu']}, "
        f"{facts['device']}, torch {facts['versions']['torch']}, commit {version_of(facts)}.\n"
    )
