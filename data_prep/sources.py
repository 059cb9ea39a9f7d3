"""Where the data sets are to be had, and how a file gets here: whole and checked, or one line on what to do by hand."""

import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import yaml
from tqdm import tqdm

from data_prep import archives
from data_prep.files import whole_file
from mirl_study.settings import SettingsError, choose

REGISTRY = Path(__file__).with_name("registry.yaml")
CHECKSUMS = "checksums.json"
ARCHIVES = (*archives.UNPACKED, "RAR", "7-Zip")
CHUNK = 2**18  # bytes
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # as long as each brings something
PAUSE = 2.0  # seconds between them


@dataclass(frozen=True)
class Holding:
    """What of one data set a source holds.

    Attributes:
        dataset: ``BSD400``, ``CBSD68``, ``WED``, ``Urban100``, ``Rain100L``, ``OTS`` or ``SOTS``.
        task: ``denoise``, ``derain`` or ``dehaze``.
        split: ``train`` or ``test``.
        count: images, or pairs for rain and haze; None where the source gives no number.
    """

    dataset: str
    task: str
    split: str
    count: int | None


@dataclass(frozen=True)
class Download:
    """One file: its name here and, where it can be fetched, its address; see registry.yaml.

    Attributes:
        checksum: ``algorithm:digest`` in hex, as published; None where none is.
    """

    name: str
    checksum: str | None
    url: str | None = None
    drive: str | None = None


@dataclass(frozen=True)
class Source:
    """One place to get data sets from; the fields are explained in registry.yaml."""

    name: str
    title: str
    holds: tuple[Holding, ...]
    page: str
    by_hand: str
    files: tuple[Download, ...]
    licence: str
    citation: str
    verified: bool
    note: str = ""

    @property
    def how(self) -> str:
        """``url``, ``drive`` or ``by hand``."""
        return "url" if self.files[0].url else "drive" if self.files[0].drive else "by hand"


class _NotGot(Exception):
    """Why a file could not be had."""


class _Mismatch(_NotGot):
    """It came, but does not have the checksum that it should have."""


def sources() -> list[Source]:
    """The sources of registry.yaml, in its order."""
    return [
        Source(
            **entry
            | {
                "holds": tuple(Holding(**holding) for holding in entry["holds"]),
                "files": tuple(Download(**file) for file in entry["files"]),
            }
        )
        for entry in yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    ]


def list_sources() -> list[dict[str, str]]:
    """The sources as rows of a table, for people."""
    return [
        {
            "source": source.name,
            "holds": ", ".join(f"{h.dataset} {h.split}{f' ({h.count:,})' if h.count else ''}" for h in source.holds),
            "how": source.how,
            "files": ", ".join(file.name for file in source.files),
            "licence": source.licence,
            "page": source.page,
            "verified": "yes" if source.verified else "no",
        }
        for source in sources()
    ]


def fetch(name: str, folder: Path, *, progress: bool = True) -> list[Path]:
    """Gets the files of a source into a folder, going on where an earlier attempt was interrupted.

    A file has its name only when it is complete and checked; until then it is a ``.part``. What is there already, put
    there by hand or by an earlier fetch, is checked and kept. Of a file without a published checksum the first one is
    recorded in ``checksums.json``, and the file is held to it from then on; of a file put there by hand only if it can
    be read through to its end.

    Args:
        name: of the source.
        folder: where the files go; made if need be.
        progress: whether to show a progress bar.

    Returns:
        The files, in the registry's order.

    Raises:
        SettingsError: one line; for whatever cannot be fetched it says what to download by hand from where, and under
            which name to put it where.
    """
    known = {source.name: source for source in sources()}
    source, folder = known[choose("source", name, known)], Path(folder)
    with _at_work_in(folder):
        return [_fetch(source, file, folder, progress) for file in source.files]


