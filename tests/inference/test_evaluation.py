"""What of a slot's cache can be reused, and how the rest is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from inference.engines.evaluation import Evaluated, chunks, remaining


def evaluated(*pieces: int) -> Evaluated:
    """A cache of the tokens 0, 1, 2, … by these pieces."""
    cache, token = Evaluated(), 0
    for piece in pieces:
        if piece > 0:
            cache.add_chunk(range(token, token + piece))
        for step in range(max(0, -piece)):
            cache.add_step(token + step)
        token += abs(piece)
    return cache


@given(st.integers(0, 500), st.integers(2, 64))
def test_chunks_add_up_and_none_is_a_single_token(tokens: int, size: int):
    cut = chunks(tokens, size)
    assert sum(cut) == tokens
    assert all(2 <= piece <= size + 1 for piece in cut) or tokens == 1


def test_steps_that_follow_each_other_are_one_run():
    assert evaluated(16, -1, -1, -1, 4).pieces == [16, -3, 4]


def test_a_whole_earlier_turn_is_kept():
    kept = evaluated(16, 5, -10).keep(range(60), None)
    assert (kept.pieces, len(kept.tokens)) == ([16, 5, -10], 31)
    assert remaining(kept, 60, None, 16) == [16, 13]


def test_a_chunk_is_kept_whole_or_not_at_all():
    other = [*range(20), 99, 98, 97, 96]
    assert evaluated(16, 8).keep(other, None).pieces == [16]


def test_steps_are_kept_as_far_as_they_agree():
    other = [*range(20), 99, 98, 97]
    assert evaluated(16, -8).keep(other, None).pieces == [16, -4]


def test_two_tokens_are_always_left_to_evaluate():
    assert evaluated(16, -8).keep(range(24), None).pieces == [16, -6]
    assert evaluated(16, 16).keep(range(32), None).pieces == [16]


def test_a_fixed_evaluation_reuses_only_what_came_the_same_way():
    cache = evaluated(16, 16, -8)
    assert cache.keep(range(60), [16, 16, -8, 20]).pieces == [16, 16, -8]
    assert cache.keep(range(60), [16, -16, -8, 20]).pieces == [16]
    assert cache.keep(range(60), [16, 16, -3, 25]).pieces == [16, 16, -3]
    assert cache.keep(range(60), [16, 16, -20, 8]).pieces == [16, 16, -8]


@given(st.lists(st.one_of(st.integers(2, 17), st.integers(-9, -1)), min_size=1, max_size=8))
def test_kept_and_remaining_together_are_the_fixed_evaluation(pieces: list[int]):
    merged = evaluated(*pieces).pieces
    tokens = sum(map(abs, merged))
    cache = evaluated(*pieces)
    kept = cache.keep(range(tokens), merged)
    whole = evaluated(*kept.pieces, *remaining(kept, tokens, merged, 16)).pieces
    assert whole == merged
