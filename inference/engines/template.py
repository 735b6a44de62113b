"""A model's chat template, run in a child; what people wrote can never become a control token."""

import contextlib
import json
import os
import re
import secrets
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference.engines.base import EngineError, RequestRefused, Turn
from inference.engines.renderer import HEAD, MAX_OUTPUT_CHARACTERS

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RENDERER = Path(__file__).with_name("renderer.py")
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # and nothing else: no secrets
WAIT_SECONDS = 10.0  # by the clock; the child's own second is of processor time
LAYOUTS = 256
MOST_REPEATED = 4  # of one message in a prompt: a template must not multiply what people wrote
MOST_NAMES = 200  # of one control token in one text; each is taken apart
MAX_ANSWER_BYTES = 8 * MAX_OUTPUT_CHARACTERS

Layout = tuple[str | int, ...]
"""A prompt without its contents: the template's own text, and the numbers of turns."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt. Only a `trusted` one (the template's own) may name control tokens."""

    text: str
    trusted: bool

    def named(self, names: Iterable[str]) -> str | None:
        """The first of these tokens' names that is in the text and looks like a control token's.

        Raises RequestRefused where all of them together come too often: each is broken up.
        """
        controls = dict.fromkeys(filter(looks_like_control, names))  # each once: a flood has many
        is_flood = len(controls) > MOST_NAMES  # a server's names, which may not be in the text
        found = {} if is_flood else {name: self.text.count(name) for name in controls}
        if is_flood or sum(found.values()) > MOST_NAMES:
            raise RequestRefused(f"The text names control tokens more than {MOST_NAMES} times.")
        return next((name for name, times in found.items() if times), None)

    def broken_up(self, name: str) -> "list[Segment]":
        """Pieces of which none holds this token's name whole: other tokens spell it.

        Raises RequestRefused where that would be too many.
        """
        first, *rest = self.text.split(name)
        if len(rest) > MOST_NAMES:
            raise RequestRefused(f"The text has {name} in it more than {MOST_NAMES} times.")
        pieces = [first + name[0], *(name[1:] + part + name[0] for part in rest)]
        pieces[-1] = pieces[-1][:-1]
        return [Segment(piece, trusted=False) for piece in pieces if piece]


def looks_like_control(name: object) -> bool:
    return isinstance(name, str) and len(name) > 2 and name[0] + name[-1] in ("<>", "[]")


# --- layouts ------------------------------------------------------------------------------
def marks_for(roles: Sequence[str]) -> dict[str, int]:
    """A mark that nobody can guess for each turn's content, with the turn's number."""
    return {f"\ue000{secrets.token_hex(8)}\ue001": number for number in range(len(roles))}


def layout_of(text: str, marks: dict[str, int]) -> Layout:
    """The marks found again. Raises EngineError for contents that come again and again."""
    if any(text.count(mark) > MOST_REPEATED for mark in marks):
        raise EngineError(f"The chat template repeats a message over {MOST_REPEATED} times.")
    pieces = re.split("(\ue000[0-9a-f]{16}\ue001)", text)
    return tuple(marks.get(piece, piece) for piece in pieces if piece)


def filled(layout: Layout, turns: Sequence[Turn]) -> list[Segment]:
    """A layout with the contents in place."""
    pieces = [
        Segment(piece, True) if isinstance(piece, str) else Segment(turns[piece].content, False)
        for piece in layout
    ]
    return [piece for piece in pieces if piece.text]


class ChatTemplate:
    """Raises EngineError for a template that is broken or takes too much."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        program = {"source": source or CHATML, "bos": bos, "eos": eos}
        self._renderer = Renderer(program)
        # The template never sees the contents, so the same roles make the same layout.
        self._layout = lru_cache(LAYOUTS)(self._renderer.layout)

    def segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """The prompt these turns make, cut into the template's own text and people's."""
        return filled(self._layout(tuple(turn.role for turn in turns)), turns)


class Renderer:
    """The child process with one template; started anew when it has died."""

    def __init__(self, program: dict[str, str]) -> None:
        self._program = program
        self._lock = threading.Lock()
        with self._lock:
            self._start()

    def layout(self, roles: tuple[str, ...]) -> Layout:
        """The template gets a random mark in place of each content, found again in its text."""
        marks = marks_for(roles)
        answer = self._ask({"roles": roles, "marks": list(marks)})
        if "refused" in answer:
            raise RequestRefused(
                f"This model's chat template refuses the conversation: {answer['refused']}"
            )
        if "text" not in answer:
            raise EngineError(f"The model's chat template failed: {answer.get('error')}")
        return layout_of(str(answer["text"]), marks)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._child.poll() is not None:
                self._start()
            return self._exchange(message)

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(RENDERER)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        # Should we be killed, it ends by itself: its input does.
        self._end = weakref.finalize(self, _end, self._child)
        answer = self._exchange(self._program)
        if "error" in answer:
            raise EngineError(f"The model's chat template is broken: {answer['error']}")

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return _exchange(self._child, message)
        except (OSError, ValueError, EOFError) as error:
            self._end()
            raise EngineError(
                "The model's chat template took too much time or memory and was ended."
            ) from error


def _exchange(child: subprocess.Popen[bytes], message: dict[str, Any]) -> dict[str, Any]:
    assert child.stdin
    assert child.stdout
    body = json.dumps(message).encode()
    child.stdin.write(HEAD.pack(len(body)) + body)
    child.stdin.flush()
    deadline = time.monotonic() + WAIT_SECONDS
    (length,) = HEAD.unpack(_read(child.stdout.fileno(), HEAD.size, deadline))
    if length > MAX_ANSWER_BYTES:
        raise ValueError("too long an answer")
    answer = json.loads(_read(child.stdout.fileno(), length, deadline))
    if not isinstance(answer, dict):
        raise ValueError("not an answer")
    return answer


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    """Exactly so many bytes. Raises EOFError when the child is gone or the time is over."""
    found = bytearray()
    while len(found) < count:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left)[0]:
            raise EOFError("out of time")
        block = os.read(descriptor, count - len(found))
        if not block:
            raise EOFError("the child is gone")
        found += block
    return bytes(found)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):  # what could not be written any more
            assert pipe
            pipe.close()