def _fetch(source: Source, file: Download, folder: Path, progress: bool) -> Path:
    path = folder / file.name
    checksum = file.checksum or _recorded(folder).get(file.name)
    whole = True
    origin = "" if file.checksum else f", as recorded in {folder / CHECKSUMS} the first time"
    try:
        if os.path.lexists(path):
            _check(path, checksum)
            whole = checksum is not None or _read_through(path)
        elif file.url:
            _by_url(file.url, path, checksum, progress)
        elif file.drive:
            _by_drive(file.drive, path, checksum, progress)
        else:
            raise _NotGot("cannot be fetched by a program")
    except _NotGot as error:
        reason = f"{error}{origin if isinstance(error, _Mismatch) else ''}"
        if os.path.lexists(path):
            raise SettingsError(f"source {source.name!r}: {path} {reason}; remove it and run the same again") from error
        raise SettingsError(_by_hand(source, file, path, reason)) from error
    except OSError as error:
        raise SettingsError(f"source {source.name!r}: {path} cannot be written ({error.strerror or error})") from error
    if checksum is None and whole:
        _record(folder, path)
    return path


def _by_hand(source: Source, file: Download, path: Path, reason: str) -> str:
    """The one line for a file that could not be had."""
    kept = any(entry.stat().st_size for entry in path.parent.glob(f"{path.name}.part*"))  # gdown appends to the name
    again = "run the same again to go on from there, or " if kept else ""
    page, click = source.page, source.by_hand
    if file.drive:
        page, click = f"https://drive.google.com/file/d/{file.drive}/view", f"or {page}: {click}"
    return (
        f"source {source.name!r}: {file.name} {reason}; {again}download it by hand from {page} ({click}), "
        f"save it as {path} and run the same again"
    )


def _check(path: Path, checksum: str | None) -> None:
    """Refuses what has come if it is not what was wanted."""
    if (what := archives.kind(path)) not in ARCHIVES:
        raise _NotGot(f"is {what}, not an archive")
    if checksum:
        algorithm, _, wanted = checksum.partition(":")
        if (found := _digest(path, algorithm)) != wanted:
            raise _Mismatch(f"has {algorithm} {found}, not {wanted}")


def _read_through(path: Path) -> bool:
    """Whether a file is known to be whole: of kinds that cannot be read here that is not known."""
    readable = archives.kind(path) in archives.UNPACKED
    if readable:
        archives.check(path)
    return readable


def _by_url(url: str, path: Path, checksum: str | None, progress: bool) -> None:
    pooch = _package("pooch")
    pooch.get_logger().setLevel("WARNING")  # what it has to say is said here
    download = partial(_download, part=path.with_name(f"{path.name}.part"), progress=progress)
    try:
        pooch.retrieve(url, known_hash=checksum, fname=path.name, path=path.parent, downloader=download)
    except SettingsError:
        raise
    except ValueError as error:  # pooch has removed it
        raise _Mismatch(f"was not kept ({str(error).split('. ')[0]})") from error


