"""Tests of `penstock.wire.leases`."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from penstock.domain import limits
from penstock.domain.agent import Agent, AgentHello, Offered, Polling, Releasing
from penstock.domain.lanes import AGENTLESS
from penstock.domain.lease import HeldLease, Lease, LeaseOutcome, LeaseResult
from penstock.wire import leases
from penstock.wire.flow_runs import flow_run_to_proto
from penstock.wire.flows import flow_to_proto
from penstock.wire.leases import (
    accepting_of,
    agent_to_proto,
    hello_of,
    lease_result_to_proto,
    lease_to_proto,
    leases_of,
    offer_to_proto,
    polling_of,
    releases_of,
)
from tests.domain.builders import AGENT_ID, MINUTE, RUN_ID, TRACEPARENT, a_flow, a_flow_run
from tests.support.fake_clock import NOON
from tests.wire.refusing import wrong, wrong_fields

LEASE = Lease(RUN_ID, 7)
SENT = lease_pb2.Lease(flow_run_id=str(RUN_ID), fence=7)
HELD = HeldLease(LEASE, MINUTE, NOON + MINUTE)


def a_hello(**fields: Any) -> pb.Hello:
    plain: dict[str, Any] = {"agent_id": str(AGENT_ID), "name": "mill", "slots": 1}
    return pb.Hello(**(plain | fields))


def test_hello() -> None:
    """An agent says who it is and what it holds."""
    hello = a_hello(labels=["b", "a"], slots=4, version="1.0", held=[SENT])

    assert AgentHello(AGENT_ID, "mill", ("a", "b"), 4, "1.0", (LEASE,)) == hello_of(hello)
    assert AgentHello(AGENT_ID, "mill", (), 1, "", ()) == hello_of(a_hello())


def test_a_wrong_hello() -> None:
    """Everything wrong with a hello is said at once."""
    hello = pb.Hello(labels=[""], version="\0", held=[SENT, lease_pb2.Lease(fence=-1)])

    places = {"agent_id", "name", "labels[0]", "slots", "version", "held[1].flow_run_id", "held[1].fence"}
    assert places == set(wrong_fields(hello_of, hello))


@pytest.mark.parametrize(
    ("at_limit", "beyond", "field"),
    [
        ({"slots": limits.SLOTS_MAX}, {"slots": limits.SLOTS_MAX + 1}, "slots"),
        ({"slots": 1}, {"slots": 0}, "slots"),
        ({"name": "x" * limits.NAME_CHARACTERS_MAX}, {"name": "x" * (limits.NAME_CHARACTERS_MAX + 1)}, "name"),
        ({"version": "x" * limits.NAME_CHARACTERS_MAX}, {"version": "x" * (limits.NAME_CHARACTERS_MAX + 1)}, "version"),
        ({"held": [SENT] * limits.LEASES_PER_CALL_MAX}, {"held": [SENT] * (limits.LEASES_PER_CALL_MAX + 1)}, "held"),
    ],
)
def test_a_hello_at_its_limits(at_limit: dict[str, Any], beyond: dict[str, Any], field: str) -> None:
    """Each part of a hello is taken at its limit and refused beyond it."""
    hello_of(a_hello(**at_limit))

    assert [field] == wrong_fields(hello_of, a_hello(**beyond))


def test_nobody_bears_a_reserved_label() -> None:
    """Neither on a stream nor on a poll."""
    assert ["labels[1]"] == wrong_fields(hello_of, a_hello(labels=["a", AGENTLESS]))
    assert ["hello.labels[0]"] == wrong_fields(polling_of, pb.LeaseFlowRunsRequest(hello=a_hello(labels=[AGENTLESS])))


def test_polling() -> None:
    """Who polls, for how many offers, how long, and for which run."""
    request = pb.LeaseFlowRunsRequest(
        hello=a_hello(held=[SENT]), offers_max=3, wait=Duration(seconds=30), flow_run_id=str(RUN_ID)
    )

    hello = AgentHello(AGENT_ID, "mill", (), 1, "", (LEASE,))
    assert Polling(hello, 3, limits.LONG_POLL_MAX, RUN_ID) == polling_of(request)
    assert Polling(replace(hello, held=()), 0, timedelta(0), None) == polling_of(
        pb.LeaseFlowRunsRequest(hello=a_hello())
    )


@pytest.mark.parametrize(
    ("fields", "wrong_field"),
    [
        ({"offers_max": -1}, "offers_max"),
        ({"offers_max": limits.LEASES_PER_CALL_MAX + 1}, "offers_max"),
        ({"wait": Duration(seconds=30, nanos=1_000)}, "wait"),
        ({"wait": Duration(seconds=-1)}, "wait"),
        ({"flow_run_id": "x"}, "flow_run_id"),
        ({"hello": a_hello(name="")}, "hello.name"),
        ({"hello": a_hello(held=[lease_pb2.Lease(flow_run_id=str(RUN_ID))])}, "hello.held[0].fence"),
    ],
)
def test_a_wrong_poll(fields: dict[str, Any], wrong_field: str) -> None:
    """Each part is bounded; a poll without a hello is refused for just that."""
    assert [wrong_field] == wrong_fields(polling_of, pb.LeaseFlowRunsRequest(**({"hello": a_hello()} | fields)))
    assert ["hello"] == wrong_fields(polling_of, pb.LeaseFlowRunsRequest())


def test_accepting() -> None:
    """Who accepts and what is accepted are checked together."""
    request = pb.AcceptFlowRunsRequest(agent_id=str(AGENT_ID), leases=[SENT])

    assert accepting_of(request) == (AGENT_ID, (LEASE,))
    assert wrong(accepting_of, pb.AcceptFlowRunsRequest()) == [("agent_id", "is required"), ("leases", "is required")]


def test_leases_at_their_limits() -> None:
    """One lease to a thousand, each mention for itself."""
    assert leases_of([SENT, SENT]) == (LEASE, LEASE)
    leases_of([SENT] * limits.LEASES_PER_CALL_MAX)

    assert wrong(leases_of, []) == [("leases", "is required")]
    too_many = [SENT] * (limits.LEASES_PER_CALL_MAX + 1)
    assert wrong(leases_of, too_many) == [("leases", "holds 1001; at most 1000 are allowed")]


def test_releases() -> None:
    """A lease is given back with a delay and a reason, or without."""
    releases = [pb.Release(lease=SENT, delay=Duration(seconds=1), reason="no room"), pb.Release(lease=SENT)]

    assert (Releasing(LEASE, timedelta(seconds=1), "no room"), Releasing(LEASE)) == releases_of(releases)


def test_releases_at_their_limits() -> None:
    """Delay, reason and number are taken at their limits and refused beyond them."""
    day = Duration(seconds=int(limits.RELEASE_DELAY_ASKED_MAX.total_seconds()))
    reason = "x" * limits.REASON_CHARACTERS_MAX
    releases_of([pb.Release(lease=SENT, delay=day, reason=reason)] * limits.LEASES_PER_CALL_MAX)

    longer = Duration(seconds=day.seconds, nanos=1_000)
    assert {
        "releases[1].lease.flow_run_id",
        "releases[1].lease.fence",
        "releases[1].delay",
        "releases[1].reason",
    } == set(wrong_fields(releases_of, [pb.Release(lease=SENT), pb.Release(delay=longer, reason=f"{reason}x")]))
    assert wrong_fields(releases_of, []) == ["releases"]
    assert wrong_fields(releases_of, [pb.Release(lease=SENT)] * (limits.LEASES_PER_CALL_MAX + 1)) == ["releases"]


def test_leases_are_answered() -> None:
    """How long a lease lasts is said of one that is held, and of no other."""
    held = lease_to_proto(HELD)

    assert (str(RUN_ID), 7, 60, NOON.int_timestamp + 60) == (
        held.flow_run_id,
        held.fence,
        held.ttl.seconds,
        held.expire_time.seconds,
    )
    assert lease_to_proto(LEASE) == SENT


@pytest.mark.parametrize("outcome", list(LeaseOutcome))
def test_lease_results(outcome: LeaseOutcome) -> None:
    """Each outcome is answered with its lease."""
    result = lease_result_to_proto(LeaseResult(LEASE, outcome))

    assert (SENT, f"LEASE_OUTCOME_{outcome.name}") == (result.lease, lease_pb2.LeaseOutcome.Name(result.outcome))
    assert lease_to_proto(HELD) == lease_result_to_proto(LeaseResult(LEASE, outcome, HELD)).lease


def test_offers() -> None:
    """An offer brings the run whole, its flow, the lease and the trace."""
    run, flow = a_flow_run(), a_flow()

    offer = offer_to_proto(Offered(run, flow, HELD, {"traceparent": TRACEPARENT}))

    assert (flow_run_to_proto(run), flow_to_proto(flow), lease_to_proto(HELD)) == (
        offer.flow_run,
        offer.flow,
        offer.lease,
    )
    assert dict(offer.trace_context) == {"traceparent": TRACEPARENT}


def test_agents() -> None:
    """An agent is answered whole."""
    message = agent_to_proto(Agent(AGENT_ID, "mill", ("a",), 4, 2, "1.0", True, NOON, NOON + MINUTE))

    assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field, _ in message.ListFields()}
    assert (str(AGENT_ID), "mill", ["a"], 4, 2, "1.0") == (
        message.agent_id,
        message.name,
        list(message.labels),
        message.slots,
        message.slots_used,
        message.version,
    )
    assert message.last_seen_time.seconds - message.connect_time.seconds == 60


def test_enums_are_total() -> None:
    """Every outcome of a lease has its number and every number its outcome, but for the unspecified one."""
    assert set(LeaseOutcome) == set(leases.LEASE_OUTCOME_TO_PROTO) == set(leases.LEASE_OUTCOME_FROM_PROTO.values())
    assert set(lease_pb2.LeaseOutcome.values()) - {0} == set(leases.LEASE_OUTCOME_FROM_PROTO)
