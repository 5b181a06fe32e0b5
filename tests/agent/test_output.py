"""Cutting what a body writes into lines."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.agent.output import Line, RawOutput, RecordedOutput
from penstock.domain.limits import LOG_LINE_BYTES_MAX

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


def raw_lines(*chunks: bytes) -> list[str | bytes]:
    lines: list[Line] = []
    output = RawOutput("stdout", lines.append)
    for chunk in chunks:
        output.feed(chunk)
    output.end()
    return [line.content for line in lines]


def recorded(*records: dict[str, Any] | bytes) -> tuple[list[Line], RecordedOutput]:
    lines: list[Line] = []
    output = RecordedOutput(lines.append)
    for record in records:
        output.feed(record if isinstance(record, bytes) else json.dumps(record).encode() + b"\n")
    output.end()
    return lines, output


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a\nb"], ["a", "b"]),
        ([b"a", b"b\n\n", b"c"], ["ab", "", "c"]),
        ([b"caf\xc3", b"\xa9\n"], ["café"]),
        ([b"\xff\n"], [b"\xff"]),
        ([b"a\0b"], [b"a\0b"]),
        ([b"a\r\n"], ["a\r"]),
        ([b""], []),
    ],
)
def test_lines_end_at_newlines_and_at_the_end(chunks: list[bytes], expected: list[str | bytes]) -> None:
    """However the bytes arrive; what is no text stays bytes."""
    lines = raw_lines(*chunks)

    assert expected == lines


@pytest.mark.parametrize("size", [LOG_LINE_BYTES_MAX, LOG_LINE_BYTES_MAX + 1])
def test_a_line_may_be_exactly_as_long_as_the_limit(size: int) -> None:
    """One byte more makes a second piece."""
    lines = raw_lines(b"x" * size + b"\n")

    assert [LOG_LINE_BYTES_MAX, 1][: 1 + (size > LOG_LINE_BYTES_MAX)] == [len(line) for line in lines]


@given(st.text(st.characters(min_codepoint=128, exclude_characters="\0", codec="utf-8"), min_size=1, max_size=50))
def test_pieces_never_cut_a_character(text: str) -> None:
    """A long line of characters of several bytes is text in every piece."""
    long = text * (2 * LOG_LINE_BYTES_MAX // len(text.encode()) + 1)

    pieces = raw_lines(long.encode())

    assert long == "".join(piece for piece in pieces if isinstance(piece, str))
    assert all(len(piece.encode()) <= LOG_LINE_BYTES_MAX for piece in pieces if isinstance(piece, str))


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_nothing_is_lost_however_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    """The lines joined by newlines are what was written."""
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges)]

    lines = raw_lines(*chunks)

    joined = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    assert data.removesuffix(b"\n") == joined or data == joined


def test_records_become_lines() -> None:
    """A record's stream, level, logger, time and trace are kept."""
    lines, _ = recorded(
        {
            "kind": "line",
            "stream": "logger",
            "text": "hi",
            "time": 1.5,
            "level": "INFO",
            "level_name": "NOTICE",
            "logger": "a.b",
            "trace_id": TRACE_ID,
            "span_id": SPAN_ID,
        }
    )

    expected = Line(
        stream="logger",
        content="hi",
        time=1.5,
        level="INFO",
        level_name="NOTICE",
        logger="a.b",
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
    )
    assert [expected] == lines


def test_an_open_line_waits_for_its_end() -> None:
    """Lines of other streams may come in between; the end of the body ends what is still open."""
    lines, _ = recorded(
        {"kind": "line", "stream": "stdout", "text": "a", "open": True},
        {"kind": "line", "stream": "stderr", "text": "x", "open": True},
        {"kind": "line", "stream": "logger", "text": "log"},
        {"kind": "line", "stream": "stdout", "text": "b"},
    )

    assert [(line.stream, line.content) for line in lines] == [("logger", "log"), ("stdout", "ab"), ("stderr", "x")]


