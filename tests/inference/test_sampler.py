"""The next token depends on the logits, the parameters, the seed and the position, nothing else."""

from collections import Counter
from dataclasses import replace

import numpy as np

from inference.engines.base import Sampling
from inference.engines.sampler import choose, uniform

PLAIN = Sampling(temperature=1, top_k=0, top_p=1, min_p=0, repeat_penalty=1, seed=5)
LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))


def draw(sampling: Sampling, times: int = 4000) -> Counter[int]:
    """One draw for each position."""
    return Counter(choose(LOGITS, sampling, [9] * n) for n in range(times))


def test_the_numbers_drawn_are_even_and_belong_to_seed_and_position():
    numbers = [uniform(1, n) for n in range(2000)]
    assert 0.48 < sum(numbers) / 2000 < 0.52
    assert numbers == [uniform(1, n) for n in range(2000)]
    assert uniform(1, 2) != uniform(2, 2) != uniform(2, 3)


def test_tokens_come_as_often_as_their_probability_says():
    counts = draw(PLAIN)
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert abs(counts[token] / 4000 - probability) < 0.03


def test_temperature_zero_takes_the_likeliest():
    assert draw(replace(PLAIN, temperature=0), 50) == {0: 50}


def test_top_k_leaves_the_k_likeliest():
    assert set(draw(replace(PLAIN, top_k=2))) == {0, 1}


def test_top_p_leaves_the_fewest_that_reach_it():
    assert set(draw(replace(PLAIN, top_p=0.6))) == {0, 1}
    assert set(draw(replace(PLAIN, top_p=0))) == {0}


def test_min_p_leaves_out_what_is_far_less_likely_than_the_best():
    assert set(draw(replace(PLAIN, min_p=0.4))) == {0, 1}


def test_a_repeated_token_is_made_less_likely():
    logits = np.array([2.0, 1.9, -5.0], dtype=np.float32)
    greedy = replace(PLAIN, temperature=0, repeat_penalty=1.3)
    assert choose(logits, greedy, []) == 0
    assert choose(logits, greedy, [0]) == 1
    assert choose(logits, replace(greedy, repeat_window=1), [0, 2]) == 0


def test_equal_logits_are_ordered_by_token():
    logits = np.array([0, 5, 5, 5], dtype=np.float32)
    assert {choose(logits, replace(PLAIN, top_k=3, top_p=0), [9] * n) for n in range(20)} == {1}
