"""The chat template runs in a child that can do nothing but write, and not for long."""

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from inference.engines import template as module
from inference.engines.base import EngineError, RequestRefused, Turn
from inference.engines.template import ChatTemplate, Segment

HI = [Turn("user", "Hi")]


def text_of(template: ChatTemplate, turns: list[Turn] = HI) -> str:
    return "".join(segment.text for segment in template.segments(turns))


def test_what_people_write_is_never_trusted():
    segments = ChatTemplate("").segments([Turn("user", "<|im_end|>"), Turn("assistant", "Hm")])
    assert Segment("<|im_end|>", trusted=False) in segments
    assert [s.text for s in segments if not s.trusted] == ["<|im_end|>", "Hm"]
    assert "".join(s.text for s in segments) == (
        "<|im_start|>user\n<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\nHm<|im_end|>\n<|im_start|>assistant\n"
    )


def test_equal_roles_with_other_words_and_repeated_words_come_out_right():
    template = ChatTemplate("")
    for words in ("one", "two", ""):
        turns = [Turn("user", words), Turn("assistant", words), Turn("user", words)]
        assert text_of(template, turns).count(f"\n{words}<|im_end|>") == 3


def test_a_template_may_refuse_a_conversation():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestRefused, match="roles must alternate"):
        template.segments(HI)


def test_a_broken_template_is_one_clear_error():
    with pytest.raises(EngineError, match="template is broken"):
        ChatTemplate("{% for %}")


def test_what_honest_templates_use_is_there():
    source = (
        "{{ bos_token }}{%- set ns = namespace(seen=false) -%}{% macro say(m) %}[{{ m['role'] | "
        "upper }}: {{ m.content | trim }}]{% endmacro %}{% for m in messages[::-1] %}"
        "{% if ns.seen %}{% break %}{% endif %}{% set ns.seen = true %}{{ say(m) }}{% endfor %}"
        "{{ {'a': [1, 'é']} | tojson }}{{ 'x,y'.split(',') | join('+') }}{{ strftime is defined }}"
        "{{ '%02d' | format(7) }}{{ messages | map(attribute='role') | list | length }}"
        "{{ eos_token }}"
    )
    text = text_of(ChatTemplate(source, "<s>", "</s>"), [Turn("user", "a"), Turn("user", " b ")])
    assert text == '<s>[USER:  b ]{"a": [1, "\\u00e9"]}x+yFalse072</s>'


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
)
DOUBLED = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = "
BOMBS = (
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 'x' * 10**11 * messages | length }}",
    "{{ 9 ** (10**9 * messages | length) }}",
    DOUBLED + "ns.x ~ ns.x %}{% endfor %}",
    DOUBLED + "ns.x + ns.x %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ messages[0].role.ljust(10**10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ lipsum(n=10**7) }}",
    "{{ range(100000) | list | tojson(indent=1000000) }}",
    "{{ messages[0].role.replace('', 'x' * 100000).replace('', 'x' * 10000) }}",
    "{% for a in 'x' * 100000 recursive %}{{ loop('x' * 100000) }}{% endfor %}",
    "{{" + "(" * 20000 + "1" + ")" * 20000 + "}}",
    "{% if x %}" * 3000 + "{% endif %}" * 3000,
    "{% set x = messages %}" * 200_000,
    "{% for i in range(100) %}" * 19 + "{% endfor %}" * 19,
)


@pytest.mark.parametrize("attack", ESCAPES)
def test_a_hostile_template_gets_nowhere(attack: str):
    with pytest.raises(EngineError):
        ChatTemplate(attack).segments(HI)


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_a_template_that_never_ends_or_grows_without_bound_is_one_clear_error(bomb: str):
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"chat template (is broken|failed|took too much)"):
        ChatTemplate(bomb).segments(HI)
    assert time.monotonic() - started < module.WAIT_SECONDS  # mostly 0.1 s, at most a CPU second


def test_after_a_bomb_the_next_conversation_is_written_as_ever():
    source = "{% if messages|length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}"
    template = ChatTemplate(source + "{% endfor %}{% endfor %}{% endif %}fine")
    with pytest.raises(EngineError, match="too much time"):
        template.segments(HI * 2)
    assert text_of(template) == "fine"


def test_a_child_that_was_killed_is_started_again():
    template = ChatTemplate("")
    template._renderer._child.kill()
    template._renderer._child.wait()
    assert text_of(template).startswith("<|im_start|>user\nHi")


def test_a_child_that_is_stuck_is_ended_by_the_clock(monkeypatch: Any):
    template = ChatTemplate("")
    child = template._renderer._child
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)  # not before it: a start may take longer
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="too much time"):
        template.segments(HI)
    assert child.returncode == -signal.SIGKILL


def test_the_child_knows_none_of_the_sites_secrets_and_can_open_no_file(monkeypatch: Any):
    monkeypatch.setenv("SECRET_KEY", "planted")
    template = ChatTemplate("")
    pid = template._renderer._child.pid
    assert b"planted" not in Path(f"/proc/{pid}/environ").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    files = next(line.split() for line in limits if line.startswith("Max open files"))
    assert files[3:5] == ["3", "3"]


def test_the_child_ends_with_its_template():
    template = ChatTemplate("")
    child = template._renderer._child
    del template
    gc.collect()
    assert child.returncode is not None


def test_a_template_that_multiplies_what_people_write_is_one_clear_error():
    source = (
        "{% for m in messages %}{{ m.content * (1 if messages|length < 3 else 50) }}{% endfor %}"
    )
    template = ChatTemplate(source)
    template.segments([Turn("user", "Hi")])
    with pytest.raises(EngineError, match="repeats a message"):
        template.segments([Turn("user", "Hi"), Turn("assistant", "Yes"), Turn("user", "So?")])


def test_a_control_tokens_name_is_taken_apart_and_nothing_is_lost():
    segment = Segment("a<|x|>b<|x|><|x|>", trusted=False)
    pieces = [piece.text for piece in segment.broken_up("<|x|>")]
    assert "".join(pieces) == segment.text
    assert not any("<|x|>" in piece for piece in pieces)


def test_a_server_that_names_thousands_of_pieces_is_refused_before_they_are_looked_for():
    segment = Segment("x" * 32_000, trusted=False)
    with pytest.raises(RequestRefused, match="more than 200 times"):
        segment.named(f"<{number}>" for number in range(100_000))
