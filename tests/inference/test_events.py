"""Server-sent events come out whole, however the network cut the bytes."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engines.events import EventParser, Garbled

STREAM = (
    "\ufeff: a comment\n\ndata: one\n\ndata:two 漢字 \N{GRINNING FACE}\r\n\r\n"
    "event: x\rdata: three\rdata: and more\r\rdata\n\nid: 7\n\ndata: [DONE]\n\n"
).encode()
EVENTS = ["one", "two 漢字 \N{GRINNING FACE}", "three\nand more", "[DONE]"]


def test_comments_and_other_fields_are_left_out_and_lines_joined():
    assert [*EventParser().feed(STREAM)] == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]):
    parser, edges = EventParser(), [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_an_event_that_never_ended_is_never_told():
    assert EventParser().feed(b"data: half of") == []


def test_an_event_without_end_is_given_up():
    parser = EventParser()
    with pytest.raises(Garbled):
        for _ in range(40):
            parser.feed(b"data: " + b"x" * 60_000)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_it_fail(data: bytes):
    EventParser().feed(data)


def test_a_long_line_in_small_pieces_costs_no_more_than_in_large_ones():
    parser, piece = EventParser(), b"x" * 100
    started = time.process_time()
    parser.feed(b"data: ")
    for _ in range(10_000):
        assert parser.feed(piece) == []
    assert [len(event) for event in parser.feed(b"\n\n")] == [1_000_000]
    assert time.process_time() - started < 2  # once it took tens of seconds


def test_empty_data_lines_count_too():
    parser = EventParser()
    with pytest.raises(Garbled):
        for _ in range(2_000):
            parser.feed(b"data\n" * 1_000)
