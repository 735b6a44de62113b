"""What the kinds of server have in common; one file a kind beside this one.

Facts were read in llama.cpp's tools/server and in vLLM's entrypoints; docs/sidecars.md says
what follows from them. What an answer is made of is decided in upstream.py.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from inference.engines.base import EngineError, FinishReason, Sampling, Turn, Usage
from inference.engines.outbound import Server, Unavailable
from inference.engines.template import Segment

T = TypeVar("T")
FIRST_SECONDS = 120.0  # a long prompt, behind others
NEXT_SECONDS = 20.0
HEALTH_SECONDS = 3.0
MANY = 1 << 31
REMEMBERED = 400  # texts whose tokens are kept: every turn of a chat comes again with the next


@dataclass(frozen=True, slots=True)
class Found:
    """What a server says of itself; 0 or "" where it does not say.

    continues: an answer it has begun can be gone on with.
    """

    model: str = ""
    context_tokens: int = 0
    slots: int = 0
    build: str = ""
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns as a server wants them: token ids, or the turns themselves and about how many."""

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Order:
    """What a server is to write: up to `tokens` more, after `emitted` or `text`."""

    prompt: Prompt
    sampling: Sampling
    scope: str
    tokens: int
    emitted: tuple[int, ...] = ()
    text: str = ""

    @property
    def seed(self) -> int:
        """Another one after every seam: the same draws again would favour the same words."""
        return self.sampling.seed + len(self.emitted or self.text)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a server sent: whole characters and the tokens that make them.

    finish: once, last. ends_with_mark: the token before, which had no text, only ends answers.
    usage: this order's own numbers, as far as the server tells.
    is_progress: it has no text yet, but the server is getting on.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    ends_with_mark: bool = False
    usage: Usage | None = None
    is_progress: bool = False


class Flavour(Protocol):
    has_ids: bool

    async def describe(self) -> Found:
        """Ask the server what it is. The rest works only after this."""

    async def check_health(self) -> None:
        """Raises Unavailable."""

    async def prompt(self, turns: Sequence[Turn]) -> Prompt: ...

    async def text_of(self, ids: Sequence[int]) -> str: ...

    def write(self, order: Order) -> AsyncGenerator[Piece, None]: ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]: ...


class Common:
    health = "/health"

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model

    async def check_health(self) -> None:
        await self._server.look(self.health, HEALTH_SECONDS)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        data = expect(list, (await self._server.post("/v1/embeddings", body)).get("data"))
        rows = [expect(dict, row) for row in data]
        vectors = {expect(int, row.get("index")): row.get("embedding") for row in rows}
        if sorted(vectors) != list(range(len(texts))):
            raise EngineError("The model's server left out a vector.")
        return [numbers_in(vectors[number]) for number in range(len(texts))]

    async def listed(self) -> dict[str, Any]:
        """The entry of our model in /v1/models; the first one's where none is named."""
        data = expect(list, (await self._server.get("/v1/models")).get("data"))
        entries = [expect(dict, entry) for entry in data]
        named = [e for e in entries if not self._model or e.get("id") == self._model]
        if entries and not named:
            raise EngineError(f"The server has no model {self._model!r}.")
        entry = named[0] if named else {}
        self._model = self._model or str(entry.get("id", ""))
        return entry


class WithIds(Common):
    """Servers that take and tell token ids, which is what lets an answer go on where it was."""

    has_ids = True

    def __init__(self, server: Server, model: str) -> None:
        super().__init__(server, model)
        self._known: dict[Segment, tuple[int, ...]] = {}

    async def ids_of(self, segments: Sequence[Segment]) -> list[int]:
        ids: list[int] = []
        for segment in segments:
            if segment not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[segment] = await self.tokenize(segment)
            ids.extend(self._known[segment])
        return ids

    async def tokenize(self, segment: Segment) -> tuple[int, ...]:
        raise NotImplementedError


# --- what servers send --------------------------------------------------------------------
def expect(kind: type[T], value: Any) -> T:
    """The value, which must be of this kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Unavailable("The model's server sent what makes no sense.")
    return value


def count_in(value: Any) -> int:
    """A number of things, or of one of them. (The database takes no larger ones.)"""
    if not 0 <= expect(int, value) < MANY:
        raise Unavailable("The model's server sent what makes no sense.")
    return int(value)


def ids_in(value: Any) -> tuple[int, ...]:
    return tuple(count_in(token) for token in expect(list, value))


def numbers_in(value: Any) -> list[float]:
    return [n if isinstance(n, int) else expect(float, n) for n in expect(list, value)]


def choices_in(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [expect(dict, choice) for choice in expect(list, event.get("choices") or [])]


def usage_in(event: dict[str, Any]) -> Usage | None:
    """None also for figures that make no sense: the text is not to suffer for them."""
    if not event.get("usage"):
        return None
    with suppress(Unavailable):
        numbers = expect(dict, event["usage"])
        details = expect(dict, numbers.get("prompt_tokens_details") or {})
        return Usage(
            count_in(numbers.get("prompt_tokens", 0)),
            count_in(details.get("cached_tokens") or 0),
            count_in(numbers.get("completion_tokens", 0)),
        )
    return None


def finish_of(reason: object) -> FinishReason:
    """OpenAI's words in ours. No stop strings are sent, so "stop" is the model's own end."""
    if reason in ("abort", "error"):
        raise Unavailable("The model's server gave up in the middle of the answer.")
    return "length" if reason == "length" else "end"
