"""Large files over HTTPS: resumed where they broke off, never larger than the disk allows."""

import contextlib
import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from inference.engines.outbound import NotPublic, file_client, public_file_client
from inference.sources import ModelFileError

TRIES = 5  # in a row that bring hardly anything
LEAST_BYTES, LEAST_SECONDS = 1 << 20, 60.0  # a line that brings less in that time is given up
PAUSE_SECONDS = 1.0  # times the number of the try
REDIRECTS = 5
RESERVE_BYTES = 64 << 20  # the database and the logs need room too
AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600))

Advance = Callable[[int, int], None]


class _BrokeOff(Exception):
    """Worth another try."""


def origin_of(part: Path) -> Path:
    """Beside an unfinished file: where it comes from, and the mark of that version of it."""
    return part.with_name(f"{part.name}.from")


def download(address: str, part: Path, advance: Advance, *, public_only: bool = False) -> None:
    """Bring the whole file to `part`, going on after what is there of it already.

    public_only: the address is somebody's who may not reach this machine's neighbours.
    Raises ModelFileError, and OSError for the disk; what has come by then is kept, unless the
    disk is full of it.
    """
    with public_file_client() if public_only else file_client() as door:
        number, most = 0, _size(part)
        while number < TRIES:
            try:
                _attempt(door, address, part, advance)
            except NotPublic as error:
                raise ModelFileError(str(error)) from error
            except (httpx.InvalidURL, ValueError) as error:
                raise ModelFileError("The server sends on to what is no address.") from error
            except (httpx.TransportError, _BrokeOff) as error:
                reason = error
                number = 1 if _size(part) > most + LEAST_BYTES else number + 1
                most = max(most, _size(part))
                time.sleep(PAUSE_SECONDS * number if number < TRIES else 0)
            else:
                return
    host = urlsplit(address).hostname
    raise ModelFileError(
        f"{host} could not be read{' to the end' if _size(part) else ''} ({reason}). "
        "Run the same command again to go on."
    )


def _attempt(door: httpx.Client, address: str, part: Path, advance: Advance) -> None:
    have, mark = _what_is_there(address, part)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark}
    with _open(door, address, headers) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("content-range", "") == f"bytes */{have}":
                return  # it is whole
            part.unlink()
            raise _BrokeOff("it has changed")
        _refuse(response, address)
        goes_on = response.headers.get("content-range", "").startswith(f"bytes {have}-")
        start = have if response.status_code == HTTPStatus.PARTIAL_CONTENT and goes_on else 0
        mark = _mark(response)
        origin_of(part).write_text(json.dumps({"address": _digest(address), "mark": mark}))
        _write(response, part, start, advance)


def _what_is_there(address: str, part: Path) -> tuple[int, str]:
    """Bytes that can be gone on after, and the mark of the version they are of."""
    try:
        origin = json.loads(origin_of(part).read_text())
        if origin["address"] == _digest(address) and origin["mark"]:
            return part.stat().st_size, str(origin["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _digest(address: str) -> str:
    """Keys may be in it."""
    return hashlib.sha256(address.encode()).hexdigest()


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _mark(response: httpx.Response) -> str:
    """What If-Range takes: a strong entity tag, or the date of the last change."""
    tag = str(response.headers.get("etag", ""))
    mark = tag if tag and not tag.startswith("W/") else response.headers.get("last-modified", "")
    return str(mark) if mark.isascii() else ""


@contextlib.contextmanager
def _open(door: httpx.Client, address: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """Follow redirects by hand: none may lead away from HTTPS."""
    for _ in range(REDIRECTS):
        with door.stream("GET", address, headers=headers) as response:
            if not response.has_redirect_location:
                yield response
                return
            address = urljoin(address, response.headers["location"])
        if urlsplit(address).scheme != "https":
            raise ModelFileError("The server sends on to an address that is not HTTPS; refused.")
    raise ModelFileError("The server sends on from one address to the next without end.")


def _refuse(response: httpx.Response, address: str) -> None:
    status, host = response.status_code, urlsplit(address).hostname
    if status in AGAIN:
        raise _BrokeOff(f"status {status}")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise ModelFileError(f"{host} has no such file. Check the address.")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise ModelFileError(
            f"{host} gives this file only to people who are logged in there, or it has no such "
            "file. Download it yourself and pull it as file:/PATH."
        )
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise ModelFileError(f"{host} answered with status {status}.")


def _write(response: httpx.Response, part: Path, start: int, advance: Advance) -> None:
    told = str(response.headers.get("content-length", ""))
    length = int(told) if told.isdecimal() and told.isascii() else 0
    room = shutil.disk_usage(part.parent).free - RESERVE_BYTES
    check_room(length, room)
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        done = start
        for block in _not_too_slow(response.iter_raw()):
            try:
                check_room(done - start + len(block), room)
                file.write(block)
            except OSError:  # a file without end must not keep the disk full
                part.unlink()
                raise
            done += len(block)
            advance(done, start + length if length else 0)


def _not_too_slow(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """One file is fetched at a time: a server that trickles would hold all others up."""
    since, came = time.monotonic(), 0
    for block in blocks:
        came += len(block)
        if came >= LEAST_BYTES:
            since, came = time.monotonic(), 0
        elif time.monotonic() > since + LEAST_SECONDS:
            raise _BrokeOff(f"less than {LEAST_BYTES >> 20} MB in {LEAST_SECONDS:.0f} seconds")
        yield block


def check_room(needed: int, room: int) -> None:
    """Raises OSError."""
    if needed > room:
        raise OSError(errno.ENOSPC, "larger than the free space")
