"""What a body tells its supervisor: one JSON object per line on an inherited descriptor.

`sys.stdout`, `sys.stderr` and logging all write here, so that what a flow says keeps the order in which it was said.
A supervisor that is gone never makes a print fail.
"""

import atexit
import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from typing import Any, Final, TextIO

from opentelemetry import trace

from penstock.domain.limits import LOG_LINE_BYTES_MAX


class Records:
    """The descriptor, shared by all threads of the body."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()
        os.set_inheritable(descriptor, False)
        # A child forked while another thread writes would otherwise wait for that thread for ever.
        os.register_at_fork(after_in_child=self._renew_lock)

    def write(self, record: dict[str, Any]) -> None:
        """Write one record whole. Waits while the supervisor is behind."""
        left = memoryview(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
        with self._lock, contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def line(self, stream: str, text: str, **more: Any) -> None:
        """Write a line of a stream: "stdout", "stderr" or "logger"."""
        self.write({"kind": "line", "stream": stream, "time": time.time(), "text": text, **_span(), **more})

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


class RecordedStream(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr`. Bytes written to its `buffer` go the way of the raw descriptor.

    Each thread has a line of its own that has not ended yet, so that the prints of two threads are never mixed.
    """

    def __init__(self, records: Records, stream: str, replaced: TextIO) -> None:
        self._records = records
        self._stream = stream
        self._replaced = replaced
        self._open_lines: dict[int, str] = {}
        self.buffer = replaced.buffer
        os.register_at_fork(after_in_child=self._open_lines.clear)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._replaced.fileno()

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        thread = threading.get_ident()
        *lines, rest = (self._open_lines.pop(thread, "") + text).split("\n")
        for line in lines:
            self._records.line(self._stream, line, thread=thread)
        if len(rest) >= LOG_LINE_BYTES_MAX:
            self._records.line(self._stream, rest, thread=thread, open=True)
        elif rest:
            self._open_lines[thread] = rest
        return len(text)

    def flush(self) -> None:
        """Hand over this thread's line that has not ended yet, so that it outlives this process."""
        self._hand_over(threading.get_ident())
        with contextlib.suppress(OSError, ValueError):
            self._replaced.flush()

    def end(self) -> None:
        """Hand over the lines that threads which ended left open."""
        for thread in list(self._open_lines):
            self._hand_over(thread)

    def _hand_over(self, thread: int) -> None:
        if rest := self._open_lines.pop(thread, ""):
            self._records.line(self._stream, rest, thread=thread, open=True)


class RecordsHandler(logging.Handler):
    """Writes what loggers log."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except (TypeError, ValueError):
            self.handleError(record)  # an argument does not fit the message: said on stderr, as logging always does
            return
        self._records.line(
            "logger",
            text,
            time=record.created,
            level=_nearest_level(record.levelno),
            level_name=record.levelname,
            logger=record.name,
        )


def install(records: Records, level: str) -> None:
    """Let everything that this process prints and logs go to the records."""
    stdout = sys.stdout = RecordedStream(records, "stdout", sys.__stdout__ or sys.stdout)
    stderr = sys.stderr = RecordedStream(records, "stderr", sys.__stderr__ or sys.stderr)
    for stream in (stdout, stderr):
        atexit.register(stream.end)
    root = logging.getLogger()
    root.addHandler(RecordsHandler(records))
    root.setLevel(level)


_LEVELS: Final = ((50, "CRITICAL"), (40, "ERROR"), (30, "WARNING"), (20, "INFO"))


def _nearest_level(number: int) -> str:
    return next((name for least, name in _LEVELS if number >= least), "DEBUG")


def _span() -> dict[str, str]:
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(span.trace_id), "span_id": trace.format_span_id(span.span_id)}
