"""Guesses of the next tokens from the text so far."""

from inference.engines.lookup import LONGEST_GUESS, REST, Lookup


def test_what_followed_the_same_tokens_before_is_guessed():
    assert Lookup().guess([1, 2, 3, 4, 5, 9, 1, 2], most=10) == [3, 4, 5]


def test_nothing_is_guessed_where_nothing_repeats():
    assert Lookup().guess([1, 2, 3, 4, 5], most=10) == []
    assert Lookup().guess([1], most=10) == []


def test_the_longest_match_wins_over_the_latest():
    tokens = [7, 8, 1, 2, 30, 0, 9, 1, 2, 40, 0, 7, 8, 1, 2]
    assert Lookup().guess(tokens, most=1) == [30]


def test_no_more_is_guessed_than_there_is_room_for():
    assert Lookup().guess([1, 2, 3, 4, 1, 2], most=1) == [3]
    assert Lookup().guess([1, 2, 3, 4, 1, 2], most=0) == []


def test_right_guesses_grow_and_wrong_ones_shrink_to_a_rest():
    lookup = Lookup()
    tokens = [*range(40), 0, 1]
    lookup.judge(3, 3)
    lookup.judge(6, 6)
    assert len(lookup.guess(tokens, most=99)) == LONGEST_GUESS
    for _ in range(4):
        lookup.judge(3, 0)
    assert [len(lookup.guess(tokens, most=99)) for _ in range(REST)] == [0] * REST
    assert lookup.guess(tokens, most=99) == [2, 3, 4]


def test_tokens_that_come_later_are_found_too():
    lookup = Lookup()
    assert lookup.guess([5, 6, 7], most=9) == []
    assert lookup.guess([5, 6, 7, 8, 5, 6], most=9) == [7, 8, 5]
