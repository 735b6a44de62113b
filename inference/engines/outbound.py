"""The one place that makes connections to other servers. A test sees to it.

To models' servers: no redirects, no proxies out of the environment, every wait bounded, every
answer of bounded size; the key is in no error.
"""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing, contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from math import isfinite
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from inference.engines.base import EngineError, RequestRefused
from inference.engines.events import EventParser, Garbled
from inference.engines.text import storable

T = TypeVar("T")
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 30.0
MAX_ANSWER_BYTES = 64 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_QUOTED = 200  # characters of a server's own words in an error
NAT64, UNICAST = IPv6Network("64:ff9b::/96"), IPv6Network("2000::/3")
EXAMPLES = IPv6Network("3fff::/20")  # which this Python takes for public
INSIDE = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))  # clouds' own, too
MAX_REST = 30.0  # seconds of a Retry-After that are honoured
AT_FAULT = {400, 404, 405, 413, 415, 422, 501}  # the request is: no other try goes better


class Unavailable(EngineError):
    """The server did not answer, or not now; another may, or the same one later.

    rest: seconds it asked to be left alone, 0 when it did not ask. plain: the message without
    the server's own words, which may quote somebody's.
    """

    def __init__(self, message: str, rest: float = 0.0, *, plain: str = "") -> None:
        super().__init__(message)
        self.rest, self.plain = rest, plain or message


def check_address(url: str) -> None:
    """Raise EngineError unless this can be the address of a server."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise EngineError("The address must look like http://host:port or https://host.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise EngineError("The address must not hold a name, a password, a query or a fragment.")


@cache
def _certificates() -> ssl.SSLContext:
    """Those this machine trusts: a company's own authority is among them."""
    return ssl.create_default_context()


def file_client() -> httpx.Client:
    """For inference/download.py, which follows redirects by hand.

    Proxies of the environment count: files come from outside, servers are the operator's own.
    """
    return httpx.Client(verify=ssl.create_default_context(), timeout=httpx.Timeout(30, connect=10))


def public_file_client() -> httpx.Client:
    """The same for an address that somebody chose who may not reach this machine's neighbours.

    Where the environment names a proxy everything goes over that: what it lets through is for
    whoever runs it.
    """
    timeout = httpx.Timeout(30, connect=10)
    proxies = getproxies()
    if proxy := proxies.get("https") or proxies.get("all"):
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        verify = ssl.create_default_context()
        return httpx.Client(proxy=proxy, verify=verify, timeout=timeout, trust_env=False)
    return httpx.Client(transport=_Public(), timeout=timeout)


class NotPublic(Exception):
    """The address leads to this machine or its neighbours."""


class _Public(httpx.BaseTransport):
    """Looks each name up once, and connects to what it found there if that is public."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport(verify=ssl.create_default_context())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        addresses = _public_addresses(url.host, url.port or 443)
        for last, address in enumerate(addresses, start=1 - len(addresses)):
            request.url = url.copy_with(host=address)
            try:
                return self._inner.handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not last:
                    raise
        raise AssertionError("a name has one address at least")

    def close(self) -> None:
        self._inner.close()


def _public_addresses(host: str, port: int) -> list[str]:
    """Raises NotPublic when one of them is not, or there is none: a name inside is told from no
    name by nobody."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    addresses = [str(place[0]) for *_, place in found]
    if not addresses or not all(map(is_public, addresses)):
        raise NotPublic(f"{host} has no address, or one that is not of the public network.")
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network, however it is wrapped."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip in NAT64 and IPv4Address(int(ip) % 2**32))
        if wrapped:
            return is_public(str(wrapped))
        return ip in UNICAST and ip.is_global and not ip.teredo and ip not in EXAMPLES
    return ip.is_global and not ip.is_multicast and not any(ip in it for it in INSIDE)


