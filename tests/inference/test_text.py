"""Whole characters, no stop strings, and the same text however often it is fed again."""

from hypothesis import given
from hypothesis import strategies as st

from inference.engines.text import TextAssembler


def feed(data: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], TextAssembler]:
    """One byte a token: the worst a tokenizer can do."""
    assembler = TextAssembler(lambda token: bytes([token]), stop)
    return [assembler.feed(byte) for byte in data], assembler


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_any_text_comes_out_as_it_went_in(text: str):
    pieces, assembler = feed(text.encode())
    assert "".join(pieces) + assembler.flush() == text


def test_a_character_appears_only_when_it_is_whole():
    pieces, _ = feed("\N{GRINNING FACE}".encode())
    assert pieces == ["", "", "", "\N{GRINNING FACE}"]


def test_a_broken_character_is_replaced_and_never_raises():
    pieces, assembler = feed(b"a\xff\xf0\x9f")
    assert "".join(pieces) + assembler.flush() == "a\ufffd\ufffd"


def test_a_nul_never_reaches_the_database():
    pieces, assembler = feed(b"a\x00b")
    assert "".join(pieces) + assembler.flush() == "a\ufffdb"


def test_what_may_become_a_stop_string_is_held_back_and_released_when_it_does_not():
    pieces, _ = feed(b"one ENx", ("END",))
    assert pieces == ["o", "n", "e", " ", "", "", "ENx"]


def test_a_stop_string_ends_the_text_before_it():
    pieces, assembler = feed(b"one END two", ("END",))
    assert "".join(pieces) == "one "
    assert assembler.stopped
    assert assembler.flush() == ""


def test_a_stop_string_that_never_completes_is_shown_at_the_end():
    pieces, assembler = feed(b"one EN", ("END",))
    assert "".join(pieces) + assembler.flush() == "one EN"


@given(st.binary(max_size=40), st.integers(0, 40))
def test_feeding_the_same_tokens_again_gives_the_same_state(data: bytes, cut: int):
    whole, _ = feed(data, ("ab", "\x01\x02"))
    _, assembler = feed(data[:cut], ("ab", "\x01\x02"))
    assert [assembler.feed(byte) for byte in data[cut:]] == whole[cut:]
