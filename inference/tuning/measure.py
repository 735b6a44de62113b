"""What a model file does on this machine; runs in a child of its own.

`python -m inference.tuning.measure FILE REFERENCE` prints progress (whole percents) and then
one line of JSON (class Figures). Quality is told against the reference file, on the passage
beside this module.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from inference.engines.llama_library import Context, Entry, Weights
from inference.engines.template import Segment
from inference.engines.threads import HOPELESS, counts

STREAMS = (1, 4, 16)
DEPTH = 128  # tokens each stream has before its steps are timed
SPARE = max(STREAMS)  # a slot for trials
STEPS = 9
CHUNK = 64
PASSAGE = Path(__file__).with_name("passage.txt")
Logprobs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Figures:
    """tokens_per_second: of all streams together, by their number. first_token_ms: of a prompt of
    128 tokens. memory_bytes: the most the process held, cache included. perplexity: of the
    passage; divergence: mean, in nats a token, from the reference; agreement: share of the
    places where both think the same token likeliest."""

    tokens_per_second: dict[int, float]
    first_token_ms: float
    load_seconds: float
    memory_bytes: int
    perplexity: float
    divergence: float
    agreement: float


class Bench:
    """A file loaded with a cache for the most streams."""

    def __init__(self, path: Path) -> None:
        started = time.perf_counter()
        self.weights = Weights(path, lambda percent: None)
        self.context = Context(self.weights, SPARE + 1, 2 * DEPTH, CHUNK)
        self.load_seconds = time.perf_counter() - started
        self.context.use_threads(1)
        self._trial()  # the first evaluation also prepares memory

    def close(self) -> None:
        self.context.free()
        self.weights.free()

    def prefill(self, slot: int) -> float:
        """Seconds to read DEPTH tokens."""
        self.context.forget(slot, 0)
        started = time.perf_counter()
        for start in range(0, DEPTH, CHUNK):
            places = range(start, start + CHUNK)
            self.context.decode([Entry(100 + p, p, slot, p == DEPTH - 1) for p in places])
        return time.perf_counter() - started

    def step(self, streams: int) -> float:
        """Seconds of one step; the cache is left as it was."""
        entries = [Entry(7, DEPTH, slot, wanted=True) for slot in range(streams)]
        started = time.perf_counter()
        self.context.decode(entries)
        seconds = time.perf_counter() - started
        for slot in range(streams):
            self.context.forget(slot, DEPTH)
        return seconds

    def best_step(self, streams: int) -> float:
        return self.fastest(lambda: median(self.step(streams) for _ in range(STEPS)))

    def fastest(self, work: Callable[[], float]) -> float:
        """The least seconds over the thread counts of this machine.

        A count that is hopeless in a small trial is not worked with: on a busy machine, threads
        that wait for each other can be a hundred times as slow.
        """
        best = bound = float("inf")
        for count in counts():
            self.context.use_threads(count)
            tried = min(self._trial(), self._trial())
            if tried < HOPELESS * bound:
                bound = min(bound, tried)
                best = min(best, work())
        return best

    def _trial(self) -> float:
        started = time.perf_counter()
        self.context.decode([Entry(7, 0, SPARE, wanted=True)])
        self.context.forget(SPARE, 0)
        return time.perf_counter() - started


def logprobs(path: Path) -> tuple[Logprobs, list[int]]:
    """Of every next token of the passage: (places, vocabulary), and the tokens."""
    weights = Weights(path, lambda percent: None)
    tokens = weights.tokenize([Segment(PASSAGE.read_text(), trusted=False)])
    context = Context(weights, 1, len(tokens) + 1, CHUNK)
    context.use_threads(1)
    rows = []
    for start in range(0, len(tokens), CHUNK):
        piece = tokens[start : start + CHUNK]
        entries = [Entry(t, start + i, 0, wanted=True) for i, t in enumerate(piece)]
        rows += [log_softmax(row) for row in context.decode(entries) or ()]
    context.free()
    weights.free()
    return np.stack(rows), tokens


def log_softmax(logits: NDArray[np.float32]) -> Logprobs:
    shifted: Logprobs = logits - logits.max()
    shifted -= np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    return shifted


def quality(found: Logprobs, reference: Logprobs, tokens: Sequence[int]) -> dict[str, float]:
    told = found[np.arange(len(tokens) - 1), np.array(tokens[1:])]
    divergence = (np.exp(reference) * (reference - found)).sum(axis=1, dtype=np.float64)
    agreement = (found.argmax(axis=1) == reference.argmax(axis=1)).mean()
    return {
        "perplexity": float(np.exp(-told.mean(dtype=np.float64))),
        "divergence": float(divergence.mean()),
        "agreement": float(agreement),
    }


def measure(path: Path, reference: Path, progress: Callable[[int], None]) -> Figures:
    bench = Bench(path)
    progress(10)
    first = bench.fastest(lambda: bench.prefill(0))
    bench.context.use_threads(1)
    for slot in range(max(STREAMS)):
        bench.prefill(slot)
    progress(40)
    speeds = {streams: streams / bench.best_step(streams) for streams in STREAMS}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bench.close()
    progress(70)
    found, tokens = logprobs(path)
    progress(85)
    known = found if path == reference else logprobs(reference)[0]
    facts = quality(found, known, tokens)
    return Figures(speeds, 1000 * first, bench.load_seconds, memory, **facts)


if __name__ == "__main__":
    file, compared_with = map(Path, sys.argv[1:3])
    result = measure(file, compared_with, lambda percent: print(percent, flush=True))
    print(json.dumps(asdict(result)))
