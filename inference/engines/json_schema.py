"""JSON schemas as grammars: a text that follows the grammar is JSON that the schema accepts.

Not the other way round. Of several ways to write a value, and of what a schema leaves open,
a grammar has the usual ones: listed properties only, in their order; numbers of up to 15
digits. What it could not promise is refused by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor, inf
from typing import Any

from inference.engines.errors import RequestRefused
from inference.engines.grammar import DEPTH, Reading
from inference.engines.json_values import (
    EVERYTHING,
    UNIT,
    AnyOf,
    Array,
    Literals,
    Map,
    Number,
    Object,
    Property,
    String,
    Value,
    anything,
    json_bytes,
)

LENGTH = 32_768
SUBSCHEMAS = 2_000
LEVELS = 48  # of schemas in schemas, references followed
COUNT = 1_000_000  # highest length that can be asked for
WORD = 1000  # bytes: what is left of a word is kept for every byte of it that was read
OPTIONAL = 256  # properties of an object: every one is looked at wherever it may come
ROUNDS = 64  # each looks at all values once
KEPT = 256  # schemas that were looked at
ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "format", "$schema", "$id", "$comment", "$defs", "definitions",
}  # fmt: skip
LIMITS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
KEYWORDS: dict[str, Set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "number": LIMITS,
    "integer": LIMITS,
    "boolean": set(),
    "null": set(),
}
TYPES = tuple(KEYWORDS)
OF_TYPES = {"type"}.union(*KEYWORDS.values())
Schema = Mapping[str, Any]


class Unsupported(RequestRefused):
    """`why`: a few words."""

    def __init__(self, why: str) -> None:
        super().__init__(f"json_schema cannot be used: {why}.")


def canonical(schema: object) -> str:
    """One spelling of a schema, given as JSON text or as what such a text says.

    Raises Unsupported for what is no JSON schema, or one that cannot be kept to.
    """
    return _checked(_dumped(_loaded(schema) if isinstance(schema, str) else schema))


@lru_cache(KEPT)
def _checked(text: str) -> str:
    """Looked at once, though every copy of a request's sampling asks for it."""
    reading(text)
    return text


def reading(text: str) -> Reading:
    """The grammar of a schema, at its beginning. Raises Unsupported."""
    try:
        return Reading(_Reader(_loaded(text)).root)
    except UnicodeEncodeError:
        raise Unsupported("half a surrogate pair is no character") from None
    except RecursionError:
        raise Unsupported("it nests too deeply") from None


