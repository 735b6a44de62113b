"""The parts of the engine's benchmark that can be wrong in silence."""

import pytest

from bench.latency import Stall
from bench.pairs import compared
from bench.peers import Answer, EventReader
from bench.prompts import Author, Turns


def words(turns: Turns) -> int:
    return sum(len(turn.content.split()) for turn in turns)


def test_a_ratio_is_of_two_values_of_one_round():
    row = compared([10, 20, 40], [20, 20, 20])
    assert row == {"server": 20, "ours": 20, "ratio": 1.0, "lowest": 0.5, "highest": 2.0}


def test_a_stall_is_counted_from_the_step_it_begins_in():
    running = Answer(arrivals=[0, 1, 2, 3, 4, 9, 10, 11])
    stall = Stall([running], Answer(sent=4.5, arrivals=[9]))
    assert (stall.before, stall.during, stall.own) == ([1, 1], [5], 4.5)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_counted_whatever_pieces_they_come_in(size: int):
    wire = b'HTTP/1.1 200 OK\r\n\r\ndata: {"content":"a"}\n\ndata: {"stop":true}\n\n'
    answer = Answer()
    reader = EventReader(answer)
    for at in range(0, len(wire), size):
        reader.data_received(wire[at : at + size])
    assert len(answer.arrivals) == 2
    assert answer.done >= answer.arrivals[0] > 0


def test_made_up_prompts_have_the_wanted_length_and_share_no_beginning():
    one, other = Author(10_001, words), Author(10_002, words)
    assert words(one.long(1490)) == 1490
    assert 150 <= words(one.chat()) <= 250
    assert one.chat() == Author(10_001, words).chat()
    assert one.chat()[0] != other.chat()[0]


def test_a_sixth_turn_follows_five_that_are_kept_as_they_were():
    before, now = Author(10_001, words).conversation(941, 1000)
    assert now[:-1] == before
    assert [turn.role for turn in now[1:]] == ["user", "assistant"] * 5 + ["user"]
    assert (words(before), words(now)) == (941, 1000)
