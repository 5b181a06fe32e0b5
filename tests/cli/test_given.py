"""Values given on the command line."""

import math
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.failures import CommandFailed
from penstock.cli.given import texts_of, values_in_file, values_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1,2]", [1, 2]),
        ("true", True),
        ("null", None),
        ("3.5", 3.5),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ('{"a": 1}', {"a": 1}),
        ('"quoted"', "quoted"),
        ("Bob", "Bob"),
        ("None", "None"),
        ("1,2", "1,2"),
        ("[1,", "[1,"),
        ("", ""),
        ("2020-01-01", "2020-01-01"),
        ("a=b", "a=b"),
    ],
)
def test_a_value_is_json_or_else_text(text: str, value: Any) -> None:
    """What is JSON is taken as such; what nobody could have meant as JSON is text."""
    assert {"x": value} == values_of("parameter", [f"x={text}"])


@pytest.mark.parametrize(
    "text", ["{bad", '"unbalanced', 'a"b', "NaN", "-Infinity", '{"a": 1, "a": 2}', "[" * 9999, "9" * 9999]
)
def test_mistyped_json_is_an_error(text: str) -> None:
    """What was meant as JSON and is none is refused, by the name of the parameter."""
    with pytest.raises(CommandFailed, match=r"Parameter 'x' has the value .* which is not JSON") as failed:
        values_of("parameter", [f"x={text}"])

    assert 2 == failed.value.exit_code


def test_a_value_may_be_empty_and_repeated() -> None:
    """Nothing after the sign is the empty text; of a name given twice the last value holds."""
    assert {"x": "", "y": 2, "a b": 3} == values_of("parameter", ["x=", "y=1", "y=2", "a b=3"])


def test_a_forgotten_value_is_an_error() -> None:
    """A name alone is refused: an empty text that nobody meant would be worse."""
    with pytest.raises(CommandFailed, match="Parameter 'x' has no value: write x=value, or x= for an empty text"):
        values_of("parameter", ["x"])


def test_texts_are_never_read_as_json() -> None:
    """A variable's value is text whatever it looks like."""
    assert {"A": "1", "B": "{bad", "C": "a=b", "D": ""} == texts_of("variable", ["A=1", "B={bad", "C=a=b", "D="])


def test_a_long_value_is_not_repeated_whole() -> None:
    """An error repeats the beginning of a long value only."""
    with pytest.raises(CommandFailed, match="which is not JSON") as failed:
        values_of("parameter", ["x=" + "{" * 100_000])

    assert len(str(failed.value)) < 1_000


def test_a_value_needs_a_name() -> None:
    """A value without a name is refused."""
    with pytest.raises(CommandFailed, match="has no name"):
        values_of("parameter", ["=1"])


def test_parameters_come_from_a_file(tmp_path: Path) -> None:
    """A file holds parameters as a JSON object."""
    path = tmp_path / "parameters.json"
    path.write_text('{"x": [1, "é"]}', encoding="utf-8")

    assert {"x": [1, "é"]} == values_in_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "must hold a JSON object"),
        ("{", "is not JSON"),
        ("[" * 9999, "is not JSON"),
        (str(math.nan), "it holds NaN"),
    ],
)
def test_a_file_without_an_object_is_refused(content: str, words: str, tmp_path: Path) -> None:
    """A file that holds anything else is refused by its name."""
    path = tmp_path / "parameters.json"
    path.write_text(content.replace("nan", "NaN"), encoding="utf-8")

    with pytest.raises(CommandFailed, match=words):
        values_in_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(CommandFailed, match=r"nothing\.json cannot be read: No such file"):
        values_in_file(tmp_path / "nothing.json")
