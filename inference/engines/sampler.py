"""Choosing the next token from logits, repeatably."""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Sampling

Logits = NDArray[np.float32]
NEAR = np.float32(10)  # below the maximum: e^-10 of its probability
CANDIDATES = 256  # most tokens considered when top_k does not say fewer


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the token's position.

    This is what lets a run that was interrupted draw the very numbers it would have drawn.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def choose(logits: Logits, sampling: Sampling, previous: Sequence[int]) -> int:
    """The next token of an answer whose tokens so far are `previous`."""
    logits = _penalised(logits, sampling, previous)
    if sampling.temperature == 0:
        return int(logits.argmax())
    ids, probabilities = _candidates(logits, sampling)
    point = uniform(sampling.seed, len(previous)) * probabilities.sum()
    return int(ids[min(np.searchsorted(probabilities.cumsum(), point, "right"), len(ids) - 1)])


def _penalised(logits: Logits, sampling: Sampling, previous: Sequence[int]) -> Logits:
    window = previous[-sampling.repeat_window :] if sampling.repeat_window else ()
    if sampling.repeat_penalty == 1 or not window:
        return logits
    logits = logits.copy()
    seen = np.unique(np.asarray(window))
    values = logits[seen]
    penalty = np.float32(sampling.repeat_penalty)
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def _largest(logits: Logits, count: int) -> NDArray[np.intp]:
    """The ids of the `count` largest logits, in no order.

    Nearly always they are near the maximum: comparing all and partitioning the few that
    are takes a tenth of partitioning all.
    """
    near = np.flatnonzero(logits > logits.max() - NEAR)
    if near.size < count:
        near = np.arange(logits.size)
    if near.size == count:
        return near
    return near[np.argpartition(logits[near], near.size - count)[near.size - count :]]


def _candidates(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Tokens left after top_k, min_p and top_p, most probable first, with probabilities."""
    count = min(sampling.top_k or CANDIDATES, CANDIDATES, logits.size)
    top = _largest(logits, count)
    # Equal logits are ordered by token id, so that the order never depends on the partition.
    ids = top[np.lexsort((top, -logits[top]))]
    scaled = logits[ids].astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    keep = probabilities >= sampling.min_p * probabilities[0]
    keep &= probabilities.cumsum() - probabilities < (sampling.top_p or 1e-9)
    return ids[keep], probabilities[keep]
