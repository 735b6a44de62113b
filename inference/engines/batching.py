"""Continuous batching: one thread, many runs a step, prompts in chunks between the steps.

A step evaluates one token of every run that is past its prompt; then, at most one prompt
chunk of one run is evaluated, so that a long prompt never holds the others up for longer
than one chunk. Chunks and steps are separate calls: a token's values then depend only on
its own run (inference/engines/evaluation.py).
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.engines.base import Delta, EngineError, FinishReason, Request, Usage
from inference.engines.evaluation import Evaluated, remaining
from inference.engines.llama_library import Context, Entry, Weights
from inference.engines.sampler import Logits, Sampler
from inference.engines.text import TextAssembler

CROWD = 5  # answers under way
Deliver = Callable[[Delta | Exception], None]


class Run:
    """A request on its way through the batcher. Belongs to the decode thread once submitted."""

    def __init__(
        self, request: Request, prompt: list[int], deliver: Deliver, text: TextAssembler,
        sampler: Sampler,
    ):  # fmt: skip
        self.request = request
        self.prompt_tokens = len(prompt)
        self.deliver = deliver
        self.text = text
        self.sampler = sampler
        self.answer = list(request.emitted)
        self.inputs = prompt + self.answer
        self.cached = 0
        self.todo: deque[int] = deque()
        self.slot: Slot | None = None
        self.cancelled = False
        for token in request.emitted:
            text.feed(token)

    def has_ended(self, room: int) -> bool:
        """Whether the tokens emitted earlier already ended the answer; delivers that end."""
        emitted = bool(self.answer)
        if emitted and self.text.stopped:
            return self._finish("stop")
        if self.sampler.is_complete:
            return self._finish("end")
        if len(self.answer) >= self.request.sampling.max_tokens:
            return self._finish("length")
        return self._finish("context") if emitted and len(self.inputs) > room else False

    @property
    def position(self) -> int:
        return len(self.slot.evaluated.tokens) if self.slot else 0

    @property
    def in_prompt_chunks(self) -> bool:
        return bool(self.todo) and self.todo[0] > 0

    def take(self, logits: Logits, ends_answer: Callable[[int], bool], room: int) -> bool:
        """Choose the next token and deliver it; True when that ended the answer."""
        token = self.sampler.choose(logits)
        if ends_answer(token):
            return self._finish("end")
        self.answer.append(token)
        self.sampler.accept(token)
        logprobs = self.sampler.explain(logits, token)
        self.deliver(Delta(text=self.text.feed(token), token_ids=(token,), logprobs=logprobs))
        self.inputs.append(token)
        return self.has_ended(room)

    def _finish(self, reason: FinishReason) -> bool:
        usage = Usage(self.prompt_tokens, self.cached, len(self.answer))
        # What is held back of an answer that may be continued comes with the continuation.
        text = self.text.flush() if reason == "end" else ""
        self.deliver(Delta(text=text, finish=reason, usage=usage))
        return True


@dataclass(slots=True)
class Slot:
    """One sequence of the context's cache; keeps what it holds for the next run of its scope."""

    number: int
    evaluated: Evaluated = field(default_factory=Evaluated)
    scope: str = ""
    run: Run | None = None
    used_at: float = 0.0


