"""A text that follows a schema's grammar is JSON the schema accepts; no schema does harm."""

import contextlib
import json
import random
import socket
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from inference.engines import grammar
from inference.engines.base import RequestRefused
from inference.engines.grammar import Reading
from inference.engines.json_schema import canonical, reading

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 5},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["name", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def grammar_of(schema: Any) -> Reading:
    return reading(canonical(schema))


def allows(schema: Any, text: str) -> bool:
    """Whether this is a whole text of the grammar."""
    read = grammar_of(schema)
    return read.accept(text.encode()) and read.may_end


def written(schema: Any, seed: int, longest: int = 200) -> bytes:
    """Any text of the grammar, byte by byte; after `longest` bytes it makes for the end."""
    draw = random.Random(seed)
    read, text = grammar_of(schema), b""
    while not (read.must_end or (read.may_end and draw.random() < 0.3)):
        allowed = [bytes([byte]) for byte in range(256) if read.allows(bytes([byte]))]
        closing = [byte for byte in allowed if byte in b'"}]']
        text += draw.choice(closing if closing and len(text) > longest else allowed)
        assert read.accept(text[-1:])
    return text


def schemas() -> st.SearchStrategy[Any]:
    counts = st.fixed_dictionaries(
        {}, optional={"least": st.integers(0, 2), "more": st.integers(0, 2)}
    )

    def ranged(type_: str, names: tuple[str, str]) -> st.SearchStrategy[Any]:
        return counts.map(
            lambda c: (
                {"type": type_}
                | ({names[0]: c["least"]} if "least" in c else {})
                | ({names[1]: c.get("least", 0) + c["more"]} if "more" in c else {})
            )
        )

    numbers = st.tuples(
        st.sampled_from(["integer", "number"]),
        st.integers(-2000, 2000),
        st.integers(1, 3000),
        st.booleans(),
    ).map(
        lambda n: {
            "type": n[0],
            "minimum": n[1],
            "exclusiveMaximum" if n[3] else "maximum": n[1] + n[2],
        }
    )
    literals = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    leaves = (
        st.sampled_from([True, {}, {"type": "object"}, {"type": ["integer", "null"]}])
        | ranged("string", ("minLength", "maxLength"))
        | numbers
        | st.lists(literals, min_size=1, max_size=4).map(lambda values: {"enum": values})
    )

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        properties = st.dictionaries(st.text(max_size=4), inner, max_size=4)
        objects = st.tuples(properties, st.booleans()).map(
            lambda p: {
                "type": "object",
                "properties": p[0],
                "required": list(p[0])[::2],
                "additionalProperties": p[1],
            }
        )
        arrays = st.tuples(inner, ranged("array", ("minItems", "maxItems"))).map(
            lambda a: {**a[1], "items": a[0]}
        )
        choices = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
        return objects | arrays | choices

    return st.recursive(leaves, nested, max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas(), st.integers(0, 1000))
def test_whatever_a_grammar_writes_is_json_its_schema_accepts(schema: Any, seed: int):
    text = written(schema, seed)
    Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("seed", range(20))
def test_a_recursive_schema_is_followed(seed: int):
    Draft202012Validator(TREE).validate(json.loads(written(TREE, seed)))


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "object"}, '{"a": [1, {"b": null}],\n  "c": -1.5e3}', "[]"),
        ({"type": "string"}, r'"\u00e9\n é 漢 😀"', '"\\ud800"'),
        ({"type": "string", "minLength": 2, "maxLength": 2}, '"漢é"', '"abc"'),
        ({"type": "integer", "minimum": 3, "maximum": 12}, "12", "13"),
        ({"type": "integer", "exclusiveMinimum": -3, "maximum": 5}, "-2", "-3"),
        ({"type": "integer"}, "-999999999999999", "1.0"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "0.99999", "1"),
        ({"type": "number", "minimum": 0.25, "maximum": 0.25}, "0.250", "0.26"),
        ({"enum": [1, 12, "1"]}, "12", "2"),
        ({"enum": [1, 12, "1"]}, "1", "121"),
        ({"const": {"a": ["b"]}}, '{"a":["b"]}', '{"a":"b"}'),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1}, "[null, null]", "[]"),
        ({"prefixItems": [{"const": 1}], "items": False}, "[1]", "[1,1]"),
        ({"properties": {"a": {}, "b": {}}, "required": ["b"]}, '{"b":1}', '{"a":1}'),
        ({"properties": {"a": {}, "b": {}}, "required": ["b"]}, '{"a":1, "b":1}', '{"b":1,"c":1}'),
        ({"additionalProperties": {"type": "null"}}, '{"x":null}', '{"x":1}'),
        ({"type": ["null", "boolean"]}, "null", "1"),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"const": 1}}}, "1", "2"),
    ],
)
def test_a_grammar_tells_right_from_wrong(schema: Any, right: str, wrong: str):
    assert allows(schema, right)
    assert not allows(schema, wrong)


