"""Tests of `penstock.runtime.sql_spans`."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from penstock.runtime import sql_spans, telemetry


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(telemetry, "tracer", lambda: tracer)
    return tracer


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    sql_spans.instrument(engine)
    yield engine
    engine.dispose()


def test_a_statement_is_a_span_of_what_surrounds_it(
    engine: Engine, tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    """Each statement is a span named by its verb, with its text and without its values, under the current span."""
    with tracer.start_as_current_span("outer"), engine.begin() as conn:
        conn.execute(text("CREATE TABLE t (a TEXT)"))
        conn.execute(text("INSERT INTO t VALUES (:a)"), [{"a": "s3cret"}, {"a": "s3cret"}])

    create, insert, outer = spans.get_finished_spans()
    assert [span.name for span in (create, insert, outer)] == ["CREATE", "INSERT", "outer"]
    assert insert.attributes is not None
    assert insert.attributes["db.query.text"] == "INSERT INTO t VALUES (?)"
    assert insert.attributes["db.system.name"] == "sqlite"
    assert "s3cret" not in str(insert.to_json())
    assert insert.parent is not None
    assert insert.parent.span_id == outer.context.span_id


def test_a_statement_that_fails_is_an_error(engine: Engine, tracer: Tracer, spans: InMemorySpanExporter) -> None:
    """A failed statement's span ends with an error, and the next statement's is its own."""
    with tracer.start_as_current_span("outer"), engine.begin() as conn:
        with pytest.raises(OperationalError):
            conn.execute(text("SELECT * FROM missing"))
        conn.execute(text("SELECT 1"))

    failed, good, _ = spans.get_finished_spans()
    assert failed.status.description == "OperationalError"
    assert not failed.status.is_ok
    assert good.status.is_ok


@pytest.mark.usefixtures("tracer")
def test_where_nobody_records_there_are_no_spans(engine: Engine, spans: InMemorySpanExporter) -> None:
    """Outside a recorded span, and inside one that is not sampled, statements leave nothing."""
    unsampled = telemetry.context_from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")

    with engine.begin() as conn:
        conn.execute(text("SELECT 1"))
        with telemetry.attached(unsampled):
            conn.execute(text("SELECT 2"))

    assert spans.get_finished_spans() == ()
