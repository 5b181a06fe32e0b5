"""Tests of `penstock.wire.checks`."""

from collections import UserList
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration

from flowrun.v1 import flow_run_service_pb2 as pb
from penstock.domain.errors import InvalidRequest
from penstock.domain.json_text import Number
from penstock.domain.lanes import AGENTLESS
from penstock.domain.limits import LABEL_CHARACTERS_MAX, LABELS_MAX
from penstock.wire.checks import Checks, abridged, collecting, id_of, present
from tests.wire.refusing import wrong

ID = "01980000-0000-7000-8000-000000000001"
SECOND = timedelta(seconds=1)


def found(check: Callable[[Checks], Any]) -> list[tuple[str, str]]:
    """What a single check finds wrong; nothing where it is content."""
    checks = Checks()
    check(checks)
    try:
        checks.done()
    except InvalidRequest as refusal:
        return [(each.field, each.description) for each in refusal.violations]
    return []


def sentences(check: Callable[[Checks], Any]) -> list[str]:
    return [sentence for _, sentence in found(check)]


def test_everything_is_listed_at_once() -> None:
    """All violations are in one refusal, in the order they were found."""
    checks = Checks()
    checks.text("a", "", 5, required=True)
    checks.count("b", 7, 1, 5)
    checks.uuid("c", "nonsense")

    assert wrong(checks.done) == [("a", "is required"), ("b", "is 7; at most 5 is allowed"), ("c", "is not a UUID")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["is required"]),
        ("12345", []),
        ("ééééé", []),
        ("123456", ["is 6 characters; at most 5 are allowed"]),
        ("a\0b", ["holds a NUL character"]),
        (" \t\n", []),
        ("\u202e\x1b", []),
        ("12345\0", ["is 6 characters; at most 5 are allowed", "holds a NUL character"]),
    ],
)
def test_text(text: str, expected: list[str]) -> None:
    """Text is counted in characters and may hold anything but NUL."""
    assert expected == sentences(lambda checks: checks.text("field", text, 5, required=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["is required"]),
        (" ", ["is only white space"]),
        ("\u2003\n", ["is only white space"]),
        (" a ", []),
        ("a\0", ["holds a NUL character"]),
        ("a\nb", ["holds U+000A as character 2, a control character"]),
        ("a\u202eb", ["holds U+202E (RIGHT-TO-LEFT OVERRIDE) as character 2, which changes the direction of writing"]),
        ("\n" * 256, ["is only white space", "is 256 characters; at most 255 are allowed"]),
        ("\u202e" * 256, ["is 256 characters; at most 255 are allowed"]),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    """A name is more than white space and looks like what it is; it is otherwise taken as given."""
    assert expected == sentences(lambda checks: checks.name("field", text))
    assert text == Checks().name("field", text)


def test_names_that_may_be_left_out() -> None:
    """An optional name may be empty, but not white space."""
    assert sentences(lambda checks: checks.name("field", "", required=False)) == []
    assert sentences(lambda checks: checks.name("field", " ", required=False)) == ["is only white space"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["is required"]),
        ("\t", ["is only white space"]),
        ("a\0", ["holds a NUL character"]),
        ("a\x1b", ["holds U+001B as character 2, a control character"]),
        (" '; \u202e-- ", []),
        ("x" * 255, []),
        ("x" * 256, ["is 256 characters; at most 255 are allowed"]),
    ],
)
def test_keys(text: str, expected: list[str]) -> None:
    """A key is any text that is more than white space and steers no terminal."""
    assert expected == sentences(lambda checks: checks.key("idempotency_key", text))
    assert text == Checks().key("idempotency_key", text)


def test_names_are_not_normalised() -> None:
    """Two spellings of one accented letter stay two names."""
    assert Checks().labels("labels", ["\u00e9", "e\u0301"]) == ("e\u0301", "\u00e9")


@pytest.mark.parametrize("text", [ID, ID.upper()])
def test_ids(text: str) -> None:
    """An id is read in either case."""
    assert UUID(ID) == id_of("flow_run_id", text)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        ID[:-1],
        f"{ID}0",
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        ID.replace("0", "g", 1),
        ID.replace("0", " ", 1),
        ID.replace("19", "1_"),
        ID.replace("1", "\u0661", 1),
        "0198-0000-0000-7000-8000000000000001",
    ],
)
def test_what_is_no_id(text: str) -> None:
    """Only the form with four hyphens is an id."""
    assert wrong(id_of, "flow_run_id", text) == [("flow_run_id", "is not a UUID")]


