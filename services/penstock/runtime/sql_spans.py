"""A span for every SQL statement that runs inside a recorded span; imported by the services' `__main__` alone."""

from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection, ExceptionContext

from penstock.runtime import telemetry

_SPANS: Final = "penstock.spans"
_STATEMENT_CHARACTERS_MAX: Final = 2_000


def instrument(engine: Engine) -> None:
    """Open a span around each statement of this engine, if somebody records what surrounds it."""
    event.listen(engine, "before_cursor_execute", _begin)
    event.listen(engine, "after_cursor_execute", _end)
    event.listen(engine, "handle_error", _fail)


def _begin(conn: Connection, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
    if not trace.get_current_span().is_recording():
        return
    verb = statement.split(None, 1)[0].upper()
    attributes = {
        "db.system.name": conn.dialect.name,
        "db.operation.name": verb,
        "db.query.text": statement[:_STATEMENT_CHARACTERS_MAX],
    }
    span = telemetry.tracer().start_span(verb, kind=SpanKind.CLIENT, attributes=attributes)
    conn.info.setdefault(_SPANS, []).append(span)


def _end(conn: Connection, _cursor: Any, _statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
    if (span := _taken(conn)) is not None:
        span.end()


def _fail(context: ExceptionContext) -> None:
    if context.connection is not None and (span := _taken(context.connection)) is not None:
        span.set_status(StatusCode.ERROR, type(context.original_exception).__name__)
        span.end()


def _taken(conn: Connection) -> Span | None:
    spans: list[Span] = conn.info.get(_SPANS, [])
    return spans.pop() if spans else None
