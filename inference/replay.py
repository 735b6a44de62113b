"""Answers made once more, alone, and compared: the same, or where they first differ.

docs/architecture.md, "Replay", says for which answers that is promised.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from inference.context import Fitted
from inference.engines.base import Engine, EngineError, Request
from inference.engines.slots import common
from inference.model_files import of_release, verify
from inference.models import Generation, Release
from inference.tokenlog import unpack
from inference.worker import build_engine

AROUND = 8  # tokens shown before a difference
CHARACTERS = 30  # shown where only the texts differ
Advance = Callable[[int], object]
"""Called with how many tokens have come since the last call."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one replay: `says` is a sentence; `notes` are what may explain it."""

    run: Generation
    kind: Literal["identical", "differs", "impossible"]
    says: str
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Answer:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    prompt_sha256: str = ""


def prepared(release: Release) -> Engine:
    """The release's engine, not started yet. Raises ModelFileError, EngineError."""
    if release.weights_file:
        verify(of_release(release))
    release.examine()
    return build_engine(release)


def hindrance(run: Generation) -> str:
    """Why this run cannot be made again; "" when it can."""
    if run.is_active:
        return "It has not ended yet."
    if not hasattr(run, "prompt"):
        return "Its words are deleted."
    if run.ended_early and not (run.text or run.token_ids):
        return "It ended before anything was written."
    return ""


async def replayed(
    engine: Engine, runs: Iterable[Generation], advance: Advance = lambda tokens: None
) -> AsyncGenerator[Verdict, None]:
    """Each of these runs, one after the other, with an engine that is started.

    The runs come with `release` and `prompt` read: nothing is looked up here.
    """
    for run in runs:
        try:
            yield await _replay(engine, run, advance)
        except EngineError as error:
            yield Verdict(run, "impossible", str(error), _notes(engine, run))


async def _replay(engine: Engine, run: Generation, advance: Advance) -> Verdict:
    if reason := hindrance(run):
        return Verdict(run, "impossible", reason)
    again = await _again(engine, run, advance)
    notes = _notes(engine, run)
    if difference := await _difference(engine, run, again):
        return Verdict(run, "differs", difference, notes)
    tokens = len(unpack(bytes(run.token_ids))) or run.completion_tokens
    ended = f", as far as it goes: it was {run.status}" if run.status != "done" else ""
    return Verdict(run, "identical", f"{tokens} tokens{ended}.", notes)


def kept_tokens(run: Generation) -> int:
    """How many of its first tokens are not made again.

    An answer that is lengthened needs room, so its later part may have been written with
    fewer messages in view than the first, and of that one's prompt nothing is known.
    """
    is_cut = run.prompt.left_out or run.prompt.cut_characters
    return run.inherited_tokens if is_cut else 0


def _request(run: Generation) -> Request:
    prompt = run.prompt
    fitted = Fitted.of(prompt.turns, prompt.left_out, prompt.cut_characters, prompt.summary)
    return prompt.request(fitted, emitted=unpack(bytes(run.token_ids))[: kept_tokens(run)])


async def _again(engine: Engine, run: Generation, advance: Advance) -> Answer:
    """The answer once more, up to where the comparison is decided."""
    request, written = _request(run), unpack(bytes(run.token_ids))
    answer = Answer(list(request.emitted))
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            answer.prompt_sha256 = answer.prompt_sha256 or delta.prompt_sha256
            answer.text += delta.text
            answer.token_ids += delta.token_ids
            advance(len(delta.token_ids))
            if _is_decided(run, written, answer):
                break
    return answer


def _is_decided(run: Generation, written: Sequence[int], answer: Answer) -> bool:
    if _is_another_prompt(run, answer):
        return True
    made = answer.token_ids
    if written and common(written, made) < min(len(written), len(made)):
        return True
    is_whole = len(made) >= len(written) and len(answer.text) >= len(run.text)
    return is_whole and (run.status != "done" or len(made) > len(written) > 0)


def _is_another_prompt(run: Generation, answer: Answer) -> bool:
    hashes = {run.prompt.sha256, answer.prompt_sha256} - {""}
    return len(hashes) > 1


async def _difference(engine: Engine, run: Generation, again: Answer) -> str:
    """The first one, in a sentence; "" when there is none."""
    if _is_another_prompt(run, again):
        return (
            f"The prompt is another one: the hash of its tokens was {run.prompt.sha256[:12]} and "
            f"is {again.prompt_sha256[:12]}. Its messages, the template or the model changed."
        )
    written, made = unpack(bytes(run.token_ids)), again.token_ids
    if run.status != "done":
        made = made[: len(written)]
    at = common(written, made)
    if written and at < max(len(written), len(made)):
        before = await engine.text_of(written[max(0, at - AROUND) : at])
        then, now = await _piece(engine, written, at), await _piece(engine, made, at)
        return f"Token {at + 1} of {len(written)} was {then} and is {now}, after {before!r}."
    return "" if kept_tokens(run) else _difference_of_texts(run, again.text)


async def _piece(engine: Engine, token_ids: Sequence[int], at: int) -> str:
    if at >= len(token_ids):
        return "the end"
    return f"{await engine.text_of(token_ids[at : at + 1])!r} ({token_ids[at]})"


def _difference_of_texts(run: Generation, made: str) -> str:
    written = run.text
    made = made if run.status == "done" else made[: len(written)]
    if made == written:
        return ""
    at = next((n for n, pair in enumerate(zip(written, made, strict=False)) if len({*pair}) > 1),
              min(len(written), len(made)))  # fmt: skip
    before, then, now = written[max(0, at - CHARACTERS) : at], written[at:], made[at:]
    return (
        f"Character {at + 1} of {len(written)} is the first that differs: {then[:CHARACTERS]!r} "
        f"was and {now[:CHARACTERS]!r} is, after {before!r}."
    )


def _notes(engine: Engine, run: Generation) -> tuple[str, ...]:
    """What a difference may come from, as far as it is known."""
    here = engine.fingerprint()[:400]
    notes = []
    if run.engine_build not in ("", here):
        notes.append(f"It was written by: {run.engine_build}. Replayed by: {here}.")
    if run.release.engine == "upstream":
        anew = ", and begun anew on the way" if run.epoch else ""
        notes.append(f"It was written by a server{anew}: no identical replay is promised.")
    if run.release.engine == "llama_cpp" and _depends_on_others(run.engine_build or here):
        notes.append("Its llama.cpp depends on what else is running: see REPRODUCIBLE.")
    if run.finish_reason == "context":
        notes.append("It ended with the model’s memory full: CONTEXT_TOKENS has to be the same.")
    if tokens := kept_tokens(run):
        notes.append(f"Its first {tokens} tokens may be from a longer prompt: they were kept.")
    return tuple(notes)


def _depends_on_others(build: str) -> bool:
    from inference.engines.llama_library import is_exact  # it loads the library

    return not is_exact(build) and " reproducible " not in build
