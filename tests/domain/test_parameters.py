"""Tests of `penstock.domain.parameters`."""

import pytest

from penstock.domain.errors import InvalidRequest, Violation
from penstock.domain.json_text import parse, parse_object
from penstock.domain.parameters import FITS, Parameter, ParameterType, check_given, check_size

FITTING = {
    ParameterType.ANY: ["null", '"a"', "1", "1.5", "true", "[]", "{}"],
    ParameterType.STRING: ['"a"', '""', '"1"'],
    ParameterType.INTEGER: ["0", "-12", "123456789012345678901234567890"],
    ParameterType.NUMBER: ["0", "-12", "1.0", "1e3"],
    ParameterType.BOOLEAN: ["true", "false"],
    ParameterType.ARRAY: ["[]", "[1]"],
    ParameterType.OBJECT: ["{}", '{"a":1}'],
}
EVERYTHING = ["null", '"a"', '""', '"1"', "0", "-12", "1.0", "1e3", "true", "false", "[]", "[1]", "{}", '{"a":1}']


@pytest.mark.parametrize("kind", list(ParameterType))
def test_types(kind: ParameterType) -> None:
    """A type takes its own values and no others; the digits of an integer are unbounded."""
    assert all(FITS[kind](parse(text)) for text in FITTING[kind])
    if kind is not ParameterType.ANY:
        others = set(EVERYTHING) - set(FITTING[kind])
        assert not [text for text in others if FITS[kind](parse(text))]


def test_everything_wrong_is_said_at_once() -> None:
    """Missing, unknown and mistyped parameters are refused together."""
    declared = [
        Parameter("river", ParameterType.STRING, required=True),
        Parameter("depth", ParameterType.NUMBER),
        Parameter("gauges", ParameterType.ARRAY, required=True),
    ]

    with pytest.raises(InvalidRequest) as refused:
        check_given(declared, False, parse_object('{"depth": "deep", "color": 1, "gauges": {}}'))

    sentences = (
        "'river' is required",
        "'color' is not a parameter of the flow",
        "'depth' must be of type number, not string",
        "'gauges' must be of type array, not object",
    )
    assert tuple(Violation("parameters_json", each) for each in sentences) == refused.value.violations


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("null", "null"),
        ('"1"', "string"),
        ("-1", "integer"),
        ("1.0", "number"),
        ("1e3", "number"),
        ("false", "boolean"),
        ("[]", "array"),
        ("{}", "object"),
    ],
)
@pytest.mark.parametrize("declared", [each for each in ParameterType if each is not ParameterType.ANY])
def test_a_wrong_type_is_named(declared: ParameterType, text: str, kind: str) -> None:
    """Whatever was declared, a refusal says what was asked and what was given."""
    if kind == declared or (kind, declared) == ("integer", "number"):
        return

    with pytest.raises(InvalidRequest) as refused:
        check_given([Parameter("x", declared)], False, {"x": parse(text)})

    (violation,) = refused.value.violations
    assert f"'x' must be of type {declared}, not {kind}" == violation.description


def test_what_the_group_set_is_said_of_the_group() -> None:
    """Who created the run cannot mend what the flow group sets, so the refusal says whose it is."""
    given = parse_object('{"depth": "deep", "color": 1, "own": 2}')

    with pytest.raises(InvalidRequest) as refused:
        check_given([Parameter("depth", ParameterType.NUMBER)], False, given, {"depth", "color"})

    assert [
        "'color', which the flow group sets, is not a parameter of the flow",
        "'own' is not a parameter of the flow",
        "'depth', which the flow group sets, must be of type number, not string",
    ] == [each.description for each in refused.value.violations]


def test_extra_parameters() -> None:
    """A flow that accepts extra parameters takes any name."""
    check_given([], True, {"anything": None})


def test_null() -> None:
    """Null is taken by any type whose default is null, and by no other."""
    nullable = Parameter("depth", ParameterType.NUMBER, default_json="null")
    check_given([nullable], False, {"depth": None})

    with pytest.raises(InvalidRequest, match="'depth' must be of type number, not null"):
        check_given([Parameter("depth", ParameterType.NUMBER, default_json="1")], False, {"depth": None})


def test_size_with_defaults() -> None:
    """Text is measured in bytes, and the limit itself is allowed."""
    check_size("parameters_json", "éé", 4)

    with pytest.raises(InvalidRequest, match="is 5 bytes with its defaults; at most 4 are kept"):
        check_size("parameters_json", "ééa", 4)
