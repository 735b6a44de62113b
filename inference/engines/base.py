"""The seam between the site and whatever produces tokens. No Django here.

An engine is asynchronous and streams `Delta`s for a `Request`. Closing the stream
cancels the work within one decode step. The contract, run on every engine, is
tests/contract/test_engine.py.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["end", "stop", "length", "context"]


WHOLE = ("top_k", "repeat_window", "seed", "max_tokens")  # numbers that are counts


class EngineError(Exception):
    """The engine cannot do what was asked; the message is fit for a person to read."""


class RequestRefused(EngineError):
    """The request itself is at fault (a parameter out of range, a prompt that cannot fit)."""


class Interrupted(EngineError):
    """The answer broke off where it is; what came of it stands."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy. Out of range raises RequestRefused."""

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    repeat_window: int = 64
    seed: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "temperature": (0, 5),
            "top_k": (0, 1_000_000),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "repeat_penalty": (0.1, 10),
            "repeat_window": (0, 4096),
            "seed": (0, 2**63 - 1),
            "max_tokens": (1, 1_000_000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            kinds = (int,) if name in WHOLE else (int, float)
            if type(value) not in kinds or not low <= value <= high:
                kind = "a whole number" if name in WHOLE else "a number"
                raise RequestRefused(f"{name} must be {kind} from {low} to {high}.")
        if len(self.stop) > 8 or any(not 0 < len(stop) <= 200 for stop in self.stop):
            raise RequestRefused("stop takes up to 8 strings of 1 to 200 characters.")

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> "Sampling":
        """Build from stored JSON; an unknown name raises RequestRefused."""
        unknown = set(parameters) - set(cls.__dataclass_fields__)
        if unknown:
            raise RequestRefused(f"Unknown parameter: {', '.join(sorted(unknown))}.")
        stop = parameters.get("stop", ())
        if isinstance(stop, str) or not all(isinstance(text, str) for text in stop):
            raise RequestRefused("stop takes a list of strings.")
        return cls(**{**parameters, "stop": tuple(stop)})


@dataclass(frozen=True, slots=True)
class Request:
    """One run.

    emitted: tokens an earlier run of it already produced; the engine goes on after them.
        `sampling.max_tokens` counts them too.
    text: what that run has shown so far; all there is to go on from where an engine has no
        token ids.
    evaluation: repeats how that earlier run evaluated its prompt (Delta.evaluation), which is
        what makes the rest of the answer come out the same, byte for byte.
    scope: requests of one scope may share a prefix cache; empty means never share.
    """

    turns: tuple[Turn, ...]
    sampling: Sampling = field(default_factory=Sampling)
    emitted: tuple[int, ...] = ()
    text: str = ""
    evaluation: tuple[int, ...] | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; `cached` of the prompt's were found evaluated already."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What came since the last one.

    text: new characters, always whole ones; may be empty while a character or a possible
        stop string is still incomplete.
    token_ids: the tokens sampled since the last delta, in order; none where the engine is
        not told them.
    finish: set on the last delta only.
    usage: on the delta of `evaluation` (what is known of the prompt) and on the last; on every
        one where there are no token ids to count.
    evaluation: set once, on a delta of its own that comes before any token: how the prompt is
        evaluated, as run lengths: n for one chunk of n tokens, -n for n tokens one a step.
    restart: everything before this delta, also of earlier runs, is void: the answer begins anew.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    evaluation: tuple[int, ...] | None = None
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    slots: int
    context_tokens: int
    busy: int = 0


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

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector a text. Raises EngineError where the engine has no embeddings."""
        ...

    def capacity(self) -> Capacity: ...

    def fingerprint(self) -> str:
        """Weights, build and settings in one line: equal fingerprints, equal answers."""
        ...

    def seconds_without_progress(self) -> float:
        """How long the engine has had work and produced nothing; 0.0 when idle."""
        ...
