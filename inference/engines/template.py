"""A model's chat template, run in a sandbox; what people wrote can never become a control token."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.engines.base import EngineError, RequestRefused, Turn

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt. Only a `trusted` one (the template's own) may name control tokens."""

    text: str
    trusted: bool


def _refuse(message: str) -> None:
    raise RequestRefused(f"This model's chat template refuses the conversation: {message[:200]}")


class ChatTemplate:
    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._globals: dict[str, Any] = {
            "bos_token": bos,
            "eos_token": eos,
            "raise_exception": _refuse,
        }
        try:
            self._template = environment.from_string(source or CHATML)
        except TemplateError as error:
            raise EngineError(f"The model's chat template is broken: {error}") from error

    def segments(self, turns: Sequence[Turn]) -> list[Segment]:
        """The prompt these turns make, cut into the template's own text and people's.

        The template sees a random mark in place of each content; the contents are put back
        afterwards, so that a control token spelled out in a message stays mere text.
        """
        marks = {f"\ue000{secrets.token_hex(8)}\ue001": turn.content for turn in turns}
        messages = [{"role": t.role, "content": m} for t, m in zip(turns, marks, strict=True)]
        try:
            text = self._template.render(
                messages=messages, add_generation_prompt=True, **self._globals
            )
        except TemplateError as error:
            raise EngineError(f"The model's chat template failed: {error}") from error
        pieces = re.split("(\ue000[0-9a-f]{16}\ue001)", text)
        return [_segment(piece, marks) for piece in pieces if piece]


def _segment(piece: str, marks: dict[str, str]) -> Segment:
    if piece in marks:
        return Segment(marks[piece], trusted=False)
    return Segment(piece, trusted=True)
