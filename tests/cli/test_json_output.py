"""JSON for programs."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from penstock.cli.json_output import to_json
from penstock.client import FlowRunState


@dataclass(frozen=True)
class Thing:
    """Something with every kind of field."""

    name: str
    state: FlowRunState
    time: datetime
    wait: timedelta
    data: bytes
    parameters_json: str
    result_json: str | None = None


def test_fields_become_members() -> None:
    """Each kind of value has its form; JSON text is the value itself, with its digits as written."""
    at = datetime(2026, 3, 1, 10, tzinfo=UTC)
    thing = Thing('a "name"', FlowRunState.RUNNING, at, timedelta(seconds=1.5), b"\xff", '{"n":1.50, "m": 1}')

    text = to_json([thing])

    assert '"parameters": {"m":1,"n":1.50}' in text
    assert [
        {
            "name": 'a "name"',
            "state": "RUNNING",
            "time": "2026-03-01T10:00:00Z",
            "wait": 1.5,
            "data": "/w==",
            "parameters": {"n": 1.5, "m": 1},
            "result": None,
        }
    ] == json.loads(text)


def test_what_a_list_leaves_out_is_left_out() -> None:
    """Text that is not there is told from null, and a document is one line."""
    thing = Thing("two\nlines", FlowRunState.FAILED, datetime(2026, 3, 1, tzinfo=UTC), timedelta(), b"", "", "[1]")

    text = to_json(thing)

    assert "parameters" not in json.loads(text)
    assert [1] == json.loads(text)["result"]
    assert "\n" not in text
