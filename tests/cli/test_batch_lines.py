"""The lines of a batch."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.cli.batch_lines import BadLine, Line, read_lines, size_of
from penstock.cli.creating import Target
from penstock.cli.failures import CommandFailed
from penstock.client import KeyReuse, LogLevel, NewFlowRun, RunConfig
from penstock.domain.limits import IDEMPOTENCY_KEY_CHARACTERS_MAX

RIVER = Target(name="river")


def read(*lines: str | bytes | dict[str, Any], default: Target | None = RIVER) -> list[Line]:
    """What lines like these are read as."""
    encoded = [
        each if isinstance(each, bytes) else (each if isinstance(each, str) else json.dumps(each)).encode()
        for each in lines
    ]
    return read_lines(encoded, default, "batch:b:", {})


def refusal(*lines: str | bytes | dict[str, Any], default: Target | None = RIVER) -> list[str]:
    """What lines like these are refused with."""
    with pytest.raises(CommandFailed) as failed:
        read(*lines, default=default)
    assert 2 == failed.value.exit_code
    return str(failed.value).splitlines()


def test_a_line_says_all_that_a_command_line_may() -> None:
    """Every member becomes the wish that it stands for."""
    run_config = {"environment": {"A": "", "B": "1"}, "image": "busybox", "resources": {"cpu": "2"}}

    (line,) = read(
        {
            "flow": "lake",
            "project": "water",
            "parameters": {"a b": [1, None]},
            "context": {"why": "test"},
            "labels": [],
            "name": "first",
            "start_at": "2126-01-01T00:00Z",
            "idempotency_key": "k",
            "retries": 2,
            "retry_delay": "1m",
            "priority": 3,
            "log_level": "debug",
            "run_config": run_config,
        }
    )

    wish: NewFlowRun = {
        "parameters": {"a b": [1, None]},
        "context": {"why": "test"},
        "labels": [],
        "flow_run_name": "first",
        "scheduled_start_time": datetime(2126, 1, 1, tzinfo=UTC),
        "idempotency_key": "k",
        "max_retries": 2,
        "retry_delay": timedelta(minutes=1),
        "priority": 3,
        "log_level": LogLevel.DEBUG,
        "run_config": RunConfig({"A": "", "B": "1"}, "", "busybox", {"cpu": "2"}),
    }
    assert Line(1, wish, Target(name="lake", project="water")) == line


def keys(*lines: str | bytes | dict[str, Any]) -> list[str | None]:
    """The idempotency keys of lines like these."""
    return [line.wish["idempotency_key"] for line in read(*lines)]


def test_a_line_without_a_key_gets_one_of_its_own() -> None:
    """The key is the line's own, or one of the batch; blank lines have none, and count in the file."""
    lines = read("", {}, "  ", {"idempotency_key": "own"}, {"retries": 1}, b"\n")

    first, own, last = (line.wish["idempotency_key"] or "" for line in lines)
    assert [2, 4, 5] == [line.number for line in lines]
    assert "own" == own
    assert first.startswith("batch:b:")
    assert last.startswith("batch:b:")
    assert first != last


def test_the_key_of_a_line_goes_with_what_it_says() -> None:
    """A line keeps its key wherever it stands and however it is written, and has another when it says another thing."""
    first, second = keys({"parameters": {"a": 1, "b": 2}}, {"parameters": {"a": 1, "b": 3}})

    moved = keys(
        {"parameters": {}},
        '{"parameters": {"a": 1, "b": 3}}',
        "",
        '{ "labels": null,  "parameters":{"b":2,"a":1}}',
    )

    assert first != second
    assert [second, first] == moved[1:]
    assert moved[0] not in (first, second)


def test_lines_that_say_the_same_are_told_apart_by_their_order() -> None:
    """Each of several equal lines has a key of its own, and what stands between them makes no difference."""
    first, second, third = keys({}, {"labels": None}, {})

    assert 3 == len({first, second, third})
    assert [first, second] == [key for key in keys({"name": "x"}, {}, {"name": "y"}, {}) if key in (first, second)]


def test_the_key_of_a_line_fits() -> None:
    """The longest id of a batch leaves room for what tells its lines apart."""
    (line,) = read_lines([b"{}"], RIVER, f"batch:{'x' * 200}:", {})

    assert IDEMPOTENCY_KEY_CHARACTERS_MAX - 10 >= len(line.wish["idempotency_key"] or "")


@pytest.mark.parametrize("depth", [50, 900, 5_000])
def test_a_line_that_is_nested_deeply(depth: int) -> None:
    """A line is read whole or refused by its number, however deep it is nested."""
    text = f'{{"parameters": {{"a": {"[" * depth}1{"]" * depth}}}}}'

    if depth == 5_000:
        assert refusal(text)[1].startswith("  line 1: is not JSON: ")
    else:
        assert 1 == len(read(text))


def test_what_all_wish_is_wished_by_each() -> None:
    """An option of the command holds for every line."""
    (line,) = read_lines([b"{}"], RIVER, "p", {"key_reuse": KeyReuse.REFUSE_IF_DIFFERENT})

    assert KeyReuse.REFUSE_IF_DIFFERENT == line.wish["key_reuse"]


