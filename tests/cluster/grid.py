"""The smoke profile, two seeds, through the SLURM profile; and what must be true afterwards: python grid.py RESULTS."""

import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from mirl_study.settings import LOTTERY, METHODS
from mirl_study.store import project_root

SEEDS = (0, 1)
OURS = (
    "--default-resources",
    "runtime=30",
    "mem_mb=2000",
    "--latency-wait",
    "5",
    "--retries",
    "0",
)  # of a tiny cluster


def run(results: Path, *more: str) -> str:
    """Runs the grid; returns what Snakemake said."""
    workflow = project_root() / "workflow"
    command = [sys.executable, "-m", "snakemake", "--profile", str(workflow / "profiles" / "slurm"), *OURS]
    command += ["--snakefile", str(workflow / "Snakefile"), "--directory", str(results), *more]
    command += ["--config", "profile=smoke", f"seeds={','.join(map(str, SEEDS))}", f"results={results}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        for log in results.rglob("slurm_logs/**/*.log"):
            print(f"{log}:", *log.read_text(errors="replace").splitlines()[-40:], sep="\n  ")
        sys.exit(f"{done.stdout}\nerror: snakemake ended with exit code {done.returncode}")
    return done.stdout


def leases(results: Path) -> list[tuple[str, datetime, datetime]]:
    """Reads from the logs of the lotteries which device each had, and from when to when."""
    found = []
    for method in LOTTERY:
        for seed in SEEDS:
            lines = (
                (results / "smoke" / "all_in_one" / method / f"seed{seed}" / "notebook.log").read_text().splitlines()
            )
            device = re.search(r"CUDA_VISIBLE_DEVICES='(.*)'", lines[1])
            times = [datetime.fromisoformat(line.split()[0]) for line in (lines[0], lines[-1])]
            found.append((device[1] if device else "all", *times))
    return found


def main(results: Path) -> None:
    """Runs the grid twice and checks it."""
    results.mkdir(parents=True)
    said = run(results)
    jobs = set(re.findall(r"SLURM jobid '?(\d+)", said))
    runs = [results / "smoke" / "all_in_one" / method / f"seed{seed}" for method in METHODS for seed in SEEDS]
    assert all((folder / "summary.csv").is_file() for folder in runs), "a chain is missing"
    assert (results / "smoke" / "report" / "index.html").is_file()
    assert len(jobs) == 4 * len(SEEDS), f"a chain is a job, the one-shot baselines of a seed are one: {sorted(jobs)}"
    held = leases(results)
    assert {device for device, *_ in held} == {"0", "1"}, f"each chain has one of two devices: {held}"
    for device in ("0", "1"):
        spans = sorted(times for own, *times in held if own == device)
        apart = all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        assert apart, f"two chains had device {device} at the same time: {held}"
    assert "Nothing to be done" in run(results), "a second start must have nothing to do"
    print(
        f"{len(runs)} chains in {len(jobs)} SLURM jobs, each with a device of its own; a second start had nothing to do"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
