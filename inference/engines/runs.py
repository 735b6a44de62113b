"""A request on its way through the batcher."""

from collections.abc import Callable

from inference.engines.base import Delta, FinishReason, Request, Usage
from inference.engines.lookup import Lookup
from inference.engines.mail import Mailbox
from inference.engines.sampler import Logits, Sampler
from inference.engines.slots import Slot
from inference.engines.text import TextAssembler


class Run:
    """One answer under way. Belongs to the decode thread once submitted.

    shared: how many of the prompt's first tokens are the operator's own words.
    sampler: has accepted the tokens emitted earlier.
    """

    def __init__(
        self, request: Request, prompt: list[int], shared: int, sampler: Sampler, box: Mailbox,
        text: TextAssembler,
    ) -> None:  # fmt: skip
        self.request = request
        self.scope = request.scope
        self.shared = shared
        self.prompt_tokens = len(prompt)
        self.box = box
        self.text = text
        self.sampler = sampler
        self.answer = list(request.emitted)
        self.inputs = prompt + self.answer
        self.cached = 0
        self.lookup = Lookup()
        self.slot: Slot | None = None
        self.cancelled = False
        for token in request.emitted:
            text.feed(token)

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.cached, len(self.answer))

    @property
    def position(self) -> int:
        return len(self.slot.tokens) if self.slot else 0

    @property
    def is_answering(self) -> bool:
        """Whether only its last token is still to be evaluated."""
        return self.position == len(self.inputs) - 1

    def ended_by(self, room: int) -> FinishReason | None:
        """Why the tokens so far end the answer, if they do."""
        if not self.answer:
            return None
        if self.text.stopped:
            return "stop"
        if self.sampler.is_complete:
            return "end"
        if len(self.answer) >= self.request.sampling.max_tokens:
            return "length"
        return "context" if len(self.inputs) > room else None

    def take(self, logits: Logits, ends_answer: Callable[[int], bool], room: int) -> list[Delta]:
        """Choose the next token: the deltas to deliver, the last with `finish` if it ended."""
        token = self.sampler.choose(logits)
        if ends_answer(token):
            return [self.last("end")]
        self.answer.append(token)
        self.sampler.accept(token)
        logprobs = self.sampler.explain(logits, token)
        self.inputs.append(token)
        delta = Delta(text=self.text.feed(token), token_ids=(token,), logprobs=logprobs)
        reason = self.ended_by(room)
        return [delta, self.last(reason)] if reason else [delta]

    def last(self, reason: FinishReason) -> Delta:
        # What is held back of an answer that may be continued comes with the continuation.
        text = self.text.flush() if reason == "end" else ""
        return Delta(text=text, finish=reason, usage=self.usage)