def _by_drive(drive: str, path: Path, checksum: str | None, progress: bool) -> None:
    gdown = _package("gdown")
    part = path.with_name(f"{path.name}.part")
    bar = tqdm(desc=path.name, unit="B", unit_scale=True, disable=not progress or None)

    def show(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    # quiet: what it has to say, of each retry as well, is said here
    how = {"quiet": True, "progress": show, "resume": True, "timeout": TIMEOUT, "retries": TRIES - 1}
    try:
        with bar:
            gdown.download(id=drive, output=str(part), **how)
    except Exception as error:
        if getattr(error, "errno", None):  # of the disk
            raise
        raise _NotGot(f"was not given out by Google Drive ({_reason(error)})") from error
    with _removed_if_refused(part):
        _check(part, checksum)
    part.rename(path)


@contextmanager
def _removed_if_refused(part: Path) -> Iterator[None]:
    try:
        yield
    except _NotGot:
        part.unlink()
        raise


def _download(url: str, output: str, _pooch: Any, *, part: Path, progress: bool) -> None:
    """A downloader for pooch that goes on with a ``.part`` and moves it to ``output`` once it is complete."""
    import requests
    import urllib3

    for attempt in range(TRIES):
        before = _size(part)
        try:
            _stream(url, part, progress)
            break
        except requests.HTTPError as error:
            raise _NotGot(f"was refused ({_reason(error)})") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _size(part) <= before or attempt == TRIES - 1:
                kept = f"; {_size(part):,} bytes are kept" if _size(part) else ""
                raise _NotGot(f"did not come ({_reason(error)}{kept})") from error
            time.sleep(PAUSE)
    with _removed_if_refused(part):
        _check(part, None)  # pooch looks at the checksum
    os.replace(part, output)


def _stream(url: str, part: Path, progress: bool) -> None:
    """One request for what is still missing.

    The part carries the remote file's date, so that the server can tell whether it is a piece of the file that it
    has now (If-Range, RFC 9110 section 13.1.5); if not, all comes anew.
    """
    import requests
    import urllib3

    have = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": formatdate(part.stat().st_mtime, usegmt=True)}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        sent = answer.headers.get("Content-Range", "")
        date = answer.headers.get("Last-Modified", headers.get("If-Range"))
        if have and answer.status_code in (206, 416):
            if sent == f"bytes */{have}":  # it was complete already
                return
            if not sent.startswith(f"bytes {have}-") or date != headers["If-Range"]:
                part.unlink()
                return _stream(url, part, progress)
        else:
            have, date = 0, answer.headers.get("Last-Modified")
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise _NotGot("was not given out (a web page came instead, with a licence to agree to, perhaps)")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=not progress or None)
        try:
            with part.open("ab" if have else "wb") as file, bar:
                # raw: requests would undo a Content-Encoding, by which some servers label a .tgz as such
                for chunk in answer.raw.stream(CHUNK, decode_content=False):
                    file.write(chunk)
                    file.flush()
                    _stamp(part, date)  # each time, should this process be killed
                    bar.update(len(chunk))
        finally:
            _stamp(part, date)
        if total is not None and _size(part) != total:
            raise urllib3.exceptions.ProtocolError("fewer bytes than were announced")  # as urllib3 1 does not


def _stamp(part: Path, date: str | None) -> None:
    """Gives a part the date of the remote file, if it has one that can be read."""
    with suppress(TypeError, ValueError, OSError):
        os.utime(part, (parsedate_to_datetime(date).timestamp(),) * 2)


def _reason(error: Exception) -> str:
    """An exception in a few words."""
    import requests
    import urllib3

    if isinstance(error.__cause__, requests.RequestException):  # gdown wraps what it gave up on
        error = error.__cause__
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"HTTP {answer.status_code} {answer.reason}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, urllib3.exceptions.HTTPError):
        return "the connection broke"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"package {name} is not installed: pip install mirl-study[data]") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _recorded(folder: Path) -> dict[str, str]:
    """The checksums of the files that came without one."""
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(checksum) for name, checksum in recorded.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(f"{path}: is damaged; remove it, and what is there now is recorded anew") from error


def _record(folder: Path, path: Path) -> None:
    checksum = f"sha256:{_digest(path, 'sha256')}"
    with whole_file(folder / CHECKSUMS) as temporary:
        text = json.dumps(_recorded(folder) | {path.name: checksum}, indent=1, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")
    tqdm.write(f"{path.name}: no checksum is published; recorded {checksum} in {folder / CHECKSUMS}", file=sys.stderr)


@contextmanager
def _at_work_in(folder: Path) -> Iterator[None]:
    """One fetch at a time in a folder: two would write into the same part. Folders made in vain are removed."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".fetch.lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise SettingsError(f"folder {folder}: another fetch is at work in it; wait until it has ended") from error
    except OSError as error:
        raise SettingsError(f"folder {folder}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
        with suppress(OSError):
            for path in new:
                path.rmdir()