def test_ids_that_may_be_left_out() -> None:
    """An empty id is none, or a violation where one is required."""
    assert Checks().uuid("field", "", required=False) is None
    assert wrong(id_of, "field", "") == [("field", "is required")]


def test_several_ids() -> None:
    """Each of several ids is named by its place."""
    assert (UUID(ID), UUID(ID)) == Checks().uuids("ids", [ID, ID], 2)
    assert found(lambda checks: checks.uuids("ids", [ID, "x"], 2)) == [("ids[1]", "is not a UUID")]


def test_labels() -> None:
    """Labels are sorted, and repeats count once."""
    assert Checks().labels("labels", ["b", "a", "b"]) == ("a", "b")


def test_labels_at_their_limits() -> None:
    """As many labels as allowed, as long as allowed, and repeated besides, are taken."""
    labels = [f"{index:0{LABEL_CHARACTERS_MAX}}" for index in range(LABELS_MAX)]

    assert found(lambda checks: checks.labels("labels", labels * 2)) == []


def test_labels_beyond_their_limits() -> None:
    """Each wrong label is named by its place, and too many are refused as a whole."""
    long = "x" * (LABEL_CHARACTERS_MAX + 1)
    places = [
        ("labels[1]", f"is {len(long)} characters; at most {LABEL_CHARACTERS_MAX} are allowed"),
        ("labels[2]", "is required"),
        ("labels[3]", "is only white space"),
        ("labels[4]", "holds a NUL character"),
    ]
    assert places == found(lambda checks: checks.labels("labels", ["ok", long, "", " ", "a\0"]))

    many = [str(index) for index in range(LABELS_MAX + 1)]
    assert found(lambda checks: checks.labels("labels", many)) == [("labels", "holds 65; at most 64 are allowed")]
    same = ["\0"] * 10_000
    assert found(lambda checks: checks.labels("labels", same)) == [("labels", "holds 10000; at most 64 are allowed")]


def test_labels_that_are_hard_to_list() -> None:
    """Each is named by its place among those that were given, with the character that is wrong."""
    assert found(lambda checks: checks.labels("labels", ["b", "b", "a,", " c"])) == [
        ("labels[2]", "holds , as character 2; a label has no comma, semicolon, quote or backslash"),
        ("labels[3]", "holds U+0020 (SPACE) as character 1, white space at an end"),
    ]


def test_reserved_labels() -> None:
    """Labels that mean something to the queue are refused, but for those that the request may bear."""
    sentence = "is 'penstock:agentless'; labels that begin with 'penstock:' are reserved"
    assert sentences(lambda checks: checks.labels("labels", [AGENTLESS])) == [sentence]
    assert sentences(lambda checks: checks.labels("labels", [AGENTLESS], reserved=(AGENTLESS,))) == []
    others = ["penstock:", "penstock:agentless ", "penstock:other"]
    refused = found(lambda checks: checks.labels("labels", others, reserved=(AGENTLESS,)))
    assert {"labels[0]", "labels[1]", "labels[2]"} == {field for field, _ in refused}
    assert sentences(lambda checks: checks.labels("labels", ["penstock", "my penstock:x"])) == []