def test_threads_do_not_end_each_others_lines() -> None:
    """An open line is continued by the thread that began it."""
    lines, _ = recorded(
        {"kind": "line", "stream": "stdout", "thread": 1, "text": "a", "open": True},
        {"kind": "line", "stream": "stdout", "thread": 2, "text": "x"},
        {"kind": "line", "stream": "stdout", "thread": 1, "text": "b"},
    )

    assert [line.content for line in lines] == ["x", "ab"]


def test_the_report_is_read() -> None:
    """Result and failure are no lines."""
    lines, output = recorded({"kind": "result", "json": "[1]"})
    _, failed = recorded({"kind": "failure", "type": "T", "message": "m", "traceback": "tb"})

    assert (lines, output.report.returned, output.report.result_json) == ([], True, "[1]")
    assert failed.report.failure == {"type": "T", "message": "m", "traceback": "tb"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json\n",
        b"[1]\n",
        b'{"kind": "other"}\n',
        b'{"kind": "line", "stream": "nowhere", "text": "x"}\n',
        b'{"kind": "line"}\n',
        b'{"kind": "failure"}\n',
        b'{"kind": "line", "stream": "stdout", "text": "x", "thread": 1e400}\n',
        b"[" * 50_000 + b"\n",
        b"\xff\xff\n",
    ],
)
def test_what_is_no_record_is_shown_as_output(garbage: bytes) -> None:
    """Whatever code writes to the descriptor of the records neither harms the supervisor nor is lost."""
    lines, output = recorded(garbage, {"kind": "result", "json": None})

    assert [garbage.removesuffix(b"\n")] == [
        line.content.encode() if isinstance(line.content, str) else line.content for line in lines
    ]
    assert output.report.returned


def test_text_that_utf8_cannot_say_becomes_the_bytes_it_came_from() -> None:
    """A file name that Python could not decode is shown as its bytes."""
    lines, _ = recorded({"kind": "line", "stream": "stdout", "text": "caf\udce9"})

    assert [line.content for line in lines] == [b"caf\xe9"]


def test_names_are_cut_to_what_the_contract_takes() -> None:
    """A logger with an endless name does not make its lines unstorable."""
    lines, _ = recorded({"kind": "line", "stream": "logger", "text": "", "logger": "x" * 300, "level_name": "y" * 70})

    assert (len(lines[0].logger), len(lines[0].level_name)) == (255, 64)


def test_names_hold_nothing_that_cannot_be_stored() -> None:
    """Halves of surrogate pairs and the character zero are replaced, and the line is kept."""
    lines, _ = recorded({"kind": "line", "stream": "logger", "text": "x", "logger": "a\ud800b", "level_name": "c\0d"})

    assert [("x", "a?b", "c\ufffdd")] == [(line.content, line.logger, line.level_name) for line in lines]


@pytest.mark.parametrize(
    "time", ["1e400", "-1e400", "NaN", "253402300800", "-62135596801", "1" * 400, '"noon"', "null"]
)
def test_a_line_of_an_impossible_time_is_of_now(time: str) -> None:
    """Neither it nor the open line that it continues is lost."""
    impossible = f'{{"kind": "line", "stream": "stdout", "text": "b", "time": {time}}}\n'

    lines, _ = recorded({"kind": "line", "stream": "stdout", "text": "a", "open": True}, impossible.encode())

    assert [Line(stream="stdout", content="ab", time=None)] == lines


@pytest.mark.parametrize(
    ("trace_id", "span_id"), [("t", SPAN_ID), (TRACE_ID, "s"), (TRACE_ID + "\n", SPAN_ID), ("\u0661" * 32, SPAN_ID)]
)
def test_malformed_ids_of_a_span_are_left_out(trace_id: str, span_id: str) -> None:
    """Half an identity would join the line to a span of another trace."""
    lines, _ = recorded({"kind": "line", "stream": "logger", "text": "", "trace_id": trace_id, "span_id": span_id})

    assert [("", "")] == [(line.trace_id, line.span_id) for line in lines]
