"""One GPU for one process: a lease that ends with the process, however it ends."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5


def devices() -> list[str]:
    """Returns the names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them.

    Where that variable is set, by a person or by a cluster, nothing else is looked at.
    """
    given = os.environ.get(VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return [] if names[0] in ("", "-1", "NoDevFiles") else names
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def default_folder() -> Path:
    """Where the locks of this user are; a cluster's job has its own, for it may number its GPUs anew."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return Path(tempfile.gettempdir()) / f"mirl-study-{os.getuid()}{f'-{job}' if job else ''}"


@contextlib.contextmanager
def lease(names: Sequence[str] | None = None, folder: Path | None = None) -> Iterator[str | None]:
    """Waits for a GPU that no other lease holds, and has this process and its children see that one alone.

    The lock is the operating system's: it is free again when this process has ended, by ``kill -9`` too.

    Args:
        names: GPUs to choose from; all that this process may use if not given.
        folder: of the locks, on this very machine.

    Yields:
        The GPU's name; None, and nothing is changed, if there is none.
    """
    names, folder = devices() if names is None else names, folder or default_folder()
    if not names:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {name: re.sub(r"[^\w.-]", "_", name) for name in names}
    locks = {name: filelock.FileLock(folder / f"gpu-{file}.lock") for name, file in files.items()}
    while not (held := next((name for name, lock in locks.items() if _taken(lock)), None)):
        time.sleep(POLL_SECONDS)
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = held
    try:
        yield held
    finally:
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before
        locks[held].release()


def _taken(lock: filelock.FileLock) -> bool:
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(blocking=False)
        return True
    return False
