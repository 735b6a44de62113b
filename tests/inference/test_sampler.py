"""The next token depends on the logits, the parameters, the seed and the position, nothing else."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

from inference.engines.base import EngineError, RequestRefused, Sampling
from inference.engines.sampler import Logits, Sampler, Vocabulary, largest, uniform

PLAIN = Sampling(temperature=1, top_k=0, top_p=1, min_p=0, repeat_penalty=1, seed=5)
GREEDY = replace(PLAIN, temperature=0)
LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))


def sampler(
    sampling: Sampling, previous: Sequence[int] = (), pieces: str = "abcdefghij"
) -> Sampler:
    """Of a vocabulary of these letters and a last token that ends an answer."""
    letters = [*pieces.encode(), None]
    vocabulary = Vocabulary(
        len(letters),
        lambda token: bytes([letter]) if (letter := letters[token]) else b"",
        lambda token: token == len(letters) - 1,
    )
    made = Sampler(sampling, vocabulary)
    for token in previous:
        made.accept(token)
    return made


def choose(logits: Logits, sampling: Sampling, previous: Sequence[int] = ()) -> int:
    return sampler(sampling, previous).choose(logits)


def draw(sampling: Sampling, times: int = 4000) -> Counter[int]:
    """One draw for each position."""
    counts: Counter[int] = Counter()
    made = sampler(sampling)
    for _ in range(times):
        counts[made.choose(LOGITS)] += 1
        made.accept(9)
    return counts


def test_the_numbers_drawn_are_even_and_belong_to_seed_and_position():
    numbers = [uniform(1, n) for n in range(2000)]
    assert 0.48 < sum(numbers) / 2000 < 0.52
    assert numbers == [uniform(1, n) for n in range(2000)]
    assert uniform(1, 2) != uniform(2, 2) != uniform(2, 3)
    assert uniform(1, 2, again=1) not in numbers


def test_tokens_come_as_often_as_their_probability_says():
    counts = draw(PLAIN)
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert abs(counts[token] / 4000 - probability) < 0.03


def test_temperature_zero_takes_the_likeliest():
    assert draw(GREEDY, 50) == {0: 50}


def test_top_k_leaves_the_k_likeliest():
    assert set(draw(replace(PLAIN, top_k=2))) == {0, 1}


def test_top_p_leaves_the_fewest_that_reach_it():
    assert set(draw(replace(PLAIN, top_p=0.6))) == {0, 1}
    assert set(draw(replace(PLAIN, top_p=0))) == {0}


def test_min_p_leaves_out_what_is_far_less_likely_than_the_best():
    assert set(draw(replace(PLAIN, min_p=0.4))) == {0, 1}


def test_a_repeated_token_is_made_less_likely():
    logits = np.array([2.0, 1.9, -5.0], dtype=np.float32)
    greedy = replace(GREEDY, repeat_penalty=1.3)
    assert choose(logits, greedy) == 0
    assert choose(logits, greedy, [0]) == 1
    assert choose(logits, replace(greedy, repeat_window=1), [0, 2]) == 0


def test_a_frequency_penalty_grows_with_each_use_and_a_presence_penalty_does_not():
    logits = np.array([2.0, 0.5], dtype=np.float32)
    frequency = replace(GREEDY, frequency_penalty=0.5)
    presence = replace(GREEDY, presence_penalty=1)
    assert [choose(logits, frequency, [0] * times) for times in (1, 2, 4)] == [0, 0, 1]
    assert [choose(logits, presence, [0] * times) for times in (1, 2, 4)] == [0, 0, 0]
    assert choose(logits, replace(presence, presence_penalty=2), [0]) == 1
    assert choose(logits, replace(frequency, frequency_penalty=-2), [1]) == 1


def test_a_bias_forces_a_token_or_bans_it():
    assert set(draw(replace(PLAIN, logit_bias=((3, 100),)), 50)) == {3}
    assert 0 not in draw(replace(PLAIN, logit_bias=((0, -100),)), 500)


def test_a_bias_of_a_token_the_model_has_not_is_refused_by_name():
    with pytest.raises(RequestRefused, match="logit_bias names token 99; this model has 11"):
        sampler(replace(PLAIN, logit_bias=((3, 1), (99, 1))))


def test_the_logits_are_left_as_they_were():
    before = LOGITS.copy()
    every = replace(
        PLAIN, repeat_penalty=2, frequency_penalty=1, presence_penalty=1, logit_bias=((1, 5),)
    )
    choose(LOGITS, every, [0, 1, 1])
    assert (before == LOGITS).all()


def test_equal_logits_are_ordered_by_token():
    logits = np.array([0, 5, 5, 5], dtype=np.float32)
    assert {choose(logits, replace(PLAIN, top_k=3, top_p=0), [9] * n) for n in range(20)} == {1}


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    numbers.arrays(np.float32, st.integers(1, 3000), elements=st.integers(-9, 9).map(float)),
    st.integers(1, 300),
)
def test_the_largest_are_those_a_whole_sort_gives(values: Logits, count: int):
    order = sorted(range(values.size), key=lambda index: (-values[index], index))
    assert largest(values, count).tolist() == order[:count]


def test_log_probabilities_are_the_models_own():
    asked = replace(PLAIN, logprobs=2, temperature=3, logit_bias=((0, -100),))
    (found,) = sampler(asked).explain(LOGITS, 2)
    assert math.isclose(math.exp(found.logprob), 0.15, rel_tol=1e-5)
    assert [token for token, _, _ in found.top] == [0, 1]
    assert [piece for _, piece, _ in found.top] == [b"a", b"b"]
    assert sampler(PLAIN).explain(LOGITS, 2) == ()


# --- under a grammar --------------------------------------------------------------------------
LETTERS = '"abcx{}'
ENDS = len(LETTERS)
WORDS = replace(PLAIN, json_schema='{"enum":["a","ab","c"]}')


def test_only_what_the_grammar_allows_is_chosen_as_often_as_its_share():
    logits = np.log(np.array([0.1, 0.2, 0.2, 0.1, 0.2, 0.1, 0.05, 0.05], dtype=np.float32))
    counts = Counter(
        sampler(replace(WORDS, seed=seed), [0], LETTERS).choose(logits) for seed in range(3000)
    )
    assert set(counts) == {1, 3}
    assert abs(counts[1] / 3000 - 2 / 3) < 0.03


def test_an_answer_may_end_only_where_its_grammar_does():
    logits = np.zeros(ENDS + 1, np.float32)
    logits[ENDS] = 50
    greedy = replace(GREEDY, json_schema='{"enum":["a",{}]}')
    made = sampler(greedy, (), LETTERS)
    text = ""
    while not made.is_complete:
        token = made.choose(logits)
        made.accept(token)
        text += LETTERS[token]
    assert text in ('"a"', "{}")


def test_a_number_that_could_go_on_leaves_the_end_to_the_model():
    whole = replace(GREEDY, json_schema='{"type":"integer"}')
    logits = np.zeros(4, np.float32)
    logits[3] = 50
    made = sampler(whole, (), "123")
    assert made.choose(logits) == 0
    made.accept(0)
    assert not made.is_complete
    assert made.choose(logits) == 3


def test_a_model_without_the_letters_that_are_needed_says_so():
    with pytest.raises(EngineError, match="no token that json_schema allows"):
        sampler(WORDS, (), "xyz").choose(np.zeros(4, np.float32))


def test_tokens_that_do_not_follow_the_grammar_cannot_be_continued():
    with pytest.raises(EngineError, match="does not follow json_schema"):
        sampler(WORDS, [0, 4], LETTERS)