def _loaded(text: str) -> Any:
    if len(text) > LENGTH:
        raise Unsupported(f"it is longer than {LENGTH} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unsupported("it is not JSON") from None


def _dumped(schema: object) -> str:
    try:
        text = json.dumps(schema, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise Unsupported("it is not JSON") from None
    if len(text) > LENGTH:
        raise Unsupported(f"it is longer than {LENGTH} characters")
    return text


class _Reader:
    """Reads one schema, once; references lead back to what is read already.

    A value is noted before the values in it.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._values: list[Value] = []
        self._referred: dict[str, AnyOf] = {}
        self._anything: list[Value] = []
        self._level = 0
        self.root = self._value(schema)
        self._find_depths()
        if self.root.depth > DEPTH:
            raise Unsupported("nothing can fit it, or only what nests too deeply")

    def _find_depths(self) -> None:
        for _ in range(ROUNDS):  # twice, but for references: inner values are looked at first
            changed = False
            for value in reversed(self._values):
                depth = value.least_depth()
                changed |= depth != value.depth
                value.depth = depth
            if not changed:
                return
        raise Unsupported("its references lead on for too long")

    def _note(self, *values: Value) -> None:
        self._values.extend(values)
        if len(self._values) > SUBSCHEMAS:
            raise Unsupported(f"it has more than {SUBSCHEMAS} schemas in it")

    def _value(self, schema: Any) -> Value:
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        if not isinstance(schema, dict):
            raise Unsupported("a schema must be an object")
        self._level += 1
        if self._level > LEVELS:
            raise Unsupported(f"it nests more than {LEVELS} schemas")
        value = self._read(schema)
        self._level -= 1
        return value

    def _read(self, schema: Schema) -> Value:
        whole: dict[str, Callable[[Schema], Value]] = {
            "$ref": self._reference,
            "anyOf": self._any_of,
            "allOf": self._all_of,
            "const": lambda schema: self._literals([schema["const"]], schema),
            "enum": lambda schema: self._literals(_list(schema, "enum"), schema),
        }
        keywords = schema.keys() - ANNOTATIONS
        if unknown := keywords - OF_TYPES - whole.keys():
            raise Unsupported(f"the keyword {min(unknown)[:40]!r} is not supported")
        for keyword in keywords & whole.keys():
            besides = keywords - {keyword} - ({"type"} if keyword in ("const", "enum") else set())
            if besides:
                raise Unsupported(f"{min(besides)} beside {keyword} is not supported")
            return whole[keyword](schema)
        return self._typed(schema)

    def _reference(self, schema: Schema) -> Value:
        pointer = schema["$ref"]
        if not isinstance(pointer, str) or not (pointer + "/").startswith("#/"):
            raise Unsupported("a $ref must point into the schema itself, such as #/$defs/name")
        if pointer not in self._referred:
            value = self._referred[pointer] = AnyOf()
            self._note(value)
            value.options = [self._value(self._find(pointer))]
        return self._referred[pointer]

    def _find(self, pointer: str) -> Any:
        found = self._schema
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise Unsupported(f"$ref {pointer[:80]!r} points to nothing")
            found = found[name]
        return found

    def _any_of(self, schema: Schema) -> Value:
        return self._choice(_list(schema, "anyOf"), self._value)

    def _all_of(self, schema: Schema) -> Value:
        options = _list(schema, "allOf")
        if len(options) != 1:
            raise Unsupported("allOf of more than one schema is not supported")
        return self._value(options[0])

    def _choice(self, options: Sequence[Any], read: Callable[[Any], Value]) -> Value:
        value = AnyOf()
        self._note(value)
        value.options = [read(option) for option in options]
        return value

    def _literals(self, values: Sequence[Any], schema: Schema) -> Value:
        if "type" in schema:
            types = _types(schema)
            values = [value for value in values if any(_is(value, name) for name in types)]
        for value in values:
            _word(value)
        literals = Literals(values)
        self._note(literals)
        return literals

    def _typed(self, schema: Schema) -> Value:
        types = _types(schema)
        if not types:
            if not self._anything:
                self._anything = anything()
                self._note(*self._anything)
            return self._anything[0]
        if len(types) == 1:
            return self._of_type(types[0], schema)
        return self._choice(types, lambda name: self._of_type(name, schema))

    def _of_type(self, name: str, schema: Schema) -> Value:
        if name == "object":
            return self._object(schema)
        if name == "array":
            return self._array(schema)
        return self._plain(name, schema)

    def _plain(self, name: str, schema: Schema) -> Value:
        literals: dict[str, list[Any]] = {"boolean": [True, False], "null": [None]}
        value: Value
        if name in literals:
            value = Literals(literals[name])
        elif name == "string":
            value = String(_count(schema, "minLength") or 0, _count(schema, "maxLength"))
        else:
            value = _number(schema, name)
        self._note(value)
        return value

    def _array(self, schema: Schema) -> Value:
        array = Array(_count(schema, "minItems") or 0, _count(schema, "maxItems"))
        self._note(array)
        array.prefix = [self._value(item) for item in _list(schema, "prefixItems")]
        if schema.get("items", True) is not False:
            array.item = self._value(schema.get("items", True))
        return array

    def _object(self, schema: Schema) -> Value:
        properties, required = schema.get("properties", {}), _list(schema, "required")
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(others, bool | dict):
            raise Unsupported("properties or additionalProperties is no schema")
        if not all(isinstance(name, str) for name in required):
            raise Unsupported("required takes a list of names")
        named = properties | {name: others for name in required if name not in properties}
        return self._named(named, set(required)) if named else self._map(others)

    def _map(self, others: Any) -> Value:
        value = Map()
        self._note(value)
        if others is not False:
            value.value = self._value(others)
        return value

    def _named(self, properties: Schema, required: set[str]) -> Value:
        if len(set(properties) - required) > OPTIONAL:
            raise Unsupported(f"an object in it has more than {OPTIONAL} optional properties")
        value = Object()
        self._note(value)
        value.properties = [
            Property(_word(name) + b":", self._value(each), name in required)
            for name, each in properties.items()
        ]
        return value


def _word(value: Any) -> bytes:
    """A text that is to be written as it is."""
    written = json_bytes(value)
    if len(written) > WORD:
        raise Unsupported(f"a const, enum or name in it is longer than {WORD} bytes")
    return written


def _list(schema: Schema, keyword: str) -> Sequence[Any]:
    value = schema.get(keyword, [])
    if not isinstance(value, list):
        raise Unsupported(f"{keyword} takes a list")
    return value


def _count(schema: Schema, keyword: str) -> int | None:
    value = schema.get(keyword)
    if keyword in schema and (type(value) is not int or not 0 <= value <= COUNT):
        raise Unsupported(f"{keyword} must be a whole number from 0 to {COUNT}")
    return value


def _types(schema: Schema) -> list[str]:
    """The types a schema allows, as it says or as its keywords are for; none: any."""
    if "type" not in schema:
        return [name for name in TYPES if name != "integer" and KEYWORDS[name] & schema.keys()]
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise Unsupported(f"type must be one of {', '.join(TYPES)}, or a list of them")
    return list(names)


def _is(value: Any, name: str) -> bool:
    kinds: dict[str, tuple[type, ...]] = {
        "object": (dict,), "array": (list,), "string": (str,), "number": (int, float),
        "integer": (int,), "boolean": (bool,), "null": (type(None),),
    }  # fmt: skip
    return type(value) in kinds[name]


def _number(schema: Schema, name: str) -> Number:
    low, high = EVERYTHING
    for keyword in LIMITS & schema.keys():
        limit = schema[keyword]
        if type(limit) not in (int, float) or limit in (inf, -inf):
            raise Unsupported(f"{keyword} must be a number")
        # As it is written: a double read from the answer compares the same way.
        units = Fraction(str(limit)) * UNIT
        past = keyword.startswith("exclusive")
        if keyword.lower().endswith("minimum"):
            low = max(low, floor(units) + 1 if past else ceil(units))
        else:
            high = min(high, ceil(units) - 1 if past else floor(units))
    return Number(low, high, whole=name == "integer")
