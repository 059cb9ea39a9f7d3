"""Archives unpacked by one rule on every Python: only files and folders, only below their folder, all or nothing."""

import gzip
import struct
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import IO, NamedTuple

from data_prep.files import new_folder
from mirl_study.settings import SettingsError

CHUNK = 2**20  # bytes; the most that is ever asked for at once
DEPTH = 32  # folders within folders
TAIL = 16  # chunks that may follow the end of a tar: tools pad to whole tape blocks
UNPACKED = ("zip", "tar", "tar.gz")
MAGIC = {  # how files of a kind begin
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "tar.gz",
    b"Rar!": "RAR",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"<": "a web page",
}
DAMAGE = (  # what the readers of the standard library say of archives that are not as they should be
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)
UNWANTED = {
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.LNKTYPE: "is a hard link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
}


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        name: as the archive spells it.
        size: bytes that its header claims; None for a folder.
        open: gives its bytes.
        unwanted: why it must not be unpacked; empty if it may.
    """

    name: str
    size: int | None
    open: Callable[[], IO[bytes]]
    unwanted: str


class _Refused(Exception):
    """Why an archive is refused; `_fill` adds which, and at which member."""


class _Caps(NamedTuple):
    """The most that may come out of an archive of ``size`` bytes."""

    files: int
    bytes: int
    ratio: float
    size: int

    def check(self, written: int) -> None:
        if written > self.bytes:
            raise _Refused(f"brings it to more than {self.bytes:,} bytes")
        if written > self.ratio * self.size:
            raise _Refused(f"brings it to more than {self.ratio:g} times the archive's size")


def kind(path: Path) -> str:
    """What a file is by its first bytes, whatever its name.

    Returns:
        ``zip``, ``tar`` or ``tar.gz``, which `unpack` can read; or other words: ``RAR``, ``a web page``, ``empty``...

    Raises:
        SettingsError: it is not a file or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise SettingsError(f"archive {path}: cannot be read ({error.strerror})") from error
    if head[257:262] == b"ustar":
        return "tar"
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next(
        (name for magic, name in MAGIC.items() if begin.startswith(magic)), "of no known kind" if head else "empty"
    )


def unpack(
    archive: Path,
    folder: Path,
    *,
    max_files: int = 200_000,
    max_bytes: int = 50 * 2**30,
    max_ratio: float = 200,
) -> list[Path]:
    """Unpacks a zip, tar or tar.gz into a new folder, whole or not at all.

    Nothing but regular files and folders is accepted, with names that stay below the folder on every system. The caps
    hold for the bytes as they are written, not for what headers claim. Modes, owners and times are not taken over.

    Args:
        archive: its first bytes decide what it is, not its name.
        folder: must not be there, or be empty.
        max_files: most files and folders.
        max_bytes: most bytes in all files.
        max_ratio: most bytes in all files, as a multiple of the archive's own size.

    Returns:
        The files, sorted.

    Raises:
        SettingsError: one line naming archive and member; nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    members = _members(archive)
    was_empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if was_empty:
        folder.rmdir()
    caps = _Caps(max_files, max_bytes, max_ratio, archive.stat().st_size)
    try:
        with new_folder(folder) as temporary:
            files = _fill(archive, members, temporary, caps)
    except BaseException:
        if was_empty:
            folder.mkdir(exist_ok=True)
        raise
    return sorted(folder / file for file in files)


def check(archive: Path) -> None:
    """Reads a zip, tar or tar.gz through to its end and writes nothing.

    Raises:
        SettingsError: one line: what ``unpack`` would refuse, but for its caps.
    """
    _fill(archive, _members(archive), None, _Caps(sys.maxsize, sys.maxsize, float("inf"), archive.stat().st_size))


def _members(archive: Path) -> Callable[[Path], Iterator[Member]]:
    """What gives the members of an archive, by its kind."""
    what = kind(archive)
    if what in UNPACKED:
        return _zip if what == "zip" else _tar
    way = "unpack it by hand and name the folder" if what in ("RAR", "7-Zip", "bzip2", "xz") else "download it again"
    raise SettingsError(f"archive {archive}: is {what}; zip, tar and tar.gz can be unpacked here; {way}")


def _fill(archive: Path, members: Callable[[Path], Iterator[Member]], folder: Path | None, caps: _Caps) -> list[Path]:
    """Writes all members into an empty folder, if there is one; returns the files' paths; every failure is one line."""
    name, written, tree, files = "", 0, _Tree(caps.files), []
    try:
        with closing(members(archive)) as entries:
            for member in entries:
                name = member.name
                path = tree.add(member)
                if folder:
                    (folder / path if member.size is None else folder / path.parent).mkdir(parents=True, exist_ok=True)
                if member.size is None:
                    continue
                before = written
                with member.open() as source, (folder / path).open("xb") if folder else nullcontext() as file:
                    while chunk := source.read(CHUNK):
                        written += len(chunk)
                        caps.check(written)
                        if file:
                            file.write(chunk)
                if written - before != member.size:
                    raise _Refused(f"has {written - before:,} bytes where its header says {member.size:,}")
                files.append(path)
        if not files:
            name = ""
            raise _Refused("holds no file")
    except _Refused as error:
        reason, cause = str(error), error
    except DAMAGE as error:
        reason, cause = f"is damaged ({_line(error)}); download it again", error
    except OSError as error:
        reason, cause = f"cannot be unpacked ({error.strerror or error})", error
    else:
        return files
    raise SettingsError(f"archive {archive}: {f'member {_short(name)} ' if name else ''}{reason}") from cause


