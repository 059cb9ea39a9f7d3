"""What the settings that round otherwise do to PSNR: the dense network of `laptop`, trained with each, on each seed."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.bench import RESULTS
from mirl_study import load_settings, lottery, store

OTHERWISE = {"float32": {}, "compile=true": {"compile": True}, "precision=bf16": {"precision": "bf16"}}


def rounding(folder: Path, seeds: Sequence[int], threads: int) -> pd.DataFrame:
    """Trains and scores; what is in the folder already is read. Keeps the result in ``benchmarks/results/``.

    Args:
        folder: for the runs; those of one folder go on where they stopped.
        seeds: of the initialisation, the batches and the noise.
        threads: of torch.

    Returns:
        A row a setting and seed: ``setting``, ``seed``, and the PSNR in dB of each family and their ``mean``.
    """
    torch.set_num_threads(threads)
    rows = []
    for name, changes in OTHERWISE.items():
        for seed in seeds:
            dense = lottery.dense_round(load_settings("laptop", seed=seed, **changes), folder / name)
            rows.append({"setting": name, "seed": seed, **dense.scores.psnr, "mean": dense.scores.psnr.mean()})
    table = pd.DataFrame(rows)
    device = lottery.default_device()
    record = {"facts": store.provenance(device) | {"threads": threads}, "rows": table.to_dict("records")}
    place = RESULTS / f"rounding-{device.type}"
    store.write_json(place.with_suffix(".json"), record)
    with store.atomic(place.with_suffix(".md")) as temporary:
        temporary.write_text(_markdown(table, record["facts"]), encoding="utf-8")
    return table


def _markdown(table: pd.DataFrame, facts: dict) -> str:
    wide = table.pivot(index="seed", columns="setting", values="mean")
    apart = wide.drop(columns="float32").sub(wide["float32"], axis=0)
    lines = [
        f"- `{name}`: {values.mean():+.3f} dB against float32 as it is ({values.min():+.3f} to {values.max():+.3f}, "
        f"{len(values)} seeds)"
        for name, values in apart.items()
    ]
    scatter = wide["float32"].max() - wide["float32"].min()
    return (
        "PSNR of `laptop`'s dense network on its test images, in dB:\n\n"
        f"{table.to_markdown(index=False, floatfmt='.3f')}\n\n"
        + "\n".join(lines)
        + f"\n\nMeans of the families, each seed against itself. The seeds are {scatter:.3f} dB apart. {facts['cpu']}, "
        f"{facts['device']}, torch {facts['versions']['torch']}.\n"
    )
