"""Sources: what the registry says, and fetching from a real server on this machine that behaves as servers do."""

import gzip
import hashlib
import inspect
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import pytest
import yaml

from data_prep import sources
from mirl_study.settings import SettingsError

OLD, NEW = "Wed, 05 Feb 2020 10:00:00 GMT", "Thu, 06 Feb 2020 10:00:00 GMT"


def an_archive(seed: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(zipfile.ZipInfo("1.png"), random.Random(seed).randbytes(100_000))
    return out.getvalue()


DATA = an_archive()
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()
PAGE = b"<!DOCTYPE html><html><title>Please agree to the licence</title></html>"


class Server(ThreadingHTTPServer):
    """Gives out one file, with ranges, until a test tells it to behave otherwise."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.modified, self.status = DATA, OLD, 200
        self.headers: dict[str, str] = {"Content-Type": "application/zip"}
        self.ranges = self.if_range = True
        self.cuts: list[int] = []  # after how many bytes the next answers break off
        self.stall = threading.Event()  # set: nothing is held back
        self.stall.set()
        self.asked: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        shop = self.server
        shop.asked.append({"path": self.path, **self.headers})
        if shop.status != 200:
            return self.send_error(shop.status)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file.zip")
            return self.end_headers()
        start, wanted = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = not shop.if_range or self.headers.get("If-Range", shop.modified) == shop.modified
        if shop.ranges and wanted and fresh:
            start = int(wanted[1])
        if start >= len(shop.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(shop.data)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(shop.data) - 1}/{len(shop.data)}")
        if shop.modified:
            self.send_header("Last-Modified", shop.modified)
        self.send_header("Content-Length", str(len(shop.data) - start))
        for item in shop.headers.items():
            self.send_header(*item)
        self.end_headers()
        body = shop.data[start:]
        try:
            if shop.cuts:
                body = body[: shop.cuts.pop(0)]
            elif not shop.stall.is_set():
                self.wfile.write(body[:30_000])
                self.wfile.flush()
                shop.stall.wait(30)
                body = body[30_000:]
            self.wfile.write(body)
        except ConnectionError:  # the other side has hung up
            pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch", reason="the optional extra `data` is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "PAUSE", 0.0)
    monkeypatch.setattr(sources, "CHUNK", 4096)
    with Server() as shop:
        thread = threading.Thread(target=shop.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield shop
        shop.stall.set()
        shop.shutdown()
        thread.join()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Registers a source ``Set`` of one file, wherever it is to come from, for this test."""
    monkeypatch.setattr(sources, "REGISTRY", tmp_path / "registry.yaml")

    def register(**file) -> Path:
        file = {"name": "file.zip", "checksum": SHA256} | file
        entry = {
            "name": "Set",
            "title": "a set",
            "holds": [{"dataset": "WED", "task": "denoise", "split": "train", "count": 1}],
            "page": "https://example.org/set",
            "by_hand": "the big button",
            "files": [file],
            "licence": "not stated",
            "citation": "nobody",
            "verified": True,
        }
        sources.REGISTRY.write_text(yaml.safe_dump([entry]))
        return tmp_path / "data" / file["name"]

    return register


def fetch(path: Path) -> None:
    assert sources.fetch("Set", path.parent, progress=False) == [path]
    assert path.read_bytes() == DATA


def refused(path: Path, name: str = "Set") -> str:
    """The one line that fetch() refuses with."""
    with pytest.raises(SettingsError) as caught:
        sources.fetch(name, path.parent, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_hand(line: str, path: Path) -> bool:
    """Whether a line says what to download by hand from where, and under which name to put it where."""
    return line.endswith(
        f"download it by hand from https://example.org/set (the big button), save it as {path} and run the same again"
    )


def present(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()} if path.parent.exists() else set()


# ---- the registry


def test_the_registry_is_as_the_paper_counts():
    counts = {(h.dataset, h.split): h.count for source in sources.sources() for h in source.holds if h.count}
    assert counts == {
        ("BSD400", "train"): 400,
        ("CBSD68", "test"): 68,
        ("WED", "train"): 4744,
        ("Urban100", "test"): 100,
        ("Rain100L", "train"): 200,
        ("Rain100L", "test"): 100,
        ("OTS", "train"): 72_135,
        ("SOTS", "test"): 500,
    }
    sums = {}
    for source in sources.sources():
        for holding in source.holds:
            if holding.count:
                sums.setdefault((holding.dataset, holding.split), set()).add(holding.count)
    assert all(len(counts) == 1 for counts in sums.values())  # no source contradicts another


def test_each_source_says_what_one_must_know():
    listed = sources.sources()
    files = [file for source in listed for file in source.files]
    assert len({source.name for source in listed}) == len(listed)
    assert len({file.name.casefold() for file in files}) == len(files)  # they may share a folder
    for source in listed:
        for text in (source.title, source.by_hand, source.licence, source.citation):
            assert text and "\n" not in text
        assert source.page.startswith("https://") and isinstance(source.verified, bool)
        assert source.verified or source.note
        assert {h.task for h in source.holds} <= {"denoise", "derain", "dehaze"}
        assert {h.split for h in source.holds} <= {"train", "test"}
    for file in files:
        assert Path(file.name).name == file.name and not (file.url and file.drive)
        assert file.url is None or re.match(r"https?://[^/]+/\S+$", file.url)
        assert file.drive is None or re.fullmatch(r"[\w-]{33}", file.drive)
        if file.checksum:
            algorithm, _, digest = file.checksum.partition(":")
            assert re.fullmatch(r"[0-9a-f]+", digest) and len(digest) == 2 * hashlib.new(algorithm).digest_size


def test_sources_can_be_listed():
    rows = {row["source"]: row for row in sources.list_sources()}
    assert [source.name for source in sources.sources()] == list(rows)
    assert rows["BSDS500"]["how"] == "url" and rows["MIR-L"]["how"] == "drive" and rows["OTS"]["how"] == "by hand"
    assert rows["OTS"]["holds"] == "OTS train (72,135)" and "WED train," in rows["MIR-L"]["holds"]


def test_an_unknown_source_is_answered_with_the_nearest(tmp_path):
    line = refused(tmp_path / "data" / "x", "Urban10")
    assert "'Urban10' is not one of MIR-L, BSDS500" in line and "did you mean 'Urban100'" in line
    assert not (tmp_path / "data").exists()


# ---- plain downloads


def test_a_file_comes_whole_and_only_once(server, registry, capsys):
    path = registry(url=f"{server.url}/file.zip")
    fetch(path)
    fetch(path)
    assert len(server.asked) == 1 and "Range" not in server.asked[0]
    assert present(path) == {"file.zip"}
    assert capsys.readouterr() == ("", "")


def test_redirections_are_followed(server, registry):
    fetch(registry(url=f"{server.url}/moved"))
    assert [asked["path"] for asked in server.asked] == ["/moved", "/file.zip"]


def test_the_bar_shows_people_how_long_it_takes(server, registry, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    path = registry(url=f"{server.url}/file.zip")
    server.cuts = [40_000]
    sources.fetch("Set", path.parent)
    last = re.split(r"[\r\n]+", capsys.readouterr().err.strip())[-1]  # of the second bar: it goes on from 40 %
    assert re.search(r"file\.zip: 100%.*100k/100k \[\d\d:\d\d<\d\d:\d\d", last)


def test_an_unknown_checksum_is_recorded_and_held_to(server, registry, capsys):
    path = registry(url=f"{server.url}/file.zip", checksum=None)
    fetch(path)
    assert f"file.zip: no checksum is published; recorded {SHA256}" in capsys.readouterr().err
    assert json.loads((path.parent / "checksums.json").read_text()) == {"file.zip": SHA256}
    fetch(path)
    assert capsys.readouterr().err == ""
    path.write_bytes(an_archive(1))
    line = refused(path)
    assert f"{path} has sha256 " in line and "as recorded in" in line and "remove it and run the same again" in line
    path.unlink()
    server.data = an_archive(1)
    line = refused(path)
    assert "does not match" in line and "as recorded in" in line and by_hand(line, path)
    assert present(path) == {"checksums.json"}


def test_records_of_other_files_stay(server, registry):
    path = registry(url=f"{server.url}/file.zip", checksum=None)
    path.parent.mkdir()
    (path.parent / "checksums.json").write_text('{"other.zip": "sha256:00"}')
    fetch(path)
    assert json.loads((path.parent / "checksums.json").read_text()) == {"file.zip": SHA256, "other.zip": "sha256:00"}


def test_damaged_records_are_named(server, registry):
    path = registry(url=f"{server.url}/file.zip", checksum=None)
    path.parent.mkdir()
    for text in ("{", "[]", "\0"):
        (path.parent / "checksums.json").write_text(text)
        assert "checksums.json: is damaged" in refused(path)
    assert not server.asked


def test_md5_will_do(server, registry):
    fetch(registry(url=f"{server.url}/file.zip", checksum="md5:" + hashlib.md5(DATA).hexdigest()))


def test_a_broken_connection_is_taken_up_where_it_broke(server, registry):
    server.cuts = [40_000, 40_000]
    path = registry(url=f"{server.url}/file.zip")
    fetch(path)
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=40000-", "bytes=80000-"]
    assert present(path) == {"file.zip"}


def test_what_came_before_giving_up_is_kept_for_the_next_time(server, registry):
    server.cuts = [10_000] * sources.TRIES
    path = registry(url=f"{server.url}/file.zip")
    line = refused(path)
    assert "file.zip did not come (the connection broke; 50,000 bytes are kept)" in line and by_hand(line, path)
    assert "run the same again to go on from there, or download" in line
    assert present(path) == {"file.zip.part"}
    fetch(path)
    assert server.asked[-1]["Range"] == "bytes=50000-" and present(path) == {"file.zip"}


def test_a_connection_that_brings_nothing_is_given_up_at_once(server, registry):
    server.cuts = [0] * sources.TRIES
    path = registry(url=f"{server.url}/file.zip")
    line = refused(path)
    assert "did not come (the connection broke)" in line and "go on from there" not in line and by_hand(line, path)
    assert len(server.asked) == 1


def interrupted_at(server: Server, path: Path, size: int) -> None:
    server.cuts = [size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "TRIES", 1)
        refused(path)
    assert (path.parent / f"{path.name}.part").stat().st_size == size
    server.asked.clear()


@pytest.mark.parametrize("heeds", [True, False], ids=["If-Range", "no If-Range"])
def test_pieces_of_two_versions_are_never_put_together(server, registry, heeds):
    server.data, server.if_range = an_archive(1), heeds
    path = registry(url=f"{server.url}/file.zip", checksum=None)
    interrupted_at(server, path, 40_000)
    server.data, server.modified = DATA, NEW
    fetch(path)
    assert server.asked[0]["Range"] == "bytes=40000-" and server.asked[0]["If-Range"] == OLD


@pytest.mark.parametrize("how", ["no ranges", "no date", "no such date"])
def test_servers_that_cannot_go_on_start_anew(server, registry, how):
    server.ranges = how != "no ranges"
    server.modified = {"no ranges": OLD, "no date": "", "no such date": "yesterday"}[how]
    path = registry(url=f"{server.url}/file.zip")
    interrupted_at(server, path, 40_000)
    fetch(path)


def test_a_part_that_is_complete_is_not_fetched_again(server, registry):
    path = registry(url=f"{server.url}/file.zip")
    path.parent.mkdir()
    (path.parent / "file.zip.part").write_bytes(DATA)
    server.if_range = False
    fetch(path)
    assert len(server.asked) == 1


def test_a_part_that_is_too_long_is_fetched_again(server, registry):
    path = registry(url=f"{server.url}/file.zip")
    path.parent.mkdir()
    (path.parent / "file.zip.part").write_bytes(DATA + b"x")
    server.if_range = False
    fetch(path)
    assert len(server.asked) == 2


def test_a_label_of_compression_is_no_reason_to_unpack(server, registry):
    """Some servers call the gzip of a .tgz its Content-Encoding, and clients undo it."""
    server.data = gzip.compress(b"a tar, say")
    server.headers["Content-Encoding"] = "x-gzip"
    path = registry(url=f"{server.url}/set.tgz", checksum=None)
    sources.fetch("Set", path.parent, progress=False)
    assert path.read_bytes() == server.data


def test_an_early_end_is_noticed_whoever_reads(server, registry, monkeypatch):
    """urllib3 2 counts the bytes itself; this one does not, as urllib3 1 did not."""
    import urllib3

    path = registry(url=f"{server.url}/file.zip")
    monkeypatch.setattr(sources, "TRIES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            urllib3.response.HTTPResponse, "stream", lambda answer, *_, **__: [answer.read(1000, decode_content=False)]
        )
        assert "did not come (the connection broke; 1,000 bytes are kept)" in refused(path)
    fetch(path)


@pytest.mark.parametrize(
    "status, words", [(401, "Unauthorized"), (403, "Forbidden"), (404, "Not Found"), (503, "Serv")]
)
def test_a_refusal_says_what_to_do_by_hand(server, registry, status, words):
    server.status = status
    path = registry(url=f"{server.url}/file.zip")
    line = refused(path)
    assert f"source 'Set': file.zip was refused (HTTP {status} {words}" in line and by_hand(line, path)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "data, type, words",
    [
        (PAGE, "text/html; charset=utf-8", "a web page came instead"),
        (PAGE, "application/octet-stream", "is a web page, not an archive"),
        (b'{"error": "quota"}', "application/json", "is of no known kind"),
        (b" ", "application/zip", "is of no known kind"),
    ],
)
def test_a_licence_to_click_says_what_to_do_by_hand(server, registry, data, type, words):
    server.data, server.headers["Content-Type"] = data, type
    path = registry(url=f"{server.url}/file.zip")
    line = refused(path)
    assert words in line and by_hand(line, path)
    assert not path.parent.exists()


def test_a_wrong_checksum_leaves_nothing(server, registry):
    path = registry(url=f"{server.url}/file.zip", checksum="sha256:" + "0" * 64)
    line = refused(path)
    assert "SHA256 hash of downloaded file (file.zip) does not match" in line and by_hand(line, path)
    assert not path.parent.exists()


def test_without_a_network_it_says_so(server, registry):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        path = registry(url=f"http://127.0.0.1:{unused.getsockname()[1]}/file.zip")
        line = refused(path)
    assert "file.zip did not come (no connection)" in line and by_hand(line, path)


def test_an_address_that_is_none_is_refused(server, registry):
    path = registry(url="http://")
    assert "file.zip did not come (" in (line := refused(path)) and by_hand(line, path)


def test_a_silent_server_is_not_waited_for(server, registry, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    server.stall.clear()
    path = registry(url=f"{server.url}/file.zip")
    monkeypatch.setattr(sources, "TRIES", 1)
    line = refused(path)
    assert "no answer within 0.3 s; 28,672 bytes are kept" in line and by_hand(line, path)  # 7 whole chunks
    server.stall.set()
    fetch(path)
    assert server.asked[-1]["Range"] == "bytes=28672-"


def test_an_interrupt_leaves_the_part_alone(server, registry):
    """Ctrl-C in a process of its own; started in the background, it would not hear it by default."""
    path = registry(url=f"{server.url}/file.zip")
    server.stall.clear()
    code = (
        "import signal, sys; from pathlib import Path; from data_prep import sources\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sources.REGISTRY, sources.CHUNK = Path(sys.argv[1]), 1000\n"
        "sources.fetch('Set', Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, sources.REGISTRY, path.parent], stderr=subprocess.PIPE, text=True
    )
    part = path.with_name("file.zip.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 30_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].endswith("KeyboardInterrupt\n")
    assert present(path) == {"file.zip.part"}
    server.stall.set()
    fetch(path)
    assert server.asked[-1]["Range"] == "bytes=30000-" and present(path) == {"file.zip"}


def test_a_full_disk_is_named_and_what_fitted_is_kept(server, registry):
    """A limit to the size of files stands in for a full disk."""
    resource = pytest.importorskip("resource")
    path = registry(url=f"{server.url}/file.zip")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        line = refused(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{path} cannot be written (File too large)" in line
    assert present(path) == {"file.zip.part"}
    fetch(path)


# ---- what is there already


def test_a_file_put_there_by_hand_is_taken(registry):
    path = registry()
    line = refused(path)
    assert "source 'Set': file.zip cannot be fetched by a program; download" in line and by_hand(line, path)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_bytes(DATA)
    fetch(path)
    assert present(path) == {"file.zip"}


@pytest.mark.parametrize(
    "data, words",
    [(PAGE, "is a web page"), (b"", "is empty"), (DATA[:-1], f"has sha256 .* not {SHA256[7:]}; remove it")],
)
def test_a_wrong_file_put_there_by_hand_is_refused_and_left_alone(registry, data, words):
    path = registry(url="http://127.0.0.1:9/never.zip")
    path.parent.mkdir()
    path.write_bytes(data)
    line = refused(path)
    assert re.search(words, line) and f"{path} " in line and "remove it and run the same again" in line
    assert path.read_bytes() == data and present(path) == {"file.zip"}


def test_a_file_put_there_by_hand_is_recorded_once_it_is_known_to_be_whole(registry, capsys):
    path = registry(checksum=None)
    path.parent.mkdir()
    path.write_bytes(DATA[:-30])
    assert f"archive {path}: is damaged" in refused(path) and present(path) == {"file.zip"}
    path.write_bytes(DATA)
    fetch(path)
    assert json.loads((path.parent / "checksums.json").read_text()) == {"file.zip": SHA256}


def test_of_a_kind_that_cannot_be_read_through_nothing_is_recorded(registry):
    path = registry(checksum=None, name="file.rar")
    path.parent.mkdir()
    path.write_bytes(b"Rar!" + bytes(100))
    sources.fetch("Set", path.parent, progress=False)
    assert present(path) == {"file.rar"}


def test_what_is_in_the_way_is_named(registry, tmp_path):
    path = registry()
    path.mkdir(parents=True)
    assert "file.zip: cannot be read (Is a directory)" in refused(path)
    (tmp_path / "afile").write_text("x")
    assert "cannot be written (File exists)" in refused(tmp_path / "afile" / "file.zip")
    assert "cannot be written (Not a directory)" in refused(tmp_path / "afile" / "deep" / "file.zip")


def test_two_do_not_fetch_into_one_folder_at_once(registry):
    path = registry()
    path.parent.mkdir()
    with filelock.FileLock(path.parent / ".fetch.lock"):
        assert "another fetch is at work" in refused(path)


@pytest.mark.parametrize("package, where", [("pooch", {"url": "http://127.0.0.1:9/x"}), ("gdown", {"drive": "x" * 33})])
def test_a_missing_package_is_named_with_its_remedy(registry, monkeypatch, package, where):
    path = registry(**where)
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(path) == f"package {package} is not installed: pip install mirl-study[data]"
    assert not path.parent.exists()


# ---- Google Drive


class FakeGdown(types.ModuleType):
    """Stands in for gdown: leaves what a test gives it, as gdown does, or raises."""

    def __init__(self, data: bytes | None = None, error: BaseException | None = None) -> None:
        super().__init__("gdown")
        self.data, self.error, self.called = data, error, {}

    def download(self, **arguments) -> str:
        self.called = arguments
        if self.error:
            Path(arguments["output"] + "abcd1234.part").write_bytes(DATA[:5000])
            raise self.error
        if self.data is not None:
            Path(arguments["output"]).write_bytes(self.data)
        return arguments["output"]


def drive_by_hand(line: str, path: Path) -> bool:
    return line.endswith(
        f"download it by hand from https://drive.google.com/file/d/{'x' * 33}/view (or https://example.org/set: "
        f"the big button), save it as {path} and run the same again"
    )


def test_drive_with_a_fake_gdown_gives_a_file(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", gdown := FakeGdown(DATA))
    path = registry(drive="x" * 33)
    fetch(path)
    assert gdown.called["id"] == "x" * 33 and gdown.called["resume"] and gdown.called["quiet"]
    assert present(path) == {"file.zip"}


def test_drive_with_a_fake_gdown_over_quota_says_what_to_do_by_hand(registry, monkeypatch):
    error = Exception(
        "Failed to retrieve file url:\n\n\tToo many users have viewed or downloaded this file recently.\n"
    )
    monkeypatch.setitem(sys.modules, "gdown", FakeGdown(error=error))
    path = registry(drive="x" * 33)
    line = refused(path)
    assert "not given out by Google Drive (Failed to retrieve file url: Too many users have viewed" in line
    assert "run the same again to go on from there, or" in line and drive_by_hand(line, path)
    assert present(path) == {"file.zip.partabcd1234.part"}


@pytest.mark.parametrize(
    "data, words",
    [(PAGE, "is a web page"), (an_archive(1), "has sha256 "), (None, "cannot be read (No such file")],
)
def test_drive_with_a_fake_gdown_that_brings_something_else(registry, monkeypatch, data, words):
    monkeypatch.setitem(sys.modules, "gdown", FakeGdown(data))
    path = registry(drive="x" * 33)
    line = refused(path)
    assert words in line and (data is None or drive_by_hand(line, path))
    assert not path.parent.exists()


def test_drive_shows_people_how_far_it_is(registry, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gdown", gdown := FakeGdown(DATA))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    path = registry(drive="x" * 33)
    sources.fetch("Set", path.parent)
    assert gdown.called["quiet"], "its own words are not wanted"
    with pytest.raises(SystemExit):  # as if the server broke off
        gdown.download = lambda progress, **_: (progress(50_000, 100_000), sys.exit())
        path.unlink()
        sources.fetch("Set", path.parent)
    assert "file.zip:  50%" in capsys.readouterr().err


def test_drive_with_a_fake_gdown_on_a_full_disk(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", FakeGdown(error=OSError(28, "No space left on device")))
    path = registry(drive="x" * 33)
    assert f"{path} cannot be written (No space left on device)" in refused(path)


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    """The real gdown, with Google Drive's address led to the server of this test."""
    gdown = pytest.importorskip("gdown", reason="the optional extra `data` is not installed")
    import requests

    ask = requests.Session.get
    monkeypatch.setattr(
        requests.Session,
        "get",
        lambda session, url, **how: ask(session, url.replace("https://drive.google.com", server.url), **how),
    )
    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies.txt"))
    inspect.signature(gdown.download).bind(
        id="", output="", quiet=True, resume=True, timeout=1.0, retries=1, progress=print
    )
    server.headers |= {"Content-Disposition": 'attachment; filename="whatever.zip"'}
    return server


def test_drive_with_the_real_gdown_and_a_broken_connection(drive, registry):
    drive.data, drive.cuts = DATA + bytes(10**6), [800_000]  # gdown has chunks of half a MiB
    path = registry(drive="x" * 33, checksum="sha256:" + hashlib.sha256(drive.data).hexdigest())
    sources.fetch("Set", path.parent, progress=False)
    assert drive.asked[0]["path"] == f"/uc?id={'x' * 33}" and drive.asked[-1]["Range"] == "bytes=524288-"
    assert path.read_bytes() == drive.data and present(path) == {"file.zip"}


def test_drive_with_the_real_gdown_over_quota(drive, registry):
    path = registry(drive="x" * 33)
    drive.headers = {"Content-Type": "text/html"}
    drive.data = b'<html>\n<p class="uc-error-subcaption">Too many users have viewed this file recently.</p>\n</html>'
    line = refused(path)
    assert "Too many users have viewed" in line and drive_by_hand(line, path)
    assert not path.parent.exists()


def test_drive_with_the_real_gdown_and_no_network(drive, registry, capfd, monkeypatch):
    monkeypatch.setattr(sys.modules["gdown.download"], "_wait_or_cancel", lambda **_: None)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(Server, "url", f"http://127.0.0.1:{unused.getsockname()[1]}")
        path = registry(drive="x" * 33)
        with pytest.raises(SettingsError) as caught:
            sources.fetch("Set", path.parent)
    line = str(caught.value)
    assert "was not given out by Google Drive (no connection)" in line and drive_by_hand(line, path)
    assert capfd.readouterr() == ("", "")


# ---- the way on


def test_what_is_fetched_can_be_unpacked(server, registry, tmp_path):
    from data_prep import archives

    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w:gz") as file:
        info = tarfile.TarInfo("BSR/1.jpg")
        info.size = 1000
        file.addfile(info, io.BytesIO(DATA))
    server.data = out.getvalue()
    path = registry(url=f"{server.url}/BSR.tgz", checksum=None, name="BSR.tgz")
    (archive,) = sources.fetch("Set", path.parent, progress=False)
    assert archives.unpack(archive, tmp_path / "images") == [tmp_path / "images" / "BSR" / "1.jpg"]
    assert os.listdir(tmp_path / "images" / "BSR") == ["1.jpg"]
