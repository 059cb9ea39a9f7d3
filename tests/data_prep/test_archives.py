"""Unpacking: ordinary archives as they are, and from the others one line and no trace."""

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from data_prep import archives
from mirl_study.settings import SettingsError

PHOTOGRAPH = random.Random(0).randbytes(3000)  # as incompressible as one
FEW = {"max_files": 20, "max_bytes": 100_000, "max_ratio": 50}


def zipped(entries: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = method, (stat.S_IFREG | 0o644) << 16
            info.filename = name  # as it is: the constructor cuts at NUL
            file.writestr(info, data)
    return out.getvalue()


def zip_of_mode(mode: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("good.png", PHOTOGRAPH)
        info = zipfile.ZipInfo("bad")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    return out.getvalue()


def encrypted_zip() -> bytes:
    data = bytearray(zipped([("good.png", PHOTOGRAPH), ("bad.png", PHOTOGRAPH)]))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the second local and central header
        data[data.rindex(mark) + offset] |= 1
    return bytes(data)


def zip_claiming(size: int) -> bytes:
    """A zip whose headers claim another size for its second member than it has."""
    data = bytearray(zipped([("good.png", PHOTOGRAPH), ("bad.png", PHOTOGRAPH)], zipfile.ZIP_DEFLATED))
    struct.pack_into("<L", data, data.rindex(b"PK\x03\x04") + 22, size)
    struct.pack_into("<L", data, data.rindex(b"PK\x01\x02") + 24, size)
    return bytes(data)


def flipped(data: bytes, where: float) -> bytes:
    at = int(len(data) * where)
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def tarred(*extra: tarfile.TarInfo, compress: bool = False, data: bytes = b"", **options) -> bytes:
    """A tar of one good file and the given members; ``data`` is the content of those that have a size."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if compress else "w", **options) as file:
        for info in (member("good.png", size=len(PHOTOGRAPH)), *extra):
            file.addfile(info, io.BytesIO(PHOTOGRAPH if info.name == "good.png" else data))
    return out.getvalue()


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, link, size
    return info


def bad_tar(**fields) -> bytes:
    return tarred(member("bad", **fields))


def header(name: str, type: bytes, size: int) -> bytes:
    return member(name, type, size=size).tobuf(tarfile.GNU_FORMAT)


def tar_of_huge_name() -> bytes:
    """A small tar.gz whose header for a long name claims, and has, far more than a name."""
    return gzip.compress(header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2**26) + bytes(2**26))


def tar_claiming(size: int) -> bytes:
    data = bytearray(tarred())
    data[:512] = header("good.png", tarfile.REGTYPE, size)
    return bytes(data)


def nested(depth: int) -> str:
    return "a/" * depth + "x.png"


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    # name: (archive, what its line says of which member, how much of it)
    "zip: up": (lambda: zipped([("good.png", PHOTOGRAPH), ("../x", b"1")]), "../x", "climbs out"),
    "zip: up within": (lambda: zipped([("a/../../b", b"1")]), "a/../../b", "climbs out"),
    "zip: up and down again": (lambda: zipped([("a/../b", b"1")]), "a/../b", "climbs out"),
    "zip: up by backslash": (lambda: zipped([("a\\..\\..\\b", b"1")]), "..", "climbs out"),
    "zip: up, folder only": (lambda: zipped([("../x/", b"")]), "../x/", "climbs out"),
    "zip: absolute": (lambda: zipped([("/tmp/x", b"1")]), "/tmp/x", "absolute"),
    "zip: absolute by backslash": (lambda: zipped([("\\\\host\\x", b"1")]), "host", "absolute"),
    "zip: drive letter": (lambda: zipped([("C:\\x", b"1")]), "C:", "colon"),
    "zip: drive letter alone": (lambda: zipped([("C:x", b"1")]), "C:x", "colon"),
    "zip: hidden stream": (lambda: zipped([("x.png:evil", b"1")]), "x.png:evil", "colon"),
    "zip: NUL": (lambda: zipped([("x.png\0.txt", b"1")]), "x.png\\x00.txt", "control character"),
    "zip: line break": (lambda: zipped([("x\ny", b"1")]), "x\\ny", "control character"),
    "zip: dots at the end": (lambda: zipped([("a/.../b", b"1")]), "a/.../b", "ends in a dot"),
    "zip: space at the end": (lambda: zipped([("a /b", b"1")]), "a /b", "ends in a dot or a space"),
    "zip: long name": (lambda: zipped([("x" * 300, b"1")]), "xxx...", "longer than 255"),
    "zip: deep": (lambda: zipped([(nested(40), b"1")]), "a/a/a", "deeper than 32"),
    "zip: no name": (lambda: zipped([(".", b"1")]), "'.'", "has no name"),
    "zip: twice": (lambda: zipped([("x", b"1"), ("y", b"1"), ("./x", b"2")]), "./x", "twice"),
    "zip: case": (lambda: zipped([("x.PNG", b"1"), ("X.png", b"2")]), "X.png", "clashes with 'x.PNG'"),
    "zip: case of a folder": (lambda: zipped([("A/x", b"1"), ("a/y", b"2")]), "a/y", "clashes with 'A'"),
    "zip: accents": (lambda: zipped([("\u00e9", b"1"), ("e\u0301", b"2")]), "e\u0301", "clashes"),
    "zip: file as folder": (lambda: zipped([("x", b"1"), ("x/y", b"2")]), "x/y", "which is a file"),
    "zip: folder as file": (lambda: zipped([("x/y", b"1"), ("x", b"2")]), "x", "twice"),
    "zip: symbolic link": (lambda: zip_of_mode(stat.S_IFLNK), "bad", "symbolic link"),
    "zip: device": (lambda: zip_of_mode(stat.S_IFCHR), "bad", "neither a file nor a folder"),
    "zip: pipe": (lambda: zip_of_mode(stat.S_IFIFO), "bad", "neither a file nor a folder"),
    "zip: encrypted": (encrypted_zip, "bad.png", "encrypted"),
    "zip: other method": (lambda: zipped([("x", b"1" * 99)], zipfile.ZIP_BZIP2), "x", "method 12"),
    "zip: bomb": (lambda: zipped([("good.png", PHOTOGRAPH[:99]), ("bomb", bytes(90_000))]), "bomb", "50 times"),
    "zip: big": (lambda: zipped([("x", random.Random(1).randbytes(150_000))]), "x", "100,000 bytes"),
    "zip: big together": (
        lambda: zipped([(f"{i}", random.Random(i).randbytes(30_000)) for i in range(4)]),
        "3",
        "100,000 bytes",
    ),
    "zip: many": (lambda: zipped([(f"{i}", b"1") for i in range(21)]), "20", "20 files"),
    "zip: many folders": (lambda: zipped([(f"{i}/", b"") for i in range(21)]), "20/", "20 files and folders"),
    "zip: claims less": (lambda: zip_claiming(100), "bad.png", "damaged"),
    "zip: claims more": (lambda: zip_claiming(9999), "bad.png", "3,000 bytes where its header says 9,999"),
    "zip: truncated": (lambda: zipped([("x", PHOTOGRAPH)])[:-200], "", "damaged"),
    "zip: damaged": (lambda: flipped(zipped([("x", PHOTOGRAPH)]), 0.4), "x", "damaged"),
    "zip: nothing in it": (lambda: zipped([]), "", "holds no file"),
    "zip: folders only": (lambda: zipped([("a/", b"")]), "", "holds no file"),
    "tar: up": (lambda: tarred(member("../x")), "../x", "climbs out"),
    "tar: up within": (lambda: tarred(member("a/../../b")), "a/../../b", "climbs out"),
    "tar: absolute": (lambda: tarred(member("/tmp/x")), "/tmp/x", "absolute"),
    "tar: drive letter": (lambda: tarred(member("C:\\x")), "C:", "colon"),
    "tar: undecodable": (lambda: tarred(member("x\udcff")), "x\\udcff", "undecodable"),
    "tar: link out": (lambda: bad_tar(type=tarfile.SYMTYPE, link="../../etc"), "bad", "symbolic link"),
    "tar: link within": (lambda: bad_tar(type=tarfile.SYMTYPE, link="good.png"), "bad", "symbolic link"),
    "tar: hard link": (lambda: bad_tar(type=tarfile.LNKTYPE, link="good.png"), "bad", "hard link"),
    "tar: character device": (lambda: bad_tar(type=tarfile.CHRTYPE), "bad", "device"),
    "tar: block device": (lambda: bad_tar(type=tarfile.BLKTYPE), "bad", "device"),
    "tar: pipe": (lambda: bad_tar(type=tarfile.FIFOTYPE), "bad", "pipe"),
    "tar: contiguous": (lambda: bad_tar(type=tarfile.CONTTYPE), "bad", "neither"),
    "tar: sparse": (lambda: bad_tar(type=tarfile.GNUTYPE_SPARSE), "bad", "neither"),
    "tar: twice": (lambda: tarred(member("good.png")), "good.png", "twice"),
    "tar: case": (lambda: tarred(member("Good.PNG")), "Good.PNG", "clashes"),
    "tar: many": (lambda: tarred(*(member(f"{i}") for i in range(20))), "19", "20 files"),
    "tar: bomb": (
        lambda: tarred(member("bomb", size=2**20), data=bytes(2**20), compress=True),
        "bomb",
        "100,000 bytes",
    ),
    "tar: huge name": (tar_of_huge_name, "", "header of 67,108,864 bytes"),
    "tar: names within names": (
        lambda: (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 4) + b"abc\0" + bytes(508)) * 2000 + bytes(1024),
        "",
        "damaged",
    ),
    "tar: claims less": (lambda: tar_claiming(100), "good.png", "damaged"),
    "tar: claims more": (lambda: tar_claiming(10**9), "good.png", "damaged (unexpected end of data)"),
    "tar: claims less than nothing": (lambda: tar_claiming(-512), "good.png", "holes"),
    "tar: truncated in a file": (lambda: tarred()[:2000], "good.png", "damaged (unexpected end of data)"),
    "tar: truncated between files": (lambda: tarred()[:3584], "good.png", "without the mark of its end"),
    "tar: damaged header": (lambda: flipped(tarred(member("x")), 3700 / 10240), "good.png", "without the mark"),
    "tar: data after its end": (lambda: tarred() + bytes(2**25), "", "more after its end"),
    "tar: nothing in it": (lambda: member("a", tarfile.DIRTYPE).tobuf() + bytes(1024), "", "holds no file"),
    "tar.gz: truncated": (lambda: tarred(compress=True)[:1500], "good.png", "damaged"),
    "tar.gz: truncated checksum": (lambda: tarred(compress=True)[:-6], "good.png", "damaged"),
    "tar.gz: wrong checksum": (lambda: flipped(tarred(compress=True), 1 - 7e-4), "good.png", "damaged"),
    "tar.gz: no tar in it": (lambda: gzip.compress(PHOTOGRAPH), "", "damaged"),
    "gz: nothing in it": (lambda: gzip.compress(b""), "", "damaged"),
    "not an archive": (lambda: b"some words\n" * 100, "", "of no known kind"),
    "empty": (lambda: b"", "", "is empty"),
    "a web page": (lambda: b"\n\n<!DOCTYPE html><title>Sign in</title>", "", "a web page"),
    "RAR": (lambda: b"Rar!\x1a\x07\x01\x00" + PHOTOGRAPH, "", "by hand"),
    "7-Zip": (lambda: b"7z\xbc\xaf\x27\x1c" + PHOTOGRAPH, "", "by hand"),
}


def refused(archive: Path, folder: Path, **caps) -> str:
    """The one line that unpack() refuses with."""
    with pytest.raises(SettingsError) as caught:
        archives.unpack(archive, folder, **caps)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_one_line_without_a_trace(case, tmp_path):
    build, name, words = REFUSED[case]
    archive = tmp_path / "archive.bin"  # its name says nothing
    archive.write_bytes(build())
    (tmp_path / "there").mkdir()
    before = everything(tmp_path)
    for target in ("new", "deep/new", "there"):
        line = refused(archive, tmp_path / target, **FEW)
        assert str(archive) in line and words in line and name in line
        assert len(line) < 400
        assert everything(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {
    "BSR/images/test/1.jpg": PHOTOGRAPH,
    "BSR/images/test/Fr\u00fchling \u96e8 \U0001f327.png": PHOTOGRAPH[:512],
    "BSR/images/train/.hidden": b"",
    "BSR/" + "n" * 150 + ".png": PHOTOGRAPH[:1024],
    "two  spaces.txt": b"x" * 100,
}


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("BSR") if hasattr(file, "mkdir") else file.writestr("BSR/", "")
        for name, data in FILES.items():
            file.writestr(name, data)


def as_windows_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"BSR/": b"", **FILES}.items():
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name.replace("/", "\\"), 0
            file.writestr(info, data)


def as_tar(path: Path, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, mode, format=format) as file:
        file.addfile(member("./", tarfile.DIRTYPE))
        file.addfile(member("./BSR", tarfile.DIRTYPE))
        for name, data in FILES.items():
            info = member(f"./{name}", size=len(data))
            info.mode, info.uid, info.mtime = 0o4777, 12345, 0
            file.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "build",
    [
        as_zip,
        as_windows_zip,
        as_tar,
        lambda path: as_tar(path, "w:gz"),
        lambda path: as_tar(path, "w:gz", tarfile.GNU_FORMAT),
    ],
    ids=["zip", "zip of backslashes", "tar", "tar.gz", "tar.gz, GNU"],
)
@pytest.mark.parametrize("there", [True, False])
def test_ordinary_archives_come_out_as_they_went_in(build, there, tmp_path):
    archive, folder = tmp_path / "a", tmp_path / "out" / "set"
    build(archive)
    if there:
        folder.mkdir(parents=True)
    files = archives.unpack(archive, folder)
    assert contents(folder) == FILES
    assert files == sorted(folder / name for name in FILES)
    assert all(path.stat().st_mode & 0o7111 == 0 for path in files)  # modes are not taken over
    assert everything(tmp_path) - everything(folder) and sorted(p.name for p in folder.parent.iterdir()) == ["set"]


def test_a_folder_of_ones_own_is_not_touched(tmp_path):
    as_zip(archive := tmp_path / "a.zip")
    (mine := tmp_path / "mine").mkdir()
    (mine / "thesis.txt").write_text("x")
    assert "mine: exists already" in refused(archive, mine)
    assert "thesis.txt: exists already" in refused(archive, mine / "thesis.txt")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    assert "link: exists already" in refused(archive, tmp_path / "link")
    assert "cannot be made" in refused(archive, mine / "thesis.txt" / "deep")
    assert everything(tmp_path) == {"a.zip", "mine", "mine/thesis.txt", "link"}


def test_an_archive_that_is_not_there_is_named(tmp_path):
    assert "no.zip: cannot be read (No such file" in refused(tmp_path / "no.zip", tmp_path / "out")
    assert "cannot be read (Is a directory" in refused(tmp_path, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit to the size of files stands in for a full disk: writing fails half way through a member."""
    resource = pytest.importorskip("resource")
    as_zip(archive := tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        line = refused(archive, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "1.jpg' cannot be unpacked (File" in line
    assert everything(tmp_path) == {"a.zip", "out"}


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    as_tar(archive := tmp_path / "a.tar")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(archives._Tree, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archives.unpack(archive, tmp_path / "deep" / "out")
    assert everything(tmp_path) == {"a.tar"}


@pytest.mark.parametrize("build", [tar_of_huge_name, lambda: zipped([("bomb", bytes(2**26))])])
def test_a_bomb_does_not_fill_the_memory(build, tmp_path):
    (archive := tmp_path / "a").write_bytes(build())
    tracemalloc.start()
    try:
        refused(archive, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_tar_cannot_send_its_reader_back_or_beyond_its_end():
    stream = archives._Forward(io.BytesIO(PHOTOGRAPH))
    stream.seek(2000)
    assert stream.read(10) == PHOTOGRAPH[2000:2010] and stream.tell() == 2010
    for position in (2009, 3001):
        with pytest.raises(tarfile.ReadError):
            stream.seek(position)


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_gets_out_as_anything_but_a_line(seed, tmp_path):
    """Bytes changed at random: either all files come out, or one line does and nothing else."""
    draw = random.Random(seed)
    build = draw.choice([as_zip, as_tar, lambda path: as_tar(path, "w:gz")])
    build(archive := tmp_path / "a")
    data = bytearray(archive.read_bytes())
    for _ in range(draw.choice([1, 1, 5])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    archive.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
    try:
        archives.unpack(archive, tmp_path / "out")
        assert len(contents(tmp_path / "out")) == len(FILES)
    except SettingsError as error:
        assert "\n" not in str(error)
        assert everything(tmp_path) == {"a"}
