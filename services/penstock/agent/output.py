"""Cuts what a body writes into lines: raw bytes of two descriptors, and the records of a third.

Nothing that was written is lost: a line that never ended is a line all the same, what is no UTF-8 stays bytes, what is
no record is output, and what is too long comes in pieces.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from penstock.domain.limits import (
    LOG_LEVEL_CHARACTERS_MAX,
    LOG_LINE_BYTES_MAX,
    LOGGER_CHARACTERS_MAX,
    MESSAGE_BYTES_MAX,
)

Stream = Literal["stdout", "stderr", "logger"]
LEVELS: Final = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})

# The years 1 to 9999, in seconds since 1970: no other moment can be stored.
_TIME_MIN: Final = -62_135_596_800
_TIME_END: Final = 253_402_300_800

_TRACE_ID: Final = re.compile("[0-9a-fA-F]{32}")
_SPAN_ID: Final = re.compile("[0-9a-fA-F]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line, at most LOG_LINE_BYTES_MAX long. `time` is in seconds since 1970; None stands for now."""

    stream: Stream
    content: str | bytes
    time: float | None = None
    level: str = ""
    level_name: str = ""
    logger: str = ""
    trace_id: str = ""
    span_id: str = ""


@dataclass(slots=True)
class Report:
    """What the body said about its own end: a result, a failure, or nothing."""

    returned: bool = False
    result_json: str | None = None
    failure: Mapping[str, str] | None = None


class RawOutput:
    """Cuts the bytes of one descriptor into lines."""

    def __init__(self, stream: Stream, emit: Callable[[Line], None]) -> None:
        self._stream = stream
        self._emit = emit
        self._cutter = _Cutter(LOG_LINE_BYTES_MAX)

    def feed(self, data: bytes) -> None:
        for line in self._cutter.feed(data):
            self._emit(Line(stream=self._stream, content=_text_or_bytes(line)))

    def end(self) -> None:
        for line in self._cutter.end():
            self._emit(Line(stream=self._stream, content=_text_or_bytes(line)))


@dataclass(slots=True)
class RecordedOutput:
    """Reads the records of a body: its lines in order, and what it says about its own end."""

    emit: Callable[[Line], None]
    report: Report = field(default_factory=Report)
    _cutter: "_Cutter" = field(default_factory=lambda: _Cutter(MESSAGE_BYTES_MAX))
    # Lines that were handed over before they ended, by stream and thread.
    _open: dict[tuple[Stream, int], str] = field(default_factory=dict)

    def feed(self, data: bytes) -> None:
        for record in self._cutter.feed(data):
            self._read(record)

    def end(self) -> None:
        for record in self._cutter.end():
            self._read(record)
        for (stream, _), text in self._open.items():
            self._emit_pieces(stream, text, {})
        self._open.clear()

    def _read(self, data: bytes) -> None:
        try:
            self._take(json.loads(data))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            # Somebody wrote to a descriptor that is not theirs; what they wrote is shown, not lost.
            for piece in _pieces(data, LOG_LINE_BYTES_MAX):
                self.emit(Line(stream="stderr", content=_text_or_bytes(piece)))

    def _take(self, record: Mapping[str, Any]) -> None:
        match record["kind"]:
            case "line":
                self._take_line(record)
            case "result":
                self.report.returned = True
                self.report.result_json = record["json"]
            case "failure":
                self.report.failure = {name: str(record[name]) for name in ("type", "message", "traceback")}
            case other:
                raise ValueError(other)

    def _take_line(self, record: Mapping[str, Any]) -> None:
        stream, text = record["stream"], record["text"]
        if stream not in ("stdout", "stderr", "logger") or not isinstance(text, str):
            raise ValueError(record)
        writer = stream, int(record.get("thread", 0))
        text = self._open.pop(writer, "") + text
        if record.get("open") and len(text) < LOG_LINE_BYTES_MAX:
            self._open[writer] = text
        else:
            self._emit_pieces(stream, text, record)

    def _emit_pieces(self, stream: Stream, text: str, record: Mapping[str, Any]) -> None:
        level, level_name = str(record.get("level", "")), clean(str(record.get("level_name", "")))
        trace_id, span_id = _span_of(record)
        for piece in _pieces(text.encode("utf-8", "surrogateescape" if _is_escaped(text) else "replace"), None):
            self.emit(
                Line(
                    stream=stream,
                    content=_text_or_bytes(piece),
                    time=_time_of(record),
                    level=level if level in LEVELS else "",
                    level_name="" if level_name in LEVELS else level_name[:LOG_LEVEL_CHARACTERS_MAX],
                    logger=clean(str(record.get("logger", "")))[:LOGGER_CHARACTERS_MAX],
                    trace_id=trace_id,
                    span_id=span_id,
                )
            )


def clean(text: str) -> str:
    """The text without what no database keeps: halves of surrogate pairs, and the character zero."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _time_of(record: Mapping[str, Any]) -> float | None:
    """When the line was written, if the record says a moment that can be stored."""
    time = record.get("time")
    # A comparison with what is not a number is false, and one with an integer of any size is exact.
    return float(time) if isinstance(time, int | float) and _TIME_MIN <= time < _TIME_END else None


def _span_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """The ids of trace and span. Where one is malformed the other says nothing."""
    trace_id, span_id = str(record.get("trace_id", "")), str(record.get("span_id", ""))
    return (trace_id, span_id) if _TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id) else ("", "")


class _Cutter:
    """Cuts bytes at newlines, and where a line grows beyond what one may hold."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        *ended, rest = data.split(b"\n")
        for line in ended:
            self._rest += line
            yield from self.end(always=True)
        self._rest += rest
        while len(self._rest) > self._bytes_max:
            piece = _first_piece(self._rest, self._bytes_max)
            del self._rest[: len(piece)]
            yield piece

    def end(self, *, always: bool = False) -> Iterator[bytes]:
        whole, self._rest = bytes(self._rest), bytearray()
        if whole or always:
            yield from _pieces(whole, self._bytes_max)


def _pieces(data: bytes, bytes_max: int | None) -> Iterator[bytes]:
    bytes_max = bytes_max or LOG_LINE_BYTES_MAX
    while len(data) > bytes_max:
        piece = _first_piece(data, bytes_max)
        yield piece
        data = data[len(piece) :]
    yield data


def _first_piece(data: bytes | bytearray, bytes_max: int) -> bytes:
    """The longest beginning that fits and does not cut a character of UTF-8 in two."""
    end = bytes_max
    while end > bytes_max - 4 and data[end] & 0xC0 == 0x80:
        end -= 1
    return bytes(data[: end if data[end] & 0xC0 != 0x80 else bytes_max])


def _text_or_bytes(line: bytes) -> str | bytes:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return line
    # No database keeps this character in text.
    return line if "\0" in text else text


def _is_escaped(text: str) -> bool:
    """Whether the text holds bytes that Python could not decode, and nothing else that UTF-8 cannot say."""
    return all("\udc80" <= character <= "\udcff" for character in text if "\ud800" <= character <= "\udfff")
