"""Choosing the next token from logits, repeatably."""

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import EngineError, RequestRefused, Sampling, TokenLogprob
from inference.engines.json_schema import reading

Logits = NDArray[np.float32]
Ids = NDArray[np.intp]
Chances = NDArray[np.float64]
CANDIDATES = 256  # most tokens considered when top_k does not say fewer
LOOKED_THROUGH = 512  # likeliest tokens tried against a grammar before all; more than BIASES
GROUP = 32  # tokens looked at together in search of the largest


def uniform(seed: int, position: int, again: int = 0) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the token's position.

    This is what lets a run that was interrupted draw the very numbers it would have drawn.
    `again`: another number for the same position.
    """
    place = position | again << 63
    digest = hashlib.blake2b(struct.pack("<QQ", seed, place), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


class Vocabulary:
    """A model's tokens: how many, the bytes of each, and which end an answer."""

    def __init__(
        self, size: int, piece: Callable[[int], bytes], ends_answer: Callable[[int], bool]
    ) -> None:
        self.size = size
        self.piece = piece
        self.ends_answer = ends_answer

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token. Takes a quarter of a second; kept."""
        return [self.piece(token) for token in range(self.size)]

    @cached_property
    def ends(self) -> frozenset[int]:
        return frozenset(filter(self.ends_answer, range(self.size)))

    @cached_property
    def written(self) -> tuple[list[bytes], Ids]:
        """The pieces of the tokens that write something, in order, and the tokens."""
        pieces, ends = self.pieces, self.ends
        tokens = [token for token in range(self.size) if pieces[token] and token not in ends]
        tokens.sort(key=pieces.__getitem__)
        return [pieces[token] for token in tokens], np.array(tokens, np.intp)


class Sampler:
    """Chooses the tokens of one answer. `accept` tells it each token of the answer in turn.

    Raises RequestRefused for a bias of a token the vocabulary does not have.
    """

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary) -> None:
        self._sampling = sampling
        self._vocabulary = vocabulary
        self._count = 0
        self._recent = np.zeros(sampling.repeat_window, np.intp)  # the newest, as a ring
        self._counts: Counter[int] = Counter()
        self._biased = np.array([token for token, _ in sampling.logit_bias], np.intp)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        if self._biased.size and self._biased[-1] >= vocabulary.size:
            raise RequestRefused(
                f"logit_bias names token {self._biased[-1]}; this model has {vocabulary.size}."
            )
        self._grammar = None
        if sampling.json_schema:
            self._grammar = reading(sampling.json_schema)
            _ = vocabulary.written  # made here, not in the decode thread

    @property
    def is_complete(self) -> bool:
        """Whether the answer has all that its grammar wants, so that nothing can follow."""
        return self._grammar is not None and self._grammar.must_end

    def accept(self, token: int) -> None:
        """Go on by this token. Raises EngineError if the grammar forbids it."""
        if self._grammar and not self._grammar.accept(self._vocabulary.piece(token)):
            raise EngineError("The answer so far does not follow json_schema.")
        if self._recent.size:
            self._recent[self._count % self._recent.size] = token
        self._counts[token] += 1
        self._count += 1

    def choose(self, logits: Logits) -> int:
        """The next token. Raises EngineError where the grammar leaves none."""
        changed = self._adjust(logits)
        try:
            ids, chances = self._likely(logits)
            token = self._draw(ids, chances)
            return token if self._allows(token) else self._choose_allowed(logits, ids, chances)
        finally:
            for ids, values in reversed(changed):
                logits[ids] = values

    def explain(self, logits: Logits, token: int) -> tuple[TokenLogprob, ...]:
        """The log-probability of a token as the model gave it, if they are asked for."""
        if self._sampling.logprobs is None:
            return ()
        highest = logits.max()
        total = float(highest) + math.log(np.exp(logits - highest).sum(dtype=np.float64))
        top = largest(logits, self._sampling.logprobs).tolist() if self._sampling.logprobs else ()
        piece = self._vocabulary.piece
        likeliest = tuple((each, piece(each), float(logits[each]) - total) for each in top)
        return (TokenLogprob(token, piece(token), float(logits[token]) - total, likeliest),)

    # --- penalties and biases -------------------------------------------------------------
    def _adjust(self, logits: Logits) -> list[tuple[Ids, Logits]]:
        """Changes the logits in place, which spares a copy of all; returns what they were."""
        changed = []
        recent = self._recent[: self._count]
        if recent.size and self._sampling.repeat_penalty != 1:
            values = logits[recent]
            changed.append((recent, values))
            penalty = np.float32(self._sampling.repeat_penalty)
            logits[recent] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts and (self._sampling.frequency_penalty or self._sampling.presence_penalty):
            used = np.fromiter(self._counts.keys(), np.intp)
            times = np.fromiter(self._counts.values(), np.float32)
            changed.append((used, logits[used]))
            logits[used] -= times * np.float32(self._sampling.frequency_penalty)
            logits[used] -= np.float32(self._sampling.presence_penalty)
        if self._biased.size:
            changed.append((self._biased, logits[self._biased]))
            logits[self._biased] += self._biases
        return changed

    # --- candidates and the draw ----------------------------------------------------------
    def _likely(self, logits: Logits, among: Ids | None = None) -> tuple[Ids, Chances]:
        """Tokens left after top_k, min_p and top_p, likeliest first, with probabilities."""
        sampling = self._sampling
        count = min(sampling.top_k or CANDIDATES, CANDIDATES) if sampling.temperature else 1
        ids = largest(logits, count) if among is None else among[largest(logits[among], count)]
        if sampling.temperature == 0:
            return ids, np.ones(1)
        scaled = logits[ids].astype(np.float64) / sampling.temperature
        chances = np.exp(scaled - scaled[0])
        chances /= chances.sum()
        keep = chances >= sampling.min_p * chances[0]
        keep &= chances.cumsum() - chances < (sampling.top_p or 1e-9)
        return ids[keep], chances[keep]

    def _draw(self, ids: Ids, chances: Chances, again: int = 0) -> int:
        point = uniform(self._sampling.seed, self._count, again) * chances.sum()
        return int(ids[min(chances.cumsum().searchsorted(point, "right"), len(ids) - 1)])

    # --- the grammar ----------------------------------------------------------------------
    def _allows(self, token: int) -> bool:
        if self._grammar is None:
            return True
        if token in self._vocabulary.ends:
            return self._grammar.may_end
        piece = self._vocabulary.pieces[token]
        return bool(piece) and self._grammar.allows(piece)

    def _choose_allowed(self, logits: Logits, ids: Ids, chances: Chances) -> int:
        """Drawn anew among the allowed ones of these; if there are none, of the next likeliest.

        Drawing first and looking then gives each token the same chance as looking at all
        first, and nearly always one look is enough.
        """
        allowed = np.array([self._allows(token) for token in ids.tolist()])
        if allowed.any():
            return self._draw(ids[allowed], chances[allowed], again=1)
        likeliest = filter(self._allows, largest(logits, LOOKED_THROUGH).tolist())
        some = sorted(islice(likeliest, CANDIDATES))
        among = np.array(some, np.intp) if some else self._all_allowed()
        return self._draw(*self._likely(logits, among), again=1)

    def _all_allowed(self) -> Ids:
        assert self._grammar is not None
        pieces, tokens = self._vocabulary.written
        found = tokens[self._grammar.allowed(pieces)]
        if self._grammar.may_end:
            found = np.append(found, np.array(sorted(self._vocabulary.ends), np.intp))
        if not found.size:
            raise EngineError("This model has no token that json_schema allows here.")
        return np.sort(found)


def largest(values: Logits, count: int) -> Ids:
    """The indexes of the `count` largest values, largest first; of equal ones the lower first."""
    if count == 1:
        return np.array([values.argmax()])
    near = _near(values, count)
    order = np.argsort(-values[near], kind="stable")
    return near[order[:count]]


def _near(values: Logits, count: int) -> Ids:
    """The indexes, in order, of few values with the `count` largest among them.

    The values are looked at in groups (of every n-th), in one pass: as many groups have a
    largest value of at least `least` as values are wanted, so none below it is.
    """
    groups = values.size // GROUP
    if groups <= count:
        return np.arange(values.size)
    grouped = values[: groups * GROUP].reshape(GROUP, groups)
    best = grouped.max(axis=0)
    least = np.partition(best, groups - count)[groups - count]
    first = np.flatnonzero(best >= least)
    indexes: Ids = (np.arange(0, groups * GROUP, groups)[:, None] + first).ravel()
    if groups * GROUP < values.size:
        indexes = np.append(indexes, np.arange(groups * GROUP, values.size))
    near: Ids = indexes[values[indexes] >= least]
    return near