class Unread(UserList[str]):
    """Labels that may be counted, and not looked at."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("it was looked at")

    __getitem__ = __iter__  # type: ignore[assignment]


class UnreadText(str):
    """Text of which no character may be looked at."""

    __slots__ = ()

    def __iter__(self) -> NoReturn:
        raise AssertionError("it was looked at")


def test_large_requests_are_refused_without_a_look_at_each_part() -> None:
    """Megabytes in a name, and millions of labels, are only counted."""
    name, labels = UnreadText("\u202e" * 5_000_000), Unread([""] * 2_000_000)

    assert found(lambda checks: checks.name("name", name)) == [
        ("name", "is 5000000 characters; at most 255 are allowed")
    ]
    assert found(lambda checks: checks.labels("labels", labels)) == [
        ("labels", "holds 2000000; at most 64 are allowed")
    ]


def test_abridged() -> None:
    """The beginning of a long text, and all of a short one."""
    assert abridged("x" * 40) == "x" * 40
    assert abridged("x" * 41) == "x" * 39 + "…"


def test_how_many() -> None:
    """Too few and too many are refused; of too many none is looked at."""
    assert Checks().several("field", [1, 2], 2) == [1, 2]
    assert Checks().several("field", [1, 2, 3], 2) == ()
    assert sentences(lambda checks: checks.several("field", [1, 2, 3], 2)) == ["holds 3; at most 2 are allowed"]
    assert sentences(lambda checks: checks.several("field", [], 2, low=1)) == ["is required"]
    assert sentences(lambda checks: checks.several("field", [1], 3, low=2)) == ["holds 1; at least 2 are required"]


def test_json_objects() -> None:
    """The empty text is the empty object; sizes are counted in bytes, and too large a text is not even parsed."""
    assert Checks().json_object("field", "", 10) == {}
    assert {"é": Number("1")} == Checks().json_object("field", '{"é":1}', 8)
    assert sentences(lambda checks: checks.json_object("field", '{"é":1}', 7)) == ["is 8 bytes; at most 7 are allowed"]
    assert sentences(lambda checks: checks.json_object("field", "nonsense", 7)) == ["is 8 bytes; at most 7 are allowed"]
    assert sentences(lambda checks: checks.json_object("field", "[]", 7)) == ["is not a JSON object"]
    assert sentences(lambda checks: checks.json_object("field", '{"a":NaN}', 99)) == ["holds NaN, which is not JSON"]


def test_json() -> None:
    """Any JSON value is one, but no text at all is none."""
    assert Number("1.50") == Checks().json("field", "1.50", 4)
    assert sentences(lambda checks: checks.json("field", "1.50", 3)) == ["is 4 bytes; at most 3 are allowed"]
    assert len(sentences(lambda checks: checks.json("field", "", 3))) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, []), (5, []), (0, ["is 0; at least 1 is required"]), (6, ["is 6; at most 5 is allowed"])],
)
def test_counts(value: int, expected: list[str]) -> None:
    """Both bounds are allowed."""
    assert expected == sentences(lambda checks: checks.count("field", value, 1, 5))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Duration(), []),
        (Duration(seconds=1), []),
        (Duration(seconds=1, nanos=1_000), ["is 1.000001 s; at most 1 s are allowed"]),
        (Duration(nanos=-1_000), ["is -1e-06 s; at least 0 s are required"]),
        (
            Duration(seconds=1, nanos=-1),
            ["is not a duration: its seconds or nanos are out of range, or differ in sign"],
        ),
    ],
)
def test_durations(value: Duration, expected: list[str]) -> None:
    """Both bounds of a span are allowed, and what is no duration is refused."""
    assert expected == sentences(lambda checks: checks.duration("field", value, timedelta(0), SECOND))


def test_times() -> None:
    """An absent time is None, or a violation where it is required; one out of range never crashes."""
    request = pb.CreateFlowRunRequest()
    assert Checks().time(request, "scheduled_start_time") is None
    absent = found(lambda checks: checks.time(request, "scheduled_start_time", path="a[1].", required=True))
    assert absent == [("a[1].scheduled_start_time", "is required")]

    request.scheduled_start_time.seconds = 2**62
    far = found(lambda checks: checks.time(request, "scheduled_start_time", path="a[1]."))
    assert far == [("a[1].scheduled_start_time", "is not a moment of the years 1 to 9999")]


def test_choices() -> None:
    """An enum's number stands for its value, zero for what is unspecified, and an unknown one is refused."""
    assert Checks().choice("field", 1, {1: "one"}, unspecified="none") == "one"
    assert Checks().choice("field", 0, {1: "one"}, unspecified="none") == "none"
    unknown = sentences(lambda checks: checks.choice("field", 7, {1: "one"}, unspecified=None))
    assert unknown == ["is 7, which this server does not know"]


def test_whose_checks_refuse() -> None:
    """Checks that were handed in collect on; their owner refuses."""
    outer = Checks()
    with collecting(outer) as checks:
        checks.refuse("field", "is wrong")

    assert outer is checks
    assert wrong(outer.done) == [("field", "is wrong")]


def test_presence() -> None:
    """An optional field that is set to nothing is present."""
    assert present(pb.Succeeded(), "result_json") is None
    assert present(pb.Succeeded(result_json=""), "result_json") == ""
