"""A real site for a benchmark: `manage.py serve` on a folder of its own, and people who use it."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import httpx
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("MODELS_DIR", ROOT / "data" / "models"))


class Site:
    """`manage.py serve` and its processes; the data outlives a stop."""

    def __init__(self, data: Path, model: str, **environment: str) -> None:
        self.data = data
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **os.environ, "DATA_DIR": str(data), "STATIC_ROOT": str(data / "static"),
            "MODELS_DIR": str(MODELS), "MODEL": model, "HOST": "127.0.0.1", "PORT": str(port),
            "STATIC_HASHED": "1", **LOOSE_LIMITS, **environment,
        }  # fmt: skip
        self.environment.pop("DATABASE_URL", None)
        self.process: subprocess.Popen[bytes] | None = None

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )

    def install(self) -> None:
        for command in (["migrate"], ["collectstatic", "--noinput"]):
            done = self.manage(*command)
            assert done.returncode == 0, done.stderr

    def start(self) -> None:
        with (self.data / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "serve"],
                cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._wait_until_ready(60)

    def _wait_until_ready(self, seconds: float) -> None:
        assert self.process
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.data / "serve.log").read_text()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError("the site did not become ready")

    def stop(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)

    @property
    def pids(self) -> list[int]:
        """The supervisor and everything below it."""
        assert self.process
        return [self.process.pid, *descendants(self.process.pid)]

    def pid_of(self, role: str) -> int:
        """The process that serves pages ("web") or runs the model ("worker")."""
        marks = {"web": b"gunicorn", "worker": b"manage.py\0worker"}
        found = [pid for pid in self.pids[1:] if marks[role] in command_of(pid)]
        return found[-1]  # gunicorn's arbiter comes before the process that serves

    def kill_everything(self) -> None:
        assert self.process
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


LOOSE_LIMITS = {
    f"RATE_LIMIT_{name}": "100000/m"
    for name in ("SEND", "SEND_ADDRESS", "CHANGE", "SIGNUP", "LOGIN", "LOGIN_ADDRESS")
} | {"MAX_RUNS_EACH": "0", "MAX_SOCKETS_EACH": "0"}


def descendants(pid: int) -> list[int]:
    """Of those that live: some may end while they are counted."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def command_of(pid: int) -> bytes:
    """Empty when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def site(model: str = "simulated", **environment: str) -> Iterator[Site]:
    """A running site on a folder of its own."""
    data = Path(tempfile.mkdtemp(prefix="chatsite-bench-"))
    running = Site(data, model, **environment)
    running.install()
    running.start()
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(data, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Address(Protocol):
    """Anything that serves a site."""

    url: str


class Person:
    """A guest with a session."""

    def __init__(self, site: Address) -> None:
        self.site = site
        self.http = httpx.AsyncClient(base_url=site.url, timeout=60)
        self.token = ""
        self.protocol = "?protocol=1"  # of the socket, as pages state it

    async def arrive(self) -> "Person":
        page = (await self.http.get("/")).text
        found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert found, "no form on the page"
        self.token = found[1]
        await self.ask("count 1")  # the first send makes the session a guest's
        return self

    async def try_post(self, path: str, **fields: str) -> httpx.Response:
        return await self.http.post(
            path,
            data={"csrfmiddlewaretoken": self.token, **fields},
            headers={"Accept": "application/json", "Origin": self.site.url},
        )

    async def post(self, path: str, **fields: str) -> dict[str, Any]:
        answer = await self.try_post(path, **fields)
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    def form(self, path: str, **fields: str) -> tuple[bytes, bytes]:
        """The head and the body of the request that a page's form makes."""
        body = urlencode({"csrfmiddlewaretoken": self.token, **fields})
        head = [
            f"POST {path} HTTP/1.1", f"Host: {urlsplit(self.site.url).netloc}",
            f"Origin: {self.site.url}", f"Cookie: {self.cookies}", "Accept: application/json",
            "Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}",
        ]  # fmt: skip
        return "\r\n".join([*head, "", ""]).encode(), body.encode()

    async def ask(self, text: str) -> str:
        """Start a chat; returns the id of the answer's generation."""
        return found_generation(await self.post("/chats/", text=text, client_id=str(uuid4())))

    async def stop(self, generation: str) -> None:
        await self.post(f"/generations/{generation}/", _method="delete")

    @property
    def cookies(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())

    @contextlib.asynccontextmanager
    async def socket(self, url: str = "") -> AsyncIterator[ClientConnection]:
        """To the site, or to one replica of it."""
        url = url or self.site.url
        headers = {"Cookie": self.cookies}
        async with connect(
            url.replace("http", "ws") + "/ws/" + self.protocol,
            additional_headers=headers,
            origin=url,  # type: ignore[arg-type]
            max_queue=None,  # with a limit, leaving while frames wait takes ten seconds
        ) as socket:
            yield socket


def found_generation(answer: dict[str, Any]) -> str:
    """The run that a send was answered with."""
    found = re.search(r'data-generation="([^"]+)"', answer["html"])
    assert found, answer
    return found[1]


async def watch(
    socket: ClientConnection, generation: str, epoch: int = 0, after: int = 0
) -> AsyncIterator[dict[str, Any]]:
    """The frames of one generation, up to its end."""
    await socket.send(
        json.dumps({"type": "watch", "generation": generation, "epoch": epoch, "after": after})
    )
    async for text in socket:
        frame = json.loads(text)
        if frame.get("generation") == generation:
            yield frame
            if frame["type"] == "end":
                return
