"""Offers as an agent gets them, each traced under the trace of its run's creation."""

from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from flowrun.v1 import lease_pb2
from penstock.domain.agent import Offered
from penstock.domain.lease import HeldLease
from penstock.domain.limits import OFFERS_BYTES_MAX
from penstock.queue.operations import Grant
from penstock.runtime import telemetry
from penstock.wire import leases as wire


def fitting(batch: Sequence[Grant]) -> list[tuple[HeldLease, lease_pb2.Offer]]:
    """The offers of the first grants that one message can carry, and of at least one."""
    left = OFFERS_BYTES_MAX
    offers: list[tuple[HeldLease, lease_pb2.Offer]] = []
    for grant in batch:
        offer = wire.offer_to_proto(Offered(grant.run, grant.flow, grant.held, {}))
        left -= offer.ByteSize()
        if left < 0 and offers:
            break
        offer.trace_context.update(_waited(grant))
        offers.append((grant.held, offer))
    return offers


def _waited(grant: Grant) -> Mapping[str, str]:
    """Traces the time that a run has waited, under the trace of its creation; the context to go on in."""
    waited = telemetry.tracer().start_span(
        "queue wait",
        context=telemetry.context_from(grant.run.traceparent, grant.run.tracestate),
        kind=SpanKind.PRODUCER,
        start_time=_nanoseconds(grant.entry.due_time.timestamp()),
        attributes={"penstock.flow_run.id": str(grant.run.id), "penstock.fence": grant.entry.fence},
    )
    context = trace.set_span_in_context(waited, Context())
    assert grant.entry.grant_time is not None
    waited.end(_nanoseconds(grant.entry.grant_time.timestamp()))
    return telemetry.carrier(context)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000) * 1_000
