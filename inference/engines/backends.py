"""The servers behind one release: which one gets the next answer, and which ones are well.

Passive: failures in a row open a circuit. Active: the health of those that are idle or open is
looked at every few seconds, and nothing but such a look closes a circuit again.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from inference.engines.base import EngineError
from inference.engines.flavours import Flavour, Found
from inference.engines.llama_server import LlamaServer
from inference.engines.openai import OpenAI
from inference.engines.outbound import Server, Unavailable
from inference.engines.vllm import Vllm

Kind = Literal["llama_server", "vllm", "openai"]
FLAVOURS: dict[Kind, type[LlamaServer | Vllm | OpenAI]] = {
    "llama_server": LlamaServer,
    "vllm": Vllm,
    "openai": OpenAI,
}
FAILURES_TO_OPEN = 3
LOOK_SECONDS = 2.0
IDLE_SECONDS = 5.0
SHORTEST_BREAK, LONGEST_BREAK = 1.0, 30.0
SHORTEST_PAUSE = 0.5
SCOPES = 10_000  # that are remembered for the server they were on
_draws = random.Random()  # a background task must not draw from the sequence others seed
CLEARLY_BUSIER = 0.5  # of a server's slots


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a server is. slots: answers it writes at once. A draining one gets no new ones."""

    name: str
    url: str
    kind: Kind
    key: str = field(default="", repr=False)
    model: str = ""
    slots: int = 8
    draining: bool = False


class Peer:
    """A backend as this process sees it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._server = Server(backend.url, backend.key)
        self.flavour: Flavour = FLAVOURS[backend.kind](self._server, backend.model)
        self.found: Found | None = None
        self.is_described = False
        self.outstanding = 0
        self.failures = 0
        self.open_until = 0.0
        self.rests_until = 0.0
        self.heard_at = 0.0
        self.trouble = ""  # why it is not used now, in a sentence

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN

    @property
    def is_usable(self) -> bool:
        resting = time.monotonic() < self.rests_until
        return not (self.is_open or resting or self.backend.draining)

    @property
    def load(self) -> float:
        return self.outstanding / self.backend.slots

    @property
    def wants_a_look(self) -> bool:
        now = time.monotonic()
        if self.is_open:
            return now > self.open_until
        return not self.is_described or now - self.heard_at > IDLE_SECONDS

    def is_at(self, backend: Backend) -> bool:
        """Whether this is the same server, whatever else is new about it."""
        mine = self.backend
        return (mine.url, mine.kind, mine.key, mine.model) == (
            backend.url, backend.kind, backend.key, backend.model,
        )  # fmt: skip

    async def describe(self) -> Found:
        """What the server is. Raises EngineError for one that runs another model than ours."""
        if self.found is None or not self.is_described:
            # What is remembered of the server before may not be true of it any more.
            flavour = FLAVOURS[self.backend.kind](self._server, self.backend.model)
            found = await flavour.describe()
            if self.backend.model and found.model != self.backend.model:
                raise EngineError(f"The server runs {found.model}, not {self.backend.model}.")
            self.flavour, self.found, self.is_described = flavour, found, True
        return self.found

    def worked(self) -> None:
        self.failures, self.trouble = 0, ""
        self.heard_at = time.monotonic()

    def failed(self, error: EngineError) -> None:
        now = time.monotonic()
        self.heard_at = now
        self.trouble = error.plain if isinstance(error, Unavailable) else str(error)
        if isinstance(error, Unavailable) and error.rest:
            self.rests_until = now + error.rest  # it is there: it only wants to be left alone
            return
        self.failures += 1
        self.is_described = False  # what comes back may be another build
        longest = min(LONGEST_BREAK, SHORTEST_BREAK * 2 ** max(0, self.failures - FAILURES_TO_OPEN))
        self.open_until = now + longest * _draws.uniform(0.5, 1)

    async def look(self) -> None:
        """One health check; what it finds is remembered."""
        try:
            await self.flavour.check_health()
            await self.describe()
        except EngineError as error:  # not what it is said to be is no better than not there
            self.failed(error)
        else:
            self.worked()

    async def close(self) -> None:
        await self._server.close()


class Backends:
    """Those of one release, by name."""

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._peers: dict[str, Peer] = {}
        self._leaving: set[Peer] = set()
        self._served: OrderedDict[str, Peer] = OrderedDict()
        self.use(backends)

    def use(self, backends: Iterable[Backend]) -> None:
        """These from now on. Answers under way stay where they are until they end."""
        before, self._peers = self._peers, {}
        for backend in backends:
            peer = before.pop(backend.name, None)
            if peer and peer.is_at(backend):
                peer.backend = backend
            else:
                self._leaving |= {peer} if peer else set()
                peer = Peer(backend)
            self._peers[backend.name] = peer
        self._leaving |= set(before.values())

    @property
    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    @property
    def busy(self) -> int:
        return sum(peer.outstanding for peer in {*self._peers.values(), *self._leaving})

    @asynccontextmanager
    async def lease(self, scope: str) -> AsyncIterator[Peer]:
        """A server for one piece of work; how that goes says how the server is doing."""
        peer = self._choose(scope)
        peer.outstanding += 1
        try:
            yield peer
            peer.worked()
        except Unavailable as error:
            peer.failed(error)
            raise
        finally:
            peer.outstanding -= 1

    def _choose(self, scope: str) -> Peer:
        usable = [peer for peer in self.peers if peer.is_usable]
        if not usable:
            raise Unavailable("None of this model's servers can be reached now.")
        # Among equals the one that failed longest ago, which spares a run that was just there.
        least = min(usable, key=lambda peer: (peer.failures, peer.load))
        last = self._served.get(scope)
        stays = last in usable and not last.failures and last.load - least.load < CLEARLY_BUSIER
        chosen = last if last and stays else least
        if scope:
            self._served[scope] = chosen
            self._served.move_to_end(scope)
            if len(self._served) > SCOPES:
                self._served.popitem(last=False)
        return chosen

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures: none where another server is ready."""
        if failures == 1 and any(peer.is_usable and not peer.failures for peer in self.peers):
            return 0.0
        waits = [peer.rests_until - time.monotonic() for peer in self.peers if not peer.is_open]
        rest = 0.0 if any(peer.is_usable for peer in self.peers) else min(waits, default=0.0)
        return max(rest, SHORTEST_PAUSE * (1 << failures - 1) * _draws.uniform(0.5, 1))

    # --- health ---------------------------------------------------------------------------
    async def look(self) -> None:
        """See now how every server is doing."""
        await asyncio.gather(*(peer.look() for peer in self.peers))

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS * _draws.uniform(0.75, 1.25))
            await asyncio.gather(*(peer.look() for peer in self.peers if peer.wants_a_look))
            for peer in [peer for peer in self._leaving if not peer.outstanding]:
                self._leaving.discard(peer)
                await peer.close()

    async def close(self) -> None:
        for peer in {*self._peers.values(), *self._leaving}:
            await peer.close()