@pytest.mark.parametrize(
    "bytes_", [b'"\xff', b'"\xc0\xa2', b'"\xed\xa0\x80', b'"\xf5\x80', b'"\x00', b'"\n', b'"\x80']
)
def test_a_string_is_well_formed_utf_8(bytes_: bytes):
    assert not grammar_of({"type": "string"}).allows(bytes_)


def test_texts_are_found_among_many_as_if_each_had_been_asked():
    read = grammar_of({"enum": ["a", "abc", "é", 7]})
    texts = sorted([b'"', b'"a', b'"ab', b'"a"', b'"b', b'"\xc3', b"7", b"77", b"\xff\xff", b"8"])
    found = [texts[index] for index in read.allowed(texts)]
    assert found == [text for text in texts if read.allows(text)]
    assert set(found) == {b'"', b'"a', b'"ab', b'"a"', b'"\xc3', b"7"}


def test_forgetting_what_was_seen_changes_nothing(monkeypatch):
    text = written(TREE, seed=3, longest=2000)
    monkeypatch.setattr(grammar, "STATES", 1)
    read = grammar_of(TREE)
    assert all(read.accept(text[index : index + 1]) for index in range(len(text)))
    assert read.must_end


def test_nesting_stops_before_a_reader_of_json_would():
    read = grammar_of({})
    assert not read.allows(b"[" * 200)
    assert read.accept(b"[" * grammar.DEPTH)
    assert read.accept(b"]" * grammar.DEPTH)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "pattern": "(a+)+$"}, "'pattern' is not supported"),
        ({"oneOf": [{}]}, "'oneOf' is not supported"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"enum": [1], "minimum": 0}, "minimum beside enum"),
        ({"allOf": [{}, {}]}, "allOf of more than one"),
        ({"$ref": "https://example.com/schema.json"}, "must point into the schema itself"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#"}, "nothing can fit it"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "nothing can fit it"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-300}, "nothing can fit it"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "nothing can fit it"),
        ({"required": ["a"], "additionalProperties": False}, "nothing can fit it"),
        (False, "nothing can fit it"),
        ({"type": "text"}, "type must be one of"),
        ({"minLength": -1}, "minLength must be a whole number"),
        ({"type": "integer", "minimum": "0"}, "minimum must be a number"),
        ({"anyOf": [{"type": "string", "maxLength": n} for n in range(100)]}, "too many ways"),
        ("{", "not JSON"),
        ('{"const":NaN}', "not JSON"),
        ({"enum": ["\ud800"]}, "surrogate"),
        (["type"], "must be an object"),
        ({"const": "x" * 2000}, "longer than 1000 bytes"),
        ({"properties": {f"p{n}": {} for n in range(257)}}, "more than 256 optional properties"),
        ({"properties": {"x" * 2000: {}}}, "longer than 1000 bytes"),
        (
            {
                "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(300)}
                | {"a300": {"type": "null"}},
                "properties": {f"p{n}": {"$ref": f"#/$defs/a{300 - n}"} for n in range(300)},
                "required": [f"p{n}" for n in range(300)],
            },
            "lead on for too long|nests",
        ),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_by_name(schema: Any, why: str):
    with pytest.raises(RequestRefused, match=f"json_schema .*{why}"):
        canonical(schema)


def test_reading_a_schema_never_uses_the_network(monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    for reference in ("https://example.com/a.json", "//example.com/a", "file:///a", "a.json"):
        with pytest.raises(RequestRefused):
            canonical({"$ref": reference})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)
KEYWORDS = ["type", "enum", "const", "anyOf", "allOf", "$ref", "properties", "required", "items",
            "additionalProperties", "prefixItems", "minItems", "maxItems", "minLength", "maxLength",
            "minimum", "maximum", "exclusiveMinimum", "$defs", "title"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(json_values | st.dictionaries(st.sampled_from(KEYWORDS), json_values, max_size=4))
def test_any_value_is_a_schema_or_refused(schema: Any):
    with contextlib.suppress(RequestRefused):
        text = canonical(schema)
        assert canonical(text) == text


HOSTILE = """
import json, random, resource, time
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from inference.engines.base import RequestRefused
from inference.engines.json_schema import canonical, reading

def nest(times, inner, around):
    for _ in range(times):
        inner = around(inner)
    return inner

array = lambda item: {"type": "array", "items": item}
either = lambda *options: {"anyOf": [*options]}
to = lambda name: {"$ref": f"#/$defs/{name}"}
again, null = array({"$ref": "#"}), {"type": "null"}
schemas = {
    "nested arrays": nest(46, True, array),
    "text of brackets": "[" * 30_000,
    "text of objects": '{"items":' * 3_000 + "1" + "}" * 3_000,
    "ambiguous recursion": either(again, array(again), {**again, "maxItems": 9}, null),
    "twice as many at each level": nest(
        15, null, lambda inner: either(array(inner), {**array(inner), "minItems": 1})
    ),
    "objects of objects": either(
        *({"properties": {f"p{j}": {"$ref": "#"} for j in range(i, 20)}} for i in range(20))
    ),
    "chain": {"$defs": {str(i): to(i + 1) for i in range(1000)}, **to(0)},
    "references in circles": {
        **either(*(to(i) for i in range(300))),
        "$defs": {str(i): array(to((i * 7 + 3) % 300)) for i in range(300)},
    },
    "many optional": {"properties": {f"p{i}": {} for i in range(400)}},
    "many words": {"enum": [str(i) for i in range(4000)]},
    "one long word": {"enum": ["a" * 32_000]},
    "words in words": {"enum": ["a" * i for i in range(240)]},
    "deep constant": {"const": nest(900, 0, lambda inner: [inner])},
    "huge number": '{"minimum":' + "9" * 4_200 + "}",
    "too huge number": '{"minimum":' + "9" * 20_000 + "}",
    "large range": {"type": "number", "minimum": -1e308, "maximum": 1e308},
    "long string": {"type": "string", "minLength": 1_000_000},
    "many items": {"type": "array", "minItems": 1_000_000, "items": nest(30, True, array)},
    "many types": {"type": ["array", "object", "number"] * 300},
}
pieces = sorted(b'[ { " [[[[ [[[[[[[[[[[[[[[[ "a aaaa {"p0":{"p1":{ {"p "p0": 1 , ] } null'.split())
for name, schema in schemas.items():
    started, draw = time.process_time(), random.Random(1)
    try:
        read = reading(canonical(schema))
        for _ in range(200):
            allowed = [pieces[index] for index in read.allowed(pieces)]
            allowed = allowed or [bytes([b]) for b in range(256) if read.allows(bytes([b]))]
            if not allowed or not read.accept(draw.choice(allowed)):
                break
    except RequestRefused as error:
        print(name, "refused", error)
    assert time.process_time() - started < 5, name
print("survived")
"""


def test_hostile_schemas_are_refused_or_followed_in_little_time_and_memory():
    result = subprocess.run(
        [sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=100
    )
    assert result.stdout.endswith("survived\n"), result.stdout + result.stderr