class Server:
    """One server. Raises nothing but EngineError and its kinds.

    Errors do not name it: people see them, and whose server failed is no business of theirs.
    """

    def __init__(self, url: str, key: str = "") -> None:
        check_address(url)
        self._key = key
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            # A few compressed bytes can be a gigabyte: none are asked for, none are taken.
            headers={"accept-encoding": "identity"}
            | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none are kept
            verify=_certificates(),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        return await self._within(ANSWER_SECONDS, self._whole("GET", path, None))

    async def look(self, path: str, seconds: float) -> None:
        """Whether it answers there at all, whatever it says."""
        response = await self._within(seconds, self._send("GET", path, None))
        try:
            await self._within(seconds, self._check(response))
        finally:
            await response.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._within(ANSWER_SECONDS, self._whole("POST", path, body))

    async def stream(
        self, path: str, body: dict[str, Any], first_seconds: float, next_seconds: float,
        prelude: str = "",
    ) -> AsyncGenerator[dict[str, Any], None]:  # fmt: skip
        """The events of an answer, parsed, up to its end or `[DONE]`.

        Comments that keep a connection alive are no answer: a server that sends nothing else
        for so long is given up; after events with a field named `prelude`, `first_seconds` still
        holds. Closing the generator closes the connection.
        """
        response = await self._within(first_seconds, self._send("POST", path, body))
        try:
            await self._within(first_seconds, self._check(response))
            seconds = first_seconds
            async with aclosing(self._events(response)) as events:
                while (event := await self._within(seconds, anext(events, "[DONE]"))) != "[DONE]":
                    parsed = self._parsed(event)
                    yield parsed
                    seconds = first_seconds if prelude and prelude in parsed else next_seconds
        finally:
            await response.aclose()

    # --- plumbing -------------------------------------------------------------------------
    async def _whole(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        response = await self._send(method, path, body)
        try:
            await self._check(response)
            return self._parsed(await self._body(response))
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        with self._faults():
            request = self._client.build_request(method, path, json=body)
            return await self._client.send(request, stream=True)

    async def _within(self, seconds: float, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise Unavailable("The model's server does not answer.") from None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            message = "The model's server cannot be reached."
            raise Unavailable(message) from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL):
            message = "The connection to the model's server broke."
            raise Unavailable(message) from None
        except Garbled as error:
            raise Unavailable(f"The model's server {error}.") from None

    async def _events(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        parser = EventParser()
        with self._faults():
            async for data in response.aiter_bytes():
                for event in parser.feed(data):
                    yield event

    async def _body(self, response: httpx.Response, most: int = MAX_ANSWER_BYTES) -> bytes:
        body = bytearray()
        with self._faults():
            async for data in response.aiter_bytes():
                body += data
                if len(body) > most:
                    raise Garbled("sent an answer that is too large")
        return bytes(body)

    def _parsed(self, text: str | bytes) -> dict[str, Any]:
        try:
            # Encoding refuses what was not UTF-8: a mark in its place would be shown for good.
            value = json.loads(text.encode() if isinstance(text, str) else text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Unavailable("The model's server sent what makes no sense.")
        if value.get("error"):
            self._refuse(_number(value["error"]), value)
        return value

    async def _check(self, response: httpx.Response) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable("The model's server sent something compressed.")
        if status == httpx.codes.OK:
            return
        if status in (401, 403):
            raise Unavailable("The model's server does not accept our key.")
        if response.is_redirect:
            message = "The model's server has another address; connect that one."
            raise Unavailable(message)
        try:
            said = json.loads(await self._body(response, MAX_ERROR_BYTES))
        except (ValueError, RecursionError, Unavailable):
            said = None
        self._refuse(status, said, _rest(response.headers.get("retry-after", "")))

    def _refuse(self, status: int, said: Any, rest: float = 0.0) -> NoReturn:
        words = self._quoted(said)
        if status in AT_FAULT:
            raise RequestRefused(f"The model's server refused the request{words}.")
        if status == httpx.codes.TOO_MANY_REQUESTS:
            raise Unavailable("The model's server is too busy.", rest)
        plain = "The model's server has failed."
        raise Unavailable(f"The model's server has failed{words}.", rest, plain=plain)

    def _quoted(self, said: Any) -> str:
        """What the server says in explanation, if anything: short, on one line, without the key."""
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and said.get(name):
                said = said[name]
        words = " ".join(said.split()).rstrip(".") if isinstance(said, str) else ""
        words = storable(words.replace(self._key, "…") if self._key else words)
        return f": {words[:MAX_QUOTED]}" if words else ""


def _number(error: Any) -> int:
    """The status in an error that came inside a stream; 500 when it has none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500


def _rest(header: str) -> float:
    """Seconds a Retry-After asks for, within reason; it may also be a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_REST) if isfinite(seconds) else 0.0