def _zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            # orig_filename: zipfile cuts the other at a NUL and, on Windows, turns backslashes round
            name, mode = info.orig_filename, S_IFMT(info.external_attr >> 16)
            unwanted = ""
            if mode not in (0, S_IFREG, S_IFDIR):
                unwanted = "is a symbolic link" if mode == S_IFLNK else "is neither a file nor a folder"
            elif info.flag_bits & 0x1:
                unwanted = "is encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                unwanted = f"is compressed by method {info.compress_type}; only 0 (stored) and 8 (deflated) are read"
            size = None if name.endswith(("/", "\\")) or mode == S_IFDIR else info.file_size
            yield Member(name, size, partial(file.open, info), unwanted)


def _tar(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as raw, gzip.GzipFile(fileobj=raw) if kind(archive) == "tar.gz" else raw as plain:
        stream = _Forward(plain)
        with tarfile.open(fileobj=stream, mode="r:") as file:
            for info in file:
                unwanted = UNWANTED.get(info.type, "")
                if not unwanted and info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                    unwanted = "is neither a file nor a folder"
                elif info.issparse() or info.size < 0:
                    unwanted = "is a file with holes or of a negative size"
                yield Member(info.name, None if info.isdir() else info.size, partial(file.extractfile, info), unwanted)
            # tarfile takes any header that it cannot read for the end, so a damaged archive would just seem shorter
            if stream.last != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends without the mark of its end")
            if all(stream.read(CHUNK) for _ in range(TAIL)):  # to the last byte: the checksum of gzip comes there
                raise tarfile.ReadError("there is more after its end")


class _Forward:
    """A stream for tarfile that goes forward only, in bites: lying headers make it neither loop nor fill the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.position, self.last = stream, 0, b""

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.last = self.stream.read(size)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a header points back")
        while self.position < position:
            if not self.read(min(CHUNK, position - self.position)):
                raise tarfile.ReadError("unexpected end of data")


class _Tree:
    """The names so far, held against each other as the least particular file system would."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: dict[str, tuple[str, bool]] = {}  # folded path: how it was spelled, whether it is a folder

    def add(self, member: Member) -> Path:
        """The path of a member below the folder; refuses what must not be unpacked."""
        if member.unwanted:
            raise _Refused(member.unwanted)
        parts, is_folder = _parts(member.name), member.size is None
        if not parts and not is_folder:
            raise _Refused("has no name")
        for depth in range(1, len(parts) + 1):
            path, last = "/".join(parts[:depth]), depth == len(parts)
            folder_now = is_folder or not last
            key = unicodedata.normalize("NFC", path.casefold())
            if key not in self.seen:
                self.seen[key] = path, folder_now
                continue
            spelling, folder_before = self.seen[key]
            if spelling != path:
                raise _Refused(f"clashes with {_short(spelling)} where case or accents do not tell names apart")
            if not (folder_before and folder_now):
                raise _Refused("is there twice" if last else f"lies in {_short(path)}, which is a file")
        if len(self.seen) > self.most:
            raise _Refused(f"brings it to more than {self.most:,} files and folders")
        return Path(*parts)


def _parts(name: str) -> tuple[str, ...]:
    """A member's name in parts that mean the same on every system."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise _Refused("has a control character or an undecodable one in its name")
    spelled = name.replace("\\", "/")
    if spelled.startswith("/"):
        raise _Refused("has an absolute path")
    if ":" in spelled:
        raise _Refused("has a colon in its name, as of a drive")
    parts = tuple(part for part in spelled.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _Refused("climbs out of its folder by '..'")
    if any(part != part.rstrip(". ") for part in parts):
        raise _Refused("has a name that ends in a dot or a space, which not every system keeps")
    if len(parts) > DEPTH or any(len(part.encode()) > 255 for part in parts):
        raise _Refused(f"lies deeper than {DEPTH} folders or has a name longer than 255 bytes")
    return parts


def _short(name: str) -> str:
    """A name fit for one line."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
