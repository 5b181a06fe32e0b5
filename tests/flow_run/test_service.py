"""FlowRunService over a real socket, on both databases."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from flowrun.v1 import flow_pb2, flow_run_pb2, lease_pb2
from flowrun.v1 import flow_run_service_pb2 as pb
from penstock.domain.flow import PolicyAsked
from penstock.domain.flow_run import Cancelling, Created, Creation, Failure, FlowTarget, Succeeded
from penstock.domain.ids import ExecutionId, FlowRunId, TenantId
from penstock.domain.limits import (
    BATCH_CREATE_MAX,
    CONTEXT_BYTES_MAX,
    HELD_LEASE,
    KIB,
    MESSAGE_BYTES_MAX,
    PARAMETERS_BYTES_MAX,
    RESULT_BYTES_MAX,
)
from penstock.domain.parameters import Parameter
from penstock.flow_run import creation, operations
from penstock.flow_run.service import committing_creations
from penstock.storage.database import Database, Transaction
from tests.flow_run.served import refused, serving
from tests.queue.scenes import (
    SECOND,
    TENANT,
    ask_to_stop,
    at_work,
    cancel,
    create,
    everything,
    expire,
    finish,
    held,
    offer,
    register,
    release,
    restart,
    run_of,
    start,
)
from tests.support.builders import a_creation, an_id
from tests.support.fake_clock import FakeClock

NOBODY = str(UUID(int=1))
SOON = timedelta(milliseconds=20)
S = flow_run_pb2.FlowRunState
C = flow_run_pb2.TransitionCause


def fields_of(violations: Any) -> list[str]:
    return [each.field for each in violations]


def json_of(size: int) -> str:
    """A JSON object of that many bytes."""
    return '{"x":"' + "x" * (size - 8) + '"}'


async def read_to_end(stream: Any) -> list[pb.WatchFlowRunResponse]:
    messages: list[pb.WatchFlowRunResponse] = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


def versions_in(messages: list[pb.WatchFlowRunResponse]) -> list[int]:
    return [each.transition.version for each in messages if each.HasField("transition")]


async def test_a_run_goes_all_the_way(database: Database) -> None:
    """Created, found, started, finished, listed and told, each by its rpc."""
    flow = await register(database, parameters=(Parameter("n", default_json="1.50"),))
    execution = str(uuid4())

    async with serving(database) as process:
        created = await process.flow_runs.CreateFlowRun(
            pb.CreateFlowRunRequest(flow_group_id=str(flow.group_id), context_json='{"big": 9007199254740993}')
        )
        run_id = created.flow_run.flow_run_id
        lease = await held(database, FlowRunId(UUID(run_id)))
        started = await process.flow_runs.StartFlowRun(
            pb.StartFlowRunRequest(flow_run_id=run_id, fence=lease.fence, execution_id=execution)
        )
        finished = await process.flow_runs.FinishFlowRun(
            pb.FinishFlowRunRequest(
                flow_run_id=run_id,
                fence=lease.fence,
                execution_id=execution,
                succeeded=pb.Succeeded(result_json='{"mean": 2.0}'),
            )
        )
        got = await process.flow_runs.GetFlowRun(pb.GetFlowRunRequest(flow_run_id=run_id))
        listed = await process.flow_runs.ListFlowRuns(pb.ListFlowRunsRequest())
        steps = await process.flow_runs.ListTransitions(pb.ListTransitionsRequest(flow_run_id=run_id))

    assert created.created
    assert ('{"n":1.50}', '{"big":9007199254740993}') == (
        created.flow_run.parameters_json,
        created.flow_run.context_json,
    )
    assert created.flow_run.name.count("-") >= 1
    assert created.flow_run.trace_context["traceparent"]
    assert (S.FLOW_RUN_STATE_RUNNING, HELD_LEASE) == (started.flow_run.state, started.lease.ttl.ToTimedelta())
    assert (S.FLOW_RUN_STATE_SUCCEEDED, '{"mean": 2.0}') == (finished.flow_run.state, finished.flow_run.result_json)
    assert got.flow_run == finished.flow_run
    assert [(run_id, "", "")] == [
        (each.flow_run_id, each.parameters_json, each.result_json) for each in listed.flow_runs
    ]
    assert [
        C.TRANSITION_CAUSE_CREATED,
        C.TRANSITION_CAUSE_ACCEPTED,
        C.TRANSITION_CAUSE_STARTED,
        C.TRANSITION_CAUSE_FINISHED,
    ] == [each.cause for each in steps.transitions]


async def test_creations_that_arrive_together_keep_their_keys(database: Database) -> None:
    """However many calls with one key are under way at once, one run is made and all are told of it."""
    flow = await register(database)
    request = pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key="k")

    async with serving(database) as process:
        answers = await asyncio.gather(*(process.flow_runs.CreateFlowRun(request) for _ in range(20)))

    assert 1 == len({each.flow_run.flow_run_id for each in answers})
    assert 1 == [each.created for each in answers].count(True)


async def test_a_repeated_creation_is_answered(database: Database) -> None:
    """With the first run and what differs, or refused if that was asked for."""
    flow = await register(database)
    first = pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key="k", request_id=str(uuid4()))
    second = pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key="k", parameters_json='{"day":"x"}')
    strict = pb.CreateFlowRunRequest()
    strict.CopyFrom(second)
    strict.key_reuse = pb.KEY_REUSE_REFUSE_IF_DIFFERENT

    async with serving(database) as process:
        created = await process.flow_runs.CreateFlowRun(first)
        repeated = await process.flow_runs.CreateFlowRun(first)
        different = await process.flow_runs.CreateFlowRun(second)
        refusal = await refused(process.flow_runs.CreateFlowRun(strict))

    assert [True, False, False] == [each.created for each in (created, repeated, different)]
    assert created.flow_run == repeated.flow_run == different.flow_run
    assert ["parameters"] == list(different.differing_fields)
    assert (grpc.StatusCode.ALREADY_EXISTS, "KEY_REUSED") == (refusal.code, refusal.reason)
    assert {
        "flow_run_id": created.flow_run.flow_run_id,
        "idempotency_key": "k",
        "differing_fields": "parameters",
    } == refusal.metadata


async def test_everything_wrong_with_a_creation_is_listed(database: Database) -> None:
    """All violations at once, by the paths of the contract."""
    request = pb.CreateFlowRunRequest(
        idempotency_key=" ",
        request_id="x",
        parameters_json="[1]",
        context_json="{",
        labels=flow_run_pb2.Labels(labels=[""]),
        policy=flow_run_pb2.FlowRunPolicy(priority=101),
        parent=lease_pb2.Lease(flow_run_id="", fence=0),
    )

    async with serving(database) as process:
        refusal = await refused(process.flow_runs.CreateFlowRun(request))

    assert (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") == (refusal.code, refusal.reason)
    assert {
        "target",
        "idempotency_key",
        "request_id",
        "parameters_json",
        "context_json",
        "labels[0]",
        "policy.priority",
        "parent.flow_run_id",
        "parent.fence",
    } == set(fields_of(refusal.violations))


async def test_creations_are_refused_by_name(database: Database) -> None:
    """What is not there, archived, wrongly called or without its parent's lease: code, reason and about what."""
    old = await register(database)
    live = await register(database, description="newer")
    make = pb.CreateFlowRunRequest
    parent = lease_pb2.Lease(flow_run_id=NOBODY, fence=3)

    async with serving(database) as process:
        refusals = [
            await refused(process.flow_runs.CreateFlowRun(each))
            for each in (
                make(flow_id=NOBODY),
                make(flow_group_id=NOBODY),
                make(flow_id=str(old.id)),
                make(flow_id=str(live.id), parameters_json='{"x":1,"y":2}'),
                make(flow_id=str(live.id), parent=parent),
            )
        ]

    assert [
        (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND"),
        (grpc.StatusCode.NOT_FOUND, "FLOW_GROUP_NOT_FOUND"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FLOW_ARCHIVED"),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (grpc.StatusCode.ABORTED, "LEASE_LOST"),
    ] == [(each.code, each.reason) for each in refusals]
    assert {"flow_id": str(old.id), "live_flow_id": str(live.id)} == refusals[2].metadata
    assert ["parameters_json", "parameters_json"] == fields_of(refusals[3].violations)
    assert {"flow_run_id": NOBODY, "fence": "3"} == refusals[4].metadata


async def test_a_refused_creation_leaves_its_neighbours_alone(database: Database) -> None:
    """Of calls that share a flush each has its own outcome."""
    flow = await register(database)
    right = pb.CreateFlowRunRequest(flow_id=str(flow.id))
    wrong = pb.CreateFlowRunRequest(flow_id=NOBODY)

    async with serving(database) as process:
        calls = [process.flow_runs.CreateFlowRun(wrong if number % 3 else right) for number in range(12)]
        outcomes = await asyncio.gather(*map(_settled, calls))

    assert [number % 3 == 0 for number in range(12)] == outcomes


async def _settled(call: Any) -> bool:
    try:
        return bool((await call).created)
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.NOT_FOUND


async def test_starting_and_finishing_are_refused_by_name(database: Database, clock: FakeClock) -> None:
    """Not found, lost, another's, or not from this state."""
    flow = await register(database)
    work = await at_work(database, (await create(database, flow)).id)
    unstarted = await held(database, (await create(database, flow)).id)
    run_id, fence, other = str(work.lease.flow_run_id), work.lease.fence, str(uuid4())
    good = pb.Succeeded()

    async with serving(database) as process:
        begin, end = process.flow_runs.StartFlowRun, process.flow_runs.FinishFlowRun
        refusals = [
            await refused(begin(pb.StartFlowRunRequest(flow_run_id=NOBODY, fence=1, execution_id=other))),
            await refused(begin(pb.StartFlowRunRequest(flow_run_id=run_id, fence=fence + 1, execution_id=other))),
            await refused(begin(pb.StartFlowRunRequest(flow_run_id=run_id, fence=fence, execution_id=other))),
            await refused(end(pb.FinishFlowRunRequest(flow_run_id=NOBODY, fence=1, succeeded=good))),
            await refused(end(pb.FinishFlowRunRequest(flow_run_id=run_id, fence=fence + 1, succeeded=good))),
            await refused(end(pb.FinishFlowRunRequest(flow_run_id=run_id, fence=fence, succeeded=good))),
            await refused(
                end(
                    pb.FinishFlowRunRequest(
                        flow_run_id=str(unstarted.flow_run_id), fence=unstarted.fence, succeeded=good
                    )
                )
            ),
        ]
        invalid = await refused(end(pb.FinishFlowRunRequest(flow_run_id="x", execution_id="y")))

    assert [
        (grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND"),
        (grpc.StatusCode.ABORTED, "LEASE_LOST"),
        (grpc.StatusCode.ABORTED, "EXECUTION_REFUSED"),
        (grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND"),
        (grpc.StatusCode.ABORTED, "LEASE_LOST"),
        (grpc.StatusCode.ABORTED, "EXECUTION_REFUSED"),
        (grpc.StatusCode.FAILED_PRECONDITION, "MOVE_REFUSED"),
    ] == [(each.code, each.reason) for each in refusals]
    assert {"flow_run_id": str(unstarted.flow_run_id), "present": "SUBMITTED", "asked": "SUCCEEDED"} == refusals[
        6
    ].metadata
    assert {"flow_run_id", "fence", "execution_id", "outcome"} == set(fields_of(invalid.violations))


async def test_repeated_starts_and_finishes_are_answered(database: Database) -> None:
    """Of calls that were repeated at once, for one execution, all are answered alike."""
    flow = await register(database)
    run = await create(database, flow)
    lease = await held(database, run.id)
    begin = pb.StartFlowRunRequest(flow_run_id=str(run.id), fence=lease.fence, execution_id=str(uuid4()))
    end = pb.FinishFlowRunRequest(
        flow_run_id=str(run.id),
        fence=lease.fence,
        execution_id=begin.execution_id,
        failed=flow_run_pb2.Failure(message="no", exit_code=0, signal=9),
    )

    async with serving(database) as process:
        started = await asyncio.gather(*(process.flow_runs.StartFlowRun(begin) for _ in range(5)))
        finished = await asyncio.gather(*(process.flow_runs.FinishFlowRun(end) for _ in range(5)))

    assert {S.FLOW_RUN_STATE_RUNNING} == {each.flow_run.state for each in started}
    assert {(S.FLOW_RUN_STATE_FAILED, 4)} == {(each.flow_run.state, each.flow_run.version) for each in finished}
    assert (0, 9) == (finished[0].flow_run.failure.exit_code, finished[0].flow_run.failure.signal)


async def test_the_largest_run_travels(database: Database) -> None:
    """Parameters, context and result at their limits fit into every answer; one byte more is refused."""
    flow = await register(database, accepts_extra_parameters=True, parameters=())
    largest = pb.CreateFlowRunRequest(
        flow_id=str(flow.id), parameters_json=json_of(PARAMETERS_BYTES_MAX), context_json=json_of(CONTEXT_BYTES_MAX)
    )
    too_large = pb.CreateFlowRunRequest(
        flow_id=str(flow.id),
        parameters_json=json_of(PARAMETERS_BYTES_MAX + 1),
        context_json=json_of(CONTEXT_BYTES_MAX + 1),
    )
    result = json_of(RESULT_BYTES_MAX)

    async with serving(database) as process:
        refusal = await refused(process.flow_runs.CreateFlowRun(too_large))
        run = (await process.flow_runs.CreateFlowRun(largest)).flow_run
        work = await at_work(database, FlowRunId(UUID(run.flow_run_id)))
        finished = await process.flow_runs.FinishFlowRun(
            pb.FinishFlowRunRequest(
                flow_run_id=run.flow_run_id,
                fence=work.lease.fence,
                execution_id=str(work.execution_id),
                succeeded=pb.Succeeded(result_json=result),
            )
        )
        told = await read_to_end(process.flow_runs.WatchFlowRun(pb.WatchFlowRunRequest(flow_run_id=run.flow_run_id)))

    assert ["parameters_json", "context_json"] == fields_of(refusal.violations)
    assert (largest.parameters_json, largest.context_json, result) == (
        finished.flow_run.parameters_json,
        finished.flow_run.context_json,
        finished.flow_run.result_json,
    )
    assert finished.flow_run == told[-1].end.flow_run


async def test_lists_go_on_from_page_to_page(database: Database, clock: FakeClock) -> None:
    """Runs and transitions over three pages each; a token fits only the query it was made for."""
    flow = await register(database)
    runs = []
    for number in range(7):
        runs.append(str((await create(database, flow)).id))
        if number % 2:
            clock.advance(SECOND)
    run_id = FlowRunId(UUID(runs[0]))
    for _ in range(2):
        await release(database, await held(database, run_id))
        clock.advance(2 * SECOND)

    async with serving(database) as process:
        listed: list[str] = []
        sizes: list[int] = []
        request = pb.ListFlowRunsRequest(page_size=3)
        while True:
            page = await process.flow_runs.ListFlowRuns(request)
            listed += [each.flow_run_id for each in page.flow_runs]
            sizes.append(len(page.flow_runs))
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        versions: list[int] = []
        asked = pb.ListTransitionsRequest(flow_run_id=runs[0], page_size=2)
        while True:
            steps = await process.flow_runs.ListTransitions(asked)
            versions += [each.version for each in steps.transitions]
            if not steps.next_page_token:
                break
            asked.page_token = steps.next_page_token
        stolen = pb.ListFlowRunsRequest(page_token=request.page_token, name="another query")
        refusal = await refused(process.flow_runs.ListFlowRuns(stolen))
        negative = await refused(process.flow_runs.ListFlowRuns(pb.ListFlowRunsRequest(page_size=-1, flow_id="x")))
        unknown = await refused(process.flow_runs.ListTransitions(pb.ListTransitionsRequest(flow_run_id=NOBODY)))

    assert [3, 3, 1] == sizes
    assert sorted(runs) == sorted(listed)
    assert [1, 2, 3, 4, 5] == versions
    assert (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID") == (refusal.code, refusal.reason)
    assert {"page_size", "flow_id"} == set(fields_of(negative.violations))
    assert "FLOW_RUN_NOT_FOUND" == unknown.reason


async def test_what_does_not_exist_is_not_found(database: Database) -> None:
    """Neither got nor watched."""
    async with serving(database) as process:
        got = await refused(process.flow_runs.GetFlowRun(pb.GetFlowRunRequest(flow_run_id=NOBODY)))
        watched = await refused(process.flow_runs.WatchFlowRun(pb.WatchFlowRunRequest(flow_run_id=NOBODY)))
        invalid = await refused(
            process.flow_runs.WatchFlowRun(pb.WatchFlowRunRequest(flow_run_id="x", after_version=-1))
        )

    assert ["FLOW_RUN_NOT_FOUND"] * 2 == [got.reason, watched.reason]
    assert {"flow_run_id", "after_version"} == set(fields_of(invalid.violations))


async def test_a_finished_run_is_told_and_the_watch_ends(database: Database) -> None:
    """From any version: the later steps once and in order, then the end with the run, then OK."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    await finish(database, work.lease, work.execution_id, Succeeded("7"))

    async with serving(database) as process:
        for after, expected in ((0, [1, 2, 3, 4]), (2, [3, 4]), (4, []), (9, [])):
            watch = process.flow_runs.WatchFlowRun(pb.WatchFlowRunRequest(flow_run_id=str(run.id), after_version=after))
            messages = await read_to_end(watch)
            assert expected == versions_in(messages)
            assert ["end"] == [each.WhichOneof("message") for each in messages[len(expected) :]]
            assert "7" == messages[-1].end.flow_run.result_json
            assert grpc.StatusCode.OK is await watch.code()


async def test_two_watch_one_run_live(database: Database, clock: FakeClock) -> None:
    """Each step reaches both as it happens, by hint, through retries to the end; none is lost or comes twice."""
    run = await create(database, await register(database), policy=PolicyAsked(max_retries=1))
    request = pb.WatchFlowRunRequest(flow_run_id=str(run.id))

    async with serving(database) as process:
        watches = [process.flow_runs.WatchFlowRun(request) for _ in range(2)]
        seen: list[list[pb.WatchFlowRunResponse]] = [[await each.read()] for each in watches]

        async def both() -> None:
            for messages, watch in zip(seen, watches, strict=True):
                messages.append(await watch.read())

        lease = await held(database, run.id)
        await both()
        execution_id = ExecutionId(an_id())
        await start(database, lease, execution_id)
        await both()
        await finish(database, lease, execution_id, Failure(message="once"))
        await both()
        again = await at_work(database, run.id)
        await finish(database, again.lease, again.execution_id)
        for messages, watch in zip(seen, watches, strict=True):
            messages += await read_to_end(watch)

    for messages in seen:
        assert [1, 2, 3, 4, 5, 6, 7] == versions_in(messages)
        assert 8 == len(messages)
        assert S.FLOW_RUN_STATE_SUCCEEDED == messages[-1].end.flow_run.state


async def test_an_idle_watch_beats(database: Database) -> None:
    """The heartbeat names the version from which to go on."""
    run = await create(database, await register(database))

    async with serving(database, heartbeat=SOON) as process:
        watch = process.flow_runs.WatchFlowRun(pb.WatchFlowRunRequest(flow_run_id=str(run.id)))
        seen = [await watch.read()]
        while seen[-1].heartbeat.version != 1:
            seen.append(await watch.read())
        watch.cancel()

    assert [1] == versions_in(seen)


async def test_a_watch_ends_when_the_process_drains(database: Database) -> None:
    """UNAVAILABLE, to be resumed elsewhere."""
    run = await create(database, await register(database))

    async with serving(database) as process:
        watch = process.flow_runs.WatchFlowRun(pb.WatchFlowRunRequest(flow_run_id=str(run.id)))
        await watch.read()
        await process.watches.drain()
        refusal = await refused(watch)

    assert grpc.StatusCode.UNAVAILABLE is refusal.code
    assert refusal.retry_after is not None


async def test_a_finish_after_the_keeper_is_lost(database: Database, clock: FakeClock) -> None:
    """Over the wire as in the database: nothing changes."""
    flow = await register(database)
    work = await at_work(database, (await create(database, flow)).id)
    stopping = await at_work(database, (await create(database, flow)).id)
    await ask_to_stop(database, stopping.lease)
    clock.advance(HELD_LEASE)
    await expire(database)
    await offer(database, work.lease.flow_run_id)
    before = await everything(database)

    async with serving(database) as process:
        refusals = [
            await refused(
                process.flow_runs.FinishFlowRun(
                    pb.FinishFlowRunRequest(
                        flow_run_id=str(each.lease.flow_run_id),
                        fence=each.lease.fence,
                        execution_id=str(each.execution_id),
                        stopped=pb.Stopped(),
                    )
                )
            )
            for each in (work, stopping)
        ]

    assert ["LEASE_LOST"] * 2 == [each.reason for each in refusals]
    assert before == await everything(database)


async def test_run_configs_travel(database: Database) -> None:
    """An empty list of labels is not an absent one, and a run config is taken whole."""
    flow = await register(database, labels=("gpu",))
    config = flow_pb2.Flow().run_config
    config.image, config.environment["A"] = "image", "1"

    async with serving(database) as process:
        plain = await process.flow_runs.CreateFlowRun(pb.CreateFlowRunRequest(flow_id=str(flow.id)))
        own = await process.flow_runs.CreateFlowRun(
            pb.CreateFlowRunRequest(flow_id=str(flow.id), labels=flow_run_pb2.Labels(), run_config=config)
        )

    assert ["gpu"] == list(plain.flow_run.labels)
    assert ([], config) == (list(own.flow_run.labels), own.flow_run.run_config)


async def test_a_run_is_cancelled_restarted_and_deleted(database: Database) -> None:
    """Each by its rpc; every repeat is answered, and at the end only the key knows of it."""
    flow = await register(database)
    key = pb.GetFlowRunByKeyRequest(flow_id=str(flow.id), idempotency_key="k")

    async with serving(database) as process:
        rpc = process.flow_runs
        created = await rpc.CreateFlowRun(pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key="k"))
        run_id = created.flow_run.flow_run_id
        cancels = [
            (await rpc.CancelFlowRun(pb.CancelFlowRunRequest(flow_run_id=run_id, reason=reason))).flow_run
            for reason in ("wrong day", "again")
        ]
        again = pb.RestartFlowRunRequest(flow_run_id=run_id, version=2, reason="right after all")
        restarts = [(await rpc.RestartFlowRun(again)).flow_run for _ in range(2)]
        found = await rpc.GetFlowRunByKey(key)
        await rpc.CancelFlowRun(pb.CancelFlowRunRequest(flow_run_id=run_id))
        steps = await rpc.ListTransitions(pb.ListTransitionsRequest(flow_run_id=run_id))
        deletes = [(await rpc.DeleteFlowRun(pb.DeleteFlowRunRequest(flow_run_id=run_id))).deleted for _ in range(2)]
        kept = await rpc.GetFlowRunByKey(key)
        repeated = await rpc.CreateFlowRun(pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key="k"))

    assert cancels[0] == cancels[1]
    assert (S.FLOW_RUN_STATE_CANCELLED, 2) == (cancels[0].state, cancels[0].version)
    assert restarts[0] == restarts[1] == found.flow_run
    assert (S.FLOW_RUN_STATE_SCHEDULED, 3, 2) == (restarts[0].state, restarts[0].version, restarts[0].attempt)
    assert not found.HasField("delete_time")
    assert ["", "wrong day", "right after all", ""] == [each.message for each in steps.transitions]
    assert [True, False] == deletes
    assert flow_run_pb2.FlowRun(flow_run_id=run_id) == kept.flow_run == repeated.flow_run
    assert kept.HasField("delete_time")
    assert (False, kept.delete_time) == (repeated.created, repeated.delete_time)


async def test_moves_are_refused_by_name(database: Database) -> None:
    """What is not there, live, or has gone on: code, reason and about what; all that is wrong with a call at once."""
    flow = await register(database)
    live = str((await create(database, flow)).id)
    over = str((await create(database, flow)).id)
    await cancel(database, FlowRunId(UUID(over)))
    await restart(database, await run_of(database, FlowRunId(UUID(over))))
    await cancel(database, FlowRunId(UUID(over)))
    again, start_time = pb.RestartFlowRunRequest, timestamp_pb2.Timestamp(seconds=1)

    async with serving(database) as process:
        rpc = process.flow_runs
        refusals = [
            await refused(rpc.CancelFlowRun(pb.CancelFlowRunRequest(flow_run_id=NOBODY))),
            await refused(rpc.RestartFlowRun(again(flow_run_id=NOBODY, version=1))),
            await refused(rpc.RestartFlowRun(again(flow_run_id=live, version=1))),
            await refused(rpc.RestartFlowRun(again(flow_run_id=over, version=3))),
            await refused(rpc.DeleteFlowRun(pb.DeleteFlowRunRequest(flow_run_id=live))),
            await refused(
                rpc.GetFlowRunByKey(pb.GetFlowRunByKeyRequest(flow_group_id=str(flow.group_id), idempotency_key="k"))
            ),
        ]
        invalid = [
            await refused(rpc.CancelFlowRun(pb.CancelFlowRunRequest(flow_run_id="x", reason="r" * 1_001))),
            await refused(
                rpc.RestartFlowRun(
                    again(
                        reason="\0",
                        scheduled_start_time=start_time,
                        start_delay=duration_pb2.Duration(seconds=-1),
                    )
                )
            ),
            await refused(rpc.DeleteFlowRun(pb.DeleteFlowRunRequest())),
            await refused(rpc.GetFlowRunByKey(pb.GetFlowRunByKeyRequest())),
        ]

    assert [
        (grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND"),
        (grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FLOW_RUN_LIVE"),
        (grpc.StatusCode.ABORTED, "VERSION_STALE"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FLOW_RUN_LIVE"),
        (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND"),
    ] == [(each.code, each.reason) for each in refusals]
    assert {"flow_run_id": live, "present": "SCHEDULED"} == refusals[2].metadata == refusals[4].metadata
    assert {"flow_run_id": over, "version": "3", "present": "4"} == refusals[3].metadata
    assert {"idempotency_key": "k", "target": f"flow group {flow.group_id}"} == refusals[5].metadata
    assert [
        {"flow_run_id", "reason"},
        {"flow_run_id", "version", "reason", "start_delay"},
        {"flow_run_id"},
        {"target", "idempotency_key"},
    ] == [set(fields_of(each.violations)) for each in invalid]


async def test_cancels_that_arrive_together_are_answered_alike(database: Database) -> None:
    """However many, one of them decides."""
    run = await create(database, await register(database))
    await at_work(database, run.id)
    request = pb.CancelFlowRunRequest(flow_run_id=str(run.id))

    async with serving(database) as process:
        answers = await asyncio.gather(*(process.flow_runs.CancelFlowRun(request) for _ in range(20)))

    assert {(S.FLOW_RUN_STATE_CANCELLING, 4)} == {(each.flow_run.state, each.flow_run.version) for each in answers}


async def test_a_start_delay_counts_from_the_creation(database: Database, clock: FakeClock) -> None:
    """By the database's clock alone; a time and a delay together are refused, and so is what lies out of range."""
    flow = await register(database)
    clock.advance(timedelta(days=1))
    longest = duration_pb2.Duration(seconds=3_650 * 86_400)
    beyond = duration_pb2.Duration(seconds=3_650 * 86_400, nanos=1_000)
    now = timestamp_pb2.Timestamp(seconds=1)
    far = timestamp_pb2.Timestamp(seconds=253_402_300_800)  # the first second of year 10000

    def asking(**fields: Any) -> pb.CreateFlowRunRequest:
        return pb.CreateFlowRunRequest(flow_id=str(flow.id), **fields)

    async with serving(database) as process:
        create_flow_run = process.flow_runs.CreateFlowRun
        delayed = (await create_flow_run(asking(start_delay=longest))).flow_run
        refusals = [
            await refused(create_flow_run(asking(start_delay=beyond))),
            await refused(create_flow_run(asking(start_delay=duration_pb2.Duration(nanos=-1_000)))),
            await refused(create_flow_run(asking(start_delay=longest, scheduled_start_time=now))),
            await refused(create_flow_run(asking(scheduled_start_time=far))),
        ]

    assert clock.now() + timedelta(days=3_650) == delayed.scheduled_start_time.ToDatetime(tzinfo=UTC)
    assert [["start_delay"]] * 3 + [["scheduled_start_time"]] == [fields_of(each.violations) for each in refusals]
    assert "is given beside scheduled_start_time; give one of them" == refusals[2].violations[0].description


async def test_parameters_keep_their_digits(database: Database) -> None:
    """Every default stands on the run, and every number as it was written; what is no JSON number is refused."""
    declared = [Parameter(name, default_json=text) for name, text in (("a", "0"), ("b", '""'), ("c", "false"))]
    flow = await register(database, parameters=(*declared, Parameter("d", default_json="null"), Parameter("n")))
    written = ("2", "2.0", "9007199254740993", "-0", "1e2", "0.1000")

    async with serving(database) as process:
        kept = []
        for number in written:
            created = await process.flow_runs.CreateFlowRun(
                pb.CreateFlowRunRequest(flow_id=str(flow.id), parameters_json=f'{{"n": {number}}}')
            )
            kept.append(created.flow_run.parameters_json)
        refusals = [
            await refused(
                process.flow_runs.CreateFlowRun(
                    pb.CreateFlowRunRequest(flow_id=str(flow.id), parameters_json=f'{{"n": {number}}}')
                )
            )
            for number in ("NaN", "Infinity", "-Infinity", "1e400", "0x1")
        ]

    assert [f'{{"a":0,"b":"","c":false,"d":null,"n":{number}}}' for number in written] == kept
    assert [(grpc.StatusCode.INVALID_ARGUMENT, ["parameters_json"])] * 5 == [
        (each.code, fields_of(each.violations)) for each in refusals
    ]


async def test_a_watch_of_a_run_that_is_deleted_ends(database: Database) -> None:
    """With FLOW_RUN_NOT_FOUND, in every watcher, even if its end was never seen."""
    run = await create(database, await register(database))
    request = pb.WatchFlowRunRequest(flow_run_id=str(run.id))

    def ending(tx: Transaction) -> None:
        operations.cancel_flow_runs(tx, TENANT, [Cancelling(run.id)])
        operations.delete_flow_run(tx, TENANT, run.id)

    async with serving(database) as process:
        watches = [process.flow_runs.WatchFlowRun(request) for _ in range(2)]
        seen = [await each.read() for each in watches]
        await database.run(ending)
        refusals = [await refused(each) for each in watches]
        late = await refused(process.flow_runs.WatchFlowRun(request))

    assert [1, 1] == versions_in(seen)
    assert [(grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND", {"flow_run_id": str(run.id)})] * 3 == [
        (each.code, each.reason, each.metadata) for each in (*refusals, late)
    ]


async def test_a_batch_is_created_item_by_item(database: Database) -> None:
    """One outcome each, in order: what is wrong with one item is its own matter, and its run is told in short."""
    flow, archived = await register(database), await register(database, name="old")
    await register(database, name="old", description="newer")
    make = pb.CreateFlowRunRequest
    items = [
        make(
            flow_id=str(flow.id), idempotency_key="k", context_json='{"a":1}', labels=flow_run_pb2.Labels(labels=["x"])
        ),
        make(flow_id=str(flow.id), parameters_json='{"nobody":1,"asked":2}'),
        make(name="\0", parameters_json="["),
        make(flow_id=str(archived.id)),
        make(flow_id=str(flow.id), idempotency_key="k"),
        make(flow_id=str(flow.id), idempotency_key="k", key_reuse=pb.KEY_REUSE_REFUSE_IF_DIFFERENT),
        make(flow_id=str(flow.id), name="last"),
    ]

    async with serving(database) as process:
        answer = await process.flow_runs.BatchCreateFlowRuns(pb.BatchCreateFlowRunsRequest(requests=items))
        run_id = answer.outcomes[0].response.flow_run.flow_run_id
        whole = (await process.flow_runs.GetFlowRun(pb.GetFlowRunRequest(flow_run_id=run_id))).flow_run

    outcomes = answer.outcomes
    kinds = [each.WhichOneof("outcome") for each in outcomes]
    assert ["response", "refusal", "refusal", "refusal", "response", "refusal", "response"] == kinds
    assert [True, False, True] == [outcomes[index].response.created for index in (0, 4, 6)]
    assert run_id == outcomes[4].response.flow_run.flow_run_id
    assert ["context", "labels"] == list(outcomes[4].response.differing_fields)
    for field in ("parameters_json", "context_json", "labels", "run_config", "policy", "idempotency_key"):
        whole.ClearField(field)
    whole.trace_context.clear()
    assert whole == outcomes[0].response.flow_run
    assert "last" == outcomes[6].response.flow_run.name
    told = [(grpc_code(each.refusal.code), each.refusal.reason) for each in outcomes if each.HasField("refusal")]
    assert [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FLOW_ARCHIVED"),
        (grpc.StatusCode.ALREADY_EXISTS, "KEY_REUSED"),
    ] == told
    assert all(name in outcomes[1].refusal.message for name in ("'nobody'", "'asked'"))
    assert all(f"{field}: " in outcomes[2].refusal.message for field in ("target", "name", "parameters_json"))
    assert str(archived.id) == outcomes[3].refusal.metadata["flow_id"]
    assert run_id == outcomes[5].refusal.metadata["flow_run_id"]


def grpc_code(number: int) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == number)


async def test_a_mistake_of_ours_with_one_item_leaves_its_neighbours(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome is INTERNAL and tells the trace id alone, by which the log tells the rest."""
    flow = await register(database)
    create_flow_runs = creation.create_flow_runs

    def mistaken(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> Any:
        if any(each.name == "second" for each in creations):
            raise ZeroDivisionError("a secret")
        return create_flow_runs(tx, tenant, creations)

    monkeypatch.setattr(creation, "create_flow_runs", mistaken)
    items = [pb.CreateFlowRunRequest(flow_id=str(flow.id), name=name) for name in ("first", "second", "third")]
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)

    async with serving(database) as process:
        request = pb.BatchCreateFlowRunsRequest(requests=items)
        answer = await process.flow_runs.BatchCreateFlowRuns(request, metadata=metadata)

    assert ["first", "", "third"] == [each.response.flow_run.name for each in answer.outcomes]
    refusal = answer.outcomes[1].refusal
    assert (grpc.StatusCode.INTERNAL, "", {}) == (grpc_code(refusal.code), refusal.reason, dict(refusal.metadata))
    assert f"Internal error; trace id {trace_id}." == refusal.message
    (logged,) = (each for each in caplog.records if trace_id in each.getMessage())
    assert logged.exc_info
    assert "a secret" == str(logged.exc_info[1])
    assert 2 == len((await everything(database))["flow_runs"])


@contextlib.asynccontextmanager
async def flushed(database: Database, creations: Sequence[Creation]) -> AsyncIterator[list[Created]]:
    """These creations, which all wait when the first flush begins."""
    committer = committing_creations(database)
    calls = [asyncio.create_task(committer.commit((TENANT, each))) for each in creations]
    await asyncio.sleep(0)
    task = asyncio.create_task(committer.serve())
    try:
        yield await asyncio.gather(*calls)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_large_creations_share_no_commit_of_seconds(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many go together as are four megabytes of parameters and context."""
    flow = await register(database, accepts_extra_parameters=True)
    quarter = {"x": "y" * 256 * KIB}
    creations = [
        a_creation(target=FlowTarget(flow.id), parameters=quarter, context=quarter if number % 2 else {})
        for number in range(24)
    ]
    flushes: list[int] = []
    create_flow_runs = creation.create_flow_runs

    def counting(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> Any:
        flushes.append(len(creations))
        return create_flow_runs(tx, tenant, creations)

    monkeypatch.setattr(creation, "create_flow_runs", counting)
    async with flushed(database, creations) as created:
        assert [each.flow_run_id for each in creations] == [each.flow_run_id for each in created]

    assert [10, 10, 4] == flushes


async def test_a_commit_whose_answer_was_lost_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried one by one, creations with and without keys find their own runs, and make no other."""
    flow = await register(database)
    creations = [
        a_creation(target=FlowTarget(flow.id)),
        a_creation(target=FlowTarget(flow.id), idempotency_key="k", request_id="r"),
    ]
    run, calls = database.run, 0

    async def losing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        answer = await run(*arguments)
        if calls == 1:
            raise OSError("somewhere after the commit")
        return answer

    monkeypatch.setattr(database, "run", losing)
    async with flushed(database, creations) as created:
        assert [(each.flow_run_id, True) for each in creations] == [(each.flow_run_id, each.fresh) for each in created]
    assert 3 == calls
    assert 2 == len((await everything(database))["flow_runs"])


async def test_a_batch_holds_one_to_a_thousand(database: Database) -> None:
    """None and one too many are refused as a whole, and nothing is written."""
    flow = await register(database)
    before = await everything(database)
    item = pb.CreateFlowRunRequest(flow_id=str(flow.id))

    async with serving(database) as process:
        refusals = [
            await refused(process.flow_runs.BatchCreateFlowRuns(pb.BatchCreateFlowRunsRequest(requests=[item] * count)))
            for count in (0, BATCH_CREATE_MAX + 1)
        ]

    assert [["requests"]] * 2 == [fields_of(each.violations) for each in refusals]
    assert before == await everything(database)


async def test_the_largest_batch_is_answered_in_one_message(database: Database) -> None:
    """A thousand outcomes fit, whatever their names, created or refused; the retry of a batch completes it."""
    long = "\N{CUNEIFORM SIGN A}" * 255
    flow = await register(database, name=long, labels=("x" * 255,))

    def item(number: int, **fields: Any) -> pb.CreateFlowRunRequest:
        key = f"{number:04}" + long[4:]
        return pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key=key, name=long, **fields)

    items = [item(number) for number in range(BATCH_CREATE_MAX)]
    strict = [
        item(number, context_json='{"a":1}', key_reuse=pb.KEY_REUSE_REFUSE_IF_DIFFERENT)
        for number in range(BATCH_CREATE_MAX)
    ]

    async with serving(database) as process:
        batch = process.flow_runs.BatchCreateFlowRuns
        half = await batch(pb.BatchCreateFlowRunsRequest(requests=items[: BATCH_CREATE_MAX // 2]))
        whole = await batch(pb.BatchCreateFlowRunsRequest(requests=items))
        refusals = await batch(pb.BatchCreateFlowRunsRequest(requests=strict))

    created = [each.response.created for each in whole.outcomes]
    assert [False] * (BATCH_CREATE_MAX // 2) + [True] * (BATCH_CREATE_MAX // 2) == created
    ids = [each.response.flow_run.flow_run_id for each in whole.outcomes]
    assert BATCH_CREATE_MAX == len(set(ids))
    assert [each.response.flow_run.flow_run_id for each in half.outcomes] == ids[: BATCH_CREATE_MAX // 2]
    assert ids == [each.refusal.metadata["flow_run_id"] for each in refusals.outcomes]
    assert max(whole.ByteSize(), refusals.ByteSize()) < MESSAGE_BYTES_MAX
    assert BATCH_CREATE_MAX == len((await everything(database))["queue_entries"])


async def test_items_beyond_what_may_wait_are_refused_by_themselves(database: Database) -> None:
    """OVERLOADED is an outcome as any other; the retry completes the batch."""
    flow = await register(database)
    items = [pb.CreateFlowRunRequest(flow_id=str(flow.id), idempotency_key=f"k{number}") for number in range(5)]

    async with serving(database, creations_waiting_max=3) as process:
        batch = process.flow_runs.BatchCreateFlowRuns
        first = await batch(pb.BatchCreateFlowRunsRequest(requests=items))
        second = await batch(pb.BatchCreateFlowRunsRequest(requests=items[3:]))

    assert ["", "", "", "OVERLOADED", "OVERLOADED"] == [each.refusal.reason for each in first.outcomes]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED is grpc_code(first.outcomes[4].refusal.code)
    assert [True, True] == [each.response.created for each in second.outcomes]


async def test_a_batch_bears_the_callers_trace(database: Database) -> None:
    """Every run of it, where there is one; else each has one of its own."""
    flow = await register(database)
    request = pb.BatchCreateFlowRunsRequest(requests=[pb.CreateFlowRunRequest(flow_id=str(flow.id))] * 2)
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)

    async with serving(database) as process:
        traced = await process.flow_runs.BatchCreateFlowRuns(request, metadata=metadata)
        untraced = await process.flow_runs.BatchCreateFlowRuns(request)

    async def traces(answer: pb.BatchCreateFlowRunsResponse) -> list[str]:
        ids = [FlowRunId(UUID(each.response.flow_run.flow_run_id)) for each in answer.outcomes]
        return [(await run_of(database, each)).traceparent.split("-")[1] for each in ids]

    assert [trace_id] * 2 == await traces(traced)
    assert 2 == len(set(await traces(untraced)) - {trace_id})
