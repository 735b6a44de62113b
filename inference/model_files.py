"""Model files on disk: fetched, checked against their hash, put in place whole or not at all."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference import wheels
from inference.catalogue import CATALOGUE, Entry, WheelMember
from inference.download import Advance, origin_of
from inference.download import download as fetch_from_web
from inference.engines.base import EngineError
from inference.hashes import BLOCK, sha256_of
from inference.sources import LocalFile, ModelFileError, Source, WebFile

if TYPE_CHECKING:
    from inference.models import Release

KEPT_SECONDS = 7 * 24 * 3600  # of an unfinished download nobody goes on with

Check = Callable[[Path, str], None]
"""Given a whole file and its SHA-256; raises EngineError when it may not be put in place."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that is to be in the folder: what it must be, and the command that fetches it.

    An empty hash and a size of 0 are not known yet.
    """

    path: Path
    sha256: str = ""
    size: int = 0
    cure: str = ""


class FolderBusyError(ModelFileError):
    def __init__(self) -> None:
        super().__init__("Another file is being fetched into this folder. Wait until that is done.")


def of_entry(entry: Entry, folder: Path) -> Wanted:
    cure = f"./manage.py models pull {entry.slug}"
    return Wanted(folder / entry.file_name, entry.file_sha256, entry.file_bytes, cure)


def of_release(release: "Release") -> Wanted:
    slug = release.model.slug
    cure = f"./manage.py models pull {slug if slug in CATALOGUE else f'SOURCE --name {slug}'}"
    return Wanted(release.weights_path, release.weights_sha256, release.weights_bytes, cure)


def verify(wanted: Wanted, advance: Advance = lambda done, total: None) -> None:
    """Raise ModelFileError unless the file is there and has the right hash."""
    path = wanted.path
    if not path.exists():
        raise ModelFileError(f"{path} is missing. Fetch it with: {wanted.cure}")
    if path.stat().st_size != wanted.size or sha256_of(path, advance) != wanted.sha256:
        raise ModelFileError(
            f"{path} is damaged: it is not the file it should be. Delete it and fetch it "
            f"again with: {wanted.cure}"
        )


def is_verified(wanted: Wanted) -> bool:
    try:
        verify(wanted)
    except ModelFileError:
        return False
    return True


def fetch(
    source: Source,
    wanted: Wanted,
    download: Advance,
    unpack: Advance,
    check: Check = lambda path, sha256: None,
) -> str:
    """Put the file in place and return its SHA-256. Raises ModelFileError, EngineError.

    Nothing is ever half-written. What is unfinished lives in `.partial`: a download that broke
    off is gone on with by the next pull, within a week; a wheel that came whole is not fetched
    twice if its own hash is known.
    `check` is given the whole file and its hash before it is put in place.
    """
    partial = wanted.path.parent / ".partial"
    with _clear_errors(wanted.path.parent):
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
    with _clear_errors(wanted.path.parent), _alone(wanted.path.parent):
        partial.mkdir(exist_ok=True)
        try:
            _check_space(wanted)
            part = partial / wanted.path.name
            _bring(source, part, download, unpack)
            found = _checked(source, part, wanted, check)
            _put_in_place(part, wanted.path)
        finally:
            _tidy(partial)
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two at once would tidy each other's unfinished files away."""
    # A file to write to: what a folder on NFS would be locked with.
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:  # another user's, which does as well on disks of this machine
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderBusyError from error


def _bring(source: Source, part: Path, download: Advance, unpack: Advance) -> None:
    match source:
        case WheelMember():
            wheels.bring(source, part, download, unpack)
        case WebFile():
            fetch_from_web(source.address, part, download, public_only=source.public_only)
        case LocalFile():
            _copy(source.path, part, download)


def _copy(path: Path, part: Path, advance: Advance) -> None:
    """Not a second name for the same file, which its owner could write to later."""
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file that can be read.")
    part.unlink(missing_ok=True)
    size = path.stat().st_size
    _check_room(size, part.parent)
    with path.open("rb") as source, part.open("wb") as target:
        while block := source.read(BLOCK):
            target.write(block)
            advance(target.tell(), size)


def _checked(source: Source, part: Path, wanted: Wanted, check: Check) -> str:
    try:
        found = sha256_of(part)
        if wanted.sha256 and found != wanted.sha256:
            raise ModelFileError(
                f"The file from {source} is not the one it should be: its SHA-256 is {found}. "
                "It was thrown away."
            )
        check(part, found)
    except (ModelFileError, EngineError):
        part.unlink()
        raise
    return found


def _put_in_place(part: Path, target: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    _sync_folder(target.parent)
    origin_of(part).unlink(missing_ok=True)
    for wheel in part.parent.glob("*.whl"):
        wheel.unlink()


def _tidy(partial: Path) -> None:
    """Remove all but a wheel that came whole and downloads that can be gone on with."""
    for path in [path for path in partial.iterdir() if _is_old(path)]:
        path.unlink(missing_ok=True)
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix not in (".whl", ".from") and not origin_of(path).exists():
            path.unlink()
    for origin in partial.glob("*.from"):
        if not origin.with_suffix("").exists():
            origin.unlink()
    if not any(partial.iterdir()):
        partial.rmdir()


def _is_old(path: Path) -> bool:
    return path.is_file() and path.stat().st_mtime < time.time() - KEPT_SECONDS


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelFileError(
                f"The disk is full: no room in {folder}. Free some space and try again."
            ) from error
        raise ModelFileError(f"{folder} cannot be written to: {error.strerror}.") from error


def _check_space(wanted: Wanted) -> None:
    _check_room(2 * wanted.size, wanted.path.parent)


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed - free} bytes short")


def _sync_folder(folder: Path) -> None:
    """A rename is only durable once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
