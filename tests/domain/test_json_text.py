"""Tests of `penstock.domain.json_text`."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.domain.json_text import Json, NotJson, Number, canonical, digest, parse, parse_object
from penstock.domain.limits import JSON_DEPTH_MAX, JSON_NUMBER_DIGITS_MAX

# Literals as people and programs write them, not as Python would.
literals = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
texts = st.text()
values = st.recursive(
    st.none() | st.booleans() | texts | st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def plain(value: Json) -> Any:
    """A parsed value as Python's own reader gives it."""
    return json.loads(canonical(value))


@given(literals)
def test_digits_survive(literal: str) -> None:
    """A number is written back with the digits it came with."""
    assert f"[{literal}]" == canonical(parse(f"[ {literal} ]"))


@given(values, st.sampled_from([None, 2]))
def test_canonical_means_the_same(value: Any, indent: int | None) -> None:
    """However a value was written, its canonical form reads as the same value."""
    text = json.dumps(value, indent=indent)

    assert value == plain(parse(text))


@given(values)
def test_canonical_is_idempotent(value: Any) -> None:
    """The canonical form of a canonical form is itself, and it can be carried as UTF-8."""
    once = canonical(parse(json.dumps(value)))

    assert once == canonical(parse(once))
    assert once == once.encode().decode()


@given(values)
def test_canonical_never_grows(value: Any) -> None:
    """What was within a limit as it came is within it in canonical form too."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    assert len(canonical(parse(text)).encode()) <= len(text.encode())


def test_canonical_form() -> None:
    """Names are sorted, nothing is spaced, and what needs no escape has none."""
    text = '{ "b" : [1.0, 2e3, -0, true, null], "a": "\\u00e9\\n\\ud83d\\ude00", "": {} }'

    assert canonical(parse(text)) == '{"":{},"a":"é\\n😀","b":[1.0,2e3,-0,true,null]}'


def test_digests_tell_values_apart() -> None:
    """Order and space make no difference to a digest; content and type do."""
    assert digest(parse('{"a":1,"b":2}')) == digest(parse('{ "b": 2, "a": 1 }'))
    assert digest(parse('{"a":1}')) != digest(parse('{"a":"1"}'))
    assert digest(parse('{"a":1}')) != digest(parse('{"a":1.0}'))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("NaN", "holds NaN, which is not JSON"),
        ("[Infinity]", "holds Infinity, which is not JSON"),
        ("[-Infinity]", "holds -Infinity, which is not JSON"),
        ("1e400", "holds a number that no reader can represent: 1e400"),
        ('{"a":1,"a":2}', "names 'a' twice in one object"),
        ('[{"b":{"a":1,"a":1}}]', "names 'a' twice in one object"),
        ("", "is not JSON: Expecting value"),
        ("{} {}", "is not JSON: Extra data"),
        ('"\0"', "is not JSON: Invalid control character"),
        ("{'a': 1}", "is not JSON: Expecting property name"),
        ('"\\ud800"', r"holds \ud800, half of a surrogate pair, which UTF-8 cannot carry"),
        ('[{"a": ["x\\uDFFFx"]}]', r"holds \udfff, half of a surrogate pair"),
        ('{"\\uD83D": 1}', r"holds \ud83d, half of a surrogate pair"),
        ('"\\ude00\\ud83d"', r"holds \ude00, half of a surrogate pair"),
        ("1" * (JSON_NUMBER_DIGITS_MAX + 1), "holds a number of 4301 digits; at most 4300 are allowed"),
        ("[-0." + "1" * JSON_NUMBER_DIGITS_MAX + "]", "holds a number of 4301 digits; at most 4300 are allowed"),
        ("[" * 100_000, f"is nested deeper than {JSON_DEPTH_MAX} levels"),
    ],
)
def test_what_is_not_json(text: str, sentence: str) -> None:
    """What readers disagree on is refused, and the sentence says what it is."""
    with pytest.raises(NotJson) as refused:
        parse(text)

    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_depth(opened: str, closed: str) -> None:
    """Text may be nested as deep as the limit says, and no deeper."""
    inner = opened + closed if opened == "[" else "{}"

    parse(opened * (JSON_DEPTH_MAX - 1) + inner + closed * (JSON_DEPTH_MAX - 1))

    with pytest.raises(NotJson, match="is nested deeper than 100 levels"):
        parse(opened * JSON_DEPTH_MAX + inner + closed * JSON_DEPTH_MAX)


@pytest.mark.parametrize("sign", ["", "-"])
def test_numbers_at_their_limit(sign: str) -> None:
    """A number of as many digits as allowed is kept, and Python reads it."""
    literal = sign + "9" * JSON_NUMBER_DIGITS_MAX

    assert literal == canonical(parse(literal))
    assert literal == str(json.loads(literal))
    assert f"{sign}1e308" == canonical(parse(f"{sign}1e308"))


def test_pairs_of_surrogates() -> None:
    """A character that was escaped as a pair is one character; a backslash before a u may be just that."""
    assert canonical(parse('"\\ud83d\\ude00"')) == '"😀"'
    assert canonical(parse('"\\\\ud800"')) == '"\\\\ud800"'


def test_objects() -> None:
    """The empty text is the empty object; anything but an object is refused."""
    assert parse_object("") == {}
    assert {"a": Number("1")} == parse_object('{"a": 1}')
    with pytest.raises(NotJson, match="is not a JSON object"):
        parse_object("[]")


def test_a_string_of_digits_is_no_number() -> None:
    """A string and a number of the same characters are written back as they came."""
    assert canonical(parse('["1", 1]')) == '["1",1]'
