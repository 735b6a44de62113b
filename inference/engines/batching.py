"""Continuous batching: one thread, many runs a step, prompts in chunks between the steps.

A step evaluates the last token of every run that is past its prompt, and guesses of the next
ones where few runs are at work. Then, at most one chunk of one prompt is evaluated, of a size
with which the others wait for about three of their steps (more, when more people wait for a prompt
than are answered).
A token's values depend only on the tokens before it, to the bit, whatever the step or chunk
(docs/architecture.md); so who else is at work, what was found evaluated already and what was
guessed changes no answer.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from inference.engines.base import DECODE_SECONDS, PREFILL_SECONDS, Delta, EngineError, hash_of
from inference.engines.llama_library import Context, Entry, Weights
from inference.engines.mail import Item, Outbox
from inference.engines.runs import Run
from inference.engines.sampler import Logits
from inference.engines.slots import Slot, place
from inference.engines.threads import Threads, counts

CHUNK = 64  # most prompt tokens in one call: a larger one is not faster on a CPU
SMALLEST_CHUNK = 4  # and others are multiples of it: the kernels take five as long as eight
BEGINNING = 5  # a call takes as long as so many tokens more: the weights are read once
GAP_STEPS = 3.1  # from one token of a running answer to the next, a chunk between them
LEAST_STEPS = 1.0  # that a chunk may take, however slow the steps have become meanwhile
MOST_WEIGHT = 4  # as many times as long, when more people wait for a prompt than are answered
SMOOTHING = 0.25
CALM_SMOOTHING = 0.1  # it may have to serve for long
GUESS_UP_TO = 2  # runs at work; with more, the others' tokens fill the processor already


@dataclass(slots=True)
class Tempo:
    """How long things take now, in seconds: a step, and a token in a chunk beside steps."""

    step: float = 0.0
    calm: float = 0.0  # a step before there was a prompt to read; 0: not known
    answering: int = 0  # runs in that step
    token: float = 0.0

    def step_took(self, seconds: float, answering: int, calm: bool) -> None:
        if answering != self.answering:
            self.step = self.calm = 0.0
        self.step = _towards(self.step, seconds)
        if calm:
            self.calm = _towards(self.calm, seconds, CALM_SMOOTHING)
        self.answering = answering

    def chunk_took(self, seconds: float, tokens: int) -> None:
        self.token = _towards(self.token, seconds / (BEGINNING + tokens))

    def chunk(self, weight: float = 1.0) -> int:
        """How many tokens of a prompt may come between two steps; `weight` times the usual.

        Steps get longer while a prompt is read, with their answers: chunks get shorter by that.
        """
        if not self.token:
            return SMALLEST_CHUNK
        left = GAP_STEPS * (self.calm or self.step) - self.step
        size = int(weight * max(left, LEAST_STEPS * self.step) / self.token) - BEGINNING
        size -= size % SMALLEST_CHUNK
        return max(SMALLEST_CHUNK, min(size, CHUNK))


def _towards(old: float, new: float, smoothing: float = SMOOTHING) -> float:
    """One slow call in a busy machine is not how things are now."""
    return old + smoothing * (new - old) if old else new


@dataclass(slots=True)
class Part:
    """What one run has in a call: its last token and guesses of the next ones."""

    run: Run
    entries: list[Entry]
    guesses: list[int] = field(default_factory=list)


class Batcher:
    """reproducible: each answer alone, and each of its tokens in one and the same way.

    For a llama.cpp whose values depend on how a token is evaluated. Takes one slot and a
    fixed count of threads.
    """

    def __init__(
        self, weights: Weights, context: Context, slots: int, threads: int = 0,
        reproducible: bool = False,
    ) -> None:  # fmt: skip
        self._weights = weights
        self._context = context
        self._slots = [Slot(number) for number in range(slots)]
        self._waiting: deque[Run] = deque()
        self._wake = threading.Condition()
        self._outbox = Outbox()
        self._in_chunk: Run | None = None
        self._stopping = False
        self._ready: Future[None] = Future()
        self._progress_at = time.monotonic()
        self._tempo = Tempo()
        self._reproducible = reproducible
        options = [threads] if threads else counts()
        self.step_threads, self.chunk_threads = Threads(options), Threads(options)
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)

    # --- from any thread ------------------------------------------------------------------
    def start(self) -> None:
        """Returns when it is ready for work. Raises EngineError if the model cannot evaluate."""
        self._thread.start()
        self._ready.result()

    def submit(self, run: Run) -> None:
        with self._wake:
            if self._stopping:
                raise EngineError("The engine is stopping.")
            if not self.busy:
                self._progress_at = time.monotonic()  # idle time is no lack of progress
            if self._reproducible:
                run.scope, run.shared = "", 0  # reuses nothing
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
        return len(self._runs) + len(self._waiting)

    def seconds_without_progress(self) -> float:
        return time.monotonic() - self._progress_at if self.busy else 0.0

    def most_seconds_without_progress(self) -> float:
        return PREFILL_SECONDS if self._in_chunk else DECODE_SECONDS

    # --- the decode thread ----------------------------------------------------------------
    def _work(self) -> None:
        try:
            self._calibrate()
        except Exception as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        while self._await_work():
            try:
                self._step()
                self._prompt_chunk()
            except Exception as error:
                self._fail_all(error)
            self._outbox.flush()
            self._progress_at = time.monotonic()

    def _calibrate(self) -> None:
        """In this thread: each one that calls llama.cpp gets helpers of its own from OpenMP, and
        when there are more of them than cores they no longer spin at all."""
        self._context.seconds(1, 1)  # the first evaluation also brings the weights into memory
        self.step_threads.calibrate(lambda count: self._context.seconds(count, 1))
        self.chunk_threads.calibrate(lambda count: self._context.seconds(count, CHUNK // 4))

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
                slot.free()

    def _admit(self) -> None:
        while self._waiting and (found := place(self._waiting[0], self._slots)):
            run, slot = self._waiting.popleft(), found.slot
            tokens = found.source.tokens[: found.kept]
            if found.source is not slot:
                self._context.copy(found.source.number, slot.number)
            self._context.forget(slot.number, found.kept)
            slot.tokens, slot.scope, slot.shared = tokens, run.scope, run.shared
            run.slot, slot.run = slot, run
            run.cached = min(found.kept, run.prompt_tokens)
            read = hash_of(run.inputs[: run.prompt_tokens])
            self._outbox.add(run.box, Delta(usage=run.usage, prompt_sha256=read))

    # --- steps: the running answers -------------------------------------------------------
    def _step(self) -> None:
        """The last token of every run that is past its prompt, in one call."""
        runs = [run for run in self._runs if run.is_answering]
        if not runs:
            return
        parts = [self._part(run, guesses) for run, guesses in self._guesses(runs)]
        entries = [entry for part in parts for entry in part.entries]
        started = time.perf_counter()
        rows = self._decode(self.step_threads, entries)
        if rows is None:
            return  # only stop() aborts a step
        is_calm = len(runs) == len(self._runs) and not any(part.guesses for part in parts)
        self._tempo.step_took(time.perf_counter() - started, len(runs), is_calm)
        for part in parts:
            self._follow(part, [next(rows) for _ in part.entries])

    def _guesses(self, runs: Sequence[Run]) -> list[tuple[Run, list[int]]]:
        """Guesses for few runs, equally many each: uneven parts take a pass over the weights each.

        None while a prompt waits for its chunk: it would wait longer.
        """
        someone_waits = len(runs) < len(self._runs)
        if len(runs) > GUESS_UP_TO or someone_waits or self._reproducible:
            return [(run, []) for run in runs]
        guesses = [run.lookup.guess(run.inputs, self._room_to_guess(run)) for run in runs]
        length = min(map(len, guesses))
        return [(run, guess[:length]) for run, guess in zip(runs, guesses, strict=True)]

    def _room_to_guess(self, run: Run) -> int:
        left = run.request.sampling.max_tokens - len(run.answer)
        free: int = self._context.tokens - len(run.inputs)
        return max(0, min(left, free) - 1)

    def _part(self, run: Run, guesses: list[int]) -> Part:
        assert run.slot is not None
        tokens = [run.inputs[-1], *guesses]
        number, start = run.slot.number, run.position
        entries = [Entry(t, start + i, number, wanted=True) for i, t in enumerate(tokens)]
        return Part(run, entries, guesses)

    def _follow(self, part: Part, rows: Sequence[Logits]) -> None:
        """Choose token after token as long as each is the one that was guessed."""
        run, slot, right = part.run, part.run.slot, 0
        assert slot is not None
        for index, logits in enumerate(rows):
            slot.tokens.append(part.entries[index].token)
            if self._choose(run, slot, logits):
                break
            if part.guesses[index : index + 1] != run.inputs[-1:]:
                break
            right += 1
        if part.guesses:
            run.lookup.judge(len(part.guesses), right)
            self._context.forget(slot.number, len(slot.tokens))

    # --- chunks: prompts ------------------------------------------------------------------
    def _prompt_chunk(self) -> None:
        """The next chunk of the prompt that has waited longest for one."""
        slots = [slot for slot in self._slots if slot.run and not slot.run.is_answering]
        if not slots:
            return
        slot = min(slots, key=lambda slot: slot.used_at)
        slot.used_at = time.monotonic()
        assert slot.run is not None
        run, entries = slot.run, self._chunk(slot.run, slot)
        started = time.perf_counter()
        rows = self._decode_chunk(run, entries)
        if rows is None:
            self._context.forget(slot.number, len(slot.tokens))  # what was read before stays
            return
        if self._someone_answers:
            self._tempo.chunk_took(time.perf_counter() - started, len(entries))
        slot.tokens.extend(entry.token for entry in entries)
        if run.position == len(run.inputs):
            self._choose(run, slot, rows[-1])

    def _chunk(self, run: Run, slot: Slot) -> list[Entry]:
        start, last = run.position, len(run.inputs) - 1
        if self._reproducible:  # of an answer that is gone on with, too, as if it had not ended
            last = run.prompt_tokens - 1
        tokens = run.inputs[start : start + self._chunk_size(run)]
        return [Entry(t, start + i, slot.number, start + i >= last) for i, t in enumerate(tokens)]

    def _chunk_size(self, run: Run) -> int:
        """Small enough beside running answers: they all wait for each chunk."""
        if self._reproducible:
            return max(1, min(CHUNK, run.prompt_tokens - run.position))
        if not self._someone_answers:
            return CHUNK
        weight = self._people(waiting=True) / self._people(waiting=False)
        return self._tempo.chunk(min(MOST_WEIGHT, max(1, weight)))

    def _people(self, waiting: bool) -> int:
        """Of whose runs some wait for their first token, or for their next one.

        Scopes and not runs, so that nobody slows others down by asking much: a person has one
        for answers and one for titles. A run without one is somebody's of its own.
        """
        return len({r.scope or id(r) for r in self._runs if r.is_answering is not waiting})

    @property
    def _someone_answers(self) -> bool:
        return any(run.is_answering for run in self._runs)

    @property
    def _runs(self) -> list[Run]:
        return [run for slot in self._slots if (run := slot.run)]

    def _decode_chunk(self, run: Run, entries: list[Entry]) -> list[Logits] | None:
        self._outbox.flush()
        with self._wake:
            if run.cancelled or self._stopping:
                return None
            self._in_chunk = run
        try:
            rows = self._decode(self.chunk_threads, entries)
            return None if rows is None else list(rows)
        finally:
            with self._wake:
                self._progress_at = time.monotonic()  # it may have had more time than a step has
                self._in_chunk = None
                if not self._stopping:
                    self._context.abort.lower()

    # --- both -----------------------------------------------------------------------------
    def _decode(self, threads: Threads, entries: list[Entry]) -> Iterator[Logits] | None:
        count = threads.next()
        self._context.use_threads(count)
        started = time.perf_counter()
        rows = self._context.decode(entries)
        seconds = time.perf_counter() - started
        if threads is self.chunk_threads:  # whose sizes vary: what is compared is a token's share
            threads.took(count, 1, seconds / (BEGINNING + len(entries)))
        else:
            threads.took(count, len(entries), seconds)
        return None if rows is None else iter(rows)

    def _choose(self, run: Run, slot: Slot, logits: Logits) -> bool:
        """Choose the next token and deliver it; True when that ended the answer."""
        try:
            room = self._context.tokens
            items: list[Item] = [*run.take(logits, self._weights.ends_answer, room)]
        except Exception as error:  # this run's own fault: the others go on
            items = [error]
        for item in items:
            self._outbox.add(run.box, item)
        ended = isinstance(items[-1], Exception) or bool(items[-1].finish)
        if ended:
            slot.free()
        return ended

    def _fail_all(self, error: Exception) -> None:
        """The cache's state is unknown: end every run with the error and start from empty slots."""
        for slot in self._slots:
            if slot.run:
                self._outbox.add(slot.run.box, error)
            slot.free()
            slot.tokens = []
            self._context.forget(slot.number, 0)