@pytest.mark.parametrize(
    ("line", "default", "target", "ids"),
    [
        ({}, Target(name="a", project="p"), Target(name="a", project="p"), {}),
        ({}, Target(flow_id="a"), Target(flow_id="a"), {}),
        ({"project": "q"}, Target(name="a", project="p"), Target(name="a", project="q"), {}),
        ({"flow": "b"}, Target(name="a", project="p"), Target(name="b", project="p"), {}),
        ({"flow": "b"}, Target(flow_id="a"), Target(name="b"), {}),
        ({"flow": "b"}, None, Target(name="b"), {}),
        ({"flow": "b"}, Target(project="p"), Target(name="b", project="p"), {}),
        ({"flow_id": "b"}, Target(name="a"), None, {"flow_id": "b"}),
        ({"flow_group_id": "b"}, None, None, {"flow_group_id": "b"}),
    ],
)
def test_what_a_line_runs(
    line: dict[str, Any], default: Target | None, target: Target | None, ids: dict[str, str]
) -> None:
    """A line's own flow goes before the one that the command line gives for all."""
    (read_line,) = read(line, default=default)

    assert target == read_line.target
    assert ids == {name: value for name, value in read_line.wish.items() if name in ("flow_id", "flow_group_id")}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON: "),
        ("{} {}", "is not JSON: Extra data"),
        ("[1]", "is not a JSON object"),
        ("[" * 9999, "is not JSON: "),
        ('{"parameters": {"a": NaN}}', "is not JSON: it holds NaN"),
        ('{"name": "a", "name": "b"}', "is not JSON: it names a member twice"),
        (b"\xff{}", "is not valid UTF-8"),
        ({"parameter": {}}, "has the unknown member 'parameter'; there are context, flow, "),
        ({"parameters": [1]}, "parameters must be an object, not [1]"),
        ({"context": "x"}, "context must be an object, not 'x'"),
        ({"labels": "x"}, "labels must be an array of texts, not 'x'"),
        ({"labels": ["x", 1]}, "labels[1] must be a text, not 1"),
        ({"labels": [""]}, "labels[0] is empty"),
        ({"name": 5}, "name must be a text, not 5"),
        ({"name": ""}, "name is empty"),
        ('{"name": "\\ud800"}', "name holds half a character"),
        ({"idempotency_key": ""}, "idempotency_key is empty"),
        ({"retries": "2"}, "retries must be a whole number from 0 to 1,000, not '2'"),
        ({"retries": True}, "retries must be a whole number from 0 to 1,000, not True"),
        ({"priority": 101}, "priority must be a whole number from 0 to 100, not 101"),
        ({"retry_delay": "1"}, "retry_delay '1' is not a span such as 90s"),
        ({"in": 5}, "in must be a text, not 5"),
        ({"start_at": "soon"}, "start_at 'soon' is not a moment in ISO 8601"),
        ({"start_at": "2126-01-01", "in": "1m"}, "start_at and in cannot go together"),
        ({"log_level": "loud"}, "log_level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not 'loud'"),
        ({"run_config": {"img": "x"}}, "run_config has the unknown member 'img'; there are environment, "),
        ({"run_config": {"environment": {"A": 1}}}, "run_config.environment.A must be a text, not 1"),
        ({"run_config": {"environment": {"A": 0}}}, "run_config.environment.A must be a text, not 0"),
        ({"flow": "a", "flow_id": "b"}, "flow and flow_id cannot go together: each says which flow to run"),
        ({"flow_id": "b", "project": "p"}, "project goes with flow: an id needs none"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_bad_line(line: str | bytes | dict[str, Any], words: str) -> None:
    """A line that cannot be meant is refused with its number and what is wrong with it."""
    heading, sentence = refusal({}, line)

    assert "Nothing was sent:" == heading
    assert sentence.startswith(f"  line 2: {words}")
    assert sentence.endswith(".")


def test_a_line_without_a_flow() -> None:
    """Where neither the line nor the command says a flow, the ways to say one are named."""
    assert "says no flow: give flow, flow_id or flow_group_id, or --name" in refusal({}, default=None)[1]


def test_all_bad_lines_are_listed_up_to_a_number() -> None:
    """Every bad line is found at once; of very many the first are listed and the others counted."""
    assert 1 + 20 + 1 == len(refusal(*["{"] * 1_500))
    assert "  … and 1,480 more." == refusal(*["{"] * 1_500)[-1]


def test_a_batch_without_lines() -> None:
    """A file that describes no run is refused."""
    assert ["The batch holds no line that describes a run."] == refusal("", " \t")


def test_the_size_of_a_line_is_that_of_its_request() -> None:
    """What is counted is what is sent, and what no call can carry is refused."""
    small = size_of({"flow_id": "x", "parameters": {"a": "é" * 1_000}})

    assert 6_000 < small < 6_200
    with pytest.raises(BadLine, match="at most 3,145,728 can be sent"):
        size_of({"flow_id": "x", "parameters": {"a": "x" * 4_000_000}})
