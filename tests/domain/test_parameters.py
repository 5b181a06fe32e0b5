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
        "'depth' must be of type number",
        "'gauges' must be of type array",
    )
    assert tuple(Violation("parameters_json", each) for each in sentences) == refused.value.violations


def test_extra_parameters() -> None:
    """A flow that accepts extra parameters takes any name."""
    check_given([], True, {"anything": None})


def test_null() -> None:
    """Null is taken by any type whose default is null, and by no other."""
    nullable = Parameter("depth", ParameterType.NUMBER, default_json="null")
    check_given([nullable], False, {"depth": None})

    with pytest.raises(InvalidRequest, match="'depth' must be of type number"):
        check_given([Parameter("depth", ParameterType.NUMBER, default_json="1")], False, {"depth": None})


def test_size_with_defaults() -> None:
    """Text is measured in bytes, and the limit itself is allowed."""
    check_size("parameters_json", "éé", 4)

    with pytest.raises(InvalidRequest, match="is 5 bytes with its defaults; at most 4 are kept"):
        check_size("parameters_json", "ééa", 4)