class Batcher:
    def __init__(self, weights: Weights, context: Context, slots: int, chunk: int) -> None:
        self._weights = weights
        self._context = context
        self._chunk = chunk
        self._slots = [Slot(number) for number in range(slots)]
        self._waiting: deque[Run] = deque()
        self._wake = threading.Condition()
        self._in_chunk: Run | None = None
        self._stopping = False
        self._progress_at = time.monotonic()
        self.step_threads = self.chunk_threads = 1
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)

    # --- from any thread ------------------------------------------------------------------
    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Run) -> None:
        with self._wake:
            if self._stopping:
                raise EngineError("The engine is stopping.")
            if not self.busy:
                self._progress_at = time.monotonic()  # idle time is no lack of progress
            self._waiting.append(run)
            self._wake.notify()

    def cancel(self, run: Run) -> None:
        """Give the run's slot back within one decode step, or in the middle of its prompt chunk."""
        with self._wake:
            run.cancelled = True
            if self._in_chunk is run:
                self._context.abort.raise_()
            self._wake.notify()

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._context.abort.raise_()
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def busy(self) -> int:
        return sum(slot.run is not None for slot in self._slots) + len(self._waiting)

    def seconds_without_progress(self) -> float:
        return time.monotonic() - self._progress_at if self.busy else 0.0

    # --- the decode thread ----------------------------------------------------------------
    def _work(self) -> None:
        while self._await_work():
            try:
                self._step([slot for slot in self._slots if slot.run])
                self._prompt_chunk()
            except Exception as error:
                self._fail_all(error)
            self._progress_at = time.monotonic()

    def _await_work(self) -> bool:
        with self._wake:
            self._drop_cancelled()
            while not self._stopping and not self.busy:
                self._wake.wait()
                self._progress_at = time.monotonic()
                self._drop_cancelled()
            self._admit()
            return not self._stopping

    def _drop_cancelled(self) -> None:
        self._waiting = deque(run for run in self._waiting if not run.cancelled)
        for slot in self._slots:
            if slot.run and slot.run.cancelled:
                self._free(slot)

    def _admit(self) -> None:
        while self._waiting and (free := [slot for slot in self._slots if not slot.run]):
            run = self._waiting.popleft()
            self._place(run, free)

    def _place(self, run: Run, free: list[Slot]) -> None:
        """Put a run where most of its prompt is evaluated already, else in the stalest slot."""
        prompt = run.inputs[: run.prompt_tokens]
        fixed = run.request.evaluation

        def kept_by(slot: Slot) -> Evaluated:
            shared = run.request.scope and slot.scope == run.request.scope
            return slot.evaluated.keep(prompt, fixed) if shared else Evaluated()

        kept, slot = max(
            ((kept_by(slot), slot) for slot in free),
            key=lambda pair: (len(pair[0].tokens), -pair[1].used_at),
        )
        self._context.forget(slot.number, len(kept.tokens))
        run.cached = len(kept.tokens)
        run.todo = deque(remaining(kept, len(prompt), fixed, self._chunk_size()))
        run.slot, slot.run = slot, run
        slot.evaluated, slot.scope = kept, run.request.scope
        usage = Usage(len(prompt), run.cached, len(run.answer))
        run.deliver(Delta(evaluation=fixed or (*kept.pieces, *run.todo), usage=usage))

    def _chunk_size(self) -> int:
        """Smaller among many answers: they all wait for each chunk."""
        answering = sum(bool(slot.run and not slot.run.in_prompt_chunks) for slot in self._slots)
        return self._chunk // 2 if answering >= CROWD else self._chunk

    def _step(self, slots: list[Slot]) -> None:
        """One token of every run that is past its prompt chunks, in one call."""
        runs = [slot.run for slot in slots if slot.run and not slot.run.in_prompt_chunks]
        if not runs:
            return
        self._context.use_threads(self.step_threads)
        entries = [self._entry(run, run.position) for run in runs]
        logits = self._context.decode(entries)
        if logits is None:
            return  # only stop() aborts a step
        for run, entry in zip(runs, entries, strict=True):
            self._stepped(run, entry, logits.get(entry.slot))

    def _entry(self, run: Run, position: int) -> Entry:
        assert run.slot is not None
        last = position == len(run.inputs) - 1
        return Entry(run.inputs[position], position, run.slot.number, wanted=last)

    def _stepped(self, run: Run, entry: Entry, logits: Logits | None) -> None:
        assert run.slot is not None
        run.slot.evaluated.add_step(entry.token)
        if run.todo:
            run.todo[0] += 1
            if run.todo[0] == 0:
                run.todo.popleft()
        if logits is not None:
            self._choose(run, run.slot, logits)

    def _prompt_chunk(self) -> None:
        """The next chunk of the prompt that has waited longest for one."""
        slots = [slot for slot in self._slots if slot.run and slot.run.in_prompt_chunks]
        if not slots:
            return
        slot = min(slots, key=lambda slot: slot.used_at)
        slot.used_at = time.monotonic()
        assert slot.run is not None
        run, start = slot.run, slot.run.position
        entries = [self._entry(run, start + offset) for offset in range(run.todo[0])]
        logits = self._decode_chunk(run, entries)
        if logits is None:
            self._context.forget(slot.number, 0)
            slot.evaluated = Evaluated()
            return
        run.todo.popleft()
        slot.evaluated.add_chunk(entry.token for entry in entries)
        if slot.number in logits:
            self._choose(run, slot, logits[slot.number])

    def _decode_chunk(self, run: Run, entries: list[Entry]) -> dict[int, Logits] | None:
        with self._wake:
            if run.cancelled or self._stopping:
                return None
            self._in_chunk = run
        self._context.use_threads(self.chunk_threads)
        try:
            return self._context.decode(entries)
        finally:
            with self._wake:
                self._in_chunk = None
                if not self._stopping:
                    self._context.abort.lower()

    def _choose(self, run: Run, slot: Slot, logits: Logits) -> None:
        try:
            ended = run.take(logits, self._weights.ends_answer, self._context.tokens)
        except Exception as error:  # this run's own fault: the others go on
            run.deliver(error)
            ended = True
        if ended:
            self._free(slot)

    def _free(self, slot: Slot) -> None:
        slot.run = None
        slot.used_at = time.monotonic()

    def _fail_all(self, error: Exception) -> None:
        """The cache's state is unknown: end every run with the error and start from empty slots."""
        for slot in self._slots:
            if slot.run:
                slot.run.deliver(error)
            self._free(slot)
            slot.evaluated = Evaluated()
            self._context.forget(slot.number, 0)


def deliver_to(queue: "asyncio.Queue[Delta | Exception]") -> Deliver:
    """A way for the decode thread to put things into a queue of the running event loop."""
    loop = asyncio.get_running_loop()

    def deliver(item: Delta | Exception) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody is left to read
            return

    return deliver
