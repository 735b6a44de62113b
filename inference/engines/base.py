"""The seam between the site and whatever produces tokens. No Django here.

An engine is asynchronous and streams `Delta`s for a `Request`. Closing the stream
cancels the work within one decode step. The contract, run on every engine, is
tests/contract/test_engine.py.
"""

import hashlib
import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from inference.engines.errors import EngineError, Interrupted, RequestRefused
from inference.engines.json_schema import canonical

__all__ = [
    "Capacity",
    "Delta",
    "Engine",
    "EngineError",
    "Interrupted",
    "Progress",
    "Request",
    "RequestRefused",
    "Sampling",
    "TokenLogprob",
    "Turn",
    "Usage",
    "hash_of",
]

FinishReason = Literal["end", "stop", "length", "context"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: role is system, user or assistant."""

    role: str
    content: str


RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 5),
    "top_k": (0, 1_000_000),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.1, 10),
    "repeat_window": (0, 4096),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "seed": (0, 2**63 - 1),
    "max_tokens": (1, 1_000_000),
    "logprobs": (0, 20),
}
WHOLE = ("top_k", "repeat_window", "seed", "max_tokens", "logprobs")  # numbers that are counts
BIAS = 100  # at most, either way
BIASES = 300
# An engine that shows nothing for so long is wedged: in a chunk of a prompt, in a step of answers.
PREFILL_SECONDS, DECODE_SECONDS = 60.0, 15.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; docs/sampling.md explains each. Temperature 0 is greedy.

    stop, logit_bias and json_schema may be given as they are in JSON: a list, an object of
    token ids, a schema or its text. Raises RequestRefused for what is out of range.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    repeat_window: int = 64
    frequency_penalty: float = 0
    presence_penalty: float = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    json_schema: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not (_is_number(value, name in WHOLE) and low <= value <= high):
                if name == "logprobs" and value is None:
                    continue
                kind = "a whole number" if name in WHOLE else "a number"
                raise RequestRefused(f"{name} must be {kind} from {low} to {high}.")
        object.__setattr__(self, "stop", _stop(self.stop))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        if self.json_schema != "":
            object.__setattr__(self, "json_schema", canonical(self.json_schema))

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> "Sampling":
        """Build from stored JSON; an unknown name raises RequestRefused."""
        unknown = set(parameters) - set(cls.__dataclass_fields__)
        if unknown:
            raise RequestRefused(f"Unknown parameter: {', '.join(sorted(unknown))}.")
        return cls(**parameters)

    def refuse(self, lacks: Iterable[str], who: str) -> None:
        """For an engine: raises RequestRefused for the first parameter in use that it lacks."""
        for name in lacks:
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise RequestRefused(f"{who} cannot do {name}.")


def _is_number(value: object, whole: bool = False) -> bool:
    return type(value) is int or (type(value) is float and not whole)


def _stop(texts: object) -> tuple[str, ...]:
    if (
        not isinstance(texts, list | tuple)
        or len(texts) > 8
        or not all(isinstance(text, str) and 0 < len(text) <= 200 for text in texts)
    ):
        raise RequestRefused("stop takes a list of up to 8 strings of 1 to 200 characters.")
    return tuple(texts)


def _logit_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    try:
        pairs = {_token_id(token): value for token, value in dict(bias).items()}
    except (TypeError, ValueError):
        pairs = {-1: 0}
    if (
        len(pairs) > BIASES
        or not all(0 <= token < 2**31 for token in pairs)
        or not all(_is_number(value) and -BIAS <= value <= BIAS for value in pairs.values())
    ):
        raise RequestRefused(
            f"logit_bias takes up to {BIASES} token ids, each with a number from -{BIAS} to {BIAS}."
        )
    return tuple(sorted(pairs.items()))


def _token_id(token: object) -> int:
    is_written = isinstance(token, str) and token.isascii() and token.isdigit()
    return int(token) if is_written or type(token) is int else -1  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Request:
    """One run.

    emitted: tokens an earlier run of it already produced; the engine goes on after them.
        `sampling.max_tokens` counts them too.
    text: what that run has shown so far; all there is to go on from where an engine has no
        token ids.
    scope: requests of one scope may reuse each other's evaluated beginnings; "" reuses none.
    common: so many of the first turns are the operator's own words, which every scope may
        reuse, as it may the template's.
    """

    turns: tuple[Turn, ...]
    sampling: Sampling = field(default_factory=Sampling)
    emitted: tuple[int, ...] = ()
    text: str = ""
    scope: str = ""
    common: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; `cached` of the prompt's were found evaluated already."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model itself thought of a token: natural logarithms of probabilities.

    piece: its bytes, which need not be whole characters.
    logprob: of the token, before temperature, penalties, biases and filters.
    top: the likeliest tokens at its place, likeliest first: (token id, piece, logprob).
    """

    token_id: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the last one.

    text: new characters, always whole ones; may be empty while a character or a possible
        stop string is still incomplete.
    token_ids: the tokens sampled since the last delta, in order; none where the engine is
        not told them.
    finish: set on the last delta only.
    usage: on a first delta that comes before any token (what is known of the prompt), and on
        the last; on every one where there are no token ids to count.
    prompt_sha256: on that first delta: of the prompt's tokens. The same prompt, the same hash.
    logprobs: of `token_ids`, one each, if they were asked for.
    restart: everything before this delta, also of earlier runs, is void: the answer begins anew.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    prompt_sha256: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    slots: int
    context_tokens: int
    busy: int = 0


def hash_of(tokens: Sequence[int]) -> str:
    """SHA-256 of token ids, in hex: four bytes each, little-endian."""
    return hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).hexdigest()


Progress = Callable[[int], None]
"""Called with whole percents, 0 to 100, while a model loads; from any thread."""


class Engine(Protocol):
    async def start(self, progress: Progress) -> None:
        """Load what is needed. Raises EngineError with one clear sentence."""

    async def stop(self) -> None:
        """Cancel everything and free the memory."""

    def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Stream the answer. Raises RequestRefused or EngineError."""
        ...

    async def count_tokens(self, turns: Sequence[Turn]) -> int:
        """Tokens of the whole prompt these turns make, template included."""
        ...

    async def text_of(self, token_ids: Sequence[int]) -> str:
        """What these tokens spell; a mark in place of bytes that make no whole character.

        Raises EngineError where the engine has no token ids.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of length 1 a text, in order.

        Raises RequestRefused (see vectors.check), and EngineError where there are no embeddings.
        """
        ...

    def capacity(self) -> Capacity: ...

    def fingerprint(self) -> str:
        """Build, machine and settings in one line. With the same release, which names the weights,
        equal fingerprints make equal answers, as far as the engine can promise that."""
        ...

    def seconds_without_progress(self) -> float:
        """How long the engine has had work and produced nothing; 0.0 when idle."""
        ...

    def most_seconds_without_progress(self) -> float:
        """With what it is doing now; beyond that it is wedged."""
        ...
